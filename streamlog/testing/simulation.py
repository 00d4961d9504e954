"""A runtime whose time is virtual and whose threads take turns: one seed, one trace.

    actor runs --waits--> scheduler: somebody ready? --yes: chance picks one--> it runs
                                          |
                                          +--no: the clock jumps to the earliest deadline

Actors are real threads that pass one baton: exactly one runs, and it gives the baton away only where streamlog
waits (a waiter, a join, `sleep`). So what happens between two waits is atomic, the order of everything follows from
the seed, and an hour of timeouts takes as long as the work in it. The code under it is the production code: it asks
its `Runtime` for locks, waiters, threads and time, and this is another one.

Invariants:
 1. Exactly one actor has the baton. Only it changes the state below, so the state needs no lock.
 2. The choice among those that could run is drawn from the seed, over a list in the order in which they became ready.
 3. The clock moves only when nobody is ready.
 4. Taking a lock that another actor holds waits for it, as any wait.
 5. Checks run at every switch and at the end of every turn, so no state between two turns goes unseen.
 6. What an actor raised comes out of its `result()`, or, if nobody asked, when the last cluster is closed.

Sources: FoundationDB's and TigerBeetle's simulators (one thread, one seed); etcd raft's deterministic tests.
Not implemented: preemption between waits; event loops (`streamlog.aio` runs its turns in threads of a pool).
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, SupportsIndex
from zlib import crc32

from streamlog.broker.runner import Lock, TurnLock, Waiter
from streamlog.clock import ManualClock
from streamlog.errors import (
    ClosedError,
    ConfigError,
    ForeignThreadError,
    IllegalStateError,
    SimulationStalledError,
)
from streamlog.testing.checkers import InvariantViolatedError

EPOCH_MS: Final = 1_700_000_000_000
"""The wall clock of a new simulation: it must not depend on today."""

TRACE_LINES_MAX: Final = 10_000
IDLE_SWITCHES_MAX: Final = 1_000
"""Switches without time passing until a millisecond does: a loop of `poll(0)` must not stop the clock."""

_real_sleep = time.sleep
_in_use: dict[Simulation, None] = {}  # those with an open cluster: there `time.sleep` is refused


class Actor:
    """A thread of the simulation."""

    __slots__ = (
        "deadline_ms", "failure", "gate", "is_daemon", "is_done", "is_sleeping", "is_told", "joiners", "name",
        "turns", "waiting_for", "woken",
    )  # fmt: skip

    def __init__(self, name: str, is_daemon: bool) -> None:
        self.name = name
        self.is_daemon = is_daemon  # one of the library's own threads
        self.is_sleeping = False
        self.turns = 0  # turn locks it holds
        self.gate = threading.Lock()
        self.gate.acquire()
        self.deadline_ms: int | None = None
        self.waiting_for = ""
        self.woken = False  # by `set`, not by the clock
        self.is_done = False
        self.joiners: list[SimulatedWaiter] = []
        self.failure: BaseException | None = None
        self.is_told = False  # somebody was told of the failure

    def __repr__(self) -> str:
        until = "" if self.deadline_ms is None else f" until {self.deadline_ms} ms"
        return f"{self.name}: " + ("done" if self.is_done else f"{self.waiting_for or 'ready'}{until}")


class SimulatedWaiter:
    """A latch: `set` lets one `wait` through, now or later."""

    __slots__ = ("_actor", "_is_set", "_simulation", "what")

    def __init__(self, simulation: Simulation, what: str = "a waiter") -> None:
        self._simulation = simulation
        self._actor: Actor | None = None
        self._is_set = False
        self.what = what

    def set(self) -> None:
        self._simulation._running()
        self._is_set = True
        if self._actor is not None:
            self._simulation._wake(self._actor)

    def wait(self, timeout_ms: int | None) -> bool:
        simulation = self._simulation
        actor = simulation._running()
        if self._is_set:
            # Others may run in between: as real threads would, and a loop that wakes itself must let time pass.
            simulation._switch(actor, 0, self.what)
        else:
            self._actor = actor
            try:
                simulation._switch(actor, timeout_ms, self.what)
            finally:
                self._actor = None
        was_set, self._is_set = self._is_set, False
        return was_set


class SimulatedLock:
    """A lock that may be taken again by who has it (as turn locks are)."""

    __slots__ = ("_count", "_is_of_turns", "_owner", "_simulation")

    def __init__(self, simulation: Simulation, is_of_turns: bool = False) -> None:
        self._simulation = simulation
        self._is_of_turns = is_of_turns
        self._owner: Actor | None = None
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        actor = self._simulation._running()
        if self._owner is not None and self._owner is not actor:
            if not blocking:
                return False
            while self._owner is not None:
                self._simulation._switch(actor, 1, f"a lock of {self._owner.name}")
        if self._owner is None:
            self._owner = actor
            actor.turns += self._is_of_turns
        self._count += 1
        return True

    def release(self) -> None:
        actor = self._simulation._running()
        assert self._owner is actor, (self._owner, "released by another")
        self._count -= 1
        if not self._count:
            self._owner = None
            if self._is_of_turns:
                actor.turns -= 1
                if not actor.turns:
                    self._simulation._run_checks()

    def _is_owned(self) -> bool:
        return self._owner is not None and self._owner is self._simulation._running()

    def _at_fork_reinit(self) -> None:
        self._owner, self._count = None, 0

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, kind: object, error: object, traceback: object, /) -> None:
        self.release()


class SimulatedTask:
    """A spawned actor."""

    def __init__(self, simulation: Simulation, actor: Actor) -> None:
        self._simulation = simulation
        self._actor = actor

    def __repr__(self) -> str:
        return f"<SimulatedTask {self._actor!r}>"

    def join(self, timeout_ms: int | None = None) -> bool:
        """Wait until it has ended; whether it did."""
        actor, simulation = self._actor, self._simulation
        if actor is simulation._running():
            return actor.is_done
        if not actor.is_done:
            waiter = SimulatedWaiter(simulation, f"the end of {actor.name}")
            actor.joiners.append(waiter)
            deadline_ms = None if timeout_ms is None else simulation.clock.monotonic_ms() + timeout_ms
            while not actor.is_done:
                left_ms = None if deadline_ms is None else deadline_ms - simulation.clock.monotonic_ms()
                if left_ms is not None and left_ms <= 0:
                    return False
                waiter.wait(left_ms)
        return True

    def result(self) -> None:
        """Wait until it has ended; raises what it raised."""
        self.join()
        self._actor.is_told = True
        if self._actor.failure is not None:
            raise self._actor.failure


class Simulation:
    """Virtual time and chance for a cluster and its clients: `streamlog.open(..., runtime=Simulation(seed=7))`.

    seed:          of everything: who runs next, partitioners, ids, faults with a probability.
    stall_max_ms:  virtual; when for so long nothing but timers has fired, SimulationStalledError says who waits for what.

    The thread that makes it is its first actor; more are made with `spawn`. Another thread that touches the cluster gets
    ForeignThreadError, an actor that calls `time.sleep` IllegalStateError: use `simulation.sleep`.
    """

    wakes_cost = False

    def __init__(self, seed: int = 0, *, stall_max_ms: int = 600_000) -> None:
        for name, given in (("seed", seed), ("stall_max_ms", stall_max_ms)):
            if isinstance(given, bool) or not isinstance(given, int):
                raise ConfigError(
                    f"Simulation: {name}={given!r}: allowed: an int",
                    option=name,
                    value=given,
                    allowed="an int",
                )
        self.seed = seed
        self.clock = ManualClock()
        self.clock.set_wall_ms(EPOCH_MS)
        self.random = random.Random(seed)
        self.stall_max_ms = stall_max_ms
        self.switches = 0
        self.digest = 0
        """A checksum of the trace so far: equal for equal seeds."""
        self.trace: deque[str] = deque(maxlen=TRACE_LINES_MAX)
        self.checks: list[Callable[[], object]] = []
        """Called after every turn and every step of an actor; what one raises ends the simulation and comes out of the
        first actor."""
        self._chance = random.Random(f"scheduler {seed}")
        self._ready: list[Actor] = []
        self._waiting: dict[Actor, None] = {}
        self._progress_ms = 0
        self._idle_switches = 0
        self._spawned = 0
        self._violation: BaseException | None = None
        self._failed: list[Actor] = []
        self._clusters: dict[object, None] = {}
        self._main = Actor("main", is_daemon=False)
        self._baton = self._main
        self._by_thread = {threading.get_ident(): self._main}
        self._next: Actor | None = None  # who must run next, whatever chance says

    def __repr__(self) -> str:
        return f"<Simulation seed={self.seed} at {self.now_ms} ms, {self.switches} switches>"

    # -- for its user ------------------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        """Virtual milliseconds since the simulation began."""
        return self.clock._monotonic_ms  # read at every switch, several times

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass; others run meanwhile."""
        actor = self._running()
        deadline_ms = self.now_ms + max(0, round(seconds * 1000))
        actor.is_sleeping = True
        try:
            while True:
                self._switch(actor, deadline_ms - self.now_ms, "sleep")
                self._progress_ms = self.now_ms
                if self.now_ms >= deadline_ms:
                    return
        finally:
            actor.is_sleeping = False

    def jump_wall_clock(self, ms: int) -> None:
        """Set the wall clock forward (or back), as an administrator or NTP would; deadlines do not move."""
        self.clock.set_wall_ms(self.clock.wall_ms() + ms)

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        line = f"{self.now_ms:>8} {self._baton.name}: {text}"
        self.trace.append(line)
        self.digest = crc32(line.encode(), self.digest)

    # -- the runtime ---------------------------------------------------------------------------------------------------

    def lock(self) -> Lock:
        return SimulatedLock(self)

    def turn_lock(self) -> TurnLock:
        return SimulatedLock(self, is_of_turns=True)

    def is_abandoned(self, lock: TurnLock) -> bool:
        return False  # an actor that dies on its way takes the simulation with it

    def waiter(self) -> Waiter:
        return SimulatedWaiter(self)

    def caller(self) -> int:
        self._running()
        return threading.get_ident()

    def spawn(self, name: str | Callable[[], Any], run: Callable[[], Any] | None = None) -> SimulatedTask:
        """Start an actor: `spawn(fn)` for a test's own, `spawn(name, fn)` for the library's threads."""
        is_daemon = run is not None
        if callable(name):
            run, name = name, getattr(name, "__name__", "actor")
        assert run is not None and isinstance(name, str)
        self._running()
        self._spawned += 1
        actor = Actor(f"{name}#{self._spawned}", is_daemon)
        body = run
        thread = threading.Thread(target=lambda: self._live(actor, body), name=actor.name, daemon=True)
        thread.start()
        self._ready.append(actor)
        self._progress_ms = self.now_ms
        return SimulatedTask(self, actor)

    def attach(self, cluster: object) -> None:
        """A cluster was opened under this runtime."""
        self._clusters[cluster] = None
        _in_use[self] = None
        time.sleep = _guarded_sleep

    def detach(self, cluster: object) -> None:
        """It was closed. With the last one the actors' threads are ordinary threads again.

        Raises what an actor raised, if nobody has asked for its `result()`: its asserts would count for nothing.
        """
        self._clusters.pop(cluster, None)
        if not self._clusters:
            _in_use.pop(self, None)
        if not _in_use:
            time.sleep = _real_sleep
        if not self._clusters:
            failed, self._failed = self._failed, []
            for actor in failed:
                if not actor.is_told and actor.failure is not None:
                    raise actor.failure

    def may_help(self) -> bool:
        """Whether a caller that waits runs others' work itself: both ways must be right, so chance decides."""
        return self._chance.random() < 0.5

    def give_way(self) -> None:
        """Nobody else runs at the same time."""

    # -- the scheduler -------------------------------------------------------------------------------------------------

    def _running(self) -> Actor:
        """The actor of this thread. Raises ForeignThreadError for a thread of nobody's."""
        actor = self._by_thread.get(threading.get_ident())
        if actor is None:
            name = threading.current_thread().name
            raise ForeignThreadError(
                f"thread {name!r} is not part of this simulation: its order would depend on the operating system; start "
                "it with simulation.spawn(function)",
                thread=name,
            )
        assert actor is self._baton, (actor, self._baton)
        return actor

    def _live(self, actor: Actor, run: Callable[[], Any]) -> None:
        actor.gate.acquire()
        self._by_thread[threading.get_ident()] = actor
        try:
            run()
        except BaseException as error:
            actor.failure = error
            if not _is_of_closing(error):
                self._failed.append(actor)
            self.note(f"failed: {type(error).__name__}: {error}")
            if isinstance(error, InvariantViolatedError):
                self._end_checks(error)  # now, while the trace still ends with what led to it
        finally:
            actor.is_done = True
            self._progress_ms = self.now_ms
            for waiter in actor.joiners:
                waiter.set()
            del self._by_thread[threading.get_ident()]
            self._pass_on(actor)

    def _wake(self, actor: Actor) -> None:
        if actor in self._waiting:
            del self._waiting[actor]
            actor.woken = True
            self._ready.append(actor)

    def _switch(self, actor: Actor, timeout_ms: int | None, what: str) -> None:
        """Give the baton away until woken or until the time is over."""
        actor.waiting_for = what
        actor.woken = False
        if timeout_ms is not None and timeout_ms <= 0:
            actor.deadline_ms = None
            self._ready.append(actor)
        else:
            actor.deadline_ms = None if timeout_ms is None else self.now_ms + timeout_ms
            self._waiting[actor] = None
        if self._pass_on(actor):
            actor.gate.acquire()
        actor.waiting_for = ""
        if self._violation is not None and actor is self._main:
            violation, self._violation = self._violation, None
            raise violation

    def _pass_on(self, actor: Actor) -> bool:
        """Choose who runs next and hand over; False if that is the same actor."""
        self._run_checks()
        chosen = self._choose()
        if chosen.woken or (not chosen.is_daemon and chosen.waiting_for == ""):
            self._progress_ms = self.now_ms
        self.switches += 1
        self._baton = chosen
        self.note("runs")
        if chosen is actor:
            return False
        chosen.gate.release()
        return True

    def _run_checks(self) -> None:
        try:
            for check in self.checks:
                check()
        except BaseException as violation:
            self._end_checks(violation)

    def _end_checks(self, violation: BaseException) -> None:
        self.checks.clear()  # one is enough; what is left of the run is closing
        self._fail(violation)

    def _fail(self, violation: BaseException) -> None:
        """The first actor learns what is wrong, next."""
        self._violation = violation
        self._next = self._main

    def _choose(self) -> Actor:
        self._idle_switches += 1
        if self._idle_switches > IDLE_SWITCHES_MAX:
            self._pass_time(self.now_ms + 1)
        if not self._ready and self._next is None:
            earliest_ms = min(
                [a.deadline_ms for a in self._waiting if a.deadline_ms is not None], default=None
            )
            if earliest_ms is None:
                self._fail(self._stalled("nobody can go on"))
            elif earliest_ms - self._progress_ms > self.stall_max_ms and not any(
                a.is_sleeping for a in self._waiting
            ):
                self._progress_ms = self.now_ms
                self._fail(self._stalled(f"nothing but timers has fired for {self.stall_max_ms} ms"))
            else:
                self._pass_time(earliest_ms)
        if self._next is not None:
            chosen, self._next = self._next, None
            self._waiting.pop(chosen, None)
            if chosen in self._ready:
                self._ready.remove(chosen)
            return chosen
        return self._ready.pop(self._chance.randrange(len(self._ready)))

    def _pass_time(self, to_ms: int) -> None:
        self.clock.advance(max(0, to_ms - self.now_ms))
        self._idle_switches = 0
        now_ms = self.now_ms
        for actor in [a for a in self._waiting if a.deadline_ms is not None and a.deadline_ms <= now_ms]:
            del self._waiting[actor]
            self._ready.append(actor)

    def _stalled(self, why: str) -> SimulationStalledError:
        waiting = "; ".join(map(repr, self._waiting)) or "nobody waits"
        return SimulationStalledError(
            f"seed {self.seed} at {self.now_ms} ms: {why}. {waiting}. If this is an endless loop over a consumer, use "
            "stop_at_end=True or poll with a timeout",
            seed=self.seed,
            now_ms=self.now_ms,
            waiting=[actor.name for actor in self._waiting],
        )


def _is_of_closing(error: BaseException | None) -> bool:
    """Whether an actor ended because what it used was closed under it."""
    while error is not None:
        if isinstance(error, ClosedError):
            return True
        error = error.__cause__
    return False


def _guarded_sleep(seconds: SupportsIndex | float) -> None:
    """Stands for `time.sleep` while a simulated cluster is open."""
    if any(threading.get_ident() in simulation._by_thread for simulation in _in_use):
        raise IllegalStateError(
            f"time.sleep({seconds}) inside a simulation would stop everybody and pass no virtual time; "
            "use simulation.sleep(seconds)",
            seconds=seconds,
        )
    _real_sleep(seconds)
