"""Which leader wrote which offsets: the list by which replicas find where their logs part (sans-I/O).

    epoch   0         3              4                7
    offsets [0 ... 12)[12 ... 30)    (none)[30 ... 41)[41 ... log end)
    entries (0, 0)    (3, 12)              (4, 30)    (7, 41)

Each replica keeps the list of its own log. A new leader enters its epoch at its log end at once, even before it writes;
a follower enters epochs as the batches it copies carry them. An epoch that wrote nothing leaves no entry behind once the
next one begins at the same offset.

Invariants (checked by `_check`):
 1. Epochs rise strictly, and so do start offsets.

Sources: KIP-101, KIP-279; Kafka LeaderEpochFileCache, OffsetsForLeaderEpochUtils.
"""

from __future__ import annotations

from typing import Final, NamedTuple

UNDEFINED: Final = -1
"""An epoch or an offset nobody knows."""


class EpochEntry(NamedTuple):
    """The leader of `epoch` wrote the offsets from `start_offset` on."""

    epoch: int
    start_offset: int


class EpochEnd(NamedTuple):
    """The answer to "where did this epoch end?": the epoch it speaks of and the offset behind its last record."""

    epoch: int
    end_offset: int


UNDEFINED_END: Final = EpochEnd(UNDEFINED, UNDEFINED)


class EpochHistory:
    """The leader epochs of one log, oldest first. Immutable: every command returns another."""

    __slots__ = ("entries",)

    def __init__(self, entries: tuple[EpochEntry, ...] = ()) -> None:
        self.entries = entries

    def __repr__(self) -> str:
        return f"EpochHistory({' '.join(f'{epoch}@{start}' for epoch, start in self.entries)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EpochHistory) and self.entries == other.entries

    def __hash__(self) -> int:
        return self.entries.__hash__()

    # -- queries -----------------------------------------------------------------------------------------------------

    @property
    def latest_epoch(self) -> int:
        """The newest epoch, UNDEFINED for a log nobody ever led."""
        return self.entries[-1].epoch if self.entries else UNDEFINED

    def epoch_of(self, offset: int) -> int:
        """The epoch that wrote `offset`; UNDEFINED below the first entry."""
        for entry in reversed(self.entries):
            if entry.start_offset <= offset:
                return entry.epoch
        return UNDEFINED

    def end_of(self, epoch: int, log_end_offset: int) -> EpochEnd:
        """Where `epoch` ended in this log.

        The latest epoch ends at the log end. An epoch in between, also one this log never saw, ends where the next higher
        begins, and the answer names the largest epoch not above it. One below all entries: (itself, start of the first
        higher). One above all: UNDEFINED_END.
        """
        if epoch == UNDEFINED or not self.entries:
            return UNDEFINED_END
        if epoch == self.entries[-1].epoch:
            return EpochEnd(epoch, log_end_offset)
        floor = UNDEFINED
        for entry in self.entries:
            if entry.epoch > epoch:
                return EpochEnd(epoch if floor == UNDEFINED else floor, entry.start_offset)
            floor = entry.epoch
        return UNDEFINED_END

    # -- commands ----------------------------------------------------------------------------------------------------

    def entered(self, epoch: int, start_offset: int) -> EpochHistory:
        """A leader of `epoch` begins at `start_offset`. An epoch that is no news changes nothing."""
        if epoch <= self.latest_epoch:
            return self
        # An entry that begins no earlier wrote nothing that is still there.
        kept = tuple(entry for entry in self.entries if entry.start_offset < start_offset)
        return EpochHistory((*kept, EpochEntry(epoch, start_offset)))

    def truncated(self, log_end_offset: int) -> EpochHistory:
        """The log was cut: everything from `log_end_offset` on is gone."""
        if not self.entries or self.entries[-1].start_offset < log_end_offset:
            return self
        return EpochHistory(tuple(entry for entry in self.entries if entry.start_offset < log_end_offset))

    def head_deleted(self, log_start_offset: int) -> EpochHistory:
        """The log begins at `log_start_offset` now; the epoch that holds it begins there."""
        if len(self.entries) < 2 or self.entries[1].start_offset > log_start_offset:
            return self
        gone = [entry for entry in self.entries if entry.start_offset <= log_start_offset]
        rest = self.entries[len(gone) :]
        return EpochHistory((EpochEntry(gone[-1].epoch, log_start_offset), *rest))

    def _check(self) -> None:
        for before, after in zip(self.entries, self.entries[1:]):  # noqa: B905 (one shorter on purpose)
            assert before.epoch < after.epoch, (before, after)
            assert before.start_offset < after.start_offset, (before, after)


def diverging_end(
    history: EpochHistory, log_end_offset: int, last_fetched_epoch: int, fetch_offset: int
) -> EpochEnd | None:
    """The leader's answer to a follower that holds [.., fetch_offset), the last of it of `last_fetched_epoch`.

    None: the follower's log is a prefix of the leader's. Else the epoch end it has to truncate to. UNDEFINED_END:
    the leader knows nothing of that epoch, the follower is out of range.
    Source: KIP-595 "truncate on fetch"; Kafka UnifiedLog.readRecords in Partition.fetchRecords.
    """
    if last_fetched_epoch == UNDEFINED:
        return None  # the follower has nothing that could differ
    end = history.end_of(last_fetched_epoch, log_end_offset)
    if end.end_offset == UNDEFINED:
        return UNDEFINED_END
    if end.epoch < last_fetched_epoch or end.end_offset < fetch_offset:
        return end
    return None


def truncation_target(history: EpochHistory, log_end_offset: int, leader_end: EpochEnd) -> int:
    """Where a follower cuts its log that the leader said ends with `leader_end`.

    If the follower never saw the epoch the leader names, it cuts to the end of its largest smaller epoch and asks again:
    its next fetch carries that epoch (KIP-279, two steps).
    Source: Kafka AbstractFetcherThread.getOffsetTruncationState.
    """
    own = history.end_of(leader_end.epoch, log_end_offset)
    if own.end_offset == UNDEFINED:
        return min(leader_end.end_offset, log_end_offset)
    if own.epoch != leader_end.epoch:
        return min(own.end_offset, log_end_offset)
    return min(own.end_offset, leader_end.end_offset, log_end_offset)
