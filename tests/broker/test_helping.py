"""Who copies for the followers: callers that wait, the fetchers' threads, and the watch between the two."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import streamlog
from streamlog.broker.fetcher import ReplicaFetcher
from streamlog.testing import Simulation
from tests.waiting import until


@pytest.fixture
def cluster() -> Iterator[Any]:
    with streamlog.open(
        ":memory:", brokers=3, sync="off", config={"replica.fetch.wait.max.ms": 20}
    ) as opened:
        opened.create_topic("t", partitions=1, replication_factor=3)
        yield opened


def high_watermarks(cluster: Any) -> list[int]:
    return [broker.partitions["t", 0].state.high_watermark for broker in cluster._backend.brokers]


def test_a_caller_that_waits_needs_four_turns_a_record(cluster: Any) -> None:
    """Append at the leader, append at each follower, one turn of the leader that hears both acknowledge."""
    brokers = cluster._backend.brokers
    with cluster.producer(acks="all", linger_ms=0) as producer:
        for _ in range(20):
            producer.send("t", b"x").result(10)
        before = [broker.turns_total for broker in brokers]
        for _ in range(100):
            producer.send("t", b"x").result(10)
        turns = [broker.turns_total - was for broker, was in zip(brokers, before, strict=True)]
    # Threads may take a step now and then (a look of the watch on a machine that stood still): then it is one turn more.
    assert sum(turns) <= 4 * 100 + 100, turns
    assert all(fetcher.is_helped for fetcher in cluster._backend.peers.fetchers())


def test_who_does_not_wait_is_served_by_threads(cluster: Any) -> None:
    acked: list[int] = []
    with cluster.producer(acks="all", linger_ms=0) as producer:
        for _ in range(20):
            producer.send("t", b"x").result(10)
        # The fetchers expect to be helped now; nobody helps.
        for _ in range(50):
            producer.send("t", b"y").add_done_callback(lambda future: acked.append(future.result().offset))
        until(lambda: len(acked) == 50)
    assert acked == list(range(20, 70))


def test_followers_learn_the_high_watermark_though_nobody_sends_any_more(cluster: Any) -> None:
    with cluster.producer(acks="all", linger_ms=0) as producer:
        for _ in range(20):
            producer.send("t", b"x").result(10)
    until(lambda: high_watermarks(cluster) == [20, 20, 20])


def test_the_watch_rests_when_nothing_happens(cluster: Any) -> None:
    with cluster.producer(acks="all", linger_ms=0) as producer:
        for _ in range(20):
            producer.send("t", b"x").result(10)
    until(lambda: high_watermarks(cluster) == [20, 20, 20])
    helping = cluster._backend.peers.helping
    until(lambda: not helping._is_watching and not helping._with_marks())
    with cluster.producer(acks="all", linger_ms=0) as producer:
        producer.send("t", b"x").result(10)


def test_an_interrupted_step_leaves_its_marks_and_its_locks_free(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster.producer(acks="all", linger_ms=0) as producer:
        producer.send("t", b"x").result(10)
        struck: list[ReplicaFetcher] = []
        real = ReplicaFetcher._finish

        def strike(self: ReplicaFetcher, *arguments: Any) -> None:
            if threading.current_thread() is threading.main_thread() and not struck:
                struck.append(self)
                raise KeyboardInterrupt
            real(self, *arguments)

        monkeypatch.setattr(ReplicaFetcher, "_finish", strike)
        for _ in range(50):
            try:
                producer.send("t", b"y").result(10)
            except KeyboardInterrupt:
                break
        assert struck
        producer.send("t", b"z").result(10)
    assert not any(fetcher._lock._is_owned() for fetcher in cluster._backend.peers.fetchers())
    assert all(not fetcher._keys for fetcher in cluster._backend.peers.fetchers())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_a_leader_owes_ends_with_its_leadership(seed: int) -> None:
    """A follower that stood at the end of a leader's log asks anew when the epoch, or the leader's life, is another."""
    simulation = Simulation(seed)
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", partitions=1, replication_factor=3)
        with cluster.producer(acks="all", linger_ms=0) as producer:
            for number in range(12):
                producer.send("t", b"%d" % number).result(30)
                leader = cluster.topic("t")[0].leader
                if number % 3 == 2:
                    cluster.brokers[leader].crash()
                    producer.send("t", b"-").result(30)
                    cluster.brokers[leader].start()
                    simulation.sleep(1)
        simulation.sleep(2)
        ends = {broker.partitions["t", 0].state.log_end_offset for broker in cluster._backend.brokers}
        epochs = {broker.partitions["t", 0].epochs for broker in cluster._backend.brokers}
        assert ends == {16} and len(epochs) == 1
