"""Delivery callbacks: run in one thread, the producer's own, in order per partition, outside of every lock.

Invariants:
 1. The callbacks of a partition run in the order of its batches, within a batch in the order they were added.
 2. What a callback raises is logged and stops nothing.
 3. A callback added to a record whose fate is known still runs in the producer's thread; after `close` in
    the caller's, or in that of whoever learns the fate.

Source: DESIGN, "Turns, not locks", law 2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from streamlog.broker.runner import Service
from streamlog.broker.turn import Pending
from streamlog.client.delivery import OpenBatch, SendFuture

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Callback = Callable[[Any], object]  # gets the SendFuture it was added to


class DeliveryCallbacks:
    """The batches of one producer somebody waits for with a callback."""

    def __init__(self, lock: AbstractContextManager[Any], service: Service) -> None:
        self._lock = lock
        self._service = service
        self._batches: deque[OpenBatch] = deque()
        self._closed = False

    @property
    def waiting(self) -> bool:
        return bool(self._batches)

    def add(self, batch: OpenBatch, callback: Callback, future: SendFuture | None = None) -> None:
        """Have `callback` called once the fate of the batch is known.

        future: what to call it with: the very object somebody holds.
        """
        with self._lock:
            if batch.callbacks is None:
                batch.callbacks = []
                self._batches.append(batch)
            batch.callbacks.append((future, callback))
            if batch.pending is not None:
                batch.pending.on_done = self.wake
        if self._closed:
            self.run()
        elif batch.settle():
            self._service.wake()

    def wake(self, pending: Pending) -> None:
        if self._closed:  # `close` did not wait for this one
            self.run()
        else:
            self._service.wake()

    def run(self) -> None:
        """Run the callbacks of settled batches, in order per partition."""
        waiting: set[tuple[str, int]] = set()
        for batch in tuple(self._batches):
            place = (batch.topic, batch.partition)
            if place in waiting or not batch.settle():
                waiting.add(place)
                continue
            with self._lock:
                callbacks, batch.callbacks = batch.callbacks or [], None
                try:
                    self._batches.remove(batch)
                except ValueError:
                    continue
            for future, callback in callbacks:
                _run(callback, future)

    def close(self) -> None:
        """The producer's thread has ended: run what is left in this one."""
        self._closed = True
        self.run()


def _run(callback: Callback, future: SendFuture | None) -> None:
    try:
        callback(future)
    except Exception:
        import logging

        logging.getLogger("streamlog.producer").exception(
            "delivery callback %r of %r failed", callback, future
        )
