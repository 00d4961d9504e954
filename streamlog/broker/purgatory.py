"""Waiting for news of partitions and groups without missing any.

    reader --subscribe--> Source (a partition, a group) --notify--> Subscription --> Listener.ready --> wait() returns

A `Listener` belongs to one reader (a consumer, a parked fetch). It subscribes once to each source it reads and then
only ever looks at the sources that had news: waiting on ten thousand quiet partitions costs nothing.

Invariants:
 1. No lost wake-up: `notify` marks the subscription ready, then sets the waiter; the reader takes the mark off *before*
    it looks at the source. News after the look set the mark again.
 2. A subscription is in `ready` at most once, so a reader that never looks does not make the queue grow. Being in it
    *is* the mark: a flag beside it could be left set by an interrupt between the two.
 3. Notifying costs nothing while nobody listens, and never blocks.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

from streamlog.broker.runner import Lock, Runtime


class Source:
    """Something that publishes views and tells its listeners. Mixed into partitions and groups."""

    __slots__ = ("subscriptions",)

    def __init__(self) -> None:
        self.subscriptions: tuple[Subscription, ...] = ()

    def notify(self) -> None:
        """Tell all listeners that there is a new view. Called after publishing it."""
        for subscription in self.subscriptions:
            listener = subscription.listener
            listener.ready[subscription] = None
            listener.waiter.set()


class Subscription:
    """One listener's interest in one source."""

    __slots__ = ("listener", "source", "subject")

    def __init__(self, listener: Listener, source: Source, subject: Any) -> None:
        self.listener = listener
        self.source = source
        self.subject = subject

    def cancel(self, lock: Lock) -> None:
        """Hear no more of the source."""
        with lock:
            self.source.subscriptions = tuple(s for s in self.source.subscriptions if s is not self)


class Listener:
    """What one reader waits on: any of its subscriptions having news, or somebody calling `wake`."""

    __slots__ = ("ready", "waiter", "waiting", "_lock", "_taken")

    def __init__(self, runtime: Runtime, lock: Lock, waiting: deque[None] | None = None) -> None:
        """waiting: its length counts those who wait, of all listeners that share it."""
        self.waiting: deque[None] = deque() if waiting is None else waiting
        self.ready: OrderedDict[Subscription, None] = (
            OrderedDict()
        )  # each operation is one step to other threads
        self.waiter = runtime.waiter()
        self._taken: Subscription | None = None
        self._lock = lock

    def subscribe(self, source: Source, subject: Any) -> Subscription:
        """Listen to `source`; what it has already counts as news."""
        subscription = Subscription(self, source, subject)
        with self._lock:
            source.subscriptions = (*source.subscriptions, subscription)
        self.mark(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        subscription.cancel(self._lock)

    def mark(self, subscription: Subscription) -> None:
        """Look at this source again at the next `take`, though it may have no news."""
        self.ready[subscription] = None

    def take(self) -> Subscription | None:
        """The next source with news, or None. The caller must look at it after this call."""
        ready = self.ready
        while ready:
            try:
                self._taken = subscription = next(iter(ready))
            except RuntimeError:
                continue  # news came between the two steps
            del ready[subscription]
            return subscription
        return None

    def put_back(self) -> None:
        """Mark what was taken last: an interrupt came between taking it and looking at it."""
        if self._taken is not None:
            self.ready[self._taken] = None

    def wake(self) -> None:
        self.waiter.set()

    def wait(self, timeout_ms: int | None) -> bool:
        """Wait for news or `wake`. Returns at once when there are some already."""
        if self.ready:
            return True
        self.waiting.append(None)
        try:
            return self.waiter.wait(timeout_ms)
        finally:
            self.waiting.pop()
