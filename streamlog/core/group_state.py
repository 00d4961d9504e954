"""What a group is between two events: its members, its generation, who waits for what.

                 join                        all joined,              leader's
    Empty ------------> PreparingRebalance ----------> Completing- -----------> Stable
      | ^                 |    ^      ^     or timeout  Rebalance       sync      |
      | +-- nobody came --+    |      |                    |                      |
      |                        |      +- join, leave, expiry                      |
      v                        +---------------- join, leave, expiry -------------+
    Dead   (deleted, or its last offset expired)

A `GroupState` inside a Decision, a view or a machine is never changed again; a rule works on a `copy()`.
Members are frozen and replaced whole. Copying costs the dicts, not the members: 2 us for a group of 100.

Invariants (checked by `GroupState.check`, after each apply under __debug__):
 1. Empty and Dead have no members; CompletingRebalance and Stable have at least one.
 2. The leader is a member wherever there are members; no members, no leader.
 3. CompletingRebalance and Stable have a protocol, and every member supports it.
 4. `static_members` is exactly the instance ids of the members.
 5. A join is parked only in PreparingRebalance, a sync only in CompletingRebalance.
 6. A member has a session deadline unless it is parked; a new member has one always (it cannot heartbeat,
    so its parked join is what expires).
 7. There is a rebalance deadline exactly in PreparingRebalance, and a sync deadline exactly where
    somebody's sync is awaited.
 8. A pending id (given by MEMBER_ID_REQUIRED, not yet back) is no member. Awaited and late syncs are of
    members, and late ones are in PreparingRebalance only.
 9. The generation never falls (checked by the machine, which sees both states).

Sources: Kafka ClassicGroup, ClassicGroupState, ClassicGroupMember; KIP-62 (rebalance timeout), KIP-345
(static members).
Not implemented: states of KIP-848 groups; conversion between classic and consumer groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Final

import msgspec

from streamlog.core.consumer_protocol import subscribed_topics
from streamlog.core.group_records import NO_TIMESTAMP, StoredGroup, StoredMember, incarnation_of
from streamlog.errors import CorruptRecordError

NEW_MEMBER_JOIN_TIMEOUT_MS: Final = 300_000
"""A new member's parked join is dropped after this (Kafka: group.new.member.join.timeout.ms)."""


class State(Enum):
    """The states of a group, named as Kafka's admin tools show them."""

    EMPTY = "Empty"
    """No members; may still have offsets. Also a group used for commits only.

    action:      sync, heartbeat => UNKNOWN_MEMBER_ID; commit without generation => stored; others =>
    ILLEGAL_GENERATION
    transition:  join => PREPARING_REBALANCE; deleted, last offset expired => DEAD
    """
    PREPARING_REBALANCE = "PreparingRebalance"
    """The group waits for its members to join the next generation.

    action:      join => parked; heartbeat => REBALANCE_IN_PROGRESS; sync => the same, or the assignment of the
                 generation that ended, if its leader gave one; commit of the current generation => stored
    transition:  all joined, or the rebalance timeout with somebody => COMPLETING_REBALANCE; nobody left =>
    EMPTY
    """
    COMPLETING_REBALANCE = "CompletingRebalance"
    """The generation exists; the group waits for the leader's assignment.

    action:      sync => parked until the leader's; heartbeat => answered; commit => REBALANCE_IN_PROGRESS;
                 join with the same metadata => the current generation again
    transition:  the leader's sync => STABLE; join with new metadata, new member, leave, expiry =>
    PREPARING_REBALANCE
    """
    STABLE = "Stable"
    """Everybody can have its assignment.

    action:      sync => the assignment; heartbeat => answered; commit => stored; a follower's join with the
    same
                 metadata => the current generation; a static member's return => its old assignment
    transition:  join of a new member, of the leader, with new metadata; leave; expiry => PREPARING_REBALANCE
    """
    DEAD = "Dead"
    """Deleted; the host drops the machine and looks for a new one.

    action:      all => COORDINATOR_NOT_AVAILABLE (delete => GROUP_ID_NOT_FOUND)
    transition:  none
    """


VALID_PREVIOUS: Final[dict[State, frozenset[State]]] = {
    State.EMPTY: frozenset({State.PREPARING_REBALANCE}),
    State.PREPARING_REBALANCE: frozenset({State.STABLE, State.COMPLETING_REBALANCE, State.EMPTY}),
    State.COMPLETING_REBALANCE: frozenset({State.PREPARING_REBALANCE}),
    State.STABLE: frozenset({State.COMPLETING_REBALANCE}),
    State.DEAD: frozenset({State.EMPTY}),  # Kafka's table allows all; nothing of ours takes another way
}


class GroupLimits(msgspec.Struct, frozen=True, gc=False):
    """The cluster's bounds for groups (Kafka's names: group.*, offsets.*, offset.metadata.max.bytes)."""

    session_timeout_min_ms: int = 6_000
    session_timeout_max_ms: int = 1_800_000
    members_max: int = 2**31 - 1
    initial_rebalance_delay_ms: int = 0
    """How long an empty group waits for more members before its first generation. Kafka: 3,000."""
    offsets_retention_ms: int = 10_080 * 60_000
    offset_metadata_characters_max: int = 4_096


class Member(msgspec.Struct, frozen=True, gc=False):
    """One member. Replaced, never changed."""

    member_id: str
    group_instance_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    session_timeout_ms: int
    protocol_type: str
    protocols: tuple[tuple[str, bytes], ...]
    assignment: bytes = b""
    join_token: int | None = None
    """The last JoinGroup of this member: parked, or already answered (then a repetition is recognised)."""
    is_joining: bool = False
    """`join_token` is parked."""
    sync_token: int | None = None
    """The parked SyncGroup."""
    is_new: bool = False
    """Its first join is not answered yet: it does not know its id, so it cannot heartbeat."""

    @property
    def incarnation(self) -> str:
        return incarnation_of(self.client_host)

    @property
    def is_static(self) -> bool:
        return self.group_instance_id is not None

    @property
    def is_parked(self) -> bool:
        return self.is_joining or self.sync_token is not None

    def metadata(self, protocol: str | None) -> bytes:
        """The subscription bytes for one protocol; empty for one the member does not support."""
        return next((metadata for name, metadata in self.protocols if name == protocol), b"")

    def supports(self, protocol: str | None) -> bool:
        return any(name == protocol for name, _ in self.protocols)


class Pending(msgspec.Struct, frozen=True, gc=False):
    """An id that was given with MEMBER_ID_REQUIRED and has not come back yet."""

    deadline_ms: int
    token: int


class GroupState(msgspec.Struct):
    """Everything about a group but its committed offsets."""

    version: int = 0
    """Counts the decisions applied; a decision fits the version before its own."""
    state: State = State.EMPTY
    generation: int = 0
    protocol_type: str | None = None
    """None: never had members, a group of commits only."""
    protocol: str | None = None
    leader: str | None = None
    members: dict[str, Member] = {}
    """By member id, in the order of joining."""
    static_members: dict[str, str] = {}
    """group.instance.id -> member id."""
    pending: dict[str, Pending] = {}
    sessions: dict[str, int] = {}
    """member id -> when it is dropped if nothing is heard of it."""
    awaited_syncs: dict[str, None] = {}
    """Members that have not asked for the assignment of this generation; dropped at `sync_deadline_ms`."""
    sync_deadline_ms: int | None = None
    late_syncs: dict[str, None] = {}
    """PreparingRebalance came from Stable: members that have not asked for that generation's assignment yet, and may."""
    rebalance_deadline_ms: int | None = None
    is_initial_rebalance: bool = False
    """PreparingRebalance came from Empty: it ends by its delay only, not when all have joined."""
    initial_remaining_ms: int = 0
    """By how much the initial delay may still grow as members keep coming."""
    has_newcomer: bool = False
    """A member came during the initial delay: wait once more."""
    state_timestamp_ms: int = NO_TIMESTAMP
    """Wall clock of the last change of state; offsets expire by it."""
    is_stored: bool = False
    """A group record is in the log, so deleting the group takes a tombstone."""

    def copy(self) -> GroupState:
        """A state to work on. Members are shared: they are frozen."""
        return msgspec.structs.replace(
            self,
            members=self.members.copy(),
            static_members=self.static_members.copy(),
            pending=self.pending.copy(),
            sessions=self.sessions.copy(),
            awaited_syncs=self.awaited_syncs.copy(),
            late_syncs=self.late_syncs.copy(),
        )

    # -- queries -------------------------------------------------------------------------------------------

    @property
    def is_vacant(self) -> bool:
        """Nothing would be lost by forgetting this (but look for committed offsets)."""
        return not (self.members or self.pending or self.is_stored) and self.state is State.EMPTY

    @property
    def all_joined(self) -> bool:
        return not self.pending and all(member.is_joining for member in self.members.values())

    def rebalance_timeout_ms(self) -> int:
        return max((member.rebalance_timeout_ms for member in self.members.values()), default=0)

    def deadlines_ms(self) -> Iterator[int]:
        yield from self.sessions.values()
        for pending in self.pending.values():
            yield pending.deadline_ms
        if self.rebalance_deadline_ms is not None:
            yield self.rebalance_deadline_ms
        if self.sync_deadline_ms is not None:
            yield self.sync_deadline_ms

    def supports_protocols(self, protocol_type: str, protocols: tuple[tuple[str, bytes], ...]) -> bool:
        """May a member that speaks these sit in this group?"""
        if not protocol_type or not protocols:
            return False
        if not self.members:
            return True
        if protocol_type != self.protocol_type:
            return False
        return any(all(member.supports(name) for member in self.members.values()) for name, _ in protocols)

    def select_protocol(self) -> str:
        """Each member votes for the first of its protocols that all support; the most votes win.

        A tie goes to the protocol voted for first, in the order of joining (Kafka leaves it to a hash map's
        order).
        """
        names = [frozenset(name for name, _ in member.protocols) for member in self.members.values()]
        common = frozenset.intersection(*names)
        votes: dict[str, int] = {}
        for member in self.members.values():
            choice = next((name for name, _ in member.protocols if name in common), None)
            assert choice is not None, (
                f"{member.member_id} shares no protocol with the group: {member.protocols}"
            )
            votes[choice] = votes.get(choice, 0) + 1
        return max(votes, key=votes.__getitem__)

    def subscribed_topics(self) -> frozenset[str] | None:
        """Topics the members of a consumer group read; None where the group's protocol does not tell."""
        if self.protocol_type != "consumer":
            return None
        topics: set[str] = set()
        for member in self.members.values():
            protocols = member.protocols
            if self.protocol is not None:
                protocols = ((self.protocol, member.metadata(self.protocol)),)
            of_member = subscribed_topics(protocols)
            if of_member is None:
                return None
            topics |= of_member
        return frozenset(topics)

    def differs_in_sessions_only(self, other: GroupState) -> bool:
        """The same but for when sessions end, which is all that heartbeats and commits change."""
        return (
            self.members == other.members
            and self.sessions.keys() == other.sessions.keys()
            and msgspec.structs.replace(self, sessions=other.sessions, version=other.version) == other
        )

    # -- the stored form -----------------------------------------------------------------------------------

    def to_stored(self) -> StoredGroup:
        return StoredGroup(
            self.protocol_type,
            self.generation,
            self.protocol,
            self.leader,
            self.state_timestamp_ms,
            tuple(
                StoredMember(
                    member.member_id,
                    member.group_instance_id,
                    member.client_id,
                    member.client_host,
                    member.rebalance_timeout_ms,
                    member.session_timeout_ms,
                    member.metadata(self.protocol),
                    member.assignment,
                )
                for member in self.members.values()
            ),
        )

    def check(self) -> None:
        """Assert the module's invariants."""
        state, members = self.state, self.members
        if state in (State.EMPTY, State.DEAD):  # 1
            assert not members, f"1: {state.value} with members {list(members)}"
        if state in (State.COMPLETING_REBALANCE, State.STABLE):
            assert members, f"1: {state.value} without members"
            assert self.protocol is not None, f"3: {state.value} without a protocol"
            for member in members.values():
                assert member.supports(self.protocol), (
                    f"3: {member.member_id} does not support {self.protocol}"
                )
        assert (self.leader in members) == bool(members), (
            f"2: leader {self.leader} of members {list(members)}"
        )
        assert members or self.leader is None, f"2: leader {self.leader} of nobody"
        static = {
            m.group_instance_id: m.member_id for m in members.values() if m.group_instance_id is not None
        }
        assert static == self.static_members, f"4: {self.static_members} but members are {static}"
        for member in members.values():
            if member.is_joining:
                assert state is State.PREPARING_REBALANCE, (
                    f"5: join of {member.member_id} parked in {state.value}"
                )
                assert member.join_token is not None, f"5: {member.member_id} joins without a token"
            if member.sync_token is not None:
                assert state is State.COMPLETING_REBALANCE, (
                    f"5: sync of {member.member_id} parked in {state.value}"
                )
            has_session = member.member_id in self.sessions
            assert has_session == (member.is_new or not member.is_parked), (
                f"6: {member.member_id} {has_session=} new={member.is_new} parked={member.is_parked}"
            )
        assert self.sessions.keys() <= members.keys(), f"6: sessions {list(self.sessions)} of {list(members)}"
        has_deadline = self.rebalance_deadline_ms is not None
        assert has_deadline == (state is State.PREPARING_REBALANCE), (
            f"7: deadline {has_deadline} in {state.value}"
        )
        assert (self.sync_deadline_ms is not None) == bool(self.awaited_syncs), (
            f"7: sync deadline {self.sync_deadline_ms}, awaited {list(self.awaited_syncs)}"
        )
        assert not (self.pending.keys() & members.keys()), (
            f"8: {list(self.pending)} pending, {list(members)} members"
        )
        assert self.awaited_syncs.keys() <= members.keys(), f"8: syncs of {list(self.awaited_syncs)} awaited"
        assert self.late_syncs.keys() <= members.keys(), f"8: late syncs of {list(self.late_syncs)}"
        assert not self.late_syncs or state is State.PREPARING_REBALANCE, f"8: late syncs in {state.value}"


def from_stored(stored: StoredGroup) -> GroupState:
    """The state a group record stands for. Sessions begin when the loading is finished."""
    members: dict[str, Member] = {}
    for member in stored.members:
        members[member.member_id] = Member(
            member.member_id,
            member.group_instance_id,
            member.client_id,
            member.client_host,
            member.rebalance_timeout_ms,
            member.session_timeout_ms,
            stored.protocol_type or "",
            ((stored.protocol or "", member.subscription),),
            member.assignment,
        )
    static_members = {
        m.group_instance_id: m.member_id for m in members.values() if m.group_instance_id is not None
    }
    if len(members) < len(stored.members) or len(static_members) < sum(m.is_static for m in members.values()):
        raise CorruptRecordError("GroupMetadataValue: two members with one id", members=list(members))
    leader = stored.leader if stored.leader in members else next(iter(members), None)
    return GroupState(
        state=State.STABLE if members else State.EMPTY,
        generation=stored.generation,
        protocol_type=stored.protocol_type,
        protocol=(stored.protocol or "") if members else None,
        leader=leader,
        members=members,
        static_members=static_members,
        state_timestamp_ms=stored.state_timestamp_ms,
        is_stored=True,
    )


class MemberView(msgspec.Struct, frozen=True, gc=False):
    member_id: str
    group_instance_id: str | None
    client_id: str
    client_host: str
    metadata: bytes
    """The subscription for the chosen protocol."""
    assignment: bytes


class GroupView(msgspec.Struct, frozen=True, gc=False):
    """What others may see of a group: immutable, published at the end of a turn."""

    group_id: str
    state: State
    generation: int
    protocol_type: str | None
    protocol: str | None
    leader: str | None
    members: tuple[MemberView, ...]

    @classmethod
    def of(cls, group_id: str, group: GroupState) -> GroupView:
        is_stable = group.state is State.STABLE
        members = tuple(
            MemberView(
                member.member_id,
                member.group_instance_id,
                member.client_id,
                member.client_host,
                member.metadata(group.protocol),
                member.assignment if is_stable else b"",
            )
            for member in group.members.values()
        )
        return cls(
            group_id,
            group.state,
            group.generation,
            group.protocol_type,
            group.protocol,
            group.leader,
            members,
        )
