"""Transactions for asyncio: the blocking ones, begun and ended in threads.

    async with producer.transaction(consumer):  begin in a thread -> the body in the loop -> end in a thread

Invariants:
 1. One begin or end of a producer runs at a time, to its own end, also when who waits for it is cancelled; whatever is
    begun next waits for it. So no record of one transaction gets into another.
 2. An end that has to do with a consumer runs as a call of that consumer, alone in its core; consumers whose offsets were
    committed by hand are told afterwards, in a call of their own.
 3. Records that waited for room are in their batches, or have failed, before a transaction is committed; those of an
    aborted one fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from streamlog.aio.consumer import Consumer
from streamlog.aio.mistakes import EnteredInLoop
from streamlog.client.failures import attach
from streamlog.client.transactions import Transaction as BlockingTransaction
from streamlog.client.transactions import check_consumer
from streamlog.errors import (
    ClosedError,
    ConfigError,
    IllegalStateError,
    InvalidProducerIdMappingError,
    ProducerFencedError,
    TransactionAbortableError,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from streamlog.aio.producer import Producer
    from streamlog.client.consumer import Consumer as BlockingConsumer


class LoopTransaction(BlockingTransaction):
    """A transaction that tells its own consumer of its commit, in whose call it ends, and leaves the others for later."""

    is_committed = False

    def _note_committed(self) -> None:
        self.is_committed = True
        self.tell(self._consumer)

    def tell(self, consumer: BlockingConsumer | None) -> None:
        """Tell a consumer what was committed for it, if anything was. In a call of that consumer."""
        for committed_for, positions in self._committing:
            if self.is_committed and committed_for is consumer:
                committed_for._commits.stored(positions)


class Transaction(EnteredInLoop):
    """One transaction of a producer, for an `async with`. Ends once."""

    def __init__(self, producer: Producer, consumer: Consumer | None) -> None:
        self._producer = producer
        self._consumer = consumer
        self._others: list[Consumer] = []
        self._core: LoopTransaction | None = None
        self._ending: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return "<aio Transaction, not begun>" if self._core is None else f"<aio {repr(self._core)[1:]}"

    async def __aenter__(self) -> Self:
        producer = self._producer
        if self._core is not None or producer._transaction is self:
            raise IllegalStateError("a transaction is begun once; ask the producer for another")
        if producer._transaction is not None:
            raise IllegalStateError("a transaction of this producer is open already; end it first")
        producer._transaction = self  # at once: another task may come while this one waits
        try:
            await producer._all_ended()
            await self._begin()
        except BaseException:
            if producer._transaction is self:
                producer._transaction = None
            raise
        return self

    async def _begin(self) -> None:
        producer, consumer = self._producer, self._consumer
        core_consumer = None
        if consumer is not None:
            core_consumer = await consumer._run(lambda core: core)
            check_consumer(core_consumer)
        core = LoopTransaction(producer._transactional_core, core_consumer)
        beginning = producer._workers.submit(core.__enter__, waits=True)
        producer._note_ending(beginning)
        try:
            await asyncio.shield(beginning)
        except asyncio.CancelledError:
            core._consumer = None  # nothing was handed out in it: nobody has to go back
            producer._note_ending(asyncio.ensure_future(_undone(producer, beginning, core)))
            raise
        self._core = core

    async def __aexit__(self, kind: object, exception: BaseException | None, traceback: object) -> None:
        if not self._is_open:
            if self._ending is not None and exception is None:
                await asyncio.wait([self._ending])  # another task's call; it gets what that raises
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
        if consumer is not self._consumer and consumer not in self._others:
            self._others.append(consumer)

    async def commit(self) -> None:
        """End it: everything that was sent is read from now on, and the offsets are committed.

        Cancelled while records wait for room, it is aborted; later it is committed all the same, if it can be.
        Raises   as the blocking `commit`. Nothing of the transaction is read then: it is aborted.
        """
        core, producer = self._open(), self._producer
        try:
            await producer._all_placed()
            unwritten = producer._unknown_late()
            if unwritten:
                count, first = sum(len(late.records()) for late in unwritten), unwritten[0].placed.exception()
                raise TransactionAbortableError(
                    f"records of this transaction could not be written ({count}), so it was aborted; the first: {first}",
                    count=count,
                ) from first
        except BaseException as error:
            if self._is_open:  # else another task has ended it meanwhile
                try:
                    await self.abort()
                except Exception as another:
                    attach(error, another)
            raise
        self._open()
        await self._end(core.commit)

    async def abort(self) -> None:
        """End it: nobody who reads committed records sees any of it, and the consumer gives again what it gave.

        Cancelled, it goes on; what is begun next waits for it.
        """
        core = self._open()
        self._producer._drop_late(
            TransactionAbortableError("its transaction ended before this record was sent")
        )
        await self._end(core.abort)

    async def _abandon(self) -> None:
        """Its producer is being closed."""
        await self._producer._all_ended()  # it may be beginning
        if self._is_open:
            try:
                await self.abort()
            except (ClosedError, ProducerFencedError, InvalidProducerIdMappingError):
                pass  # the coordinator has done so, or will

    @property
    def _is_open(self) -> bool:
        return self._core is not None and not self._core._has_ended and self._producer._transaction is self

    def _open(self) -> LoopTransaction:
        core = self._core
        if core is None:
            raise IllegalStateError("this transaction has not begun: use `async with`")
        if not self._is_open:
            raise IllegalStateError("this transaction has ended")
        return core

    async def _end(self, end: Callable[[], None]) -> None:
        producer = self._producer
        producer._transaction = None
        producer._transactional_core._leave()  # what is sent from now on is refused
        producer._unknown_late()  # its failures are its own
        self._ending = asyncio.ensure_future(self._ended(end))
        producer._note_ending(self._ending)
        await asyncio.shield(self._ending)

    async def _ended(self, end: Callable[[], None]) -> None:
        core = self._core
        assert core is not None
        try:
            await _alone(self._producer, self._consumer, end)
        finally:
            for other in self._others:
                try:
                    await other._run(core.tell)
                except ClosedError:
                    pass


async def _alone(producer: Producer, consumer: Consumer | None, end: Callable[[], None]) -> None:
    """Run an end in a thread; of a consumer that is open, as a call of it."""
    has_begun = False

    def run(core: object) -> None:
        nonlocal has_begun
        has_begun = True
        end()

    if consumer is not None:
        try:
            await consumer._run(run, waits=True)
            return
        except ClosedError:
            if has_begun:
                raise
    await asyncio.shield(producer._workers.submit(end, waits=True))


async def _undone(producer: Producer, beginning: asyncio.Future[Any], core: BlockingTransaction) -> None:
    """Abort a transaction whose `async with` was cancelled before it had begun."""
    await asyncio.wait([beginning])
    if not beginning.cancelled() and beginning.exception() is None:
        await asyncio.shield(producer._workers.submit(core.abort, waits=True))


def checked(consumer: object) -> None:
    """Raises ConfigError for what is no consumer of this package."""
    if not isinstance(consumer, Consumer):
        raise ConfigError(
            f"consumer={consumer!r:.80}: allowed: a consumer of streamlog.aio, of a group",
            option="consumer",
            value=consumer,
            allowed="a consumer of streamlog.aio, of a group",
        )
