"""Before a transactional batch goes to its leader: its partition is told to the transaction's coordinator.

    batch of a partition new to the transaction --AddPartitions--> coordinator --replicated--> the batch may travel

Only partitions the coordinator knows get a marker, so a record written anywhere else would stay open for ever, and hold
back all who read committed records. A batch that comes late, after the end of its transaction, names an epoch that the
marker has ended at its leader.

Invariants:
 1. A transactional batch travels only once its partition was acknowledged as part of that very transaction.

Source: SEMANTICS 3.5.7; KIP-98, KIP-890 (there the leader asks the coordinator in its client's place).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from streamlog.broker.api import AddPartitions, TransactionRequest
from streamlog.broker.deliveries import Item, Key
from streamlog.broker.pending import Pending
from streamlog.errors import ClosedError, NetworkError, StreamlogError

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.cluster import BrokerCluster


class Joiner(Protocol):
    """A transactional producer's identity, as far as this is concerned."""

    transactional_id: str
    producer_id: int
    producer_epoch: int
    joined: set[Key]
    """Partitions that belong to the present transaction."""


class Joining:
    """Asks coordinators for the dispatcher."""

    def __init__(
        self,
        cluster: BrokerCluster,
        on_joined: Callable[[list[Key]], None],
        on_refused: Callable[[Joiner, list[Key], StreamlogError], None],
    ) -> None:
        self._cluster = cluster
        self._on_joined = on_joined
        self._on_refused = on_refused

    def ask(self, joiner: Joiner, keys: list[Key]) -> Broker | None:
        """Put the question into the coordinator's inbox; the broker that has something to do now."""
        from streamlog.broker.transaction_coordinators import coordinator_of

        stamp = joiner.producer_id, joiner.producer_epoch

        def answered(pending: Pending) -> None:
            if (joiner.producer_id, joiner.producer_epoch) != stamp:
                return  # that transaction has ended
            error = pending.error
            if error is None:
                joiner.joined.update(keys)
                self._on_joined(keys)
            elif isinstance(error, ClosedError) and not self._cluster.closed:
                self._on_refused(joiner, keys, NetworkError("the coordinator went down"))
            elif isinstance(error, StreamlogError):
                self._on_refused(joiner, keys, error)

        request = TransactionRequest(joiner.transactional_id, AddPartitions(*stamp, keys))
        try:
            broker = coordinator_of(self._cluster, joiner.transactional_id)
            broker.admit()
        except StreamlogError as error:
            self._on_refused(joiner, keys, error)
            return None
        broker.put(Pending(request, on_done=answered))
        return broker


def outsider(key: Key, items: list[Item]) -> Joiner | None:
    """Whose transaction has to be told of this partition before the batches may travel."""
    for item in items:
        identity = item.delivery.produce.identity
        if identity is not None and identity.is_transactional:
            joiner: Joiner = identity  # type: ignore[assignment]
            if key not in joiner.joined:
                return joiner
    return None
