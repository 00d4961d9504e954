"""What must hold in a replicated cluster after every step, whatever fails: named invariants for a simulation.

Each is a class that looks at what changed; `checks.Checks` finds that out and asks them all.

The measure of all is the *committed log* of a partition: what was below the high watermark of any leader, ever, with the
bytes it had then. Topics that allow unclean elections may lose committed records: there only what holds nevertheless
is checked.

Sources: SEMANTICS 3.1 to 3.4, 3.11; the Raft and Kafka TLA+ models (StrongIsr, LeaderInIsr, WeakIsr).
Not implemented: the bytes of compacted topics.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.partition import Partition
    from streamlog.core.cluster_image import PartitionImage, TopicImage
    from streamlog.core.replica import ReplicaState
    from streamlog.record import Record

LogKey = tuple[str, int]
"""(topic id, partition number): a topic made anew is another."""

UNCLEAN: Final = "unclean.leader.election.enable"


class InvariantViolatedError(AssertionError):
    """An invariant does not hold. `checker` is the name of the class that found it."""

    def __init__(self, checker: str, message: str) -> None:
        super().__init__(f"{checker}: {message}")
        self.checker = checker


class CommittedBatch(msgspec.Struct, frozen=True):
    """One batch below a high watermark."""

    base_offset: int
    last_offset: int
    leader_epoch: int
    checksum: int
    producer_id: int = -1
    is_transactional: bool = False
    is_control: bool = False
    decided: tuple[tuple[int, int, bool], ...] = ()
    """(producer id, epoch, whether it is a commit) of the marker it is, or of the decisions that its records say."""

    def __repr__(self) -> str:
        return (
            f"[{self.base_offset}, {self.last_offset}] of epoch {self.leader_epoch}, crc {self.checksum:08x}"
        )


class CommittedLog:
    """What one partition has promised to keep."""

    def __init__(
        self, topic: str, topic_id: str, number: int, *, is_exempt: bool, is_compacted: bool
    ) -> None:
        self.topic, self.topic_id, self.number = topic, topic_id, number
        self.is_exempt = is_exempt
        self.is_compacted = is_compacted
        self.end_offset = 0
        """The highest high watermark of any leader."""
        self.known_end_offset = 0
        """Up to where the bytes are known; a leader that died at once may not have been read."""
        self.batches: dict[int, CommittedBatch] = {}
        self.deleted_below = 0
        """How far somebody has asked for records to be deleted."""
        self.replicas: dict[int, Partition] = {}

    @property
    def name(self) -> str:
        return f"{self.topic}-{self.number}"


class ReplicaChange:
    """One replica before and after a step."""

    __slots__ = ("after", "before", "broker", "is_leader", "log", "partition", "was_leader")

    def __init__(
        self, broker: Broker, partition: Partition, committed: CommittedLog, before: tuple[Any, bool] | None
    ) -> None:
        self.broker, self.partition, self.log = broker, partition, committed
        self.before: ReplicaState | None = None if before is None else before[0]
        self.was_leader = before is not None and before[1]
        self.after = partition.state
        self.is_leader = partition.serves

    @property
    def is_readable(self) -> bool:
        """Whether the log can be looked at: its store is open, and it is not about to be deleted."""
        partition = self.partition
        return (
            not self.broker._stopped
            and self.broker.partitions.get((partition.topic, partition.number)) is partition
        )

    @property
    def is_truncated(self) -> bool:
        return self.before is not None and self.before.truncation_count != self.after.truncation_count

    def __repr__(self) -> str:
        role = "leader" if self.is_leader else "follower"
        return f"broker {self.broker.id}, {role} of {self.log.name}: {self.before} => {self.after}"


class Checker:
    """One invariant. The subclasses say what they look at; each raises through `fail`."""

    def fail(self, message: str) -> None:
        raise InvariantViolatedError(type(self).__name__, message)

    def on_image(
        self, topic: TopicImage, number: int, before: PartitionImage | None, after: PartitionImage
    ) -> None:
        """The controller changed a partition."""

    def on_replica(self, change: ReplicaChange) -> None:
        """A replica changed."""

    def on_committed(self, committed: CommittedLog, image: PartitionImage | None) -> None:
        """A high watermark rose, an in-sync set changed, or a replica was cut."""

    def on_batches(self, change: ReplicaChange, batches: list[CommittedBatch], from_offset: int) -> None:
        """Batches of a replica below its high watermark were read, for the first time or (a new leader's) again."""

    def on_acked(self, committed: CommittedLog, offset: int, value: bytes | None) -> None:
        """A producer with acks=all was told that this record is written there."""

    def on_read(self, committed: CommittedLog, records: Iterable[Record]) -> None:
        """A consumer was given these records."""

    def on_told(self, committed: CommittedLog, end_offset: int) -> None:
        """A consumer was told where the readable log ends."""

    def on_step(self) -> None:
        """An actor took a step."""


class HighWatermarkMonotonic(Checker):
    """Within one leader's term the high watermark never goes back, nor ever does what consumers are told."""

    def __init__(self) -> None:
        self._told: dict[CommittedLog, int] = {}

    def on_replica(self, change: ReplicaChange) -> None:
        before, after = change.before, change.after
        if (
            before is not None
            and change.is_leader
            and change.was_leader
            and before.leader_epoch == after.leader_epoch
            and after.high_watermark < before.high_watermark
        ):
            self.fail(f"{change} went back")

    def on_told(self, committed: CommittedLog, end_offset: int) -> None:
        told = self._told.get(committed, 0)
        if end_offset < told and not committed.is_exempt:
            self.fail(f"{committed.name}: a consumer was told the end {end_offset}, after {told}")
        self._told[committed] = max(told, end_offset)


class CommittedNeverLost(Checker):
    """A record below any leader's high watermark stays, with the same bytes, on every later leader."""

    def on_replica(self, change: ReplicaChange) -> None:
        committed, state = change.log, change.after
        if not change.is_leader or committed.is_exempt:
            return
        is_new = not change.was_leader or change.before is None
        is_shorter = change.before is not None and state.log_end_offset < change.before.log_end_offset
        if (is_new or is_shorter) and state.log_end_offset < committed.end_offset:
            self.fail(f"{change} ends below {committed.end_offset}, which was committed")
        if state.log_start_offset > committed.deleted_below and not committed.is_compacted:
            self.fail(f"{change} begins above {committed.deleted_below}; nobody asked for that")

    def on_batches(self, change: ReplicaChange, batches: list[CommittedBatch], from_offset: int) -> None:
        if change.is_leader:
            _compare(self, change, batches)


class LogsIdentical(Checker):
    """Below the high watermark all replicas hold the same batches, byte for byte."""

    def on_replica(self, change: ReplicaChange) -> None:
        if not change.log.is_exempt and change.after.high_watermark > change.log.end_offset:
            self.fail(f"{change}: no leader ever had a high watermark above {change.log.end_offset}")

    def on_batches(self, change: ReplicaChange, batches: list[CommittedBatch], from_offset: int) -> None:
        if not change.is_leader:
            _compare(self, change, batches)


class IsrHoldsCommitted(Checker):
    """Every member of the in-sync set, as the controller has it, holds everything that is committed."""

    def on_committed(self, committed: CommittedLog, image: PartitionImage | None) -> None:
        if committed.is_exempt or image is None:
            return
        for broker_id in image.isr:
            replica = committed.replicas.get(broker_id)
            if replica is not None and replica.state.log_end_offset < committed.end_offset:
                self.fail(
                    f"{committed.name}: broker {broker_id} is in the ISR {list(image.isr)} and ends at "
                    f"{replica.state.log_end_offset}; committed is everything below {committed.end_offset}"
                )


class OneLeaderPerEpoch(Checker):
    """An epoch of a partition has one leader, the one that the controller elected."""

    def __init__(self) -> None:
        self._elected: dict[tuple[str, int, int], int] = {}

    def on_image(
        self, topic: TopicImage, number: int, before: PartitionImage | None, after: PartitionImage
    ) -> None:
        known = self._elected.setdefault((topic.topic_id, number, after.leader_epoch), after.leader)
        if known != after.leader:
            self.fail(f"{topic.name}-{number}: {known} and {after.leader} lead in epoch {after.leader_epoch}")

    def on_replica(self, change: ReplicaChange) -> None:
        if not change.is_leader:
            return
        partition = change.partition
        epoch = change.after.leader_epoch
        known = self._elected.get((partition.topic_id, partition.number, epoch))
        if known is not None and known != change.broker.id:
            self.fail(f"{change}: epoch {epoch} is led by {known}")


class LeaderInIsr(Checker):
    """The leader is in the in-sync set, at the controller and as it knows it itself."""

    def on_image(
        self, topic: TopicImage, number: int, before: PartitionImage | None, after: PartitionImage
    ) -> None:
        if after.leader >= 0 and after.leader not in after.isr:
            self.fail(f"{topic.name}-{number}: {after}")

    def on_replica(self, change: ReplicaChange) -> None:
        leadership = change.partition.leadership
        if leadership is not None and leadership.broker_id not in leadership.isr:
            self.fail(f"{change}: {leadership}")


class ImageInvariants(Checker):
    """Epochs rise: the partition's with every change, the leader's with every other leader; the ISR is of replicas."""

    def __init__(self) -> None:
        self.elections = self.isr_shrinks = self.isr_expands = 0

    def on_image(
        self, topic: TopicImage, number: int, before: PartitionImage | None, after: PartitionImage
    ) -> None:
        where = f"{topic.name}-{number}: {before} => {after}"
        if not after.isr or not set(after.isr) <= set(after.replicas):
            self.fail(where)
        if before is None:
            return
        self.elections += before.leader != after.leader
        self.isr_shrinks += not set(before.isr) <= set(after.isr)
        self.isr_expands += not set(after.isr) <= set(before.isr)
        if after.partition_epoch <= before.partition_epoch or after.leader_epoch < before.leader_epoch:
            self.fail(where)
        if before.leader != after.leader and after.leader_epoch == before.leader_epoch:
            self.fail(where)


class OffsetsDense(Checker):
    """Without compaction each batch begins where the one before it ended."""

    def on_batches(self, change: ReplicaChange, batches: list[CommittedBatch], from_offset: int) -> None:
        if change.log.is_compacted:
            return
        expected = None
        for batch in batches:
            wanted = from_offset if expected is None else expected
            # The first may begin below: the log start can lie inside a batch.
            if batch.base_offset > wanted or (expected is not None and batch.base_offset != wanted):
                self.fail(f"{change}: offset {wanted} is missing, {batch} follows")
            expected = batch.last_offset + 1
        end = from_offset if expected is None else expected
        if end < change.after.high_watermark:
            self.fail(f"{change}: offset {end} is missing")


class EpochsMatchLog(Checker):
    """A replica's list of leader epochs says of each batch what the batch says itself."""

    def on_batches(self, change: ReplicaChange, batches: list[CommittedBatch], from_offset: int) -> None:
        epochs = change.partition.epochs
        if not epochs.entries or change.log.is_compacted:
            return
        for batch in batches:
            offset = max(batch.base_offset, change.after.log_start_offset)
            if epochs.epoch_of(offset) != batch.leader_epoch:
                self.fail(f"{change}: {epochs} is wrong about {batch}")


class AckedSurvives(Checker):
    """What acks=all was told is committed when it is told, and so stays; a hunt reads all of it again at its end."""

    def on_acked(self, committed: CommittedLog, offset: int, value: bytes | None) -> None:
        if offset >= committed.end_offset and not committed.is_exempt:
            self.fail(
                f"{committed.name}: offset {offset} was acknowledged to acks=all; committed is everything below "
                f"{committed.end_offset}"
            )


class NoUncommittedRead(Checker):
    """Consumers see only what is committed, and at one offset always the same."""

    def __init__(self) -> None:
        self._seen: dict[tuple[CommittedLog, int], bytes | None] = {}

    def on_read(self, committed: CommittedLog, records: Iterable[Record]) -> None:
        if committed.is_exempt:
            return
        for record in records:
            where = f"{committed.name}: offset {record.offset}"
            if record.offset >= committed.end_offset:
                self.fail(f"{where} was read; committed is everything below {committed.end_offset}")
            seen = self._seen.setdefault((committed, record.offset), record.value)
            if seen != record.value:
                self.fail(f"{where} was {seen!r} and is {record.value!r}")


class EachOnceInOrder(Checker):
    """What an idempotent producer sent is in its partition's log at most once, in the order it was sent in, and where it
    was told to be. Looks at values `<producer>-<number>`, numbers rising; others are of producers that promise less.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[CommittedLog, bytes], list[tuple[int, int]]] = {}

    def on_acked(self, committed: CommittedLog, offset: int, value: bytes | None) -> None:
        self._note(committed, offset, value)

    def on_read(self, committed: CommittedLog, records: Iterable[Record]) -> None:
        for record in records:
            self._note(committed, record.offset, record.value)

    def _note(self, committed: CommittedLog, offset: int, value: bytes | None) -> None:
        producer, is_numbered, number = (value or b"").partition(b"-")
        if committed.is_exempt or not is_numbered or not number.isdigit():
            return
        found = self._found.setdefault((committed, producer), [])
        place = (int(number), offset)
        at = bisect_left(found, place)
        if at < len(found) and found[at] == place:
            return
        around = found[max(0, at - 1) : at + 1]
        for other_number, other_offset in around:
            if other_number == place[0]:
                self.fail(f"{committed.name}: {value!r} is at offset {offset}, and at {other_offset}")
            if (other_number < place[0]) != (other_offset < offset):
                self.fail(
                    f"{committed.name}: {value!r} is at offset {offset}, number {other_number} of the same producer at "
                    f"{other_offset}"
                )
        found.insert(at, place)


def _compare(checker: Checker, change: ReplicaChange, batches: list[CommittedBatch]) -> None:
    committed = change.log
    if committed.is_exempt or committed.is_compacted:
        return
    for batch in batches:
        known = committed.batches.get(batch.base_offset)
        if known is None and batch.last_offset < committed.known_end_offset:
            checker.fail(f"{change} has {batch}, committed was something else")
        if known is not None and known != batch:
            checker.fail(f"{change} has {batch}, committed was {known}")
