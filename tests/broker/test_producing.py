"""Produce: the turn of one that is alone does what any other turn does, and leaves to it what is not usual."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamlog.broker import api, producing
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.runner import ThreadedRuntime
from streamlog.broker.turn import Pending
from streamlog.clock import ManualClock
from streamlog.core.cluster_image import CONSUMER_OFFSETS_TOPIC
from streamlog.errors import (
    InvalidRecordError,
    InvalidTimestampError,
    InvalidTopicError,
    RecordTooLargeError,
    StoreFullError,
    UnknownTopicOrPartitionError,
)
from tests.broker.builders import batch_of, in_thread, opened, produce, values_of
from tests.broker.interrupting import count_places, interrupted_at, places

SEED = 20_263
LOG_APPEND_TIME = "the reply tells the broker's time"
NOW_MS = 1_700_000_000_000


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What `run_alone` answered, request by request."""
    answers: list[bool] = []
    run = producing.run_alone
    monkeypatch.setattr(producing, "run_alone", lambda *given: answers.append(run(*given)) or answers[-1])
    return answers


def filled(path: Path, config: dict[str, str]) -> dict[str, Any]:
    """Everything that five requests leave behind."""
    clock = ManualClock()
    clock.set_wall_ms(NOW_MS)
    cluster = opened(path, ThreadedRuntime(clock))
    try:
        cluster.create_topic("t", 2, 1, config)
        cluster.partition("t", 0), cluster.partition("t", 1)
        replies = []
        for number, timestamp in enumerate((5, 3, 9, 9, 1)):
            values = [b"%d" % number] * (1 + number % 2)
            clock.advance(number)
            replies.append(produce(cluster, "t", number % 2, *values, timestamp=timestamp))
        broker = cluster.broker
        with broker.environment.snapshot() as snapshot:
            stored = [(bytes(key), bytes(value)) for key, value in snapshot.cursor()]
        metrics = {
            name: values
            for name, values in cluster.metrics.snapshot().items()
            if "BrokerTopicMetrics" in name or "request=Produce" in name
        }
        states = [cluster.partition("t", number).state for number in (0, 1)]
        return {"replies": replies, "stored": stored, "metrics": metrics, "states": states}
    finally:
        cluster.close()


def test_a_lone_produce_leaves_behind_what_a_general_turn_does(tmp_path: Path, alone: list[bool]) -> None:
    by_itself = filled(tmp_path / "alone", {})
    assert alone == [True] * 5
    general = filled(tmp_path / "general", {"retention.bytes": "1000000000"})
    assert alone[5:] == [False] * 5
    assert by_itself == general
    assert [reply.base_offset for reply in general["replies"]] == [0, 0, 1, 2, 2]
    assert general["metrics"], "there was something to compare"


@pytest.mark.parametrize(
    ("config", "sent", "error"),
    [
        ({"cleanup.policy": "compact"}, batch_of(b"x"), InvalidRecordError),
        ({"max.message.bytes": "100"}, batch_of(b"x" * 100), RecordTooLargeError),
        ({}, batch_of(b"x", timestamp=1 << 60), InvalidTimestampError),
        ({"message.timestamp.before.max.ms": "1000"}, batch_of(b"x", timestamp=1), InvalidTimestampError),
        ({"message.timestamp.type": "LogAppendTime"}, batch_of(b"x"), LOG_APPEND_TIME),
        ({"compression.type": "zstd"}, batch_of(b"x"), None),
        ({"flush.messages": "1"}, batch_of(b"x"), None),
        ({}, batch_of(b"x").with_log_append_time(1), LOG_APPEND_TIME),
    ],
)
def test_the_unusual_is_left_to_the_general_turn(
    tmp_path: Path, alone: list[bool], config: dict[str, str], sent: Any, error: Any
) -> None:
    cluster = opened(tmp_path)
    try:
        cluster.create_topic("t", 1, 1, config)
        cluster.partition("t", 0)
        [produced] = cluster.broker.call(api.Produce([("t", 0, sent)]))
        assert alone == [False]
        if error is LOG_APPEND_TIME:
            assert produced.log_append_time > 0
        elif error is None:
            assert produced.error is None and produced.base_offset == 0
        else:
            assert isinstance(produced.error, error)
    finally:
        cluster.close()


def test_requests_the_general_turn_has_to_answer(tmp_path: Path, alone: list[bool]) -> None:
    cluster = opened(tmp_path)
    try:
        cluster.create_topic("t", 1, 1, {})
        call = cluster.broker.call
        [unknown] = call(api.Produce([("nowhere", 0, batch_of(b"x"))]))
        assert isinstance(unknown.error, UnknownTopicOrPartitionError)
        assert produce(cluster, "t", 0, b"first: the log is loaded").base_offset == 0
        two = call(api.Produce([("t", 0, batch_of(b"x")), ("t", 0, batch_of(b"y"))]))
        assert [produced.base_offset for produced in two] == [1, 2]
        call(api.Produce([]))
        assert alone == [False] * 4
        assert produce(cluster, "t", 0, b"usual").base_offset == 3
        assert alone[4:] == [True]
        cluster.delete_topic("t")
        cluster.create_topic("t", 1, 1, {})
        assert produce(cluster, "t", 0, b"of the new topic").base_offset == 0
        assert alone[-1] is False
    finally:
        cluster.close()


def test_an_internal_topic_is_refused(tmp_path: Path, alone: list[bool]) -> None:
    cluster = opened(tmp_path)
    try:
        cluster.ensure_offsets_topic()
        cluster.partition(CONSUMER_OFFSETS_TOPIC, 0)
        [produced] = cluster.broker.call(api.Produce([(CONSUMER_OFFSETS_TOPIC, 0, batch_of(b"x"))]))
        assert isinstance(produced.error, InvalidTopicError)
        assert alone == [False]
    finally:
        cluster.close()


def test_who_wants_no_ack_is_told_no_offset(tmp_path: Path, alone: list[bool]) -> None:
    cluster = opened(tmp_path)
    try:
        cluster.create_topic("t", 1, 1, {})
        cluster.partition("t", 0)
        [produced] = cluster.broker.call(api.Produce([("t", 0, batch_of(b"x"))], acks=0))
        assert (produced.base_offset, produced.error) == (-1, None)
        assert alone == [False] and values_of(cluster, "t", 0) == [(0, b"x")]
    finally:
        cluster.close()


def test_options_that_change_are_looked_at_again(tmp_path: Path, alone: list[bool]) -> None:
    cluster = opened(tmp_path)
    try:
        cluster.create_topic("t", 1, 1, {})
        cluster.partition("t", 0)
        produce(cluster, "t", 0, b"usual")
        cluster.alter_topic("t", {"max.message.bytes": "100"})
        with pytest.raises(RecordTooLargeError):
            produce(cluster, "t", 0, bytes(100))
        cluster.alter_topic("t", {"cleanup.policy": "compact"})
        with pytest.raises(InvalidRecordError):
            produce(cluster, "t", 0, b"no key")
        assert alone == [True, False, False]
    finally:
        cluster.close()


def test_a_store_that_is_full_is_told_and_nothing_is_kept(
    tmp_path: Path, alone: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = opened(tmp_path)
    try:
        cluster.create_topic("t", 1, 1, {})
        cluster.partition("t", 0)
        append = producing.log.append_alone

        def full(*given: Any) -> None:
            append(*given)
            raise StoreFullError("full")

        monkeypatch.setattr(producing.log, "append_alone", full)
        with pytest.raises(StoreFullError):
            produce(cluster, "t", 0, b"no room")
        assert alone == [True]
        monkeypatch.undo()
        assert produce(cluster, "t", 0, b"room").base_offset == 0
        assert values_of(cluster, "t", 0) == [(0, b"room")]
    finally:
        cluster.close()


def test_what_cannot_be_applied_at_first_is_applied_again(
    tmp_path: Path, alone: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = opened(tmp_path)
    try:
        cluster.create_topic("t", 1, 1, {})
        broker = cluster.broker
        cluster.partition("t", 0)
        apply, failures = broker._apply, [MemoryError(), MemoryError()]

        def flaky(turn: Any) -> None:
            if failures:
                raise failures.pop()
            apply(turn)

        monkeypatch.setattr(broker, "_apply", flaky)
        assert produce(cluster, "t", 0, b"x").base_offset == 0
        assert alone == [True] and not failures
        assert values_of(cluster, "t", 0) == [(0, b"x")]
        assert cluster.metrics.snapshot()[MESSAGES_IN]["Count"] == 1
    finally:
        cluster.close()


MESSAGES_IN = "kafka.server:type=BrokerTopicMetrics,name=MessagesInPerSec,topic=t"


def test_a_callback_added_to_the_request_is_run(tmp_path: Path) -> None:
    cluster = opened(tmp_path)
    try:
        cluster.create_topic("t", 1, 1, {})
        cluster.partition("t", 0)
        told: list[Pending] = []
        pending = cluster.broker.post(api.Produce([("t", 0, batch_of(b"x"))]), on_done=told.append)
        assert told == [pending] and pending.reply[0].base_offset == 0
    finally:
        cluster.close()


def sweep(cluster: BrokerCluster, count: int) -> None:
    total = count_places(lambda: produce(cluster, "t", 0, b"measured"))
    print(f"seed {SEED}, {total} places")
    for place in places(total, count, SEED):
        before = [value for _, value in values_of(cluster, "t", 0)]
        token, after = b"struck %d" % place, b"after %d" % place
        where = interrupted_at(place, lambda token=token: produce(cluster, "t", 0, token))
        if where is not None:
            assert cluster.broker._unfinished is None or not cluster.broker._unfinished.committed, where
        produced = in_thread(lambda after=after: produce(cluster, "t", 0, after)).result()
        values = [value for _, value in values_of(cluster, "t", 0)]
        assert values in ([*before, token, after], [*before, after]), where
        assert produced.base_offset == len(values) - 1, where
        assert cluster.metrics.snapshot()[MESSAGES_IN]["Count"] <= len(values), where


def swept(tmp_path: Path, count: int) -> None:
    cluster = opened(tmp_path)
    try:
        cluster.create_topic("t", 1, 1, {})
        produce(cluster, "t", 0, b"warm")
        sweep(cluster, count)
    finally:
        cluster.close()


def test_an_interrupt_loses_and_repeats_nothing(tmp_path: Path, alone: list[bool]) -> None:
    swept(tmp_path, 60)
    assert alone.count(True) > 30


@pytest.mark.long
def test_an_interrupt_loses_and_repeats_nothing_long(tmp_path: Path) -> None:
    swept(tmp_path, 10_000)
