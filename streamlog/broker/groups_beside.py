"""Groups of a cluster read beside its owner: `__consumer_offsets` folded here, record by record as it grows.

What is not in the log is not known here: who is waiting to join, when sessions end. A group whose last record
names members shows them, if they belong to the opening of the cluster that owns the directory now; members of
a killed process are left out, as the next owner would drop them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from streamlog.broker.checkpointing import decode_offsets
from streamlog.core.cluster_image import CONSUMER_OFFSETS_TOPIC
from streamlog.core.group import GroupMachine, group_partition
from streamlog.core.group_records import decode_key
from streamlog.core.group_state import GroupLimits, GroupView
from streamlog.core.held_records import HeldRecords, settled_records
from streamlog.record import OffsetAndMetadata, TopicPartition
from streamlog.storage import log
from streamlog.storage.env import Snapshot
from streamlog.storage.fold_checkpoints import load_fold

if TYPE_CHECKING:
    from streamlog.broker.reading_beside import ClusterBeside

_READ_BYTES: Final = 4 * 1024 * 1024


class GroupBeside(msgspec.Struct, frozen=True):
    """A group as its log has it now."""

    group_id: str
    machine: GroupMachine
    view: GroupView


class OffsetsFold:
    """One partition of `__consumer_offsets`, folded up to `offset`."""

    __slots__ = ("held", "latest", "log_id", "machines", "offset")

    def __init__(self, log_id: int) -> None:
        self.log_id = log_id
        self.offset = 0
        self.machines: dict[str, GroupMachine] = {}
        self.latest: dict[bytes, bytes] = {}
        self.held = HeldRecords()

    def start_from_checkpoint(self, snapshot: Snapshot) -> bool:
        """Begin at the checkpoint the owner's fold left; False if there is none that can be read: it is a cache."""
        saved = load_fold(snapshot, self.log_id)
        if saved is None:
            return False
        try:
            self.offset, latest = decode_offsets(saved)
        except msgspec.DecodeError:
            return False
        for key, value in latest.items():
            self.replay(key, value)
        return True

    def advance(self, snapshot: Snapshot, end_offset: int, bytes_max: int = _READ_BYTES) -> bool:
        """Fold some more records below `end_offset`; False when there are none left. Raises
        CorruptRecordError.
        """
        if self.offset >= end_offset:
            return False
        found = log.read(snapshot, self.log_id, self.offset, end_offset, bytes_max)
        for batch in found:
            for key, value in settled_records(self.held, batch, CONSUMER_OFFSETS_TOPIC, 0, self.offset):
                self.replay(key, value)
            self.offset = batch.next_offset
        if not found:
            self.offset = end_offset
        return self.offset < end_offset

    def replay(self, key: bytes, value: bytes | None) -> None:
        decoded = decode_key(key)
        if decoded is None:
            return  # a kind of record this version does not know
        if value is None:
            self.latest.pop(key, None)
        else:
            self.latest[key] = value
        machine = self.machines.get(decoded.group_id)
        if machine is None:
            machine = self.machines[decoded.group_id] = GroupMachine(
                decoded.group_id, GroupLimits(), "", _no_new_member
            )
        machine.replay(key, value, 0)


def _no_new_member(client_id: str) -> str:
    raise AssertionError("nobody joins a group here")


class GroupsBeside:
    """The look-ups of a coordinator, for those who do not own the cluster."""

    def __init__(self, cluster: ClusterBeside) -> None:
        self._cluster = cluster
        self._folds: dict[int, OffsetsFold] = {}
        self._lock = cluster.runtime.lock()

    def group(self, group_id: str) -> GroupBeside | None:
        """The group, or None if nobody has ever joined it or committed for it."""
        topic = self._cluster.topics.get(CONSUMER_OFFSETS_TOPIC)
        if topic is None:
            return None
        with self._lock:
            fold = self._follow(group_partition(group_id, len(topic.partitions)))
            machine = fold.machines.get(group_id)
            return None if machine is None else self._seen_now(machine)

    def groups(self) -> list[GroupBeside]:
        """All groups, by name."""
        topic = self._cluster.topics.get(CONSUMER_OFFSETS_TOPIC)
        if topic is None:
            return []
        with self._lock:
            machines: dict[str, GroupMachine] = {}
            for number in range(len(topic.partitions)):
                machines.update(self._follow(number).machines)
            return [self._seen_now(machines[group_id]) for group_id in sorted(machines)]

    def committed(
        self, group_id: str, partitions: list[TopicPartition] | None
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """Committed positions of the named partitions (None: all that have one); those without one are left
        out.
        """
        group = self.group(group_id)
        if group is None:
            return {}
        if partitions is None:
            return group.machine.all_committed()
        found = ((partition, group.machine.committed(*partition)) for partition in partitions)
        return {partition: offset for partition, offset in found if offset is not None}

    def hosted(self, group_id: str) -> NoReturn:
        self._cluster.refuse_write(f"joining group {group_id!r}")

    def _follow(self, number: int) -> OffsetsFold:
        partition = self._cluster.partition(CONSUMER_OFFSETS_TOPIC, number)
        fold = self._folds.get(number)
        more = True
        while more:
            view, snapshot = self._cluster.open_view(partition)
            try:
                if fold is None or fold.log_id != partition.log_id or fold.offset > view.high_watermark:
                    fold = self._folds[number] = OffsetsFold(partition.log_id)
                    fold.start_from_checkpoint(snapshot)
                fold.offset = max(fold.offset, view.log_start_offset)
                more = fold.advance(snapshot, view.high_watermark)
            finally:
                snapshot.close()
        assert fold is not None
        return fold

    def _seen_now(self, machine: GroupMachine) -> GroupBeside:
        """The group without members of openings that are over."""
        fork = machine.fork()
        if fork.view().members:
            incarnation = self._cluster.owner_incarnation()
            if incarnation != "":  # a live owner that does not say which: then its members are believed
                fork.incarnation = incarnation or "nobody"
                decision = fork.finish_loading(0)
                fork.apply(decision.records, decision.changes)
        return GroupBeside(machine.group_id, fork, fork.view())
