"""Requests of upkeep in a broker's turn: what moves the start of a log, its end, or swaps batches inside of it.

    DeleteRecords, RaiseLogStart --> log start up --> trimmed slice by slice (`deletion`)
    TruncateTail                 --> log end down, readers look again
    SwapCompacted                --> other bytes at the same offsets

Source: Kafka `Partition.deleteRecordsOnLeader`, `UnifiedLog.truncateTo`, `Cleaner.cleanSegments`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlog.broker import api
from streamlog.broker.partition import Partition
from streamlog.broker.turn import DEFER, Pending, Turn
from streamlog.broker.upkeep import (
    DropLogs,
    DropTopic,
    PutCheckpoints,
    RaiseLogStart,
    RefreshTopic,
    SaveCleanerCheckpoint,
    SwapCompacted,
    TakeConfig,
    TrimHead,
)
from streamlog.core.leadership import low_watermark
from streamlog.core.replica import delete_records_target, head_deleted, recoded, truncated
from streamlog.errors import PolicyViolationError, StorageError
from streamlog.storage import log

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker


def decide(broker: Broker, turn: Turn, pending: Pending, request: object) -> object:
    """Decide a request that is neither a client's produce or group nor replication's. May return DEFER."""
    match request:
        case api.DeleteRecords():
            _delete_records(broker, turn, pending, request)
        case api.WriteMarkers():
            from streamlog.broker.transaction_markers import write_markers

            write_markers(broker, turn, pending, request)
        case RaiseLogStart():
            partition = request.partition
            state = turn.staged.get(partition) or partition.state
            if partition.view is not None and state.truncation_count == request.truncation_count:
                _raise_log_start(
                    broker, turn, partition, min(request.log_start_offset, partition.state.high_watermark)
                )
            turn.reply(pending, None)
        case api.TruncateTail():
            _truncate(broker, turn, pending, request)
        case TrimHead():
            turn.effects.append(lambda: broker.deletions.trimming.setdefault(request.partition))
            turn.reply(pending, None)
        case DropLogs():
            turn.effects.append(lambda: broker.drop_orphans(request.log_ids))
            turn.reply(pending, None)
        case SwapCompacted():
            return _decide_swap(broker, turn, pending, request)
        case SaveCleanerCheckpoint():
            if request.partition.view is not None and request.partition.generation == request.generation:
                from streamlog.storage import cleaner

                cleaner.save_cleaner_checkpoint(
                    broker.transaction(turn, True), request.partition.log_id, request.checkpoint
                )
            turn.reply(pending, None)
        case PutCheckpoints():
            is_current = request.is_current()
            if is_current:
                request.put_into(broker.transaction(turn))
            turn.reply(pending, is_current)
        case DropTopic():
            turn.effects.append(lambda: broker.drop(request.topic))
            turn.reply(pending, None)
        case RefreshTopic():
            turn.effects.append(lambda: broker.refresh(request.name))
            turn.reply(pending, None)
        case TakeConfig():
            turn.effects.append(lambda: broker.configure(request.config))
            turn.reply(pending, None)
        case _:
            raise TypeError(f"a broker does not know {type(request).__name__}")
    return None


def _delete_records(broker: Broker, turn: Turn, pending: Pending, request: api.DeleteRecords) -> None:
    partition = _loaded(broker, turn, pending, request.topic, request.partition)
    if partition is not None:
        replication = broker.replication
        leadership = None if replication is None else replication.check_leads(turn, partition, 1)
        if not partition.config.deletes:  # Kafka, Partition.deleteRecordsOnLeader
            raise PolicyViolationError(
                f"records of {partition.topic}-{partition.number} cannot be deleted: its cleanup.policy is "
                f"{','.join(partition.config.cleanup_policy)}, allowed where it has 'delete'",
                topic=partition.topic,
                partition=partition.number,
            )
        state = turn.staged.get(partition) or partition.state
        start = delete_records_target(state, request.before_offset, partition.topic, partition.number)
        _raise_log_start(broker, turn, partition, start)
        if replication is not None and leadership is not None and low_watermark(leadership, state) < start:
            replication.deletes.park(turn, pending, partition, start, request.timeout_ms)
        else:
            turn.reply(pending, start)


def _loaded(broker: Broker, turn: Turn, pending: Pending, topic: str, number: int) -> Partition | None:
    """The partition; None if the store could not read it, which is this request's trouble only."""
    try:
        return broker.partition(topic, number)
    except StorageError as error:
        turn.fail(pending, error)
        return None


def _raise_log_start(broker: Broker, turn: Turn, partition: Partition, start: int) -> None:
    state = turn.staged.get(partition) or partition.state
    if start > state.log_start_offset:
        broker.transaction(turn, reclaiming=True)
        turn.staged[partition] = head_deleted(state, start, 0)
        turn.effects.append(lambda: broker.deletions.trimming.setdefault(partition))


def _truncate(broker: Broker, turn: Turn, pending: Pending, request: api.TruncateTail) -> None:
    partition = _loaded(broker, turn, pending, request.topic, request.partition)
    if partition is None:
        return
    state = turn.staged.get(partition) or partition.state
    cut = log.truncate_tail(broker.transaction(turn, reclaiming=True), partition.log_id, request.from_offset)
    if cut.batches:
        partition.is_cutting = True
        from streamlog.broker.producer_states import stage_cut

        state = truncated(
            state, max(cut.log_end_offset, state.log_start_offset), cut.bytes, cut.max_timestamp
        )
        turn.staged[partition] = state
        stage_cut(broker.transaction(turn), turn, partition, state)
        generation = partition.generation + 1
        turn.effects.append(lambda: setattr(partition, "generation", generation))
    turn.reply(pending, None)


def _decide_swap(broker: Broker, turn: Turn, pending: Pending, request: SwapCompacted) -> object:
    partition = request.partition
    state = turn.staged.get(partition) or partition.state
    if state.truncation_count != partition.state.truncation_count:
        return DEFER  # cut in this very turn: its generation rises when that is applied
    if partition.view is None or partition.generation != request.generation:
        turn.reply(pending, None)
        return None
    from streamlog.storage import cleaner

    change = cleaner.apply_compaction(
        broker.transaction(turn, reclaiming=True), partition.log_id, request.plan
    )
    turn.staged[partition] = recoded(state, change)
    # Now, and when it is done: who reads in between has seen neither.
    partition.compactions += 1
    turn.effects.append(lambda: setattr(partition, "compactions", partition.compactions + 1))
    turn.reply(pending, change)
    return None
