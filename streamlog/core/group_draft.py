"""One decision about a group in the making: a copy of its state, and what will leave the machine with it.

    GroupMachine.handle ---> GroupDraft(copy of the state) ---> rules in group_membership, group_offsets
    ---> finish()

The rules change the draft freely; the machine itself stays as it was until `apply`. Invariants of a draft:
 1. `_become` is the only way to another state of the group, and asserts the table of transitions.
 2. A parked request is answered exactly once: `answer_join` and `answer_sync` unpark it.
 3. A decision holds at most one group record, written from the finished state.

Sources: Kafka GroupMetadataManager (classic part), which spreads this over callbacks and timers.
Not implemented: nothing of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from streamlog.core.group_records import encode_group_key, encode_group_value
from streamlog.core.group_state import VALID_PREVIOUS, GroupLimits, GroupState, Member, State
from streamlog.core.machine import Decision, Key, Reply, Value, check_transition
from streamlog.errors import (
    FencedInstanceIdError,
    StreamlogError,
    UnknownMemberIdError,
)


class GroupChanged(msgspec.Struct, frozen=True, gc=False):
    """The whole new state of the group. Applied a second time, it is recognised by its version."""

    state: GroupState


class GroupDraft:
    """The state of a group while one event is decided."""

    __slots__ = (
        "_base",
        "_is_group_record_due",
        "group",
        "group_id",
        "limits",
        "new_member_id",
        "now_ms",
        "records",
        "replies",
        "wall_ms",
    )

    def __init__(
        self,
        group_id: str,
        base: GroupState,
        limits: GroupLimits,
        new_member_id: Callable[[str], str],
        now_ms: int,
        wall_ms: int,
    ) -> None:
        self._base = base
        self._is_group_record_due = False
        self.group = base.copy()
        self.group_id = group_id
        self.limits = limits
        self.new_member_id = new_member_id
        self.now_ms = now_ms
        self.wall_ms = wall_ms
        self.records: list[tuple[Key, Value]] = []
        self.replies: list[Reply] = []

    def finish(self) -> Decision[GroupChanged]:
        if self._is_group_record_due:
            self.group.is_stored = True
            self.records.append((encode_group_key(self.group_id), encode_group_value(self.group.to_stored())))
        changes = []
        if self.group != self._base:
            self.group.version = self._base.version + 1
            changes.append(GroupChanged(self.group))
        return Decision(self.records, changes, self.replies)

    # -- effects -------------------------------------------------------------------------------------------

    def reply(self, token: int, answer: object | StreamlogError) -> None:
        self.replies.append((token, answer))

    def store_group(self) -> None:
        """Let the group record go with this decision."""
        self._is_group_record_due = True

    def become(self, state: State) -> None:
        check_transition(VALID_PREVIOUS, self.group.state, state)
        self.group.state = state
        self.group.state_timestamp_ms = self.wall_ms

    # -- members -------------------------------------------------------------------------------------------

    def put(self, member: Member) -> Member:
        self.group.members[member.member_id] = member
        return member

    def start_session(self, member: Member) -> None:
        """The member lives. A parked member owes no sign of life, a new one cannot give any."""
        if not member.is_parked and not member.is_new:
            self.group.sessions[member.member_id] = self.now_ms + member.session_timeout_ms

    def answer_join(self, member: Member, answer: object | StreamlogError) -> Member:
        """Answer the member's parked join, if there is one. Its session begins."""
        if member.is_joining:
            assert member.join_token is not None, f"{member.member_id} joins without a token"
            self.reply(member.join_token, answer)
        member = self.put(msgspec.structs.replace(member, is_joining=False, is_new=False))
        self.start_session(member)
        return member

    def answer_sync(self, member: Member, answer: object | StreamlogError) -> Member:
        """Answer the member's parked sync, if there is one. Its session begins anew."""
        if member.sync_token is None:
            return member
        self.reply(member.sync_token, answer)
        member = self.put(msgspec.structs.replace(member, sync_token=None))
        self.start_session(member)
        return member

    def stop_awaiting_sync(self, member_id: str) -> None:
        self.group.awaited_syncs.pop(member_id, None)
        if not self.group.awaited_syncs:
            self.group.sync_deadline_ms = None

    def remove(self, member_id: str) -> None:
        """Take the member out. What it waits for is answered: it may join as somebody new."""
        group = self.group
        member = group.members[member_id]
        error = UnknownMemberIdError(
            f"{member_id} is no longer in group {self.group_id}", member_id=member_id
        )
        member = self.answer_sync(self.answer_join(member, error), error)
        del group.members[member_id]
        group.sessions.pop(member_id, None)
        self.stop_awaiting_sync(member_id)
        group.late_syncs.pop(member_id, None)
        if member.group_instance_id is not None:
            del group.static_members[member.group_instance_id]
        if group.leader == member_id:
            group.leader = next(iter(group.members), None)

    def validate_member(self, member_id: str, group_instance_id: str | None) -> StreamlogError | None:
        """Is this a member, and the one that holds its instance id? (ClassicGroup.validateMember)"""
        group = self.group
        if group_instance_id is not None:
            holder = group.static_members.get(group_instance_id)
            if holder is not None and holder != member_id:
                return FencedInstanceIdError(
                    f"{group_instance_id} in group {self.group_id} is now {holder}, not {member_id}",
                    group_instance_id=group_instance_id,
                    member_id=member_id,
                )
            if holder is None:
                return self.unknown_member(member_id)
        return None if member_id in group.members else self.unknown_member(member_id)

    def unknown_member(self, member_id: str) -> StreamlogError:
        return UnknownMemberIdError(f"group {self.group_id} has no member {member_id!r}", member_id=member_id)
