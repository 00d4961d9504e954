"""The offsets of one partition replica, and the rules that move them (sans-I/O).

    |log_start ......... last_stable ......... high_watermark ......... log_end)
     first readable      first open txn        first not replicated     next to be written

`ReplicaState` is immutable: a decision returns the state that will hold after the commit, the broker stages it in its
turn, writes it into the checkpoint in the same transaction, and makes it current in `apply`. Dropping a staged state
is all there is to an abort.

Invariants (checked by `_check`):
 1. 0 <= log_start_offset <= high_watermark <= log_end_offset.
 2. The high watermark never decreases while the leader epoch stays, except by a truncation.
 3. Leader epochs in the history rise strictly; their start offsets do not fall and are <= log_end_offset.
 4. One replica alone in its ISR: high watermark = log end offset (SEMANTICS 3.2.6).

Sources: Kafka `UnifiedLog`, `Partition`, `LeaderEpochFileCache`; KIP-101.
Followers and the ISR are `core.leadership`'s, epochs `core.leader_epochs`'.
Transactions are `core.producer_state`'s; what of them concerns readers is `first_unstable_offset`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from streamlog.errors import OffsetOutOfRangeError

HIGH_WATERMARK: Final = -1
"""As a target of `delete_records`: everything that is replicated (Kafka's DeleteRecords -1)."""


class ReplicaState(msgspec.Struct, frozen=True, gc=False):
    """Where one replica stands. Offsets are half-open: `log_end_offset` is the next to be written."""

    log_start_offset: int = 0
    high_watermark: int = 0
    log_end_offset: int = 0
    leader_epoch: int = 0
    size_bytes: int = 0
    max_timestamp: int = -1
    truncation_count: int = 0
    first_unstable_offset: int = -1
    """Of the earliest transaction that is open, or whose marker is not below the high watermark; -1 = there is none. Not
    stored: it follows from the producers' states, and is set as a state is published."""

    @property
    def last_stable_offset(self) -> int:
        """Where readers of committed records stop (SEMANTICS 3.5.13)."""
        if self.first_unstable_offset < 0:
            return self.high_watermark
        return max(self.log_start_offset, min(self.high_watermark, self.first_unstable_offset))

    def _check(self) -> None:
        assert 0 <= self.log_start_offset <= self.high_watermark, self
        assert self.high_watermark <= self.log_end_offset, self


def appended(state: ReplicaState, record_offsets: int, stored_bytes: int, max_timestamp: int) -> ReplicaState:
    """The leader, alone in its ISR, appended one batch that takes `record_offsets` offsets."""
    end = state.log_end_offset + record_offsets
    return ReplicaState(
        state.log_start_offset,
        end,
        end,
        state.leader_epoch,
        state.size_bytes + stored_bytes,
        max_timestamp if max_timestamp > state.max_timestamp else state.max_timestamp,
        state.truncation_count,
    )


def replicated(state: ReplicaState, end_offset: int, stored_bytes: int, max_timestamp: int) -> ReplicaState:
    """One batch more, that ends before `end_offset`; the high watermark waits until others are known to have it."""
    return ReplicaState(
        state.log_start_offset,
        state.high_watermark,
        end_offset,
        state.leader_epoch,
        state.size_bytes + stored_bytes,
        max_timestamp if max_timestamp > state.max_timestamp else state.max_timestamp,
        state.truncation_count,
    )


def moves_only_mark(before: ReplicaState, after: ReplicaState) -> bool:
    """Whether nothing but the high watermark differs: that need not be durable at once."""
    return (
        after.log_end_offset == before.log_end_offset
        and after.log_start_offset == before.log_start_offset
        and after.size_bytes == before.size_bytes
        and after.truncation_count == before.truncation_count
        and after.leader_epoch == before.leader_epoch
    )


def head_deleted(state: ReplicaState, log_start_offset: int, deleted_bytes: int) -> ReplicaState:
    """The start moved up (never down) and `deleted_bytes` of batches are gone."""
    return msgspec.structs.replace(
        state,
        log_start_offset=max(state.log_start_offset, log_start_offset),
        size_bytes=max(0, state.size_bytes - deleted_bytes),
    )


def truncated(
    state: ReplicaState, log_end_offset: int, deleted_bytes: int, max_timestamp: int
) -> ReplicaState:
    """The tail from `log_end_offset` on is gone; readers of the old tail must notice."""
    end = max(state.log_start_offset, min(state.log_end_offset, log_end_offset))
    return msgspec.structs.replace(
        state,
        log_end_offset=end,
        high_watermark=min(state.high_watermark, end),
        size_bytes=max(0, state.size_bytes - deleted_bytes),
        max_timestamp=max_timestamp,
        truncation_count=state.truncation_count + 1,
    )


def recoded(state: ReplicaState, size_change_bytes: int) -> ReplicaState:
    """Compaction swapped batches: the offsets stay, the bytes change; readers between two batches must look again."""
    return msgspec.structs.replace(
        state,
        size_bytes=max(0, state.size_bytes + size_change_bytes),
        truncation_count=state.truncation_count + 1,
    )


def delete_records_target(state: ReplicaState, before_offset: int, topic: str, partition: int) -> int:
    """The new log start offset that `delete_records(before_offset)` asks for.

    Raises   OffsetOutOfRangeError for an offset below -1 or above the high watermark.
    Source   Kafka `Partition.deleteRecordsOnLeader`: -1 means the high watermark; the start never moves back.
    """
    target = state.high_watermark if before_offset == HIGH_WATERMARK else before_offset
    if not 0 <= target <= state.high_watermark:
        raise OffsetOutOfRangeError(
            f"cannot delete the records of {topic}-{partition} before offset {before_offset}; "
            f"allowed: -1 (the high watermark), or 0 to {state.high_watermark}",
            topic=topic,
            partition=partition,
            offset=before_offset,
            high_watermark=state.high_watermark,
        )
    return max(target, state.log_start_offset)
