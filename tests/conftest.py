"""For all tests: the processes they start share their bytecode.

Where PYTHONDONTWRITEBYTECODE is set, every one of some two hundred processes would compile the library again, a
quarter to half a second each. They get a cache that lives as long as the run instead; the checkout stays clean.
"""

from __future__ import annotations

import os
import sys
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if not sys.dont_write_bytecode or "PYTHONPYCACHEPREFIX" in os.environ:
        return
    cache = tempfile.TemporaryDirectory(prefix="streamlog-tests-bytecode-", ignore_cleanup_errors=True)
    config.add_cleanup(cache.cleanup)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = cache.name
