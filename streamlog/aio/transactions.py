"""Transactions for asyncio: the blocking ones, begun and ended in threads.

    async with producer.transaction(consumer):  begin in a thread -> the body in the loop -> end in a thread

Invariants:
 1. One begin or end of a producer runs at a time, to its own end, also when who waits for it is cancelled; whatever is
    begun next waits for it. So no record of one transaction gets into another.
 2. An end that has to do with a consumer runs as a call of that consumer: alone in its core.
 3. Records that waited for room are in their batches, or have failed, before a transaction is committed; those of an
    aborted one fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from streamlog.aio.consumer import Consumer
from streamlog.aio.mistakes import EnteredInLoop
from streamlog.client.failures import attach
from streamlog.client.transactions import Transaction as BlockingTransaction
from streamlog.errors import (
    ClosedError,
    ConfigError,
    DeliveryError,
    IllegalStateError,
    TransactionAbortableError,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from streamlog.aio.producer import Producer

ResultT = TypeVar("ResultT")


class Transaction(EnteredInLoop):
    """One transaction of a producer, for an `async with`. Ends once."""

    def __init__(self, producer: Producer, consumer: Consumer | None) -> None:
        self._producer = producer
        self._consumer = consumer
        self._core: BlockingTransaction | None = None
        self._has_begun = False
        self._late_failures_before = 0

    def __repr__(self) -> str:
        return "<aio Transaction, not begun>" if self._core is None else f"<aio {repr(self._core)[1:]}"

    async def __aenter__(self) -> Self:
        if self._has_begun:
            raise IllegalStateError("a transaction is begun once; ask the producer for another")
        self._has_begun = True
        producer, consumer = self._producer, self._consumer
        await producer._all_ended()
        if producer._transaction is not None:
            raise IllegalStateError("a transaction of this producer is open already; end it first")
        core_consumer = None if consumer is None else await consumer._run(lambda core: core)
        core = producer._transactional_core.transaction(core_consumer)
        beginning = producer._workers.submit(core.__enter__)
        producer._note_ending(beginning)
        try:
            await asyncio.shield(beginning)
        except asyncio.CancelledError:
            core._consumer = None  # nothing was handed out in it: nobody has to go back
            producer._note_ending(asyncio.ensure_future(_undone(producer, beginning, core)))
            raise
        self._core = core
        self._late_failures_before = producer._late_failures
        producer._transaction = self
        return self

    async def __aexit__(self, kind: object, exception: BaseException | None, traceback: object) -> None:
        core = self._core
        if core is None or core._has_ended or self._producer._transaction is not self:
            return
        if exception is None:
            await self.commit()
            return
        try:
            await self.abort()
        except Exception as error:
            attach(exception, error)  # the user's own exception is the news

    async def commit_offsets(self, consumer: Consumer) -> None:
        """Commit a consumer's positions with this transaction; as the blocking `commit_offsets`."""
        core = self._open()
        checked(consumer)
        await consumer._run(core.commit_offsets)

    async def commit(self) -> None:
        """End it: everything that was sent is read from now on, and the offsets are committed.

        Cancelled while records wait for room, it is aborted; later it is committed all the same, if it can be.
        Raises   as the blocking `commit`. Nothing of the transaction is read then: it is aborted.
        """
        core, producer = self._open(), self._producer
        try:
            await producer._all_placed()
            failed = producer._late_failures - self._late_failures_before
            if failed:
                try:
                    producer._raise_late()
                except DeliveryError as error:
                    raise _unwritten(failed) from error
                raise _unwritten(failed)
        except BaseException as error:
            try:
                await self.abort()
            except Exception as another:
                attach(error, another)
            raise
        await self._end(core.commit)

    async def abort(self) -> None:
        """End it: nobody who reads committed records sees any of it, and the consumer gives again what it gave.

        Cancelled, it goes on; what is begun next waits for it.
        """
        await self._end(self._open().abort)

    def _open(self) -> BlockingTransaction:
        core = self._core
        if core is None:
            raise IllegalStateError("this transaction has not begun: use `async with`")
        if core._has_ended or self._producer._transaction is not self:
            raise IllegalStateError("this transaction has ended")
        return core

    async def _end(self, end: Callable[[], None]) -> None:
        producer, consumer = self._producer, self._consumer
        producer._transaction = None
        producer._transactional_core._leave()  # what is sent from now on is refused
        ending = asyncio.ensure_future(_alone(producer, consumer, end))
        producer._note_ending(ending)
        await asyncio.shield(ending)


async def _alone(producer: Producer, consumer: Consumer | None, end: Callable[[], None]) -> None:
    """Run an end in a thread; of a consumer that is open, as a call of it."""
    has_begun = False

    def run(core: object) -> None:
        nonlocal has_begun
        has_begun = True
        end()

    if consumer is not None:
        try:
            await consumer._run(run)
            return
        except ClosedError:
            if has_begun:
                raise
    await producer._workers.call(end)


async def _undone(producer: Producer, beginning: asyncio.Future[ResultT], core: BlockingTransaction) -> None:
    """Abort a transaction whose `async with` was cancelled before it had begun."""
    await asyncio.wait([beginning])
    if not beginning.cancelled() and beginning.exception() is None:
        await producer._workers.call(core.abort)


def checked(consumer: object) -> None:
    """Raises ConfigError for what is no consumer of this package."""
    if not isinstance(consumer, Consumer):
        raise ConfigError(
            f"consumer={consumer!r:.80}: allowed: a consumer of streamlog.aio, of a group",
            option="consumer",
            value=consumer,
            allowed="a consumer of streamlog.aio, of a group",
        )


def _unwritten(failed: int) -> TransactionAbortableError:
    return TransactionAbortableError(
        f"records of this transaction could not be written ({failed}), so it was aborted", count=failed
    )
