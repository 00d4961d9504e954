"""Reads beside the turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamlog.broker import api
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.partition import Partition
from streamlog.broker.reading import end_for, same_log, view_of
from streamlog.core.replica import ReplicaState
from streamlog.errors import (
    IllegalStateError,
    NotLeaderOrFollowerError,
    OffsetOutOfRangeError,
    ReadersFullError,
)
from tests.broker.builders import in_thread, opened, produce, values_of


@pytest.fixture
def filled(cluster: BrokerCluster) -> BrokerCluster:
    cluster.create_topic("t", 1, 1, {})
    for number in range(10):
        produce(cluster, "t", 0, b"%d" % number, timestamp=1_000_000 + number)
    return cluster


def test_reading_returns_whole_batches_and_at_least_one(filled: BrokerCluster) -> None:
    partition = filled.partition("t", 0)
    view, batches = filled.broker.reader.read(partition, 3, 1)
    assert [batch.last_offset for batch in batches] == [3] and view is partition.view
    assert len(filled.broker.reader.read(partition, 0, 1 << 20)[1]) == 10


def test_the_end_is_empty_beyond_is_an_error(filled: BrokerCluster) -> None:
    partition = filled.partition("t", 0)
    assert filled.broker.reader.read(partition, 10, 100)[1] == []
    for wrong in (-1, 11):
        with pytest.raises(OffsetOutOfRangeError) as caught:
            filled.broker.reader.read(partition, wrong, 100)
        assert (caught.value.offset, caught.value.log_start_offset, caught.value.log_end_offset) == (
            wrong,
            0,
            10,
        )
    filled.delete_records("t", 0, 4)
    with pytest.raises(OffsetOutOfRangeError):
        filled.broker.reader.read(partition, 3, 100)


def test_offsets_for_timestamps(filled: BrokerCluster) -> None:
    partition, reader = filled.partition("t", 0), filled.broker.reader
    assert reader.offset_for_timestamp(partition, 1_000_004).offset == 4  # type: ignore[union-attr]
    assert reader.offset_for_timestamp(partition, 2_000_000) is None
    filled.delete_records("t", 0, 6)
    assert reader.offset_for_timestamp(partition, 0).offset == 6  # type: ignore[union-attr]


def test_same_log() -> None:
    view = ReplicaState(1, 5, 5, 2, 100, 7, 3)
    assert same_log(view, view) and same_log(view, ReplicaState(1, 9, 9, 2, 200, 8, 3))
    assert not same_log(view, None)
    for other in (
        ReplicaState(2, 5, 5, 2, 0, 0, 3),
        ReplicaState(1, 5, 5, 3, 0, 0, 3),
        ReplicaState(1, 5, 5, 2, 0, 0, 4),
    ):
        assert not same_log(view, other)


def test_committed_reads_end_at_the_last_stable_offset() -> None:
    view = ReplicaState(0, 5, 7)
    assert (
        end_for(view, "read_uncommitted") == 5 and end_for(view, "read_committed") == view.last_stable_offset
    )


def test_a_partition_not_served_is_named(filled: BrokerCluster) -> None:
    partition = filled.partition("t", 0)
    partition.stop_serving()
    with pytest.raises(NotLeaderOrFollowerError) as caught:
        view_of(partition)
    assert (caught.value.topic, caught.value.partition) == ("t", 0)


def test_no_snapshot_outlives_the_call_whatever_it_raises(filled: BrokerCluster) -> None:
    partition, readers = filled.partition("t", 0), filled.broker.environment._readers
    filled.broker.reader.read(partition, 0, 100)
    with pytest.raises(OffsetOutOfRangeError):
        filled.broker.reader.read(partition, 99, 100)
    assert len(readers) == 0


def test_readers_full_is_named_and_passes(tmp_path_factory: pytest.TempPathFactory) -> None:
    cluster = opened(tmp_path_factory.mktemp("c"), max_readers=8)
    cluster.create_topic("t", 1, 1, {})
    produce(cluster, "t", 0, b"a")
    partition, held = cluster.partition("t", 0), []
    with pytest.raises(ReadersFullError):
        for _ in range(1_000):
            held.append(cluster.broker.environment.snapshot())
    with pytest.raises(ReadersFullError):
        cluster.broker.reader.read(partition, 0, 100)
    for snapshot in held:
        snapshot.close()
    assert values_of(cluster, "t", 0) == [(0, b"a")]
    cluster.close()


def test_reading_while_the_log_is_cut_at_both_ends(filled: BrokerCluster) -> None:
    """What a reader gets always belongs to one view: values fit their offsets, nothing below the start."""
    partition, stop = filled.partition("t", 0), []

    def read() -> int:
        rounds = 0
        while not stop or rounds < 50:
            view = view_of(partition)
            try:
                view, batches = filled.broker.reader.read(partition, view.log_start_offset, 1 << 20)
            except OffsetOutOfRangeError:
                continue
            offsets = [
                record.offset for batch in batches for record in batch.records("t", 0, view.log_start_offset)
            ]
            assert offsets == list(range(view.log_start_offset, view.high_watermark))
            rounds += 1
        return rounds

    reading = [in_thread(read) for _ in range(2)]
    for number in range(60):
        produce(filled, "t", 0, b"more", b"and more")
        end = view_of(partition).log_end_offset
        if number % 3 == 0:
            filled.delete_records("t", 0, end - 5)
        if number % 5 == 0:
            filled.broker.call(api.TruncateTail("t", 0, end - 2))
    stop.append(True)
    for thread in reading:
        assert thread.result() >= 50


def test_a_truncation_that_cannot_be_applied_does_not_keep_readers_trying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its new view is there readers look again; a broker that broke never publishes it."""
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    for number in range(4):
        produce(cluster, "t", 0, b"%d" % number)
    partition = cluster.partition("t", 0)

    def broken(self: object, state: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(Partition, "publish", broken)
    with pytest.raises(IllegalStateError):
        cluster.broker.call(api.TruncateTail("t", 0, 2))
    with pytest.raises(NotLeaderOrFollowerError):
        in_thread(lambda: cluster.broker.reader.read(partition, 0, 100)).result()
    cluster.close()
    cluster = opened(tmp_path / "c")
    monkeypatch.undo()
    assert [offset for offset, _ in values_of(cluster, "t", 0)] == [0, 1]
    cluster.close()
