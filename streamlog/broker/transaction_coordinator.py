"""The transaction coordinator: hosts transactional ids on the partitions of `__transaction_state`.

    Produce of a new partition --+
    InitProducerId, EndTxn ------+--turn--> core.transaction --record--> __transaction_state-n  --commit--> known
                                                     +--markers--> every partition of the transaction

A transactional id lives in the partition its name hashes to. Where one broker has all partitions of a transaction to
itself, the decision, its markers, the offsets that go with it and its completion are one commit: there is no Prepare that
a crash could leave behind. Else the decision is replicated first, and `transaction_completion` does the rest.

Invariants:
 1. What is known of an id changes only in an effect of a turn that committed, or while it is being loaded.
 2. A transaction that was open when another process died is aborted as soon as its partition is loaded, which
    `housekeeping` does at the start: readers of committed records wait behind it.
 3. What is known may not be replicated yet; nobody is told of it, and no marker written, before it is.

Sources: Kafka TransactionCoordinator, TransactionStateManager; SEMANTICS 3.5.6 to 3.5.17.
Not implemented: transactions of clients on the wire.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from streamlog import batch as batches
from streamlog.broker import lone_transactions
from streamlog.broker.api import (
    AddPartitions,
    EndTxn,
    ExpireTransactionalId,
    InitProducerId,
    MarkersWritten,
    TransactionRequest,
)
from streamlog.broker.partition import Partition
from streamlog.broker.pending import DEFER, Pending, Turn
from streamlog.broker.transaction_completion import Completing, Completions
from streamlog.broker.transaction_markers import append_marker
from streamlog.core import transaction as rules
from streamlog.core.cluster_image import TRANSACTION_STATE_TOPIC
from streamlog.core.group import group_partition
from streamlog.core.transaction import State, TransactionState
from streamlog.errors import (
    ConcurrentTransactionsError,
    InvalidTransactionTimeoutError,
    InvalidTxnStateError,
    NotCoordinatorError,
    TransactionAbortableError,
    UnknownTopicOrPartitionError,
)
from streamlog.record import TopicPartition
from streamlog.storage import log

if TYPE_CHECKING:
    from streamlog.batch import Batch
    from streamlog.broker.broker import Broker
    from streamlog.broker.coordinator import Coordinator
    from streamlog.broker.hosted_group import HostedGroup
    from streamlog.core.machine import Decision

REPLICATED_WITHIN_MS: Final = 5_000
"""As for the commits of groups: until a record is replicated, or its sender has to ask again."""
_READ_BYTES: Final = 4 * 1024 * 1024
EXPIRED_AT_ONCE_MAX: Final = 1_000
ABORTED_AT_ONCE_MAX: Final = 64
"""So many transactions whose time is over one turn aborts; the others follow."""


class TransactionCoordinator:
    """All transactional ids of one broker. Everything but `load_all` runs inside the broker's turn."""

    def __init__(self, broker: Broker, groups: Coordinator) -> None:
        self._broker = broker
        self._groups = groups
        self._states: dict[str, TransactionState] = {}
        self._loaded: dict[int, None] = {}
        self._deadlines: dict[str, int] = {}
        """When each open transaction is aborted for its age, by the monotonic clock."""
        self._load_lock = broker.runtime.turn_lock()
        self.completions = Completions(broker)

    def __repr__(self) -> str:
        return f"TransactionCoordinator({len(self._states)} ids, {len(self._deadlines)} open, {self.completions!r})"

    # -- requests ------------------------------------------------------------------------------------------------------

    def decide(self, turn: Turn, pending: Pending, request: TransactionRequest) -> object:
        """Decide one request about a transactional id. May return DEFER."""
        transactional_id = request.transactional_id
        partition = self._partition(turn, transactional_id)
        match request.event:
            case InitProducerId():
                self._init(turn, pending, transactional_id, partition, request.event)
            case AddPartitions():
                self._add(turn, pending, transactional_id, partition, request.event)
            case EndTxn():
                return self._end(turn, pending, transactional_id, partition, request.event)
            case MarkersWritten():
                completing = self.completions.written(turn, transactional_id, request.event)
                known = self._known(turn, transactional_id)
                if completing is not None and known is not None and known.is_decided:
                    self._put(turn, transactional_id, partition, rules.completed(known, turn.wall_ms))
                    self.completions.completed(turn, completing)
                turn.reply(pending, None)
            case ExpireTransactionalId():
                self._expire(turn, transactional_id, partition)
                turn.reply(pending, None)
        return None

    def run_usual(self, produce: Pending, end: Pending) -> bool:
        """Run the whole turn of a transaction's last records and its commit, if they are usual ones."""
        return lone_transactions.run(self._broker, self, produce, end)

    def expire_ids(self) -> int:
        """Have ids forgotten that nobody has used for long. By any thread; returns how many were found."""
        wall_ms, expiration_ms = (
            self._broker.runtime.clock.wall_ms(),
            self._broker.config.transactional_id_expiration_ms,
        )
        found = [
            tid
            for tid, state in self._states.copy().items()
            if rules.is_expired(state, expiration_ms, wall_ms)
        ]
        for transactional_id in found[:EXPIRED_AT_ONCE_MAX]:
            self._broker.post(TransactionRequest(transactional_id, ExpireTransactionalId()))
        return len(found)

    def _expire(self, turn: Turn, transactional_id: str, partition: Partition) -> None:
        known = self._known(turn, transactional_id)
        expiration_ms = self._broker.config.transactional_id_expiration_ms
        if known is None or not rules.is_expired(known, expiration_ms, turn.wall_ms):
            return  # it has come back to life
        turn.unwritten.pop(transactional_id, None)
        tombstone = batches.seal_v2_columns(
            [rules.encode_key(transactional_id)], [None], timestamps=turn.wall_ms
        )
        self._broker.append(turn, partition, tombstone)
        turn.transactions[transactional_id] = None
        turn.effects.append(lambda: self._states.pop(transactional_id, None))

    def admit(self, turn: Turn, transactional_id: str | None, batch: Batch, topic: str, number: int) -> None:
        """Before a transactional batch is appended: take its partition into the transaction (KIP-890, server side).

        Raises   InvalidTxnStateError, InvalidProducerIdMappingError, ProducerFencedError, ConcurrentTransactionsError.
        """
        if transactional_id is None:
            raise InvalidTxnStateError(
                f"a transactional batch for {topic}-{number} without a transactional id",
                topic=topic,
                partition=number,
            )
        partition = self._partition(turn, transactional_id)
        known = self._known(turn, transactional_id)
        after = rules.with_partitions(
            known,
            transactional_id,
            batch.producer_id,
            batch.producer_epoch,
            [TopicPartition(topic, number)],
            turn.wall_ms,
        )
        if after is not known:
            self._stage(turn, transactional_id, partition, after)

    def _init(
        self, turn: Turn, pending: Pending, transactional_id: str, partition: Partition, event: InitProducerId
    ) -> None:
        allowed_ms = self._broker.config.transaction_max_timeout_ms
        if event.timeout_ms > allowed_ms:
            says = f"transaction_timeout_ms={event.timeout_ms}; allowed: up to transaction.max.timeout.ms={allowed_ms}"
            raise InvalidTransactionTimeoutError(says, timeout_ms=event.timeout_ms, allowed_ms=allowed_ms)
        known = self._known(turn, transactional_id)
        if known is not None and known.state is State.ONGOING:
            known = self._decided(turn, transactional_id, partition, rules.fenced(known, turn.wall_ms))
            if known.is_decided:
                # The answer to who asks again as long as that takes.
                turn.fail(
                    pending,
                    ConcurrentTransactionsError(f"what {transactional_id!r} left open is being aborted"),
                )
                return
        after = rules.initialized(known, event.new_producer_id, event.timeout_ms, turn.wall_ms)
        self._put(turn, transactional_id, partition, after)
        self._reply(turn, pending, partition, (after.producer_id, after.producer_epoch))

    def _add(
        self, turn: Turn, pending: Pending, transactional_id: str, partition: Partition, event: AddPartitions
    ) -> None:
        known = self._known(turn, transactional_id)
        after = rules.with_partitions(
            known,
            transactional_id,
            event.producer_id,
            event.producer_epoch,
            [TopicPartition(*one) for one in event.partitions],
            turn.wall_ms,
        )
        if after is not known:
            self._put(turn, transactional_id, partition, after)
        self._reply(turn, pending, partition, (after.producer_id, after.producer_epoch))

    def _reply(self, turn: Turn, pending: Pending, partition: Partition, answer: tuple[int, int]) -> None:
        """Answer once all that was decided about ids of this partition is replicated, by whichever turn."""
        state = turn.staged.get(partition) or partition.state
        if turn.is_alone(partition) or state.high_watermark >= state.log_end_offset:
            turn.reply(pending, answer)
            return
        assert self._broker.replication is not None
        waiting = [(partition, state.log_end_offset, -1)]
        self._broker.replication.acknowledgements.park(turn, pending, answer, waiting, REPLICATED_WITHIN_MS)

    def _end(
        self, turn: Turn, pending: Pending, transactional_id: str, partition: Partition, event: EndTxn
    ) -> object:
        known = self._known(turn, transactional_id)
        if event.offsets and (known is None or known.state is not State.ONGOING):
            # Nothing was written: the offsets alone are the transaction. Its producer must be the present one even so.
            offsets_topic = [TopicPartition("__consumer_offsets", 0)]
            known = rules.with_partitions(
                known, transactional_id, event.producer_id, event.producer_epoch, offsets_topic, turn.wall_ms
            )
            known = rules.without_partitions(known)
        prepared = rules.ending(
            known,
            transactional_id,
            event.producer_id,
            event.producer_epoch,
            event.is_commit,
            turn.wall_ms,
        )
        if prepared is None:
            assert known is not None
            self._reply(turn, pending, partition, (known.producer_id, known.producer_epoch))
            return None
        if event.is_commit and not are_written(turn, event.after):
            return DEFER
        if event.is_commit and event.offsets:
            if self._broker.replication is not None:
                raise TransactionAbortableError(
                    f"the cluster got other brokers while {transactional_id!r} had a transaction open; it is aborted"
                )
            if not self._commit_offsets(turn, event):
                return DEFER
        after = self._decided(turn, transactional_id, partition, prepared, pending, event.wait_ms)
        if not after.is_decided:
            self._reply(turn, pending, partition, (after.producer_id, after.producer_epoch))
        return None

    def _commit_offsets(self, turn: Turn, event: EndTxn) -> bool:
        """Commit a consumer's offsets along with the transaction; False if another decision about its group comes first.

        Raises   what the group says: the member is of an old generation, or unknown. Nothing was written then.
        """
        decided: list[tuple[HostedGroup, Decision[Any]]] = []
        for group_id, commit in event.offsets:
            commit_of_group = self._groups.decide_commit(turn, group_id, commit)
            if commit_of_group is None:
                return False
            decided.append(commit_of_group)
        for hosted, decision in decided:
            self._groups.stage(turn, hosted, decision)
        return True

    # -- deadlines -----------------------------------------------------------------------------------------------------

    def next_deadline_ms(self) -> int | None:
        of_open = min(self._deadlines.copy().values(), default=None)
        of_decided = self.completions.next_deadline_ms()
        return min([due for due in (of_open, of_decided) if due is not None], default=None)

    def on_tick(self, turn: Turn) -> None:
        """Abort what has been open for too long, and what a process that is no more has left open."""
        due = sorted(tid for tid, deadline_ms in self._deadlines.items() if deadline_ms <= turn.now_ms)
        for transactional_id in due[:ABORTED_AT_ONCE_MAX]:
            known = self._known(turn, transactional_id)
            if known is None or known.state is not State.ONGOING:
                continue
            try:
                partition = self._partition(turn, transactional_id)
            except NotCoordinatorError:
                continue  # led by another broker as of this very turn
            self._decided(turn, transactional_id, partition, rules.fenced(known, turn.wall_ms))
        self.completions.on_tick(turn)

    # -- writing -------------------------------------------------------------------------------------------------------

    def _known(self, turn: Turn, transactional_id: str) -> TransactionState | None:
        if transactional_id in turn.transactions:
            staged: TransactionState | None = turn.transactions[transactional_id]  # None: forgotten in it
            return staged
        return self._states.get(transactional_id)

    def _stage(
        self, turn: Turn, transactional_id: str, partition: Partition, state: TransactionState
    ) -> None:
        """Know a state once the turn is committed. Only the last of a turn is written: nobody hears of the others."""
        state._check()
        if transactional_id not in turn.unwritten:
            turn.unwritten[transactional_id] = partition
            turn.effects.append(
                lambda: self._know(transactional_id, turn.transactions[transactional_id], turn)
            )
        turn.transactions[transactional_id] = state

    def write_staged(self, turn: Turn) -> None:
        """Before the commit: the records of what was staged."""
        for transactional_id, partition in turn.unwritten.items():
            if partition in turn.leaderships:  # decided on alone, and learnt only then who leads
                says = f"transactional_id {transactional_id!r}: {partition.name} changed its role; ask again"
                raise NotCoordinatorError(says, transactional_id=transactional_id)
            self._append(turn, transactional_id, partition, turn.transactions[transactional_id])

    def _put(self, turn: Turn, transactional_id: str, partition: Partition, state: TransactionState) -> None:
        """Append the record of a state, and know it once the turn is committed."""
        state._check()
        if turn.unwritten.pop(transactional_id, None) is not None:
            self._append(turn, transactional_id, partition, turn.transactions[transactional_id])
        self._append(turn, transactional_id, partition, state)
        turn.transactions[transactional_id] = state
        turn.effects.append(lambda: self._know(transactional_id, state, turn))

    def _append(
        self, turn: Turn, transactional_id: str, partition: Partition, state: TransactionState
    ) -> None:
        batch = batches.seal_v2_columns(
            [rules.encode_key(transactional_id)], [rules.encode_value(state)], timestamps=turn.wall_ms
        )
        self._broker.append(turn, partition, batch)

    def _know(self, transactional_id: str, state: TransactionState, turn: Turn) -> None:
        self._states[transactional_id] = state
        deadline_ms = state.deadline_ms()
        if deadline_ms is None:
            self._deadlines.pop(transactional_id, None)
        else:
            self._deadlines[transactional_id] = turn.now_ms + deadline_ms - turn.wall_ms
            self._groups.deadlines.has_changed = True

    def _decided(
        self,
        turn: Turn,
        transactional_id: str,
        partition: Partition,
        prepared: TransactionState,
        asking: Pending | None = None,
        wait_ms: int = 0,
    ) -> TransactionState:
        """See a decision through: in this turn where everything is ours alone, else it is Prepare that is returned.

        asking:  answered when it is complete, and at the latest after `wait_ms`.
        """
        if self._has_all(turn, [partition], prepared):
            return self._finish(turn, transactional_id, partition, prepared)
        self._put(turn, transactional_id, partition, prepared)
        end_offset = turn.staged[partition].log_end_offset
        completing = Completing(transactional_id, prepared, partition, end_offset, turn.now_ms)
        if asking is not None:
            completing.asking = asking
            completing.reply_by_ms = turn.now_ms + wait_ms
        self.completions.begin(turn, completing)
        return prepared

    def _has_all(self, turn: Turn, partitions: list[Partition], prepared: TransactionState) -> bool:
        """Whether every partition of a transaction that still exists is on this broker, and nowhere else."""
        if self._broker.replication is None:
            return True
        topics = self._broker.metadata.image.topics
        for topic, number in prepared.partitions:
            image = topics.get(topic)
            if image is None or number >= len(image.partitions):
                continue  # deleted meanwhile
            if image.partitions[number].replicas != (self._broker.id,):
                return False
            partitions.append(self._broker.partition(topic, number))
        return all(turn.is_alone(partition) and partition.serves for partition in partitions)

    def _finish(
        self, turn: Turn, transactional_id: str, partition: Partition, prepared: TransactionState
    ) -> TransactionState:
        """Write the markers of a decided transaction and its completion, all in this turn."""
        kind = (
            batches.ControlType.COMMIT
            if prepared.state is State.PREPARE_COMMIT
            else batches.ControlType.ABORT
        )
        marker = batches.control_batch(
            kind,
            producer_id=prepared.producer_id,
            producer_epoch=prepared.producer_epoch,
            timestamp=turn.wall_ms,
            coordinator_epoch=partition.state.leader_epoch,
        )
        control = batches.ControlRecord(kind, partition.state.leader_epoch)
        for topic, number in prepared.partitions:
            try:
                written = self._broker.partition(topic, number)
            except UnknownTopicOrPartitionError:
                continue  # deleted meanwhile
            append_marker(self._broker, turn, written, marker, control)
        after = rules.completed(prepared, turn.wall_ms)
        self._stage(turn, transactional_id, partition, after)
        return after

    # -- loading -------------------------------------------------------------------------------------------------------

    def _partition(self, turn: Turn, transactional_id: str) -> Partition:
        """Where a transactional id lives. Raises NotCoordinatorError where another broker leads it."""
        image = self._broker.metadata.image.topic(TRANSACTION_STATE_TOPIC)
        number = group_partition(transactional_id, len(image.partitions))
        partition = self._broker.partition(TRANSACTION_STATE_TOPIC, number)
        if self._broker.replication is not None:
            self._broker.replication.check_coordinates(turn, partition)
        self._load(partition)
        return partition

    def load_all(self) -> None:
        """Know all transactional ids we coordinate, so that what was left undone is done soon. By any thread."""
        image = self._broker.metadata.image.topics.get(TRANSACTION_STATE_TOPIC)
        for number, partition in enumerate(() if image is None else image.partitions):
            if partition.leader == self._broker.id:
                self.load(self._broker.partition(TRANSACTION_STATE_TOPIC, number))

    def load(self, partition: Partition) -> None:
        """We lead a partition of transactional ids: their deadlines and decisions are ours. By any thread."""
        if partition.serves:
            self._load(partition)
            if self.next_deadline_ms() is not None:
                self._broker.plan_service()

    def unload(self, partition: Partition) -> None:
        """Another broker coordinates the ids of this partition. Called by the runner; again changes nothing."""
        self._loaded.pop(partition.number, None)
        count = len(self._broker.metadata.image.topic(TRANSACTION_STATE_TOPIC).partitions)
        for transactional_id in list(self._states):
            if group_partition(transactional_id, count) == partition.number:
                self._states.pop(transactional_id, None)
                self._deadlines.pop(transactional_id, None)
        self.completions.unload(partition)

    def _load(self, partition: Partition) -> None:
        """Fold a partition of `__transaction_state`, once: the newest record of each id counts."""
        if partition.number in self._loaded:
            return
        with self._load_lock:
            if partition.number in self._loaded:
                return
            end_offset = partition.state.log_end_offset
            newest = dict(self._records(partition))
            clock = self._broker.runtime.clock
            now_ms, wall_ms = clock.monotonic_ms(), clock.wall_ms()
            for transactional_id, value in newest.items():
                if value is None:
                    continue  # expired
                state = self._states[transactional_id] = rules.decode_value(value)
                deadline_ms = state.deadline_ms()
                if deadline_ms is not None:
                    # Of a process that is no more: nobody can end it.
                    is_here = transactional_id in self._broker.metadata.transactional_ids
                    left_ms = min(deadline_ms - wall_ms, state.timeout_ms)  # the clock may have been set back
                    self._deadlines[transactional_id] = now_ms + (left_ms if is_here else 0)
                elif state.is_decided:
                    self.completions.resume(
                        Completing(transactional_id, state, partition, end_offset, now_ms)
                    )
            self._loaded[partition.number] = None

    def _records(self, partition: Partition) -> Iterator[tuple[str, bytes | None]]:
        state = partition.state
        offset = state.log_start_offset
        while offset < state.log_end_offset:
            with self._broker.environment.snapshot() as snapshot:
                found = log.read(snapshot, partition.log_id, offset, state.log_end_offset, _READ_BYTES)
            if not found:
                return
            for batch in found:
                for record in batch.records(TRANSACTION_STATE_TOPIC, partition.number, offset):
                    transactional_id = rules.decode_key(record.key)
                    if transactional_id is not None:
                        yield transactional_id, record.value
                offset = batch.next_offset


def are_written(turn: Turn, produces: tuple[Pending, ...]) -> bool:
    """Whether these Produces are decided, in this turn or before. Raises TransactionAbortableError if one failed."""
    for produce in produces:
        results, error = produce.reply, produce.error
        if not produce.done:
            decided = next(((value, wrong) for one, value, wrong in turn.replies if one is produce), None)
            if decided is None:
                return False
            results, error = decided
        if error is not None or any(produced.error is not None for produced in results):
            raise TransactionAbortableError(
                "records of this transaction could not be written, so it is aborted"
            )
    return True
