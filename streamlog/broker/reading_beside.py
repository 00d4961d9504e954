"""A cluster read beside its owner: another process, this one, or nobody.

    owner --commits--> metadata/ broker-0/ ... <--snapshots-- ClusterBeside <-- Consumer, Topic, Partition
                       (LMDB: one writer, readers in any process)

What the owner publishes to its own readers it also commits: the checkpoint beside each log says where the log
begins and how far it may be read. So a view here is the checkpoint of the very snapshot that is read, and
nothing else is needed of the owner. There are no wake-ups across processes: who waits looks again every few
ms, more rarely the longer nothing happens (`following.BesideListener`); who does not wait costs nothing.

Invariants:
 1. Snapshot first, then the metadata log: a topic that still exists *after* the snapshot was opened has all
    its records in the snapshot, because the owner deletes records only after it committed that the topic is
    gone.
 2. The image is the fold of the metadata log up to an offset, and only moves forward.
 3. The engine allows one environment per file in a process. Where this process owns the cluster, the owner's
    environments are borrowed; they are asked for anew when they close, and given up before an owner opens
    (`release`). Whoever opens environments of one directory holds `opening_lock`.
 4. No snapshot is open while `opening_lock` is wanted, nor across user code.

Not implemented: reading a cluster whose brokers were copied apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast

import msgspec

from streamlog.broker.backup import backup_environments
from streamlog.broker.following import (
    LOOK_MS_MAX,
    LOOK_MS_MIN,
    BesideListener,
    PartitionBeside,
    ReaderBeside,
    broker_of,
)
from streamlog.broker.groups_beside import GroupsBeside
from streamlog.broker.partition import Partition, TopicMeters, state_of
from streamlog.broker.replicated_beside import replicated_end
from streamlog.broker.runner import Lock, Runtime, ThreadedRuntime
from streamlog.broker.stores_beside import Stores, load_image, open_stores, visible_commit
from streamlog.config import ClusterConfig, TopicConfig
from streamlog.core.cluster_image import ClusterImage, PartitionImage, TopicImage
from streamlog.core.replica import ReplicaState
from streamlog.errors import (
    ClosedError,
    CorruptStoreError,
    NotAStreamlogDirectoryError,
    NotLeaderOrFollowerError,
    ReadOnlyError,
    UnknownTopicOrPartitionError,
)
from streamlog.metrics import MetricsRegistry
from streamlog.storage import log
from streamlog.storage.directory import ClusterDirectory, Owner
from streamlog.storage.env import Environment, Snapshot
from streamlog.storage.ownership import live_owner
from streamlog.storage.verification import Dumped, dump_slices

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster

TOPIC_METRICS: Final = "kafka.server:type=BrokerTopicMetrics,name="
ATTEMPTS_MAX: Final = 20
RELEASE_MS: Final = 2000

ResultT = TypeVar("ResultT")


class ClusterBeside:
    """What clients need of a cluster, read-only. Offers what `BrokerCluster` offers to those who read."""

    is_replicated = False
    leaders_version = 0  # nobody moves under a reader's eyes: each look begins at the image

    def __init__(
        self,
        path: Path,
        config: ClusterConfig,
        find_owner: Callable[[], BrokerCluster | None],
        opening_lock: Lock,
        runtime: Runtime | None = None,
    ) -> None:
        """find_owner:  the cluster open for writing in this process, if there is one; called under
        `opening_lock`.
        """
        self.runtime: Runtime = ThreadedRuntime() if runtime is None else runtime
        self.config = config
        self.closed = False
        self.metrics = MetricsRegistry(self.runtime.clock)
        self.reader = ReaderBeside(self)
        self.coordinator = GroupsBeside(self)
        self.directory = ClusterDirectory.open(path, read_only=True, allow_network_fs=config.allow_network_fs)
        self._find_owner = find_owner
        self._opening_lock = opening_lock
        self._refresh_lock = self.runtime.lock()
        self._subscribe_lock = self.runtime.lock()
        self._image = ClusterImage()
        self._image_offset = 0
        self._image_mark = -1
        self._partitions: dict[int, PartitionBeside] = {}
        self._meters: dict[str, TopicMeters] = {}
        self._stores: Stores | None = None
        self._marked: dict[int, tuple[ReplicaState, ReplicaState]] = {}

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._image.topics)} topics"
        return f"ClusterBeside({str(self.directory.path)!r}, {state})"

    # -- environments ----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the environments, `opening_lock` being held, and read the metadata log once."""
        self._stores = self._find_stores()

    def _find_stores(self) -> Stores:
        owner = self._find_owner()
        if owner is not None and not owner.closed:
            brokers = {broker.id: broker.environment for broker in owner.brokers}
            return Stores(owner.metadata.environment, brokers, owner.incarnation)
        for attempt in range(ATTEMPTS_MAX):
            try:
                return open_stores(self.directory, self.config)
            except (CorruptStoreError, NotAStreamlogDirectoryError):
                # An owner that is just making its files, or whose newest pages are allocated but not written
                # yet.
                if attempt + 1 == ATTEMPTS_MAX or self.owner() is None:
                    raise
                self.runtime.waiter().wait(LOOK_MS_MAX)
        raise AssertionError("the last attempt returns or raises")

    def with_stores(self, action: Callable[[Stores], ResultT]) -> ResultT:
        """Run `action` over the environments; again if they were closed under it, because an owner came or
        went.
        """
        for attempt in range(ATTEMPTS_MAX):
            if self.closed:
                self.refuse_closed()
            stores = self._stores
            if stores is not None:
                try:
                    return action(stores)
                except ClosedError:
                    if self.closed or attempt + 1 == ATTEMPTS_MAX:
                        raise
            with self._opening_lock:
                if self._stores is stores and not self.closed:
                    if stores is not None:
                        self._wait_closed(stores.close())
                    self._stores = self._find_stores()
        raise AssertionError("the last attempt returns or raises")

    def release(self) -> None:
        """Close what was opened here, so that an owner can open it. The caller holds `opening_lock`."""
        stores, self._stores = self._stores, None
        if stores is not None:
            self._wait_closed(stores.close())

    def _wait_closed(self, environments: list[Environment]) -> None:
        """Snapshots are short; their end closes the file."""
        deadline_ms = self.runtime.clock.monotonic_ms() + RELEASE_MS
        waiter = self.runtime.waiter()
        for environment in environments:
            while not environment.close() and self.runtime.clock.monotonic_ms() < deadline_ms:
                waiter.wait(LOOK_MS_MIN)

    def close(self) -> None:
        """Idempotent; the caller holds `opening_lock`."""
        if not self.closed:
            self.closed = True
            self.release()
            self.directory.close()

    def check_usable(self) -> None:
        """Raises ClosedError, or StoreForkedError in a child process."""
        if self.closed:
            self.refuse_closed()
        stores = self._stores
        if stores is not None:
            stores.metadata.check_process()

    def refuse_closed(self) -> NoReturn:
        raise ClosedError(
            f'the reader of {self.directory.path} is closed; open it again with streamlog.open(..., mode="r")'
        )

    def owner(self) -> Owner | None:
        """Who owns the directory now; None if nobody does."""
        return live_owner(self.directory.path)

    def owner_incarnation(self) -> str | None:
        """The incarnation of the live owner; "" if it is not known; None if nobody owns the directory."""
        here = self._owned_here()
        if here is not None:
            return here
        owner = self.owner()
        return None if owner is None else owner.incarnation

    def _owned_here(self) -> str | None:
        """The incarnation of the owner in this process; None if that is not here (any more)."""
        stores = self._stores
        return None if stores is None or stores.metadata.closing else stores.incarnation

    # -- what there is now -----------------------------------------------------------------------------------

    def image(self) -> ClusterImage:
        """The cluster as the metadata log has it now."""
        return self.with_stores(self._refresh)

    def _refresh(self, stores: Stores) -> ClusterImage:
        mark = visible_commit(stores.metadata)
        if mark == self._image_mark:
            return self._image
        with self._refresh_lock:
            if mark != self._image_mark:
                with stores.metadata.snapshot() as snapshot:
                    self._image_offset = load_image(snapshot, self._image, self._image_offset)
                self._image_mark = mark
        return self._image

    @property
    def topics(self) -> dict[str, TopicImage]:
        return self.image().topics

    @property
    def brokers(self) -> list[int]:
        """The brokers' ids."""
        return sorted(self.image().brokers)

    def topic(self, name: str) -> TopicImage:
        """Raises UnknownTopicOrPartitionError."""
        image = self.topics.get(name)
        if image is None:
            raise UnknownTopicOrPartitionError(
                f"unknown topic {name!r}; it must be created by the cluster's owner", topic=name
            )
        return image

    def topic_for_client(self, name: str) -> TopicImage:
        return self.topic(name)

    def topic_config(self, name: str) -> TopicConfig:
        from streamlog.broker.dynamic_config import effective

        topic = self.topic(name)
        return TopicConfig.with_overrides(topic.config, effective(self.config, self.image().broker_configs))

    def partition(self, topic: str, number: int) -> PartitionBeside:
        """The partition, to read from and to listen to. Raises UnknownTopicOrPartitionError."""
        image = self.topic(topic)
        if not 0 <= number < len(image.partitions):
            raise UnknownTopicOrPartitionError(
                f"topic {topic!r} has no partition {number}; allowed: 0 to {len(image.partitions) - 1}",
                topic=topic,
                partition=number,
            )
        log_id = image.partitions[number].log_id
        partition = self._partitions.get(log_id)
        if partition is None:
            config = TopicConfig.with_overrides(image.config, self.config)
            partition = self._partitions.setdefault(
                log_id, PartitionBeside(self, image, number, config, self._topic_meters(topic))
            )
        return partition

    def _topic_meters(self, name: str) -> TopicMeters:
        meters = self._meters.get(name)
        if meters is None:
            meters = TopicMeters(lambda metric: self.metrics.meter(TOPIC_METRICS + metric, topic=name))
            meters = self._meters.setdefault(name, meters)
        return meters

    def leader_of(self, partition: Partition) -> ClusterBeside:
        """Whose `reader` reads the partition."""
        return self

    def listener(self) -> BesideListener:
        return BesideListener(self, self.runtime, self._subscribe_lock)

    def marks(self) -> tuple[int, ...]:
        return self.with_stores(Stores.marks)

    # -- views -----------------------------------------------------------------------------------------------

    def open_view(self, partition: Partition) -> tuple[ReplicaState, Snapshot]:
        """A snapshot and the view it holds. Raises NotLeaderOrFollowerError where the topic is gone."""

        def look(stores: Stores) -> tuple[ReplicaState | None, Snapshot]:
            while True:
                leader_id = self._leader_id(stores, partition)
                snapshot = stores.broker(leader_id).snapshot()
                try:
                    view = self._view(stores, snapshot, partition)
                    if view is None or self._leader_id(stores, partition) == leader_id:
                        return view, snapshot
                except BaseException:
                    snapshot.close()
                    raise
                snapshot.close()  # another broker leads by now: what this one has may be cut off

        view, snapshot = self.with_stores(look)
        if view is None:
            snapshot.close()
            self._partitions.pop(partition.log_id, None)
            raise NotLeaderOrFollowerError(
                f"{partition.topic}-{partition.number} is gone: the cluster's owner deleted its topic",
                topic=partition.topic,
                partition=partition.number,
            )
        return view, snapshot

    def views(self, partitions: Sequence[Any]) -> list[ReplicaState | None]:
        """The views of several partitions; None for those whose topic is gone."""

        def look(stores: Stores) -> list[ReplicaState | None]:
            snapshots: dict[int, Snapshot] = {}
            try:
                leaders = [self._leader_id(stores, partition) for partition in partitions]
                for leader_id in leaders:
                    if leader_id in snapshots:
                        continue
                    snapshots[leader_id] = stores.broker(leader_id).snapshot()
                return [
                    self._view(stores, snapshots[leader_id], partition)
                    for leader_id, partition in zip(leaders, partitions, strict=True)
                ]
            finally:
                for snapshot in snapshots.values():
                    snapshot.close()

        return self.with_stores(look)

    def _leader_id(self, stores: Stores, partition: Partition) -> int:
        """In whose store the partition is read now; of a topic that is gone, where it was."""
        topic = self._refresh(stores).topics.get(partition.topic)
        if topic is not None and topic.topic_id == partition.topic_id:
            partition.leader_id = broker_of(topic.partitions[partition.number])
        return partition.leader_id

    def _view(self, stores: Stores, snapshot: Snapshot, partition: Partition) -> ReplicaState | None:
        checkpoint = log.load_checkpoint(snapshot, partition.log_id)
        topic = self._refresh(stores).topics.get(partition.topic)  # behind the snapshot: invariant 1
        if topic is None or topic.topic_id != partition.topic_id:
            return None
        image = topic.partitions[partition.number]
        state = state_of(checkpoint, image.leader_epoch)
        if state.high_watermark < state.log_end_offset and len(image.replicas) > 1:
            state = self._with_mark(stores, snapshot, partition, image, state)
        return cast(PartitionBeside, partition).stabilized(snapshot, state)

    def _with_mark(
        self,
        stores: Stores,
        snapshot: Snapshot,
        partition: Partition,
        image: PartitionImage,
        state: ReplicaState,
    ) -> ReplicaState:
        """With the high watermark that an owner which was killed has not written down any more."""
        stored, marked = self._marked.get(image.log_id, (None, state))
        if stored != state:
            if self.owner_incarnation() is not None:
                return state  # it will write it down
            enough = partition.config.min_insync_replicas
            mark = replicated_end(stores, snapshot, image, partition.leader_id, state, enough)
            marked = msgspec.structs.replace(state, high_watermark=mark)
            self._marked[image.log_id] = state, marked
        return marked

    def dump(self, topic: str, number: int, start_offset: int, end_offset: int | None) -> Iterator[Dumped]:
        """The stored batches of a partition that end in [start_offset, end_offset), damaged ones too."""
        partition = self.partition(topic, number)

        def next_slice(stores: Stores) -> list[Dumped]:
            return next(
                dump_slices(
                    stores.broker(self._leader_id(stores, partition)),
                    partition.log_id,
                    start_offset,
                    end_offset,
                ),
                [],
            )

        while slice_ := self.with_stores(next_slice):
            yield from slice_
            start_offset = slice_[-1].last_offset + 1

    # -- copies ----------------------------------------------------------------------------------------------

    def backup(self, path: Path) -> None:
        """Copy the cluster into a new directory while its owner writes."""
        self.check_usable()
        self.with_stores(
            lambda stores: backup_environments(self.directory, stores.brokers, stores.metadata, path)
        )

    # -- what only an owner can do ---------------------------------------------------------------------------

    def refuse_write(self, what: str) -> NoReturn:
        """Raises ReadOnlyError that says who owns the directory and what to do."""
        path = self.directory.path
        owner = self.owner()
        if self._owned_here() is not None:
            advice = 'this process has it open for writing: use the cluster of mode="rw"'
        elif owner is None:
            advice = 'nobody owns it now: open it with mode="rw"'
        else:
            who = f"process {owner.pid or '(unknown)'}{owner.process and f' ({owner.process})'}"
            advice = f'{who} owns it: do it there, or stop it and open with mode="rw"'
        raise ReadOnlyError(
            f'{path} is open for reading only (mode="r"), so {what} is not possible; {advice}',
            path=str(path),
            pid=None if owner is None else owner.pid,
        )

    def create_topic(self, *_: object) -> NoReturn:
        self.refuse_write("creating a topic")

    def delete_topic(self, *_: object) -> NoReturn:
        self.refuse_write("deleting a topic")

    def create_partitions(self, *_: object) -> NoReturn:
        self.refuse_write("adding partitions")

    def alter_topic(self, *_: object) -> NoReturn:
        self.refuse_write("changing a topic's options")

    def delete_records(self, *_: object) -> NoReturn:
        self.refuse_write("deleting records")

    def admit_produce(self) -> NoReturn:
        self.refuse_write("producing")

    def call_group(self, *_: object) -> NoReturn:
        self.refuse_write("changing a group or its offsets")

    def post_group(self, *_: object, **__: object) -> NoReturn:
        self.refuse_write("joining a group")
