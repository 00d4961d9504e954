"""The leader's side of a follower's fetch: fence it, compare the logs, note how far it has come, say what follows.

    FollowerFetch --> same topic? same epoch? a replica? --> diverging | out of range | noted --> high watermark, ISR

Nothing is read here: the answer says up to where the fetching thread may read the leader's store.

Source: SEMANTICS 3.1, 3.4; KIP-320, KIP-595; Kafka Partition.fetchRecords, updateFollowerFetchState.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlog.broker.partition import Partition
from streamlog.broker.replica_requests import FetchAnswer, FetchPosition, FollowerFetch
from streamlog.broker.turn import Pending, Turn
from streamlog.core import leadership as rules
from streamlog.core.leader_epochs import diverging_end
from streamlog.core.leadership import Leadership
from streamlog.core.replica import ReplicaState
from streamlog.errors import (
    FencedLeaderEpochError,
    NotLeaderOrFollowerError,
    OffsetOutOfRangeError,
    ReplicaNotAvailableError,
    StreamlogError,
    UnknownLeaderEpochError,
    UnknownTopicIdError,
)

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.replication import Replication


def serve_follower(
    broker: Broker, replication: Replication, turn: Turn, pending: Pending, request: FollowerFetch
) -> None:
    """Note how far a follower has come, and say where it may read on."""
    answers = []
    known = broker.metadata.image.brokers.get(request.follower_id)
    is_stale = known is None or -1 < request.broker_epoch < known.broker_epoch
    for position in request.positions:
        try:
            if is_stale:  # SEMANTICS 3.1.5: of a former life, whose log may have been another
                raise _stale(request, position)
            answers.append(_fetch_one(broker, replication, turn, request, position))
        except StreamlogError as error:
            answers.append(FetchAnswer(None, error=error))
    turn.reply(pending, answers)


def _fetch_one(
    broker: Broker, replication: Replication, turn: Turn, request: FollowerFetch, position: FetchPosition
) -> FetchAnswer:
    follower = request.follower_id
    partition = broker.partition(position.topic, position.number)
    if partition.topic_id != position.topic_id:
        raise UnknownTopicIdError(f"topic {position.topic!r} was made anew", topic=position.topic)
    leadership: Leadership | None = turn.leaderships.get(partition, partition.leadership)
    if leadership is None or leadership.leader_epoch < position.leader_epoch:
        replication.take_role(turn, partition)
        leadership = turn.leaderships.get(partition, partition.leadership)
    if leadership is None:
        raise not_leader(partition, broker.id)
    _check_epoch(partition, leadership.leader_epoch, position.leader_epoch)
    if follower not in leadership.followers:
        raise ReplicaNotAvailableError(
            f"broker {follower} is no replica of {partition.name}: {list(leadership.replicas)} are",
            topic=partition.topic,
            partition=partition.number,
        )
    state: ReplicaState = turn.staged.get(partition) or partition.state
    epochs = turn.epochs.get(partition, partition.epochs)
    diverging = diverging_end(
        epochs, state.log_end_offset, position.last_fetched_epoch, position.fetch_offset
    )
    if diverging is not None and diverging.end_offset >= 0:
        return FetchAnswer(
            partition, state.log_start_offset, state.high_watermark, state.log_end_offset, diverging
        )
    if diverging is not None or not (state.log_start_offset <= position.fetch_offset <= state.log_end_offset):
        raise out_of_range(partition, state, follower, position.fetch_offset)
    noted = rules.fetched(
        leadership,
        follower,
        position.fetch_offset,
        position.log_start_offset,
        state.log_end_offset,
        turn.now_ms,
        request.broker_epoch,
    )
    turn.leaderships[partition] = noted
    replication.move_high_watermark(turn, partition)
    state = turn.staged.get(partition) or partition.state
    if rules.may_join(noted, state, follower):
        replication.in_sync_sets.propose(turn, partition, noted, (*noted.isr, follower))
    return FetchAnswer(partition, state.log_start_offset, state.high_watermark, state.log_end_offset)


def out_of_range(
    partition: Partition, state: ReplicaState, follower: int, fetch_offset: int
) -> OffsetOutOfRangeError:
    """What a follower is told that asks for an offset its leader has not."""
    return OffsetOutOfRangeError(
        f"broker {follower} asks {partition.name} for offset {fetch_offset}; there are "
        f"{state.log_start_offset} to {state.log_end_offset}",
        topic=partition.topic,
        partition=partition.number,
        offset=fetch_offset,
        log_start_offset=state.log_start_offset,
        log_end_offset=state.log_end_offset,
    )


def _check_epoch(partition: Partition, ours: int, theirs: int) -> None:
    """SEMANTICS 3.4.4: an older epoch is fenced, a newer one is not known yet."""
    if theirs < ours:
        raise FencedLeaderEpochError(
            f"{partition.name} is led in epoch {ours}; {theirs} is over",
            topic=partition.topic,
            partition=partition.number,
            leader_epoch=ours,
        )
    if theirs > ours:
        raise UnknownLeaderEpochError(
            f"{partition.name}: epoch {theirs} is not known here yet, {ours} is",
            topic=partition.topic,
            partition=partition.number,
            leader_epoch=ours,
        )


def _stale(request: FollowerFetch, position: FetchPosition) -> NotLeaderOrFollowerError:
    return NotLeaderOrFollowerError(
        f"broker {request.follower_id} has begun another life since it asked for {position.topic}-{position.number}",
        topic=position.topic,
        partition=position.number,
        broker_id=request.follower_id,
    )


def not_leader(partition: Partition, broker_id: int) -> NotLeaderOrFollowerError:
    return NotLeaderOrFollowerError(
        f"broker {broker_id} does not lead {partition.name}; it knows of leader {partition.leader_id} in epoch "
        f"{partition.role_epoch}",
        topic=partition.topic,
        partition=partition.number,
        broker_id=broker_id,
        leader=partition.leader_id,
    )
