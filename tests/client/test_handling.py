"""`group.run(handler)`: in order per partition, commits after the handler, stops and errors."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

import pytest

import streamlog
from streamlog import Cluster, Record, Topic, TopicPartition
from streamlog.errors import ConfigError, DeserializationError
from streamlog.testing import Simulation


@pytest.fixture
def filled(cluster: Cluster) -> Topic:
    topic = cluster.create_topic("orders", partitions=4)
    with cluster.producer() as producer:
        for number in range(400):
            producer.send("orders", b"%d" % number, partition=number % 4)
    return topic


@pytest.mark.parametrize("workers", [1, 2, 4, 6])
def test_every_record_once_in_order_per_partition(cluster: Cluster, filled: Topic, workers: int) -> None:
    handled: dict[int, list[int]] = defaultdict(list)
    group = cluster.consumer_group("g", ["orders"])
    group.run(
        lambda record: handled[record.partition].append(record.offset), workers=workers, stop_at_end=True
    )
    assert {partition: sorted(set(offsets)) for partition, offsets in handled.items()} == {
        n: list(range(100)) for n in range(4)
    }
    assert workers > 1 or all(offsets == sorted(set(offsets)) for offsets in handled.values())
    assert group.lag() == dict.fromkeys(group.lag(), 0) and len(group.lag()) == 4
    assert group.members() == [] and not cluster._consumers


def test_run_blocks_until_stop(cluster: Cluster, filled: Topic) -> None:
    handled: list[Record] = []
    group = cluster.consumer_group("g", ["orders"])
    enough = threading.Event()

    def handler(record: Record) -> None:
        handled.append(record)
        if len(handled) == 400:
            enough.set()

    runner = threading.Thread(target=lambda: group.run(handler, workers=2))
    runner.start()
    assert enough.wait(20)
    with cluster.producer() as producer:
        producer.send("orders", b"later", partition=0)
    while len(handled) < 401:
        pass
    group.stop()
    runner.join(10)
    assert not runner.is_alive()
    assert sum(group.lag().values()) == 0
    group.stop()  # nothing to stop


def test_the_handler_may_stop_the_run_and_its_record_is_committed(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["orders"])
    handled: list[Record] = []

    def handler(record: Record) -> None:
        handled.append(record)
        if len(handled) == 7:
            group.stop()

    group.run(handler)
    assert len(handled) == 7 and sum(group.offsets().values()) == 7


@pytest.mark.parametrize("workers", [1, 3])
def test_an_exception_stops_everybody_commits_what_finished_and_is_raised(
    cluster: Cluster, filled: Topic, workers: int
) -> None:
    group = cluster.consumer_group("g", ["orders"])
    finished: dict[int, int] = {}

    def handler(record: Record) -> None:
        if (record.partition, record.offset) == (2, 37):
            raise KeyError("37")
        finished[record.partition] = record.offset + 1

    with pytest.raises(KeyError, match="37"):
        group.run(handler, workers=workers, max_poll_records=10)
    assert {tp.partition: offset for tp, offset in group.offsets().items() if offset} == finished
    assert finished[2] == 37 and group.members() == []
    seen: list[tuple[int, int]] = []
    group.run(lambda record: seen.append((record.partition, record.offset)), stop_at_end=True)
    assert (2, 37) in seen and len(seen) == 400 - sum(finished.values())


def test_skip_goes_on_behind_the_record(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["orders"])
    handled = []

    def handler(record: Record) -> None:
        if record.offset % 10 == 0:
            raise ValueError
        handled.append(record)

    group.run(handler, on_error="skip", stop_at_end=True)
    assert len(handled) == 360 and sum(group.lag().values()) == 0


def test_a_callable_judges(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["orders"])
    judged: list[tuple[int, str]] = []

    def judge(record: Record, error: Exception) -> None:
        judged.append((record.offset, type(error).__name__))
        if len(judged) == 3:
            raise RuntimeError("enough") from error

    with pytest.raises(RuntimeError, match="enough"):
        group.run(lambda record: 1 / 0, on_error=judge)
    assert len(judged) == 3 and {name for _, name in judged} == {"ZeroDivisionError"}
    assert sum(group.offsets().values()) == 2


def mixed(cluster: Cluster) -> None:
    """Ten records of "mixed", the first, the fifth, the sixth and the last of them no JSON."""
    cluster.create_topic("mixed")
    with cluster.producer() as producer:
        producer.send_many("mixed", [(b"k", b"?" if n in (0, 4, 5, 9) else b"%d" % n) for n in range(10)])


def test_a_record_that_cannot_be_read_is_skipped_as_one_that_fails(cluster: Cluster) -> None:
    mixed(cluster)
    group = cluster.consumer_group("g", ["mixed"])
    handled: list[Any] = []
    group.run(
        lambda record: handled.append(record.value),
        on_error="skip",
        stop_at_end=True,
        value_deserializer="json",
    )
    assert handled == [1, 2, 3, 6, 7, 8] and sum(group.lag().values()) == 0


def test_a_callable_gets_the_record_that_cannot_be_read_as_bytes(cluster: Cluster) -> None:
    mixed(cluster)
    group = cluster.consumer_group("g", ["mixed"])
    judged: list[tuple[int, Any, str]] = []

    def judge(record: Record, error: Exception) -> None:
        judged.append((record.offset, record.value, type(error).__name__))
        if record.offset == 5:
            raise error

    with pytest.raises(DeserializationError, match="record 5 of mixed-0"):
        group.run(lambda record: None, on_error=judge, value_deserializer="json")
    assert judged == [(n, b"?", "DeserializationError") for n in (0, 4, 5)]
    assert sum(group.offsets().values()) == 5


def test_by_default_a_record_that_cannot_be_read_stops_the_run_before_it(cluster: Cluster) -> None:
    mixed(cluster)
    group = cluster.consumer_group("g", ["mixed"])
    group.reset_offsets({TopicPartition("mixed", 0): 1})
    with pytest.raises(DeserializationError, match="record 4 of mixed-0"):
        group.run(lambda record: None, value_deserializer="json")
    assert sum(group.offsets().values()) == 4


def test_exits_are_not_judged(cluster: Cluster, filled: Topic) -> None:
    def handler(record: Record) -> None:
        raise SystemExit(3)

    group = cluster.consumer_group("g", ["orders"])
    with pytest.raises(SystemExit):
        group.run(handler, on_error="skip")
    assert group.offsets() == {}


def test_ctrl_c_in_the_waiting_thread_stops_the_workers(cluster: Cluster, filled: Topic) -> None:
    import signal

    main = threading.get_ident()
    group = cluster.consumer_group("g", ["orders"])
    handled: list[Record] = []

    def handler(record: Record) -> None:
        handled.append(record)
        if len(handled) == 50:
            signal.pthread_kill(main, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        group.run(handler, workers=2)
    assert group.members() == [] and sum(group.offsets().values()) == len(handled) >= 50


def test_options_reach_the_members_and_auto_commit_stays_off(cluster: Cluster, filled: Topic) -> None:
    seen: list[Any] = []
    group = cluster.consumer_group("g", ["orders"])
    group.run(
        lambda record: seen.append(record.value),
        stop_at_end=True,
        value_deserializer="json",
        enable_auto_commit=True,
    )
    assert sorted(seen) == list(range(400))
    with pytest.raises(ConfigError):
        group.run("no handler")  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds, is_kept", [(0.04, True), (0.1, False)])
def test_a_slow_handler_counts_as_alive(seconds: float, is_kept: bool) -> None:
    """Between two records, not within one: all of a poll's records together may take longer than max_poll_interval_ms."""
    simulation = Simulation(1)
    with streamlog.open(":memory:", sync="off", runtime=simulation) as cluster:
        cluster.create_topic("orders")
        with cluster.producer() as producer:
            producer.send_many("orders", [(None, b"%d" % number) for number in range(20)])
        group = cluster.consumer_group("g", ["orders"], max_poll_interval_ms=60, heartbeat_interval_ms=5)
        seen: list[tuple[str, ...]] = []  # the members, as each record is done

        def handler(record: Record) -> None:
            simulation.sleep(seconds)
            seen.append(tuple(member.member_id for member in group.members()))
            if len(seen) == 20:
                group.stop()

        group.run(handler)
        [members] = set(seen)
        assert len(members) == is_kept, "the one worker, the same all the time; or nobody any more"
        assert sum(group.offsets().values()) == 20 * is_kept


def test_stop_ends_every_run_of_the_group(cluster: Cluster, filled: Topic) -> None:
    """Two runs of one group object: the first to end must not make `stop` forget the other."""
    group = cluster.consumer_group("g", ["orders"])
    handled: list[Record] = []
    runners = [threading.Thread(target=lambda: group.run(handled.append), daemon=True) for _ in range(2)]
    for runner in runners:
        runner.start()
    while len(group._runs) < 2 or len(handled) < 400:
        pass
    group.stop()
    for runner in runners:
        runner.join(20)
    assert not any(runner.is_alive() for runner in runners)
