"""What must hold of transactions and groups after every step, whatever fails. As `checkers`, which has the shape.

Sources: SEMANTICS 3.5.11 to 3.5.19, 3.6.1, 3.6.5; Adya's anomalies of read committed (G1a aborted reads, G1b torn reads).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from streamlog.batch import ControlType, parse_batch
from streamlog.core.cluster_image import TRANSACTION_STATE_TOPIC
from streamlog.core.transaction import State, decode_value
from streamlog.testing.checkers import Checker, CommittedBatch, CommittedLog, ReplicaChange

if TYPE_CHECKING:
    from streamlog.record import Record


class ExactlyOnce(Checker):
    """Of what a `pipeline` has committed nothing is there twice, torn, or of an aborted transaction; what was seen stays.

    Looks at values `<partition>.<offset>=<transaction>`.
    """

    def __init__(self) -> None:
        self.copied: dict[tuple[int, int], tuple[int, int]] = {}
        """Of each record read: where its copy is."""
        self._fates: dict[int, tuple[int, str]] = {}
        """By number: how many records, and what its worker was told."""

    def on_transaction(self, number: int, records: int, fate: str) -> None:
        """A worker was told how its transaction ended: committed, aborted, fenced, in doubt."""
        self._fates[number] = (records, fate)

    def on_copies(self, records: Iterable[Record]) -> None:
        """Somebody who reads committed records was given these."""
        for record in records:
            source, _, number = (record.value or b"").partition(b"=")
            records_of, fate = self._fates.get(int(number), (0, "open"))
            if fate == "aborted":
                self.fail(f"{record} was read; transaction {int(number)} of {records_of} was aborted")
            partition, _, offset = source.partition(b".")
            place = record.partition, record.offset
            known = self.copied.setdefault((int(partition), int(offset)), place)
            if known != place:
                self.fail(
                    f"orders-{int(partition)} offset {int(offset)} was copied to {known} and to {place}"
                )

    def on_all_copies(self, records: Iterable[Record]) -> None:
        """These are all there are, at the end."""
        there = Counter(int((record.value or b"").partition(b"=")[2]) for record in records)
        for number, (count, fate) in self._fates.items():
            if there[number] not in (0, count) or (fate == "committed" and there[number] != count):
                self.fail(f"transaction {number} is {fate}; {there[number]} of its {count} records are there")


class StableOffset(Checker):
    """The last stable offset never passes a transaction without a marker below the high watermark (SEMANTICS 3.5.13)."""

    def __init__(self) -> None:
        self._open: dict[CommittedLog, dict[int, int]] = {}

    def on_batches(self, change: ReplicaChange, batches: list[CommittedBatch], from_offset: int) -> None:
        if not change.is_leader or change.log.is_exempt or change.log.is_compacted:
            return
        if from_offset <= change.after.log_start_offset:
            self._open[change.log] = {}  # read from the beginning
        opened = self._open.setdefault(change.log, {})
        for batch in batches:
            if batch.is_control:
                opened.pop(batch.producer_id, None)
            elif batch.is_transactional:
                opened.setdefault(batch.producer_id, batch.base_offset)
        first, stable = (
            min(opened.values(), default=change.after.high_watermark),
            change.after.last_stable_offset,
        )
        if stable > max(first, change.after.log_start_offset):
            self.fail(f"{change}: last stable offset {stable}, open from {first} on")


class MarkersFollowDecisions(Checker):
    """A marker is replicated only after the decision that it tells is, in the coordinator's log (SEMANTICS 3.5.11)."""

    def __init__(self) -> None:
        self._decided: set[tuple[int, int, bool]] = set()
        self._markers: list[tuple[ReplicaChange, tuple[int, int, bool]]] = []

    def on_batches(self, change: ReplicaChange, batches: list[CommittedBatch], from_offset: int) -> None:
        is_coordinators = change.log.topic == TRANSACTION_STATE_TOPIC
        for batch in batches if change.is_leader else ():
            if is_coordinators:
                self._decided.update(batch.decided)
            else:
                self._markers += [(change, marker) for marker in batch.decided]

    def on_step(self) -> None:
        markers, self._markers = self._markers, []
        for change, marker in markers:
            if marker not in self._decided:
                producer_id, epoch, is_commit = marker
                what = "commits" if is_commit else "aborts"
                self.fail(
                    f"{change}: a marker {what} producer {producer_id}, epoch {epoch}: nobody has decided that"
                )


def decisions(topic: str, data: bytes) -> tuple[tuple[int, int, bool], ...]:
    """What a batch says of the ends of transactions: a marker, or records of `__transaction_state`."""
    batch = parse_batch(data)
    if batch.is_control:
        kind = batch.control_record().kind
        if kind not in (ControlType.COMMIT, ControlType.ABORT):
            return ()
        return ((batch.producer_id, batch.producer_epoch, kind is ControlType.COMMIT),)
    if topic != TRANSACTION_STATE_TOPIC:
        return ()
    states = [decode_value(record.value) for record in batch.records(topic, 0, 0) if record.value is not None]
    return tuple(
        (one.producer_id, one.producer_epoch, one.state in _COMMITS) for one in states if one.state in _ENDS
    )


_COMMITS = (State.PREPARE_COMMIT, State.COMPLETE_COMMIT)
_ENDS = (*_COMMITS, State.PREPARE_ABORT, State.COMPLETE_ABORT)


class OneOwner(Checker):
    """Of the members that a group has now each partition has one owner at most (SEMANTICS 3.6.5)."""

    def __init__(self) -> None:
        self.members: dict[Any, None] = {}
        self._seen: list[tuple[Any, ...]] = []

    def on_step(self) -> None:
        seen = [
            (consumer, member, member._hosted, member._hosted.view, tuple(consumer._assigned))
            for consumer in self.members
            if (member := consumer._membership) is not None and not member._hosted.is_gone
        ]
        if seen != self._seen:  # most steps change nothing of this
            self._seen = seen
            self._look()

    def _look(self) -> None:
        owners: dict[tuple[Any, Any], Any] = {}
        for consumer, membership, hosted, view, assigned in self._seen:
            if not any(member.member_id == membership.member_id for member in view.members):
                continue  # dropped, and does not know it yet
            for place in assigned:
                other = owners.setdefault((hosted, place), consumer)
                if other is not consumer:
                    self.fail(f"{place} belongs to {other._membership} and to {membership}")


class CommitsMonotonic(Checker):
    """What a group has committed for a partition never goes back, but where somebody resets it."""

    def __init__(self) -> None:
        self._committed: dict[tuple[str, Any], int] = {}

    def on_offsets(self, group_id: str, offsets: dict[Any, int]) -> None:
        """Somebody was told these."""
        for place, offset in offsets.items():
            before = self._committed.get((group_id, place), -1)
            if offset < before:
                self.fail(f"group {group_id}: {place} was committed at {before}, and is at {offset}")
            self._committed[group_id, place] = offset
