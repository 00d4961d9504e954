"""The group coordinator: hosts group machines on the partitions of `__consumer_offsets`.

    GroupRequest --turn--> machine.handle --records--> append to __consumer_offsets-n --commit--> machine.apply --> reply

A group lives in the partition its name hashes to. The machines of one partition are the fold of that partition's log;
they load together, at the first touch of any of them, from the fold's checkpoint and the records behind it.

Invariants:
 1. A machine changes only in `_apply_decision`, an effect of a turn that committed, or while it is being loaded.
    Deadlines, parked requests and folds change with it: a turn that is dropped loses none of them.
 2. One decision with records per machine a turn: a second request for it is deferred to the next turn.
 3. A parked request is answered by its token, exactly once, by whatever later decision names it.
 4. A checkpoint holds the newest value of every live key at its offset: replaying it and the records behind it
    gives the same machines as replaying the log from its start. Compaction, which takes tombstones
    away, deletes it. `checkpointing` writes it, outside of turns.

Sources: Kafka CoordinatorRuntime, GroupCoordinatorShard.
Transactional ids are hosted beside, by `transaction_coordinator`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streamlog.broker import committing
from streamlog.broker.api import GroupRequest
from streamlog.broker.checkpointing import save_offsets
from streamlog.broker.group_deadlines import GroupDeadlines
from streamlog.broker.hosted_group import HostedGroup as HostedGroup
from streamlog.broker.hosted_group import (
    LoadedFold,
    forget_deleted_topics,
    load_machines,
    of_known_partitions,
)
from streamlog.broker.partition import Partition
from streamlog.broker.pending import wait_until_told
from streamlog.broker.settled_offsets import settled_offsets
from streamlog.broker.transactional_commits import append_records, check_epoch, check_stable
from streamlog.broker.turn import DEFER, Pending, Turn
from streamlog.config import ClusterConfig
from streamlog.core import group_events as events
from streamlog.core.cluster_image import CONSUMER_OFFSETS_TOPIC, TRANSACTION_STATE_TOPIC
from streamlog.core.group import GroupMachine, group_partition
from streamlog.core.group_state import GroupLimits, State
from streamlog.core.machine import Decision
from streamlog.errors import (
    CoordinatorNotAvailableError,
    NotCoordinatorError,
    ReentrantCallError,
    StorageError,
    StreamlogError,
)
from streamlog.record import OffsetAndMetadata, TopicPartition

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.transaction_coordinator import TransactionCoordinator

FOLD_CHECKPOINT_EVERY_RECORDS: Final = 4096
_READ_BYTES: Final = 4 * 1024 * 1024
COMMIT_TIMEOUT_MS: Final = 5_000  # Kafka's offsets.commit.timeout.ms: until a group's record is replicated
TICK_GROUPS_MAX: Final = 256  # groups whose time has come that one turn decides; the others follow
LATE_MS_MAX: Final = 2_000
"""A judge that comes later than this to a deadline was itself stopped (a debugger, SIGSTOP): nobody is blamed."""


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
        self._folds: dict[int, LoadedFold] = {}
        self._parked: dict[int, Pending] = {}
        self.deadlines = GroupDeadlines()
        self._load_lock = broker.runtime.turn_lock()
        self._tokens = 0
        self._transactions: TransactionCoordinator | None = None
        self.overdue: dict[int, None] = {}
        """Partitions of `__consumer_offsets` whose checkpoint is worth writing anew."""

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
        """All groups this broker coordinates, by name."""
        for number, image in enumerate(self._broker.metadata.image.topic(CONSUMER_OFFSETS_TOPIC).partitions):
            if image.leader == self._broker.id:
                partition = self._broker.partition(CONSUMER_OFFSETS_TOPIC, number)
                if partition.serves:
                    self._load(partition)
        return [hosted for _, hosted in sorted(self._hosted.copy().items())]

    def committed(
        self, group_id: str, partitions: list[TopicPartition] | None
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """Committed positions of the named partitions (None: all that have one); those without one are left out.

        Only what is replicated counts. Raises UnstableOffsetCommitError for a named one that a transaction is about to
        commit (KIP-447), CoordinatorLoadInProgressError where a new leader does not know yet what is replicated.
        """
        hosted = self.group(group_id)
        if hosted is None:
            return {}
        if partitions is not None:
            check_stable(hosted.machine, partitions)
        return settled_offsets(hosted, partitions)

    @property
    def parked_count(self) -> int:
        """Joins and syncs that wait for other members."""
        return len(self._parked)

    @property
    def loaded_count(self) -> int:
        """Partitions of `__consumer_offsets` whose groups are loaded."""
        return len(self._folds)

    def next_deadline_ms(self) -> int | None:
        of_transactions = None if self._transactions is None else self._transactions.next_deadline_ms()
        return min(
            [due for due in (self.deadlines.next_ms, of_transactions) if due is not None], default=None
        )

    @property
    def transactions(self) -> TransactionCoordinator:
        """The coordinator of transactions, made at its first use."""
        if self._transactions is None:
            from streamlog.broker.transaction_coordinator import TransactionCoordinator

            self._transactions = TransactionCoordinator(self._broker, self)
        return self._transactions

    def expire_offsets(self) -> None:
        """Let every group look for expired offsets; nobody waits for it."""
        for hosted in self.groups():
            self._broker.post(GroupRequest(hosted.group_id, events.ExpireOffsets()))

    def forget_topic(self, topic: str) -> None:
        """A topic was deleted: one of the same name, later, must not be read from the middle.

        Returns when it is done: another thread may be running the turns. A group that cannot be written now, or whose
        broker is silent, forgets when it is loaded next.
        """
        posted = [
            self._broker.post(GroupRequest(hosted.group_id, events.TopicsDeleted((topic,))))
            for hosted in self.groups()
            if any(partition.topic == topic for partition in hosted.machine.all_committed())
        ]
        wait_until_told(self._broker, posted)

    # -- inside the turn ---------------------------------------------------------------------------------------------

    def decide(self, turn: Turn, pending: Pending, request: GroupRequest) -> object:
        """Let the group's machine decide; park the request unless the decision answers it."""
        try:
            partition = self._offsets_partition(request.group_id)
            if self._broker.replication is not None:
                self._broker.replication.check_coordinates(turn, partition)
            self._load(partition, leads=True)
        except StorageError as error:  # the group cannot be read: the trouble of who asks for it, only
            turn.fail(pending, error)
            return None
        known = self._hosted.get(request.group_id)
        was_idle = known is not None and known.is_idle
        with self._load_lock:
            hosted = self._hosted_or_new(request.group_id, partition)
        if hosted in turn.staged_machines:
            return DEFER
        event: Any = request.event
        if pending.token == 0:
            self._tokens += 1
            pending.token = self._tokens
        is_answered = hasattr(event, "token")
        if is_answered:
            event = msgspec.structs.replace(event, token=pending.token)
        unknown: dict[TopicPartition, StreamlogError | None] = {}
        if isinstance(event, events.OffsetCommit):
            event, unknown = of_known_partitions(event, self._broker.metadata.image.topics)
        if type(event) is events.TxnOffsetCommit:
            check_epoch(turn, partition, event)
        decision = hosted.machine.handle(event, turn.now_ms, turn.wall_ms)
        if unknown:
            for _, answer in decision.replies:
                if isinstance(answer, events.OffsetCommitReply):
                    answer.errors.update(unknown)
        transactional = event if type(event) is events.TxnOffsetCommit else None
        self._stage(turn, hosted, decision, pending if is_answered else None, transactional)
        if not is_answered:
            turn.reply(pending, None)
        if type(event) is events.ExpireOffsets:
            turn.effects.append(lambda: self._forget_idle(hosted, was_idle))
        return None

    def run_usual(self, pending: Pending, other: Pending | None) -> bool:
        """Run the whole turn of a commit of offsets, or of a transaction's end, if it is a usual one."""
        if other is None:
            return type(pending.request) is GroupRequest and committing.run_alone(self._broker, pending)
        transactions = self._transactions
        return transactions is not None and transactions.run_usual(pending, other)

    def known(self, group_id: str) -> HostedGroup | None:
        """The group, if it is loaded."""
        hosted = self._hosted.get(group_id)
        if hosted is not None:
            hosted.is_idle = False
        return hosted

    def decide_commit(
        self, turn: Turn, group_id: str, commit: events.OffsetCommit
    ) -> tuple[HostedGroup, Decision[Any]] | None:
        """A commit of offsets that is to go along with something else: stage it in this turn, or drop it.

        None: the group has been decided on in this turn. Raises what the group answers.
        """
        partition = self._offsets_partition(group_id)
        self._load(partition, leads=True)
        with self._load_lock:
            hosted = self._hosted_or_new(group_id, partition)
        if hosted in turn.staged_machines:
            return None
        commit, unknown = of_known_partitions(commit, self._broker.metadata.image.topics)
        decision = hosted.machine.handle(commit, turn.now_ms, turn.wall_ms)
        for _, answer in decision.replies:
            if isinstance(answer, StreamlogError):
                raise answer
            if isinstance(answer, events.OffsetCommitReply):
                for error in (*answer.errors.values(), *unknown.values()):
                    if error is not None:
                        raise error
        return hosted, decision

    def stage(self, turn: Turn, hosted: HostedGroup, decision: Decision[Any]) -> None:
        """Take over what `decide_commit` has decided."""
        self._stage(turn, hosted, decision, None)

    def end_transaction(self, turn: Turn, partition: Partition, producer_id: int, is_commit: bool) -> None:
        """Its marker is staged in this turn, in a partition of ours: the offsets it brought count now, or never did."""
        self._load(partition, leads=True)

        def end() -> None:
            for hosted in list(self._hosted.values()):
                if hosted.partition.number == partition.number:
                    hosted.machine.end_transaction(producer_id, is_commit)

        turn.effects.append(end)

    def on_tick(self, turn: Turn) -> None:
        """Let every machine whose deadline has come decide."""
        if self._transactions is not None:
            self._transactions.on_tick(turn)
        due_ms = self.deadlines.next_ms
        if due_ms is None or due_ms > turn.now_ms:
            return
        late_ms = turn.now_ms - due_ms
        if late_ms > LATE_MS_MAX:
            self._extend_all(turn, late_ms + self._limits.session_timeout_min_ms)
        else:
            for group_id in self.deadlines.due(turn.now_ms):
                hosted = self._hosted.get(group_id)
                if hosted is not None and self._may_decide(turn, hosted):
                    decision = hosted.machine.on_deadline(turn.now_ms, turn.wall_ms)
                    if not decision.is_empty:
                        self._stage(turn, hosted, decision, None)
                if len(turn.staged_machines) >= TICK_GROUPS_MAX:
                    break
        turn.effects.append(lambda: self.deadlines.reschedule(turn.now_ms, self._hosted))

    def _may_decide(self, turn: Turn, hosted: HostedGroup) -> bool:
        """Whether nothing was decided yet, and we lead: this very turn may have ended that."""
        partition = hosted.partition
        leads = partition.is_alone or turn.leaderships.get(partition, partition.leadership) is not None
        return leads and hosted not in turn.staged_machines

    def _extend_all(self, turn: Turn, by_ms: int) -> None:
        for group_id in sorted(self._hosted):
            hosted = self._hosted[group_id]
            if hosted.scheduled_ms is not None and self._may_decide(turn, hosted):
                decision = hosted.machine.handle(events.ExtendDeadlines(by_ms), turn.now_ms, turn.wall_ms)
                self._stage(turn, hosted, decision, None)

    def _stage(
        self,
        turn: Turn,
        hosted: HostedGroup,
        decision: Decision[Any],
        asking: Pending | None,
        transactional: events.TxnOffsetCommit | None = None,
    ) -> None:
        """asking: the request decided on; parked if the decision does not answer it."""
        end_offset = -1  # what replies wait for, where the partition has followers
        if decision.records:
            append_records(self._broker, turn, hosted.partition, decision.records, transactional)
            state = turn.staged[hosted.partition]
            if state.high_watermark < state.log_end_offset:
                end_offset = state.log_end_offset
        turn.staged_machines[hosted] = decision
        producer_id = None if transactional is None else transactional.producer_id
        turn.effects.append(self.applying(hosted, decision, producer_id, end_offset))
        for token, answer in decision.replies:
            pending = asking if asking is not None and asking.token == token else self._parked.get(token)
            if pending is None:
                continue
            if pending is asking:
                asking = None
            turn.effects.append(partial(self._parked.pop, token, None))
            if isinstance(answer, BaseException):
                turn.fail(pending, answer)
            elif end_offset >= 0 and self._broker.replication is not None:
                waiting = [(hosted.partition, end_offset, -1)]
                acknowledgements = self._broker.replication.acknowledgements
                acknowledgements.park(turn, pending, answer, waiting, COMMIT_TIMEOUT_MS)
            else:
                turn.reply(pending, answer)
        if asking is not None:
            turn.effects.append(partial(self._parked.setdefault, asking.token, asking))

    def applying(
        self,
        hosted: HostedGroup,
        decision: Decision[Any],
        producer_id: int | None = None,
        end_offset: int = -1,
    ) -> Callable[[], object]:
        """The effect of a decision. producer_id: of the transaction that its records belong to; end_offset: theirs, if
        they have to be replicated before they count.
        """
        return partial(self._apply_decision, hosted, hosted.machine, decision, producer_id, end_offset)

    def _apply_decision(
        self,
        hosted: HostedGroup,
        machine: GroupMachine,
        decision: Decision[Any],
        producer_id: int | None,
        end_offset: int,
    ) -> None:
        if producer_id is None:
            if end_offset >= 0:
                high_watermark = hosted.partition.state.high_watermark
                hosted.unsettled.note(machine, decision.records, end_offset, high_watermark)
            machine.apply(decision.records, decision.changes)
        else:
            machine.hold(producer_id, decision.records)
            machine.apply((), decision.changes)
        if decision.records:
            self._note_records(hosted.partition.number, len(decision.records))
        if machine.state is State.DEAD and hosted.machine is machine:
            hosted.machine = self._new_machine(hosted.group_id)
        hosted.publish()
        self.deadlines.note(hosted)

    def _note_records(self, number: int, count: int) -> None:
        fold = self._folds.get(number)
        if fold is None:
            return  # unloaded in this very turn: the leadership went
        fold.records_since_checkpoint += count
        if fold.records_since_checkpoint >= max(FOLD_CHECKPOINT_EVERY_RECORDS, fold.keys_saved):
            fold.records_since_checkpoint = 0
            self.overdue[number] = None
            self._broker.on_checkpoint_due()

    def save_overdue(self) -> int:
        """Save the folds that have grown enough; not inside a turn, one thread at a time. Returns how many."""
        count = 0
        while self.overdue:
            number, _ = self.overdue.popitem()
            keys = save_offsets(self._broker, number)
            if keys is not None:
                fold = self._folds.get(number)
                if fold is not None:
                    fold.keys_saved = keys
                count += 1
        return count

    def _forget_idle(self, hosted: HostedGroup, was_idle: bool) -> None:
        """Drop a group nobody would miss and nobody has asked for since the last time."""
        hosted.is_idle = hosted.machine.is_vacant and not hosted.subscriptions
        if hosted.is_idle and was_idle:
            self._hosted.pop(hosted.group_id, None)

    # -- loading -----------------------------------------------------------------------------------------------------

    def _offsets_partition(self, group_id: str) -> Partition:
        image = self._broker.metadata.image.topics.get(CONSUMER_OFFSETS_TOPIC)
        if image is None:
            raise CoordinatorNotAvailableError(
                f"group {group_id!r}: topic {CONSUMER_OFFSETS_TOPIC} does not exist yet"
            )
        return self._broker.partition(
            CONSUMER_OFFSETS_TOPIC, group_partition(group_id, len(image.partitions))
        )

    def _hosted_or_new(self, group_id: str, partition: Partition) -> HostedGroup:
        hosted = self._hosted.get(group_id)
        if hosted is None:
            made = HostedGroup(group_id, self._new_machine(group_id), partition)
            hosted = self._hosted.setdefault(group_id, made)
        hosted.is_idle = False
        return hosted

    def _new_machine(self, group_id: str) -> GroupMachine:
        return GroupMachine(group_id, self._limits, self._incarnation, self._new_member_id)

    def _new_member_id(self, client_id: str) -> str:
        return f"{client_id or 'consumer'}-{self._broker.runtime.random.getrandbits(128):032x}"

    def unload(self, partition: Partition) -> None:
        """The broker no longer leads this partition: its groups, or ids, are another's. Called by the runner."""
        if partition.topic == TRANSACTION_STATE_TOPIC:
            if self._transactions is not None:
                self._transactions.unload(partition)
            return
        self._folds.pop(partition.number, None)
        gone = [hosted for hosted in self._hosted.values() if hosted.partition.number == partition.number]
        for hosted in gone:
            self._hosted.pop(hosted.group_id, None)
            hosted.is_gone = True
            hosted.notify()
        names = [hosted.group_id for hosted in gone]
        for token, pending in list(self._parked.items()):
            group_id = getattr(pending.request, "group_id", "")
            if group_id in names:
                self._broker.answer(pending, None, _not_coordinator(group_id, partition))
                self._parked.pop(token, None)

    def _load(self, partition: Partition, leads: bool = False) -> None:
        """Fold the partition's log into machines, once. leads: it is known that we lead it.

        Raises NotCoordinatorError where another broker does.
        """
        if partition.number in self._folds:
            return
        if not (leads or partition.serves):
            raise _not_coordinator(CONSUMER_OFFSETS_TOPIC, partition)
        if self._load_lock._is_owned():
            raise ReentrantCallError(
                f"groups of {CONSUMER_OFFSETS_TOPIC}-{partition.number} are being loaded by this very thread, which a "
                "signal handler or __del__ interrupted; ask for a group outside of it"
            )
        with self._load_lock:
            if partition.number in self._folds:
                return
            machines, fold = load_machines(self._broker, partition, self._new_machine)
            now_ms = self._broker.runtime.clock.monotonic_ms()
            topics = self._broker.metadata.image.topics
            topic_ids = {name: image.topic_id for name, image in list(topics.items())}
            for hosted in machines.values():
                # What is dropped here (members of a killed process) is dropped again at every load: no record needed.
                decision = hosted.machine.finish_loading(now_ms, self._broker.runtime.clock.wall_ms())
                hosted.machine.apply(decision.records, decision.changes)
                stale = hosted.machine.drop_stale_offsets(topic_ids)
                if stale:
                    self._broker.slip_in(GroupRequest(hosted.group_id, events.StaleOffsets(stale)))
                hosted.view = hosted.machine.view()
                hosted.stable_generation = hosted.view.generation
                self._hosted[hosted.group_id] = hosted
                self.deadlines.note(hosted)
                forget_deleted_topics(self._broker, hosted)
            self._folds[partition.number] = fold

    def close(
        self, refusal: StreamlogError, answer: Callable[[Pending, object, BaseException | None], None]
    ) -> None:
        """No turn runs any more: whoever is parked learns it."""
        if self._transactions is not None:
            self._transactions.completions.close(refusal, answer)
        while self._parked:
            answer(self._parked.popitem()[1], None, refusal)
        self.deadlines.clear()


def _not_coordinator(group_id: str, partition: Partition) -> NotCoordinatorError:
    says = f"group {group_id!r}: broker {partition.leader_id} leads {partition.name} and coordinates it"
    return NotCoordinatorError(says, group_id=group_id, leader=partition.leader_id)
