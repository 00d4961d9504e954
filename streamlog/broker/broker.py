"""One broker: the only place where rules meet bytes.

    Produce, group requests, deletions --turn--> decide, one LMDB transaction, apply, publish, reply
    reads                              --no turn--> view, snapshot, view again (see `broker.reading`)

Partitions and group coordinators load on first touch. The broker's own thread (`Service`) only serves deadlines:
group sessions, slices of deletions, `flush.ms`; it is not started before there is one.

Invariants:
 1. `partitions` holds at most one object per (topic, partition), and only for topics of the cluster image.
 2. What a turn staged for a partition is written with its checkpoint in the same transaction.
 3. Deciding changes nothing: what a turn changes besides partitions is in its effects (law 6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from streamlog.batch import Batch
from streamlog.broker import api, maintaining, producing
from streamlog.broker.api import GroupRequest, TransactionRequest
from streamlog.broker.deletion import FAILED_PAUSE_MS, Deletions
from streamlog.broker.flushing import Flushing
from streamlog.broker.metadata import MetadataLog
from streamlog.broker.partition import Partition, TopicMeters, load_producers, load_state
from streamlog.broker.reading import LogReader
from streamlog.broker.runner import Runtime, Service
from streamlog.broker.turn import DEFER, Pending, Tick, Turn, TurnOwner
from streamlog.broker.upkeep import (
    DropLogs,
    TrimHead,
)
from streamlog.config import ClusterConfig, TopicConfig
from streamlog.core.cluster_image import TopicImage
from streamlog.core.replica import (
    ReplicaState,
    appended,
    moves_only_mark,
    replicated,
)
from streamlog.errors import (
    ReplicaNotAvailableError,
    StreamlogError,
    UnknownTopicOrPartitionError,
)
from streamlog.metrics import MetricsRegistry
from streamlog.storage import log
from streamlog.storage.env import Environment

if TYPE_CHECKING:
    from streamlog.broker.coordinator import Coordinator
    from streamlog.broker.measuring import GroupCounters
    from streamlog.broker.replication import Replication

CLOSE_WAIT_MS: Final = 1_000
TICK_LOOK_MS: Final = 10  # how often the broker's thread looks whether somebody has run the tick it posted
TOPIC_METRICS: Final = "kafka.server:type=BrokerTopicMetrics,name="


class Broker(TurnOwner):
    """One broker with its own environment."""

    def __init__(
        self,
        broker_id: int,
        environment: Environment,
        metadata: MetadataLog,
        runtime: Runtime,
        config: ClusterConfig,
        incarnation: str,
        metrics: MetricsRegistry,
    ) -> None:
        super().__init__(f"broker {broker_id}", environment, runtime, config.inbox_requests_max)
        self.id = broker_id
        self.metadata = metadata
        self.config = config
        self.incarnation = incarnation
        self.metrics = metrics
        self.partitions: dict[tuple[str, int], Partition] = {}
        self._coordinator: Coordinator | None = None
        self.reader = LogReader(environment, runtime.waiter)
        self._load_lock = (
            runtime.turn_lock()
        )  # may be taken again: a signal handler strikes while this thread loads
        self._topic_meters: dict[str, TopicMeters] = {}
        self._all_topics = TopicMeters(lambda name: metrics.meter(TOPIC_METRICS + name))
        self.group_counters: GroupCounters | None = None
        self.deletions = Deletions(self)
        self.flushing = Flushing(environment, runtime.clock, config.flush_ms)
        self._down: StreamlogError | None = None
        self.epoch = -1  # of this life, by the controller: `BrokerImage.broker_epoch`
        self.replication: Replication | None = None  # of a cluster with one broker there is none
        self._service_deadline_ms: int | None = None
        self._tick: Pending | None = None
        self._is_serving = False
        self._service = Service(runtime, f"streamlog-broker-{broker_id}", self._serve)

    def __repr__(self) -> str:
        return f"Broker({self.id}, {len(self.partitions)} partitions loaded, {self.turns_total} turns)"

    @property
    def coordinator(self) -> Coordinator:
        """The group coordinator, made at its first use: who has no groups does not even import them."""
        coordinator = self._coordinator
        if coordinator is None:
            from streamlog.broker.coordinator import Coordinator

            with self._load_lock:
                made = Coordinator(self, self.config, self.incarnation)
                coordinator = self._coordinator = self._coordinator or made
        return coordinator

    @property
    def has_coordinator(self) -> bool:
        return self._coordinator is not None

    # -- partitions --------------------------------------------------------------------------------------------------

    def partition(self, topic: str, number: int) -> Partition:
        """The partition, loaded at its first use. Raises UnknownTopicOrPartitionError."""
        partition = self.partitions.get((topic, number))
        image = self.metadata.image.topics.get(topic)
        if partition is None or image is None or image.topic_id != partition.topic_id:
            partition = self._load_partition(topic, number)
        if not partition.is_alone and partition.role_epoch < 0 and self.replication is not None:
            self.replication.wait_for_role(partition)
        return partition

    def _load_partition(self, name: str, number: int) -> Partition:
        with self._load_lock:
            topic = self.metadata.image.topics.get(name)
            partition = self.partitions.get((name, number))
            if partition is not None:
                if topic is not None and topic.topic_id == partition.topic_id:
                    return partition
                # Its topic was deleted, perhaps made anew; its DropTopic has not come yet (or never will: interrupted).
                partition.stop_serving()
                self.partitions.pop((name, number), None)
                if self.replication is not None:
                    from streamlog.broker.replica_requests import ForgetReplica

                    self.slip_in(ForgetReplica(partition))  # in a turn: who waits for followers is told there
            topic = self.metadata.image.topic(name)
            if not 0 <= number < len(topic.partitions):
                raise UnknownTopicOrPartitionError(
                    f"topic {name!r} has no partition {number}; allowed: 0 to {len(topic.partitions) - 1}",
                    topic=name,
                    partition=number,
                )
            image = topic.partitions[number]
            if image.log_id in self.deletions.doomed:
                raise ReplicaNotAvailableError(
                    f"broker {self.id} is still deleting what it had of {name}-{number}",
                    topic=name,
                    partition=number,
                )
            state, is_untrimmed = load_state(self.environment, image.log_id, image.leader_epoch)
            with self.environment.snapshot() as snapshot:
                producers = load_producers(snapshot, image.log_id, state)
            partition = Partition(
                topic, number, image, self.topic_config(topic), state, self.topic_meters(name)
            )
            partition.home, partition.producers = self, producers
            if producers is not None:
                partition.state = partition.view = producers.stabilized(state)
            if self.replication is not None:
                self.replication.on_loaded(partition, image)
            loaded = self.partitions.setdefault((name, number), partition)
            if is_untrimmed and loaded is partition:
                self.slip_in(TrimHead(partition))
            return loaded

    def topic_config(self, topic: TopicImage) -> TopicConfig:
        config = TopicConfig.with_overrides(topic.config, self.config)
        self.flushing.learn(config)
        return config

    def topic_meters(self, name: str) -> TopicMeters:
        meters = self._topic_meters.get(name)
        if meters is None:
            meters = TopicMeters(
                lambda metric: self.metrics.meter(TOPIC_METRICS + metric, topic=name),
                self._all_topics,
                self.request_times,
            )
            self._topic_meters[name] = meters
        return meters

    # -- deciding ----------------------------------------------------------------------------------------------------

    def _run_turn(self) -> None:
        inbox = self._inbox
        count = len(inbox)
        if count < 3 and self._unfinished is None and not (self.disk_is_full or self.commit_delay_ms):
            pending, coordinator = inbox[0], self._coordinator
            if count == 1 and type(pending.request) is api.Produce:
                if producing.run_alone(self, pending):
                    return
            elif coordinator is not None and coordinator.run_usual(pending, inbox[1] if count == 2 else None):
                return
        super()._run_turn()

    def _decide(self, turn: Turn, pending: Pending) -> object:
        request = pending.request
        kind = type(request)
        if kind is api.Produce:
            if turn.reclaiming:
                return DEFER  # its room is kept for deleting
            producing.decide(self, turn, pending, request)  # type: ignore[arg-type]
        elif kind is GroupRequest:
            return self.coordinator.decide(turn, pending, request)  # type: ignore[arg-type]
        elif kind is TransactionRequest:
            return self.coordinator.transactions.decide(turn, pending, request)  # type: ignore[arg-type]
        elif kind is Tick:
            return self._decide_tick(turn, pending)
        else:
            if self.replication is not None and self.replication.decide(turn, pending, request):
                return None
            return maintaining.decide(self, turn, pending, request)
        return None

    def append(self, turn: Turn, partition: Partition, batch: Batch) -> api.Produced:
        """Stage one admitted batch at the end of a partition, as its leader."""
        state: ReplicaState = turn.staged.get(partition) or partition.state
        base_offset = state.log_end_offset
        running_max = (
            batch.max_timestamp if batch.max_timestamp > state.max_timestamp else state.max_timestamp
        )
        transaction = turn.transaction or self.transaction(turn)
        stored = log.append(
            transaction, partition.log_id, batch, base_offset, state.leader_epoch, running_max
        )
        if turn.is_alone(partition):
            turn.staged[partition] = appended(state, batch.last_offset_delta + 1, stored, batch.max_timestamp)
        else:
            end_offset = base_offset + batch.last_offset_delta + 1
            turn.staged[partition] = replicated(state, end_offset, stored, batch.max_timestamp)
            cast("Replication", self.replication).move_high_watermark(turn, partition)
        return api.Produced(
            base_offset, batch.max_timestamp if batch.is_log_append_time else -1, state.log_start_offset
        )

    def _on_dropped(self, turn: Turn) -> None:
        for partition in turn.staged:
            partition.is_cutting = False

    def _frees(self, request: object) -> bool:
        return type(request) not in (api.Produce, GroupRequest, TransactionRequest)

    def drop(self, topic: TopicImage) -> None:
        for number, image in enumerate(topic.partitions):
            partition = self.partitions.get((topic.name, number))
            if partition is not None and partition.topic_id == topic.topic_id:
                self.partitions.pop((topic.name, number), None)
                self._withdraw(partition)
            self.deletions.doomed[image.log_id] = None
        if topic.name not in self.metadata.image.topics:
            self._topic_meters.pop(topic.name, None)
            self.metrics.remove(topic=topic.name)

    def drop_orphans(self, log_ids: list[int]) -> None:
        """Delete logs that were found to be nobody's, unless they have become ours meanwhile."""
        ours = set(self.metadata.image.log_ids(self.id))
        self.drop_logs([log_id for log_id in log_ids if log_id not in ours])

    def _withdraw(self, partition: Partition) -> None:
        partition.stop_serving()
        if self.replication is not None:
            self.replication.forget(partition)

    def drop_logs(self, log_ids: list[int]) -> None:
        self.deletions.doomed.update(dict.fromkeys(log_ids))
        for key, partition in list(self.partitions.items()):
            if partition.log_id in self.deletions.doomed:
                self.partitions.pop(key, None)
                self._withdraw(partition)

    def refresh(self, name: str) -> None:
        topic = self.metadata.image.topics.get(name)
        if topic is None:
            return
        config = self.topic_config(topic)
        for number in range(len(topic.partitions)):
            partition = self.partitions.get((name, number))
            if partition is not None and partition.topic_id == topic.topic_id:
                partition.configure(config)

    def configure(self, config: ClusterConfig) -> None:
        """Other options are in force from now on."""
        self.config = config
        if self.replication is not None:
            self.replication.configure(config)
        for name in {topic for topic, _ in list(self.partitions)}:
            self.refresh(name)

    # -- committing and applying -------------------------------------------------------------------------------------

    def _before_commit(self, turn: Turn) -> None:
        if turn.unwritten:
            self.coordinator.transactions.write_staged(turn)
        marks = []
        for partition, state in turn.staged.items():
            if not partition.is_alone and moves_only_mark(partition.state, state):
                marks.append((partition, state))  # of itself no reason for a commit: see `Replication`
                continue
            retention_bytes = partition.config.retention_bytes
            if 0 <= retention_bytes < state.size_bytes and partition.config.deletes:
                state = self.deletions.trim_to_size(turn, partition, state, retention_bytes)
            log.put_checkpoint(turn.transaction or self.transaction(turn), partition.log_id, state)
            if partition.producers is not None or partition in turn.producers:
                producing.save_producers(self, turn, partition, state)
        if marks and turn.transaction is not None:
            for partition, state in marks:
                log.put_checkpoint(turn.transaction, partition.log_id, state)

    def _apply(self, turn: Turn) -> None:
        flushing = self.flushing
        is_unsynced = turn.transaction is not None and flushing.is_needed
        if is_unsynced and flushing.has_topic_rules:
            flushing.flush_full(turn)  # first: who reads a record of such a topic may rely on it
        for partition, producers in turn.producers.items():
            partition.producers.take(producers, turn.wall_ms, turn.decided.get(partition, ()))
        if self.replication is None:
            for partition, state in turn.staged.items():
                partition.publish(state)
        else:
            self.replication.publish(turn)
        if (
            (is_unsynced and flushing.note(turn))
            or self.deletions.trimming
            or self.deletions.doomed
            or (self._coordinator is not None and self._coordinator.deadlines.has_changed)
            or (self.replication is not None and self.replication.has_deadlines)
        ):
            self._plan_service(turn.now_ms)

    def _count(self, turn: Turn) -> None:
        if turn.staged_machines and self.group_counters is not None:
            self.group_counters.count(turn)
        everything, by_topic, times = self._all_topics, self._topic_meters, self.request_times
        for pending, value, failure in turn.replies:
            if type(pending.request) is not api.Produce:
                continue
            for index, (name, _, batch) in enumerate(pending.request.entries):
                meters = by_topic.get(name) or everything
                error = failure if value is None else value[index].error
                if error is None:
                    meters.written(batch.last_offset_delta + 1, batch.size_bytes, times)
                else:
                    meters.not_written(error, batch.size_bytes, times)
        for pending, value in turn.parked:  # written now; that it is answered is counted when it is
            for (name, _, batch), produced in zip(pending.request.entries, value, strict=True):  # type: ignore[attr-defined]
                meters = by_topic.get(name) or everything
                if produced.error is None:
                    meters.written(batch.last_offset_delta + 1, batch.size_bytes, None)
                else:
                    meters.not_written(produced.error, batch.size_bytes, None)

    # -- deadlines ---------------------------------------------------------------------------------------------------

    def _plan_service(self, now_ms: int) -> None:
        """Have the broker's thread awake in time for the next deadline."""
        deadline_ms = self._next_deadline_ms(now_ms)
        if self._coordinator is not None:
            self._coordinator.deadlines.has_changed = False
        if self._is_serving:
            return  # our own tick: its thread looks when it is done
        if deadline_ms is not None and (
            self._service_deadline_ms is None or deadline_ms < self._service_deadline_ms
        ):
            self._service_deadline_ms = deadline_ms
            self._service.wake()

    def _next_deadline_ms(self, now_ms: int) -> int | None:
        deadlines = [self.deletions.deadline_ms(), self.flushing.deadline_ms]
        if self._coordinator is not None:
            deadlines.append(self._coordinator.next_deadline_ms())
        if self.replication is not None:
            deadlines.append(self.replication.next_deadline_ms(now_ms))
        return min([deadline for deadline in deadlines if deadline is not None], default=None)

    def _serve(self, now_ms: int) -> int | None:
        """The broker's own thread: do what is due. Returns when to look again."""
        if self._closed:
            return None
        self._service_deadline_ms = None
        failed = False
        sync_ms = self.flushing.deadline_ms
        if sync_ms is not None and sync_ms <= now_ms:
            failed = not self.flushing.flush()
        deadline_ms = self._next_deadline_ms(now_ms)
        if deadline_ms is not None and deadline_ms <= now_ms and not failed:
            if self._tick is None or self._tick.done:  # else the turn is taken, and ours waits already
                self._is_serving = True
                try:
                    self._tick = self.post(Tick())
                except StreamlogError:
                    return None  # closed meanwhile
                finally:
                    self._is_serving = False
            failed = self._tick.error is not None and not self.deletions.shrink()
            now_ms = self._clock.monotonic_ms()
            deadline_ms = self._next_deadline_ms(now_ms)
            if deadline_ms is not None and not self._tick.done:
                deadline_ms = max(deadline_ms, now_ms + TICK_LOOK_MS)
        if failed and deadline_ms is not None:
            deadline_ms = max(deadline_ms, now_ms + FAILED_PAUSE_MS)
        self._service_deadline_ms = deadline_ms
        return deadline_ms

    def _decide_tick(self, turn: Turn, pending: Pending) -> object:
        if self._coordinator is not None:
            self._coordinator.on_tick(turn)
        if self.replication is not None:
            self.replication.on_tick(turn)
        deadline_ms = self.deletions.deadline_ms()
        if deadline_ms is not None and deadline_ms <= turn.now_ms:
            self.deletions.stage_slice(turn)
        turn.reply(pending, None)
        return None

    def delete_orphans(self) -> int:
        """Find logs of topics deleted before a crash, or reassigned to others while we were down, and have them
        deleted. Returns how many.
        """
        with self.environment.snapshot() as snapshot:
            stored = log.log_ids(snapshot)
        # The image is looked at after the store: a topic made in between is known, whatever the store holds of it.
        known = set(self.metadata.image.log_ids(self.id))
        orphans = [log_id for log_id in stored if log_id not in known]
        if orphans:
            self.post(DropLogs(orphans))
        return len(orphans)

    # -- for replication: what its parts ask of the turn -------------------------------------------------------------

    def log_ends(self) -> dict[int, int]:
        """Where the loaded logs end, by log id."""
        return {
            partition.log_id: partition.state.log_end_offset for partition in list(self.partitions.values())
        }

    def plan_service(self) -> None:
        """Look for deadlines anew: time has passed without us."""
        self._plan_service(self._clock.monotonic_ms())

    def on_coordinator_moved(self, turn: Turn, partition: Partition) -> None:
        """We no longer lead a partition of an internal topic: what is folded from it goes."""
        if self._coordinator is not None and partition.internal:
            coordinator = self._coordinator
            turn.effects.append(lambda: coordinator.unload(partition))

    def after_turn(self, turn: Turn, call: Callable[[], None]) -> None:
        """Have something done outside of the turn, once it is applied."""
        turn.effects.append(lambda: self._outbox.append(call))

    def answer(self, pending: Pending, value: object, error: BaseException | None = None) -> None:
        """Answer a request that was parked. Called as the runner."""
        self._answer(pending, value, error)

    # -- closing -----------------------------------------------------------------------------------------------------

    def close(self, refusal: StreamlogError | None = None, *, abruptly: bool = False) -> None:
        """Finish what is under way, wake who waits, refuse everything later.

        refusal:  what later callers are told; None: that it is closed.
        abruptly: crash: what waits in the inbox is refused as well.
        """
        if self.replication is not None and not abruptly and not self.paused:
            from streamlog.broker.replica_requests import SaveHighWatermarks

            try:
                self.call(SaveHighWatermarks(), CLOSE_WAIT_MS)
            except StreamlogError:
                pass  # a full disk, or closed before: the followers will tell at the next opening
        self._down = refusal

        def withdraw() -> None:
            for partition in list(self.partitions.values()):
                partition.stop_serving()

        self.stop(withdraw, abruptly=abruptly)
        self._service.stop()

    def _refusal(self) -> StreamlogError:
        return super()._refusal() if self._down is None else self._down

    def _on_stop(self, refusal: StreamlogError) -> None:
        for partition in list(self.partitions.values()):
            if (
                partition.is_cutting
            ):  # a truncation that could not be applied: readers would try again for ever
                partition.stop_serving()
        if self._coordinator is not None:
            self._coordinator.close(refusal, self._answer)
        if self.replication is not None:
            self.replication.acknowledgements.close(refusal, self._answer)
            self.replication.deletes.close(refusal, self._answer)
