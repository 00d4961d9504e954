"""What the leader of a partition knows of its followers, and what it concludes: ISR and high watermark (sans-I/O).

    follower fetches at offset n   =>  it holds everything below n
    ISR           replicas that keep up; changed by compare-and-swap at the controller, one proposal in flight
    maximal ISR   ISR and proposal together: until the controller has answered, either may be the truth
    high watermark = the smallest log end of the maximal ISR, and of those about to join it

A `Leadership` is immutable, like `ReplicaState`: a decision returns the one that holds after the turn, the broker
stages it and makes it current in `apply`.

Invariants (checked by `_check`):
 1. The leader is in its ISR; ISR and proposal are replicas of the partition.
 2. At most one proposal is in flight.
 3. The high watermark computed here is never below the one it started from, and never above the log end.

Sources: SEMANTICS 3.1 to 3.3; Kafka Replica, Partition (maybeIncrementLeaderHW, maybeExpandIsr, maybeShrinkIsr,
checkEnoughReplicasReachOffset), KIP-497, KIP-966 (strict min ISR).
Not implemented: eligible leader replicas (KIP-966).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from streamlog.core.replica import ReplicaState
from streamlog.errors import IneligibleReplicaError, InvalidRequestError, StreamlogError

UNKNOWN_OFFSET: Final = -1
NEVER_MS: Final = -(1 << 62)
"""A moment before every other: a follower that has not caught up since this leader began."""


class FollowerProgress(msgspec.Struct, frozen=True, gc=False):
    """One follower as its leader sees it. `last_fetch_*` are of the previous fetch."""

    log_end_offset: int = UNKNOWN_OFFSET
    log_start_offset: int = UNKNOWN_OFFSET
    last_fetch_ms: int = NEVER_MS
    last_fetch_leader_end_offset: int = 0
    last_caught_up_ms: int = NEVER_MS
    broker_epoch: int = -1
    """Of the life in which it fetched last; -1: it has not fetched from this leader."""


class Leadership(msgspec.Struct, frozen=True):
    """One leader's term: from becoming leader in `leader_epoch` to losing it."""

    broker_id: int
    leader_epoch: int
    epoch_start_offset: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    partition_epoch: int
    followers: dict[int, FollowerProgress]
    proposed_isr: tuple[int, ...] | None = None
    unavailable: frozenset[int] = frozenset()
    """Brokers that are fenced or shutting down: they cannot join the ISR; outside they hold no high watermark back."""

    @property
    def maximal_isr(self) -> tuple[int, ...]:
        """Everybody who may be in the ISR as the controller knows it."""
        if self.proposed_isr is None:
            return self.isr
        return tuple(sorted({*self.isr, *self.proposed_isr}))

    @property
    def is_alone(self) -> bool:
        """Whether the leader need not wait for anybody: the high watermark is the log end."""
        return len(self.replicas) == 1

    def _check(self) -> None:
        assert self.broker_id in self.isr, self
        assert set(self.isr) <= set(self.replicas), self
        assert self.proposed_isr is None or set(self.proposed_isr) <= set(self.replicas), self
        assert self.proposed_isr is None or self.broker_id in self.proposed_isr, self


class LagLimits(msgspec.Struct, frozen=True, gc=False):
    """When a follower is too far behind: replica.lag.time.max.ms, and 0.8's replica.lag.max.messages (None: off)."""

    time_max_ms: int
    messages_max: int | None = None


# -- queries ---------------------------------------------------------------------------------------------------------


def effective_min_isr(min_insync_replicas: int, replicas: int) -> int:
    """min.insync.replicas, capped by the number of replicas (SEMANTICS 3.3)."""
    return min(min_insync_replicas, replicas)


def is_under_min_isr(leadership: Leadership, min_insync_replicas: int) -> bool:
    """Whether acks=all is refused and the high watermark stands still."""
    return len(leadership.isr) < effective_min_isr(min_insync_replicas, len(leadership.replicas))


def is_caught_up(progress: FollowerProgress, leader_end_offset: int, now_ms: int, limits: LagLimits) -> bool:
    """Whether a follower is in sync: at the leader's end, or there not longer ago than the lag time (SEMANTICS 3.1.2)."""
    if progress.log_end_offset == leader_end_offset:
        return True
    if now_ms - progress.last_caught_up_ms > limits.time_max_ms:
        return False
    if limits.messages_max is None or progress.log_end_offset == UNKNOWN_OFFSET:
        return True  # 0.8: of whom nothing is known yet nothing is counted
    return leader_end_offset - progress.log_end_offset <= limits.messages_max


def high_watermark(
    leadership: Leadership, state: ReplicaState, min_insync_replicas: int, now_ms: int, limits: LagLimits
) -> int:
    """The high watermark that follows from what is known; never below the present one (SEMANTICS 3.2.1)."""
    if is_under_min_isr(leadership, min_insync_replicas):
        return state.high_watermark
    mark = state.log_end_offset
    maximal = leadership.maximal_isr
    for follower, progress in leadership.followers.items():
        if progress.log_end_offset >= mark:
            continue
        if follower in maximal or (
            follower not in leadership.unavailable
            and is_caught_up(progress, state.log_end_offset, now_ms, limits)
        ):
            mark = progress.log_end_offset
    return max(mark, state.high_watermark)


def lagging(leadership: Leadership, state: ReplicaState, now_ms: int, limits: LagLimits) -> tuple[int, ...]:
    """ISR members that have been behind for too long. Empty while a proposal is in flight."""
    if leadership.proposed_isr is not None:
        return ()
    return tuple(
        follower
        for follower in leadership.isr
        if follower != leadership.broker_id
        and not is_caught_up(leadership.followers[follower], state.log_end_offset, now_ms, limits)
    )


def may_join(leadership: Leadership, state: ReplicaState, follower: int) -> bool:
    """Whether a follower may be proposed for the ISR: at the high watermark and at the start of this leader's epoch
    (SEMANTICS 3.1.3). Reaching the log end is not asked for: a busy leader's followers never stand there.
    """
    progress = leadership.followers.get(follower)
    return (
        progress is not None
        and leadership.proposed_isr is None
        and follower not in leadership.isr
        and follower not in leadership.unavailable
        and progress.log_end_offset >= state.high_watermark
        and progress.log_end_offset >= leadership.epoch_start_offset
    )


def low_watermark(leadership: Leadership, state: ReplicaState) -> int:
    """Where the replica that begins earliest begins, of those that live; -1 while one of them has not told yet.
    Source: Kafka Partition.lowWatermarkIfLeader.
    """
    starts = [
        progress.log_start_offset
        for follower, progress in leadership.followers.items()
        if follower not in leadership.unavailable
    ]
    return min([state.log_start_offset, *starts])


def is_readable(leadership: Leadership, state: ReplicaState) -> bool:
    """Whether the high watermark has reached this leader's own epoch. Before, the end of the log is not to be told to
    consumers: it may lie below what the last leader has told them (SEMANTICS 3.2.4).
    """
    return state.high_watermark >= leadership.epoch_start_offset


# -- commands --------------------------------------------------------------------------------------------------------


def become_leader(
    broker_id: int,
    leader_epoch: int,
    replicas: tuple[int, ...],
    isr: tuple[int, ...],
    partition_epoch: int,
    log_end_offset: int,
    now_ms: int,
    unavailable: frozenset[int] = frozenset(),
) -> Leadership:
    """The term begins: ISR members count as caught up now, the others as never (SEMANTICS 3.1.4)."""
    followers = {
        follower: FollowerProgress(last_caught_up_ms=now_ms if follower in isr else NEVER_MS)
        for follower in replicas
        if follower != broker_id
    }
    return Leadership(
        broker_id, leader_epoch, log_end_offset, replicas, isr, partition_epoch, followers, None, unavailable
    )


def fetched(
    leadership: Leadership,
    follower: int,
    fetch_offset: int,
    follower_start_offset: int,
    leader_end_offset: int,
    now_ms: int,
    broker_epoch: int = -1,
) -> Leadership:
    """A follower fetched at `fetch_offset`, so it holds everything below.

    leader_end_offset: before whatever the fetch reads. If the follower stands there it is caught up now; if it
    stands where the leader's end was at its previous fetch, it was caught up then (SEMANTICS 3.1.1).
    """
    before = leadership.followers[follower]
    caught_up_ms = before.last_caught_up_ms
    if fetch_offset >= leader_end_offset:
        caught_up_ms = max(caught_up_ms, now_ms)
    elif fetch_offset >= before.last_fetch_leader_end_offset:
        caught_up_ms = max(caught_up_ms, before.last_fetch_ms)
    followers = dict(leadership.followers)
    followers[follower] = FollowerProgress(
        fetch_offset,
        follower_start_offset,
        now_ms,
        # Kafka: never back, so a late retransmission does not make an old end the measure.
        max(leader_end_offset, before.last_fetch_leader_end_offset),
        caught_up_ms,
        broker_epoch,
    )
    return msgspec.structs.replace(leadership, followers=followers)


def proposed(leadership: Leadership, isr: tuple[int, ...]) -> Leadership:
    """A change of the ISR is on its way to the controller."""
    assert leadership.proposed_isr is None, leadership
    return msgspec.structs.replace(leadership, proposed_isr=tuple(sorted(isr)))


def refused(leadership: Leadership, error: StreamlogError) -> Leadership:
    """The controller refused the proposal.

    If it did because it knows the partition otherwise (another epoch), what made the difference may be this very
    proposal, sent before: it stays in the maximal ISR until the image brings the news. Only if it knows the same
    partition, and what was proposed is not possible there, the committed ISR holds alone.
    Source: Kafka Partition.handleAlterPartitionError (only OPERATION_NOT_ATTEMPTED and INELIGIBLE_REPLICA reset it).
    """
    if isinstance(error, (IneligibleReplicaError, InvalidRequestError)):
        return msgspec.structs.replace(leadership, proposed_isr=None)
    return leadership


def settled(
    leadership: Leadership,
    replicas: tuple[int, ...],
    isr: tuple[int, ...],
    partition_epoch: int,
    unavailable: frozenset[int],
    now_ms: int,
    broker_epochs: Mapping[int, int] = {},
) -> Leadership:
    """The cluster image has news of the partition, the leader stays. An older image changes nothing.

    broker_epochs: of the brokers as they live now. What a former life of a follower had fetched is forgotten: it may
                   have lost it (a disk without power). Source: KIP-841, KIP-903.
    """
    if partition_epoch < leadership.partition_epoch:
        return leadership
    is_news = partition_epoch > leadership.partition_epoch
    followers = {
        follower: _of_this_life(leadership.followers.get(follower), broker_epochs.get(follower, -1))
        for follower in replicas
        if follower != leadership.broker_id
    }
    return msgspec.structs.replace(
        leadership,
        replicas=replicas,
        isr=isr,
        partition_epoch=partition_epoch,
        followers=followers,
        proposed_isr=None if is_news else leadership.proposed_isr,
        unavailable=unavailable,
    )


def _of_this_life(progress: FollowerProgress | None, broker_epoch: int) -> FollowerProgress:
    if progress is None or -1 < progress.broker_epoch < broker_epoch:
        return FollowerProgress()
    return progress
