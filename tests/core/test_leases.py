"""Leases: silence, broken connections, a judge that was late, and who may be the controller."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.core.leases import LeaseTable

SESSION_MS, LOOK_MS = 9_000, 2_000


def table(*broker_ids: int, now_ms: int = 0) -> LeaseTable:
    leases = LeaseTable(SESSION_MS, LOOK_MS)
    for broker_id in broker_ids:
        leases.renew(broker_id, now_ms)
    return leases


def watch(leases: LeaseTable, start_ms: int, end_ms: int) -> list[int]:
    """Look as often as the judge means to."""
    expired: list[int] = []
    for now_ms in range(start_ms, end_ms + 1, LOOK_MS):
        expired = leases.expired(now_ms)
    return expired


def test_who_is_silent_for_a_session_expires_and_who_is_heard_of_does_not() -> None:
    leases = table(1, 2)
    for now_ms in range(1_000, 9_000, 1_000):
        assert leases.expired(now_ms) == []
        leases.renew(2, now_ms)
    assert leases.expired(9_000) == [1]
    assert leases.live(9_000) == [2]


def test_what_is_over_stays_over_until_it_is_renewed() -> None:
    leases = table(1, 2)
    leases.drop(2)
    assert [leases.expired(0), leases.expired(1), leases.expired(5_000_000)] == [[2], [2], [2]]
    leases.renew(2, 5_000_001)
    assert leases.live(5_000_001) == [1, 2]


def test_a_broken_connection_ends_a_lease_at_once_even_of_who_was_never_heard_of() -> None:
    leases = table(1)
    leases.drop(1)
    leases.drop(7)
    assert leases.expired(0) == [1, 7]


def test_a_judge_that_was_late_extends_the_sessions() -> None:
    leases = table(1, 2)
    assert leases.expired(1_000) == []
    # A debugger holds everybody for an hour; nobody could have renewed.
    hour_ms = 3_600_000
    assert leases.expired(hour_ms) == []
    leases.renew(2, hour_ms)
    # Broker 1 is silent still: 3000 ms of its silence have been watched, 6000 are left.
    assert watch(leases, hour_ms + 1_999, hour_ms + 5_999) == []
    assert leases.expired(hour_ms + 6_000) == [1]


def test_a_late_judge_revives_nobody_and_gives_nobody_more_than_a_session() -> None:
    leases = table(1, 2)
    assert watch(leases, 2_000, 8_000) == []
    leases.renew(2, 8_500)
    assert leases.expired(9_000) == [1]
    leases.renew(2, 99_000)
    assert leases.expired(100_000) == [1]
    assert leases.next_deadline_ms() == 102_000
    assert watch(leases, 102_000, 108_000) == [1]
    assert leases.expired(109_000) == [1, 2]


def test_the_next_look_is_due_at_the_next_end_or_before_the_judge_is_late() -> None:
    leases = LeaseTable(SESSION_MS, LOOK_MS)
    assert leases.next_deadline_ms() is None
    leases.renew(1, 500)
    assert leases.next_deadline_ms() == 2_500
    assert watch(leases, 2_500, 8_500) == []
    assert leases.next_deadline_ms() == 9_500
    assert leases.expired(9_500) == [1]
    assert leases.next_deadline_ms() is None
    leases.drop(2)
    assert leases.next_deadline_ms() is None


def test_a_clock_that_stands_still_changes_nothing() -> None:
    leases = table(1)
    leases.expired(1_000)
    assert (leases.expired(1_000), leases.expired(900)) == ([], [])
    assert leases.next_deadline_ms() == 3_000


@pytest.mark.parametrize(
    ("asks", "controller", "gone", "may"),
    [
        (1, 1, (), True),  # it is the controller
        (2, 1, (), False),  # the controller lives
        (2, 1, (1,), True),  # its lease is gone: whoever asks first
        (0, 1, (1,), True),
        (1, 1, (1,), False),  # the dead do not ask
        (2, 1, (1, 2), False),
        (2, 1, (0, 1), True),  # down to one live broker
        (2, -1, (), True),  # there was none
        (7, 1, (1,), False),  # nobody has heard of it
    ],
)
def test_who_may_become_the_controller(asks: int, controller: int, gone: tuple[int, ...], may: bool) -> None:
    leases = table(0, 1, 2)
    for broker_id in gone:
        leases.drop(broker_id)
    assert leases.may_take_control(asks, controller, 0) is may


def test_of_several_that_ask_the_first_becomes_the_controller() -> None:
    leases, controller = table(0, 1, 2), 1
    leases.drop(1)
    for asks in (2, 0, 1):
        if leases.may_take_control(asks, controller, 0):
            controller = asks
    assert controller == 2


def test_a_session_is_at_least_one_look() -> None:
    with pytest.raises(AssertionError):
        LeaseTable(1_000, 1_001)


@given(
    st.lists(st.tuples(st.sampled_from(["look", "renew", "drop"]), st.integers(0, 2), st.integers(0, 20_000)))
)
def test_a_lease_ends_after_a_session_of_watched_silence(steps: list[tuple[str, int, int]]) -> None:
    """Against a naive model that counts, for each broker, the silence the judge has watched."""
    leases, now_ms, looked_ms = table(0, 1, 2), 0, 0
    silent_ms: dict[int, float] = dict.fromkeys(range(3), 0)
    for verb, broker_id, after_ms in steps:
        now_ms += after_ms
        if verb == "drop":
            leases.drop(broker_id)
            silent_ms[broker_id] = float("inf")
            continue
        # What has passed since the last look counts up to the look interval; a renewal within counts from there.
        passed_ms = now_ms - looked_ms
        unwatched_ms = max(0, passed_ms - LOOK_MS)
        for each in silent_ms:
            if silent_ms[each] < SESSION_MS:
                silent_ms[each] = max(0, silent_ms[each] + passed_ms - unwatched_ms)
        looked_ms = now_ms
        expected = [each for each in silent_ms if silent_ms[each] >= SESSION_MS]
        assert leases.expired(now_ms) == expected
        if verb == "renew":
            leases.renew(broker_id, now_ms)
            silent_ms[broker_id] = 0
