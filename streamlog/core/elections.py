"""Elections that somebody asks for: a preferred leader, an unclean one, leadership given back (sans-I/O).

Elections that follow from a broker's coming and going are in `broker_states`; how a leader is chosen is in
`partition_changes`.

    elect_leaders(image, [("orders", 0), ...], Election.PREFERRED) --> Outcome(records, errors by partition)

Sources: Kafka `ReplicationControlManager.electLeaders` (what it refuses, in this order), KIP-460 (unclean elections by
hand, whatever the topic's option says); the imbalance by broker is that of `KafkaController` before KRaft, which
does without `leader.imbalance.per.broker.percentage`.
"""

from __future__ import annotations

from collections.abc import Iterable

from streamlog.core.cluster_image import NO_LEADER, ClusterImage, PartitionImage
from streamlog.core.partition_changes import ChangedPartitions, Election, Outcome, change_partition
from streamlog.errors import (
    ElectionNotNeededError,
    EligibleLeadersNotAvailableError,
    InvalidRequestError,
    PreferredLeaderNotAvailableError,
    StreamlogError,
)


def elect_leaders(
    image: ClusterImage, partitions: Iterable[tuple[str, int]] | None, election: Election | str
) -> Outcome:
    """Elect the preferred leader, or with "unclean" any leader, of each partition; None: of all.

    Of all, those that need no election are no errors.

    Raises   InvalidRequestError for another kind of election.
    Errors   UnknownTopicOrPartitionError, ElectionNotNeededError, PreferredLeaderNotAvailableError,
             EligibleLeadersNotAvailableError.
    """
    kind = election_of(election)
    wanted = partitions
    if wanted is None:
        wanted = [(topic.name, number) for topic, number, _ in image.partitions()]
    changes, errors = ChangedPartitions(), dict[tuple[str, int], StreamlogError]()
    for name, number in dict.fromkeys(wanted):
        try:
            after = _elected(name, number, image.partition(name, number), image, kind)
        except ElectionNotNeededError as error:
            if partitions is not None:
                errors[name, number] = error
        except StreamlogError as error:
            errors[name, number] = error
        else:
            changes.add(image.topics[name], number, after)
    return Outcome(changes.records(), errors)


def election_of(election: Election | str) -> Election:
    """Raises InvalidRequestError for what clients cannot ask for."""
    for kind in (Election.PREFERRED, Election.UNCLEAN):
        if election in (kind, kind.value):
            return kind
    raise InvalidRequestError(f"election={election!r}: allowed: 'preferred', 'unclean'", election=election)


def imbalanced_partitions(image: ClusterImage, percentage: int) -> list[tuple[str, int]]:
    """The partitions whose leadership is to be given back to their preferred replica: `elect_leaders` can.

    percentage:  a broker that lacks at most so much of the leaderships it is preferred for is left alone.
    """
    preferred_by: dict[int, int] = {}
    lost: dict[int, list[tuple[str, int, PartitionImage]]] = {}
    for topic, number, partition in image.partitions():
        broker_id = partition.replicas[0]
        preferred_by[broker_id] = preferred_by.get(broker_id, 0) + 1
        if partition.leader != broker_id:
            lost.setdefault(broker_id, []).append((topic.name, number, partition))
    return [
        (name, number)
        for broker_id, partitions in sorted(lost.items())
        if image.is_active(broker_id) and 100 * len(partitions) > percentage * preferred_by[broker_id]
        for name, number, partition in partitions
        if broker_id in partition.isr and not partition.is_reassigning
    ]


def _elected(
    name: str, number: int, partition: PartitionImage, image: ClusterImage, election: Election
) -> PartitionImage:
    preferred = partition.replicas[0]
    facts = {"topic": name, "partition": number, "leader": partition.leader}
    if partition.leader == preferred or (election is Election.UNCLEAN and partition.leader != NO_LEADER):
        raise ElectionNotNeededError(f"{name}-{number} is led by broker {partition.leader} already", **facts)
    after = change_partition(partition, image.is_active, election)
    if after is not partition:
        return after
    if election is Election.PREFERRED:
        raise PreferredLeaderNotAvailableError(
            f"broker {preferred}, the preferred leader of {name}-{number}, is "
            + ("not in sync" if image.is_active(preferred) else "not alive"),
            **facts,
        )
    raise EligibleLeadersNotAvailableError(
        f"none of the replicas {list(partition.replicas)} of {name}-{number} is alive", **facts
    )
