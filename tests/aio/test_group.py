"""aio/group.py: the group's questions, and `run` with coroutines."""

from __future__ import annotations

import asyncio

import pytest

import streamlog.aio
from streamlog import Record, TopicPartition
from streamlog.errors import ConfigError, DeserializationError, IllegalStateError, NonEmptyGroupError
from tests.aio.loops import in_loop, until, watched
from tests.aio.test_consumer import filled


@in_loop
async def test_a_group_answers_what_the_blocking_one_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 10, partitions=2)
        with watched(monkeypatch):
            group = cluster.consumer_group("g", ["orders"])
            assert (
                await group.state() == "Empty" and await group.members() == [] and await group.offsets() == {}
            )
            async with group.consumer() as consumer:
                await consumer.poll()
                assert await group.state() == "Stable" and len(await group.members()) == 1
                with pytest.raises(NonEmptyGroupError):
                    await group.reset_offsets("earliest")
            assert sum((await group.lag()).values()) == 0 and await group.topics() == ["orders"]
            await group.reset_offsets("earliest")
            assert sum((await group.lag()).values()) == 10
            assert await cluster.groups() == ["g"]
            await group.delete()
            assert await cluster.groups() == []


@in_loop
async def test_run_handles_every_record_in_order_and_commits() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 500, partitions=4)
        group = cluster.consumer_group("g", ["orders"])
        seen: dict[int, list[int]] = {}
        running = most = 0

        async def handle(record: Record) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            seen.setdefault(record.partition, []).append(record.offset)
            running -= 1

        await group.run(handle, workers=4, stop_at_end=True)
        for offsets in seen.values():
            assert sorted(set(offsets)) == list(range(len(set(offsets))))
        assert sum(len(set(offsets)) for offsets in seen.values()) == 500
        assert sum((await group.lag()).values()) == 0
        assert await group.members() == []


@in_loop
async def test_an_error_stops_all_and_commits_what_finished() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 100)
        group = cluster.consumer_group("g", ["orders"])

        async def handle(record: Record) -> None:
            if record.offset == 37:
                raise LookupError("record 37")

        with pytest.raises(LookupError, match="record 37"):
            await group.run(handle, workers=2)
        assert await group.offsets() == {TopicPartition("orders", 0): 37}


@in_loop
async def test_errors_can_be_skipped_or_judged() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 100)
        group = cluster.consumer_group("g", ["orders"])
        judged: list[int] = []

        def handle(record: Record) -> None:  # a plain function
            if record.offset % 10 == 0:
                raise LookupError

        async def judge(record: Record, error: Exception) -> None:
            judged.append(record.offset)

        await group.run(handle, on_error="skip", stop_at_end=True)
        await group.reset_offsets("earliest")
        await group.run(handle, on_error=judge, stop_at_end=True)
        assert judged == list(range(0, 100, 10))


@in_loop
async def test_records_that_cannot_be_read_are_judged_too() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await cluster.create_topic("mixed")
        async with cluster.producer() as producer:
            await producer.send_many("mixed", [(b"k", b"%d" % n if n % 2 else b"?") for n in range(6)])
        group = cluster.consumer_group("g", ["mixed"])
        handled: list[object] = []
        judged: list[tuple[int, object]] = []

        def handle(record: Record) -> None:
            handled.append(record.value)

        async def judge(record: Record, error: Exception) -> None:
            assert isinstance(error, DeserializationError)
            judged.append((record.offset, record.value))

        with pytest.raises(DeserializationError):
            await group.run(handle, value_deserializer="json")
        assert await group.offsets() == {}
        await group.run(handle, on_error=judge, stop_at_end=True, value_deserializer="json")
        assert handled == [1, 3, 5] and judged == [(n, b"?") for n in (0, 2, 4)]
        await group.reset_offsets("earliest")
        await group.run(handle, on_error="skip", stop_at_end=True, value_deserializer="json")
        assert handled == [1, 3, 5] * 2 and await group.lag() == {TopicPartition("mixed", 0): 0}


@in_loop
async def test_stop_finishes_the_record_in_hand() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 100)
        group = cluster.consumer_group("g", ["orders"])

        async def handle(record: Record) -> None:
            if record.offset == 10:
                group.stop()
                await asyncio.sleep(0)

        await group.run(handle)
        assert await group.offsets() == {TopicPartition("orders", 0): 11}
        group.stop()  # nothing runs: harmless


@in_loop
async def test_cancelling_a_run_commits_what_finished_and_leaves() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 100)
        group = cluster.consumer_group("g", ["orders"])
        at_ten = asyncio.Event()

        async def handle(record: Record) -> None:
            if record.offset == 10:
                at_ten.set()
                await asyncio.Event().wait()

        run = asyncio.ensure_future(group.run(handle))
        await at_ten.wait()
        with pytest.raises(IllegalStateError, match="running already"):
            await group.run(handle)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert await group.offsets() == {TopicPartition("orders", 0): 10}
        assert await group.members() == []


@in_loop
async def test_stopping_an_idle_run_ends_it() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await filled(cluster, 0)
        group = cluster.consumer_group("g", ["orders"])
        run = asyncio.ensure_future(group.run(lambda record: None, workers=3))
        await until(lambda: len(cluster._consumers) == 3)
        await asyncio.sleep(0.02)
        group.stop()
        await run


@in_loop
async def test_arguments_are_checked() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        group = cluster.consumer_group("g", ["orders"])
        for bad in ({"workers": 0}, {"on_error": "ignore"}):
            with pytest.raises(ConfigError):
                await group.run(lambda record: None, **bad)  # type: ignore[arg-type]
        with pytest.raises(ConfigError):
            cluster.consumer_group("g", ["orders"], auto_offset_reset="beginning")
