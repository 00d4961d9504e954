"""The join phase and time, in literal milliseconds: the corners the scripts leave out."""

from __future__ import annotations

from typing import Any

from streamlog.core import group_events as events
from streamlog.core.group import GroupMachine
from streamlog.core.group_state import NEW_MEMBER_JOIN_TIMEOUT_MS, GroupLimits, State
from streamlog.errors import UnknownMemberIdError


class Driver:
    def __init__(self, **limits: int) -> None:
        self.ids = 0
        self.token = 0
        self.now_ms = 0
        self.replies: dict[int, object] = {}
        self.machine = GroupMachine("g", GroupLimits(session_timeout_min_ms=1, **limits), "x", self.new_id)

    def new_id(self, prefix: str) -> str:
        self.ids += 1
        return f"m{self.ids}"

    def post(self, event: events.GroupEvent | None) -> None:
        machine = self.machine
        decision = machine.on_deadline(self.now_ms) if event is None else machine.handle(event, self.now_ms)
        machine.apply(decision.records, decision.changes)
        self.replies.update(decision.replies)

    def at(self, now_ms: int) -> Driver:
        self.now_ms = now_ms
        self.post(None)
        return self

    def join(
        self, member_id: str = "", session_ms: int = 1000, rebalance_ms: int = 500, **fields: Any
    ) -> int:
        self.token += 1
        self.post(
            events.JoinGroup(
                token=self.token,
                member_id=member_id,
                session_timeout_ms=session_ms,
                rebalance_timeout_ms=rebalance_ms,
                protocols=(("range", b""),),
                **fields,
            )
        )
        return self.token

    def sync(self, member_id: str, generation: int) -> int:
        self.token += 1
        self.post(events.SyncGroup(token=self.token, member_id=member_id, generation=generation))
        return self.token


def test_the_initial_delay_grows_up_to_the_rebalance_timeout() -> None:
    """Delay 200, rebalance timeout 500: 200, then 200 more, then 100 more - however many keep coming."""
    driver = Driver(initial_rebalance_delay_ms=200)
    driver.join()
    assert driver.machine.next_deadline_ms() == 200
    for now_ms, following in ((150, 400), (350, 500)):
        driver.now_ms = now_ms
        driver.join()
        driver.at(200 if now_ms < 200 else 400)
        assert driver.machine.next_deadline_ms() == following
    driver.now_ms = 450
    driver.join()
    driver.at(500)
    assert driver.machine.state is State.COMPLETING_REBALANCE
    assert len(driver.machine.view().members) == 4


def test_the_initial_delay_ends_early_for_nobody() -> None:
    driver = Driver(initial_rebalance_delay_ms=200)
    token = driver.join()
    driver.at(199)
    assert token not in driver.replies
    driver.at(200)
    assert token in driver.replies


def test_all_leave_during_the_initial_delay() -> None:
    driver = Driver(initial_rebalance_delay_ms=200)
    token = driver.join()
    driver.post(events.LeaveGroup(token=99, members=(events.LeavingMember("m1"),)))
    assert isinstance(driver.replies[token], UnknownMemberIdError)
    driver.at(200)
    assert driver.machine.view().state is State.EMPTY


def test_a_new_members_parked_join_ends_after_five_minutes() -> None:
    driver = Driver()
    driver.join(session_ms=10**6)
    driver.sync("m1", 1)
    parked = driver.join(
        session_ms=10, rebalance_ms=10**7
    )  # its own session timeout does not count: it has no id
    driver.at(NEW_MEMBER_JOIN_TIMEOUT_MS - 1)
    assert parked not in driver.replies
    driver.at(NEW_MEMBER_JOIN_TIMEOUT_MS)
    assert isinstance(driver.replies[parked], UnknownMemberIdError)


def test_a_known_members_parked_join_does_not_end_with_its_session() -> None:
    driver = Driver()
    driver.join()
    driver.sync("m1", 1)
    driver.join(session_ms=10, rebalance_ms=10**6)
    driver.join("m1", session_ms=10)  # all joined: the next generation
    driver.sync("m1", 2)
    driver.sync("m2", 2)
    driver.join("m2", session_ms=10, rebalance_ms=10**6)  # unchanged follower: answered
    driver.join("m1", session_ms=10, rebalance_ms=10**6)  # the leader: a rebalance, parked
    driver.at(10)  # m2's session ends, it has not rejoined; m1 is alone and goes on
    assert driver.machine.view().generation == 3
    assert [m.member_id for m in driver.machine.view().members] == ["m1"]


def test_the_session_begins_anew_when_a_parked_request_is_answered() -> None:
    driver = Driver()
    driver.join()
    driver.sync("m1", 1)
    driver.join()
    driver.now_ms = 400
    driver.join("m1")
    assert driver.machine.next_deadline_ms() == 900  # syncs are awaited for the rebalance timeout
    driver.sync("m2", 2)
    driver.now_ms = 800
    driver.sync("m1", 2)
    assert driver.machine.next_deadline_ms() == 1800


def test_only_static_members_and_none_of_them_back() -> None:
    """Nobody could assign: the join phase goes on until their sessions end; then the group is empty."""
    driver = Driver()
    driver.join(group_instance_id="i", session_ms=1200)
    driver.sync("m1", 1)
    parked = driver.join()
    driver.post(events.LeaveGroup(token=99, members=(events.LeavingMember("m2"),)))
    assert parked in driver.replies
    driver.at(500)
    assert driver.machine.view().state is State.PREPARING_REBALANCE
    driver.at(1000)
    assert driver.machine.view().state is State.PREPARING_REBALANCE
    driver.at(1200)
    assert driver.machine.view().state is State.EMPTY


def test_several_deadlines_at_once_make_one_rebalance() -> None:
    driver = Driver()
    driver.join()
    driver.sync("m1", 1)
    driver.join()
    driver.join("m1")
    driver.sync("m1", 2)
    driver.sync("m2", 2)
    driver.at(5000)
    assert driver.machine.view().state is State.EMPTY
    assert driver.machine.view().generation == 3


def test_extended_deadlines() -> None:
    driver = Driver(initial_rebalance_delay_ms=200)
    driver.join()
    driver.join(require_known_member_id=True, session_ms=300)
    driver.post(events.ExtendDeadlines(1000))
    group = driver.machine._group
    assert group.rebalance_deadline_ms == 1200
    assert group.pending["m2"].deadline_ms == 1300
    assert group.sessions == {"m1": NEW_MEMBER_JOIN_TIMEOUT_MS + 1000}
    driver.at(1200)
    driver.post(events.ExtendDeadlines(50))
    assert driver.machine._group.sync_deadline_ms == 1200 + 500 + 50


def test_more_members_than_allowed_after_loading() -> None:
    """The limit was lowered: the next generation will be smaller."""
    driver, log = Driver(), []
    driver.join()
    driver.join()
    driver.join("m1")
    driver.sync("m2", 2)
    decision = driver.machine.handle(events.SyncGroup(token=9, member_id="m1", generation=2), 0)
    log += decision.records
    loaded = GroupMachine("g", GroupLimits(members_max=1), "x", driver.new_id)
    for key, value in log:
        loaded.replay(key, value, 0)
    decision = loaded.finish_loading(0)
    loaded.apply(decision.records, decision.changes)
    assert loaded.state is State.PREPARING_REBALANCE
