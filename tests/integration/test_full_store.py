"""A full disk, a full map, disk_bytes_max, too many readers: a named error, nothing lost, works again when
there is room.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog import TopicPartition
from streamlog.errors import DeliveryError, DiskFullError, ReadersFullError, StorageError, StoreFullError
from tests.integration.judging import check_sound, read_dense
from tests.waiting import until

ROOT = Path(__file__).resolve().parent.parent.parent
VALUE_BYTES = 3_000


def fill(cluster: Any, error: type[StorageError], topic: str = "t") -> list[tuple[int, bytes]]:
    """Produce until the store refuses: (offset, value) of what was acknowledged."""
    acked: list[tuple[int, bytes]] = []
    with cluster.producer(linger_ms=0, batch_size=1) as producer:
        for number in range(100_000):
            value = (b"%d-" % number).ljust(VALUE_BYTES, b"x")
            try:
                acked.append((producer.send(topic, value).result().offset, value))
            except error as refused:
                assert str(refused), refused
                return acked
    raise AssertionError("it never got full")


def check(cluster: Any, acked: list[tuple[int, bytes]], topic: str = "t") -> None:
    """Everything acknowledged is there, nothing else."""
    records = read_dense(cluster.topic(topic)[0])
    start = cluster.topic(topic)[0].log_start_offset
    assert [(record.offset, record.value) for record in records] == [
        place for place in acked if place[0] >= start
    ]


def wait_until_deleted(cluster: Any) -> None:
    deletions = cluster._backend.broker.deletions
    until(lambda: deletions.deadline_ms() is None, lambda: f"still deleting: {deletions}")


def nothing() -> None:
    """The store has kept room for deleting."""


def fills_and_recovers(
    path: Path, error: type[StorageError], make_room: Callable[[], object] = nothing, **options: Any
) -> None:
    """make_room: what somebody else does for a full disk; deleting from a full file needs a few pages, too."""
    with streamlog.open(path, sync="normal", **options) as cluster:
        cluster.create_topic("t", partitions=1)
        cluster.create_topic("other", partitions=1)
        cluster.consumer_group("g", ["t"], enable_auto_commit=False)
        acked = fill(cluster, error)
        assert len(acked) > 20
        check(cluster, acked)
        reader = cluster.consumer(stop_at_end=True)
        reader.assign([("t", 0)])
        assert len(list(reader)) == len(acked), "reading does not need room"
        # A producer whose futures nobody reads is told at the flush.
        with pytest.raises(DeliveryError) as told, cluster.producer(linger_ms=0) as producer:
            producer.send("t", b"y" * VALUE_BYTES * 10)
        assert isinstance(told.value.__cause__, StorageError) and told.value.count == 1
        # Room is made by deleting records ...
        make_room()
        half = acked[len(acked) // 2][0]
        assert cluster.topic("t")[0].delete_records(half) == half
        wait_until_deleted(cluster)
        with cluster.producer() as producer:
            assert producer.send("t", b"again").result().offset == len(acked)
        acked.append((len(acked), b"again"))
        check(cluster, acked)
        # ... or topics.
        if make_room is nothing:
            acked += fill(cluster, error)
            check(cluster, acked)
        cluster.delete_topic("t")
        wait_until_deleted(cluster)
        assert len(fill(cluster, error, "other")) > 20
    check_sound(path)
    with streamlog.open(path, **options) as cluster:
        assert "t" not in cluster.topics
        assert len(read_dense(cluster.topic("other")[0])) > 20


def test_disk_bytes_max(tmp_path: Path) -> None:
    path = tmp_path / "c"
    fills_and_recovers(path, StoreFullError, config={"disk_bytes_max": 2 * 1024 * 1024})
    assert (path / "broker-0" / "data.mdb").stat().st_size <= 2 * 1024 * 1024


def test_a_full_map(tmp_path: Path) -> None:
    fills_and_recovers(tmp_path / "c", StoreFullError, config={"map_bytes": 1024 * 1024})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, where we may mount one."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mounted)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {done.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


@pytest.mark.integration
def test_a_full_disk(small_disk: Path) -> None:
    ballast = small_disk / "somebody's file"
    ballast.write_bytes(bytes(512 * 1024))
    fills_and_recovers(small_disk / "c", DiskFullError, ballast.unlink)


@pytest.mark.integration
def test_a_limit_of_the_file_size(tmp_path: Path) -> None:
    """RLIMIT_FSIZE works without privileges; the engine sees EFBIG."""
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "limit = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))\n"
        "limit(1 << 20)\n"
        "from tests.integration.test_full_store import fills_and_recovers\n"
        "from streamlog.errors import DiskFullError\n"
        "fills_and_recovers(Path(sys.argv[1]), DiskFullError, lambda: limit(2 << 20))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "c")],
        capture_output=True, text=True, timeout=60, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_groups_on_a_full_store(tmp_path: Path) -> None:
    """A commit that finds no room is refused by name; the member stays, and commits when there is room."""
    with streamlog.open(tmp_path / "c", sync="off", config={"disk_bytes_max": 2 * 1024 * 1024}) as cluster:
        cluster.create_topic("t", partitions=1)
        group = cluster.consumer_group("g", ["t"], enable_auto_commit=False)
        with group.consumer() as consumer:
            while not consumer.assignment:
                consumer.poll(0.1)
            acked = fill(cluster, StoreFullError)
            consumer.poll(1)
            with pytest.raises(StoreFullError):
                for _ in range(100):  # smaller than a record, so a few may still fit
                    consumer.commit({TopicPartition("t", 0): 7})
            assert len(group.members()) == 1
            cluster.topic("t")[0].delete_records(acked[-1][0])
            wait_until_deleted(cluster)
            consumer.commit({TopicPartition("t", 0): 8})
            assert group.offsets() == {TopicPartition("t", 0): 8}


def test_retention_makes_room_by_itself(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "c", sync="off", config={"disk_bytes_max": 2 * 1024 * 1024}) as cluster:
        topic = cluster.create_topic("t", partitions=1)
        fill(cluster, StoreFullError)
        topic.alter_config({"retention.bytes": 100_000})
        assert cluster.clean().retained == 1
        wait_until_deleted(cluster)
        with cluster.producer() as producer:
            producer.send("t", b"again").result()


def test_too_many_readers(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "c", sync="off", config={"max_readers": 8}) as cluster:
        cluster.create_topic("t", partitions=1)
        with cluster.producer(linger_ms=0) as producer:
            producer.send("t", b"before").result()
            environment = cluster._backend.broker.environment
            held = []
            with pytest.raises(ReadersFullError):
                while len(held) < 1_000:
                    held.append(environment.snapshot())
            reader = cluster.consumer(stop_at_end=True)
            with pytest.raises(ReadersFullError):
                reader.assign([("t", 0)])
                reader.poll(1)
            assert producer.send("t", b"writing needs none").result().offset == 1
            for snapshot in held:
                snapshot.close()
            reader = cluster.consumer(stop_at_end=True)
            reader.assign([("t", 0)])
            assert [record.value for record in reader.poll(1)] == [b"before", b"writing needs none"]
