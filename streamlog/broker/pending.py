"""A request on its way, and the turn that answers it: the two values everything in `broker.turn` passes around.

Pending   waiting in the inbox --taken by a turn--> parked or done --> its waiter wakes
Turn      what was decided, in absolute values: applying it again changes nothing
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streamlog.errors import StreamlogTimeoutError

if TYPE_CHECKING:
    from streamlog.broker.partition import Partition
    from streamlog.broker.runner import Waiter
    from streamlog.broker.turn import TurnOwner
    from streamlog.storage.env import WriteTransaction

DEFER: Final = object()
"""What `_decide` returns to leave a request to a later turn: it must see what this turn has staged."""


TOLD_WAIT_MS: Final = 30_000
"""Longer than this nobody waits for a broker that fell silent meanwhile."""


class Tick:
    """An internal request: run what is due."""


class Pending(msgspec.Struct, eq=False, weakref=True):
    """A request on its way: its place in the inbox and, later, its answer."""

    request: object
    cost_bytes: int = 0
    on_done: Callable[[Pending], None] | None = None
    # When it was put into the inbox, and how long it was on its way once it is answered; 0 = not measured.
    posted_us: int = 0
    took_us: int = 0
    reply: Any = None
    error: BaseException | None = None
    done: bool = False
    taken: bool = False
    poison: BaseException | None = None
    token: int = 0
    waiter: Waiter | None = None
    following: Waiter | None = None  # whom its waiter wakes in turn
    is_chained: bool = False  # and that it is woken so itself
    sent_items: Any = None
    """Of a request the dispatcher sent, or took over: what it is made of."""
    on_retry: Callable[[str, int], None] | None = None
    """Told (topic, records) of what the dispatcher sends again."""

    def __repr__(self) -> str:
        state = "done" if self.done else "parked" if self.taken else "waiting"
        return f"Pending({type(self.request).__name__}, {state})"

    def result(self) -> Any:
        """The reply of a request that is done; raises its error."""
        if self.error is not None:
            raise self.error
        return self.reply


class Turn(msgspec.Struct, eq=False):
    """One turn under way: what it decided, in absolute values, so that applying it again changes nothing."""

    now_ms: int
    wall_ms: int
    requests: list[Pending] = []
    staged: dict[Any, Any] = {}
    replies: list[tuple[Pending, Any, BaseException | None]] = []
    transaction: WriteTransaction | None = None
    transaction_id: int = 0
    staged_machines: dict[Any, Any] = {}  # hosted group -> decision
    effects: list[Callable[[], object]] = []
    committed: bool = False
    counted: bool = False
    reclaiming: bool = False
    applications: int = 0
    leaderships: dict[Any, Any] = {}  # partition -> Leadership, None: follows
    epochs: dict[Any, Any] = {}  # partition -> EpochHistory
    producers: dict[Any, dict[int, Any]] = {}  # partition -> producer id -> ProducerState, None: forgotten
    decided: dict[Any, list[tuple[int, int]]] = {}  # partition -> transactions that got their markers
    transactions: dict[str, Any] = {}  # transactional id -> TransactionState
    unwritten: dict[str, Any] = {}  # transactional id -> where its last state of this turn is to be written
    parked: list[
        tuple[Pending, Any]
    ] = []  # written, and answered when replicated: (request, its answer then)

    def reply(self, pending: Pending, value: object) -> None:
        """Answer once the turn is committed and applied."""
        self.replies.append((pending, value, None))

    def fail(self, pending: Pending, error: BaseException) -> None:
        self.replies.append((pending, None, error))

    def is_alone(self, partition: Partition) -> bool:
        """Whether a replica has no others, and nothing about that was decided in this very turn."""
        return partition.is_alone and partition not in self.leaderships


def chain(replies: list[tuple[Pending, Any, BaseException | None]]) -> None:
    """Have only the first who waits woken, and each wake the next: woken at once they would all fight for the
    interpreter's lock, and be put to sleep again by losing.
    """
    before = None
    for pending, _, _ in replies:
        if pending.waiter is not None:
            if before is not None:
                before.following, pending.is_chained = pending.waiter, True
            before = pending


def wait_until_told(owner: TurnOwner, told: list[Pending]) -> None:
    """Wait for what an owner was told to do. One that is silent does it when it goes on: nobody waits for that."""
    for pending in told:
        try:
            if not owner.paused:
                owner.wait(pending, TOLD_WAIT_MS)
        except StreamlogTimeoutError:
            continue
