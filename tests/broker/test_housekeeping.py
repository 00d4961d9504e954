"""Retention, compaction and expiry: when, for which partitions, and that one bad partition does not stop the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamlog.broker import deletion
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.housekeeping import FIRST_RUN_AFTER_MS, STALE_READERS_MS, Housekeeping
from streamlog.broker.runner import ThreadedRuntime
from streamlog.broker.turn import Tick
from streamlog.clock import ManualClock
from streamlog.errors import ClosedError, CorruptRecordError, StorageError
from tests.broker.builders import in_thread, opened, produce, values_of


class Clocked:
    def __init__(self, path: Path, **options: Any) -> None:
        self.clock = ManualClock(1_000_000_000)
        self.cluster = opened(path, ThreadedRuntime(self.clock), **options)
        self.house = self.cluster.housekeeping

    def produce(self, topic: str, *values: bytes, key: bytes | None = None) -> None:
        keys = None if key is None else [key] * len(values)
        produce(self.cluster, topic, 0, *values, timestamp=self.clock.wall_ms(), keys=keys)


@pytest.fixture
def clocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("streamlog.broker.runner.Service.wake", lambda self: None)
    monkeypatch.setattr(deletion, "SLICE_PAUSE_MS", 0)
    clocked = Clocked(tmp_path / "c")
    yield clocked
    clocked.cluster.close()


def trim(cluster: BrokerCluster) -> None:
    while cluster.broker.deletions.deadline_ms() is not None:
        cluster.broker.call(Tick())


def test_retention_by_time(clocked: Clocked) -> None:
    clocked.cluster.create_topic("t", 1, 1, {"retention.ms": "1000"})
    clocked.produce("t", b"old")
    clocked.clock.advance(600)
    clocked.produce("t", b"young")
    clocked.clock.advance(401)
    assert clocked.house.run_now().retained == 1
    assert values_of(clocked.cluster, "t", 0) == [(1, b"young")]
    assert clocked.house.run_now().retained == 0


def test_retention_by_size_does_not_count_what_is_being_deleted(clocked: Clocked) -> None:
    """Two runs before the trimming is done must not delete twice as much."""
    cluster = clocked.cluster
    cluster.create_topic("t", 1, 1, {})
    for number in range(20):
        clocked.produce("t", b"%02d" % number * 50)
    size_bytes = cluster.partition("t", 0).state.size_bytes
    cluster.alter_topic("t", {"retention.bytes": str(size_bytes // 2)})
    assert clocked.house.run_now().retained == 1
    start = cluster.partition("t", 0).state.log_start_offset
    assert start == 10
    assert clocked.house.run_now().retained == 0
    assert cluster.partition("t", 0).state.log_start_offset == start
    trim(cluster)
    assert clocked.house.run_now().retained == 0
    assert cluster.partition("t", 0).state.log_start_offset == start


def test_records_deleted_by_hand_do_not_make_retention_delete_more(clocked: Clocked) -> None:
    cluster = clocked.cluster
    cluster.create_topic("t", 1, 1, {})
    for number in range(20):
        clocked.produce("t", b"%02d" % number * 50)
    cluster.delete_records("t", 0, 10)
    cluster.alter_topic("t", {"retention.bytes": str(cluster.partition("t", 0).state.size_bytes * 6 // 10)})
    clocked.house.run_now()
    assert cluster.partition("t", 0).state.log_start_offset == 10, "half of it is deleted already"


def test_compaction_keeps_the_newest_of_each_key(clocked: Clocked) -> None:
    cluster = clocked.cluster
    cluster.create_topic("k", 1, 1, {"cleanup.policy": "compact"})
    for number in range(5):
        clocked.produce("k", b"%d" % number, key=b"key")
    clocked.produce("k", b"other", key=b"other")
    report = clocked.house.run_now()
    assert report.compacted == 1 and report.compacted_bytes > 0
    assert [value for _, value in values_of(cluster, "k", 0)] == [b"4", b"other"]


def test_one_corrupt_partition_does_not_keep_the_others_from_being_cleaned(
    clocked: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        clocked.cluster.create_topic(name, 1, 1, {"retention.ms": "1000"})
        clocked.produce(name, b"old")
    clocked.clock.advance(2_000)
    retain = Housekeeping._retain

    def corrupt(house: Housekeeping, broker: Any, partition: Any) -> bool:
        if partition.topic == "a":
            raise CorruptRecordError("a flipped bit")
        return retain(house, broker, partition)

    monkeypatch.setattr(Housekeeping, "_retain", corrupt)
    with pytest.raises(CorruptRecordError):
        clocked.house.run_now()
    starts = [clocked.cluster.partition(name, 0).state.log_start_offset for name in ("a", "b", "c")]
    assert starts == [0, 1, 1]


def test_a_topic_deleted_during_the_run_is_skipped(clocked: Clocked, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        clocked.cluster.create_topic(name, 2, 1, {"retention.ms": "1000"})
        clocked.produce(name, b"old")
    clocked.clock.advance(2_000)
    retain = Housekeeping._retain

    def deleting(house: Housekeeping, broker: Any, partition: Any) -> bool:
        if partition.topic == "a" and "a" in clocked.cluster.topics:
            clocked.cluster.delete_topic("a")
        return retain(house, broker, partition)

    monkeypatch.setattr(Housekeeping, "_retain", deleting)
    assert clocked.house.run_now().retained == 1


def test_only_one_run_at_a_time_and_nobody_waits_with_a_lock(
    clocked: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    entered, go = threading.Event(), threading.Event()
    running: list[int] = []

    def slow(house: Housekeeping, *_: bool) -> str:
        running.append(1)
        assert len(running) == 1
        entered.set()
        assert go.wait(10)
        running.pop()
        return "report"

    monkeypatch.setattr(Housekeeping, "_run", slow)
    first = in_thread(clocked.house.run_now)
    assert entered.wait(10)
    assert clocked.house._lock.acquire(False), "held across the run"
    clocked.house._lock.release()
    second = in_thread(clocked.house.run_now)
    go.set()
    assert first.result() == second.result() == "report"
    assert not clocked.house._is_running


def test_the_first_run_comes_after_opening_and_the_next_after_the_interval(clocked: Clocked) -> None:
    clocked.cluster.create_topic("t", 1, 1, {"retention.ms": "1"})
    clocked.produce("t", b"old")
    now_ms = clocked.clock.monotonic_ms()
    assert clocked.house._serve(now_ms) == now_ms + FIRST_RUN_AFTER_MS
    clocked.clock.advance(FIRST_RUN_AFTER_MS)
    clocked.house._serve(clocked.clock.monotonic_ms())
    interval_ms = clocked.cluster.config.log_retention_check_interval_ms
    assert clocked.house._next_run_ms == clocked.clock.monotonic_ms() + interval_ms
    assert values_of(clocked.cluster, "t", 0) == []


@pytest.mark.parametrize("default", [False, True])
def test_between_two_retention_runs_only_compacted_topics_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: bool
) -> None:
    """Ten thousand partitions must not be loaded every 15 s because one topic, or __consumer_offsets, is compacted."""
    monkeypatch.setattr("streamlog.broker.runner.Service.wake", lambda self: None)
    clocked = Clocked(tmp_path / "d", **({"log_cleanup_policy": "compact"} if default else {}))
    clocked.cluster.create_topic("t", 1, 1, {"cleanup.policy": "delete"})
    clocked.cluster.create_topic("k", 1, 1, {} if default else {"cleanup.policy": "compact"})
    looked: list[str] = []

    def retain(house: Housekeeping, broker: Any, partition: Any) -> bool:
        looked.append("retain " + partition.topic)
        return False

    def compact(house: Housekeeping, broker: Any, partition: Any, force: bool) -> None:
        looked.append("compact " + partition.topic)

    monkeypatch.setattr(Housekeeping, "_retain", retain)
    monkeypatch.setattr(Housekeeping, "_compact", compact)
    for _ in range(2):
        following = clocked.house._serve(clocked.clock.monotonic_ms())
        assert following is not None
        clocked.clock.advance(following - clocked.clock.monotonic_ms())
    assert looked == ["compact k"]
    clocked.house._serve(clocked.clock.monotonic_ms())
    assert looked == ["compact k", "retain t", "retain k", "compact k"]
    clocked.cluster.close()


KILLED_READER = """if True:
    import os, signal, sys
    from pathlib import Path
    from streamlog.storage.env import Environment
    snapshot = Environment.open(Path(sys.argv[1]), read_only=True).snapshot()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_reader_had_open_is_released_every_minute(clocked: Clocked) -> None:
    """ECOSYSTEM 3.2 row 7. Its snapshot keeps every page that is freed since: the file would grow for ever."""
    environment = clocked.cluster.broker.environment
    subprocess.run([sys.executable, "-c", KILLED_READER, str(environment.path)], check=False)
    assert environment.stats().reader_slots == 1
    start_ms = clocked.clock.monotonic_ms()
    while clocked.clock.monotonic_ms() < start_ms + STALE_READERS_MS:
        following = clocked.house._serve(clocked.clock.monotonic_ms())
        assert following is not None
        clocked.clock.advance(following - clocked.clock.monotonic_ms())
    clocked.house._serve(clocked.clock.monotonic_ms())
    assert environment.stats().reader_slots == 0


def test_a_run_that_fails_is_remembered_and_tried_again(
    clocked: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(house: Housekeeping, *_: bool) -> None:
        raise StorageError("EIO")

    clocked.clock.advance(FIRST_RUN_AFTER_MS)
    with monkeypatch.context() as patch:
        patch.setattr(Housekeeping, "_run", full)
        following = clocked.house._serve(clocked.clock.monotonic_ms())
    assert isinstance(clocked.house.last_error, StorageError) and following is not None
    clocked.clock.advance(clocked.cluster.config.log_retention_check_interval_ms)
    clocked.house._serve(clocked.clock.monotonic_ms())
    assert clocked.house.last_error is None


def test_offsets_are_expired_at_their_interval(clocked: Clocked, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, asked = clocked.cluster, []
    cluster.ensure_offsets_topic()
    monkeypatch.setattr(
        type(cluster.coordinator), "expire_offsets", lambda self: asked.append(clocked.clock.monotonic_ms())
    )
    start_ms = clocked.clock.monotonic_ms()
    while clocked.clock.monotonic_ms() < start_ms + 2 * cluster.config.offsets_retention_check_interval_ms:
        following = clocked.house._serve(clocked.clock.monotonic_ms())
        assert following is not None and following > clocked.clock.monotonic_ms()
        clocked.clock.advance(following - clocked.clock.monotonic_ms())
    clocked.house._serve(clocked.clock.monotonic_ms())
    interval_ms = cluster.config.offsets_retention_check_interval_ms
    assert asked == [start_ms + interval_ms, start_ms + 2 * interval_ms]


def test_after_closing_it_refuses_and_its_thread_ends(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "closed")
    house = cluster.housekeeping
    cluster.close()
    with pytest.raises(ClosedError):
        house.run_now()
    assert house._serve(0) is None and "stopped" in repr(house)
