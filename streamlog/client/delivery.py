"""What a producer is gathering, has sent, and has promised: batches and the futures of their records.

    send() --append, no lock--> tail --take, under the lock--> columns --seal--> Batch --Produce--> Pending
                 SendFuture                                                                            |
                     ^--------------------------- result() asks its batch <----------------------------+

The future *is* the record: `send` makes one object and appends it to one list, which is one step of the
interpreter and needs no lock. Whoever seals says so first (`is_closed`) and takes the tail afterwards, so a
sender that finds the batch open behind its append knows that its record is in; one that finds it closed asks
under the lock, see `Producer._travels`.

Invariants:
 1. The tail of an unsent batch only grows (but for `withdraw`, of a record that was not taken), so taking it
    again after an interrupt takes the same records first.
 2. What counts is `taken`, replaced in one step: the columns hold `taken[0]` records, whatever else an
    interrupt left behind them; `taken[1]` of the tail are among them.
 3. A closed batch takes no more records than its sealing finds; a batch is sealed at most once.
 4. Once sent, a batch holds no futures: they are invisible to the garbage collector, a cycle would stay.
 5. A failed batch remembers which of its records somebody has learnt about; flush reports the others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import accumulate, repeat
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from streamlog.batch import Batch, seal_columnar
from streamlog.batch_header import NO_PRODUCER_EPOCH, NO_PRODUCER_ID, NO_SEQUENCE, SEQUENCE_MASK
from streamlog.broker import api
from streamlog.broker.turn import Pending
from streamlog.client.awaiting import all_settled, refuse_asyncio_wait, refuse_futures_wait, settled
from streamlog.client.failures import fate_of
from streamlog.compression import Codec
from streamlog.errors import StreamlogTimeoutError
from streamlog.record import Headers, Record, RecordMetadata
from streamlog.wording import plural

if TYPE_CHECKING:
    from streamlog.broker.producer_identity import ProducerIdentity
    from streamlog.client.accumulator import Accumulator
    from streamlog.client.awaiting import Arrivals

NO_OFFSET = -1


class OpenBatch:
    """The records of one partition that travel together."""

    __slots__ = (
        "producer", "topic", "partition", "tail", "is_closed", "taken", "keys", "values", "timestamps", "headers",
        "has_headers", "size_bytes", "size_limit", "bytes_max", "linger_until_ms",
        "pending", "entry", "starts", "sent_bytes", "produced", "error", "callbacks", "known_failures", "settled",
        "arrivals",
    )  # fmt: skip

    def __init__(
        self,
        producer: Accumulator,
        topic: str,
        partition: int,
        linger_until_ms: int,
        size_limit: int,
        bytes_max: int = 0,
    ) -> None:
        self.producer = producer
        self.topic = topic
        self.partition = partition
        self.tail: list[SendFuture] = []
        self.is_closed = False  # set before the tail is taken for the last time
        self.taken = (0, 0)  # records in the columns; and how many of the tail are among them
        self.keys: list[bytes | None] = []
        self.values: list[bytes | None] = []
        self.timestamps: list[int] = []
        self.headers: dict[int, Headers] | None = None
        self.has_headers = False  # set before a record with headers is appended
        self.size_bytes = 0  # an estimate, and counted without the lock
        self.size_limit = size_limit  # at this size it is sealed; 0 = with its first record
        self.bytes_max = bytes_max  # what the topic allows; 0 = not known
        self.linger_until_ms = linger_until_ms
        # Set when sent: the request, which of its entries is ours, or the first of several that begin at `starts`.
        self.pending: Pending | None = None
        self.entry = 0
        self.starts: list[int] | None = None
        self.sent_bytes = 0
        self.produced: Sequence[api.Produced] = ()
        self.error: BaseException | None = None
        self.callbacks: list[tuple[SendFuture | None, Callable[[Any], object]]] | None = None
        self.known_failures: set[int] | None = None
        self.settled = False
        self.arrivals: Arrivals | None = None  # who awaits it in an event loop

    def __repr__(self) -> str:
        state = "failed" if self.error else "done" if self.settled else "sent" if self.pending else "open"
        return f"OpenBatch({self.topic}-{self.partition}, {self.record_count} records, {state})"

    @property
    def record_count(self) -> int:
        count, taken = self.taken
        return count + max(len(self.tail) - taken, 0)

    @property
    def is_unsent(self) -> bool:
        return self.pending is None and self.error is None

    # -- gathering: all but `send`'s own append is called with the producer's lock held ----------------------

    def put(self, key: bytes | None, value: bytes | None, headers: Headers, timestamp: int) -> SendFuture:
        """Append one record."""
        if headers:
            self.has_headers = True
        count, taken = self.taken
        future = SendFuture(self, count + max(len(self.tail) - taken, 0), key, value, timestamp, headers)
        self.tail.append(future)
        return future

    def take(self) -> None:
        """Move what the tail has gained into the columns and number it. May be called again after an interrupt."""
        count, taken = self.taken
        fresh = self.tail[taken:]  # one step: what others append from now on is not in it
        if not fresh:
            return
        end = count + len(fresh)
        if (
            end == 1
        ):  # alone in its batch, as each record is whose sender waits for it: the same in a third of the steps
            alone = fresh[0]
            alone.index = 0
            self.keys, self.values, self.timestamps = [alone.key], [alone.value], [alone.timestamp]
            self.headers = {0: alone.headers} if alone.headers else None
            self.taken = (1, 1)
            return
        self._cut(count)
        self.keys += [future.key for future in fresh]
        self.values += [future.value for future in fresh]
        self.timestamps += [future.timestamp for future in fresh]
        # A future's number is how many were before it when it looked; other threads may have come in between.
        if [future.index for future in fresh] != list(range(count, end)):
            for index, future in enumerate(fresh, count):
                future.index = index
        if self.has_headers:
            self.headers = {
                **(self.headers or {}), **{future.index: future.headers for future in fresh if future.headers}
            }  # fmt: skip
        self.taken = (end, taken + len(fresh))

    def extend(self, keys: list[bytes | None], values: list[bytes | None], timestamp: int) -> int:
        """Append whole columns behind what there is. Returns the number of their first record."""
        self.take()
        count, taken = self.taken
        self._cut(count)
        self.keys += keys
        self.values += values
        self.timestamps += [timestamp] * len(values)
        self.taken = (count + len(values), taken)
        return count

    def _cut(self, count: int) -> None:
        """Drop what an interrupt left behind the records that count."""
        if len(self.keys) > count:
            del self.keys[count:]
        if len(self.values) > count:
            del self.values[count:]
        if len(self.timestamps) > count:
            del self.timestamps[count:]

    def encode(
        self,
        codec: Codec,
        level: int | None,
        identity: ProducerIdentity | None = None,
    ) -> list[Batch]:
        """What was taken, in bytes. In several parts, should it be more than the topic allows: sizes are counted
        without the lock, and a thread stopped in the middle of counting undoes what others counted.

        identity: of an idempotent producer; the sequences are those it will have if nothing before it fails.
        """
        values = self.values
        if identity is None and len(values) == 1:  # nothing to divide
            headers = None if self.headers is None else self.header_column()
            timestamps = self.timestamps
            return [
                seal_columnar(
                    self.keys, values, headers=headers, timestamps=timestamps, codec=codec, level=level
                )
            ]
        stamp = (NO_PRODUCER_ID, NO_PRODUCER_EPOCH, NO_SEQUENCE, False)
        if identity is not None:
            first = identity.guess((self.topic, self.partition), len(values))
            stamp = (identity.producer_id, identity.producer_epoch, first, identity.is_transactional)
        parts = self._encoded(codec, level, 0, len(values), stamp)
        if len(parts) > 1:
            self.starts = [0, *accumulate([part.record_count for part in parts[:-1]])]
        return parts

    def _encoded(
        self, codec: Codec, level: int | None, start: int, end: int, stamp: tuple[int, int, int, bool]
    ) -> list[Batch]:
        producer_id, producer_epoch, first, is_transactional = stamp
        keys, values, timestamps, headers = self.keys, self.values, self.timestamps, self.header_column()
        if end - start < len(values):
            keys, values, timestamps = keys[start:end], values[start:end], timestamps[start:end]
            headers = headers and headers[start:end]
        encoded = seal_columnar(
            keys,
            values,
            headers=headers,
            timestamps=timestamps,
            codec=codec,
            level=level,
            producer_id=producer_id,
            producer_epoch=producer_epoch,
            base_sequence=first if first < 0 else (first + start) & SEQUENCE_MASK,
            transactional=is_transactional,
        )
        if 0 < self.bytes_max < encoded.size_bytes and end - start > 1:
            middle = (start + end) // 2
            return [
                *self._encoded(codec, level, start, middle, stamp),
                *self._encoded(codec, level, middle, end, stamp),
            ]
        return [encoded]

    def has_taken(self, future: SendFuture, tail: list[SendFuture]) -> bool:
        """Of a batch that was sent: whether a record somebody appended to `tail`, maybe too late, is in it."""
        return tail is not self.tail and future in tail[: self.taken[1]]

    def withdraw(self, future: SendFuture, tail: list[SendFuture]) -> None:
        """Take a record out again that was appended behind the last taking of the tail, or before it began."""
        if future in tail:
            tail.remove(future)

    def release(self) -> None:
        """The batch is sent: let go of the futures (invariant 4)."""
        self.tail = []

    # -- what became of it -----------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """The batch never left: its records have failed."""
        self.error = error
        self.settled = True
        self.release()

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
        elif self.starts is None:
            produced: api.Produced = pending.reply[self.entry]
            self.produced = (produced,)
            self.error = produced.error
        else:
            self.produced = pending.reply[self.entry : self.entry + len(self.starts)]
            self.error = next((part.error for part in self.produced if part.error is not None), None)
        self.settled = True
        return True

    def not_written_within(self, timeout_ms: int) -> StreamlogTimeoutError:
        """What is told to who has waited for so long."""
        return StreamlogTimeoutError(
            f"{plural(self.record_count, 'record')} for {self.topic}-{self.partition} not written within {timeout_ms} "
            "ms; they may still be",
            topic=self.topic,
            partition=self.partition,
            timeout_ms=timeout_ms,
        )

    def metadata(self, index: int) -> RecordMetadata:
        """Where record `index` is; raises what kept it from being written."""
        if self.error is not None:
            if self.known_failures is None:
                self.known_failures = set()
            self.known_failures.add(index)
            raise fate_of(self, index).with_traceback(None)
        if self.starts is None:
            start, produced = 0, self.produced[0]
        else:
            part = bisect_right(self.starts, index) - 1
            start, produced = self.starts[part], self.produced[part]
        timestamp = produced.log_append_time if produced.log_append_time >= 0 else self.timestamps[index]
        if produced.base_offset == NO_OFFSET:
            return RecordMetadata(self.topic, self.partition, NO_OFFSET, self.timestamps[index])
        return RecordMetadata(self.topic, self.partition, produced.base_offset + index - start, timestamp)

    def metadata_of(self, start: int, count: int) -> Iterator[RecordMetadata]:
        """Where `count` records from `start` on are; the batch was written."""
        if self.starts is not None:
            return map(self.metadata, range(start, start + count))
        produced = self.produced[0]
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


class SendFuture(msgspec.Struct, eq=False, gc=False):
    """The promise of `send`: where the record will be. Awaitable.

    It is one of many of a batch, so no `concurrent.futures.Future`: it cannot be cancelled, and `wait`,
    `as_completed` and `asyncio.wrap_future` do not take it. To wait for several, `producer.flush()` or
    `[future.result() for future in futures]`; in an event loop `await future` or `asyncio.gather(*futures)`.
    """

    batch: Any
    index: int  # in the batch; sure once that is sealed
    # The record on its way into the batch. Futures of `send_many` go without.
    key: bytes | None = None
    value: bytes | None = None
    timestamp: int = 0
    headers: Headers = ()

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

        timeout: seconds; None = until its fate is known, at most `delivery_timeout_ms` and a second.
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
            if self.batch.error is None or self.batch.error not in (error, error.__cause__):
                raise  # not the record's fate: the time is over
            found: BaseException = error
            return found
        return None

    def add_done_callback(self, callback: Callable[[SendFuture], object]) -> None:
        """Call `callback(future)` in the producer's thread once the fate of the record is known.

        Callbacks of one partition run in order; what they raise is logged.
        """
        refuse_asyncio_wait(callback)
        self.batch.producer._callbacks.add(self.batch, callback, self)

    if not TYPE_CHECKING:

        @property
        def _condition(self) -> NoReturn:
            refuse_futures_wait(self)

    def __await__(self) -> Generator[Any, None, RecordMetadata]:
        batch: OpenBatch = self.batch
        if not batch.settle():
            yield from settled(batch).__await__()
        return batch.metadata(self.index)


class SentMany(Sequence[SendFuture]):
    """The promises of one `send_many`, made when looked at."""

    __slots__ = ("_segments", "_order", "_futures", "_was_each")

    def __init__(
        self,
        segments: list[tuple[OpenBatch, int, int]],
        order: list[int] | None,
        futures: list[SendFuture] | None = None,
    ) -> None:
        """segments: (batch, first index, count), in the order the records were gathered, partition by partition.
        order: for each gathered record, which item of the call it was; None if that is the same.
        futures: of records sent one by one, whose indexes are not known yet."""
        self._segments = segments
        self._order = order
        self._futures = futures
        self._was_each = futures is not None

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
        if self._was_each or any(batch.error is not None for batch in batches):
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
