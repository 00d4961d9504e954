"""client/awaiting.py: the futures of any producer, awaited in any loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog.client.delivery import SendFuture
from streamlog.errors import RecordTooLargeError, StreamlogTimeoutError, UnknownNameError
from streamlog.storage.env import WriteTransaction


def test_futures_of_the_blocking_producer_are_awaitable_in_any_loop(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "c") as cluster:
        cluster.create_topic("orders", config={"max.message.bytes": 1_000})
        with cluster.producer(linger_ms=60_000) as producer:
            first, many = producer.send("orders", b"x"), producer.send_many("orders", [(None, b"y")] * 10)

            async def read() -> tuple[int, list[int]]:
                return (await first).offset, [m.offset for m in await many]

            assert asyncio.run(read()) == (0, list(range(1, 11)))
            again = producer.send("orders", b"z")

            async def twice() -> list[int]:
                return [m.offset for m in await asyncio.gather(_await(again), _await(again))]

            assert asyncio.run(twice()) == [11, 11]
            failing = producer.send("orders", b"x" * 2_000)

            async def fail() -> None:
                with pytest.raises(RecordTooLargeError):
                    await failing

            asyncio.run(fail())


async def _await(future: SendFuture) -> streamlog.RecordMetadata:
    return await future


def test_awaiting_runs_no_turn_in_the_loops_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    with streamlog.open(":memory:") as cluster:
        cluster.create_topic("orders")
        committing: list[threading.Thread] = []
        commit = WriteTransaction.commit
        monkeypatch.setattr(
            WriteTransaction,
            "commit",
            lambda transaction: (committing.append(threading.current_thread()), commit(transaction))[1],
        )
        with cluster.producer(linger_ms=60_000) as producer:

            async def send() -> None:
                await producer.send("orders", b"x")
                assert committing and threading.current_thread() not in committing

            asyncio.run(send())


def test_nobody_awaits_longer_than_the_delivery_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    with streamlog.open(":memory:") as cluster:
        cluster.create_topic("orders")
        gate = threading.Event()
        commit = WriteTransaction.commit
        producer = cluster.producer(delivery_timeout_ms=30, request_timeout_ms=10, linger_ms=5)

        async def send() -> None:
            monkeypatch.setattr(
                WriteTransaction, "commit", lambda transaction: (gate.wait(), commit(transaction))[1]
            )
            future = producer.send("orders", b"x")
            try:
                for _ in range(2):
                    with pytest.raises(StreamlogTimeoutError, match="may still be"):
                        await future
            finally:
                gate.set()
            assert (await future).offset == 0

        asyncio.run(send())
        producer.close()


def test_one_task_that_is_cancelled_does_not_concern_the_others() -> None:
    with streamlog.open(":memory:") as cluster:
        cluster.create_topic("orders", partitions=1)
        with cluster.producer(linger_ms=60_000) as producer:

            async def send() -> None:
                future = producer.send("orders", b"x")
                first, second = asyncio.ensure_future(_await(future)), asyncio.ensure_future(_await(future))
                await asyncio.sleep(0)
                first.cancel()
                assert (await second).offset == 0
                with pytest.raises(asyncio.CancelledError):
                    await first

            asyncio.run(send())


def test_what_waits_for_other_futures_is_told_what_to_use_instead() -> None:
    with streamlog.open(":memory:") as cluster:
        cluster.create_topic("orders")
        with cluster.producer(linger_ms=60_000) as producer:
            future = producer.send("orders", b"x")
            for wait in (concurrent.futures.wait, concurrent.futures.as_completed):
                with pytest.raises(
                    UnknownNameError, match=r"no concurrent.futures.Future.*producer\.flush\(\)"
                ):
                    list(wait([future], timeout=20))  # type: ignore[call-overload]
            with pytest.raises(
                AssertionError, match=r"concurrent.futures.Future is expected, got <SendFuture"
            ):
                asyncio.wrap_future(future)  # type: ignore[arg-type]
            assert not future.done()


async def wait_for_all(futures: Iterable[Any]) -> list[streamlog.RecordMetadata]:
    done, _ = await asyncio.wait(futures, timeout=20)
    return [future.result() for future in done]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 makes Tasks of what it is given, and comes back")
def test_asyncio_wait_is_refused_and_waits_for_tasks() -> None:
    with streamlog.open(":memory:") as cluster:
        cluster.create_topic("orders")
        with cluster.producer(linger_ms=60_000) as producer:
            future = producer.send("orders", b"x")
            with pytest.raises(TypeError, match=r"asyncio.gather\(\*futures\)"):
                asyncio.run(wait_for_all([future]))

            async def wait() -> list[streamlog.RecordMetadata]:
                return await wait_for_all([asyncio.ensure_future(future)])

            assert [metadata.offset for metadata in asyncio.run(wait())] == [0]
