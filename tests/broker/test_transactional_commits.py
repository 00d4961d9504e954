"""Offsets of transactions in the groups' partitions: held, settled, loaded anew, checkpointed."""

from __future__ import annotations

from typing import Any

import pytest

import streamlog
from streamlog.broker import api
from streamlog.broker.checkpointing import save_offsets
from streamlog.broker.groups_beside import OffsetsFold
from streamlog.broker.transactional_commits import transactional
from streamlog.core.group import group_partition
from streamlog.core.group_events import DeleteGroup, ExpireOffsets, OffsetCommit, TopicsDeleted
from streamlog.errors import InvalidProducerEpochError, UnstableOffsetCommitError
from streamlog.record import OffsetAndMetadata, TopicPartition

T0, T1 = TopicPartition("t", 0), TopicPartition("t", 1)


@pytest.fixture
def cluster() -> Any:
    with streamlog.open(":memory:", offsets_topic_num_partitions=3) as made:
        made.create_topic("t", 2)
        made._backend.ensure_offsets_topic()
        yield made


def commit(cluster: Any, producer_id: int | None, epoch: int = 0, **offsets: int) -> None:
    """Of partitions t-0 (`zero`) and t-1 (`one`)."""
    named = {"zero": T0, "one": T1}
    event = OffsetCommit(
        token=0, offsets={named[name]: OffsetAndMetadata(at) for name, at in offsets.items()}
    )
    sent = event if producer_id is None else transactional(event, producer_id, epoch)
    cluster._backend.call_group("g", sent)


def end(cluster: Any, producer_id: int, is_commit: bool, epoch: int = 1) -> None:
    request = api.WriteMarkers(
        producer_id, epoch, 0, is_commit, [("__consumer_offsets", group_partition("g", 3))]
    )
    [produced] = cluster._backend.broker.call(request)
    assert produced.error is None


def offsets(cluster: Any) -> list[int]:
    found = cluster._backend.coordinator.committed("g", None)
    return [found[partition].offset if partition in found else -1 for partition in (T0, T1)]


def load_anew(cluster: Any) -> None:
    backend = cluster._backend
    partition = backend.broker.partition("__consumer_offsets", group_partition("g", 3))
    backend.broker.coordinator.unload(partition)


@pytest.mark.parametrize("is_commit", [True, False])
@pytest.mark.parametrize("is_loaded_anew", [True, False])
def test_they_count_once_the_marker_is_there(cluster: Any, is_commit: bool, is_loaded_anew: bool) -> None:
    commit(cluster, None, zero=1)
    commit(cluster, 7, zero=5, one=6)
    if is_loaded_anew:
        load_anew(cluster)
    assert offsets(cluster) == [1, -1]
    with pytest.raises(UnstableOffsetCommitError) as told:
        cluster._backend.coordinator.committed("g", [T0])
    assert told.value.retriable and (told.value.topic, told.value.partition) == ("t", 0)
    end(cluster, 7, is_commit)
    if is_loaded_anew:
        load_anew(cluster)
    assert offsets(cluster) == ([5, 6] if is_commit else [1, -1])
    assert cluster._backend.coordinator.committed("g", [T0])[T0].offset == (5 if is_commit else 1)


def test_a_commit_since_wins(cluster: Any) -> None:
    commit(cluster, 7, zero=5, one=6)
    commit(cluster, None, zero=9)
    end(cluster, 7, True)
    assert offsets(cluster) == [9, 6]
    load_anew(cluster)
    assert offsets(cluster) == [9, 6]


def test_a_producer_whose_transaction_is_over_is_refused(cluster: Any) -> None:
    commit(cluster, 7, zero=5)
    end(cluster, 7, False, epoch=1)
    with pytest.raises(InvalidProducerEpochError, match="epoch 0; epoch 1 has begun"):
        commit(cluster, 7, epoch=0, zero=6)
    commit(cluster, 7, epoch=1, zero=7)
    end(cluster, 7, True, epoch=2)
    assert offsets(cluster) == [7, -1]


def test_neither_the_group_nor_its_offsets_go_meanwhile(cluster: Any) -> None:
    commit(cluster, 7, zero=5)
    for _ in range(3):
        cluster._backend.call_group("g", ExpireOffsets())
    end(cluster, 7, True)
    assert offsets(cluster) == [5, -1]


def test_a_deleted_group_or_topic_takes_them_along(cluster: Any) -> None:
    commit(cluster, None, one=1)
    commit(cluster, 7, zero=5)
    cluster._backend.call_group("g", TopicsDeleted(("t",)))
    end(cluster, 7, True)
    assert offsets(cluster) == [-1, -1]
    commit(cluster, 8, zero=5)
    cluster._backend.call_group("g", DeleteGroup(token=0))
    end(cluster, 8, True)
    assert offsets(cluster) == [-1, -1]


def test_a_checkpoint_holds_nothing_that_may_not_count(cluster: Any) -> None:
    commit(cluster, None, zero=1)
    commit(cluster, 7, zero=5)
    commit(cluster, None, one=2)
    broker, number = cluster._backend.broker, group_partition("g", 3)
    partition = broker.partition("__consumer_offsets", number)
    for is_ended in (False, True):
        if is_ended:
            end(cluster, 7, True)
        assert save_offsets(broker, number) is not None
        fold = OffsetsFold(partition.log_id)
        with broker.environment.snapshot() as snapshot:
            assert fold.start_from_checkpoint(snapshot)
            assert fold.offset == partition.view.last_stable_offset
            while fold.advance(snapshot, partition.view.high_watermark):
                pass
        committed = fold.machines["g"].all_committed()
        assert {tp: where.offset for tp, where in committed.items()} == {T0: 5 if is_ended else 1, T1: 2}
        load_anew(cluster)
        assert offsets(cluster) == [5 if is_ended else 1, 2]
