"""`Cluster.backup` and `ReaderCluster.backup` (streamlog/broker/backup.py): a copy of a cluster in use, whole
or not there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog import TopicPartition
from streamlog.broker import backup
from streamlog.broker.verification import verify_directory
from streamlog.client.reader_cluster import ReaderCluster
from streamlog.errors import ClosedError, ClusterLockedError, DiskFullError, StorageError
from streamlog.storage.env import Environment

T0 = TopicPartition("t", 0)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[streamlog.Cluster]:
    with streamlog.open(tmp_path / "data", sync="off") as cluster:
        assert isinstance(cluster, streamlog.Cluster)
        cluster.create_topic("t", partitions=2, config={"retention.ms": 99_000_000})
        yield cluster


def write(cluster: Any, start: int, count: int, topic: str = "t") -> None:
    with cluster.producer() as producer:
        for number in range(start, start + count):
            producer.send(topic, b"%d" % number, partition=0)


def test_the_copy_is_the_cluster(cluster: streamlog.Cluster, tmp_path: Path) -> None:
    write(cluster, 0, 100)
    with cluster.consumer_group("g", ["t"]).consumer() as consumer:
        while consumer.position(T0) < 100 if T0 in consumer.assignment else True:
            consumer.poll(0.1)
    cluster.topic("t")[0].delete_records(10)
    copy = tmp_path / "copies" / "first"
    copy.parent.mkdir()
    cluster.backup(copy)
    write(cluster, 100, 1)
    assert sorted(entry.name for entry in copy.iterdir()) == ["FORMAT", "broker-0", "metadata"]
    assert list(copy.parent.iterdir()) == [copy], "nothing partial is left"
    report = verify_directory(copy)
    assert (report.problems, report.groups, report.owner_pid) == ([], 1, None)
    with streamlog.open(copy, sync="off") as copied:
        partition = copied.topic("t")[0]
        assert (partition.log_start_offset, partition.high_watermark) == (10, 100)
        assert [record.value for record in partition.read(10, 1000)] == [b"%d" % n for n in range(10, 100)]
        assert copied.topic("t").config["retention.ms"] == "99000000"
        assert copied.consumer_group("g", ["t"]).offsets()[T0] == 100
        write(copied, 100, 5)
        assert partition.high_watermark == 105
    assert cluster.topic("t")[0].high_watermark == 101, "the original goes its own way"


def test_copies_taken_while_it_is_written(cluster: streamlog.Cluster, tmp_path: Path) -> None:
    """Producers, commits, deletions and the cleaner at work: every copy is a prefix of each partition, and
    sound.
    """
    cluster.create_topic("c", config={"cleanup.policy": "compact", "min.cleanable.dirty.ratio": 0.01})
    done = threading.Event()
    failures: list[BaseException] = []

    def forever(work: Any) -> threading.Thread:
        def run() -> None:
            number = 0
            try:
                while not done.is_set():
                    work(number)
                    number += 1
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def churn(number: int) -> None:
        cluster.create_topic(f"u{number}")
        write(cluster, 0, 20, f"u{number}")
        cluster.delete_topic(f"u{number}")

    def commit(number: int) -> None:
        with cluster.consumer(group_id="g") as consumer:
            consumer.assign([T0])
            consumer.commit({T0: cluster.topic("t")[0].high_watermark})

    def compacted(number: int) -> None:
        with cluster.producer() as producer:
            for key in range(20):
                producer.send("c", b"%d" % number, key=b"%d" % key)
        cluster.clean()

    threads = [forever(work) for work in (lambda n: write(cluster, n * 50, 50), churn, commit, compacted)]
    try:
        for number in range(5):
            before = cluster.topic("t")[0].high_watermark
            cluster.backup(tmp_path / f"copy{number}")
            after = cluster.topic("t")[0].high_watermark
            assert verify_directory(tmp_path / f"copy{number}").problems == []
            with streamlog.open(tmp_path / f"copy{number}", sync="off") as copied:
                end = copied.topic("t")[0].high_watermark
                assert before <= end <= after
                consumer = copied.consumer(stop_at_end=True)
                consumer.assign([T0])
                assert [record.value for record in consumer] == [b"%d" % n for n in range(end)]
                assert copied.consumer_group("g", ["t"]).offsets().get(T0, 0) <= end, (
                    "never ahead of the records"
                )
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_reader_copies_too(cluster: streamlog.Cluster, tmp_path: Path) -> None:
    write(cluster, 0, 10)
    with streamlog.open(cluster.path, mode="r") as reader:
        reader.backup(tmp_path / "copy")
    cluster.close()
    with streamlog.open(cluster.path, mode="r") as reader:
        assert isinstance(reader, ReaderCluster)
        reader.backup(tmp_path / "again")
    for name in ("copy", "again"):
        with streamlog.open(tmp_path / name, mode="r") as copied:
            assert copied.topic("t")[0].high_watermark == 10


def test_an_empty_directory_will_do(cluster: streamlog.Cluster, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cluster.backup(tmp_path / "empty")
    assert verify_directory(tmp_path / "empty").is_sound


def test_nothing_is_overwritten(cluster: streamlog.Cluster, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    cluster.backup(copy)
    (tmp_path / "file").write_text("precious")
    for path in (copy, tmp_path / "file", cluster.path):
        with pytest.raises(StorageError):
            cluster.backup(path)
    with pytest.raises(StorageError, match="inside"):
        cluster.backup(cluster.path / "inside")
    assert (tmp_path / "file").read_text() == "precious"
    assert verify_directory(copy).is_sound
    cluster.topic("t")


def test_a_copy_that_fails_is_not_there(
    cluster: streamlog.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up behind the first environment."""
    whole = Environment.backup

    def fails(self: Environment, path: Path, **options: Any) -> None:
        if self.path.name == "metadata":
            raise OSError(28, "No space left on device")
        whole(self, path, **options)

    monkeypatch.setattr(Environment, "backup", fails)
    with pytest.raises(DiskFullError, match="No space left") as caught:
        cluster.backup(tmp_path / "copy")
    assert caught.value.errno == 28
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def test_what_has_the_name_of_a_partial_copy_is_not_removed(
    cluster: streamlog.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup.os, "getpid", lambda: 7)
    partial = tmp_path / "copy.partial-7"
    partial.mkdir()
    (partial / "mine").write_text("precious")
    with pytest.raises(StorageError):
        cluster.backup(tmp_path / "copy")
    assert (partial / "mine").read_text() == "precious"


def test_a_closed_cluster_is_not_copied(cluster: streamlog.Cluster, tmp_path: Path) -> None:
    cluster.close()
    with pytest.raises(ClosedError):
        cluster.backup(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_second_backup_to_the_same_place_leaves_the_first_alone(
    cluster: streamlog.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(cluster, 0, 10)
    copy_environment, second = Environment.backup, []

    def interfering(environment: Environment, path: Any) -> None:
        copy_environment(environment, path)
        if not second:
            second.append(None)
            with pytest.raises(StorageError) as caught:
                cluster.backup(tmp_path / "copy")
            second[0] = type(caught.value)

    monkeypatch.setattr(Environment, "backup", interfering)
    cluster.backup(tmp_path / "copy")
    assert second == [ClusterLockedError]
    assert verify_directory(tmp_path / "copy").records == 10 + 3
