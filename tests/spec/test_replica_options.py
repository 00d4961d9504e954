"""The options replica.*, each by what it changes."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

import streamlog
from streamlog.errors import ConfigError
from tests.spec.replicas import Replicas, replicated

SEEDS = pytest.mark.parametrize("seed", [1, 2, 3])


def fetches(replicas: Replicas, follower: int) -> int:
    """How many fetches it has sent to broker 0."""
    fetchers = replicas.cluster._backend.peers._fetchers[follower].get(0, [])
    return sum(fetcher.requests for fetcher in fetchers)


@SEEDS
@pytest.mark.parametrize("wait_ms", [200, 5_000])
def test_fetch_wait_max_ms(seed: int, wait_ms: int) -> None:
    """replica.fetch.wait.max.ms: how long an idle follower stays silent: so late it hears of the high watermark."""
    with replicated(seed, replica_fetch_wait_max_ms=wait_ms) as replicas:
        replicas.post(b"a", acks=1)
        while replicas.high_watermark(0) == 0:
            replicas.sleep(0.01)
        assert 0 in (replicas.high_watermark(1), replicas.high_watermark(2)), (
            "one asked before the other had it"
        )
        replicas.sleep(wait_ms / 1000 - 0.1)
        assert 0 in (replicas.high_watermark(1), replicas.high_watermark(2))
        replicas.sleep(0.3)
        assert replicas.high_watermark(1) == replicas.high_watermark(2) == 1


def test_fetch_wait_max_ms_is_at_most_the_lag_time() -> None:
    """Longer, every idle follower would leave the ISR."""
    with pytest.raises(ConfigError, match=r"replica_fetch_wait_max_ms.*<= replica.lag.time.max.ms = 1000"):
        streamlog.open(":memory:", replica_fetch_wait_max_ms=1_001, replica_lag_time_max_ms=1_000)


@SEEDS
def test_fetch_min_bytes(seed: int) -> None:
    """replica.fetch.min.bytes: wait until so many bytes are there, at most replica.fetch.wait.max.ms."""
    with replicated(
        seed, brokers=2, replica_fetch_min_bytes=5_000, replica_fetch_wait_max_ms=2_000
    ) as replicas:
        replicas.sleep(5)
        replicas.post(b"little", acks=1)
        replicas.sleep(1.5)
        assert replicas.end(1) == 0
        replicas.sleep(1)
        assert replicas.end(1) == 1
        replicas.sleep(5)
        replicas.post(b"x" * 6_000, acks=1)
        replicas.sleep(0.1)
        assert replicas.end(1) == 2


@SEEDS
@pytest.mark.parametrize(("bytes_max", "at_least", "at_most"), [(1, 20, 100), (1_048_576, 1, 5)])
def test_fetch_max_bytes(seed: int, bytes_max: int, at_least: int, at_most: int) -> None:
    """replica.fetch.max.bytes: most bytes of one partition in a fetch; a single batch travels whatever its size."""
    with replicated(seed, brokers=2, replica_fetch_max_bytes=bytes_max) as replicas:
        replicas.crash(1)
        for _ in range(20):
            replicas.append(b"x" * 1_000)
        replicas.start(1)
        replicas.sleep(1)
        assert replicas.isr == {0, 1} and replicas.end(1) == 20
        assert at_least <= fetches(replicas, 1) <= at_most


@SEEDS
@pytest.mark.parametrize(("bytes_max", "at_least", "at_most"), [(1, 20, 100), (10_485_760, 1, 8)])
def test_fetch_response_max_bytes(seed: int, bytes_max: int, at_least: int, at_most: int) -> None:
    """replica.fetch.response.max.bytes: most bytes of one fetch, over all its partitions."""
    with replicated(seed, brokers=2, replica_fetch_response_max_bytes=bytes_max) as replicas:
        cluster = replicas.cluster
        cluster.create_topic("many", partitions=20, replication_factor=2)
        replicas.crash(1)
        with cluster.producer() as producer:
            for number in range(20):
                producer.send("many", b"x" * 1_000, partition=number)
            producer.flush()
        replicas.start(1)
        replicas.sleep(2)
        assert all(set(partition.isr) == {0, 1} for partition in cluster.topic("many"))
        assert at_least <= fetches(replicas, 1) <= at_most


@SEEDS
def test_num_replica_fetchers(seed: int) -> None:
    """num.replica.fetchers: threads with which a broker copies from each of the others; a partition has one of them."""
    with replicated(seed, num_replica_fetchers=2) as replicas:
        cluster = replicas.cluster
        cluster.create_topic("many", partitions=30, replication_factor=3)
        with cluster.producer() as producer:
            for number in range(30):
                producer.send("many", b"x", partition=number)
            producer.flush()
        replicas.sleep(1)
        for by_source in cluster._backend.peers._fetchers.values():
            assert all(len(fetchers) == 2 for fetchers in by_source.values())
            assert all(fetcher.requests for fetchers in by_source.values() for fetcher in fetchers)
        assert all(
            replicas.broker(broker_id).partition("many", number).state.log_end_offset == 1
            for broker_id in range(3)
            for number in range(30)
        )


@SEEDS
@pytest.mark.parametrize("messages_max", [None, 5])
def test_lag_max_messages(seed: int, messages_max: int | None) -> None:
    """replica.lag.max.messages: legacy, off; where it is on, a burst takes a healthy follower out, and it comes back."""
    with ExitStack() as stack:
        options = {}
        if messages_max is not None:
            options["replica_lag_max_messages"] = messages_max
            stack.enter_context(pytest.warns(UserWarning, match="replica.lag.max.messages"))
        replicas = stack.enter_context(replicated(seed, brokers=2, replica_lag_time_max_ms=3_000, **options))
        replicas.append(b"a")
        seen = []
        replicas.cluster.network.delay(0, 1, 300)
        for number in range(40):
            replicas.post(*[b"%d" % number] * 3, acks=1)
            replicas.sleep(0.1)
            seen.append(replicas.isr)
        assert ({0} in seen) is (messages_max is not None)
        replicas.cluster.network.heal()
        replicas.sleep(2)
        assert replicas.isr == {0, 1}
