"""Producers and groups while leaders and coordinators move: nothing acknowledged is lost, order is kept, groups go on."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import streamlog
from streamlog.errors import LogTruncationError
from streamlog.testing import Simulation


def pipeline(seed: int, faults: Any, seconds: float) -> tuple[list[tuple[int, int, bytes]], list[bytes], Any]:
    """A producer and two members of a group, while `faults(cluster, simulation)` does what it does."""
    simulation = Simulation(seed)
    acked: list[tuple[int, int, bytes]] = []
    seen: list[bytes] = []
    stopping: list[bool] = []
    with streamlog.open(
        ":memory:", brokers=3, sync="off", runtime=simulation, offsets_topic_num_partitions=4
    ) as cluster:
        cluster.create_topic("t", partitions=3, replication_factor=3)
        group = cluster.consumer_group("g", ["t"])

        def produce() -> None:
            with cluster.producer() as producer:
                number = 0
                while not stopping:
                    value = b"%d" % number
                    metadata = producer.send("t", value, key=b"%d" % (number % 7)).result(60)
                    acked.append((metadata.partition, metadata.offset, value))
                    number += 1
                    if number % 10 == 0:
                        simulation.sleep(0.1)

        def consume() -> None:
            with group.consumer() as consumer:
                while not stopping or len(set(seen)) < len(acked):
                    records = consumer.poll(0.3)
                    seen.extend(record.value for record in records)
                    if records:
                        consumer.commit()

        tasks = [simulation.spawn(run) for run in (produce, consume, consume)]
        faults(cluster, simulation)
        simulation.sleep(seconds)
        stopping.append(True)
        for task in tasks:
            task.result()
        for partition in cluster.topic("t"):
            log = {record.offset: record.value for record in partition.read(0, 10_000)}
            mine = [(offset, value) for number, offset, value in acked if number == partition.number]
            assert all(log.get(offset) == value for offset, value in mine), "an acknowledged record is gone"
            assert mine == sorted(mine), "one producer's records are in the order they were sent"
        return acked, seen, group.lag()


def crashes(cluster: Any, simulation: Simulation) -> None:
    for number in range(4):
        simulation.sleep(0.4)
        cluster.brokers[number % 3].crash()
        simulation.sleep(0.3)
        cluster.brokers[number % 3].start()


def stops(cluster: Any, simulation: Simulation) -> None:
    for number in range(4):
        simulation.sleep(0.4)
        cluster.brokers[number % 3].stop()
        simulation.sleep(0.3)
        cluster.brokers[number % 3].start()


def silence(cluster: Any, simulation: Simulation) -> None:
    simulation.sleep(0.5)
    cluster.brokers[0].pause()
    simulation.sleep(14)
    cluster.brokers[0].resume()
    cluster.network.partition({1}, {0, 2})
    simulation.sleep(14)
    cluster.network.heal()


@pytest.mark.parametrize("faults", [crashes, stops, silence])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_pipeline_through_faults(faults: Any, seed: int) -> None:
    acked, seen, lag = pipeline(seed, faults, 1.0)
    assert len(acked) > 50
    assert {value for _, _, value in acked} <= set(seen)
    assert sum(lag.values()) == 0


def unclean(simulation: Simulation, **options: Any) -> Any:
    """A consumer at offset 2 of a log whose second record only the crashed leader had, and a leader that never saw it."""
    cluster = streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation)
    cluster.create_topic("t", replication_factor=2, config={"unclean.leader.election.enable": True})
    with cluster.producer() as producer:
        producer.send("t", b"a").result(5)
        cluster.brokers[1].crash()
        producer.send("t", b"b").result(5)
    consumer = cluster.consumer(**options)
    consumer.assign([("t", 0)])
    consumer.seek_to_beginning()
    values = [record.value for _ in range(3) for record in consumer.poll(1)]
    assert values == [b"a", b"b"]
    cluster.brokers[0].crash()
    cluster.brokers[1].start()
    assert cluster.topic("t")[0].leader == 1, "elected uncleanly"
    with cluster.producer() as producer:
        producer.send("t", b"c").result(5)
    return cluster, consumer


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_consumer_goes_back_to_where_an_unclean_election_parted_the_logs(seed: int) -> None:
    """KIP-320: with a reset policy it seeks to the first diverging offset."""
    cluster, consumer = unclean(Simulation(seed))
    with cluster:
        assert [record.value for _ in range(3) for record in consumer.poll(1)] == [b"c"]


def test_or_is_told_until_the_application_seeks() -> None:
    """KIP-320: with auto_offset_reset="none" it is LogTruncationError; a position error moves nothing."""
    cluster, consumer = unclean(Simulation(1), auto_offset_reset="none")
    with cluster:
        for _ in range(2):
            with pytest.raises(LogTruncationError) as caught:
                for _ in range(3):
                    consumer.poll(1)
            assert caught.value.next_offset == 1
        with cluster.producer() as producer:
            producer.send("t", b"d").result(5)  # the new log has passed where the position is
        with pytest.raises(LogTruncationError):
            consumer.poll(1)
        consumer.seek(("t", 0), 1)
        assert [record.value for _ in range(3) for record in consumer.poll(1)] == [b"c", b"d"]


@pytest.mark.parametrize("fault", ["pause", "partition"])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("fetch_min_bytes", [1, 100])
def test_a_consumer_leaves_a_leader_that_has_fallen_silent(
    fault: str, grouped: bool, fetch_min_bytes: int
) -> None:
    """It is not told by the old leader; the image says who leads now, though the old one stays silent for ever."""
    simulation = Simulation(4)
    with streamlog.open(
        ":memory:", brokers=3, sync="off", runtime=simulation, offsets_topic_num_partitions=1
    ) as cluster:
        cluster.create_topic("t", replication_factor=3)
        options = {"fetch_min_bytes": fetch_min_bytes}
        consumer = (
            cluster.consumer_group("g", ["t"]).consumer(**options) if grouped else cluster.consumer(**options)
        )
        if not grouped:
            consumer.assign([("t", 0)])
        with cluster.producer(request_timeout_ms=2_000) as producer:
            producer.send("t", b"a").result(5)
            assert [record.value for _ in range(3) for record in consumer.poll(1)] == [b"a"]
            if fault == "pause":
                cluster.brokers[0].pause()
            else:
                cluster.network.partition({0}, {1, 2})
            producer.send("t", b"b").result(60)
            assert cluster.topic("t")[0].leader == 1
            values = [record.value for _ in range(30) for record in consumer.poll(1)]
            assert b"b" in values and values.count(b"b") == 1
            if grouped:
                consumer.commit()
        consumer.close()


def test_what_nobody_led_when_it_was_given_up_is_not_read_when_somebody_does() -> None:
    """Found by the hunt, seed 20: records of a partition that had moved to another member came out of `poll`."""
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", partitions=2, replication_factor=1)
        with cluster.producer() as producer:
            for number in range(2):
                producer.send("t", b"%d" % number, partition=number).result()
        leader = cluster.topic("t")[0].leader
        consumer = cluster.consumer()
        consumer.assign([("t", 0)])
        cluster.brokers[leader].crash()
        assert consumer.poll(1) == []  # it is known now that nobody leads it
        consumer.assign([("t", 1)])
        cluster.brokers[leader].start()
        simulation.sleep(2)
        assert [(record.partition, record.value) for _ in range(3) for record in consumer.poll(1)] == [
            (1, b"1")
        ]


def test_answers_do_not_pile_up_on_the_stack() -> None:
    """An answer sends what waited behind it, in the same thread: that must be a loop, however much there is."""
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t")
        dispatcher = cluster._backend.peers.dispatcher
        depths: list[int] = []
        settle = dispatcher._settle

        def settling(outcomes: Any) -> None:
            depth, frame = 0, sys._getframe()
            while frame is not None:
                depth += frame.f_code.co_name == "_on_answer"
                frame = frame.f_back
            depths.append(depth)
            settle(outcomes)
            if len(depths) < 500:
                producer.send("t", b"next")
                producer._service.wake()
                with producer._lock:
                    producer._seal(producer._open_batches())

        dispatcher._settle = settling
        with cluster.producer() as producer:
            producer.send("t", b"first").result(10)
            simulation.sleep(5)
        assert len(depths) >= 500 and max(depths) <= 2
