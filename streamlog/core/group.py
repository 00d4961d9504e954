"""The coordinator's side of one consumer group: membership, generations, committed offsets (sans-I/O).

    request ---> handle ---> Decision: records for __consumer_offsets, the new volatile state, replies by
    token time    ---> on_deadline --^                  |
    log     ---> replay, finish_loading           +---> apply

This file is the machine: what it holds, how decisions get in and out. The rules are beside it:
`group_membership` (join, sync, heartbeat, leave), `group_rebalance` (join phase, time), `group_offsets`
(commits, expiry, deleting), on a `group_draft`, over the values of `group_state` and `group_events`;
`group_records` has the bytes.

A parked JoinGroup or SyncGroup is answered by a later decision, through its token. Time: `now_ms` is the
monotonic clock of deadlines; `wall_ms` stamps what is stored (commits, the change to Empty), and is
`now_ms` where it is not given.

Invariants (beside those of `GroupState.check`):
 1. `apply` and `replay` are the only mutators. A decision fits the version of the state it was made from;
    applied again it is recognised and changes nothing.
 2. The generation never falls.
 3. `committed` is the fold of the offset records; those of a transaction count once it is committed.

Sources: Kafka GroupCoordinatorShard, ClassicGroup, OffsetMetadataManager; SEMANTICS 3.6.
Not implemented: KIP-848 and share groups; deleting a group's machine (the host drops a machine whose state is
Dead, or that `is_vacant`, and makes a new one on demand).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from typing_extensions import assert_never

from streamlog.core import group_membership, group_offsets, group_rebalance
from streamlog.core.group_draft import GroupChanged, GroupDraft
from streamlog.core.group_events import (
    DeleteGroup,
    ExpireOffsets,
    ExtendDeadlines,
    GroupEvent,
    Heartbeat,
    JoinGroup,
    LeaveGroup,
    OffsetCommit,
    OffsetDelete,
    StaleOffsets,
    SyncGroup,
    TopicsDeleted,
    TxnOffsetCommit,
)
from streamlog.core.group_records import (
    CommittedOffset,
    GroupKey,
    OffsetKey,
    decode_group_value,
    decode_key,
    decode_offset_value,
    encode_offset_key,
)
from streamlog.core.group_state import GroupLimits, GroupState, GroupView, State, from_stored
from streamlog.core.held_records import HeldRecords
from streamlog.core.machine import Decision, Key, Value
from streamlog.errors import CoordinatorNotAvailableError, GroupIdNotFoundError
from streamlog.record import OffsetAndMetadata, TopicPartition


class GroupMachine:
    """One group. The host calls it inside a turn; `view` and `committed` may be read from any thread."""

    def __init__(
        self,
        group_id: str,
        limits: GroupLimits,
        incarnation: str,
        new_member_id: Callable[[str], str],
    ) -> None:
        """A group nobody has heard of.

        incarnation:    of this opening of the cluster; in-process members of another are dropped after
        loading.
        new_member_id:  makes an id, never used before, from a client or instance id.
        """
        self.group_id = group_id
        self.limits = limits
        self.incarnation = incarnation
        self._new_member_id = new_member_id
        self._group = GroupState()
        self._offsets: dict[TopicPartition, CommittedOffset] = {}
        self._held = HeldRecords()
        """Offsets that transactions still open are about to commit."""
        self._are_offsets_shared = (
            False  # with the machine this one is a fork of: copied before the first write
        )
        self._shape = self._group  # the state, not counting the heartbeats since
        self._view: tuple[GroupState, GroupView] | None = None  # a shape and the view of it

    # -- queries -------------------------------------------------------------------------------------------

    @property
    def is_vacant(self) -> bool:
        """Nobody would miss this machine: no members, nothing stored."""
        return self._group.is_vacant and not self._offsets and not self._held

    @property
    def state(self) -> State:
        return self._group.state

    def view(self) -> GroupView:
        cached, shape = self._view, self._shape
        if cached is None or cached[0] is not shape:
            cached = self._view = (shape, GroupView.of(self.group_id, shape))
        return cached[1]

    def committed(self, topic: str, partition: int) -> OffsetAndMetadata | None:
        stored = self._offsets.get(TopicPartition(topic, partition))
        if stored is None:
            return None
        return OffsetAndMetadata(stored.offset, stored.metadata, stored.leader_epoch)

    def is_stable(self, topic: str, partition: int) -> bool:
        """Whether no open transaction is about to commit another offset (KIP-447)."""
        return (
            not self._held
            or encode_offset_key(self.group_id, TopicPartition(topic, partition)) not in self._held
        )

    def all_committed(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """Every committed offset, sorted by partition."""
        return {
            partition: OffsetAndMetadata(stored.offset, stored.metadata, stored.leader_epoch)
            for partition, stored in sorted(self._offsets.copy().items())
        }

    def drop_stale_offsets(self, topic_ids: Mapping[str, str]) -> tuple[TopicPartition, ...]:
        """While loading: forget offsets committed for another topic than the one that has the name now.

        topic_ids:  of the topics there are. Offsets without an id are believed.
        """
        stale = tuple(
            partition
            for partition, stored in sorted(self._offsets.items())
            if stored.topic_id and topic_ids.get(partition[0], stored.topic_id) != stored.topic_id
        )
        for partition in stale:
            del self._offsets[partition]
        return stale

    def next_deadline_ms(self) -> int | None:
        """When `on_deadline` has something to do, if nothing else happens before."""
        return min(self._group.deadlines_ms(), default=None)

    # -- decisions: nothing below changes the machine ------------------------------------------------------

    def handle(self, event: GroupEvent, now_ms: int, wall_ms: int | None = None) -> Decision[GroupChanged]:
        draft = self._draft(now_ms, wall_ms)
        if self._group.state is State.DEAD:
            _refuse(draft, event)
            return draft.finish()
        match event:
            case Heartbeat():
                group_membership.heartbeat(draft, event)
            case OffsetCommit() | TxnOffsetCommit():
                group_offsets.commit(draft, self._offsets, event)
            case JoinGroup():
                group_membership.join(draft, event)
            case SyncGroup():
                group_membership.sync(draft, event)
            case LeaveGroup():
                group_membership.leave(draft, event)
            case OffsetDelete():
                group_offsets.delete_offsets(draft, self._offsets, event)
            case DeleteGroup():
                group_offsets.delete_group(draft, self._offsets, self._held, event)
            case ExpireOffsets():
                group_offsets.expire_offsets(draft, self._offsets, self._held)
            case TopicsDeleted():
                group_offsets.forget_topics(draft, self._offsets, self._held, event.topics)
            case StaleOffsets():
                group_offsets.bury(draft, self._offsets, event.partitions)
            case ExtendDeadlines():
                group_rebalance.extend_deadlines(draft, event.by_ms)
            case _:
                assert_never(event)
        return draft.finish()

    def on_deadline(self, now_ms: int, wall_ms: int | None = None) -> Decision[GroupChanged]:
        """What time alone brings: sessions, timeouts, the join phase. Empty when nothing is due."""
        draft = self._draft(now_ms, wall_ms)
        group_rebalance.expire(draft)
        return draft.finish()

    def finish_loading(self, now_ms: int, wall_ms: int | None = None) -> Decision[GroupChanged]:
        """After the last `replay`: drop members of other incarnations, begin the sessions of the others."""
        draft = self._draft(now_ms, wall_ms)
        group_rebalance.finish_loading(draft, self.incarnation)
        return draft.finish()

    def fork(self) -> GroupMachine:
        """A machine with the same state, to apply decisions to while a turn decides. Costs nothing."""
        other = GroupMachine(self.group_id, self.limits, self.incarnation, self._new_member_id)
        other._group = self._group
        other._shape = self._shape
        other._offsets = self._offsets
        other._held = self._held.copy()
        other._are_offsets_shared = True
        return other

    def _draft(self, now_ms: int, wall_ms: int | None) -> GroupDraft:
        return GroupDraft(
            self.group_id,
            self._group,
            self.limits,
            self._new_member_id,
            now_ms,
            now_ms if wall_ms is None else wall_ms,
        )

    # -- mutators ------------------------------------------------------------------------------------------

    def apply(self, records: Iterable[tuple[Key, Value]], changes: Iterable[GroupChanged]) -> None:
        """Take over a decision whose records are committed. Again is harmless.

        The group record is not read back: the change beside it holds all of it (a test compares the two).
        """
        for key, value in records:
            self._replay_offset(key, value)
        for change in changes:
            self._adopt(change.state)

    def hold(self, producer_id: int, records: Iterable[tuple[Key, Value]]) -> None:
        """Take over committed records of an open transaction. Again is harmless."""
        for key, value in records:
            self._held.hold(producer_id, key, value)

    def end_transaction(self, producer_id: int, is_commit: bool) -> None:
        """A transaction has its marker: what it held counts, or never did. Again is harmless."""
        for key, value in self._held.end(producer_id, is_commit):
            self._store_offset(key, value)

    def replay(self, key: Key, value: Value, now_ms: int) -> None:
        """Take over one record of the log while loading. Raises CorruptRecordError.

        now_ms:  of no use yet, since sessions begin with `finish_loading`; part of the shape of machines.
        """
        match decode_key(key):
            case OffsetKey():
                self._replay_offset(key, value)
            case GroupKey(group_id):
                assert group_id == self.group_id, f"record of group {group_id} replayed to {self.group_id}"
                group = GroupState() if value is None else from_stored(decode_group_value(value))
                group.version = self._group.version + 1
                self._group = self._shape = group
            case None:
                pass  # a kind this version does not know

    def _replay_offset(self, key: Key, value: Value) -> None:
        if self._held:
            self._held.written(key)
        self._store_offset(key, value)

    def _store_offset(self, key: Key, value: Value) -> None:
        match decode_key(key):
            case OffsetKey(group_id, partition):
                assert group_id == self.group_id, f"record of group {group_id} replayed to {self.group_id}"
                if self._are_offsets_shared:
                    self._offsets = self._offsets.copy()
                    self._are_offsets_shared = False
                if value is None:
                    self._offsets.pop(partition, None)
                else:
                    self._offsets[partition] = decode_offset_value(value)
            case _:
                pass

    def _adopt(self, group: GroupState) -> None:
        present = self._group
        if group.version <= present.version:
            return  # applied before: the turn was cut short after it
        assert group.version == present.version + 1, (
            f"decision for {group.version - 1}, the group is at {present.version}"
        )
        assert group.generation >= present.generation, (
            f"generation {present.generation} => {group.generation}"
        )
        if not group.differs_in_sessions_only(present):  # a heartbeat must stay cheap
            if __debug__:
                group.check()
            self._shape = group
        self._group = group


def _refuse(draft: GroupDraft, event: GroupEvent) -> None:
    """A dead group: the host will look for the group again, and find or make a new one."""
    match event:
        case DeleteGroup() | OffsetDelete():
            draft.reply(event.token, GroupIdNotFoundError(f"there is no group {draft.group_id!r}"))
        case ExpireOffsets() | TopicsDeleted() | StaleOffsets() | ExtendDeadlines():
            pass
        case _:
            draft.reply(
                event.token, CoordinatorNotAvailableError(f"group {draft.group_id} was deleted: ask again")
            )


@lru_cache(4096)
def group_partition(group_id: str, partitions: int = 50) -> int:
    """The partition of `__consumer_offsets` that keeps the group: Java's abs(hashCode()) % partitions."""
    code = 0
    units = group_id.encode(
        "utf-16-be", "surrogatepass"
    )  # Java hashes UTF-16 code units, lone surrogates too
    for position in range(0, len(units), 2):
        code = (code * 31 + (units[position] << 8 | units[position + 1])) & 0xFFFFFFFF
    if code >= 2**31:
        code -= 2**32
    # Kafka's Utils.abs: the smallest int has no absolute value in Java, and counts as 0.
    return (0 if code == -(2**31) else abs(code)) % partitions
