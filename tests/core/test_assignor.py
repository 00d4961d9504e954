"""The assignors against Kafka's fixtures, a naive model over all small cases, and the clock."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import FrameType
from typing import Any

import msgspec
import pytest

from streamlog.core.assignor import (
    ASSIGNORS,
    COOPERATIVE_STICKY,
    RANGE,
    ROUND_ROBIN,
    STICKY,
    Assignments,
    RebalanceProtocol,
    member_order,
)
from streamlog.core.consumer_protocol import Subscription, encode_sticky_user_data
from streamlog.record import TopicPartition

NAMES = sorted(ASSIGNORS)


def partitions(text: str) -> list[TopicPartition]:
    """`t0p1 t1p0`"""
    return [TopicPartition(*_split(word)) for word in text.split()]


def _split(word: str) -> tuple[str, int]:
    topic, number = word.rsplit("p", 1)
    return topic, int(number)


def subscriptions(**members: str) -> dict[str, Subscription]:
    return {member_id: Subscription(tuple(topics.split())) for member_id, topics in members.items()}


def owning(
    members: Mapping[str, Subscription], owned: Mapping[str, list[TopicPartition]], generation: int = 1
) -> dict[str, Subscription]:
    """The members as they join again, with what they had - as both sticky assignors carry it."""
    return {
        member_id: msgspec.structs.replace(
            subscription,
            owned=tuple(owned.get(member_id, ())),
            generation=generation,
            user_data=encode_sticky_user_data(owned.get(member_id, ()), generation),
        )
        for member_id, subscription in members.items()
    }


# -- Kafka's fixtures, SEMANTICS 3.6.11 --------------------------------------------------------------------


def test_range_fixture() -> None:
    """range C0:[t0p0,t0p1,t1p0,t1p1] C1:[t0p2,t1p2] (2 topics x 3 partitions)"""
    assert RANGE.assign({"t0": 3, "t1": 3}, subscriptions(C0="t0 t1", C1="t0 t1")) == {
        "C0": partitions("t0p0 t0p1 t1p0 t1p1"),
        "C1": partitions("t0p2 t1p2"),
    }


def test_round_robin_fixture() -> None:
    """roundrobin C0:[t0p0,t0p2,t1p1] C1:[t0p1,t1p0,t1p2]"""
    assert ROUND_ROBIN.assign({"t0": 3, "t1": 3}, subscriptions(C0="t0 t1", C1="t0 t1")) == {
        "C0": partitions("t0p0 t0p2 t1p1"),
        "C1": partitions("t0p1 t1p0 t1p2"),
    }


def test_unequal_subscriptions_fixture() -> None:
    """roundrobin C0[t0p0] C1[t1p0] C2[t1p1,t2p0..2], sticky C0[t0p0] C1[t1p0,t1p1] C2[t2p0..2]"""
    counts = {"t0": 1, "t1": 2, "t2": 3}
    members = subscriptions(C0="t0", C1="t0 t1", C2="t0 t1 t2")
    assert ROUND_ROBIN.assign(counts, members) == {
        "C0": partitions("t0p0"),
        "C1": partitions("t1p0"),
        "C2": partitions("t1p1 t2p0 t2p1 t2p2"),
    }
    for assignor in (STICKY, COOPERATIVE_STICKY):
        assert assignor.assign(counts, members) == {
            "C0": partitions("t0p0"),
            "C1": partitions("t1p0 t1p1"),
            "C2": partitions("t2p0 t2p1 t2p2"),
        }


def test_sticky_fixture_a_member_leaves() -> None:
    """sticky after C1 leaves 4x2p: C0[t0p0,t1p1,t3p0,t2p0] C2[t1p0,t2p1,t0p1,t3p1]"""
    counts = dict.fromkeys(("t0", "t1", "t2", "t3"), 2)
    members = subscriptions(C0="t0 t1 t2 t3", C1="t0 t1 t2 t3", C2="t0 t1 t2 t3")
    before = STICKY.assign(counts, members)
    assert before == {
        "C0": partitions("t0p0 t1p1 t3p0"),
        "C1": partitions("t0p1 t2p0 t3p1"),
        "C2": partitions("t1p0 t2p1"),
    }
    del members["C1"]
    for assignor in (STICKY, COOPERATIVE_STICKY):
        assert assignor.assign(counts, owning(members, before)) == {
            "C0": partitions("t0p0 t1p1 t3p0 t2p0"),
            "C2": partitions("t1p0 t2p1 t0p1 t3p1"),
        }


# -- all assignors -----------------------------------------------------------------------------------------


def test_members_come_by_instance_id_then_by_member_id() -> None:
    members = {
        "a": Subscription(("t",)),
        "z": Subscription(("t",), group_instance_id="i-2"),
        "b": Subscription(("t",)),
        "y": Subscription(("t",), group_instance_id="i-3"),
        "x": Subscription(("t",), group_instance_id="i-1"),
    }
    assert member_order(members) == ["x", "z", "y", "a", "b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_static_member_keeps_its_share_under_a_new_id(name: str) -> None:
    def assign(**ids: str) -> list[list[TopicPartition]]:
        members = {ids[i]: Subscription(("t",), group_instance_id=i) for i in ("i1", "i2", "i3")}
        assigned = ASSIGNORS[name].assign({"t": 7}, members)
        return [assigned[ids[i]] for i in ("i1", "i2", "i3")]

    assert assign(i1="a", i2="b", i3="c") == assign(i1="z", i2="b", i3="a")


@pytest.mark.parametrize("name", NAMES)
def test_missing_topics_and_idle_members(name: str) -> None:
    """Assignment ignores topics that do not exist yet; a member may get nothing."""
    assign = ASSIGNORS[name].assign
    assert assign({}, subscriptions(C0="t0")) == {"C0": []}
    assert assign({"t0": 0}, subscriptions(C0="t0")) == {"C0": []}
    assert assign({"t0": 1, "t9": 3}, subscriptions(C0="t0 t1", C1="t0", C2="")) == {
        "C0": partitions("t0p0"),
        "C1": [],
        "C2": [],
    }
    assert assign({"t0": 1}, {}) == {}
    assert assign({"t0": 2}, subscriptions(C0="t0 t0")) == {"C0": partitions("t0p0 t0p1")}


def small_cases() -> Iterator[tuple[dict[str, int], dict[str, Subscription]]]:
    """Every subscription of 1 to 3 members to 2 topics of 0 to 4 partitions."""
    wishes = ["", "t0", "t1", "t0 t1"]
    for counts in itertools.product(range(5), range(4)):
        for members in (1, 2, 3):
            for chosen in itertools.product(wishes, repeat=members):
                named = {f"C{number}": wish for number, wish in enumerate(chosen)}
                yield {"t0": counts[0], "t1": counts[1]}, subscriptions(**named)


def wanted(counts: Mapping[str, int], members: Mapping[str, Subscription]) -> list[TopicPartition]:
    """Every partition somebody subscribes to."""
    topics = {topic for subscription in members.values() for topic in subscription.topics}
    return [TopicPartition(t, n) for t in sorted(topics & counts.keys()) for n in range(counts[t])]


def check_assigned(
    counts: Mapping[str, int], members: Mapping[str, Subscription], assigned: Assignments
) -> None:
    assert list(assigned) == member_order(members)
    everything = [partition for of_member in assigned.values() for partition in of_member]
    assert sorted(everything) == wanted(counts, members), "each exactly once"
    for member_id, of_member in assigned.items():
        assert {topic for topic, _ in of_member} <= set(members[member_id].topics)


@pytest.mark.parametrize("name", NAMES)
def test_all_small_cases(name: str) -> None:
    assign = ASSIGNORS[name].assign
    for counts, members in small_cases():
        assigned = assign(counts, members)
        check_assigned(counts, members, assigned)
        backwards = dict(reversed(list(members.items())))
        assert assign(counts, backwards) == assigned, "the order of the dict decided something"
        loads = [len(of_member) for of_member in assigned.values()]
        if name != "range" and len({subscription.topics for subscription in members.values()}) == 1:
            assert max(loads) - min(loads) <= 1


def test_range_per_topic() -> None:
    """The naive model of range: per topic within one of each other, in runs, the first members the longer
    ones."""
    for counts, members in small_cases():
        assigned = RANGE.assign(counts, members)
        for topic in counts:
            runs = [
                [number for t, number in assigned[member_id] if t == topic]
                for member_id in sorted(members)
                if topic in members[member_id].topics
            ]
            assert list(itertools.chain(*runs)) == list(range(counts[topic] if runs else 0))
            lengths = list(map(len, runs))
            assert lengths == sorted(lengths, reverse=True)
            assert not lengths or lengths[0] - lengths[-1] <= 1


# -- sticky: as even as can be, and as little moved as can be ----------------------------------------------


def cost(loads: list[int]) -> int:
    return sum(load * load for load in loads)


def best_cost(counts: Mapping[str, int], members: Mapping[str, Subscription]) -> int:
    """The smallest sum of squared loads over all assignments, by trying them all (per topic, only numbers
    matter)."""
    order = sorted(members)
    loads = {tuple([0] * len(order))}
    for topic, count in counts.items():
        subscribers = [position for position, m in enumerate(order) if topic in members[m].topics]
        for _ in range(count if subscribers else 0):
            loads = {
                tuple(load + (position == taker) for position, load in enumerate(one))
                for one in loads
                for taker in subscribers
            }
    return min(cost(list(one)) for one in loads)


@pytest.mark.parametrize("name", ["sticky", "cooperative-sticky"])
def test_no_assignment_is_more_even(name: str) -> None:
    for counts, members in small_cases():
        assigned = ASSIGNORS[name].assign(counts, members)
        loads = [len(of_member) for of_member in assigned.values()]
        assert cost(loads) == best_cost(counts, members), f"{counts} {members} {assigned}"


def test_no_assignment_is_more_even_from_any_previous_one() -> None:
    """Also where the way to balance is a chain over members that do not share a topic."""
    source = random.Random(1)
    for _ in range(400):
        counts = {f"t{n}": source.randint(0, 3) for n in range(4)}
        members = {
            f"C{n}": Subscription(tuple(t for t in counts if source.random() < 0.5))
            for n in range(source.randint(1, 4))
        }
        owned: dict[str, list[TopicPartition]] = {member_id: [] for member_id in members}
        for partition in wanted(counts, members):
            owned[source.choice(sorted(members))].append(partition)  # also ones it does not subscribe to
        assigned = STICKY.assign(counts, owning(members, owned))
        check_assigned(counts, members, assigned)
        loads = [len(of_member) for of_member in assigned.values()]
        assert cost(loads) == best_cost(counts, members), f"{counts} {members} {owned} => {assigned}"


def test_a_chain_of_three() -> None:
    """C0 can give to C1 only and C1 to C2 only; 3 2 1 becomes 2 2 2."""
    counts = {"t0": 3, "t1": 2, "t2": 1}
    members = subscriptions(C0="t0", C1="t0 t1", C2="t1 t2")
    owned = {"C0": partitions("t0p0 t0p1 t0p2"), "C1": partitions("t1p0 t1p1"), "C2": partitions("t2p0")}
    assert STICKY.assign(counts, owning(members, owned)) == {
        "C0": partitions("t0p0 t0p1"),
        "C1": partitions("t1p0 t0p2"),
        "C2": partitions("t2p0 t1p1"),
    }


def test_with_equal_subscriptions_nothing_moves_without_need() -> None:
    """Against the naive count: a member may keep what it had up to its fair share."""
    source = random.Random(2)
    for _ in range(400):
        count, size = source.randint(0, 12), source.randint(1, 5)
        members = subscriptions(**{f"C{n}": "t" for n in range(size)})
        owned: dict[str, list[TopicPartition]] = {member_id: [] for member_id in members}
        for number in range(count):
            if source.random() < 0.8:
                owned[source.choice(sorted(members)[: source.randint(1, size)])].append(
                    TopicPartition("t", number)
                )
        assigned = STICKY.assign({"t": count}, owning(members, owned))
        kept = sum(len(set(assigned[m]) & set(owned[m])) for m in members)
        fair, longer = divmod(count, size)
        had = sorted((len(of_member) for of_member in owned.values()), reverse=True)
        most = sum(min(h, fair + (position < longer)) for position, h in enumerate(had))
        assert kept == most, f"{owned} => {assigned}"


def test_a_second_run_changes_nothing() -> None:
    for counts, members in small_cases():
        first = STICKY.assign(counts, members)
        again = STICKY.assign(counts, owning(members, first))
        assert {m: sorted(p) for m, p in again.items()} == {m: sorted(p) for m, p in first.items()}


def test_of_two_claims_the_newer_generation_counts() -> None:
    members = {
        **owning(subscriptions(C0="t"), {"C0": partitions("tp0 tp1")}, generation=4),
        **owning(subscriptions(C1="t"), {"C1": partitions("tp0 tp1")}, generation=5),
    }
    assert STICKY.assign({"t": 4}, members) == {"C0": partitions("tp2 tp3"), "C1": partitions("tp0 tp1")}


def test_of_two_claims_in_one_generation_neither_counts() -> None:
    members = owning(subscriptions(C0="t", C1="t"), {"C0": partitions("tp1"), "C1": partitions("tp1 tp0")})
    assigned = STICKY.assign({"t": 2}, members)
    assert assigned == {"C0": partitions("tp1"), "C1": partitions("tp0")}


def test_sticky_user_data_round_trip() -> None:
    assert STICKY.user_data(partitions("tp0"), 3) == encode_sticky_user_data(partitions("tp0"), 3)
    assert COOPERATIVE_STICKY.user_data(partitions("tp0"), 3) is None
    assert STICKY.protocol is RebalanceProtocol.EAGER
    assert COOPERATIVE_STICKY.protocol is RebalanceProtocol.COOPERATIVE


# -- cooperative -------------------------------------------------------------------------------------------


def test_cooperative_leaves_out_what_moves() -> None:
    members = subscriptions(C0="t", C1="t")
    had = {"C0": partitions("tp0 tp1 tp2 tp3")}
    first = COOPERATIVE_STICKY.assign({"t": 4}, owning(members, had))
    assert first == {"C0": partitions("tp0 tp1"), "C1": []}
    second = COOPERATIVE_STICKY.assign({"t": 4}, owning(members, first))
    assert second == {"C0": partitions("tp0 tp1"), "C1": partitions("tp2 tp3")}


def test_cooperative_generation_of_an_old_client_is_in_its_user_data() -> None:
    members = {
        "C0": Subscription(("t",), b"\x00\x00\x00\x01", tuple(partitions("tp0"))),
        "C1": Subscription(("t",), b"\x00\x00\x00\x02", tuple(partitions("tp0"))),
    }
    assert COOPERATIVE_STICKY.assign({"t": 1}, members) == {"C0": [], "C1": partitions("tp0")}


def test_a_partition_is_never_owned_by_two_and_two_rounds_suffice() -> None:
    """A random history: members come, go, change topics; partitions are added. Members give up at once what
    they lose."""
    source = random.Random(3)
    for _ in range(60):
        counts = {"t0": 3, "t1": 5}
        owned: dict[str, list[TopicPartition]] = {}
        wishes: dict[str, str] = {}
        generation = 0
        for _ in range(8):
            name = f"C{source.randint(0, 4)}"
            if name in wishes and source.random() < 0.5:
                del wishes[name]
                owned.pop(name, None)
            else:
                wishes[name] = source.choice(["t0", "t1", "t0 t1"])
                owned.setdefault(name, [])
            counts["t0"] += source.random() < 0.3
            for _ in range(2):
                generation += 1
                members = owning(subscriptions(**wishes), owned, generation)
                assigned = COOPERATIVE_STICKY.assign(counts, members)
                for member_id, of_member in assigned.items():
                    for partition in of_member:
                        others = [m for m in owned if m != member_id and partition in owned[m]]
                        assert not others, f"{partition} given to {member_id} while {others} hold it"
                owned = {member_id: list(of_member) for member_id, of_member in assigned.items()}
            check_assigned(counts, members, owned)
            loads = [len(owned[member_id]) for member_id in sorted(members)]
            assert cost(loads) == cost(
                [len(p) for p in STICKY.assign(counts, owning(members, owned)).values()]
            )


# -- speed -------------------------------------------------------------------------------------------------


def _hundred_members() -> Iterator[tuple[str, dict[str, int], dict[str, Subscription]]]:
    source = random.Random(4)
    wide, narrow = {f"t{n}": 100 for n in range(10)}, {f"t{n:03}": 1 for n in range(1000)}
    for label, counts in (("10 topics", wide), ("1,000 topics", narrow)):
        topics = tuple(counts)
        equal = {f"C{n:03}": Subscription(topics) for n in range(100)}
        yield f"{label}, equal", counts, equal
        mixed = {
            f"C{n:03}": Subscription(tuple(source.sample(topics, source.randint(1, len(topics)))))
            for n in range(100)
        }
        yield f"{label}, unequal", counts, mixed
        all_of_them = [TopicPartition(t, n) for t in topics for n in range(counts[t])]
        yield f"{label}, one had all", counts, owning(equal, {"C000": all_of_them})


def _lines_of(act: Callable[[], object]) -> int:
    """How many lines of Python run: the same on a busy machine as on an idle one."""
    seen = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal seen
        seen += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_members_and_a_thousand_partitions_are_no_work_to_speak_of(name: str) -> None:
    """A million lines take about 200 ms. To look at each topic once for each pair of members takes ten million."""
    for label, counts, members in _hundred_members():
        lines = _lines_of(partial(ASSIGNORS[name].assign, counts, members))
        assert lines < 1_200_000, f"{name}, {label}: {lines}"
