"""Committing: on request and by itself."""

from __future__ import annotations

import signal
import threading
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog import Cluster, Consumer, OffsetAndMetadata, Record, Topic, TopicPartition
from streamlog.errors import (
    CommitFailedError,
    ConfigError,
    OffsetMetadataTooLargeError,
    StreamlogTimeoutError,
    UnknownTopicOrPartitionError,
)

T0 = TopicPartition("single", 0)


@pytest.fixture
def filled(cluster: Cluster, single: Topic) -> Topic:
    with cluster.producer() as producer:
        producer.send_many("single", [(None, b"%d" % i) for i in range(100)])
    return single


def due(consumer: Consumer) -> None:
    """As if auto_commit_interval_ms were over."""
    consumer._commits._due_ms = 0


# -- on request --------------------------------------------------------------------------------------------


def test_commit_stores_what_was_handed_out(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["single"], enable_auto_commit=False)
    consumer = group.consumer()
    assert len(consumer.poll(1, max_records=7)) == 7
    assert group.offsets() == {} and consumer.committed(T0) is None
    consumer.commit()
    assert group.offsets() == {T0: 7} and consumer.committed(T0) == 7


def test_a_commit_for_a_topic_that_does_not_exist_names_it(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["single"], enable_auto_commit=False)
    consumer = group.consumer()
    consumer.poll(1)
    with pytest.raises(UnknownTopicOrPartitionError, match="nix-0"):
        consumer.commit({TopicPartition("nix", 0): 3, T0: 5})
    assert group.offsets() == {T0: 5}, "the others are stored, as in Kafka"


@pytest.mark.parametrize("automatic", [False, True])
def test_a_topic_deleted_under_a_consumer_does_not_keep_the_others_from_being_committed(
    cluster: Cluster, filled: Topic, automatic: bool
) -> None:
    cluster.create_topic("gone")
    with cluster.producer() as producer:
        producer.send("gone", b"x")
    consumer = cluster.consumer(group_id="g", enable_auto_commit=automatic)
    consumer.assign([T0, ("gone", 0)])
    while any(consumer.position(tp) == 0 for tp in (T0, TopicPartition("gone", 0))):
        consumer.poll(1)
    cluster.delete_topic("gone")
    if automatic:
        due(consumer)
        consumer._commits.maybe_auto_commit()
    else:
        consumer.commit()
    assert cluster.consumer_group("g", ["single"]).offsets() == {T0: 100}


@pytest.mark.parametrize("polls", [0, 1])
def test_with_nothing_consumed_commit_does_nothing(cluster: Cluster, single: Topic, polls: int) -> None:
    group = cluster.consumer_group("g", ["single"])
    consumer = group.consumer()
    for _ in range(polls):
        assert consumer.poll(0) == []
    consumer.commit()
    assert group.offsets() == {}


def test_a_seek_is_committed(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["single"])
    consumer = group.consumer()
    consumer.poll(1, max_records=50)
    consumer.seek(T0, 3)
    consumer.commit()
    assert group.offsets() == {T0: 3}
    consumer.seek(T0, 0)
    consumer.commit()
    assert group.offsets() == {T0: 0}, "committed offset 0 is not 'nothing committed'"


@pytest.mark.parametrize("given", [5, OffsetAndMetadata(5, "note"), 0, 10**9])
def test_commit_of_given_offsets(cluster: Cluster, filled: Topic, given: Any) -> None:
    group = cluster.consumer_group("g", ["single"], enable_auto_commit=False)
    consumer = group.consumer()
    consumer.poll(1)
    consumer.commit({T0: given})
    assert group.offsets() == {T0: getattr(given, "offset", given)}
    consumer.commit({("single", 0): given})  # type: ignore[dict-item]


@pytest.mark.parametrize("wrong", [{T0: -1}, {T0: "5"}, {T0: True}, {T0: None}, {"single": 5}, {T0: 1.0}])
def test_impossible_offsets(cluster: Cluster, filled: Topic, wrong: Any) -> None:
    group = cluster.consumer_group("g", ["single"], enable_auto_commit=False)
    consumer = group.consumer()
    consumer.poll(1)
    with pytest.raises(ConfigError):
        consumer.commit(wrong)
    assert group.offsets() == {}


def test_metadata_that_is_too_long(cluster: Cluster, filled: Topic) -> None:
    consumer = cluster.consumer_group("g", ["single"]).consumer()
    consumer.poll(1)
    with pytest.raises(OffsetMetadataTooLargeError) as caught:
        consumer.commit({T0: OffsetAndMetadata(1, "x" * 4097)})
    assert caught.value.code == 12
    consumer.commit({T0: OffsetAndMetadata(1, "x" * 4096)})


def test_a_commit_drives_a_rebalance_and_is_stored(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group(
        "g", ["single"], enable_auto_commit=False, partition_assignment_strategy=["cooperative-sticky"]
    )
    first = group.consumer()
    first.poll(1, max_records=10)
    second = group.consumer()
    second.poll(0)
    answered = threading.Event()

    def work() -> None:
        while not answered.is_set():
            second.poll(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    first.commit(timeout=20)
    answered.set()
    thread.join()
    assert group.offsets() == {T0: 10}


def test_a_commit_made_before_the_first_poll_joins(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["single"])
    consumer = group.consumer()
    with pytest.raises(CommitFailedError):
        consumer.commit({TopicPartition("single", 9): 5})
    consumer.commit({T0: 5})
    assert group.offsets()[T0] == 5 and consumer.assignment == {T0}


def test_what_went_to_another_member_is_not_committed(cluster: Cluster) -> None:
    cluster.create_topic("two", partitions=2)
    with cluster.producer() as producer:
        producer.send_many("two", [(b"%d" % i, b"x") for i in range(40)])
    group = cluster.consumer_group("g", ["two"], enable_auto_commit=False)
    first = group.consumer()
    while sum(first.position(tp) for tp in first.assignment) < 40:
        first.poll(0.1)
    positions = {tp: first.position(tp) for tp in first.assignment}
    second = group.consumer()
    second.poll(0)
    # The first rejoins, but stops half way: its join is answered, its position in the group is not known yet.
    membership = first._membership
    assert membership is not None
    membership._step(), membership._step()
    assert not membership.is_stable
    with pytest.raises(CommitFailedError) as caught:
        first.commit(positions, timeout=20)
    second.poll(0)
    [gone], [kept] = caught.value.partitions, first.assignment
    assert second.assignment == {gone}
    assert group.offsets() == {kept: positions[kept]}, "what stayed was stored"


def test_a_commit_that_cannot_be_stored_in_time(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["single"])
    group.consumer().poll(0)
    second = group.consumer()
    second.poll(0)  # waits for the first to rejoin, which it never does
    with pytest.raises(StreamlogTimeoutError, match="rebalancing"):
        second.commit({T0: 10}, timeout=0.05)
    assert group.offsets() == {}


def test_simple_commits_without_membership(cluster: Cluster, filled: Topic) -> None:
    consumer = cluster.consumer(group_id="simple", enable_auto_commit=False)
    consumer.assign([T0])
    consumer.poll(1, max_records=5)
    consumer.commit()
    assert cluster.consumer_group("simple").offsets() == {T0: 5}
    with cluster.consumer_group("simple", ["single"]).consumer() as member:
        member.poll(0)
        consumer.poll(1, max_records=5)
        with pytest.raises(CommitFailedError) as caught:
            consumer.commit()
        assert caught.value.group_id == "simple"


# -- by itself ---------------------------------------------------------------------------------------------


def test_auto_commit_stores_the_positions_of_the_poll_before(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["single"])
    consumer = group.consumer()
    consumer.poll(1, max_records=10)
    due(consumer)
    consumer.poll(1, max_records=10)
    assert group.offsets() == {T0: 10}, "what this poll hands out is not processed yet"
    consumer.poll(1, max_records=10)
    assert group.offsets() == {T0: 10}, "not due again"
    consumer.close()
    assert group.offsets() == {T0: 30}


def test_auto_commit_never_passes_the_record_the_loop_holds(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["single"])
    consumer = group.consumer()
    for record in consumer:
        due(consumer)
        assert group.offsets().get(T0, 0) <= record.offset
        if record.offset == 60:
            break
    assert 20 <= group.offsets()[T0] <= 60


@pytest.mark.parametrize(
    "leave", [lambda c: c.close(), lambda c: c.__exit__(None, None, None), lambda c: c.unsubscribe()]
)
def test_leaving_commits(cluster: Cluster, filled: Topic, leave: Callable[[Consumer], None]) -> None:
    group = cluster.consumer_group("g", ["single"])
    consumer = group.consumer()
    consumer.poll(1, max_records=10)
    leave(consumer)
    assert group.offsets() == {T0: 10}


def test_leaving_on_an_exception_does_not(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["single"])
    with pytest.raises(KeyError), group.consumer() as consumer:
        for record in consumer:
            if record.offset == 5:
                raise KeyError
    assert group.offsets() == {} and group.members() == []
    with pytest.raises(KeyError), group.consumer() as consumer:
        consumer.poll(1, max_records=10)
        consumer.commit()
        consumer.poll(1, max_records=10)
        raise KeyError
    assert group.offsets() == {T0: 10}


# -- interrupted: Ctrl-C, sys.exit() in a signal handler, a cancelled task --------------------------------------


class Struck:
    """A waiter that is struck where its consumer would wait; before, it may bring something to read."""

    def __init__(self, exception: BaseException, *news: Callable[[], object]) -> None:
        self.exception = exception
        self.news = list(news)

    def set(self) -> None: ...

    def wait(self, timeout_ms: int | None) -> bool:
        if not self.news:
            raise self.exception
        self.news.pop(0)()
        return True


def by_polling(consumer: Consumer) -> Iterator[Record]:
    while True:
        yield from consumer.poll(20, max_records=7)


def by_iterating(consumer: Consumer) -> Iterator[Record]:
    yield from consumer


READING = pytest.mark.parametrize("read", [by_polling, by_iterating])


@READING
@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, CancelledError])
def test_interrupted_while_it_waits_it_commits_what_is_finished(
    cluster: Cluster,
    filled: Topic,
    read: Callable[[Consumer], Iterator[Record]],
    exception: type[BaseException],
) -> None:
    group = cluster.consumer_group("g", ["single"])
    with pytest.raises(exception), group.consumer() as consumer:
        consumer._listener.waiter = Struck(exception())
        for _ in read(consumer):
            assert group.offsets() == {}
    assert group.offsets() == {T0: 100} and group.members() == []


@READING
def test_interrupted_while_a_record_is_in_hand_it_commits_nothing(
    cluster: Cluster, filled: Topic, read: Callable[[Consumer], Iterator[Record]]
) -> None:
    """Though it waited before, and was interrupted while it did: that was caught, and reading went on."""
    group = cluster.consumer_group("g", ["single"])
    with pytest.raises(KeyboardInterrupt), cluster.producer() as producer, group.consumer() as consumer:
        wait = consumer._listener.waiter
        consumer._listener.waiter = Struck(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            for _ in read(consumer):
                pass
        producer.send("single", b"in hand").result()
        consumer._listener.waiter = wait
        for record in read(consumer):
            assert record.offset == 100
            raise KeyboardInterrupt
    assert group.offsets() == {}


@READING
def test_interrupted_behind_a_wait_it_commits_nothing(
    cluster: Cluster, filled: Topic, read: Callable[[Consumer], Iterator[Record]]
) -> None:
    """The same call waits, is given news, and hands them out."""
    group = cluster.consumer_group("g", ["single"])
    with pytest.raises(KeyboardInterrupt), cluster.producer() as producer, group.consumer() as consumer:
        consumer._listener.waiter = Struck(
            AssertionError("waits again"), lambda: producer.send("single", b"in hand").result()
        )
        for record in read(consumer):
            if record.offset == 100:
                raise KeyboardInterrupt
    assert group.offsets() == {}


def test_an_error_while_it_waits_commits_nothing(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["single"])
    with pytest.raises(LookupError), group.consumer() as consumer:
        consumer._listener.waiter = Struck(LookupError())
        for _ in consumer:
            pass
    assert group.offsets() == {}


def test_interrupted_without_auto_commit_or_before_the_first_poll_it_commits_nothing(
    cluster: Cluster, filled: Topic
) -> None:
    group = cluster.consumer_group("g", ["single"], enable_auto_commit=False)
    with pytest.raises(KeyboardInterrupt), group.consumer() as consumer:
        consumer._listener.waiter = Struck(KeyboardInterrupt())
        for _ in consumer:
            pass
    with pytest.raises(KeyboardInterrupt), cluster.consumer(group_id="g") as consumer:
        consumer.assign([T0])
        consumer.seek(T0, 42)
        raise KeyboardInterrupt
    assert group.offsets() == {}


def test_leaving_the_cluster_interrupted_is_leaving_its_consumers(tmp_path: Path) -> None:
    with streamlog.open(tmp_path) as cluster, cluster.producer() as producer:
        for name in ("waits", "works"):
            cluster.create_topic(name)
            producer.send(name, b"x")
    with pytest.raises(KeyboardInterrupt), streamlog.open(tmp_path) as cluster:
        works = cluster.consumer_group("works", ["works"]).consumer()
        assert len(works.poll(20)) == 1
        waits = cluster.consumer_group("waits", ["waits"]).consumer()
        waits._listener.waiter = Struck(KeyboardInterrupt())
        for _ in waits:
            pass
    with streamlog.open(tmp_path) as cluster:
        assert cluster.consumer_group("works").offsets() == {}
        assert cluster.consumer_group("waits").offsets() == {TopicPartition("waits", 0): 1}


def test_a_signal_strikes_a_poll_that_waits(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["single"])
    consumer = group.consumer()

    def strike(*_: object) -> None:
        if consumer._commits.is_waiting:
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    before = signal.signal(signal.SIGALRM, strike)
    try:
        with pytest.raises(KeyboardInterrupt), consumer:
            consumer.poll(20)
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            consumer.poll(20)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert group.offsets() == {T0: 100}


def test_assigning_something_else_commits_what_was_read(cluster: Cluster, filled: Topic) -> None:
    consumer = cluster.consumer(group_id="g")
    consumer.assign([T0])
    consumer.poll(1, max_records=10)
    consumer.assign([])
    assert cluster.consumer_group("g").offsets() == {T0: 10}


def test_a_rebalance_commits_what_is_given_up(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["single"])
    first = group.consumer()
    first.poll(1, max_records=10)
    second = group.consumer()
    second.poll(0)
    first.poll(0)
    assert group.offsets() == {T0: 10}


def test_without_auto_commit_nothing_is_stored_by_itself(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["single"], enable_auto_commit=False)
    with group.consumer() as consumer:
        consumer.poll(1)
        due(consumer)
        consumer.poll(0)
    assert group.offsets() == {}


def test_an_auto_commit_does_not_make_poll_late(cluster: Cluster, filled: Topic) -> None:
    import time

    group = cluster.consumer_group("g", ["single"])
    consumer = group.consumer()
    consumer.poll(1, max_records=10)
    due(consumer)
    turn = cluster._backend.broker._lock
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with turn:
            held.set()
            release.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    began = time.monotonic()
    assert len(consumer.poll(0.05, max_records=10)) == 10
    assert time.monotonic() - began < 1
    release.set()
    holder.join()
    consumer.close()
    assert group.offsets() == {T0: 20}


@pytest.mark.parametrize("wrong", [Record("orders", 0, 3), [("orders", 0)], "orders", 3])
def test_what_is_no_mapping_of_offsets(cluster: Cluster, orders: Topic, wrong: object) -> None:
    consumer = cluster.consumer_group("g", ["orders"]).consumer()
    with pytest.raises(ConfigError, match=r"allowed: a mapping of partitions to next offsets"):
        consumer.commit(wrong)  # type: ignore[arg-type]
