"""Offsets of one replica: what each decision moves, and what it refuses."""

from __future__ import annotations

import pytest

from streamlog.core.replica import (
    HIGH_WATERMARK,
    ReplicaState,
    appended,
    delete_records_target,
    head_deleted,
    recoded,
    truncated,
)
from streamlog.errors import OffsetOutOfRangeError

STATE = ReplicaState(
    log_start_offset=10,
    high_watermark=20,
    log_end_offset=20,
    leader_epoch=3,
    size_bytes=500,
    max_timestamp=77,
    truncation_count=1,
)


def test_an_empty_log_begins_at_zero() -> None:
    state = ReplicaState()
    state._check()
    assert (state.log_start_offset, state.high_watermark, state.log_end_offset) == (0, 0, 0)


def test_appending_moves_the_end_and_alone_in_the_isr_the_high_watermark_with_it() -> None:
    after = appended(STATE, 5, 100, 80)
    assert (after.high_watermark, after.log_end_offset) == (25, 25)
    assert (after.size_bytes, after.max_timestamp) == (600, 80)
    assert (after.log_start_offset, after.leader_epoch, after.truncation_count) == (10, 3, 1)
    after._check()


def test_an_older_timestamp_does_not_lower_the_running_maximum() -> None:
    assert appended(STATE, 1, 1, 5).max_timestamp == 77


def test_a_decision_leaves_the_state_it_was_made_from_alone() -> None:
    appended(STATE, 5, 100, 80)
    truncated(STATE, 12, 10, 0)
    head_deleted(STATE, 15, 10)
    assert STATE.log_end_offset == 20
    assert STATE.log_start_offset == 10


def test_the_start_never_moves_back() -> None:
    assert head_deleted(STATE, 15, 100).log_start_offset == 15
    assert head_deleted(STATE, 5, 0).log_start_offset == 10


def test_sizes_do_not_go_below_zero() -> None:
    assert head_deleted(STATE, 15, 9999).size_bytes == 0
    assert truncated(STATE, 15, 9999, 0).size_bytes == 0
    assert recoded(STATE, -9999).size_bytes == 0


@pytest.mark.parametrize(
    ("target", "end"),
    [(15, 15), (25, 20), (3, 10)],
    ids=["inside", "beyond the end changes nothing", "not below the start"],
)
def test_truncation_takes_the_end_and_the_high_watermark_down(target: int, end: int) -> None:
    after = truncated(STATE, target, 100, 50)
    assert (after.log_end_offset, after.high_watermark) == (end, end)
    assert after.max_timestamp == 50
    after._check()


def test_readers_can_tell_truncation_and_recoding_from_an_append() -> None:
    assert truncated(STATE, 15, 0, 0).truncation_count == 2
    assert recoded(STATE, -5).truncation_count == 2
    assert appended(STATE, 1, 1, 1).truncation_count == 1


def test_recoding_keeps_every_offset() -> None:
    after = recoded(STATE, -120)
    assert after.size_bytes == 380
    assert (after.log_start_offset, after.high_watermark, after.log_end_offset) == (10, 20, 20)


@pytest.mark.parametrize(("before", "start"), [(HIGH_WATERMARK, 20), (20, 20), (15, 15), (10, 10), (0, 10)])
def test_delete_records_moves_the_start_up_to_at_most_the_high_watermark(before: int, start: int) -> None:
    assert delete_records_target(STATE, before, "t", 0) == start


@pytest.mark.parametrize("before", [21, -2, 10**9])
def test_delete_records_refuses_what_is_not_in_the_log(before: int) -> None:
    with pytest.raises(OffsetOutOfRangeError, match=r"t-0 before offset .* 0 to 20") as caught:
        delete_records_target(STATE, before, "t", 0)
    assert caught.value.facts["offset"] == before
    assert caught.value.facts["high_watermark"] == 20


@pytest.mark.parametrize(
    "broken",
    [
        ReplicaState(log_start_offset=5, high_watermark=4, log_end_offset=9),
        ReplicaState(log_start_offset=-1),
        ReplicaState(high_watermark=3, log_end_offset=2),
    ],
)
def test_the_check_finds_impossible_states(broken: ReplicaState) -> None:
    with pytest.raises(AssertionError):
        broken._check()
