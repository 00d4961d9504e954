"""Transactions in a loop: all or none, whatever is raised or cancelled, and nothing of it in the loop's thread."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import streamlog
import streamlog.aio
from streamlog.errors import (
    ClosedError,
    CommitFailedError,
    ConfigError,
    IllegalStateError,
    ProducerFencedError,
    TransactionAbortableError,
)
from tests.aio.loops import in_loop, watched

OWN: dict[str, Any] = {"enable_auto_commit": False}


async def values(cluster: Any, topic: str, level: str = "read_committed") -> list[bytes]:
    async with cluster.consumer(isolation_level=level, stop_at_end=True) as reader:
        await reader.assign([(topic, number) for number in range(len(cluster.topic(topic).partitions))])
        return [record.value async for record in reader]


async def filled(cluster: Any, count: int = 10) -> None:
    await cluster.create_topic("in")
    await cluster.create_topic("out")
    async with cluster.producer() as producer:
        await producer.send_many("in", [(b"k", b"%d" % number) for number in range(count)])


@in_loop
async def test_what_is_read_is_written_and_committed_once() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        group = cluster.consumer_group("g", ["in"], **OWN)
        fails = iter([False, True, False, True] + [False] * 20)
        async with group.consumer() as consumer, cluster.producer(transactional_id="t") as producer:
            while sum((await group.lag()).values()):
                try:
                    async with producer.transaction(consumer):
                        for record in await consumer.poll(1.0, max_records=3):
                            await producer.send("out", record.value)
                        if next(fails):
                            raise RuntimeError("half way")
                except RuntimeError:
                    pass
        assert await values(cluster, "out") == await values(cluster, "in")
        assert len(await values(cluster, "out", "read_uncommitted")) > 10
        assert await group.offsets() == {streamlog.TopicPartition("in", 0): 10}


@in_loop
async def test_nothing_of_it_runs_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        group = cluster.consumer_group("g", ["in"], **OWN)
        with watched(monkeypatch):
            async with group.consumer() as consumer, cluster.producer(transactional_id="t") as producer:
                async with producer.transaction(consumer):
                    for record in await consumer.poll(1.0):
                        producer.send("out", record.value)
                with pytest.raises(RuntimeError):
                    async with producer.transaction():
                        producer.send("out", b"no")
                        raise RuntimeError
        monkeypatch.undo()
        assert len(await values(cluster, "out")) == 10


@in_loop
async def test_the_errors_are_those_of_the_blocking_one() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        async with cluster.producer() as plain:
            with pytest.raises(IllegalStateError, match="has no transactional_id"):
                plain.transaction()
        async with cluster.producer(transactional_id="t") as producer:
            with pytest.raises(IllegalStateError, match="inside of a transaction only"):
                producer.send("out", b"outside")
            with pytest.raises(ConfigError, match=r"allowed: a consumer of streamlog\.aio"):
                producer.transaction(object())
            async with cluster.consumer_group("h", ["in"]).consumer() as automatic:
                with pytest.raises(ConfigError, match="enable_auto_commit=False"):
                    await producer.transaction(automatic).__aenter__()
            async with producer.transaction() as transaction:
                with pytest.raises(IllegalStateError, match="open already"):
                    await producer.transaction().__aenter__()
                with pytest.raises(IllegalStateError, match="begun once"):
                    await transaction.__aenter__()
                await transaction.commit()
                with pytest.raises(IllegalStateError, match="has ended"):
                    await transaction.abort()
            with pytest.raises(IllegalStateError, match="has not begun"):
                await producer.transaction().commit()
            async with cluster.producer(transactional_id="t"):
                with pytest.raises(ProducerFencedError):
                    async with producer.transaction():
                        producer.send("out", b"a zombie's")
        with pytest.raises(ClosedError):
            producer.transaction()
        assert await values(cluster, "out") == []


@in_loop
async def test_entering_the_producer_fences_who_had_its_id() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        first = cluster.producer(transactional_id="t")
        opened = first.transaction()
        await opened.__aenter__()
        await first.send("out", b"of the first")
        async with cluster.producer(transactional_id="t") as second:
            assert await values(cluster, "out", "read_uncommitted") == [b"of the first"]
            with pytest.raises(ProducerFencedError):
                await opened.commit()
            async with second.transaction():
                second.send("out", b"of the second")
        await first.close()
        assert await values(cluster, "out") == [b"of the second"]


@in_loop
async def test_offsets_by_hand_and_a_member_that_was_replaced() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        group = cluster.consumer_group("g", ["in"], **OWN)
        async with cluster.producer(transactional_id="t") as producer, group.consumer() as consumer:
            async with producer.transaction() as transaction:
                await consumer.poll(1.0, max_records=4)
                await transaction.commit_offsets(consumer)
            assert await group.offsets() == {streamlog.TopicPartition("in", 0): 4}
            core = consumer._core
            with pytest.raises(CommitFailedError):
                async with producer.transaction(consumer):
                    await consumer.poll(1.0, max_records=4)
                    core._commits.lost.add(streamlog.TopicPartition("in", 0))
            assert await group.offsets() == {streamlog.TopicPartition("in", 0): 4}


@in_loop
async def test_a_consumer_closed_inside_does_not_keep_it_from_ending() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        group = cluster.consumer_group("g", ["in"], **OWN)
        async with cluster.producer(transactional_id="t") as producer:
            consumer = group.consumer()
            with pytest.raises(RuntimeError):
                async with producer.transaction(consumer):
                    await consumer.poll(1.0)
                    producer.send("out", b"no")
                    await consumer.close()
                    raise RuntimeError
            async with producer.transaction():
                producer.send("out", b"yes")
        assert await values(cluster, "out") == [b"yes"]


@in_loop
async def test_records_that_waited_for_room_belong_to_it_or_fail() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster)
        async with cluster.producer(
            transactional_id="t", buffer_memory=40_000, batch_size=10_000
        ) as producer:
            async with producer.transaction():
                for number in range(200):
                    producer.send("out", b"%04d" % number + bytes(1_000))
            kept = [value[:4] for value in await values(cluster, "out")]
            assert sorted(kept) == [b"%04d" % number for number in range(200)]
            with pytest.raises(RuntimeError):
                async with producer.transaction():
                    late = [producer.send("out", b"no" + bytes(1_000)) for _ in range(200)]
                    raise RuntimeError
            async with producer.transaction():
                producer.send("out", b"next")
            told = await asyncio.gather(*late, return_exceptions=True)
            assert isinstance(told[-1], Exception), "it still waited for room"
            assert len(await values(cluster, "out")) == 201


@in_loop
async def test_a_late_record_that_cannot_be_gathered_aborts_it() -> None:
    async with streamlog.aio.open(":memory:", auto_create_topics=True) as cluster:
        await filled(cluster)
        async with cluster.producer(transactional_id="t") as producer:
            with pytest.raises(TransactionAbortableError, match="could not be written"):
                async with producer.transaction():
                    producer.send("out", b"a")
                    producer.send("not/a name", b"b")
            assert await values(cluster, "out") == []
            async with producer.transaction():
                producer.send("new", b"c")
            assert await values(cluster, "new") == [b"c"]


@pytest.mark.parametrize("with_consumer", [False, True])
def test_cancelled_anywhere_it_is_whole_and_the_next_one_goes_well(with_consumer: bool) -> None:
    async def sweep() -> None:
        async with streamlog.aio.open(":memory:") as cluster:
            await filled(cluster, 400)
            group = cluster.consumer_group("g", ["in"], **OWN)
            async with group.consumer() as consumer, cluster.producer(transactional_id="t") as producer:
                steps, completed = 0, 0

                async def transact(name: bytes) -> None:
                    async with producer.transaction(consumer if with_consumer else None):
                        if with_consumer:
                            await consumer.poll(1.0, max_records=2)
                        producer.send("out", name + b"-1")
                        await producer.send("out", name + b"-2")
                        producer.send("out", name + b"-3")

                while completed < 10:
                    steps += 1
                    task = asyncio.ensure_future(transact(b"%d" % steps))
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    task.cancel()
                    try:
                        await task
                        completed += 1
                    except asyncio.CancelledError:
                        pass
                    async with producer.transaction():
                        producer.send("out", b"after %d" % steps)
                    assert steps < 2_000
            read = await values(cluster, "out")
            for step in range(1, steps + 1):
                mine = [value for value in read if value.startswith(b"%d-" % step)]
                assert mine in ([], [b"%d-%d" % (step, n) for n in (1, 2, 3)]), step
                assert read.count(b"after %d" % step) == 1, step

    asyncio.run(asyncio.wait_for(sweep(), 60))


@in_loop
async def test_the_leader_dies_inside() -> None:
    async with streamlog.aio.open(":memory:", brokers=3, sync="off") as cluster:
        for topic in ("in", "out"):
            await cluster.create_topic(topic, partitions=1, replication_factor=3)
        async with cluster.producer() as producer:
            await producer.send_many("in", [(b"k", b"%d" % number) for number in range(10)])
        group = cluster.consumer_group("g", ["in"], **OWN)
        async with group.consumer() as consumer, cluster.producer(transactional_id="t") as producer:
            while sum((await group.lag()).values()):
                try:
                    async with producer.transaction(consumer):
                        for record in await consumer.poll(1.0, max_records=5):
                            await producer.send("out", record.value)
                            if record.offset in (2, 7):
                                leader = cluster.topic("out").partitions[0].leader
                                broker = cluster.brokers[leader]
                                await asyncio.to_thread(broker.crash)
                                await asyncio.to_thread(broker.start)
                except TransactionAbortableError:
                    pass
        assert await values(cluster, "out") == [b"%d" % number for number in range(10)]
