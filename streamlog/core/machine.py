"""The shape all rules share: events in, decisions out, no I/O (sans-I/O).

    event ---> handle(event, now_ms) ---> Decision( records,  changes,  replies )
                 (changes nothing)            |         |         |
                                              v         |         |
                         the turn appends the records and commits |
                                              |         |         |
                                              v         v         |
                                    apply(records, changes)       |
                                (the only mutator, re-runnable)   v
                                                     replies leave last, by token

A machine owns one piece of state (a group, a transaction, the cluster image). It never writes, waits, reads
a clock or draws a random number: time comes in as `now_ms`, bytes leave as records, answers leave as
`(token, value)`. So the same machine runs in a broker's turn, in the simulator and in a ten line test.

Laws (the host relies on them, `tests/core/test_group.py` checks them for groups):
 1. `handle` and `on_deadline` change nothing: a decision that is dropped leaves no trace.
 2. `apply` is re-runnable: the decisions of a turn, applied again in the same order, give the same state (a
    turn may be cut short between the commit and the end of apply).
 3. What `replay` builds from the records is the durable part of what `apply` built from the decisions.
 4. A request whose token is already parked, or was just answered, may be handed in again.
 5. Everything that leaves a decision is in an order that depends on the events only.

Several events in one turn: the second must see what the first decided, before anything is committed. The
host takes `fork()`, applies each decision to the fork while it decides, drops the fork, and applies the
decisions to the machine after the commit.

Sources: Kafka CoordinatorRuntime, CoordinatorResult (decide -> records -> replay); etcd raft Ready (effects
as data).
Not implemented: machines whose replies wait for other machines (the host parks those).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Generic, TypeVar

import msgspec

from streamlog.errors import StreamlogError

ChangeT = TypeVar("ChangeT")
StateT = TypeVar("StateT", bound=Enum)

Key = bytes
Value = bytes | None
Reply = tuple[int, object | StreamlogError]
"""The token of a request and its answer: a reply Struct or the error."""


class Decision(msgspec.Struct, Generic[ChangeT]):
    """What a machine wants to happen, in this order: append, commit, apply, reply."""

    records: list[tuple[Key, Value]]
    """Durable. Key and value (None = tombstone), in the order they must be appended."""
    changes: list[ChangeT]
    """Volatile state (sessions, parked requests): applied together with the records, never stored."""
    replies: list[Reply]
    """Sent last: whoever has a reply can rely on the records being committed."""

    @property
    def is_empty(self) -> bool:
        return not (self.records or self.changes or self.replies)


def check_transition(valid_previous: Mapping[StateT, frozenset[StateT]], old: StateT, new: StateT) -> None:
    """Assert that `old -> new` stands in the machine's literal transition table."""
    assert old in valid_previous[new], f"{old.name} -> {new.name} is not a transition of {type(new).__name__}"
