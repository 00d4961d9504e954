"""The controller's decisions about brokers: who registers, is fenced, comes back, shuts down (sans-I/O).

                       register                    unfence
    (unknown) ---------------------> FENCED -----------------> ACTIVE
                                      ^  ^                      |   |
                                      |  +------- fence --------+   | controlled_shutdown
                                      |                             v
                                      +-------- fence ------ SHUTTING DOWN

 1. A broker that is not active leaves all leaderships and in-sync sets at once, by the same decision; where it is the
    last member it stays one, and the partition has no leader until it, and only it, comes back.
 2. Each registration is a new life with a higher broker epoch, and begins fenced.
 3. Fencing who is fenced already, or unfencing who is active, decides nothing.

Sources: Kafka `ReplicationControlManager.handleBrokerFenced`, `handleBrokerUnfenced`,
`handleBrokerInControlledShutdown`, `generateLeaderAndIsrUpdates`; KIP-841. Kafka keeps the epoch of a registration
that is repeated by the same incarnation; here there is no lost answer to repeat it for.
Not implemented: unregistering a broker.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import msgspec

from streamlog.core.cluster_image import (
    NO_LEADER,
    BrokerFenced,
    BrokerImage,
    BrokerRegistered,
    BrokerShuttingDown,
    BrokerUnfenced,
    ClusterImage,
    ControllerElected,
    MetadataRecord,
    PartitionImage,
    TopicImage,
)
from streamlog.core.partition_changes import (
    AllowsUnclean,
    ChangedPartitions,
    by_override,
    change_partition,
    online_or_unclean,
    without,
)
from streamlog.errors import BrokerIdNotRegisteredError, InvalidRequestError, StaleBrokerEpochError


class Shutdown(msgspec.Struct, frozen=True):
    """What a controlled shutdown begins with."""

    records: list[MetadataRecord]
    remaining: list[tuple[str, int]]
    """Topic and partition of which this broker is the last in-sync replica: offline until it is back."""


# -- who a broker is -------------------------------------------------------------------------------------------------


def registered_broker(image: ClusterImage, broker_id: int) -> BrokerImage:
    """Raises BrokerIdNotRegisteredError."""
    registered = image.brokers.get(broker_id)
    if registered is None:
        raise BrokerIdNotRegisteredError(
            f"no broker {broker_id!r}; allowed: {sorted(image.brokers)}", broker_id=broker_id
        )
    return registered


def check_broker_epoch(image: ClusterImage, broker_id: int, broker_epoch: int) -> None:
    """Raises StaleBrokerEpochError for a message of a former life, or of nobody. Kafka `checkBrokerEpoch`."""
    registered = image.brokers.get(broker_id)
    if registered is None or registered.broker_epoch != broker_epoch:
        known = "is not registered" if registered is None else f"has broker epoch {registered.broker_epoch}"
        raise StaleBrokerEpochError(
            f"broker {broker_id} {known}; the message has {broker_epoch}. Register again",
            broker_id=broker_id,
            broker_epoch=broker_epoch,
        )


def elect_controller(image: ClusterImage, broker_id: int) -> ControllerElected:
    """The broker that asked first takes over (`leases.LeaseTable.may_take_control` says who may ask)."""
    return ControllerElected(broker_id, image.controller_epoch + 1)


def new_terms(image: ClusterImage) -> list[MetadataRecord]:
    """Every leader of several replicas begins a new term: the directory was opened anew.

    A loss of power may have taken the end of a leader's log and spared its followers': in its old epoch it would write
    other records at offsets they hold, and nobody could tell (SEMANTICS 3.4.8). In Kafka each restart is an election.
    """
    changes = ChangedPartitions()
    for topic, number, partition in image.partitions():
        if partition.leader != NO_LEADER and len(partition.replicas) > 1:
            after = msgspec.structs.replace(
                partition,
                leader_epoch=partition.leader_epoch + 1,
                partition_epoch=partition.partition_epoch + 1,
            )
            changes.add(topic, number, after)
    return changes.records()


# -- decisions -------------------------------------------------------------------------------------------------------


def register(
    image: ClusterImage, broker_id: int, incarnation: str, allows_unclean: AllowsUnclean = by_override
) -> list[MetadataRecord]:
    """A broker begins a new life, fenced; whatever its former life led or was in sync with is over.

    Raises InvalidRequestError for an id that is none.
    """
    if isinstance(broker_id, bool) or not isinstance(broker_id, int) or broker_id < 0:
        raise InvalidRequestError(f"a broker's id is an int >= 0, not {broker_id!r}", broker_id=broker_id)
    former = image.brokers.get(broker_id)
    broker_epoch = 1 if former is None else former.broker_epoch + 1
    return [
        BrokerRegistered(broker_id, incarnation, broker_epoch, fenced=True),
        *_leave(image, [broker_id], allows_unclean),
    ]


def add_broker(image: ClusterImage, incarnation: str) -> list[MetadataRecord]:
    """Register a broker under the next free id, fenced; the internal topics get replicas there while they have
    fewer than three.
    """
    from streamlog.core.reassignment import raise_internal_factors

    broker_id = max(image.brokers, default=-1) + 1
    return [
        *register(image, broker_id, incarnation),
        *raise_internal_factors(image, [*image.brokers, broker_id]),
    ]


def fence(
    image: ClusterImage, broker_ids: Collection[int], allows_unclean: AllowsUnclean = by_override
) -> list[MetadataRecord]:
    """Brokers whose sessions are over, all at once. Raises BrokerIdNotRegisteredError."""
    fenced = [b for b in sorted(set(broker_ids)) if not registered_broker(image, b).fenced]
    records: list[MetadataRecord] = [BrokerFenced(b, image.brokers[b].broker_epoch) for b in fenced]
    return records + _leave(image, fenced, allows_unclean)


def unfence(
    image: ClusterImage, broker_ids: Collection[int], allows_unclean: AllowsUnclean = by_override
) -> list[MetadataRecord]:
    """Brokers that are there (again): partitions without a leader get one where that is possible now.

    Raises BrokerIdNotRegisteredError.
    """
    unfenced = [b for b in sorted(set(broker_ids)) if registered_broker(image, b).fenced]
    records: list[MetadataRecord] = [BrokerUnfenced(b, image.brokers[b].broker_epoch) for b in unfenced]
    returning = {b for b in unfenced if not image.brokers[b].shutting_down}
    if returning:
        records += elect_leaderless(image, allows_unclean, returning)
    return records


def controlled_shutdown(
    image: ClusterImage, broker_id: int, allows_unclean: AllowsUnclean = by_override
) -> Shutdown:
    """Move away from a broker what can be moved, before it stops. Raises BrokerIdNotRegisteredError."""
    leaving = registered_broker(image, broker_id)
    records: list[MetadataRecord] = []
    if not leaving.shutting_down:
        records.append(BrokerShuttingDown(broker_id, leaving.broker_epoch))
    changes = ChangedPartitions()
    remaining = []
    for topic, number, after in _after_leaving(image, [broker_id], allows_unclean):
        changes.add(topic, number, after)
        if after.isr == (broker_id,):
            remaining.append((topic.name, number))
    return Shutdown(records + changes.records(), remaining)


def elect_leaderless(
    image: ClusterImage, allows_unclean: AllowsUnclean, returning: Collection[int] = ()
) -> list[MetadataRecord]:
    """Leaders for the partitions that have none: when brokers return, and when unclean elections become allowed.

    returning:  brokers that are active once this decision is taken.
    """
    changes = ChangedPartitions()
    for topic, number, partition in image.partitions():
        if partition.leader == NO_LEADER:
            after = change_partition(
                partition,
                lambda b: b in returning or image.is_active(b),
                online_or_unclean(topic, allows_unclean),
            )
            changes.add(topic, number, after)
    return changes.records()


# -- leaving ---------------------------------------------------------------------------------------------------------


def _leave(image: ClusterImage, gone: Sequence[int], allows_unclean: AllowsUnclean) -> list[MetadataRecord]:
    changes = ChangedPartitions()
    for topic, number, after in _after_leaving(image, gone, allows_unclean):
        changes.add(topic, number, after)
    return changes.records()


def _after_leaving(
    image: ClusterImage, gone: Sequence[int], allows_unclean: AllowsUnclean
) -> Iterator[tuple[TopicImage, int, PartitionImage]]:
    """The partitions with one of `gone` in the in-sync set, as they are without them."""
    leaving = frozenset(gone)
    for topic, number, partition in image.partitions() if leaving else ():
        if not leaving.isdisjoint(partition.isr):
            yield (
                topic,
                number,
                change_partition(
                    partition,
                    lambda b: b not in leaving and image.is_active(b),
                    online_or_unclean(topic, allows_unclean),
                    isr=without(partition.isr, leaving),
                ),
            )
