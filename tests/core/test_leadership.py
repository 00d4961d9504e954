"""A leader's view of its followers: the commands keep the invariants whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.core import leadership as rules
from streamlog.core.leadership import NEVER_MS, FollowerProgress, LagLimits, Leadership
from streamlog.core.replica import ReplicaState
from streamlog.errors import (
    FencedLeaderEpochError,
    IneligibleReplicaError,
    InvalidRequestError,
    InvalidUpdateVersionError,
    NewLeaderElectedError,
    StaleBrokerEpochError,
    StreamlogError,
)

LIMITS = LagLimits(time_max_ms=10)


def leader(isr: tuple[int, ...] = (1, 2, 3), start: int = 0, now_ms: int = 0) -> Leadership:
    made = rules.become_leader(1, 4, (1, 2, 3), isr, 7, start, now_ms)
    made._check()
    return made


def test_a_term_begins_with_the_isr_caught_up() -> None:
    made = leader(isr=(1, 2), now_ms=50)
    assert made.followers[2].last_caught_up_ms == 50
    assert made.followers[3].last_caught_up_ms == NEVER_MS
    assert not rules.is_caught_up(made.followers[3], 0, 0, LIMITS)  # also while the clock is young


def test_an_older_image_changes_nothing() -> None:
    made = rules.proposed(leader(), (1, 2))
    assert rules.settled(made, (1, 2, 3), (1,), 6, frozenset(), 0) is made


def test_the_same_partition_epoch_leaves_the_proposal_in_flight() -> None:
    made = rules.settled(rules.proposed(leader(), (1, 2)), (1, 2, 3), (1, 2, 3), 7, frozenset({3}), 0)
    assert made.proposed_isr == (1, 2) and made.unavailable == {3}


def test_news_ends_the_proposal() -> None:
    made = rules.settled(rules.proposed(leader(), (1, 2)), (1, 2, 3), (1, 2), 8, frozenset(), 0)
    assert made.proposed_isr is None and made.isr == (1, 2)


def test_one_proposal_at_a_time() -> None:
    made = rules.proposed(leader(), (1, 2))
    with pytest.raises(AssertionError):
        rules.proposed(made, (1, 3))


@pytest.mark.parametrize("error", [IneligibleReplicaError, InvalidRequestError])
def test_a_proposal_that_is_impossible_is_dropped(error: type[StreamlogError]) -> None:
    assert rules.refused(rules.proposed(leader(), (1, 2)), error("")).proposed_isr is None


@pytest.mark.parametrize(
    "error", [FencedLeaderEpochError, InvalidUpdateVersionError, NewLeaderElectedError, StaleBrokerEpochError]
)
def test_a_proposal_refused_for_what_the_controller_knows_better_stays(error: type[StreamlogError]) -> None:
    """It may be this very proposal, sent before, that the controller knows."""
    made = rules.proposed(leader(), (1, 2))
    assert rules.refused(made, error("")) is made


def test_a_replica_that_joins_by_reassignment_has_no_past() -> None:
    made = rules.settled(leader(), (1, 2, 3, 5), (1, 2, 3), 8, frozenset(), 0)
    assert made.followers[5].log_end_offset == rules.UNKNOWN_OFFSET
    assert not rules.may_join(made, ReplicaState(0, 0, 0), 5)


def test_readable_from_the_epochs_start_on() -> None:
    made = leader(start=20)
    assert not rules.is_readable(made, ReplicaState(0, 15, 20))
    assert rules.is_readable(made, ReplicaState(0, 20, 20))


def test_alone_with_one_replica_only() -> None:
    assert rules.become_leader(1, 0, (1,), (1,), 0, 0, 0).is_alone
    assert not leader(isr=(1,)).is_alone


def test_who_lags_for_longer_than_allowed_is_lagging() -> None:
    made = rules.fetched(leader(), 2, 10, 0, 10, 3)
    state = ReplicaState(0, 0, 20)
    assert rules.lagging(made, state, 10, LIMITS) == ()
    assert rules.lagging(made, state, 11, LIMITS) == (3,)
    assert rules.lagging(made, state, 14, LIMITS) == (2, 3)


def test_a_late_fetch_does_not_take_back_what_is_known_of_the_past() -> None:
    made = rules.fetched(leader(), 2, 10, 0, 30, 5)
    made = rules.fetched(made, 2, 10, 0, 20, 6)
    assert made.followers[2].last_fetch_leader_end_offset == 30


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 5)),
        st.tuples(st.just("fetch"), st.integers(2, 3), st.integers(0, 5)),
        st.tuples(st.just("pass"), st.integers(0, 12)),
        st.tuples(st.just("shrink")),
        st.tuples(st.just("join"), st.integers(2, 3)),
        st.tuples(st.just("answer"), st.booleans()),
    ),
    max_size=60,
)


@given(EVENTS, st.integers(1, 4))
def test_the_high_watermark_is_held_by_whoever_may_be_in_the_isr(events: list[tuple], min_isr: int) -> None:
    made, state, now_ms = leader(), ReplicaState(), 0
    ends = {2: 0, 3: 0}
    for event in events:
        match event:
            case ("append", count):
                state = ReplicaState(0, state.high_watermark, state.log_end_offset + count)
            case ("fetch", follower, more):
                ends[follower] = min(state.log_end_offset, ends[follower] + more)
                made = rules.fetched(made, follower, ends[follower], 0, state.log_end_offset, now_ms)
            case ("pass", ms):
                now_ms += ms
            case ("shrink",):
                out = rules.lagging(made, state, now_ms, LIMITS)
                if out:
                    made = rules.proposed(made, tuple(b for b in made.isr if b not in out))
            case ("join", follower):
                if rules.may_join(made, state, follower):
                    made = rules.proposed(made, (*made.isr, follower))
            case ("answer", accepted) if made.proposed_isr is not None:
                if accepted:
                    made = rules.settled(
                        made, made.replicas, made.proposed_isr, made.partition_epoch + 1, frozenset(), now_ms
                    )
                else:
                    made = rules.refused(made, IneligibleReplicaError(""))
        made._check()
        before = state.high_watermark
        mark = rules.high_watermark(made, state, min_isr, now_ms, LIMITS)
        assert before <= mark <= state.log_end_offset
        if mark > before:
            assert not rules.is_under_min_isr(made, min_isr)
            assert all(ends[b] >= mark for b in made.maximal_isr if b != 1)
        state = ReplicaState(0, mark, state.log_end_offset)


def test_what_a_former_life_of_a_follower_fetched_is_forgotten() -> None:
    """It may have lost it since: it does not join the ISR before it has fetched in its new life (KIP-841, KIP-903)."""
    made = rules.settled(leader(), (1, 2, 3), (1, 2), 8, frozenset({3}), 0)
    made = rules.fetched(made, 3, 10, 0, 10, 5, broker_epoch=1)
    same_life = rules.settled(made, (1, 2, 3), (1, 2), 9, frozenset(), 6, {3: 1})
    assert rules.may_join(same_life, ReplicaState(0, 10, 10), 3)
    next_life = rules.settled(made, (1, 2, 3), (1, 2), 9, frozenset(), 6, {3: 2})
    assert not rules.may_join(next_life, ReplicaState(0, 10, 10), 3)
    assert rules.may_join(
        rules.fetched(next_life, 3, 10, 0, 10, 7, broker_epoch=2), ReplicaState(0, 10, 10), 3
    )


def test_of_whom_nothing_is_known_yet_no_messages_are_counted() -> None:
    progress = FollowerProgress(last_caught_up_ms=0)
    assert rules.is_caught_up(progress, 100, 5, LagLimits(10, messages_max=4))
    assert not rules.is_caught_up(progress, 100, 11, LagLimits(10, messages_max=4))
