"""Brokers are known by id; one broker alone can be stopped and started, too; beside an owner all of it is refused."""

from __future__ import annotations

from typing import Any

import pytest

import streamlog
from streamlog.client.brokers import BrokerHandle
from streamlog.errors import ConfigError, LeaderNotAvailableError, UnsupportedOperationError
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
