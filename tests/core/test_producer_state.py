"""What a partition knows of its producers: a fold over headers, checked against a naive one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.batch import Batch, seal_columnar
from streamlog.core.producer_state import (
    WINDOW_BATCHES,
    ProducerState,
    admit,
    next_sequence,
    observed,
)
from streamlog.errors import InvalidProducerEpochError, OutOfOrderSequenceError

LAST = 2**31 - 1


def batch(sequence: int, records: int = 1, epoch: int = 0, timestamp: int = 5) -> Batch:
    return seal_columnar(
        None,
        [b"x"] * records,
        timestamps=timestamp,
        producer_id=7,
        producer_epoch=epoch,
        base_sequence=sequence,
    )


def fold(*batches: Batch) -> ProducerState:
    state, offset = None, 0
    for one in batches:
        state = observed(state, one, offset)
        state._check()
        offset += one.last_offset_delta + 1
    assert state is not None
    return state


def offset_of(state: ProducerState | None, one: Batch) -> int | None:
    known = admit(state, one, "t", 0)
    return None if known is None else known.base_offset


def test_who_is_not_known_may_begin_anywhere() -> None:
    """Its state may be lost to retention."""
    assert offset_of(None, batch(17)) is None


def test_the_last_five_batches_are_known_again() -> None:
    state = fold(*[batch(number) for number in range(6)])
    assert [offset_of(state, batch(number)) for number in range(1, 6)] == [1, 2, 3, 4, 5]
    with pytest.raises(OutOfOrderSequenceError) as told:
        admit(state, batch(0), "t", 0)
    assert told.value.facts["expected_sequence"] == 6


def test_only_the_same_first_and_last_sequence_is_a_duplicate() -> None:
    state = fold(batch(0, 3), batch(3, 2))
    assert offset_of(state, batch(0, 3)) == 0 and offset_of(state, batch(3, 2)) == 3
    for other in (batch(0, 2), batch(1, 2), batch(3, 3), batch(4)):
        with pytest.raises(OutOfOrderSequenceError):
            admit(state, other, "t", 0)


def test_a_new_epoch_begins_at_zero_and_ends_the_one_before() -> None:
    state = fold(batch(0), batch(1))
    with pytest.raises(OutOfOrderSequenceError):
        admit(state, batch(3, epoch=1), "t", 0)
    assert offset_of(state, batch(0, epoch=1)) is None
    state = fold(batch(0), batch(1), batch(0, epoch=1))
    assert offset_of(state, batch(0, epoch=1)) == 2, "not the one of epoch 0"
    with pytest.raises(InvalidProducerEpochError) as told:
        admit(state, batch(2), "t", 0)
    assert told.value.facts["current_epoch"] == 1


def test_sequences_wrap() -> None:
    assert next_sequence(LAST) == 0 and next_sequence(-1) == 0
    state = fold(batch(LAST - 1, 3))
    assert state.last_sequence == 0
    assert offset_of(state, batch(1)) is None
    assert offset_of(state, batch(LAST - 1, 3)) == 0


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=30))
def test_what_is_admitted_is_what_a_list_of_everything_would_admit(steps: list[tuple[int, bool]]) -> None:
    """Epochs, gaps and retries at random, against the whole history."""
    state: ProducerState | None = None
    history: list[tuple[int, int, int, int]] = []  # epoch, first, last, offset
    epoch = end = 0
    for records, is_bump in steps:
        if is_bump and history:
            epoch += 1
        expected = history[-1][2] + 1 if history and history[-1][0] == epoch else 0
        window = [entry for entry in history if entry[0] == (history[-1][0] if history else 0)]
        for known_epoch, first, last, offset in window[-WINDOW_BATCHES:]:
            if state is not None and known_epoch == state.producer_epoch:
                assert offset_of(state, batch(first, last - first + 1, known_epoch)) == offset
        one = batch(expected, records, epoch)
        assert offset_of(state, one) is None
        if state is not None:
            with pytest.raises(OutOfOrderSequenceError):
                admit(state, batch(expected + 100, records, epoch), "t", 0)
        state = observed(state, one, end)
        state._check()
        history.append((epoch, expected, expected + records - 1, end))
        end += records
