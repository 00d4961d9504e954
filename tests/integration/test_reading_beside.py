"""Reading beside an owner in another process that writes, deletes, compacts, enforces retention and is
killed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import streamlog
from streamlog import TopicPartition
from streamlog.client.reader_cluster import ReaderCluster
from streamlog.errors import (
    ClusterLockedError,
    OffsetOutOfRangeError,
    ReadOnlyError,
    UnknownTopicOrPartitionError,
)
from tests.integration.owner_process import OwnerProcess

pytestmark = pytest.mark.integration

T0 = TopicPartition("t", 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def owner(path: Path) -> Iterator[OwnerProcess]:
    with OwnerProcess(path, sync="off") as owner:
        owner("cluster.create_topic('t')")
        yield owner


@pytest.fixture
def reader(owner: OwnerProcess, path: Path) -> Iterator[ReaderCluster]:
    reader = streamlog.open(path, mode="r")
    assert isinstance(reader, ReaderCluster)
    with reader:
        yield reader


def follow(consumer: streamlog.Consumer, until: int, timeout: float = 20) -> list[streamlog.Record]:
    """Poll until a record with offset >= `until` came."""
    records: list[streamlog.Record] = []
    deadline = time.monotonic() + timeout
    while not records or records[-1].offset < until:
        assert time.monotonic() < deadline, f"only {len(records)} records"
        records += consumer.poll(1)
    return records


def test_what_the_owner_has_acknowledged_is_there(owner: OwnerProcess, reader: ReaderCluster) -> None:
    """No wait: an acknowledgement means a commit, and the next look sees every commit."""
    partition = reader.topic("t")[0]
    with reader.consumer() as consumer:
        consumer.assign([T0])
        for n in range(20):
            end = owner(f"write('t', {n * 5}, 5)")
            assert partition.high_watermark == end
            assert [record.value for record in consumer.poll(0)] == [
                b"%d" % i for i in range(n * 5, n * 5 + 5)
            ]


def test_topics_groups_and_owner(owner: OwnerProcess, reader: ReaderCluster, path: Path) -> None:
    assert reader.owner is not None and reader.owner.pid == owner.pid
    owner("cluster.create_topic('u', partitions=3)")
    assert reader.topics == ["t", "u"]
    owner("cluster.topic('u').add_partitions(4)")
    assert len(reader.topic("u")) == 4
    owner("write('t', 0, 10)")
    assert owner("join('g', 't')") == ["t-0"]
    owner("members[0].commit({('t', 0): 7})")
    group = reader.consumer_group("g", ["t"])
    assert reader.groups == ["g"]
    assert (group.offsets(), group.lag()) == ({T0: 7}, {T0: 3})
    assert [member.assignment for member in group.members()] == [(T0,)]
    owner("commit('h', 't', 2)")
    assert reader.groups == ["g", "h"]
    owner("cluster.delete_topic('u')")
    assert reader.topics == ["t"]
    with pytest.raises(
        ReadOnlyError, match=re.escape(f"process {owner.pid} (owner_process.py) owns it")
    ) as caught:
        reader.create_topic("v")
    assert caught.value.facts["pid"] == owner.pid
    with pytest.raises(ClusterLockedError):
        streamlog.open(path)


def test_members_of_a_killed_owner_are_gone(owner: OwnerProcess, reader: ReaderCluster, path: Path) -> None:
    owner("write('t', 0, 10)")
    owner("join('g', 't')")
    group = reader.consumer_group("g", ["t"])
    assert len(group.members()) == 1
    owner.kill()
    assert reader.owner is None
    assert group.members() == []
    with OwnerProcess(path, sync="off"):
        assert group.members() == [], "of another opening"
        assert group.state == "Empty"


def test_following_while_it_writes_and_is_killed(
    owner: OwnerProcess, reader: ReaderCluster, path: Path
) -> None:
    """Across four owners, three of them killed while they write: every record once, in order, none
    half-written.
    """
    consumer = reader.consumer()
    consumer.assign([T0])
    seen: list[streamlog.Record] = []
    for _ in range(4):
        owner.start("write_forever('t', size=200)")
        seen += follow(consumer, (seen[-1].offset if seen else -1) + 500)
        owner.kill()
        seen += consumer.poll(0.2, max_records=1_000_000)
        owner = OwnerProcess(path, sync="off")
    end = owner("cluster.topic('t')[0].high_watermark")
    if seen[-1].offset + 1 < end:
        seen += follow(consumer, end - 1)
    assert [record.offset for record in seen] == list(range(end))
    runs = [int(record.value or b"") for record in seen]
    assert all(after in (before + 1, 0) for before, after in pairwise(runs))
    assert runs.count(0) == 4
    assert consumer.poll(0) == []
    assert reader.verify(check_files=False).problems == []
    owner.kill()
    assert reader.verify().problems == []


def test_a_topic_that_is_deleted_and_made_anew_is_never_mixed(
    owner: OwnerProcess, reader: ReaderCluster
) -> None:
    """What is read is always the beginning of one topic's records, with no gap, or the named error."""
    owner.start("churn('churn')")
    whole = gone = 0
    deadline = time.monotonic() + 20
    while (whole < 30 or gone < 3) and time.monotonic() < deadline:
        try:
            records = reader.topic("churn")[0].read(0, 1000)
        except (UnknownTopicOrPartitionError, streamlog.errors.NotLeaderOrFollowerError):
            gone += 1
            continue
        pairs = [tuple(map(int, (record.value or b"").split())) for record in records]
        assert [number for _, number in pairs] == list(range(len(pairs)))
        assert len({generation for generation, _ in pairs}) <= 1
        whole += bool(pairs)
    assert whole >= 30 and gone >= 3


def test_retention_beside_a_reader(owner: OwnerProcess, reader: ReaderCluster) -> None:
    """The start moves up under the reader: it is told, or goes on from the new start; never a silent gap in
    between.
    """
    owner("cluster.create_topic('short', config={'retention.bytes': 20_000})")
    owner.start("write_forever('short', size=500)")
    partition = reader.topic("short")[0]
    deadline = time.monotonic() + 20
    out_of_range = read = 0
    while (partition.log_start_offset == 0 or read < 200) and time.monotonic() < deadline:
        start = partition.log_start_offset
        try:
            records = partition.read(max(1, start), 50)
        except OffsetOutOfRangeError:
            out_of_range += 1
            continue
        offsets = [record.offset for record in records]
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets))) if offsets else True
        assert not offsets or offsets[0] == max(1, start)
        read += 1
    assert read >= 200
    with reader.consumer(auto_offset_reset="earliest") as consumer:
        consumer.assign([("short", 0)])
        consumer.seek(("short", 0), 0)
        assert consumer.poll(2)[0].offset >= partition.log_start_offset - 1000 > -1000


def test_compaction_beside_a_reader(owner: OwnerProcess, reader: ReaderCluster) -> None:
    """Any one read sees each key's records in order and loses no key's newest."""
    owner(
        "cluster.create_topic('c', config={'cleanup.policy': 'compact', 'min.cleanable.dirty.ratio': 0.01})"
    )
    owner("write('c', 0, 100)")
    owner.start("write_forever('c')")
    owner.start("clean_forever()")
    partition = reader.topic("c")[0]
    holes = 0
    deadline = time.monotonic() + 20
    while holes < 20 and time.monotonic() < deadline:
        end = partition.high_watermark
        offsets: list[int] = []
        keys: dict[bytes, int] = {}
        with reader.consumer(stop_at_end=True) as consumer:
            consumer.assign([("c", 0)])
            for record in consumer:
                offsets.append(record.offset)
                keys[record.key or b""] = record.offset
        assert offsets == sorted(set(offsets))
        assert set(keys) == {b"%d" % n for n in range(10)}
        assert min(keys.values()) >= end - 10, "the newest of each key is among the last ten offsets"
        holes += len(offsets) < offsets[-1] + 1
    assert holes >= 20


def test_verifying_and_copying_beside_a_writer(
    owner: OwnerProcess, reader: ReaderCluster, tmp_path: Path
) -> None:
    owner("cluster.create_topic('c', config={'cleanup.policy': 'compact', 'retention.bytes': 100_000})")
    owner.start("write_forever('t', size=100)")
    owner.start("write_forever('c', size=100)")
    owner.start("churn('churn')")
    owner.start("clean_forever()")
    owner("commit('g', 't', 3)")
    follow_end = reader.topic("t")[0].high_watermark + 2000
    rounds = 0
    while reader.topic("t")[0].high_watermark < follow_end or rounds < 5:
        report = reader.verify()
        assert report.problems == []
        assert (report.owner_pid, report.files_checked) == (owner.pid, False)
        copy = tmp_path / f"copy-{rounds}"
        reader.backup(copy)
        with streamlog.open(copy, mode="r") as copied:
            assert isinstance(copied, ReaderCluster)
            assert copied.verify().problems == []
            assert copied.consumer_group("g", ["t"]).offsets() == {T0: 3}
            assert copied.topic("t")[0].high_watermark <= reader.topic("t")[0].high_watermark
        rounds += 1


def test_a_reader_that_was_there_first(path: Path) -> None:
    """A reader does not keep an owner out, nor does it notice when one takes over from another."""
    with OwnerProcess(path, sync="off") as first:
        first("cluster.create_topic('t')")
        first("write('t', 0, 5)")
    with streamlog.open(path, mode="r") as reader:
        consumer = reader.consumer()
        consumer.assign([T0])
        assert len(consumer.poll(0)) == 5
        with OwnerProcess(path, sync="full") as second:
            second("write('t', 5, 5)")
            assert [record.offset for record in consumer.poll(0)] == [5, 6, 7, 8, 9]
