"""Transactions as their users write them: all or none, with offsets, fenced, timed out, interrupted by errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog.broker import api
from streamlog.broker.transaction_coordinators import call
from streamlog.client import transactions
from streamlog.core.group import group_partition
from streamlog.errors import (
    CommitFailedError,
    ConfigError,
    IllegalStateError,
    InvalidTransactionTimeoutError,
    InvalidTxnStateError,
    ProducerFencedError,
    RebalanceInProgressError,
    TransactionAbortableError,
)
from streamlog.testing import Simulation
from tests.waiting import until


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Any]:
    with streamlog.open(tmp_path / "c", sync="off") as opened:
        opened.create_topic("in", partitions=2)
        opened.create_topic("out", partitions=3)
        yield opened


def read(cluster: Any, isolation_level: str = "read_committed", topic: str = "out") -> list[bytes]:
    """Values, sorted: partitions are read in any order."""
    with cluster.consumer(isolation_level=isolation_level, stop_at_end=True) as consumer:
        consumer.assign([(topic, number) for number in range(len(cluster.topic(topic)))])
        return sorted(record.value for record in consumer)


def fill(cluster: Any, count: int) -> None:
    with cluster.producer() as producer:
        producer.send_many("in", [(b"%d" % (number % 7), b"%03d" % number) for number in range(count)])


# -- all or none -------------------------------------------------------------------------------------------------------


def test_what_is_committed_is_read_in_all_partitions(cluster: Any) -> None:
    with cluster.producer(transactional_id="t") as producer:
        with producer.transaction():
            producer.send_many("out", [(b"%d" % number, b"%d" % number) for number in range(9)])
            single = producer.send("in", b"single")
            assert read(cluster) == []
        assert read(cluster) == [b"%d" % number for number in range(9)]
        assert single.result().offset == 0 and read(cluster, topic="in") == [b"single"]


def test_an_exception_aborts_and_comes_out(cluster: Any) -> None:
    with cluster.producer(transactional_id="t") as producer:
        with pytest.raises(KeyError), producer.transaction():
            producer.send("out", b"never").result()
            raise KeyError("the user's")
        with producer.transaction():
            producer.send("out", b"after")
    assert read(cluster) == [b"after"]
    assert read(cluster, "read_uncommitted") == [b"after", b"never"]


def test_a_transaction_may_be_ended_by_hand_once(cluster: Any) -> None:
    with cluster.producer(transactional_id="t") as producer:
        with producer.transaction() as transaction:
            producer.send("out", b"1")
            transaction.commit()
            for again in (transaction.commit, transaction.abort):
                with pytest.raises(IllegalStateError, match="has ended"):
                    again()
        with producer.transaction() as transaction:
            producer.send("out", b"2")
            transaction.abort()
        with pytest.raises(IllegalStateError, match="begun once"):
            transaction.__enter__()
        with pytest.raises(IllegalStateError, match="has not begun"):
            producer.transaction().commit()
    assert read(cluster) == [b"1"]


def test_an_empty_transaction_writes_nothing(cluster: Any) -> None:
    with cluster.producer(transactional_id="t") as producer:
        with producer.transaction():
            pass
        with pytest.raises(ZeroDivisionError), producer.transaction():
            1 / 0  # noqa: B018
        assert producer._transactional.producer_epoch == 0
    assert all(partition.log_end_offset == 0 for partition in cluster.topic("out"))


def test_outside_of_a_transaction_nothing_is_sent(cluster: Any) -> None:
    with cluster.producer(transactional_id="t") as producer:
        for send in (
            lambda: producer.send("out", b"x"),
            lambda: producer.send_many("out", [(None, b"x")] * 5),
        ):
            with pytest.raises(IllegalStateError, match="inside of a transaction only"):
                send()
        with producer.transaction():
            producer.send("out", b"1")
        with pytest.raises(IllegalStateError):
            producer.send("out", b"x")
    assert read(cluster, "read_uncommitted") == [b"1"]


def test_one_at_a_time(cluster: Any) -> None:
    with cluster.producer(transactional_id="t") as producer, producer.transaction():
        producer.send("out", b"1")
        with pytest.raises(IllegalStateError, match="open already"), producer.transaction():
            pass
        producer.send("out", b"2")
    assert read(cluster) == [b"1", b"2"]


def test_a_record_that_cannot_be_written_keeps_it_from_being_committed(cluster: Any) -> None:
    cluster.create_topic("latest", config={"cleanup.policy": "compact"})
    with cluster.producer(transactional_id="t", linger_ms=0) as producer:
        for is_read in (True, False):
            with (
                pytest.raises(TransactionAbortableError, match="could not be written"),
                producer.transaction(),
            ):
                future = producer.send("latest", b"without a key")
                if is_read:
                    assert future.exception() is not None
                producer.send("out", b"right")
        with producer.transaction():
            producer.send("out", b"later")
    assert read(cluster) == [b"later"]


def test_closing_aborts_what_is_open(cluster: Any) -> None:
    producer = cluster.producer(transactional_id="t")
    producer.transaction().__enter__()
    producer.send("out", b"1").result()
    assert "in a transaction" in repr(producer)
    producer.close()
    assert read(cluster) == [] and read(cluster, "read_uncommitted") == [b"1"]
    assert "closed" in repr(producer)


def test_many_transactions_of_several_producers_at_once(cluster: Any) -> None:
    expected: list[bytes] = []
    lock = threading.Lock()

    def work(number: int) -> None:
        with cluster.producer(transactional_id=f"t-{number}", linger_ms=0) as producer:
            for round_number in range(30):
                values = [b"%d-%02d-%d" % (number, round_number, part) for part in range(3)]
                try:
                    with producer.transaction():
                        for value in values:
                            producer.send("out", value, key=value)
                        if round_number % 3 == 0:
                            raise LookupError
                    with lock:
                        expected.extend(values)
                except LookupError:
                    pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(cluster) == sorted(expected)


def test_a_waiting_consumer_is_woken_by_the_end(cluster: Any) -> None:
    with cluster.consumer(isolation_level="read_committed") as consumer:
        consumer.assign([("out", number) for number in range(3)])
        with cluster.producer(transactional_id="t") as producer, producer.transaction():
            producer.send("out", b"1").result()
            assert consumer.poll(0.05) == []
        assert [record.value for record in consumer.poll(5)] == [b"1"]


# -- with offsets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_polled_inside", [True, False])
def test_read_process_write_is_exactly_once_whatever_fails(cluster: Any, is_polled_inside: bool) -> None:
    fill(cluster, 60)
    group = cluster.consumer_group("g", ["in"], enable_auto_commit=False)
    failures = iter([False, True, False, False, True, True, False, True])
    done = 0
    with group.consumer() as consumer, cluster.producer(transactional_id="rpw") as producer:
        while done < 60:
            records = [] if is_polled_inside else consumer.poll(5, max_records=10)
            try:
                with producer.transaction(consumer):
                    if is_polled_inside:
                        records = consumer.poll(5, max_records=10)
                    for record in records:
                        producer.send("out", record.value, key=record.key)
                    if next(failures, False):
                        raise LookupError
                done += len(records)
            except LookupError:
                pass
    assert read(cluster) == [b"%03d" % number for number in range(60)]
    assert set(group.lag().values()) == {0}


def test_offsets_alone_are_a_transaction_too(cluster: Any) -> None:
    fill(cluster, 5)
    group = cluster.consumer_group("g", ["in"], enable_auto_commit=False)
    with group.consumer() as consumer, cluster.producer(transactional_id="t") as producer:
        with producer.transaction() as transaction:
            assert consumer.poll(5)
            while consumer.poll(0.1):
                pass
            transaction.commit_offsets(consumer)
            assert set(group.offsets().values()) <= {0, None} or not group.offsets()
        assert sum(group.offsets().values()) == 5


def test_a_member_that_lost_its_partitions_commits_nothing(cluster: Any) -> None:
    """The zombie of KIP-447: its transaction must not move the offsets of who has the partitions now."""
    fill(cluster, 20)
    group = cluster.consumer_group("g", ["in"], enable_auto_commit=False, session_timeout_ms=6_000)
    with cluster.producer(transactional_id="zombie") as producer:
        zombie = group.consumer()
        records = zombie.poll(5, max_records=20)
        transaction = producer.transaction(zombie)
        transaction.__enter__()
        for record in records:
            producer.send("out", b"zombie " + record.value, key=record.key)
        zombie._leave_group()  # as if its session had ended
        with group.consumer() as successor, cluster.producer(transactional_id="other") as other:
            done = 0
            while done < 20:
                with other.transaction(successor):
                    for record in successor.poll(5):
                        other.send("out", record.value, key=record.key)
                        done += 1
            with pytest.raises((CommitFailedError, RebalanceInProgressError)):
                transaction.commit()
        zombie.close()
    assert read(cluster) == [b"%03d" % number for number in range(20)]
    assert sum(group.offsets().values()) == 20


def test_consumers_that_do_not_fit_are_named(cluster: Any) -> None:
    with cluster.producer(transactional_id="t") as producer:
        automatic = cluster.consumer_group("g", ["in"]).consumer()
        with automatic, pytest.raises(ConfigError, match="enable_auto_commit=False"):
            producer.transaction(automatic)
        with cluster.consumer() as consumer, pytest.raises(ConfigError, match="has none"):
            producer.transaction(consumer)
        with pytest.raises(ConfigError, match="allowed: a consumer of a group"):
            producer.transaction("g")


# -- fencing, timeouts, restarts -----------------------------------------------------------------------------------------


def test_a_newer_producer_fences_the_older_one_and_aborts_what_it_had_open(cluster: Any) -> None:
    older = cluster.producer(transactional_id="t")
    transaction = older.transaction()
    transaction.__enter__()
    older.send("out", b"zombie").result()
    newer = cluster.producer(transactional_id="t")
    assert read(cluster) == []
    with newer.transaction():
        newer.send("out", b"newer")
    older.send("out", b"late")
    with pytest.raises(ProducerFencedError) as told:
        transaction.commit()
    assert told.value.fatal and "fenced" in repr(older)
    with pytest.raises(ProducerFencedError), older.transaction():
        pass
    with pytest.raises(ProducerFencedError):
        older.send("out", b"x")
    older.close()
    newer.close()
    assert read(cluster) == [b"newer"]


def test_what_is_open_for_too_long_is_aborted() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", sync="off", runtime=simulation) as cluster:
        cluster.create_topic("out")
        producer = cluster.producer(transactional_id="t", transaction_timeout_ms=5_000)
        transaction = producer.transaction()
        transaction.__enter__()
        producer.send("out", b"slow").result()
        with cluster.producer() as plain:
            plain.send("out", b"plain").result()
        view = cluster._backend.broker.partition("out", 0)
        simulation.sleep(4.9)
        assert view.view.last_stable_offset == 0
        simulation.sleep(0.2)
        assert view.view.last_stable_offset == 3
        with pytest.raises(TransactionAbortableError, match="longer than transaction_timeout_ms=5000"):
            transaction.commit()
        producer.close()
        assert read(cluster) == [b"plain"]


def test_a_timeout_above_the_clusters_is_refused(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "c", transaction_max_timeout_ms=1_000) as cluster:
        with pytest.raises(InvalidTransactionTimeoutError, match=r"transaction\.max\.timeout\.ms=1000"):
            cluster.producer(transactional_id="t")
        cluster.producer(transactional_id="t", transaction_timeout_ms=1_000).close()


def test_a_restart_keeps_what_was_committed_and_aborts_what_was_open(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "c", sync="off") as cluster:
        cluster.create_topic("out", partitions=3)
        with cluster.producer(transactional_id="t") as producer, producer.transaction():
            producer.send("out", b"1")
        open_one = cluster.producer(transactional_id="left open")
        open_one.transaction().__enter__()
        open_one.send("out", b"left").result()
        identity = producer._transactional
        # As if the process had died: nothing of the producer is closed in an orderly way.
        open_one._closed = True
    with streamlog.open(tmp_path / "c", sync="off") as cluster:
        with cluster.producer() as plain:
            plain.send_many("out", [(b"%d" % number, b"2") for number in range(9)])
        until(lambda: read(cluster) == [b"1"] + [b"2"] * 9, "nobody aborted what a dead process had open")
        with cluster.producer(transactional_id="t") as producer, producer.transaction():
            assert producer._transactional.producer_id == identity.producer_id
            assert producer._transactional.producer_epoch == identity.producer_epoch + 1
            producer.send("out", b"3")
        assert read(cluster) == [b"1"] + [b"2"] * 9 + [b"3"]


def test_the_end_that_is_asked_for_again_is_the_same(cluster: Any) -> None:
    """A delayed EndTxn decides about no later transaction (SEMANTICS 3.5.20)."""
    backend = cluster._backend
    with cluster.producer(transactional_id="t") as producer:
        with producer.transaction():
            producer.send("out", b"1")
            first = producer._transactional.producer_id, producer._transactional.producer_epoch
        assert call(backend, "t", api.EndTxn(*first, True)) == (first[0], first[1] + 1)
        with pytest.raises(InvalidTxnStateError):
            call(backend, "t", api.EndTxn(*first, False))
        with producer.transaction():
            producer.send("out", b"2").result()
            for is_commit in (True, False):
                with pytest.raises(ProducerFencedError):
                    call(backend, "t", api.EndTxn(*first, is_commit))
            assert read(cluster) == [b"1"]
    assert read(cluster) == [b"1", b"2"]


@pytest.mark.parametrize("is_done", [True, False])
@pytest.mark.parametrize("with_records", [True, False])
def test_an_interrupt_at_the_commit_leaves_it_whole(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, is_done: bool, with_records: bool
) -> None:
    """Ctrl-C before the coordinator was asked, or after it has answered: the consumer stands where that left it."""
    fill(cluster, 10)
    group = cluster.consumer_group("g", ["in"], enable_auto_commit=False)
    asked: list[Any] = []

    def struck(backend: Any, transactional_id: str, event: Any, timeout_ms: int) -> tuple[int, int]:
        if isinstance(event, api.EndTxn) and not asked:
            asked.append(event)
            if is_done:
                call(backend, transactional_id, event)
            raise KeyboardInterrupt
        return call(backend, transactional_id, event)

    with group.consumer() as consumer, cluster.producer(transactional_id="t") as producer:
        monkeypatch.setattr(transactions, "call", struck)
        done = 0
        while done < 10 or sum(group.lag().values()):
            try:
                with producer.transaction(consumer):
                    records = consumer.poll(5, max_records=4) if sum(group.lag().values()) else []
                    for record in records if with_records else ():
                        producer.send("out", record.value, key=record.key)
                done += len(records)
            except KeyboardInterrupt:
                done += len(records) if is_done else 0
    assert read(cluster) == ([b"%03d" % number for number in range(10)] if with_records else [])


def test_what_another_thread_sends_while_it_ends_is_refused(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[BaseException] = []

    def sends(backend: Any, transactional_id: str, event: Any, timeout_ms: int) -> tuple[int, int]:
        if isinstance(event, api.EndTxn):
            with pytest.raises(IllegalStateError) as told:
                producer.send("out", b"late")
            refused.append(told.value)
        return call(backend, transactional_id, event)

    with cluster.producer(transactional_id="t") as producer:
        monkeypatch.setattr(transactions, "call", sends)
        with producer.transaction():
            producer.send("out", b"1")
    assert len(refused) == 1 and read(cluster, "read_uncommitted") == [b"1"]


def test_one_member_of_a_group_a_transaction(cluster: Any) -> None:
    fill(cluster, 20)
    group = cluster.consumer_group("g", ["in"], enable_auto_commit=False)
    with (
        group.consumer() as one,
        group.consumer() as other,
        cluster.producer(transactional_id="t") as producer,
    ):
        until(
            lambda: (
                [len(member.poll(0.05)) >= 0 and len(member.assignment) for member in (one, other)] == [1, 1]
            )
        )
        for member in (one, other):
            member._commits.lost.clear()
            member.seek_to_beginning()
            assert member.poll(5)
        with producer.transaction() as transaction:
            transaction.commit_offsets(one)
            transaction.commit_offsets(one)
            with pytest.raises(IllegalStateError, match="one transaction, one member"):
                transaction.commit_offsets(other)


def test_partitions_that_are_lost_between_two_polls_keep_it_from_being_committed(cluster: Any) -> None:
    """Their new owner processes the same records: the output must not be there twice."""
    fill(cluster, 20)
    group = cluster.consumer_group("g", ["in"], enable_auto_commit=False)
    with (
        group.consumer() as one,
        group.consumer() as other,
        cluster.producer(transactional_id="one") as producer,
        cluster.producer(transactional_id="other") as another,
    ):
        waiting: list[Any] = []
        with pytest.raises(CommitFailedError, match="went to another member"), producer.transaction(one):
            for _ in range(6):
                for record in one.poll(0.2):
                    producer.send("out", record.value, key=record.key)
                waiting += other.poll(0.05)
        with another.transaction(other):
            for record in waiting:
                another.send("out", record.value, key=record.key)
        while sum(group.lag().values()):
            for consumer, sender in ((one, producer), (other, another)):
                try:
                    with sender.transaction(consumer):
                        for record in consumer.poll(0.1):
                            sender.send("out", record.value, key=record.key)
                except CommitFailedError:
                    pass
    assert read(cluster) == [b"%03d" % number for number in range(20)]


def test_an_interrupt_of_an_abort_lets_nothing_into_the_next_transaction(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster.producer(transactional_id="t", linger_ms=60_000) as producer:
        transaction = producer.transaction()
        transaction.__enter__()
        producer.send("out", b"written").result()
        producer.send("out", b"gathered")

        def struck() -> bool:
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(producer, "_end_after_all", struck)
        with pytest.raises(KeyboardInterrupt):
            transaction.abort()
        with producer.transaction():
            producer.send("out", b"next")
    assert read(cluster) == [b"next"] and read(cluster, "read_uncommitted") == [b"next", b"written"]


def test_records_gathered_too_late_belong_to_no_transaction(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread had passed the gate when the transaction ended, and appends now."""
    with cluster.producer(transactional_id="t", linger_ms=60_000) as producer:
        late: list[Any] = []

        def appends(backend: Any, transactional_id: str, event: Any, timeout_ms: int) -> tuple[int, int]:
            answer = call(backend, transactional_id, event)
            if isinstance(event, api.EndTxn) and not late:
                buffer = producer._topics["out"]
                late.append(producer._open_batch(buffer, 0).put(None, b"late", (), 1))
            return answer

        monkeypatch.setattr(transactions, "call", appends)
        with producer.transaction():
            producer.send("out", b"1", partition=0)
        with pytest.raises(TransactionAbortableError, match="ended before"):
            late[0].result(5)
        with producer.transaction():
            producer.send("out", b"2", partition=0)
    assert read(cluster, "read_uncommitted") == [b"1", b"2"]


def test_what_is_aborted_before_it_was_sent_fails(cluster: Any) -> None:
    with cluster.producer(transactional_id="t", linger_ms=60_000) as producer:
        with producer.transaction() as transaction:
            future = producer.send("out", b"gathered")
            transaction.abort()
        with pytest.raises(TransactionAbortableError):
            future.result(5)
    assert all(partition.log_end_offset == 0 for partition in cluster.topic("out"))


# -- not in this version -------------------------------------------------------------------------------------------------


def test_a_broker_that_joins_meanwhile_takes_part(cluster: Any) -> None:
    """What went straight to the one broker, and what goes through the dispatcher, are one transaction."""
    with cluster.producer(transactional_id="t", linger_ms=0) as producer:
        for number in range(2):
            with producer.transaction():
                producer.send("out", b"%d1" % number, partition=0).result()
                if not number:
                    cluster.add_broker()
                producer.send("out", b"%d2" % number, partition=0).result()
                producer.send("out", b"%d3" % number, partition=0)
    assert read(cluster) == [b"01", b"02", b"03", b"11", b"12", b"13"]


def test_the_last_records_and_the_end_are_one_commit(cluster: Any) -> None:
    with cluster.producer(transactional_id="t", linger_ms=1_000) as producer:
        for _ in range(2):  # the first makes the topic of transactions
            before = cluster._backend.broker.environment.last_transaction_id()
            with producer.transaction():
                producer.send_many("out", [(b"%d" % number, b"x") for number in range(50)])
        assert cluster._backend.broker.environment.last_transaction_id() == before + 1
        states = cluster._backend.broker.partition("__transaction_state", group_partition("t", 50)).state
        assert states.log_end_offset == 3, "the new producer, and one record a transaction"
