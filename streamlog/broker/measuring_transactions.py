"""What there is to tell of transactions and of the producers partitions know, looked up when asked.

    partitions    ProducerIdCount, PartitionsWithLateTransactionsCount: of those that are loaded; asking loads nothing
    coordinators  transactional ids by state, markers that are not written yet

Sources: SEMANTICS 2.2; Kafka ReplicaManager, ProducerStateManager (hasLateTransaction, KIP-664),
TransactionMarkerChannelManager. Ours: `transactional-id-count`, `PendingMarkersCount`.
Not implemented: LogAppendRetryQueueSize (a completion is decided in a turn, there is no queue), how long loading took.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from streamlog.metrics import Reading

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.cluster import BrokerCluster
    from streamlog.broker.partition import Partition

REPLICA_MANAGER: Final = "kafka.server:type=ReplicaManager,name="
TRANSACTIONS: Final = "kafka.server:type=transaction-coordinator-metrics"
MARKERS: Final = "kafka.coordinator.transaction:type=TransactionMarkerChannelManager,name="
LATE_MS: Final = 5 * 60_000
"""A transaction is late when it is open for so much longer than any may be: its coordinator should have ended it."""
_STATES: Final = ("Empty", "Ongoing", "PrepareCommit", "PrepareAbort", "CompleteCommit", "CompleteAbort")


def read_transactions(cluster: BrokerCluster, now_ms: int) -> Iterator[Reading]:
    wall_ms = cluster.runtime.clock.wall_ms()
    brokers = sorted(cluster.metadata.image.brokers)
    producer_ids, late = dict.fromkeys(brokers, 0), dict.fromkeys(brokers, 0)
    states = dict.fromkeys(_STATES, 0)
    markers = homeless = 0
    for broker in cluster.brokers:
        for partition in list(broker.partitions.values()):
            table = partition.producers
            if table is not None:
                producer_ids[broker.id] = producer_ids.get(broker.id, 0) + len(table.states)
                late[broker.id] = late.get(broker.id, 0) + is_late(broker, partition, wall_ms)
        transactions = broker.coordinator._transactions if broker.has_coordinator else None
        if transactions is None:
            continue  # nobody has asked for it: asking makes none
        for known in transactions._states.copy().values():
            states[known.state.name.title().replace("_", "")] += 1
        for topic, number in transactions.completions.pending_markers():
            markers += 1
            image = cluster.topics.get(topic)
            homeless += image is not None and image.partitions[number].leader < 0
    for name, counts in (("ProducerIdCount", producer_ids), ("PartitionsWithLateTransactionsCount", late)):
        yield REPLICA_MANAGER + name, {"Value": sum(counts.values())}
        if len(counts) > 1:
            for broker_id, count in counts.items():
                yield f"{REPLICA_MANAGER}{name},broker={broker_id}", {"Value": count}
    for state, count in states.items():
        yield f"{TRANSACTIONS},state={state}", {"transactional-id-count": count}
    yield f"{MARKERS}UnknownDestinationQueueSize", {"Value": homeless}
    yield f"{MARKERS}PendingMarkersCount", {"Value": markers}


def is_late(broker: Broker, partition: Partition, wall_ms: int) -> bool:
    """Whether a transaction is open at this leader for longer than any coordinator would let it."""
    table = partition.producers
    if table is None or not partition.serves or not table.open_offsets:
        return False
    latest_ms = wall_ms - broker.config.transaction_max_timeout_ms - LATE_MS
    written = [table.written_ms.get(producer_id, wall_ms) for producer_id in list(table.open_offsets)]
    return min(written, default=wall_ms) <= latest_ms
