"""aio/consumer.py: looking in a thread, waiting in the loop."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import streamlog
import streamlog.aio
from streamlog import Record, TopicPartition
from streamlog.aio.waiting import THREADS_MAX
from streamlog.client.consumer import Consumer as BlockingConsumer
from streamlog.errors import (
    ClosedError,
    CommitFailedError,
    ConfigError,
    DeserializationError,
    IllegalStateError,
    StreamlogTimeoutError,
    UnknownTopicOrPartitionError,
)
from tests.aio.loops import in_loop, until, watched

TP = TopicPartition("orders", 0)


async def filled(cluster: streamlog.aio.Cluster, count: int, partitions: int = 1) -> streamlog.aio.Topic:
    topic = await cluster.create_topic("orders", partitions=partitions)
    async with cluster.producer() as producer:
        await producer.send_many("orders", [(b"%d" % number, b"%d" % number) for number in range(count)])
    return topic


def values(records: list[Any]) -> list[int]:
    return [int(record.value) for record in records]


@in_loop
async def test_poll_returns_what_is_there_up_to_a_maximum() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 30)
        consumer = cluster.consumer()
        await consumer.assign(("orders", 0))  # one does where several do
        assert await consumer.end_offsets(("orders", 0)) == {TP: 30}
        assert values(await consumer.poll(1, max_records=7)) == list(range(7))
        assert values(await consumer.poll()) == list(range(7, 30))
        assert await consumer.poll(0) == [] and await consumer.poll(0.01) == []
        assert await consumer.position(TP) == 30 and await consumer.lag(TP) == 0


@in_loop
async def test_a_waiting_poll_returns_as_soon_as_something_is_written() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 0)
        consumer = cluster.consumer()
        await consumer.assign([TP])
        waiting = asyncio.ensure_future(consumer.poll(25))
        await until(lambda: consumer._waiter._sleeper is not None)
        async with cluster.producer() as producer:
            await producer.send("orders", b"1")
        assert values(await waiting) == [1]


@in_loop
async def test_nothing_runs_in_the_loops_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 2_000, partitions=3)
        with watched(monkeypatch):
            group = cluster.consumer_group("g", ["orders"], auto_commit_interval_ms=1, max_poll_records=10)
            async with group.consumer(stop_at_end=True) as consumer:
                first = await consumer.poll()
                await consumer.commit()
                await consumer.seek(TopicPartition("orders", first[0].partition), first[0].offset)
                await consumer.pause(TP)
                await consumer.resume(TP)
                await consumer.end_offsets([TP]), await consumer.committed(TP)
                seen = [record async for record in consumer]
            assert len({(record.partition, record.offset) for record in [*first, *seen]}) == 2_000


@in_loop
async def test_iterating_hands_out_everything_in_order_and_moves_the_position() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 3_000)
        consumer = cluster.consumer(stop_at_end=True)
        await consumer.assign([TP])
        seen = []
        async for record in consumer:
            seen.append(record)
            if len(seen) in (1, 2, 700, 2_999):
                assert await consumer.position(TP) == record.offset + 1
        assert values(seen) == list(range(3_000))
        assert [record async for record in consumer] == []


@in_loop
async def test_break_loses_nothing() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 100)
        async with cluster.consumer_group("g", ["orders"]).consumer() as consumer:
            async for record in consumer:
                if record.offset == 41:
                    break
        assert await cluster.consumer_group("g").offsets() == {TP: 42}


@in_loop
async def test_leaving_on_an_exception_does_not_commit() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 100)
        with pytest.raises(LookupError):
            async with cluster.consumer_group("g", ["orders"]).consumer() as consumer:
                await consumer.poll()
                raise LookupError
        assert await cluster.consumer_group("g").offsets() == {}


async def by_polling(consumer: streamlog.aio.Consumer) -> AsyncIterator[Record]:
    while True:
        for record in await consumer.poll(25, max_records=7):
            yield record


async def by_iterating(consumer: streamlog.aio.Consumer) -> AsyncIterator[Record]:
    async for record in consumer:
        yield record


READING = pytest.mark.parametrize("read", [by_polling, by_iterating])
Read = Callable[[streamlog.aio.Consumer], AsyncIterator[Record]]


def is_parked(consumer: streamlog.aio.Consumer) -> bool:
    return consumer._waiter._sleeper is not None


@READING
@in_loop
async def test_cancelled_while_it_waits_it_commits_what_is_finished(read: Read) -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 20)
        group = cluster.consumer_group("g", ["orders"])
        consumer, seen = group.consumer(), 0

        async def work() -> None:
            nonlocal seen
            async with consumer:
                async for _ in read(consumer):
                    seen += 1

        task = asyncio.ensure_future(work())
        await until(lambda: seen == 20 and is_parked(consumer))
        assert await group.offsets() == {}
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await group.offsets() == {TP: 20} and await group.members() == []


@in_loop
async def test_cancelled_while_it_looks_it_commits_what_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what the look had found: that is put back."""
    looking, go_on, poll = threading.Event(), threading.Event(), BlockingConsumer.poll

    def slow(consumer: BlockingConsumer, *arguments: Any) -> list[Record]:
        found = poll(consumer, *arguments)
        looking.set()
        assert go_on.wait(20)
        return found

    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 20)
        group = cluster.consumer_group("g", ["orders"])
        consumer = group.consumer()
        assert len(await consumer.poll(max_records=15)) == 15

        async def work() -> None:
            async with consumer:
                await consumer.poll()

        monkeypatch.setattr(BlockingConsumer, "poll", slow)
        task = asyncio.ensure_future(work())
        await until(looking.is_set)
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await group.offsets() == {TP: 15}


@READING
@in_loop
async def test_cancelled_at_any_moment_it_commits_nothing_that_is_not_finished(read: Read) -> None:
    """Tasks are cancelled after 0, 1, 2, ... steps of the loop: before, in and between looks, and at work."""
    async with streamlog.aio.open(":memory:", sync="off") as cluster:
        await filled(cluster, 30)
        group = cluster.consumer_group("g", ["orders"])
        finished = before = 0

        async def work() -> None:
            nonlocal finished
            async with group.consumer() as consumer:
                async for record in read(consumer):
                    await asyncio.sleep(0)
                    finished = record.offset + 1

        committed: list[int] = []
        for steps in range(80):
            task = asyncio.ensure_future(work())
            for _ in range(steps):
                await asyncio.sleep(0 if steps % 2 else 0.0002)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            offset = (await group.offsets()).get(TP, 0)
            assert before <= offset <= finished, steps
            committed.append(offset)
            before = offset
            if offset == 30:
                await group.reset_offsets(0)
                finished = before = 0
        assert 30 in committed


@READING
@in_loop
async def test_cancelled_while_a_record_is_in_hand_it_commits_nothing(read: Read) -> None:
    """Though it was cancelled while it waited before: that was caught, and reading went on."""
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 20)
        group = cluster.consumer_group("g", ["orders"])
        with pytest.raises(asyncio.CancelledError):
            async with group.consumer() as consumer:
                assert (await consumer.__anext__()).offset == 0  # the others stay in the buffer
                await consumer.pause(TP)
                waiting = asyncio.ensure_future(consumer.poll(25))
                await until(lambda: is_parked(consumer))
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                await consumer.resume(TP)
                consumer._look_at = asyncio.get_running_loop().time() + 60  # it is not slowness that saves us
                async for record in read(consumer):
                    assert record.offset == 1
                    raise asyncio.CancelledError
        assert await group.offsets() == {}


def test_ctrl_c_while_it_waits_commits_what_is_finished(tmp_path: Path) -> None:
    async def main() -> None:
        async with streamlog.aio.open(tmp_path) as cluster:
            await filled(cluster, 20)
            async with cluster.consumer_group("g", ["orders"]).consumer() as consumer:
                interrupting = asyncio.ensure_future(interrupt(consumer))
                async for _ in consumer:
                    pass
                await interrupting

    async def interrupt(consumer: streamlog.aio.Consumer) -> None:
        await until(lambda: is_parked(consumer) and consumer._core._commits._positions() != {})  # type: ignore[union-attr]
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())
    finally:
        signal.signal(signal.SIGINT, before)
    with streamlog.open(tmp_path) as cluster:
        assert cluster.consumer_group("g").offsets() == {TP: 20}


@in_loop
async def test_auto_commit_never_passes_the_record_in_hand() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 1_200)
        group = cluster.consumer_group("g", ["orders"], auto_commit_interval_ms=1)
        async with group.consumer(stop_at_end=True) as consumer:
            async for record in consumer:
                if record.offset % 100 == 99:
                    assert (await group.offsets()).get(TP, 0) <= record.offset
        assert await group.offsets() == {TP: 1_200}


@in_loop
async def test_a_seek_while_iterating_is_followed() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 100)
        consumer = cluster.consumer(stop_at_end=True)
        await consumer.assign([TP])
        seen = []
        async for record in consumer:
            seen.append(record.offset)
            if record.offset == 4:
                await consumer.seek(TP, 97)
        assert seen == [0, 1, 2, 3, 4, 97, 98, 99]


@in_loop
async def test_a_poll_cancelled_at_any_moment_loses_nothing_and_repeats_nothing() -> None:
    """Polls are cancelled after 0, 1, 2, ... steps of the loop; the others return everything, once."""
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 2_000, partitions=3)
        group = cluster.consumer_group("g", ["orders"], enable_auto_commit=False)
        seen: list[tuple[int, int]] = []
        async with group.consumer() as consumer:
            steps = cancelled = 0
            while len(seen) < 2_000:
                steps = (steps + 1) % 40
                polling = asyncio.ensure_future(consumer.poll(5, max_records=20))
                for _ in range(steps):
                    await asyncio.sleep(0 if steps % 2 else 0.00005)
                polling.cancel()
                try:
                    seen += [(record.partition, record.offset) for record in await polling]
                except asyncio.CancelledError:
                    cancelled += 1
                await consumer.commit()
                committed = await group.offsets()
                for partition in range(3):
                    got = [offset for number, offset in seen if number == partition]
                    assert got == list(range(len(got)))
                    assert committed.get(TopicPartition("orders", partition), 0) == len(got)
            assert cancelled


@in_loop
async def test_a_cancelled_iteration_loses_nothing() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 300)
        consumer = cluster.consumer(stop_at_end=True)
        await consumer.assign([TP])
        seen: list[int] = []

        async def read() -> None:
            async for record in consumer:
                seen.append(record.offset)
                await asyncio.sleep(0)

        for steps in range(1_000):
            task = asyncio.ensure_future(read())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await task
                break
            except asyncio.CancelledError:
                pass
        assert seen == list(range(300))


@in_loop
async def test_other_calls_go_in_between_while_a_poll_waits() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 10)
        consumer = cluster.consumer()
        await consumer.assign([TP])
        await consumer.poll()
        waiting = asyncio.ensure_future(consumer.poll(25))
        await until(lambda: consumer._waiter._sleeper is not None)
        with pytest.raises(IllegalStateError, match="another task polls"):
            await consumer.poll(0)
        await consumer.seek(TP, 8)
        assert values(await waiting) == [8, 9]


@in_loop
async def test_wakeup_ends_a_waiting_poll() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 0)
        consumer = cluster.consumer()
        await consumer.assign([TP])
        waiting = asyncio.ensure_future(consumer.poll(25))
        await until(lambda: consumer._waiter._sleeper is not None)
        threading.Thread(target=consumer.wakeup).start()
        assert await waiting == []


@in_loop
async def test_closing_ends_a_waiting_poll_with_closed_error() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 0)
        async with cluster.consumer_group("g", ["orders"]).consumer() as consumer:
            waiting = asyncio.ensure_future(consumer.poll(25))
            await until(lambda: consumer._waiter._sleeper is not None)
        with pytest.raises(ClosedError):
            await waiting
        for call in (consumer.poll(), consumer.commit(), consumer.position(TP), consumer.__anext__()):
            with pytest.raises(ClosedError):
                await call
        await consumer.close()


@in_loop
async def test_a_thousand_idle_consumers_need_few_threads() -> None:
    async with streamlog.aio.open(":memory:", sync="off") as cluster:
        await filled(cluster, 0)
        before = threading.active_count()
        consumers = [cluster.consumer() for _ in range(1_000)]
        await asyncio.gather(*[consumer.assign([TP]) for consumer in consumers])
        polls = [asyncio.ensure_future(consumer.poll(25)) for consumer in consumers]
        await until(lambda: all(consumer._waiter._sleeper is not None for consumer in consumers))
        assert threading.active_count() <= before + THREADS_MAX
        async with cluster.producer() as producer:
            await producer.send("orders", b"1")
            assert threading.active_count() <= before + THREADS_MAX + 1  # and the producer's
        assert [values(records) for records in await asyncio.gather(*polls)] == [[1]] * 1_000


@in_loop
async def test_many_members_share_partitions_through_few_threads() -> None:
    """Rebalances wait for polls of other members, commits for rebalances: nobody holds a thread meanwhile."""
    async with streamlog.aio.open(":memory:", sync="off") as cluster:
        await filled(cluster, 3_000, partitions=12)
        group = cluster.consumer_group("g", ["orders"], max_poll_records=50)
        seen: set[tuple[int, int]] = set()

        async def member(number: int) -> None:
            async with group.consumer() as consumer:
                while len(seen) < 3_000:
                    for record in await consumer.poll(0.05):
                        seen.add((record.partition, record.offset))
                    try:
                        await consumer.commit()
                    except CommitFailedError:
                        pass

        await asyncio.gather(*[member(number) for number in range(12)])
        assert sum((await group.lag()).values()) == 0


@in_loop
async def test_listeners_run_in_the_loop_and_may_commit() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 20, partitions=2)
        group = cluster.consumer_group("g", ["orders"], enable_auto_commit=False)
        told: list[tuple[str, int]] = []

        async def revoked(partitions: list[TopicPartition]) -> None:
            assert threading.current_thread() is threading.main_thread()
            await consumer.commit()
            told.append(("revoked", len(partitions)))

        def assigned(partitions: list[TopicPartition]) -> None:
            assert threading.current_thread() is threading.main_thread()
            told.append(("assigned", len(partitions)))

        async with group.consumer(on_assigned=assigned, on_revoked=revoked) as consumer:
            assert len(await consumer.poll()) == 20
            async with group.consumer() as other:
                await other.poll(0)
                for _ in range(100):
                    await consumer.poll(0.01)
                    await other.poll(0.01)
                    if other.assignment:
                        break
        assert told[:3] == [("assigned", 2), ("revoked", 2), ("assigned", 1)]
        assert await group.offsets() == {
            partition: offset for partition, offset in (await group.offsets()).items() if offset
        }
        assert sum((await group.offsets()).values()) == 20


@in_loop
async def test_what_a_listener_raises_comes_out_of_the_poll() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 1)

        async def assigned(partitions: list[TopicPartition]) -> None:
            raise LookupError("mine")

        async with cluster.consumer_group("g", ["orders"]).consumer(on_assigned=assigned) as consumer:
            with pytest.raises(LookupError, match="mine"):
                await consumer.poll()


@in_loop
async def test_a_commit_waits_for_a_rebalance_without_a_thread() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 10, partitions=2)
        group = cluster.consumer_group("g", ["orders"], enable_auto_commit=False)
        async with group.consumer() as first, group.consumer() as second:
            await first.poll()
            await second.poll(0)  # joins: the group rebalances, and first must take part
            committing = asyncio.ensure_future(second.commit({TP: 3}, timeout=25))
            await until(lambda: second._commit_waiter._sleeper is not None)
            assert not second._inside.locked()
            while not committing.done():
                await first.poll(0)
            with pytest.raises(CommitFailedError if TP not in second.assignment else AssertionError):
                await committing
                raise AssertionError
            await second.close()
        async with group.consumer() as first, group.consumer() as second:
            await first.poll()
            await second.poll(0)
            with pytest.raises(StreamlogTimeoutError):  # first does not poll: nobody ends the rebalance
                await second.commit({TP: 3}, timeout=0.05)


@in_loop
async def test_offsets_times_and_pauses() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await cluster.create_topic("orders", partitions=1)
        async with cluster.producer() as producer:
            for number in range(10):
                producer.send("orders", b"%d" % number, timestamp=1_000 + number)
        consumer = cluster.consumer()
        await consumer.assign([TP])
        assert await consumer.beginning_offsets([TP]) == {TP: 0} and await consumer.end_offsets([TP]) == {
            TP: 10
        }
        found = (await consumer.offsets_for_times({TP: 1_004}))[TP]
        assert found is not None and found.offset == 4
        await consumer.seek_to_timestamp(TP, 1_007)
        assert values(await consumer.poll()) == [7, 8, 9]
        await consumer.seek_to_beginning()
        await consumer.pause(TP)
        assert await consumer.poll(0) == [] and consumer.paused() == {TP}
        await consumer.resume(TP)
        assert len(await consumer.poll()) == 10
        await consumer.seek_to_end()
        assert await consumer.poll(0) == []
        await consumer.unsubscribe()
        assert consumer.assignment == frozenset()


@in_loop
async def test_errors_reach_the_caller_and_the_consumer_stays_usable() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 3)
        consumer = cluster.consumer(value_deserializer="int64")
        with pytest.raises(UnknownTopicOrPartitionError):
            await consumer.assign([("nowhere", 0)])
        with pytest.raises(ConfigError):
            await consumer.poll(-1)
        with pytest.raises(ConfigError):
            cluster.consumer(group="g")
        await consumer.assign([TP])
        for _ in range(2):
            with pytest.raises(DeserializationError) as bad:
                await consumer.poll()
            with pytest.raises(DeserializationError):
                await consumer.__anext__()
        await consumer.seek(TP, bad.value.next_offset)  # type: ignore[attr-defined]
        assert await consumer.position(TP) == 1


@in_loop
async def test_an_unused_consumer_makes_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 0)
        made: list[object] = []
        original = BlockingConsumer.__init__
        monkeypatch.setattr(
            BlockingConsumer, "__init__", lambda self, *rest: (made.append(self), original(self, *rest))[1]
        )
        consumer = cluster.consumer_group("g", ["orders"]).consumer()
        assert consumer.assignment == frozenset() and consumer.subscription == frozenset()
        consumer.wakeup()
        await consumer.close()
        assert not made
