"""A deletion is answered when nobody who lives has the records any more."""

from __future__ import annotations

from typing import Any

import pytest

import streamlog
from streamlog.broker.api import DeleteRecords, DeleteTopic
from streamlog.broker.upkeep import DropTopic
from streamlog.errors import (
    NetworkError,
    NotLeaderOrFollowerError,
    StreamlogTimeoutError,
    UnknownTopicOrPartitionError,
)
from streamlog.testing import Simulation

PARKED = "kafka.server:type=DelayedOperationPurgatory,name=PurgatorySize,delayedOperation=DeleteRecords"


def starts(cluster: Any) -> dict[int, int]:
    return {
        broker.id: partition.state.log_start_offset
        for broker in cluster._backend.brokers
        if (partition := broker.partitions.get(("t", 0))) is not None
    }


def fill(cluster: Any) -> Any:
    cluster.create_topic("t", replication_factor=len(cluster.brokers))
    with cluster.producer() as producer:
        for number in range(5):
            producer.send("t", b"%d" % number).result(10)
    return cluster.topic("t")[0]


def test_it_comes_back_when_all_have_deleted() -> None:
    with streamlog.open(":memory:", brokers=3, sync="off") as cluster:
        assert fill(cluster).delete_records(3) == 3
        assert starts(cluster) == {0: 3, 1: 3, 2: 3}
        assert cluster.metrics().value(PARKED) == 0


@pytest.mark.parametrize("seed", range(5))
def test_in_no_virtual_time(seed: int) -> None:
    simulation = Simulation(seed)
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation) as cluster:
        partition = fill(cluster)
        before_ms = simulation.now_ms
        assert partition.delete_records(-1) == 5
        assert starts(cluster) == {0: 5, 1: 5, 2: 5}
        assert simulation.now_ms - before_ms <= 10


def test_a_leader_that_dies_after_the_answer_brings_nothing_back() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        partition = fill(cluster)
        partition.delete_records(4)
        cluster.brokers[partition.leader].crash()
        assert [record.offset for record in partition.read(4)] == [4]
        assert partition.log_start_offset == 4


def test_one_that_lives_and_does_not_fetch_is_named() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation) as cluster:
        partition = fill(cluster)
        follower = min({0, 1, 2} - {partition.leader})
        cluster.network.drop(partition.leader, follower)
        leader = cluster._backend.peers.running(partition.leader)
        pending = leader.post(DeleteRecords("t", 0, 2, timeout_ms=1_000))
        simulation.sleep(0.5)
        assert not pending.done and cluster.metrics().value(PARKED) == 1
        simulation.sleep(1)
        with pytest.raises(StreamlogTimeoutError, match=f"brokers {follower};") as told:
            pending.result()
        assert told.value.facts["brokers"] == [follower]
        assert cluster.metrics().value(PARKED) == 0
        cluster.network.heal()
        simulation.sleep(5)
        assert set(starts(cluster).values()) == {2}


def test_a_leader_that_crashes_meanwhile_answers() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        partition = fill(cluster)
        leader = partition.leader
        cluster.network.drop(0, 1)
        pending = cluster._backend.peers.running(leader).post(DeleteRecords("t", 0, 2))
        cluster.brokers[leader].crash()
        with pytest.raises(NetworkError):
            pending.result()


@pytest.mark.parametrize("seed", range(5))
def test_a_leader_that_learns_in_the_same_turn_that_others_have_the_partition_refuses(seed: int) -> None:
    simulation = Simulation(seed)
    with streamlog.open(":memory:", brokers=4, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", replication_factor=2)
        partition = cluster.topic("t")[0]
        with cluster.producer() as producer:
            producer.send("t", b"0").result(10)
        first = partition.leader
        others = sorted({0, 1, 2, 3} - {first})[-2:]
        cluster.brokers[first].pause()
        simulation.spawn(lambda: cluster.reassign("t", {0: others}))
        simulation.sleep(30)
        pending = cluster._backend.peers.running(first).post(DeleteRecords("t", 0, 1))
        cluster.brokers[first].resume()
        simulation.sleep(1)
        assert partition.replicas == tuple(others)
        with pytest.raises(NotLeaderOrFollowerError):
            pending.result()
        assert cluster.metrics().value(PARKED) == 0


def parked_delete(cluster: Any, simulation: Simulation) -> Any:
    """A deletion that waits for a follower that cannot fetch."""
    partition = fill(cluster)
    cluster.network.drop(0, 1)
    pending = cluster._backend.peers.running(partition.leader).post(DeleteRecords("t", 0, 2))
    simulation.sleep(0.1)
    assert not pending.done
    return pending


def test_a_topic_that_is_deleted_meanwhile_answers_at_once() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        pending = parked_delete(cluster, simulation)
        cluster.delete_topic("t")
        with pytest.raises(NotLeaderOrFollowerError):
            pending.result()


def test_also_if_somebody_asked_for_the_topic_before_the_broker_dropped_it() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        pending = parked_delete(cluster, simulation)
        leader = cluster._backend.peers.running(cluster.topic("t")[0].leader)
        image = cluster._backend.ask_controller(DeleteTopic("t"))
        with pytest.raises(UnknownTopicOrPartitionError):
            leader.partition("t", 0)
        leader.call(DropTopic(image))
        with pytest.raises(NotLeaderOrFollowerError):
            pending.result()


def test_a_leader_that_follows_from_now_on_answers_at_once() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        pending = parked_delete(cluster, simulation)
        partition = cluster.topic("t")[0]
        first, now_ms = partition.leader, simulation.now_ms
        cluster.network.partition({first}, {"metadata"})
        while partition.leader in (first, None, -1):
            simulation.sleep(0.1)
        assert not pending.done
        cluster.network.heal()
        simulation.sleep(0.5)
        assert pending.done and simulation.now_ms - now_ms < 20_000
        with pytest.raises(NotLeaderOrFollowerError):
            pending.result()
