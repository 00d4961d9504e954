"""A flipped bit in a stored batch: a named error with the place and the way on; everything else stays
readable.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog import TopicPartition
from streamlog.batch import HEADER_BYTES
from streamlog.errors import CorruptRecordError
from streamlog.storage.keys import BATCH_START, pack_key

T0 = TopicPartition("t", 0)
BATCHES, RECORDS = 5, 4
"""Offsets 0-3, 4-7, 8-11, 12-15, 16-19."""


@pytest.fixture
def cluster() -> Iterator[streamlog.Cluster]:
    with streamlog.open(":memory:") as cluster:
        assert isinstance(cluster, streamlog.Cluster)
        cluster.create_topic("t", partitions=2)
        with cluster.producer() as producer:
            for batch in range(BATCHES):
                for number in range(batch * RECORDS, batch * RECORDS + RECORDS):
                    producer.send("t", b"value %d" % number, partition=0)
                producer.flush()
            producer.send("t", b"other", partition=1)
        yield cluster


def stored_key(cluster: Any, last_offset: int) -> bytes:
    return pack_key(cluster._backend.partition("t", 0).log_id, last_offset)


def flip(cluster: Any, last_offset: int, position: int, bit: int = 0) -> None:
    """Flip one bit of the stored value of the batch that ends at an offset; `position` counts from the
    batch's start.
    """
    environment = cluster._backend.broker.environment
    key = stored_key(cluster, last_offset)
    with environment.snapshot() as snapshot:
        value = bytearray(snapshot.get(key))
    value[BATCH_START + position if position >= 0 else position] ^= 1 << bit
    transaction = environment.write()
    transaction.put(key, bytes(value))
    transaction.commit()


def offsets(records: list[streamlog.Record]) -> list[int]:
    return [record.offset for record in records]


def check_facts(error: CorruptRecordError, offset: int = 8, next_offset: int = 12) -> None:
    facts = error.facts
    assert (facts["topic"], facts["partition"], facts["offset"], facts["next_offset"]) == (
        "t",
        0,
        offset,
        next_offset,
    )
    assert error.next_offset == next_offset
    assert f"next_offset={next_offset}" in str(error) and "t-0" in str(error)


def test_poll_hands_out_what_is_before_then_says_where_it_is(cluster: streamlog.Cluster) -> None:
    flip(cluster, 11, -1)
    with cluster.consumer() as consumer:
        consumer.assign([T0, ("t", 1)])
        before: list[streamlog.Record] = []
        with pytest.raises(CorruptRecordError) as caught:
            while True:
                records = consumer.poll(1)
                assert records
                before += records
        check_facts(caught.value)
        assert sorted(offsets([r for r in before if r.partition == 0])) == list(range(8))
        assert [record.value for record in before if record.partition == 1] == [b"other"]
        assert consumer.position(T0) == 8, "the position has not moved"
        with pytest.raises(CorruptRecordError):
            consumer.poll(1)
        consumer.seek(T0, caught.value.next_offset)
        assert offsets(consumer.poll(1)) == list(range(12, 20))


def test_the_rest_stays_readable_while_it_is_not_skipped(cluster: streamlog.Cluster) -> None:
    """A consumer with several partitions hears of the damage and still gets the others' news."""
    flip(cluster, 3, -1)
    with cluster.consumer() as consumer, cluster.producer(linger_ms=0) as producer:
        consumer.assign([T0, ("t", 1)])
        got: list[bytes | None] = []
        for number in range(5):
            producer.send("t", b"%d" % number, partition=1).result(5)
            for _ in range(3):
                try:
                    got += [record.value for record in consumer.poll(0)]
                except CorruptRecordError as error:
                    check_facts(error, 0, 4)
        assert got == [b"other", b"0", b"1", b"2", b"3", b"4"]


def test_iterating_raises_behind_the_last_good_record(cluster: streamlog.Cluster) -> None:
    flip(cluster, 11, -1)
    consumer = cluster.consumer(stop_at_end=True)
    consumer.assign([T0])
    seen: list[int] = []
    with pytest.raises(CorruptRecordError) as caught:
        for record in consumer:
            seen.append(record.offset)
    check_facts(caught.value)
    assert seen == list(range(8))
    consumer.seek(T0, caught.value.next_offset)
    assert offsets(list(consumer)) == list(range(12, 20))


def test_a_group_member_stops_before_it_and_commits_only_what_it_had(cluster: streamlog.Cluster) -> None:
    flip(cluster, 11, -1)
    group = cluster.consumer_group("g", ["t"])
    with pytest.raises(CorruptRecordError) as caught, group.consumer() as consumer:
        while True:
            consumer.poll(1)
            consumer.commit()
    assert group.offsets()[T0] == 8
    group.reset_offsets({T0: caught.value.next_offset})
    with group.consumer(stop_at_end=True) as consumer:
        assert offsets([record for record in consumer if record.partition == 0]) == list(range(12, 20))


def test_partition_read(cluster: streamlog.Cluster) -> None:
    flip(cluster, 11, -1)
    partition = cluster.topic("t")[0]
    assert offsets(partition.read(0, 100)) == list(range(8)), "what is whole comes first"
    for offset in (8, 9, 11):
        with pytest.raises(CorruptRecordError) as caught:
            partition.read(offset, 100)
        check_facts(caught.value, offset)
    assert offsets(partition.read(caught.value.next_offset)) == list(range(12, 20))


def test_a_reader_beside_sees_the_same(cluster: streamlog.Cluster) -> None:
    flip(cluster, 11, -1)
    with streamlog.open(cluster.path, mode="r") as reader:
        with pytest.raises(CorruptRecordError) as caught:
            reader.topic("t")[0].read(8)
        check_facts(caught.value)
        report = reader.verify()
    [problem] = report.problems
    assert (problem.topic, problem.partition, problem.offset, problem.what) == (
        "t",
        0,
        11,
        "the batch is corrupt",
    )


def test_offsets_for_times_over_a_damaged_header(cluster: streamlog.Cluster) -> None:
    flip(cluster, 11, 8, 7)  # the length
    with cluster.consumer() as consumer:
        consumer.assign([T0])
        with pytest.raises(CorruptRecordError) as caught:
            for when in range(0, 2**62, 2**61):
                consumer.offsets_for_times({T0: when})
            consumer.offsets_for_times({T0: 2**62})
            cluster.topic("t")[0].read(8)
        assert caught.value.facts["next_offset"] == 12


def test_a_bit_that_makes_a_marker_of_a_batch_does_not_hide_it(cluster: streamlog.Cluster) -> None:
    """Control batches are stepped over, but not unread."""
    flip(cluster, 11, 22, 5)
    with cluster.consumer() as consumer:
        consumer.assign([T0])
        assert offsets(consumer.poll(0)) == list(range(8))
        with pytest.raises(CorruptRecordError) as caught:
            consumer.poll(0)
    check_facts(caught.value)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_no_flipped_bit_is_ever_handed_out(codec: str) -> None:
    """Every byte of a batch: an error with the way on, or - the leader's epoch lies outside the CRC - the
    same records.
    """
    with streamlog.open(":memory:") as cluster:
        assert isinstance(cluster, streamlog.Cluster)
        cluster.create_topic("t")
        with cluster.producer(compression=codec) as producer:
            for _ in range(3):
                for number in range(RECORDS):
                    producer.send(
                        "t", b"value %d" % number, key=b"k", headers=[("h", b"x")], timestamp=1000 + number
                    )
                producer.flush()
        partition = cluster.topic("t")[0]
        want = partition.read(4, 4)
        environment = cluster._backend.broker.environment
        with environment.snapshot() as snapshot:
            size = len(snapshot.get(stored_key(cluster, 7)) or b"") - BATCH_START
        for position in range(size):
            flip(cluster, 7, position, position % 8)
            for check_crcs in (True, False):
                with cluster.consumer(check_crcs=check_crcs) as consumer:
                    consumer.assign([T0])
                    consumer.seek(T0, 4)
                    try:
                        got = consumer.poll(0)
                    except CorruptRecordError as error:
                        check_facts(error, 4, 8)
                        consumer.seek(T0, error.facts["next_offset"])  # type: ignore[arg-type]
                        got = consumer.poll(0)
                        assert offsets(got) == [8, 9, 10, 11]
                        continue
                    if check_crcs:
                        assert 12 <= position < 16, f"byte {position} was believed"
                        assert got[:4] == want
            flip(cluster, 7, position, position % 8)
        assert size > HEADER_BYTES and partition.read(4, 4) == want


def test_compaction_stops_at_damage_and_loses_nothing(cluster: streamlog.Cluster) -> None:
    """The cleaner must not take a batch it cannot read for empty."""
    cluster.create_topic("c", config={"cleanup.policy": "compact"})
    with cluster.producer() as producer:
        for number in range(8):
            producer.send("c", b"%d" % number, key=b"k")
            producer.flush()
    environment, log_id = cluster._backend.broker.environment, cluster._backend.partition("c", 0).log_id
    with environment.snapshot() as snapshot:
        value = bytearray(snapshot.get(pack_key(log_id, 3)) or b"")
    value[-1] ^= 1
    transaction = environment.write()
    transaction.put(pack_key(log_id, 3), bytes(value))
    transaction.commit()
    with pytest.raises(CorruptRecordError):
        cluster.clean()
    with pytest.raises(CorruptRecordError) as caught:
        cluster.topic("c")[0].read(3)
    assert caught.value.facts["next_offset"] == 4
    assert offsets(cluster.topic("c")[0].read(4)) == [4, 5, 6, 7]


def test_the_error_survives_pickling(cluster: streamlog.Cluster, tmp_path: Path) -> None:
    import pickle

    flip(cluster, 3, -1)
    with pytest.raises(CorruptRecordError) as caught:
        cluster.topic("t")[0].read()
    check_facts(pickle.loads(pickle.dumps(caught.value)), 0, 4)


def test_producers_and_retention_go_on_over_a_damaged_oldest_header(cluster: streamlog.Cluster) -> None:
    """Retention by size rides along with appends: damage at the head must not make every append fail."""
    cluster.topic("t").alter_config({"retention.bytes": 700})
    flip(cluster, 3, 16)  # the magic
    with cluster.producer() as producer:
        for _ in range(20):
            producer.send("t", b"v" * 50, partition=0).result(10)
    assert cluster.topic("t")[0].log_start_offset > 4
    assert [record.value for record in cluster.topic("t")[0].read()][-1] == b"v" * 50
