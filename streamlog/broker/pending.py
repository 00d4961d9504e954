"""A request on its way, and the turn that answers it: the two values everything in `broker.turn` passes around.

Pending   waiting in the inbox --taken by a turn--> parked or done --> its waiter wakes
Turn      what was decided, in absolute values: applying it again changes nothing
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from streamlog.broker.runner import Waiter
    from streamlog.storage.env import WriteTransaction

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
        "posted_us",
        "took_us",
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
        # When it was put into the inbox, and how long it was on its way once it is answered; 0 = not measured.
        self.posted_us = 0
        self.took_us = 0

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
        "reclaiming",
        "applications",
    )

    def __init__(self, now_ms: int, wall_ms: int) -> None:
        self.now_ms = now_ms
        self.wall_ms = wall_ms
        self.requests: list[Pending] = []
        self.transaction: WriteTransaction | None = None
        self.transaction_id = 0
        self.staged: dict[Any, Any] = {}
        self.staged_machines: dict[Any, Any] = {}  # hosted group -> decision
        self.effects: list[Callable[[], object]] = []
        self.replies: list[tuple[Pending, Any, BaseException | None]] = []
        self.committed = False
        self.counted = False
        self.reclaiming = False
        self.applications = 0

    def reply(self, pending: Pending, value: object) -> None:
        """Answer once the turn is committed and applied."""
        self.replies.append((pending, value, None))

    def fail(self, pending: Pending, error: BaseException) -> None:
        self.replies.append((pending, None, error))
