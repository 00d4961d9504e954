"""Waiting for what another thread has to do."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS_MAX = 10.0
"""Below every timeout of the library that would end a wait by itself (30 s), far above what a loaded machine needs."""


def until(
    is_true: Callable[[], object],
    what: str | Callable[[], str] = "it never became true",
    seconds: float = SECONDS_MAX,
) -> None:
    """Come back when something is true. what: what is said if it does not become so in time."""
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            raise AssertionError(what if isinstance(what, str) else what())
        time.sleep(0.001)
