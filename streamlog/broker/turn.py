"""Turns: how many threads share one owner of state without handing work to each other.

    caller --post--> inbox        whoever gets the turn lock runs the turn, for everybody:
                                  drain -> decide -> commit -> apply -> publish -> reply

An uncontended caller runs its own turn: no thread hand-off. Contended callers ride along in somebody else's, which is
group commit. The same turn serves timers (a `Tick` in the inbox) and simulations.

Invariants:
 1. A thread is the runner of at most one turn. What the runner posts from inside (a logging handler, `__del__`, a signal
    handler) is only enqueued; waiting for it there raises ReentrantCallError.
 2. State changes only in `_apply`, after the commit, from absolute values the turn holds: again changes nothing.
 3. A request stays in the inbox until its turn is finished; `taken` says that a turn has answered or parked it.
 4. A turn cut short anywhere is finished by the next runner: if its transaction reached the disk it is applied,
    else it is decided again. The engine's own transaction id tells which.
 5. After letting go of the lock the runner looks at the inbox again, so no request is stranded.
 6. Whoever waits is answered: by its turn, by `_stop` (closed, or broken), or by its own timeout.
 7. An error that comes from deciding a request is that request's; one that comes from the store is everybody's who
    wanted to write; one that comes from applying what is committed stops the owner, since its state is in doubt.

Nothing of the user's runs inside a turn; replies wake waiters, callbacks go to the outbox.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from streamlog.broker.abandonment import free_if_abandoned
from streamlog.broker.pending import DEFER, Pending, Tick, Turn, chain
from streamlog.broker.runner import Runtime, TurnLock
from streamlog.errors import (
    ClosedError,
    DiskFullError,
    IllegalStateError,
    ReentrantCallError,
    StorageError,
    StreamlogError,
    StreamlogTimeoutError,
)
from streamlog.storage.env import Environment, WriteTransaction

if TYPE_CHECKING:
    from types import FrameType

    from streamlog.broker.measuring import RequestTimes
    from streamlog.metrics import Timer

__all__ = ("DEFER", "Pending", "Tick", "Turn", "TurnOwner")
TURN_BYTES_MAX: Final = 8 * 1024 * 1024
TURN_REQUESTS_MAX: Final = 512
TURN_MS_MAX: Final = 5
TURNS_FOR_OTHERS_MAX: Final = 4
STRANDED_WAIT_MS: Final = 50  # a waiter looks up so often: its runner may have been struck by an interrupt
APPLICATIONS_MAX: Final = 3
FULL_INBOX_LOOK_MS: Final = 1  # who finds the inbox full helps, or looks again after this


class TurnOwner:
    """Single-owner state behind an inbox. Subclasses say how to decide, to prepare the commit and to apply."""

    def __init__(self, name: str, environment: Environment, runtime: Runtime, requests_max: int) -> None:
        self.name = name
        self.environment = environment
        self.runtime = runtime
        self.requests_max = requests_max
        self.turns_total = 0
        self.request_times: RequestTimes | None = None
        self.commit_times: Timer | None = None  # set where a commit is a flush
        self._clock = runtime.clock
        self._monotonic_ns = runtime.clock.monotonic_ns
        self._wall_ns = runtime.clock.wall_ns
        self._inbox: deque[Pending] = deque()
        self._outbox: deque[Callable[[], None]] = deque()
        self._lock = self.turn_lock = runtime.turn_lock()
        self._unfinished: Turn | None = None
        self._closed = False  # takes no more requests
        self._stopped = False  # and answers those still in the inbox with `_refusal`
        self._broken: BaseException | None = None
        self.on_checkpoint_due: Callable[[], object] = bool  # wakes who saves a fold that has grown enough
        self.paused = False  # runs no turn and tells nobody: who waits runs into a timeout
        self.disk_is_full, self.commit_delay_ms = False, 0  # faults of tests: writes fail, or take longer
        self.siblings: tuple[TurnOwner, ...] = ()  # the other owners: law 1
        self._freeing = runtime.lock()  # held while a lock is freed that nobody holds by right

    # -- what a subclass says ----------------------------------------------------------------------------------------

    def _decide(self, turn: Turn, pending: Pending) -> object:
        """Decide one request: stage, write into `self.transaction(turn)`, reply or park. Raise only before writing.

        Returns DEFER to have the request decided in a later turn; anything else is ignored.
        """
        raise NotImplementedError

    def _frees(self, request: object) -> bool:
        """Whether the request is there to free room: it is not told that somebody else's write found none."""
        return False

    def _on_dropped(self, turn: Turn) -> None:
        """A turn that was not committed is forgotten."""

    def _on_stop(self, refusal: StreamlogError) -> None:
        """No turn will run any more: answer what is parked."""

    def _before_commit(self, turn: Turn) -> None:
        """Write the checkpoints of what is staged."""

    def _apply(self, turn: Turn) -> None:
        """Take over what is staged and publish. Re-runnable."""

    def _count(self, turn: Turn) -> None:
        """Metrics of a finished turn; at most once."""

    # -- callers -----------------------------------------------------------------------------------------------------

    def post(
        self, request: object, cost_bytes: int = 0, on_done: Callable[[Pending], None] | None = None
    ) -> Pending:
        """Put a request into the inbox and run turns if nobody else does. Does not wait for the answer."""
        pending = self.enqueue(request, cost_bytes, on_done)
        self.advance()
        return pending

    def enqueue(
        self, request: object, cost_bytes: int = 0, on_done: Callable[[Pending], None] | None = None
    ) -> Pending:
        """Only put a request into the inbox; helps while it is full. Raises ClosedError."""
        self.admit()
        pending = Pending(request, cost_bytes, on_done)
        self.put(pending)
        return pending

    def admit(self) -> None:
        """Before `put`: raises ClosedError, and helps while the inbox is full."""
        if self._closed:
            raise self._refusal()
        if len(self._inbox) >= self.requests_max:
            self._make_room()

    def put(self, pending: Pending, again: bool = False) -> None:
        """Into the inbox, in one step. again: after an interrupt; nothing happens if it is in there, or was."""
        if not again or not (pending in tuple(self._inbox) or pending.taken):
            pending.posted_us = self._monotonic_ns() // 1_000
            self._inbox.append(pending)

    def offer(self, request: object, cost_bytes: int = 0) -> Pending | None:
        """Post as another broker does: None if the inbox is full, as a network would drop it. Never waits."""
        if self._closed or len(self._inbox) >= self.requests_max:
            return None
        pending = Pending(request, cost_bytes)
        self._inbox.append(pending)
        self.advance()
        return pending

    def slip_in(self, request: object) -> None:
        """Into the inbox, full or not, for a turn to come: for who holds a lock that turns need."""
        self._inbox.append(Pending(request))

    def call(self, request: object, timeout_ms: int | None = None, cost_bytes: int = 0) -> Any:
        """Post and wait: the reply, or the error raised. Raises StreamlogTimeoutError after `timeout_ms`."""
        pending = self.post(request, cost_bytes)
        if not pending.done:
            self.wait(pending, timeout_ms)
        return pending.result()

    def wait(self, pending: Pending, timeout_ms: int | None = None) -> None:
        """Run turns or ride along until `pending` is done."""
        deadline_ms = None if timeout_ms is None else self._clock.monotonic_ms() + timeout_ms
        try:
            if not pending.done and self.is_runner:
                raise ReentrantCallError(
                    f"{type(pending.request).__name__} would wait for {self.name}, but this very thread is inside "
                    "a turn (a logging handler, __del__ or a signal handler?); send without waiting instead"
                )
            waiter = pending.waiter = pending.waiter or self.runtime.waiter()
            while True:
                if not pending.done:
                    self.advance()
                # Looked at after the waiter is there to be found: it may have been answered while nobody was listening.
                if pending.done:
                    break
                is_forgotten = (
                    self._stopped and self._unfinished is None and pending not in tuple(self._inbox)
                )
                if is_forgotten and not pending.done:
                    raise self._refusal()
                left_ms = STRANDED_WAIT_MS
                if deadline_ms is not None:
                    left_ms = min(left_ms, deadline_ms - self._clock.monotonic_ms())
                    if left_ms <= 0:
                        raise StreamlogTimeoutError(
                            f"{type(pending.request).__name__} was not answered by {self.name} within {timeout_ms} ms",
                            timeout_ms=timeout_ms,
                        )
                if not waiter.wait(left_ms):
                    free_if_abandoned(self)
            if pending.following is not None:
                pending.following.set()
            waiter.set()  # somebody else may wait for the same request
        except BaseException:
            # The runner may have handed over to us, who leave: first nobody finds our waiter, then we look.
            pending.waiter = None
            if pending.following is not None:
                pending.following.set()
            self.advance()
            raise

    # -- running turns -----------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Run turns while there is something to do and nobody else does it."""
        lock = self._lock
        if self.paused or (lock._is_owned() and self._is_inside(sys._getframe(1))):
            return  # we are the runner: the request waits for the next turn
        for sibling in self.siblings:  # a thread holds one turn lock at most
            if sibling._lock._is_owned() and sibling._is_inside(sys._getframe(1)):
                return
        try:
            self._run_turns(lock)
        except BaseException:
            environment = self.environment
            try:
                # Interrupted (Ctrl-C). The engine lets a transaction be ended by its own thread only, so it ends here.
                # Nothing below calls Python code before the lock is free: no second interrupt can come between.
                if lock._is_owned():
                    if environment.newest_write is not None:
                        environment.newest_write.abort()
                    lock.release()
                try:
                    self._run_turns(lock, only_unfinished=True)  # what was committed must become visible
                except BaseException:
                    if lock._is_owned():
                        if environment.newest_write is not None:
                            environment.newest_write.abort()
                        lock.release()
                raise
            finally:
                if lock._is_owned():
                    if environment.newest_write is not None:
                        environment.newest_write.abort()
                    lock.release()
        if self._outbox:
            self._empty_outbox()

    def _run_turns(self, lock: TurnLock, only_unfinished: bool = False) -> None:
        turns = 0
        while (self._unfinished is not None or (self._inbox and not only_unfinished)) and lock.acquire(False):
            self._run_turn()  # no `try` around it: its first instruction would be outside of it, with the lock held
            lock.release()
            turns += 1
            if self.paused or (turns > TURNS_FOR_OTHERS_MAX and self._hand_over()):
                return

    def stop(self, action: Callable[[], None], *, abruptly: bool = False) -> None:
        """Take no more requests, finish those taken, run `action` as the last runner, answer who still waits.

        abruptly: those taken are refused, too, as by a connection that breaks; a turn under way ends first.

        Raises   ReentrantCallError inside a turn. May be called again after an interrupt.
        """
        if self._is_runner(sys._getframe(1)):
            raise ReentrantCallError(f"{self.name} cannot be closed from inside a turn")
        self._closed = True
        free_if_abandoned(self)
        with self._lock:
            if self._stopped:
                return
            try:
                while True:
                    if abruptly or not (self._inbox or self._unfinished is not None):
                        break
                    self._run_turn()
                action()
                self._stop()
            except BaseException:
                if self.environment.newest_write is not None:
                    self.environment.newest_write.abort()  # see `advance`
                raise
        self._empty_outbox()

    def transaction(self, turn: Turn, reclaiming: bool = False) -> WriteTransaction:
        """The turn's write transaction, begun at its first use. reclaiming: to free room, also where there is none."""
        transaction = turn.transaction
        if transaction is None:
            if self.disk_is_full:
                raise DiskFullError(f"{self.name}: the disk is full (a fault that a test asked for)")
            transaction = turn.transaction = self.environment.write(reclaiming=reclaiming)
            turn.transaction_id = transaction.id
            turn.reclaiming = reclaiming
        return transaction

    @property
    def is_runner(self) -> bool:
        """Whether this thread is inside a turn, here or at a sibling."""
        return self._is_runner(sys._getframe(1))

    def _is_runner(self, frame: FrameType) -> bool:
        return any(owner._lock._is_owned() and owner._is_inside(frame) for owner in (self, *self.siblings))

    def _is_inside(self, frame: FrameType | None) -> bool:
        """Whether a turn of ours is on the stack from `frame` on. If not, interrupts kept the lock from being freed."""
        inside = (TurnOwner.advance.__code__, TurnOwner.stop.__code__)
        while frame is not None:
            if frame.f_code in inside and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        with self._freeing:  # or another thread frees it, taking us for one that died: numbers are used again
            for _ in iter(self._lock._is_owned, False):
                self._lock.release()
        return False

    def _make_room(self) -> None:
        """Run turns, or wait for who runs them, until the inbox is no longer full. The runner itself cannot wait."""
        while len(self._inbox) >= self.requests_max and not self.is_runner:
            self.advance()
            if len(self._inbox) >= self.requests_max:
                self.runtime.waiter().wait(FULL_INBOX_LOOK_MS)
                free_if_abandoned(self)
        if self._closed:
            raise self._refusal()

    def _refusal(self) -> StreamlogError:
        if self._broken is None:
            return ClosedError(f"{self.name} is closed")
        refusal = IllegalStateError(
            f"{self.name} stopped: what a turn committed could not be applied ({self._broken!r}). Nothing "
            "acknowledged is lost; close the cluster and open it again"
        )
        refusal.__cause__ = self._broken
        return refusal

    def _stop(self) -> None:
        """The end: called as the runner, nothing unfinished."""
        self._closed = self._stopped = True
        refusal = self._refusal()
        self._on_stop(refusal)
        while self._inbox:
            self._answer(self._inbox.popleft(), None, refusal)

    def _hand_over(self) -> bool:
        """Wake the first caller that waits in the inbox; it runs the next turn."""
        for pending in tuple(self._inbox):
            if pending.waiter is not None and not pending.taken:
                pending.waiter.set()
                return True
        return False

    def _run_turn(self) -> None:
        turn = self._unfinished
        if turn is not None and not turn.committed:
            self._settle(turn)
        if turn is None or not turn.committed:
            turn = self._unfinished = Turn(self._monotonic_ns() // 1_000_000, self._wall_ns() // 1_000_000)
            self._decide_all(turn)
        self._finish(turn)

    def _settle(self, turn: Turn) -> None:
        """Find out what became of a turn that was cut short; release what it held."""
        if turn.transaction is not None:
            turn.transaction.abort()  # of one that was committed: a no-op in the engine's binding
        if turn.transaction_id and self.environment.last_transaction_id() >= turn.transaction_id:
            turn.committed = True
        else:
            self._on_dropped(turn)

    def _decide_all(self, turn: Turn) -> None:
        try:
            bytes_taken = 0
            for pending in tuple(self._inbox):
                if pending.taken:
                    continue
                turn.requests.append(pending)
                if pending.poison is not None:
                    turn.fail(pending, pending.poison)
                    continue
                if self._stopped:
                    turn.fail(pending, self._refusal())
                    continue
                try:
                    if self._decide(turn, pending) is DEFER:
                        turn.requests.pop()
                        continue
                except StorageError as error:
                    if turn.transaction is not None:
                        raise
                    turn.fail(pending, error)  # it could not even begin: nothing is written, others may go on
                except StreamlogError as error:
                    turn.fail(pending, error)
                except Exception as error:
                    pending.poison = error
                    raise
                bytes_taken += pending.cost_bytes
                count = len(turn.requests)
                if bytes_taken >= TURN_BYTES_MAX or count >= TURN_REQUESTS_MAX:
                    break
                if not count & 31 and self._clock.monotonic_ms() - turn.now_ms >= TURN_MS_MAX:
                    break
            self._before_commit(turn)
            if turn.transaction is not None:
                self._commit(turn.transaction)
            turn.committed = True
        except Exception as error:
            self._abandon(turn, error)

    def _commit(self, transaction: WriteTransaction) -> None:
        if self.commit_times is None or self.commit_delay_ms:
            transaction.commit()
            if self.commit_delay_ms:
                self.runtime.waiter().wait(self.commit_delay_ms)
            return
        begun_us = self._clock.monotonic_us()
        transaction.commit()
        self.commit_times.update((self._clock.monotonic_us() - begun_us) / 1_000)

    def _abandon(self, turn: Turn, error: Exception) -> None:
        """A turn failed (not: was interrupted). Nothing of it is kept; the requests at fault learn why."""
        self._settle(turn)
        if turn.committed:
            return
        if isinstance(error, StorageError):
            # Disk full, map full, an I/O error: whoever wanted to write is told, who frees room may try alone.
            at_fault = [pending for pending in turn.requests if not self._frees(pending.request)]
            for pending in at_fault or turn.requests:
                pending.poison = pending.poison or error
        elif not any(pending.poison is error for pending in turn.requests):
            for pending in turn.requests:
                pending.poison = pending.poison or error
        again = Turn(turn.now_ms, turn.wall_ms)
        again.requests = [pending for pending in turn.requests if pending.poison is not None]
        for pending in again.requests:
            again.fail(pending, cast(BaseException, pending.poison))
        again.committed = True
        self._unfinished = again

    def _finish(self, turn: Turn) -> None:
        if not turn.committed:
            turn = cast(Turn, self._unfinished)
        try:
            for effect in turn.effects:
                effect()
            self._apply(turn)
        except Exception as failure:
            turn.applications += 1
            if turn.applications < APPLICATIONS_MAX:
                return self._finish(turn)  # out of memory, perhaps: applying is re-runnable
            return self._break(turn, failure)
        if not turn.counted:
            turn.counted = True
            self.turns_total += 1
            if self.request_times is not None:
                self.request_times.count(turn.replies)
            self._count(turn)
        for pending in turn.requests:
            pending.taken = True
        if len(turn.replies) > 1:
            chain(turn.replies)
        for pending, value, error in turn.replies:
            self._answer(pending, value, error)
        inbox = self._inbox
        while inbox and inbox[0].taken:
            inbox.popleft()
        self._unfinished = None

    def _answer(self, pending: Pending, value: object, error: BaseException | None) -> None:
        """Tell who waits. Again changes nothing."""
        if not pending.done:
            pending.reply = value
            pending.error = error
            pending.taken = True
            pending.done = True
        if pending.waiter is not None and not pending.is_chained:
            pending.waiter.set()
        on_done = pending.on_done
        if on_done is not None:
            self._outbox.append(lambda: on_done(pending))
            pending.on_done = None  # last: an interrupt before it tells twice, never not at all

    def _break(self, turn: Turn, error: Exception) -> None:
        """What is committed cannot be applied: the state is in doubt, so nothing more is decided on it."""
        self._broken = error
        for pending in turn.requests:
            self._answer(pending, None, self._refusal())
        self._unfinished = None
        self._stop()

    def _empty_outbox(self) -> None:
        outbox = self._outbox
        while outbox:
            try:
                callback = outbox.popleft()
            except IndexError:
                return
            try:
                callback()
            except Exception:
                # A wake-up failed (no memory for a thread). It was a courtesy, and this caller is not concerned.
                continue
