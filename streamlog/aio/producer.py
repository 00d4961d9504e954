"""The producer for asyncio: gathering happens in the loop's thread, everything behind it elsewhere.

    send --loop--> open batch --full--> aside --producer's thread--> seal, turn, callbacks --> await

`send` and `send_many` are no coroutines: they put records into their batches and return something to await.
Only where that would block (no room in the buffer, a topic that must be made first, too many records at once)
do records wait outside, in order, see `late`.

Invariants:
 1. Batches of a partition are sealed in the order they were opened: full batches set aside are sealed before
    any other.
 2. Records that wait outside go before any sent after them.
 3. Cancelling an `await` never withdraws a record; `flush` and leaving `async with` still report its failure.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from streamlog.aio.late import LateSend, SendingMany, portion_of
from streamlog.aio.mistakes import EnteredInLoop
from streamlog.aio.waiting import Workers
from streamlog.client.awaiting import settled
from streamlog.client.delivery import OpenBatch, SentMany
from streamlog.client.failures import attach
from streamlog.client.habits import KnowsHabits, unknown_argument
from streamlog.client.producer import Producer as BlockingProducer
from streamlog.config import ProducerConfig
from streamlog.errors import BufferExhaustedError, DeliveryError, IllegalStateError
from streamlog.record import Headers, RecordMetadata
from streamlog.wording import plural

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from streamlog.aio.consumer import Consumer
    from streamlog.aio.transactions import Transaction
    from streamlog.broker.cluster import BrokerCluster
    from streamlog.client.habits import NoOthers
    from streamlog.client.transactions import TransactionalProducer

Headered = Iterable[tuple[str, bytes | None]]


class LoopProducer(BlockingProducer):
    """A producer that neither seals nor runs a turn inside the loop it was made in."""

    def __init__(
        self, backend: BrokerCluster, config: ProducerConfig, on_close: Callable[[BlockingProducer], None]
    ) -> None:
        super().__init__(backend, config, on_close)
        self._loop = asyncio.get_running_loop()
        self._full: dict[OpenBatch, None] = {}  # set aside, not sealed yet; under the lock
        self._full_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether another record must wait for room."""
        if self._buffered_bytes + self._full_bytes <= self.config.buffer_memory:
            return False
        self._reap()
        return self._buffered_bytes + self._full_bytes > self.config.buffer_memory

    def oldest(self) -> OpenBatch | None:
        """The batch that makes room next."""
        try:
            return self._in_flight[0]
        except IndexError:
            return next(iter(self._full), None)

    def check_sending(self, topic: str) -> None:
        """Raises what `send` would, for a record that has to wait before it is sent."""
        self._check_open()

    def needs_topic(self, topic: str) -> bool:
        """Whether the topic would be made by the first record sent to it, which takes a turn."""
        return topic not in self._images and self._backend.config.auto_create_topics

    def _is_in_loop(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False  # another thread, or the interpreter's exit, long after the loop

    def _seal(self, batches: list[OpenBatch]) -> None:
        if not self._is_in_loop():
            for batch in list(self._full):
                super()._seal([batch])
                del self._full[batch]  # only now: an interrupted sealing leaves it where flush finds it
                self._full_bytes -= batch.size_bytes
            super()._seal(batches)
            return
        for batch in batches:
            self._detach(batch)
            batch.linger_until_ms = 0
            if batch not in self._full:
                self._full[batch] = None
                self._full_bytes += batch.size_bytes

    def _wait_for_room(self) -> None:
        if not self._is_in_loop():
            super()._wait_for_room()
        # In the loop room was looked for before; waiting for it is `Producer._room`'s.

    def _open_batches(self, besides: OpenBatch | None = None) -> list[OpenBatch]:
        full = [batch for batch in self._full if batch is not besides]
        return full + super()._open_batches(besides)

    def _after_sealing(self) -> None:
        if self._is_in_loop():
            if self._full:
                self._service.wake()
        else:
            super()._after_sealing()

    def _await(self, batch: OpenBatch, timeout: float | None) -> None:
        self._refuse_blocking([batch])
        super()._await(batch, timeout)

    def _await_all(self, batches: list[OpenBatch], timeout: float | None) -> None:
        self._refuse_blocking(batches)
        super()._await_all(batches, timeout)

    def _refuse_blocking(self, batches: list[OpenBatch]) -> None:
        if self._is_in_loop() and not all(batch.settle() for batch in batches):
            raise IllegalStateError(
                "result() would block the event loop: await the future instead, or ask it once it is done()"
            )


class Producer(EnteredInLoop, KnowsHabits):
    """Sends records. Make it with `cluster.producer(...)`; leaving `async with` flushes."""

    def __init__(self, workers: Workers, core: LoopProducer, on_close: Callable[[Producer], object]) -> None:
        self._workers = workers
        self._core = core
        self._on_close = on_close
        self._late: deque[LateSend | SendingMany] = deque()
        self._placing: asyncio.Task[None] | None = None
        self._failed_late: list[LateSend | SendingMany] = []
        self._transaction: Transaction | None = None
        self._ending: asyncio.Future[Any] | None = None

    def __repr__(self) -> str:
        return f"<aio {repr(self._core)[1:]}"

    @property
    def config(self) -> ProducerConfig:
        return self._core.config

    @property
    def pending_records(self) -> int:
        """Records gathered or sent whose fate is not known yet."""
        return len(self._late) + self._core.pending_records

    async def __aenter__(self) -> Self:
        self._core._check_open()
        if self._core.config.transactional_id is not None:
            try:
                await self._take_over()
            except Exception:
                await self.close()
                raise
        return self

    async def _take_over(self) -> None:
        """Cancelled, it goes on; what is begun next waits for it."""
        await self._all_ended()
        taking = self._workers.submit(self._transactional_core._take_over, waits=True)
        self._note_ending(taking)
        await asyncio.shield(taking)

    async def __aexit__(self, kind: object, exception: BaseException | None, traceback: object) -> None:
        try:
            await self.close()
        except Exception as error:
            if exception is None:
                raise
            attach(exception, error)  # the user's own exception is the news; ours goes along with it

    def send(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        headers: Headered | Headers | None = None,
        partition: int | None = None,
        timestamp: int | None = None,
    ) -> Awaitable[RecordMetadata]:
        """Put one record into its partition's open batch, at once. Serializers run here, in the loop.

        Returns  a future: `await` it for where the record is, or `flush` later. Awaiting sends the batch.
        Raises   as the blocking `send`, except that a full buffer never blocks: then the record waits
                 outside, and what you await may raise BufferExhaustedError after `max_block_ms`. Who sends
                 without awaiting anything should `await producer.drain()` now and then, or what waits
                 outside grows.
        """
        record = (topic, value, key, headers, partition, timestamp)
        if not self._late:
            needs_topic = self._core.needs_topic(topic)
            if not needs_topic and not self._core.is_full:
                return self._core.send(*record)
        else:
            needs_topic = self._core.needs_topic(topic)
        self._core.check_sending(topic)
        late = LateSend(record, needs_topic)
        self._place_later(late)
        return late

    def send_many(self, topic: str, items: Iterable[Any]) -> Awaitable[SentMany]:
        """Send many records, several times faster than one by one. As with `send`, they are on their way at
        once; awaiting waits until all are written.

        items:   (key, value) pairs, or Records.
        Returns  what to await for a sequence of futures that are done, in the order of `items`; `.result()`
                 is where the records are. Cancelling the await withdraws nothing.
        Raises   as `send`; awaited, the first record's error, if any failed. Records before the one at fault
                 may have been sent.
        """
        core = self._core
        listed = items if isinstance(items, list) else list(items)
        needs_topic = core.needs_topic(topic)
        is_late = bool(self._late) or needs_topic or core.is_full or len(portion_of(listed)) < len(listed)
        if not is_late:
            sending = SendingMany(topic, listed, needs_topic=False)
            sending.gathered(core.send_many(topic, listed))
            return sending
        core.check_sending(topic)
        sending = SendingMany(topic, list(listed), needs_topic)  # a copy: the caller may go on with the list
        self._place_later(sending)
        return sending

    def transaction(self, consumer: Consumer | None = None) -> Transaction:
        """A transaction, for an `async with`: committed at its end, aborted on an exception and if its task is cancelled.

        consumer:  of streamlog.aio; its positions are committed with the transaction, and after an abort it stands again
                   before everything it has handed out and not committed. Its group has `enable_auto_commit=False`.
        What any task sends with this producer meanwhile belongs to the transaction.
        Raises     as the blocking `transaction`; its errors of the consumer and of the id come as `async with` begins.
        """
        from streamlog.aio.transactions import Transaction, checked

        self._core._check_open()
        self._transactional_core  # noqa: B018 (raises where there is none)
        if consumer is not None:
            checked(consumer)
        return Transaction(self, consumer)

    @property
    def _transactional_core(self) -> TransactionalProducer:
        core: Any = self._core
        if core.config.transactional_id is None:
            raise IllegalStateError(
                'this producer has no transactional_id; make it with `cluster.producer(transactional_id="t-1")`'
            )
        transactional: TransactionalProducer = core
        return transactional

    def _note_ending(self, ending: asyncio.Future[Any]) -> None:
        """A transaction begins or ends; what comes next waits for it."""

        def ended(one: asyncio.Future[Any]) -> None:
            if self._ending is one:
                self._ending = None
            if not one.cancelled():
                one.exception()  # told to who waits for it; nobody may

        self._ending = ending
        ending.add_done_callback(ended)

    async def _all_ended(self) -> None:
        while self._ending is not None:
            await asyncio.wait([self._ending])

    async def drain(self) -> None:
        """Wait until there is room in the buffer for more records."""
        await self._all_placed()
        while self._core.is_full:
            oldest = self._core.oldest()
            await (asyncio.sleep(0) if oldest is None else settled(oldest))

    async def flush(self, timeout: float | None = None, **others: Unpack[NoOthers]) -> None:
        """Send everything gathered so far and wait until its fate is known.

        Raises   DeliveryError if records failed whose futures nobody awaited; StreamlogTimeoutError.
        """
        if others:
            raise unknown_argument(self.flush, others)
        self._core._check_open()
        await self._finish(self._core.flush, timeout)

    async def close(self, timeout: float | None = None, **others: Unpack[NoOthers]) -> None:
        """Flush and end. Raises as `flush`; the producer is closed in any case. Closing twice is harmless."""
        if others:
            raise unknown_argument(self.close, others)
        if self._core._closed:
            return
        try:
            if self._transaction is not None:
                await self._transaction._abandon()
        finally:
            await self._all_ended()
            try:
                await self._finish(self._core.close, timeout)
            finally:
                self._on_close(self)

    def partitions_for(self, topic: str) -> list[int]:
        """The partition numbers of a topic."""
        return self._core.partitions_for(topic)

    # -- records that wait outside ---------------------------------------------------------------------------

    async def _finish(self, finish: Callable[[float | None], None], timeout: float | None) -> None:
        try:
            await self._all_placed()
        finally:
            await asyncio.shield(self._workers.submit(lambda: finish(timeout), waits=True))
        self._raise_late()

    async def _all_placed(self) -> None:
        while self._late:
            if self._placing is None:  # it was cancelled, as all tasks are at the end of `asyncio.run`
                self._placing = asyncio.get_running_loop().create_task(self._place())
            await asyncio.wait([self._placing])

    def _drop_late(self, error: Exception) -> None:
        """What waits outside is not sent any more."""
        if self._placing is not None:
            self._placing.cancel()
            self._placing = None
        for late in self._late:
            if not late.placed.done():
                late.placed.set_exception(error)
                late.placed.exception()  # no complaint at collection
        self._late.clear()

    def _unknown_late(self) -> list[LateSend | SendingMany]:
        """What could not be gathered, and nobody was told of; forgotten now."""
        failed, self._failed_late = self._failed_late, []
        return [late for late in failed if not late.is_known]

    def _place_later(self, late: LateSend | SendingMany) -> None:
        self._late.append(late)
        if self._placing is None:
            self._placing = asyncio.get_running_loop().create_task(self._place())

    async def _place(self) -> None:
        try:
            while self._late:
                late = self._late[0]
                try:
                    if late.needs_topic:
                        await self._workers.call(self._core._backend.topic_for_client, late.topic)
                    await late.place(self)
                except Exception as error:
                    self._failed_late.append(late)
                    late.placed.set_exception(error)
                    # flush tells of it, if nobody awaits it: no complaint at collection
                    late.placed.exception()
                self._late.popleft()
        finally:
            if self._placing is asyncio.current_task():
                self._placing = None

    async def _room(self) -> None:
        config = self._core.config
        deadline = self._workers.loop.time() + config.max_block_ms / 1000
        while self._core.is_full:
            left = deadline - self._workers.loop.time()
            oldest = self._core.oldest()
            try:
                if oldest is None:
                    await asyncio.sleep(0)
                    continue
                await asyncio.wait_for(settled(oldest), left)
            except asyncio.TimeoutError:
                raise BufferExhaustedError(
                    f"more than buffer_memory={config.buffer_memory} bytes wait to be written, and none was "
                    f"within max_block_ms={config.max_block_ms}",
                    allowed_bytes=config.buffer_memory,
                ) from None

    def _raise_late(self) -> None:
        unknown = self._unknown_late()
        if not unknown:
            return
        first = unknown[0].placed.exception()
        records = [record for late in unknown for record in late.records()]
        raise DeliveryError(
            f"{plural(len(records), 'record')} could not be sent; the first, for {unknown[0].topic}: {first}",
            count=len(records),
            failed=records,
        ) from first
