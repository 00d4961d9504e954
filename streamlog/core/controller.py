"""The controller's decisions about topics: which there are, with which replicas, with which options (sans-I/O).

    decide_create_topic(image, ...) --> TopicCreated --appended to the metadata log--> image.apply(record)

A decision reads the `ClusterImage` and returns a record, or raises the error Kafka has for it; it changes nothing.
What errors take precedence follows Kafka (`tests/core/test_controller.py` has the table).

    dealing of replicas, 3 brokers, factor 2     partition  0  1  2 | 3  4  5 |    leaders go round,
                                                 leader     0  1  2 | 0  1  2 |    with each round the followers move
                                                 follower   1  2  0 | 2  0  1 |    on by one: they are spread, too

Sources: Kafka `ReplicationControlManager.createTopics`, `createPartitions`, `Topic.java` (names); the dealing is that
of `AdminUtils.assignReplicasToBrokers`.
Not implemented: racks, quotas of changes, create-topic policies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from streamlog.core.cluster_image import (
    CLUSTER_DEFAULT,
    FIRST_LOG_ID,
    ClusterImage,
    ConfigChanged,
    MetadataRecord,
    PartitionsAdded,
    ProducerIdsAllocated,
    TopicConfigChanged,
    TopicCreated,
    TopicDeleted,
)
from streamlog.errors import (
    BrokerIdNotRegisteredError,
    InvalidPartitionsError,
    InvalidReplicaAssignmentError,
    InvalidReplicationFactorError,
    InvalidRequestError,
    InvalidTopicError,
    TopicAlreadyExistsError,
)
from streamlog.wording import plural

LOG_ID_MAX: Final = 2**32 - 2
PRODUCER_IDS_AT_ONCE: Final = 1_000
TOPIC_NAME_CHARACTERS_MAX: Final = 249
PARTITIONS_PER_TOPIC_MAX: Final = 200_000
NOT_GIVEN: Final = -1
"""Kafka's number for a count that the caller leaves to the assignments."""

_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]+")


def validate_topic_name(name: object) -> str:
    """Return `name` if Kafka allows it. Raises InvalidTopicError that says which rule is broken."""
    if not isinstance(name, str):
        raise InvalidTopicError(f"a topic name is a str, not {type(name).__name__}: {name!r}", topic=name)
    allowed = f"allowed: 1 to {TOPIC_NAME_CHARACTERS_MAX} of a-z A-Z 0-9 . _ -"
    if not name:
        raise InvalidTopicError(f"a topic name cannot be empty; {allowed}", topic=name)
    if name in (".", ".."):
        raise InvalidTopicError(f"a topic cannot be called {name!r}", topic=name)
    if len(name) > TOPIC_NAME_CHARACTERS_MAX:
        raise InvalidTopicError(f"a topic name of {len(name)} characters is too long; {allowed}", topic=name)
    if _TOPIC_NAME.fullmatch(name) is None:
        wrong = sorted({c for c in name if _TOPIC_NAME.fullmatch(c) is None})
        raise InvalidTopicError(
            f"topic name {name!r} has {' '.join(map(repr, wrong))}; {allowed}", topic=name
        )
    return name


# -- decisions -------------------------------------------------------------------------------------------------------


def decide_create_topic(
    image: ClusterImage,
    name: str,
    topic_id: str,
    partitions: int,
    replication_factor: int,
    config: Mapping[str, str],
    assignments: Mapping[int, Sequence[int]] | None = None,
) -> TopicCreated:
    """Decide a new topic: by counts, dealt over the active brokers, or by `assignments` with both counts -1.

    config:  already validated by the caller.
    Raises   InvalidTopicError, TopicAlreadyExistsError, InvalidRequestError (assignments and counts),
             InvalidReplicaAssignmentError, InvalidReplicationFactorError, InvalidPartitionsError.
    Source   Kafka `ReplicationControlManager.createTopics`.
    """
    validate_topic_name(name)
    if name in image.topics:
        raise TopicAlreadyExistsError(
            f"topic {name!r} already exists; pass exist_ok=True to use it as it is", topic=name
        )
    _refuse_collision(image, name)
    if assignments is None:
        dealt = _deal(image, name, partitions, replication_factor)
    else:
        if partitions != NOT_GIVEN or replication_factor != NOT_GIVEN:
            raise InvalidRequestError(
                f"topic {name!r}: assignments already say how many partitions and replicas there are; leave out "
                f"partitions={partitions} and replication_factor={replication_factor}",
                topic=name,
            )
        dealt = _dense_assignments(image, name, assignments)
    _validate_log_ids(image, len(dealt))
    return TopicCreated(
        name, topic_id, image.next_log_id, dealt, dict(config), _inactive_in(image, name, dealt)
    )


def decide_add_partitions(
    image: ClusterImage, name: str, total: int, assignments: Sequence[Sequence[int]] | None = None
) -> PartitionsAdded:
    """Grow a topic to `total` partitions with as many replicas as the others have.

    assignments:  the replicas of each new partition; None deals them over the active brokers.
    Raises        UnknownTopicOrPartitionError, InvalidPartitionsError unless `total` is more than there are,
                  InvalidRequestError for an internal topic, InvalidReplicaAssignmentError,
                  InvalidReplicationFactorError.
    Source        Kafka `ReplicationControlManager.createPartitions`.
    """
    topic = image.topic(name)
    if topic.internal:  # Kafka allows it, and from then on looks for every group in another partition
        raise InvalidRequestError(
            f"topic {name!r} is internal: what it holds is found by its number of partitions", topic=name
        )
    have = len(topic.partitions)
    if isinstance(total, bool) or not isinstance(total, int) or total <= have:
        raise InvalidPartitionsError(
            f"topic {name!r} has {plural(have, 'partition')}; the new total must be larger, not "
            f"{total!r} (partitions are never removed)",
            topic=name,
            partitions=total,
            current=have,
        )
    _validate_partition_count(name, total)
    _validate_log_ids(image, total - have)
    factor = len(topic.partitions[0].targets)
    if assignments is None:
        dealt = _deal(image, name, total - have, factor)
    else:
        if len(assignments) != total - have:
            raise InvalidReplicaAssignmentError(
                f"topic {name!r} grows by {total - have} partitions, but there are {len(assignments)} assignments",
                topic=name,
            )
        dealt = [list(replicas) for replicas in assignments]
        for number, replicas in enumerate(dealt, have):
            validate_assignment(image, name, number, replicas, factor)
    return PartitionsAdded(
        topic.topic_id, name, image.next_log_id, dealt, _inactive_in(image, name, dealt, first_number=have)
    )


def decide_delete_topic(image: ClusterImage, name: str) -> TopicDeleted:
    """Raises UnknownTopicOrPartitionError, InvalidRequestError for an internal topic."""
    topic = image.topic(name)
    if topic.internal:
        raise InvalidRequestError(f"topic {name!r} is internal and cannot be deleted", topic=name)
    return TopicDeleted(topic.topic_id, name)


def decide_change_config(
    image: ClusterImage, name: str, changes: Mapping[str, str | None], *, replace: bool = False
) -> TopicConfigChanged:
    """Set (value) or reset (None) overrides of a topic; `replace` drops those not named."""
    topic = image.topic(name)
    return TopicConfigChanged(topic.topic_id, name, _changed({} if replace else topic.config, changes))


def decide_producer_ids(image: ClusterImage) -> tuple[list[MetadataRecord], range]:
    """Give producer ids away, many at once. Source: KIP-730, Kafka ProducerIdControlManager."""
    ids = range(image.next_producer_id, image.next_producer_id + PRODUCER_IDS_AT_ONCE)
    return [ProducerIdsAllocated(ids.stop)], ids


def decide_change_broker_config(
    image: ClusterImage, broker_id: str, changes: Mapping[str, str | None]
) -> ConfigChanged:
    """Set or reset dynamic options of one broker (its id as text) or, with "", of all.

    Raises BrokerIdNotRegisteredError. Source: Kafka IncrementalAlterConfigs of the resource type BROKER.
    """
    if broker_id != CLUSTER_DEFAULT and broker_id not in map(str, image.brokers):
        raise BrokerIdNotRegisteredError(
            f"no broker {broker_id!r}; there are {', '.join(map(str, sorted(image.brokers)))}, and '' for all",
            broker_id=broker_id,
        )
    return ConfigChanged(broker_id, _changed(image.broker_configs.get(broker_id, {}), changes))


def _changed(config: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    result = dict(config)
    for option, value in changes.items():
        if value is None:
            result.pop(option, None)
        else:
            result[option] = value
    return result


# -- replicas --------------------------------------------------------------------------------------------------------


def assign_replicas(partitions: int, factor: int, brokers: Iterable[int], start: int) -> list[list[int]]:
    """Deal `factor` replicas per partition over `brokers`, round robin from `start` on; the first is the preferred
    leader.
    """
    ordered = sorted(brokers)
    count = len(ordered)
    assignments = []
    for turn in range(start, start + partitions):
        leader, shift = turn % count, turn // count
        # Kafka: the followers' distance grows with each round, so that not always the same broker
        # takes over from another that fails.
        distances = [1 + (shift + step) % (count - 1) for step in range(factor - 1)]
        assignments.append([ordered[(leader + distance) % count] for distance in (0, *distances)])
    return assignments


def validate_assignment(
    image: ClusterImage, name: str, number: int, replicas: Sequence[int], factor: int | None = None
) -> None:
    """Raises InvalidReplicaAssignmentError for an empty list, a broker that is not registered or named twice, or
    another number of replicas than `factor`.
    """
    reason = ""
    unknown = [b for b in replicas if type(b) is not int or b not in image.brokers]  # True is no id
    if not replicas:
        reason = "no replicas: name at least one broker"
    elif unknown:
        reason = f"unknown brokers {unknown}; allowed: {sorted(image.brokers)}"
    elif len(set(replicas)) != len(replicas):
        reason = "names a broker twice"
    elif factor is not None and len(replicas) != factor:
        reason = f"has {len(replicas)} replicas, but the other partitions have {factor}"
    if reason:
        raise InvalidReplicaAssignmentError(
            f"the assignment {list(replicas)} of {name}-{number} {reason}",
            topic=name,
            partition=number,
            replicas=list(replicas),
        )


def _deal(image: ClusterImage, name: str, partitions: int, factor: int) -> list[list[int]]:
    active = image.active_brokers()
    factor_is_int = isinstance(factor, int) and not isinstance(factor, bool)
    if factor_is_int and factor >= 1:
        _validate_partition_count(name, partitions)
    if not (factor_is_int and 1 <= factor <= len(active)):
        raise InvalidReplicationFactorError(
            f"replication_factor={factor!r} of topic {name!r} is not possible; "
            f"allowed: 1 to {len(active)}, the number of live brokers",
            topic=name,
            replication_factor=factor,
            live_brokers=len(active),
        )
    return assign_replicas(partitions, factor, active, image.next_log_id - FIRST_LOG_ID)


def _dense_assignments(
    image: ClusterImage, name: str, assignments: Mapping[int, Sequence[int]]
) -> list[list[int]]:
    if sorted(assignments) != list(range(len(assignments))) or not assignments:
        raise InvalidReplicaAssignmentError(
            f"the assignments of topic {name!r} are for the partitions {sorted(assignments)}; "
            "they must be numbered 0, 1, 2, ...",
            topic=name,
        )
    dealt = [list(assignments[number]) for number in range(len(assignments))]
    for number, replicas in enumerate(dealt):
        validate_assignment(image, name, number, replicas, len(dealt[0]) or None)
    return dealt


def _inactive_in(
    image: ClusterImage, name: str, assignments: Sequence[Sequence[int]], first_number: int = 0
) -> list[int]:
    """The brokers whose replicas begin outside of the ISR. Raises InvalidReplicaAssignmentError where all do."""
    inactive = image.inactive_brokers()
    if not inactive:
        return []
    for number, replicas in enumerate(assignments, first_number):
        if all(broker_id in inactive for broker_id in replicas):
            raise InvalidReplicaAssignmentError(
                f"the assignment {list(replicas)} of {name}-{number} has only brokers that are fenced or shutting "
                "down: nobody could lead",
                topic=name,
                partition=number,
                replicas=list(replicas),
            )
    return [broker_id for broker_id in inactive if any(broker_id in replicas for replicas in assignments)]


# -- rules about topics ----------------------------------------------------------------------------------------------


def _refuse_collision(image: ClusterImage, name: str) -> None:
    # Kafka: metric names replace '.' by '_', so names that differ only there would collide.
    if "." not in name and "_" not in name:
        return
    folded = name.replace(".", "_")
    for other in image.topics:
        if ("." in other or "_" in other) and other != name and other.replace(".", "_") == folded:
            raise InvalidTopicError(
                f"topic name {name!r} collides with {other!r}: names that differ only in '.' and '_' are refused",
                topic=name,
                other=other,
            )


def _validate_partition_count(name: str, partitions: object) -> None:
    if (
        isinstance(partitions, bool)
        or not isinstance(partitions, int)
        or not 1 <= partitions <= PARTITIONS_PER_TOPIC_MAX
    ):
        raise InvalidPartitionsError(
            f"partitions={partitions!r} of topic {name!r} is not possible; allowed: 1 to {PARTITIONS_PER_TOPIC_MAX}",
            topic=name,
            partitions=partitions,
        )


def _validate_log_ids(image: ClusterImage, partitions: int) -> None:
    if image.next_log_id + partitions > LOG_ID_MAX:
        raise InvalidPartitionsError(
            f"all {LOG_ID_MAX} log ids of this directory have been used; copy the topics into a new directory",
            partitions=partitions,
        )
