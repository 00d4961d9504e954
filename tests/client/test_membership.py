"""Members of a group as they join, share, leave, are lost: driven by polls of one thread unless said
otherwise.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import streamlog
from streamlog import Cluster, Consumer, Topic, TopicPartition
from streamlog.errors import (
    CommitFailedError,
    FencedInstanceIdError,
    IllegalStateError,
    InconsistentGroupProtocolError,
    InvalidSessionTimeoutError,
    RebalanceInProgressError,
    StreamlogError,
)
from streamlog.testing import Simulation

RANGE, COOPERATIVE = ["range"], ["cooperative-sticky"]
STRATEGIES = pytest.mark.parametrize(
    "strategy", [RANGE, COOPERATIVE, ["roundrobin"], ["sticky"], ["range", "cooperative-sticky"]]
)


@pytest.fixture
def topic(cluster: Cluster) -> Topic:
    return cluster.create_topic("orders", partitions=6)


def partitions_of(consumer: Consumer) -> list[int]:
    return sorted(tp.partition for tp in consumer.assignment)


def poll_rounds(members: list[Consumer], rounds: int = 3) -> None:
    for _ in range(rounds):
        for member in members:
            member.poll(0)


def owned(members: list[Consumer]) -> list[int]:
    return sorted(number for member in members for number in partitions_of(member))


# -- converging --------------------------------------------------------------------------------------------


@STRATEGIES
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_members_polled_in_turn_converge_within_three_rounds(
    cluster: Cluster, topic: Topic, strategy: list[str], count: int
) -> None:
    group = cluster.consumer_group("g", ["orders"], partition_assignment_strategy=strategy)
    members = [group.consumer() for _ in range(count)]
    poll_rounds(members)
    assert owned(members) == list(range(6)), [partitions_of(member) for member in members]
    assert all(len(member.assignment) == 6 // count for member in members)
    assert group.state == "Stable" and len(group.members()) == count


@STRATEGIES
def test_a_member_that_comes_later_and_goes_again(
    cluster: Cluster, topic: Topic, strategy: list[str]
) -> None:
    group = cluster.consumer_group("g", ["orders"], partition_assignment_strategy=strategy)
    first = group.consumer()
    poll_rounds([first])
    assert owned([first]) == list(range(6))
    second = group.consumer()
    poll_rounds([first, second])
    assert owned([first, second]) == list(range(6)) and len(second.assignment) == 3
    second.close()
    poll_rounds([first])
    assert owned([first]) == list(range(6))
    assert len(group.members()) == 1
    first.close()
    assert group.state == "Empty" and group.members() == []


def test_more_members_than_partitions(cluster: Cluster, single: Topic) -> None:
    group = cluster.consumer_group("g", ["single"])
    members = [group.consumer() for _ in range(3)]
    poll_rounds(members)
    assert sorted(len(member.assignment) for member in members) == [0, 0, 1]


@STRATEGIES
def test_no_partition_is_ever_owned_twice(cluster: Cluster, topic: Topic, strategy: list[str]) -> None:
    group = cluster.consumer_group("g", ["orders"], partition_assignment_strategy=strategy)
    members: list[Consumer] = []
    for _ in range(4):
        members.append(group.consumer())
        for _ in range(3):
            for member in members:
                member.poll(0)
                held = owned(members)
                assert len(held) == len(set(held)), [partitions_of(one) for one in members]
    while members:
        members.pop(0).close()
        for _ in range(3):
            for member in members:
                member.poll(0)
                held = owned(members)
                assert len(held) == len(set(held))


def test_cooperative_members_keep_what_does_not_move(cluster: Cluster, topic: Topic) -> None:
    revoked: list[TopicPartition] = []
    group = cluster.consumer_group("g", ["orders"], partition_assignment_strategy=COOPERATIVE)
    first = group.consumer(on_revoked=revoked.extend)
    poll_rounds([first])
    before = first.assignment
    second = group.consumer()
    poll_rounds([first, second])
    assert (
        len(revoked) == 3 and first.assignment == before - set(revoked) and second.assignment == set(revoked)
    )


def test_poll_never_exceeds_its_timeout_however_the_group_does() -> None:
    simulation = Simulation()
    with streamlog.open(":memory:", sync="off", runtime=simulation) as cluster:
        cluster.create_topic("orders", partitions=6)
        group = cluster.consumer_group("g", ["orders"])
        first, second = group.consumer(), group.consumer()
        first.poll(0)
        for timeout_ms in (0, 50, 100):  # first never rejoins
            began_ms = simulation.now_ms
            assert second.poll(timeout_ms / 1000) == []
            assert simulation.now_ms - began_ms == timeout_ms
        assert second.assignment == frozenset()
        poll_rounds([first, second])
        assert owned([first, second]) == list(range(6))


def test_members_in_threads_of_their_own_converge(cluster: Cluster, topic: Topic) -> None:
    group = cluster.consumer_group("g", ["orders"])
    members = [group.consumer() for _ in range(3)]
    stop = threading.Event()

    def work(member: Consumer) -> None:
        while not stop.is_set():
            member.poll(0.05)

    threads = [threading.Thread(target=work, args=(member,)) for member in members]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while owned(members) != list(range(6)) or len(group.members()) < 3:
        assert time.monotonic() < deadline, [partitions_of(member) for member in members]
        stop.wait(0.002)
    stop.set()
    for thread in threads:
        thread.join()


def test_a_member_that_waits_in_poll_takes_part_in_rebalances(cluster: Cluster, topic: Topic) -> None:
    group = cluster.consumer_group("g", ["orders"])
    first = group.consumer()
    poll_rounds([first])
    thread = threading.Thread(target=lambda: first.poll(20))
    thread.start()
    second = group.consumer()
    began = time.monotonic()
    while len(second.assignment) < 3:
        second.poll(0.05)
        assert time.monotonic() - began < 10
    first.wakeup()
    thread.join()


# -- what is subscribed ------------------------------------------------------------------------------------


def test_a_pattern_follows_new_topics(cluster: Cluster) -> None:
    cluster.create_topic("logs-a", partitions=2)
    cluster.create_topic("other")
    group = cluster.consumer_group("g", re.compile(r"logs-.*"))
    first, second = group.consumer(), group.consumer()
    poll_rounds([first, second])
    assert first.subscription == {"logs-a"}
    assert {tp.topic for tp in first.assignment | second.assignment} == {"logs-a"}
    cluster.create_topic("logs-b", partitions=2)
    poll_rounds([first, second], 4)
    assert len(first.assignment | second.assignment) == 4 and not first.assignment & second.assignment
    cluster.delete_topic("logs-a")
    poll_rounds([first, second], 4)
    assert {tp.topic for tp in first.assignment | second.assignment} == {"logs-b"}
    assert group.topics == ["logs-b"]


def test_a_pattern_never_takes_internal_topics(cluster: Cluster, single: Topic) -> None:
    consumer = cluster.consumer_group("g", re.compile(".*")).consumer()
    poll_rounds([consumer])
    assert {tp.topic for tp in consumer.assignment} == {"single"}


def test_a_topic_made_later_is_taken_up_also_while_waiting(cluster: Cluster) -> None:
    consumer = cluster.consumer_group("g", ["later"]).consumer()
    assert consumer.poll(0.01) == [] and consumer.assignment == frozenset()

    def make() -> None:
        cluster.create_topic("later")
        with cluster.producer() as producer:
            producer.send("later", b"x")

    timer = threading.Timer(0.03, make)
    timer.start()
    began = time.monotonic()
    for record in consumer:
        assert record.value == b"x" and time.monotonic() - began < 10
        break
    timer.join()


def test_partitions_added_later_are_shared_out(cluster: Cluster, topic: Topic) -> None:
    group = cluster.consumer_group("g", ["orders"])
    members = [group.consumer() for _ in range(2)]
    poll_rounds(members)
    topic.add_partitions(10)
    poll_rounds(members, 4)
    assert owned(members) == list(range(10))


def test_a_topic_deleted_and_made_anew_is_read_from_its_start(cluster: Cluster, topic: Topic) -> None:
    def fill(count: int) -> None:
        with cluster.producer() as producer:
            producer.send_many("orders", [(None, b"%d" % i) for i in range(count)])

    fill(50)
    group = cluster.consumer_group("g", ["orders"])
    consumer = group.consumer()
    got = [record for _ in range(20) for record in consumer.poll(0)]
    consumer.commit()
    assert len(got) == 50 and sum(group.offsets().values()) == 50
    topic.delete()
    assert group.offsets() == {}
    cluster.create_topic("orders", partitions=6)
    fill(7)
    got = [record for _ in range(20) for record in consumer.poll(0.01)]
    assert sorted(int(record.value or b"") for record in got) == list(range(7))


def test_subscribing_to_something_else(cluster: Cluster, topic: Topic, single: Topic) -> None:
    consumer = cluster.consumer(group_id="g")
    consumer.subscribe(["orders"])
    poll_rounds([consumer])
    consumer.subscribe("single")
    poll_rounds([consumer])
    assert consumer.assignment == {("single", 0)} and consumer.subscription == {"single"}
    consumer.unsubscribe()
    assert consumer.assignment == frozenset() == consumer.subscription
    consumer.assign([("orders", 1)])
    with pytest.raises(IllegalStateError):
        consumer.subscribe(["orders"])
    consumer.unsubscribe()
    consumer.subscribe(["orders"])
    with pytest.raises(IllegalStateError):
        consumer.assign([("orders", 1)])
    poll_rounds([consumer])
    assert len(consumer.assignment) == 6


@pytest.mark.parametrize(
    "wrong", [[], 7, None, [7], [""], b"orders", ["a b"], {"orders": 1}, re.compile(b"x")]
)
def test_impossible_subscriptions_change_nothing(cluster: Cluster, topic: Topic, wrong: Any) -> None:
    consumer = cluster.consumer(group_id="g")
    consumer.subscribe(["orders"])
    with pytest.raises(StreamlogError):
        consumer.subscribe(wrong)
    assert consumer.subscription == {"orders"}


# -- listeners ---------------------------------------------------------------------------------------------


class Heard:
    """What rebalance listeners were told, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []

    def options(self) -> dict[str, Any]:
        return {f"on_{word}": self.note(word) for word in ("assigned", "revoked", "lost")}

    def note(self, word: str) -> Any:
        return lambda partitions: self.calls.append((word, sorted(tp.partition for tp in partitions)))


def test_listeners_of_an_eager_member(cluster: Cluster, topic: Topic) -> None:
    heard, group = Heard(), cluster.consumer_group("g", ["orders"], partition_assignment_strategy=RANGE)
    first = group.consumer(**heard.options())
    assert heard.calls == []
    poll_rounds([first])
    second = group.consumer()
    poll_rounds([first, second])
    first.close()
    everything, mine = list(range(6)), heard.calls[2][1]
    assert heard.calls == [
        ("assigned", everything),
        ("revoked", everything),
        ("assigned", mine),
        ("revoked", mine),
    ]
    assert len(mine) == 3


def test_listeners_of_a_cooperative_member(cluster: Cluster, topic: Topic) -> None:
    heard, group = Heard(), cluster.consumer_group("g", ["orders"], partition_assignment_strategy=COOPERATIVE)
    first = group.consumer(**heard.options())
    poll_rounds([first])
    second = group.consumer()
    poll_rounds([first, second])
    words = [word for word, partitions in heard.calls if partitions or word == "assigned"]
    assert heard.calls[0] == ("assigned", list(range(6)))
    assert [call for call in heard.calls if call[0] == "revoked"] == [("revoked", partitions_of(second))]
    assert (
        "assigned",
        [],
    ) in heard.calls and "lost" not in words  # Kafka: told at every rebalance, even of nothing


def test_unsubscribing_and_closing_revoke(cluster: Cluster, topic: Topic) -> None:
    for leave in (Consumer.unsubscribe, Consumer.close):
        heard = Heard()
        consumer = cluster.consumer_group("g", ["orders"]).consumer(**heard.options())
        poll_rounds([consumer])
        leave(consumer)
        assert heard.calls == [("assigned", list(range(6))), ("revoked", list(range(6)))]
        assert consumer.assignment == frozenset()


def test_a_listener_may_commit_what_it_is_about_to_lose(cluster: Cluster, topic: Topic) -> None:
    with cluster.producer() as producer:
        producer.send_many("orders", [(b"%d" % i, b"x") for i in range(60)])
    group = cluster.consumer_group("g", ["orders"], enable_auto_commit=False)
    for trigger in ("rebalance", "close"):
        group.reset_offsets("earliest")
        consumer = group.consumer(on_revoked=lambda _: consumer.commit())  # noqa: B023
        while sum(consumer.position(tp) for tp in consumer.assignment) < 60:
            consumer.poll(0.1)
        if trigger == "rebalance":
            second = group.consumer()
            poll_rounds([consumer, second])
            assert sum(group.offsets().values()) == 60
            second.close()
        consumer.close()
        assert sum(group.offsets().values()) == 60


def test_what_a_listener_raises_reaches_poll_and_nothing_is_left_half_done(
    cluster: Cluster, topic: Topic
) -> None:
    for strategy in (RANGE, COOPERATIVE):
        group = cluster.consumer_group("g" + strategy[0], ["orders"], partition_assignment_strategy=strategy)
        first = group.consumer(on_revoked=lambda _: 1 / 0)
        poll_rounds([first])
        second = group.consumer()
        raised = 0
        for _ in range(5):
            try:
                first.poll(0)
            except ZeroDivisionError:
                raised += 1
            second.poll(0)
        assert raised == 1
        assert owned([first, second]) == list(range(6)) and len(second.assignment) == 3
        second.close()
        with pytest.raises(ZeroDivisionError):
            first.close()
        assert group.members() == []


def test_polling_inside_a_listener_does_no_harm(cluster: Cluster, topic: Topic) -> None:
    group = cluster.consumer_group("g", ["orders"])
    first = group.consumer(on_revoked=lambda _: first.poll(0), on_assigned=lambda _: first.poll(0))
    second = group.consumer()
    poll_rounds([first, second], 4)
    assert owned([first, second]) == list(range(6))


# -- being dropped -----------------------------------------------------------------------------------------


def test_a_member_nobody_polls_leaves_and_what_it_had_is_lost(cluster: Cluster, topic: Topic) -> None:
    heard, group = Heard(), cluster.consumer_group("g", ["orders"])
    consumer = group.consumer(**heard.options())
    poll_rounds([consumer])
    with cluster.producer() as producer:
        producer.send_many("orders", [(b"%d" % i, b"x") for i in range(60)])
    consumer.poll(1)
    membership = consumer._membership
    assert membership is not None
    membership.heartbeat(membership.last_poll_ms + consumer.config.max_poll_interval_ms)
    assert len(group.members()) == 1
    membership.heartbeat(membership.last_poll_ms + consumer.config.max_poll_interval_ms + 1)
    assert group.members() == []
    with pytest.raises(CommitFailedError, match="max_poll_interval_ms"):
        consumer.commit()
    consumer.poll(0)
    assert [word for word, _ in heard.calls] == ["assigned", "lost", "assigned"]
    assert len(consumer.assignment) == 6 and len(group.members()) == 1


def test_waiting_inside_poll_is_no_silence(cluster: Cluster, topic: Topic) -> None:
    consumer = cluster.consumer_group(
        "g", ["orders"], max_poll_interval_ms=50, heartbeat_interval_ms=5
    ).consumer()
    poll_rounds([consumer])
    generation = consumer._membership.generation  # type: ignore[union-attr]
    consumer.poll(0.3)
    assert len(cluster.consumer_group("g").members()) == 1
    assert consumer._membership.generation == generation  # type: ignore[union-attr]


def test_max_poll_interval_for_real(cluster: Cluster, topic: Topic) -> None:
    group = cluster.consumer_group("g", ["orders"], max_poll_interval_ms=30, heartbeat_interval_ms=5)
    consumer = group.consumer()
    poll_rounds([consumer])
    deadline = time.monotonic() + 10
    while group.members():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)
    poll_rounds([consumer])
    assert len(consumer.assignment) == 6


def test_the_lost_listener_defaults_to_the_revoked_one(cluster: Cluster, topic: Topic) -> None:
    heard = Heard()
    consumer = cluster.consumer_group("g", ["orders"]).consumer(on_revoked=heard.note("revoked"))
    poll_rounds([consumer])
    membership = consumer._membership
    assert membership is not None
    membership.heartbeat(membership.last_poll_ms + 300_001)
    consumer.poll(0)
    assert heard.calls == [("revoked", list(range(6)))]


def test_committing_what_was_lost_fails(cluster: Cluster, topic: Topic) -> None:
    errors: list[BaseException] = []

    def lost(partitions: list[TopicPartition]) -> None:
        try:
            consumer.commit(dict.fromkeys(partitions, 1))
        except StreamlogError as error:
            errors.append(error)

    consumer = cluster.consumer_group("g", ["orders"], enable_auto_commit=False).consumer(on_lost=lost)
    poll_rounds([consumer])
    membership = consumer._membership
    assert membership is not None
    membership.heartbeat(membership.last_poll_ms + 300_001)
    consumer.poll(0)
    assert [type(error) for error in errors] == [CommitFailedError]


# -- static members ----------------------------------------------------------------------------------------


def test_a_static_member_that_comes_back_keeps_its_partitions_without_a_rebalance(
    cluster: Cluster, topic: Topic
) -> None:
    group = cluster.consumer_group("g", ["orders"])
    one, two = (group.consumer(group_instance_id=name) for name in ("one", "two"))
    poll_rounds([one, two])
    before = one.assignment
    generation = two._membership.generation  # type: ignore[union-attr]
    one.close()
    assert len(group.members()) == 2, "a static member does not leave"
    again = group.consumer(group_instance_id="one")
    poll_rounds([again, two], 2)
    assert again.assignment == before
    assert two._membership.generation == generation  # type: ignore[union-attr]
    assert sorted(member.group_instance_id or "" for member in group.members()) == ["one", "two"]


def test_a_second_member_of_the_same_name_fences_the_first(cluster: Cluster, topic: Topic) -> None:
    heard = Heard()
    group = cluster.consumer_group("g", ["orders"])
    first = group.consumer(group_instance_id="one", **heard.options())
    poll_rounds([first])
    second = group.consumer(group_instance_id="one")
    poll_rounds([second])
    assert len(second.assignment) == 6
    with pytest.raises((FencedInstanceIdError, CommitFailedError)):
        for _ in range(3):
            first.commit({TopicPartition("orders", 0): 1})
            first.poll(0)
    first.close()
    poll_rounds([second])
    assert len(second.assignment) == 6


# -- what the coordinator refuses --------------------------------------------------------------------------


def test_refusals_reach_poll(cluster: Cluster, topic: Topic) -> None:
    with pytest.raises(InvalidSessionTimeoutError):
        cluster.consumer_group(
            "g", ["orders"], session_timeout_ms=10, heartbeat_interval_ms=1
        ).consumer().poll(0.2)
    group = cluster.consumer_group("h", ["orders"])
    first = group.consumer(partition_assignment_strategy=RANGE)
    poll_rounds([first])
    with pytest.raises(InconsistentGroupProtocolError):
        group.consumer(partition_assignment_strategy=["roundrobin"]).poll(0.2)
    poll_rounds([first])
    assert len(first.assignment) == 6


def test_the_group_may_be_full() -> None:
    with streamlog.open(":memory:", group_max_size=1) as small:
        small.create_topic("orders")
        group = small.consumer_group("g", ["orders"])
        first = group.consumer()
        first.poll(0)
        with pytest.raises(StreamlogError):
            group.consumer().poll(0.2)


def test_closing_in_the_middle_of_joining_leaves_no_ghost(cluster: Cluster, topic: Topic) -> None:
    group = cluster.consumer_group("g", ["orders"])
    first = group.consumer()
    poll_rounds([first])
    joining = group.consumer()
    joining.poll(0)
    joining.close()
    poll_rounds([first])
    assert len(first.assignment) == 6 and len(group.members()) == 1


def test_a_consumer_in_several_groups(cluster: Cluster, topic: Topic) -> None:
    with cluster.producer() as producer:
        producer.send_many("orders", [(None, b"%d" % i) for i in range(30)])
    for name in ("a", "b"):
        with cluster.consumer_group(name, ["orders"]).consumer(stop_at_end=True) as consumer:
            assert len(list(consumer)) == 30


@pytest.fixture(params=[RANGE, COOPERATIVE])
def pair(request: pytest.FixtureRequest, cluster: Cluster, topic: Topic) -> Iterator[list[Consumer]]:
    group = cluster.consumer_group(
        "g", ["orders"], partition_assignment_strategy=request.param, stop_at_end=True
    )
    yield [group.consumer(), group.consumer()]


def test_stop_at_end_in_a_group_never_ends_before_the_first_assignment(
    cluster: Cluster, pair: list[Consumer]
) -> None:
    with cluster.producer() as producer:
        producer.send_many("orders", [(b"%d" % i, b"%d" % i) for i in range(60)])
    first, second = pair
    assert not first.at_end and not second.at_end
    got = [record.value for record in first.poll(0, max_records=1)]
    ended: set[Consumer] = set()
    for _ in range(200):
        for consumer in (second, first):
            got += [record.value for record in consumer.poll(0, max_records=7)]
            if consumer.at_end:
                ended.add(consumer)
                assert consumer.assignment or len(got) >= 60, (
                    "ended with nothing while its partitions were on their way"
                )
        if len(ended) == 2:
            break
    assert len(ended) == 2 and sorted(set(got)) == sorted(b"%d" % i for i in range(60))


def test_a_rebalance_does_not_move_the_end_of_stop_at_end(cluster: Cluster, topic: Topic) -> None:
    def fill() -> None:
        with cluster.producer() as producer:
            for partition in range(6):
                producer.send("orders", b"x", partition=partition)

    fill()
    group = cluster.consumer_group("g", ["orders"], stop_at_end=True, partition_assignment_strategy=RANGE)
    first = group.consumer()
    first.poll(0)
    ends = {tp: assigned.end_offset for tp, assigned in first._assigned.items()}
    for _ in range(3):
        fill()
        second = group.consumer()
        poll_rounds([first, second])
        second.close()
        poll_rounds([first])
    assert {tp: assigned.end_offset for tp, assigned in first._assigned.items()} == ends


def test_a_commit_in_a_listener_of_a_group_that_moves_on_is_not_driven_in_circles(
    cluster: Cluster, topic: Topic
) -> None:
    seen: list[str] = []

    def assigned(partitions: list[TopicPartition]) -> None:
        try:
            first.commit(dict.fromkeys(partitions, 0), timeout=5)
            seen.append("stored")
        except (RebalanceInProgressError, CommitFailedError) as error:
            seen.append(type(error).__name__)

    group = cluster.consumer_group("g", ["orders"])
    first = group.consumer(on_assigned=assigned)
    began = time.monotonic()
    poll_rounds([first])
    assert seen == ["stored"] and time.monotonic() - began < 2
