"""The cluster image: the fold of the metadata log's records (sans-I/O).

    metadata log   [BrokerRegistered, TopicCreated, PartitionsChanged, ...]  --apply, one by one-->  ClusterImage

The image is what every broker and client knows of the cluster: which brokers live, which topics and partitions exist,
where their replicas are, who leads them and who is in sync. No decision edits it: decisions (`controller`,
`broker_states`, `elections`, `isr_changes`, `reassignment`) return records, the metadata log appends them by
compare-and-swap, and `ClusterImage.apply` is the only mutator. This is the role ZooKeeper had in old Kafka and the
KRaft quorum has today. Records carry absolute values, so that applying one again changes nothing.

Invariants (checked by `ClusterImage._check`, which runs after each decision):
 1. A log id belongs to at most one partition, is at least `FIRST_LOG_ID` and is below `next_log_id`: ids are
    never reused.
 2. Partition numbers of a topic are dense from 0.
 3. Replicas and ISR name a broker once; the ISR is never empty and lies within the replicas; so do `adding` and
    `removing`.
 4. The leader is in the ISR and active, or it is -1. It is -1 only while no member of the ISR is active.
 5. A broker that is fenced or shutting down is in an ISR only as its last member.
What holds between an image and the next (`partition_changes` sees to it): the partition epoch rises with each change
of a partition, and its leader epoch rises whenever its leader changes, to -1 too.

Sources: Kafka `TopicsImage`, `PartitionRegistration`, `BrokerRegistration`; KIP-516 (topic ids), KIP-455 (adding,
removing), KIP-704 (recovering leaders), KIP-841 (fenced and shutting down).
Not implemented: eligible leader replicas (KIP-966), racks, directories, ACLs, quotas.
"""

# No `from __future__ import annotations`: msgspec would have to evaluate every annotation, 0.5 ms at each start.

from collections.abc import Iterator, Sequence
from typing import Final, Union

import msgspec

from streamlog.errors import UnknownTopicOrPartitionError

FIRST_LOG_ID: Final = 16
"""Log ids below are reserved for environment-wide values."""

NO_LEADER: Final = -1
CLUSTER_DEFAULT: Final = ""
"""The key of `ClusterImage.broker_configs` that holds for every broker (Kafka's empty resource name)."""

CONSUMER_OFFSETS_TOPIC: Final = "__consumer_offsets"
TRANSACTION_STATE_TOPIC: Final = "__transaction_state"
INTERNAL_TOPICS: Final = frozenset(
    {CONSUMER_OFFSETS_TOPIC, TRANSACTION_STATE_TOPIC, "__share_group_state", "__cluster_metadata"}
)


# -- what the image consists of --------------------------------------------------------------------------------------
# The structs below are stored inside of records: fields are only added at the end, with a default.


class BrokerImage(msgspec.Struct, frozen=True, array_like=True):
    """One broker as the controller knows it."""

    incarnation: str
    broker_epoch: int = 0
    """Counts its lives; messages of a former life are refused (STALE_BROKER_EPOCH)."""
    fenced: bool = False
    """Without a session: it leads nothing and is in no ISR, except as the last member."""
    shutting_down: bool = False
    """In controlled shutdown: still there, but as good as fenced. Ends with the next registration."""

    @property
    def is_active(self) -> bool:
        return not (self.fenced or self.shutting_down)


class PartitionImage(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One partition as the cluster knows it. `leader` is -1 where there is none."""

    log_id: int
    replicas: tuple[int, ...]
    """In assignment order; the first is the preferred leader. During a reassignment: the targets, then those that
    are to leave."""
    isr: tuple[int, ...]
    leader: int
    leader_epoch: int
    partition_epoch: int
    adding: tuple[int, ...] = ()
    removing: tuple[int, ...] = ()
    is_recovering: bool = False
    """The leader was elected uncleanly and has not said yet that it is done with that."""

    @property
    def is_reassigning(self) -> bool:
        return bool(self.adding or self.removing)

    @property
    def targets(self) -> tuple[int, ...]:
        """The replicas once the reassignment under way, if any, is through."""
        return tuple(broker for broker in self.replicas if broker not in self.removing)


class TopicImage(msgspec.Struct, frozen=True, gc=False):
    """One topic: immutable, replaced as a whole by each change."""

    name: str
    topic_id: str
    config: dict[str, str]
    partitions: tuple[PartitionImage, ...]

    @property
    def internal(self) -> bool:
        return self.name in INTERNAL_TOPICS


# -- metadata records ------------------------------------------------------------------------------------------------


class BrokerRegistered(msgspec.Struct, frozen=True, tag="broker", array_like=True):
    """A broker joined the cluster, or came back: a new life, no longer shutting down."""

    broker_id: int
    incarnation: str
    broker_epoch: int = 0
    fenced: bool = False


class BrokerFenced(msgspec.Struct, frozen=True, tag="fenced", array_like=True):
    """The broker's session is over."""

    broker_id: int
    broker_epoch: int


class BrokerUnfenced(msgspec.Struct, frozen=True, tag="unfenced", array_like=True):
    """The broker is back and may lead."""

    broker_id: int
    broker_epoch: int


class BrokerShuttingDown(msgspec.Struct, frozen=True, tag="shutting-down", array_like=True):
    """The broker asked to leave in an orderly way."""

    broker_id: int
    broker_epoch: int


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
    inactive: list[int] = []
    """Brokers that were fenced or shutting down: their replicas begin outside of the ISR."""


class PartitionsAdded(msgspec.Struct, frozen=True, tag="partitions", array_like=True):
    """A topic grew; the new partitions follow the old ones."""

    topic_id: str
    name: str
    first_log_id: int
    assignments: list[list[int]]
    inactive: list[int] = []


class PartitionChange(msgspec.Struct, frozen=True, array_like=True):
    """What one partition looks like after a change."""

    name: str
    topic_id: str
    number: int
    partition: PartitionImage


class PartitionsChanged(msgspec.Struct, frozen=True, tag="changed", array_like=True):
    """Leaders, in-sync sets or assignments changed, all by one decision."""

    changes: list[PartitionChange]


class TopicDeleted(msgspec.Struct, frozen=True, tag="deleted", array_like=True):
    """A topic is gone; its log ids are never used again."""

    topic_id: str
    name: str


class TopicConfigChanged(msgspec.Struct, frozen=True, tag="config", array_like=True):
    """All overrides of a topic, replacing the former ones."""

    topic_id: str
    name: str
    config: dict[str, str]


class ConfigChanged(msgspec.Struct, frozen=True, tag="broker-config", array_like=True):
    """All dynamic options of a broker, or (id "") of the cluster, replacing the former ones."""

    broker_id: str
    config: dict[str, str]


class ProducerIdsAllocated(msgspec.Struct, frozen=True, tag="producer-ids", array_like=True):
    """Producer ids below this one are given away (KIP-730)."""

    next_producer_id: int


class ImageCheckpoint(msgspec.Struct, frozen=True, tag="image", array_like=True):
    """The whole image at one offset: what a new replay may start from."""

    controller_id: int
    controller_epoch: int
    next_log_id: int
    brokers: dict[int, str | BrokerImage]
    """The incarnation alone is how it was stored before brokers could be fenced."""
    topics: list[tuple[str, str, dict[str, str], list[PartitionImage]]]
    broker_configs: dict[str, dict[str, str]] = {}
    next_producer_id: int = 0


MetadataRecord = Union[  # noqa: UP007
    BrokerRegistered,
    BrokerFenced,
    BrokerUnfenced,
    BrokerShuttingDown,
    ControllerElected,
    TopicCreated,
    PartitionsAdded,
    PartitionsChanged,
    TopicDeleted,
    TopicConfigChanged,
    ConfigChanged,
    ProducerIdsAllocated,
    ImageCheckpoint,
]


# -- the image -------------------------------------------------------------------------------------------------------


class ClusterImage:
    """The fold of the metadata log. Only `apply` changes it; the values inside are immutable."""

    def __init__(self) -> None:
        self.brokers: dict[int, BrokerImage] = {}
        self.topics: dict[str, TopicImage] = {}
        self.topic_names: dict[str, str] = {}  # by topic id
        self.broker_configs: dict[str, dict[str, str]] = {}
        self.controller_id = -1
        self.controller_epoch = 0
        self.next_log_id = FIRST_LOG_ID
        self.next_producer_id = 0

    def __repr__(self) -> str:
        return f"ClusterImage(brokers={sorted(self.brokers)}, topics={len(self.topics)}, controller={self.controller_id})"

    # -- queries -----------------------------------------------------------------------------------------------------

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

    def partition(self, name: str, number: int) -> PartitionImage:
        """Raises UnknownTopicOrPartitionError."""
        partitions = self.topic(name).partitions
        if not 0 <= number < len(partitions):
            raise UnknownTopicOrPartitionError(
                f"topic {name!r} has no partition {number}; allowed: 0 to {len(partitions) - 1}",
                topic=name,
                partition=number,
            )
        return partitions[number]

    def partitions(self) -> Iterator[tuple[TopicImage, int, PartitionImage]]:
        """All partitions, topics in the order of their creation."""
        for topic in list(self.topics.values()):
            for number, partition in enumerate(topic.partitions):
                yield topic, number, partition

    def log_ids(self, broker_id: int | None = None) -> Iterator[int]:
        """Of all logs, or of those that a broker has a replica of."""
        for _, _, partition in self.partitions():
            if broker_id is None or broker_id in partition.replicas:
                yield partition.log_id

    def is_active(self, broker_id: int) -> bool:
        """Registered, not fenced, not shutting down: it may lead and be in an ISR."""
        broker = self.brokers.get(broker_id)
        return broker is not None and broker.is_active

    def active_brokers(self) -> list[int]:
        return sorted(broker_id for broker_id, broker in list(self.brokers.items()) if broker.is_active)

    def inactive_brokers(self) -> list[int]:
        return sorted(broker_id for broker_id, broker in list(self.brokers.items()) if not broker.is_active)

    # -- folding -----------------------------------------------------------------------------------------------------

    def apply(self, record: MetadataRecord) -> None:
        """Fold one record. Applying the same record twice leaves the image as applying it once."""
        match record:
            case PartitionsChanged():
                self._apply_partitions_changed(record)
            case TopicCreated():
                partitions = _new_partitions(record.first_log_id, record.assignments, record.inactive)
                self._put_topic(TopicImage(record.name, record.topic_id, record.config, partitions))
                self.next_log_id = max(self.next_log_id, record.first_log_id + len(record.assignments))
            case PartitionsAdded():
                self._apply_partitions_added(record)
            case TopicDeleted():
                if self._topic_of(record.name, record.topic_id) is not None:
                    del self.topics[record.name]
                    del self.topic_names[record.topic_id]
            case TopicConfigChanged():
                image = self._topic_of(record.name, record.topic_id)
                if image is not None:
                    self.topics[record.name] = msgspec.structs.replace(image, config=record.config)
            case ConfigChanged():
                if record.config:
                    self.broker_configs[record.broker_id] = record.config
                else:
                    self.broker_configs.pop(record.broker_id, None)
            case ControllerElected():
                self.controller_id, self.controller_epoch = record.broker_id, record.controller_epoch
            case ProducerIdsAllocated():
                self.next_producer_id = max(self.next_producer_id, record.next_producer_id)
            case ImageCheckpoint():
                self._apply_checkpoint(record)
            case _:
                self._apply_broker(record)

    def _topic_of(self, name: str, topic_id: str) -> TopicImage | None:
        """None where a record is of a former topic of that name."""
        image = self.topics.get(name)
        return image if image is not None and image.topic_id == topic_id else None

    def _put_topic(self, topic: TopicImage) -> None:
        self.topics[topic.name] = topic
        self.topic_names[topic.topic_id] = topic.name

    def _apply_broker(
        self, record: BrokerRegistered | BrokerFenced | BrokerUnfenced | BrokerShuttingDown
    ) -> None:
        if isinstance(record, BrokerRegistered):
            self.brokers[record.broker_id] = BrokerImage(
                record.incarnation, record.broker_epoch, record.fenced
            )
            return
        broker = self.brokers.get(record.broker_id)
        if broker is None or broker.broker_epoch != record.broker_epoch:
            return  # of a former life
        match record:
            case BrokerFenced():
                broker = msgspec.structs.replace(broker, fenced=True)
            case BrokerUnfenced():
                broker = msgspec.structs.replace(broker, fenced=False)
            case BrokerShuttingDown():
                broker = msgspec.structs.replace(broker, shutting_down=True)
        self.brokers[record.broker_id] = broker

    def _apply_partitions_added(self, record: PartitionsAdded) -> None:
        image = self._topic_of(record.name, record.topic_id)
        if image is None or any(p.log_id == record.first_log_id for p in image.partitions):
            return
        grown = image.partitions + _new_partitions(record.first_log_id, record.assignments, record.inactive)
        self.topics[record.name] = msgspec.structs.replace(image, partitions=grown)
        self.next_log_id = max(self.next_log_id, record.first_log_id + len(record.assignments))

    def _apply_partitions_changed(self, record: PartitionsChanged) -> None:
        # A decision may change every partition of a topic: each topic is rebuilt once.
        changed: dict[str, tuple[TopicImage, list[PartitionImage]]] = {}
        for change in record.changes:
            if change.name not in changed:
                image = self._topic_of(change.name, change.topic_id)
                if image is None:
                    continue
                changed[change.name] = image, list(image.partitions)
            partitions = changed[change.name][1]
            if change.number < len(partitions):
                partitions[change.number] = change.partition
        for name, (image, partitions) in changed.items():
            self.topics[name] = msgspec.structs.replace(image, partitions=tuple(partitions))

    # -- the checkpoint ----------------------------------------------------------------------------------------------

    def _apply_checkpoint(self, record: ImageCheckpoint) -> None:
        self.controller_id, self.controller_epoch = record.controller_id, record.controller_epoch
        self.next_log_id = record.next_log_id
        self.brokers = {
            broker_id: BrokerImage(broker) if isinstance(broker, str) else broker
            for broker_id, broker in record.brokers.items()
        }
        self.broker_configs = dict(record.broker_configs)
        self.next_producer_id = record.next_producer_id
        self.topics, self.topic_names = {}, {}
        for name, topic_id, config, partitions in record.topics:
            self._put_topic(TopicImage(name, topic_id, config, tuple(partitions)))

    def checkpoint(self) -> ImageCheckpoint:
        """The image as one record, such that applying it to an empty image gives this one."""
        return ImageCheckpoint(
            self.controller_id,
            self.controller_epoch,
            self.next_log_id,
            dict(self.brokers),
            [
                (topic.name, topic.topic_id, topic.config, list(topic.partitions))
                for topic in self.topics.values()
            ],
            dict(self.broker_configs),
            self.next_producer_id,
        )

    # -- checking ----------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        seen: set[int] = set()
        assert {topic.topic_id: name for name, topic in self.topics.items()} == self.topic_names
        for topic, number, partition in self.partitions():
            where = (topic.name, number, partition)
            assert FIRST_LOG_ID <= partition.log_id < self.next_log_id, (where, self.next_log_id)
            assert partition.log_id not in seen, where
            seen.add(partition.log_id)
            replicas = set(partition.replicas)
            assert partition.isr, where
            assert len(replicas) == len(partition.replicas), where
            assert len(set(partition.isr)) == len(partition.isr), where
            assert replicas.issuperset(partition.isr), where
            assert replicas.issuperset(partition.adding), where
            assert replicas.issuperset(partition.removing), where
            active = [broker_id for broker_id in partition.isr if self.is_active(broker_id)]
            if partition.leader == NO_LEADER:
                assert not active, (where, active)
            else:
                assert partition.leader in active, (where, active)
            assert len(partition.isr) in (1, len(active)), (where, active)


def _new_partitions(
    first_log_id: int, assignments: Sequence[Sequence[int]], inactive: Sequence[int]
) -> tuple[PartitionImage, ...]:
    partitions = []
    for number, replicas in enumerate(assignments):
        isr = (
            tuple(broker_id for broker_id in replicas if broker_id not in inactive)
            if inactive
            else tuple(replicas)
        )
        partitions.append(PartitionImage(first_log_id + number, tuple(replicas), isr, isr[0], 0, 0))
    return tuple(partitions)
