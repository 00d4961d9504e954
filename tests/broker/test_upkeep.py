"""Requests of upkeep: what they do to the partition they name, and that they are void once it moved on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from streamlog.broker import api
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.reading import view_of
from streamlog.broker.upkeep import (
    DropLogs,
    DropTopic,
    RaiseLogStart,
    RefreshTopic,
    SaveCleanerCheckpoint,
    SwapCompacted,
    TrimHead,
)
from streamlog.storage import cleaner, log
from tests.broker.builders import values_of
from tests.broker.threadless import opened_still, produce_now, tick_after


@pytest.fixture
def still(tmp_path: Path) -> Iterator[BrokerCluster]:
    cluster = opened_still(tmp_path / "cluster")
    cluster.create_topic("t", 1, 1, {})
    for value in (b"a", b"b", b"c"):
        produce_now(cluster, "t", 0, value)
    yield cluster
    cluster.close()


def cleaned_to(cluster: BrokerCluster) -> cleaner.CleanerCheckpoint | None:
    with cluster.broker.environment.snapshot() as snapshot:
        return cleaner.load_cleaner_checkpoint(snapshot, cluster.partition("t", 0).log_id)


def test_raising_the_start_hides_at_once_and_never_goes_past_the_high_watermark(still: BrokerCluster) -> None:
    partition = still.partition("t", 0)
    still.broker.call(RaiseLogStart(partition, 1, partition.state.truncation_count))
    assert [offset for offset, _ in values_of(still, "t", 0)] == [1, 2]
    still.broker.call(RaiseLogStart(partition, 0, partition.state.truncation_count))
    assert view_of(partition).log_start_offset == 1
    still.broker.call(RaiseLogStart(partition, 99, partition.state.truncation_count))
    assert view_of(partition).log_start_offset == view_of(partition).high_watermark == 3


def test_raising_the_start_as_planned_before_a_cut_is_ignored(still: BrokerCluster) -> None:
    partition = still.partition("t", 0)
    planned = RaiseLogStart(partition, 2, partition.state.truncation_count)
    still.broker.call(api.TruncateTail("t", 0, 2))
    still.broker.call(planned)
    assert [offset for offset, _ in values_of(still, "t", 0)] == [0, 1]


def test_a_cleaner_checkpoint_of_another_generation_is_not_saved(still: BrokerCluster) -> None:
    partition, checkpoint = still.partition("t", 0), cleaner.CleanerCheckpoint(2)
    stale = partition.generation
    still.broker.call(api.TruncateTail("t", 0, 2))
    still.broker.call(SaveCleanerCheckpoint(partition, stale, checkpoint))
    assert cleaned_to(still) is None
    still.broker.call(SaveCleanerCheckpoint(partition, partition.generation, checkpoint))
    assert cleaned_to(still) == checkpoint


def test_upkeep_of_a_deleted_topic_is_void(still: BrokerCluster) -> None:
    partition = still.partition("t", 0)
    generation = partition.generation
    raising = RaiseLogStart(partition, 2, partition.state.truncation_count)
    image = still.topic("t")
    still.delete_topic("t")
    before = still.broker.environment.last_transaction_id()
    assert still.broker.call(SwapCompacted(partition, generation, cleaner.CompactionPlan(()))) is None
    still.broker.call(SaveCleanerCheckpoint(partition, generation, cleaner.CleanerCheckpoint(1)))
    still.broker.call(raising)
    still.broker.call(RefreshTopic("t"))
    still.broker.call(DropTopic(image))
    assert still.broker.environment.last_transaction_id() == before


def test_a_trim_deletes_only_what_lies_below_the_start(still: BrokerCluster) -> None:
    partition = still.partition("t", 0)
    size_bytes = partition.state.size_bytes
    still.broker.call(TrimHead(partition))
    for _ in range(3):
        tick_after(still, 5)
    assert len(values_of(still, "t", 0)) == 3 and partition.state.size_bytes == size_bytes
    assert still.broker.deletions.deadline_ms() is None


def test_dropped_logs_go_and_their_partitions_are_no_longer_served(still: BrokerCluster) -> None:
    partition = still.partition("t", 0)
    still.broker.call(DropLogs([partition.log_id]))
    assert partition.view is not None, "a log that is ours is no orphan (any more)"
    still.metadata.call(api.DeleteTopic("t"))
    still.broker.call(DropLogs([partition.log_id]))
    assert partition.view is None
    for _ in range(3):
        tick_after(still, 5)
    with still.broker.environment.snapshot() as snapshot:
        assert partition.log_id not in log.log_ids(snapshot)


def test_requests_are_values_that_do_not_change(still: BrokerCluster) -> None:
    request = RaiseLogStart(still.partition("t", 0), 1, 0)
    with pytest.raises(AttributeError):
        request.log_start_offset = 2  # type: ignore[misc]
    assert msgspec.structs.replace(request, log_start_offset=1) == request
