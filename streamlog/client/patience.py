"""Waiting for a leader: look-ups that a failover would fail are tried again until somebody leads, or the time is over.

Source: Kafka's `default.api.timeout.ms`: the bound of consumer calls that have no timeout of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from streamlog.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    LeaderNotAvailableError,
    NetworkError,
    NotCoordinatorError,
    NotLeaderOrFollowerError,
    OffsetNotAvailableError,
    UnstableOffsetCommitError,
)

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster

COORDINATOR_MOVES: Final = (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    NotCoordinatorError,
    NetworkError,
)
"""A group's coordinator is changing brokers: what was asked is for the next one."""

UNSERVED: Final = (
    NotLeaderOrFollowerError,
    LeaderNotAvailableError,
    OffsetNotAvailableError,
    UnstableOffsetCommitError,
    *COORDINATOR_MOVES,
)
"""What is over as soon as somebody leads again, or a transaction has ended: the position stays, records come later."""

LOOK_MS: Final = 10
"""The first pause; it doubles, up to LOOK_MS_MAX."""
LOOK_MS_MAX: Final = 80
DEFAULT_TIMEOUT_MS: Final = 60_000

MethodT = TypeVar("MethodT", bound=Callable[..., Any])


def patient(method: MethodT) -> MethodT:
    """Try a method again while nobody leads what it asks for, up to `default_api_timeout_ms`; then it raises that.

    For methods of objects with a `_backend` and, perhaps, a `config`. One broker alone is never waited for.
    """

    @wraps(method)
    def waiting(self: Any, *arguments: Any, **options: Any) -> Any:
        backend: BrokerCluster = self._backend
        if not backend.is_replicated:
            return method(self, *arguments, **options)
        timeout_ms = getattr(getattr(self, "config", None), "default_api_timeout_ms", DEFAULT_TIMEOUT_MS)
        clock, waiter = backend.runtime.clock, None
        deadline_ms = clock.monotonic_ms() + timeout_ms
        pause_ms = LOOK_MS
        while True:
            try:
                return method(self, *arguments, **options)
            except UNSERVED:
                if clock.monotonic_ms() >= deadline_ms:
                    raise
            waiter = waiter or backend.runtime.waiter()
            waiter.wait(pause_ms)
            pause_ms = min(2 * pause_ms, LOOK_MS_MAX)

    return cast(MethodT, waiting)
