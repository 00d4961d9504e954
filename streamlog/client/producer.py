"""The producer: gathers records into batches, encodes each batch once, and hands it to the partition's leader.

    send --caller's thread--> open batch of its partition --full, lingered long enough, flush, result()--> seal --> Produce

There is no sender thread on the way of a record: whoever fills a batch, flushes, or asks a future for its result runs
the broker's turn. The producer's own thread sends batches whose `linger_ms` is over and runs delivery callbacks; it
starts when it is first needed.

Invariants:
 1. Batches of one partition enter the broker's inbox in the order they were opened: sealing and enqueuing
    happen under the producer's lock, running the turn outside it.
 2. Every record `send` returned a future for is either written or its failure can be learnt: from the future, or
    from `flush` and leaving `with`, which raise DeliveryError for failures nobody has read.
 3. Nothing of the user's (serializer, partitioner, callback) runs while the lock is held.

Sources: Kafka KafkaProducer, RecordAccumulator; KIP-480 (sticky partitioning).
Not implemented yet: idempotence and transactions; retries (one in-process broker either takes a batch or says why not).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from streamlog.batch import Codec, seal_columnar
from streamlog.broker import api
from streamlog.broker.runner import Service
from streamlog.client.callbacks import DeliveryCallbacks
from streamlog.client.delivery import OpenBatch, SendFuture, SentMany
from streamlog.client.gathering import (
    RECORD_OVERHEAD_BYTES,
    TopicBuffer,
    check_headers,
    check_size,
    check_timestamp,
    checked_columns,
    column_bytes,
    cut,
    gather,
    headers_bytes,
    largest_record,
    running_sizes,
    split_items,
)
from streamlog.client.serde import resolve_serializer, to_bytes
from streamlog.client.timeouts import milliseconds
from streamlog.config import ProducerConfig
from streamlog.errors import BufferExhaustedError, ClosedError, DeliveryError, StreamlogTimeoutError
from streamlog.record import Headers, Record

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster

KEYLESS_CHUNK_RECORDS: Final = 1000
"""So many records without a key stay together at most, whatever their size."""

_CODECS: Final[Mapping[str, Codec]] = {
    "none": Codec.NONE, "gzip": Codec.GZIP, "snappy": Codec.SNAPPY, "lz4": Codec.LZ4, "zstd": Codec.ZSTD
}  # fmt: skip
_STRANDED_CALLBACK_MS: Final = 50
_FAILED_RECORDS_SHOWN_MAX: Final = 1000


class Producer:
    """Sends records. Safe to use from several threads. Make it with `cluster.producer(...)`; leaving `with` flushes."""

    def __init__(self, backend: BrokerCluster, config: ProducerConfig, on_close: Callable[[Producer], None]) -> None:
        self.config = config
        self._backend = backend
        self._on_close = on_close
        runtime = backend.runtime
        self._runtime = runtime
        self._wall_ns = runtime.clock.wall_ns
        self._images = backend.topics
        self._record_bytes_max = config.max_request_size
        self._lock = runtime.lock()
        self._topics: dict[str, TopicBuffer] = {}
        self._in_flight: deque[OpenBatch] = deque()
        self._failed: list[OpenBatch] = []
        self._batch_size = config.batch_size
        self._buffered_bytes = 0
        self._codec = _CODECS[config.compression]
        self._serialize_key = resolve_serializer(config.key_serializer, "key_serializer")
        self._serialize_value = resolve_serializer(config.value_serializer, "value_serializer")
        self._serializes = self._serialize_key is not None or self._serialize_value is not None
        self._closed = False
        self._service = Service(runtime, "streamlog-producer", self._serve)
        self._callbacks = DeliveryCallbacks(self._lock, self._service)
        self._service_planned = False
        self._records_sent = 0
        self._batches_sent = 0
        self._batches_opened = 0
        self._batches_opened_before = 0
        self._records_failed = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._buffered_bytes} bytes buffered, {len(self._in_flight)} batches in flight"
        return f"<Producer acks={'all' if self.config.acks == -1 else self.config.acks} {state}>"

    def __enter__(self) -> Producer:
        self._check_open()
        return self

    def __exit__(self, kind: object, exception: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except DeliveryError as error:
            if exception is None:
                raise
            # The user's own exception is the news; ours goes along with it.
            if error.__context__ is exception:
                error.__context__ = None
            if exception.__cause__ is None and exception.__context__ is None:
                exception.__context__ = error

    # -- sending -----------------------------------------------------------------------------------------------------

    def send(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        headers: Iterable[tuple[str, bytes | None]] | None = None,
        partition: int | None = None,
        timestamp: int | None = None,
    ) -> SendFuture:
        """Put one record into its partition's open batch.

        key, value:  bytes or None (None value = tombstone), or what the serializers take.
        headers:     pairs of a str and bytes or None.
        partition:   None = the partitioner decides.
        timestamp:   ms since the epoch; None = now.
        Returns a future; the record travels when its batch is full, has lingered, is flushed, or the future is asked.
        Raises   UnknownTopicOrPartitionError, RecordTooLargeError, SerializationError, ClosedError; BufferExhaustedError
                 when the buffer stays full for `max_block_ms`. Nothing was sent then.
        """
        if self._serializes:
            key, value = self._serialized(key, value)
        if type(value) is not bytes and value is not None:
            value = to_bytes(value, "value_serializer")
        if type(key) is not bytes and key is not None:
            key = to_bytes(key, "key_serializer")
        size = RECORD_OVERHEAD_BYTES if value is None else len(value) + RECORD_OVERHEAD_BYTES
        if key is not None:
            size += len(key)
        buffer = self._topics.get(topic)
        if buffer is None or buffer.image is not self._images.get(topic):
            buffer = self._buffer_of(topic)
        if partition is None:
            # The default partitioner is written out: two Python calls a record cost more than the hash.
            if buffer.hashes and key is not None:
                partition = crc32(key) % buffer.count
            else:
                partition = buffer.place(key, value)
        elif not 0 <= partition < buffer.count:
            buffer.refuse_partition(partition)
        checked: Headers = ()
        if headers is not None:
            checked = check_headers(headers)
            size += headers_bytes(checked)
        if size > self._record_bytes_max:
            check_size(size, self._record_bytes_max, topic)
        if timestamp is None:
            timestamp = self._wall_ns() // 1_000_000
        else:
            check_timestamp(timestamp)
        with self._lock:
            batch = buffer.batches[partition]
            if batch is None:
                batch = self._open_batch(buffer, partition)
            values = batch.values
            index = len(values)
            try:
                if checked:
                    if batch.headers is None:
                        batch.headers = {}
                    batch.headers[index] = checked
                batch.keys.append(key)
                batch.timestamps.append(timestamp)
                values.append(value)
            except BaseException:
                batch.realign()
                raise
            batch.size_bytes = size = batch.size_bytes + size
            if size < batch.size_limit:
                return SendFuture(batch, index)
            self._seal([batch])
        self._after_sealing()
        return SendFuture(batch, index)

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
            indexes = range(min(KEYLESS_CHUNK_RECORDS, len(values) - start)) if gathered.order is None else gathered.order
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
        if total_bytes > self._record_bytes_max:
            check_size(largest_record(keys, values), self._record_bytes_max, buffer.image.name)
        if total_bytes <= self._batch_size:
            with self._lock:
                batch = buffer.batches[partition]
                if batch is not None and batch.size_bytes + total_bytes > self._batch_size:
                    self._seal([batch])
                    batch = None
                self._extend(batch or self._open_batch(buffer, partition), keys, values, total_bytes, segments)
            return
        ends = running_sizes(keys, values)
        start, total = 0, len(values)
        while start < total:
            with self._lock:
                batch = buffer.batches[partition] or self._open_batch(buffer, partition)
                end = cut(ends, start, self._batch_size - batch.size_bytes)
                used = ends[end - 1] - (ends[start - 1] if start else 0)
                self._extend(batch, keys[start:end], values[start:end], used, segments)
            start = end
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
        index = len(batch.values)
        try:
            batch.keys += keys
            batch.timestamps += [self._wall_ns() // 1_000_000] * len(values)
            batch.values += values
        except BaseException:
            batch.realign()
            raise
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
        return SentMany([(future.batch, future.index, 1) for future in futures], None)

    def flush(self, timeout: float | None = None) -> None:
        """Send everything gathered so far and wait until its fate is known.

        timeout: seconds; None = `delivery_timeout_ms`.
        Raises   DeliveryError if records failed whose futures nobody read; StreamlogTimeoutError.
        """
        self._check_open()
        self._flush(milliseconds("flush", timeout, self.config.delivery_timeout_ms))

    def close(self, timeout: float | None = None) -> None:
        """Flush and end. Raises as `flush`; the producer is closed in any case. Closing twice is harmless."""
        if self._closed:
            return
        try:
            self._flush(milliseconds("close", timeout, self.config.delivery_timeout_ms))
        finally:
            self._closed = True
            self._service.stop()
            self._callbacks.close()
            self._on_close(self)

    def partitions_for(self, topic: str) -> list[int]:
        """The partition numbers of a topic."""
        return list(range(len(self._backend.topic(topic).partitions)))

    # -- gathering ---------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this producer is closed; make another with cluster.producer(...)")
        self._backend.check_usable()

    def _serialized(self, key: Any, value: Any) -> tuple[Any, Any]:
        if self._serialize_key is not None:
            key = self._serialize_key(key)
        if self._serialize_value is not None:
            value = self._serialize_value(value)
        return key, value

    def _buffer_of(self, topic: str) -> TopicBuffer:
        self._check_open()
        image = self._backend.topic_for_client(topic)
        buffer = self._topics.get(topic)
        if buffer is not None and buffer.image is image:
            return buffer
        with self._lock:
            fresh = TopicBuffer(image, self.config, self._runtime.random)
            if buffer is not None:
                # Partitions were added, options changed, or the topic was made anew: what is gathered travels first.
                self._seal([batch for batch in buffer.batches if batch is not None])
            self._topics[topic] = fresh
        self._after_sealing()
        return fresh

    def _open_batch(self, buffer: TopicBuffer, partition: int) -> OpenBatch:
        """A new open batch of a partition. Called with the lock held."""
        if self._closed:
            raise ClosedError("this producer is closed; make another with cluster.producer(...)")
        linger_ms = self.config.linger_ms
        until_ms = 0
        if linger_ms:
            until_ms = self._runtime.clock.monotonic_ms() + linger_ms
            if not self._service_planned:
                self._service_planned = True
                self._service.wake()
        self._batches_opened += 1
        batch = OpenBatch(self, buffer.image.name, partition, until_ms, self._batch_size if linger_ms else 0)
        buffer.batches[partition] = batch
        return batch

    def _seal(self, batches: list[OpenBatch]) -> None:
        """Encode batches and put them into the inbox, as one request. Called with the lock held."""
        entries = []
        sealed: list[OpenBatch] = []
        cost_bytes = 0
        for batch in batches:
            buffer = self._topics.get(batch.topic)
            if buffer is not None and buffer.batches[batch.partition] is batch:
                buffer.batches[batch.partition] = None
                buffer.partitioner.on_batch_sealed(batch.partition)
            if not batch.values or batch.pending is not None:
                continue
            encoded = seal_columnar(
                batch.keys,
                batch.values,
                headers=batch.header_column(),
                timestamps=batch.timestamps,
                codec=self._codec,
                level=self.config.compression_level,
            )
            batch.entry = len(entries)
            batch.sent_bytes = encoded.size_bytes
            cost_bytes += encoded.size_bytes
            entries.append((batch.topic, batch.partition, encoded))
            sealed.append(batch)
        if not entries:
            return
        pending = self._backend.enqueue_produce(api.Produce(entries, self.config.acks), cost_bytes)
        self._buffered_bytes += cost_bytes
        for batch in sealed:
            batch.pending = pending
            self._in_flight.append(batch)
            self._records_sent += len(batch.values)
            if batch.callbacks is not None:
                pending.on_done = self._callbacks.wake
        self._batches_sent += len(sealed)

    def _after_sealing(self) -> None:
        """Run the turn for what was enqueued, and wait while too much is in flight."""
        self._backend.advance()
        self._reap()
        if self._buffered_bytes > self.config.buffer_memory:
            self._wait_for_room()

    def _wait_for_room(self) -> None:
        deadline_ms = self._runtime.clock.monotonic_ms() + self.config.max_block_ms
        while self._buffered_bytes > self.config.buffer_memory:
            try:
                oldest = self._in_flight[0]
            except IndexError:
                return
            left_ms = deadline_ms - self._runtime.clock.monotonic_ms()
            if left_ms <= 0:
                raise BufferExhaustedError(
                    f"{self._buffered_bytes} bytes wait to be written, more than buffer_memory={self.config.buffer_memory}, "
                    f"and none was within max_block_ms={self.config.max_block_ms}",
                    buffered_bytes=self._buffered_bytes,
                    allowed_bytes=self.config.buffer_memory,
                )
            if oldest.pending is not None:
                self._backend.wait(oldest.pending, left_ms)
            self._reap()

    def _reap(self) -> None:
        """Take finished batches off the list of those in flight."""
        in_flight = self._in_flight
        while in_flight and (in_flight[0].settled or in_flight[0].settle()):
            with self._lock:
                if not in_flight or not in_flight[0].settle():
                    return
                batch = in_flight.popleft()
                self._buffered_bytes -= batch.sent_bytes
                if batch.error is not None:
                    self._failed.append(batch)
                    self._records_failed += len(batch.values)

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _open_batches(self) -> list[OpenBatch]:
        return [batch for buffer in self._topics.values() for batch in buffer.open_batches()]

    def _flush(self, timeout_ms: int) -> None:
        with self._lock:
            self._seal(self._open_batches())
        self._backend.advance()
        deadline_ms = self._runtime.clock.monotonic_ms() + timeout_ms
        for batch in tuple(self._in_flight):
            self._wait(batch, deadline_ms, timeout_ms)
        self._reap()
        self._raise_failures()

    def _wait(self, batch: OpenBatch, deadline_ms: int, timeout_ms: int) -> None:
        if batch.settle() or batch.pending is None:
            return
        left_ms = deadline_ms - self._runtime.clock.monotonic_ms()
        try:
            self._backend.wait(batch.pending, max(left_ms, 0))
        except StreamlogTimeoutError as error:
            raise StreamlogTimeoutError(
                f"{len(batch.values)} records for {batch.topic}-{batch.partition} were not written within {timeout_ms} ms; "
                "they may still be",
                topic=batch.topic,
                partition=batch.partition,
                timeout_ms=timeout_ms,
            ) from error
        batch.settle()

    def _await(self, batch: OpenBatch, timeout: float | None) -> None:
        """Send a batch at once if it is still open, and wait for it."""
        if batch.pending is None:
            with self._lock:
                self._seal([batch])
            self._backend.advance()
            if batch.settle():
                self._reap()
                return
        timeout_ms = milliseconds("result", timeout, self.config.delivery_timeout_ms)
        self._wait(batch, self._runtime.clock.monotonic_ms() + timeout_ms, timeout_ms)
        self._reap()

    def _hurry(self, batch: OpenBatch) -> None:
        """Have the producer's thread send this batch at once: for callers that must not run a turn themselves."""
        batch.linger_until_ms = min(batch.linger_until_ms, 1)
        self._service.wake()

    def _raise_failures(self) -> None:
        with self._lock:
            failed, self._failed = self._failed, []
        unread = [(batch, batch.unknown_failures()) for batch in failed]
        count = sum(len(records) for _, records in unread)
        if not count:
            return
        first = next(batch for batch, records in unread if records)
        records: list[Record] = [record for _, some in unread for record in some][:_FAILED_RECORDS_SHOWN_MAX]
        raise DeliveryError(
            f"{count} records could not be written; the first, for {first.topic}-{first.partition}: {first.error}",
            count=count,
            failed=records,
        ) from first.error

    # -- the producer's own thread -----------------------------------------------------------------------------------

    def _serve(self, now_ms: int) -> int | None:
        """Send what has lingered long enough and run callbacks. Returns when to look again."""
        if self._closed:
            return None
        with self._lock:
            self._seal([batch for batch in self._open_batches() if batch.linger_until_ms <= now_ms])
        self._backend.advance()
        self._reap()
        self._callbacks.run()
        with self._lock:
            deadlines = [batch.linger_until_ms for batch in self._open_batches()]
            if self._callbacks.waiting:
                deadlines.append(now_ms + _STRANDED_CALLBACK_MS)
            # While batches keep being opened the thread looks again by itself: a wake-up per batch would cost its opener
            # more than the batch.
            if not deadlines and self._batches_opened != self._batches_opened_before:
                deadlines.append(now_ms + self.config.linger_ms)
            self._batches_opened_before = self._batches_opened
            self._service_planned = bool(deadlines)
        return min(deadlines) if deadlines else None
