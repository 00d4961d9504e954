"""Threads: many producers, consumers that wait, nobody missed, and closing in the middle of it all."""

from __future__ import annotations

import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog.broker.purgatory import Listener, Source
from streamlog.broker.runner import ThreadedRuntime
from streamlog.errors import ClosedError
from tests.broker.builders import in_thread
from tests.integration.judging import read_dense

LOST_SECONDS = 30.0
"""A wait this long was not woken: each hand-off takes microseconds, and nobody looks up in between."""


def hand_over(count: int) -> None:
    """Two threads throw a ball through two sources; each waits without a time limit."""
    runtime = ThreadedRuntime()
    lock = runtime.lock()
    sources, boxes = (Source(), Source()), (deque[int](), deque[int]())

    def play(own: int, starts: bool) -> int:
        listener, got = Listener(runtime, lock), 0
        listener.subscribe(sources[own], None)
        if starts:
            boxes[1].append(0)
            sources[1].notify()
        while got < count:
            while listener.take() is not None:
                while boxes[own]:
                    ball = boxes[own].popleft()
                    assert ball == got
                    got += 1
                    boxes[1 - own].append(ball + (not starts and 0) + (1 if starts else 0))
                    sources[1 - own].notify()
            if got < count:
                assert listener.wait(int(LOST_SECONDS * 1000)), f"lost after {got}"
        return got

    second = in_thread(lambda: play(1, False))
    first = in_thread(lambda: play(0, True))
    assert first.result(LOST_SECONDS + count / 5_000) == count
    second.result()


def test_no_wake_up_is_lost_in_100_000_hand_offs() -> None:
    hand_over(50_000)


@pytest.mark.long
def test_no_wake_up_is_lost_in_a_million_hand_offs() -> None:
    hand_over(500_000)


def ping_pong(cluster: Any, rounds: int) -> None:
    """The same through the log: each record is sent when the one before has been received."""
    cluster.create_topic("t", partitions=2)

    def play(own: int, starts: bool) -> float:
        slowest = 0.0
        with cluster.producer(linger_ms=0) as producer, cluster.consumer() as consumer:
            consumer.assign([("t", own)])
            if starts:
                producer.send("t", b"0", partition=1 - own)
            for number in range(rounds):
                began = time.perf_counter()
                records = consumer.poll(LOST_SECONDS)
                slowest = max(slowest, time.perf_counter() - began)
                assert [record.value for record in records] == [b"%d" % number], number
                producer.send("t", b"%d" % (number + starts), partition=1 - own)
        return slowest

    players = [in_thread(lambda: play(1, False)), in_thread(lambda: play(0, True))]
    for player in players:
        assert player.result(LOST_SECONDS + rounds / 50) < LOST_SECONDS / 2


def test_no_record_waits_for_another_to_be_noticed() -> None:
    with streamlog.open(":memory:", sync="off") as cluster:
        ping_pong(cluster, 3_000)


@pytest.mark.long
def test_no_record_waits_for_another_to_be_noticed_long() -> None:
    with streamlog.open(":memory:", sync="off") as cluster:
        ping_pong(cluster, 200_000)


def contend(path: Path | str, producers: int, each: int, sync: str) -> None:
    """Producers with single sends over four partitions, two members of a group that read along."""
    with streamlog.open(path, sync=sync) as cluster:
        cluster.create_topic("t", partitions=4)
        group = cluster.consumer_group("g", ["t"])
        seen: list[list[tuple[int, int]]] = [[], []]
        total, finished = producers * each, threading.Event()

        def consume(index: int) -> None:
            with group.consumer() as consumer:
                while not finished.is_set():
                    seen[index] += [(record.partition, record.offset) for record in consumer.poll(0.2)]
                    if len(set(seen[0]) | set(seen[1])) >= total:
                        finished.set()

        def produce(number: int) -> list[tuple[int, int]]:
            with cluster.producer(linger_ms=number % 3) as producer:
                metadata = [
                    producer.send("t", b"%d-%d" % (number, n), partition=n % 4).result() for n in range(each)
                ]
            return [(m.partition, m.offset) for m in metadata]

        consuming = [in_thread(lambda index=index: consume(index)) for index in (0, 1)]
        producing = [in_thread(lambda number=number: produce(number)) for number in range(producers)]
        acked = [place for thread in producing for place in thread.result(LOST_SECONDS + total / 200)]
        for thread in consuming:
            thread.result(LOST_SECONDS)
        assert len(set(acked)) == total
        assert set(seen[0]) | set(seen[1]) == set(acked)
        for partition in cluster.topic("t").partitions:
            order: dict[bytes, int] = {}
            for record in read_dense(partition):
                number, _, sequence = record.value.partition(b"-")
                assert order.get(number, -1) < int(sequence), "one producer's records are out of order"
                order[number] = int(sequence)


def test_sixteen_producers_and_two_consumers_over_four_partitions() -> None:
    contend(":memory:", 16, 60, "off")


@pytest.mark.long
@pytest.mark.parametrize("sync", ["full", "off"])
def test_sixteen_producers_and_two_consumers_long(tmp_path: Path, sync: str) -> None:
    contend(tmp_path / "c", 16, 2_000, sync)


def close_in_the_middle(path: Path, seconds: float) -> None:
    """Everybody learns it, nobody hangs, and what was acknowledged is there."""
    cluster: Any = streamlog.open(path, sync="off")
    cluster.create_topic("t", partitions=4)
    acked: list[tuple[int, int, bytes]] = []
    started = threading.Barrier(12)

    def produce(number: int) -> None:
        producer = cluster.producer(linger_ms=number % 2)
        started.wait()
        n = 0
        while True:
            value = b"%d-%d" % (number, n)
            metadata = producer.send("t", value, partition=n % 4).result()
            acked.append((metadata.partition, metadata.offset, value))
            n += 1

    def consume() -> None:
        consumer = cluster.consumer_group("g", ["t"]).consumer()
        started.wait()
        while True:
            consumer.poll(60)
            consumer.commit()

    def wait_for_nothing() -> None:
        consumer = cluster.consumer()
        consumer.assign([("quiet", 0)])
        started.wait()
        while True:
            consumer.poll(60)

    cluster.create_topic("quiet")
    threads = [in_thread(lambda number=number: produce(number)) for number in range(8)]
    threads += [in_thread(consume), in_thread(consume), in_thread(wait_for_nothing)]
    started.wait()
    time.sleep(seconds)
    in_thread(cluster.close).result(10)
    for thread in threads:
        with pytest.raises(ClosedError):
            thread.result(10)
    with streamlog.open(path) as cluster:
        there = {
            (record.partition, record.offset): record.value
            for partition in cluster.topic("t").partitions
            for record in read_dense(partition)
        }
    assert acked and all(there[partition, offset] == value for partition, offset, value in acked)


def test_closing_in_the_middle(tmp_path: Path) -> None:
    for attempt in range(3):
        close_in_the_middle(tmp_path / str(attempt), 0.05)


@pytest.mark.long
def test_closing_in_the_middle_long(tmp_path: Path) -> None:
    for attempt in range(60):
        close_in_the_middle(tmp_path / str(attempt), 0.02 + 0.005 * attempt)
