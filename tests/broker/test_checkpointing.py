"""Saving folds outside of turns: what a turn writes is bounded, whatever there is to save (law 8)."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamlog.broker import api, checkpointing, coordinator
from streamlog.broker.checkpointing import copy_of, decode_offsets, encode_offsets
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.metadata import METADATA_LOG_ID
from streamlog.broker.verification import verify_directory
from streamlog.core import group_events as events
from streamlog.record import OffsetAndMetadata, TopicPartition
from streamlog.storage import fold_checkpoints
from streamlog.storage.env import WriteTransaction
from streamlog.storage.fold_checkpoints import PIECE_BYTES_MAX, load_fold
from tests.broker.builders import opened

TOPIC = "a-topic-of-many-partitions"
ONE_PARTITION = {"offsets_topic_num_partitions": 1}


def commit(cluster: BrokerCluster, count: int, value: int = 1, group: str = "g") -> None:
    """Commit `count` partitions of one group in one turn."""
    if TOPIC not in cluster.topics:
        cluster.create_topic(TOPIC, 1_000, 1, {})
    offsets = {TopicPartition(TOPIC, n): OffsetAndMetadata(value) for n in range(count)}
    cluster.call_group(group, events.OffsetCommit(token=0, offsets=offsets))


def committed(cluster: BrokerCluster, group: str = "g") -> dict[int, int]:
    found = cluster.coordinator.committed(group, None)
    return {partition.partition: offset.offset for partition, offset in found.items()}


def saved(cluster: BrokerCluster) -> tuple[int, dict[bytes, bytes]] | None:
    log_id = cluster.coordinator.group("g").partition.log_id
    with cluster.broker.environment.snapshot() as snapshot:
        pieces = load_fold(snapshot, log_id)
    return None if pieces is None else decode_offsets(pieces)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """Bytes put by each write transaction."""
    counts: Counter[tuple[str, int]] = Counter()
    real = WriteTransaction.put

    def put(self: WriteTransaction, key: bytes, value: bytes) -> None:
        counts[str(self.environment.path), self.id] += len(value)
        real(self, key, value)

    monkeypatch.setattr(WriteTransaction, "put", put)
    return counts


@pytest.fixture
def coders(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each encoding of a checkpoint, whether it was inside a turn of one of the owners below."""
    calls: list[bool] = []
    owners: list[Any] = []

    def watched(name: str) -> None:
        real = getattr(checkpointing, name)

        def call(*arguments: Any) -> Any:
            calls.append(any(owner.turn_lock._is_owned() for owner in owners))
            return real(*arguments)

        monkeypatch.setattr(checkpointing, name, call)

    for name in ("encode_offsets", "split", "_fold_offsets"):
        watched(name)
    monkeypatch.setattr(
        BrokerCluster, "create_topic", _registering(BrokerCluster.create_topic, owners), raising=True
    )
    return calls


def _registering(real: Any, owners: list[Any]) -> Any:
    def create_topic(self: BrokerCluster, *arguments: Any) -> Any:
        owners[:] = [self.metadata, *self.brokers]
        return real(self, *arguments)

    return create_topic


def test_a_turn_writes_at_most_one_piece_however_many_offsets_there_are(
    tmp_path: Path, written: Counter[tuple[str, int]], coders: list[bool]
) -> None:
    cluster = opened(tmp_path / "c", **ONE_PARTITION)
    cluster.housekeeping.stop()  # its thread would save some of it sooner, and leave too little to be due
    for group in range(20):
        commit(cluster, 1_000, group=f"g{group}" if group else "g")
    cluster.housekeeping.save_folds()
    found = saved(cluster)
    assert found is not None and len(found[1]) == 20_000
    size = sum(len(key) + len(value) for key, value in found[1].items())
    assert size > 2 * PIECE_BYTES_MAX, "else this shows nothing"
    assert max(written.values()) <= PIECE_BYTES_MAX
    assert coders and not any(coders), "nothing is folded or encoded inside a turn"
    cluster.close()
    again = opened(tmp_path / "c", **ONE_PARTITION)
    assert committed(again) == dict.fromkeys(range(1_000), 1)
    assert again.coordinator._folds[0].records_since_checkpoint == 20_000 - found[0]
    again.close()


def test_a_turn_writes_at_most_one_piece_of_the_image(
    tmp_path: Path,
    written: Counter[tuple[str, int]],
    coders: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fold_checkpoints, "PIECE_BYTES_MAX", 4_000)
    monkeypatch.setattr("streamlog.broker.metadata.CHECKPOINT_EVERY_RECORDS", 300)
    cluster = opened(tmp_path / "c")
    cluster.housekeeping.stop()
    for number in range(300):
        cluster.create_topic(f"topic-{number}", 3, 1, {})
    assert cluster.metadata.saved_offset == 0
    before = dict(written)
    assert cluster.housekeeping.save_folds() == 1
    pieces = [count for key, count in written.items() if key not in before]
    assert len(pieces) > 5 and max(pieces) <= 4_000
    assert coders and not any(coders)
    assert cluster.metadata.saved_offset == cluster.metadata.state.log_end_offset
    with cluster.metadata.environment.snapshot() as snapshot:
        assert len(load_fold(snapshot, METADATA_LOG_ID) or ()) == len(pieces) - 1
    image = cluster.metadata.image.checkpoint()
    cluster.close()
    assert verify_directory(tmp_path / "c").problems == []
    again = opened(tmp_path / "c")
    assert again.metadata.image.checkpoint() == image
    assert again.metadata.saved_offset == again.metadata.state.log_end_offset, "nothing was replayed"
    again.close()


def test_the_copy_of_an_image_stays_as_it_is(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("a", 2, 1, {})
    offset, image = cluster.metadata.copy_image()
    kept = image.checkpoint()
    assert (offset, kept) == (cluster.metadata.state.log_end_offset, cluster.metadata.image.checkpoint())
    cluster.alter_topic("a", {"retention.ms": "5"})
    cluster.create_partitions("a", 3)
    cluster.create_topic("b", 1, 1, {})
    assert image.checkpoint() == kept and copy_of(image).checkpoint() == kept
    cluster.close()


def test_the_background_saves_what_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn only wakes it."""
    done = threading.Event()
    real = checkpointing._put

    def put(*arguments: Any) -> bool:
        result = real(*arguments)
        done.set()
        return result

    monkeypatch.setattr(checkpointing, "_put", put)
    monkeypatch.setattr(coordinator, "FOLD_CHECKPOINT_EVERY_RECORDS", 10)
    cluster = opened(tmp_path / "c", **ONE_PARTITION)
    commit(cluster, 10)
    assert done.wait(30)
    assert saved(cluster) is not None
    cluster.close()


@pytest.mark.parametrize("what", ["compacted", "truncated"])
def test_what_was_encoded_before_the_log_changed_is_not_stored_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It would bring back offsets whose tombstones compaction has taken away."""
    cluster = opened(tmp_path / "c", **ONE_PARTITION)
    cluster.housekeeping.stop()
    monkeypatch.setattr(coordinator, "FOLD_CHECKPOINT_EVERY_RECORDS", 5)
    for value in (1, 2, 3):
        commit(cluster, 5, value)
    partition = cluster.coordinator.group("g").partition
    real = checkpointing.encode_offsets

    def encode(*arguments: Any) -> list[bytes]:
        pieces = real(*arguments)
        if what == "compacted":
            cluster.housekeeping._stopped = False
            assert cluster.housekeeping._run(True, True).compacted == 1
        else:
            cluster.broker.call(api.TruncateTail(partition.topic, 0, 5))
        return pieces

    monkeypatch.setattr(checkpointing, "encode_offsets", encode)
    assert cluster.coordinator.save_overdue() == 0
    assert saved(cluster) is None
    monkeypatch.setattr(checkpointing, "encode_offsets", real)
    cluster.coordinator.overdue[0] = None
    assert cluster.coordinator.save_overdue() == 1, "the next one is as good as any"
    cluster.close()


def test_a_crash_between_two_pieces_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointing, "PIECE_KEYS_MAX", 3)
    cluster = opened(tmp_path / "c", **ONE_PARTITION)
    cluster.housekeeping.stop()
    coordinators = cluster.coordinator
    commit(cluster, 10)
    coordinators.overdue[0] = None
    assert coordinators.save_overdue() == 1
    commit(cluster, 10, 2)
    coordinators.overdue[0] = None
    real, calls = cluster.broker.call, []

    def call(request: Any, *arguments: Any) -> Any:
        calls.append(request)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(request, *arguments)

    monkeypatch.setattr(cluster.broker, "call", call)
    with pytest.raises(KeyboardInterrupt):
        coordinators.save_overdue()
    monkeypatch.undo()
    found = saved(cluster)
    assert found is not None and found[0] == 10
    cluster.close()
    assert verify_directory(tmp_path / "c").problems == []
    again = opened(tmp_path / "c", **ONE_PARTITION)
    assert committed(again) == dict.fromkeys(range(10), 2)
    again.close()


def test_pieces_of_offsets_come_back_as_one() -> None:
    latest = {b"%06d" % number: b"v" * 50 for number in range(10_000)}
    pieces = encode_offsets(77, latest)
    assert len(pieces) > 2 and decode_offsets(pieces) == (77, latest)
    assert decode_offsets(encode_offsets(0, {})) == (0, {})
    large = {b"%d" % number: bytes(PIECE_BYTES_MAX // 2) for number in range(5)}
    assert decode_offsets(encode_offsets(1, large)) == (1, large)
    assert len(encode_offsets(1, large)) == 5


def test_damaged_pieces_are_told() -> None:
    pieces = encode_offsets(77, {b"%06d" % number: b"v" for number in range(10_000)})
    for damaged in ([b"", *pieces[1:]], [encode_offsets(76, {b"k": b"v"})[0], *pieces[1:]], [b"\xc1"]):
        with pytest.raises(msgspec.DecodeError):
            decode_offsets(damaged)
