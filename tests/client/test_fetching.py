"""One assigned partition: the invariants of position, buffer and fetch offset under any sequence of steps."""

from __future__ import annotations

import random

import pytest

from streamlog import Cluster, Topic, TopicPartition
from streamlog.client.fetching import FIRST_FETCH_BYTES, UNKNOWN_OFFSET, AssignedPartition
from streamlog.errors import DeserializationError, OffsetOutOfRangeError


@pytest.fixture
def assigned(cluster: Cluster, single: Topic) -> AssignedPartition:
    """Of a partition with 100 records in batches of 10."""
    with cluster.producer(linger_ms=10_000) as producer:
        for number in range(100):
            producer.send("single", b"%d" % number)
            if number % 10 == 9:
                producer.flush()
    return AssignedPartition(TopicPartition("single", 0), cluster._backend.partition("single", 0))


def fetch(cluster: Cluster, assigned: AssignedPartition, bytes_max: int = 1) -> bool:
    return assigned.fetch(cluster._backend.broker.reader, bytes_max, "read_uncommitted", True)


def test_it_begins_nowhere(assigned: AssignedPartition) -> None:
    assert assigned.position == assigned.fetch_offset == UNKNOWN_OFFSET and assigned.buffered == 0
    assert "single" in repr(assigned)


def test_a_fetch_fills_the_buffer_with_whole_batches_from_the_position_on(
    cluster: Cluster, assigned: AssignedPartition
) -> None:
    assigned.seek(13)
    assert fetch(cluster, assigned)
    assert (assigned.position, assigned.fetch_offset, assigned.buffered) == (13, 20, 7)
    assert [record.offset for record in assigned.take(3, None, None)] == [13, 14, 15]
    assert (assigned.position, assigned.buffered) == (16, 4)
    assert [record.offset for record in assigned.take(99, None, None)] == [16, 17, 18, 19]
    assert assigned.position == assigned.fetch_offset == 20


def test_at_the_end_there_is_nothing_and_behind_it_an_error(
    cluster: Cluster, assigned: AssignedPartition
) -> None:
    assigned.seek(100)
    assert not fetch(cluster, assigned) and assigned.buffered == 0
    assigned.seek(101)
    with pytest.raises(OffsetOutOfRangeError):
        fetch(cluster, assigned)
    assert (assigned.position, assigned.fetch_offset) == (101, 101)


def test_fetches_begin_small_and_grow_to_what_is_allowed(cluster: Cluster, single: Topic) -> None:
    size = FIRST_FETCH_BYTES // 2
    with cluster.producer(linger_ms=0) as producer:
        for _ in range(16):
            producer.send("single", b"v" * size).result()
    assigned = AssignedPartition(TopicPartition("single", 0), cluster._backend.partition("single", 0))

    def batches_fetched(bytes_max: int) -> int:
        fetch(cluster, assigned, bytes_max)
        return len(assigned.take(99, None, None))

    assigned.seek(0)
    assert [batches_fetched(8 * size) for _ in range(3)] == [1, 7, 7]
    assigned.seek(0)  # somebody waits for a first record again
    assert [batches_fetched(1 << 30) for _ in range(3)] == [1, 7, 8]
    assigned.seek(0)
    assert [batches_fetched(1) for _ in range(3)] == [1, 1, 1]


def test_any_sequence_of_steps_hands_out_each_record_once(
    cluster: Cluster, assigned: AssignedPartition
) -> None:
    chance = random.Random(7)
    for _ in range(30):
        start = chance.randrange(100)
        assigned.seek(start)
        got: list[int] = []
        while assigned.position < 100:
            if not assigned.buffered:
                fetch(cluster, assigned, chance.choice([1, 500, 10**6]))
            got += [record.offset for record in assigned.take(chance.randrange(1, 15), None, None)]
            assigned._check()
            assert assigned.position == (got[-1] + 1 if got else start)
        assert got == list(range(start, 100))


def test_an_unreadable_record_ends_what_is_taken_before_it_and_then_raises(
    cluster: Cluster, assigned: AssignedPartition
) -> None:
    def refuse(data: bytes) -> int:
        if data == b"5":
            raise DeserializationError("no")
        return int(data)

    assigned.seek(0)
    fetch(cluster, assigned)
    assert [record.value for record in assigned.take(99, None, refuse)] == [0, 1, 2, 3, 4]
    for _ in range(2):
        with pytest.raises(DeserializationError) as caught:
            assigned.take(99, None, refuse)
        assert (caught.value.offset, caught.value.next_offset, assigned.position) == (5, 6, 5)
    assert caught.value.record.value == b"5"  # type: ignore[attr-defined]
    assert [record.value for record in assigned.take(2, None, None)] == [b"5", b"6"], (
        "the bytes are still there"
    )
    assert [record.value for record in assigned.take(99, None, refuse)] == [7, 8, 9]


def test_an_interrupt_while_deserializing_loses_nothing(
    cluster: Cluster, assigned: AssignedPartition
) -> None:
    calls = 0

    def interrupted(data: bytes) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return data

    assigned.seek(0)
    fetch(cluster, assigned)
    with pytest.raises(KeyboardInterrupt):
        assigned.take(99, None, interrupted)
    assert assigned.position == 0
    assert [record.offset for record in assigned.take(99, None, interrupted)] == list(range(10))


def test_seek_drops_what_was_decoded(cluster: Cluster, assigned: AssignedPartition) -> None:
    assigned.seek(0)
    fetch(cluster, assigned)
    assigned.take(3, None, None)
    assigned.seek(50)
    assert (assigned.position, assigned.fetch_offset, assigned.buffered) == (50, 50, 0)


def test_traffic_is_counted(cluster: Cluster, assigned: AssignedPartition) -> None:
    before = assigned.partition.meters.messages_out.count
    assigned.seek(0)
    fetch(cluster, assigned, 10**6)
    assert assigned.partition.meters.messages_out.count == before + 100
