"""Reading a partition without the turn lock: the read protocol.

    view --> open snapshot --> view again --> same? --> read the batches between offset and the bound of the view
                                   |
                                   +-- leader epoch, start offset or truncation count differ: try again

The snapshot was opened between two equal views, so it holds at least what the view promises, and nothing that was cut
off in between. No snapshot outlives the call.

A truncation takes bytes away that the view still promises until it is published. So its partition says `is_cutting` from
before the commit until after the publishing, and readers try again meanwhile. Bytes at the head are deleted in a later
turn than the one that published the start above them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from streamlog.batch import Batch
from streamlog.broker.partition import Partition
from streamlog.core.replica import ReplicaState
from streamlog.errors import (
    CorruptRecordError,
    NotLeaderOrFollowerError,
    OffsetOutOfRangeError,
    StreamlogError,
)
from streamlog.record import OffsetAndTimestamp
from streamlog.storage import log
from streamlog.storage.env import Environment, Snapshot

if TYPE_CHECKING:
    from streamlog.broker.runner import Waiter
    from streamlog.storage.cleaned_transactions import AbortedTransaction

READ_UNCOMMITTED = "read_uncommitted"
CUTTING_LOOK_MS: Final = 1


def view_of(partition: Partition) -> ReplicaState:
    """The published view. Raises NotLeaderOrFollowerError where the partition is not served."""
    view = partition.view
    if view is None or not partition.serves:
        raise NotLeaderOrFollowerError(
            f"{partition.topic}-{partition.number} is not served here: another broker leads it, its topic was deleted, "
            "or the cluster is closing",
            topic=partition.topic,
            partition=partition.number,
        )
    return view


def end_for(view: ReplicaState, isolation_level: str) -> int:
    """Where a client must stop reading: SEMANTICS 3.2.5."""
    return view.high_watermark if isolation_level == READ_UNCOMMITTED else view.last_stable_offset


def aborted_of(
    partition: Partition, snapshot: Snapshot, offset: int, end_offset: int
) -> list[AbortedTransaction]:
    """What readers of committed records step over between two offsets. Of a partition with producers only."""
    from streamlog.storage.aborted import aborted_between

    return aborted_between(snapshot, partition.log_id, offset, end_offset)


def same_log(before: ReplicaState, after: ReplicaState | None) -> bool:
    """Whether what a snapshot taken between the two holds belongs to `before`."""
    return after is not None and (
        after is before
        or (
            after.leader_epoch == before.leader_epoch
            and after.log_start_offset == before.log_start_offset
            and after.truncation_count == before.truncation_count
        )
    )


class LogReader:
    """Reads of one environment by any thread."""

    __slots__ = ("_environment", "_waiter")

    def __init__(self, environment: Environment, waiter: Callable[[], Waiter]) -> None:
        """waiter: makes what a reader waits with while a turn cuts the log."""
        self._environment = environment
        self._waiter = waiter

    def open(self, partition: Partition) -> tuple[ReplicaState, Snapshot]:
        """A view and a snapshot that belong together. The caller closes the snapshot, soon."""
        while True:
            view = view_of(partition)
            opened = self._open_at(partition, view)
            if opened is not None:
                return view, opened

    def open_follower(self, partition: Partition) -> tuple[ReplicaState, Snapshot]:
        """The same of a follower, for consumers in its rack (KIP-392). Raises NotLeaderOrFollowerError if it is none."""
        while True:
            view = partition.view
            if view is None or partition.leader_id < 0 or partition.role_epoch < 0:
                raise NotLeaderOrFollowerError(
                    f"{partition.topic}-{partition.number} is not followed here any more",
                    topic=partition.topic,
                    partition=partition.number,
                )
            opened = self._open_at(partition, view)
            if opened is not None:
                return view, opened

    def open_as_replica(self, partition: Partition) -> tuple[ReplicaState, Snapshot]:
        """The same for the brokers themselves, who read replicas that no client may."""
        while True:
            view = partition.view or view_of(partition)  # which says why there is none
            opened = self._open_at(partition, view)
            if opened is not None:
                return view, opened

    def _open_at(self, partition: Partition, view: ReplicaState) -> Snapshot | None:
        """A snapshot that holds what the view promises; None: the log was cut meanwhile."""
        snapshot = self._environment.snapshot()
        # In this order: once it is not cutting any more, the new view is there to be seen.
        if not partition.is_cutting and same_log(view, partition.view):
            return snapshot
        snapshot.close()
        if partition.is_cutting:
            self._waiter().wait(CUTTING_LOOK_MS)  # a commit takes what it takes, on a slow disk long
        return None

    def read(
        self,
        partition: Partition,
        offset: int,
        bytes_max: int,
        isolation_level: str = READ_UNCOMMITTED,
        check_crcs: bool = True,
    ) -> tuple[ReplicaState, list[Batch]]:
        """The batches from `offset` to the isolation level's end, whole, at least one if there is any.

        Raises   OffsetOutOfRangeError, CorruptRecordError, NotLeaderOrFollowerError.
        """
        meters = partition.meters
        begun_us = meters.begin_fetch()
        view, snapshot = self.open(partition)
        try:
            check_range(partition, view, offset)
            end = end_for(view, isolation_level)
            if offset >= end:
                return view, []
            batches = log.read(snapshot, partition.log_id, offset, end, bytes_max, check_crcs)
            messages, size_bytes = (
                sum([b.record_count for b in batches]),
                sum([b.size_bytes for b in batches]),
            )
            meters.fetched(messages, size_bytes, begun_us)
            return view, batches
        except OffsetOutOfRangeError as error:
            meters.fetch_failed(error)
            raise
        except CorruptRecordError as error:
            meters.fetch_failed(error)
            raise corrupt_at(partition.topic, partition.number, offset, error) from error
        finally:
            snapshot.close()

    def offset_for_timestamp(
        self, partition: Partition, timestamp: int, isolation_level: str = READ_UNCOMMITTED
    ) -> OffsetAndTimestamp | None:
        """The first offset in offset order whose record is not older; None if there is none. SEMANTICS 3.8.2."""
        view, snapshot = self.open(partition)
        try:
            end = end_for(view, isolation_level)
            return log.offset_for_timestamp(snapshot, partition.log_id, view.log_start_offset, end, timestamp)
        except CorruptRecordError as error:
            raise corrupt_at(partition.topic, partition.number, None, error) from error
        finally:
            snapshot.close()


def corrupt_at(
    topic: str, number: int, offset: int | None, error: StreamlogError, last_offset: int | None = None
) -> CorruptRecordError:
    """The error for a damaged batch, with what a reader needs to go on behind it.

    offset:       the first offset that cannot be read (None: only the batch's last one is known).
    last_offset:  of the batch; None = the error knows it.
    """
    if last_offset is None:
        last_offset = error.facts.get("last_offset", offset)  # type: ignore[assignment]
    if last_offset is None:
        last_offset = -1
    first = last_offset if offset is None else offset
    return CorruptRecordError(
        f"{topic}-{number} is corrupt at offset {first}, up to {last_offset}: {error}. The rest is readable: go on at "
        f"next_offset={last_offset + 1}; `streamlog verify` shows all damage",
        topic=topic,
        partition=number,
        offset=first,
        next_offset=last_offset + 1,
        last_offset=last_offset,
    )


def check_range(partition: Partition, view: ReplicaState, offset: int) -> None:
    """Kafka: below the start or above the end is an error; between high watermark and end is an empty answer."""
    if not view.log_start_offset <= offset <= view.log_end_offset:
        raise OffsetOutOfRangeError(
            f"offset {offset} of {partition.topic}-{partition.number} is out of range; "
            f"allowed: {view.log_start_offset} to {view.log_end_offset}",
            topic=partition.topic,
            partition=partition.number,
            offset=offset,
            log_start_offset=view.log_start_offset,
            log_end_offset=view.log_end_offset,
        )
