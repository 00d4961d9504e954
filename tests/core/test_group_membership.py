"""Requests of members: the corners the scripts leave out."""

from __future__ import annotations

from typing import Any

import pytest

from streamlog.core import group_events as events
from streamlog.core.group import GroupMachine
from streamlog.core.group_state import GroupLimits, State
from streamlog.errors import (
    FencedInstanceIdError,
    IllegalGenerationError,
    InconsistentGroupProtocolError,
    InvalidGroupIdError,
    InvalidRequestError,
    InvalidSessionTimeoutError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)


class Driver:
    def __init__(self, limits: GroupLimits | None = None, group_id: str = "g") -> None:
        self.ids = 0
        self.token = 0
        self.replies: dict[int, object] = {}
        self.machine = GroupMachine(group_id, limits or GroupLimits(), "x", self.new_id)

    def new_id(self, prefix: str) -> str:
        self.ids += 1
        return f"m{self.ids}"

    def post(self, event: events.GroupEvent) -> object:
        decision = self.machine.handle(event, 0)
        self.machine.apply(decision.records, decision.changes)
        self.replies.update(decision.replies)
        return self.replies.get(getattr(event, "token", -1))

    def join(self, member_id: str = "", names: str = "range", **fields: Any) -> int:
        self.token += 1
        protocols = tuple((name, b"about " + name.encode()) for name in names.split())
        self.post(events.JoinGroup(token=self.token, member_id=member_id, protocols=protocols, **fields))
        return self.token

    def sync(self, member_id: str, generation: int, **fields: Any) -> int:
        self.token += 1
        self.post(events.SyncGroup(token=self.token, member_id=member_id, generation=generation, **fields))
        return self.token


def kind(driver: Driver, token: int) -> type:
    return type(driver.replies[token])


@pytest.mark.parametrize("timeout_ms", [5_999, 1_800_001, 0, -1])
def test_session_timeout_has_bounds(timeout_ms: int) -> None:
    driver = Driver()
    assert kind(driver, driver.join(session_timeout_ms=timeout_ms)) is InvalidSessionTimeoutError
    assert driver.machine.is_vacant


def test_ids_that_cannot_be_stored_are_refused_before_they_do_harm() -> None:
    for group_id in ("", "x" * 40_000, "\ud800"):
        driver = Driver(group_id=group_id)
        assert kind(driver, driver.join()) is InvalidGroupIdError
    driver = Driver()
    assert kind(driver, driver.join(client_id="x" * 40_000)) is InvalidRequestError
    assert kind(driver, driver.join(group_instance_id="\ud800")) is InvalidRequestError


def test_a_member_needs_protocols() -> None:
    driver = Driver()
    assert kind(driver, driver.join(names="")) is InconsistentGroupProtocolError
    assert kind(driver, driver.join(protocol_type="")) is InconsistentGroupProtocolError
    assert driver.machine.is_vacant


def test_an_id_nobody_gave_is_unknown() -> None:
    driver = Driver()
    assert kind(driver, driver.join("made-up")) is UnknownMemberIdError
    driver.join()
    assert kind(driver, driver.join("made-up")) is UnknownMemberIdError
    assert kind(driver, driver.sync("made-up", 1)) is UnknownMemberIdError


def test_a_caller_may_draw_its_own_id() -> None:
    driver = Driver()
    reply = driver.replies[driver.join(new_member_id="drawn")]
    assert isinstance(reply, events.JoinGroupReply)
    assert (reply.member_id, driver.ids) == ("drawn", 0)


def test_a_pending_id_does_not_become_static() -> None:
    driver = Driver()
    driver.join(group_instance_id="i")
    required = driver.replies[driver.join(require_known_member_id=True)]
    token = driver.join(required.member_id, group_instance_id="i")  # type: ignore[attr-defined]
    assert kind(driver, token) is UnknownMemberIdError
    assert [m.member_id for m in driver.machine.view().members] == ["m1"]


def test_static_members_need_no_handshake() -> None:
    driver = Driver()
    token = driver.join(require_known_member_id=True, group_instance_id="i")
    assert kind(driver, token) is events.JoinGroupReply


def test_a_static_member_has_its_place_in_a_full_group() -> None:
    driver = Driver(GroupLimits(members_max=1))
    leader = driver.replies[driver.join(group_instance_id="i")]
    driver.sync(leader.member_id, 1)  # type: ignore[attr-defined]
    back = driver.replies[driver.join(group_instance_id="i")]
    assert isinstance(back, events.JoinGroupReply)
    assert (back.generation, back.skip_assignment) == (1, True)


def test_a_second_join_of_a_member_replaces_its_parked_first() -> None:
    driver = Driver()
    driver.join()
    second = driver.join()
    third = driver.join()
    assert second not in driver.replies
    driver.sync("m1", 1)
    again = driver.join("m2")
    assert kind(driver, second) is RebalanceInProgressError
    assert again not in driver.replies
    driver.join("m1")
    assert kind(driver, again) is events.JoinGroupReply
    assert kind(driver, third) is events.JoinGroupReply


def test_a_second_sync_of_a_member_replaces_its_parked_first() -> None:
    driver = Driver()
    driver.join()
    driver.join()
    driver.join("m1")
    first, second = driver.sync("m2", 2), driver.sync("m2", 2)
    assert kind(driver, first) is RebalanceInProgressError
    driver.sync("m1", 2, assignments=(("m2", b"yours"),))
    assert driver.replies[second] == events.SyncGroupReply("consumer", "range", b"yours")


def test_a_static_member_that_returns_fences_whoever_waits_in_its_place() -> None:
    driver = Driver()
    driver.join()
    old_join = driver.join(group_instance_id="i")
    new_join = driver.join(group_instance_id="i")
    assert kind(driver, old_join) is FencedInstanceIdError
    driver.join("m1")
    assert kind(driver, new_join) is events.JoinGroupReply
    old_sync = driver.sync("m3", 2)
    newest = driver.join(group_instance_id="i")  # between join and sync: only a new generation can help
    assert kind(driver, old_sync) is FencedInstanceIdError
    assert driver.machine.state is State.PREPARING_REBALANCE
    driver.join("m1")
    assert driver.replies[newest].generation == 3  # type: ignore[attr-defined]


def test_sync_names_what_does_not_fit() -> None:
    driver = Driver()
    driver.join()
    assert kind(driver, driver.sync("m1", 2)) is IllegalGenerationError
    assert kind(driver, driver.sync("m1", 1, protocol="sticky")) is InconsistentGroupProtocolError
    assert kind(driver, driver.sync("m1", 1, protocol_type="connect")) is InconsistentGroupProtocolError
    assert (
        kind(driver, driver.sync("m1", 1, protocol="range", protocol_type="consumer"))
        is events.SyncGroupReply
    )


def test_sync_while_preparing() -> None:
    driver = Driver()
    driver.join()
    driver.sync("m1", 1)
    driver.join()
    assert kind(driver, driver.sync("m1", 1)) is RebalanceInProgressError


def test_a_rebalance_answers_those_who_wait_for_their_assignment() -> None:
    driver = Driver()
    driver.join()
    driver.join()
    driver.join("m1")
    waiting = driver.sync("m2", 2)
    driver.join()
    assert kind(driver, waiting) is RebalanceInProgressError
    assert driver.machine.state is State.PREPARING_REBALANCE


def test_whoever_leaves_is_answered_for_what_it_waits_for() -> None:
    driver = Driver()
    driver.join()
    driver.join()
    driver.join("m1")
    waiting = driver.sync("m2", 2)
    reply = driver.post(
        events.LeaveGroup(token=99, members=(events.LeavingMember("m2"), events.LeavingMember("m9")))
    )
    assert isinstance(reply, events.LeaveGroupReply)
    assert [type(error) for _, error in reply.members] == [type(None), UnknownMemberIdError]
    assert kind(driver, waiting) is UnknownMemberIdError


def test_a_pending_id_may_be_given_back() -> None:
    driver = Driver()
    driver.join(require_known_member_id=True)
    reply = driver.post(events.LeaveGroup(token=99, members=(events.LeavingMember("m1"),)))
    assert isinstance(reply, events.LeaveGroupReply)
    assert reply.members[0][1] is None
    assert driver.machine.is_vacant


def test_leaving_by_instance_id_of_a_fenced_member() -> None:
    driver = Driver()
    driver.join(group_instance_id="i")
    reply = driver.post(events.LeaveGroup(token=99, members=(events.LeavingMember("old", "i"),)))
    assert isinstance(reply, events.LeaveGroupReply)
    assert isinstance(reply.members[0][1], FencedInstanceIdError)
