"""SEMANTICS 3.6 as far as clients are concerned (4, 5, 6, 9), and what DESIGN promises of consuming,
sentence by sentence.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import streamlog
from streamlog import Cluster, Consumer, TopicPartition
from streamlog.errors import CommitFailedError
from streamlog.testing import Simulation

RANGE, COOPERATIVE = ["range"], ["cooperative-sticky"]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with streamlog.open(":memory:", sync="off") as cluster:
        cluster.create_topic("t", partitions=4)
        yield cluster


def fill(cluster: Cluster, count: int = 40) -> None:
    with cluster.producer() as producer:
        for number in range(count):
            producer.send("t", b"%d" % number, partition=number % 4)


def rounds(members: list[Consumer], count: int = 3) -> None:
    for _ in range(count):
        for member in members:
            member.poll(0)


def held(member: Consumer) -> set[int]:
    return {tp.partition for tp in member.assignment}


# -- 3.6.4 auto commit -------------------------------------------------------------------------------------


def test_4_auto_commit_commits_the_records_of_the_earlier_poll(cluster: Cluster) -> None:
    fill(cluster)
    group = cluster.consumer_group("g", ["t"], auto_commit_interval_ms=0)
    member = group.consumer()
    handed_out = len(member.poll(1, max_records=10))
    for _ in range(3):
        before = handed_out
        handed_out += len(member.poll(1, max_records=10))
        assert sum(group.offsets().values()) == before


def test_4_a_crash_means_redelivery_not_loss(cluster: Cluster) -> None:
    fill(cluster)
    group = cluster.consumer_group("g", ["t"], auto_commit_interval_ms=0)
    first = group.consumer()
    processed = [record.value for record in first.poll(1, max_records=10)]
    in_hand = [record.value for record in first.poll(1, max_records=10)]
    first._leave_group()  # as a process that dies: nothing more is committed
    second = group.consumer(stop_at_end=True)
    again = [record.value for record in second]
    assert set(processed) | set(again) == {b"%d" % number for number in range(40)}
    assert set(in_hand) <= set(again), "what was in hand comes again"


# -- 3.6.5 eager and cooperative ---------------------------------------------------------------------------


def test_5_eager_members_give_up_all_they_have_and_then_rejoin(cluster: Cluster) -> None:
    revoked: list[set[int]] = []
    group = cluster.consumer_group("g", ["t"], partition_assignment_strategy=RANGE)
    first = group.consumer(on_revoked=lambda partitions: revoked.append({tp.partition for tp in partitions}))
    rounds([first])
    second = group.consumer()
    second.poll(0)
    first.poll(0)
    assert revoked == [{0, 1, 2, 3}]


def test_5_cooperative_members_keep_what_they_own_and_revoke_only_what_moves(cluster: Cluster) -> None:
    fill(cluster, 400)
    revoked: list[set[int]] = []
    group = cluster.consumer_group("g", ["t"], partition_assignment_strategy=COOPERATIVE)
    first = group.consumer(on_revoked=lambda partitions: revoked.append({tp.partition for tp in partitions}))
    rounds([first])
    second = group.consumer()
    kept: set[int] = held(first)
    for _ in range(3):
        second.poll(0)
        first.poll(0)
        kept &= held(first)
    assert len(kept) == 2 and revoked == [{0, 1, 2, 3} - kept] and held(second) == revoked[0]


def test_5_a_cooperative_member_goes_on_reading_while_the_group_rebalances(cluster: Cluster) -> None:
    group = cluster.consumer_group("g", ["t"], partition_assignment_strategy=COOPERATIVE)
    first = group.consumer()
    rounds([first])
    joining = group.consumer()
    joining.poll(0)
    fill(cluster, 4)
    assert len(first.poll(1)) >= 2


@pytest.mark.parametrize("strategy", [RANGE, COOPERATIVE])
def test_5_a_partition_is_never_owned_by_two_live_members_and_moves_through_nobodys_hands(
    cluster: Cluster, strategy: list[str]
) -> None:
    group = cluster.consumer_group("g", ["t"], partition_assignment_strategy=strategy)
    first, second = group.consumer(), group.consumer()
    rounds([first])
    unowned = False
    for _ in range(4):
        for member in (second, first):
            member.poll(0)
            assert not held(first) & held(second)
            unowned |= len(held(first) | held(second)) < 4
    assert unowned and held(first) | held(second) == {0, 1, 2, 3}


# -- 3.6.6 lost --------------------------------------------------------------------------------------------


def test_6_lost_is_called_when_the_member_was_dropped_and_committing_there_fails(cluster: Cluster) -> None:
    calls: list[str] = []

    def lost(partitions: list[TopicPartition]) -> None:
        calls.append("lost")
        with pytest.raises(CommitFailedError):
            member.commit(dict.fromkeys(partitions, 1))

    member = cluster.consumer_group("g", ["t"]).consumer(
        on_lost=lost, on_revoked=lambda _: calls.append("revoked")
    )
    member.poll(0)
    membership = member._membership
    assert membership is not None
    membership.heartbeat(membership.last_poll_ms + member.config.max_poll_interval_ms + 1)
    member.poll(0)
    assert calls == ["lost"] and len(member.assignment) == 4


# -- 3.6.9 what triggers a rebalance -----------------------------------------------------------------------


def generation(member: Consumer) -> int:
    assert member._membership is not None
    return member._membership.generation


@pytest.mark.parametrize("trigger", ["join", "leave", "partitions", "subscription", "topic"])
def test_9_triggers(cluster: Cluster, trigger: str) -> None:
    cluster.create_topic("u")
    group = cluster.consumer_group("g", ["t", "later"])
    first, second = group.consumer(), group.consumer()
    rounds([first, second])
    before = generation(first)
    rounds([first, second])
    assert generation(first) == before, "nothing happened"
    members = [first, second]
    if trigger == "join":
        members.append(group.consumer())
    elif trigger == "leave":
        members.remove(second)
        second.close()
    elif trigger == "partitions":
        cluster.topic("t").add_partitions(5)
    elif trigger == "subscription":
        second.subscribe(["u"])
    else:
        cluster.create_topic("later")
    rounds(members)
    assert generation(first) > before
    everything = set().union(*(member.assignment for member in members))
    assert {tp.topic for tp in everything} == {"t"} | {"subscription": {"u"}, "topic": {"later"}}.get(
        trigger, set()
    )


def test_9_topics_that_do_not_exist_yet_are_left_out(cluster: Cluster) -> None:
    member = cluster.consumer_group("g", ["t", "nowhere"]).consumer()
    member.poll(0)
    assert {tp.topic for tp in member.assignment} == {"t"}


# -- DESIGN, Consuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [RANGE, COOPERATIVE])
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_members_polled_in_turn_by_one_thread_converge_within_three_rounds(
    cluster: Cluster, strategy: list[str], count: int
) -> None:
    group = cluster.consumer_group("g", ["t"], partition_assignment_strategy=strategy)
    members = [group.consumer() for _ in range(count)]
    rounds(members, 3)
    assert sorted(number for member in members for number in held(member)) == [0, 1, 2, 3]
    assert max(len(held(member)) for member in members) == -(-4 // count)


@pytest.mark.parametrize("partitions", [4, 12, 30])
@pytest.mark.parametrize("count", range(1, 9))
def test_cooperative_members_converge_within_three_rounds_and_a_grown_group_within_four(
    cluster: Cluster, count: int, partitions: int
) -> None:
    # Four: what a member gives up at its turn of the third round goes to one that had its turn already.
    cluster.create_topic("wide", partitions=partitions)
    for old in range(count):
        for newcomers_first in (False, True):
            group = cluster.consumer_group(
                f"g-{old}-{newcomers_first}", ["wide"], partition_assignment_strategy=COOPERATIVE
            )
            members = [group.consumer() for _ in range(old)]
            watched_rounds(members, partitions, 3)
            newcomers = [group.consumer() for _ in range(count - old)]
            members = newcomers + members if newcomers_first else members + newcomers
            watched_rounds(members, partitions, 4 if old else 3)
            for member in members:
                member.close()


def watched_rounds(members: list[Consumer], partitions: int, count: int) -> None:
    """Poll in turn: nothing is ever owned twice (KIP-429), and in the end all is, evenly."""
    for _ in range(count if members else 0):
        for member in members:
            member.poll(0)
            owned = [tp for each in members for tp in each.assignment]
            assert len(owned) == len(set(owned)), "a partition has two owners"
    shares = [len(member.assignment) for member in members]
    assert not members or (sum(shares) == partitions and max(shares) - min(shares) <= 1), shares


def test_a_join_continues_across_polls_and_poll_never_exceeds_its_timeout() -> None:
    simulation = Simulation()
    with streamlog.open(":memory:", sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", partitions=4)
        group = cluster.consumer_group("g", ["t"])
        first, second = group.consumer(), group.consumer()
        first.poll(0)
        for timeout_ms in (0, 20, 100):
            began_ms = simulation.now_ms
            second.poll(timeout_ms / 1000)
            assert simulation.now_ms - began_ms <= timeout_ms
        first.poll(0)
        rounds([second, first])
        assert len(held(second)) == 2


def test_while_iterating_the_position_is_the_last_handed_out_offset_plus_1(cluster: Cluster) -> None:
    fill(cluster)
    with cluster.consumer_group("g", ["t"]).consumer(stop_at_end=True) as member:
        for record in member:
            assert member.position((record.topic, record.partition)) == record.offset + 1


def test_auto_commit_never_passes_the_record_the_loop_body_still_holds(cluster: Cluster) -> None:
    fill(cluster, 400)
    group = cluster.consumer_group("g", ["t"], auto_commit_interval_ms=0)
    with group.consumer(stop_at_end=True) as member:
        for record in member:
            assert group.offsets().get(TopicPartition("t", record.partition), 0) <= record.offset
    assert sum(group.offsets().values()) == 400


def test_leaving_on_an_exception_closes_without_auto_commit(cluster: Cluster) -> None:
    fill(cluster)
    group = cluster.consumer_group("g", ["t"])
    with pytest.raises(ZeroDivisionError), group.consumer() as member:
        for _ in member:
            1 / 0  # noqa: B018
    assert group.offsets() == {} and group.members() == []


def test_break_loses_nothing(cluster: Cluster) -> None:
    fill(cluster)
    group = cluster.consumer_group("g", ["t"])
    got: list[bytes | None] = []
    while len(got) < 40:
        with group.consumer() as member:
            for record in member:
                got.append(record.value)
                if len(got) % 7 == 0 or len(got) == 40:
                    break
    assert sorted(got) == sorted(b"%d" % number for number in range(40)), "each once"


def test_stop_at_end_captures_the_end_at_the_first_assignment(cluster: Cluster) -> None:
    fill(cluster)
    group = cluster.consumer_group("g", ["t"])
    with group.consumer(stop_at_end=True) as member:
        assert not member.at_end
        seen = 0
        for _ in member:
            seen += 1
            if seen % 10 == 0:
                fill(cluster, 4)  # somebody goes on writing
    assert 40 <= seen <= 60


def test_blocking_commit_with_nothing_consumed_is_a_no_op(cluster: Cluster) -> None:
    group = cluster.consumer_group("g", ["t"])
    member = group.consumer()
    member.commit()
    member.poll(0)
    member.commit()
    assert group.offsets() == {}


def test_blocking_commit_drives_a_rebalance_and_retries(cluster: Cluster) -> None:
    fill(cluster)
    group = cluster.consumer_group("g", ["t"], enable_auto_commit=False)
    member = group.consumer()
    member.commit({TopicPartition("t", 0): 3})  # has not even joined
    assert group.offsets() == {TopicPartition("t", 0): 3}
    rounds([member])
    cluster.topic("t").add_partitions(5)  # a rebalance is due
    positions = {tp: member.position(tp) for tp in member.assignment}
    member.commit()
    assert group.offsets() == positions
