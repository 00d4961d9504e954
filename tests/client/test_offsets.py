"""Positions and offsets a consumer can be asked for, and sent to (client/positions.py, client/offsets.py)."""

from __future__ import annotations

from typing import Any

import pytest

from streamlog import Cluster, Consumer, OffsetAndTimestamp, Topic, TopicPartition
from streamlog.client.offsets import checked_partitions
from streamlog.errors import (
    ConfigError,
    IllegalStateError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
)

A, B = TopicPartition("orders", 0), TopicPartition("orders", 1)


@pytest.fixture
def consumer(cluster: Cluster, orders: Topic) -> Consumer:
    """Assigned to both partitions; orders-0 holds 10 records of ms 1000, 1100, ..., its first 2 deleted."""
    with cluster.producer(linger_ms=10_000) as producer:
        for number in range(10):
            producer.send("orders", b"%d" % number, partition=0, timestamp=1000 + 100 * number)
    orders[0].delete_records(2)
    consumer = cluster.consumer(stop_at_end=True)
    consumer.assign([A, B])
    return consumer


def test_beginnings_and_ends(consumer: Consumer) -> None:
    assert consumer.beginning_offsets([A, B]) == {A: 2, B: 0}
    assert consumer.end_offsets([A, ("orders", 1)]) == {A: 10, B: 0}
    for one in (A, ("orders", 0)):
        assert consumer.end_offsets(one) == {A: 10} and consumer.beginning_offsets(one) == {A: 2}
    with pytest.raises(UnknownTopicOrPartitionError):
        consumer.end_offsets([("nowhere", 0)])


def test_one_partition_does_where_several_do(cluster: Cluster, consumer: Consumer) -> None:
    one = ("orders", 1)
    consumer.seek_to_end(one)
    consumer.seek_to_beginning(A)
    consumer.pause(one)
    assert (consumer.position(A), consumer.paused()) == (2, {B})
    consumer.resume([one])
    consumer.assign(one)
    assert (consumer.assignment, consumer.paused()) == ({B}, frozenset())
    for wrong in (("orders", "1"), ("orders",), ("orders", 0, 1), "orders"):
        with pytest.raises(ConfigError, match="is no partition"):
            consumer.end_offsets(wrong)  # type: ignore[arg-type]


def test_position_resolves_and_moves(consumer: Consumer) -> None:
    assert (consumer.position(A), consumer.position(B)) == (2, 0)
    consumer.poll(1, max_records=3)
    assert consumer.position(A) == 5 and consumer.lag(A) == 5
    with pytest.raises(IllegalStateError, match="orders"):
        consumer.position(("orders", 7))


def test_seeking(consumer: Consumer) -> None:
    consumer.poll(1, max_records=3)
    consumer.seek(A, 8)
    assert consumer.position(A) == 8
    assert [record.offset for record in consumer.poll(1)] == [8, 9]
    consumer.seek_to_beginning()
    assert (consumer.position(A), consumer.position(B)) == (2, 0)
    consumer.seek_to_end([A])
    assert consumer.position(A) == 10 and consumer.poll(0.01) == []
    consumer.seek_to_timestamp(A, 1401)
    assert [record.offset for record in consumer.poll(1)] == [5, 6, 7, 8, 9]
    consumer.seek_to_timestamp(A, 10**9)
    assert consumer.position(A) == 10


@pytest.mark.parametrize("wrong", [-1, "1", 1.0, True, None])
def test_impossible_places(consumer: Consumer, wrong: Any) -> None:
    for call in (
        lambda: consumer.seek(A, wrong),
        lambda: consumer.seek_to_timestamp(A, wrong),
        lambda: consumer.offsets_for_times({A: wrong}),
    ):
        with pytest.raises(ConfigError):
            call()  # type: ignore[no-untyped-call]
    assert consumer.position(A) == 2


def test_seeking_what_is_not_assigned(consumer: Consumer) -> None:
    consumer.assign([A])
    for call in (
        lambda: consumer.seek(B, 0),
        lambda: consumer.pause(B),
        lambda: consumer.resume(B),
        lambda: consumer.lag(B),
    ):
        with pytest.raises(IllegalStateError) as caught:
            call()  # type: ignore[no-untyped-call]
        assert (caught.value.topic, caught.value.partition) == ("orders", 1)


def test_offsets_for_times(consumer: Consumer) -> None:
    found = consumer.offsets_for_times({A: 1301, B: 0})
    assert found == {A: OffsetAndTimestamp(4, 1400, 0), B: None}
    assert consumer.offsets_for_times({A: 0})[A] == OffsetAndTimestamp(2, 1200, 0), (
        "what is deleted is not found"
    )
    assert consumer.offsets_for_times({A: 99_999}) == {A: None}


def test_pausing(consumer: Consumer) -> None:
    assert consumer.paused() == frozenset()
    consumer.pause(A)
    assert consumer.paused() == {A} and consumer.poll(0.01) == []
    consumer.seek(A, 4)
    assert consumer.poll(0.01) == [] and consumer.position(A) == 4
    consumer.resume(A)
    assert [record.offset for record in consumer.poll(1)] == [4, 5, 6, 7, 8, 9]
    consumer.pause([A, B])  # type: ignore[arg-type]
    assert consumer.paused() == {A, B}
    consumer.resume(A, B)
    assert consumer.paused() == frozenset()


def test_pausing_keeps_what_was_decoded(consumer: Consumer) -> None:
    consumer.poll(1, max_records=2)
    consumer.pause(A)
    assert consumer.poll(0) == []
    consumer.resume(A)
    assert [record.offset for record in consumer.poll(1)] == [4, 5, 6, 7, 8, 9]


def test_assigning_again_keeps_positions_of_what_stays(consumer: Consumer) -> None:
    consumer.poll(1, max_records=3)
    consumer.assign([A])
    assert consumer.position(A) == 5 and consumer.assignment == {A}
    consumer.assign([B])
    consumer.assign([A])
    assert consumer.position(A) == 2, "what came back begins anew"


def test_reading_below_the_start_follows_the_policy(consumer: Consumer, cluster: Cluster) -> None:
    consumer.seek(A, 0)
    assert consumer.poll(1)[0].offset == 2
    strict = cluster.consumer(auto_offset_reset="none")
    strict.assign([A])
    strict.seek(A, 0)
    with pytest.raises(OffsetOutOfRangeError) as caught:
        strict.poll(0)
    assert (caught.value.offset, caught.value.log_start_offset) == (0, 2)


def test_partitions_in_every_spelling() -> None:
    assert checked_partitions([A, ("orders", 1)]) == [A, B]
    assert checked_partitions(A) == [A] and checked_partitions({A: 1}) == [A] and checked_partitions(()) == []
    assert all(type(tp) is TopicPartition for tp in checked_partitions([("orders", 1)]))
