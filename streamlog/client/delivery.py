"""What a producer is gathering, has sent, and has promised: batches and the futures of their records.

    send() --> OpenBatch (lists of keys, values, ...) --seal--> Batch --Produce--> Pending --> SendFuture.result()

A future is a pair (batch, index): making one costs an allocation and nothing else. What became of the record is read
from the batch when somebody asks.

Invariants:
 1. The lists of an open batch have equal lengths whenever the producer's lock is free.
 2. A sealed batch is never appended to; a batch is sealed at most once.
 3. A failed batch remembers which of its records somebody has learnt about; flush reports the others.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any

import msgspec

from streamlog.broker import api
from streamlog.broker.turn import Pending
from streamlog.client.awaiting import all_settled, settled
from streamlog.record import Headers, Record, RecordMetadata

if TYPE_CHECKING:
    from streamlog.client.accumulator import Accumulator
    from streamlog.client.awaiting import Arrivals

NO_OFFSET = -1


def attach(exception: BaseException, error: BaseException) -> None:
    """Hang `error`, raised while cleaning up after `exception`, at the end of what `exception` tells of its past."""
    if error is exception:
        return
    seen = {id(error)}
    link: BaseException | None = error
    while link is not None:  # python has made `exception` the context of `error`, or of its causes
        if link.__context__ is exception:
            link.__context__ = None
        seen.add(id(link))
        link = link.__cause__ or link.__context__
        if link is not None and id(link) in seen:
            break
    last = exception
    while (past := last.__cause__ or last.__context__) is not None and id(past) not in seen:
        seen.add(id(past))
        last = past
    last.__context__ = error
    if hasattr(exception, "add_note"):
        exception.add_note(f"and {type(error).__name__}: {error}")


class OpenBatch:
    """The records of one partition that travel together."""

    __slots__ = (
        "producer", "topic", "partition", "keys", "values", "headers", "timestamps",
        "size_bytes", "size_limit", "linger_until_ms",
        "pending", "entry", "sent_bytes", "produced", "error", "callbacks", "known_failures", "settled",
        "arrivals",
    )  # fmt: skip

    def __init__(
        self, producer: Accumulator, topic: str, partition: int, linger_until_ms: int, size_limit: int
    ) -> None:
        self.producer = producer
        self.topic = topic
        self.partition = partition
        self.keys: list[bytes | None] = []
        self.values: list[bytes | None] = []
        self.headers: dict[int, Headers] | None = None
        self.timestamps: list[int] = []
        self.size_bytes = 0
        self.size_limit = size_limit  # at this size it is sealed; 0 = with its first record
        self.linger_until_ms = linger_until_ms
        # Set when sent: the request, and which of its entries is ours.
        self.pending: Pending | None = None
        self.entry = 0
        self.sent_bytes = 0
        self.produced: api.Produced | None = None
        self.error: BaseException | None = None
        self.callbacks: list[tuple[SendFuture, Callable[[SendFuture], object]]] | None = None
        self.known_failures: set[int] | None = None
        self.settled = False
        self.arrivals: Arrivals | None = None  # who awaits it in an event loop

    def __repr__(self) -> str:
        state = "failed" if self.error else "done" if self.settled else "sent" if self.pending else "open"
        return f"OpenBatch({self.topic}-{self.partition}, {len(self.values)} records, {state})"

    def put(self, key: bytes | None, value: bytes | None, headers: Headers, timestamp: int) -> None:
        """Append one record, where speed does not count."""
        if headers:
            self.put_headers(len(self.values), headers)
        self.keys.append(key)
        self.timestamps.append(timestamp)
        self.values.append(value)

    def put_headers(self, index: int, headers: Headers) -> None:
        if self.headers is None:
            self.headers = {}
        self.headers[index] = headers

    def realign(self) -> None:
        """Drop what an interrupted `send` left half appended; its caller never got a future."""
        count = min(len(self.keys), len(self.values), len(self.timestamps))
        del self.keys[count:], self.values[count:], self.timestamps[count:]
        if self.headers is not None:
            for index in [index for index in self.headers if index >= count]:
                del self.headers[index]

    def fail(self, error: BaseException) -> None:
        """The batch never left: its records have failed."""
        self.error = error
        self.settled = True

    def header_column(self) -> list[Headers] | None:
        if self.headers is None:
            return None
        get = self.headers.get
        return [get(index, ()) for index in range(len(self.values))]

    def settle(self) -> bool:
        """Take over the answer, if there is one. Returns whether the fate of the records is known."""
        if self.settled:
            return True
        pending = self.pending
        if pending is None or not pending.done:
            return self.error is not None
        if pending.error is not None:
            self.error = pending.error
        else:
            produced: api.Produced = pending.reply[self.entry]
            self.produced = produced
            self.error = produced.error
        self.settled = True
        return True

    def metadata(self, index: int) -> RecordMetadata:
        """Where record `index` is; raises what kept it from being written."""
        if self.error is not None:
            if self.known_failures is None:
                self.known_failures = set()
            self.known_failures.add(index)
            raise self.error.with_traceback(None)
        produced = self.produced
        assert produced is not None, self
        if produced.base_offset == NO_OFFSET:
            return RecordMetadata(self.topic, self.partition, NO_OFFSET, self.timestamps[index])
        timestamp = produced.log_append_time if produced.log_append_time >= 0 else self.timestamps[index]
        return RecordMetadata(self.topic, self.partition, produced.base_offset + index, timestamp)

    def metadata_of(self, start: int, count: int) -> Iterator[RecordMetadata]:
        """Where `count` records from `start` on are; the batch was written."""
        produced = self.produced
        assert produced is not None, self
        first = produced.base_offset
        offsets = repeat(NO_OFFSET) if first == NO_OFFSET else range(first + start, first + start + count)
        timestamps: Iterable[int] = self.timestamps[start : start + count]
        if produced.log_append_time >= 0:
            timestamps = repeat(produced.log_append_time, count)
        return map(RecordMetadata, repeat(self.topic, count), repeat(self.partition), offsets, timestamps)

    @property
    def has_unknown_failures(self) -> bool:
        return self.error is not None and len(self.known_failures or ()) < len(self.values)

    def unknown_failures(self) -> list[Record]:
        """The records of a failed batch nobody has been told about."""
        if self.error is None:
            return []
        known = self.known_failures or ()
        return [
            Record(
                self.topic,
                self.partition,
                -1,
                self.timestamps[i],
                self.keys[i],
                self.values[i],
                (self.headers or {}).get(i, ()),
            )
            for i in range(len(self.values))
            if i not in known
        ]


class SendFuture(msgspec.Struct, frozen=True, eq=False, gc=False):
    """The promise of `send`: where the record will be. Awaitable."""

    batch: Any
    index: int

    def __repr__(self) -> str:
        batch: OpenBatch = self.batch
        state = "failed" if batch.error else "done" if batch.settle() else "pending"
        return f"<SendFuture {batch.topic}-{batch.partition} {state}>"

    def done(self) -> bool:
        """Whether the record was written or has failed."""
        settled: bool = self.batch.settle()
        return settled

    def result(self, timeout: float | None = None) -> RecordMetadata:
        """Where the record is. Sends it at once if it still lingers, and waits.

        timeout: seconds; None = as long as `delivery_timeout_ms`.
        Raises   what kept the record from being written; StreamlogTimeoutError when the time is over.
        """
        batch: OpenBatch = self.batch
        if not batch.settle():
            batch.producer._await(batch, timeout)
        return batch.metadata(self.index)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error `result` would raise, or None. Counts as having been told."""
        try:
            self.result(timeout)
        except Exception as error:
            if error is not self.batch.error:
                raise  # not the record's fate: the time is over
            found: BaseException = error
            return found
        return None

    def add_done_callback(self, callback: Callable[[SendFuture], object]) -> None:
        """Call `callback(future)` in the producer's thread once the fate of the record is known.

        Callbacks of one partition run in order; what they raise is logged.
        """
        self.batch.producer._callbacks.add(self.batch, self.index, callback, self)

    def __await__(self) -> Generator[Any, None, RecordMetadata]:
        batch: OpenBatch = self.batch
        if not batch.settle():
            yield from settled(batch).__await__()
        return batch.metadata(self.index)


class SentMany(Sequence[SendFuture]):
    """The promises of one `send_many`, made when looked at."""

    __slots__ = ("_segments", "_order", "_futures")

    def __init__(self, segments: list[tuple[OpenBatch, int, int]], order: list[int] | None) -> None:
        """segments: (batch, first index, count), in the order the records were gathered, partition by partition.
        order: for each gathered record, which item of the call it was; None if that is the same."""
        self._segments = segments
        self._order = order
        self._futures: list[SendFuture] | None = None

    def __repr__(self) -> str:
        return f"<SentMany {len(self)} records>"

    def __len__(self) -> int:
        return sum(count for _, _, count in self._segments)

    def __iter__(self) -> Iterator[SendFuture]:
        return iter(self._all())

    def __getitem__(self, index: Any) -> Any:
        return self._all()[index]

    def _all(self) -> list[SendFuture]:
        if self._futures is None:
            gathered = [
                SendFuture(batch, start + i) for batch, start, count in self._segments for i in range(count)
            ]
            if self._order is None:
                self._futures = gathered
            else:
                futures: list[Any] = [None] * len(gathered)
                for position, future in zip(self._order, gathered, strict=True):
                    futures[position] = future
                self._futures = futures
        return self._futures

    def result(self, timeout: float | None = None) -> list[RecordMetadata]:
        """Where the records are, in the order given. Sends at once what still lingers. Raises the first
        error there is.
        """
        batches = [batch for batch, _, _ in self._segments]
        if batches and not all(batch.settle() for batch in batches):
            batches[0].producer._await_all(batches, timeout)
        if any(batch.error is not None for batch in batches):
            return [future.result(timeout) for future in self._all()]
        gathered: list[RecordMetadata] = []
        for batch, start, count in self._segments:
            gathered += batch.metadata_of(start, count)
        if self._order is None:
            return gathered
        ordered: list[Any] = [None] * len(gathered)
        for position, metadata in zip(self._order, gathered, strict=True):
            ordered[position] = metadata
        return ordered

    def __await__(self) -> Generator[Any, None, list[RecordMetadata]]:
        yield from self.wait().__await__()
        return self.result()

    async def wait(self) -> None:
        """In an event loop: until the fate of every record is known. Raises nothing of theirs."""
        await all_settled(batch for batch, _, _ in self._segments)
