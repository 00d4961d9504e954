"""The checkers can fail: deliberate mistakes in replication, each found by a checker within 200 seeds.

    python -m tests.sim.mutations                 all; prints which checker found which mutation at which seed
    python -m tests.sim.mutations unclean         those whose name begins so

A mutation is a list of (owner, attribute, replacement). It counts as found only by an InvariantViolatedError.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import msgspec

from streamlog.broker import copying, producing, reading, replication, serving_followers
from streamlog.broker.acknowledgements import Acknowledgements
from streamlog.broker.controlling import Controlling
from streamlog.broker.producer_identity import ProducerIdentity
from streamlog.client import fetching
from streamlog.core import (
    broker_states,
    elections,
    isr_changes,
    leadership,
    partition_changes,
    producer_state,
    reassignment,
)
from streamlog.core.leadership import FollowerProgress, Leadership
from streamlog.core.replica import truncated
from streamlog.storage import log
from streamlog.testing.checkers import InvariantViolatedError
from streamlog.testing.hunt import faults_unlogged
from streamlog.testing.workload import run
from tests.sim.transaction_mutations import TRANSACTION_MUTATIONS

SEEDS_MAX = 200

Patch = tuple[Any, str, Any]
_become_follower = replication.Replication._become_follower
_append_as_follower = copying.append_as_follower
_may_join = leadership.may_join


def truncate_to_the_high_watermark() -> list[Patch]:
    """Before KIP-101: who becomes a follower cuts its log at its own high watermark."""

    def mutated(self: Any, turn: Any, partition: Any, *rest: Any) -> None:
        _become_follower(self, turn, partition, *rest)
        state = turn.staged[partition]
        cut = log.truncate_tail(self._broker.transaction(turn), partition.log_id, state.high_watermark)
        if cut.batches:
            turn.staged[partition] = truncated(state, cut.log_end_offset, cut.bytes, cut.max_timestamp)
            epochs = turn.epochs.get(partition, partition.epochs).truncated(cut.log_end_offset)
            self.stage_epochs(turn, partition, epochs)

    return [(replication.Replication, "_become_follower", mutated)]


def high_watermark_ignores_the_slowest() -> list[Patch]:
    """The high watermark is the second smallest log end."""

    def mutated(known: Leadership, state: Any, *_: Any) -> int:
        ends = [known.followers[b].log_end_offset for b in known.maximal_isr if b != known.broker_id]
        return max(state.high_watermark, min([*sorted(ends)[1:], state.log_end_offset]))

    return [(leadership, "high_watermark", mutated)]


def join_before_the_epoch_start() -> list[Patch]:
    """A follower joins at the high watermark the leader has, which may lag behind what the last one had told."""

    def mutated(known: Leadership, state: Any, follower: int) -> bool:
        return _may_join(msgspec.structs.replace(known, epoch_start_offset=0), state, follower)

    return [(leadership, "may_join", mutated)]


def no_epoch_fencing() -> list[Patch]:
    """Nobody looks at leader epochs: not the leader, not the follower, not the controller."""

    def append(broker: Any, own: Any, turn: Any, pending: Any, request: Any) -> None:
        parts = [
            msgspec.structs.replace(
                part,
                position=msgspec.structs.replace(part.position, leader_epoch=part.partition.role_epoch),
            )
            for part in request.parts
        ]
        _append_as_follower(broker, own, turn, pending, msgspec.structs.replace(request, parts=parts))

    return [
        (serving_followers, "_check_epoch", lambda *_: None),
        (replication, "append_as_follower", append),
        (copying, "_stands_at", lambda *_: True),
        (isr_changes, "_check_epochs", lambda *_: None),
    ]


def acknowledge_before_the_commit() -> list[Patch]:
    """acks=all is answered as soon as the leader has it."""

    def mutated(self: Any, turn: Any, pending: Any, reply: object, *_: Any) -> None:
        turn.reply(pending, reply)

    return [(Acknowledgements, "park", mutated)]


def forget_a_pending_shrink() -> list[Patch]:
    """A leader counts whom it has proposed to remove as gone, before the controller has agreed."""
    known = property(lambda self: self.isr if self.proposed_isr is None else self.proposed_isr)
    return [(Leadership, "maximal_isr", known)]


def unclean_elections_silently() -> list[Patch]:
    """Any replica that lives may lead, whatever the topic says."""
    return [(Controlling, "allows_unclean", lambda *_: True)]


def read_past_the_high_watermark() -> list[Patch]:
    """Consumers read to the end of the log."""

    def mutated(view: Any, *_: Any) -> int:
        return int(view.log_end_offset)

    return [(reading, "end_for", mutated), (fetching, "end_for", mutated)]


def elect_without_a_new_epoch() -> list[Patch]:
    """The controller keeps the leader epoch when the leader changes: nobody can tell an old leader from the new one."""
    change = partition_changes.change_partition

    def mutated(before: Any, *rest: Any, **options: Any) -> Any:
        after = change(before, *rest, **options)
        return msgspec.structs.replace(after, leader_epoch=before.leader_epoch)

    users = (broker_states, elections, isr_changes, partition_changes, reassignment)
    return [(module, "change_partition", mutated) for module in users if hasattr(module, "change_partition")]


def trust_former_lives() -> list[Patch]:
    """Before KIP-903: what a follower held before it lost its unsynced tail lets it join the in-sync set."""
    eligible = isr_changes._why_ineligible
    return [
        (leadership, "_of_this_life", lambda progress, _: progress or FollowerProgress()),
        (isr_changes, "_why_ineligible", lambda image, broker_id, _: eligible(image, broker_id, None)),
    ]


def retries_are_new_batches() -> list[Patch]:
    """Leaders take whatever comes: nobody knows a batch again."""
    return [(producing, "_known", lambda *_: None)]


def remember_the_last_sequence_only() -> list[Patch]:
    """A window of one batch: what is not the newest one's retry is taken for new if nothing of it is known."""

    def mutated(state: Any, header: Any, *_: Any) -> Any:
        return (
            None
            if state is None or header.base_sequence != state.batches[-1].first_sequence
            else state.batches[-1]
        )

    return [(producer_state, "admit", mutated)]


def forget_producers_at_failover() -> list[Patch]:
    """Followers copy batches, and note nothing of their producers."""
    return [(copying, "observe", lambda *_: None)]


def doubt_without_a_new_epoch() -> list[Patch]:
    """A batch has failed that may be in the log, and its sequences are given to the next one."""
    return [(ProducerIdentity, "in_doubt", lambda self: None)]


MUTATIONS: tuple[Callable[[], list[Patch]], ...] = (
    truncate_to_the_high_watermark,
    high_watermark_ignores_the_slowest,
    join_before_the_epoch_start,
    no_epoch_fencing,
    acknowledge_before_the_commit,
    forget_a_pending_shrink,
    unclean_elections_silently,
    read_past_the_high_watermark,
    elect_without_a_new_epoch,
    trust_former_lives,
    retries_are_new_batches,
    remember_the_last_sequence_only,
    forget_producers_at_failover,
    doubt_without_a_new_epoch,
    *TRANSACTION_MUTATIONS,
)


@contextmanager
def mutated(mutation: Callable[[], list[Patch]]) -> Iterator[None]:
    patches = [patch.object(*change) for change in mutation()]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in reversed(patches):
            each.stop()


def search(mutation: Callable[[], list[Patch]], seeds: range) -> tuple[int, str, int]:
    """(seed, checker, seeds that failed in another way before); the seed is -1 if no checker found it."""
    others = 0
    for seed in seeds:
        try:
            with mutated(mutation):
                run(seed)
        except InvariantViolatedError as violation:
            return seed, violation.checker, others
        except Exception:
            others += 1  # not converged, say: seen, but not by a checker
    return -1, "", others


def main(names: list[str]) -> int:
    missed = 0
    for mutation in MUTATIONS:
        if names and not mutation.__name__.startswith(tuple(names)):
            continue
        seed, checker, others = search(mutation, range(SEEDS_MAX))
        found = f"{checker} at seed {seed}" if seed >= 0 else f"NOT FOUND in {SEEDS_MAX} seeds"
        sys.stdout.write(f"{mutation.__name__:<40} {found} ({others} seeds failed in other ways before)\n")
        sys.stdout.flush()
        missed += seed < 0
    return 1 if missed else 0


if __name__ == "__main__":
    with faults_unlogged():
        sys.exit(main(sys.argv[1:]))
