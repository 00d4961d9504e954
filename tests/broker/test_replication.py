"""Several brokers: what producers are promised through crashes, stops, silence, moves; all of it under virtual time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

import streamlog
from streamlog.errors import (
    IllegalStateError,
    InvalidReplicaAssignmentError,
    LeaderNotAvailableError,
    NotEnoughReplicasError,
    StreamlogTimeoutError,
)
from streamlog.storage import log
from streamlog.testing import Simulation

Opened = tuple[Any, Simulation]


@pytest.fixture(params=[1, 2, 3], ids=lambda seed: f"seed{seed}")
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    simulation = Simulation(request.param)
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", partitions=1, replication_factor=3)
        yield cluster, simulation


def values(cluster: Any) -> list[bytes]:
    return [record.value for record in cluster.topic("t")[0].read(0, 10_000)]


def logs(cluster: Any) -> dict[int, tuple[int, int]]:
    """Broker -> (high watermark, log end)."""
    return {
        broker.id: (partition.state.high_watermark, partition.state.log_end_offset)
        for broker in cluster._backend.brokers
        if (partition := broker.partitions.get(("t", 0))) is not None
    }


def test_acks_all_waits_for_everybody_in_sync(opened: Opened) -> None:
    cluster, simulation = opened
    with cluster.producer() as producer:
        assert producer.send("t", b"a").result(5).offset == 0
        assert all(end == 1 for _, end in logs(cluster).values())
    simulation.sleep(1)
    assert logs(cluster) == {0: (1, 1), 1: (1, 1), 2: (1, 1)}, "the high watermark follows"


def test_a_slow_member_holds_everybody_until_it_leaves(opened: Opened) -> None:
    cluster, simulation = opened
    with cluster.producer(request_timeout_ms=60_000) as producer:
        producer.send("t", b"a").result(5)
        cluster.network.partition({0, 1, "metadata"}, {2})
        future = producer.send("t", b"b")
        producer._hurry(future.batch)
        simulation.sleep(5)
        assert not future.done()
        future.result(60)  # its session of 9 s is over before the lag time of 30 s
    assert 8 < simulation.now_ms / 1000 < 20
    assert cluster.topic("t")[0].isr == (0, 1)
    cluster.network.heal()
    simulation.sleep(5)
    assert set(cluster.topic("t")[0].isr) == {0, 1, 2}
    assert {end for _, end in logs(cluster).values()} == {2}


@pytest.mark.parametrize("fault", ["crash", "stop"])
def test_a_leader_that_goes_loses_nothing(opened: Opened, fault: str) -> None:
    cluster, simulation = opened
    expected = []
    with cluster.producer() as producer:
        for number in range(30):
            leader = cluster.topic("t")[0].leader
            if number % 10 == 5 and leader is not None:
                getattr(cluster.brokers[leader], fault)()
            producer.send("t", b"%d" % number).result(30)
            expected.append(b"%d" % number)
            if number % 10 == 8:
                for broker in cluster.brokers:
                    if broker.state == "down":
                        broker.start()
                simulation.sleep(0.5)
    assert values(cluster) == expected
    assert cluster.topic("t")[0].leader_epoch == 3


def test_a_silent_leader_is_fenced_and_comes_back_as_a_follower(opened: Opened) -> None:
    cluster, simulation = opened
    partition = cluster.topic("t")[0]
    with cluster.producer(request_timeout_ms=2_000) as producer:
        producer.send("t", b"a").result(5)
        cluster.brokers[0].pause()
        producer.send("t", b"b").result(60)
        assert partition.leader == 1 and 0 not in partition.isr
        cluster.brokers[0].resume()
        simulation.sleep(3)
        assert set(partition.isr) == {0, 1, 2}
        assert set(values(cluster)) == {b"a", b"b"}


def test_a_zombie_leader_acknowledges_nothing_that_lasts_and_its_tail_is_cut(opened: Opened) -> None:
    cluster, simulation = opened
    with cluster.producer() as producer, cluster.producer(acks=1) as careless:
        producer.send("t", b"a").result(5)
        cluster.network.partition({0}, {1, 2})
        assert careless.send("t", b"lost").result(5).offset == 1  # the leader alone has it
        simulation.sleep(12)
        assert cluster.topic("t")[0].leader == 1
        assert producer.send("t", b"kept").result(5).offset == 1
        assert logs(cluster)[0][0] == 1, "the old leader's high watermark stands"
        cluster.network.heal()
        simulation.sleep(3)
        assert values(cluster) == [b"a", b"kept"]
        assert {end for _, end in logs(cluster).values()} == {2}
        old = cluster._backend.peers.running(0).partitions["t", 0]
        assert old.epochs == cluster._backend.peers.running(1).partitions["t", 0].epochs


def test_too_few_in_sync(opened: Opened) -> None:
    cluster, _ = opened
    cluster.topic("t").alter_config({"min.insync.replicas": 2})
    cluster.brokers[1].crash()
    cluster.brokers[2].crash()
    with cluster.producer(retries=0) as producer:
        future = producer.send("t", b"x")
        with pytest.raises(NotEnoughReplicasError, match=r"fewer than min\.insync\.replicas=2"):
            future.result(5)
    with cluster.producer(delivery_timeout_ms=3_000, request_timeout_ms=1_000) as producer:
        future = producer.send("t", b"x")
        with pytest.raises(StreamlogTimeoutError, match=r"\d+ attempts") as caught:
            future.result(30)
        assert isinstance(caught.value.__cause__, NotEnoughReplicasError)
    with cluster.producer(acks=1) as producer:
        producer.send("t", b"y").result(5)
    assert values(cluster) == [], "written, acknowledged, and not readable before the in-sync set recovers"
    cluster.brokers[1].start()
    with cluster.producer() as producer:
        producer.send("t", b"z").result(30)
    assert values(cluster) == [b"y", b"z"]


def test_without_a_leader(opened: Opened) -> None:
    cluster, _ = opened
    for number in (1, 2, 0):
        cluster.brokers[number].crash()
    assert cluster.topic("t")[0].leader is None
    with pytest.raises(LeaderNotAvailableError, match="none of them runs"):
        cluster.topic("t")[0].read()
    with cluster.producer(retries=0) as producer:
        future = producer.send("t", b"x")
        with pytest.raises(LeaderNotAvailableError):
            future.result(5)
    cluster.brokers[1].start()
    assert cluster.topic("t")[0].leader is None, "only the last in sync may lead"
    cluster.brokers[0].start()
    with cluster.producer() as producer:
        producer.send("t", b"y").result(10)
    assert values(cluster) == [b"y"]


def test_the_controller_dies_and_another_takes_over(opened: Opened) -> None:
    cluster, _ = opened
    controller = next(broker for broker in cluster.brokers if broker.is_controller)
    controller.crash()
    cluster.create_topic("u", replication_factor=2)
    assert [broker.id for broker in cluster.brokers if broker.is_controller] != [controller.id]
    assert cluster._backend.metadata.image.controller_epoch == 2


def test_a_broker_more_and_partitions_that_move_there(opened: Opened) -> None:
    cluster, simulation = opened
    with cluster.producer() as producer:
        for number in range(20):
            producer.send("t", b"%d" % number).result(5)
    added = cluster.add_broker()
    assert added.id == 3
    cluster.reassign("t", {0: [3, 1]})
    simulation.sleep(2)
    partition = cluster.topic("t")[0]
    assert partition.replicas == (3, 1) and set(partition.isr) == {3, 1}
    cluster.elect_leaders("t") if partition.leader != 3 else None
    assert partition.leader == 3
    assert values(cluster) == [b"%d" % number for number in range(20)]
    assert ("t", 0) not in cluster._backend.peers.running(0).partitions
    with pytest.raises(InvalidReplicaAssignmentError):
        cluster.reassign("t", {0: [9]})


def test_faults_that_make_no_sense(opened: Opened) -> None:
    cluster, _ = opened
    broker = cluster.brokers[1]
    with pytest.raises(IllegalStateError, match="runs already"):
        broker.start()
    with pytest.raises(IllegalStateError, match="is not paused"):
        broker.resume()
    broker.pause()
    assert broker.state == "paused"
    with pytest.raises(IllegalStateError, match="paused already"):
        broker.pause()
    broker.stop()
    assert broker.state == "down" and repr(broker) == "<Broker 1 down>"
    for fault in (broker.stop, broker.crash, broker.pause):
        with pytest.raises(IllegalStateError, match=r"start it with cluster.brokers\[1\].start"):
            fault()


def test_a_full_disk_of_a_follower_takes_it_out_of_the_isr(opened: Opened) -> None:
    cluster, simulation = opened
    with cluster.producer(request_timeout_ms=90_000) as producer:
        producer.send("t", b"a").result(5)
        cluster.brokers[2].fill_disk()
        producer.send("t", b"b").result(60)
        assert 2 not in cluster.topic("t")[0].isr
        cluster.brokers[2].fill_disk(False)
        simulation.sleep(5)
        assert 2 in cluster.topic("t")[0].isr
        assert {end for _, end in logs(cluster).values()} == {2}


def test_a_loss_of_power_takes_the_unsynced_tail_of_one_and_no_acknowledged_record(opened: Opened) -> None:
    cluster, simulation = opened
    with cluster.producer() as producer:
        producer.send("t", b"a").result(5)
        simulation.sleep(2)  # flush_ms
        for number in range(5):
            producer.send("t", b"%d" % number).result(5)
        cluster.brokers[0].crash(lose_unsynced=True)
        producer.send("t", b"z").result(5)
        cluster.brokers[0].start()
        simulation.sleep(2)
    assert values(cluster) == [b"a", b"0", b"1", b"2", b"3", b"4", b"z"]
    assert {end for _, end in logs(cluster).values()} == {7}


def test_reopened_with_a_broker_that_was_down(tmp_path: Any) -> None:
    with streamlog.open(tmp_path / "c", brokers=3, sync="off", runtime=Simulation(1)) as cluster:
        cluster.create_topic("t", replication_factor=3)
        with cluster.producer() as producer:
            producer.send("t", b"a").result(5)
            cluster.brokers[0].crash()
            producer.send("t", b"b").result(5)
    simulation = Simulation(2)
    with streamlog.open(tmp_path / "c", runtime=simulation) as cluster:
        assert values(cluster) == [b"a", b"b"]
        simulation.sleep(3)
        assert set(cluster.topic("t")[0].isr) == {0, 1, 2}
        assert {end for _, end in logs(cluster).values()} == {2}


def test_a_broker_that_lost_its_tail_is_not_in_sync_before_it_has_fetched_again(opened: Opened) -> None:
    """With the followers silent, nobody may believe what the broker had acknowledged in its former life."""
    cluster, simulation = opened
    with cluster.producer() as producer:
        producer.send("t", b"a").result(5)
        for broker in (0, 1, 2):
            cluster._backend.peers.running(broker).flushing.flush()
        producer.send("t", b"b").result(5)
        cluster.brokers[2].crash()
        cluster.brokers[1].crash(lose_unsynced=True)
        cluster.network.delay(0, 1, 500)  # its first fetch takes a second
        cluster.brokers[1].start()
        assert logs(cluster)[0] == (2, 2)
        assert cluster.topic("t")[0].isr == (0,)
        simulation.sleep(5)
        assert cluster.topic("t")[0].isr == (0, 1)
        cluster.brokers[0].crash()
        producer.send("t", b"c").result(5)
    assert values(cluster) == [b"a", b"b", b"c"]


def test_a_partition_that_had_one_replica_knows_its_epochs_when_it_gets_more(opened: Opened) -> None:
    cluster, simulation = opened
    cluster.create_topic("one", replication_factor=1)
    with cluster.producer() as producer:
        for _ in range(3):
            producer.send("one", b"x").result(5)
    home = cluster.topic("one")[0].leader
    cluster.reassign("one", {0: [home, (home + 1) % 3]})
    simulation.sleep(2)
    partition = cluster._backend.peers.running(home).partitions["one", 0]
    assert partition.epochs.entries == ((0, 0),)
    assert len(cluster.topic("one")[0].isr) == 2


def test_retention_is_the_leaders_and_followers_hear_of_it(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, simulation = opened
    cluster.topic("t").alter_config({"retention.ms": 1_000})
    cluster.create_topic("one", partitions=3, replication_factor=1)
    with cluster.producer() as producer:
        producer.send("t", b"old").result(5)
        simulation.sleep(600)
        producer.send("t", b"new").result(5)
    simulation.sleep(600)
    assert cluster.clean().retained >= 0
    simulation.sleep(1)
    for broker in cluster._backend.brokers:
        state = broker.partition("t", 0).state
        assert state.log_start_offset == 2, broker
        assert sum(key[0] == "one" for key in broker.partitions) <= 1, "only its own replicas are loaded"
    assert cluster._backend.housekeeping.last_error is None and not caplog.records


def test_housekeeping_passes_by_who_is_silent(opened: Opened) -> None:
    cluster, simulation = opened
    cluster.brokers[0].pause()
    begun_ms = simulation.now_ms
    cluster.clean()
    cluster.create_topic("u", replication_factor=3)
    cluster.delete_topic("u")
    assert simulation.now_ms - begun_ms < 1_000
    cluster.brokers[0].resume()


def test_power_that_was_lost_by_the_leader_only_is_found_at_the_next_opening(tmp_path: Any) -> None:
    """SEMANTICS 3.4.8: the leader's log was cut, the follower's was not: what is written then must not diverge."""
    path = tmp_path / "c"

    def write(tag: str, seed: int) -> dict[int, list[bytes]]:
        simulation = Simulation(seed)
        with streamlog.open(path, brokers=2, sync="off", runtime=simulation) as cluster:
            cluster.create_topic("t", replication_factor=2, exist_ok=True)
            with cluster.producer() as producer:
                for number in range(3):
                    producer.send("t", f"{tag}{number}".encode()).result(30)
            simulation.sleep(3)
            held = {}
            for broker in cluster._backend.brokers:
                _, snapshot = broker.reader.open_as_replica(broker.partition("t", 0))
                with snapshot:
                    log_id = broker.partition("t", 0).log_id
                    batches = log.read(snapshot, log_id, 0, 10_000, 1 << 20)
                    held[broker.id] = [
                        record.value for batch in batches for record in batch.records("t", 0, 0)
                    ]
            assert cluster.topic("t")[0].leader == 0
            return held

    write("a", 1)
    shutil.copytree(path / "broker-0", tmp_path / "older")
    write("b", 2)
    shutil.rmtree(path / "broker-0")
    shutil.copytree(tmp_path / "older", path / "broker-0")
    held = write("c", 3)
    assert held[0] == held[1], "replicas are alike"
    assert held[0] == [b"a0", b"a1", b"a2", b"c0", b"c1", b"c2"], "the leader's log is the truth"


def test_a_lone_replica_that_was_silent_writes_nothing_as_the_leader_of_yesterday() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", replication_factor=1)
        leader = cluster.topic("t")[0].leader
        with cluster.producer(delivery_timeout_ms=60_000) as producer:
            producer.send("t", b"a").result(5)
            cluster.brokers[leader].pause()
            future = producer.send("t", b"b")
            producer._hurry(future.batch)
            simulation.sleep(20)
            assert cluster.topic("t")[0].leader is None
            cluster.brokers[leader].resume()
            assert future.result(30).offset == 1
        hosted = cluster._backend.peers.running(leader).partition("t", 0)
        image = cluster._backend.metadata.image.partition("t", 0)
        assert hosted.epochs.entries == ((0, 0), (image.leader_epoch, 1))
