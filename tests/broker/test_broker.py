"""One broker: partitions, deletions of topics, refreshes, orphans, flushing, closing, and its own thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamlog.broker import api
from streamlog.broker import broker as broker_module
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.turn import Tick
from streamlog.broker.upkeep import DropTopic, RaiseLogStart, RefreshTopic, SaveCleanerCheckpoint, TrimHead
from streamlog.errors import (
    ClosedError,
    CorruptStoreError,
    OffsetOutOfRangeError,
    StorageError,
    UnknownTopicOrPartitionError,
)
from streamlog.storage import cleaner, log
from tests.broker.builders import batch_of, in_thread, opened, produce, values_of
from tests.waiting import until


@pytest.fixture
def cluster(tmp_path: Path) -> Any:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 2, 1, {})
    yield cluster
    cluster.close()


def test_a_partition_is_loaded_once(cluster: BrokerCluster) -> None:
    loaded = [in_thread(lambda: cluster.partition("t", 1)) for _ in range(8)]
    assert len({id(thread.result()) for thread in loaded}) == 1
    for name, number in (("nope", 0), ("t", 2), ("t", -1)):
        with pytest.raises(UnknownTopicOrPartitionError):
            cluster.partition(name, number)


def test_several_batches_of_one_turn_follow_each_other(cluster: BrokerCluster) -> None:
    requests = [cluster.broker.enqueue(api.Produce([("t", 0, batch_of(b"%d" % n, b"-"))])) for n in range(3)]
    cluster.broker.advance()
    assert [request.result()[0].base_offset for request in requests] == [0, 2, 4]
    assert [value for _, value in values_of(cluster, "t", 0)] == [b"0", b"-", b"1", b"-", b"2", b"-"]


def test_requests_about_one_partition_keep_their_order_within_a_turn(cluster: BrokerCluster) -> None:
    """Append, cut, append, delete, append: each sees what the ones before it staged."""
    broker = cluster.broker
    posted = [
        broker.enqueue(api.Produce([("t", 0, batch_of(b"a", b"b"))])),
        broker.enqueue(api.TruncateTail("t", 0, 0)),
        broker.enqueue(api.Produce([("t", 0, batch_of(b"c", b"d", b"e"))])),
        broker.enqueue(api.DeleteRecords("t", 0, 1)),
        broker.enqueue(api.Produce([("t", 0, batch_of(b"f"))])),
    ]
    broker.advance()
    for pending in posted:
        broker.wait(pending)
        pending.result()
    assert posted[3].result() == 1
    assert values_of(cluster, "t", 0) == [(1, b"d"), (2, b"e"), (3, b"f")]


def test_delete_records_refuses_offsets_out_of_range(cluster: BrokerCluster) -> None:
    produce(cluster, "t", 0, b"a", b"b")
    for wrong in (-2, 3):
        with pytest.raises(OffsetOutOfRangeError):
            cluster.delete_records("t", 0, wrong)
    assert cluster.delete_records("t", 0, -1) == 2
    assert cluster.delete_records("t", 0, 1) == 2, "the start never moves back"


def test_a_raise_of_the_start_that_was_planned_before_a_truncation_is_ignored(cluster: BrokerCluster) -> None:
    """Else fresh records, at the offsets of those that were cut off, would go with the old ones."""
    produce(cluster, "t", 0, b"old", b"old")
    partition = cluster.partition("t", 0)
    planned = RaiseLogStart(partition, 2, partition.state.truncation_count)
    cluster.broker.call(api.TruncateTail("t", 0, 0))
    produce(cluster, "t", 0, b"fresh", b"fresh")
    cluster.broker.call(planned)
    assert [value for _, value in values_of(cluster, "t", 0)] == [b"fresh", b"fresh"]


def test_a_topic_made_anew_does_not_get_the_old_ones_partition(cluster: BrokerCluster) -> None:
    """Between the commit of a deletion and its DropTopic somebody makes the topic anew and writes to it."""
    produce(cluster, "t", 0, b"old")
    old = cluster.partition("t", 0)
    image = cluster.metadata.call(api.DeleteTopic("t"))  # the deleting thread gets no further
    cluster.create_topic("t", 1, 1, {})
    assert produce(cluster, "t", 0, b"new").base_offset == 0
    cluster.broker.call(DropTopic(image))
    assert old.view is None and cluster.partition("t", 0) is not old
    assert values_of(cluster, "t", 0) == [(0, b"new")]
    assert produce(cluster, "t", 0, b"newer").base_offset == 1


def test_writing_to_a_topic_that_is_being_deleted_is_refused(cluster: BrokerCluster) -> None:
    produce(cluster, "t", 0, b"old")
    cluster.metadata.call(api.DeleteTopic("t"))
    with pytest.raises(UnknownTopicOrPartitionError):
        produce(cluster, "t", 0, b"late")


def test_refreshing_takes_over_a_topics_options(cluster: BrokerCluster) -> None:
    partition = cluster.partition("t", 0)
    cluster.alter_topic("t", {"max.message.bytes": "7777"})
    assert partition.config.max_message_bytes == 7777
    cluster.broker.call(RefreshTopic("no such topic"))


def test_retention_by_bytes_goes_along_with_the_append(cluster: BrokerCluster) -> None:
    cluster.create_topic("small", 1, 1, {"retention.bytes": "1000"})
    for _ in range(20):
        produce(cluster, "small", 0, b"x" * 200)
    state = cluster.partition("small", 0).state
    assert 1000 <= state.size_bytes < 2000 and state.log_start_offset > 10, (
        "never below; one batch waits for the next turn"
    )
    assert len(values_of(cluster, "small", 0)) == 20 - state.log_start_offset


def test_orphans_of_a_crash_between_the_metadata_commit_and_the_drop_are_deleted(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "orphans")
    cluster.create_topic("gone", 2, 1, {}), cluster.create_topic("kept", 1, 1, {})
    for name, number in (("gone", 0), ("gone", 1), ("kept", 0)):
        produce(cluster, name, number, b"x")
    ids = {cluster.partition("gone", number).log_id for number in (0, 1)}
    cluster.metadata.call(api.DeleteTopic("gone"))  # and now the crash
    cluster.close()
    cluster = opened(tmp_path / "orphans")
    assert cluster.broker.delete_orphans() == 2
    while cluster.broker.deletions.doomed:
        cluster.broker.advance()
    with cluster.broker.environment.snapshot() as snapshot:
        assert not ids & set(log.log_ids(snapshot))
    assert values_of(cluster, "kept", 0) == [(0, b"x")]
    assert cluster.broker.delete_orphans() == 0
    cluster.close()


def test_a_topic_made_while_orphans_are_looked_for_is_not_one(
    cluster: BrokerCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is looked at before the image: whatever is in it must be known, or be gone from the image."""
    image_ids = type(cluster.metadata.image).log_ids

    def created_in_between(image: Any, broker_id: int) -> Any:
        found = list(image_ids(image, broker_id))
        if "fresh" not in cluster.topics:
            cluster.create_topic("fresh", 1, 1, {})
            produce(cluster, "fresh", 0, b"acknowledged")
        return iter(found)

    monkeypatch.setattr(type(cluster.metadata.image), "log_ids", created_in_between)
    cluster.broker.delete_orphans()
    monkeypatch.undo()
    assert cluster.broker.deletions.doomed == {}
    assert values_of(cluster, "fresh", 0) == [(0, b"acknowledged")]


def test_a_store_that_cannot_be_read_fails_only_who_asks_for_that_partition(
    cluster: BrokerCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(cluster, "t", 0, b"a")

    def corrupt(*_: object) -> None:
        raise CorruptStoreError("a checkpoint contradicts itself")

    monkeypatch.setattr("streamlog.broker.broker.load_state", corrupt)
    good = cluster.broker.enqueue(api.Produce([("t", 0, batch_of(b"b"))]))
    bad = [
        cluster.broker.enqueue(api.DeleteRecords("t", 1, 0)),
        cluster.broker.enqueue(api.TruncateTail("t", 1, 0)),
    ]
    cluster.broker.advance()
    assert good.result()[0].base_offset == 1
    for pending in bad:
        with pytest.raises(CorruptStoreError):
            pending.result()


def test_small_requests(cluster: BrokerCluster) -> None:
    produce(cluster, "t", 0, b"a")
    partition = cluster.partition("t", 0)
    cluster.broker.call(SaveCleanerCheckpoint(partition, partition.generation, cleaner.CleanerCheckpoint(1)))
    with cluster.broker.environment.snapshot() as snapshot:
        assert cleaner.load_cleaner_checkpoint(snapshot, partition.log_id) == cleaner.CleanerCheckpoint(1)
    cluster.broker.call(
        SaveCleanerCheckpoint(partition, partition.generation + 1, cleaner.CleanerCheckpoint(0))
    )
    with cluster.broker.environment.snapshot() as snapshot:
        assert cleaner.load_cleaner_checkpoint(snapshot, partition.log_id) == cleaner.CleanerCheckpoint(1), (
            "void"
        )
    cluster.broker.call(TrimHead(partition))
    with pytest.raises(TypeError):
        cluster.broker.call("nonsense")
    assert "Broker(0" in repr(cluster.broker)


# -- its own thread ------------------------------------------------------------------------------------------------------


def test_sync_off_is_synced_after_flush_ms_and_again_when_that_fails(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "off", flush_ms=1)
    cluster.create_topic("t", 1, 1, {})
    broker, calls = cluster.broker, []
    real = type(broker.environment).sync

    def failing(environment: Any) -> None:
        calls.append(environment)
        if len(calls) == 1:
            raise StorageError("EIO")
        real(environment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(broker.environment), "sync", failing)
        produce(cluster, "t", 0, b"a")
        broker._service.stop()
        now_ms = broker.runtime.clock.monotonic_ms() + 1_000
        calls.clear()
        broker.flushing.deadline_ms = 1
        assert broker._serve(now_ms) == now_ms + 500 and isinstance(broker.flushing.error, StorageError)
        assert broker.flushing.deadline_ms == 1, "it is still to be synced"
        broker._serve(now_ms + 500)
        assert len(calls) == 2 and broker.flushing.deadline_ms is None and broker.flushing.error is None
    cluster.close()


def test_the_thread_does_not_start_before_there_is_a_deadline(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "full", sync="full")
    cluster.create_topic("t", 1, 1, {})
    produce(cluster, "t", 0, b"a")
    assert cluster.broker._service._task is None
    cluster.delete_records("t", 0, 1)
    assert cluster.broker._service._task is not None
    cluster.close()


def test_an_earlier_deadline_of_a_group_reaches_a_thread_that_sleeps_for_a_later_one(tmp_path: Path) -> None:
    """The turn that makes it may have a transaction, and the thread a deadline already."""
    from streamlog.core import group_events as events

    cluster = opened(tmp_path / "full", sync="full", group_min_session_timeout_ms=10)
    broker = cluster.broker

    def join(group: str, timeout_ms: int) -> None:
        protocols = (("range", b""),)
        event = events.JoinGroup(
            token=0, session_timeout_ms=timeout_ms, rebalance_timeout_ms=timeout_ms, protocols=protocols
        )
        cluster.call_group(group, event)

    join("slow", 60_000)
    slow = broker._service_deadline_ms
    assert slow is not None
    produce(cluster, cluster.create_topic("t", 1, 1, {}).name, 0, b"a")
    join("fast", 20)
    assert broker._service_deadline_ms != slow
    hosted = cluster.coordinator.group("fast")
    until(lambda: hosted.view.members == (), "its session ended, and nobody came to look")
    cluster.close()


# -- closing -------------------------------------------------------------------------------------------------------------


def test_after_closing_everything_is_refused(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "closing")
    cluster.create_topic("t", 1, 1, {})
    produce(cluster, "t", 0, b"a")
    partition = cluster.partition("t", 0)
    cluster.broker.close(), cluster.broker.close()
    assert partition.view is None
    for request in (api.Produce([("t", 0, batch_of(b"late"))]), Tick(), api.DeleteRecords("t", 0, 0)):
        with pytest.raises(ClosedError):
            cluster.broker.call(request)
    assert cluster.broker._serve(0) is None
    cluster.close()


def test_a_signal_handler_may_load_what_its_thread_is_just_loading(
    cluster: BrokerCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.create_topic("struck", 1, 1, {})
    broker, load, inside = cluster.broker, broker_module.load_state, []

    def struck(*given: Any) -> Any:
        if not inside:
            inside.append(None)
            inside[0] = broker.partition("struck", 0)
        return load(*given)

    monkeypatch.setattr(broker_module, "load_state", struck)
    loaded = in_thread(lambda: broker.partition("struck", 0)).result()
    assert [loaded] == inside, "one object per partition"
    assert broker.partition("struck", 0) is loaded
