"""The last records of a transaction and its commit, together in the inbox with nothing else: their whole turn.

    admit, prepare, complete -> records, marker, record of the id -> commit -> apply, publish -> count -> reply

As `producing.run_alone`, by its laws: what is not usual (several brokers, several partitions, offsets, a producer that
is fenced, ...) is left to the general turn before anything has begun, and a turn cut short anywhere is finished by the
general turn. The rules are those of `core.transaction` and `core.producer_state`: nothing is decided here.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from streamlog import batch as batches
from streamlog.broker.api import EndTxn, Produce, Produced, TransactionRequest
from streamlog.broker.lone_turns import carry_out
from streamlog.broker.partition import Partition
from streamlog.broker.pending import Pending, Turn
from streamlog.broker.producing import is_usual
from streamlog.core import transaction as rules
from streamlog.core.cluster_image import TRANSACTION_STATE_TOPIC
from streamlog.core.group import group_partition
from streamlog.core.producer_state import admit, ended, observed
from streamlog.core.replica import appended
from streamlog.errors import StreamlogError
from streamlog.record import TopicPartition
from streamlog.storage import log

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.transaction_coordinator import TransactionCoordinator
    from streamlog.core.transaction import TransactionState
    from streamlog.storage.env import WriteTransaction


def run(broker: Broker, transactions: TransactionCoordinator, produce: Pending, end: Pending) -> bool:
    """Run a whole turn for these two, if they are usual ones. Called as the runner, nothing unfinished."""
    request: Any = produce.request
    asked: Any = end.request
    if type(request) is not Produce or type(asked) is not TransactionRequest or not _belong(produce, end):
        return False
    name, number, batch = request.entries[0]
    partition = broker.partitions.get((name, number))
    home = _home(broker, transactions, asked.transactional_id)
    if broker.replication is not None or broker._stopped or partition is None or home is None:
        return False
    turn = Turn(broker._monotonic_ns() // 1_000_000, broker._wall_ns() // 1_000_000, [produce, end])
    state, table = partition.state, partition.producers
    if (
        not is_usual(broker, partition, batch, turn.wall_ms)
        or table is None
        or table.is_due
        or state.log_start_offset > table.saved_offset
    ):
        return False
    known = table.states.get(batch.producer_id)
    try:
        if admit(known, batch, name, number) is not None:
            return False
        prepared = _prepared(transactions, asked, partition, batch, turn)
    except StreamlogError:
        return False
    if prepared is None:
        return False
    after = rules.completed(prepared, turn.wall_ms)
    coordinator_epoch = home.state.leader_epoch
    marker = batches.control_batch(
        batches.ControlType.COMMIT,
        producer_id=prepared.producer_id,
        producer_epoch=prepared.producer_epoch,
        timestamp=turn.wall_ms,
        coordinator_epoch=coordinator_epoch,
    )
    record = batches.seal_v2_columns(
        [rules.encode_key(asked.transactional_id)], [rules.encode_value(after)], timestamps=turn.wall_ms
    )
    base_offset, home_offset = state.log_end_offset, home.state.log_end_offset
    with_records = appended(state, batch.last_offset_delta + 1, batch.size_bytes, batch.max_timestamp)
    staged = appended(with_records, 1, marker.size_bytes, marker.max_timestamp)
    home_staged = appended(home.state, 1, record.size_bytes, record.max_timestamp)
    open_state = observed(known, batch, base_offset)
    table.unsaved_batches += 2  # a rough count: also of a turn that is dropped
    turn.staged = {partition: staged, home: home_staged}
    turn.producers = {partition: {batch.producer_id: ended(open_state, marker, coordinator_epoch)}}
    turn.decided = {partition: [(open_state.open_offset, staged.log_end_offset)]}
    turn.transactions = {asked.transactional_id: after}
    turn.effects = [partial(transactions._know, asked.transactional_id, after, turn)]
    turn.reply(produce, [Produced(base_offset, -1, state.log_start_offset)])
    turn.reply(end, (after.producer_id, after.producer_epoch))
    epoch, log_id, home_id = state.leader_epoch, partition.log_id, home.log_id

    def write(transaction: WriteTransaction) -> None:
        log.append(transaction, log_id, batch, base_offset, epoch, with_records.max_timestamp)
        log.append_alone(transaction, log_id, marker, with_records.log_end_offset, staged)
        log.append_alone(transaction, home_id, record, home_offset, home_staged)

    carry_out(broker, turn, write)
    return True


def _belong(produce: Pending, end: Pending) -> bool:
    """Whether these are the only batch that is still to be written of a transaction, and the commit that waits for it."""
    request: Any = produce.request
    asked: Any = end.request
    event = asked.event
    return (
        type(event) is EndTxn
        and event.is_commit
        and not event.offsets
        and event.after == (produce,)
        and len(request.entries) == 1
        and request.acks != 0
        and request.transactional_id == asked.transactional_id
        and not (produce.taken or end.taken)
        and produce.poison is None
        and end.poison is None
    )


def _home(broker: Broker, transactions: TransactionCoordinator, transactional_id: str) -> Partition | None:
    """The partition that keeps a transactional id, if it is loaded and has no rules of its own."""
    image = broker.metadata.image.topics.get(TRANSACTION_STATE_TOPIC)
    if image is None:
        return None
    number = group_partition(transactional_id, len(image.partitions))
    home = broker.partitions.get((TRANSACTION_STATE_TOPIC, number))
    is_usual_home = (
        home is not None
        and number in transactions._loaded
        and home.topic_id == image.topic_id
        and home.is_alone
        and home.producers is None
        and home.config.retention_bytes < 0
    )
    return home if is_usual_home else None


def _prepared(
    transactions: TransactionCoordinator,
    asked: Any,
    partition: Partition,
    batch: batches.Batch,
    turn: Turn,
) -> TransactionState | None:
    """The decision, if it is about this partition alone. Raises what the rules say."""
    transactional_id, event = asked.transactional_id, asked.event
    place = TopicPartition(partition.topic, partition.number)
    stamp = batch.producer_id, batch.producer_epoch
    known = transactions._states.get(transactional_id)
    opened = rules.with_partitions(known, transactional_id, *stamp, [place], turn.wall_ms)
    if opened.partitions != (place,):
        return None
    stamp = event.producer_id, event.producer_epoch
    return rules.ending(opened, transactional_id, *stamp, True, turn.wall_ms)
