"""In-sync sets as their leader proposes them: sent until answered, and what a refusal takes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import streamlog
from streamlog.broker.replica_requests import IsrRefused
from streamlog.errors import FencedLeaderEpochError, IneligibleReplicaError
from streamlog.testing import Simulation

Opened = tuple[Any, Simulation]


@pytest.fixture(params=[1, 2, 3], ids=lambda seed: f"seed{seed}")
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    simulation = Simulation(request.param)
    options: Any = {"replica_lag_time_max_ms": 2_000, "replica_fetch_wait_max_ms": 500}
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation, **options) as cluster:
        cluster.create_topic("t", replication_factor=3)
        with cluster.producer() as producer:
            producer.send("t", b"a").result(5)
        yield cluster, simulation


def led(cluster: Any, topic: str = "t") -> Any:
    return cluster._backend.leader(topic, 0).partition(topic, 0)


def cut_a_follower_off(cluster: Any) -> int:
    """Silence between the leader and one follower, and a record that the follower does not get."""
    partition = cluster.topic("t")[0]
    follower = min(set(partition.isr) - {partition.leader})
    cluster.network.drop(partition.leader, follower)
    with cluster.producer(acks=1) as producer:
        producer.send("t", b"b").result(5)
    return follower


def test_who_lags_is_proposed_out_and_comes_back(opened: Opened) -> None:
    cluster, simulation = opened
    follower = cut_a_follower_off(cluster)
    simulation.sleep(5)
    assert set(cluster.topic("t")[0].isr) == {0, 1, 2} - {follower}
    cluster.network.heal()
    simulation.sleep(5)
    assert set(cluster.topic("t")[0].isr) == {0, 1, 2}
    sets = led(cluster).home.replication.in_sync_sets
    assert not sets.proposals and (sets.counts.isr_shrinks, sets.counts.isr_expands) == (1, 1)


def test_a_proposal_that_gets_lost_is_sent_again(opened: Opened) -> None:
    cluster, simulation = opened
    leader = cluster.topic("t")[0].leader
    lost: list[Any] = []
    sets = led(cluster).home.replication.in_sync_sets
    tell = sets._peers.tell_controller

    def lose_the_first(*message: Any) -> None:
        if lost:
            tell(*message)
        lost.append(simulation.now_ms)

    sets._peers.tell_controller = lose_the_first
    follower = cut_a_follower_off(cluster)
    simulation.sleep(10)
    assert cluster.topic("t")[0].leader == leader
    assert set(cluster.topic("t")[0].isr) == {0, 1, 2} - {follower}
    assert 500 <= lost[1] - lost[0] <= 1_000


def test_an_older_refusal_takes_nothing_back(opened: Opened) -> None:
    """What it refused has been sent again since, and may be accepted any moment."""
    cluster, simulation = opened
    broker, partition = led(cluster).home, led(cluster)
    cluster.network.delay(broker.id, "metadata", ms=60_000)
    cut_a_follower_off(cluster)
    simulation.sleep(4)
    proposed = partition.leadership.proposed_isr
    newest_ms, _ = broker.replication.in_sync_sets.proposals[partition]
    epoch = partition.leadership.partition_epoch
    assert proposed is not None
    broker.call(IsrRefused(partition, epoch, newest_ms - 500, IneligibleReplicaError("")))
    assert partition.leadership.proposed_isr == proposed
    broker.call(IsrRefused(partition, epoch, newest_ms, FencedLeaderEpochError("")))
    assert partition.leadership.proposed_isr == proposed
    broker.call(IsrRefused(partition, epoch - 1, newest_ms, IneligibleReplicaError("")))
    assert partition.leadership.proposed_isr == proposed, "it is of an older partition epoch"
    broker.call(IsrRefused(partition, epoch, newest_ms, IneligibleReplicaError("")))
    assert partition.leadership.proposed_isr is None


def test_a_refused_proposal_that_was_made_before_still_counts(opened: Opened) -> None:
    """The controller made it and forgot to say so: who joined by it holds the high watermark."""
    cluster, simulation = opened
    cluster.create_topic("u", replication_factor=2, config={"min.insync.replicas": 2})
    partition = cluster.topic("u")[0]
    leader, follower = partition.replicas
    [other] = {0, 1, 2} - {leader, follower}
    cluster.brokers[follower].crash()
    with cluster.producer(acks=1) as producer:
        producer.send("u", b"not committed: fewer in sync than min.insync.replicas").result(5)
    hosted = led(cluster, "u")
    cluster.network.drop(leader, other)
    cluster.reassign("u", {0: [leader, other]})
    cluster.brokers[leader].fill_disk()
    cluster.network.drop(leader, other, 0)
    simulation.sleep(5)
    known = cluster._backend.metadata.image.partition("u", 0)
    assert set(known.isr) == {leader, other} and known.leader_epoch > hosted.leadership.leader_epoch
    assert hosted.leadership.isr == (leader,), "with a full disk it cannot enter the new epoch"
    assert set(hosted.leadership.maximal_isr) == {leader, other}
    counted = cluster.metrics().value("kafka.server:type=ReplicaManager,name=FailedIsrUpdatesPerSec")
    assert counted > 0, "the proposal was sent again, and refused"
