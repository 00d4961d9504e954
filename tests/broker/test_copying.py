"""The follower's side of a turn: what is taken over, and what comes too late to be."""

from __future__ import annotations

from typing import Any

import pytest

import streamlog
from streamlog.broker.partition import load_epochs
from streamlog.broker.replica_requests import AppendAsFollower, CopiedPart, FetchPosition
from streamlog.core.leader_epochs import EpochEnd
from streamlog.storage import log
from streamlog.testing import Simulation


def opened(seed: int) -> tuple[Any, Simulation]:
    simulation = Simulation(seed)
    cluster = streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation)
    cluster.create_topic("t", partitions=1, replication_factor=3)
    return cluster, simulation


def position_of(partition: Any, fetch_offset: int) -> FetchPosition:
    return FetchPosition(
        "t",
        0,
        partition.topic_id,
        fetch_offset,
        partition.epochs.epoch_of(fetch_offset - 1) if fetch_offset else -1,
        partition.role_epoch,
        0,
    )


def test_what_was_fetched_for_a_shorter_log_is_not_appended_again() -> None:
    """Who fetched gave up waiting, and fetched again: the first answer comes last."""
    cluster, simulation = opened(1)
    with cluster, cluster.producer(acks="all", linger_ms=0) as producer:
        for _ in range(3):
            producer.send("t", b"x").result(10)
        simulation.sleep(2)
        leader, follower = (cluster._backend.peers.running(number) for number in (0, 1))
        partition = follower.partitions["t", 0]
        with leader.environment.snapshot() as snapshot:
            batches = log.read(snapshot, leader.partitions["t", 0].log_id, 0, 3, 1 << 20)
        before = partition.state
        follower.call(AppendAsFollower([CopiedPart(partition, position_of(partition, 0), batches, 3, 0)]))
        assert partition.state == before


def test_a_truncation_that_comes_late_cuts_nothing() -> None:
    cluster, simulation = opened(2)
    with cluster, cluster.producer(acks="all", linger_ms=0) as producer:
        for _ in range(3):
            producer.send("t", b"x").result(10)
        simulation.sleep(2)
        follower = cluster._backend.peers.running(1)
        partition = follower.partitions["t", 0]
        late = CopiedPart(partition, position_of(partition, 2), [], 0, -1, EpochEnd(0, 1))
        follower.call(AppendAsFollower([late]))
        assert partition.state.log_end_offset == 3
        now = CopiedPart(partition, position_of(partition, 3), [], 0, -1, EpochEnd(0, 2))
        follower.call(AppendAsFollower([now]))
        assert partition.state.log_end_offset == 2, "the same in time cuts"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_who_cannot_write_its_epoch_does_not_lead_in_it(seed: int) -> None:
    """The disk of the next leader is full when it is elected. Once it has room it leads, and its epochs are durable:
    believed but not written they would be forgotten by a crash, and with them where its log parts from others'.
    """
    cluster, simulation = opened(seed)
    with cluster, cluster.producer(acks="all", linger_ms=0) as producer:
        producer.send("t", b"a").result(10)
        simulation.sleep(2)
        cluster.brokers[1].fill_disk()
        cluster.brokers[0].crash()
        simulation.sleep(0.5)
        assert cluster.topic("t")[0].leader == 1
        elected = cluster._backend.peers.running(1)
        partition = elected.partitions["t", 0]
        assert partition.leadership is None and partition.epochs.latest_epoch == 0
        cluster.brokers[1].fill_disk(False)
        assert producer.send("t", b"b").result(30).offset == 1
        with elected.environment.snapshot() as snapshot:
            assert load_epochs(snapshot, partition.log_id, partition.state) == partition.epochs
        assert partition.epochs.latest_epoch == 1
