"""`cluster.process`: output and progress together, whatever handlers, brokers and members do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import streamlog
from streamlog import Record
from streamlog.client.processing import outputs_of
from streamlog.errors import (
    ConfigError,
    DeserializationError,
    SerializationError,
    StreamlogTimeoutError,
    UnknownTopicOrPartitionError,
)
from streamlog.testing import Simulation

COUNT = 200
SEEDS = pytest.mark.parametrize(
    "seed", [0, *[pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 8)]]
)


@pytest.fixture
def cluster() -> Iterator[Any]:
    with streamlog.open(":memory:") as made:
        made.create_topic("in", partitions=3)
        made.create_topic("out", partitions=2)
        fill(made)
        yield made


def fill(cluster: Any, count: int = COUNT) -> None:
    with cluster.producer() as producer:
        producer.send_many("in", [(b"%d" % (number % 7), b"%03d" % number) for number in range(count)])


def read(cluster: Any, topic: str = "out", level: str = "read_committed") -> list[Record]:
    with cluster.consumer(isolation_level=level, stop_at_end=True) as reader:
        reader.assign([(topic, number) for number in range(len(cluster.topic(topic)))])
        return list(reader)


def values(cluster: Any) -> list[bytes]:
    return sorted(record.value for record in read(cluster))


EVERYTHING = [b"%03d" % number for number in range(COUNT)]


@pytest.mark.parametrize("exactly_once", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_record_once_with_its_key(cluster: Any, exactly_once: bool, workers: int) -> None:
    group = cluster.consumer_group("g", ["in"])
    options = {"workers": workers, "exactly_once": exactly_once, "stop_at_end": True, "max_poll_records": 20}
    cluster.process(group, lambda record: record.value, "out", **options)
    assert values(cluster) == EVERYTHING and sum(group.lag().values()) == 0
    assert {(record.key, record.value) for record in read(cluster)} == {
        (record.key, record.value) for record in read(cluster, "in")
    }
    cluster.process(group, lambda record: record.value, "out", **options)
    assert len(read(cluster)) == COUNT and group.members() == []


RECORD = Record("in", 0, 0, 0, b"k", b"v", ())


@pytest.mark.parametrize(
    ("result", "outputs"),
    [
        (None, []),
        (b"x", [(b"k", b"x")]),
        ("text", [(b"k", "text")]),
        ({"a": 1}, [(b"k", {"a": 1})]),
        (7, [(b"k", 7)]),
        ((b"other", b"x"), [(b"other", b"x")]),
        ((b"gone", None), [(b"gone", None)]),
        ([], []),
        ([b"x", (b"l", b"y"), None, RECORD], [(b"k", b"x"), (b"l", b"y"), RECORD]),
        ((one for one in (b"x", b"y")), [(b"k", b"x"), (b"k", b"y")]),
        (RECORD, [RECORD]),
    ],
)
def test_what_a_handler_may_return(result: object, outputs: list[Any]) -> None:
    assert outputs_of(RECORD, result) == outputs


def test_serdes_of_both_sides(cluster: Any) -> None:
    group = cluster.consumer_group("g", ["in"], value_deserializer=lambda data: int(data))
    cluster.process(
        group,
        lambda record: {"n": record.value * 2},
        "out",
        stop_at_end=True,
        producer={"value_serializer": "json"},
    )
    assert values(cluster) == sorted(b'{"n":%d}' % (2 * number) for number in range(COUNT))


@pytest.mark.parametrize("exactly_once", [True, False])
def test_an_error_commits_what_is_finished_and_nothing_else(cluster: Any, exactly_once: bool) -> None:
    group = cluster.consumer_group("g", ["in"])
    handled: list[bytes] = []

    def handler(record: Record) -> bytes:
        if record.value == b"100" and record.value not in handled:
            handled.append(record.value)
            raise LookupError("100")
        return record.value

    with pytest.raises(LookupError, match="100"):
        cluster.process(group, handler, "out", exactly_once=exactly_once)
    assert 0 < len(values(cluster)) < COUNT and b"100" not in values(cluster)
    assert sum(group.lag().values()) == COUNT - len(values(cluster))
    cluster.process(group, handler, "out", exactly_once=exactly_once, stop_at_end=True)
    assert values(cluster) == EVERYTHING


def test_a_handlers_own_error_is_told_even_if_it_is_one_that_streamlog_would_try_again(cluster: Any) -> None:
    def handler(record: Record) -> None:
        raise StreamlogTimeoutError("the handler's own")

    with pytest.raises(StreamlogTimeoutError, match="own"):
        cluster.process(cluster.consumer_group("g", ["in"]), handler, "out")


def test_errors_are_skipped_or_judged(cluster: Any) -> None:
    def handler(record: Record) -> bytes:
        return b"%d" % (7 // (int(record.value) % 10))

    judged: list[bytes] = []
    for on_error in ("skip", lambda record, error: judged.append(record.value)):
        group = cluster.consumer_group(f"g {on_error!r:.4}", ["in"])
        cluster.process(group, handler, "out", on_error=on_error, stop_at_end=True)
    assert len(read(cluster)) == 2 * 180 and sorted(judged) == [b"%03d" % n for n in range(0, COUNT, 10)]


def test_output_that_cannot_be_sent_is_its_records_error(cluster: Any) -> None:
    """Also where the first of several outputs could be: all of a record's output, or none of it."""

    def handler(record: Record) -> Any:
        return [record.value, 7] if record.value == b"050" else record.value

    group = cluster.consumer_group("g", ["in"])
    with pytest.raises(SerializationError):
        cluster.process(group, handler, "out")
    assert b"050" not in values(cluster)
    cluster.process(group, handler, "out", on_error="skip", stop_at_end=True)
    assert values(cluster) == [value for value in EVERYTHING if value != b"050"]


def test_records_that_cannot_be_read_are_judged(cluster: Any) -> None:
    with cluster.producer() as producer:
        producer.send("in", b"?")
    group = cluster.consumer_group("g", ["in"], value_deserializer="json")
    with pytest.raises(DeserializationError):
        cluster.process(group, lambda record: None, "out", producer={"value_serializer": "json"})
    cluster.process(
        group,
        lambda record: record.offset,
        "out",
        on_error="skip",
        stop_at_end=True,
        producer={"value_serializer": "json"},
    )
    assert sum(group.lag().values()) == 0


def test_it_ends_by_stop_and_nothing_is_left_open(cluster: Any) -> None:
    group = cluster.consumer_group("g", ["in"])
    seen: list[Record] = []

    def handler(record: Record) -> bytes | None:
        seen.append(record)
        if len(seen) == 50:
            group.stop()
        return record.value

    thread = threading.Thread(target=cluster.process, args=(group, handler, "out"), kwargs={"workers": 2})
    thread.start()
    thread.join(30)
    assert not thread.is_alive() and group.members() == []
    assert (
        len(read(cluster))
        == len(read(cluster, level="read_uncommitted"))
        == COUNT - sum(group.lag().values())
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"group": "g"},
        {"to": 7},
        {"exactly_once": "yes"},
        {"workers": 0},
        {"on_error": "ignore"},
        {"handler": 7},
    ],
)
def test_bad_input_is_named(cluster: Any, wrong: dict[str, Any]) -> None:
    given = {
        "group": cluster.consumer_group("g", ["in"]),
        "handler": lambda record: None,
        "to": "out",
        **wrong,
    }
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        cluster.process(**given)


def test_a_topic_that_is_not_there(cluster: Any) -> None:
    with pytest.raises(UnknownTopicOrPartitionError, match="nowhere"):
        cluster.process(cluster.consumer_group("g", ["in"]), lambda record: record.value, "nowhere")


def test_two_runs_of_one_group_do_not_fence_each_other(cluster: Any) -> None:
    group = cluster.consumer_group("g", ["in"])
    options = {"stop_at_end": True, "max_poll_records": 5}
    threads = [
        threading.Thread(
            target=cluster.process, args=(group, lambda record: record.value, "out"), kwargs=options
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert values(cluster) == EVERYTHING


# -- several brokers, and faults -----------------------------------------------------------------------------------------


@SEEDS
@pytest.mark.parametrize("exactly_once", [True, False])
def test_through_crashes_of_brokers(seed: int, exactly_once: bool) -> None:
    simulation = Simulation(seed)
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation) as cluster:
        for name in ("in", "out"):
            cluster.create_topic(name, 3, replication_factor=3, config={"min.insync.replicas": 2})
        fill(cluster)
        group = cluster.consumer_group("g", ["in"], session_timeout_ms=6_000)

        def handler(record: Record) -> bytes:
            simulation.sleep(0.05)
            return record.value

        producer = {
            "request_timeout_ms": 2_000,
            "delivery_timeout_ms": 20_000,
            "transaction_timeout_ms": 20_000,
        }
        running = simulation.spawn(
            lambda: cluster.process(
                group,
                handler,
                "out",
                exactly_once=exactly_once,
                workers=2,
                max_poll_records=10,
                producer=producer if exactly_once else {"request_timeout_ms": 2_000},
            )
        )
        for number in range(3):
            simulation.sleep(1 + number / 3)
            cluster.brokers[number].crash()
            simulation.sleep(2)
            cluster.brokers[number].start()
        for _ in range(200):
            if len(group.lag()) == 3 and not sum(group.lag().values()):
                break
            simulation.sleep(0.5)
        group.stop()
        running.result()
        simulation.sleep(5)
        assert sorted(set(values(cluster))) == EVERYTHING
        if exactly_once:
            assert values(cluster) == EVERYTHING


@SEEDS
def test_a_worker_that_is_fenced_begins_anew(seed: int) -> None:
    simulation = Simulation(seed)
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation) as cluster:
        for name in ("in", "out"):
            cluster.create_topic(name, 3, replication_factor=3)
        fill(cluster)
        group = cluster.consumer_group("g", ["in"])

        def handler(record: Record) -> bytes:
            simulation.sleep(0.02)
            return record.value

        running = simulation.spawn(lambda: cluster.process(group, handler, "out", max_poll_records=10))
        for _ in range(3):
            simulation.sleep(1)
            cluster.producer(transactional_id="g-process-0").close()
        while len(group.lag()) < 3 or sum(group.lag().values()):
            simulation.sleep(0.5)
        group.stop()
        running.result()
        assert values(cluster) == EVERYTHING
