"""Turns: how many threads share one owner of state without handing work to each other.

    caller --post--> inbox        whoever gets the turn lock runs the turn, for everybody:
                                  drain -> decide -> commit -> apply -> publish -> reply

An uncontended caller runs its own turn: no thread hand-off. Contended callers ride along in somebody else's, which is
group commit. The same turn serves timers (a `Tick` in the inbox) and simulations.

Invariants:
 1. A thread is the runner of at most one turn. What the runner posts from inside (a logging handler, `__del__`, a signal
    handler) is only enqueued; waiting for it there raises ReentrantCallError.
 2. State changes only in `_apply`, after the commit, from absolute values the turn holds: applying twice is applying once.
 3. A request stays in the inbox until its turn is finished; `taken` says that a turn has answered or parked it.
 4. A turn cut short anywhere is finished by the next runner: if its transaction reached the disk it is applied,
    else it is decided again. The engine's own transaction id tells which.
 5. After letting go of the lock the runner looks at the inbox again, so no request is stranded.

Nothing of the user's runs inside a turn; replies wake waiters, callbacks go to the outbox.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from streamlog.broker.runner import Runtime, Waiter
from streamlog.errors import (
    ClosedError,
    ReentrantCallError,
    StorageError,
    StreamlogError,
    StreamlogTimeoutError,
)
from streamlog.storage.env import Environment, WriteTransaction

TURN_BYTES_MAX: Final = 8 * 1024 * 1024
TURN_REQUESTS_MAX: Final = 512
TURNS_FOR_OTHERS_MAX: Final = 4
STRANDED_WAIT_MS: Final = 50
"""A waiter looks up this often: an interrupt may have struck its runner between two steps of the hand-over."""


DEFER: Final = object()
"""What `_decide` returns to leave a request to a later turn: it must see what this turn has staged."""


class Tick:
    """An internal request: run what is due."""


class Pending:
    """A request on its way: its place in the inbox and, later, its answer."""

    __slots__ = (
        "request",
        "cost_bytes",
        "reply",
        "error",
        "done",
        "taken",
        "poison",
        "token",
        "waiter",
        "on_done",
        "__weakref__",
    )

    def __init__(
        self, request: object, cost_bytes: int = 0, on_done: Callable[[Pending], None] | None = None
    ) -> None:
        self.request = request
        self.cost_bytes = cost_bytes
        self.reply: Any = None
        self.error: BaseException | None = None
        self.done = False
        self.taken = False
        self.poison: BaseException | None = None
        self.token = 0
        self.waiter: Waiter | None = None
        self.on_done = on_done

    def __repr__(self) -> str:
        state = "done" if self.done else "parked" if self.taken else "waiting"
        return f"Pending({type(self.request).__name__}, {state})"

    def result(self) -> Any:
        """The reply of a request that is done; raises its error."""
        if self.error is not None:
            raise self.error
        return self.reply


class Turn:
    """One turn under way: what it decided, in absolute values, so that applying it again changes nothing."""

    __slots__ = (
        "now_ms",
        "wall_ms",
        "requests",
        "transaction",
        "transaction_id",
        "staged",
        "staged_machines",
        "effects",
        "replies",
        "committed",
        "counted",
    )

    def __init__(self, now_ms: int, wall_ms: int) -> None:
        self.now_ms = now_ms
        self.wall_ms = wall_ms
        self.requests: list[Pending] = []
        self.transaction: WriteTransaction | None = None
        self.transaction_id = 0
        self.staged: dict[Any, Any] = {}
        self.staged_machines: dict[Any, None] = {}
        self.effects: list[Callable[[], None]] = []
        self.replies: list[tuple[Pending, Any, BaseException | None]] = []
        self.committed = False
        self.counted = False

    def reply(self, pending: Pending, value: object) -> None:
        """Answer once the turn is committed and applied."""
        self.replies.append((pending, value, None))

    def fail(self, pending: Pending, error: BaseException) -> None:
        self.replies.append((pending, None, error))


class TurnOwner:
    """Single-owner state behind an inbox. Subclasses say how to decide, to prepare the commit and to apply."""

    def __init__(self, name: str, environment: Environment, runtime: Runtime, requests_max: int) -> None:
        self.name = name
        self.environment = environment
        self.runtime = runtime
        self.requests_max = requests_max
        self.turns_total = 0
        self._clock = runtime.clock
        self._inbox: deque[Pending] = deque()
        self._outbox: deque[Callable[[], None]] = deque()
        self._lock = runtime.turn_lock()
        self._unfinished: Turn | None = None
        self._closed = False

    # -- what a subclass says ----------------------------------------------------------------------------------------

    def _decide(self, turn: Turn, pending: Pending) -> object:
        """Decide one request: stage, write into `self.transaction(turn)`, reply or park. Raise only before writing.

        Returns DEFER to have the request decided in a later turn; anything else is ignored.
        """
        raise NotImplementedError

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

    def enqueue(self, request: object, cost_bytes: int = 0, on_done: Callable[[Pending], None] | None = None) -> Pending:
        """Only put a request into the inbox. Raises ClosedError."""
        if self._closed:
            raise ClosedError(f"{self.name} is closed")
        pending = Pending(request, cost_bytes, on_done)
        self._inbox.append(pending)
        return pending

    def call(self, request: object, timeout_ms: int | None = None, cost_bytes: int = 0) -> Any:
        """Post and wait: the reply, or the error raised. Raises StreamlogTimeoutError after `timeout_ms`."""
        pending = self.post(request, cost_bytes)
        if not pending.done:
            self.wait(pending, timeout_ms)
        if pending.error is not None:
            raise pending.error
        return pending.reply

    def wait(self, pending: Pending, timeout_ms: int | None = None) -> None:
        """Run turns or ride along until `pending` is done."""
        deadline_ms = None if timeout_ms is None else self._clock.monotonic_ms() + timeout_ms
        while not pending.done:
            self.advance()
            if pending.done:
                return
            if self._lock._is_owned():
                raise ReentrantCallError(
                    f"{type(pending.request).__name__} would wait for {self.name}, but this very thread is inside its turn "
                    "(a logging handler, __del__ or a signal handler?); send without waiting instead"
                )
            if pending.waiter is None:
                pending.waiter = self.runtime.waiter()
                continue  # look once more: it may have been answered while nobody was listening
            left_ms = STRANDED_WAIT_MS
            if deadline_ms is not None:
                left_ms = min(left_ms, deadline_ms - self._clock.monotonic_ms())
                if left_ms <= 0:
                    raise StreamlogTimeoutError(
                        f"{type(pending.request).__name__} was not answered by {self.name} within {timeout_ms} ms",
                        timeout_ms=timeout_ms,
                    )
            pending.waiter.wait(left_ms)

    # -- running turns -----------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Run turns while there is something to do and nobody else does it."""
        lock = self._lock
        if lock._is_owned():
            return  # we are the runner: the request waits for the next turn
        turns = 0
        try:
            while (self._has_work()) and lock.acquire(False):
                try:
                    self._run_turn()
                finally:
                    lock.release()
                turns += 1
                if turns > TURNS_FOR_OTHERS_MAX and self._hand_over():
                    break
        except BaseException:
            # Interrupted (Ctrl-C): what the turn has committed must become visible even if nobody calls again.
            while lock._is_owned():
                lock.release()
            if self._unfinished is not None and lock.acquire(False):
                self._run_turn()
            raise
        finally:
            # An interrupt may strike between acquiring and the inner `try`.
            while lock._is_owned():
                lock.release()
        if self._outbox:
            self._empty_outbox()

    def exclusively(self, action: Callable[[], None]) -> None:
        """Run `action` as the runner, between turns: for opening and closing only."""
        with self._lock:
            while self._has_work():
                self._run_turn()
            action()
        if self._outbox:
            self._empty_outbox()

    def transaction(self, turn: Turn) -> WriteTransaction:
        """The turn's write transaction, begun at its first use."""
        transaction = turn.transaction
        if transaction is None:
            transaction = turn.transaction = self.environment.write()
            turn.transaction_id = transaction.id
        return transaction

    def _has_work(self) -> bool:
        return bool(self._inbox) or self._unfinished is not None

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
            turn = self._unfinished = Turn(self._clock.monotonic_ms(), self._clock.wall_ms())
            self._decide_all(turn)
        self._finish(turn)

    def _settle(self, turn: Turn) -> None:
        """Find out what became of a turn that was cut short; release what it held."""
        if turn.transaction is not None:
            # Aborting a transaction that was committed is a no-op in the engine's binding.
            turn.transaction.abort()
        if turn.transaction_id and self.environment.last_transaction_id() >= turn.transaction_id:
            turn.committed = True

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
                try:
                    if self._decide(turn, pending) is DEFER:
                        turn.requests.pop()
                        continue
                except StorageError:
                    raise
                except StreamlogError as error:
                    turn.fail(pending, error)
                except Exception as error:
                    pending.poison = error
                    raise
                bytes_taken += pending.cost_bytes
                if bytes_taken >= TURN_BYTES_MAX or len(turn.requests) >= TURN_REQUESTS_MAX:
                    break
            self._before_commit(turn)
            if turn.transaction is not None:
                turn.transaction.commit()
            turn.committed = True
        except Exception as error:
            self._abandon(turn, error)

    def _abandon(self, turn: Turn, error: Exception) -> None:
        """A turn failed (not: was interrupted). Nothing of it is kept; the requests at fault learn why."""
        self._settle(turn)
        if turn.committed:
            return
        if isinstance(error, StorageError):
            # Disk full, map full, an I/O error: whoever wanted to write is told, readers are not concerned.
            for pending in turn.requests:
                pending.poison = error
        elif not any(pending.poison is error for pending in turn.requests):
            for pending in turn.requests:
                pending.poison = error
        again = self._unfinished = Turn(turn.now_ms, turn.wall_ms)
        for pending in turn.requests:
            again.requests.append(pending)
            if pending.poison is not None:
                again.fail(pending, pending.poison)
        again.requests = [pending for pending in again.requests if pending.poison is not None]
        again.committed = True

    def _finish(self, turn: Turn) -> None:
        if not turn.committed:
            return self._finish(cast(Turn, self._unfinished))
        self._apply(turn)
        for effect in turn.effects:
            effect()
        if not turn.counted:
            turn.counted = True
            self.turns_total += 1
            self._count(turn)
        for pending in turn.requests:
            pending.taken = True
        for pending, value, error in turn.replies:
            if not pending.done:
                pending.reply = value
                pending.error = error
                pending.taken = True
                pending.done = True
                if pending.on_done is not None:
                    self._outbox.append(_callback(pending))
            if pending.waiter is not None:
                pending.waiter.set()
        inbox = self._inbox
        while inbox and inbox[0].taken:
            inbox.popleft()
        self._unfinished = None

    def _empty_outbox(self) -> None:
        outbox = self._outbox
        while outbox:
            try:
                callback = outbox.popleft()
            except IndexError:
                return
            callback()


def _callback(pending: Pending) -> Callable[[], None]:
    return lambda: pending.on_done(pending) if pending.on_done is not None else None
