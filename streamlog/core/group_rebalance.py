"""The join phase of a group, and what happens when time runs out.

    join, leave, expiry                  all joined, or the rebalance timeout
    ------------------> _prepare_rebalance ------------------> _complete_join ---> the next generation, or
    Empty

Every wait has an end, and `expire` does what is due: a parked join ends with the join phase (or, for a new
member, after five minutes), the join phase with the rebalance timeout (the longest of the members'), a
generation whose members do not sync with the same timeout again, a silent member with its session.

Sources: Kafka GroupMetadataManager.prepareRebalance, completeClassicGroupJoin,
expireClassicGroupMemberHeartbeat, expirePendingSync, tryCompleteInitialRebalanceElseSchedule; KIP-62
(rebalance timeout), KIP-134 (initial delay).
Not implemented: nothing of its own.
"""

from __future__ import annotations

import msgspec

from streamlog.core.group_draft import GroupDraft
from streamlog.core.group_events import JoinedMember, JoinGroupReply
from streamlog.core.group_state import VALID_PREVIOUS, GroupState, Member, State
from streamlog.errors import RebalanceInProgressError

# -- the join phase ----------------------------------------------------------------------------------------


def rebalance_or_complete(draft: GroupDraft) -> None:
    """Something changed who is in the group: begin a rebalance, or see whether the present one can go on."""
    if draft.group.state in VALID_PREVIOUS[State.PREPARING_REBALANCE]:
        _prepare_rebalance(draft)
    else:
        maybe_complete_join(draft)


def maybe_complete_join(draft: GroupDraft) -> bool:
    """The first generation of a group waits for its delay only; later ones wait until all have joined."""
    group = draft.group
    if group.state is not State.PREPARING_REBALANCE or group.is_initial_rebalance or not group.all_joined:
        return False
    _complete_join(draft)
    return True


def _prepare_rebalance(draft: GroupDraft) -> None:
    group = draft.group
    if group.state is State.COMPLETING_REBALANCE:
        error = RebalanceInProgressError(
            f"group {draft.group_id} rebalances again before the assignment came"
        )
        for member in list(group.members.values()):
            draft.answer_sync(draft.put(msgspec.structs.replace(member, assignment=b"")), error)
    group.late_syncs = group.awaited_syncs if group.state is State.STABLE else {}
    group.awaited_syncs = {}
    group.sync_deadline_ms = None
    group.is_initial_rebalance = group.state is State.EMPTY
    draft.become(State.PREPARING_REBALANCE)
    timeout_ms = group.rebalance_timeout_ms()
    delay_ms = draft.limits.initial_rebalance_delay_ms
    if group.is_initial_rebalance and delay_ms > 0:
        group.rebalance_deadline_ms = draft.now_ms + delay_ms
        group.initial_remaining_ms = max(timeout_ms - delay_ms, 0)
        group.has_newcomer = False
    elif group.is_initial_rebalance or group.all_joined:
        _complete_join(draft)
    else:
        group.rebalance_deadline_ms = draft.now_ms + timeout_ms


def _complete_join(draft: GroupDraft) -> None:
    """The join phase is over: who has joined is in the next generation, who is static stays in it anyway."""
    group = draft.group
    for member in list(group.members.values()):
        if not member.is_joining and not member.is_static:
            draft.remove(member.member_id)
    group.is_initial_rebalance = False
    group.has_newcomer = False
    if group.members and not _elect_joined_leader(group):
        # Only static members, none of them back: nobody could assign. Wait until they come or their
        # sessions end.
        group.rebalance_deadline_ms = draft.now_ms + max(group.rebalance_timeout_ms(), 1)
        return
    group.generation += 1
    group.late_syncs = {}
    group.rebalance_deadline_ms = None
    if not group.members:
        group.protocol = None
        draft.become(State.EMPTY)
        draft.store_group()
        return
    group.protocol = group.select_protocol()
    draft.become(State.COMPLETING_REBALANCE)
    for member in list(group.members.values()):
        draft.answer_join(member, joined_reply(group, member))
    group.awaited_syncs = dict.fromkeys(group.members)
    group.sync_deadline_ms = draft.now_ms + max(group.rebalance_timeout_ms(), 1)


def _elect_joined_leader(group: GroupState) -> bool:
    """The leader stays if it has joined, else the first that has. False if nobody has."""
    if group.leader is not None and group.members[group.leader].is_joining:
        return True
    for member in group.members.values():
        if member.is_joining:
            group.leader = member.member_id
            return True
    return False


def joined_reply(group: GroupState, member: Member, skip_assignment: bool = False) -> JoinGroupReply:
    is_leader = group.leader == member.member_id
    return JoinGroupReply(
        group.generation,
        group.protocol_type,
        group.protocol,
        group.leader or "",
        member.member_id,
        tuple(
            JoinedMember(m.member_id, m.group_instance_id, m.metadata(group.protocol))
            for m in group.members.values()
        )
        if is_leader
        else (),
        skip_assignment,
    )


# -- time --------------------------------------------------------------------------------------------------


def expire(draft: GroupDraft) -> None:
    """Do what is due: ids never used, sessions, syncs that never came, the end of the join phase."""
    group, now_ms = draft.group, draft.now_ms
    unused = [member_id for member_id, pending in group.pending.items() if pending.deadline_ms <= now_ms]
    silent = [member_id for member_id, deadline_ms in group.sessions.items() if deadline_ms <= now_ms]
    for member_id in unused:
        del group.pending[member_id]
    for member_id in silent:
        draft.remove(member_id)
    if group.sync_deadline_ms is not None and group.sync_deadline_ms <= now_ms:
        for member_id in list(group.awaited_syncs):
            silent.append(member_id)
            draft.remove(member_id)
    if silent:
        rebalance_or_complete(draft)
    elif unused:
        maybe_complete_join(draft)
    if group.rebalance_deadline_ms is not None and group.rebalance_deadline_ms <= now_ms:
        if group.has_newcomer and group.initial_remaining_ms > 0:
            _wait_for_more(draft)
        else:
            _complete_join(draft)


def _wait_for_more(draft: GroupDraft) -> None:
    """KIP-134: members still come, so wait once more - up to the rebalance timeout in all."""
    group, delay_ms = draft.group, draft.limits.initial_rebalance_delay_ms
    group.has_newcomer = False
    group.rebalance_deadline_ms = draft.now_ms + min(delay_ms, group.initial_remaining_ms)
    group.initial_remaining_ms = max(group.initial_remaining_ms - delay_ms, 0)


def extend_deadlines(draft: GroupDraft, by_ms: int) -> None:
    """Ours: the coordinator slept (debugger, suspended laptop), so its members must not pay for it."""
    group = draft.group
    group.sessions = {member_id: deadline_ms + by_ms for member_id, deadline_ms in group.sessions.items()}
    group.pending = {
        member_id: msgspec.structs.replace(pending, deadline_ms=pending.deadline_ms + by_ms)
        for member_id, pending in group.pending.items()
    }
    if group.rebalance_deadline_ms is not None:
        group.rebalance_deadline_ms += by_ms
    if group.sync_deadline_ms is not None:
        group.sync_deadline_ms += by_ms


def finish_loading(draft: GroupDraft, incarnation: str) -> None:
    """Ours: members of another opening died with their process; the others' sessions begin now."""
    group = draft.group
    gone = [m.member_id for m in group.members.values() if m.incarnation not in ("", incarnation)]
    for member_id in gone:
        draft.remove(member_id)
    for member in group.members.values():
        draft.start_session(member)
    if gone or len(group.members) > draft.limits.members_max:
        rebalance_or_complete(draft)
