"""Threads, locks and waiting: the only module of the library that knows them.

Everything above asks a `Runtime` for a lock, a waiter, or a thread. The threaded runtime is this one; a simulation
brings another with the same methods, a virtual clock and a seeded scheduler, and the rest of the code does not notice.

    Waiter      a latch: `set()` lets one `wait()` through, now or later. Setting it twice is setting it once.
    Service     a thread that runs `step()` when woken or when the deadline that `step` returned has come.

Locks are held for a few steps only and never across a wait, so under a runtime that switches only at waits
they are always free.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from streamlog.clock import Clock, SystemClock, give_way

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from types import TracebackType
    from typing import Protocol
else:
    Protocol = object  # real ones cost import time, and nobody asks isinstance of them

FAILED_STEP_PAUSE_MS = 1000
_WAIT_MS_MAX = int(threading.TIMEOUT_MAX * 1000) - 1


class Lock(Protocol):
    """The three things the library does with a lock."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def __enter__(self) -> bool: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...


class TurnLock(Lock, Protocol):
    """A lock that knows whether the running thread holds it."""

    def _is_owned(self) -> bool: ...
    def _at_fork_reinit(self) -> None: ...


class Waiter(Protocol):
    """A latch for one waiting thread."""

    def set(self) -> None: ...
    def wait(self, timeout_ms: int | None) -> bool:
        """Wait until set (True, and the latch is shut again) or until the time is over (False)."""


class Task(Protocol):
    """A started thread (or actor)."""

    def join(self, timeout_ms: int | None = None) -> bool: ...


class Chance(Protocol):
    """The part of `random.Random` that the library needs."""

    def getrandbits(self, k: int, /) -> int: ...
    def randrange(self, stop: int, /) -> int: ...


class Runtime(Protocol):
    """What the library needs of the world: time, chance, threads."""

    clock: Clock
    random: Chance
    wakes_cost: bool
    """Whether waking a thread is dear enough to be spared where somebody else will do its work."""

    def lock(self) -> Lock: ...
    def turn_lock(self) -> TurnLock: ...
    def is_abandoned(self, lock: TurnLock) -> bool:
        """Whether the thread that holds the lock is no more."""

    def waiter(self) -> Waiter: ...
    def spawn(self, name: str, run: Callable[[], None]) -> Task: ...
    def caller(self) -> int:
        """The identity of the running thread."""

    def attach(self, cluster: object) -> None:
        """A cluster was opened under this runtime."""

    def detach(self, cluster: object) -> None:
        """It was closed."""

    def may_help(self) -> bool:
        """Whether a caller that waits for other brokers may do their work itself."""

    def give_way(self) -> None:
        """Between two pieces of long work in the background: let others run."""


class ThreadWaiter:
    """A latch over one C-level lock: set and wait cost a lock operation each."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        if self._lock.locked():
            try:
                self._lock.release()
            except RuntimeError:
                pass  # somebody else was faster

    def wait(self, timeout_ms: int | None) -> bool:
        if timeout_ms is None:
            return self._lock.acquire()
        if timeout_ms <= 0:
            return self._lock.acquire(blocking=False)
        return self._lock.acquire(timeout=min(timeout_ms, _WAIT_MS_MAX) / 1000)


class ThreadTask:
    """A started daemon thread."""

    def __init__(self, name: str, run: Callable[[], None]) -> None:
        # Daemon: a forgotten cluster must not keep the interpreter alive; an exit hook flushes and closes it.
        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._thread.start()

    def join(self, timeout_ms: int | None = None) -> bool:
        if self._thread is not threading.current_thread():
            self._thread.join(None if timeout_ms is None else timeout_ms / 1000)
        return not self._thread.is_alive()


class SystemChance:
    """The system's own chance. Python's generator costs a millisecond to import."""

    def getrandbits(self, k: int, /) -> int:
        return int.from_bytes(os.urandom((k + 7) // 8), "big") >> (-k % 8)

    def randrange(self, stop: int, /) -> int:
        return self.getrandbits(64 + stop.bit_length()) % stop


class ThreadedRuntime:
    """Real threads, the system's clocks and the system's chance; with a seed, always the same chance."""

    wakes_cost = True

    def __init__(self, clock: Clock | None = None, seed: int | None = None) -> None:
        self.clock: Clock = SystemClock() if clock is None else clock
        self.random: Chance = SystemChance()
        if seed is not None:
            from random import Random

            self.random = Random(seed)

    def lock(self) -> Lock:
        return threading.Lock()

    def turn_lock(self) -> TurnLock:
        return cast(TurnLock, threading.RLock())

    def is_abandoned(self, lock: TurnLock) -> bool:
        # Only its repr tells whose a lock is. Slow, and asked only by who has waited in vain.
        owner = repr(lock).partition("owner=")[2].partition(" ")[0]
        return owner.isdigit() and owner != "0" and int(owner) not in sys._current_frames()

    def waiter(self) -> Waiter:
        return ThreadWaiter()

    def spawn(self, name: str, run: Callable[[], None]) -> Task:
        return ThreadTask(name, run)

    def caller(self) -> int:
        return threading.get_ident()

    def attach(self, cluster: object) -> None:
        pass

    def detach(self, cluster: object) -> None:
        pass

    def may_help(self) -> bool:
        return True

    def give_way(self) -> None:
        give_way()


def new_lock() -> Lock:
    """A lock for what exists once in a process, outside any runtime."""
    return threading.Lock()


def thread_pool(name: str, threads_max: int) -> Executor:
    """A bounded pool of threads, for those who must not run turns in their own (event loops)."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(threads_max, name)


class Service:
    """A thread that sleeps until its next deadline or until it is woken.

    `step(now_ms)` does what is due and returns the next deadline (monotonic ms) or None for "only when woken".
    The thread starts with the first `wake()`: who never needs it never pays for it.
    """

    def __init__(self, runtime: Runtime, name: str, step: Callable[[int], int | None]) -> None:
        self._runtime = runtime
        self._name = name
        self._step = step
        self._waiter = runtime.waiter()
        self._start_lock = runtime.lock()
        self._claim = runtime.lock()  # the stepping thread's: there is one, also if a start was interrupted
        self._steps_in: int | None = None
        self._task: Task | None = None
        self._stopping = False

    def __repr__(self) -> str:
        state = "stopped" if self._stopping else "idle" if self._task is None else "running"
        return f"Service({self._name!r}, {state})"

    def wake(self) -> None:
        """Run `step` soon. Starts the thread at the first call; does nothing after `stop`."""
        # Never wait for the lock: a signal handler may have struck the very thread that is starting the task.
        if self._task is None and not self._stopping and self._start_lock.acquire(False):
            try:
                if self._task is None and not self._stopping:
                    self._task = self._runtime.spawn(self._name, self._run)
            finally:
                self._start_lock.release()
        self._waiter.set()

    def stop(self, timeout_ms: int | None = None) -> bool:
        """Let the step under way end, then end the thread. Returns whether it ended in time."""
        self._stopping = True
        self._waiter.set()
        task = self._task
        if task is not None and not task.join(timeout_ms):
            return False
        if self._steps_in in (None, self._runtime.caller()):
            return True
        # An interrupt came after this thread had begun and before it was noted as our task.
        return self._claim.acquire(timeout=-1 if timeout_ms is None else timeout_ms / 1000)

    def _run(self) -> None:
        if not self._claim.acquire(False):
            return
        self._steps_in = self._runtime.caller()
        try:
            self._step_until_stopped()
        finally:
            self._steps_in = None
            self._claim.release()

    def _step_until_stopped(self) -> None:
        clock = self._runtime.clock
        while not self._stopping:
            try:
                deadline_ms = self._step(clock.monotonic_ms())
            except Exception as error:
                # No step may end the thread others rely on. What is wrong is said, and tried again a little later.
                _log_failed_step(self._name, error)
                deadline_ms = clock.monotonic_ms() + FAILED_STEP_PAUSE_MS
            timeout_ms = None if deadline_ms is None else max(0, deadline_ms - clock.monotonic_ms())
            self._waiter.wait(timeout_ms)  # not at all when `stop` came meanwhile: it has set the latch


def _log_failed_step(name: str, error: Exception) -> None:
    import logging

    logging.getLogger("streamlog").error("%s: a step failed, the next follows", name, exc_info=error)
