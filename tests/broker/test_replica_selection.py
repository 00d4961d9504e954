"""Fetch from follower (KIP-392): who reads from which replica, and what happens to that replica."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog import Cluster, Consumer, TopicPartition
from streamlog.testing import Simulation

T = TopicPartition("t", 0)


@pytest.fixture
def simulation() -> Simulation:
    return Simulation(seed=5)


@pytest.fixture
def cluster(simulation: Simulation) -> Iterator[Cluster]:
    with streamlog.open(
        ":memory:", brokers=3, sync="off", runtime=simulation, replica_selector_class="rack-aware"
    ) as cluster:
        assert isinstance(cluster, Cluster)
        for broker in cluster.brokers:
            broker.rack = f"r{broker.id}"
        cluster.create_topic("t", replication_factor=3)
        send(cluster, 10)
        assert leader(cluster) == 0
        yield cluster


def send(cluster: Cluster, count: int, **options: Any) -> None:
    with cluster.producer(**options) as producer:
        for _ in range(count):
            producer.send("t", b"x").result()


def leader(cluster: Cluster) -> int | None:
    return cluster.topic("t")[0].leader


def reads_from(consumer: Consumer) -> int:
    home = consumer._assigned[T].replica.home
    assert home is not None
    return home.id


def reader(cluster: Cluster, rack: str | None, **options: Any) -> Consumer:
    consumer = cluster.consumer(client_rack=rack, **options)
    consumer.assign([T])
    return consumer


def drain(consumer: Consumer, count: int, timeout: float = 5) -> list[int]:
    offsets: list[int] = []
    while len(offsets) < count:
        found = consumer.poll(timeout)
        if not found:
            break
        offsets += [record.offset for record in found]
    return offsets


@pytest.mark.parametrize(("rack", "broker"), [("r0", 0), ("r1", 1), ("r2", 2), ("r9", 0), (None, 0)])
def test_a_consumer_reads_in_its_rack_else_from_the_leader(
    cluster: Cluster, simulation: Simulation, rack: str | None, broker: int
) -> None:
    simulation.sleep(2)
    consumer = reader(cluster, rack)
    assert drain(consumer, 10) == list(range(10)) and reads_from(consumer) == broker


def test_without_a_selector_racks_mean_nothing(simulation: Simulation) -> None:
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation) as cluster:
        for broker in cluster.brokers:
            broker.rack = f"r{broker.id}"
        cluster.create_topic("t", replication_factor=3)
        send(cluster, 3)
        consumer = reader(cluster, "r1")
        assert drain(consumer, 3) == [0, 1, 2] and reads_from(consumer) == 0


def test_it_sees_what_its_follower_knows_to_be_replicated_and_no_more(
    cluster: Cluster, simulation: Simulation
) -> None:
    simulation.sleep(2)
    consumer = reader(cluster, "r1")
    assert drain(consumer, 10) == list(range(10))
    cluster.network.partition({0}, {2})  # broker 2 does not fetch: the high watermark stands still
    send(cluster, 5, acks=1)
    simulation.sleep(1)
    assert consumer._assigned[T].replica.state.log_end_offset == 15
    assert consumer.poll(0.5) == []
    cluster.network.heal()
    assert drain(consumer, 5) == list(range(10, 15)) and reads_from(consumer) == 1


@pytest.mark.parametrize("fault", ["crash", "stop", "pause"])
def test_it_survives_its_follower(cluster: Cluster, simulation: Simulation, fault: str) -> None:
    simulation.sleep(2)
    consumer = reader(cluster, "r1")
    assert drain(consumer, 10) == list(range(10)) and reads_from(consumer) == 1
    getattr(cluster.brokers[1], fault)()
    send(cluster, 5)
    assert drain(consumer, 5, timeout=20) == list(range(10, 15)) and reads_from(consumer) == 0
    getattr(cluster.brokers[1], "resume" if fault == "pause" else "start")()
    simulation.sleep(3)
    send(cluster, 5)
    assert drain(consumer, 5) == list(range(15, 20))
    send(cluster, 5)
    assert drain(consumer, 5) == list(range(20, 25)) and reads_from(consumer) == 1, "it is back in sync"


def test_it_follows_when_its_follower_becomes_the_leader(cluster: Cluster, simulation: Simulation) -> None:
    simulation.sleep(2)
    consumer = reader(cluster, "r1")
    assert drain(consumer, 10) == list(range(10))
    cluster.brokers[0].crash()
    send(cluster, 5)
    assert leader(cluster) == 1
    assert drain(consumer, 5) == list(range(10, 15)) and reads_from(consumer) == 1


def test_an_offset_the_follower_does_not_have_is_the_leaders_to_judge(
    cluster: Cluster, simulation: Simulation
) -> None:
    cluster.alter_config({"replica.lag.time.max.ms": 600_000})
    simulation.sleep(2)
    consumer = reader(cluster, "r1", auto_offset_reset="none")
    consumer.seek(T, 0)
    assert drain(consumer, 10) == list(range(10)) and reads_from(consumer) == 1
    cluster.network.partition({0}, {1})
    send(cluster, 5, acks=1)
    consumer.seek(T, 14)
    assert consumer.poll(1) == [] and reads_from(consumer) == 0, "in range at the leader, not replicated"
    cluster.network.heal()
    assert drain(consumer, 1) == [14]


def test_members_of_a_group_read_in_their_racks(cluster: Cluster, simulation: Simulation) -> None:
    simulation.sleep(2)
    with cluster.consumer_group("g", ["t"]).consumer(client_rack="r2", fetch_min_bytes=2) as consumer:
        assert drain(consumer, 10) == list(range(10)) and reads_from(consumer) == 2
        consumer.commit()
        assert consumer.lag(T) == 0


def test_iterating_to_the_end_works_from_a_follower(cluster: Cluster) -> None:
    consumer = reader(cluster, "r1", stop_at_end=True)
    assert [record.offset for record in consumer] == list(range(10))


def test_racks_are_kept(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "data", brokers=2) as cluster:
        assert [broker.rack for broker in cluster.brokers] == [None, None]
        cluster.brokers[1].rack = "east"
    with streamlog.open(tmp_path / "data") as cluster:
        assert [broker.rack for broker in cluster.brokers] == [None, "east"]
        cluster.brokers[1].rack = None
        assert cluster.brokers[1].rack is None
