"""The checkers of `checkers` over one cluster: what changed since the last step, and what is committed by now.

    checks = Checks(simulation, cluster)          # every checker, after every turn and every step of an actor
    checks.acked("t", 0, 17)                      # a client tells what it was promised ...
    checks.read(records)                          # ... and what it has seen

    broker.turns_total rose --> its replicas whose state changed --> the committed log of each partition grows
                                                                 --> every checker looks at what changed, no more

No state between two turns goes unseen: `simulation` calls `look` at the end of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from streamlog.batch_header import parse_header
from streamlog.core.cluster_image import TRANSACTION_STATE_TOPIC
from streamlog.errors import StreamlogError, UnknownTopicOrPartitionError
from streamlog.storage import log
from streamlog.storage.keys import BATCH_START
from streamlog.testing.checkers import (
    UNCLEAN,
    AckedSurvives,
    Checker,
    CommittedBatch,
    CommittedLog,
    CommittedNeverLost,
    EachOnceInOrder,
    EpochsMatchLog,
    HighWatermarkMonotonic,
    ImageInvariants,
    IsrHoldsCommitted,
    LeaderInIsr,
    LogKey,
    LogsIdentical,
    NoUncommittedRead,
    OffsetsDense,
    OneLeaderPerEpoch,
    ReplicaChange,
)
from streamlog.testing.transaction_checkers import (
    CommitsMonotonic,
    ExactlyOnce,
    MarkersFollowDecisions,
    OneOwner,
    StableOffset,
    decisions,
)

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.partition import Partition
    from streamlog.core.cluster_image import TopicImage
    from streamlog.core.replica import ReplicaState
    from streamlog.record import Record
    from streamlog.testing.simulation import Simulation


CHECKERS: Final = (
    HighWatermarkMonotonic,
    CommittedNeverLost,
    LogsIdentical,
    IsrHoldsCommitted,
    OneLeaderPerEpoch,
    LeaderInIsr,
    ImageInvariants,
    OffsetsDense,
    EpochsMatchLog,
    AckedSurvives,
    NoUncommittedRead,
    EachOnceInOrder,
    ExactlyOnce,
    StableOffset,
    OneOwner,
    CommitsMonotonic,
    MarkersFollowDecisions,
)


class Checks:
    """All checkers over one cluster, as a check of its simulation."""

    def __init__(
        self, simulation: Simulation, cluster: Any, checkers: Iterable[type[Checker]] = CHECKERS
    ) -> None:
        """cluster: as `streamlog.open` gave it."""
        self.checkers: list[Checker] = [kind() for kind in checkers]
        self._at_each_step = [
            checker for checker in self.checkers if type(checker).on_step is not Checker.on_step
        ]
        self.logs: dict[LogKey, CommittedLog] = {}
        self._backend = cluster._backend
        self._known_brokers: list[Broker] = []
        self._brokers: dict[Broker, dict[Partition, tuple[ReplicaState, bool]]] = {}
        """Those whose turns are not over yet, and the states and roles that were seen of what they hold."""
        self.brokers: dict[Broker, None] = {}
        """All that ever ran: each life is another object."""
        self._turns: dict[Any, int] = {}
        self._verified: dict[Partition, int] = {}
        self._topics: dict[str, TopicImage] = {}
        self.batches_compared = 0
        self.simulation = simulation
        simulation.checks.append(self.look)

    def __repr__(self) -> str:
        return f"<Checks {len(self.logs)} logs, {self.batches_compared} batches compared>"

    def __getitem__(self, kind: type[Any]) -> Any:
        """The checker of this class."""
        return next(checker for checker in self.checkers if type(checker) is kind)

    # -- what clients tell -------------------------------------------------------------------------------------------

    def acked(self, topic: str, number: int, offset: int, value: bytes | None = None) -> None:
        """acks=all was told that this record is written."""
        self.look()
        committed = self._log(topic, number)
        for checker in self.checkers:
            checker.on_acked(committed, offset, value)

    def read(self, records: Iterable[Record]) -> None:
        """A consumer was given these."""
        self.look()
        by_partition: dict[tuple[str, int], list[Record]] = {}
        for record in records:
            by_partition.setdefault((record.topic, record.partition), []).append(record)
        for (topic, number), some in by_partition.items():
            committed = self._log(topic, number)
            for checker in self.checkers:
                checker.on_read(committed, some)

    def told(self, topic: str, number: int, end_offset: int) -> None:
        """A consumer was told where the readable log ends."""
        committed = self._log(topic, number)
        for checker in self.checkers:
            checker.on_told(committed, end_offset)

    def deleting(self, topic: str, number: int, before_offset: int) -> None:
        """Somebody is about to delete the records below an offset."""
        committed = self._log(topic, number)
        committed.deleted_below = max(committed.deleted_below, before_offset)

    def joined(self, consumer: Any) -> None:
        """A member of a group lives from now on."""
        self[OneOwner].members[consumer] = None

    def left(self, consumer: Any) -> None:
        """It was closed, or died."""
        self[OneOwner].members.pop(consumer, None)

    def committed(self, group_id: str, offsets: dict[Any, int]) -> None:
        """Somebody was told what a group has committed."""
        self[CommitsMonotonic].on_offsets(group_id, offsets)

    def deleted_below(self, topic: str, number: int) -> int:
        """Below this somebody has asked for records to be deleted."""
        return self._log(topic, number).deleted_below

    def _log(self, topic: str, number: int) -> CommittedLog:
        image = self._backend.metadata.image.topic(topic)
        return self._committed_log(image, number)

    def _committed_log(self, topic: TopicImage, number: int) -> CommittedLog:
        key = (topic.topic_id, number)
        committed = self.logs.get(key)
        if committed is None:
            committed = self.logs[key] = CommittedLog(
                topic.name,
                topic.topic_id,
                number,
                is_exempt=topic.config.get(UNCLEAN, "false") == "true",
                is_compacted="compact" in topic.config.get("cleanup.policy", "delete"),
            )
        return committed

    # -- after every step --------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Look at what changed since the last time. Raises InvariantViolatedError."""
        backend = self._backend
        metadata = backend.metadata
        concerned: dict[CommittedLog, None] = {}
        if self._turns.get(metadata) != metadata.turns_total:
            self._turns[metadata] = metadata.turns_total
            self._look_at_image(concerned)
        changes: list[ReplicaChange] = []
        if self._known_brokers is not backend.brokers:
            self._known_brokers = backend.brokers
            for broker in self._known_brokers:
                self._brokers.setdefault(broker, {})
                self.brokers[broker] = None
        for broker, states in list(self._brokers.items()):
            is_over = broker._stopped
            if is_over or self._turns.get(broker) != broker.turns_total:
                self._turns[broker] = broker.turns_total
                self._look_at_broker(broker, states, changes)
            if is_over:
                del self._brokers[broker]
        if changes:
            # Leaders first: what followers hold is measured by what leaders have committed.
            changes.sort(key=lambda change: not (change.is_leader or change.was_leader))
            for change in changes:
                self._take_up(change, concerned)
        if concerned:
            self._look_at_committed(concerned)
        for checker in self._at_each_step:
            checker.on_step()

    def _look_at_image(self, concerned: dict[CommittedLog, None]) -> None:
        topics = self._backend.metadata.image.topics
        for name, topic in list(topics.items()):
            before = self._topics.get(name)
            if before is topic:
                continue
            known = before.partitions if before is not None and before.topic_id == topic.topic_id else ()
            for number, partition in enumerate(topic.partitions):
                old = known[number] if number < len(known) else None
                if old is partition or old == partition:
                    continue
                concerned[self._committed_log(topic, number)] = None
                for checker in self.checkers:
                    checker.on_image(topic, number, old, partition)
            self._topics[name] = topic

    def _look_at_broker(
        self,
        broker: Broker,
        states: dict[Partition, tuple[ReplicaState, bool]],
        changes: list[ReplicaChange],
    ) -> None:
        held = dict.fromkeys(broker.partitions.values())
        gone = [partition for partition in states if partition not in held]
        for partition in [*held, *gone]:  # of what it gave away, too: how it left that
            state, is_leader = partition.state, partition.serves
            before = states.get(partition)
            if before is not None and before[0] is state and before[1] == is_leader:
                continue
            topic = self._topics.get(partition.topic)
            if (
                topic is None
                or topic.topic_id != partition.topic_id
                or partition.number >= len(topic.partitions)
            ):
                continue  # deleted
            committed = self._committed_log(topic, partition.number)
            changes.append(ReplicaChange(broker, partition, committed, before))
            states[partition] = (state, is_leader)
        for partition in gone:
            del states[partition]

    def _take_up(self, change: ReplicaChange, concerned: dict[CommittedLog, None]) -> None:
        committed, state, partition = change.log, change.after, change.partition
        committed.replicas[change.broker.id] = partition
        # Also what it raised as the leader in the very turn in which it ceased to be.
        if (change.is_leader or change.was_leader) and state.high_watermark > committed.end_offset:
            committed.end_offset = state.high_watermark
            concerned[committed] = None
        if change.is_truncated or change.before is None:
            concerned[committed] = None
        for checker in self.checkers:
            checker.on_replica(change)
        verified = self._verified.get(partition, 0)
        if change.is_truncated:
            verified = min(verified, state.log_end_offset)
        if change.is_leader and not change.was_leader:
            verified = 0  # a new leader is looked at from its beginning
        start = max(verified, state.log_start_offset)
        if state.high_watermark > start and change.is_readable:
            self._verify(change, start)
        self._verified[partition] = max(start, state.high_watermark)

    def _verify(self, change: ReplicaChange, start: int) -> None:
        batches = list(self._batches(change.partition, start, change.after.high_watermark))
        self.batches_compared += len(batches)
        for checker in self.checkers:
            checker.on_batches(change, batches, start)
        committed = change.log
        if change.is_leader and not committed.is_compacted and start <= committed.known_end_offset:
            for batch in batches:
                committed.batches.setdefault(batch.base_offset, batch)
            committed.known_end_offset = max(committed.known_end_offset, change.after.high_watermark)

    def _batches(self, partition: Partition, start: int, end: int) -> Iterator[CommittedBatch]:
        broker = partition.home
        assert broker is not None
        with broker.environment.snapshot() as snapshot:
            for last_offset, value in log.iterate_values(snapshot, partition.log_id, start):
                if last_offset >= end:
                    return
                header = parse_header(value, BATCH_START)
                checksum = crc32(value[BATCH_START:])
                is_telling = header.is_control or partition.topic == TRANSACTION_STATE_TOPIC
                yield CommittedBatch(
                    header.base_offset,
                    last_offset,
                    header.leader_epoch,
                    checksum,
                    header.producer_id,
                    header.is_transactional,
                    header.is_control,
                    decisions(partition.topic, bytes(value[BATCH_START:])) if is_telling else (),
                )

    def _look_at_committed(self, concerned: dict[CommittedLog, None]) -> None:
        image = self._backend.metadata.image
        running = {broker.id: broker for broker in self._backend.brokers}
        for committed in concerned:
            for broker_id, replica in list(committed.replicas.items()):
                if running.get(broker_id) is not replica.home:
                    del committed.replicas[broker_id]  # it is down; its next life loads another
            try:
                partition = image.partition(committed.topic, committed.number)
            except UnknownTopicOrPartitionError:
                continue
            if image.topics[committed.topic].topic_id != committed.topic_id:
                continue  # made anew
            for checker in self.checkers:
                checker.on_committed(committed, partition)

    # -- at the end --------------------------------------------------------------------------------------------------

    def unconverged(self) -> list[str]:
        """What is not yet as it must be once all faults are over and all brokers run; empty: converged."""
        found: list[str] = []
        running = {broker.id: broker for broker in self._backend.brokers}
        for topic, number, image in self._backend.metadata.image.partitions():
            where = f"{topic.name}-{number}"
            if set(image.isr) != set(image.replicas) or image.leader < 0 or image.is_reassigning:
                found.append(f"{where}: {image}")
                continue
            ends = {}
            for broker_id in image.replicas:
                try:
                    state = running[broker_id].partition(topic.name, number).state
                except (StreamlogError, KeyError) as error:
                    found.append(f"{where} at broker {broker_id}: {error!r}")
                else:
                    ends[broker_id] = (state.high_watermark, state.log_end_offset)
            if len({place for pair in ends.values() for place in pair}) > 1:
                found.append(f"{where}: (high watermark, log end) {ends}")
        return found
