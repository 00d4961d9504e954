"""When unsynced commits go to the disk: flush.messages and flush.ms of topics (SEMANTICS 1.1 "flush")."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamlog.batch import seal_columnar
from streamlog.broker import api
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.turn import Turn
from streamlog.errors import StorageError
from tests.broker.builders import opened

NEVER_MS = 10_000_000


class Disk:
    """Counts syncs and what each found committed; fails while told to."""

    def __init__(self, cluster: BrokerCluster, patch: pytest.MonkeyPatch) -> None:
        self.syncs = 0
        self.fails = False
        self.visible: list[int] = []
        environment = cluster.broker.environment
        real = type(environment).sync

        def sync(asked: Any) -> None:
            if asked is not environment:
                return real(asked)
            if self.fails:
                raise StorageError("EIO")
            self.syncs += 1
            self.visible.append(sum(p.state.log_end_offset for p in cluster.broker.partitions.values()))
            real(asked)

        patch.setattr(type(environment), "sync", sync)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[BrokerCluster]:
    cluster = opened(tmp_path / "off", flush_ms=NEVER_MS)
    yield cluster
    cluster.close()


@pytest.fixture
def disk(cluster: BrokerCluster, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(cluster, monkeypatch)


def produce(cluster: BrokerCluster, topic: str, records: int = 1, partition: int = 0) -> api.Produced:
    batch = seal_columnar(None, [b"x"] * records, timestamps=1)
    (produced,) = cluster.broker.call(api.Produce([(topic, partition, batch)]))
    assert isinstance(produced, api.Produced)
    return produced


def test_flush_messages_syncs_before_the_answer_that_reaches_it(cluster: BrokerCluster, disk: Disk) -> None:
    cluster.create_topic("t", 2, 1, {"flush.messages": "3"})
    cluster.create_topic("other", 1, 1, {})
    counts = []
    for records, partition in ((1, 0), (1, 0), (1, 0), (2, 0), (2, 1), (1, 1), (7, 0), (1, 0)):
        produce(cluster, "t", records, partition)
        produce(cluster, "other", 5)
        counts.append(disk.syncs)
    assert counts == [0, 0, 1, 1, 1, 2, 3, 3], "each partition counts its own records"


def test_a_record_is_synced_before_anybody_sees_it(cluster: BrokerCluster, disk: Disk) -> None:
    cluster.create_topic("t", 1, 1, {"flush.messages": "1"})
    for _ in range(3):
        produce(cluster, "t")
    assert disk.visible == [0, 1, 2]


def test_what_is_cut_off_does_not_count_and_what_comes_in_its_place_does(
    cluster: BrokerCluster, disk: Disk
) -> None:
    cluster.create_topic("t", 1, 1, {"flush.messages": "3"})
    produce(cluster, "t", 3)
    cluster.broker.call(api.TruncateTail("t", 0, 0))
    produce(cluster, "t", 2)
    assert disk.syncs == 1
    produce(cluster, "t", 1)
    assert disk.syncs == 2


def test_a_sync_that_fails_is_told_to_who_relies_on_it_and_tried_again(
    cluster: BrokerCluster, disk: Disk
) -> None:
    cluster.create_topic("t", 1, 1, {"flush.messages": "2"})
    cluster.create_topic("other", 1, 1, {})
    produce(cluster, "t")
    disk.fails = True
    batch = seal_columnar(None, [b"x"], timestamps=1)
    told, other = cluster.broker.call(api.Produce([("t", 0, batch), ("other", 0, batch)]))
    assert isinstance(told.error, StorageError) and other.error is None
    assert cluster.broker.flushing.error is told.error
    disk.fails = False
    assert produce(cluster, "t").base_offset == 2 and disk.syncs == 1, "still due, and it works now"
    assert cluster.broker.flushing.error is None


def test_a_turn_that_is_applied_again_syncs_once(cluster: BrokerCluster, disk: Disk) -> None:
    cluster.create_topic("t", 1, 1, {"flush.messages": "1"})
    broker = cluster.broker
    real, turns = broker._apply, []

    def interrupted(turn: Turn) -> None:
        real(turn)
        turns.append(turn)
        if len(turns) == 1:
            raise KeyboardInterrupt

    broker._apply = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        produce(cluster, "t")
    assert turns[0] is turns[1] and disk.syncs == 1
    assert broker.partition("t", 0).state.log_end_offset == 1


def test_flush_ms_of_a_topic_brings_the_deadline_forward(cluster: BrokerCluster, disk: Disk) -> None:
    flushing = cluster.broker.flushing
    cluster.create_topic("slow", 1, 1, {})
    cluster.create_topic("quick", 1, 1, {"flush.ms": "1000000"})
    produce(cluster, "slow")
    far_ms = flushing.deadline_ms
    produce(cluster, "quick")
    near_ms = flushing.deadline_ms
    assert far_ms is not None and near_ms is not None and far_ms - near_ms > NEVER_MS - 2_000_000
    assert cluster.broker._next_deadline_ms(0) == near_ms
    produce(cluster, "quick")
    produce(cluster, "slow")
    assert flushing.deadline_ms == near_ms, "the first unsynced commit counts"
    assert cluster.broker._serve(near_ms - 1) == near_ms and disk.syncs == 0
    cluster.broker._serve(near_ms)
    assert disk.syncs == 1 and flushing.deadline_ms is None


def test_altering_the_options_takes_effect_with_the_next_batch(cluster: BrokerCluster, disk: Disk) -> None:
    cluster.create_topic("t", 1, 1, {})
    produce(cluster, "t", 5)
    cluster.alter_topic("t", {"flush.messages": "6"})
    produce(cluster, "t", 1)
    assert disk.syncs == 1


@pytest.mark.parametrize("sync", ["full", "normal"])
def test_commits_that_sync_themselves_need_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str
) -> None:
    cluster = opened(tmp_path / sync, sync=sync)
    disk = Disk(cluster, monkeypatch)
    cluster.create_topic("t", 1, 1, {"flush.messages": "1", "flush.ms": "0"})
    produce(cluster, "t")
    assert disk.syncs == 0 and cluster.broker.flushing.deadline_ms is None
    cluster.close()
