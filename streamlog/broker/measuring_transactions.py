"""What operators watch of producers with ids and of transactions.

Sources: Kafka ReplicaManager (ProducerIdCount, PartitionsWithLateTransactionsCount) and
ProducerStateManager.hasLateTransaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster

REPLICA_MANAGER: Final = "kafka.server:type=ReplicaManager,name="
LATE_MS: Final = 5 * 60_000
"""A transaction is late when it is open for so much longer than any may be: its coordinator should have ended it."""


def read_transactions(cluster: BrokerCluster, now_ms: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of the partitions that are loaded, summed over the brokers; late ones where the leader says so."""
    wall_ms = cluster.runtime.clock.wall_ms()
    producers = late = 0
    for broker in cluster.brokers:
        latest_ms = wall_ms - broker.config.transaction_max_timeout_ms - LATE_MS
        for partition in list(broker.partitions.values()):
            table = partition.producers
            if table is None:
                continue
            producers += len(table.states)
            if partition.serves and table.open_offsets:
                written = [
                    table.written_ms.get(producer_id, wall_ms) for producer_id in list(table.open_offsets)
                ]
                late += min(written) <= latest_ms
    yield f"{REPLICA_MANAGER}ProducerIdCount", {"Value": producers}
    yield f"{REPLICA_MANAGER}PartitionsWithLateTransactionsCount", {"Value": late}
