"""The cluster inside the process: the directory, the metadata log, the brokers, and the ways into them.

    client --> Cluster here --> leader's broker (turn)   Produce, groups, deletions
                           +--> partition views + store  reads
                           +--> metadata log (turn)      topics, options

Invariants:
 1. One owner process per directory (`flock`), one `BrokerCluster` per directory in the process.
 2. A change of topics is first committed to the metadata log, then taken over by the brokers; a crash in between is
    made good at the next opening (orphaned logs are deleted).
 3. Nothing is reachable after a fork: every entry checks the process id through the environments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

from streamlog.broker import api
from streamlog.broker.api import GroupRequest
from streamlog.broker.broker import Broker
from streamlog.broker.dynamic_config import effective, take_config
from streamlog.broker.heartbeats import Heartbeats
from streamlog.broker.housekeeping import Housekeeping
from streamlog.broker.measuring import measure, measure_broker
from streamlog.broker.metadata import AppendMetadata, MetadataLog
from streamlog.broker.partition import Partition
from streamlog.broker.pending import wait_until_told
from streamlog.broker.purgatory import Listener
from streamlog.broker.runner import Runtime, ThreadedRuntime
from streamlog.broker.turn import Pending
from streamlog.broker.upkeep import DropTopic, MoveHighWatermarks, RefreshTopic
from streamlog.config import ClusterConfig, TopicConfig
from streamlog.core.cluster_image import (
    CONSUMER_OFFSETS_TOPIC,
    BrokerRegistered,
    ControllerElected,
    TopicImage,
)
from streamlog.errors import (
    ClosedError,
    ConfigError,
    CorruptStoreError,
    LeaderNotAvailableError,
    NetworkError,
    NotControllerError,
    StoreForkedError,
    TopicAlreadyExistsError,
    TopicDeletionDisabledError,
)
from streamlog.metrics import MetricsRegistry
from streamlog.storage.directory import ClusterDirectory
from streamlog.storage.env import Environment
from streamlog.storage.filesystem import device

if TYPE_CHECKING:
    from pathlib import Path

    from streamlog.broker.dispatching import Dispatcher
    from streamlog.broker.peers import Peers

CONTROLLER_ID: Final = 0
ALLOCATOR_HINT_BYTES: Final = 16 * 1024 * 1024
"""Freeing one block of this size raises glibc's dynamic mmap threshold for good. Without it every batch of about 128 KiB
lives in freshly mapped, zeroed pages: measured, `send_many` of 1 KiB records ran at a third of its speed.
"""
READERS_WAIT_MS: Final = 1000
CONTROLLER_LOOK_MS: Final = 20
REQUEST_WAIT_MS: Final = 60_000
"""Kafka's default.api.timeout.ms: longer than this nobody waits for a broker that is paused."""
OFFSETS_TOPIC_CONFIG: Final[Mapping[str, str]] = {"cleanup.policy": "compact", "retention.ms": "-1"}


class BrokerCluster:
    """All brokers of one directory. Clients hold it; `client.cluster.Cluster` is its public face."""

    leaders_version = 0
    """Counts changes of leaders: who reads or has joined a group looks where to go on when it has changed."""

    def __init__(
        self,
        directory: ClusterDirectory,
        brokers: int | None,
        sync: str,
        config: ClusterConfig,
        runtime: Runtime | None = None,
    ) -> None:
        bytes(ALLOCATOR_HINT_BYTES)
        self.runtime: Runtime = ThreadedRuntime() if runtime is None else runtime
        self.directory = directory
        self.given_config = self.config = config  # as opened, and what holds for all now (`dynamic_config`)
        self.sync = sync
        self.metrics = MetricsRegistry(self.runtime.clock)
        self.incarnation = f"{self.runtime.random.getrandbits(64):016x}"
        self.closed = False
        self._released = False
        directory.announce(incarnation=self.incarnation)
        self.environments: list[Environment] = []
        try:
            self.metadata = MetadataLog(
                self._open_environment(directory.metadata_path),
                self.runtime,
                config.inbox_requests_max,
                self._default_counts,
                config,
            )
            self._join_brokers(brokers)
            self.config = self.config_of(None)
            self.metadata.configure(self.config)
            self.brokers = [self.open_broker(broker_id) for broker_id in sorted(self.metadata.image.brokers)]
        except BaseException:
            for environment in self.environments:
                environment.close(force=True)
            directory.close()
            raise
        self._peers: Peers | None = None
        self.subscribe_lock = self.runtime.lock()
        self.know_brokers(self.brokers)
        self.waiting_fetches: deque[None] = deque()
        self.request_times, self.group_counters = measure(self)
        self.topics: dict[str, TopicImage] = self.metadata.image.topics
        self.heartbeats = Heartbeats(self.runtime)
        self.housekeeping = Housekeeping(self)
        for owner in (self.metadata, *self.brokers):
            owner.on_checkpoint_due = self.housekeeping.wake
        if len(self.brokers) > 1:
            self.peers.open()
        self.housekeeping.start()  # last: what it loads must have its role
        self.metadata.on_config = partial(take_config, self)
        self.runtime.attach(self)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self.brokers)} brokers, {len(self.topics)} topics"
        return f"BrokerCluster({self.directory.location!r}, {state})"

    # -- opening and closing -----------------------------------------------------------------------------------------

    def _open_environment(self, path: str) -> Environment:
        # A power loss must not take back a topic whose records survive in a broker's store: its log ids would be given to
        # the next topic, and the records with them. Changes of topics are rare, so they are always durable at once, also
        # where records are only now and then: what `flush.ms` has synced is of no use without its topic.
        is_durable = path == self.directory.metadata_path and not self.directory.in_memory
        environment = Environment.open(
            path,
            sync="full" if is_durable else self.sync,  # type: ignore[arg-type]
            map_bytes=self.config.map_bytes,
            disk_bytes_max=self.config.disk_bytes_max,
            max_readers=self.config.max_readers,
            # The directory's own file system was looked at already; what is not there yet will be made on it.
            allow_network_fs=self.config.allow_network_fs
            or device(path) in (None, device(self.directory.location)),
        )
        self.environments.append(environment)
        return environment

    def _join_brokers(self, brokers: int | None) -> None:
        """Register the brokers of a new directory; check the number asked for against an old one."""
        known = self.metadata.image.brokers
        if known:
            if brokers is not None and brokers != len(known):
                raise ConfigError(
                    f"brokers={brokers}: {self.directory.location} has {len(known)}; leave the option "
                    "out, or grow with add_broker()",
                    option="brokers",
                    value=brokers,
                    allowed=str(len(known)),
                )
            return
        left = self.directory.brokers()
        if left:
            # Made anew, the metadata would not know their logs, and what nobody knows is deleted.
            raise CorruptStoreError(
                f"{self.directory.location} has stores of brokers ({', '.join(map(str, left))}), but its metadata log is "
                "empty: it was removed or lost. Nothing was touched; restore a backup",
                path=self.directory.location,
            )
        count = 1 if brokers is None else brokers
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(
                f"brokers={brokers!r}: allowed: an int >= 1",
                option="brokers",
                value=brokers,
                allowed="an int >= 1",
            )
        records: list[Any] = [BrokerRegistered(broker_id, self.incarnation) for broker_id in range(count)]
        records.append(ControllerElected(CONTROLLER_ID, 1))
        self.metadata.call(AppendMetadata(records, 0, 0))

    def know_brokers(self, brokers: list[Broker]) -> None:
        """These are the brokers that run, by id."""
        self.brokers = brokers
        owners = [self.metadata, *brokers]
        for owner in owners:
            owner.siblings = tuple(other for other in owners if other is not owner)
        if not brokers:
            return  # all are stopped: who asks the last one is told
        self.broker = broker = brokers[0]
        # `admit_produce()` helps while the leader's inbox is full, `put_produce(pending)` puts a Produce into it without
        # running a turn. Bound, not wrapped: every record that is sent alone goes through both.
        way: Broker | Dispatcher = broker if self._peers is None else self._peers.dispatcher
        self.wait = way.wait
        self.advance = way.advance
        self.admit_produce = way.admit
        self.put_produce = way.put

    def measure_broker(self, broker: Broker) -> None:
        """Have a broker that joined later counted with the others."""
        measure_broker(self, broker, self.request_times, self.group_counters)

    @property
    def peers(self) -> Peers:
        """The brokers among each other, made at its first use: one broker that nobody stops needs none."""
        peers = self._peers
        if peers is None:
            from streamlog.broker.peers import Peers

            peers = self._peers = Peers(self)
            self.know_brokers(self.brokers)
        return peers

    @property
    def is_replicated(self) -> bool:
        """Whether leaders may move, so that every look-up has to ask who leads now."""
        return self._peers is not None

    def open_broker(self, broker_id: int) -> Broker:
        environment = self._open_environment(self.directory.broker_path(broker_id))
        return Broker(
            broker_id,
            environment,
            self.metadata,
            self.runtime,
            self.config_of(broker_id),
            self.incarnation,
            self.metrics,
        )

    def _default_counts(self) -> tuple[int, int]:
        return self.config.num_partitions, min(
            self.config.default_replication_factor, len(self.metadata.image.brokers)
        )

    def check_usable(self) -> None:
        """Raises ClosedError, or StoreForkedError in a child process."""
        for environment in self.environments[:1]:
            environment.check_process()
        if self.closed:
            self.refuse_closed()

    @property
    def is_foreign(self) -> bool:
        """Opened by the parent of this process: nothing of it may be touched after the fork."""
        try:
            for environment in self.environments[:1]:
                environment.check_process()
        except StoreForkedError:
            return True
        return False

    def refuse_closed(self) -> NoReturn:
        raise ClosedError(
            f"the cluster at {self.directory.location} is closed; open it again with streamlog.open(...)"
        )

    def close(self) -> None:
        """Stop the threads, finish what is under way, sync, and release the directory. Idempotent.

        Every step is tried, whatever the others raise; after an interrupt, calling again goes on.
        """
        if self._released:
            return
        self.closed = True
        if self.is_foreign:
            return
        first_error: Exception | None = None
        steps: list[Callable[[], object]] = [self.heartbeats.stop, self.housekeeping.stop]
        if self._peers is not None:
            steps.append(self._peers.dispatcher.close)
            steps.append(self._peers.close)
        steps += [broker.close for broker in self.brokers]
        steps.append(self.metadata.close)
        steps += [partial(self.close_environment, environment) for environment in reversed(self.environments)]
        steps += [self.directory.close, partial(self.runtime.detach, self)]
        for step in steps:
            try:
                step()
            except Exception as error:
                first_error = first_error or error
        self._released = True
        if first_error is not None:
            raise first_error

    def close_environment(self, environment: Environment) -> None:
        """Of a broker that stopped, or of all at the end."""
        if not environment.close():
            self._wait_for_readers(environment)
        if not self.closed and environment in self.environments:
            self.environments.remove(environment)

    def _wait_for_readers(self, environment: Environment) -> None:
        """A thread is still reading: its snapshot is short, and its end closes the file (ECOSYSTEM 3.2 row 24)."""
        waiter = self.runtime.waiter()
        for _ in range(READERS_WAIT_MS):
            if environment.close():
                return
            waiter.wait(1)

    def backup(self, path: Path) -> None:
        """Copy the cluster into a new directory while it is in use. Raises StorageError; then there is no copy."""
        from streamlog.broker.backup import backup_environments

        self.check_usable()
        brokers = {broker.id: broker.environment for broker in self.brokers}
        backup_environments(self.directory, brokers, self.metadata.environment, path)

    # -- looking things up -------------------------------------------------------------------------------------------

    def topic(self, name: str) -> TopicImage:
        """Raises UnknownTopicOrPartitionError."""
        return self.metadata.image.topic(name)

    def topic_for_client(self, name: str) -> TopicImage:
        """The topic, made on first use where `auto_create_topics` is on."""
        image = self.topics.get(name)
        if image is None and self.config.auto_create_topics:
            try:
                self.create_topic(name, -1, -1, {})
            except TopicAlreadyExistsError:
                pass  # somebody else was faster
        return self.topic(name) if image is None else image

    def topic_config(self, name: str) -> TopicConfig:
        return TopicConfig.with_overrides(self.topic(name).config, self.config)

    def partition(self, topic: str, number: int) -> Partition:
        """The partition at its leader, to read from and to listen to."""
        if self.closed:
            self.check_usable()
        if self._peers is not None:
            return self.leader(topic, number).partition(topic, number)
        return self.broker.partition(topic, number)

    def leader(self, topic: str, number: int) -> Broker:
        """The broker that leads a partition.

        Raises   UnknownTopicOrPartitionError; LeaderNotAvailableError if nobody leads it; NetworkError if its leader is
                 down and the controller has not found out yet. The last two are retriable.
        """
        if self._peers is None:
            return self.broker
        image = self.metadata.image.partition(topic, number)
        if image.leader < 0:
            raise LeaderNotAvailableError(
                f"nobody leads {topic}-{number}: of its replicas {image.replicas} only {image.isr} may, and none of "
                "them runs",
                topic=topic,
                partition=number,
                isr=image.isr,
            )
        broker = self._peers.running(image.leader)
        if broker is None:
            from streamlog.broker.network import down

            raise down(image.leader)
        return broker

    def any_replica(self, topic: str, number: int) -> Partition:
        """A replica that is there, whoever leads: to wait with. Raises LeaderNotAvailableError without one."""
        for broker_id in self.metadata.image.partition(topic, number).replicas:
            broker = self.peers.running(broker_id)
            if broker is not None:
                return broker.partition(topic, number)
        raise LeaderNotAvailableError(
            f"no broker with a replica of {topic}-{number} runs", topic=topic, partition=number
        )

    def leader_of(self, partition: Partition) -> Broker:
        """The broker that hosts this very replica."""
        return partition.home or self.broker

    def listener(self) -> Listener:
        return Listener(self.runtime, self.subscribe_lock, self.waiting_fetches)

    def _tell_brokers(self, request: object) -> None:
        """Have every broker do something; one that is paused does it when it goes on."""
        for broker in self.brokers:
            try:
                wait_until_told(broker, [broker.post(request)])
            except (ClosedError, NetworkError):
                continue  # it has just stopped: at its next start it finds what has changed

    # -- writing -----------------------------------------------------------------------------------------------------

    def create_topic(
        self, name: str, partitions: int, replication_factor: int, config: dict[str, str]
    ) -> TopicImage:
        self.check_usable()
        self.ask_controller(api.CreateTopic(name, partitions, replication_factor, config))
        return self.topic(name)

    def delete_topic(self, name: str) -> None:
        self.check_usable()
        if not self.config.delete_topic_enable:
            why = f"topic {name!r} is not deleted: this cluster was opened with delete_topic_enable=False"
            raise TopicDeletionDisabledError(why, topic=name)
        image = self.ask_controller(api.DeleteTopic(name))
        self._tell_brokers(DropTopic(image))
        if CONSUMER_OFFSETS_TOPIC in self.topics:
            # As Kafka: a topic made anew begins without the offsets committed for the old one.
            self.coordinator.forget_topic(name)

    def control(self, request: object) -> None:
        """Have the controller decide; raises the first error there is of a partition. Waits while there is none."""
        self.peers.open()
        errors: Mapping[object, Exception] = self.ask_controller(request)
        for error in errors.values():
            raise error

    def ask_controller(self, request: object) -> Any:
        """A decision of the controller's; while there is no controller, one is waited for."""
        deadline_ms = self.runtime.clock.monotonic_ms() + REQUEST_WAIT_MS
        waiter = None
        while True:
            try:
                return self.metadata.call(request, REQUEST_WAIT_MS)
            except NotControllerError:
                if self.runtime.clock.monotonic_ms() >= deadline_ms:
                    raise
            waiter = waiter or self.runtime.waiter()
            waiter.wait(CONTROLLER_LOOK_MS)

    def create_partitions(self, name: str, total: int) -> TopicImage:
        self.check_usable()
        self.ask_controller(api.CreatePartitions(name, total))
        return self.topic(name)

    def alter_topic(self, name: str, changes: dict[str, str | None]) -> TopicImage:
        self.check_usable()
        self.ask_controller(api.AlterTopicConfig(name, changes))
        self._tell_brokers(RefreshTopic(name))
        self.move_high_watermarks()
        return self.topic(name)

    def move_high_watermarks(self) -> None:
        """Options that they depend on (min.insync.replicas) may have changed."""
        if self._peers is not None:
            self._tell_brokers(MoveHighWatermarks())

    def config_of(self, broker_id: int | None) -> ClusterConfig:
        """The options in force at a broker; None: at all that have none of their own."""
        return effective(self.given_config, self.metadata.image.broker_configs, broker_id)

    def delete_records(self, topic: str, partition: int, before_offset: int) -> int:
        self.check_usable()
        request, leader = api.DeleteRecords(topic, partition, before_offset), self.leader(topic, partition)
        call = leader.call if self._peers is None else partial(self._peers.helping.call, leader)
        start: int = call(request, REQUEST_WAIT_MS)
        return start

    # -- groups ------------------------------------------------------------------------------------------------------

    def ensure_offsets_topic(self) -> None:
        """Make `__consumer_offsets` at the first use of any group."""
        if CONSUMER_OFFSETS_TOPIC in self.topics:
            return
        self.check_usable()
        try:
            self.ask_controller(
                api.CreateTopic(
                    CONSUMER_OFFSETS_TOPIC,
                    self.config.offsets_topic_num_partitions,
                    min(3, len(self.metadata.image.active_brokers()) or 1),
                    dict(OFFSETS_TOPIC_CONFIG),
                )
            )
        except TopicAlreadyExistsError:
            pass

    def post_group(
        self, group_id: str, event: Any, on_done: Callable[[Pending], None] | None = None
    ) -> Pending:
        """Hand an event to a group's coordinator; the answer may come later."""
        self.ensure_offsets_topic()
        if self._peers is not None:
            return self._peers.coordinators.post(group_id, event, on_done)
        return self.broker.post(GroupRequest(group_id, event), on_done=on_done)

    def call_group(self, group_id: str, event: Any, timeout_ms: int | None = None) -> Any:
        self.ensure_offsets_topic()
        if self._peers is not None:
            return self._peers.coordinators.call(group_id, event, timeout_ms or REQUEST_WAIT_MS)
        return self.broker.call(GroupRequest(group_id, event), timeout_ms)

    @property
    def coordinator(self) -> Any:
        self.ensure_offsets_topic()
        return self.broker.coordinator if self._peers is None else self._peers.coordinators
