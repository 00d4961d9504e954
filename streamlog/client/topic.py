"""Topics and partitions as users hold them: names for things in the cluster, nothing cached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from streamlog.broker.partition import Partition as HostedPartition
from streamlog.broker.reading import corrupt_at, view_of
from streamlog.client.offsets import checked_count
from streamlog.client.options import topic_overrides
from streamlog.core.cluster_image import PartitionImage, TopicImage
from streamlog.errors import (
    ClosedError,
    ConfigError,
    CorruptRecordError,
    InvalidRecordError,
    LeaderNotAvailableError,
    NetworkError,
    NotLeaderOrFollowerError,
    StoreForkedError,
    UnknownTopicOrPartitionError,
)
from streamlog.record import Record, TopicPartition
from streamlog.wording import plural

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster

READ_BYTES_MAX = 8 * 1024 * 1024


class Partition:
    """One partition. Get it by `topic[number]`; reading needs no consumer."""

    __slots__ = ("topic", "number", "_backend")

    def __init__(self, backend: BrokerCluster, topic: str, number: int) -> None:
        self.topic = topic
        self.number = number
        self._backend = backend

    def __repr__(self) -> str:
        try:
            image = self._image()
            try:
                state = f"[{self.log_start_offset}, {self.high_watermark})"
            except (LeaderNotAvailableError, NotLeaderOrFollowerError, NetworkError):
                state = "not served at the moment"
            if len(image.replicas) > 1 or image.leader < 0:
                state += f" leader={self.leader} isr={list(image.isr)} of {list(image.replicas)}"
        except UnknownTopicOrPartitionError:
            state = "deleted"
        except (ClosedError, StoreForkedError):
            state = "of a closed cluster"
        return f"<Partition {self.topic}-{self.number} {state}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Partition) and (other._backend, other.topic, other.number) == (
            self._backend,
            self.topic,
            self.number,
        )

    def __hash__(self) -> int:
        return self.topic_partition.__hash__()

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.number)

    @property
    def leader(self) -> int | None:
        """The id of the broker that leads this partition; None if nobody does."""
        leader = self._image().leader
        return None if leader < 0 else leader

    @property
    def replicas(self) -> tuple[int, ...]:
        """The broker ids that hold it; the first is the preferred leader."""
        return self._image().replicas

    @property
    def isr(self) -> tuple[int, ...]:
        """The in-sync replicas."""
        return self._image().isr

    @property
    def leader_epoch(self) -> int:
        return self._image().leader_epoch

    @property
    def log_start_offset(self) -> int:
        return view_of(self._hosted()).log_start_offset

    @property
    def high_watermark(self) -> int:
        """Below this everything is replicated and readable."""
        return view_of(self._hosted()).high_watermark

    @property
    def log_end_offset(self) -> int:
        """The offset the next record will get."""
        return view_of(self._hosted()).log_end_offset

    @property
    def size_bytes(self) -> int:
        """Bytes of the stored batches."""
        return view_of(self._hosted()).size_bytes

    def read(self, offset: int = 0, max_records: int = 100) -> list[Record]:
        """The records from `offset` on, at most `max_records`; fewer at the end. Control records are left out.

        An offset that compaction or retention took away gives the next record there is.
        Raises   OffsetOutOfRangeError below the log start offset (unless `offset` is 0) or above the end;
                 CorruptRecordError with `next_offset`, if the very first batch is damaged (a later one ends the list).
        """
        checked_count("max_records", max_records)
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            raise ConfigError(
                f"offset={offset!r}: allowed: an int >= 0",
                option="offset",
                value=offset,
                allowed="an int >= 0",
            )
        hosted = self._hosted()
        reader = self._backend.leader_of(hosted).reader
        if offset == 0:
            offset = view_of(hosted).log_start_offset
        records: list[Record] = []
        while len(records) < max_records:
            bytes_max = min(READ_BYTES_MAX, 256 * (max_records - len(records)) + 1)
            try:
                view, batches = reader.read(hosted, offset, bytes_max)
            except CorruptRecordError:
                if records:
                    break
                raise
            if not batches:
                break
            for batch in batches:
                if not batch.is_control:
                    try:
                        records += batch.records(self.topic, self.number, offset)
                    except (CorruptRecordError, InvalidRecordError) as error:
                        if records:
                            return records[:max_records]
                        raise corrupt_at(self.topic, self.number, offset, error, batch.last_offset) from error
                offset = batch.next_offset
            if offset >= view.high_watermark:
                break
        return records[:max_records]

    def delete_records(self, before_offset: int) -> int:
        """Give up everything below an offset (-1: everything readable now). Returns the new log start offset: where each
        replica on a live broker begins by then.

        Raises   OffsetOutOfRangeError above the high watermark; PolicyViolationError on a compacted topic;
                 StreamlogTimeoutError if a follower has not deleted within 30 s (it will when it fetches again).
        """
        if isinstance(before_offset, bool) or not isinstance(before_offset, int):
            raise ConfigError(
                f"before_offset={before_offset!r}: allowed: an offset, or -1 for everything readable now",
                option="before_offset",
                value=before_offset,
                allowed="an int >= -1",
            )
        return self._backend.delete_records(self.topic, self.number, before_offset)

    def _image(self) -> PartitionImage:
        self._backend.check_usable()
        image = self._backend.topic(self.topic)
        if not 0 <= self.number < len(image.partitions):
            raise UnknownTopicOrPartitionError(
                f"topic {self.topic!r} has no partition {self.number}; allowed: 0 to {len(image.partitions) - 1}",
                topic=self.topic,
                partition=self.number,
            )
        return image.partitions[self.number]

    def _hosted(self) -> HostedPartition:
        return self._backend.partition(self.topic, self.number)


class Topic:
    """One topic. `topic[0]` is its first partition, `len(topic)` how many it has."""

    __slots__ = ("name", "_backend")

    def __init__(self, backend: BrokerCluster, name: str) -> None:
        self.name = name
        self._backend = backend

    def __repr__(self) -> str:
        try:
            partitions = self._image().partitions
        except UnknownTopicOrPartitionError:
            return f"<Topic {self.name!r} deleted>"
        except (ClosedError, StoreForkedError):
            return f"<Topic {self.name!r} of a closed cluster>"
        count = len(partitions)
        told = plural(count, "partition")
        if any(len(partition.replicas) > 1 or partition.leader < 0 for partition in partitions):
            leaders = sorted({partition.leader for partition in partitions if partition.leader >= 0})
            told += f" led by {', '.join(map(str, leaders)) or 'nobody'}"
            behind = sum(len(partition.isr) < len(partition.replicas) for partition in partitions)
            leaderless = sum(partition.leader < 0 for partition in partitions)
            told += f", {behind} not in sync" if behind else ", all in sync"
            told += f", {leaderless} without a leader" if leaderless else ""
        return f"<Topic {self.name!r} {told}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Topic) and (other._backend, other.name) == (self._backend, self.name)

    def __hash__(self) -> int:
        return self.name.__hash__()

    def __len__(self) -> int:
        return len(self._image().partitions)

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, number: int) -> Partition:
        count = len(self._image().partitions)
        if isinstance(number, bool) or not isinstance(number, int):
            raise ConfigError(
                f"topic[{number!r}]: a partition number is an int",
                option="partition",
                value=number,
                allowed="an int",
            )
        if not -count <= number < count:
            raise UnknownTopicOrPartitionError(
                f"topic {self.name!r} has no partition {number}; allowed: 0 to {count - 1}",
                topic=self.name,
                partition=number,
            )
        return Partition(self._backend, self.name, number % count)

    def __iter__(self) -> Iterator[Partition]:
        return iter(self.partitions)

    @property
    def topic_id(self) -> str:
        """The topic's identity: a topic deleted and made anew has another."""
        return self._image().topic_id

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return tuple(
            Partition(self._backend, self.name, number) for number in range(len(self._image().partitions))
        )

    @property
    def replication_factor(self) -> int:
        return len(self._image().partitions[0].replicas)

    @property
    def config(self) -> dict[str, str]:
        """All options in force, by Kafka's dotted names."""
        self._backend.check_usable()
        return self._backend.topic_config(self.name).dotted()

    @property
    def config_overrides(self) -> dict[str, str]:
        """Only what was set for this topic."""
        return dict(self._image().config)

    def add_partitions(self, total: int) -> None:
        """Grow to `total` partitions. Keys map to other partitions from then on; nothing is moved.

        Raises   InvalidPartitionsError unless that is more than there are.
        """
        self._backend.create_partitions(self.name, total)

    def alter_config(self, config: Mapping[str, Any]) -> None:
        """Set options (None resets one to its default). Raises ConfigError; nothing was changed."""
        self._backend.alter_topic(self.name, topic_overrides(config, resets=True))

    def delete(self) -> None:
        """Delete the topic and its records."""
        self._backend.delete_topic(self.name)

    def _image(self) -> TopicImage:
        self._backend.check_usable()
        return self._backend.topic(self.name)
