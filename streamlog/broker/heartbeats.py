"""One thread that tells the coordinator that the members of this process live, and notices those nobody polls.

Source: Kafka HeartbeatThread (one per consumer there; here one per cluster).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlog.broker.runner import Runtime, Service
from streamlog.errors import StreamlogError

if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object  # real ones cost import time, and nobody asks isinstance of them


LATE_MS_MAX = 2_000
"""This thread coming later than this was stopped itself (a debugger, SIGSTOP), and so were the members it looks after."""


class Member(Protocol):
    """A group member of this process."""

    @property
    def heartbeat_interval_ms(self) -> int: ...
    def heartbeat(self, now_ms: int) -> None:
        """Say that it lives, or leave if nobody has polled for too long."""

    def excuse(self, late_ms: int) -> None:
        """Nothing could happen for so long: it does not count as not polling."""


class Heartbeats:
    """The heartbeat thread of one cluster; starts with the first member."""

    def __init__(self, runtime: Runtime) -> None:
        self._members: dict[Member, int] = {}
        self._clock = runtime.clock
        self._lock = runtime.lock()
        self._service = Service(runtime, "streamlog-heartbeats", self._serve)

    def __repr__(self) -> str:
        return f"Heartbeats({len(self._members)} members)"

    def add(self, membership: Member) -> None:
        with self._lock:
            self._members[membership] = self._clock.monotonic_ms() + membership.heartbeat_interval_ms
        self._service.wake()

    def remove(self, membership: Member) -> None:
        with self._lock:
            self._members.pop(membership, None)

    def members(self) -> list[Member]:
        """The group members of this process."""
        with self._lock:
            return list(self._members)

    def stop(self) -> None:
        self._service.stop()

    def _due(self, now_ms: int) -> list[tuple[Member, int]]:
        return [(member, due_ms) for member, due_ms in self._members.items() if due_ms <= now_ms]

    def _serve(self, now_ms: int) -> int | None:
        with self._lock:
            due = self._due(now_ms)
            for member, _ in due:
                self._members[member] = now_ms + member.heartbeat_interval_ms
        for member, due_ms in due:
            if now_ms - due_ms > LATE_MS_MAX:
                member.excuse(now_ms - due_ms)
            try:
                member.heartbeat(now_ms)
            except StreamlogError:
                continue  # closing, or a full disk: the next heartbeat or the next poll will tell
        with self._lock:
            return min(self._members.values(), default=None)
