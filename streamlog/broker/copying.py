"""The follower's side of a turn: cut where the leader's log parts from ours, then append what it has, byte for byte.

    CopiedPart --(epoch still ours?)--> truncate | restart at the leader's start | append --> state, epochs, checkpoint

Source: SEMANTICS 3.4; Kafka ReplicaFetcherThread.processPartitionData, AbstractFetcherThread.handleOutOfRangeError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from streamlog.broker.producer_states import observe, stage_cut
from streamlog.broker.replica_requests import AppendAsFollower, CopiedPart, FetchPosition
from streamlog.broker.turn import Pending, Turn
from streamlog.core.leader_epochs import EpochHistory, truncation_target
from streamlog.core.replica import ReplicaState, head_deleted, replicated, truncated
from streamlog.storage import log
from streamlog.storage.keys import CheckpointKind, checkpoint_key

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.partition import Partition
    from streamlog.broker.replication import Replication

TRUNCATE_BYTES_MAX: Final = 8 * 1024 * 1024
"""So many bytes are cut in one turn; the next fetch finds the log still diverging and goes on (law 8)."""


def append_as_follower(
    broker: Broker, replication: Replication, turn: Turn, pending: Pending, request: AppendAsFollower
) -> None:
    """Take over what a fetch brought, all partitions in this turn's transaction."""
    for part in request.parts:
        partition = part.partition
        leadership = turn.leaderships.get(partition, partition.leadership)
        if (
            leadership is not None
            or partition.role_epoch != part.position.leader_epoch
            or partition.view is None
        ):
            continue  # the role changed since the fetch: what it brought is of another leader
        if not _stands_at(turn, partition, part.position):
            continue
        if part.diverging is not None or part.restart_at is not None:
            _cut(broker, replication, turn, part)
        elif part.batches or part.log_start_offset >= 0:
            _append(broker, replication, turn, part)
    turn.reply(pending, None)


def _stands_at(turn: Turn, partition: Partition, position: FetchPosition) -> bool:
    """Whether the log is still the one that was fetched for. Who fetched may have given up waiting for us, and fetched
    again since (Kafka AbstractFetcherThread: only if the offset is the one that was asked for).
    """
    state: ReplicaState = turn.staged.get(partition) or partition.state
    if state.log_end_offset != position.fetch_offset:
        return False
    epochs: EpochHistory = turn.epochs.get(partition, partition.epochs)
    return (
        position.fetch_offset == 0
        or epochs.epoch_of(position.fetch_offset - 1) == position.last_fetched_epoch
    )


def _cut(broker: Broker, replication: Replication, turn: Turn, part: CopiedPart) -> None:
    partition = part.partition
    state: ReplicaState = turn.staged.get(partition) or partition.state
    epochs: EpochHistory = turn.epochs.get(partition, partition.epochs)
    if part.restart_at is not None and part.restart_at > state.log_end_offset:
        target = 0  # the leader's log begins behind our end: nothing of ours is of use
    elif part.restart_at is not None:
        target = part.restart_at
    else:
        assert part.diverging is not None
        target = truncation_target(epochs, state.log_end_offset, part.diverging)
    if target < state.log_end_offset or part.restart_at is not None:
        cut = log.truncate_tail(
            broker.transaction(turn, reclaiming=True), partition.log_id, target, TRUNCATE_BYTES_MAX
        )
        end = cut.log_end_offset if cut.batches else min(target, state.log_end_offset)
        partition.is_cutting = True
        max_timestamp = cut.max_timestamp if cut.batches else state.max_timestamp
        state = truncated(state, end, cut.bytes, max_timestamp)
        epochs = epochs.truncated(end)
        if part.restart_at is not None and part.restart_at > end and cut.done:
            state = msgspec.structs.replace(
                state,
                log_start_offset=part.restart_at,
                high_watermark=part.restart_at,
                log_end_offset=part.restart_at,
            )
        if cut.batches:
            # What is folded from the old tail must not be believed by whoever leads here next.
            broker.transaction(turn).delete(checkpoint_key(partition.log_id, CheckpointKind.FOLD))
        turn.staged[partition] = state
        stage_cut(broker.transaction(turn), turn, partition, state)
        replication.stage_epochs(turn, partition, epochs)
        generation = partition.generation + 1
        turn.effects.append(lambda: setattr(partition, "generation", generation))
        replication.trace(f"broker {broker.id} truncates {partition.name} to {state.log_end_offset}")
        replication.truncations += 1


def _append(broker: Broker, replication: Replication, turn: Turn, part: CopiedPart) -> None:
    partition = part.partition
    before = state = turn.staged.get(partition) or partition.state
    epochs: EpochHistory = turn.epochs.get(partition, partition.epochs)
    for batch in part.batches:
        if batch.last_offset < state.log_end_offset:
            continue  # another fetch brought it
        # Records may have been deleted up to the middle of the leader's first batch: who begins there takes it whole, as
        # Kafka does (ReplicaManager, UnexpectedAppendOffsetException). Else half of it is here, so this is not the log
        # we know; the next fetch will say where it parts.
        if batch.base_offset < state.log_end_offset and state.log_end_offset > state.log_start_offset:
            break
        running_max = max(state.max_timestamp, batch.max_timestamp)
        stored = log.append(
            broker.transaction(turn),
            partition.log_id,
            batch,
            batch.base_offset,
            batch.leader_epoch,
            running_max,
        )
        if batch.producer_id >= 0:
            observe(broker.transaction(turn), turn, partition, batch, batch.base_offset)
        elif partition.producers is not None:
            partition.producers.unsaved_batches += 1
        # An epoch we led without writing anything in it has left no record; the leader's log goes on with an older one.
        epochs = epochs.truncated(state.log_end_offset)
        epochs = epochs.entered(batch.leader_epoch, max(batch.base_offset, state.log_start_offset))
        state = replicated(state, batch.last_offset + 1, stored, batch.max_timestamp)
    mark = min(part.high_watermark, state.log_end_offset)
    if mark > state.high_watermark:
        state = msgspec.structs.replace(state, high_watermark=mark)
    if part.log_start_offset > state.log_start_offset:
        start = min(part.log_start_offset, state.high_watermark)
        if start > state.log_start_offset:
            broker.transaction(turn, reclaiming=True)
            state = head_deleted(state, start, 0)
            epochs = epochs.head_deleted(start)
            turn.effects.append(lambda: broker.deletions.trimming.setdefault(partition))
    if state is not before:
        turn.staged[partition] = state
    replication.stage_epochs(turn, partition, epochs)
