"""fetch_min_bytes, fetch_max_wait_ms, fetch_max_bytes (SEMANTICS 1.3 "fetch", KIP-74), on a clock that stands still."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import streamlog
from streamlog import Cluster, Consumer, TopicPartition
from streamlog.broker.runner import ThreadedRuntime
from streamlog.client import fetch_waiting
from streamlog.clock import ManualClock
from streamlog.errors import NoOffsetForPartitionError, OffsetOutOfRangeError
from streamlog.storage import log

PLACES = [TopicPartition("t", number) for number in range(3)]
BODY = b"x" * 200


class World:
    """A cluster whose time stands still, and batches of one record in it."""

    def __init__(self) -> None:
        self.clock = ManualClock(1_000_000)
        runtime = ThreadedRuntime(clock=self.clock)
        self.cluster: Cluster = streamlog.open(":memory:", sync="off", runtime=runtime)
        self.cluster.create_topic("t", partitions=3)
        self.producer = self.cluster.producer(linger_ms=0)

    def send(self, partition: int = 0, value: bytes = BODY) -> int:
        """The bytes its batch takes."""
        self.producer.send("t", value, partition=partition).result()
        return self.stored(partition)[-1]

    def stored(self, partition: int) -> list[int]:
        backend: Any = self.cluster._backend
        _, batches = backend.broker.reader.read(backend.partition("t", partition), 0, 1 << 30)
        return [batch.size_bytes for batch in batches]

    def reader(self, **options: Any) -> Consumer:
        consumer = self.cluster.consumer(**options)
        consumer.assign(PLACES)
        return consumer


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.cluster.close()


def got(consumer: Consumer, **options: Any) -> list[tuple[int, int]]:
    return [(record.partition, record.offset) for record in consumer.poll(0, **options)]


def test_without_it_a_poll_returns_what_there_is(world: World) -> None:
    consumer = world.reader()
    world.send()
    assert got(consumer) == [(0, 0)] and consumer._gate is None


def test_a_fetch_waits_until_the_bytes_are_there_across_its_partitions(world: World) -> None:
    one = world.send(0)
    consumer = world.reader(fetch_min_bytes=3 * one, fetch_max_wait_ms=10_000)
    assert got(consumer) == []
    assert world.send(1) == one
    assert got(consumer) == []
    world.send(0)
    assert sorted(got(consumer)) == [(0, 0), (0, 1), (1, 0)]
    world.send(2)
    assert got(consumer) == [], "the next fetch waits anew"
    world.send(2), world.send(2)
    assert got(consumer) == [(2, 0), (2, 1), (2, 2)]


def test_or_until_fetch_max_wait_ms_since_it_began_are_over(world: World) -> None:
    consumer = world.reader(fetch_min_bytes=1_000_000, fetch_max_wait_ms=500)
    world.send()
    assert got(consumer) == []
    world.clock.advance(499)
    assert got(consumer) == []
    world.clock.advance(1)
    assert got(consumer) == [(0, 0)]
    world.send()
    world.clock.advance(499)
    assert got(consumer) == [], "the next fetch began when that one ended"
    world.clock.advance(1)
    assert got(consumer) == [(0, 1)]


def test_a_fetch_that_found_nothing_is_followed_by_another(world: World) -> None:
    consumer = world.reader(fetch_min_bytes=1_000_000, fetch_max_wait_ms=500)
    assert got(consumer) == []
    world.clock.advance(1_200)
    world.send()
    assert got(consumer) == []
    world.clock.advance(299)
    assert got(consumer) == [], "the third one began at 1000"
    world.clock.advance(1)
    assert got(consumer) == [(0, 0)]


def test_poll_itself_waits_and_is_woken_by_the_bytes(world: World) -> None:
    """With real waiting: the producer is another thread, and no poll ends before the second batch."""
    from threading import Thread

    one = world.send()
    consumer = world.reader(fetch_min_bytes=2 * one, fetch_max_wait_ms=1_000_000)
    assert got(consumer) == []
    sender = Thread(target=world.send, args=(1,))
    sender.start()
    assert len(consumer.poll(30)) == 2
    sender.join()


def test_what_was_fetched_is_handed_out_without_waiting(world: World) -> None:
    size = sum(world.send(partition) for partition in (0, 1, 2))
    consumer = world.reader(fetch_min_bytes=size, fetch_max_wait_ms=10_000)
    assert len(got(consumer, max_records=1)) == 1
    assert len(got(consumer)) == 2, "what was granted with it is not kept back"


def test_iterating_waits_in_the_same_way(world: World) -> None:
    size = sum(world.send(partition) for partition in (0, 1, 2))
    consumer = world.reader(fetch_min_bytes=size, fetch_max_wait_ms=10_000, stop_at_end=True)
    assert sorted((record.partition, record.offset) for record in consumer) == [(0, 0), (1, 0), (2, 0)]


def test_paused_partitions_do_not_count_and_do_when_they_are_resumed(world: World) -> None:
    one = world.send(0)
    world.send(1)
    consumer = world.reader(fetch_min_bytes=2 * one, fetch_max_wait_ms=10_000)
    consumer.pause(PLACES[1])
    assert got(consumer) == []
    consumer.resume(PLACES[1])
    assert sorted(got(consumer)) == [(0, 0), (1, 0)]


def test_seeking_is_counted_from_there(world: World) -> None:
    one = world.send()
    world.send(), world.send()
    consumer = world.reader(fetch_min_bytes=3 * one, fetch_max_wait_ms=10_000)
    consumer.seek(PLACES[0], 1)
    assert got(consumer) == []
    consumer.seek(PLACES[0], 0)
    assert got(consumer) == [(0, 0), (0, 1), (0, 2)]


def test_no_more_than_max_partition_fetch_bytes_count_of_one_partition(world: World) -> None:
    one = world.send()
    for _ in range(5):
        world.send()
    options = {"fetch_min_bytes": 3 * one, "max_partition_fetch_bytes": 2 * one, "fetch_max_wait_ms": 10_000}
    consumer = world.reader(**options)
    assert got(consumer) == []
    world.send(1)
    assert len(got(consumer, max_records=3)) == 3


def test_fetch_min_bytes_is_at_most_fetch_max_bytes(world: World) -> None:
    one = world.send()
    consumer = world.reader(fetch_min_bytes=100 * one, fetch_max_bytes=one, fetch_max_wait_ms=10_000)
    assert got(consumer) == [(0, 0)]


def test_an_error_is_told_at_once(world: World) -> None:
    world.send()
    consumer = world.reader(fetch_min_bytes=10_000, fetch_max_wait_ms=10_000, auto_offset_reset="none")
    for _ in range(2):
        with pytest.raises(NoOffsetForPartitionError):
            consumer.poll(0)
    for place in PLACES:
        consumer.seek(place, 0)
    assert got(consumer) == []
    consumer.seek(PLACES[0], 7)
    for _ in range(2):
        with pytest.raises(OffsetOutOfRangeError):
            consumer.poll(0)


def test_each_batch_is_counted_once_however_often_there_is_news(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = world.reader(fetch_min_bytes=1_000_000, fetch_max_wait_ms=10_000)
    starts: list[int] = []
    real = log.iterate_headers

    def counted(reader: Any, log_id: int, start_offset: int = 0) -> Any:
        starts.append(start_offset)
        return real(reader, log_id, start_offset)

    monkeypatch.setattr(fetch_waiting.log, "iterate_headers", counted)
    assert got(consumer) == []
    starts.clear()
    for _ in range(5):
        world.send()
        assert got(consumer) == []
    assert starts == [0, 1, 2, 3, 4]


def test_an_interrupt_loses_no_news(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [world.send(partition) for partition in (0, 1, 2)]
    consumer = world.reader(fetch_min_bytes=sum(sizes), fetch_max_wait_ms=10_000)
    gate = consumer._gate
    assert gate is not None
    real, calls = gate._count, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(gate, "_count", interrupted)
    with pytest.raises(KeyboardInterrupt):
        consumer.poll(0)
    assert sorted(got(consumer)) == [(0, 0), (1, 0), (2, 0)]


# -- fetch_max_bytes ---------------------------------------------------------------------------------------


def test_one_poll_fetches_at_most_fetch_max_bytes_over_all_partitions(world: World) -> None:
    one = 0
    for partition in (0, 1, 2):
        for _ in range(4):
            one = world.send(partition)
    consumer = world.reader(fetch_max_bytes=5 * one + one // 2)
    rounds = []
    while records := got(consumer):
        rounds.append(records)
    assert [len(records) for records in rounds] == [5, 5, 2]
    got_all = [place for records in rounds for place in records]
    assert sorted(got_all) == [(partition, offset) for partition in (0, 1, 2) for offset in range(4)]


def test_the_first_batch_comes_whatever_its_size(world: World) -> None:
    for partition in (0, 1, 2):
        world.send(partition, BODY * 10)
    for bytes_max in (0, 1, 1_000):
        consumer = world.reader(fetch_max_bytes=bytes_max)
        assert [len(got(consumer)) for _ in range(4)] == [1, 1, 1, 0], "KIP-74"


def test_the_next_batch_comes_only_if_it_fits(world: World) -> None:
    small = world.send(0, b"")
    large = world.send(1, BODY * 5)
    world.send(2, b"")
    consumer = world.reader(fetch_max_bytes=large + small - 1, max_partition_fetch_bytes=1 << 20)
    assert [len(got(consumer)) for _ in range(3)] in ([1, 1, 1], [1, 2, 0], [2, 1, 0])
    fits = world.reader(fetch_max_bytes=large + 2 * small)
    assert len(got(fits)) == 3


def test_iterating_reads_everything_under_any_bound(world: World) -> None:
    for _ in range(3):
        for partition in (0, 1, 2):
            world.send(partition)
    consumer = world.reader(fetch_max_bytes=1, stop_at_end=True)
    assert len(list(consumer)) == 9
