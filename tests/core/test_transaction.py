"""One transactional id: every request in every state, and the bytes it is kept as."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.core.transaction import (
    PRODUCER_EPOCH_MAX,
    VALID_PREVIOUS,
    State,
    TransactionState,
    completed,
    decode_key,
    decode_value,
    encode_key,
    encode_value,
    ending,
    fenced,
    initialized,
    with_partitions,
)
from streamlog.errors import (
    ConcurrentTransactionsError,
    CorruptRecordError,
    InvalidProducerIdMappingError,
    InvalidTxnStateError,
    ProducerFencedError,
    StreamlogError,
)
from streamlog.record import TopicPartition

T0, T1 = TopicPartition("t", 0), TopicPartition("t", 1)
NONE, PF, ITS, CT, PREPARED = "none", "PF", "ITS", "CT", "prepared"
NAMES = {ProducerFencedError: PF, InvalidTxnStateError: ITS, ConcurrentTransactionsError: CT}


def known(state: State, epoch: int = 5) -> TransactionState:
    partitions = (T0,) if state in (State.ONGOING, State.PREPARE_COMMIT, State.PREPARE_ABORT) else ()
    return TransactionState(7, epoch, 60_000, state, partitions, 100, 100)


def end(state: State, epoch: int, is_commit: bool) -> str:
    try:
        after = ending(known(state), "x", 7, epoch, is_commit, 200)
    except StreamlogError as error:
        return NAMES[type(error)]
    if after is None:
        return NONE
    assert after.state is (State.PREPARE_COMMIT if is_commit else State.PREPARE_ABORT)
    assert after.producer_epoch == 6, "every end raises the epoch"
    return PREPARED


# SEMANTICS 3.5.8: abort retry, abort, commit retry, commit; a retry names the epoch before.
TABLE = {
    State.EMPTY: (PF, PREPARED, PF, ITS),
    State.ONGOING: (PF, PREPARED, PF, PREPARED),
    State.PREPARE_COMMIT: (ITS, CT, CT, CT),
    State.PREPARE_ABORT: (CT, CT, ITS, CT),
    State.COMPLETE_COMMIT: (ITS, PREPARED, NONE, ITS),
    State.COMPLETE_ABORT: (NONE, PREPARED, ITS, ITS),
}


@pytest.mark.parametrize("state", State)
def test_the_end_of_a_transaction_in_every_state(state: State) -> None:
    found = (end(state, 4, False), end(state, 5, False), end(state, 4, True), end(state, 5, True))
    assert found == TABLE[state]


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("epoch", [3, 6])
@pytest.mark.parametrize("is_commit", [True, False])
def test_any_other_epoch_is_fenced(state: State, epoch: int, is_commit: bool) -> None:
    assert end(state, epoch, is_commit) == PF


def test_another_producer_id_is_told_so() -> None:
    for state in (None, known(State.ONGOING)):
        with pytest.raises(InvalidProducerIdMappingError):
            ending(state, "x", 8, 5, True, 200)
        with pytest.raises(InvalidProducerIdMappingError):
            with_partitions(state, "x", 8, 5, [T0], 200)


def test_a_new_id_begins_at_epoch_0_and_each_producer_gets_the_next() -> None:
    first = initialized(None, 9, 1_000, 50)
    assert first == TransactionState(9, 0, 1_000, updated_ms=50)
    second = initialized(first, 10, 2_000, 60)
    assert (second.producer_id, second.producer_epoch, second.timeout_ms) == (9, 1, 2_000)


@pytest.mark.parametrize("state", State)
def test_a_producer_waits_until_what_is_open_has_ended(state: State) -> None:
    if state in (State.EMPTY, State.COMPLETE_COMMIT, State.COMPLETE_ABORT):
        after = initialized(known(state), 9, 1_000, 200)
        assert (after.state, after.producer_id, after.producer_epoch) == (State.EMPTY, 7, 6)
    else:
        with pytest.raises(ConcurrentTransactionsError):
            initialized(known(state), 9, 1_000, 200)


@pytest.mark.parametrize("epoch", [PRODUCER_EPOCH_MAX, PRODUCER_EPOCH_MAX + 1])
def test_epochs_that_are_used_up_take_another_producer_id(epoch: int) -> None:
    after = initialized(known(State.COMPLETE_COMMIT, epoch), 9, 1_000, 200)
    assert (after.producer_id, after.producer_epoch) == (9, 0)


def test_the_first_record_opens_a_transaction_and_others_join_it() -> None:
    state = with_partitions(known(State.COMPLETE_ABORT), "x", 7, 5, [T0], 300)
    assert (state.state, state.partitions, state.started_ms, state.deadline_ms()) == (
        State.ONGOING,
        (T0,),
        300,
        60_300,
    )
    more = with_partitions(state, "x", 7, 5, [T0, T1], 400)
    assert (more.partitions, more.started_ms, more.updated_ms) == ((T0, T1), 300, 400)
    assert with_partitions(more, "x", 7, 5, [T1], 500) is more, "nothing to write down"
    with pytest.raises(ProducerFencedError):
        with_partitions(more, "x", 7, 4, [T1], 500)
    for prepared in (State.PREPARE_COMMIT, State.PREPARE_ABORT):
        with pytest.raises(ConcurrentTransactionsError):
            with_partitions(known(prepared), "x", 7, 5, [T1], 500)


def test_fenced_is_aborted_and_completed_is_empty() -> None:
    prepared = fenced(known(State.ONGOING), 300)
    assert (prepared.state, prepared.producer_epoch, prepared.is_decided) == (State.PREPARE_ABORT, 6, True)
    after = completed(prepared, 400)
    assert (after.state, after.partitions, after.producer_epoch) == (State.COMPLETE_ABORT, (), 6)
    assert completed(known(State.PREPARE_COMMIT), 400).state is State.COMPLETE_COMMIT


def test_every_state_is_reached_and_nothing_leads_past_a_decision() -> None:
    assert set(VALID_PREVIOUS) == set(State)
    for state, previous in VALID_PREVIOUS.items():
        if state in (State.COMPLETE_COMMIT, State.COMPLETE_ABORT):
            assert len(previous) == 1
        else:
            assert not previous & {State.PREPARE_COMMIT, State.PREPARE_ABORT}


PARTITIONS = st.lists(
    st.builds(TopicPartition, st.sampled_from(["t", "ü", "x" * 200]), st.integers(0, 2**31 - 1)),
    max_size=5,
    unique=True,
)


@given(
    st.builds(
        TransactionState,
        st.integers(0, 2**63 - 1),
        st.integers(0, 32_767),
        st.integers(1, 2**31 - 1),
        st.sampled_from(State),
        st.just(()),
        st.integers(-1, 2**62),
        st.integers(-1, 2**62),
    ),
    PARTITIONS,
)
def test_bytes_give_it_back(state: TransactionState, partitions: list[TopicPartition]) -> None:
    by_topic = sorted(partitions, key=lambda tp: [p.topic for p in partitions].index(tp.topic))
    state = msgspec.structs.replace(state, partitions=tuple(by_topic))
    assert decode_value(encode_value(state)) == state


def test_the_bytes_are_kafkas() -> None:
    assert encode_key("t-1") == b"\0\0" + b"\0\x03t-1" and decode_key(encode_key("t-1")) == "t-1"
    assert decode_key(b"\0\x01\0\x03t-1") is None, "a kind this version does not know"
    value = encode_value(known(State.ONGOING))
    assert value == (
        b"\0\0" + (7).to_bytes(8, "big") + (5).to_bytes(2, "big") + (60_000).to_bytes(4, "big") + b"\x01"
        b"\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\0" + (100).to_bytes(8, "big") + (100).to_bytes(8, "big")
    )  # fmt: skip
    assert encode_value(known(State.EMPTY))[17:21] == b"\xff\xff\xff\xff", "no partitions: null"


@pytest.mark.parametrize("torn", range(40))
def test_torn_bytes_are_named(torn: int) -> None:
    value = encode_value(known(State.ONGOING))
    if torn < len(value):
        with pytest.raises(CorruptRecordError):
            decode_value(value[:torn])
    for wrong in (b"\0\x05" + value[2:], value[:16] + b"\x63" + value[17:]):
        with pytest.raises(CorruptRecordError):
            decode_value(wrong)
    with pytest.raises(CorruptRecordError):
        decode_key(b"\0\0\0\x09x")
