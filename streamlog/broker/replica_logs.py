"""Each replica's own log of a partition, as its broker has it on disk: for who wants to see that they are alike.

Whoever reads a partition reads its leader. Here the followers are looked at too, so that a test, or the demo, need
not believe the leader. Brokers that are down are left out; nothing here waits for a turn.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

from streamlog.storage import log
from streamlog.storage.keys import BATCH_START

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster
    from streamlog.storage.env import Environment


class ReplicaLog(msgspec.Struct, frozen=True):
    """Where one replica stands."""

    broker_id: int
    log_start_offset: int
    high_watermark: int
    """As this replica knows it: a follower learns it with its next fetch."""
    log_end_offset: int


def replica_logs(cluster: BrokerCluster, topic: str, number: int) -> list[ReplicaLog]:
    """The replicas of a partition whose brokers run and have opened it, by broker."""
    found = []
    for broker in list(cluster.brokers):
        partition = broker.partitions.get((topic, number))
        if partition is not None:
            state = partition.state
            found.append(
                ReplicaLog(broker.id, state.log_start_offset, state.high_watermark, state.log_end_offset)
            )
    return found


def checksums(cluster: BrokerCluster, topic: str, number: int) -> dict[int, str]:
    """Broker -> SHA-256 over the batches in its store, byte for byte, with their last offsets.

    Raises UnknownTopicOrPartitionError. Of a partition that is being written to they differ while followers copy.
    """
    image = cluster.metadata.image.partition(topic, number)
    return {
        broker.id: _checksum(broker.environment, image.log_id)
        for broker in list(cluster.brokers)
        if broker.id in image.replicas
    }


def _checksum(environment: Environment, log_id: int) -> str:
    digest = sha256()
    with environment.snapshot() as snapshot:
        for last_offset, value in log.iterate_values(snapshot, log_id):
            digest.update(last_offset.to_bytes(8, "big"))
            digest.update(value[BATCH_START:])  # before it stands what is the store's own
    return digest.hexdigest()
