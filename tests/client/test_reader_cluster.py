"""streamlog/client/reader_cluster.py and what it stands on: reading in the owner's own process, and when
nobody owns the directory. Beside another process: tests/integration/test_reading_beside.py.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog import TopicPartition
from streamlog.broker.following import LOOK_MS_MAX
from streamlog.client.cluster import Cluster
from streamlog.client.reader_cluster import ReaderCluster
from streamlog.errors import (
    ClosedError,
    ConfigError,
    NotAStreamlogDirectoryError,
    ReadOnlyError,
    UnknownTopicOrPartitionError,
)

T0 = TopicPartition("t", 0)
GROUP = "billing"


def write(cluster: Any, *values: bytes, topic: str = "t", partition: int = 0) -> None:
    with cluster.producer() as producer:
        for value in values:
            producer.send(topic, value, partition=partition)


def values(records: list[streamlog.Record]) -> list[bytes]:
    return [record.value or b"" for record in records]


def open_reader(path: Path) -> ReaderCluster:
    reader = streamlog.open(path, mode="r")
    assert isinstance(reader, ReaderCluster)
    return reader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def owner(path: Path) -> Iterator[Cluster]:
    with streamlog.open(path, sync="off") as cluster:
        cluster.create_topic("t", partitions=2, config={"retention.ms": -1})
        yield cluster


@pytest.fixture
def reader(owner: Cluster, path: Path) -> Iterator[ReaderCluster]:
    with open_reader(path) as reader:
        yield reader


# -- looking -------------------------------------------------------------------------------------------------


def test_topics_and_partitions_are_seen_as_they_are_now(owner: Cluster, reader: ReaderCluster) -> None:
    assert reader.topics == ["t"]
    topic, own = reader.topic("t"), owner.topic("t")
    assert (len(topic), topic.topic_id, topic.config_overrides) == (2, own.topic_id, {"retention.ms": "-1"})
    assert topic.config["retention.ms"] == "-1"
    partition = topic[0]
    assert (partition.leader, partition.replicas, partition.isr, partition.leader_epoch) == (0, (0,), (0,), 0)
    assert (partition.log_start_offset, partition.high_watermark, partition.log_end_offset) == (0, 0, 0)
    write(owner, b"1", b"2")
    assert (partition.log_start_offset, partition.high_watermark, partition.log_end_offset) == (0, 2, 2)
    assert partition.size_bytes == own[0].size_bytes > 0
    own[0].delete_records(1)
    assert partition.log_start_offset == 1
    owner.create_topic("u", config={"cleanup.policy": "compact"})
    assert reader.topics == ["t", "u"]
    own.add_partitions(5)
    own.alter_config({"max.message.bytes": 999})
    assert (len(topic), topic.config["max.message.bytes"]) == (5, "999")
    assert topic[4].high_watermark == 0
    owner.delete_topic("u")
    assert reader.topics == ["t"]


def test_partition_read(owner: Cluster, reader: ReaderCluster) -> None:
    write(owner, b"1", b"2", b"3")
    partition = reader.topic("t")[0]
    assert values(partition.read()) == [b"1", b"2", b"3"]
    assert values(partition.read(offset=1, max_records=1)) == [b"2"]
    owner.topic("t")[0].delete_records(2)
    assert values(partition.read(0)) == [b"3"]
    with pytest.raises(streamlog.errors.OffsetOutOfRangeError):
        partition.read(1)


def test_what_is_not_there_has_a_name(reader: ReaderCluster) -> None:
    with pytest.raises(UnknownTopicOrPartitionError, match="created by the cluster's owner"):
        reader.topic("nothing")
    with pytest.raises(UnknownTopicOrPartitionError, match="no partition 2"):
        reader.consumer().assign([("t", 2)])
    with pytest.raises(UnknownTopicOrPartitionError):
        reader.topic("t")[7]


def test_a_deleted_topic_made_anew_is_another(owner: Cluster, reader: ReaderCluster) -> None:
    write(owner, b"old")
    topic = reader.topic("t")
    old_id = topic.topic_id
    owner.delete_topic("t")
    with pytest.raises(UnknownTopicOrPartitionError):
        topic[0].read()
    owner.create_topic("t")
    write(owner, b"new")
    assert topic.topic_id != old_id
    assert values(topic[0].read()) == [b"new"]


# -- consuming -----------------------------------------------------------------------------------------------


def test_a_consumer_reads_seeks_and_ends(owner: Cluster, reader: ReaderCluster) -> None:
    write(owner, *(b"%d" % n for n in range(10)))
    write(owner, b"other", partition=1)
    with reader.consumer(stop_at_end=True) as consumer:
        consumer.assign([T0, ("t", 1)])
        assert sorted(values(list(consumer))) == sorted([b"%d" % n for n in range(10)] + [b"other"])
        assert consumer.position(T0) == 10
        consumer.seek(T0, 8)
        assert values(consumer.poll(0)) == [b"8", b"9"]
        assert consumer.beginning_offsets([T0]) == {T0: 0}
        assert consumer.end_offsets([T0]) == {T0: 10}
        assert consumer.lag(T0) == 0
        consumer.seek_to_timestamp(T0, 0)
        assert values(consumer.poll(0, max_records=2)) == [b"0", b"1"]
        consumer.pause(T0)
        assert consumer.poll(0) == []
        consumer.resume(T0)
        assert len(consumer.poll(0)) == 8


def test_new_records_are_noticed_without_waiting(owner: Cluster, reader: ReaderCluster) -> None:
    """poll(0) never waits, so it must look by itself."""
    with reader.consumer() as consumer:
        consumer.assign([T0, ("t", 1)])
        assert consumer.poll(0) == []
        for n in range(5):
            write(owner, b"%d" % n, partition=n % 2)
            assert values(consumer.poll(0)) == [b"%d" % n]
            assert consumer.poll(0) == []


def test_a_waiting_poll_wakes_up(owner: Cluster, reader: ReaderCluster) -> None:
    with reader.consumer() as consumer:
        consumer.assign([T0])
        assert consumer.poll(0) == []
        threading.Timer(0.05, lambda: write(owner, b"late")).start()
        assert values(consumer.poll(20)) == [b"late"]
        threading.Timer(0.05, consumer.wakeup).start()
        assert consumer.poll(20) == []


def test_a_busy_partition_does_not_hide_a_quiet_one(owner: Cluster, reader: ReaderCluster) -> None:
    write(owner, *(b"x" * 1000 for _ in range(400)))
    with reader.consumer(max_partition_fetch_bytes=1000, max_poll_records=1) as consumer:
        consumer.assign([T0, ("t", 1)])
        consumer.seek(("t", 1), 0)
        consumer.poll(0)
        write(owner, b"quiet", partition=1)
        for _ in range(300):
            write(owner, b"busy")
            if b"quiet" in values(consumer.poll(0)):
                return
        pytest.fail("the quiet partition was never read")


def test_stop_at_end_ends_where_it_began(owner: Cluster, reader: ReaderCluster) -> None:
    write(owner, b"1", b"2")
    consumer = reader.consumer(stop_at_end=True)
    consumer.assign([T0])
    write(owner, b"3")
    seen = []
    for record in consumer:
        seen.append(record.value)
        if len(seen) > 3:
            break
    assert seen[:2] == [b"1", b"2"]


def test_a_topic_deleted_under_a_consumer(owner: Cluster, reader: ReaderCluster) -> None:
    write(owner, b"1", b"2")
    consumer = reader.consumer()
    consumer.assign([T0])
    assert len(consumer.poll(0)) == 2
    owner.delete_topic("t")
    with pytest.raises(UnknownTopicOrPartitionError):
        consumer.poll(0.5)
    owner.create_topic("t")
    write(owner, b"new")
    seen = values(consumer.poll(1))
    assert seen == [b"new"]


def test_a_group_id_only_says_where_to_start(owner: Cluster, reader: ReaderCluster) -> None:
    write(owner, b"1", b"2", b"3")
    with owner.consumer_group(GROUP, ["t"]).consumer() as member:
        while member.poll(1, max_records=1) == []:
            pass
        member.commit({T0: 1})
    with reader.consumer(group_id=GROUP, stop_at_end=True) as consumer:
        consumer.assign([T0])
        assert consumer.committed(T0) == 1
        assert values(list(consumer)) == [b"2", b"3"]
    assert owner.consumer_group(GROUP).offsets()[T0] == 1, "the reader has committed nothing"


# -- groups --------------------------------------------------------------------------------------------------


def test_groups_are_seen_but_not_joined(owner: Cluster, reader: ReaderCluster) -> None:
    assert reader.groups == []
    assert reader.consumer_group(GROUP).offsets() == {}
    assert reader.consumer_group(GROUP, ["t"]).lag() == {T0: 0, ("t", 1): 0}
    write(owner, b"1", b"2", b"3")
    own = owner.consumer_group(GROUP, ["t"])
    group = reader.consumer_group(GROUP, ["t"])
    with own.consumer() as member:
        while member.assignment != {T0, ("t", 1)}:
            member.poll(0.05)
        member.commit({T0: 2})
        assert reader.groups == [GROUP]
        assert group.offsets() == own.offsets() == {T0: 2}
        assert group.lag() == own.lag() == {T0: 1, ("t", 1): 0}
        assert group.members() == own.members()
        assert [len(seen.assignment) for seen in group.members()] == [2]
        assert group.state == "Stable"
        member.commit({T0: 3})
        assert group.offsets() == {T0: 3}
    assert group.members() == []
    assert group.reset_offsets("earliest", dry_run=True) == {T0: 0, TopicPartition("t", 1): 0}
    own.delete()
    assert reader.groups == []
    assert group.offsets() == {}


def test_members_of_an_opening_that_is_over_are_gone(path: Path) -> None:
    """Nobody wrote that they left: their process was killed. What an owner drops at loading, a reader does
    not show.
    """
    cluster = streamlog.open(path, sync="off")
    cluster.create_topic("t")
    member = cluster.consumer_group(GROUP, ["t"]).consumer()
    while not member.assignment:
        member.poll(0.05)
    backup = path.with_name("copy")
    cluster.backup(backup)
    cluster.close()
    with open_reader(backup) as reader:
        assert reader.owner is None
        assert reader.consumer_group(GROUP, ["t"]).members() == []
        with streamlog.open(backup, sync="off"):
            assert reader.consumer_group(GROUP, ["t"]).members() == []


# -- writing is refused --------------------------------------------------------------------------------------

WRITING: dict[str, Any] = {
    "producer": lambda reader: reader.producer(),
    "create_topic": lambda reader: reader.create_topic("new"),
    "delete_topic": lambda reader: reader.delete_topic("t"),
    "add_partitions": lambda reader: reader.topic("t").add_partitions(9),
    "alter_config": lambda reader: reader.topic("t").alter_config({"retention.ms": 1}),
    "delete": lambda reader: reader.topic("t").delete(),
    "delete_records": lambda reader: reader.topic("t")[0].delete_records(0),
    "clean": lambda reader: reader.clean(),
    "join": lambda reader: reader.consumer_group(GROUP, ["t"]).consumer(),
    "subscribe": lambda reader: reader.consumer(group_id=GROUP).subscribe(["t"]),
    "run": lambda reader: reader.consumer_group(GROUP, ["t"]).run(print),
    "commit": lambda reader: reader.consumer(group_id=GROUP).commit({T0: 1}),
    "auto_commit": lambda reader: reader.consumer(group_id=GROUP, enable_auto_commit=True),
    "reset_offsets": lambda reader: reader.consumer_group(GROUP, ["t"]).reset_offsets("earliest"),
    "delete_group": lambda reader: reader.consumer_group(GROUP, ["t"]).delete(),
}


@pytest.mark.parametrize("call", WRITING, ids=str)
def test_every_writing_call_says_what_to_do(path: Path, call: str) -> None:
    with streamlog.open(path, sync="off") as owner:
        owner.create_topic("t")
        write(owner, b"1")
        reader = open_reader(path)
        with pytest.raises(
            ReadOnlyError,
            match=re.escape('this process has it open for writing: use the cluster of mode="rw"'),
        ):
            WRITING[call](reader)
    with pytest.raises(
        ReadOnlyError, match=re.escape('nobody owns it now: open it with mode="rw"')
    ) as caught:
        WRITING[call](reader)
    assert caught.value.path == str(path)
    assert values(reader.topic("t")[0].read()) == [b"1"]
    reader.close()


def test_a_topic_that_is_there_may_be_asked_for(reader: ReaderCluster) -> None:
    assert reader.create_topic("t", exist_ok=True).name == "t"


# -- owners come and go --------------------------------------------------------------------------------------


def test_nobody_owns_the_directory(path: Path) -> None:
    with streamlog.open(path, sync="off") as cluster:
        cluster.create_topic("t")
        write(cluster, b"1")
    with open_reader(path) as reader, open_reader(path) as second:
        assert reader.owner is None
        assert values(reader.topic("t")[0].read()) == values(second.topic("t")[0].read()) == [b"1"]
    with open_reader(path) as reader:
        assert reader.topics == ["t"]


def test_an_owner_opens_and_closes_in_the_same_process(path: Path) -> None:
    """The engine allows one environment per file in a process, in whatever order they come."""
    with streamlog.open(path, sync="off") as cluster:
        cluster.create_topic("t")
        write(cluster, b"1")
    reader = open_reader(path)
    consumer = reader.consumer()
    consumer.assign([T0])
    assert values(consumer.poll(0)) == [b"1"]
    for n in range(3):
        with streamlog.open(path, sync="off") as cluster:
            assert reader.owner is not None and reader.owner.pid == os.getpid()
            write(cluster, b"in %d" % n)
            assert values(consumer.poll(1)) == [b"in %d" % n]
            write(cluster, b"out %d" % n)
        assert reader.owner is None
        assert values(consumer.poll(1)) == [b"out %d" % n]
    reader.close()
    with streamlog.open(path) as cluster:
        assert cluster.topic("t")[0].high_watermark == 7


def test_reading_threads_survive_owners_coming_and_going(path: Path) -> None:
    with streamlog.open(path, sync="off") as cluster:
        cluster.create_topic("t")
    reader = open_reader(path)
    seen: list[bytes] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def follow() -> None:
        try:
            with reader.consumer() as consumer:
                consumer.assign([T0])
                while not done.is_set():
                    seen.extend(values(consumer.poll(0.01)))
                    reader.topic("t")[0].read(0, 1)
                seen.extend(values(consumer.poll(0)))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=follow)]
    threads[0].start()
    for n in range(20):
        with streamlog.open(path, sync="off") as cluster:
            write(cluster, b"%d" % n)
    done.set()
    for thread in threads:
        thread.join()
    reader.close()
    assert failures == []
    assert seen == [b"%d" % n for n in range(20)]


def test_a_cluster_in_memory_can_be_read_by_its_name() -> None:
    with streamlog.open(":memory:shared") as cluster:
        cluster.create_topic("t")
        write(cluster, b"1")
        with open_reader(Path(":memory:shared")) as reader, open_reader(cluster.path) as by_path:
            assert values(reader.topic("t")[0].read()) == values(by_path.topic("t")[0].read()) == [b"1"]
    with pytest.raises(NotAStreamlogDirectoryError, match="not open in this process"):
        streamlog.open(":memory:shared", mode="r")
    with pytest.raises(ConfigError, match="private"):
        streamlog.open(":memory:", mode="r")


def test_what_is_no_cluster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAStreamlogDirectoryError):
        streamlog.open(tmp_path, mode="r")
    with pytest.raises(NotAStreamlogDirectoryError):
        streamlog.open(tmp_path / "nothing", mode="r")
    assert list(tmp_path.iterdir()) == [], "a reader makes nothing"
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotAStreamlogDirectoryError):
        streamlog.open(tmp_path / "file", mode="r")


# -- the rest ------------------------------------------------------------------------------------------------


def test_a_closed_reader_says_so(owner: Cluster, path: Path) -> None:
    reader = open_reader(path)
    consumer = reader.consumer()
    consumer.assign([T0])
    topic = reader.topic("t")
    reader.close()
    reader.close()
    for call in (
        lambda: reader.topics,
        lambda: reader.topic("t"),
        lambda: reader.consumer(),
        lambda: reader.groups,
        lambda: reader.owner,
        lambda: reader.metrics(),
        lambda: reader.backup(path / "x"),
        lambda: reader.verify(),
        lambda: reader.producer(),
        lambda: topic[0].read(),
        lambda: consumer.poll(0),
    ):
        with pytest.raises(ClosedError):
            call()
    assert "closed" in repr(reader)
    with pytest.raises(ClosedError):
        reader.__enter__()


def test_one_of_two_readers_may_close(owner: Cluster, path: Path) -> None:
    first, second = open_reader(path), open_reader(path)
    first.close()
    assert second.topics == ["t"]
    with pytest.raises(ClosedError):
        first.topics  # noqa: B018
    second.close()


def test_reading_is_counted(owner: Cluster, reader: ReaderCluster) -> None:
    write(owner, b"1", b"2")
    consumer = reader.consumer(stop_at_end=True)
    consumer.assign([T0])
    assert len(list(consumer)) == 2
    name = "kafka.server:type=BrokerTopicMetrics,name=MessagesOutPerSec"
    assert reader.metrics().value(name, "Count", topic="t") == 2


def test_reprs_say_what_it_is(owner: Cluster, reader: ReaderCluster) -> None:
    assert "topics=1" in repr(reader)
    assert reader.brokers == owner.brokers and len(reader.brokers) == 1
    assert repr(reader.topic("t")[0]) == "<Partition t-0 [0, 0)>"
    assert "ClusterBeside" in repr(reader._beside)


def test_a_forked_child_is_told(owner: Cluster, reader: ReaderCluster) -> None:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            reader.topic("t")[0].read()
            said = "nothing"
        except BaseException as error:
            said = type(error).__name__
        os.write(write_end, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read_end, 100) == b"StoreForkedError"
    os.close(read_end)
    os.close(write_end)
    assert reader.topics == ["t"]


def test_an_idle_wait_looks_seldom(
    owner: Cluster, reader: ReaderCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    beside = reader._beside
    marks = beside.marks
    monkeypatch.setattr(beside, "marks", lambda: looks.append(1) or marks())
    with reader.consumer() as consumer:
        consumer.assign([T0])
        consumer.poll(0.4)
    assert 400 / LOOK_MS_MAX / 3 < len(looks) < 400 / LOOK_MS_MAX + 30


def test_a_reader_follows_the_leaders(tmp_path: Path) -> None:
    """Another process owns the directory: what its brokers do is known by the metadata log only."""
    with streamlog.open(tmp_path, brokers=3, sync="off") as owner:
        owner.create_topic("t", partitions=1, replication_factor=2)
        with owner.producer() as producer:
            producer.send("t", b"a").result(10)
            with streamlog.open(tmp_path, mode="r") as cluster:
                partition = cluster.topic("t")[0]
                reader = cluster.consumer()
                reader.assign([("t", 0)])
                assert [record.value for record in reader.poll(20)] == [b"a"]
                old = partition.leader
                owner.brokers[old].stop()
                assert partition.leader != old
                producer.send("t", b"b").result(10)
                assert [record.value for record in reader.poll(20)] == [b"b"]
                assert len(partition.read(0)) == 2
                assert len(list(cluster._backend.dump("t", 0, 0, None))) == 2
