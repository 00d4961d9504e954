"""Deleting slice by slice: heads of logs below their start, and whole logs of topics that are gone.

    RaiseLogStart, DeleteRecords --effect--> trimming --Tick: one slice--> ... --> done
    DropTopic, orphans           --effect--> doomed   --Tick: one slice--> ... --> done

What is to be deleted is invisible already (the view's start offset, the cluster image); the bytes follow when
the broker's
thread ticks, one slice a turn, with a pause in which others have theirs.

Invariants:
 1. `trimming` and `doomed` change only in effects of a turn: a turn that is dropped forgets nothing.
 2. A slice takes at most `SLICE_BYTES` and `SLICE_BATCHES`, about a millisecond.
 3. While a partition is in `trimming` its `size_bytes` counts batches below its start: retention by size waits.
 4. On a full disk or map a slice may need more pages than there are (copy-on-write): it is halved until it fits, and
    grows again with the room it makes.
 5. A crash loses both; loading a partition and `Broker.delete_orphans` find what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from streamlog.broker.partition import Partition
from streamlog.broker.turn import Turn
from streamlog.core.replica import ReplicaState, head_deleted
from streamlog.storage import log

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.storage.env import WriteTransaction

SLICE_BYTES: Final = 4 * 1024 * 1024
SLICE_BATCHES: Final = 1024
SLICE_PAUSE_MS: Final = 1
FAILED_PAUSE_MS: Final = 500
"""After a slice that the store refused (a full disk): others may free room meanwhile."""


class Deletions:
    """What one broker still has to delete. Owned by its turn."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.trimming: dict[Partition, None] = {}
        self.doomed: dict[int, None] = {}
        self.next_slice_ms = 0
        self._shrunk = 0  # slices are halved so often

    def __repr__(self) -> str:
        return f"Deletions({len(self.trimming)} heads, {len(self.doomed)} logs)"

    def deadline_ms(self) -> int | None:
        """When the next slice is due; None if nothing is to be deleted."""
        return self.next_slice_ms if self.trimming or self.doomed else None

    def shrink(self) -> bool:
        """After a slice the store refused: halve it. False if it cannot be smaller."""
        if SLICE_BATCHES >> self._shrunk <= 1:
            return False
        self._shrunk += 1
        return True

    def _slice(self) -> tuple[int, int]:
        return SLICE_BYTES >> self._shrunk, max(1, SLICE_BATCHES >> self._shrunk)

    def stage_slice(self, turn: Turn) -> None:
        """Delete one slice in this turn, if there is anything to delete."""
        if self.trimming:
            self._trim(turn, next(iter(self.trimming)))
        elif self.doomed:
            log_id = next(iter(self.doomed))
            transaction = self._broker.transaction(turn, reclaiming=True)
            done = log.delete_all_slice(transaction, log_id, *self._slice())
            turn.effects.append(
                self._after(turn.now_ms, (lambda: self.doomed.pop(log_id, None)) if done else None)
            )

    def _trim(self, turn: Turn, partition: Partition) -> None:
        if partition.view is None:  # its topic is gone, and its log is doomed
            turn.effects.append(self._after(turn.now_ms, lambda: self.trimming.pop(partition, None)))
            return
        transaction = self._broker.transaction(turn, reclaiming=True)
        # What this very turn raises the start over goes in a later one: readers do not know of it yet.
        published = partition.state.log_start_offset
        cut = log.delete_head(transaction, partition.log_id, published, *self._slice())
        _forget_aborted(transaction, partition)
        state = turn.staged.get(partition) or partition.state
        if cut.batches:
            turn.staged[partition] = head_deleted(state, published, cut.bytes)

        def note() -> None:
            self.trimming.pop(partition, None)
            if not cut.done or state.log_start_offset > published:
                self.trimming[partition] = None  # behind the others: they take turns

        turn.effects.append(self._after(turn.now_ms, note))

    def trim_to_size(
        self, turn: Turn, partition: Partition, state: ReplicaState, retention_bytes: int
    ) -> ReplicaState:
        """Retention by bytes goes along with the append that exceeds it: the file does not outgrow the live bytes.

        What goes is below the start that an earlier turn published; what this turn raises it over goes with the next.
        """
        from streamlog.storage import retention

        transaction = self._broker.transaction(turn)
        cut = log.delete_head(transaction, partition.log_id, partition.state.log_start_offset, SLICE_BYTES)
        _forget_aborted(transaction, partition)
        if cut.batches:
            state = turn.staged[partition] = head_deleted(state, state.log_start_offset, cut.bytes)
        target = retention.size_retention_target(
            transaction,
            partition.log_id,
            state.size_bytes,
            retention_bytes,
            state.high_watermark,
            SLICE_BYTES,
        )
        if target is not None and target > state.log_start_offset:
            state = turn.staged[partition] = head_deleted(state, target, 0)
        return state

    def _after(self, now_ms: int, note: Callable[[], object] | None) -> Callable[[], None]:
        def effect() -> None:
            self.next_slice_ms = now_ms + SLICE_PAUSE_MS
            self._shrunk = max(0, self._shrunk - 1)
            if note is not None:
                note()

        return effect


def _forget_aborted(transaction: WriteTransaction, partition: Partition) -> None:
    """Of what is below the published start nobody reads anything."""
    if partition.producers is not None:
        from streamlog.storage.aborted import delete_aborted

        delete_aborted(transaction, partition.log_id, 0, partition.state.log_start_offset)
