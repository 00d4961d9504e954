"""Who copies for the followers: their fetchers' threads, or the callers that wait for it (they *help*).

    leader's turn --news--> marks at a fetcher --> somebody helps already: it will find them
                                               --> lately helped: a helper will come; the watch looks whether it did
                                               --> else the fetcher's thread is woken

Waking a thread costs the one who wakes, and then both of them the interpreter's lock: for a caller that sends a record
and waits for it at once, more than the copying itself. So a fetcher that was helped lately is not woken with each
record: it is expected to be helped again. One thread, the watch, looks every WATCH_MS, while there is traffic, for
fetchers whose marks nobody has taken, and wakes them; from then on they are woken at once, until somebody helps again.

Invariants:
 1. News is marked first. Then either a helper will look (it looks after it has taken itself off the list), or the watch
    will (it looks after it has said that it does not watch any more), or the fetcher's thread was woken.
 2. What a fetcher asks is its own affair (`fetcher.ReplicaFetcher`); here is only decided who takes the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from streamlog.broker.fetcher import run_together
from streamlog.broker.runner import Service

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.fetcher import Key, ReplicaFetcher
    from streamlog.broker.runner import Runtime

HELP_ROUNDS_MAX: Final = 64
WATCH_MS: Final = 2
QUIET_LOOKS_MAX: Final = 25
"""After so many looks without any traffic the watch sleeps until there is news."""


class Helping:
    """The news of one cluster's followers, and who sees to it."""

    def __init__(self, runtime: Runtime) -> None:
        self._clock = runtime.clock
        self._wakes_cost = runtime.wakes_cost
        self._helpers: dict[object, None] = {}
        self._marked: dict[ReplicaFetcher, None] = {}
        self._watch = Service(runtime, "streamlog-replication-watch", self._look)
        self._is_watching = False
        self._quiet_looks = 0
        self._waiting: dict[ReplicaFetcher, int] = {}
        """Fetchers that had marks at the last look -> how many fetches they had done."""
        self._unsettled: dict[ReplicaFetcher, None] = {}
        """Fetchers that were helped and have something to ask later: their threads know nothing of it yet."""
        self._news = 0
        self._news_seen = 0

    def __repr__(self) -> str:
        return f"Helping({len(self._helpers)} help, {len(self._marked)} fetchers marked)"

    def news(self, fetcher: ReplicaFetcher, key: Key) -> None:
        """The leader has something for this fetcher. Called by any thread."""
        fetcher.mark(key)
        self._marked[fetcher] = None
        if not self._helpers:
            self._rouse(fetcher)

    def note(self, fetcher: ReplicaFetcher) -> None:
        """A fetcher has marked something itself: it goes on where it stands, or tries again."""
        self._marked[fetcher] = None

    def help(self, begin: Callable[[], None], is_done: Callable[[], bool]) -> None:
        """Run `begin`, then the work it made for healthy followers' fetchers, until `is_done`."""
        helper = object()
        helped: dict[ReplicaFetcher, None] = {}
        try:
            self._helpers[helper] = None
            begin()
            self._work_for_them(is_done, helped)
        finally:
            self._helpers.pop(helper, None)
            for fetcher in self._with_marks():
                self._rouse(fetcher)
            for fetcher in helped:
                if fetcher.has_plans:
                    self._tell_later(fetcher)

    def call(self, broker: Broker, request: object, timeout_ms: int) -> Any:
        """Post and wait, as `broker.call`, for an answer that followers have a part in."""
        pending = broker.post(request)
        self.help(lambda: None, lambda: pending.done)
        if not pending.done:
            broker.wait(pending, timeout_ms)
        return pending.result()

    def _work_for_them(self, is_done: Callable[[], bool], helped: dict[ReplicaFetcher, None]) -> None:
        for _ in range(HELP_ROUNDS_MAX):
            if is_done():
                return
            ready = [fetcher for fetcher in self._with_marks() if fetcher.can_be_helped()]
            helped.update(dict.fromkeys(ready))
            if not ready or not run_together(ready):
                return

    def stop(self) -> None:
        self._watch.stop()

    def _with_marks(self) -> list[ReplicaFetcher]:
        marked = self._marked
        found = []
        for fetcher in list(marked):
            if not fetcher.has_marks:
                marked.pop(fetcher, None)
            if fetcher.has_marks:
                marked[fetcher] = None  # perhaps marked in between
                found.append(fetcher)
        return found

    def _rouse(self, fetcher: ReplicaFetcher) -> None:
        if not (fetcher.is_helped and self._wakes_cost):
            fetcher.wake()
            return
        self._news += 1
        if not self._is_watching:
            self._watch.wake()

    def _tell_later(self, fetcher: ReplicaFetcher) -> None:
        if not self._wakes_cost:
            fetcher.wake()
            return
        self._unsettled[fetcher] = None
        if not self._is_watching:
            self._watch.wake()

    def _look(self, now_ms: int) -> int | None:
        """The watch: wake the fetchers whose marks nobody has taken since the last look."""
        self._is_watching = True
        self._wake_forgotten()
        self._quiet_looks = 0 if self._news != self._news_seen or self._waiting else self._quiet_looks + 1
        self._news_seen = self._news
        if self._quiet_looks <= QUIET_LOOKS_MAX:
            return now_ms + WATCH_MS
        self._is_watching = False
        self._quiet_looks = 0
        while self._unsettled:
            self._unsettled.popitem()[0].wake()
        if self._with_marks():  # marked by somebody who saw us watching
            return now_ms
        return None

    def _wake_forgotten(self) -> None:
        before, self._waiting = self._waiting, {}
        for fetcher in self._with_marks():
            if not fetcher.is_helped:
                continue  # it was woken when it was marked
            if before.get(fetcher) == fetcher.requests:
                fetcher.is_helped = False
                fetcher.wake()
            else:
                self._waiting[fetcher] = fetcher.requests
