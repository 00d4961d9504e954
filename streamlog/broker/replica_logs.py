"""Each replica's own log of a partition, as its broker has it on disk: for who wants to see that they are alike.

Whoever reads a partition reads its leader. Here the followers are looked at too, so that a test, or the demo, need
not believe the leader. Brokers that are down are left out; nothing here waits for a turn.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

import msgspec

from streamlog.storage.keys import pack_key, unpack_key

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster
    from streamlog.storage.env import Environment

BATCH_START: Final = 8
"""Before the batch stands the running maximum timestamp, which is the store's own."""


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
        cursor = snapshot.cursor()
        found = cursor.set_range(pack_key(log_id, 0))
        while True:
            if not found:
                break
            key, value = cursor.item()
            found_log_id, last_offset = unpack_key(key)
            if found_log_id != log_id or last_offset >= 1 << 63:
                break  # another log, or this one's checkpoints
            digest.update(last_offset.to_bytes(8, "big"))
            digest.update(value[BATCH_START:])
            found = cursor.next()
    return digest.hexdigest()
