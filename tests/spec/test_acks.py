"""SEMANTICS 3.3, row by row, on a real cluster of three brokers; brokers 1, 2, 3 there are 0, 1, 2 here, 0 leads."""

from __future__ import annotations

import pytest

from streamlog.batch import seal_columnar
from streamlog.broker import api
from streamlog.errors import (
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    NotLeaderOrFollowerError,
    StreamlogTimeoutError,
)
from tests.spec.replicas import Replicas, replicated

SEEDS = pytest.mark.parametrize("seed", [1, 2, 3])


@SEEDS
def test_all_in_sync_min_2_acks_all_waits_until_both_have_it(seed: int) -> None:
    """{1,2,3}, 2, all: wait until 2 AND 3 have it."""
    with replicated(seed, config={"min.insync.replicas": 2}) as replicas:
        replicas.cluster.network.delay(0, 1, 100)
        replicas.cluster.network.delay(0, 2, 300)
        pending = replicas.post(b"a")
        replicas.sleep(0.45)  # one has it and has said so, the other's data is on its way
        assert replicas.end(1) == 1 and replicas.end(2) == 0 and not pending.done
        assert replicas.outcome(pending, 5).base_offset == 0
        assert replicas.end(1) == replicas.end(2) == 1


@SEEDS
def test_all_in_sync_a_slow_one_delays_everyone_until_shrink(seed: int) -> None:
    """{1,2,3}, 2, all: a slow 3 delays everyone until shrink."""
    with replicated(
        seed,
        config={"min.insync.replicas": 2},
        replica_lag_time_max_ms=4_000,
        broker_session_timeout_ms=60_000,
    ) as replicas:
        replicas.append(b"a")
        replicas.cluster.network.drop(0, 2)  # it lives, and hears nothing from the leader
        pending = replicas.post(b"b")
        replicas.sleep(3.9)
        assert not pending.done and replicas.high_watermark(0) == 1 and replicas.isr == {0, 1, 2}
        assert replicas.outcome(pending, 3).base_offset == 1
        assert replicas.isr == {0, 1}


@SEEDS
def test_two_in_sync_min_2_acks_all_is_ok_with_both(seed: int) -> None:
    """{1,2}, 2, all: ok with 1,2."""
    with replicated(seed, config={"min.insync.replicas": 2}) as replicas:
        replicas.crash(2)
        assert replicas.isr == {0, 1}
        assert replicas.append(b"a") == 0
        assert replicas.end(1) == 1 and replicas.values() == [b"a"]


@SEEDS
def test_one_in_sync_min_2_acks_all_is_refused_and_not_written(seed: int) -> None:
    """{1}, 2, all: NOT_ENOUGH_REPLICAS, not written."""
    with replicated(seed, config={"min.insync.replicas": 2}) as replicas:
        replicas.crash(1, 2)
        error = replicas.outcome(replicas.post(b"a")).error
        assert isinstance(error, NotEnoughReplicasError)
        assert error.code == 19 and error.retriable and not error.indefinite
        assert error.facts["isr"] == (0,) and error.facts["min_insync_replicas"] == 2
        assert replicas.end(0) == 0


@SEEDS
@pytest.mark.parametrize("acks", [0, 1])
def test_one_in_sync_min_2_acks_1_or_0_is_written_acked_and_invisible(seed: int, acks: int) -> None:
    """{1}, 2, 1 or 0: written, acked; HW frozen, invisible to consumers (>= 3.7)."""
    with replicated(seed, config={"min.insync.replicas": 2}) as replicas:
        replicas.crash(1, 2)
        assert replicas.outcome(replicas.post(b"a", acks=acks)).error is None
        replicas.sleep(60)
        assert replicas.end(0) == 1 and replicas.high_watermark(0) == 0 and replicas.values() == []
        replicas.start(1)
        replicas.sleep(2)
        assert replicas.high_watermark(0) == 1 and replicas.values() == [b"a"]


@SEEDS
def test_two_in_sync_min_2_then_one_dies_before_its_fetch(seed: int) -> None:
    """{1,2}, 2, all, then 2 dies before fetch: HW cannot move; after shrink still cannot (strict); REQUEST_TIMED_OUT at
    request timeout; record remains later, can become committed later."""
    with replicated(seed, config={"min.insync.replicas": 2}) as replicas:
        replicas.crash(2)
        replicas.cluster.network.drop(0, 1)  # before its fetch
        pending = replicas.post(b"a", timeout_ms=3_000)
        replicas.crash(1)
        assert replicas.isr == {0}
        replicas.sleep(1)
        assert not pending.done and replicas.high_watermark(0) == 0
        error = replicas.outcome(pending, 3).error
        assert isinstance(error, StreamlogTimeoutError)
        assert error.code == 7 and error.retriable and error.indefinite
        assert replicas.end(0) == 1 and replicas.values() == []
        replicas.cluster.network.heal()
        replicas.start(1)
        replicas.sleep(2)
        assert replicas.values() == [b"a"], "it became committed later"


@SEEDS
def test_high_watermark_reached_and_the_isr_drops_before_the_check(seed: int) -> None:
    """{1,2}, 2, all, HW reached, ISR drops before check: NOT_ENOUGH_REPLICAS_AFTER_APPEND."""
    with replicated(seed, brokers=2, config={"min.insync.replicas": 2}) as replicas:
        replicas.cluster.network.delay(0, 1, 300)
        pending = replicas.post(b"a")
        while replicas.end(1) == 0:
            replicas.sleep(0.01)
        replicas.cluster.brokers[0].pause()
        replicas.sleep(0.5)  # the acknowledging fetch waits in its inbox
        replicas.crash(1)
        replicas.cluster.brokers[0].resume()
        error = replicas.outcome(pending, 1).error
        assert isinstance(error, NotEnoughReplicasAfterAppendError)
        assert error.code == 20 and error.retriable and error.indefinite
        assert replicas.isr == {0} and replicas.values() == [b"a"], "written, and to be read"


@SEEDS
def test_a_retry_after_that_without_idempotence_duplicates(seed: int) -> None:
    """Retry after timeout without idempotence duplicates."""
    with replicated(seed, brokers=2, config={"min.insync.replicas": 2}) as replicas:
        offset = _retried_after_a_timeout(replicas, enable_idempotence=False)
        assert replicas.values() == [b"a"] * len(replicas.values()) and len(replicas.values()) > 1
        assert offset > 0, "the offset of the one that was acknowledged"


@SEEDS
def test_a_retry_after_that_with_idempotence_does_not(seed: int) -> None:
    with replicated(seed, brokers=2, config={"min.insync.replicas": 2}) as replicas:
        assert _retried_after_a_timeout(replicas) == 0
        assert replicas.values() == [b"a"]


def _retried_after_a_timeout(replicas: Replicas, **options: object) -> int:
    with replicas.cluster.producer(request_timeout_ms=1_000, **options) as producer:
        future = producer.send("t", b"a")
        replicas.cluster.network.drop(0, 1)
        producer._hurry(future.batch)
        replicas.sleep(1.5)
        replicas.cluster.network.heal()
        offset: int = future.result(30).offset
    replicas.sleep(1)
    return offset


@SEEDS
def test_all_in_sync_min_5_is_capped_by_the_replication_factor(seed: int) -> None:
    """{1,2,3}, 5, all: effective min = 3, ok (min.isr > RF is capped)."""
    with replicated(seed, config={"min.insync.replicas": 5}) as replicas:
        assert replicas.append(b"a") == 0
        replicas.crash(2)
        assert isinstance(replicas.outcome(replicas.post(b"b")).error, NotEnoughReplicasError)


@SEEDS
def test_one_in_sync_min_1_is_ok_alone(seed: int) -> None:
    """{1}, 1, all: ok alone: acks=all is not a majority."""
    with replicated(seed) as replicas:
        replicas.crash(1, 2)
        assert replicas.append(b"a") == 0
        assert replicas.values() == [b"a"]


@SEEDS
def test_leader_deposed_while_waiting(seed: int) -> None:
    """leader deposed while waiting, all: NOT_LEADER_OR_FOLLOWER."""
    with replicated(seed) as replicas:
        replicas.append(b"a")
        replicas.cut(0)
        pending = replicas.post(b"b", to=0, timeout_ms=60_000)
        replicas.sleep(12)
        assert replicas.partition.leader != 0 and not pending.done
        replicas.cluster.network.heal()
        error = replicas.outcome(pending, 5).error
        assert isinstance(error, NotLeaderOrFollowerError) and error.code == 6 and error.retriable
        replicas.sleep(2)
        assert replicas.values() == [b"a"]


@SEEDS
def test_all_of_a_requests_partitions_must_finish_and_each_has_its_own_error(seed: int) -> None:
    """All of one request's partitions must finish before the answer; each carries its own error."""
    with replicated(seed) as replicas:
        cluster = replicas.cluster
        cluster.create_topic("strict", replication_factor=3, config={"min.insync.replicas": 3})
        cluster.reassign("strict", {0: replicas.partition.replicas})
        if cluster.topic("strict")[0].leader != 0:
            cluster.elect_leaders("strict")
        replicas.sleep(1)
        assert replicas.partition.leader == cluster.topic("strict")[0].leader == 0
        cluster.brokers[2].crash()
        cluster.network.drop(0, 1)
        entries = [(name, 0, seal_columnar([None], [b"x"], timestamps=1)) for name in ("strict", "t")]
        pending = replicas.broker(0).post(api.Produce(entries, -1, 30_000))
        replicas.sleep(1)
        assert not pending.done, "the one that is refused is told with the one that waits"
        cluster.network.heal()
        replicas.sleep(2)
        refused, written = pending.result()
        assert isinstance(refused.error, NotEnoughReplicasError)
        assert written.error is None and written.base_offset == 0
