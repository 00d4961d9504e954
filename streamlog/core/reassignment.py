"""Moving the replicas of partitions from brokers to brokers (sans-I/O).

    replicas (0, 1)  --reassign to (2, 1)-->  replicas (2, 1, 0)  adding (2)  removing (0)     2 copies the log
                                                      |
                     2 is in sync (isr_changes) ------+--> replicas (2, 1)                     0 drops it
                     cancel --------------------------+--> replicas (1, 0)                     2 drops it

 1. The replicas of before keep the partition until all targets are in sync; then those that are to leave go, all by
    one decision (`partition_changes` completes it, whoever's decision makes it complete).
 2. Another reassignment may replace one under way. What only the replaced one wanted goes at once, unless nobody else
    is in sync: then it stays to the end, in `adding` (it is none of the replicas of before) and in `removing`.
 3. Cancelling gives back the replicas of before.

Sources: KIP-455; Kafka `changePartitionReassignment`, `cancelPartitionReassignment`, `PartitionReassignmentRevert`.
Kafka's KRaft controller forgets what was there before when a reassignment is replaced; rule 2 keeps KIP-455's.
Not implemented: throttles; forbidding a change of the replication factor (KIP-860).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from streamlog.core.cluster_image import (
    INTERNAL_TOPICS,
    ClusterImage,
    MetadataRecord,
    PartitionImage,
    TopicImage,
)
from streamlog.core.controller import validate_assignment
from streamlog.core.partition_changes import (
    AllowsUnclean,
    ChangedPartitions,
    Outcome,
    by_override,
    change_partition,
    online_or_unclean,
    without,
)
from streamlog.errors import (
    InvalidReplicaAssignmentError,
    NoReassignmentInProgressError,
    StreamlogError,
)

INTERNAL_FACTOR_MAX: Final = 3


def reassign(
    image: ClusterImage,
    name: str,
    targets: Mapping[int, Sequence[int] | None],
    allows_unclean: AllowsUnclean = by_override,
) -> Outcome:
    """Begin moving each partition in `targets` to those brokers (the first is the preferred leader); None cancels.

    Raises   UnknownTopicOrPartitionError for the topic.
    Errors   UnknownTopicOrPartitionError, InvalidReplicaAssignmentError, NoReassignmentInProgressError.
    """
    topic = image.topic(name)
    changes, errors = ChangedPartitions(), dict[tuple[str, int], StreamlogError]()
    for number, target in sorted(targets.items()):
        try:
            partition = image.partition(name, number)
            if target is None:
                after = _cancelled(image, topic, number, partition, allows_unclean)
            else:
                validate_assignment(image, name, number, target)
                after = _begun(image, topic, partition, target, allows_unclean)
        except StreamlogError as error:
            errors[name, number] = error
        else:
            changes.add(topic, number, after)
    return Outcome(changes.records(), errors)


def raise_internal_factors(image: ClusterImage, brokers: Sequence[int]) -> list[MetadataRecord]:
    """Give internal topics replicas on more of `brokers`, until they have three; what is being moved is left alone."""
    changes = ChangedPartitions()
    ordered = sorted(brokers)
    for topic, number, partition in image.partitions():
        lacking = min(INTERNAL_FACTOR_MAX, len(ordered)) - len(partition.replicas)
        if topic.name not in INTERNAL_TOPICS or partition.is_reassigning or lacking <= 0:
            continue
        others = without(ordered, partition.replicas)
        turned = [others[(number + step) % len(others)] for step in range(len(others))]
        chosen = sorted(turned, key=lambda broker_id: not image.is_active(broker_id))[:lacking]
        after = change_partition(
            partition, image.is_active, replicas=(*partition.replicas, *chosen), adding=chosen
        )
        changes.add(topic, number, after)
    return changes.records()


def _begun(
    image: ClusterImage,
    topic: TopicImage,
    partition: PartitionImage,
    target: Sequence[int],
    allows_unclean: AllowsUnclean,
) -> PartitionImage:
    before = without(partition.replicas, partition.adding)
    leaving = without(partition.replicas, target)
    needless = without(leaving, before)
    isr = without(partition.isr, needless)
    if isr:
        leaving, needless = without(leaving, needless), ()
    else:
        isr = partition.isr
    return change_partition(
        partition,
        image.is_active,
        online_or_unclean(topic, allows_unclean),
        isr=isr,
        replicas=(*target, *leaving),
        adding=(*without(target, before), *needless),
        removing=leaving,
    )


def _cancelled(
    image: ClusterImage,
    topic: TopicImage,
    number: int,
    partition: PartitionImage,
    allows_unclean: AllowsUnclean,
) -> PartitionImage:
    where = f"{topic.name}-{number}"
    facts: dict[str, object] = {"topic": topic.name, "partition": number}
    if not partition.is_reassigning:
        raise NoReassignmentInProgressError(f"{where} is not being reassigned", **facts)
    before = without(partition.replicas, partition.adding)
    isr = without(partition.isr, partition.adding)
    is_recovering = partition.is_recovering
    if not isr:
        # Kafka: whoever of before takes over has not all that was acknowledged.
        if not allows_unclean(topic):
            raise InvalidReplicaAssignmentError(
                f"the reassignment of {where} cannot be cancelled: of its replicas before, {list(before)}, none is "
                "in sync, and unclean.leader.election.enable is false",
                **facts,
            )
        isr, is_recovering = before[:1], True  # the election finds another where that one is not alive
    return change_partition(
        partition,
        image.is_active,
        online_or_unclean(topic, allows_unclean),
        isr=isr,
        replicas=before,
        adding=(),
        removing=(),
        is_recovering=is_recovering,
    )
