"""Which batches belong to aborted transactions, and which markers have lost their data: walking a log in
order.

1. A batch is aborted if it is transactional and lies in an aborted range of its producer. Ranges whose marker
   is gone (compacted away since) end where they say, so a later transaction of the same producer is not
   touched.
2. A marker may go when the walk has met no batch of its transaction: all of its data is gone.

Source: Kafka CleanedTransactionMetadata; SEMANTICS 3.7.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from streamlog.batch import Batch, ControlType


class AbortedTransaction(NamedTuple):
    """Offsets of one producer's aborted transaction: first record to abort marker, both included."""

    producer_id: int
    first_offset: int
    last_offset: int


class CleanedTransactions:
    """The walk. Feed every batch from `start_offset` on, in order, to `on_batch` or `on_marker`."""

    __slots__ = ("_committed", "_met", "_next", "_open", "_ranges")

    def __init__(self, aborted: Sequence[AbortedTransaction], start_offset: int) -> None:
        """aborted: all ranges that reach `start_offset` or begin behind it; others do no harm."""
        within = (transaction for transaction in aborted if transaction.last_offset >= start_offset)
        self._ranges = sorted(within, key=lambda transaction: transaction.first_offset)
        self._next = 0
        self._open: dict[int, AbortedTransaction] = {}  # by producer
        self._met: set[int] = set()  # producers whose open aborted transaction still has a batch
        self._committed: set[int] = set()  # producers with other batches since their last marker

    def on_batch(self, batch: Batch) -> bool:
        """True if the batch holds records of an aborted transaction."""
        self._advance(batch.last_offset)
        if not batch.is_transactional:
            return False
        producer_id = batch.producer_id
        transaction = self._open.get(producer_id)
        if transaction is not None and batch.last_offset <= transaction.last_offset:
            self._met.add(producer_id)
            return True
        self._committed.add(producer_id)
        return False

    def on_marker(self, batch: Batch) -> bool:
        """True if no data of the marker's transaction is left, so that the marker may go at its horizon."""
        self._advance(batch.last_offset)
        if not batch.record_count:
            return True
        producer_id, kind = batch.producer_id, batch.control_record().kind
        if kind is ControlType.ABORT:
            met = producer_id in self._met
            self._open.pop(producer_id, None)
            self._met.discard(producer_id)
            return not met
        if kind is ControlType.COMMIT:
            met = producer_id in self._committed
            self._committed.discard(producer_id)
            return not met
        return False

    def _advance(self, offset: int) -> None:
        ranges = self._ranges
        while self._next < len(ranges) and ranges[self._next].first_offset <= offset:
            transaction = ranges[self._next]
            self._open[transaction.producer_id] = transaction
            self._met.discard(transaction.producer_id)
            self._next += 1
