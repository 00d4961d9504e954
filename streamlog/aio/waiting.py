"""How the core and an event loop get along: wake-ups into the loop, and a few threads out of it.

    publish --LoopWaiter.set--> Bell --one call_soon_threadsafe--> a parked task looks again, in a thread
    core code that would wait --LoopWaiter.wait--> Parked --> the task parks in the loop, the thread goes home

Invariants:
 1. No lost wake-up: a latch is shut before the look it guards; what is set after that ends the next park at
    once.
 2. A thousand wake-ups before the loop gets round to them cost one call into the loop.
 3. A thread never waits for news. It waits for a turn, or for a listener of the user's that runs in the
    loop; what that listener asks of us is then done by the very thread that waits for it, so few threads are
    always enough. What may wait for replicas or coordinators has threads beside these, so that it holds up
    nobody who reads.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from streamlog.broker.runner import thread_pool
from streamlog.errors import ClosedError

ResultT = TypeVar("ResultT")
Call = Callable[[], object]

THREADS_MAX: Final = 4
"""Turns are exclusive and Python runs one thread at a time: more threads would only wait for each other."""

WAITING_THREADS_MAX: Final = 32
"""Of those that wait for replicas, or for a coordinator: flushes, and the beginnings and ends of transactions."""


class Parked(BaseException):
    """The core has nothing to do for `timeout_ms` (None: until there is news). Control flow, not an error."""

    def __init__(self, timeout_ms: int | None) -> None:
        super().__init__(timeout_ms)
        self.timeout_ms = timeout_ms


class Bell:
    """Wakes parked tasks of one loop from any thread, one call into the loop for all of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._woken: deque[LoopWaiter] = deque()
        self._ringing = False

    def ring(self, waiter: LoopWaiter) -> None:
        self._woken.append(waiter)
        if not self._ringing:
            self._ringing = True
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:
                pass  # the loop is closed: nobody is parked any more

    def _answer(self) -> None:
        self._ringing = False  # first: what rings from now on is answered by another call
        woken = self._woken
        while woken:
            woken.popleft().wake()


class LoopWaiter:
    """A latch like the core's, for a task: `wait` raises Parked instead of waiting; `park` waits."""

    __slots__ = ("_bell", "_is_set", "_sleeper")

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._is_set = False
        self._sleeper: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Let one wait or park through, now or later. By any thread, inside turns too: never blocks."""
        if not self._is_set:
            self._is_set = True
            self._bell.ring(self)

    def wait(self, timeout_ms: int | None) -> bool:
        """What core code calls where a thread would wait."""
        if self._is_set:
            self._is_set = False
            return True
        raise Parked(timeout_ms)

    async def park(self, seconds: float | None) -> None:
        """Wait until set, or until the time is over. The latch is shut again."""
        if not self._is_set and (seconds is None or seconds > 0):
            loop = asyncio.get_running_loop()
            self._sleeper = loop.create_future()
            timer = None if seconds is None else loop.call_later(seconds, self.wake)
            try:
                await self._sleeper
            finally:
                self._sleeper = None
                if timer is not None:
                    timer.cancel()
        self._is_set = False

    def wake(self) -> None:
        """End the park under way, if there is one. In the loop's thread."""
        sleeper = self._sleeper
        if sleeper is not None and not sleeper.done():
            sleeper.set_result(None)


class Workers:
    """The threads of one cluster in one loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.bell = Bell(self.loop)
        self._pool = thread_pool("streamlog-aio", THREADS_MAX)
        self._waiting_pool = thread_pool("streamlog-aio-waiting", WAITING_THREADS_MAX)
        self._closed = False

    def waiter(self) -> LoopWaiter:
        return LoopWaiter(self.bell)

    def submit(self, work: Callable[[], ResultT], *, waits: bool = False) -> asyncio.Future[ResultT]:
        """Run `work` in a thread. Cancelling the future does not stop what has begun.

        waits:  it may wait for more than a turn.
        """
        servant = serving()
        if servant is not None:
            return servant.submit(work)
        if self._closed:
            raise ClosedError("the cluster is closed; open it again with streamlog.aio.open(...)")
        return self.loop.run_in_executor(self._waiting_pool if waits else self._pool, work)

    async def call(self, function: Callable[..., ResultT], *arguments: Any, **options: Any) -> ResultT:
        """Run a function in a thread and wait for it. A caller that is cancelled leaves it running."""
        return await asyncio.shield(self.submit(lambda: function(*arguments, **options)))

    async def shielded(self, future: asyncio.Future[ResultT], undo: Callable[[ResultT], object]) -> ResultT:
        """The result of a submitted call; if the caller is cancelled, `undo` gets it, in a thread."""
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._when_done(future, undo)
            raise

    def _when_done(self, future: asyncio.Future[ResultT], undo: Callable[[ResultT], object]) -> None:
        def hand_over(done: asyncio.Future[ResultT]) -> None:
            if not done.cancelled() and done.exception() is None:
                self.loop.run_in_executor(None, undo, done.result())

        future.add_done_callback(hand_over)

    def listener(self, handler: Callable[..., Any] | None) -> Callable[..., None] | None:
        """A function or coroutine function of the user's, to be called from a thread and run in the loop."""
        if handler is None:
            return None
        return lambda *arguments: Servant(self.loop).run(handler, arguments)

    def close(self) -> None:
        self._closed = True
        self._pool.shutdown(wait=False)
        self._waiting_pool.shutdown(wait=False)


class Servant:
    """A thread that waits for a listener running in the loop, and does what that one asks for meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._inbox: SimpleQueue[Call | None] = SimpleQueue()
        self._error: BaseException | None = None
        self.is_serving = True

    def run(self, handler: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Have the loop run the handler; serve until it is done. Raises what it raised."""
        self._loop.call_soon_threadsafe(self._start, handler, arguments)
        while (work := self._inbox.get()) is not None:
            work()
        if self._error is not None:
            raise self._error

    def submit(self, work: Callable[[], ResultT]) -> asyncio.Future[ResultT]:
        """In the loop's thread: have the serving thread run `work`."""
        future: asyncio.Future[ResultT] = self._loop.create_future()

        def settle(result: ResultT | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)  # type: ignore[arg-type]
            else:
                future.set_exception(error)

        def serve() -> None:
            try:
                outcome: tuple[ResultT | None, BaseException | None] = (work(), None)
            except BaseException as error:
                outcome = (None, error)
            self._loop.call_soon_threadsafe(settle, *outcome)

        self._inbox.put(serve)
        return future

    def _start(self, handler: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        context = contextvars.copy_context()
        context.run(_serving.set, self)
        self._task = context.run(self._loop.create_task, self._handle(handler, arguments))

    async def _handle(self, handler: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            result = handler(*arguments)
            if isinstance(result, Awaitable):
                await result
        except BaseException as error:
            self._error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self.is_serving = False
            self._inbox.put(None)


_serving: contextvars.ContextVar[Servant | None] = contextvars.ContextVar("streamlog_serving", default=None)


def serving() -> Servant | None:
    """The thread that waits for the running task, if that belongs to a listener still running."""
    servant = _serving.get()
    return servant if servant is not None and servant.is_serving else None
