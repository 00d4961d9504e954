"""A decision in the making."""

from __future__ import annotations

from typing import Any

import pytest

from streamlog.core.group_draft import GroupDraft
from streamlog.core.group_records import decode_group_value
from streamlog.core.group_state import GroupLimits, GroupState, Member, State
from streamlog.errors import FencedInstanceIdError, UnknownMemberIdError


def draft(group: GroupState | None = None) -> GroupDraft:
    return GroupDraft("g", group or GroupState(), GroupLimits(), lambda prefix: prefix, 100, 5000)


def member(member_id: str, **fields: Any) -> Member:
    return Member(member_id, None, "c", "/h", 60, 10, "consumer", (("range", b""),), **fields)


def test_nothing_done_is_an_empty_decision() -> None:
    assert draft().finish().is_empty


def test_one_group_record_however_often_it_is_asked_for() -> None:
    one = draft()
    one.store_group()
    one.store_group()
    one.group.generation = 3
    decision = one.finish()
    assert len(decision.records) == 1
    assert decode_group_value(decision.records[0][1] or b"").generation == 3
    assert decision.changes[0].state.version == 1


def test_become_asserts_the_table_and_stamps_wall_time() -> None:
    one = draft()
    one.become(State.PREPARING_REBALANCE)
    assert one.group.state_timestamp_ms == 5000
    with pytest.raises(AssertionError, match="PREPARING_REBALANCE -> STABLE"):
        one.become(State.STABLE)


def test_sessions_begin_only_where_a_sign_of_life_is_owed() -> None:
    one = draft()
    for m in (member("a"), member("b", is_joining=True), member("c", sync_token=1), member("d", is_new=True)):
        one.start_session(m)
    assert one.group.sessions == {"a": 110}


def test_parked_requests_are_answered_once() -> None:
    one = draft()
    joining = one.put(member("a", join_token=7, is_joining=True, is_new=True))
    joined = one.answer_join(joining, "yes")
    one.answer_join(joined, "again")
    waiting = one.put(member("b", sync_token=8))
    one.answer_sync(one.answer_sync(waiting, "yes"), "again")
    assert one.replies == [(7, "yes"), (8, "yes")]
    assert one.group.sessions == {"a": 110, "b": 110}


def test_removing_answers_and_hands_on_the_lead() -> None:
    one = draft()
    one.put(member("a", sync_token=1))
    one.put(member("b"))
    one.group.leader = "a"
    one.remove("a")
    assert one.group.leader == "b"
    assert [(token, type(answer)) for token, answer in one.replies] == [(1, UnknownMemberIdError)]
    one.remove("b")
    assert one.group.leader is None
    assert one.group.members == {}


def test_validate_member() -> None:
    one = draft()
    one.put(member("a"))
    one.group.static_members["i"] = "a"
    assert one.validate_member("a", None) is None
    assert one.validate_member("a", "i") is None
    assert type(one.validate_member("b", None)) is UnknownMemberIdError
    assert type(one.validate_member("b", "i")) is FencedInstanceIdError
    assert type(one.validate_member("a", "other")) is UnknownMemberIdError
