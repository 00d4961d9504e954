"""Awaiting a batch in an event loop: what makes `await producer.send(...)` work, with any producer.

    await future --> Arrivals of (batch, loop): one asyncio future per awaiting task
    batch settled --producer's thread--> one call into the loop --> all of them

Invariants:
 1. Awaiting runs no turn in the loop's thread: the producer's thread is asked to send the batch, and tells
    when it is over.
 2. However many tasks await records of one batch, its end costs one call into their loop.
 3. A task that is cancelled only stops waiting: the record travels on, and flush still reports its failure.
 4. Nobody waits longer than `delivery_timeout_ms` and a second; the delivery's own end, which tells why, comes first.

asyncio is imported here only by those who run a loop already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NoReturn

from streamlog.client.timeouts import SETTLING_MS
from streamlog.errors import StreamlogTimeoutError, UnknownNameError
from streamlog.wording import plural

if TYPE_CHECKING:
    import asyncio

    from streamlog.client.delivery import OpenBatch


class Arrivals:
    """Who awaits one batch in one loop. Touched in the loop's thread only, but for `tell`."""

    __slots__ = ("batch", "futures", "loop", "timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, batch: OpenBatch) -> None:
        self.loop = loop
        self.batch = batch
        self.futures: list[asyncio.Future[None]] = []
        timeout_ms = batch.producer.config.delivery_timeout_ms
        self.timer = loop.call_later((timeout_ms + SETTLING_MS) / 1000, self._expire)

    def tell(self, _: object) -> None:
        """The batch is settled. Called by the producer's thread."""
        try:
            self.loop.call_soon_threadsafe(self._resolve)
        except RuntimeError:
            pass  # the loop is closed: nobody awaits any more

    def _resolve(self) -> None:
        self.timer.cancel()
        futures, self.futures = self.futures, []
        for future in futures:
            if not future.done():
                future.set_result(None)

    def _expire(self) -> None:
        batch = self.batch
        timeout_ms = batch.producer.config.delivery_timeout_ms
        futures, self.futures = self.futures, []
        for future in futures:
            if not future.done():
                future.set_exception(
                    StreamlogTimeoutError(
                        f"{plural(batch.record_count, 'record')} for {batch.topic}-{batch.partition} not written "
                        f"within delivery_timeout_ms={timeout_ms}; they may still be",
                        topic=batch.topic,
                        partition=batch.partition,
                        timeout_ms=timeout_ms,
                    )
                )


async def settled(batch: OpenBatch) -> None:
    """Wait until the fate of a batch is known. Raises StreamlogTimeoutError."""
    if batch.settle():
        return
    import asyncio

    loop = asyncio.get_running_loop()
    arrivals = batch.arrivals
    if arrivals is None or arrivals.loop is not loop or not arrivals.futures:
        # A second loop takes the place here; the first one's tasks are told all the same.
        arrivals = batch.arrivals = Arrivals(loop, batch)
        future = loop.create_future()
        arrivals.futures.append(future)
        producer = batch.producer
        producer._callbacks.add(batch, arrivals.tell)
        producer._hurry(batch)
    else:
        future = loop.create_future()
        arrivals.futures.append(future)
    await future


async def all_settled(batches: Iterable[OpenBatch]) -> None:
    """Wait until the fate of every batch is known, however many there are."""
    waiting = [batch for batch in dict.fromkeys(batches) if not batch.settle()]
    for batch in waiting:
        batch.producer._hurry(batch)
    for batch in waiting:
        await settled(batch)


def refuse_futures_wait(future: object) -> NoReturn:
    """For `concurrent.futures.wait` and `as_completed`, which lock each future: those of a batch have no lock."""
    raise UnknownNameError(
        f"{future!r} is no concurrent.futures.Future; to wait for several: `producer.flush()` or "
        "`[future.result() for future in futures]`",
        suggestion="result()",
    )


def refuse_asyncio_wait(callback: Callable[..., object]) -> None:
    """For `asyncio.wait`, whose callbacks must run in the loop's thread: it would wait for ever."""
    if getattr(callback, "__module__", None) == "asyncio.tasks":
        raise TypeError(
            "asyncio.wait takes Tasks, and what `send` returns is none; write `await asyncio.gather(*futures)`, or "
            "make Tasks of them with asyncio.ensure_future(future)"
        )
