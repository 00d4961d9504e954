"""`await cluster.process(...)`: handlers in the loop, the rest as in the blocking API."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import streamlog.aio
from streamlog import Record
from streamlog.errors import ConfigError
from tests.aio.loops import in_loop, until


async def filled(cluster: Any, count: int = 60) -> Any:
    await cluster.create_topic("in", partitions=2)
    await cluster.create_topic("out", partitions=1)
    async with cluster.producer() as producer:
        await producer.send_many("in", [(b"%d" % number, b"%02d" % number) for number in range(count)])
    return cluster.consumer_group("g", ["in"])


async def values(cluster: Any) -> list[bytes]:
    async with cluster.consumer(isolation_level="read_committed", stop_at_end=True) as reader:
        await reader.assign([("out", 0)])
        return sorted([record.value async for record in reader])


@in_loop
async def test_coroutine_handlers_run_in_the_loop() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        group = await filled(cluster)
        here = threading.get_ident()

        async def handler(record: Record) -> bytes:
            assert threading.get_ident() == here
            await asyncio.sleep(0)
            return record.value

        await cluster.process(group, handler, "out", workers=2, stop_at_end=True)
        assert await values(cluster) == [b"%02d" % number for number in range(60)]
        assert sum((await group.lag()).values()) == 0


@in_loop
async def test_plain_handlers_and_errors() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        group = await filled(cluster)
        judged: list[bytes] = []

        def handler(record: Record) -> bytes:
            if record.value == b"07":
                raise LookupError("seven")
            return record.value

        async def judge(record: Record, error: Exception) -> None:
            judged.append(record.value)

        with pytest.raises(LookupError, match="seven"):
            await cluster.process(group, handler, "out")
        await cluster.process(group, handler, "out", on_error=judge, stop_at_end=True)
        assert judged == [b"07"] and len(await values(cluster)) == 59


@in_loop
async def test_cancelling_finishes_what_is_in_hand() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        group = await filled(cluster)
        seen: list[Record] = []

        async def handler(record: Record) -> bytes:
            seen.append(record)
            await asyncio.sleep(0.001)
            return record.value

        running = asyncio.ensure_future(cluster.process(group, handler, "out", max_poll_records=5))
        await until(lambda: len(seen) > 12)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await group.members() == []
        assert len(await values(cluster)) == 60 - sum((await group.lag()).values()) < 60
        await cluster.process(group, handler, "out", stop_at_end=True)
        assert await values(cluster) == [b"%02d" % number for number in range(60)]


@in_loop
async def test_bad_input_is_named() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        group = await filled(cluster)
        with pytest.raises(ConfigError, match="group="):
            await cluster.process("g", lambda record: None, "out")
        with pytest.raises(ConfigError, match="handler"):
            await cluster.process(group, None, "out")
