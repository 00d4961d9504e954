"""SEMANTICS 3.8 sentence by sentence, seen by a consumer. The log's own part is in test_offset_lookup.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

import streamlog
from streamlog import Cluster, Consumer, OffsetAndTimestamp, TopicPartition
from streamlog.broker import api
from streamlog.errors import ConfigError, NoOffsetForPartitionError, OffsetOutOfRangeError

TP = TopicPartition("t", 0)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with streamlog.open(":memory:", sync="off") as cluster:
        cluster.create_topic("t")
        yield cluster


def send(cluster: Cluster, *timestamps: int, topic: str = "t") -> None:
    """One batch."""
    with cluster.producer(linger_ms=10_000) as producer:
        for timestamp in timestamps:
            producer.send(topic, b"x", key=b"%d" % timestamp, timestamp=timestamp)


def consumer(cluster: Cluster, **options: Any) -> Consumer:
    made = cluster.consumer(**options)
    made.assign([TP])
    return made


# -- 1. specials -------------------------------------------------------------------------------------------


def test_1_latest_is_the_high_watermark_and_earliest_the_log_start(cluster: Cluster) -> None:
    send(cluster, 10, 30, 20, 40)
    cluster.topic("t")[0].delete_records(1)
    for isolation_level in ("read_uncommitted", "read_committed"):
        one = consumer(cluster, isolation_level=isolation_level)
        assert one.end_offsets([TP]) == {TP: 4} and one.beginning_offsets([TP]) == {TP: 1}
        one.seek_to_end()
        assert one.position(TP) == 4
        one.seek_to_beginning()
        assert one.position(TP) == 1


# -- 2. by time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timestamp", "offset"), [(0, 0), (10, 0), (15, 1), (25, 1), (30, 1), (35, 3), (40, 3), (41, None)]
)
def test_2_the_first_in_offset_order_that_is_not_older(
    cluster: Cluster, timestamp: int, offset: int | None
) -> None:
    send(cluster, 10, 30, 20, 40)
    found = consumer(cluster).offsets_for_times({TP: timestamp})[TP]
    assert (found and found.offset) == offset


def test_2_at_or_behind_the_log_start(cluster: Cluster) -> None:
    send(cluster, 10, 30, 20, 40)
    cluster.topic("t")[0].delete_records(2)
    assert consumer(cluster).offsets_for_times({TP: 5}) == {TP: OffsetAndTimestamp(2, 20, 0)}


def test_2_none_is_null(cluster: Cluster) -> None:
    assert consumer(cluster).offsets_for_times({TP: 0}) == {TP: None}
    send(cluster, 10)
    assert consumer(cluster).offsets_for_times({TP: 11}) == {TP: None}


def test_2_log_append_time_applies_to_all_records(cluster: Cluster) -> None:
    cluster.topic("t").alter_config({"message.timestamp.type": "LogAppendTime"})
    send(cluster, 10, 30, 20)
    stamped = cluster.topic("t")[0].read()[0].timestamp
    one = consumer(cluster)
    assert one.offsets_for_times({TP: stamped}) == {TP: OffsetAndTimestamp(0, stamped, 0)}
    assert one.offsets_for_times({TP: 10}) == {TP: OffsetAndTimestamp(0, stamped, 0)}
    assert one.offsets_for_times({TP: stamped + 1}) == {TP: None}


def test_2_negative_times_are_refused(cluster: Cluster) -> None:
    with pytest.raises(ConfigError):
        consumer(cluster).offsets_for_times({TP: -1})


# -- 3. the log start --------------------------------------------------------------------------------------


def test_3_the_log_start_moves_within_a_batch_and_what_is_below_is_invisible_at_once(
    cluster: Cluster,
) -> None:
    send(cluster, 10, 30, 20, 40)
    size = cluster.topic("t")[0].size_bytes
    cluster.topic("t")[0].delete_records(3)
    assert [record.offset for record in consumer(cluster).poll(1)] == [3]
    assert cluster.topic("t")[0].size_bytes == size, (
        "the batch is still there, with what it holds below the start"
    )
    one = consumer(cluster)
    one.seek(TP, 1)
    assert [record.offset for record in one.poll(1)] == [3]


# -- 4. auto.offset.reset ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "position"), [("earliest", 1), ("latest", 4)])
def test_4_it_runs_when_nothing_is_committed(cluster: Cluster, policy: str, position: int) -> None:
    send(cluster, 10, 30, 20, 40)
    cluster.topic("t")[0].delete_records(1)
    for options in ({}, {"group_id": "g"}):
        assert consumer(cluster, auto_offset_reset=policy, **options).position(TP) == position


@pytest.mark.parametrize("outside", [0, 99])
@pytest.mark.parametrize(("policy", "offsets"), [("earliest", [1, 2, 3]), ("latest", [])])
def test_4_it_runs_when_the_position_is_out_of_range_on_either_side(
    cluster: Cluster, outside: int, policy: str, offsets: list[int]
) -> None:
    send(cluster, 10, 30, 20, 40)
    cluster.topic("t")[0].delete_records(1)
    one = consumer(cluster, auto_offset_reset=policy)
    one.seek(TP, outside)
    assert [record.offset for record in one.poll(0)] == offsets
    assert one.position(TP) == 4
    cluster.consumer(group_id="g").commit({TP: outside})
    assert [
        record.offset for record in consumer(cluster, auto_offset_reset=policy, group_id="g").poll(0)
    ] == offsets


def test_4_it_does_not_run_when_a_seek_gave_a_valid_one(cluster: Cluster) -> None:
    send(cluster, 10, 30, 20, 40)
    for policy in ("earliest", "latest", "none"):
        one = consumer(cluster, auto_offset_reset=policy)
        for offset in (2, 4):
            one.seek(TP, offset)
            assert [record.offset for record in one.poll(0)] == list(range(offset, 4))


def test_4_none_raises(cluster: Cluster) -> None:
    send(cluster, 10)
    with pytest.raises(NoOffsetForPartitionError):
        consumer(cluster, auto_offset_reset="none", group_id="g").poll(0)
    one = consumer(cluster, auto_offset_reset="none")
    one.seek(TP, 7)
    with pytest.raises(OffsetOutOfRangeError):
        one.poll(0)


def test_4_latest_resolves_at_the_first_poll_not_before(cluster: Cluster) -> None:
    send(cluster, 10)
    one = consumer(cluster, auto_offset_reset="latest")
    send(cluster, 20)
    assert one.poll(0) == []
    send(cluster, 30)
    assert [record.offset for record in one.poll(1)] == [2]
    member = cluster.consumer_group("g", ["t"], auto_offset_reset="latest").consumer()
    send(cluster, 40)
    assert member.poll(0) == []
    send(cluster, 50)
    assert [record.offset for record in member.poll(1)] == [4]


def test_4_latest_skips_the_first_records_of_new_partitions(cluster: Cluster) -> None:
    member = cluster.consumer_group("g", ["t"], auto_offset_reset="latest").consumer()
    member.poll(0)
    cluster.topic("t").add_partitions(2)
    with cluster.producer() as producer:
        producer.send("t", b"skipped", partition=1)
    got = [record for _ in range(4) for record in member.poll(0)]
    with cluster.producer() as producer:
        producer.send("t", b"seen", partition=1)
    got += [record for _ in range(4) for record in member.poll(0.05)]
    assert [record.value for record in got] == [b"seen"]


def test_4_by_duration_looks_up_now_minus_so_long(cluster: Cluster) -> None:
    now_ms = time.time_ns() // 1_000_000
    send(cluster, now_ms - 7_200_000, now_ms - 1_800_000, now_ms)
    assert [record.offset for record in consumer(cluster, auto_offset_reset="by_duration:PT1H").poll(1)] == [
        1,
        2,
    ]
    assert [record.offset for record in consumer(cluster, auto_offset_reset="by_duration:P1D").poll(1)] == [
        0,
        1,
        2,
    ]


def test_4_by_duration_without_such_a_record_asks_again_each_poll(cluster: Cluster) -> None:
    now_ms = time.time_ns() // 1_000_000
    send(cluster, now_ms - 7_200_000)
    for position in (None, 99):
        one = consumer(cluster, auto_offset_reset="by_duration:PT1H")
        if position is not None:
            one.seek(TP, position)
        began = time.thread_time()
        assert one.poll(0.2) == [] and one.poll(0) == []
        assert time.thread_time() - began < 0.1, "waits instead of spinning"
        before = cluster.topic("t")[0].high_watermark
        send(cluster, now_ms - 7_200_000, time.time_ns() // 1_000_000)
        assert [record.offset for record in one.poll(1)] == [before + 1], (
            "not silently `latest`, not `earliest`"
        )
        cluster.topic("t")[0].delete_records(-1)


def test_4_by_duration_does_not_fall_back_on_a_commit_that_is_out_of_range(cluster: Cluster) -> None:
    send(cluster, 10)
    cluster.consumer(group_id="g").commit({TP: 99})
    one = consumer(cluster, auto_offset_reset="by_duration:PT1H", group_id="g")
    assert one.poll(0) == [] == one.poll(0)
    send(cluster, time.time_ns() // 1_000_000)
    assert [record.offset for record in one.poll(1)] == [1]


# -- 5. committed, paused, beyond the end ------------------------------------------------------------------


def test_5_committed_0_is_not_nothing_committed(cluster: Cluster) -> None:
    send(cluster, 10, 20)
    one = consumer(cluster, group_id="g", auto_offset_reset="latest")
    assert one.committed(TP) is None
    one.commit({TP: 0})
    assert one.committed(TP) == 0
    assert consumer(cluster, group_id="g", auto_offset_reset="latest").position(TP) == 0


def test_5_the_position_survives_pause(cluster: Cluster) -> None:
    send(cluster, 10, 20, 30)
    one = consumer(cluster)
    one.poll(1, max_records=1)
    one.pause(TP)
    assert one.position(TP) == 1 and one.poll(0) == [] and one.position(TP) == 1
    one.resume(TP)
    assert [record.offset for record in one.poll(1)] == [1, 2]


def test_5_a_seek_beyond_the_end_fires_the_policy_at_the_poll(cluster: Cluster) -> None:
    send(cluster, 10)
    one = consumer(cluster)
    one.seek(TP, 5)
    assert one.position(TP) == 5
    assert [record.offset for record in one.poll(1)] == [0]


# -- 6. whole batches --------------------------------------------------------------------------------------


def test_6_records_below_the_position_are_dropped(cluster: Cluster) -> None:
    send(cluster, 10, 30, 20, 40)
    one = consumer(cluster)
    one.seek(TP, 2)
    assert [record.offset for record in one.poll(1)] == [2, 3]


@pytest.fixture
def gaps(cluster: Cluster) -> Cluster:
    """A compacted topic of batches [a0 b1], [a2 b3], [a4 b5 a6], where only b5 and a6, or what cleaning
    leaves, survive.
    """
    cluster.create_topic("c", config={"cleanup.policy": "compact", "min.cleanable.dirty.ratio": 0})
    for batch in ((b"a", b"b"), (b"a", b"b"), (b"a", b"b", b"a"), (b"z",)):
        with cluster.producer(linger_ms=10_000) as producer:
            for key in batch:
                producer.send("c", b"x", key=key)
    cluster.clean()
    return cluster


def test_6_the_position_after_a_poll_is_behind_the_batch_though_its_tail_is_gone(gaps: Cluster) -> None:
    tp = TopicPartition("c", 0)
    one = gaps.consumer(max_partition_fetch_bytes=1)
    one.assign([tp])
    got = []
    while one.position(tp) < 8:
        got += [record.offset for record in one.poll(1)]
    assert got == [5, 6, 7] and one.position(tp) == 8 and one.lag(tp) == 0


def test_6_lag_reaches_0_over_trailing_control_batches(cluster: Cluster) -> None:
    send(cluster, 10)
    [produced] = cluster._backend.broker.call(api.WriteMarkers(7, 1, 0, True, [("t", 0)]))
    assert produced.error is None
    group = cluster.consumer_group("g", ["t"], stop_at_end=True)
    with group.consumer() as one:
        assert [record.offset for record in one] == [0]
        assert one.position(TP) == 2
    assert group.lag() == {TP: 0}
    only_markers = cluster.consumer_group("h", ["t"])
    with only_markers.consumer() as one:
        one.poll(0)
        one.seek(TP, 1)
        assert one.poll(0) == [] and one.position(TP) == 2
        one.commit()
    assert only_markers.lag() == {TP: 0}


# -- 7. gaps -----------------------------------------------------------------------------------------------


def test_7_an_offset_gap_is_not_loss(gaps: Cluster) -> None:
    tp = TopicPartition("c", 0)
    one = gaps.consumer(stop_at_end=True)
    one.assign([tp])
    newest = {record.key: record.offset for record in one}
    assert newest == {b"b": 5, b"a": 6, b"z": 7}
    for offset in range(9):
        one.seek(tp, offset)
        assert [record.offset for record in one.poll(0)] == [at for at in (5, 6, 7) if at >= offset]
