"""Messages to the controller take their time, get lost, and never overtake each other."""

from __future__ import annotations

from typing import Any

import pytest

import streamlog
from streamlog.broker.message_link import MessageLink
from streamlog.broker.network import METADATA, Network
from streamlog.testing import Simulation

Made = tuple[Simulation, Network, MessageLink, list[Any]]


@pytest.fixture
def made() -> Made:
    simulation = Simulation(1)
    network = Network(lambda: [0, 1], simulation.random)
    return simulation, network, MessageLink(simulation, network, 0, METADATA), []


def test_at_once_while_the_network_is_perfect(made: Made) -> None:
    _, _, link, arrived = made
    link.send(lambda: arrived.append("a"))
    assert arrived == ["a"]


def test_later_and_in_order_however_the_delay_changes(made: Made) -> None:
    simulation, network, link, arrived = made
    network.delay(0, METADATA, ms=500)
    link.send(lambda: arrived.append(("a", simulation.now_ms)))
    network.delay(0, METADATA, ms=5)
    link.send(lambda: arrived.append(("b", simulation.now_ms)))
    network.heal()
    link.send(lambda: arrived.append(("c", simulation.now_ms)))
    assert not arrived
    simulation.sleep(1)
    assert arrived == [("a", 500), ("b", 500), ("c", 500)]


def test_what_arrives_where_the_link_is_cut_is_lost(made: Made) -> None:
    simulation, network, link, arrived = made
    network.delay(0, METADATA, ms=100)
    link.send(lambda: arrived.append("a"))
    network.partition({0}, {1, METADATA})
    simulation.sleep(1)
    network.heal()
    link.send(lambda: arrived.append("b"))
    assert arrived == ["b"]


def test_a_link_that_drops_half_delivers_half(made: Made) -> None:
    simulation, network, link, arrived = made
    network.drop(0, METADATA, 0.5)
    for number in range(200):
        link.send(lambda number=number: arrived.append(number))  # type: ignore[misc]
    simulation.sleep(1)
    assert 60 < len(arrived) < 140 and arrived == sorted(arrived)


def test_closed_it_delivers_nothing_more(made: Made) -> None:
    simulation, network, link, arrived = made
    network.delay(0, METADATA, ms=100)
    link.send(lambda: arrived.append("a"))
    link.close()
    simulation.sleep(1)
    assert not arrived


def test_a_proposal_that_arrives_after_its_leader_was_deposed_changes_nothing() -> None:
    simulation = Simulation(1)
    options: Any = {"replica_lag_time_max_ms": 500, "replica_fetch_wait_max_ms": 500}
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation, **options) as cluster:
        cluster.create_topic("t", replication_factor=3)
        partition = cluster.topic("t")[0]
        leader = partition.leader
        follower, other = sorted({0, 1, 2} - {leader})
        with cluster.producer(acks=1) as producer:
            producer.send("t", b"a").result(5)
            cluster.network.drop(leader, follower)
            cluster.network.delay(leader, METADATA, ms=5_000)
            producer.send("t", b"b").result(5)
        simulation.sleep(2)  # the leader wants the follower out; that is on its way
        assert set(partition.isr) == {0, 1, 2}
        cluster.brokers[leader].crash()
        simulation.sleep(1)
        image = cluster._backend.metadata.image.partition("t", 0)
        assert image.leader != leader and follower in image.isr
        simulation.sleep(10)
        after = cluster._backend.metadata.image.partition("t", 0)
        assert (after.leader, after.leader_epoch) == (image.leader, image.leader_epoch)
        assert set(after.isr) == {follower, other}
