"""The values of a group: the table of states, the vote, the stored form, and the check that guards them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streamlog.core.consumer_protocol import Subscription, encode_subscription
from streamlog.core.group_records import StoredGroup, StoredMember
from streamlog.core.group_state import (
    VALID_PREVIOUS,
    GroupState,
    Member,
    Pending,
    State,
    from_stored,
)
from streamlog.errors import CorruptRecordError

TOPIC_A = encode_subscription(Subscription(("a",)))
TOPIC_B = encode_subscription(Subscription(("b",)))


def member(member_id: str, *names: str, instance: str | None = None, **fields: Any) -> Member:
    protocols = tuple((name, TOPIC_A) for name in names or ("range",))
    return Member(member_id, instance, "c", "/h", 60, 10, "consumer", protocols, **fields)


def stable(*members: Member) -> GroupState:
    return GroupState(
        state=State.STABLE,
        generation=1,
        protocol_type="consumer",
        protocol="range",
        leader=members[0].member_id,
        members={m.member_id: m for m in members},
        static_members={m.group_instance_id: m.member_id for m in members if m.group_instance_id is not None},
        sessions={m.member_id: 10 for m in members},
    )


def test_every_state_has_its_row_and_says_what_it_does() -> None:
    assert set(VALID_PREVIOUS) == set(State)
    assert [state.value for state in State] == [
        "Empty",
        "PreparingRebalance",
        "CompletingRebalance",
        "Stable",
        "Dead",
    ]
    assert not any(State.DEAD in previous for previous in VALID_PREVIOUS.values()), "Dead is the end"


@pytest.mark.parametrize(
    ("votes", "winner"),
    [
        (["a"], "a"),
        (["a b", "b a", "b a"], "b"),
        (["a b", "b a"], "a"),  # a tie: voted for first, in the order of joining
        (["b a", "a b"], "b"),
        (["a b c", "c b", "b c"], "b"),  # a is out; b 2, c 1
        (["a c", "b c"], "c"),
    ],
)
def test_select_protocol(votes: list[str], winner: str) -> None:
    members = [member(f"m{position}", *vote.split()) for position, vote in enumerate(votes)]
    assert stable(*members).select_protocol() == winner


def test_supports_protocols() -> None:
    group = stable(member("m1", "a", "b"), member("m2", "b", "c"))
    assert group.supports_protocols("consumer", (("x", b""), ("b", b"")))
    assert not group.supports_protocols("consumer", (("a", b""), ("c", b"")))
    assert not group.supports_protocols("connect", (("b", b""),))
    assert not group.supports_protocols("consumer", ())
    assert not GroupState().supports_protocols("", (("b", b""),))
    assert GroupState().supports_protocols("connect", (("b", b""),))


def test_subscribed_topics() -> None:
    assert stable(member("m1")).subscribed_topics() == {"a"}
    two = msgspec.structs.replace(member("m2"), protocols=(("range", TOPIC_B), ("other", TOPIC_A)))
    assert stable(member("m1"), two).subscribed_topics() == {"a", "b"}
    unreadable = msgspec.structs.replace(member("m3"), protocols=(("range", b"?"),))
    assert stable(member("m1"), unreadable).subscribed_topics() is None
    connect = msgspec.structs.replace(stable(member("m1")), protocol_type="connect")
    assert connect.subscribed_topics() is None


def test_a_copy_is_independent() -> None:
    group = stable(member("m1", instance="i"))
    before = repr(group)
    copy = group.copy()
    copy.members.clear()
    copy.static_members.clear()
    copy.sessions.clear()
    copy.pending["p"] = Pending(1, 1)
    copy.awaited_syncs["m1"] = None
    assert repr(group) == before


def test_stored_form_and_back() -> None:
    group = stable(member("m1", assignment=b"as"), member("m2", instance="i"))
    group.state_timestamp_ms = 77
    loaded = from_stored(group.to_stored())
    assert loaded.to_stored() == group.to_stored()
    assert (loaded.state, loaded.generation, loaded.leader, loaded.static_members) == (
        State.STABLE,
        1,
        "m1",
        {"i": "m2"},
    )
    empty = from_stored(StoredGroup("consumer", 4, None, None, 5, ()))
    assert (empty.state, empty.generation, empty.protocol, empty.leader) == (State.EMPTY, 4, None, None)
    empty.check()


def test_impossible_records_are_refused_not_asserted() -> None:
    one = StoredMember("m", "i", "c", "/h", 60, 10, TOPIC_A, b"")
    for two in (one, msgspec.structs.replace(one, member_id="n")):
        with pytest.raises(CorruptRecordError, match="one id"):
            from_stored(StoredGroup("consumer", 1, "range", "m", 0, (one, two)))
    assert from_stored(StoredGroup("consumer", 1, "range", "nobody", 0, (one,))).leader == "m"


def test_sessions_only() -> None:
    group = stable(member("m1"), member("m2"))
    later = group.copy()
    later.sessions["m1"] = 99
    later.version = 5
    assert later.differs_in_sessions_only(group)
    for change in ({"generation": 2}, {"leader": "m2"}, {"members": {}}, {"sessions": {}}):
        assert not msgspec.structs.replace(later, **change).differs_in_sessions_only(group)


M1 = member("m1")


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (1, {"state": State.EMPTY}),
        (1, {"members": {}, "leader": None, "sessions": {}}),
        (2, {"leader": "m2"}),
        (2, {"leader": None}),
        (3, {"protocol": None}),
        (3, {"protocol": "sticky"}),
        (4, {"static_members": {"i": "m1"}}),
        (5, {"members": {"m1": msgspec.structs.replace(M1, is_joining=True, join_token=1)}}),
        (5, {"members": {"m1": msgspec.structs.replace(M1, sync_token=1)}}),
        (6, {"sessions": {}}),
        (6, {"sessions": {"m1": 1, "m2": 1}}),
        (7, {"rebalance_deadline_ms": 5}),
        (7, {"state": State.PREPARING_REBALANCE}),
        (7, {"sync_deadline_ms": 5}),
        (7, {"awaited_syncs": {"m1": None}}),
        (8, {"pending": {"m1": Pending(1, 1)}}),
        (8, {"awaited_syncs": {"m2": None}, "sync_deadline_ms": 5}),
    ],
)
def test_check_sees_each_broken_invariant(number: int, change: dict[str, object]) -> None:
    good = stable(M1)
    good.check()
    with pytest.raises(AssertionError, match=f"^{number}: "):
        msgspec.structs.replace(good, **change).check()
