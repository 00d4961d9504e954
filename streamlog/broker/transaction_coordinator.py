"""The transaction coordinator: hosts transactional ids on the partitions of `__transaction_state`.

    Produce of a new partition --+
    InitProducerId, EndTxn ------+--turn--> core.transaction --record--> __transaction_state-n  --commit--> known
                                                     +--markers--> every partition of the transaction

A transactional id lives in the partition its name hashes to. With one broker, which leads all partitions, the decision,
its markers, the offsets that go with it and its completion are one commit: there is no Prepare that a crash could leave
behind.

Invariants:
 1. What is known of an id changes only in an effect of a turn that committed, or while it is being loaded.
 2. A transaction that was open when another process died is aborted as soon as its partition is loaded, which
    `housekeeping` does at the start: readers of committed records wait behind it.

Sources: Kafka TransactionCoordinator, TransactionStateManager; SEMANTICS 3.5.6 to 3.5.17.
Not implemented: several brokers (markers by request, Prepare), transactions of clients on the wire.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from streamlog import batch as batches
from streamlog.broker.api import EndTxn, InitProducerId, TransactionRequest
from streamlog.broker.partition import Partition
from streamlog.broker.pending import DEFER, Pending, Turn
from streamlog.broker.producer_states import observe
from streamlog.core import transaction as rules
from streamlog.core.cluster_image import TRANSACTION_STATE_TOPIC
from streamlog.core.group import group_partition
from streamlog.core.transaction import State, TransactionState
from streamlog.errors import (
    InvalidTransactionTimeoutError,
    InvalidTxnStateError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    UnsupportedOperationError,
)
from streamlog.record import TopicPartition
from streamlog.storage import log

if TYPE_CHECKING:
    from streamlog.batch import Batch
    from streamlog.broker.broker import Broker
    from streamlog.broker.cluster import BrokerCluster
    from streamlog.broker.coordinator import Coordinator
    from streamlog.broker.hosted_group import HostedGroup
    from streamlog.core.machine import Decision

TOPIC_CONFIG: Final = {"cleanup.policy": "compact", "retention.ms": "-1"}
_READ_BYTES: Final = 4 * 1024 * 1024
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

    def __repr__(self) -> str:
        return f"TransactionCoordinator({len(self._states)} ids, {len(self._deadlines)} open)"

    # -- requests ------------------------------------------------------------------------------------------------------

    def decide(self, turn: Turn, pending: Pending, request: TransactionRequest) -> object:
        """Decide one request about a transactional id. May return DEFER."""
        transactional_id = request.transactional_id
        partition = self._partition(turn, transactional_id, type(request.event) is InitProducerId)
        match request.event:
            case InitProducerId():
                self._init(turn, pending, transactional_id, partition, request.event)
            case EndTxn():
                return self._end(turn, pending, transactional_id, partition, request.event)
        return None

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
        partition = self._partition(turn, transactional_id, True)
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
            self._put(turn, transactional_id, partition, after)

    def _init(
        self, turn: Turn, pending: Pending, transactional_id: str, partition: Partition, event: InitProducerId
    ) -> None:
        allowed_ms = self._broker.config.transaction_max_timeout_ms
        if event.timeout_ms > allowed_ms:
            raise InvalidTransactionTimeoutError(
                f"transaction_timeout_ms={event.timeout_ms}; this cluster allows up to "
                f"transaction.max.timeout.ms={allowed_ms}",
                timeout_ms=event.timeout_ms,
                allowed_ms=allowed_ms,
            )
        known = self._known(turn, transactional_id)
        if known is not None and known.state is State.ONGOING:
            known = self._finish(turn, transactional_id, partition, rules.fenced(known, turn.wall_ms))
        after = rules.initialized(known, event.new_producer_id, event.timeout_ms, turn.wall_ms)
        self._put(turn, transactional_id, partition, after)
        turn.reply(pending, (after.producer_id, after.producer_epoch))

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
            turn.reply(pending, (known.producer_id, known.producer_epoch))
            return None
        if event.is_commit and event.offsets and not self._commit_offsets(turn, event):
            return DEFER
        after = self._finish(turn, transactional_id, partition, prepared)
        turn.reply(pending, (after.producer_id, after.producer_epoch))
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
        return min(self._deadlines.copy().values(), default=None)

    def on_tick(self, turn: Turn) -> None:
        """Abort what has been open for too long, and what a process that is no more has left open."""
        due = sorted(tid for tid, deadline_ms in self._deadlines.items() if deadline_ms <= turn.now_ms)
        for transactional_id in due[:ABORTED_AT_ONCE_MAX]:
            known = self._known(turn, transactional_id)
            if known is None or known.state is not State.ONGOING:
                continue
            partition = self._partition(turn, transactional_id)
            self._finish(turn, transactional_id, partition, rules.fenced(known, turn.wall_ms))

    # -- writing -------------------------------------------------------------------------------------------------------

    def _known(self, turn: Turn, transactional_id: str) -> TransactionState | None:
        staged: TransactionState | None = turn.transactions.get(transactional_id)
        return staged or self._states.get(transactional_id)

    def _put(self, turn: Turn, transactional_id: str, partition: Partition, state: TransactionState) -> None:
        """Append the record of a state, and know it once the turn is committed."""
        state._check()
        batch = batches.seal_v2_columns(
            [rules.encode_key(transactional_id)], [rules.encode_value(state)], timestamps=turn.wall_ms
        )
        self._broker.append(turn, partition, batch)
        turn.transactions[transactional_id] = state
        turn.effects.append(lambda: self._know(transactional_id, state, turn))

    def _know(self, transactional_id: str, state: TransactionState, turn: Turn) -> None:
        self._states[transactional_id] = state
        deadline_ms = state.deadline_ms()
        if deadline_ms is None:
            self._deadlines.pop(transactional_id, None)
        else:
            self._deadlines[transactional_id] = turn.now_ms + deadline_ms - turn.wall_ms
            self._groups.deadline_changed = True

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
        for topic, number in prepared.partitions:
            try:
                written = self._broker.partition(topic, number)
            except UnknownTopicOrPartitionError:
                continue  # deleted meanwhile
            produced = self._broker.append(turn, written, marker)
            observe(self._broker.transaction(turn), turn, written, marker, produced.base_offset)
        after = rules.completed(prepared, turn.wall_ms)
        self._put(turn, transactional_id, partition, after)
        return after

    # -- loading -------------------------------------------------------------------------------------------------------

    def _partition(self, turn: Turn, transactional_id: str, begins: bool = False) -> Partition:
        """Where a transactional id lives. begins: something new, which needs one broker; what is open may end anyway."""
        if begins and self._broker.replication is not None:
            raise UnsupportedOperationError(
                "transactions need a cluster of one broker that no fault was asked of, in this version"
            )
        image = self._broker.metadata.image.topic(TRANSACTION_STATE_TOPIC)
        number = group_partition(transactional_id, len(image.partitions))
        partition = self._broker.partition(TRANSACTION_STATE_TOPIC, number)
        self._load(partition)
        return partition

    def load_all(self) -> None:
        """Know all transactional ids, so that what a dead process left open is aborted soon. By any thread."""
        image = self._broker.metadata.image.topics.get(TRANSACTION_STATE_TOPIC)
        for number in range(0 if image is None else len(image.partitions)):
            partition = self._broker.partition(TRANSACTION_STATE_TOPIC, number)
            if partition.serves:
                self._load(partition)
        if self._deadlines:
            self._broker.plan_service()

    def _load(self, partition: Partition) -> None:
        """Fold a partition of `__transaction_state`, once: the newest record of each id counts."""
        if partition.number in self._loaded:
            return
        with self._load_lock:
            if partition.number in self._loaded:
                return
            newest = dict(self._records(partition))
            for transactional_id, value in newest.items():
                if value is not None:
                    self._states[transactional_id] = rules.decode_value(value)
            now_ms = self._broker.runtime.clock.monotonic_ms()
            for transactional_id, state in self._states.items():
                if state.state is State.ONGOING:
                    # Its producer lived in a process that is no more: nobody can end it.
                    self._deadlines.setdefault(transactional_id, now_ms)
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


def call(cluster: BrokerCluster, transactional_id: str, event: Any) -> tuple[int, int]:
    """Ask the coordinator of a transactional id: the producer id and epoch from now on."""
    if TRANSACTION_STATE_TOPIC not in cluster.topics:
        _make_topic(cluster)
    if cluster.is_replicated and type(event) is InitProducerId:
        raise UnsupportedOperationError(
            "transactions need a cluster of one broker that no fault was asked of, in this version"
        )
    answer: tuple[int, int] = cluster.broker.call(TransactionRequest(transactional_id, event))
    return answer


def _make_topic(cluster: BrokerCluster) -> None:
    from streamlog.broker.api import CreateTopic

    cluster.check_usable()
    partitions = cluster.config.transaction_state_log_num_partitions
    try:
        cluster.ask_controller(CreateTopic(TRANSACTION_STATE_TOPIC, partitions, 1, dict(TOPIC_CONFIG)))
    except TopicAlreadyExistsError:
        pass
