"""The cluster image as a fold of metadata records, and the controller's decisions over it (sans-I/O).

    create_topic(...) --decides--> [TopicCreated, ...] --appended to the metadata log--> image.apply(record)

The image is what every broker and client knows of the cluster: which topics and partitions exist, where their
replicas are, who leads them. It is never edited in place by a decision: decisions return records, the metadata log
appends them by compare-and-swap, and `ClusterImage.apply` is the only mutator. This is the role ZooKeeper had in old
Kafka and the KRaft quorum has today.

Invariants (checked by `ClusterImage._check`):
 1. A log id belongs to at most one partition, is at least `FIRST_LOG_ID` and is below `next_log_id`: ids are
    never reused.
 2. Partition numbers of a topic are dense from 0.
 3. A leader is a replica and in the ISR; every ISR member is a replica.

Sources: Kafka `ReplicationControlManager`, `Topic.java` (names), KIP-516 (topic ids).
Not implemented here yet: leader election, ISR changes, reassignment (they arrive with replication), ACLs, quotas.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Union

import msgspec

from streamlog.errors import (
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidRequestError,
    InvalidTopicError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)

FIRST_LOG_ID: Final = 16
"""Log ids below are reserved for environment-wide values."""

LOG_ID_MAX: Final = 2**32 - 2
TOPIC_NAME_CHARACTERS_MAX: Final = 249
PARTITIONS_PER_TOPIC_MAX: Final = 200_000

CONSUMER_OFFSETS_TOPIC: Final = "__consumer_offsets"
TRANSACTION_STATE_TOPIC: Final = "__transaction_state"
INTERNAL_TOPICS: Final = frozenset(
    {CONSUMER_OFFSETS_TOPIC, TRANSACTION_STATE_TOPIC, "__share_group_state", "__cluster_metadata"}
)

_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]+")


# -- metadata records ------------------------------------------------------------------------------------------------


class BrokerRegistered(msgspec.Struct, frozen=True, tag="broker", array_like=True):
    """A broker joined the cluster (or came back) under a new incarnation."""

    broker_id: int
    incarnation: str


class ControllerElected(msgspec.Struct, frozen=True, tag="controller", array_like=True):
    """A broker became the active controller; later appends carry its epoch."""

    broker_id: int
    controller_epoch: int


class TopicCreated(msgspec.Struct, frozen=True, tag="topic", array_like=True):
    """A topic with its partitions; partition `n` has log id `first_log_id + n`."""

    name: str
    topic_id: str
    first_log_id: int
    assignments: list[list[int]]
    config: dict[str, str]


class PartitionsAdded(msgspec.Struct, frozen=True, tag="partitions", array_like=True):
    """A topic grew; the new partitions follow the old ones."""

    topic_id: str
    name: str
    first_log_id: int
    assignments: list[list[int]]


class TopicDeleted(msgspec.Struct, frozen=True, tag="deleted", array_like=True):
    """A topic is gone; its log ids are never used again."""

    topic_id: str
    name: str


class TopicConfigChanged(msgspec.Struct, frozen=True, tag="config", array_like=True):
    """All overrides of a topic, replacing the former ones."""

    topic_id: str
    name: str
    config: dict[str, str]


class ImageCheckpoint(msgspec.Struct, frozen=True, tag="image", array_like=True):
    """The whole image at one offset: what a new replay may start from."""

    controller_id: int
    controller_epoch: int
    next_log_id: int
    brokers: dict[int, str]
    topics: list[tuple[str, str, dict[str, str], list[tuple[int, list[int], list[int], int, int, int]]]]


MetadataRecord = Union[  # noqa: UP007
    BrokerRegistered,
    ControllerElected,
    TopicCreated,
    PartitionsAdded,
    TopicDeleted,
    TopicConfigChanged,
    ImageCheckpoint,
]


# -- the image -------------------------------------------------------------------------------------------------------


class PartitionImage(msgspec.Struct, frozen=True, gc=False):
    """One partition as the cluster knows it. `leader` is -1 where there is none."""

    log_id: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    leader: int
    leader_epoch: int
    partition_epoch: int


class TopicImage(msgspec.Struct, frozen=True, gc=False):
    """One topic: immutable, replaced as a whole by each change."""

    name: str
    topic_id: str
    config: dict[str, str]
    partitions: tuple[PartitionImage, ...]

    @property
    def internal(self) -> bool:
        return self.name in INTERNAL_TOPICS


class ClusterImage:
    """The fold of the metadata log. Only `apply` changes it; the values inside are immutable."""

    def __init__(self) -> None:
        self.brokers: dict[int, str] = {}
        self.topics: dict[str, TopicImage] = {}
        self.controller_id = -1
        self.controller_epoch = 0
        self.next_log_id = FIRST_LOG_ID

    def __repr__(self) -> str:
        return f"ClusterImage(brokers={sorted(self.brokers)}, topics={len(self.topics)}, controller={self.controller_id})"

    def topic(self, name: str) -> TopicImage:
        """Raises UnknownTopicOrPartitionError."""
        image = self.topics.get(name)
        if image is None:
            raise UnknownTopicOrPartitionError(
                f"unknown topic {name!r}; create it with cluster.create_topic({name!r}) "
                "or open the cluster with auto_create_topics=True",
                topic=name,
            )
        return image

    def log_ids(self) -> Iterator[int]:
        for topic in list(self.topics.values()):
            for partition in topic.partitions:
                yield partition.log_id

    def apply(self, record: MetadataRecord) -> None:
        """Fold one record. Applying the same record twice leaves the image as applying it once."""
        match record:
            case TopicCreated():
                self.topics[record.name] = TopicImage(
                    record.name,
                    record.topic_id,
                    record.config,
                    _new_partitions(record.first_log_id, record.assignments),
                )
                self.next_log_id = max(self.next_log_id, record.first_log_id + len(record.assignments))
            case PartitionsAdded():
                self._apply_partitions_added(record)
            case TopicDeleted():
                image = self.topics.get(record.name)
                if image is not None and image.topic_id == record.topic_id:
                    del self.topics[record.name]
            case TopicConfigChanged():
                image = self.topics.get(record.name)
                if image is not None and image.topic_id == record.topic_id:
                    self.topics[record.name] = msgspec.structs.replace(image, config=record.config)
            case BrokerRegistered():
                self.brokers[record.broker_id] = record.incarnation
            case ControllerElected():
                self.controller_id, self.controller_epoch = record.broker_id, record.controller_epoch
            case ImageCheckpoint():
                self._apply_checkpoint(record)

    def _apply_partitions_added(self, record: PartitionsAdded) -> None:
        image = self.topics.get(record.name)
        if image is None or image.topic_id != record.topic_id:
            return
        if any(partition.log_id == record.first_log_id for partition in image.partitions):
            return
        grown = image.partitions + _new_partitions(record.first_log_id, record.assignments)
        self.topics[record.name] = msgspec.structs.replace(image, partitions=grown)
        self.next_log_id = max(self.next_log_id, record.first_log_id + len(record.assignments))

    def _apply_checkpoint(self, record: ImageCheckpoint) -> None:
        self.controller_id, self.controller_epoch = record.controller_id, record.controller_epoch
        self.next_log_id = record.next_log_id
        self.brokers = dict(record.brokers)
        self.topics = {
            name: TopicImage(
                name,
                topic_id,
                config,
                tuple(
                    PartitionImage(log_id, tuple(replicas), tuple(isr), leader, leader_epoch, partition_epoch)
                    for log_id, replicas, isr, leader, leader_epoch, partition_epoch in partitions
                ),
            )
            for name, topic_id, config, partitions in record.topics
        }

    def checkpoint(self) -> ImageCheckpoint:
        """The image as one record, such that applying it to an empty image gives this one."""
        topics = [
            (
                topic.name,
                topic.topic_id,
                topic.config,
                [
                    (p.log_id, list(p.replicas), list(p.isr), p.leader, p.leader_epoch, p.partition_epoch)
                    for p in topic.partitions
                ],
            )
            for topic in self.topics.values()
        ]
        return ImageCheckpoint(
            self.controller_id, self.controller_epoch, self.next_log_id, dict(self.brokers), topics
        )

    def _check(self) -> None:
        seen: set[int] = set()
        for topic in self.topics.values():
            for partition in topic.partitions:
                assert FIRST_LOG_ID <= partition.log_id < self.next_log_id, (
                    partition.log_id,
                    self.next_log_id,
                )
                assert partition.log_id not in seen, (topic.name, partition.log_id)
                seen.add(partition.log_id)
                assert set(partition.isr) <= set(partition.replicas), partition
                assert partition.leader == -1 or partition.leader in partition.isr, partition


def _new_partitions(first_log_id: int, assignments: Sequence[Sequence[int]]) -> tuple[PartitionImage, ...]:
    return tuple(
        PartitionImage(first_log_id + number, tuple(replicas), tuple(replicas), replicas[0], 0, 0)
        for number, replicas in enumerate(assignments)
    )


# -- decisions -------------------------------------------------------------------------------------------------------


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


def decide_create_topic(
    image: ClusterImage,
    name: str,
    topic_id: str,
    partitions: int,
    replication_factor: int,
    config: Mapping[str, str],
    live_brokers: Sequence[int],
) -> TopicCreated:
    """Decide a new topic. `config` is already validated by the caller.

    Raises   InvalidTopicError, TopicAlreadyExistsError, InvalidPartitionsError, InvalidReplicationFactorError.
    Source   Kafka `ReplicationControlManager.createTopic`; replicas are dealt round robin over the live brokers.
    """
    validate_topic_name(name)
    if name in image.topics:
        raise TopicAlreadyExistsError(
            f"topic {name!r} already exists; pass exist_ok=True to use it as it is", topic=name
        )
    _refuse_collision(image, name)
    _validate_partition_count(name, partitions)
    if replication_factor < 1 or replication_factor > len(live_brokers):
        raise InvalidReplicationFactorError(
            f"replication_factor={replication_factor} of topic {name!r} is not possible; "
            f"allowed: 1 to {len(live_brokers)}, the number of live brokers",
            topic=name,
            replication_factor=replication_factor,
            live_brokers=len(live_brokers),
        )
    assignments = assign_replicas(partitions, replication_factor, live_brokers, start=image.next_log_id)
    _validate_log_ids(image, partitions)
    return TopicCreated(name, topic_id, image.next_log_id, assignments, dict(config))


def decide_add_partitions(
    image: ClusterImage, name: str, total: int, live_brokers: Sequence[int]
) -> PartitionsAdded:
    """Grow a topic to `total` partitions. Raises InvalidPartitionsError unless that is more than it has,
    InvalidRequestError for an internal topic.
    """
    topic = image.topic(name)
    if topic.internal:  # Kafka allows it, and from then on looks for every group in another partition
        raise InvalidRequestError(
            f"topic {name!r} is internal: what it holds is found by its number of partitions", topic=name
        )
    have = len(topic.partitions)
    if isinstance(total, bool) or not isinstance(total, int) or total <= have:
        raise InvalidPartitionsError(
            f"topic {name!r} has {have} partitions; the new total must be larger, not "
            f"{total!r} (partitions are never removed)",
            topic=name,
            partitions=total,
            current=have,
        )
    _validate_partition_count(name, total)
    _validate_log_ids(image, total - have)
    factor = len(topic.partitions[0].replicas)
    assignments = assign_replicas(
        total - have, min(factor, len(live_brokers)), live_brokers, start=image.next_log_id
    )
    return PartitionsAdded(topic.topic_id, name, image.next_log_id, assignments)


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
    config = {} if replace else dict(topic.config)
    for option, value in changes.items():
        if value is None:
            config.pop(option, None)
        else:
            config[option] = value
    return TopicConfigChanged(topic.topic_id, name, config)


def assign_replicas(partitions: int, factor: int, brokers: Sequence[int], start: int) -> list[list[int]]:
    """Deal `factor` replicas per partition over `brokers`, round robin from `start`; the first is the
    preferred leader.
    """
    ordered = sorted(brokers)
    count = len(ordered)
    return [
        [ordered[(start + number + step) % count] for step in range(factor)] for number in range(partitions)
    ]


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
