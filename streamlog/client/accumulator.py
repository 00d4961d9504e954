"""What a producer has gathered and not yet got an answer for: open batches, sealing, waiting, the thread that lingers.

    open batch of its partition --full, lingered, flush, result()--> seal --> inbox of the leader --> answer --> reaped

The lower layer of a producer, see `producer`; one object to the user and to the hot path.

Invariants:
 1. Batches of one partition enter the broker's inbox in the order they were opened: sealing and enqueuing
    happen under the lock, running the turn outside it.
 2. A batch is in its topic's buffer, or in flight, or settled; an interrupted sealing leaves it in the
    buffer, an interrupted hand-over in `_handing`, which the next sealing ends first.
 3. `_inside` is true exactly while the holder of the lock is between two steps. The lock can be taken again
    by the thread that holds it: who finds `_inside` true then is a signal handler or `__del__` of that very
    thread.
 4. A failed batch is remembered until somebody was told of each of its records.

Source: Kafka RecordAccumulator.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from streamlog.batch import Batch
from streamlog.broker import api
from streamlog.broker.pending import Pending
from streamlog.broker.runner import Service
from streamlog.client.callbacks import DeliveryCallbacks
from streamlog.client.delivery import OpenBatch
from streamlog.client.failures import raise_unknown
from streamlog.client.gathering import Gate, TopicBuffer, check_size
from streamlog.client.measuring import ProducerTraffic
from streamlog.client.timeouts import SETTLING_MS, milliseconds
from streamlog.compression import CODECS, Codec
from streamlog.config import ProducerConfig
from streamlog.core.controller import validate_topic_name
from streamlog.errors import (
    BufferExhaustedError,
    ClosedError,
    ReentrantCallError,
    StreamlogTimeoutError,
)

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster
    from streamlog.broker.producer_identity import ProducerIdentity
    from streamlog.core.cluster_image import TopicImage

FAILED_BATCHES_LOOK: Final = 64
_STRANDED_CALLBACK_MS: Final = 50


class Accumulator:
    """The batches of one producer."""

    def __init__(self, backend: BrokerCluster, config: ProducerConfig) -> None:
        self.config = config
        self._backend = backend
        runtime = backend.runtime
        self._runtime = runtime
        self._wall_ns = runtime.clock.wall_ns
        self._images = backend.topics
        # Records above this take the slow way (`_admit`): too large, or large for their topic. -1: all of
        # them do.
        self._usual_bytes_max = config.max_request_size
        self._patience_ms = config.delivery_timeout_ms + SETTLING_MS
        self._gate = Gate(config.max_request_size)
        self._lock = runtime.turn_lock()  # an interrupt of the thread that holds it may take it again
        self._topics: dict[str, TopicBuffer] = {}
        self._in_flight: deque[OpenBatch] = deque()
        self._handing: tuple[Pending, list[OpenBatch]] | None = None  # sealed, not surely in the inbox yet
        self._failed: list[OpenBatch] = []
        self._buffered_bytes = 0
        self._codec = CODECS[config.compression] or Codec.NONE
        self._topic_codecs: dict[str, Codec] = {}  # of topics whose compression.type is not "producer"
        self._retrying = api.Retrying(
            config.delivery_timeout_ms,
            config.request_timeout_ms,
            config.retries,
            config.retry_backoff_ms,
            config.retry_backoff_max_ms,
        )
        self._identity: ProducerIdentity | None = None
        self._closed = False
        # Between two steps of the thread that holds the lock: who gets in then is an interrupt of that thread.
        self._inside = False
        self._aside: deque[OpenBatch] = deque()
        self._service = Service(runtime, "streamlog-producer", self._serve)
        self._callbacks = DeliveryCallbacks(self._lock, self._service)
        self._service_planned = False
        self._records_sent = 0
        self._batches_sent = 0
        self._batches_opened = 0
        self._batches_opened_before = 0
        self._records_failed = 0
        self._traffic = ProducerTraffic(backend.metrics, self, runtime.clock.monotonic_ms())

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this producer is closed; make another with cluster.producer(...)")
        self._backend.check_usable()

    def _buffer_of(self, topic: str) -> TopicBuffer:
        self._check_open()
        validate_topic_name(topic)
        image = self._backend.topic_for_client(topic)
        buffer = self._topics.get(topic)
        if buffer is not None and buffer.image is image:
            return buffer
        with self._lock:
            if self._inside:
                return self._new_buffer(image)  # for `_send_aside`, which only asks where the record belongs
            self._inside = True
            try:
                # Looked up again under the lock: an older image must never take the place of a newer one.
                image = self._images.get(topic, image)
                buffer = self._topics.get(topic)
                if buffer is not None and buffer.image is image:
                    return buffer  # another thread was faster
                fresh = self._new_buffer(image)
                if buffer is not None:
                    # Partitions were added, options changed, or the topic was made anew: what is gathered
                    # travels first.
                    self._seal(buffer.open_batches())
                    buffer.retire()
                self._topics[topic] = fresh
            finally:
                self._inside = False
        self._after_sealing()
        return fresh

    def _new_buffer(self, image: TopicImage) -> TopicBuffer:
        config = self._backend.topic_config(image.name)
        codec = CODECS[config.compression_type]
        if codec is None:
            self._topic_codecs.pop(image.name, None)
        else:
            self._topic_codecs[image.name] = codec
        buffer = TopicBuffer(
            image,
            self._images,
            self.config,
            config,
            self._runtime.random,
            self._gate,
            self._wall_ns,
        )
        if buffer.large_bytes < self._usual_bytes_max:
            self._usual_bytes_max = buffer.large_bytes
            self._gate.record_bytes_max = min(self._gate.record_bytes_max, buffer.large_bytes)
        return buffer

    def _enter(self) -> None:
        """Called with the lock held, before setting `_inside`; the `try` follows that at once."""
        if self._inside:
            raise ReentrantCallError(
                "this very thread is gathering a record (a signal handler or __del__?); only `send` may "
                "be called here"
            )

    def _look_again(self, topic: str, partition: int) -> tuple[TopicBuffer, OpenBatch | None]:
        """The topic's buffer now and the open batch of a partition. Called with the lock held."""
        buffer = self._topics[topic]
        batch = buffer.batches[buffer.checked_partition(partition)]
        if batch is not None and batch.is_closed:  # an interrupt cut its sealing short
            self._seal([batch])
            batch = None
        return buffer, batch

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
        batch = OpenBatch(
            self,
            buffer.image.name,
            partition,
            until_ms,
            buffer.batch_bytes if linger_ms else 0,
            buffer.message_bytes_max,
        )
        buffer.batches[partition] = batch
        return batch

    def _seal(self, batches: list[OpenBatch]) -> None:
        """Encode batches and put them into the inbox, as one request. Called with the lock held."""
        if self._handing is not None:
            self._hand_over(again=True)
        identity = self._identity
        if identity is None and self._backend.is_replicated:
            identity = self._identify()
        entries: list[tuple[str, int, Batch]] = []
        sealed: list[OpenBatch] = []
        cost_bytes = 0
        for batch in batches:
            if not batch.is_unsent:
                self._detach(batch)
                continue
            batch.is_closed = True  # first: who appends from now on looks whether the record was taken
            batch.take()
            if not batch.values:
                self._detach(batch)
                continue
            try:
                codec = self._topic_codecs.get(batch.topic, self._codec)
                level = self.config.compression_level if codec is self._codec else None
                parts = batch.encode(codec, level, identity)
            except Exception as error:  # no memory, a codec that fails: the others of this round still travel
                batch.fail(error)
                self._failed.append(batch)
                self._records_failed += len(batch.values)
                self._traffic.settled(batch)
                self._detach(batch)
                continue
            batch.entry = len(entries)
            batch.sent_bytes = sum([part.size_bytes for part in parts])
            cost_bytes += batch.sent_bytes
            entries += [(batch.topic, batch.partition, part) for part in parts]
            sealed.append(batch)
        if not entries:
            return
        self._backend.admit_produce()
        config = self.config
        produce = api.Produce(entries, config.acks, 30_000, self._retrying, config.transactional_id, identity)
        pending = Pending(produce, cost_bytes)
        pending.on_retry = self._traffic.retried
        self._handing = pending, sealed
        try:
            self._hand_over()
        except BaseException:
            # Interrupted half way: a batch both sent and still open would be sent twice, or take records
            # that never travel. A second interrupt leaves it to the next sealing.
            self._hand_over(again=True)
            raise
        if self._buffered_bytes > self.config.buffer_memory:
            self._gate.record_bytes_max = -1  # sends take the slow way, `_admit`: they wait for room first

    def _identify(self) -> ProducerIdentity | None:
        """Be known again where batches may be sent twice: with one broker nothing ever is."""
        if self.config.enable_idempotence:
            from streamlog.broker.producer_identity import ProducerIdentity

            try:
                self._identity = ProducerIdentity(self._backend.metadata.new_producer_id)
            except ReentrantCallError:
                pass  # inside a turn of the metadata log: the next batch asks again
        return self._identity

    def _hand_over(self, again: bool = False) -> None:
        """From the buffers to those in flight and into the inbox. `again`: what is done already is left as it is."""
        if self._handing is None:
            return
        pending, sealed = self._handing
        for batch in sealed:
            batch.pending = pending
            if not again or not (batch.settled or batch in self._in_flight):
                self._buffered_bytes += batch.sent_bytes
                self._records_sent += len(batch.values)
                self._in_flight.append(batch)
            batch.release()
            if batch.callbacks is not None:
                pending.on_done = self._callbacks.wake
            self._detach(batch)
        self._backend.put_produce(pending, again)
        self._handing = None
        self._batches_sent += len(sealed)
        self._traffic.requests += 1

    def _detach(self, batch: OpenBatch) -> None:
        buffer = self._topics.get(batch.topic)
        if (
            buffer is not None
            and batch.partition < len(buffer.batches)
            and buffer.batches[batch.partition] is batch
        ):
            buffer.batches[batch.partition] = None
            buffer.partitioner.on_batch_sealed(batch.partition)
        elif self._aside and batch in self._aside:
            self._aside.remove(batch)

    def _after_sealing(self) -> None:
        """Run the turn for what was enqueued."""
        self._backend.advance()
        self._reap()

    def _admit(self, size_bytes: int, topic: str) -> None:
        """Refuse a record that is too large; wait for room while too much is in flight. Nothing was gathered
        yet.
        """
        if size_bytes > self.config.max_request_size:
            check_size(size_bytes, self.config.max_request_size, topic)
        with self._lock:
            if self._inside:
                return  # an interrupt of a thread that is gathering: it must not wait, only enqueue
            self._inside = True
            try:
                # In this order: a record sent aside from now on asks for another look.
                self._gate.record_bytes_max = self._usual_bytes_max
                if self._aside or self._handing is not None:
                    self._seal(self._open_batches())
            finally:
                self._inside = False
        self._after_sealing()
        try:
            self._wait_for_room()
        except ReentrantCallError:
            pass  # the turn that would make room is this thread's own: waiting here would be forever

    def _wait_for_room(self) -> None:
        deadline_ms = self._runtime.clock.monotonic_ms() + self.config.max_block_ms
        while self._buffered_bytes > self.config.buffer_memory:
            try:
                oldest = self._in_flight[0]
            except IndexError:
                return
            left_ms = deadline_ms - self._runtime.clock.monotonic_ms()
            if left_ms <= 0:
                self._gate.record_bytes_max = -1  # the next send waits as well
                raise BufferExhaustedError(
                    f"{self._buffered_bytes} bytes wait to be written, more than "
                    f"buffer_memory={self.config.buffer_memory}, "
                    f"and none was within max_block_ms={self.config.max_block_ms}",
                    buffered_bytes=self._buffered_bytes,
                    allowed_bytes=self.config.buffer_memory,
                )
            if oldest.pending is not None:
                try:
                    self._backend.wait(oldest.pending, left_ms)
                except StreamlogTimeoutError:
                    continue
            self._reap()

    def _reap(self) -> None:
        """Take finished batches off the list of those in flight."""
        try:
            if not self._in_flight[0].settle():
                return
        except IndexError:  # none, or another thread was faster
            return
        with self._lock:
            if self._inside:
                return
            self._inside = True
            try:
                self._take_off()
            finally:
                self._inside = False

    def _take_off(self) -> None:
        in_flight = self._in_flight
        while in_flight and (in_flight[0].settled or in_flight[0].settle()):
            batch = in_flight.popleft()
            self._buffered_bytes -= batch.sent_bytes
            self._traffic.settled(batch)
            if batch.error is not None:
                # Forget those whose failures are known by now.
                if len(self._failed) >= FAILED_BATCHES_LOOK:
                    self._failed = [failed for failed in self._failed if failed.has_unknown_failures]
                self._failed.append(batch)
                self._records_failed += len(batch.values)

    # -- waiting ---------------------------------------------------------------------------------------------

    def _open_batches(self, besides: OpenBatch | None = None) -> list[OpenBatch]:
        opened = [batch for buffer in list(self._topics.values()) for batch in buffer.open_batches()]
        opened += self._aside
        return opened if besides is None else [batch for batch in opened if batch is not besides]

    def _lingered(self, now_ms: int) -> list[OpenBatch]:
        return [batch for batch in self._open_batches() if batch.linger_until_ms <= now_ms]

    def _flush(self, timeout_ms: int) -> None:
        with self._lock:
            self._enter()
            self._inside = True
            try:
                self._seal(self._open_batches())
            finally:
                self._inside = False
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
            raise batch.not_written_within(timeout_ms) from error
        batch.settle()

    def _await(self, batch: OpenBatch, timeout: float | None) -> None:
        """Send a batch at once if it is still open, and wait for it."""
        self._backend.check_usable()
        if batch.pending is None or self._handing is not None:
            with self._lock:
                self._enter()
                self._inside = True
                try:
                    if self._aside and batch in self._aside:
                        # What was sent before a record aside goes first; no batch may be sealed twice.
                        self._seal(self._open_batches(besides=batch))
                    self._seal([batch])
                finally:
                    self._inside = False
            self._backend.advance()
            if batch.settle():
                self._reap()
                return
        timeout_ms = milliseconds("result", timeout, self._patience_ms)
        self._wait(batch, self._runtime.clock.monotonic_ms() + timeout_ms, timeout_ms)
        self._reap()

    def _await_all(self, batches: list[OpenBatch], timeout: float | None) -> None:
        """Send those of the batches that are still open, as one request, and wait for all of them."""
        self._backend.check_usable()
        timeout_ms = milliseconds("result", timeout, self._patience_ms)
        if any(batch.pending is None for batch in batches) or self._handing is not None:
            with self._lock:
                self._enter()
                self._inside = True
                try:
                    self._seal(_still_open(batches))
                finally:
                    self._inside = False
            self._backend.advance()
        deadline_ms = self._runtime.clock.monotonic_ms() + timeout_ms
        for batch in batches:
            self._wait(batch, deadline_ms, timeout_ms)
        self._reap()

    def _hurry(self, batch: OpenBatch) -> None:
        """Have the producer's thread send this batch at once: for callers that must not run a turn
        themselves.
        """
        batch.linger_until_ms = 0
        self._service.wake()

    def _raise_failures(self) -> None:
        with self._lock:
            self._enter()
            failed, self._failed = self._failed, []
        raise_unknown(failed)

    def _let_go(self) -> None:
        """Closed: batches that could not be sent keep their records, but no futures (OpenBatch, invariant 4)."""
        with self._lock:
            for batch in [] if self._inside else self._open_batches():
                batch.is_closed = True
                batch.take()
                batch.release()

    # -- the producer's own thread ---------------------------------------------------------------------------

    def _serve(self, now_ms: int) -> int | None:
        """Send what has lingered long enough and run callbacks. Returns when to look again."""
        if self._closed:
            return None
        with self._lock:
            self._enter()
            self._inside = True
            try:
                self._seal(self._open_batches() if self._aside else self._lingered(now_ms))
            except ClosedError:
                return None  # the cluster went first
            finally:
                self._inside = False
        self._backend.advance()
        self._reap()
        self._callbacks.run()
        with self._lock:
            deadlines = [batch.linger_until_ms for batch in self._open_batches()]
            if self._callbacks.waiting:
                deadlines.append(now_ms + _STRANDED_CALLBACK_MS)
            # While batches keep being opened the thread looks again by itself: a wake-up per batch would
            # cost its opener more than the batch.
            if not deadlines and self._batches_opened != self._batches_opened_before:
                deadlines.append(now_ms + self.config.linger_ms)
            self._batches_opened_before = self._batches_opened
            self._service_planned = bool(deadlines)
        return min(deadlines) if deadlines else None


def _still_open(batches: list[OpenBatch]) -> list[OpenBatch]:
    return [batch for batch in dict.fromkeys(batches) if batch.pending is None]
