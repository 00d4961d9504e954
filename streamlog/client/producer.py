"""The producer: gathers records into batches, encodes each batch once, and hands it to the partition's
leader.

    send --caller's thread--> open batch of its partition --full, lingered long enough, flush, result()-->
    seal --> Produce

There is no sender thread on the way of a record: whoever fills a batch, flushes, or asks a future for its
result runs
the broker's turn. The producer's own thread sends batches whose `linger_ms` is over and runs delivery
callbacks; it
starts when it is first needed.

Invariants:
 1. Batches of one partition enter the broker's inbox in the order they were opened: sealing and enqueuing
    happen under the producer's lock, running the turn outside it.
 2. Every record `send` returned a future for is either written or its failure can be learnt: from the
    future, or
    from `flush` and leaving `with`, which raise DeliveryError for failures nobody has read.
 3. Nothing of the user's (serializer, partitioner, callback) runs while the lock is held.

Sources: Kafka KafkaProducer, RecordAccumulator; KIP-480 (sticky partitioning).
Transactions are `transactions`'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from streamlog.client.accumulator import Accumulator
from streamlog.client.delivery import OpenBatch, SendFuture, SentMany
from streamlog.client.failures import attach
from streamlog.client.gathering import (
    RECORD_OVERHEAD_BYTES,
    TopicBuffer,
    check_headers,
    checked_columns,
    column_bytes,
    cut,
    gather,
    headers_bytes,
    record_sizes,
    split_items,
)
from streamlog.client.habits import KnowsHabits, unknown_argument
from streamlog.client.serde import resolve_serializer, to_bytes
from streamlog.client.timeouts import milliseconds
from streamlog.config import ProducerConfig
from streamlog.record import Headers

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from streamlog.broker.cluster import BrokerCluster
    from streamlog.client.habits import NoOthers

TOGETHER_BYTES_MAX: Final = 1024 * 1024
"""Batches one call fills travel together, in one commit, up to so many bytes."""

KEYLESS_CHUNK_RECORDS: Final = 1000
"""So many records without a key stay together at most, whatever their size."""


class Producer(Accumulator, KnowsHabits):
    """Sends records. Safe to use from several threads. Make it with `cluster.producer(...)`; leaving `with`
    flushes.
    """

    def __init__(
        self, backend: BrokerCluster, config: ProducerConfig, on_close: Callable[[Producer], None]
    ) -> None:
        super().__init__(backend, config)
        self._on_close = on_close
        self._serialize_key = resolve_serializer(config.key_serializer, "key_serializer")
        self._serialize_value = resolve_serializer(config.value_serializer, "value_serializer")

    def __repr__(self) -> str:
        state = (
            "closed"
            if self._closed
            else f"{self._buffered_bytes} bytes buffered, {len(self._in_flight)} batches in flight"
        )
        return f"<Producer acks={'all' if self.config.acks == -1 else self.config.acks} {state}>"

    def __enter__(self) -> Producer:
        self._check_open()
        return self

    def __exit__(self, kind: object, exception: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except Exception as error:
            if exception is None:
                raise
            attach(exception, error)  # the user's own exception is the news; ours goes along with it

    # -- sending ---------------------------------------------------------------------------------------------

    def send(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        headers: Iterable[tuple[str, bytes | None]] | None = None,
        partition: int | None = None,
        timestamp: int | None = None,
    ) -> SendFuture:
        """Put one record into its partition's open batch; it travels when that is full, lingered or asked for.

        key, value:  bytes or None (None value = tombstone), or what the serializers take.
        headers:     pairs of a str and bytes or None.
        partition:   None = the partitioner decides.     timestamp:  ms since the epoch; None = now.
        Raises   UnknownTopicOrPartitionError, RecordTooLargeError, BufferExhaustedError, ...: nothing was sent.
        """
        try:
            buffer = self._topics[topic]
            is_known = buffer.image is buffer.images.get(topic)
        except (KeyError, TypeError):
            is_known = False
        if not is_known:
            buffer = self._buffer_of(topic)
        if buffer.serializes:
            key, value = self._serialized(key, value)
        if type(value) is not bytes and value is not None:
            value = to_bytes(value, "value_serializer")
        if type(key) is not bytes and key is not None:
            key = to_bytes(key, "key_serializer")
        size = RECORD_OVERHEAD_BYTES if value is None else len(value) + RECORD_OVERHEAD_BYTES
        if key is not None:
            size += len(key)
        if partition is not None:
            partition = buffer.checked_partition(partition)
        elif buffer.hashes and key is not None:
            partition = crc32(key) % buffer.count  # written out: two Python calls cost more than the hash
        else:
            partition = buffer.place(key, value)
        checked: Headers = ()
        if headers is not None:
            checked = check_headers(headers)
            size += headers_bytes(checked)
        if timestamp is None:
            wall_ns = buffer.wall_ns  # a name of its own: called as a method it costs twice as much
            timestamp = wall_ns() // 1_000_000
        else:
            timestamp = buffer.checked_timestamp(timestamp)
        if size > buffer.gate.record_bytes_max:
            self._admit(size, topic)
            if size > buffer.large_bytes:
                return self._send_alone(topic, partition, key, value, checked, timestamp)
        try:
            batch = buffer.batches[partition]
        except IndexError:  # the topic changed since we looked
            batch = None
        if batch is not None and (total := batch.size_bytes + size) < batch.size_limit:
            batch.size_bytes = total
            if checked:
                batch.has_headers = True
            tail = batch.tail
            future = SendFuture(batch, len(tail), key, value, timestamp, checked)
            tail.append(future)
            if not batch.is_closed or self._travels(future, tail):
                return future
        return self._place(topic, partition, key, value, checked, timestamp, size)

    def _travels(self, future: SendFuture, tail: list[SendFuture]) -> bool:
        """A batch was closed while a record was appended to its tail: whether the record travels with it."""
        batch: OpenBatch = future.batch
        with self._lock:
            if self._inside:  # an interrupt of the very thread that is sealing, wherever it is in that
                batch.withdraw(future, tail)
                return False
            self._inside = True
            try:
                if batch.is_unsent:  # an interrupt cut the sealing short, or it found no record: now it does
                    self._seal([batch])
                travels = batch.is_unsent or batch.has_taken(future, tail)
            finally:
                self._inside = False
        self._after_sealing()
        return travels

    def _place(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp: int,
        size: int,
    ) -> SendFuture:
        """Put a record into its partition's open batch under the lock: the first one, or one that makes it full."""
        with self._lock:
            if self._inside:  # a signal handler or __del__ struck this very thread between two steps of ours
                return self._send_aside(topic, partition, key, value, headers, timestamp)
            self._inside = True
            try:
                buffer, batch = self._look_again(topic, partition)
                batch = batch or self._open_batch(buffer, partition)
                future = batch.put(key, value, headers, timestamp)
                batch.size_bytes = total = batch.size_bytes + size
                if total < batch.size_limit:
                    return future
                self._seal([batch])
            finally:
                self._inside = False
        self._after_sealing()
        return future

    def _send_alone(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp: int,
    ) -> SendFuture:
        """A record so large that it could lift others over the topic's limit: behind them, in a batch of its
        own.
        """
        alone = OpenBatch(self, topic, partition, 0, 0)
        future = alone.put(key, value, headers, timestamp)
        with self._lock:
            if self._inside:
                return self._send_aside(topic, partition, key, value, headers, timestamp)
            self._inside = True
            try:
                self._check_open()
                _, before = self._look_again(topic, partition)
                self._seal([alone] if before is None else [before, alone])
            finally:
                self._inside = False
        self._after_sealing()
        return future

    def _send_aside(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp: int,
    ) -> SendFuture:
        """Gather a record while this thread is in the middle of gathering another: a batch of its own, sent
        soon.
        """
        batch = OpenBatch(self, topic, partition, 0, 0)
        future = batch.put(key, value, headers, timestamp)
        self._aside.append(batch)
        self._gate.record_bytes_max = -1  # whoever sends next seals it first, see `_admit`
        self._service.wake()
        return future

    def send_many(self, topic: str, items: Iterable[Any]) -> SentMany:
        """Send many records at once, several times faster than one by one.

        items:   (key, value) pairs, or Records (their key, value, headers, timestamp and partition count).
        Returns a sequence of futures, in the order of `items`; its `result()` waits for all of them.
        Raises   as `send`. Records before the one at fault may have been sent.
        """
        self._check_open()
        listed = items if isinstance(items, list) else list(items)
        columns = split_items(listed)
        if columns is None:
            return self._send_mixed(topic, listed)
        keys, values = columns
        if self._serialize_key is not None:
            keys = [self._serialize_key(key) for key in keys]
        if self._serialize_value is not None:
            values = [self._serialize_value(value) for value in values]
        keys, values = checked_columns(keys, values)
        buffer = self._buffer_of(topic)
        if len(values) > KEYLESS_CHUNK_RECORDS and buffer.count > 1 and None in keys:
            # Sticky partitioners move on when a batch is sealed: give them the chance.
            return self._send_chunks(topic, keys, values)
        gathered = gather(buffer, keys, values)
        segments: list[tuple[OpenBatch, int, int]] = []
        for partition, part_keys, part_values in gathered.parts:
            self._append_many(buffer, partition, part_keys, part_values, segments)
        self._after_sealing()
        return SentMany(segments, gathered.order)

    def _send_chunks(self, topic: str, keys: list[bytes | None], values: list[bytes | None]) -> SentMany:
        segments: list[tuple[OpenBatch, int, int]] = []
        order: list[int] = []
        for start in range(0, len(values), KEYLESS_CHUNK_RECORDS):
            end = start + KEYLESS_CHUNK_RECORDS
            buffer = self._buffer_of(topic)
            gathered = gather(buffer, keys[start:end], values[start:end])
            for partition, part_keys, part_values in gathered.parts:
                self._append_many(buffer, partition, part_keys, part_values, segments)
            self._after_sealing()
            indexes = (
                range(min(KEYLESS_CHUNK_RECORDS, len(values) - start))
                if gathered.order is None
                else gathered.order
            )
            order += [start + index for index in indexes]
        return SentMany(segments, order)

    def _append_many(
        self,
        buffer: TopicBuffer,
        partition: int,
        keys: list[bytes | None],
        values: list[bytes | None],
        segments: list[tuple[OpenBatch, int, int]],
    ) -> None:
        """Append the records of one partition: into the open batch, into a new one, or cut into several."""
        total_bytes = column_bytes(keys) + column_bytes(values) + RECORD_OVERHEAD_BYTES * len(values)
        is_one_batch = total_bytes <= buffer.batch_bytes
        is_admitted = total_bytes <= self._gate.record_bytes_max
        sizes = [] if is_one_batch and is_admitted else record_sizes(keys, values)
        if not is_admitted:
            self._admit(max(sizes), buffer.image.name)
        if is_one_batch:
            with self._lock:
                self._enter()
                self._inside = True
                try:
                    buffer, batch = self._look_again(buffer.image.name, partition)
                    if batch is not None and batch.size_bytes + total_bytes > buffer.batch_bytes:
                        self._seal([batch])
                        batch = None
                    self._extend(
                        batch or self._open_batch(buffer, partition), keys, values, total_bytes, segments
                    )
                finally:
                    self._inside = False
            return
        ends = list(accumulate(sizes))
        start, total = 0, len(values)
        while start < total:
            if self._gate.record_bytes_max < 0:
                self._admit(0, buffer.image.name)
            with self._lock:
                self._enter()
                self._inside = True
                try:
                    buffer, batch = self._look_again(buffer.image.name, partition)
                    taken = ends[start - 1] if start else 0
                    if batch is not None and batch.size_bytes + ends[start] - taken > buffer.batch_bytes:
                        self._seal([batch])  # not even one more fits
                        batch = None
                    batch = batch or self._open_batch(buffer, partition)
                    end = cut(ends, start, buffer.batch_bytes - batch.size_bytes)
                    self._extend(batch, keys[start:end], values[start:end], ends[end - 1] - taken, segments)
                finally:
                    self._inside = False
            start = end
            if self._buffered_bytes >= TOGETHER_BYTES_MAX:
                self._after_sealing()

    def _extend(
        self,
        batch: OpenBatch,
        keys: list[bytes | None],
        values: list[bytes | None],
        size_bytes: int,
        segments: list[tuple[OpenBatch, int, int]],
    ) -> None:
        """Append columns to an open batch and seal it if that makes it full. Called with the lock held."""
        index = batch.extend(keys, values, self._wall_ns() // 1_000_000)
        batch.size_bytes += size_bytes
        segments.append((batch, index, len(values)))
        if batch.size_bytes >= batch.size_limit:
            self._seal([batch])

    def _send_mixed(self, topic: str, items: list[Any]) -> SentMany:
        futures: list[SendFuture] = []
        for item in items:
            if isinstance(item, tuple):
                key, value = item
                futures.append(self.send(topic, value, key))
            else:
                futures.append(
                    self.send(
                        topic,
                        item.value,
                        item.key,
                        headers=getattr(item, "headers", None) or None,
                        partition=None if getattr(item, "partition", -1) in (None, -1) else item.partition,
                        timestamp=None if getattr(item, "timestamp", -1) in (None, -1) else item.timestamp,
                    )
                )
        return SentMany([(future.batch, 0, 1) for future in futures], None, futures)

    def flush(self, timeout: float | None = None, **others: Unpack[NoOthers]) -> None:
        """Send everything gathered so far and wait until its fate is known.

        timeout: seconds; None = until it is, at most `delivery_timeout_ms` and a second.
        Raises   DeliveryError if records failed whose futures nobody read; StreamlogTimeoutError.
        """
        if others:
            raise unknown_argument(self.flush, others)
        self._check_open()
        self._flush(milliseconds("flush", timeout, self._patience_ms))

    def close(self, timeout: float | None = None, **others: Unpack[NoOthers]) -> None:
        """Flush and end. Raises as `flush`; the producer is closed in any case. Closing twice is harmless."""
        if others:
            raise unknown_argument(self.close, others)
        timeout_ms = milliseconds("close", timeout, self._patience_ms)
        with self._lock:
            if self._closed:
                return
            self._enter()
            # From here on no batch is opened: what is flushed now is all there is.
            self._closed = True
            self._inside = False
        try:
            self._backend.check_usable()
            self._flush(timeout_ms)
        finally:
            self._service.stop()
            self._callbacks.close()
            self._traffic.close()
            self._let_go()
            self._on_close(self)

    @property
    def pending_records(self) -> int:
        """Records gathered or sent whose fate is not known yet."""
        return sum(batch.record_count for batch in [*self._open_batches(), *self._in_flight])

    def partitions_for(self, topic: str) -> list[int]:
        """The partition numbers of a topic."""
        return list(range(len(self._backend.topic(topic).partitions)))

    def _serialized(self, key: Any, value: Any) -> tuple[Any, Any]:
        if self._serialize_key is not None:
            key = self._serialize_key(key)
        if self._serialize_value is not None:
            value = self._serialize_value(value)
        return key, value
