"""The coordinator's side of one transactional id: who may write, what is open, how it is decided (sans-I/O).

    InitProducerId --> Empty --first record--> Ongoing --EndTxn--> PrepareCommit --markers written--> CompleteCommit
                                                  |                                                       |
                                               timeout, another InitProducerId --> PrepareAbort --> CompleteAbort
                                                                                        a record again --> Ongoing

Each rule takes a state and returns the next, or raises; nothing is changed in place. Every state is a record of
`__transaction_state`: the fold of a transactional id is its newest record. With `Prepare` in the log the outcome stands.

The epoch rises with every transaction (KIP-890): a request that was under way since the one before, whatever it is,
names an epoch that is over.

Invariants (checked by `TransactionState._check`):
 1. `partitions` is empty but in Ongoing and Prepare; an open transaction has a start.
 2. The producer epoch of an id never falls while the producer id stays.

Sources: SEMANTICS 3.5.6 to 3.5.11, 3.5.16; KIP-98, KIP-360, KIP-890; Kafka TransactionMetadata, TransactionCoordinator.
Not implemented: the transactions of before KIP-890 (one epoch for many), two-phase commit (KIP-939).
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from functools import lru_cache
from struct import Struct
from typing import Final

import msgspec

from streamlog.core.kafka_types import TypesReader, TypesWriter
from streamlog.core.machine import check_transition
from streamlog.errors import (
    ConcurrentTransactionsError,
    CorruptRecordError,
    InvalidProducerIdMappingError,
    InvalidTxnStateError,
    ProducerFencedError,
)
from streamlog.record import TopicPartition

PRODUCER_EPOCH_MAX: Final = 32_766
"""The last one a transaction is begun in; its marker has the one after it. Then the producer id changes."""
_VALUE_VERSION: Final = 0
_BARE_VALUE: Final = Struct(">hqhibiqq")
"""A value without partitions, whose array is null: version, producer, epoch, timeout, state, -1, updated, started."""
KEYS_KNOWN_MAX: Final = 1024


class State(Enum):
    """Kafka's TransactionState; the value is the byte it is stored as."""

    EMPTY = 0
    ONGOING = 1
    PREPARE_COMMIT = 2
    PREPARE_ABORT = 3
    COMPLETE_COMMIT = 4
    COMPLETE_ABORT = 5


VALID_PREVIOUS: Final[dict[State, frozenset[State]]] = {
    State.EMPTY: frozenset({State.EMPTY, State.COMPLETE_COMMIT, State.COMPLETE_ABORT}),
    State.ONGOING: frozenset({State.ONGOING, State.EMPTY, State.COMPLETE_COMMIT, State.COMPLETE_ABORT}),
    State.PREPARE_COMMIT: frozenset({State.ONGOING}),
    # From the other three: an abort of a transaction without records, which raises the epoch all the same.
    State.PREPARE_ABORT: frozenset({State.ONGOING, State.EMPTY, State.COMPLETE_COMMIT, State.COMPLETE_ABORT}),
    State.COMPLETE_COMMIT: frozenset({State.PREPARE_COMMIT}),
    State.COMPLETE_ABORT: frozenset({State.PREPARE_ABORT}),
}
_PREPARED: Final = (State.PREPARE_COMMIT, State.PREPARE_ABORT)
_COMPLETE_OF: Final = {
    State.PREPARE_COMMIT: State.COMPLETE_COMMIT,
    State.PREPARE_ABORT: State.COMPLETE_ABORT,
}


class TransactionState(msgspec.Struct, frozen=True):
    """One transactional id. Times are of the wall clock, ms; -1 = never."""

    producer_id: int
    producer_epoch: int
    timeout_ms: int
    state: State = State.EMPTY
    partitions: tuple[TopicPartition, ...] = ()
    started_ms: int = -1
    updated_ms: int = -1

    @property
    def is_decided(self) -> bool:
        """Prepared: its markers have to be written, whatever happens."""
        return self.state in _PREPARED

    def deadline_ms(self) -> int | None:
        """When an open transaction is aborted for its age."""
        return self.started_ms + self.timeout_ms if self.state is State.ONGOING else None

    def _check(self) -> None:
        assert not self.partitions or self.state is State.ONGOING or self.is_decided, self
        assert self.state is not State.ONGOING or self.started_ms >= 0, self
        assert 0 <= self.producer_epoch <= PRODUCER_EPOCH_MAX + 1, self


def initialized(
    state: TransactionState | None, new_producer_id: int, timeout_ms: int, wall_ms: int
) -> TransactionState:
    """A producer comes with this transactional id: it gets the next epoch, and who had the one before is fenced.

    new_producer_id:  taken where the id is new, or its epochs are used up.
    Raises   ConcurrentTransactionsError: what is open, or decided and not complete, has to end first (see `fenced`).
    """
    if state is None:
        return TransactionState(new_producer_id, 0, timeout_ms, updated_ms=wall_ms)
    if state.state is State.ONGOING or state.is_decided:
        raise _concurrent(state)
    if state.producer_epoch >= PRODUCER_EPOCH_MAX:
        after = TransactionState(new_producer_id, 0, timeout_ms, updated_ms=wall_ms)
    else:
        after = TransactionState(state.producer_id, state.producer_epoch + 1, timeout_ms, updated_ms=wall_ms)
    check_transition(VALID_PREVIOUS, state.state, after.state)
    return after


def with_partitions(
    state: TransactionState | None,
    transactional_id: str,
    producer_id: int,
    producer_epoch: int,
    partitions: Iterable[TopicPartition],
    wall_ms: int,
) -> TransactionState:
    """A producer is about to write to these partitions; the same object if they are known to be in the transaction.

    Raises   InvalidProducerIdMappingError, ProducerFencedError, ConcurrentTransactionsError.
    """
    known = _current(state, transactional_id, producer_id, producer_epoch)
    if known.is_decided:
        raise _concurrent(known)
    missing = [partition for partition in partitions if partition not in known.partitions]
    if not missing and known.state is State.ONGOING:
        return known
    check_transition(VALID_PREVIOUS, known.state, State.ONGOING)
    after = msgspec.structs.replace(
        known,
        state=State.ONGOING,
        partitions=(*known.partitions, *missing),
        started_ms=known.started_ms if known.state is State.ONGOING else wall_ms,
        updated_ms=wall_ms,
    )
    after._check()
    return after


def ending(
    state: TransactionState | None,
    transactional_id: str,
    producer_id: int,
    producer_epoch: int,
    is_commit: bool,
    wall_ms: int,
) -> TransactionState | None:
    """A producer asks for the end of its transaction: the prepared state, or None if it has ended so already.

    Source   the table in TransactionCoordinator.endTransaction (SEMANTICS 3.5.8); a retry names the epoch before.
    Raises   InvalidProducerIdMappingError, ProducerFencedError, InvalidTxnStateError, ConcurrentTransactionsError.
    """
    if state is not None and producer_id == state.producer_id and producer_epoch == state.producer_epoch - 1:
        _check_retried(state, transactional_id, is_commit)
        return None
    known = _current(state, transactional_id, producer_id, producer_epoch)
    if known.is_decided:
        raise _concurrent(known)
    if is_commit and known.state is not State.ONGOING:
        raise _wrong_state(known, transactional_id, is_commit)
    return _prepared(known, is_commit, wall_ms)


def _check_retried(state: TransactionState, transactional_id: str, is_commit: bool) -> None:
    ended = State.COMPLETE_COMMIT if is_commit else State.COMPLETE_ABORT
    prepared = State.PREPARE_COMMIT if is_commit else State.PREPARE_ABORT
    if state.state is ended:
        return
    if state.state is prepared:
        raise _concurrent(state)
    if state.state in (State.EMPTY, State.ONGOING):
        raise _fenced(transactional_id, state)
    raise _wrong_state(state, transactional_id, is_commit)


def without_partitions(state: TransactionState) -> TransactionState:
    """A transaction of offsets only, which are committed along with its end: there is nowhere to write a marker to."""
    return msgspec.structs.replace(state, partitions=())


def fenced(state: TransactionState, wall_ms: int) -> TransactionState:
    """Abort an open transaction in its producer's place: it took too long, or another producer has come."""
    assert state.state is State.ONGOING, state
    return _prepared(state, False, wall_ms)


def is_expired(state: TransactionState, expiration_ms: int, wall_ms: int) -> bool:
    """Whether a transactional id has been idle for so long that it is forgotten (`transactional.id.expiration.ms`)."""
    is_idle = state.state is not State.ONGOING and not state.is_decided
    return is_idle and wall_ms - state.updated_ms >= expiration_ms


def completed(state: TransactionState, wall_ms: int) -> TransactionState:
    """All markers are written."""
    after = _COMPLETE_OF[state.state]
    check_transition(VALID_PREVIOUS, state.state, after)
    return msgspec.structs.replace(state, state=after, partitions=(), updated_ms=wall_ms)


def _prepared(state: TransactionState, is_commit: bool, wall_ms: int) -> TransactionState:
    after = State.PREPARE_COMMIT if is_commit else State.PREPARE_ABORT
    check_transition(VALID_PREVIOUS, state.state, after)
    prepared = msgspec.structs.replace(
        state, state=after, producer_epoch=state.producer_epoch + 1, updated_ms=wall_ms
    )
    prepared._check()
    return prepared


def _current(
    state: TransactionState | None, transactional_id: str, producer_id: int, producer_epoch: int
) -> TransactionState:
    if state is None or state.producer_id != producer_id:
        raise InvalidProducerIdMappingError(
            f"transactional_id {transactional_id!r} does not belong to producer {producer_id}: it expired, or its "
            "producer id was replaced; make another producer",
            transactional_id=transactional_id,
            producer_id=producer_id,
        )
    if state.producer_epoch != producer_epoch:
        raise _fenced(transactional_id, state)
    return state


def _fenced(transactional_id: str, state: TransactionState) -> ProducerFencedError:
    return ProducerFencedError(
        f"a newer producer has transactional_id {transactional_id!r}, or the transaction took longer than "
        f"transaction_timeout_ms={state.timeout_ms} and was aborted; close this producer",
        transactional_id=transactional_id,
        producer_epoch=state.producer_epoch,
    )


def _concurrent(state: TransactionState) -> ConcurrentTransactionsError:
    return ConcurrentTransactionsError(
        f"the transaction before is {state.state.name} and still being completed", state=state.state.name
    )


def _wrong_state(state: TransactionState, transactional_id: str, is_commit: bool) -> InvalidTxnStateError:
    return InvalidTxnStateError(
        f"transactional_id {transactional_id!r} is {state.state.name}: there is nothing to "
        f"{'commit' if is_commit else 'abort'}",
        transactional_id=transactional_id,
        state=state.state.name,
    )


# -- the bytes of __transaction_state: Kafka's TransactionLogKey and TransactionLogValue, version 0 ----------------------


@lru_cache(KEYS_KNOWN_MAX)
def encode_key(transactional_id: str) -> bytes:
    writer = TypesWriter()
    writer.int16(0)
    writer.string(transactional_id)
    return writer.finish()


def decode_key(key: bytes | None) -> str | None:
    """The transactional id; None for a kind of record this version does not know."""
    reader = TypesReader(key or b"")
    try:
        return reader.string() if reader.int16() == 0 else None
    except (ValueError, UnicodeDecodeError) as error:
        raise CorruptRecordError(f"a key of __transaction_state cannot be read: {error}") from error


def encode_value(state: TransactionState) -> bytes:
    if not state.partitions:  # nearly every one: a transaction that is complete
        return _BARE_VALUE.pack(
            _VALUE_VERSION,
            state.producer_id,
            state.producer_epoch,
            state.timeout_ms,
            state.state.value,
            -1,
            state.updated_ms,
            state.started_ms,
        )
    writer = TypesWriter()
    writer.int16(_VALUE_VERSION)
    writer.int64(state.producer_id)
    writer.int16(state.producer_epoch)
    writer.int32(state.timeout_ms)
    writer.int8(state.state.value)
    topics: dict[str, list[int]] = {}
    for topic, number in state.partitions:
        topics.setdefault(topic, []).append(number)
    writer.int32(len(topics))
    for topic, numbers in topics.items():
        writer.string(topic)
        writer.int32(len(numbers))
        for number in numbers:
            writer.int32(number)
    writer.int64(state.updated_ms)
    writer.int64(state.started_ms)
    return writer.finish()


def decode_value(value: bytes) -> TransactionState:
    """Raises CorruptRecordError, also for a version this one does not know."""
    reader = TypesReader(value)
    try:
        version = reader.int16()
        if version != _VALUE_VERSION:
            raise ValueError(f"version {version}")
        producer_id, producer_epoch = reader.int64(), reader.int16()
        timeout_ms, state = reader.int32(), State(reader.int8())
        partitions: list[TopicPartition] = []
        for _ in range(reader.array_count(6)):
            topic = reader.string()
            partitions += [TopicPartition(topic, reader.int32()) for _ in range(reader.array_count(4))]
        updated_ms, started_ms = reader.int64(), reader.int64()
    except (ValueError, UnicodeDecodeError) as error:
        raise CorruptRecordError(f"a value of __transaction_state cannot be read: {error}") from error
    return TransactionState(
        producer_id, producer_epoch, timeout_ms, state, tuple(partitions), started_ms, updated_ms
    )
