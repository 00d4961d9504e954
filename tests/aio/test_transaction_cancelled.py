"""A transaction whose task is cancelled, at each of its awaits: all or nothing, once, and nothing left behind."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import streamlog.aio
from tests.aio.loops import cancelled_at, in_loop, until
from tests.aio.test_transactions import OWN, values

ROUNDS_MAX = 30


@pytest.mark.parametrize("brokers", [1, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize("again_after", [0, 1, 2], ids=["once", "twice", "twice with a gap"])
@pytest.mark.parametrize("fails", [False, True], ids=["commits", "aborts"])
@in_loop
async def test_at_each_await_it_is_whole_and_leaves_nothing_behind(
    brokers: int, again_after: int, fails: bool
) -> None:
    threads = {thread.name for thread in threading.enumerate()}
    tasks = asyncio.all_tasks()
    async with streamlog.aio.open(":memory:", brokers=brokers, sync="off") as cluster:
        for topic in ("in", "out"):
            await cluster.create_topic(topic, partitions=1, replication_factor=brokers)
        count = 2 * ROUNDS_MAX
        async with cluster.producer() as filler:
            await filler.send_many("in", [(None, b"%d" % number) for number in range(count)])
        group = cluster.consumer_group("g", ["in"], **OWN)
        rounds = completed = 0
        async with group.consumer() as consumer:
            await consumer.poll(0.0)

            async def work(producer: Any, *, fails: bool = False) -> None:
                async with producer, producer.transaction(consumer):
                    records = await consumer.poll(1.0, max_records=2)
                    producer.send("out", records[0].value)
                    await producer.send_many("out", [(None, record.value) for record in records[1:]])
                    if fails:
                        raise LookupError

            while not completed:
                rounds += 1
                assert rounds < ROUNDS_MAX
                producer = cluster.producer(transactional_id="t")
                try:
                    completed += not await cancelled_at(
                        work(producer, fails=fails), rounds, rounds + again_after
                    )
                except LookupError:
                    completed += 1
                await producer.close()  # if it was cancelled on its way in
            while sum((await group.lag()).values()):
                await work(cluster.producer(transactional_id="t"))
        assert rounds > 6 and await values(cluster, "out") == [b"%d" % number for number in range(count)]
        assert cluster._producers == {}
        await until(lambda: asyncio.all_tasks() == tasks)
    await until(lambda: {thread.name for thread in threading.enumerate()} <= threads)
