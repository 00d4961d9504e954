"""Time, and the only module that may import `time`.

1. Two clocks: monotonic for deadlines and durations, wall for record timestamps. Never compare one with the
   other.
2. Whole milliseconds everywhere; microseconds exist only to measure latency.
3. Rules never read a clock: they take `now_ms`. Shells hold a Clock, and tests hold a ManualClock.

Source: TigerBeetle's time.zig; aioquic's `now` arguments.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object  # real ones cost import time, and nobody asks isinstance of them

GIVE_WAY_S: Final = 50e-6
_sleep = time.sleep  # the real one: a simulation elsewhere in the process may replace it


def give_way() -> None:
    """Let go of the interpreter for a moment. Just letting go is not enough: who waits for it must be awake first."""
    _sleep(GIVE_WAY_S)


class Clock(Protocol):
    """What a shell may ask about time."""

    def monotonic_ms(self) -> int:
        """Milliseconds since some fixed moment; never goes back."""

    def monotonic_us(self) -> int:
        """The same clock in microseconds, to measure latency."""

    def wall_ms(self) -> int:
        """Milliseconds since the epoch; may jump when somebody sets the clock."""

    def wall_ns(self) -> int:
        """The same in nanoseconds: for the calls that are made per record and per turn."""

    def monotonic_ns(self) -> int:
        """The monotonic clock in nanoseconds: likewise."""


class SystemClock:
    """The machine's clocks."""

    __slots__ = ()

    wall_ns = staticmethod(time.time_ns)
    monotonic_ns = staticmethod(time.monotonic_ns)

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def monotonic_us(self) -> int:
        return time.monotonic_ns() // 1_000

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


class ManualClock:
    """A clock that stands still until told; both clocks start at `now_ms`."""

    __slots__ = ("_monotonic_ms", "_wall_offset_ms")

    def __init__(self, now_ms: int = 0) -> None:
        self._monotonic_ms = now_ms
        self._wall_offset_ms = 0

    def monotonic_ms(self) -> int:
        return self._monotonic_ms

    def monotonic_us(self) -> int:
        return self._monotonic_ms * 1_000

    def wall_ms(self) -> int:
        return self._monotonic_ms + self._wall_offset_ms

    def wall_ns(self) -> int:
        return self.wall_ms() * 1_000_000

    def monotonic_ns(self) -> int:
        return self._monotonic_ms * 1_000_000

    def advance(self, ms: int) -> None:
        """Let `ms` milliseconds pass on both clocks."""
        if ms < 0:
            raise ValueError(f"advance({ms}): time does not go back; use set_wall_ms to jump the wall clock")
        self._monotonic_ms += ms

    def set_wall_ms(self, wall_ms: int) -> None:
        """Jump the wall clock alone, as an administrator or NTP would."""
        self._wall_offset_ms = wall_ms - self._monotonic_ms
