"""The core of a transactional producer that is made in an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlog.aio.producer import LoopProducer
from streamlog.client.transactions import TransactionalProducer
from streamlog.core.transaction import PRODUCER_EPOCH_MAX

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster
    from streamlog.config import ProducerConfig


class LoopTransactionalProducer(LoopProducer, TransactionalProducer):
    """A transactional producer that was made in a loop: it takes its id over at the first begin, in a thread."""

    def _first_identity(self, backend: BrokerCluster, config: ProducerConfig) -> tuple[int, int]:
        return -1, PRODUCER_EPOCH_MAX + 1  # used up, so the next begin asks for another

    def check_sending(self, topic: str) -> None:
        super().check_sending(topic)
        if self._transaction is None:
            self._admit(0, topic)  # which says so
