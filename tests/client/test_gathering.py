"""Sorting records into batches: whole columns in, parts out."""

from __future__ import annotations

import random
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog import Cluster
from streamlog.client.gathering import (
    RECORD_OVERHEAD_BYTES,
    Gate,
    TopicBuffer,
    check_headers,
    cut,
    gather,
    record_sizes,
    split_items,
)
from streamlog.config import ProducerConfig, TopicConfig
from streamlog.errors import SerializationError, UnknownTopicOrPartitionError


def buffer_of(cluster: Cluster, partitions: int, **options: Any) -> TopicBuffer:
    cluster.create_topic("t", partitions=partitions)
    image = cluster._backend.topic("t")
    config, gate = ProducerConfig.from_options(options), Gate(1_048_576)
    return TopicBuffer(image, {"t": image}, config, TopicConfig(), random.Random(7), gate, lambda: 0)


def test_pairs_become_columns() -> None:
    assert split_items([(b"a", b"1"), (None, b"2")]) == ([b"a", None], [b"1", b"2"])
    assert split_items([]) == ([], [])


def test_a_tuple_of_another_length_is_shown() -> None:
    with pytest.raises(SerializationError, match="tuple of 3"):
        split_items([(b"a", b"1"), (b"a", b"b", b"c")])


@given(st.lists(st.integers(0, 400), min_size=1, max_size=60), st.integers(0, 1500))
def test_cutting_takes_what_fits_and_at_least_one(sizes: list[int], room: int) -> None:
    values: list[bytes | None] = [b"x" * size for size in sizes]
    ends = list(accumulate(record_sizes([None] * len(values), values)))
    start, seen = 0, []
    while start < len(values):
        end = cut(ends, start, room)
        used = sum(sizes[start:end]) + RECORD_OVERHEAD_BYTES * (end - start)
        assert end > start
        assert used <= room or end == start + 1, "took more than fits"
        assert end == len(values) or used + sizes[end] + RECORD_OVERHEAD_BYTES > room, "left out what fits"
        seen.append(end - start)
        start = end
    assert sum(seen) == len(values)


@given(st.lists(st.tuples(st.none() | st.binary(max_size=9), st.none() | st.binary(max_size=9)), min_size=1))
def test_what_a_record_takes_is_told_also_where_keys_or_values_are_missing(
    pairs: list[tuple[bytes | None, bytes | None]],
) -> None:
    keys, values = [key for key, _ in pairs], [value for _, value in pairs]
    told = record_sizes(keys, values)
    assert told == [RECORD_OVERHEAD_BYTES + len(key or b"") + len(value or b"") for key, value in pairs]
    assert told == [record_sizes([key], [value])[0] for key, value in pairs]


@given(st.lists(st.one_of(st.none(), st.binary(max_size=3)), max_size=80), st.integers(1, 40))
def test_gathering_keeps_every_record_and_its_order(keys: list[bytes | None], partitions: int) -> None:
    import streamlog

    with streamlog.open(":memory:gathering") as cluster:
        if "t" in cluster.topics:
            cluster.delete_topic("t")
        buffer = buffer_of(cluster, partitions)
        values: list[bytes | None] = [b"%d" % number for number in range(len(keys))]
        gathered = gather(buffer, keys, values)
    flat = [value for _, _, part in gathered.parts for value in part]
    order = range(len(keys)) if gathered.order is None else gathered.order
    assert flat == [values[index] for index in order]
    assert sorted(order) == list(range(len(keys)))
    for partition, part_keys, part_values in gathered.parts:
        assert 0 <= partition < partitions
        assert part_values == sorted(part_values, key=lambda value: int(value or b"")), (
            "reordered within a partition"
        )
        assert part_keys == [keys[int(value or b"")] for value in part_values]


def test_batches_stay_below_half_of_what_the_topic_takes(cluster: Cluster) -> None:
    buffer = buffer_of(cluster, 1, batch_size=10_000_000)
    assert buffer.batch_bytes + buffer.large_bytes < 1_048_588 * 0.7
    assert buffer_of.__defaults__ is None and buffer.batch_bytes < 10_000_000


def test_a_retired_buffer_says_look_again(cluster: Cluster) -> None:
    buffer = buffer_of(cluster, 2)
    buffer.retire()
    with pytest.raises(IndexError):
        buffer.batches[1]
    assert buffer.open_batches() == []


def test_chosen_partitions_are_checked(cluster: Cluster) -> None:
    buffer = buffer_of(cluster, 2)
    assert buffer.checked_partition(1) == 1
    with pytest.raises(UnknownTopicOrPartitionError, match="0 to 1"):
        buffer.checked_partition(2)


def test_headers_become_a_tuple_of_pairs() -> None:
    assert check_headers([("a", b"1"), ["b", None]]) == (("a", b"1"), ("b", None))  # type: ignore[list-item]
    assert check_headers({"a": bytearray(b"1")}) == (("a", b"1"),)  # type: ignore[arg-type]
    assert check_headers(iter(())) == ()
