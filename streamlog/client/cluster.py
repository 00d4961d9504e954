"""The cluster as users hold it: topics, producers, consumers, groups, metrics.

A path opened twice in one process is one cluster, counted: the last `close` closes it. `":memory:"` is private,
`":memory:name"` is shared by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from re import Pattern
from typing import TYPE_CHECKING, Any, Final, TypeVar

from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.dynamic_config import alter_config
from streamlog.broker.runner import new_lock
from streamlog.client.assignment import checked_topics
from streamlog.client.brokers import BrokerHandle, Brokers
from streamlog.client.consumer import Consumer
from streamlog.client.habits import KnowsHabits, unknown_argument
from streamlog.client.patience import patient
from streamlog.config import ConsumerConfig, ProducerConfig
from streamlog.core.cluster_image import INTERNAL_TOPICS
from streamlog.core.controller import validate_topic_name
from streamlog.errors import (
    InvalidGroupIdError,
    InvalidTopicError,
    TopicAlreadyExistsError,
)
from streamlog.metrics import Metrics
from streamlog.wording import plural

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self, Unpack

    from streamlog.broker.housekeeping import CleanerReport
    from streamlog.broker.network import Network
    from streamlog.client.consumer_group import ConsumerGroup
    from streamlog.client.habits import NoOthers
    from streamlog.client.producer import Producer
    from streamlog.client.reader_cluster import OpenedReader
    from streamlog.client.topic import Topic
    from streamlog.record import Record

MEMORY: Final = ":memory:"

Shared = tuple["BrokerCluster", dict[str, Any]]
ProducerT = TypeVar("ProducerT", bound="Producer")
_open_clusters: dict[object, _Opened] = {}
_open_readers: dict[object, OpenedReader] = {}
_open_lock = new_lock()


class _Opened:
    """A backend and the clusters users hold of it: the last of them to close closes it."""

    __slots__ = ("backend", "key", "options", "handles")

    def __init__(self, backend: BrokerCluster, key: object, options: dict[str, Any]) -> None:
        self.backend = backend
        self.key = key
        self.options = options
        self.handles: dict[Cluster, None] = {}


class Cluster(KnowsHabits):
    """A cluster in a directory. Made by `streamlog.open`; leaving `with` closes it."""

    def __init__(self, opened: _Opened) -> None:
        self._opened = opened
        self._backend = opened.backend
        self._producers: dict[Producer, None] = {}
        self._consumers: dict[Consumer, None] = {}
        self._closed = False
        opened.handles[self] = None

    def __repr__(self) -> str:
        if self._closed:
            return f"<Cluster {str(self.path)!r} closed>"
        topics = sum(not topic.internal for topic in list(self._backend.topics.values()))
        backend = self._backend
        return f"<Cluster {str(self.path)!r} brokers={len(backend.brokers)} topics={topics} sync={backend.sync!r}>"

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, kind: object, exception: BaseException | None, traceback: object) -> None:
        try:
            self._close(left_by=exception)
        except Exception as error:
            if exception is None:
                raise
            from streamlog.client.failures import attach

            attach(exception, error)

    @property
    def path(self) -> Path:
        """The directory (of a cluster in memory: where it lives while it is open)."""
        return self._backend.directory.path

    @property
    def brokers(self) -> list[BrokerHandle]:
        """The brokers, by id. One that is not there is a BrokerIdNotRegisteredError."""
        backend = self._backend
        return Brokers(
            BrokerHandle(broker_id, backend) for broker_id in sorted(backend.metadata.image.brokers)
        )

    @property
    def network(self) -> Network:
        """The network between the brokers, and its faults: `partition`, `delay`, `drop`, `heal`."""
        self._check_open()
        return self._backend.peers.network

    def add_broker(self) -> BrokerHandle:
        """One broker more, under the next free id. It takes part at once; topics move there with `reassign`."""
        from streamlog.broker import lifecycle

        self._check_open()
        return BrokerHandle(lifecycle.add(self._backend), self._backend)

    def reassign(self, topic: str, assignment: Mapping[int, Iterable[int] | None]) -> None:
        """Move partitions to other brokers: partition -> broker ids, the preferred leader first; None cancels.

        Returns once it has begun; the old replicas go when the new ones are in sync (see `topic[0].replicas`, `.isr`).
        Raises   UnknownTopicOrPartitionError, InvalidReplicaAssignmentError, NoReassignmentInProgressError: of the first
                 partition that was refused; the others have begun. ConfigError for what is no assignment.
        Source   KIP-455.
        """
        from streamlog.broker.controlling import Reassign
        from streamlog.client.options import checked_assignment

        self._check_open()
        self._backend.control(Reassign(topic, checked_assignment(assignment)))

    def elect_leaders(
        self, topic: str | None = None, partitions: Iterable[int] | None = None, election: str = "preferred"
    ) -> None:
        """Elect leaders by hand: "preferred" gives leadership back to the first replica, "unclean" takes any that runs.

        topic:   None = all topics.      partitions: None = all of the topic.
        Raises   ElectionNotNeededError, PreferredLeaderNotAvailableError, EligibleLeadersNotAvailableError: of the first
                 partition named that was refused.
        Source   KIP-460.
        """
        from streamlog.broker.controlling import ElectLeaders

        self._check_open()
        wanted = None
        if topic is not None:
            count = len(self._backend.topic(topic).partitions)
            wanted = [(topic, number) for number in (range(count) if partitions is None else partitions)]
        self._backend.control(ElectLeaders(wanted, election))

    @property
    def config(self) -> dict[str, str]:
        """All options in force for all brokers, by Kafka's dotted names."""
        self._check_open()
        return self._backend.config.dotted()

    def alter_config(self, config: Mapping[str, Any], broker: int | None = None) -> None:
        """Change options while the cluster is open (None resets one); they are kept for later openings.

        broker:  only for this one; None = for all brokers.
        Raises   ConfigError for an option that is unknown, out of range, or needs reopening;
                 BrokerIdNotRegisteredError. Nothing was changed.
        Source   KIP-226, IncrementalAlterConfigs.
        """
        self._check_open()
        alter_config(self._backend, config, broker)

    # -- topics ------------------------------------------------------------------------------------------------------

    @property
    def topics(self) -> list[str]:
        """The names of all topics but the internal ones, sorted."""
        self._check_open()
        return sorted(topic.name for topic in list(self._backend.topics.values()) if not topic.internal)

    def topic(self, name: str) -> Topic:
        """Raises UnknownTopicOrPartitionError."""
        from streamlog.client.topic import Topic

        self._check_open()
        self._backend.topic(name)
        return Topic(self._backend, name)

    def create_topic(
        self,
        name: str,
        partitions: int | None = None,
        replication_factor: int | None = None,
        config: Mapping[str, Any] | None = None,
        exist_ok: bool = False,
        **others: Unpack[NoOthers],
    ) -> Topic:
        """Create a topic.

        partitions, replication_factor: None = the cluster's `num_partitions`, `default_replication_factor`.
        config:    topic options by Kafka's names, such as {"retention.ms": 3_600_000}.
        exist_ok:  use a topic that is there already, if it has the same partitions, factor and (those given) options.
        Raises     InvalidTopicError, InvalidPartitionsError, InvalidReplicationFactorError, ConfigError,
                   TopicAlreadyExistsError.
        """
        from streamlog.client.options import checked_factor, not_default, topic_overrides
        from streamlog.client.topic import Topic

        if others:
            raise unknown_argument(self.create_topic, others)
        self._check_open()
        validate_topic_name(name)
        if name in INTERNAL_TOPICS:
            raise InvalidTopicError(f"topic {name!r} is internal: it is made at its first use", topic=name)
        overrides = topic_overrides(config)
        if exist_ok and name in self._backend.topics:
            return self._existing(name, partitions, replication_factor, overrides)
        try:
            self._backend.create_topic(
                name,
                -1 if partitions is None else not_default(partitions),
                -1 if replication_factor is None else not_default(checked_factor(name, replication_factor)),
                overrides,
            )
        except TopicAlreadyExistsError:
            if not exist_ok:
                raise
            return self._existing(name, partitions, replication_factor, overrides)
        return Topic(self._backend, name)

    def _existing(
        self, name: str, partitions: int | None, replication_factor: int | None, overrides: dict[str, str]
    ) -> Topic:
        from streamlog.client.options import different_options
        from streamlog.client.topic import Topic

        topic = Topic(self._backend, name)
        for option, wanted, there in (
            ("partitions", partitions, len(topic)),
            ("replication_factor", replication_factor, topic.replication_factor),
            *different_options(self._backend, name, overrides),
        ):
            if wanted is not None and wanted != there:
                raise TopicAlreadyExistsError(
                    f"topic {name!r} exists with {option}={there}, not {wanted}; leave the argument "
                    "out to use it as it is",
                    topic=name,
                    option=option,
                    value=wanted,
                    existing=there,
                )
        return topic

    def delete_topic(self, name: str) -> None:
        """Delete a topic and its records. Raises UnknownTopicOrPartitionError."""
        self._check_open()
        self._backend.delete_topic(name)

    # -- clients -----------------------------------------------------------------------------------------------------

    def producer(self, config: Mapping[str, Any] | None = None, **options: Any) -> Producer:
        """A producer. Options are `ProducerConfig`'s, as keywords or in `config` by Kafka's names. Raises ConfigError."""
        from streamlog.client.producer import Producer  # who only reads starts faster without

        parsed = ProducerConfig.from_options(options, config)
        if parsed.transactional_id is not None:
            from streamlog.client.transactions import TransactionalProducer

            return self._make_producer(TransactionalProducer, parsed)
        return self._make_producer(Producer, parsed)

    def _make_producer(self, kind: type[ProducerT], parsed: ProducerConfig) -> ProducerT:
        self._check_open()
        producer = kind(self._backend, parsed, self._forget_producer)
        self._producers[producer] = None
        return producer

    def consumer(self, config: Mapping[str, Any] | None = None, **options: Any) -> Consumer:
        """A consumer that reads what it is told to with `assign` (or `subscribe`, with a `group_id`).
        Raises ConfigError.
        """
        self._check_open()
        return self._make_consumer(ConsumerConfig.from_options(options, config))

    def _make_consumer(self, config: ConsumerConfig) -> Consumer:
        self._check_open()
        consumer = Consumer(self._backend, config, self._forget_consumer)
        self._consumers[consumer] = None
        return consumer

    def _forget_producer(self, closed: Producer) -> None:
        self._producers.pop(closed, None)

    def _forget_consumer(self, closed: Consumer) -> None:
        self._consumers.pop(closed, None)

    def consumer_group(
        self,
        group_id: str,
        topics: str | Iterable[str] | Pattern[str] | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> ConsumerGroup:
        """A group of consumers that share topics. `topics`: names or a compiled pattern; options are
        `ConsumerConfig`'s.
        """
        self._check_open()
        if not isinstance(group_id, str) or not group_id:
            raise InvalidGroupIdError(
                f"a group's name is a str that is not empty, not {group_id!r}", group_id=group_id
            )
        parsed = ConsumerConfig.from_options({**options, "group_id": group_id}, config)
        wanted = None if topics is None else checked_topics(topics)
        return self._group_class()(self._backend, group_id, wanted, parsed, self._make_consumer)

    def _group_class(self) -> type[ConsumerGroup]:
        from streamlog.client.consumer_group import ConsumerGroup

        return ConsumerGroup

    def process(
        self,
        group: ConsumerGroup,
        handler: Callable[[Record], Any],
        to: str,
        *,
        exactly_once: bool = True,
        workers: int = 1,
        on_error: str | Callable[[Record, Exception], Any] = "raise",
        stop_at_end: bool = False,
        producer: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Read, process, write: `handler(record)` for every record of a group, its output to topic `to`.

        handler:      returns None, a value (it goes with the record's key), a (key, value), a Record (its key, value and
                      headers), or a list or generator of those.
        exactly_once: output and progress are one transaction a poll; only committed records are read. False: at least
                      once, the progress is committed after the output is written.
        on_error:     as in `ConsumerGroup.run`; also of output that cannot be sent. What is finished is committed.
        producer:     options of the producers, such as {"value_serializer": "json"}. options: of the members.
        Blocks until `group.stop()`, Ctrl-C, an error, or - with `stop_at_end` - until everything there was at the start
        is processed.
        """
        from streamlog.client.processing import ProcessRun, check_process

        self._check_open()
        check_process(group, to, exactly_once)
        group._carry_out(
            ProcessRun(
                self._backend,
                group,
                handler,
                to,
                exactly_once=exactly_once,
                workers=workers,
                on_error=on_error,
                make_producer=self.producer,
                producer_options=producer or {},
                options={**options, "stop_at_end": stop_at_end},
            )
        )

    @property
    @patient
    def groups(self) -> list[str]:
        """The names of all groups that have members or committed offsets, sorted."""
        self._check_open()
        return [
            hosted.group_id for hosted in self._backend.coordinator.groups() if not hosted.machine.is_vacant
        ]

    # -- the rest ----------------------------------------------------------------------------------------------------

    def metrics(self) -> Metrics:
        """Every metric now, by Kafka's MBean name; `.prometheus()` has them as text."""
        self._check_open()
        return self._backend.metrics.snapshot()

    def clean(self) -> CleanerReport:
        """Enforce retention and compact, now, instead of when the cleaner would."""
        self._check_open()
        return self._backend.housekeeping.run_now()

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the cluster into a new directory while it is in use. Raises StorageError if that exists."""
        self._check_open()
        from pathlib import Path

        self._backend.backup(Path(path))

    def close(self) -> None:
        """Flush the producers, close the consumers, and close the cluster when nobody else has it open. Idempotent."""
        self._close()

    def _close(self, *, left_by: BaseException | None = None, commit: bool = True) -> None:
        """left_by: the exception that leaves `with`; it has a say in whether consumers commit, see `may_follow`."""
        if self._closed:
            return
        self._closed = True
        first: Exception | None = None
        if self._backend.is_foreign:
            return  # the parent's cluster: nothing here is ours to flush or to release
        try:
            if not self._backend.closed:
                for consumer in list(self._consumers):
                    try:
                        consumer._close(left_by=left_by, commit=commit)
                    except Exception as error:
                        first = first or error
                for producer in list(self._producers):
                    try:
                        producer.close()
                    except Exception as error:
                        first = first or error
        finally:
            with _open_lock:
                opened = self._opened
                opened.handles.pop(self, None)
                if not opened.handles:
                    if _open_clusters.get(opened.key) is opened:
                        del _open_clusters[opened.key]
                    self._backend.close()
        if first is not None:
            raise first

    def _check_open(self) -> None:
        self._backend.check_usable()
        if self._closed:
            self._backend.refuse_closed()


def _identity(text: str) -> object | None:
    """What tells two openings of one cluster: the name of one in memory, device and inode of a directory; None: new."""
    if text.startswith(MEMORY):
        name = text[len(MEMORY) :]
        return f"{MEMORY}{name}" if name else None
    try:
        found = os.stat(text)
    except OSError:
        return None
    return (found.st_dev, found.st_ino)


def close_all() -> None:
    """At the interpreter's exit: flush and close what was forgotten, and say so if records were still on their way.

    No position is committed: nobody knows whether the record in hand was processed. An exception may have led here.
    """
    for opened in list(_open_clusters.values()):
        pending = 0
        for cluster in list(opened.handles):
            pending += sum(producer.pending_records for producer in list(cluster._producers))
            try:
                cluster._close(commit=False)
            except Exception as error:
                _say(f"a streamlog cluster that nobody closed: {type(error).__name__}: {error}")
        if pending:
            _say(
                f"the streamlog cluster at {opened.backend.directory.location} was not closed and "
                f"{plural(pending, 'record')} still on the way; sent now. Use `with`, or close()"
            )
    _open_clusters.clear()


def _forget_all() -> None:
    """In a forked child: what the parent has open is not open here."""
    global _open_lock
    _open_readers.clear()
    for opened in list(_open_clusters.values()):
        opened.backend.closed = True  # whoever looks is told why by `check_usable`
        for cluster in list(opened.handles):
            for producer in list(cluster._producers):
                producer._topics = {}
    _open_clusters.clear()
    _open_lock = new_lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _say(text: str) -> None:
    import warnings

    warnings.warn(text, ResourceWarning, stacklevel=2)
    import logging

    logging.getLogger("streamlog").warning(text)
