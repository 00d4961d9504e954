"""The cluster for asyncio: open, topics, partitions, and the clients made from it.

What is read from memory (names, positions of a partition that is loaded, who leads) is a plain attribute as
in the blocking API; everything that may write, wait or read the disk is a coroutine.

Invariant: a cluster belongs to the loop it was opened in, and its threads end with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping
from functools import partial
from pathlib import Path
from re import Pattern
from typing import TYPE_CHECKING, Any

from streamlog.aio.consumer import Consumer
from streamlog.aio.group import ConsumerGroup
from streamlog.aio.mistakes import EnteredInLoop, Unawaited
from streamlog.aio.processing import in_loop, in_thread
from streamlog.aio.producer import LoopProducer, Producer
from streamlog.aio.waiting import Workers
from streamlog.client.brokers import BrokerHandle
from streamlog.client.cluster import Cluster as BlockingCluster
from streamlog.client.connecting import connect as core_connect
from streamlog.client.consumer import Consumer as BlockingConsumer
from streamlog.client.failures import attach
from streamlog.client.habits import KnowsHabits
from streamlog.client.opening import open_cluster
from streamlog.client.topic import Partition as BlockingPartition
from streamlog.client.topic import Topic as BlockingTopic
from streamlog.config import ProducerConfig
from streamlog.metrics import Metrics
from streamlog.record import Record, TopicPartition

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from streamlog.broker.housekeeping import CleanerReport
    from streamlog.client.habits import NoOthers


def connect(url: str, **options: Any) -> Opening:
    """Open what a URL names, as `streamlog.connect`; use it as `open`."""
    return Opening(url, options, core_connect)


def open(path: str | os.PathLike[str], **options: Any) -> Opening:
    """Open the cluster in a directory; options as `streamlog.open`.

    `async with open(path) as cluster` closes it at the end; `cluster = await open(path)` leaves that to you.
    """
    return Opening(path, options, open_cluster)


class Opening(EnteredInLoop, Unawaited):
    """A cluster that will be open once awaited or entered."""

    _how_to_await = (
        "`async with streamlog.aio.open(...) as cluster:`, or `cluster = await streamlog.aio.open(...)`"
    )

    def __init__(
        self, path: str | os.PathLike[str], options: dict[str, Any], opener: Callable[..., BlockingCluster]
    ) -> None:
        self._path = path
        self._options = options
        self._opener = opener
        self._cluster: Cluster | None = None

    def __repr__(self) -> str:
        return f"<aio cluster {str(self._path)!r}, not opened>"

    def __await__(self) -> Generator[Any, None, Cluster]:
        return self._open().__await__()

    async def __aenter__(self) -> Cluster:
        self._cluster = await self._open()
        return self._cluster

    async def __aexit__(self, kind: object, exception: BaseException | None, traceback: object) -> None:
        if self._cluster is not None:
            await self._cluster.__aexit__(kind, exception, traceback)

    async def _open(self) -> Cluster:
        workers = Workers()
        opening = workers.submit(lambda: self._opener(self._path, **self._options))
        try:
            core = await workers.shielded(opening, lambda core: core.close())
        except BaseException:
            workers.close()
            raise
        return Cluster(workers, core)


class Cluster(EnteredInLoop, KnowsHabits):
    """A cluster in a directory. Made by `streamlog.aio.open`; leaving `async with` closes it."""

    def __init__(self, workers: Workers, core: BlockingCluster) -> None:
        self._workers = workers
        self._core = core
        self._producers: dict[Producer, None] = {}
        self._consumers: dict[Consumer, None] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<aio {repr(self._core)[1:]}"

    async def __aenter__(self) -> Self:
        self._core._check_open()
        return self

    async def __aexit__(self, kind: object, exception: BaseException | None, traceback: object) -> None:
        try:
            await self._close(left_by=exception)
        except Exception as error:
            if exception is None:
                raise
            attach(exception, error)

    @property
    def path(self) -> Path:
        """The directory (of a cluster in memory: where it lives while it is open)."""
        return self._core.path

    @property
    def brokers(self) -> list[BrokerHandle]:
        """The brokers, by id."""
        return self._core.brokers

    @property
    def topics(self) -> list[str]:
        """The names of all topics but the internal ones, sorted."""
        return self._core.topics

    def topic(self, name: str) -> Topic:
        """Raises UnknownTopicOrPartitionError."""
        return Topic(self._workers, self._core.topic(name))

    async def create_topic(
        self,
        name: str,
        partitions: int | None = None,
        replication_factor: int | None = None,
        config: Mapping[str, Any] | None = None,
        exist_ok: bool = False,
        **others: Unpack[NoOthers],
    ) -> Topic:
        """Create a topic; arguments and errors as the blocking `create_topic`."""
        topic = await self._workers.call(
            self._core.create_topic, name, partitions, replication_factor, config, exist_ok, **others
        )
        return Topic(self._workers, topic)

    @property
    def config(self) -> dict[str, str]:
        """All options in force for all brokers, by Kafka's dotted names."""
        return self._core.config

    async def alter_config(self, config: Mapping[str, Any], broker: int | None = None) -> None:
        """Change options while the cluster is open; as the blocking `alter_config`."""
        await self._workers.call(self._core.alter_config, config, broker)

    async def delete_topic(self, name: str) -> None:
        """Delete a topic and its records. Raises UnknownTopicOrPartitionError."""
        await self._workers.call(self._core.delete_topic, name)

    # -- clients ---------------------------------------------------------------------------------------------

    def producer(self, config: Mapping[str, Any] | None = None, **options: Any) -> Producer:
        """A producer; options as the blocking `producer`. Raises ConfigError.

        With a `transactional_id` it fences who had that before as `async with` begins, or the first transaction.
        """
        parsed = ProducerConfig.from_options(options, config)
        kind: type[LoopProducer] = LoopProducer
        if parsed.transactional_id is not None:
            from streamlog.aio.transactional_producer import LoopTransactionalProducer

            kind = LoopTransactionalProducer
        core = self._core._make_producer(kind, parsed)
        producer = Producer(self._workers, core, self._forget_producer)
        self._producers[producer] = None
        return producer

    def consumer(self, config: Mapping[str, Any] | None = None, **options: Any) -> Consumer:
        """A consumer that reads what it is told to with `assign` (or `subscribe`). Raises ConfigError."""
        core = self._core.consumer(config=config, **options)
        return self._adopt(lambda: core)

    def consumer_group(
        self,
        group_id: str,
        topics: str | Iterable[str] | Pattern[str] | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> ConsumerGroup:
        """A group of consumers that share topics; options as the blocking `consumer_group`."""
        core = self._core.consumer_group(group_id, topics, config=config, **options)
        return ConsumerGroup(self._workers, core, self._adopt)

    async def process(
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
        """Read, process, write: as the blocking `process`. handler, on_error: coroutine functions, or plain ones, which
        block the loop while they run.

        Cancelling it finishes the records in hand, commits what is finished, and leaves the group.
        """
        core_group: Any = group._core if isinstance(group, ConsumerGroup) else group
        arguments: dict[str, Any] = {
            "exactly_once": exactly_once,
            "workers": workers,
            "on_error": in_loop(on_error),
            "stop_at_end": stop_at_end,
            "producer": producer,
            **options,
        }
        run = partial(self._core.process, core_group, in_loop(handler), to, **arguments)
        await in_thread(self._core._backend.runtime.spawn, run, lambda: core_group.stop())

    def _adopt(self, make: Callable[[], BlockingConsumer]) -> Consumer:
        consumer = Consumer(self._workers, make, self._forget_consumer)
        self._consumers[consumer] = None
        return consumer

    def _forget_producer(self, closed: Producer) -> None:
        self._producers.pop(closed, None)

    def _forget_consumer(self, closed: Consumer) -> None:
        self._consumers.pop(closed, None)

    # -- the rest --------------------------------------------------------------------------------------------

    async def groups(self) -> list[str]:
        """The names of all groups that have members or committed offsets, sorted."""
        return await self._workers.call(lambda: self._core.groups)

    async def metrics(self) -> Metrics:
        """Every metric now, by Kafka's MBean name; `.prometheus()` has them as text."""
        return await self._workers.call(self._core.metrics)

    async def clean(self) -> CleanerReport:
        """Enforce retention and compact, now, instead of when the cleaner would."""
        return await self._workers.call(self._core.clean)

    async def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the cluster into a new directory while it is in use."""
        await self._workers.call(self._core.backup, path)

    async def close(self) -> None:
        """Flush the producers, close the consumers, and close the cluster. Idempotent."""
        await self._close()

    async def _close(self, *, left_by: BaseException | None = None) -> None:
        if self._closed:
            return
        self._closed = True
        first: Exception | None = None
        for consumer in list(self._consumers):
            try:
                await consumer._close(left_by=left_by)
            except Exception as error:
                first = first or error
        for producer in list(self._producers):
            try:
                await producer.close()
            except Exception as error:
                first = first or error
        try:
            await self._workers.call(self._core._close, left_by=left_by)
        finally:
            self._workers.close()
        if first is not None:
            raise first


class Topic:
    """One topic. `topic[0]` is its first partition, `len(topic)` how many it has."""

    __slots__ = ("_core", "_workers")

    def __init__(self, workers: Workers, core: BlockingTopic) -> None:
        self._workers = workers
        self._core = core

    def __repr__(self) -> str:
        return f"<aio {repr(self._core)[1:]}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Topic) and other._core == self._core

    def __hash__(self) -> int:
        return self._core.__hash__()

    def __len__(self) -> int:
        return len(self._core)

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, number: int) -> Partition:
        return Partition(self._workers, self._core[number])

    @property
    def name(self) -> str:
        return self._core.name

    @property
    def topic_id(self) -> str:
        """The topic's identity: a topic deleted and made anew has another."""
        return self._core.topic_id

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return tuple(Partition(self._workers, partition) for partition in self._core.partitions)

    @property
    def replication_factor(self) -> int:
        return self._core.replication_factor

    @property
    def config(self) -> dict[str, str]:
        """All options in force, by Kafka's dotted names."""
        return self._core.config

    @property
    def config_overrides(self) -> dict[str, str]:
        """Only what was set for this topic."""
        return self._core.config_overrides

    async def add_partitions(self, total: int) -> None:
        """Grow to `total` partitions."""
        await self._workers.call(self._core.add_partitions, total)

    async def alter_config(self, config: Mapping[str, Any]) -> None:
        """Set options (None resets one to its default). Raises ConfigError; nothing was changed."""
        await self._workers.call(self._core.alter_config, config)

    async def delete(self) -> None:
        """Delete the topic and its records."""
        await self._workers.call(self._core.delete)


class Partition:
    """One partition. Get it by `topic[number]`; reading needs no consumer."""

    __slots__ = ("_core", "_workers")

    def __init__(self, workers: Workers, core: BlockingPartition) -> None:
        self._workers = workers
        self._core = core

    def __repr__(self) -> str:
        return f"<aio {repr(self._core)[1:]}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Partition) and other._core == self._core

    def __hash__(self) -> int:
        return self._core.__hash__()

    @property
    def topic(self) -> str:
        return self._core.topic

    @property
    def number(self) -> int:
        return self._core.number

    @property
    def topic_partition(self) -> TopicPartition:
        return self._core.topic_partition

    @property
    def leader(self) -> int | None:
        """The id of the broker that leads this partition; None if nobody does."""
        return self._core.leader

    @property
    def replicas(self) -> tuple[int, ...]:
        return self._core.replicas

    @property
    def isr(self) -> tuple[int, ...]:
        return self._core.isr

    @property
    def leader_epoch(self) -> int:
        return self._core.leader_epoch

    @property
    def log_start_offset(self) -> int:
        return self._core.log_start_offset

    @property
    def high_watermark(self) -> int:
        """Below this everything is replicated and readable."""
        return self._core.high_watermark

    @property
    def log_end_offset(self) -> int:
        """The offset the next record will get."""
        return self._core.log_end_offset

    @property
    def size_bytes(self) -> int:
        return self._core.size_bytes

    async def read(self, offset: int = 0, max_records: int = 100) -> list[Record]:
        """The records from `offset` on, at most `max_records`; as the blocking `read`."""
        return await self._workers.call(self._core.read, offset, max_records)

    async def delete_records(self, before_offset: int) -> int:
        """Give up everything below an offset (-1: everything readable now). Returns the new start."""
        return await self._workers.call(self._core.delete_records, before_offset)
