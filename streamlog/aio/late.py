"""Records that cannot be gathered at once: they wait outside of the batches, in the order they were sent.

    send --no room, a topic to be made--> LateSend     }  placed, one after the other, in the producer's
    send_many --too much at once--------> SendingMany  }  task --> what the plain `send` returns

Invariant: `placed` is settled once: with what the core's `send` returned, or with why the record was not gathered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

from streamlog.aio.mistakes import Unawaited
from streamlog.client.awaiting import refuse_asyncio_wait
from streamlog.client.delivery import SendFuture, SentMany
from streamlog.record import Record, RecordMetadata

if TYPE_CHECKING:
    from streamlog.aio.producer import Producer

PORTION_RECORDS_MAX: Final = 1000
PORTION_BYTES_MAX: Final = 1024 * 1024
"""`send_many` gathers so many records, or bytes of values, before it looks for room and lets the loop go on."""


class LateSend:
    """The promise of a record that could not be gathered at once. Awaitable, as the SendFuture it will be."""

    def __init__(self, record: tuple[Any, ...], needs_topic: bool) -> None:
        self.topic: str = record[0]
        self.record = record
        self.needs_topic = needs_topic
        self.placed: asyncio.Future[SendFuture] = asyncio.get_running_loop().create_future()
        self.is_known = False

    def __repr__(self) -> str:
        return f"<LateSend to {self.topic} {'done' if self.done() else 'pending'}>"

    def done(self) -> bool:
        """Whether the record was written or has failed."""
        placed = self.placed
        return placed.done() and (placed.exception() is not None or placed.result().done())

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Call `callback(future)` once the fate of the record is known."""
        refuse_asyncio_wait(callback)

        def chain(placed: asyncio.Future[SendFuture]) -> None:
            if placed.exception() is not None:
                callback(self)
            else:
                placed.result().add_done_callback(callback)

        self.placed.add_done_callback(chain)

    async def place(self, producer: Producer) -> None:
        """Gather the record once there is room for it."""
        await producer._room()
        self.placed.set_result(producer._core.send(*self.record))

    def records(self) -> list[Record]:
        """What is to be sent, for who is told that it was not."""
        return [Record(self.topic, value=self.record[1], key=self.record[2])]

    def __await__(self) -> Generator[Any, None, RecordMetadata]:
        try:
            future = yield from asyncio.shield(self.placed).__await__()
        finally:
            self.is_known = self.placed.done()
        return (yield from future.__await__())


class SendingMany(Unawaited):
    """What `send_many` returns. Awaiting it waits until all records are written, and gives their futures."""

    _how_to_await = "`sent = await producer.send_many(...)`"

    def __init__(self, topic: str, items: list[Any], needs_topic: bool) -> None:
        self.topic = topic
        self.needs_topic = needs_topic
        self.placed: asyncio.Future[SentMany] = asyncio.get_running_loop().create_future()
        self.is_known = False
        self._items = items
        self._gathered = 0
        self._count = len(items)

    def __repr__(self) -> str:
        return f"<SendingMany {self._count} records to {self.topic}>"

    async def place(self, producer: Producer) -> None:
        """Gather the records, a portion at a time, as soon as there is room for it."""
        portions: list[SentMany] = []
        while self._gathered < self._count or not portions:
            await producer._room()
            portion = portion_of(self._items, self._gathered)
            portions.append(producer._core.send_many(self.topic, portion))
            self._gathered += len(portion)
            await asyncio.sleep(0)
        self.gathered(joined(portions))

    def gathered(self, sent: SentMany) -> None:
        """All records are in their batches."""
        self._items = []
        self.placed.set_result(sent)

    def records(self) -> list[Record]:
        """What is not gathered yet, for who is told that it never was."""
        pairs = map(_key_and_value, self._items[self._gathered :])
        return [Record(self.topic, value=value, key=key) for key, value in pairs]

    def __await__(self) -> Generator[Any, None, SentMany]:
        try:
            sent = yield from asyncio.shield(self.placed).__await__()
        finally:
            self.is_known = self.placed.done()
        yield from sent.wait().__await__()
        sent.result()
        return sent


def portion_of(items: list[Any], start: int = 0) -> list[Any]:
    """The items from `start` on that are gathered in one go; one at least."""
    portion = items[start : start + PORTION_RECORDS_MAX]
    total_bytes = 0
    for count, item in enumerate(portion, 1):
        _, value = _key_and_value(item)
        if isinstance(value, (bytes, str)):
            total_bytes += len(value)
            if total_bytes >= PORTION_BYTES_MAX:
                return portion[:count]
    return portion


def _key_and_value(item: Any) -> tuple[Any, Any]:
    """Of a pair or something like a Record; (None, None) of what `send_many` will refuse."""
    if type(item) is tuple and len(item) == 2:
        return item
    return getattr(item, "key", None), getattr(item, "value", None)


def joined(portions: list[SentMany]) -> SentMany:
    """The promises of one call that was gathered in portions, in the order of its items."""
    if len(portions) == 1:
        return portions[0]
    segments = [segment for portion in portions for segment in portion._segments]
    if any(portion._was_each for portion in portions):
        return SentMany(segments, None, [future for portion in portions for future in portion])
    order: list[int] = []
    for portion in portions:
        start = len(order)
        order += [start + index for index in portion._order or range(len(portion))]
    return SentMany(segments, order)
