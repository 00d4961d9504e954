"""What makes the batches of one transaction its own: the producer's id, and an epoch for each transaction (KIP-890).

    begin --batches: epoch, sequences from 0--> end, answered with the epoch of the next --renew--> begin

Source: Kafka TransactionManager (completeTransaction, bumpIdempotentEpochAndResetIdIfNeeded).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlog.broker.producer_identity import ProducerIdentity

if TYPE_CHECKING:
    from streamlog.batch import Batch


class TransactionalIdentity(ProducerIdentity):
    """What makes the batches of one transaction its own. One broker takes them in order, or the transaction fails."""

    __slots__ = ("has_sent", "joined", "transactional_id")

    is_transactional = True

    def __init__(self, transactional_id: str, producer_id: int, producer_epoch: int) -> None:
        self.transactional_id = transactional_id
        self.renew(producer_id, producer_epoch)

    def __repr__(self) -> str:
        return f"TransactionalIdentity({self.producer_id}, epoch {self.producer_epoch})"

    @property
    def stamp(self) -> tuple[int, int]:
        return self.producer_id, self.producer_epoch

    def renew(self, producer_id: int, producer_epoch: int) -> None:
        """The next transaction. Cut short it is done again, see `TransactionalProducer._begin`."""
        self.producer_id = producer_id
        self.producer_epoch = producer_epoch
        self.has_sent = False
        self.joined: set[tuple[str, int]] = set()
        self._guesses = {}
        self._next = {}

    def guess(self, key: tuple[str, int], records: int) -> int:
        """The first sequence of a batch that is being sealed."""
        self.has_sent = True
        return super().guess(key, records)

    def stamped(self, key: tuple[str, int], batch: Batch, before: Batch | None) -> Batch:
        """As it was sealed: what fails leaves a gap, and the transaction is aborted for it."""
        return batch

    def in_doubt(self) -> None:
        """A record of the transaction may be missing: it is aborted, and the next one has another epoch anyway."""
