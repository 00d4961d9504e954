"""aio/producer.py: sending without a turn in the loop's thread."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import streamlog
import streamlog.aio
from streamlog.aio.late import PORTION_RECORDS_MAX
from streamlog.errors import (
    BufferExhaustedError,
    ClosedError,
    DeliveryError,
    IllegalStateError,
    RecordTooLargeError,
    SerializationError,
    UnknownTopicOrPartitionError,
)
from streamlog.storage.env import WriteTransaction
from tests.aio.loops import in_loop, until, watched


@in_loop
async def test_awaiting_a_send_says_where_the_record_is() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        topic = await cluster.create_topic("orders", partitions=1)
        async with cluster.producer(linger_ms=60_000) as producer:
            first = await producer.send("orders", b"a", key=b"k", headers=[("h", b"1")], timestamp=7)
            second = await producer.send("orders", b"b")
        assert (first.offset, first.timestamp, second.offset) == (0, 7, 1)
        [a, b] = await topic[0].read()
        assert (a.value, a.key, a.headers, b.value) == (b"a", b"k", (("h", b"1"),), b"b")


@in_loop
async def test_nothing_runs_in_the_loops_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that fill up, linger, are awaited, flushed, or sent by the thousand."""
    async with streamlog.aio.open(":memory:") as cluster:
        await cluster.create_topic("orders", partitions=3)
        with watched(monkeypatch):
            async with cluster.producer(batch_size=2_000, linger_ms=1) as producer:
                futures = [producer.send("orders", b"x" * 90, key=b"%d" % i) for i in range(2_000)]
                await futures[-1]
                await producer.send_many("orders", [(b"%d" % i, b"y" * 90) for i in range(2_000)])
                producer.send("orders", b"z")
                await producer.flush()
                producer.send("orders", b"last")
            async with cluster.producer(linger_ms=0) as producer:
                await asyncio.gather(*[producer.send("orders", b"%d" % i) for i in range(100)])
    assert len({(await future).offset for future in futures if (await future).partition == 0}) > 1


@in_loop
async def test_the_loop_goes_on_while_the_disk_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every commit waits until the loop has turned a hundred times: forever, if the loop waited for it."""
    turned = 0
    commit = WriteTransaction.commit

    def slow(transaction: WriteTransaction) -> None:
        begun = turned
        give_up = threading.Event()
        while turned < begun + 100:
            assert not give_up.wait(0.0001) and threading.current_thread() is not threading.main_thread()
        commit(transaction)

    async def turn() -> None:
        nonlocal turned
        while True:
            turned += 1
            await asyncio.sleep(0)

    async with streamlog.aio.open(":memory:") as cluster:
        turning = asyncio.ensure_future(turn())
        monkeypatch.setattr(WriteTransaction, "commit", slow)
        await cluster.create_topic("orders")
        async with cluster.producer(batch_size=500) as producer:
            await asyncio.gather(*[producer.send("orders", b"x" * 100) for _ in range(50)])
        group = cluster.consumer_group("g", ["orders"], stop_at_end=True)
        async with group.consumer() as consumer:
            assert len([record async for record in consumer]) == 50
            await consumer.commit()
        assert list((await group.offsets()).values()) == [50]
        monkeypatch.setattr(WriteTransaction, "commit", commit)
        turning.cancel()


@in_loop
async def test_order_is_kept_across_batches_and_ways_of_sending() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        topic = await cluster.create_topic("orders", partitions=1)
        async with cluster.producer(batch_size=300) as producer:
            for start in range(0, 3_000, 30):
                for number in range(start, start + 20):
                    producer.send("orders", b"%d" % number)
                await producer.send_many("orders", [(None, b"%d" % n) for n in range(start + 20, start + 30)])
        records = await topic[0].read(max_records=5_000)
        assert [int(record.value or b"") for record in records] == list(range(3_000))


@in_loop
async def test_send_many_returns_what_is_written() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await cluster.create_topic("orders", partitions=3)
        async with cluster.producer(linger_ms=60_000) as producer:
            sent = await producer.send_many("orders", [(b"%d" % i, b"v") for i in range(500)])
            assert len(sent) == 500 and all(future.done() for future in sent)
            assert [m.partition for m in sent.result()] == [(await future).partition for future in sent]
            assert await sent == sent.result()
            assert len(await producer.send_many("orders", [])) == 0


@in_loop
async def test_send_many_raises_the_first_records_error() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await cluster.create_topic("small", config={"max.message.bytes": 1_000})
        producer = cluster.producer()
        with pytest.raises(RecordTooLargeError):
            await producer.send_many("small", [(None, b"x" * 2_000)])
        await producer.close()  # who awaited knows of it already


@in_loop
async def test_send_many_without_await_sends_as_send_does() -> None:
    """Small lists, lists of several portions, Records: all in order, with single records between them."""
    async with streamlog.aio.open(":memory:") as cluster:
        topic = await cluster.create_topic("orders", partitions=1)
        numbers = iter(range(100_000))

        def pairs(count: int) -> list[Any]:
            return [(None, b"%d" % number) for _, number in zip(range(count), numbers, strict=False)]

        async with cluster.producer() as producer:
            for count in (3, 2 * PORTION_RECORDS_MAX + 1, 5, 0):
                items = pairs(count)
                producer.send_many("orders", items)
                items.clear()  # the list is the caller's again
                producer.send("orders", b"%d" % next(numbers))
            producer.send_many(
                "orders", [streamlog.Record("orders", value=value) for _, value in pairs(1_500)]
            )
            expected = next(numbers)
        records = await topic[0].read(max_records=100_000)
        assert [int(record.value or b"") for record in records] == list(range(expected))


@in_loop
async def test_send_many_in_portions_keeps_the_order_of_the_items() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await cluster.create_topic("orders", partitions=3)
        async with cluster.producer() as producer:
            pairs = [(b"%d" % number, b"v") for number in range(2_500)]
            mixed = [streamlog.Record("orders", key=key, value=b"w") for key, _ in pairs]
            by_pair, by_record = (
                await producer.send_many("orders", pairs),
                await producer.send_many("orders", mixed),
            )
        for sent in (by_pair, by_record):
            assert len(sent) == 2_500 and all(future.done() for future in sent)
            read = {
                (r.partition, r.offset): r.key
                for topic in [cluster.topic("orders")]
                for partition in topic.partitions
                for r in await partition.read(max_records=10_000)
            }
            assert [read[m.partition, m.offset] for m in sent.result()] == [key for key, _ in pairs]


@in_loop
async def test_send_many_waits_outside_while_the_buffer_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        topic = await cluster.create_topic("orders", partitions=1)
        producer = cluster.producer(batch_size=1_000, buffer_memory=4_000)
        gate = threading.Event()
        commit = WriteTransaction.commit
        monkeypatch.setattr(
            WriteTransaction, "commit", lambda transaction: (gate.wait(), commit(transaction))[1]
        )
        for start in range(0, 200, 10):
            producer.send_many("orders", [(None, b"%04d" % n + b"x" * 96) for n in range(start, start + 10)])
        draining = asyncio.ensure_future(producer.drain())
        await asyncio.sleep(0.01)
        assert not draining.done()
        assert producer._core.pending_records < 100  # the others wait outside
        gate.set()
        await draining
        await producer.close()
        records = await topic[0].read(max_records=500)
        assert [int((record.value or b"")[:4]) for record in records] == list(range(200))


@in_loop
async def test_what_send_many_could_not_gather_is_told_by_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await cluster.create_topic("orders", partitions=1)
        producer = cluster.producer(batch_size=1_000, buffer_memory=1_000, max_block_ms=20, linger_ms=0)
        gate = threading.Event()
        commit = WriteTransaction.commit
        monkeypatch.setattr(
            WriteTransaction, "commit", lambda transaction: (gate.wait(), commit(transaction))[1]
        )
        for _ in range(3):
            producer.send("orders", b"x" * 1_000)
        with pytest.raises(BufferExhaustedError):
            await producer.send_many("orders", [(None, b"awaited")])
        producer.send_many("orders", [(b"k", b"not awaited"), (None, b"nor this")])
        await until(lambda: producer._placing is None)
        gate.set()
        with pytest.raises(DeliveryError, match="records could not be sent") as failed:
            await producer.close()
        told = [record.value for record in failed.value.failed]  # type: ignore[attr-defined]
        assert told[-2:] == [b"not awaited", b"nor this"] and b"awaited" not in told


@in_loop
async def test_items_send_many_does_not_take_are_refused() -> None:
    """A few at once, as `send` does; those that wait outside when awaited, or by flush."""
    async with streamlog.aio.open(":memory:") as cluster:
        topic = await cluster.create_topic("orders", partitions=1)
        producer = cluster.producer()
        with pytest.raises(SerializationError):
            producer.send_many("orders", [(b"a", b"b", b"c")])
        with pytest.raises(UnknownTopicOrPartitionError):
            producer.send_many("nowhere", [])
        many: list[Any] = [(None, b"v")] * PORTION_RECORDS_MAX + [(b"a", b"b", b"c")]
        with pytest.raises(SerializationError):
            await producer.send_many("orders", many)
        producer.send_many("orders", many)
        with pytest.raises(DeliveryError, match=r"1 record could not be sent.*tuple of 3"):
            await producer.flush()
        await producer.close()
        assert topic[0].high_watermark == 2 * PORTION_RECORDS_MAX
        with pytest.raises(ClosedError):
            producer.send_many("orders", many)


@in_loop
async def test_send_many_makes_its_topic_outside_the_loops_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    async with streamlog.aio.open(":memory:", auto_create_topics=True) as cluster:
        with watched(monkeypatch):
            async with cluster.producer() as producer:
                producer.send_many("new", [(None, b"x")])
                assert len(await producer.send_many("newer", [])) == 0
        assert cluster.topics == ["new", "newer"] and cluster.topic("new")[0].high_watermark == 1


@in_loop
async def test_flush_tells_of_failures_nobody_awaited() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await cluster.create_topic("small", config={"max.message.bytes": 1_000})
        producer = cluster.producer(linger_ms=60_000)
        known = producer.send("small", b"x" * 2_000, key=b"known")
        with pytest.raises(RecordTooLargeError):
            await known
        producer.send("small", b"x" * 2_000, key=b"unknown")
        with pytest.raises(DeliveryError) as failed:
            await producer.flush()
        assert [record.key for record in failed.value.failed] == [b"unknown"]  # type: ignore[attr-defined]
        await producer.close()


@in_loop
async def test_leaving_with_an_exception_keeps_it_and_attaches_ours() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await cluster.create_topic("small", config={"max.message.bytes": 1_000})
        with pytest.raises(LookupError) as raised:
            async with cluster.producer() as producer:
                producer.send("small", b"x" * 2_000)
                raise LookupError("mine")
        assert isinstance(raised.value.__context__, DeliveryError)


@in_loop
async def test_a_cancelled_await_does_not_withdraw_the_record() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        topic = await cluster.create_topic("orders")

        async def send(producer: Any) -> None:
            await producer.send("orders", b"x")

        async with cluster.producer() as producer:
            task = asyncio.ensure_future(send(producer))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert topic[0].high_watermark == 1


@in_loop
async def test_many_tasks_await_one_batch_with_one_call_into_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await cluster.create_topic("orders", partitions=1)
        async with cluster.producer(linger_ms=60_000) as producer:
            await producer.send("orders", b"first")
            loop = asyncio.get_running_loop()
            calls: list[object] = []
            original = loop.call_soon_threadsafe
            monkeypatch.setattr(
                loop,
                "call_soon_threadsafe",
                lambda call, *rest: (calls.append(call), original(call, *rest))[1],
            )
            offsets = [m.offset for m in await asyncio.gather(*[_sent(producer, i) for i in range(500)])]
            assert offsets == list(range(1, 501))
            assert len(calls) <= 5


async def _sent(producer: Any, number: int) -> streamlog.RecordMetadata:
    metadata: streamlog.RecordMetadata = await producer.send("orders", b"%d" % number)
    return metadata


@in_loop
async def test_a_full_buffer_makes_awaiting_wait_and_send_never_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        topic = await cluster.create_topic("orders", partitions=1)
        producer = cluster.producer(batch_size=1_000, buffer_memory=4_000)
        gate = threading.Event()
        commit = WriteTransaction.commit
        monkeypatch.setattr(
            WriteTransaction, "commit", lambda transaction: (gate.wait(), commit(transaction))[1]
        )
        futures = [producer.send("orders", b"%04d" % number + b"x" * 96) for number in range(200)]
        assert any(type(future).__name__ == "LateSend" for future in futures)
        assert not futures[-1].done()  # type: ignore[attr-defined]
        draining = asyncio.ensure_future(producer.drain())
        await asyncio.sleep(0.01)
        assert not draining.done()
        gate.set()
        await draining
        assert [m.offset for m in await asyncio.gather(*futures)] == list(range(200))
        await producer.close()
        records = await topic[0].read(max_records=500)
        assert [int((record.value or b"")[:4]) for record in records] == list(range(200))


@in_loop
async def test_a_buffer_that_stays_full_fails_what_waits_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await cluster.create_topic("orders", partitions=1)
        producer = cluster.producer(batch_size=1_000, buffer_memory=1_000, max_block_ms=20, linger_ms=0)
        gate = threading.Event()
        commit = WriteTransaction.commit
        monkeypatch.setattr(
            WriteTransaction, "commit", lambda transaction: (gate.wait(), commit(transaction))[1]
        )
        for _ in range(3):
            producer.send("orders", b"x" * 1_000)
        late = producer.send("orders", b"awaited")
        unread = producer.send("orders", b"not awaited")
        with pytest.raises(BufferExhaustedError):
            await late
        await until(unread.done)  # type: ignore[attr-defined]
        gate.set()
        with pytest.raises(DeliveryError, match="could not be sent") as failed:
            await producer.close()
        assert b"not awaited" in [record.value for record in failed.value.failed]  # type: ignore[attr-defined]


@in_loop
async def test_a_topic_is_made_on_first_use_outside_the_loops_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    async with streamlog.aio.open(":memory:", auto_create_topics=True) as cluster:
        with watched(monkeypatch):
            async with cluster.producer() as producer:
                futures = [producer.send("new", b"%d" % number, partition=0) for number in range(10)]
                assert [(await future).offset for future in futures] == list(range(10))
        assert cluster.topics == ["new"]


@in_loop
async def test_errors_of_send_come_at_once() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await cluster.create_topic("orders")
        producer = cluster.producer()
        with pytest.raises(UnknownTopicOrPartitionError):
            producer.send("nowhere", b"x")
        with pytest.raises(RecordTooLargeError):
            producer.send("orders", b"x" * 2_000_000)
        await producer.close()
        await producer.close()
        with pytest.raises(ClosedError):
            producer.send("orders", b"x")
        with pytest.raises(ClosedError):
            await producer.flush()


@in_loop
async def test_result_would_block_so_it_is_refused_until_done() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await cluster.create_topic("orders")
        async with cluster.producer(linger_ms=60_000) as producer:
            future: Any = producer.send("orders", b"x")
            with pytest.raises(IllegalStateError, match="await"):
                future.result()
            await future
            assert future.result().offset == 0


@in_loop
async def test_callbacks_run_beside_awaiting() -> None:
    async with streamlog.aio.open(":memory:", auto_create_topics=True) as cluster:
        async with cluster.producer() as producer:
            done: list[int] = []
            for _ in range(3):  # the first is a LateSend
                future: Any = producer.send("new", b"x", partition=0)
                future.add_done_callback(lambda f: done.append(f.result().offset))
                await future
            await until(lambda: len(done) == 3)
        assert done == [0, 1, 2]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 makes Tasks of what it is given, and comes back")
@in_loop
async def test_asyncio_wait_is_refused_whatever_send_returned() -> None:
    async with (
        streamlog.aio.open(":memory:", auto_create_topics=True) as cluster,
        cluster.producer(linger_ms=60_000) as producer,
    ):
        late: Any = producer.send("new", b"x", partition=0)
        await late
        for future in (late, producer.send("new", b"y", partition=0)):
            with pytest.raises(TypeError, match=r"asyncio.gather\(\*futures\)"):
                await asyncio.wait([future])


FORGOTTEN = """
import asyncio, sys, streamlog.aio
async def main():
    cluster = await streamlog.aio.open(sys.argv[1])
    await cluster.create_topic("orders", partitions=1)
    producer = cluster.producer(linger_ms=60_000, batch_size=1_000)
    for number in range(100):
        producer.send("orders", b"%d" % number + b"x" * 50)
asyncio.run(main())
"""


def test_what_a_forgotten_cluster_gathered_is_written_at_exit(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FORGOTTEN, str(tmp_path / "c")], check=True, timeout=30)
    with streamlog.open(tmp_path / "c") as cluster:
        assert cluster.topic("orders")[0].high_watermark == 100
