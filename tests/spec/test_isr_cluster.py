"""SEMANTICS 3.1 and 3.2 where a real cluster says more than the rules alone (those: test_isr.py)."""

from __future__ import annotations

import pytest

from streamlog.broker.replica_requests import FetchPosition, FollowerFetch
from streamlog.errors import (
    NotLeaderOrFollowerError,
    OffsetNotAvailableError,
    OffsetOutOfRangeError,
)
from tests.spec.replicas import replicated

SEEDS = pytest.mark.parametrize("seed", [1, 2, 3])


# -- 3.1: ISR and follower progress -----------------------------------------------------------------------------------


@SEEDS
def test_a_follower_always_behind_a_busy_leader_stays_in_sync(seed: int) -> None:
    """3.1.1: a follower always one batch behind a busy leader stays in sync."""
    with replicated(seed, brokers=2, replica_lag_time_max_ms=3_000) as replicas:
        replicas.cluster.network.delay(0, 1, 500)
        level = 0
        for number in range(200):
            replicas.post(b"%d" % number, acks=1)
            replicas.sleep(0.1)
            progress = replicas.replica(0).leadership.followers[1]
            level += progress.log_end_offset == replicas.end(0)
            assert replicas.isr == {0, 1}
        assert level == 0, "not once was it known to be at the end"


@SEEDS
def test_one_that_falls_behind_for_good_leaves(seed: int) -> None:
    """3.1.1, the other side: who fetches, but never comes near, leaves after the lag time."""
    with replicated(seed, brokers=2, replica_lag_time_max_ms=3_000, replica_fetch_max_bytes=1) as replicas:
        replicas.cluster.network.delay(0, 1, 1_000)  # one batch in two seconds, of ten a second
        for number in range(100):
            replicas.post(b"%d" % number, acks=1)
            replicas.sleep(0.1)
        assert replicas.isr == {0}
        assert replicas.end(1) > 0


@SEEDS
def test_an_idle_topic_never_shrinks(seed: int) -> None:
    """3.1.2: An idle topic with an equal LEO never shrinks, even if the follower stopped fetching (until it is fenced by
    the controller session)."""
    with replicated(seed) as replicas:
        replicas.append(b"a")
        replicas.cluster.network.drop(0, 2)  # from the leader; the controller still hears it
        replicas.sleep(3_600)
        assert replicas.isr == {0, 1, 2}
        replicas.cluster.brokers[2].pause()
        replicas.sleep(12)
        assert replicas.isr == {0, 1}


@SEEDS
def test_expanding_is_a_compare_and_swap_with_one_in_flight(seed: int) -> None:
    """3.1.3: no ISR change in flight: while the controller does not answer nothing else is proposed."""
    with replicated(seed, replica_lag_time_max_ms=2_000, broker_session_timeout_ms=60_000) as replicas:
        replicas.append(b"a")
        replicas.cluster.network.drop(0, "metadata")
        replicas.cluster.network.drop(0, 1)
        replicas.post(b"b", acks=1)
        replicas.sleep(5)
        assert replicas.replica(0).leadership.proposed_isr == (0, 2)
        replicas.cluster.network.drop(0, 2)
        replicas.post(b"c", acks=1)
        replicas.sleep(5)
        assert replicas.replica(0).leadership.proposed_isr == (0, 2)
        assert replicas.high_watermark(0) == 1, "a pending shrink still counts the old ISR"
        replicas.cluster.network.heal()
        replicas.sleep(3)
        assert replicas.isr == {0, 1, 2} and replicas.high_watermark(0) == 3


@SEEDS
def test_a_fetch_of_a_former_life_updates_nothing(seed: int) -> None:
    """3.1.5: fetch with stale broker epoch -> NOT_LEADER_OR_FOLLOWER, state not updated."""
    with replicated(seed) as replicas:
        replicas.append(b"a")
        epoch = replicas.broker(2).epoch
        replicas.crash(2)
        replicas.start(2)
        replicas.sleep(2)
        assert replicas.broker(2).epoch > epoch
        before = replicas.replica(0).leadership.followers[2]
        position = FetchPosition("t", 0, replicas.replica(0).topic_id, 0, 0, 0, 0)
        [answer] = replicas.broker(0).call(FollowerFetch(2, [position], epoch), 1_000)
        assert isinstance(answer.error, NotLeaderOrFollowerError)
        assert replicas.replica(0).leadership.followers[2] == before


@SEEDS
def test_the_fenced_leave_after_their_session_not_after_the_lag_time(seed: int) -> None:
    """3.1.6: a follower that is fenced (session 9 s) is dropped from ISR by the controller at once, not after lag
    time."""
    with replicated(seed) as replicas:
        replicas.append(b"a")
        replicas.cluster.brokers[2].pause()
        begun_ms = replicas.simulation.now_ms
        pending = replicas.post(b"b", timeout_ms=60_000)
        assert replicas.outcome(pending, 60).error is None
        assert 5_000 < replicas.simulation.now_ms - begun_ms < 12_000, "the lag time is 30 s"
        assert replicas.isr == {0, 1}


@SEEDS
@pytest.mark.parametrize("fault", ["crash", "stop"])
def test_who_goes_leaves_at_once(seed: int, fault: str) -> None:
    """3.1.6: in controlled shutdown is dropped at once; and so is one whose connection breaks."""
    with replicated(seed) as replicas:
        getattr(replicas.cluster.brokers[2], fault)()
        begun_ms = replicas.simulation.now_ms
        assert replicas.isr == {0, 1}
        assert replicas.outcome(replicas.post(b"a"), 1).error is None
        assert replicas.simulation.now_ms - begun_ms < 100


# -- 3.2: the high watermark ------------------------------------------------------------------------------------------


@SEEDS
def test_a_followers_mark_is_learnt_one_fetch_later(seed: int) -> None:
    """3.2.3: follower HW = min(leader HW in response, own LEO); HW learned one fetch later."""
    with replicated(seed, brokers=2) as replicas:
        replicas.cluster.network.delay(0, 1, 100)
        replicas.post(b"a")
        seen = []
        for _ in range(60):
            seen.append((replicas.end(1), replicas.high_watermark(1)))
            replicas.sleep(0.01)
        assert list(dict.fromkeys(seen)) == [(0, 0), (1, 0), (1, 1)]
        assert 15 <= seen.count((1, 0)) <= 25, "a round trip of 200 ms"


@SEEDS
def test_a_new_leader_does_not_tell_its_end_before_its_mark_has_come_there(seed: int) -> None:
    """3.2.4: new leader starts with its own (lagging) HW; until HW >= epoch start offset, ListOffsets(latest) ->
    OFFSET_NOT_AVAILABLE. Consumer offsets must not go backwards."""
    with replicated(seed) as replicas:
        replicas.append(b"a")
        replicas.sleep(1)
        replicas.cluster.network.delay(0, 1, 50)
        replicas.cluster.network.delay(0, 2, 50)
        told = replicas.append(b"b") + 1  # committed; neither follower has heard
        replicas.cluster.network.drop(1, 2)
        replicas.crash(0)
        leader = replicas.partition.leader
        assert leader is not None and replicas.high_watermark(leader) < told
        consumer = replicas.cluster.consumer(default_api_timeout_ms=500)
        with pytest.raises(OffsetNotAvailableError):
            consumer.end_offsets([("t", 0)])
        replicas.cluster.network.heal()
        replicas.sleep(2)
        assert list(consumer.end_offsets([("t", 0)]).values()) == [told]


@SEEDS
def test_what_a_consumer_may_fetch(seed: int) -> None:
    """3.2.5: consumers read < HW; followers read to LEO. Fetch at HW..LEO -> empty, > LEO -> OFFSET_OUT_OF_RANGE."""
    with replicated(seed) as replicas:
        replicas.append(b"a")
        replicas.cluster.network.drop(0, 2)
        replicas.post(b"b")
        replicas.sleep(1)
        assert replicas.values() == [b"a"] and replicas.values(1) == [b"a", b"b"]
        assert replicas.partition.read(1) == [] and replicas.partition.read(2) == []
        with pytest.raises(OffsetOutOfRangeError):
            replicas.partition.read(3)


@SEEDS
def test_one_replica_has_its_mark_at_the_end_at_once(seed: int) -> None:
    """3.2.6: RF=1: HW=LEO immediately after append."""
    with replicated(seed) as replicas:
        replicas.cluster.create_topic("one", replication_factor=1)
        with replicas.cluster.producer(acks=1) as producer:
            producer.send("one", b"a").result(5)
        assert replicas.cluster.topic("one")[0].high_watermark == 1
