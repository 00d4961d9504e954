"""Fixtures of the spec tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streamlog.storage.env import Environment
from tests.storage.builders import LAYOUTS, OwnedLog, environment_in


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    environment = environment_in(tmp_path)
    yield environment
    assert environment.close(), "a test left a snapshot open"


@pytest.fixture(params=LAYOUTS)
def owned(request: pytest.FixtureRequest, environment: Environment) -> OwnedLog:
    """A log whose batches are sealed in one of the two layouts."""
    return OwnedLog(environment, layout=request.param)
