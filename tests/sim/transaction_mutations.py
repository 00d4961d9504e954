"""Deliberate mistakes in transactions and groups; run beside those of replication, see `mutations`."""

from __future__ import annotations

from typing import Any

import msgspec

from streamlog.broker.producer_states import ProducerTable
from streamlog.broker.transaction_completion import Completing
from streamlog.client import fetching, transactions
from streamlog.core import assignor, group_offsets, held_records, producer_state
from streamlog.core import transaction as rules
from streamlog.core.group_offsets import _validate_commit
from streamlog.errors import IllegalGenerationError, UnknownMemberIdError

Patch = tuple[Any, str, Any]
_current = rules._current
_take = ProducerTable.take
_end = held_records.HeldRecords.end


def marker_before_the_decision_is_replicated() -> list[Patch]:
    """Markers go out as soon as the decision is in the coordinator's own log."""
    return [(Completing, "is_replicated", property(lambda self: True))]


def stable_before_the_marker_is_replicated() -> list[Patch]:
    """The last stable offset passes a transaction as soon as its leader has the marker."""

    def mutated(self: Any, *arguments: Any) -> None:
        _take(self, *arguments)
        self.decided = []

    return [(ProducerTable, "take", mutated)]


def no_fencing() -> list[Patch]:
    """Neither the coordinator nor the partitions look at producer epochs."""

    def current(state: Any, transactional_id: str, producer_id: int, producer_epoch: int) -> Any:
        if state is not None and state.producer_id == producer_id:
            return state
        return _current(state, transactional_id, producer_id, producer_epoch)

    def admit(state: Any, header: Any, *_: Any) -> Any:
        return None if state is None else state.duplicate_of(header)

    return [
        (rules, "_current", current),
        (producer_state, "admit", admit),
        (rules, "_check_retried", lambda *_: None),
    ]


def commit_of_an_old_generation() -> list[Patch]:
    """A group takes the offsets of whoever sends them, member or not, of whatever generation."""

    def mutated(*arguments: Any) -> Any:
        error = _validate_commit(*arguments)
        return None if isinstance(error, (IllegalGenerationError, UnknownMemberIdError)) else error

    return [(group_offsets, "_validate_commit", mutated)]


def offsets_outside_of_the_transaction() -> list[Patch]:
    """The offsets of what was read are committed at once, whatever becomes of the transaction."""

    def mutated(commit: Any, *_: Any) -> Any:
        return commit

    return [(transactions, "transactional", mutated)]


def replay_takes_an_abort_for_a_commit() -> list[Patch]:
    """Offsets of aborted transactions count."""
    return [(held_records.HeldRecords, "end", lambda self, producer_id, _: _end(self, producer_id, True))]


def read_what_was_aborted() -> list[Patch]:
    """Who reads committed records is not told which transactions were aborted."""
    return [(fetching, "aborted_of", lambda *_: [])]


def forget_to_hold_offsets() -> list[Patch]:
    """Before KIP-447: who takes a partition over reads from the offset that an open transaction is about to move."""
    from streamlog.broker import coordinator

    return [(coordinator, "check_stable", lambda *_: None)]


def batches_of_no_transaction() -> list[Patch]:
    """Batches travel before their partitions are told to the coordinator: they never get a marker."""
    from streamlog.broker import dispatching

    return [(dispatching, "outsider", lambda *_: None)]


def the_next_coordinator_decides_anew() -> list[Patch]:
    """Who takes over a decided transaction aborts it."""

    def mutated(value: bytes) -> Any:
        state = _decode(value)
        if state.state is rules.State.PREPARE_COMMIT:
            return msgspec.structs.replace(state, state=rules.State.PREPARE_ABORT)
        return state

    return [(rules, "decode_value", mutated)]


def two_owners_while_a_partition_moves() -> list[Patch]:
    """Cooperative: what moves is given to its new owner before the old one has let go of it."""

    def mutated(partitions: Any, subscriptions: Any) -> Any:
        claims = {member_id: (one.owned, one.generation) for member_id, one in subscriptions.items()}
        return assignor._StickyBalance(partitions, subscriptions, claims).run()

    hasty = assignor.Assignor("cooperative-sticky", assignor.RebalanceProtocol.COOPERATIVE, mutated)
    return [(assignor, "ASSIGNORS", {**assignor.ASSIGNORS, "cooperative-sticky": hasty})]


_decode = rules.decode_value

TRANSACTION_MUTATIONS = (
    marker_before_the_decision_is_replicated,
    stable_before_the_marker_is_replicated,
    no_fencing,
    commit_of_an_old_generation,
    offsets_outside_of_the_transaction,
    replay_takes_an_abort_for_a_commit,
    read_what_was_aborted,
    forget_to_hold_offsets,
    batches_of_no_transaction,
    the_next_coordinator_decides_anew,
    two_owners_while_a_partition_moves,
)
