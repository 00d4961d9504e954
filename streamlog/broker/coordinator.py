"""The group coordinator: hosts group machines on the partitions of `__consumer_offsets`.

    GroupRequest --turn--> machine.handle --records--> append to __consumer_offsets-n --commit--> machine.apply --> reply

A group lives in the partition its name hashes to. The machines of one partition are the fold of that partition's log;
they load together, at the first touch of any of them, from the fold's checkpoint and the records behind it.

Invariants:
 1. A machine changes only in `_apply_decision`, an effect of a turn that committed, or while it is being loaded.
 2. One decision with records per machine a turn: a second request for it is deferred to the next turn.
 3. A parked request is answered by its token, exactly once, by whatever later decision names it.
 4. A checkpoint holds the newest value of every live key at its offset: replaying it and the records behind it
    gives the same machines as replaying the log from its start.

Sources: Kafka CoordinatorRuntime, GroupCoordinatorShard.
Not implemented: transaction coordinators (they will be hosted the same way).
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streamlog import batch as batches
from streamlog.broker.api import GroupRequest
from streamlog.broker.partition import Partition
from streamlog.broker.purgatory import Source
from streamlog.broker.turn import DEFER, Pending, Turn
from streamlog.config import ClusterConfig
from streamlog.core import group as groups
from streamlog.core import group_events as events
from streamlog.core.controller import CONSUMER_OFFSETS_TOPIC
from streamlog.core.group_records import decode_key
from streamlog.core.group_state import GroupLimits, State
from streamlog.core.machine import Decision
from streamlog.errors import CoordinatorNotAvailableError
from streamlog.record import OffsetAndMetadata, TopicPartition
from streamlog.storage import log
from streamlog.storage.keys import CheckpointKind

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker

FOLD_KIND: Final = CheckpointKind.FOLD
FOLD_CHECKPOINT_EVERY_RECORDS: Final = 4096
_READ_BYTES: Final = 4 * 1024 * 1024
_OFFSETS_EXPIRY_CHECK_MS: Final = 600_000


class HostedGroup(Source):
    """A machine and what its host keeps beside it. `view` is published after each change."""

    __slots__ = ("group_id", "machine", "view", "partition", "deadline_ms")

    def __init__(self, group_id: str, machine: groups.GroupMachine, partition: Partition) -> None:
        super().__init__()
        self.group_id = group_id
        self.machine = machine
        self.view = machine.view()
        self.partition = partition
        self.deadline_ms: int | None = None

    def publish(self) -> None:
        view = self.machine.view()
        changed = (view.state, view.generation) != (self.view.state, self.view.generation)
        self.view = view
        if changed and self.subscriptions:
            self.notify()


class _Fold:
    """One partition of `__consumer_offsets`, loaded: its live keys and how far the checkpoint is behind."""

    __slots__ = ("latest", "records_since_checkpoint")

    def __init__(self) -> None:
        self.latest: dict[bytes, bytes] = {}
        self.records_since_checkpoint = 0

    def note(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.latest.pop(key, None)
        else:
            self.latest[key] = value
        self.records_since_checkpoint += 1


class Coordinator:
    """All groups of one broker. Everything but the look-ups runs inside the broker's turn."""

    def __init__(self, broker: Broker, config: ClusterConfig, incarnation: str) -> None:
        self._broker = broker
        self._incarnation = incarnation
        self._limits = GroupLimits(
            session_timeout_min_ms=config.group_min_session_timeout_ms,
            session_timeout_max_ms=config.group_max_session_timeout_ms,
            members_max=config.group_max_size,
            initial_rebalance_delay_ms=config.group_initial_rebalance_delay_ms,
            offsets_retention_ms=config.offsets_retention_minutes * 60_000,
        )
        self._hosted: dict[str, HostedGroup] = {}
        self._folds: dict[int, _Fold] = {}
        self._parked: dict[int, Pending] = {}
        self._deadlines: list[tuple[int, str]] = []
        self._load_lock = broker.runtime.lock()
        self._tokens = 0
        self.deadline_changed = False

    # -- look-ups, by any thread -------------------------------------------------------------------------------------

    def group(self, group_id: str) -> HostedGroup | None:
        """The group, or None if nobody has ever joined it or committed for it."""
        self._load(self._offsets_partition(group_id))
        return self._hosted.get(group_id)

    def hosted(self, group_id: str) -> HostedGroup:
        """The group, made empty where there is none: to listen to it before joining."""
        partition = self._offsets_partition(group_id)
        self._load(partition)
        with self._load_lock:
            return self._hosted_or_new(group_id, partition)

    def groups(self) -> list[HostedGroup]:
        """All groups, by name."""
        for number in range(len(self._broker.metadata.image.topic(CONSUMER_OFFSETS_TOPIC).partitions)):
            self._load(self._broker.partition(CONSUMER_OFFSETS_TOPIC, number))
        return [self._hosted[group_id] for group_id in sorted(self._hosted)]

    def committed(
        self, group_id: str, partitions: list[TopicPartition] | None
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """Committed positions of the named partitions (None: all that have one); those without one are left out."""
        hosted = self.group(group_id)
        if hosted is None:
            return {}
        if partitions is None:
            return dict(hosted.machine.all_committed())
        found = ((partition, hosted.machine.committed(*partition)) for partition in partitions)
        return {partition: offset for partition, offset in found if offset is not None}

    def next_deadline_ms(self) -> int | None:
        return self._deadlines[0][0] if self._deadlines else None

    # -- inside the turn ---------------------------------------------------------------------------------------------

    def decide(self, turn: Turn, pending: Pending, request: GroupRequest) -> object:
        """Let the group's machine decide; park the request unless the decision answers it."""
        partition = self._offsets_partition(request.group_id)
        self._load(partition)
        with self._load_lock:
            hosted = self._hosted_or_new(request.group_id, partition)
        if hosted in turn.staged_machines:
            return DEFER
        event: Any = request.event
        token = pending.token
        if token == 0:
            self._tokens += 1
            token = pending.token = self._tokens
        if hasattr(event, "token"):
            event = msgspec.structs.replace(event, token=token)
            self._parked[token] = pending
        decision = hosted.machine.handle(event, turn.now_ms, turn.wall_ms)
        self._stage(turn, hosted, decision)
        if not hasattr(event, "token"):
            turn.reply(pending, None)
        return None

    def on_tick(self, turn: Turn) -> None:
        """Let every machine whose deadline has come decide."""
        while self._deadlines and self._deadlines[0][0] <= turn.now_ms:
            deadline_ms, group_id = heappop(self._deadlines)
            hosted = self._hosted.get(group_id)
            if hosted is None or hosted.deadline_ms != deadline_ms or hosted in turn.staged_machines:
                continue
            hosted.deadline_ms = None
            self._stage(turn, hosted, hosted.machine.on_deadline(turn.now_ms, turn.wall_ms))

    def _stage(self, turn: Turn, hosted: HostedGroup, decision: Decision[Any]) -> None:
        if decision.records:
            keys = [key for key, _ in decision.records]
            values = [value for _, value in decision.records]
            batch = batches.seal_v2_columns(keys, values, timestamps=turn.wall_ms)
            self._broker.append(turn, hosted.partition, batch)
            self._maybe_checkpoint(turn, hosted.partition, decision)
        turn.staged_machines[hosted] = None
        turn.effects.append(lambda: self._apply_decision(hosted, decision))
        for token, answer in decision.replies:
            pending = self._parked.get(token)
            if pending is None:
                continue
            turn.effects.append(_forget(self._parked, token))
            if isinstance(answer, BaseException):
                turn.fail(pending, answer)
            else:
                turn.reply(pending, answer)

    def _apply_decision(self, hosted: HostedGroup, decision: Decision[Any]) -> None:
        hosted.machine.apply(decision.records, decision.changes)
        fold = self._folds[hosted.partition.number]
        for key, value in decision.records:
            fold.note(key, value)
        hosted.publish()
        if hosted.machine.state is State.DEAD:
            hosted.machine = self._new_machine(hosted.group_id)
        self._note_deadline(hosted)

    def _note_deadline(self, hosted: HostedGroup) -> None:
        deadline_ms = hosted.machine.next_deadline_ms()
        if deadline_ms is not None and deadline_ms != hosted.deadline_ms:
            earliest = self._deadlines[0][0] if self._deadlines else None
            heappush(self._deadlines, (deadline_ms, hosted.group_id))
            if earliest is None or deadline_ms < earliest:
                self.deadline_changed = True
        hosted.deadline_ms = deadline_ms

    def _maybe_checkpoint(self, turn: Turn, partition: Partition, decision: Decision[Any]) -> None:
        fold = self._folds[partition.number]
        if fold.records_since_checkpoint + len(decision.records) < FOLD_CHECKPOINT_EVERY_RECORDS:
            return
        latest = dict(fold.latest)
        for key, value in decision.records:
            if value is None:
                latest.pop(key, None)
            else:
                latest[key] = value
        end_offset = turn.staged[partition].log_end_offset
        log.put_extra(
            self._broker.transaction(turn),
            partition.log_id,
            FOLD_KIND,
            msgspec.msgpack.encode((end_offset, latest)),
        )
        turn.effects.append(lambda: setattr(fold, "records_since_checkpoint", 0))

    # -- loading -----------------------------------------------------------------------------------------------------

    def _offsets_partition(self, group_id: str) -> Partition:
        image = self._broker.metadata.image.topics.get(CONSUMER_OFFSETS_TOPIC)
        if image is None:
            raise CoordinatorNotAvailableError(
                f"group {group_id!r}: topic {CONSUMER_OFFSETS_TOPIC} does not exist yet"
            )
        return self._broker.partition(
            CONSUMER_OFFSETS_TOPIC, groups.group_partition(group_id, len(image.partitions))
        )

    def _hosted_or_new(self, group_id: str, partition: Partition) -> HostedGroup:
        hosted = self._hosted.get(group_id)
        if hosted is None:
            hosted = self._hosted[group_id] = HostedGroup(group_id, self._new_machine(group_id), partition)
        return hosted

    def _new_machine(self, group_id: str) -> groups.GroupMachine:
        return groups.GroupMachine(group_id, self._limits, self._incarnation, self._new_member_id)

    def _new_member_id(self, client_id: str) -> str:
        return f"{client_id or 'consumer'}-{self._broker.runtime.random.getrandbits(128):032x}"

    def _load(self, partition: Partition) -> None:
        """Fold the partition's log into machines, once."""
        if partition.number in self._folds:
            return
        with self._load_lock:
            if partition.number in self._folds:
                return
            fold = _Fold()
            machines: dict[str, HostedGroup] = {}
            environment, state = self._broker.environment, partition.state
            now_ms = self._broker.runtime.clock.monotonic_ms()
            with environment.snapshot() as snapshot:
                saved = log.get_extra(snapshot, partition.log_id, FOLD_KIND)
            offset = state.log_start_offset
            if saved is not None:
                offset, latest = msgspec.msgpack.decode(saved, type=tuple[int, dict[bytes, bytes]])
                for key, value in latest.items():
                    self._replay(machines, partition, key, value, now_ms)
                fold.latest = latest
            while offset < state.log_end_offset:
                with environment.snapshot() as snapshot:
                    found = log.read(snapshot, partition.log_id, offset, state.log_end_offset, _READ_BYTES)
                if not found:
                    break
                for batch in found:
                    for record in batch.records(CONSUMER_OFFSETS_TOPIC, partition.number, offset):
                        self._replay(machines, partition, record.key, record.value, now_ms)
                        fold.note(record.key, record.value)
                    offset = batch.next_offset
            for hosted in machines.values():
                # What is dropped here (members of a killed process) is dropped again at every load: no record needed.
                decision = hosted.machine.finish_loading(now_ms, self._broker.runtime.clock.wall_ms())
                hosted.machine.apply(decision.records, decision.changes)
                hosted.view = hosted.machine.view()
                self._hosted[hosted.group_id] = hosted
                self._note_deadline(hosted)
            self._folds[partition.number] = fold

    def _replay(
        self,
        machines: dict[str, HostedGroup],
        partition: Partition,
        key: bytes,
        value: bytes | None,
        now_ms: int,
    ) -> None:
        decoded = decode_key(key)
        if decoded is None:
            return  # a kind of record this version does not know
        group_id = decoded.group_id
        hosted = machines.get(group_id)
        if hosted is None:
            hosted = machines[group_id] = HostedGroup(group_id, self._new_machine(group_id), partition)
        hosted.machine.replay(key, value, now_ms)

    def close(self) -> None:
        """Answer nobody any more; whoever is parked finds out by its own timeout or by the closed broker."""
        self._parked.clear()
        self._deadlines.clear()


def _forget(parked: dict[int, Pending], token: int) -> Any:
    return lambda: parked.pop(token, None)
