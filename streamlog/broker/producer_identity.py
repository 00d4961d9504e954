"""What makes a producer's batches known again: its id, its epoch, and the sequence each partition expects next.

    sealing: a guess is encoded into the batch --> sending: right, as nearly always, or the batch is stamped anew
    answer:  written                            --> the next sequence is behind it
             failed, surely not written         --> its sequences go to those behind it
             failed, perhaps written            --> a new epoch begins at 0, so that no gap and no doubt is left

A sequence cannot be given for good when a batch is sealed: what is before it may fail, and would leave a gap that the
leader refuses for ever. It is given when the batch goes to the leader for the first time, and a retry keeps it.

Invariants:
 1. A batch that was sent keeps its stamp until a leader has said that it is not in the log.
 2. Sequences of one partition and epoch are given without gaps, in the order the batches are sent.
 3. The guess decides about nothing but whether a batch has to be stamped anew.

Sources: KIP-98, KIP-360; Kafka TransactionManager (adjustSequencesDueToFailedBatch, bumpIdempotentProducerEpoch,
canRetry).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from streamlog.batch_header import SEQUENCE_MASK
from streamlog.core.producer_state import next_sequence

if TYPE_CHECKING:
    from streamlog.batch import Batch

Key = tuple[str, int]

PRODUCER_EPOCH_MAX: Final = 32_766
"""The last one a producer writes in (Kafka keeps 32,767 for fencing); then it takes another id."""


class ProducerIdentity:
    """One producer's id and sequences. Guesses belong to the producer's lock, all else to the dispatcher's."""

    __slots__ = ("_guesses", "_new_id", "_next", "producer_epoch", "producer_id")

    is_transactional = False

    def __init__(self, new_id: Callable[[], int]) -> None:
        """new_id: a producer id nobody has; called again when all epochs of the first are used up."""
        self._new_id = new_id
        self.producer_id = new_id()
        self.producer_epoch = 0
        self._guesses: dict[Key, int] = {}
        self._next: dict[
            Key, tuple[int, int, int]
        ] = {}  # producer id, epoch, sequence: behind what is decided

    def __repr__(self) -> str:
        return f"ProducerIdentity({self.producer_id}, epoch {self.producer_epoch})"

    # -- sealing -------------------------------------------------------------------------------------------------------

    def guess(self, key: Key, records: int) -> int:
        """The first sequence of a batch that is being sealed, if nothing before it fails."""
        first = self._guesses.get(key, 0)
        self._guesses[key] = (first + records) & SEQUENCE_MASK
        return first

    # -- sending -------------------------------------------------------------------------------------------------------

    def stamped(self, key: Key, batch: Batch, before: Batch | None) -> Batch:
        """A batch that goes to its leader for the first time, with the sequence that comes next.

        before:  the batch of this producer that goes before it in the same request; None = there is none.
        """
        sequence = self._sequence(key, before)
        if _stamp_of(batch) == (self.producer_id, self.producer_epoch, sequence):
            return batch
        if batch.base_sequence >= 0:
            guess = self._guesses.get(key, 0)
            sealed_since = (guess - next_sequence(batch.last_sequence)) & SEQUENCE_MASK
            if sealed_since < SEQUENCE_MASK // 2:  # else somebody before it has put this right already
                self._guesses[key] = (guess + sequence - batch.base_sequence) & SEQUENCE_MASK
        return batch.with_producer(self.producer_id, self.producer_epoch, sequence)

    def _sequence(self, key: Key, before: Batch | None) -> int:
        """What comes next in the present epoch."""
        begun = self._next.get(key) if before is None else _behind(before)
        is_present = begun is not None and begun[:2] == (self.producer_id, self.producer_epoch)
        return begun[2] if begun is not None and is_present else 0

    # -- answers -------------------------------------------------------------------------------------------------------

    def written(self, key: Key, batch: Batch) -> None:
        """A batch is in its log."""
        self._next[key] = _behind(batch)

    def in_doubt(self) -> None:
        """A batch has failed that may be in its log, or a leader does not know what it should: begin a new epoch."""
        if self.producer_epoch < PRODUCER_EPOCH_MAX:
            self.producer_epoch += 1
        else:
            self.producer_id, self.producer_epoch = self._new_id(), 0

    def expects(self, key: Key, batch: Batch) -> bool:
        """Whether a batch, with nothing undecided before it, is the one that comes next as far as we know."""
        return _stamp_of(batch) == (self.producer_id, self.producer_epoch, self._sequence(key, None))

    def is_of_former_epoch(self, batch: Batch) -> bool:
        """Whether a batch that was sent carries a stamp of before the last doubt."""
        return _stamp_of(batch)[:2] != (self.producer_id, self.producer_epoch)


def _stamp_of(batch: Batch) -> tuple[int, int, int]:
    return batch.producer_id, batch.producer_epoch, batch.base_sequence


def _behind(batch: Batch) -> tuple[int, int, int]:
    return batch.producer_id, batch.producer_epoch, next_sequence(batch.last_sequence)
