"""What members ask for - join, sync, heartbeat, leave: the classic rebalance protocol.

    member           coordinator (here)                                     leader's assignor
    JoinGroup  --->  parked ... all joined: generation + 1, protocol by vote
               <---  generation, leader; the leader gets all subscriptions  --->  assign
    SyncGroup  --->  parked ...                          <--- SyncGroup(assignments) of the leader
               <---  assignment                group record stored, Stable

Each function is one rule over a `GroupDraft`. The rules follow Kafka's GroupMetadataManager branch by branch;
where a branch is ours, the comment says so. The join phase itself, and what time does, are in
`group_rebalance`.

Sources: Kafka GroupMetadataManager.classicGroupJoin, classicGroupSync, classicGroupHeartbeat,
classicGroupLeave; KIP-62 (rebalance timeout), KIP-134 (initial delay), KIP-345 (static members), KIP-389
(group.max.size), KIP-394 (MEMBER_ID_REQUIRED), KIP-814 (static leader need not assign).
Not implemented: conversion to and from KIP-848 groups.
"""

from __future__ import annotations

import msgspec

from streamlog.core.consumer_protocol import subscribed_topics
from streamlog.core.group_draft import GroupDraft
from streamlog.core.group_events import (
    Heartbeat,
    HeartbeatReply,
    JoinGroup,
    LeaveGroup,
    LeaveGroupReply,
    LeavingMember,
    SyncGroup,
    SyncGroupReply,
)
from streamlog.core.group_rebalance import joined_reply, maybe_complete_join, rebalance_or_complete
from streamlog.core.group_records import client_host_of
from streamlog.core.group_state import (
    NEW_MEMBER_JOIN_TIMEOUT_MS,
    GroupState,
    Member,
    Pending,
    State,
)
from streamlog.core.kafka_types import is_storable
from streamlog.errors import (
    FencedInstanceIdError,
    GroupMaxSizeReachedError,
    IllegalGenerationError,
    InconsistentGroupProtocolError,
    InvalidGroupIdError,
    InvalidRequestError,
    InvalidSessionTimeoutError,
    MemberIdRequiredError,
    RebalanceInProgressError,
    StreamlogError,
)

# -- join --------------------------------------------------------------------------------------------------


def join(draft: GroupDraft, event: JoinGroup) -> None:
    group, limits = draft.group, draft.limits
    if not draft.group_id or not is_storable(draft.group_id):
        draft.reply(event.token, InvalidGroupIdError(f"{draft.group_id[:100]!r} is no group id"))
        return
    texts = (
        event.client_id,
        event.group_instance_id or "",
        event.protocol_type,
        *(p for p, _ in event.protocols),
    )
    if not all(map(is_storable, texts)):
        draft.reply(
            event.token, InvalidRequestError("an id or a protocol name is too long or no Unicode text")
        )
        return
    if not limits.session_timeout_min_ms <= event.session_timeout_ms <= limits.session_timeout_max_ms:
        draft.reply(
            event.token,
            InvalidSessionTimeoutError(
                f"session timeout {event.session_timeout_ms} ms; this cluster allows "
                f"{limits.session_timeout_min_ms} to {limits.session_timeout_max_ms}",
                session_timeout_ms=event.session_timeout_ms,
            ),
        )
        return
    if _join_again(draft, event):
        return
    if not _has_room(draft, event):
        if event.member_id in group.members:
            draft.remove(event.member_id)
            maybe_complete_join(draft)
        draft.reply(
            event.token,
            GroupMaxSizeReachedError(f"group {draft.group_id} may have {limits.members_max} members"),
        )
    elif not group.supports_protocols(event.protocol_type, event.protocols):
        names = ", ".join(name for name, _ in event.protocols) or "none"
        error = InconsistentGroupProtocolError(
            f"no protocol in common with group {draft.group_id}: {event.protocol_type!r}, {names}",
            protocol_type=event.protocol_type,
        )
        draft.reply(event.token, error)
    elif event.member_id:
        _join_known(draft, event)
    else:
        _join_unknown(draft, event)


def _join_again(draft: GroupDraft, event: JoinGroup) -> bool:
    """Ours: the same request handed in twice. Parked: it stays so. Answered: the same answer."""
    group = draft.group
    for member in group.members.values():
        if member.join_token == event.token:
            if not member.is_joining:
                draft.reply(event.token, joined_reply(group, member))
            return True
    for member_id, pending in group.pending.items():
        if pending.token == event.token:
            draft.reply(event.token, _member_id_required(member_id))
            return True
    return False


def _has_room(draft: GroupDraft, event: JoinGroup) -> bool:
    """KIP-389. While preparing, those who have rejoined count: the last to come are turned away."""
    group, members_max = draft.group, draft.limits.members_max
    if group.state is State.EMPTY:
        return True
    # Ours: a static member that comes back takes the place it has; Kafka turns it away from a full group.
    holder = group.static_members.get(event.group_instance_id or "")
    member = group.members.get(event.member_id or holder or "")
    if group.state is State.PREPARING_REBALANCE:
        if member is not None and member.is_joining:
            return True
        return sum(m.is_joining for m in group.members.values()) < members_max
    return member is not None or len(group.members) < members_max


def _join_unknown(draft: GroupDraft, event: JoinGroup) -> None:
    """A member without an id: new, or a static one that comes back."""
    member_id = event.new_member_id or draft.new_member_id(event.group_instance_id or event.client_id)
    if event.group_instance_id is not None:
        if event.group_instance_id in draft.group.static_members:
            _return_static(draft, event, member_id)
        else:
            _add_member(draft, event, member_id)
    elif event.require_known_member_id:
        # KIP-394: without the detour, a client that retries a slow first join leaves a ghost member each
        # time.
        draft.group.pending[member_id] = Pending(draft.now_ms + event.session_timeout_ms, event.token)
        draft.reply(event.token, _member_id_required(member_id))
    else:
        _add_member(draft, event, member_id)


def _join_known(draft: GroupDraft, event: JoinGroup) -> None:
    group = draft.group
    if event.member_id in group.pending:
        if event.group_instance_id is None:
            _add_member(draft, event, event.member_id)
        else:  # a static member is never given a pending id: it must come without one, to find its place
            draft.reply(event.token, draft.unknown_member(event.member_id))
        return
    error = draft.validate_member(event.member_id, event.group_instance_id)
    if error is not None:
        draft.reply(event.token, error)
        return
    member = group.members[event.member_id]
    is_changed = member.protocols != event.protocols
    # In Stable the leader's join always rebalances: it saw something no subscription shows, such as new
    # partitions.
    is_rebalance = is_changed or (group.state is State.STABLE and group.leader == member.member_id)
    if group.state is State.PREPARING_REBALANCE or is_rebalance:
        _update_member(draft, member, event)
        rebalance_or_complete(draft)
    else:
        # It did not get the answer to its former join: the generation is unchanged, it may go on to sync.
        draft.reply(event.token, joined_reply(group, member))


def _add_member(draft: GroupDraft, event: JoinGroup, member_id: str) -> None:
    group = draft.group
    member = Member(
        member_id,
        event.group_instance_id,
        event.client_id,
        client_host_of(event.incarnation) if event.incarnation else event.client_host,
        event.rebalance_timeout_ms,
        event.session_timeout_ms,
        event.protocol_type,
        event.protocols,
        join_token=event.token,
        is_joining=True,
        is_new=True,
    )
    if not group.members:
        group.protocol_type = event.protocol_type
        group.leader = member_id
    draft.put(member)
    if event.group_instance_id is not None:
        group.static_members[event.group_instance_id] = member_id
    group.pending.pop(member_id, None)
    # It cannot heartbeat before it has an answer, and nobody sees a connection break while its join is
    # parked.
    group.sessions[member_id] = draft.now_ms + NEW_MEMBER_JOIN_TIMEOUT_MS
    if group.is_initial_rebalance:
        group.has_newcomer = True
    rebalance_or_complete(draft)


def _update_member(draft: GroupDraft, member: Member, event: JoinGroup) -> Member:
    """Park the join of a member we know, with what it says now."""
    if member.is_joining:
        assert member.join_token is not None, f"{member.member_id} joins without a token"
        draft.reply(
            member.join_token, RebalanceInProgressError("replaced by a later join of the same member")
        )
    if not member.is_new:
        draft.group.sessions.pop(member.member_id, None)
    return draft.put(
        msgspec.structs.replace(
            member,
            protocols=event.protocols,
            rebalance_timeout_ms=event.rebalance_timeout_ms,
            session_timeout_ms=event.session_timeout_ms,
            join_token=event.token,
            is_joining=True,
        )
    )


def _return_static(draft: GroupDraft, event: JoinGroup, member_id: str) -> None:
    """KIP-345: a static member is back under a new id. Where it can, it takes up its old assignment."""
    group = draft.group
    old_leader = group.leader
    old_protocols = group.members[group.static_members[event.group_instance_id or ""]].protocols
    member = _update_member(draft, _replace_static(draft, event, member_id), event)
    if group.state is State.STABLE and _keeps_generation(group, old_protocols, event.protocols):
        member = draft.put(msgspec.structs.replace(member, is_joining=False))
        draft.start_session(member)
        if event.supports_skip_assignment:
            reply = joined_reply(group, member, skip_assignment=group.leader == member_id)
        else:
            # Before v9 it cannot be told to skip: it hears of its old id as leader, so that it does not
            # assign.
            reply = msgspec.structs.replace(joined_reply(group, member), leader=old_leader or "", members=())
        draft.reply(event.token, reply)
        draft.store_group()
    else:
        # In CompletingRebalance the leader assigns to the old id already, so only a new generation can help.
        rebalance_or_complete(draft)


def _keeps_generation(
    group: GroupState, old: tuple[tuple[str, bytes], ...], new: tuple[tuple[str, bytes], ...]
) -> bool:
    """Would a new generation come to the same protocol for the same topics?

    Kafka looks at the protocol only and leaves a changed subscription to the next rebalance; we rebalance
    at once, since otherwise the member sits there without the topics it asks for.
    """
    return group.select_protocol() == group.protocol and subscribed_topics(old) == subscribed_topics(new)


def _replace_static(draft: GroupDraft, event: JoinGroup, member_id: str) -> Member:
    """Put the new id in the place of the old one; whoever still waits under the old id is fenced."""
    group = draft.group
    assert event.group_instance_id is not None, f"{member_id} is not static"
    old_id = group.static_members[event.group_instance_id]
    fenced = FencedInstanceIdError(
        f"{event.group_instance_id} in group {draft.group_id} is now {member_id}, not {old_id}",
        group_instance_id=event.group_instance_id,
        member_id=old_id,
    )
    old = draft.answer_sync(draft.answer_join(group.members[old_id], fenced), fenced)
    new = msgspec.structs.replace(
        old,
        member_id=member_id,
        client_id=event.client_id,
        client_host=client_host_of(event.incarnation) if event.incarnation else event.client_host,
    )
    group.members = {m.member_id: m for m in (new if m is old else m for m in group.members.values())}
    group.static_members[event.group_instance_id] = member_id
    group.sessions.pop(old_id, None)
    if old_id in group.awaited_syncs:
        group.awaited_syncs = {(member_id if m == old_id else m): None for m in group.awaited_syncs}
    group.late_syncs.pop(old_id, None)
    if group.leader == old_id:
        group.leader = member_id
    draft.start_session(new)
    return new


def _member_id_required(member_id: str) -> StreamlogError:
    return MemberIdRequiredError(f"join again as {member_id}", member_id=member_id)


# -- sync, heartbeat, leave --------------------------------------------------------------------------------


def sync(draft: GroupDraft, event: SyncGroup) -> None:
    group = draft.group
    error = draft.validate_member(event.member_id, event.group_instance_id) or _validate_sync(draft, event)
    if error is not None:
        draft.reply(event.token, error)
        return
    member = group.members[event.member_id]
    # Ours: a faster member may have begun the next join phase already. Who still asks for the assignment of the
    # generation that ended gets it, as if it had asked a moment earlier: else it would lose that generation, and members
    # driven in turn by one thread would give up their partitions one member a generation (KIP-429).
    is_late = member.member_id in group.late_syncs and not member.is_joining
    if group.state is State.PREPARING_REBALANCE and not is_late:
        draft.reply(event.token, _rebalancing(draft))
    elif group.state is State.STABLE or is_late:
        draft.stop_awaiting_sync(member.member_id)
        draft.start_session(member)
        draft.reply(event.token, SyncGroupReply(group.protocol_type, group.protocol, member.assignment))
    elif (
        member.sync_token != event.token
    ):  # CompletingRebalance; the same token is the same request handed in twice
        draft.answer_sync(member, _rebalancing(draft))  # a former sync of the same member, given up by it
        draft.put(msgspec.structs.replace(member, sync_token=event.token))
        group.sessions.pop(member.member_id, None)
        draft.stop_awaiting_sync(member.member_id)
        if group.leader == member.member_id:
            _distribute(draft, dict(event.assignments))


def _validate_sync(draft: GroupDraft, event: SyncGroup) -> StreamlogError | None:
    group = draft.group
    if event.generation != group.generation:
        return _illegal_generation(draft, event.generation)
    for named, actual in ((event.protocol_type, group.protocol_type), (event.protocol, group.protocol)):
        if named is not None and actual is not None and named != actual:
            return InconsistentGroupProtocolError(f"group {draft.group_id} speaks {actual!r}, not {named!r}")
    return None


def _distribute(draft: GroupDraft, assignments: dict[str, bytes]) -> None:
    """The leader has spoken. Members it forgot get an empty assignment, ids it invented are ignored."""
    group = draft.group
    draft.become(State.STABLE)
    for member_id, member in list(group.members.items()):
        member = draft.put(msgspec.structs.replace(member, assignment=assignments.get(member_id, b"")))
        draft.answer_sync(member, SyncGroupReply(group.protocol_type, group.protocol, member.assignment))
    draft.store_group()


def heartbeat(draft: GroupDraft, event: Heartbeat) -> None:
    group = draft.group
    error = draft.validate_member(event.member_id, event.group_instance_id)
    if error is None and event.generation != group.generation:
        error = _illegal_generation(draft, event.generation)
    if error is not None:
        draft.reply(event.token, error)
        return
    draft.start_session(group.members[event.member_id])
    if group.state is State.PREPARING_REBALANCE:
        draft.reply(event.token, _rebalancing(draft))
    else:
        draft.reply(event.token, HeartbeatReply())


def leave(draft: GroupDraft, event: LeaveGroup) -> None:
    results: list[tuple[LeavingMember, StreamlogError | None]] = []
    has_left = False
    for leaving in event.members:
        error: StreamlogError | None = None
        if draft.group.pending.pop(leaving.member_id, None) is not None:
            has_left = True
        else:
            # An administrator names a static member by its instance id alone.
            holder = draft.group.static_members.get(leaving.group_instance_id or "")
            member_id = leaving.member_id or holder or ""
            error = draft.validate_member(member_id, leaving.group_instance_id)
            if error is None:
                draft.remove(member_id)
                has_left = True
        results.append((leaving, error))
    draft.reply(event.token, LeaveGroupReply(tuple(results)))
    if has_left:
        _after_leaving(draft)


def _after_leaving(draft: GroupDraft) -> None:
    if draft.group.state is not State.EMPTY:  # Empty: only a pending id was given back
        rebalance_or_complete(draft)


def _rebalancing(draft: GroupDraft) -> StreamlogError:
    return RebalanceInProgressError(f"group {draft.group_id} is rebalancing: join again")


def _illegal_generation(draft: GroupDraft, generation: int) -> StreamlogError:
    actual = draft.group.generation
    return IllegalGenerationError(
        f"generation {generation} of group {draft.group_id}, which is in generation {actual}",
        generation=generation,
        current_generation=actual,
    )
