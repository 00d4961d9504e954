"""clock.py: the machine's clocks and the one that stands still."""

from __future__ import annotations

import time

import pytest

from streamlog.clock import Clock, ManualClock, SystemClock


def test_the_system_clock_counts_what_the_machine_counts() -> None:
    clock: Clock = SystemClock()
    before, now, after = time.time(), clock.wall_ms(), time.time()
    assert int(before * 1_000) - 1 <= now <= int(after * 1_000) + 1
    before, now, after = time.monotonic(), clock.monotonic_ms(), time.monotonic()
    assert int(before * 1_000) - 1 <= now <= int(after * 1_000) + 1
    assert abs(clock.monotonic_us() // 1_000 - clock.monotonic_ms()) < 1_000


def test_every_reading_is_a_whole_number() -> None:
    for clock in (SystemClock(), ManualClock()):
        assert {type(clock.wall_ms()), type(clock.monotonic_ms()), type(clock.monotonic_us())} == {int}


def test_the_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(1_000)
    assert (clock.monotonic_ms(), clock.monotonic_us(), clock.wall_ms()) == (1_000, 1_000_000, 1_000)
    assert clock.monotonic_ms() == 1_000
    clock.advance(250)
    assert (clock.monotonic_ms(), clock.monotonic_us(), clock.wall_ms()) == (1_250, 1_250_000, 1_250)


def test_the_wall_clock_may_jump_while_the_monotonic_one_does_not() -> None:
    clock = ManualClock(1_000)
    clock.set_wall_ms(50)
    assert (clock.monotonic_ms(), clock.wall_ms()) == (1_000, 50)
    clock.advance(5)
    assert (clock.monotonic_ms(), clock.wall_ms()) == (1_005, 55)


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="advance\\(-1\\)"):
        ManualClock().advance(-1)
