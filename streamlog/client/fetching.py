"""What a consumer holds of one partition: where it stands, what is decoded and not yet handed out.

    log |....committed....position|== buffer, decoded, not handed out ==|fetch_offset........|end
                          ^ next record handed out                       ^ next offset to read

Invariants (checked by `_check`):
 1. position <= fetch_offset; the buffer holds exactly the visible records in [position, fetch_offset).
 2. The position moves only when records are handed out, by a seek, or over offsets that hold no visible record.
 3. Each batch is decoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from streamlog.broker.partition import Partition
from streamlog.broker.purgatory import Subscription
from streamlog.broker.reading import (
    READ_UNCOMMITTED,
    LogReader,
    aborted_of,
    check_range,
    corrupt_at,
    end_for,
)
from streamlog.core.leader_epochs import UNDEFINED
from streamlog.errors import CorruptRecordError, DeserializationError, OffsetOutOfRangeError
from streamlog.record import Record, TopicPartition
from streamlog.storage.records import read_records

if TYPE_CHECKING:
    from streamlog.client.measuring import ConsumerTraffic
    from streamlog.core.replica import ReplicaState
    from streamlog.storage.cleaned_transactions import AbortedTransaction
    from streamlog.storage.env import Snapshot

UNKNOWN_OFFSET: Final = -1
FIRST_FETCH_BYTES: Final = 64 * 1024
"""The first fetch after an assignment or a seek asks for so much, each one after it for four times more: the first record
need not wait for ten thousand others to be decoded.
"""

Deserializer = Callable[[Any], Any]


class AssignedPartition:
    """One partition a consumer reads."""

    __slots__ = (
        "tp", "partition", "replica", "is_chosen",
        "subscription", "position", "fetch_offset", "buffer", "next_index", "paused", "end_offset",
        "revoking", "lag_end", "committed_position", "reset_position", "is_resetting", "uncommitted_from",
        "traffic", "fetched_bytes", "_next_fetch_bytes",
        "epochs",
    )  # fmt: skip

    def __init__(self, tp: TopicPartition, partition: Partition) -> None:
        self.tp = tp
        self.partition = partition  # at its leader
        self.replica = partition  # where we read: there, or at a follower in our rack
        self.is_chosen = False  # whether it was looked for since leaders last changed
        self.subscription: Subscription | None = None
        self.position = UNKNOWN_OFFSET
        self.fetch_offset = UNKNOWN_OFFSET
        self.buffer: list[Record] = []
        self.next_index = 0
        self.paused = False
        self.end_offset: int | None = None
        self.revoking = False
        self.lag_end = 0
        # What a commit of ours said last; avoids committing the same again.
        self.committed_position = UNKNOWN_OFFSET
        # Of the first record handed out since the last commit: where an aborted transaction goes back to.
        self.uncommitted_from = UNKNOWN_OFFSET
        # Where auto_offset_reset put us; UNKNOWN_OFFSET when we came from a commit or a seek.
        self.reset_position = UNKNOWN_OFFSET
        # Out of range, and the reset has not found a place yet: what is committed is of no use.
        self.is_resetting = False
        self.traffic: ConsumerTraffic | None = None
        self.epochs = partition.epochs  # of the leader we read from, when we last did
        self.fetched_bytes = 0  # by the last fetch, until it is counted
        self._next_fetch_bytes = FIRST_FETCH_BYTES

    def __repr__(self) -> str:
        return f"AssignedPartition({self.tp}, position={self.position}, buffered={self.buffered})"

    @property
    def buffered(self) -> int:
        return len(self.buffer) - self.next_index

    def seek(self, offset: int) -> None:
        """Stand at `offset`; what was decoded is dropped."""
        self.position = self.fetch_offset = offset
        self.uncommitted_from = self.reset_position = UNKNOWN_OFFSET
        self.is_resetting = False
        self.buffer = []
        self.next_index = 0
        self._next_fetch_bytes = FIRST_FETCH_BYTES

    def committed(self, offset: int) -> None:
        """A commit has stored this position."""
        self.committed_position = offset
        # Who iterates over the buffer goes on without telling: what comes is not committed.
        is_behind = offset < self.position or self.next_index < len(self.buffer)
        self.uncommitted_from = offset if is_behind else UNKNOWN_OFFSET

    @property
    def has_uncommitted(self) -> bool:
        """Whether records were handed out that no commit covers."""
        return UNKNOWN_OFFSET != self.uncommitted_from < self.position

    def parts_at(self, partition: Partition) -> int | None:
        """Where another leader's log parts from what we have read (an unclean election), else None.

        Source: KIP-320, OffsetsForLeaderEpoch.
        """
        epoch = self.epochs.epoch_of(self.position - 1) if self.position > 0 else UNDEFINED
        view = partition.view
        if epoch == UNDEFINED or view is None:
            return None
        end = partition.epochs.end_of(epoch, view.log_end_offset)
        if end.end_offset == UNDEFINED or end.end_offset >= self.position:
            return None
        return end.end_offset

    def open(self, reader: LogReader) -> tuple[ReplicaState, Snapshot]:
        """A view of the replica we read, and a snapshot of its store."""
        replica = self.replica
        return reader.open(replica) if replica is self.partition else reader.open_follower(replica)

    def fetch(self, reader: LogReader, bytes_max: int, isolation_level: str, check_crcs: bool) -> bool:
        """Decode what is there at the fetch offset into the empty buffer. Returns whether there may be more behind it.

        Raises   OffsetOutOfRangeError, CorruptRecordError, NotLeaderOrFollowerError; nothing moved.
        """
        partition, offset = self.replica, self.fetch_offset
        meters = partition.meters
        begun_us = meters.begin_fetch()
        view, snapshot = self.open(reader)
        try:
            check_range(partition, view, offset)
            end = self.lag_end = end_for(view, isolation_level)
            if self.end_offset is not None and self.end_offset < end:
                end = self.end_offset  # `stop_at_end`: what came later is not asked for
            if offset >= end:
                return False
            aborted: Sequence[AbortedTransaction] = ()
            if partition.producers is not None and isolation_level != READ_UNCOMMITTED:
                aborted = aborted_of(partition, snapshot, offset, end)
            found = read_records(
                snapshot,
                partition.log_id,
                self.tp.topic,
                self.tp.partition,
                offset,
                end,
                min(bytes_max, self._next_fetch_bytes),
                check_crcs,
                aborted,
            )
        except OffsetOutOfRangeError as error:
            meters.fetch_failed(error)
            raise
        except CorruptRecordError as error:
            meters.fetch_failed(error)
            raise corrupt_at(*self.tp, offset, error) from error
        finally:
            snapshot.close()
        self.fetched_bytes = found.size_bytes
        took_us = meters.fetched(len(found.records), found.size_bytes, begun_us)
        if self.traffic is not None:
            self.traffic.fetched(self.tp.topic, len(found.records), found.size_bytes, took_us / 1_000)
        if self._next_fetch_bytes < bytes_max:
            self._next_fetch_bytes *= 4
        # Nothing found: compaction left nothing between here and the end.
        self.epochs = partition.epochs
        self.fetch_offset = offset = end if found.next_offset is None else found.next_offset
        self.buffer = found.records
        self.next_index = 0
        if not found.records:
            self.position = offset
        return offset < end

    def take(
        self, count_max: int, deserialize_key: Deserializer | None, deserialize_value: Deserializer | None
    ) -> list[Record]:
        """Hand out up to `count_max` buffered records and move the position behind them.

        Raises   DeserializationError if the very first cannot be read; later ones end the list before them.
        """
        start, buffer = self.next_index, self.buffer
        end = min(start + count_max, len(buffer))
        records = buffer if start == 0 and end == len(buffer) else buffer[start:end]
        if deserialize_key is not None or deserialize_value is not None:
            records = self._deserialized(records, deserialize_key, deserialize_value)
            end = start + len(records)
        # Only now does anything move: an error or an interrupt above costs no record.
        if self.uncommitted_from == UNKNOWN_OFFSET and records:
            self.uncommitted_from = self.position
        if end == len(buffer):
            self.position = self.fetch_offset
            self.buffer, self.next_index = [], 0
        else:
            if records:
                self.position = records[-1].offset + 1
            self.next_index = end
        return records

    def _deserialized(
        self, records: list[Record], key: Deserializer | None, value: Deserializer | None
    ) -> list[Record]:
        done: list[Record] = []
        for record in records:
            try:
                done.append(
                    Record(
                        record.topic,
                        record.partition,
                        record.offset,
                        record.timestamp,
                        record.key if key is None else key(record.key),
                        record.value if value is None else value(record.value),
                        record.headers,
                    )
                )
            except DeserializationError as error:
                if done:
                    return done
                raise DeserializationError(
                    f"record {record.offset} of {self.tp} cannot be read: {error}; "
                    f"to skip it, seek to {record.offset + 1}",
                    topic=record.topic,
                    partition=record.partition,
                    offset=record.offset,
                    next_offset=record.offset + 1,
                    record=record,
                ) from error
        return done

    def _check(self) -> None:
        assert self.position <= self.fetch_offset, self
        assert 0 <= self.next_index <= len(self.buffer), self
