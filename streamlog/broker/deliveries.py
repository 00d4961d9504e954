"""What the dispatcher has under way: a producer's request, its batches, and how the end of each is told.

Delivery --one Item a batch--> sent, again and again --decide--> the last one answers the producer
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from streamlog.broker.api import Produce, Produced, Retrying
from streamlog.broker.pending import Pending
from streamlog.errors import (
    LeaderNotAvailableError,
    NetworkError,
    NotLeaderOrFollowerError,
    StreamlogError,
    StreamlogTimeoutError,
)
from streamlog.wording import plural

if TYPE_CHECKING:
    from streamlog.batch import Batch
    from streamlog.broker.broker import Broker

Key: TypeAlias = tuple[str, int]

DEFAULT_RETRYING: Final = Retrying()


class Delivery:
    """One request of a producer, taken apart."""

    __slots__ = ("deadline_ms", "pending", "produce", "results", "retrying")

    def __init__(self, pending: Pending, produce: Produce, now_ms: int) -> None:
        self.pending = pending
        self.produce = produce
        self.retrying = produce.retrying or DEFAULT_RETRYING
        self.results: list[Produced | None] = [None] * len(produce.entries)
        self.deadline_ms = now_ms + self.retrying.delivery_timeout_ms


class Item:
    """One batch on its way to its leader."""

    __slots__ = (
        "attempts", "batch", "delivery", "error", "index", "is_doubtful", "is_stamped", "leader", "not_before_ms",
        "request", "sent_ms",
    )  # fmt: skip

    def __init__(self, delivery: Delivery, index: int, batch: Batch) -> None:
        self.delivery = delivery
        self.index = index
        self.batch = batch
        self.attempts = 0
        self.not_before_ms = 0
        self.sent_ms = 0
        self.request: Pending | None = None  # under way
        self.leader: Broker | None = None  # to whom
        self.error: StreamlogError | None = None  # of the last attempt
        self.is_stamped = False  # it has its sequence, see `producer_identity`
        self.is_doubtful = False  # an attempt ended so that it may be in the log

    @property
    def key(self) -> Key:
        return self.delivery.produce.entries[self.index][:2]

    @property
    def is_decided(self) -> bool:
        return self.delivery.results[self.index] is not None


def decide(item: Item, produced: Produced) -> None:
    """Write a result down; with the last one the producer has its answer. Again changes nothing."""
    delivery = item.delivery
    delivery.results[item.index] = produced
    pending = delivery.pending
    if None in delivery.results:
        return
    if not pending.done:
        pending.reply = delivery.results
        pending.done = True
    if pending.waiter is not None:
        pending.waiter.set()
    if pending.on_done is not None:
        pending.on_done(pending)


def is_leader_news(error: StreamlogError) -> bool:
    return isinstance(error, (NotLeaderOrFollowerError, LeaderNotAvailableError, NetworkError))


def too_late(key: Key, item: Item, now_ms: int) -> StreamlogError | None:
    """What is told of an item that was not answered in time, or not sent in its time; None if it is in time."""
    if item.request is None:
        return (item.error or _unsent(key)) if now_ms >= item.delivery.deadline_ms else None
    timeout_ms = item.delivery.retrying.request_timeout_ms
    if now_ms - item.sent_ms < timeout_ms:
        return None
    error = NetworkError(f"no answer from the leader of {key[0]}-{key[1]} in {timeout_ms} ms")
    error.indefinite = True  # type: ignore[misc]
    return error


def _unsent(key: Key) -> StreamlogError:
    return LeaderNotAvailableError(
        f"{key[0]}-{key[1]} had no leader that answered", topic=key[0], partition=key[1]
    )


def expired(item: Item, key: Key, now_ms: int) -> StreamlogTimeoutError:
    """Kafka: "Expiring N record(s) for t-0: 120000 ms has passed since batch creation"."""
    timeout_ms = item.delivery.retrying.delivery_timeout_ms
    error = StreamlogTimeoutError(
        f"{plural(item.batch.record_count, 'record')} for {key[0]}-{key[1]} not acknowledged within "
        f"delivery_timeout_ms={timeout_ms}, {item.attempts} attempts; the last answer: {item.error}",
        topic=key[0],
        partition=key[1],
        timeout_ms=timeout_ms,
        attempts=item.attempts,
    )
    error.__cause__ = item.error
    return error
