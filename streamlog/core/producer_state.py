"""What a partition knows of the producers that write to it: nothing twice, nothing out of order (sans-I/O).

    batch of (producer id, epoch, sequences) --admit--> Duplicate: answered with its first offsets, not appended
                                              |         or what the producer's state is once it is appended
                                              +-------> INVALID_PRODUCER_EPOCH, OUT_OF_ORDER_SEQUENCE_NUMBER

A leader admits; followers, and whoever reads a log anew, only observe: what is in the log was admitted once. So this is
a fold over the headers of the log, and a checkpoint of it (see `storage.producer_checkpoints`) only saves time.

Invariants (checked by `ProducerState._check`):
 1. The batches kept are the newest of the present epoch, at most WINDOW_BATCHES, in order: each begins with the sequence
    after the one before, at a higher offset. Where batches between were deleted or compacted away there may be gaps.
 2. A state never goes back to a lower epoch.

Sequences count records, from 0 in each epoch, and follow 2**31 - 1 with 0.

A transaction is open in a partition from its first record there to its marker. Open ones hold the last stable offset
down, see `replica`; the marker carries the epoch after the one of the records (KIP-890), which ends it for good.

Sources: SEMANTICS 3.5.1 to 3.5.5, 3.5.7, 3.5.10; KIP-98, KIP-360, KIP-890; Kafka ProducerStateEntry,
ProducerAppendInfo, ProducerStateManager.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from streamlog.batch_header import NO_SEQUENCE, SEQUENCE_MASK
from streamlog.errors import (
    InvalidProducerEpochError,
    InvalidTxnStateError,
    OutOfOrderSequenceError,
    TransactionCoordinatorFencedError,
)

if TYPE_CHECKING:
    from streamlog.batch import BatchHeader

NO_OFFSET: Final = -1
WINDOW_BATCHES: Final = 5
"""How many batches back a retry is recognised: as many as a producer may have under way."""


class KnownBatch(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A batch in the log, as it is told from a retry of it."""

    first_sequence: int
    last_sequence: int
    base_offset: int
    last_offset: int
    max_timestamp: int


class ProducerState(msgspec.Struct, frozen=True, array_like=True):
    """One producer in one partition."""

    producer_epoch: int
    batches: tuple[KnownBatch, ...]
    open_offset: int = NO_OFFSET
    """Of the first record of its open transaction; -1 = there is none."""
    coordinator_epoch: int = -1
    """Of who wrote its last marker."""

    @property
    def last_sequence(self) -> int:
        return self.batches[-1].last_sequence if self.batches else NO_SEQUENCE

    @property
    def last_offset(self) -> int:
        """Of its newest batch; -1 = none."""
        return self.batches[-1].last_offset if self.batches else -1

    def duplicate_of(self, header: BatchHeader) -> KnownBatch | None:
        """The batch in the log that this one is a retry of."""
        if header.producer_epoch != self.producer_epoch:
            return None
        first, last = header.base_sequence, header.last_sequence
        for known in self.batches:
            if known.first_sequence == first and known.last_sequence == last:
                return known
        return None

    def _check(self) -> None:
        assert len(self.batches) <= WINDOW_BATCHES, self
        for before, after in zip(self.batches, self.batches[1:], strict=False):
            assert before.last_offset < after.base_offset <= after.last_offset, self


def next_sequence(sequence: int) -> int:
    """The sequence after `sequence`; -1 (none yet) is followed by 0."""
    return (sequence + 1) & SEQUENCE_MASK


def admit(state: ProducerState | None, header: BatchHeader, topic: str, partition: int) -> KnownBatch | None:
    """Check a producer's batch before it is appended: the batch it is a duplicate of, or None if it is to be appended.

    state:   None = the partition knows nothing of the producer, perhaps not any more: any sequence may be the first.
    Raises   InvalidProducerEpochError, OutOfOrderSequenceError, InvalidTxnStateError; nothing may be appended then.
    """
    if state is None:
        if header.is_transactional and header.base_sequence != 0:
            # Transactions begin with a new epoch, hence at 0.
            raise _out_of_order(header, 0, topic, partition)
        return None
    duplicate = state.duplicate_of(header)
    if duplicate is not None:
        return duplicate
    if header.producer_epoch < state.producer_epoch:
        raise _old_epoch(state, header, topic, partition)
    is_new_epoch = header.producer_epoch > state.producer_epoch
    expected = 0 if is_new_epoch else next_sequence(state.last_sequence)
    if header.base_sequence != expected:
        raise _out_of_order(header, expected, topic, partition)
    if state.open_offset >= 0 and not header.is_transactional:
        raise InvalidTxnStateError(
            f"producer {header.producer_id} writes to {topic}-{partition} outside of the transaction it has open there",
            topic=topic,
            partition=partition,
            producer_id=header.producer_id,
        )
    return None


def _out_of_order(header: BatchHeader, expected: int, topic: str, partition: int) -> OutOfOrderSequenceError:
    return OutOfOrderSequenceError(
        f"producer {header.producer_id}, epoch {header.producer_epoch}, writes sequence {header.base_sequence} to "
        f"{topic}-{partition}; {expected} comes next there",
        topic=topic,
        partition=partition,
        producer_id=header.producer_id,
        producer_epoch=header.producer_epoch,
        sequence=header.base_sequence,
        expected_sequence=expected,
    )


def _old_epoch(
    state: ProducerState, header: BatchHeader, topic: str, partition: int
) -> InvalidProducerEpochError:
    what = "ends a transaction in" if header.is_control else "writes to"
    return InvalidProducerEpochError(
        f"producer {header.producer_id} {what} {topic}-{partition} in epoch {header.producer_epoch}; epoch "
        f"{state.producer_epoch} has begun there",
        topic=topic,
        partition=partition,
        producer_id=header.producer_id,
        producer_epoch=header.producer_epoch,
        current_epoch=state.producer_epoch,
    )


def admit_marker(
    state: ProducerState | None, header: BatchHeader, coordinator_epoch: int, topic: str, partition: int
) -> bool:
    """Check a transaction's marker before it is appended: whether to append it; False: it has been, by an earlier try.

    Raises   InvalidProducerEpochError: it is of a transaction long over; TransactionCoordinatorFencedError.
    """
    if state is None:
        return True
    if coordinator_epoch < state.coordinator_epoch:
        raise TransactionCoordinatorFencedError(
            f"a marker for {topic}-{partition} by the coordinator of epoch {coordinator_epoch}; epoch "
            f"{state.coordinator_epoch} has written there",
            topic=topic,
            partition=partition,
            coordinator_epoch=coordinator_epoch,
        )
    if header.producer_epoch == state.producer_epoch and state.open_offset < 0:
        return False
    if header.producer_epoch <= state.producer_epoch:
        raise _old_epoch(state, header, topic, partition)
    return True


def observed(state: ProducerState | None, header: BatchHeader, base_offset: int) -> ProducerState:
    """The state once a batch is in the log, whatever it was admitted on.

    base_offset:  where the batch is in the log; a leader numbers it only as it is appended.
    """
    last_offset = base_offset + header.last_offset_delta
    known = KnownBatch(
        header.base_sequence, header.last_sequence, base_offset, last_offset, header.max_timestamp
    )
    open_offset = base_offset if header.is_transactional else NO_OFFSET
    if state is None:
        return ProducerState(header.producer_epoch, (known,), open_offset)
    if state.open_offset >= 0:
        open_offset = state.open_offset
    kept: tuple[KnownBatch, ...] = ()
    if header.producer_epoch == state.producer_epoch:
        kept = state.batches[-(WINDOW_BATCHES - 1) :]
    return ProducerState(header.producer_epoch, (*kept, known), open_offset, state.coordinator_epoch)


def ended(state: ProducerState | None, header: BatchHeader, coordinator_epoch: int) -> ProducerState:
    """The state once a transaction's marker is in the log."""
    batches: tuple[KnownBatch, ...] = ()
    if state is not None and header.producer_epoch == state.producer_epoch:
        batches = state.batches
    return ProducerState(header.producer_epoch, batches, NO_OFFSET, coordinator_epoch)
