"""Brokers are known by id; one broker alone can be stopped and started, too; beside an owner all of it is refused."""

from __future__ import annotations

from typing import Any

import pytest

import streamlog
from streamlog.client.brokers import BrokerHandle
from streamlog.errors import (
    BrokerIdNotRegisteredError,
    ConfigError,
    LeaderNotAvailableError,
    UnsupportedOperationError,
)
from streamlog.testing import Simulation


@pytest.mark.parametrize("fault", ["stop", "crash"])
@pytest.mark.parametrize("with_threads", [True, False])
def test_the_only_broker_goes_and_comes_back(fault: str, with_threads: bool) -> None:
    with streamlog.open(":memory:", runtime=None if with_threads else Simulation(1)) as cluster:
        cluster.create_topic("t")
        with cluster.producer() as producer:
            producer.send("t", b"a").result(5)
            [broker] = cluster.brokers
            getattr(broker, fault)()
            assert broker.state == "down"
            with pytest.raises(LeaderNotAvailableError):
                cluster.topic("t")[0].read()
            broker.start()
            assert broker.state == "running" and broker.is_controller
            producer.send("t", b"b").result(10)
        assert [record.value for record in cluster.topic("t")[0].read()] == [b"a", b"b"]


@pytest.mark.parametrize("with_threads", [True, False])
def test_a_second_broker_for_a_cluster_in_use(with_threads: bool) -> None:
    with streamlog.open(":memory:", runtime=None if with_threads else Simulation(1)) as cluster:
        cluster.create_topic("t")
        consumer = cluster.consumer_group("g", ["t"]).consumer()
        with cluster.producer() as producer:
            producer.send("t", b"a").result(5)
            assert [record.value for record in consumer.poll(2)] == [b"a"]
            added = cluster.add_broker()
            assert [broker.id for broker in cluster.brokers] == [0, 1] and added.state == "running"
            producer.send("t", b"b").result(5)
            assert [record.value for record in consumer.poll(2)] == [b"b"]
            cluster.create_topic("u", replication_factor=2)
            assert producer.send("u", b"c").result(5).offset == 0
            assert cluster.topic("u")[0].isr == cluster.topic("u")[0].replicas
        consumer.close()


def test_beside_an_owner_faults_are_refused_by_name() -> None:
    for operation in ("stop", "start", "crash", "pause", "resume", "fill_disk"):
        with pytest.raises(UnsupportedOperationError, match="run by the process that owns"):
            getattr(BrokerHandle(1), operation)()
    assert BrokerHandle(1).state == "elsewhere" and not BrokerHandle(1).is_controller


@pytest.mark.parametrize("ms", [-1, 60_001, 1.5, True])
def test_a_disk_cannot_be_slowed_by_anything(ms: Any) -> None:
    with streamlog.open(":memory:") as cluster, pytest.raises(ConfigError, match="allowed: 0 to 60000"):
        cluster.brokers[0].slow_disk(ms)


def test_handles_are_equal_by_id() -> None:
    assert BrokerHandle(1) == BrokerHandle(1) != BrokerHandle(2)
    assert {BrokerHandle(1), BrokerHandle(1)} == {BrokerHandle(1)}
    assert repr(BrokerHandle(3)) == "<Broker 3>"


def test_what_topics_and_partitions_show_of_their_replicas() -> None:
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=Simulation(seed=1)) as cluster:
        alone, topic = cluster.create_topic("alone"), cluster.create_topic("t", 3, 3)
        assert repr(alone) == "<Topic 'alone' 1 partition>" and repr(alone[0]) == "<Partition alone-0 [0, 0)>"
        with cluster.producer() as producer:
            producer.send("t", b"x", partition=0).result()
        first = topic[0]
        assert first.leader is not None
        assert repr(topic) == "<Topic 't' 3 partitions led by 0, 1, 2, all in sync>"
        replicas = list(first.replicas)
        assert repr(first) == f"<Partition t-0 [0, 1) leader={first.leader} isr={replicas} of {replicas}>"
        cluster.brokers[replicas[1]].crash()
        left = sorted(b for b in replicas if b != replicas[1])
        assert repr(topic) == f"<Topic 't' 3 partitions led by {left[0]}, {left[1]}, 3 not in sync>"
        for broker in left:
            cluster.brokers[broker].crash()
        assert repr(topic) == "<Topic 't' 3 partitions led by nobody, 3 not in sync, 3 without a leader>"
        assert repr(first).startswith("<Partition t-0 not served at the moment leader=None isr=[")
        assert repr(cluster.brokers[0]).startswith("<Broker 0 down")


@pytest.mark.parametrize("is_on", [True, False])
def test_leaderships_go_back_in_time_if_that_is_wanted(is_on: bool) -> None:
    simulation = Simulation(seed=2)
    options = {"auto.leader.rebalance.enable": is_on, "leader.imbalance.check.interval.seconds": 60}
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation, config=options) as cluster:
        topic = cluster.create_topic("t", 6, 3)
        preferred = [partition.replicas[0] for partition in topic]
        simulation.sleep(70)  # between two looks
        lost = preferred[0]
        cluster.brokers[lost].stop()
        cluster.brokers[lost].start()
        simulation.sleep(20)
        moved = [partition.leader for partition in topic]
        assert lost not in moved and all(len(partition.isr) == 3 for partition in topic)
        simulation.sleep(60)
        assert [partition.leader for partition in topic] == (preferred if is_on else moved)
        if not is_on:
            cluster.alter_config({"auto.leader.rebalance.enable": True})
            simulation.sleep(70)
            assert [partition.leader for partition in topic] == preferred


def test_an_imbalance_within_the_percentage_is_left_alone() -> None:
    simulation = Simulation(seed=2)
    options = {"leader.imbalance.per.broker.percentage": 50, "leader.imbalance.check.interval.seconds": 5}
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation, config=options) as cluster:
        topic = cluster.create_topic("t", 4, 2)
        cluster.brokers[0].stop()
        cluster.brokers[0].start()
        simulation.sleep(1)
        mine = [partition for partition in topic if partition.replicas[0] == 0]
        cluster.elect_leaders("t", [mine[0].number])  # it lacks one of two now: not more than half
        simulation.sleep(30)
        assert [partition.leader for partition in mine] == [0, 1]


def test_a_broker_that_is_not_there_is_named() -> None:
    with streamlog.open(":memory:", brokers=2) as cluster:
        assert cluster.brokers[-1].id == 1 and [broker.id for broker in cluster.brokers[:1]] == [0]
        with pytest.raises(BrokerIdNotRegisteredError, match="there is no broker 2; allowed: 0 to 1") as told:
            cluster.brokers[2].stop()
        assert told.value.facts["broker_id"] == 2
