"""SEMANTICS 3.1 and 3.2, sentence by sentence, and the worked scenarios I1 to I6 of 3.11."""

from __future__ import annotations

import msgspec
import pytest

from streamlog.core import leadership as rules
from streamlog.core.leadership import NEVER_MS, FollowerProgress, LagLimits, Leadership
from streamlog.core.replica import ReplicaState

TEN = LagLimits(time_max_ms=10)


def leader(
    isr: tuple[int, ...] = (1, 2, 3), start: int = 0, ends: dict[int, int] | None = None, now_ms: int = 0
) -> Leadership:
    made = rules.become_leader(1, 4, (1, 2, 3), isr, 0, start, now_ms)
    if ends is None:
        return made
    followers = {
        follower: FollowerProgress(ends[follower], 0, now_ms, 0, made.followers[follower].last_caught_up_ms)
        for follower in (2, 3)
    }
    return msgspec.structs.replace(made, followers=followers)


def log(end: int, high_watermark: int = 0) -> ReplicaState:
    return ReplicaState(0, high_watermark, end)


# -- 3.1: ISR and follower progress -----------------------------------------------------------------------------------


def test_i1_a_follower_one_batch_behind_a_busy_leader_stays_in_sync() -> None:
    """I1: t0 fetch@10 LEO10; t5 fetch@10 LEO20; t8 fetch@20 LEO30: last caught up 0, 0, 5; in until t15."""
    made = leader()
    caught_up = []
    for now_ms, offset, end in ((0, 10, 10), (5, 10, 20), (8, 20, 30)):
        made = rules.fetched(made, 2, offset, 0, end, now_ms)
        caught_up.append(made.followers[2].last_caught_up_ms)
    assert caught_up == [0, 0, 5]
    made = rules.fetched(made, 3, 30, 0, 30, 8)
    assert rules.lagging(made, log(30), 15, TEN) == ()
    assert rules.lagging(made, log(30), 16, TEN) == (2,)


def test_i2_an_idle_follower_at_the_end_never_leaves() -> None:
    """I2: equal ends of 10, no fetch for an hour, no produce: it stays."""
    made = leader(ends={2: 10, 3: 10})
    assert rules.lagging(made, log(10), 3_600_000, TEN) == ()


def test_expanding_asks_for_the_high_watermark_not_for_the_end() -> None:
    """3.1.3: follower LEO >= leader HW; not "LEO equal to leader"."""
    made = leader(isr=(1, 2), ends={2: 9, 3: 8})
    assert not rules.may_join(made, log(30, 9), 3)
    assert rules.may_join(made, log(30, 8), 3)


def test_i5_not_before_the_start_of_the_current_epoch() -> None:
    """I5: new epoch starts at LEO 20, HW 15; a follower at 16 >= HW joins at 20 only."""
    assert not rules.may_join(leader(isr=(1, 2), start=20, ends={2: 20, 3: 16}), log(20, 15), 3)
    assert rules.may_join(leader(isr=(1, 2), start=20, ends={2: 20, 3: 20}), log(20, 15), 3)


@pytest.mark.parametrize("unavailable", [frozenset(), frozenset({3})])
def test_expanding_refuses_who_is_fenced_or_shutting_down(unavailable: frozenset[int]) -> None:
    """3.1.3: not fenced, not shutting down."""
    made = msgspec.structs.replace(leader(isr=(1, 2), ends={2: 9, 3: 9}), unavailable=unavailable)
    assert rules.may_join(made, log(9, 9), 3) is (3 not in unavailable)


def test_no_isr_change_while_one_is_in_flight() -> None:
    """3.1.3: no ISR change in flight."""
    made = rules.proposed(leader(isr=(1, 2), ends={2: 9, 3: 9}), (1,))
    assert not rules.may_join(made, log(9, 9), 3)
    assert rules.lagging(made, log(99), 1_000, TEN) == ()


def test_election_counts_isr_members_as_caught_up_and_no_others() -> None:
    """3.1.4: on leader election ISR members get lastCaughtUp=now, others 0 (never)."""
    made = rules.become_leader(1, 4, (1, 2, 3), (1, 2), 0, 0, 77)
    assert [made.followers[b].last_caught_up_ms for b in (2, 3)] == [77, NEVER_MS]


def test_who_is_outside_and_fenced_does_not_hold_the_high_watermark() -> None:
    """3.1.6: outside the ISR a fenced follower must not hold back HW even if "caught up" by time."""
    made = leader(isr=(1, 2), ends={2: 10, 3: 5})
    followers = {**made.followers, 3: FollowerProgress(5, 0, 0, 0, 0)}
    made = msgspec.structs.replace(made, followers=followers)
    assert rules.high_watermark(made, log(10), 1, 5, TEN) == 5
    fenced = msgspec.structs.replace(made, unavailable=frozenset({3}))
    assert rules.high_watermark(fenced, log(10), 1, 5, TEN) == 10


@pytest.mark.parametrize(("behind", "is_out"), [(4000, False), (4001, True)])
def test_i6_the_legacy_rule_of_messages(behind: int, is_out: bool) -> None:
    """I6: replica.lag.max.messages=4000: 4000 behind is in, 4001 is out."""
    limits = LagLimits(time_max_ms=10_000, messages_max=4000)
    made = leader(ends={2: 10_000 - behind, 3: 10_000})
    assert rules.lagging(made, log(10_000), 1, limits) == ((2,) if is_out else ())


# -- 3.2: the high watermark ------------------------------------------------------------------------------------------


def test_i3_who_is_outside_and_late_does_not_count() -> None:
    """I3: ISR {1,2}, LEO 1:10 2:8 3:5, 3 last caught up longer ago than the lag time: HW 8."""
    made = leader(isr=(1, 2), ends={2: 8, 3: 5})
    assert rules.high_watermark(made, log(10), 1, 1_000, TEN) == 8


def test_i4_who_is_about_to_join_counts() -> None:
    """I4: as I3, but 3 caught up within the lag time and is eligible: the candidate is 5, HW never goes back."""
    made = leader(isr=(1, 2), ends={2: 8, 3: 5})
    followers = {**made.followers, 3: FollowerProgress(5, 0, 995, 0, 995)}
    made = msgspec.structs.replace(made, followers=followers)
    assert rules.high_watermark(made, log(10), 1, 1_000, TEN) == 5
    assert rules.high_watermark(made, log(10, 7), 1, 1_000, TEN) == 7
    assert rules.high_watermark(made, log(10, 7), 1, 1_006, TEN) == 8


def test_a_pending_shrink_still_counts_the_old_isr() -> None:
    """3.2.1: pending shrink still counts the old ISR."""
    made = rules.proposed(leader(ends={2: 10, 3: 4}), (1, 2))
    assert rules.high_watermark(made, log(10), 1, 1_000, TEN) == 4
    made = rules.settled(made, (1, 2, 3), (1, 2), 1, frozenset(), 1_000)
    assert rules.high_watermark(made, log(10), 1, 1_000, TEN) == 10


def test_a_pending_expansion_counts_already() -> None:
    """3.2.1: the maximal ISR is the committed ISR and the pending expansion."""
    made = rules.proposed(leader(isr=(1, 2), ends={2: 10, 3: 4}), (1, 2, 3))
    assert rules.high_watermark(made, log(10), 1, 1_000, TEN) == 4


def test_it_stands_still_below_min_isr() -> None:
    """3.2.1: no advance if #ISR < effective min ISR."""
    made = leader(isr=(1,), ends={2: 0, 3: 0})
    assert rules.high_watermark(made, log(10, 3), 2, 1_000, TEN) == 3
    assert rules.high_watermark(made, log(10, 3), 1, 1_000, TEN) == 10


def test_min_isr_above_the_replication_factor_is_capped() -> None:
    """3.3: min.isr > RF is capped."""
    assert rules.effective_min_isr(5, 3) == 3
    assert not rules.is_under_min_isr(leader(), 5)


def test_it_never_decreases_on_the_leader() -> None:
    """3.2.1: never decreases."""
    assert rules.high_watermark(leader(ends={2: 2, 3: 2}), log(10, 6), 1, 0, TEN) == 6


def test_a_new_leader_starts_with_its_own() -> None:
    """3.2.4: it rises once the ISR refetches; until it reaches the epoch's start, its end is not told to consumers."""
    made = rules.become_leader(1, 4, (1, 2, 3), (1, 2, 3), 0, 10, 0)
    state = log(10, 6)
    assert rules.high_watermark(made, state, 1, 0, TEN) == 6
    assert not rules.is_readable(made, state)
    for follower in (2, 3):
        made = rules.fetched(made, follower, 10, 0, 10, 1)
    state = log(10, rules.high_watermark(made, state, 1, 1, TEN))
    assert state.high_watermark == 10 and rules.is_readable(made, state)
