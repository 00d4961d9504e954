"""streamlog/broker/verification.py: log ids become partitions, folds from checkpoints equal folds from the
start.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamlog
from streamlog import TopicPartition
from streamlog.broker import coordinator, metadata
from streamlog.broker.groups_beside import OffsetsFold
from streamlog.broker.metadata import IMAGE_KIND, METADATA_LOG_ID
from streamlog.broker.stores_beside import load_image
from streamlog.broker.verification import ProgressNow, verify_directory
from streamlog.core.cluster_image import CONSUMER_OFFSETS_TOPIC, ClusterImage, ImageCheckpoint
from streamlog.core.group import group_partition
from streamlog.errors import NotAStreamlogDirectoryError
from streamlog.storage import log
from streamlog.storage.env import Environment
from streamlog.storage.keys import CheckpointKind, pack_key
from tests.waiting import until

T0 = TopicPartition("t", 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed cluster: t (two partitions, 30 records), u deleted, c compacted, group g."""
    path = tmp_path / "data"
    with streamlog.open(path, sync="off") as cluster:
        cluster.create_topic("t", partitions=2)
        cluster.create_topic("u")
        cluster.create_topic("c", config={"cleanup.policy": "compact"})
        with cluster.producer() as producer:
            for number in range(30):
                producer.send("t", b"%d" % number, partition=number % 2)
                producer.send("c", b"%d" % number, key=b"%d" % (number % 3))
                if number % 10 == 0:
                    producer.flush()
        commit(cluster, "g", 7)
        cluster.delete_topic("u")
        cluster.clean()
    return path


def commit(cluster: Any, group: str, offset: int) -> None:
    with cluster.consumer(group_id=group) as consumer:
        consumer.assign([T0])
        consumer.commit({T0: offset})


class Opened:
    """An environment of a closed cluster, to damage it."""

    def __init__(self, path: Path) -> None:
        self.environment = Environment.open(path, sync="off")

    def __enter__(self) -> Environment:
        return self.environment

    def __exit__(self, *_: object) -> None:
        self.environment.close()


def log_id_of(path: Path, topic: str, number: int = 0) -> int:
    with streamlog.open(path, mode="r") as reader:
        return reader._backend.topic(topic).partitions[number].log_id


def test_a_sound_cluster(path: Path) -> None:
    told: list[ProgressNow] = []
    report = verify_directory(path, told.append)
    assert report.problems == [] and report.is_sound and report.orphans == []
    assert (report.owner_pid, report.files_checked) == (None, True)
    assert (report.topics, report.groups) == (3, 1)
    partitions = [partition for partition in report.partitions if partition.topic != CONSUMER_OFFSETS_TOPIC]
    assert partitions == [("t", 0), ("t", 1), ("c", 0)]
    assert report.partitions[T0].records == 15
    assert report.partitions[TopicPartition("c", 0)].was_compacted
    assert report.batches == sum(walked.batches for walked in report.partitions.values()) + metadata_batches(
        path
    )
    assert {now.stage for now in told} == {"files", "structure", "batches", "folds"}
    done = [now.done_bytes for now in told]
    assert done == sorted(done) and done[-1] == told[-1].total_bytes == report.size_bytes


def metadata_batches(path: Path) -> int:
    with Opened(path / "metadata") as environment, environment.snapshot() as snapshot:
        return len(list(log.iterate_headers(snapshot, METADATA_LOG_ID)))


def test_in_the_owners_process_and_on_an_empty_cluster(tmp_path: Path) -> None:
    with (
        streamlog.open(tmp_path / "new", sync="off") as cluster,
        streamlog.open(cluster.path, mode="r") as reader,
    ):
        report = reader.verify()
        assert report.problems == []
        assert (report.topics, report.partitions, report.files_checked) == (0, {}, False)
        assert report.owner_pid is not None


def test_no_cluster_is_an_error_not_a_problem(tmp_path: Path) -> None:
    with pytest.raises(NotAStreamlogDirectoryError):
        verify_directory(tmp_path)


def test_problems_name_topic_and_partition(path: Path) -> None:
    log_id = log_id_of(path, "t", 1)
    with Opened(path / "broker-0") as environment:
        with environment.snapshot() as snapshot:
            value = bytearray(snapshot.get(pack_key(log_id, 0)) or b"")
            key = pack_key(log_id, 0)
            if not value:
                newest = log.newest_place(snapshot, log_id)
                assert newest is not None
                key = pack_key(log_id, newest[0])
                value = bytearray(snapshot.get(key) or b"")
        value[-1] ^= 4
        transaction = environment.write()
        transaction.put(key, bytes(value))
        transaction.commit()
    [problem] = verify_directory(path).problems
    assert (problem.environment, problem.topic, problem.partition, problem.log_id) == (
        "broker-0",
        "t",
        1,
        log_id,
    )
    assert str(problem).startswith("broker-0: t-1, batch ending at ")


def test_an_orphan_is_told_but_no_problem(path: Path) -> None:
    with Opened(path / "broker-0") as environment:
        transaction = environment.write()
        transaction.put(pack_key(999, 3), b"left over")
        transaction.commit()
    report = verify_directory(path)
    assert report.problems == []
    assert [(orphan.environment, orphan.log_id, orphan.batches) for orphan in report.orphans] == [
        ("broker-0", 999, 1)
    ]


def test_damaged_pages_are_found_and_not_walked(path: Path) -> None:
    file = path / "broker-0" / "data.mdb"
    data = bytearray(file.read_bytes())
    page = 4096
    for start in range(2 * page, len(data), page):
        data[start + 10 : start + 16] = b"\xff" * 6
    file.write_bytes(bytes(data))
    report = verify_directory(path)
    assert report.files_checked and not report.is_sound
    assert {problem.environment for problem in report.problems} == {"broker-0"}
    assert report.topics == 3, "the metadata is whole"
    assert report.partitions == {}


def test_a_metadata_log_that_cannot_be_folded(path: Path) -> None:
    with Opened(path / "metadata") as environment:
        with environment.snapshot() as snapshot:
            newest = log.newest_place(snapshot, METADATA_LOG_ID)
            assert newest is not None
            key = pack_key(METADATA_LOG_ID, newest[0])
            value = bytearray(snapshot.get(key) or b"")
        value[-1] ^= 1
        transaction = environment.write()
        transaction.put(key, bytes(value))
        transaction.commit()
    report = verify_directory(path)
    said = [(problem.environment, problem.what) for problem in report.problems]
    assert ("metadata", "the batch is corrupt") in said
    assert ("metadata", "the cluster's image cannot be folded") in said


# -- folds ---------------------------------------------------------------------------------------------------


def test_an_image_checkpoint_that_lies_is_found(path: Path) -> None:
    with Opened(path / "metadata") as environment:
        image = ClusterImage()
        with environment.snapshot() as snapshot:
            end = load_image(snapshot, image, 0)
        transaction = environment.write()
        log.put_extra(
            transaction, METADATA_LOG_ID, IMAGE_KIND, msgspec.msgpack.encode((end, image.checkpoint()))
        )
        transaction.commit()
    assert verify_directory(path).is_sound
    with Opened(path / "metadata") as environment:
        lie = msgspec.structs.replace(image.checkpoint(), next_log_id=4711)
        transaction = environment.write()
        log.put_extra(transaction, METADATA_LOG_ID, IMAGE_KIND, msgspec.msgpack.encode((end, lie)))
        transaction.commit()
    [problem] = verify_directory(path).problems
    assert problem.what == "the image's checkpoint has other next_log_id"
    assert (problem.expected, problem.actual) == (str(image.next_log_id), "4711")


def test_checkpoints_that_cannot_be_read_are_found_and_done_without(path: Path) -> None:
    log_id = log_id_of(path, CONSUMER_OFFSETS_TOPIC, group_partition("g"))
    for name, owner in (("metadata", METADATA_LOG_ID), ("broker-0", log_id)):
        with Opened(path / name) as environment:
            transaction = environment.write()
            log.put_extra(transaction, owner, IMAGE_KIND, b"\x92\x07")
            transaction.commit()
    said = [
        (problem.environment, problem.what, problem.actual) for problem in verify_directory(path).problems
    ]
    assert said == [
        ("metadata", "the cluster's image cannot be folded", said[0][2]),
        ("broker-0", "the groups cannot be folded", "the fold's checkpoint cannot be decoded"),
    ]
    with streamlog.open(path, mode="r") as reader:
        assert reader.consumer_group("g", ["t"]).offsets()


def test_a_groups_checkpoint_that_lies_is_found(path: Path) -> None:
    number = group_partition("g")
    log_id = log_id_of(path, CONSUMER_OFFSETS_TOPIC, number)
    with Opened(path / "broker-0") as environment:
        fold = OffsetsFold(log_id)
        with environment.snapshot() as snapshot:
            checkpoint = log.load_checkpoint(snapshot, log_id)
            assert checkpoint is not None
            while fold.advance(snapshot, checkpoint.log_end_offset):
                pass
        for latest in (fold.latest, {}):
            transaction = environment.write()
            value = msgspec.msgpack.encode((checkpoint.log_end_offset, latest))
            log.put_extra(transaction, log_id, CheckpointKind.FOLD, value)
            transaction.commit()
            environment.close()
            problems = verify_directory(path).problems
            if latest:
                assert problems == []
                environment = Environment.open(path / "broker-0", sync="off")
    [problem] = problems
    assert problem.what == "group 'g' is another in the fold's checkpoint"
    assert (problem.topic, problem.partition) == (CONSUMER_OFFSETS_TOPIC, number)
    assert "offset=7" in problem.expected


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Folds are checkpointed all the time."""
    monkeypatch.setattr(coordinator, "FOLD_CHECKPOINT_EVERY_RECORDS", 5)
    monkeypatch.setattr(metadata, "CHECKPOINT_EVERY_RECORDS", 3)
    yield


def test_state_rebuilt_by_replay_equals_state_from_checkpoints(tmp_path: Path, often: None) -> None:
    """Topics come and go, groups commit, are emptied and deleted, the offsets topic is compacted: the owner's
    own state, the state from its checkpoints and the state from the whole log are one.
    """
    path = tmp_path / "data"
    for opening in range(3):
        with streamlog.open(path, sync="off") as cluster, streamlog.open(path, mode="r") as reader:
            cluster.create_topic("t", exist_ok=True)
            for turn in range(8):
                name = f"topic-{opening}-{turn}"
                cluster.create_topic(name, partitions=1 + turn % 3)
                if turn % 2:
                    cluster.delete_topic(name)
                else:
                    cluster.topic(name).alter_config({"retention.ms": 1000 + turn})
                for group in range(4):
                    commit(cluster, f"g{group}", 10 * opening + turn)
                if turn == 5:
                    cluster.consumer_group("g3").delete()
                if turn == 6:
                    cluster.clean()
                assert reader.verify().problems == []
            with cluster.consumer_group("live", ["t"]).consumer() as member:
                while not member.assignment:
                    member.poll(0.05)
                assert reader.verify().problems == []
            check_same(cluster, reader)
        assert verify_directory(path).problems == []
    with Opened(path / "metadata") as environment, environment.snapshot() as snapshot:
        saved = log.get_extra(snapshot, METADATA_LOG_ID, IMAGE_KIND)
        assert saved is not None, "there was a checkpoint to compare"
        assert msgspec.msgpack.decode(saved, type=tuple[int, ImageCheckpoint])[0] > 10


def check_same(cluster: Any, reader: Any) -> None:
    """The live state of the owner against what a reader folds."""
    own, folded = cluster._backend.metadata.image, reader._beside.image()
    assert own.checkpoint() == folded.checkpoint()
    live = {
        hosted.group_id: hosted.machine
        for hosted in cluster._backend.coordinator.groups()
        if not hosted.machine.is_vacant
    }
    seen = {
        group.group_id: group.machine
        for group in reader._beside.coordinator.groups()
        if not group.machine.is_vacant
    }
    assert sorted(live) == sorted(seen) == ["g0", "g1", "g2", "g3", "live"]
    for group_id, machine in live.items():
        assert machine.all_committed() == seen[group_id].all_committed()
        assert machine.view().generation == seen[group_id].view().generation
        assert machine.state == seen[group_id].state


def test_a_lost_checkpoint_costs_time_only(path: Path) -> None:
    """A checkpoint is a cache: opening rebuilds it from the batches, and nothing is overwritten."""
    log_id = log_id_of(path, "t")
    with Opened(path / "broker-0") as environment:
        transaction = environment.write()
        assert transaction.delete(pack_key(log_id, 1 << 63))
        transaction.commit()
    assert [problem.what for problem in verify_directory(path).problems] == ["the checkpoint is missing"]
    with streamlog.open(path, sync="off") as cluster:
        assert cluster.topic("t")[0].high_watermark == 15
        with cluster.producer() as producer:
            assert producer.send("t", b"next", partition=0).result(5).offset == 15
    assert verify_directory(path).problems == []


@pytest.fixture
def replicated(tmp_path: Path) -> Path:
    """A closed cluster of two brokers whose partition was led in several epochs, one of which wrote nothing."""
    path = tmp_path / "data"
    with streamlog.open(path, brokers=2, sync="off") as cluster:
        cluster.create_topic("t", replication_factor=2)
        with cluster.producer() as producer:
            for number in range(5):
                if number != 2:
                    producer.send("t", b"%d" % number).result(20)
                partition = cluster.topic("t")[0]
                broker = cluster.brokers[partition.leader]
                broker.stop()
                broker.start()
                until(
                    lambda partition=partition: len(partition.isr) == 2
                )  # else it may be closed before it has heard of all epochs
            producer.send("t", b"last").result(20)
    return path


def test_leader_epochs_fit_their_batches(replicated: Path) -> None:
    report = verify_directory(replicated)
    assert not report.problems
    environment = Environment.open(replicated / "broker-0")
    [(log_id, entries)] = [item for item in epochs_of(environment).items() if len(item[1]) > 2]
    wrong = [*entries[:-1], (entries[-1][0] + 1, entries[-1][1])]
    transaction = environment.write()
    log.put_extra(transaction, log_id, CheckpointKind.LEADER_EPOCHS, msgspec.msgpack.encode(wrong))
    transaction.commit()
    environment.close()
    [problem] = verify_directory(replicated).problems
    assert problem.what.startswith("the list of leader epochs has another one for offset")
    assert (problem.environment, problem.topic, problem.partition) == ("broker-0", "t", 0)


def test_what_waits_to_be_trimmed_has_no_epoch_any_more(replicated: Path) -> None:
    """A process may be killed between the deletion of a log's head and its trimming."""
    environment = Environment.open(replicated / "broker-0")
    [(log_id, entries)] = [item for item in epochs_of(environment).items() if len(item[1]) > 2]
    with environment.snapshot() as snapshot:
        checkpoint = log.load_checkpoint(snapshot, log_id)
    assert checkpoint is not None and entries[-1][1] > 0
    transaction = environment.write()
    log.put_checkpoint(
        transaction, log_id, msgspec.structs.replace(checkpoint, log_start_offset=entries[-1][1])
    )
    log.put_extra(transaction, log_id, CheckpointKind.LEADER_EPOCHS, msgspec.msgpack.encode(entries[-1:]))
    transaction.commit()
    environment.close()
    assert verify_directory(replicated).problems == []


def epochs_of(environment: Environment) -> dict[int, list[tuple[int, int]]]:
    with environment.snapshot() as snapshot:
        return {
            log_id: msgspec.msgpack.decode(value, type=list[tuple[int, int]])
            for log_id in log.log_ids(snapshot)
            if (value := log.get_extra(snapshot, log_id, CheckpointKind.LEADER_EPOCHS)) is not None
        }
