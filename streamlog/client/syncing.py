"""What a member sends once its join is answered: SyncGroup, and as the leader everybody's assignment with it.

    JoinGroupReply, topics --> SyncGroup, and the partition counts the assignment is made of

Pure, so that any thread may do it for a member (see `Membership.sync_early`).

Source: Kafka ConsumerCoordinator.onLeaderElected, AbstractCoordinator.onLeaderElected.
"""

from __future__ import annotations

from collections.abc import Mapping

from streamlog.core import assignor, consumer_protocol
from streamlog.core import group_events as events
from streamlog.core.cluster_image import TopicImage


def sync_after(
    reply: events.JoinGroupReply, group_instance_id: str | None, topics: Mapping[str, TopicImage]
) -> tuple[events.SyncGroup, dict[str, int]]:
    """The SyncGroup, and topic -> partitions where we assign (0: a topic that is not there yet)."""
    assignments: tuple[tuple[str, bytes], ...] = ()
    counts: dict[str, int] = {}
    if reply.leader == reply.member_id and not reply.skip_assignment:
        assignments, counts = _assign(reply, topics)
    event = events.SyncGroup(
        token=0,
        member_id=reply.member_id,
        generation=reply.generation,
        group_instance_id=group_instance_id,
        protocol_type=reply.protocol_type,
        protocol=reply.protocol,
        assignments=assignments,
    )
    return event, counts


def _assign(
    reply: events.JoinGroupReply, topics: Mapping[str, TopicImage]
) -> tuple[tuple[tuple[str, bytes], ...], dict[str, int]]:
    """Spread the partitions of all subscribed topics over the members."""
    subscriptions = {
        member.member_id: consumer_protocol.decode_subscription(member.metadata, member.group_instance_id)
        for member in reply.members
    }
    wanted = sorted({topic for subscription in subscriptions.values() for topic in subscription.topics})
    counts = {topic: len(topics[topic].partitions) for topic in wanted if topic in topics}
    assigned = assignor.ASSIGNORS[reply.protocol or "range"].assign(counts, subscriptions)
    encoded = tuple(
        (
            member_id,
            consumer_protocol.encode_assignment(consumer_protocol.Assignment(partitions=tuple(partitions))),
        )
        for member_id, partitions in assigned.items()
    )
    return encoded, {topic: counts.get(topic, 0) for topic in wanted}
