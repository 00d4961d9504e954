"""Which replica a consumer reads from: the leader, or an in-sync follower in the consumer's rack (KIP-392).

    replica.selector.class=rack-aware, client.rack = a follower's broker.rack --> that follower, below its high watermark

Asked again whenever leaders or in-sync sets change, so nobody goes on reading from a follower that fell out of sync.

Source: KIP-392, Kafka RackAwareReplicaSelector, ReplicaManager.findPreferredReadReplica.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlog.errors import ReplicaNotAvailableError, UnknownTopicOrPartitionError

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster
    from streamlog.broker.partition import Partition


def nearest_replica(cluster: BrokerCluster, leader: Partition, rack: str, offset: int) -> Partition:
    """The replica to read `offset` from: in this rack, in sync, and with that offset; the furthest of several.

    leader:  the leader's replica, which is the answer where no other will do, or where it is in the rack itself.
    """
    home = leader.home
    if home is None or not cluster.is_replicated or cluster.config.replica_selector_class is None:
        return leader
    try:
        image = cluster.metadata.image.partition(leader.topic, leader.number)
    except UnknownTopicOrPartitionError:
        return leader
    if image.leader != home.id or home.config.broker_rack == rack:
        return leader
    found, furthest = leader, -1
    for broker_id in image.isr:
        broker = cluster.peers.running(broker_id)
        if broker is None or broker is home or broker.config.broker_rack != rack:
            continue
        try:
            replica = broker.partition(leader.topic, leader.number)
        except (UnknownTopicOrPartitionError, ReplicaNotAvailableError):
            continue
        view = replica.view
        if view is None or replica.topic_id != leader.topic_id or replica.leader_id != home.id:
            continue
        if view.log_start_offset <= offset <= view.log_end_offset and view.log_end_offset > furthest:
            found, furthest = replica, view.log_end_offset
    return found
