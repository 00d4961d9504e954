"""Admission of batches, views, and loading from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from streamlog.batch import seal_columnar
from streamlog.broker import api
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.partition import load_state
from streamlog.core.replica import ReplicaState
from streamlog.errors import (
    CorruptStoreError,
    InvalidRecordError,
    InvalidTimestampError,
    InvalidTopicError,
    RecordTooLargeError,
)
from streamlog.storage import log
from streamlog.storage.keys import CheckpointKind, checkpoint_key
from tests.broker.builders import batch_of, opened, produce, values_of


def test_a_batch_larger_than_max_message_bytes_is_refused(cluster: BrokerCluster) -> None:
    cluster.create_topic("t", 1, 1, {"max.message.bytes": "200"})
    with pytest.raises(RecordTooLargeError) as caught:
        produce(cluster, "t", 0, b"x" * 200)
    assert (caught.value.allowed_bytes, caught.value.partition) == (200, 0)
    assert produce(cluster, "t", 0, b"x").base_offset == 0


def test_a_compacted_topic_needs_keys(cluster: BrokerCluster) -> None:
    cluster.create_topic("t", 1, 1, {"cleanup.policy": "compact"})
    with pytest.raises(InvalidRecordError) as caught:
        produce(cluster, "t", 0, b"a", b"b", keys=[b"k", None])
    assert caught.value.record_indexes == [1]
    assert values_of(cluster, "t", 0) == []


def test_timestamps_out_of_range_are_refused(cluster: BrokerCluster) -> None:
    cluster.create_topic(
        "t", 1, 1, {"message.timestamp.before.max.ms": "1000", "message.timestamp.after.max.ms": "1000"}
    )
    now_ms = cluster.runtime.clock.wall_ms()
    for wrong in (now_ms - 60_000, now_ms + 60_000):
        with pytest.raises(InvalidTimestampError) as caught:
            produce(cluster, "t", 0, b"a", timestamp=wrong)
        assert caught.value.timestamp == wrong
    produce(cluster, "t", 0, b"a", timestamp=now_ms)


def test_one_record_too_old_refuses_its_batch_wherever_it_stands(cluster: BrokerCluster) -> None:
    cluster.create_topic("t", 1, 1, {"message.timestamp.before.max.ms": "1000"})
    now_ms = cluster.runtime.clock.wall_ms()
    batch = seal_columnar(None, [b"now", b"old", b"now"], timestamps=[now_ms, now_ms - 60_000, now_ms])
    [produced] = cluster.broker.call(api.Produce([("t", 0, batch)]))
    assert isinstance(produced.error, InvalidTimestampError)
    assert produced.error.timestamp == now_ms - 60_000 and produced.error.record_indexes == [1]
    assert values_of(cluster, "t", 0) == []


def test_log_append_time_replaces_the_producers(cluster: BrokerCluster) -> None:
    cluster.create_topic("t", 1, 1, {"message.timestamp.type": "LogAppendTime"})
    produced = produce(cluster, "t", 0, b"a", timestamp=5)
    assert produced.log_append_time > 5
    [batch] = cluster.broker.reader.read(cluster.partition("t", 0), 0, 100)[1]
    assert batch.records("t", 0)[0].timestamp == produced.log_append_time


def test_internal_topics_are_closed_to_clients(cluster: BrokerCluster) -> None:
    cluster.ensure_offsets_topic()
    with pytest.raises(InvalidTopicError):
        produce(cluster, "__consumer_offsets", 0, b"x")


def test_one_entry_that_is_refused_does_not_hold_up_the_others(cluster: BrokerCluster) -> None:
    cluster.create_topic("t", 2, 1, {"max.message.bytes": "300"})
    results = cluster.broker.call(
        api.Produce(
            [
                ("t", 0, batch_of(b"a")),
                ("t", 1, batch_of(b"x" * 900)),
                ("gone", 0, batch_of(b"c")),
                ("t", 1, batch_of(b"d")),
            ]
        )
    )
    assert [result.base_offset for result in results] == [0, -1, -1, 0]
    assert [type(result.error).__name__ for result in results] == [
        "NoneType", "RecordTooLargeError", "UnknownTopicOrPartitionError", "NoneType"
    ]  # fmt: skip


def test_a_partition_that_stopped_serving_stays_so(cluster: BrokerCluster) -> None:
    cluster.create_topic("t", 1, 1, {})
    partition = cluster.partition("t", 0)
    listener = cluster.listener()
    listener.subscribe(partition, None), listener.take()
    partition.stop_serving()
    assert partition.view is None and listener.take() is not None, "whoever waits is told"
    partition.publish(ReplicaState(0, 1, 1))
    assert partition.view is None and partition.state.log_end_offset == 1


def test_a_state_survives_its_checkpoint(cluster: BrokerCluster) -> None:
    cluster.create_topic("t", 1, 1, {})
    for value in (b"a", b"b", b"c"):
        produce(cluster, "t", 0, value)
    partition = cluster.partition("t", 0)
    state, is_untrimmed = load_state(cluster.broker.environment, partition.log_id, 0)
    assert (state, is_untrimmed) == (partition.state, False)


def test_a_log_never_written_to_is_empty(cluster: BrokerCluster) -> None:
    assert load_state(cluster.broker.environment, 12_345, 3) == (ReplicaState(leader_epoch=3), False)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("log_end_offset", 2),
        ("log_end_offset", 1 << 40),
        ("high_watermark", 1 << 40),
        ("log_start_offset", 1 << 40),
        ("max_timestamp", 3),
        ("missing", 0),
        ("torn", 0),
    ],
)
def test_a_checkpoint_that_the_newest_batch_contradicts_is_built_anew(
    cluster: BrokerCluster, field: str, wrong: int
) -> None:
    """It is a cache. An append behind a wrong end would overwrite what was acknowledged."""
    cluster.create_topic("t", 1, 1, {})
    for value in (b"a", b"b", b"c"):
        produce(cluster, "t", 0, value, timestamp=7)
    partition, environment = cluster.partition("t", 0), cluster.broker.environment
    checkpoint = log.LogCheckpoint(0, 3, 3, partition.state.size_bytes, 7, 0)
    transaction = environment.write()
    if field in ("missing", "torn"):
        transaction.delete(checkpoint_key(partition.log_id, CheckpointKind.LOG))
        if field == "torn":
            transaction.put(checkpoint_key(partition.log_id, CheckpointKind.LOG), b"?")
    else:
        log.put_checkpoint(
            transaction, partition.log_id, msgspec.structs.replace(checkpoint, **{field: wrong})
        )
    transaction.commit()
    assert load_state(environment, partition.log_id, 0) == (partition.state, False)


def test_a_senseless_checkpoint_without_a_batch_is_an_error(cluster: BrokerCluster) -> None:
    """Nothing tells where such a log ended: to begin at 0 would give offsets out twice."""
    transaction = cluster.broker.environment.write()
    log.put_checkpoint(transaction, 99, log.LogCheckpoint(5, 4, 4))
    transaction.commit()
    with pytest.raises(CorruptStoreError, match="log 99"):
        load_state(cluster.broker.environment, 99, 0)


def test_batches_a_crash_left_below_the_start_are_noticed_and_deleted(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    for value in (b"a", b"b", b"c"):
        produce(cluster, "t", 0, value)
    log_id = cluster.partition("t", 0).log_id
    cluster.broker.deletions.stage_slice = lambda turn: None  # type: ignore[method-assign]  # the crash comes first
    cluster.delete_records("t", 0, 2)
    cluster.close()
    cluster = opened(tmp_path / "c")
    assert load_state(cluster.broker.environment, log_id, 0)[1]
    produce(cluster, "t", 0, b"d")
    assert values_of(cluster, "t", 0) == [(2, b"c"), (3, b"d")]
    broker = cluster.broker
    while broker.deletions.trimming or not _is_trimmed(cluster, log_id):
        broker.advance()
    assert cluster.partition("t", 0).state.size_bytes == sum(
        b.size_bytes for b in broker.reader.read(cluster.partition("t", 0), 2, 9999)[1]
    )
    cluster.close()


def _is_trimmed(cluster: BrokerCluster, log_id: int) -> bool:
    with cluster.broker.environment.snapshot() as snapshot:
        first = next(log.iterate_headers(snapshot, log_id), None)
    return first is not None and first.header.last_offset >= 2
