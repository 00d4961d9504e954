"""The list of leader epochs: literal cases, and the property that two logs always find where they part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.core.leader_epochs import (
    UNDEFINED_END,
    EpochEnd,
    EpochEntry,
    EpochHistory,
    diverging_end,
    truncation_target,
)


def history(*entries: tuple[int, int]) -> EpochHistory:
    made = EpochHistory(tuple(EpochEntry(*entry) for entry in entries))
    made._check()
    return made


LED = history((0, 0), (3, 12), (4, 30), (7, 41))


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (-1, UNDEFINED_END),  # nobody asks
        (0, EpochEnd(0, 12)),
        (1, EpochEnd(0, 12)),  # never seen: the largest below it
        (3, EpochEnd(3, 30)),
        (5, EpochEnd(4, 41)),
        (7, EpochEnd(7, 50)),  # the latest ends where the log does
        (8, UNDEFINED_END),  # from the future
    ],
)
def test_end_of_an_epoch(epoch: int, expected: EpochEnd) -> None:
    assert LED.end_of(epoch, 50) == expected


def test_an_epoch_below_the_first_entry_ends_where_that_begins() -> None:
    assert history((3, 12)).end_of(1, 20) == EpochEnd(1, 12)
    assert history().end_of(0, 20) == UNDEFINED_END


def test_entering() -> None:
    assert history().entered(0, 0) == history((0, 0))
    assert history((0, 0)).entered(0, 5) == history((0, 0))
    assert history((4, 7)).entered(3, 9) == history((4, 7))
    # Epoch 1 wrote nothing: its entry goes.
    assert history((0, 0), (1, 5)).entered(2, 5) == history((0, 0), (2, 5))


def test_truncating_and_deleting_the_head() -> None:
    assert LED.truncated(41) == history((0, 0), (3, 12), (4, 30))
    assert LED.truncated(42) is LED
    assert LED.truncated(0) == history()
    assert LED.head_deleted(30) == history((4, 30), (7, 41))
    assert LED.head_deleted(35) == history((4, 35), (7, 41))
    assert LED.head_deleted(11) is LED
    assert history().head_deleted(5) == history()


def test_epoch_of_an_offset() -> None:
    assert [LED.epoch_of(offset) for offset in (0, 11, 12, 40, 41, 99)] == [0, 0, 3, 4, 7, 7]
    assert history((3, 12)).epoch_of(5) == -1


def test_histories_are_values() -> None:
    assert history((0, 0)) == history((0, 0)) and len({history((0, 0)), history((0, 0))}) == 1
    assert repr(LED) == "EpochHistory(0@0 3@12 4@30 7@41)"
    with pytest.raises(AssertionError):
        EpochHistory((EpochEntry(1, 0), EpochEntry(1, 5)))._check()


# A log as the list of the epoch that wrote each offset.
def history_of(log: list[int]) -> EpochHistory:
    made = EpochHistory()
    for offset, epoch in enumerate(log):
        made = made.entered(epoch, offset)
    return made


@st.composite
def two_logs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Logs as replication makes them: each epoch was written by one leader, whoever holds a record of it holds that
    leader's log below."""
    logs: list[list[int]] = [[], [], []]
    for epoch in range(draw(st.integers(1, 8))):
        leader = draw(st.integers(0, 2))
        logs[leader] += [epoch] * draw(st.integers(0, 3))
        for follower in range(3):
            if follower != leader and draw(st.booleans()):
                copied = draw(st.integers(0, len(logs[leader])))
                # It copies from where its log parts from the leader's.
                same = 0
                while (
                    same < min(len(logs[follower]), len(logs[leader]))
                    and logs[follower][same] == logs[leader][same]
                ):
                    same += 1
                logs[follower] = logs[leader][: max(same, copied)]
    return logs[0], logs[1]


@given(two_logs())
def test_a_follower_ends_where_the_logs_part(logs: tuple[list[int], list[int]]) -> None:
    leader, follower = logs
    # The new leader enters an epoch of its own, as it does before it answers anybody.
    top = max([-1, *leader, *follower]) + 1
    led = history_of(leader).entered(top, len(leader))
    own, log = history_of(follower), list(follower)
    for _ in range(20):
        last_epoch = log[-1] if log else -1
        end = diverging_end(led, len(leader), last_epoch, len(log))
        if end is None:
            break
        target = 0 if end == UNDEFINED_END else truncation_target(own, len(log), end)
        assert target < len(log), "each step cuts something"
        log, own = log[:target], own.truncated(target)
        own._check()
    else:
        raise AssertionError("no end")
    assert leader[: len(log)] == log
    common = 0
    while common < min(len(leader), len(follower)) and leader[common] == follower[common]:
        common += 1
    assert len(log) == common, "and nothing both hold was cut"
