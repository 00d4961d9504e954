"""Transactions in a loop where several tasks meet: who begins, sends, reads, ends and closes at the same time."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import streamlog.aio
from streamlog import TopicPartition
from streamlog.client import transactions
from streamlog.client.commits import Commits
from streamlog.client.transactions import Transaction as BlockingTransaction
from streamlog.errors import (
    ClosedError,
    CommitFailedError,
    IllegalStateError,
    ProducerFencedError,
    SerializationError,
    TransactionAbortableError,
)
from tests.aio.loops import in_loop, until
from tests.aio.test_transactions import OWN, filled, values

PLACE = TopicPartition("in", 0)


class Gate:
    """Holds up every end of a transaction, in its thread, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, function: str = "_end") -> None:
        self.arrived = 0
        self._event = threading.Event()
        original = getattr(transactions.TransactionalProducer, function)

        def held(*arguments: Any, **options: Any) -> Any:
            self.arrived += 1
            assert self._event.wait(20)
            return original(*arguments, **options)

        monkeypatch.setattr(transactions.TransactionalProducer, function, held)

    def open(self) -> None:
        self._event.set()


@in_loop
async def test_ends_that_have_to_wait_hold_up_nobody_who_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a coordinator is cut off: there are more of them than the loop has threads."""
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        producers = [cluster.producer(transactional_id=f"t-{number}") for number in range(6)]
        gate = Gate(monkeypatch)
        committing = [asyncio.ensure_future(transact(producer)) for producer in producers]
        await until(lambda: gate.arrived == 6)
        async with cluster.consumer(stop_at_end=True) as reader:
            await asyncio.wait_for(reader.assign([PLACE]), 5)
            assert len(await asyncio.wait_for(reader.poll(1.0), 5)) == 10
        gate.open()
        await asyncio.gather(*committing)
        for producer in producers:
            await producer.close()
        assert len(await values(cluster, "out")) == 6


async def transact(producer: Any, value: bytes = b"x") -> None:
    async with producer.transaction():
        producer.send("out", value)


@in_loop
async def test_of_two_tasks_that_begin_at_once_one_does() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        for numbers in ((0, 1), (1, 0)):
            producer = cluster.producer(
                transactional_id="t"
            )  # its first begin takes the id over, which takes long
            async with cluster.consumer_group("g", ["in"], **OWN).consumer() as consumer:
                both = [producer.transaction(consumer), producer.transaction()]
                begun = await asyncio.gather(*(both[n].__aenter__() for n in numbers), return_exceptions=True)
                assert begun[0] is both[numbers[0]] and isinstance(begun[1], IllegalStateError), begun
                producer.send("out", b"x")
                await both[numbers[0]].__aexit__(None, None, None)
                async with both[numbers[1]]:
                    producer.send("out", b"y")
            await producer.close()
        assert await values(cluster, "out") == [b"x", b"y"] * 2


@in_loop
async def test_what_subtasks_send_belongs_to_it() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        async with cluster.producer(transactional_id="t") as producer:

            async def send(number: int) -> None:
                await producer.send("out", b"%02d" % number)

            async with producer.transaction():
                await asyncio.gather(*map(send, range(20)))
                assert await values(cluster, "out") == []
            assert sorted(await values(cluster, "out")) == [b"%02d" % number for number in range(20)]


@in_loop
async def test_whoever_awaits_a_record_of_it_is_told_of_the_abort() -> None:
    async with streamlog.aio.open(":memory:", auto_create_topics=True) as cluster:
        await filled(cluster)
        async with cluster.producer(
            transactional_id="t", linger_ms=60_000, buffer_memory=40_000, batch_size=10_000
        ) as producer:
            waiting: list[asyncio.Future[Any]] = []
            async with producer.transaction() as transaction:
                for number in range(100):  # some in batches, some waiting for room, and for a topic
                    waiting.append(asyncio.ensure_future(producer.send("out", b"%d" % number + bytes(1_000))))  # type: ignore[arg-type]
                waiting.append(asyncio.ensure_future(producer.send("new", b"x")))  # type: ignore[arg-type]
                many = asyncio.ensure_future(producer.send_many("out", [(None, b"x")] * 3_000))  # type: ignore[arg-type]
                await transaction.abort()
            told = await asyncio.gather(*waiting, many, return_exceptions=True)
            assert isinstance(told[-1], TransactionAbortableError)
            assert isinstance(told[-2], TransactionAbortableError)
            assert {type(one) for one in told} <= {TransactionAbortableError, streamlog.RecordMetadata}
            assert producer.pending_records == 0
            await transact(producer, b"next")
        assert await values(cluster, "out") == [b"next"]


@in_loop
async def test_outside_of_it_a_record_that_would_have_to_wait_is_refused_at_once() -> None:
    async with streamlog.aio.open(":memory:", auto_create_topics=True) as cluster:
        await filled(cluster)
        async with cluster.producer(transactional_id="t") as producer:
            for send in (
                lambda: producer.send("new", b"x"),
                lambda: producer.send_many("new", [(None, b"x")]),
                lambda: producer.send_many("out", [(None, b"x")] * 3_000),
            ):
                with pytest.raises(IllegalStateError, match="inside of a transaction only"):
                    send()
            await transact(producer)
        assert cluster.topics == ["in", "out"] and await values(cluster, "out") == [b"x"]


@in_loop
async def test_a_record_that_could_not_be_gathered_counts_only_if_nobody_was_told() -> None:
    """As in the blocking API, where `send` raises and the body may go on; whether it had to wait makes no difference."""
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        wrong: list[Any] = [(None, b"v")] * 1_500 + [(b"a", b"b", b"c")]
        async with cluster.producer(transactional_id="t") as producer:
            async with producer.transaction():
                with pytest.raises(SerializationError):
                    await producer.send_many("out", wrong)
            with pytest.raises(TransactionAbortableError, match=r"could not be written \(501\).*tuple of 3"):
                async with producer.transaction():
                    producer.send_many("out", wrong)
            await transact(producer, b"last")
        assert len(await values(cluster, "out")) == 1_001


@in_loop
async def test_leaving_waits_for_an_end_that_another_task_has_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        async with cluster.producer(transactional_id="t") as producer:
            gate = Gate(monkeypatch)
            asyncio.get_running_loop().call_later(0.05, gate.open)
            async with producer.transaction() as transaction:
                producer.send("out", b"x")
                ending = asyncio.ensure_future(transaction.commit())
                await until(lambda: gate.arrived == 1)
                with pytest.raises(IllegalStateError, match="has ended"):
                    await transaction.abort()
                assert not ending.done()
            assert ending.done() and await values(cluster, "out") == [b"x"]
            await ending


@in_loop
async def test_consumers_are_told_in_a_call_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who polls in another task must not meet them half way."""
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        locked: list[bool] = []
        mine: dict[Any, Any] = {}

        def noting(owner: type, name: str, of: Any) -> None:
            original = getattr(owner, name)

            def noted(it: Any, *arguments: Any) -> Any:
                locked.append(of(it)._inside.locked())
                return original(it, *arguments)

            monkeypatch.setattr(owner, name, noted)

        group, other_group = (cluster.consumer_group(name, ["in"], **OWN) for name in ("g", "h"))
        async with group.consumer() as consumer, other_group.consumer() as other:
            async with cluster.producer(transactional_id="t") as producer:
                for one in (consumer, other):
                    await one.poll(1.0, max_records=4)
                    mine[one._core._commits] = one  # type: ignore[union-attr]
                noting(Commits, "stored", lambda commits: mine[commits])
                noting(BlockingTransaction, "_seek_back", lambda _: consumer)
                async with producer.transaction(consumer) as transaction:
                    await transaction.commit_offsets(other)
                assert locked == [True, True]
                assert (await group.offsets(), await other_group.offsets()) == ({PLACE: 4}, {PLACE: 4})
                for one in (consumer, other):
                    assert one._core is not None and not one._core._assigned[PLACE].has_uncommitted
                    await one.poll(1.0, max_records=4)
                await producer.transaction(consumer).__aenter__()
                locked.clear()
            assert locked == [True] and await consumer.position(PLACE) == 4, "closing its producer aborts it"
            assert await other.position(PLACE) == 8


@in_loop
async def test_a_take_over_that_was_cancelled_does_not_fence_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        producer = cluster.producer(transactional_id="t")
        gate = Gate(monkeypatch, "_take_over")
        entering = asyncio.ensure_future(producer.__aenter__())
        await until(lambda: gate.arrived == 1)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        again = asyncio.ensure_future(producer.__aenter__())
        await asyncio.sleep(0.01)
        assert gate.arrived == 1, "one at a time"
        gate.open()
        await again
        await transact(producer)
        await producer.close()
        assert await values(cluster, "out") == [b"x"]


@in_loop
async def test_a_producer_that_cannot_take_its_id_over_is_closed() -> None:
    async with streamlog.aio.open(":memory:", transaction_max_timeout_ms=1_000) as cluster:
        producer = cluster.producer(transactional_id="t", transaction_timeout_ms=2_000)
        with pytest.raises(streamlog.errors.InvalidTransactionTimeoutError):
            async with producer:
                raise AssertionError("entered")
        assert producer not in cluster._producers
        with pytest.raises(ClosedError):
            producer.transaction()


@in_loop
async def test_a_cancelled_poll_inside_takes_nothing_from_the_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        group = cluster.consumer_group("g", ["in"], **OWN)
        async with group.consumer() as consumer, cluster.producer(transactional_id="t") as producer:
            with pytest.raises(LookupError):
                async with producer.transaction(consumer):
                    assert len(await consumer.poll(1.0, max_records=4)) == 4
                    core: Any = consumer._core
                    collect, cancelled = core._collect, threading.Event()
                    monkeypatch.setattr(core, "_collect", lambda most: (collect(most), cancelled.wait(20))[0])
                    cut = asyncio.ensure_future(consumer.poll(1.0, max_records=4))
                    await until(lambda: core._assigned[PLACE].position == 8)  # taken, and not handed out
                    cut.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await cut
                    cancelled.set()
                    raise LookupError
            assert [record.offset for record in await consumer.poll(1.0, max_records=3)] == [0, 1, 2]


@in_loop
async def test_who_takes_a_partition_over_waits_for_what_is_about_to_be_committed() -> None:
    """KIP-447, in a loop: the wait parks the poll, and the end wakes it."""
    async with streamlog.aio.open(":memory:", brokers=3, sync="off") as cluster:
        for topic in ("in", "out"):
            await cluster.create_topic(topic, partitions=1, replication_factor=3)
        async with cluster.producer() as producer:
            await producer.send_many("in", [(None, b"%d" % number) for number in range(10)])
        group = cluster.consumer_group("g", ["in"], **OWN)
        first = group.consumer()
        async with cluster.producer(transactional_id="t") as producer:
            await first.poll(5.0, max_records=6)
            transaction = producer.transaction()
            await transaction.__aenter__()
            await transaction.commit_offsets(first)
            core: Any = transaction._core
            await asyncio.to_thread(core._producer._send_offsets, list(core._offsets.items()))
            core._offsets.clear()  # they are there: its commit must not send them again, for a member that is gone
            await first.close()
            producer.send("out", b"x")
            async with group.consumer() as second:
                waiting = asyncio.ensure_future(second.poll(20.0))
                await until(lambda: PLACE in second.assignment)
                await asyncio.sleep(0.05)
                assert not waiting.done()
                await transaction.commit()
                assert [record.offset for record in await waiting] == [6, 7, 8, 9]


@in_loop
async def test_a_fenced_one_is_told_so_by_the_commit_and_closes_all_the_same() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        group = cluster.consumer_group("g", ["in"], **OWN)
        async with group.consumer() as consumer:
            first = cluster.producer(transactional_id="t")
            async with first:
                with pytest.raises(ProducerFencedError):
                    async with first.transaction(consumer):
                        await consumer.poll(1.0, max_records=4)
                        async with cluster.producer(transactional_id="t") as second:
                            await transact(second)
                assert await consumer.position(PLACE) == 0
                for begin in (first.transaction(), first.transaction(consumer)):
                    with pytest.raises(ProducerFencedError):
                        await begin.__aenter__()
            late = cluster.producer(transactional_id="t")
            await late.transaction(consumer).__aenter__()
            async with cluster.producer(transactional_id="t"):
                await late.close()
        assert await values(cluster, "out") == [b"x"] and cluster._producers == {}


@in_loop
async def test_a_listener_may_end_it_inside_the_poll() -> None:
    """As when partitions are revoked: what was made from their records is committed before they go."""
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        group = cluster.consumer_group("g", ["in"])
        transaction: Any = None

        async def revoked(partitions: list[TopicPartition]) -> None:
            await transaction.commit()

        producer = cluster.producer(transactional_id="t")
        async with cluster.consumer(group_id="g", **OWN) as consumer, producer:
            await consumer.subscribe("in", on_revoked=revoked)
            async with producer.transaction(consumer) as transaction:
                for record in await consumer.poll(1.0, max_records=4):
                    producer.send("out", record.value)
                await consumer.unsubscribe()
        assert await group.offsets() == {PLACE: 4} and len(await values(cluster, "out")) == 4


@in_loop
async def test_a_member_that_is_gone_commits_nothing_and_its_records_come_again() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        group = cluster.consumer_group("g", ["in"], **OWN)
        async with group.consumer() as consumer, cluster.producer(transactional_id="t") as producer:
            with pytest.raises(CommitFailedError):
                async with producer.transaction(consumer):
                    await consumer.poll(1.0)
                    producer.send("out", b"never")
                    await consumer.unsubscribe()
        assert await values(cluster, "out") == [] and sum((await group.lag()).values()) == 10
