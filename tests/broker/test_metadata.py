"""The metadata log: the image is the fold of what is committed, and only the current controller writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from streamlog.batch import seal_v2_columns
from streamlog.broker import api
from streamlog.broker.metadata import IMAGE_KIND, METADATA_LOG_ID, AppendMetadata, MetadataLog
from streamlog.broker.runner import ThreadedRuntime
from streamlog.core.cluster_image import BrokerRegistered, ControllerElected
from streamlog.errors import (
    CorruptStoreError,
    FencedLeaderEpochError,
    NotControllerError,
    StoreFullError,
    TopicAlreadyExistsError,
    UnsupportedFormatError,
)
from streamlog.storage import log
from streamlog.storage.env import Environment

Open = Callable[[], MetadataLog]


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Open]:
    """Open the same metadata log; what was opened before loses everything it had not stored, as in a crash."""
    environments: list[Environment] = []

    def opening() -> MetadataLog:
        if environments:
            environments.pop().close()
        environments.append(Environment.open(tmp_path / "metadata", sync="off"))
        return MetadataLog(environments[0], ThreadedRuntime(seed=3), 100, lambda: (2, 1))

    yield opening
    environments.pop().close()


def started(reopen: Open) -> MetadataLog:
    metadata = reopen()
    metadata.call(AppendMetadata([BrokerRegistered(0, "here"), ControllerElected(0, 4)], 0, 0))
    return metadata


def change_topics(metadata: MetadataLog) -> None:
    metadata.call(api.CreateTopic("kept", 3, 1, {"retention.ms": "7"}))
    metadata.call(api.CreateTopic("gone"))
    metadata.call(api.CreatePartitions("kept", 5))
    metadata.call(api.AlterTopicConfig("kept", {"retention.ms": None, "retention.bytes": "9"}))
    metadata.call(api.DeleteTopic("gone"))


def saved_image(metadata: MetadataLog) -> bytes | None:
    with metadata.environment.snapshot() as snapshot:
        return log.get_extra(snapshot, METADATA_LOG_ID, IMAGE_KIND)


def test_the_image_is_the_fold_of_the_log_with_or_without_its_checkpoint(reopen: Open) -> None:
    metadata = started(reopen)
    change_topics(metadata)
    before, end = metadata.image.checkpoint(), metadata.state.log_end_offset
    assert saved_image(metadata) is None and end == 7
    replayed = reopen()
    assert (replayed.image.checkpoint(), replayed.state.log_end_offset) == (before, end)
    replayed.save_checkpoint()
    loaded = reopen()
    assert saved_image(loaded) is not None
    assert (loaded.image.checkpoint(), loaded.state.log_end_offset) == (before, end)


def test_records_behind_the_checkpoint_are_folded_over_it(reopen: Open) -> None:
    metadata = started(reopen)
    change_topics(metadata)
    metadata.save_checkpoint()
    metadata.call(api.CreateTopic("later"))
    before = metadata.image.checkpoint()
    again = reopen()
    assert again.image.checkpoint() == before
    assert sorted(again.image.topics) == ["kept", "later"]
    assert len(again.image.topic("later").partitions) == 2  # the default count


@pytest.mark.parametrize(
    ("controller_epoch", "expected_offset", "refusal"),
    [
        (3, -1, FencedLeaderEpochError),
        (5, -1, NotControllerError),
        (4, 1, NotControllerError),
        (4, 3, NotControllerError),
    ],
)
def test_a_deposed_or_outrun_controller_changes_nothing(
    reopen: Open, controller_epoch: int, expected_offset: int, refusal: type[Exception]
) -> None:
    metadata = started(reopen)
    image, state = metadata.image.checkpoint(), metadata.state
    transaction_id = metadata.environment.last_transaction_id()
    with pytest.raises(refusal):
        metadata.call(AppendMetadata([BrokerRegistered(1, "there")], controller_epoch, expected_offset))
    assert (metadata.image.checkpoint(), metadata.state) == (image, state)
    assert metadata.environment.last_transaction_id() == transaction_id
    metadata.call(AppendMetadata([BrokerRegistered(1, "there")], 4, state.log_end_offset))
    assert metadata.image.active_brokers() == [0, 1]


def test_each_decision_sees_the_ones_before_it_in_the_inbox(reopen: Open) -> None:
    metadata = started(reopen)
    first, second = metadata.enqueue(api.CreateTopic("t")), metadata.enqueue(api.CreateTopic("t"))
    third = metadata.enqueue(api.CreateTopic("u"))
    metadata.advance()
    first.result(), third.result()
    with pytest.raises(TopicAlreadyExistsError):
        second.result()
    log_ids = list(metadata.image.log_ids())
    assert len(log_ids) == len(set(log_ids))


def test_a_dropped_turn_leaves_the_image_as_it_was(reopen: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = started(reopen)
    image, state = metadata.image.checkpoint(), metadata.state

    def full(turn: object) -> None:
        raise StoreFullError("full")

    with monkeypatch.context() as patched:
        patched.setattr(metadata, "_before_commit", full)
        with pytest.raises(StoreFullError):
            metadata.call(api.CreateTopic("t"))
    assert (metadata.image.checkpoint(), metadata.state) == (image, state)
    metadata.call(api.CreateTopic("t"))
    assert reopen().image.checkpoint() == metadata.image.checkpoint()


def test_log_ids_are_never_used_twice(reopen: Open) -> None:
    metadata = started(reopen)
    seen: set[int] = {METADATA_LOG_ID, 0}
    for number in range(6):
        metadata.call(api.CreateTopic("t"))
        log_ids = {partition.log_id for partition in metadata.image.topic("t").partitions}
        assert len(log_ids) == 2 and not log_ids & seen
        seen |= log_ids
        metadata.call(api.DeleteTopic("t"))
        if number == 3:
            metadata.save_checkpoint()
        metadata = reopen()


def test_an_image_that_cannot_be_read_is_done_without(reopen: Open) -> None:
    metadata = started(reopen)
    change_topics(metadata)
    metadata.save_checkpoint()
    before = metadata.image.checkpoint()
    torn = (saved_image(metadata) or b"")[:-5]
    for wrong in (torn, msgspec.msgpack.encode((4711, metadata.image.checkpoint()))):
        transaction = metadata.environment.write()
        log.put_extra(transaction, METADATA_LOG_ID, IMAGE_KIND, wrong)
        transaction.commit()
        metadata = reopen()
        assert metadata.image.checkpoint() == before


@pytest.mark.parametrize(
    ("value", "error"),
    [(msgspec.msgpack.encode(["cheese", 1]), UnsupportedFormatError), (b"\x92", CorruptStoreError)],
)
def test_a_record_of_a_newer_version_or_none_at_all(
    reopen: Open, value: bytes, error: type[Exception]
) -> None:
    metadata = started(reopen)
    state, environment = metadata.state, metadata.environment
    transaction = environment.write()
    stored = log.append(
        transaction,
        METADATA_LOG_ID,
        seal_v2_columns([None], [value], timestamps=5),
        state.log_end_offset,
        4,
        1 << 60,
    )
    log.put_checkpoint(
        transaction,
        METADATA_LOG_ID,
        msgspec.structs.replace(
            state,
            log_end_offset=state.log_end_offset + 1,
            high_watermark=state.log_end_offset + 1,
            size_bytes=state.size_bytes + stored,
            max_timestamp=1 << 60,
        ),
    )
    transaction.commit()
    with pytest.raises(error, match=f"offset {state.log_end_offset}"):
        reopen()


def test_the_image_is_saved_every_so_many_records(reopen: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamlog.broker.metadata.CHECKPOINT_EVERY_RECORDS", 4)
    metadata = started(reopen)
    metadata.call(api.CreateTopic("a"))
    assert saved_image(metadata) is None
    asked: list[None] = []
    metadata.on_checkpoint_due = lambda: asked.append(None)
    metadata.call(api.CreateTopic("b"))
    assert asked == [None] and saved_image(metadata) is None, "not in the turn"
    assert metadata.save_overdue() == 1 and saved_image(metadata) is not None
    assert metadata.save_overdue() == 0
    assert sorted(reopen().image.topics) == ["a", "b"]
