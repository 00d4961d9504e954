"""Producers of a replicated cluster: what acks mean to them, which errors they see, and that all is told exactly once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import streamlog
from streamlog import RecordMetadata
from streamlog.client.delivery import SendFuture
from streamlog.errors import (
    DeliveryError,
    LeaderNotAvailableError,
    NetworkError,
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    NotLeaderOrFollowerError,
    StreamlogError,
    StreamlogTimeoutError,
)
from streamlog.testing import Simulation

SEEDS = pytest.mark.parametrize("seed", [1, 2, 3])
NO_OFFSET = -1


@contextmanager
def opened(
    seed: int, brokers: int = 3, partitions: int = 1, min_isr: int = 1, **options: Any
) -> Iterator[tuple[Any, Simulation]]:
    simulation = Simulation(seed)
    with streamlog.open(":memory:", brokers=brokers, sync="off", runtime=simulation, **options) as cluster:
        cluster.create_topic(
            "t", partitions, replication_factor=brokers, config={"min.insync.replicas": min_isr}
        )
        yield cluster, simulation


def send(producer: Any, simulation: Simulation, value: bytes = b"x") -> Any:
    """A record on its way at once."""
    future = producer.send("t", value)
    producer._hurry(future.batch)
    return future


# -- acks -------------------------------------------------------------------------------------------------------------


@SEEDS
@pytest.mark.parametrize(("acks", "offset"), [(0, NO_OFFSET), (1, 0), ("all", 0), (-1, 0)])
def test_what_acks_tell(seed: int, acks: object, offset: int) -> None:
    with opened(seed) as (cluster, simulation):
        with cluster.producer(acks=acks) as producer:
            metadata = producer.send("t", b"x").result(5)
        assert (metadata.topic, metadata.partition, metadata.offset) == ("t", 0, offset)
        simulation.sleep(2)
        assert [record.value for record in cluster.topic("t")[0].read()] == [b"x"]


@SEEDS
@pytest.mark.parametrize(("acks", "waits"), [(0, False), (1, False), ("all", True)])
def test_whom_acks_wait_for(seed: int, acks: object, waits: bool) -> None:
    """Followers that are silent hold back acks=all only."""
    with opened(seed) as (cluster, simulation):
        leader = cluster.topic("t")[0].leader
        for broker in range(3):
            if broker != leader:
                cluster.network.drop(leader, broker)
        with cluster.producer(acks=acks) as producer:
            future = send(producer, simulation)
            simulation.sleep(1)
            assert future.done() is not waits
            cluster.network.heal()
            future.result(30)


# -- errors, one by one: retries=0 ------------------------------------------------------------------------------------


@SEEDS
def test_not_enough_replicas(seed: int) -> None:
    with opened(seed, min_isr=2) as (cluster, _):
        leader = cluster.topic("t")[0].leader
        for broker in range(3):
            if broker != leader:
                cluster.brokers[broker].crash()
        with cluster.producer(retries=0) as producer:
            future = producer.send("t", b"x")
            with pytest.raises(NotEnoughReplicasError, match=r"fewer than min\.insync\.replicas=2"):
                future.result(5)
        assert cluster.topic("t")[0].log_end_offset == 0


@SEEDS
def test_not_enough_replicas_after_append(seed: int) -> None:
    with opened(seed, brokers=2, min_isr=2) as (cluster, simulation):
        leader = cluster.topic("t")[0].leader
        cluster.network.delay(0, 1, 300)
        with cluster.producer(retries=0) as producer:
            future = send(producer, simulation)
            follower = cluster._backend.peers.running(1 - leader)
            while follower.partition("t", 0).state.log_end_offset == 0:
                simulation.sleep(0.01)
            cluster.brokers[leader].pause()
            simulation.sleep(0.5)
            cluster.brokers[1 - leader].crash()
            cluster.brokers[leader].resume()
            with pytest.raises(NotEnoughReplicasAfterAppendError, match="were written and replicated"):
                future.result(5)


@SEEDS
def test_not_leader_or_follower(seed: int) -> None:
    with opened(seed) as (cluster, simulation):
        leader = cluster.topic("t")[0].leader
        others = {0, 1, 2} - {leader}
        cluster.network.partition({leader}, {*others, "metadata"})
        with cluster.producer(retries=0, request_timeout_ms=60_000, delivery_timeout_ms=90_000) as producer:
            future = send(producer, simulation)
            simulation.sleep(12)
            cluster.network.heal()
            with pytest.raises(NotLeaderOrFollowerError):
                future.result(30)


@SEEDS
def test_no_leader(seed: int) -> None:
    with opened(seed) as (cluster, _):
        for broker in cluster.brokers:
            broker.crash()
        with cluster.producer(retries=0) as producer:
            future = producer.send("t", b"x")
            with pytest.raises(LeaderNotAvailableError, match="t-0"):
                future.result(5)


# -- time -------------------------------------------------------------------------------------------------------------


def too_few(cluster: Any, leader: int) -> None:
    cluster.topic("t").alter_config({"min.insync.replicas": 3})
    cluster.brokers[(leader + 1) % 3].crash()


def nobody(cluster: Any, leader: int) -> None:
    for broker in cluster.brokers:
        broker.crash()


def silent_leader(cluster: Any, leader: int) -> None:
    cluster.brokers[leader].pause()


def silent_followers(cluster: Any, leader: int) -> None:
    for broker in range(3):
        if broker != leader:
            cluster.network.drop(leader, broker)


@SEEDS
@pytest.mark.parametrize(
    ("trouble", "causes"),
    [
        (too_few, (NotEnoughReplicasError,)),
        (nobody, (LeaderNotAvailableError, NetworkError)),
        (silent_leader, (NetworkError,)),
        (silent_followers, (StreamlogTimeoutError, NetworkError)),
    ],
)
def test_the_time_is_over_and_the_cause_is_the_last_error(seed: int, trouble: Any, causes: Any) -> None:
    with opened(seed, broker_session_timeout_ms=3_600_000) as (cluster, simulation):
        with cluster.producer(delivery_timeout_ms=5_000, request_timeout_ms=1_000) as producer:
            producer.send("t", b"a").result(5)
            trouble(cluster, cluster.topic("t")[0].leader or 0)
            begun_ms = simulation.now_ms
            future = producer.send("t", b"x")
            with pytest.raises(
                StreamlogTimeoutError, match=r"delivery_timeout_ms=5000, \d+ attempts"
            ) as caught:
                future.result(30)
            assert 4_900 <= simulation.now_ms - begun_ms <= 6_200, (
                "delivery_timeout_ms, and a request at most"
            )
            assert isinstance(caught.value.__cause__, causes)
            assert caught.value.facts["attempts"] >= 2
            assert str(caught.value.__cause__) in str(caught.value)
        for broker in cluster.brokers:
            if broker.state == "paused":
                broker.resume()


@SEEDS
def test_without_retries_nothing_is_sent_twice(seed: int) -> None:
    with opened(seed, broker_session_timeout_ms=3_600_000) as (cluster, simulation):
        leader = cluster.topic("t")[0].leader
        silent_followers(cluster, leader)
        with cluster.producer(retries=0, request_timeout_ms=1_000) as producer:
            future = producer.send("t", b"x")
            with pytest.raises((StreamlogTimeoutError, NetworkError)):
                future.result(30)
        assert cluster.topic("t")[0].log_end_offset == 1
        cluster.network.heal()
        simulation.sleep(3)
        assert len(cluster.topic("t")[0].read()) == 1


# -- order, and exactly once told ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize("fault", ["crash", "stop", "pause"])
def test_order_and_callbacks_through_failover(seed: int, fault: str) -> None:
    """Several batches in flight while leaders go: each future ends once, each callback is called once, first
    occurrences in each partition's log are in the order sent, and what was acknowledged is there."""
    chance = random.Random(seed)
    with opened(seed, partitions=3, broker_session_timeout_ms=3_000, broker_heartbeat_interval_ms=500) as (
        cluster,
        simulation,
    ):
        told: Counter[bytes] = Counter()
        futures: dict[bytes, Any] = {}
        gone: list[Any] = []
        with cluster.producer(
            batch_size=200, request_timeout_ms=2_000, delivery_timeout_ms=60_000
        ) as producer:
            for round_number in range(8):
                values = [b"%d" % number for number in range(round_number * 60, round_number * 60 + 60)]
                items = [(b"key %d" % (int(value) % 5), value) for value in values]
                sent = producer.send_many("t", items)
                for value, future in zip(values, sent, strict=True):
                    futures[value] = future
                    future.add_done_callback(lambda _, value=value: told.update([value]))
                if round_number % 2 and not gone:
                    handle = cluster.brokers[chance.randrange(3)]
                    getattr(handle, fault)()
                    gone.append(handle)
                simulation.sleep(chance.random() * 4)
                if gone and chance.random() < 0.7:
                    handle = gone.pop()
                    handle.resume() if fault == "pause" else handle.start()
            if gone:
                gone[0].resume() if fault == "pause" else gone[0].start()
            metadata = {value: future.result(60) for value, future in futures.items()}
        assert told == Counter(list(futures)), "each callback once"
        for partition in cluster.topic("t"):
            log = [(record.offset, record.value) for record in partition.read(0, 10_000)]
            first = list(dict.fromkeys(value for _, value in log))
            mine = [value for value in futures if metadata[value].partition == partition.number]
            assert first == mine, "first occurrences are in the order sent, and nothing is missing"
            by_offset = dict(log)
            assert all(by_offset[metadata[value].offset] == value for value in mine)


@SEEDS
@pytest.mark.parametrize("ending", ["timeout", "close", "cluster"])
def test_failures_are_told_exactly_once(seed: int, ending: str) -> None:
    with opened(seed) as (cluster, simulation):
        for broker in cluster.brokers:
            broker.crash()
        told: Counter[int] = Counter()
        producer = cluster.producer(delivery_timeout_ms=3_000, request_timeout_ms=1_000, linger_ms=5)
        futures = [producer.send("t", b"%d" % number) for number in range(20)]
        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: told.update([number]))
        if ending == "timeout":
            simulation.sleep(5)
        elif ending == "close":
            with pytest.raises((DeliveryError, StreamlogTimeoutError)):
                producer.close(1)
        else:
            with pytest.raises(StreamlogError):
                cluster.close()
        if ending != "cluster":
            assert all(isinstance(future.exception(10), StreamlogError) for future in futures)
            simulation.sleep(5)
        assert told == Counter(range(20))
        assert all(future.done() for future in futures)
        try:
            producer.close()
        except StreamlogError:
            pass


@pytest.mark.parametrize("call", ["result", "flush", "await"])
def test_who_waits_without_a_timeout_is_told_why_and_once(call: str) -> None:
    """Both clocks run out together; the one that knows the broker's answer must be first."""
    with streamlog.open(":memory:", brokers=3) as cluster:
        cluster.create_topic("t", replication_factor=3, config={"min.insync.replicas": 2})
        for number in range(3):
            if number != cluster.topic("t")[0].leader:
                cluster.brokers[number].stop()
        for _ in range(5):
            producer = cluster.producer(delivery_timeout_ms=60, request_timeout_ms=50, linger_ms=5)
            future = producer.send("t", b"x")
            with pytest.raises(StreamlogError, match="the last answer") as caught:
                if call == "result":
                    future.result()
                elif call == "flush":
                    producer.flush()
                else:
                    asyncio.run(awaited(future))
            cause = caught.value.__cause__
            if call == "flush":
                assert isinstance(caught.value, DeliveryError) and cause is not None
                cause = cause.__cause__
            assert isinstance(cause, NotEnoughReplicasError), caught.value
            producer.close()


async def awaited(future: SendFuture) -> RecordMetadata:
    return await future


# -- bounded without a leader -----------------------------------------------------------------------------------------


@SEEDS
def test_flush_and_close_without_a_leader_are_bounded(seed: int) -> None:
    with opened(seed) as (cluster, simulation):
        producer = cluster.producer(delivery_timeout_ms=3_000, request_timeout_ms=1_000)
        nobody(cluster, 0)
        producer.send("t", b"x")
        begun_ms = simulation.now_ms
        with pytest.raises((DeliveryError, StreamlogTimeoutError)):
            producer.flush()
        assert simulation.now_ms - begun_ms <= 4_100
        producer.send("t", b"y")
        begun_ms = simulation.now_ms
        with pytest.raises((DeliveryError, StreamlogTimeoutError)):
            producer.close(1)
        assert simulation.now_ms - begun_ms <= 1_100


@SEEDS
def test_what_is_sent_again_is_counted(seed: int) -> None:
    """Kafka's record-retry-total: records, each time they go again."""
    with opened(seed) as (cluster, _), cluster.producer() as producer:
        cluster.brokers[
            cluster.topic("t")[0].leader
        ].pause()  # silent: the request goes again, to the next leader
        assert producer.send("t", b"x").result(60).offset == 0
        metrics = cluster.metrics()
        client = {"client-id": "producer-1"}
        assert metrics.value("kafka.producer:type=producer-metrics", "record-retry-total", **client) > 0
        of_topic = {**client, "topic": "t"}
        assert (
            metrics.value("kafka.producer:type=producer-topic-metrics", "record-retry-total", **of_topic) > 0
        )
