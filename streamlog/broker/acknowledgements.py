"""Where a Produce with acks=all waits until all in sync have it: Kafka's DelayedProduce purgatory, one per broker.

    appended at the leader --> parked, in offset order, in the queue of each of its partitions
        high watermark >= its end   --> done, or NOT_ENOUGH_REPLICAS_AFTER_APPEND
        deadline                    --> REQUEST_TIMED_OUT: it may still become readable
        leadership lost             --> NOT_LEADER_OR_FOLLOWER: it may have been cut off
    all entries of the request decided --> answered, each entry with its own outcome

Invariants:
 1. A request is answered once, when its last entry is decided.
 2. A queue is in the order of end offsets, as its partition was appended to.
 3. Everything here happens in effects of a turn or after publishing; doing it twice changes nothing.

Source: SEMANTICS 3.3; Kafka DelayedProduce, Partition.checkEnoughReplicasReachOffset.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import msgspec

from streamlog.broker.api import Produce, Produced
from streamlog.broker.partition import Partition
from streamlog.broker.turn import Pending, Turn
from streamlog.core.leadership import Leadership, effective_min_isr
from streamlog.core.replica import ReplicaState
from streamlog.errors import (
    CoordinatorNotAvailableError,
    NotCoordinatorError,
    NotEnoughReplicasAfterAppendError,
    NotLeaderOrFollowerError,
    StreamlogError,
    StreamlogTimeoutError,
)
from streamlog.wording import plural

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker


class ParkedProduce:
    """A request whose answer waits for the high watermark of its partitions."""

    __slots__ = (
        "deadline_ms",
        "entries",
        "error",
        "is_answered",
        "is_counted",
        "is_parked",
        "parked_us",
        "pending",
        "reply",
    )

    def __init__(self, pending: Pending, reply: object, deadline_ms: int) -> None:
        self.pending = pending
        self.reply = reply
        """The answer once everything is replicated: a list of `Produced`, or a group's reply."""
        self.deadline_ms = deadline_ms
        self.entries: list[ParkedEntry] = []
        self.error: StreamlogError | None = None
        self.is_parked = False
        self.is_counted = False
        self.is_answered = False
        self.parked_us = 0

    @property
    def is_done(self) -> bool:
        return all(entry.is_decided for entry in reversed(self.entries))  # they are decided from the front


class ParkedEntry(msgspec.Struct, eq=False):
    """What a parked request waits for in one partition."""

    produce: ParkedProduce
    partition: Partition
    end_offset: int
    index: int = -1
    """Which of the `Produced` is meant; -1: the answer is one for all."""
    is_decided: bool = False


class Acknowledgements:
    """The requests of one broker that wait for followers."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._queues: dict[Partition, deque[ParkedEntry]] = {}
        self._deadlines: list[tuple[int, int, ParkedProduce]] = []
        self._parked_total = 0

    def __repr__(self) -> str:
        return f"Acknowledgements({self.count} parked)"

    @property
    def is_empty(self) -> bool:
        return not self._queues

    @property
    def count(self) -> int:
        """Entries that wait (Kafka's PurgatorySize)."""
        return sum(len(queue) for queue in list(self._queues.values()))

    def park(
        self,
        turn: Turn,
        pending: Pending,
        reply: object,
        waiting: list[tuple[Partition, int, int]],
        timeout_ms: int,
    ) -> None:
        """Answer `pending` with `reply` once each (partition, end offset, index in the reply) is replicated."""
        produce = ParkedProduce(pending, reply, turn.now_ms + timeout_ms)
        produce.entries = [ParkedEntry(produce, *entry) for entry in waiting]
        produce.parked_us = self._broker.runtime.clock.monotonic_us()
        turn.effects.append(lambda: self._park(produce))

    def _park(self, produce: ParkedProduce) -> None:
        if produce.is_parked:
            return
        for entry in produce.entries:
            queue = self._queues.setdefault(entry.partition, deque())
            # Ends rise along a queue, so who is behind its last entry is not in it.
            if not queue or queue[-1].end_offset < entry.end_offset or entry not in queue:
                queue.append(entry)
        while self._deadlines and self._deadlines[0][2].is_answered:
            heappop(
                self._deadlines
            )  # here, where only the runner comes: another's pop would take what was just pushed
        self._parked_total += 1
        heappush(self._deadlines, (produce.deadline_ms, self._parked_total, produce))
        produce.is_parked = True

    def release(self, partition: Partition, leadership: Leadership, state: ReplicaState) -> None:
        """The high watermark of a partition may have moved."""
        queue = self._queues.get(partition)
        if queue is None:
            return
        mark = state.high_watermark
        while queue and (queue[0].is_decided or queue[0].end_offset <= mark):
            # Decided already: in an application that was cut short, perhaps before it answered.
            self._decide(queue[0], self._shortage(partition, leadership))
            queue.popleft()
        if not queue:
            self._queues.pop(partition, None)

    def fail(self, partition: Partition, error: StreamlogError) -> None:
        """The leadership is lost: what was appended may be cut off by the next leader."""
        for entry in self._queues.get(partition, ()):
            self._decide(entry, error)
        self._queues.pop(partition, None)

    def expire(self, now_ms: int) -> None:
        """Give up on what has waited for too long."""
        while self._deadlines and (self._deadlines[0][0] <= now_ms or self._deadlines[0][2].is_done):
            produce = self._deadlines[0][2]
            for entry in produce.entries:
                if not entry.is_decided:
                    self._decide(entry, self._too_late(entry.partition))
                queue = self._queues.get(entry.partition)
                if queue is not None and entry in queue:
                    queue.remove(entry)
                    if not queue:
                        del self._queues[entry.partition]
            self._answer_if_done(produce)
            heappop(self._deadlines)

    def next_deadline_ms(self) -> int | None:
        """When `expire` has something to do, at the earliest. By any thread: it looks, and changes nothing."""
        try:
            return self._deadlines[0][0]
        except IndexError:
            return None

    def close(
        self, refusal: StreamlogError, answer: Callable[[Pending, object, BaseException | None], None]
    ) -> None:
        """No turn runs any more: whoever is parked learns it."""
        for queue in self._queues.values():
            for entry in queue:
                answer(entry.produce.pending, None, refusal)
        self._queues.clear()
        self._deadlines.clear()

    def _decide(self, entry: ParkedEntry, error: StreamlogError | None) -> None:
        produce = entry.produce
        if error is not None and not entry.is_decided:
            if entry.index < 0:
                produce.error = produce.error or _of_coordinator(error)
            else:
                results: list[Produced] = produce.reply  # type: ignore[assignment]
                results[entry.index] = Produced(-1, -1, -1, error)
        entry.is_decided = True
        self._answer_if_done(produce)

    def _answer_if_done(self, produce: ParkedProduce) -> None:
        if produce.is_answered or not produce.is_done:
            return
        reply = None if produce.error else produce.reply
        if self._broker.request_times is not None and not produce.is_counted:
            produce.is_counted = True
            self._broker.request_times.count_parked(produce.pending, reply, produce.error, produce.parked_us)
            if self._broker.group_counters is not None and type(produce.pending.request) is not Produce:
                self._broker.group_counters.count_reply(produce.pending, reply, produce.error)
        self._broker.answer(produce.pending, reply, produce.error)
        produce.is_answered = True  # last: an interrupt before it answers again, never not at all

    def _shortage(self, partition: Partition, leadership: Leadership) -> StreamlogError | None:
        isr_min = effective_min_isr(partition.config.min_insync_replicas, len(leadership.replicas))
        if len(leadership.maximal_isr) >= isr_min:
            return None
        return NotEnoughReplicasAfterAppendError(
            f"{partition.name}: the records were written and replicated, but only "
            f"{plural(len(leadership.isr), 'replica')} in sync now, fewer than min.insync.replicas={isr_min}",
            topic=partition.topic,
            partition=partition.number,
            isr=leadership.isr,
        )

    def _too_late(self, partition: Partition) -> StreamlogTimeoutError:
        leadership = partition.leadership
        isr = () if leadership is None else leadership.isr
        return StreamlogTimeoutError(
            f"{partition.name}: written at the leader, but not replicated in time to all in sync "
            f"(brokers {', '.join(map(str, isr))}); the records may still become readable",
            topic=partition.topic,
            partition=partition.number,
            isr=isr,
        )


def _of_coordinator(error: StreamlogError) -> StreamlogError:
    """What a group's member is told when the group's record was not replicated. Source: Kafka CoordinatorRuntime,
    GroupCoordinatorService.handleOperationException.
    """
    kind = (
        NotCoordinatorError if isinstance(error, NotLeaderOrFollowerError) else CoordinatorNotAvailableError
    )
    told = kind(str(error), **error.facts)
    told.__cause__ = error
    return told
