"""SEMANTICS 3.6, the sentences about the broker's side, one test each. The docstring is the sentence."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

from streamlog.core import group_events as events
from streamlog.core.assignor import COOPERATIVE_STICKY, RANGE, ROUND_ROBIN, STICKY
from streamlog.core.consumer_protocol import Subscription, encode_subscription
from streamlog.core.group import GroupMachine, group_partition
from streamlog.core.group_state import GroupLimits, State
from streamlog.errors import (
    CoordinatorNotAvailableError,
    FencedInstanceIdError,
    GroupIdNotFoundError,
    IllegalGenerationError,
    InconsistentGroupProtocolError,
    MemberIdRequiredError,
    RebalanceInProgressError,
    StreamlogError,
    UnknownMemberIdError,
)
from streamlog.record import OffsetAndMetadata, TopicPartition

ReplyT = TypeVar("ReplyT")
TP = TopicPartition("orders", 0)
RETENTION_MS = 10_080 * 60_000


class Group:
    """A machine, a clock, and what was answered."""

    def __init__(self, limits: GroupLimits | None = None) -> None:
        self.now_ms = 0
        self.ids = 0
        self.replies: dict[int, object] = {}
        self.last_token = 0
        self.machine = GroupMachine("g", limits or GroupLimits(), "a", self._new_id)

    def _new_id(self, prefix: str) -> str:
        self.ids += 1
        return f"{prefix}{self.ids}"

    def post(self, event: events.GroupEvent) -> object:
        decision = self.machine.handle(event, self.now_ms)
        self.machine.apply(decision.records, decision.changes)
        self.replies.update(decision.replies)
        return self.replies.get(getattr(event, "token", -1))

    def token(self) -> int:
        self.last_token += 1
        return self.last_token

    def advance(self, by_ms: int) -> None:
        end_ms = self.now_ms + by_ms
        while (deadline_ms := self.machine.next_deadline_ms()) is not None and deadline_ms <= end_ms:
            self.now_ms = max(self.now_ms, deadline_ms)
            decision = self.machine.on_deadline(self.now_ms)
            self.machine.apply(decision.records, decision.changes)
            self.replies.update(decision.replies)
        self.now_ms = end_ms

    def join(
        self, member_id: str = "", *, protocols: str = "range", topics: str = "orders", **fields: Any
    ) -> int:
        """Returns the token: the answer may come later."""
        token = self.token()
        metadata = encode_subscription(Subscription(tuple(topics.split(","))))
        pairs = tuple((name, metadata) for name in protocols.split(","))
        self.post(
            events.JoinGroup(token=token, member_id=member_id, client_id="m", protocols=pairs, **fields)
        )
        return token

    def joined(self, token: int) -> events.JoinGroupReply:
        return self._expect(self.replies[token], events.JoinGroupReply)

    def sync(self, member_id: str, generation: int, **assignments: bytes) -> object:
        return self.post(
            events.SyncGroup(
                token=self.token(),
                member_id=member_id,
                generation=generation,
                assignments=tuple(assignments.items()),
            )
        )

    def heartbeat(self, member_id: str, generation: int) -> object:
        return self.post(events.Heartbeat(token=self.token(), member_id=member_id, generation=generation))

    def commit(
        self,
        member_id: str = "",
        generation: int = -1,
        offset: int = 1,
        instance: str | None = None,
        **fields: Any,
    ) -> object:
        return self.post(
            events.OffsetCommit(
                token=self.token(),
                offsets={TP: OffsetAndMetadata(offset)},
                member_id=member_id,
                generation=generation,
                group_instance_id=instance,
                **fields,
            )
        )

    def stable(self, **fields: Any) -> str:
        """One member, generation 1, synced."""
        member_id = self.joined(self.join(**fields)).member_id
        self.sync(member_id, 1, **{member_id: b"\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff"})
        assert self.machine.state is State.STABLE
        return member_id

    @staticmethod
    def _expect(value: object, kind: type[ReplyT]) -> ReplyT:
        assert isinstance(value, kind), value
        return value


def accepted(reply: object) -> bool:
    return isinstance(reply, events.OffsetCommitReply) and set(reply.errors.values()) == {None}


# -- 1 -----------------------------------------------------------------------------------------------------


def test_1_dead_group_refuses_commits() -> None:
    """Dead -> COORDINATOR_NOT_AVAILABLE"""
    group = Group()
    group.commit()
    group.post(events.DeleteGroup(token=group.token()))
    assert isinstance(group.commit(), CoordinatorNotAvailableError)
    assert isinstance(group.commit("m1", 1), CoordinatorNotAvailableError)


def test_1_commit_without_generation_in_an_empty_group_is_accepted_and_creates_it() -> None:
    """generation<0 and Empty -> accept (simple/admin commit; creates the group)"""
    group = Group()
    assert group.machine.is_vacant
    assert accepted(group.commit())
    assert not group.machine.is_vacant
    assert accepted(group.commit("whoever", -1))


def test_1_order_of_validation() -> None:
    """otherwise member must exist (UNKNOWN_MEMBER_ID), instance id match (FENCED_INSTANCE_ID), generation
    equal (ILLEGAL_GENERATION); generation<0 with members -> UNKNOWN_MEMBER_ID; CompletingRebalance ->
    REBALANCE_IN_PROGRESS"""
    group = Group()
    member_id = group.joined(group.join(group_instance_id="i")).member_id
    assert group.machine.state is State.COMPLETING_REBALANCE
    cases = [
        # member, generation, instance: each wrong in one thing less
        ("stranger", 9, None, UnknownMemberIdError),
        ("stranger", 9, "unknown instance", UnknownMemberIdError),
        ("stranger", 9, "i", FencedInstanceIdError),
        (member_id, 9, "i", IllegalGenerationError),
        (member_id, -1, "i", IllegalGenerationError),
        ("", -1, None, UnknownMemberIdError),
        (member_id, 1, "i", RebalanceInProgressError),
    ]
    for member, generation, instance, error in cases:
        reply = group.commit(member, generation, instance=instance)
        assert type(reply) is error, f"{member} {generation} {instance}: {reply!r}"
    assert group.machine.committed("orders", 0) is None


def test_1_preparing_group_accepts_commits_of_its_generation() -> None:
    """PreparingRebalance -> ACCEPTED for the current generation (so members can commit in
    onPartitionsRevoked)"""
    group = Group()
    member_id = group.stable()
    group.join()
    assert group.machine.state is State.PREPARING_REBALANCE
    assert accepted(group.commit(member_id, 1, offset=7))
    assert isinstance(group.commit(member_id, 0), IllegalGenerationError)
    assert group.machine.committed("orders", 0) == OffsetAndMetadata(7)


def test_1_unknown_group_with_a_generation() -> None:
    """Unknown group with generation >=0 -> ILLEGAL_GENERATION (v>=9 GROUP_ID_NOT_FOUND)."""
    assert isinstance(Group().commit("m1", 0), IllegalGenerationError)
    assert isinstance(Group().commit("m1", 0, names_missing_group=True), GroupIdNotFoundError)


def test_1_commit_refreshes_the_session() -> None:
    """Commit refreshes the session."""
    group = Group()
    member_id = group.stable(session_timeout_ms=10_000)
    for _ in range(3):
        group.advance(9_999)
        assert accepted(group.commit(member_id, 1))
    group.advance(10_000)
    assert isinstance(group.commit(member_id, 1), UnknownMemberIdError)


# -- 3 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 5, 4, 2**63 - 1])
def test_3_any_offset_is_stored(offset: int) -> None:
    """any offset value is stored without checking the log (also backwards or beyond LEO)."""
    group = Group()
    group.commit(offset=5)
    assert accepted(group.commit(offset=offset))
    assert group.machine.committed("orders", 0) == OffsetAndMetadata(offset)


# -- 5 -----------------------------------------------------------------------------------------------------


def test_5_a_partition_is_never_owned_by_two_and_unowned_for_one_round() -> None:
    """Cooperative: keep owned, two rebalances, revoke only what moves; a partition is never owned by two
    live members; the moving partition is unowned for one round."""
    everything = tuple(TopicPartition("t", number) for number in range(4))
    members = {"C0": Subscription(("t",), owned=everything, generation=1), "C1": Subscription(("t",))}
    first = COOPERATIVE_STICKY.assign({"t": 4}, members)
    assert first == {"C0": list(everything[:2]), "C1": []}
    members = {m: Subscription(("t",), owned=tuple(first[m]), generation=2) for m in members}
    second = COOPERATIVE_STICKY.assign({"t": 4}, members)
    assert second == {"C0": list(everything[:2]), "C1": list(everything[2:])}


# -- 7 -----------------------------------------------------------------------------------------------------


def test_7_generation_increments_each_completed_rebalance() -> None:
    """generation increments each completed rebalance"""
    group = Group()
    member_id = group.stable()
    for generation in range(2, 6):
        assert group.joined(group.join(member_id)).generation == generation
        group.sync(member_id, generation)
    group.join()  # begun, not completed
    assert group.machine.view().generation == 5


def test_7_first_answer_is_member_id_required() -> None:
    """JoinGroup v4+ first answer MEMBER_ID_REQUIRED"""
    group = Group()
    token = group.join(require_known_member_id=True)
    error = group.replies[token]
    assert isinstance(error, MemberIdRequiredError)
    assert error.member_id == "m1"
    assert group.machine.view().members == ()
    assert group.joined(group.join(error.member_id, require_known_member_id=True)).member_id == "m1"


def test_7_leader_assigns_in_sync_group() -> None:
    """leader assigns in SyncGroup"""
    group = Group()
    leader = group.stable()
    second = group.join()
    first = group.join(leader)
    follower = group.joined(second)
    assert [m.member_id for m in group.joined(first).members] == [leader, follower.member_id]
    assert follower.members == ()
    assert follower.leader == leader
    waiting = group.token()
    group.post(events.SyncGroup(token=waiting, member_id=follower.member_id, generation=2))
    assert waiting not in group.replies
    reply = group.sync(leader, 2, **{leader: b"mine", follower.member_id: b"yours", "invented": b"x"})
    assert reply == events.SyncGroupReply("consumer", "range", b"mine")
    assert group.replies[waiting] == events.SyncGroupReply("consumer", "range", b"yours")


def test_7_protocol_by_votes_among_those_all_support() -> None:
    """protocol chosen = by votes among protocols all members support, else
    INCONSISTENT_GROUP_PROTOCOL(23)."""
    group = Group()
    first = group.joined(group.join(protocols="a,b,c")).member_id
    tokens = [group.join(protocols="d,c,b"), group.join(protocols="c,b")]
    assert group.joined(group.join(first, protocols="a,b,c")).protocol == "c"
    assert {group.joined(token).protocol for token in tokens} == {"c"}
    error = group.replies[group.join(protocols="a,d")]
    assert isinstance(error, InconsistentGroupProtocolError)
    assert error.code == 23


# -- 8 -----------------------------------------------------------------------------------------------------


def test_8_member_not_rejoined_by_the_rebalance_timeout_is_dropped() -> None:
    """rebalance timeout = max.poll.interval (classic) : member not rejoined by then is dropped."""
    group = Group()
    slow = group.stable(session_timeout_ms=30_000, rebalance_timeout_ms=20_000)
    new = group.join(session_timeout_ms=30_000, rebalance_timeout_ms=5_000)
    group.advance(19_999)  # the longest of the members' timeouts counts
    assert isinstance(group.heartbeat(slow, 1), RebalanceInProgressError)
    assert new not in group.replies
    group.advance(1)
    assert group.joined(new).generation == 2
    assert isinstance(group.heartbeat(slow, 1), UnknownMemberIdError)


# -- 9 -----------------------------------------------------------------------------------------------------


def test_9_rebalance_triggers() -> None:
    """rebalance triggers: join, leave, session expiry, subscription change, partition count or topic
    (pattern) change."""

    def triggered(group: Group) -> bool:
        return group.machine.state in (State.PREPARING_REBALANCE, State.COMPLETING_REBALANCE)

    def two_members() -> tuple[Group, str, str]:
        group = Group()
        leader = group.stable()
        second = group.join()
        group.join(leader)
        follower = group.joined(second).member_id
        group.sync(leader, 2)
        group.sync(follower, 2)
        assert not triggered(group)
        return group, leader, follower

    group, _, _ = two_members()
    group.join()
    assert triggered(group), "join"
    group, _, follower = two_members()
    group.post(events.LeaveGroup(token=group.token(), members=(events.LeavingMember(follower),)))
    assert triggered(group), "leave"
    group, leader, _ = two_members()
    group.advance(44_000)
    group.heartbeat(leader, 2)
    group.advance(1_000)
    assert triggered(group), "session expiry"
    group, _, follower = two_members()
    group.join(follower)
    assert not triggered(group), "a follower's join with the same subscription is no trigger"
    group.join(follower, topics="orders,payments")
    assert triggered(group), "subscription change"
    group, leader, _ = two_members()
    group.join(leader)
    assert triggered(group), "the leader saw new partitions or topics: it joins again"


def test_9_assignment_ignores_topics_that_do_not_exist() -> None:
    """Assignment ignores topics that do not exist yet."""
    members = {"C0": Subscription(("t", "not yet"))}
    for assignor in (RANGE, ROUND_ROBIN, STICKY, COOPERATIVE_STICKY):
        assert assignor.assign({"t": 1}, members) == {"C0": [TopicPartition("t", 0)]}


# -- 10 ----------------------------------------------------------------------------------------------------


def test_10_offsets_of_an_empty_group_expire() -> None:
    """offset expiry (10080 min) applies to Empty group"""
    group = Group()
    member_id = group.stable()
    group.commit(member_id, 1)
    group.post(events.LeaveGroup(token=group.token(), members=(events.LeavingMember(member_id),)))
    assert group.machine.state is State.EMPTY
    group.advance(RETENTION_MS - 1)
    group.post(events.ExpireOffsets())
    assert group.machine.committed("orders", 0) is not None
    group.advance(1)
    group.post(events.ExpireOffsets())
    assert group.machine.committed("orders", 0) is None


def test_10_offsets_of_topics_nobody_subscribes_expire() -> None:
    """or to topics no member subscribes"""
    group = Group()
    member_id = group.stable(session_timeout_ms=1_800_000)
    other = TopicPartition("other", 0)
    group.post(
        events.OffsetCommit(
            token=group.token(),
            member_id=member_id,
            generation=1,
            offsets={TP: OffsetAndMetadata(1), other: OffsetAndMetadata(1)},
        )
    )
    for _ in range(RETENTION_MS // 1_800_000 + 1):
        group.advance(1_799_999)
        group.heartbeat(member_id, 1)
    group.advance(1_000_000)
    group.post(events.ExpireOffsets())
    assert group.machine.committed("orders", 0) is not None
    assert group.machine.committed("other", 0) is None


# -- 11: the fixtures are in tests/core/test_assignor.py, with the order of members ------------------------


def test_11_members_sorted_by_instance_id_else_member_id() -> None:
    """Members sorted by group.instance.id, else member id."""
    members = {
        "a": Subscription(("t",)),
        "b": Subscription(("t",), group_instance_id="2"),
        "c": Subscription(("t",), group_instance_id="1"),
    }
    for assignor in (RANGE, ROUND_ROBIN, STICKY, COOPERATIVE_STICKY):
        assigned = assignor.assign({"t": 3}, members)
        assert [assigned[m][0].partition for m in ("c", "b", "a")] == [0, 1, 2], assignor.name


def test_coordinator_partition() -> None:
    """group coordinator: partition of `__consumer_offsets` = abs(hash(groupId)) % 50 (1.3)"""
    # Java: "".hashCode() 0, "a" 97, "hello" 99162322, "polygenelubricants" Integer.MIN_VALUE (Utils.abs
    # makes it 0).
    assert group_partition("") == 0
    assert group_partition("a") == 97 % 50
    assert group_partition("hello") == 99162322 % 50
    assert group_partition("polygenelubricants") == 0
    assert group_partition("\U0001f600", 1000) == (0xD83D * 31 + 0xDE00) % 1000  # UTF-16 code units
    assert group_partition("hello", 7) == 99162322 % 7


def test_errors_are_definite() -> None:
    """Every refusal above says that nothing was stored."""
    for error in (
        UnknownMemberIdError,
        FencedInstanceIdError,
        IllegalGenerationError,
        RebalanceInProgressError,
    ):
        assert issubclass(error, StreamlogError)
        assert not error.indefinite
