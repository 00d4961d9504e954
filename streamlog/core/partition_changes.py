"""How one partition changes: who leads it, who is in sync, where its replicas are (sans-I/O).

    PartitionImage + what shall be different --change_partition--> PartitionImage, with the epochs it deserves

Every decision about leaders, in-sync sets and assignments goes through `change_partition` (but for
`broker_states.new_terms`, which only begins a new leader epoch), which in this order
 1. completes a reassignment whose targets are all in the in-sync set,
 2. chooses the leader (`choose_leader`: the table in `tests/core/test_partition_changes.py`),
 3. keeps the last member of an in-sync set that would become empty: only it can come back without loss,
 4. counts: the partition epoch with each change; the leader epoch whenever the leader changes (to -1 too), and when
    a replica leaves the assignment, so that what it still sends is refused.

Source: Kafka `PartitionChangeBuilder` (without eligible leader replicas), `PartitionReassignmentReplicas`; the leader
epoch is not raised when the in-sync set shrinks (KAFKA-15021).
Not implemented: eligible leader replicas and the last known leader (KIP-966).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from enum import Enum
from typing import Final

import msgspec

from streamlog.core.cluster_image import (
    NO_LEADER,
    MetadataRecord,
    PartitionChange,
    PartitionImage,
    PartitionsChanged,
    TopicImage,
)
from streamlog.errors import StreamlogError

CHANGES_PER_RECORD_MAX: Final = 10_000

IsActive = Callable[[int], bool]
AllowsUnclean = Callable[[TopicImage], bool]
"""Whether a topic takes a leader that is not in sync: its own option, else the cluster's default."""


def by_override(topic: TopicImage) -> bool:
    """`AllowsUnclean` of a cluster whose default is Kafka's: no."""
    return topic.config.get("unclean.leader.election.enable") == "true"


class Election(Enum):
    """What a leader may be chosen for, and from what."""

    ONLINE = "online"
    """From the in-sync set; whoever leads and may go on leads on."""
    PREFERRED = "preferred"
    """From the in-sync set, the first replica of the assignment before the present leader."""
    UNCLEAN = "unclean"
    """As ONLINE, and any active replica rather than none: acknowledged records may be lost."""


def online_or_unclean(topic: TopicImage, allows_unclean: AllowsUnclean) -> Election:
    return Election.UNCLEAN if allows_unclean(topic) else Election.ONLINE


class Outcome(msgspec.Struct, frozen=True):
    """A decision about several partitions, each of which may be refused for itself."""

    records: list[MetadataRecord]
    errors: dict[tuple[str, int], StreamlogError]
    """By topic and partition. What is not in here was done, or needed no change."""


def change_partition(
    partition: PartitionImage,
    is_active: IsActive,
    election: Election = Election.ONLINE,
    *,
    isr: Sequence[int] | None = None,
    replicas: Sequence[int] | None = None,
    adding: Sequence[int] | None = None,
    removing: Sequence[int] | None = None,
    is_recovering: bool | None = None,
) -> PartitionImage:
    """The partition after a change; `partition` itself if nothing changes.

    is_active:  who may lead once the decision is taken (a broker that is just being fenced may not).
    isr:        may be empty: then the last member stays, and nobody leads.
    """
    new_isr = tuple(partition.isr if isr is None else isr)
    new_replicas = tuple(partition.replicas if replicas is None else replicas)
    new_adding = tuple(partition.adding if adding is None else adding)
    new_removing = tuple(partition.removing if removing is None else removing)
    new_recovering = partition.is_recovering if is_recovering is None else is_recovering
    if new_adding or new_removing:
        staying = without(new_isr, new_removing)
        targets = without(new_replicas, new_removing)
        if targets and set(staying).issuperset(targets):
            new_isr, new_replicas, new_adding, new_removing = staying, targets, (), ()
    leader, is_unclean = choose_leader(partition.leader, new_replicas, new_isr, is_active, election)
    if is_unclean:
        new_isr, new_recovering = (leader,), True
    elif not new_isr:
        # Several may go at once; the leader's log is the longest.
        new_isr = (partition.leader,) if partition.leader in partition.isr else partition.isr[:1]
    has_lost = not set(new_replicas).issuperset(partition.replicas)
    changed = PartitionImage(
        partition.log_id,
        new_replicas,
        new_isr,
        leader,
        partition.leader_epoch + (leader != partition.leader or has_lost),
        partition.partition_epoch,
        new_adding,
        new_removing,
        new_recovering,
    )
    if changed == partition:
        return partition
    return msgspec.structs.replace(changed, partition_epoch=partition.partition_epoch + 1)


def choose_leader(
    leader: int, replicas: Sequence[int], isr: Collection[int], is_active: IsActive, election: Election
) -> tuple[int, bool]:
    """The leader (-1: nobody can) and whether it is an unclean one."""
    if election is Election.PREFERRED:
        candidates = (replicas[0], leader, *replicas)
    else:
        candidates = (leader, *replicas)
    for broker_id in candidates:
        if broker_id in isr and is_active(broker_id):
            return broker_id, False
    if election is Election.UNCLEAN:
        for broker_id in replicas:
            if is_active(broker_id):
                return broker_id, True
    return NO_LEADER, False


def without(broker_ids: Sequence[int], gone: Collection[int]) -> tuple[int, ...]:
    return tuple(broker_id for broker_id in broker_ids if broker_id not in gone)


class ChangedPartitions:
    """Gathers what a decision changes, for as few records as possible."""

    def __init__(self) -> None:
        self._changes: list[PartitionChange] = []

    def add(self, topic: TopicImage, number: int, after: PartitionImage) -> None:
        """The same object as before is no change."""
        if after is not topic.partitions[number]:
            self._changes.append(PartitionChange(topic.name, topic.topic_id, number, after))

    def records(self) -> list[MetadataRecord]:
        return [
            PartitionsChanged(self._changes[start : start + CHANGES_PER_RECORD_MAX])
            for start in range(0, len(self._changes), CHANGES_PER_RECORD_MAX)
        ]
