"""Waiting until a fetch is worth its while: `fetch_min_bytes`, for at most `fetch_max_wait_ms`.

    news --ready--> held back, its stored bytes counted --enough, or the time is over--> granted --fetched--> done
                                                        --an error to report----------->

A consumer with `fetch_min_bytes=1`, the default, has none of this: it reads as soon as there is anything.

Invariants:
 1. A partition with unread records is ready at the listener, or held here: no news is lost, whatever is raised.
 2. A mark is taken off before its partition is counted, so later news sets it again.
 3. A fetch begins when the one before it is over, or `fetch_max_wait_ms` after it began if it found nothing.

Source: Kafka DelayedFetch.tryComplete, ReplicaManager.fetchMessages (fetchMinBytes is at most fetchMaxBytes).
"""

from __future__ import annotations

from collections.abc import Callable

from streamlog.broker.purgatory import Listener, Subscription
from streamlog.broker.reading import LogReader, check_range, end_for
from streamlog.client.fetching import UNKNOWN_OFFSET, AssignedPartition
from streamlog.client.patience import UNSERVED
from streamlog.clock import Clock
from streamlog.config import ConsumerConfig
from streamlog.errors import ClosedError, CorruptRecordError, OffsetOutOfRangeError
from streamlog.storage import log


class _Counted:
    """The stored bytes in [fetch_offset, counted_to) of a partition that is held back."""

    __slots__ = ("fetch_offset", "counted_to", "size_bytes")

    def __init__(self, fetch_offset: int) -> None:
        self.fetch_offset = self.counted_to = fetch_offset
        self.size_bytes = 0


class FetchGate:
    """Keeps back what one consumer could read until it is enough. Belongs to the thread that polls."""

    def __init__(self, listener: Listener, clock: Clock, config: ConsumerConfig) -> None:
        self.bytes_min = min(config.fetch_min_bytes, config.fetch_max_bytes)
        self._wait_ms = config.fetch_max_wait_ms
        self._partition_bytes_max = config.max_partition_fetch_bytes
        self._isolation_level = config.isolation_level
        self._listener = listener
        self._clock = clock
        self._held: dict[Subscription, _Counted] = {}
        self._granted: dict[Subscription, None] = {}
        self._begun_ms = clock.monotonic_ms()

    def __repr__(self) -> str:
        return f"FetchGate({len(self._held)} held, {len(self._granted)} granted)"

    def is_open(
        self,
        reader_of: Callable[[AssignedPartition], LogReader],
        resolve: Callable[[AssignedPartition], bool],
    ) -> bool:
        """Whether to fetch now. resolve: find where to read; False if that is not known yet.

        Raises   what `resolve` raises, but for what a fetch meets as well; the partition is looked at again.
        """
        ready = self._listener.ready
        if self._granted:
            if any(subscription in ready for subscription in self._granted):
                return True
            self._granted.clear()
            self._begun_ms = self._clock.monotonic_ms()
        now_ms = self._clock.monotonic_ms()
        if not self._held and self._wait_ms:
            self._begun_ms += (now_ms - self._begun_ms) // self._wait_ms * self._wait_ms
        while (subscription := self._listener.take()) is not None:
            self._held.setdefault(subscription, _Counted(UNKNOWN_OFFSET))
        size_bytes, is_urgent = 0, False
        for subscription in list(self._held):
            assigned = subscription.subject
            if (
                not isinstance(assigned, AssignedPartition)
                or assigned.subscription is not subscription
                or assigned.paused
                or assigned.revoking
            ):
                del self._held[subscription]  # whatever changes that marks it again
                continue
            try:
                if assigned.fetch_offset == UNKNOWN_OFFSET and not resolve(assigned):
                    del self._held[subscription]
                    continue
                if assigned.buffered:
                    continue  # handed out first
                found, is_at_end = self._count(reader_of(assigned), assigned, subscription)
            except (OffsetOutOfRangeError, CorruptRecordError, ClosedError, *UNSERVED):
                is_urgent = True  # told by the fetch itself
                continue
            if is_at_end:
                del self._held[subscription]
            size_bytes += min(found, self._partition_bytes_max)
        if not self._held:
            return False
        if is_urgent or size_bytes >= self.bytes_min or now_ms - self._begun_ms >= self._wait_ms:
            for subscription in self._held:
                self._listener.mark(subscription)
            self._granted.update(dict.fromkeys(self._held))
            self._held.clear()
            return True
        return False

    def fetched(self, assigned: AssignedPartition) -> None:
        """What was granted of this partition has been read; what is behind it waits for the next fetch."""
        if assigned.subscription is not None:
            self._granted.pop(assigned.subscription, None)

    def left_ms(self) -> int | None:
        """How long what is held back waits at most; None if nothing is."""
        if not self._held:
            return None
        return max(0, self._begun_ms + self._wait_ms - self._clock.monotonic_ms())

    def _count(
        self, reader: LogReader, assigned: AssignedPartition, subscription: Subscription
    ) -> tuple[int, bool]:
        """The bytes stored from the fetch offset on, no more than are needed, and whether that is the end.

        Each batch is looked at once, however often there is news.
        """
        partition, counted = assigned.replica, self._held[subscription]
        view, snapshot = assigned.open(reader)
        try:
            check_range(partition, view, assigned.fetch_offset)
            end_offset = end_for(view, self._isolation_level)
            if counted.fetch_offset != assigned.fetch_offset or counted.counted_to > end_offset:
                counted = self._held[subscription] = _Counted(assigned.fetch_offset)
            for stored in log.iterate_headers(snapshot, partition.log_id, counted.counted_to):
                if counted.size_bytes >= self.bytes_min or stored.header.last_offset >= end_offset:
                    break
                counted.size_bytes += stored.header.size_bytes
                counted.counted_to = stored.header.next_offset
        finally:
            snapshot.close()
        # Between the fetch offset and the end there may be nothing left (compaction): a fetch steps over it.
        return counted.size_bytes, assigned.fetch_offset >= end_offset


def next_batch_bytes(reader: LogReader, assigned: AssignedPartition) -> int:
    """How large the batch at the fetch offset is; 0 if there is none, or it cannot be read."""
    _, snapshot = assigned.open(reader)
    try:
        for stored in log.iterate_headers(snapshot, assigned.replica.log_id, assigned.fetch_offset):
            return stored.header.size_bytes
    except CorruptRecordError:
        pass  # told by the fetch itself
    finally:
        snapshot.close()
    return 0
