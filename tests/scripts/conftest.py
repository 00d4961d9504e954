"""`pytest tests/scripts --rewrite` writes the outputs it sees into the scripts."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write the golden scripts' outputs anew")
