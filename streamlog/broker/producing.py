"""Produce: how batches get into logs, in any turn, and the whole turn of one that is alone in the inbox.

    decide -> commit -> apply, publish -> count -> reply        `run_alone`: the steps of any turn, in one function

Most turns are such where records are acknowledged one by one, and calls between small functions cost more there than
the engine does. Nothing of the turn's laws is given up:

 1. What is not usual (a topic with rules of its own, a log not loaded, a request that failed before, ...) is left to the
    general turn before anything has begun: `run_alone` answers False.
 2. The turn is whole, with its request, staged state and answer, before its transaction begins. Cut short anywhere it is
    finished by the general turn, as any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamlog.batch_header import CONTROL, LOG_APPEND_TIME
from streamlog.broker.api import Produce, Produced
from streamlog.broker.pending import Pending, Turn
from streamlog.core.replica import ReplicaState
from streamlog.errors import InvalidTopicError, StreamlogError
from streamlog.storage import log

if TYPE_CHECKING:
    from streamlog.batch import Batch
    from streamlog.broker.broker import Broker
    from streamlog.broker.partition import Partition
    from streamlog.core.producer_state import KnownBatch, ProducerState


def decide(broker: Broker, turn: Turn, pending: Pending, request: Produce) -> None:
    """Append each entry, or say why not."""
    results: list[Produced] = []
    waiting: list[tuple[Partition, int, int]] = []  # what acks=all waits for, see `acknowledgements`
    for name, number, batch in request.entries:
        try:
            partition = broker.partition(name, number)
            if partition.internal:
                raise InvalidTopicError(f"topic {name!r} is internal; clients cannot write to it", topic=name)
            if broker.replication is not None:
                broker.replication.check_leads(turn, partition, request.acks)
            batch = partition.admit(batch, turn.wall_ms)
            if batch.is_transactional and broker.replication is None:  # else `joining_transactions` has
                broker.coordinator.transactions.admit(turn, request.transactional_id, batch, name, number)
            known = None if batch.producer_id < 0 else _known(turn, partition, batch)
        except StreamlogError as error:
            results.append(Produced(-1, -1, -1, error))
            continue
        if known is None:
            results.append(_append(broker, turn, partition, batch))
            end_offset = turn.staged[partition].log_end_offset
        else:
            append_time = known.max_timestamp if batch.is_log_append_time else -1
            start_offset = (turn.staged.get(partition) or partition.state).log_start_offset
            results.append(Produced(known.base_offset, append_time, start_offset))
            end_offset = known.last_offset + 1
        if request.acks == -1 and not turn.is_alone(partition):
            state = turn.staged.get(partition) or partition.state
            if state.high_watermark < end_offset:
                waiting.append((partition, end_offset, len(results) - 1))
    if waiting and broker.replication is not None:
        broker.replication.acknowledgements.park(turn, pending, results, waiting, request.timeout_ms)
        turn.parked.append((pending, list(results)))
        return
    if not request.acks:  # Kafka answers nothing: nobody is told an offset, but failures are not kept quiet
        results = [Produced(-1, -1, -1, result.error) for result in results]
    turn.reply(pending, results)


def _known(turn: Turn, partition: Partition, batch: Batch) -> KnownBatch | None:
    """What a producer's batch is a retry of. Raises InvalidProducerEpochError, OutOfOrderSequenceError."""
    from streamlog.broker.producer_states import state_of
    from streamlog.core.producer_state import admit

    return admit(state_of(turn, partition, batch.producer_id), batch, partition.topic, partition.number)


def _append(broker: Broker, turn: Turn, partition: Partition, batch: Batch) -> Produced:
    produced = broker.append(turn, partition, batch)
    if batch.producer_id >= 0:
        from streamlog.broker.producer_states import observe

        observe(broker.transaction(turn), turn, partition, batch, produced.base_offset)
    elif partition.producers is not None:
        partition.producers.unsaved_batches += 1
    return produced


def save_producers(broker: Broker, turn: Turn, partition: Partition, state: ReplicaState) -> None:
    """Before the commit: write a checkpoint of a partition's producers, if one is due."""
    from streamlog.broker import producer_states

    producer_states.save_if_due(
        broker.transaction(turn), turn, partition, state, broker.config.producer_id_expiration_ms
    )


def run_alone(broker: Broker, pending: Pending) -> bool:
    """Run a whole turn for this request, if it is a usual one. Called as the runner, nothing unfinished."""
    request: Any = pending.request
    entries = request.entries
    if len(entries) != 1 or pending.taken or pending.poison is not None or broker._stopped:
        return False
    name, number, batch = entries[0]
    partition = broker.partitions.get((name, number))
    wall_ms = broker._wall_ns() // 1_000_000
    if partition is None or not request.acks or not is_usual(broker, partition, batch, wall_ms):
        return False
    size_bytes, timestamp, records = batch.size_bytes, batch.max_timestamp, batch.last_offset_delta + 1
    state = partition.state
    base_offset = state.log_end_offset
    end_offset = base_offset + records
    knows = batch.producer_id >= 0 or partition.producers is not None
    producers = _follows(partition, batch, base_offset) if knows else {}
    if producers is None:
        return False
    if state.max_timestamp > timestamp:
        timestamp = state.max_timestamp
    staged = ReplicaState(
        state.log_start_offset, end_offset, end_offset, state.leader_epoch,
        state.size_bytes + size_bytes, timestamp, state.truncation_count,
    )  # fmt: skip
    reply = [Produced(base_offset, -1, state.log_start_offset)]
    turn = broker._unfinished = Turn(
        broker._monotonic_ns() // 1_000_000, wall_ms, [pending], {partition: staged}, [(pending, reply, None)]
    )
    turn.producers = producers
    try:
        transaction = turn.transaction = broker.environment.write()
        turn.transaction_id = transaction.id
        log.append_alone(transaction, partition.log_id, batch, base_offset, staged)
        if broker.commit_times is None:
            transaction.commit()
        else:
            broker._commit(transaction)
        turn.committed = True
    except Exception as error:
        broker._abandon(turn, error)
    if not turn.committed:
        broker._finish(turn)
        return True
    try:
        broker._apply(turn)
    except Exception:
        broker._finish(turn)  # which tries again
        return True
    times = broker.request_times
    turn.counted = True
    broker.turns_total += 1
    if times is not None:
        pending.took_us = took_us = broker._monotonic_ns() // 1_000 - pending.posted_us
        times.produced.times.update(took_us / 1_000)
    partition.meters.written(records, size_bytes, times)
    broker._answer(pending, reply, None)
    broker._inbox.popleft()
    broker._unfinished = None
    return True


def is_usual(broker: Broker, partition: Partition, batch: Batch, wall_ms: int) -> bool:
    """Whether a client's batch is to be stored as it is, in a partition that has no rules of its own."""
    config = partition.config
    image = broker.metadata.image.topics.get(partition.topic)
    return (
        partition.is_plain
        and (broker.replication is None or not broker.replication.dirty)  # else perhaps it leads no longer
        and image is not None
        and image.topic_id == partition.topic_id
        and batch.size_bytes <= config.max_message_bytes
        and batch.max_timestamp <= wall_ms + config.message_timestamp_after_max_ms
        and not batch.attributes & (LOG_APPEND_TIME | CONTROL)
    )


def _follows(
    partition: Partition, batch: Batch, base_offset: int
) -> dict[Partition, dict[int, ProducerState | None]] | None:
    """What a lone batch makes of its producer's state (`Turn.producers`), if it simply comes next and no checkpoint
    is due; else None.
    """
    table = partition.producers
    if table is None or table.is_due:
        return None
    if batch.producer_id < 0:
        table.unsaved_batches += 1
        return {}
    from streamlog.core.producer_state import next_sequence, observed

    state = table.states.get(batch.producer_id)
    if (
        state is None
        or batch.is_transactional
        or state.open_offset >= 0
        or state.producer_epoch != batch.producer_epoch
        or batch.base_sequence != next_sequence(state.last_sequence)
    ):
        return None
    table.unsaved_batches += 1
    return {partition: {batch.producer_id: observed(state, batch, base_offset)}}
