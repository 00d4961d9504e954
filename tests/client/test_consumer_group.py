"""A group as users hold it: lag, offsets, resets, members."""

from __future__ import annotations

import re
from typing import Any

import pytest

from streamlog import Cluster, Topic, TopicPartition
from streamlog.errors import (
    ConfigError,
    GroupIdNotFoundError,
    NonEmptyGroupError,
    StreamlogError,
    UnknownTopicOrPartitionError,
)

A, B = TopicPartition("orders", 0), TopicPartition("orders", 1)


@pytest.fixture
def filled(cluster: Cluster, orders: Topic) -> Topic:
    """orders-0 holds 10 records at ms 1000, 1100, ...; orders-1 holds 4 of them, the first 2 deleted."""
    with cluster.producer() as producer:
        for number in range(10):
            producer.send("orders", b"%d" % number, partition=0, timestamp=1000 + 100 * number)
        for number in range(4):
            producer.send("orders", b"%d" % number, partition=1, timestamp=1000 + 100 * number)
    orders[1].delete_records(2)
    return orders


def test_lag_without_commits_is_from_where_reading_would_start(cluster: Cluster, filled: Topic) -> None:
    assert cluster.consumer_group("g", ["orders"]).lag() == {A: 10, B: 2}
    assert cluster.consumer_group("g", ["orders"], auto_offset_reset="latest").lag() == {A: 0, B: 0}
    assert cluster.consumer_group("g", re.compile("ord")).lag() == {A: 10, B: 2}
    assert cluster.consumer_group("g").lag() == {}
    assert cluster.groups == [], "asking makes no group"


def test_lag_follows_commits(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["orders"])
    with group.consumer(stop_at_end=True) as consumer:
        assert len(list(consumer)) == 12
    assert group.lag() == {A: 0, B: 0} and group.offsets() == {A: 10, B: 4}
    with cluster.producer() as producer:
        producer.send("orders", b"x", partition=0)
    assert group.lag() == {A: 1, B: 0} == cluster.consumer_group("g").lag()


def test_lag_never_is_negative_and_counts_only_what_is_there(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["orders"])
    consumer = cluster.consumer(group_id="g")
    consumer.commit({A: 999, B: 0})
    assert group.lag() == {A: 0, B: 2}


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("earliest", {A: 0, B: 2}),
        ("latest", {A: 10, B: 4}),
        (3, {A: 3, B: 3}),
        (99, {A: 10, B: 4}),
        (0, {A: 0, B: 2}),
        ("timestamp:1250", {A: 3, B: 3}),
        ("timestamp:9999", {A: 10, B: 4}),
        ("timestamp:0", {A: 0, B: 2}),
        ("shift:-2", {A: 3, B: 2}),
        ("shift:2", {A: 7, B: 4}),
        ({A: 7}, {A: 7}),
        ({("orders", 0): 7, B: 3}, {A: 7, B: 3}),
    ],
)
def test_resetting(cluster: Cluster, filled: Topic, to: Any, expected: dict[TopicPartition, int]) -> None:
    group = cluster.consumer_group("g", ["orders"])
    cluster.consumer(group_id="g").commit({A: 5, B: 3})
    assert group.reset_offsets(to, dry_run=True) == expected
    assert group.offsets() == {A: 5, B: 3}
    assert group.reset_offsets(to) == expected
    assert group.offsets() == {A: 5, B: 3} | expected
    with group.consumer(enable_auto_commit=False, stop_at_end=True) as consumer:
        records = list(consumer)  # not one poll: a join may take several where the machine is busy
        for tp, offset in expected.items():
            assert consumer.committed(tp) == offset
            assert [r.offset for r in records if (r.topic, r.partition) == tp] == list(
                range(offset, filled[tp.partition].log_end_offset)
            )


@pytest.mark.parametrize(
    "wrong",
    [
        "beginning",
        "smallest",
        "",
        "shift:",
        "shift:x",
        "shift:--1",
        "timestamp:soon",
        "timestamp:-1",
        None,
        True,
        1.5,
        b"earliest",
        {A: "7"},
        {A: True},
        {"orders": 1},
    ],
)
def test_impossible_resets_change_nothing(cluster: Cluster, filled: Topic, wrong: Any) -> None:
    group = cluster.consumer_group("g", ["orders"])
    with pytest.raises(ConfigError):
        group.reset_offsets(wrong)
    assert group.offsets() == {}


def test_resetting_what_is_not_there(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["orders"])
    for call in (
        lambda: group.reset_offsets({("orders", 9): 1}),
        lambda: group.reset_offsets("earliest", topics=["nowhere"]),
    ):
        with pytest.raises(UnknownTopicOrPartitionError):
            call()  # type: ignore[no-untyped-call]
    assert group.offsets() == {}


def test_resetting_some_topics(cluster: Cluster, filled: Topic, single: Topic) -> None:
    group = cluster.consumer_group("g", ["orders"])
    assert group.reset_offsets("latest", topics="single") == {("single", 0): 0}
    assert group.reset_offsets("latest", topics=["orders"]) == {A: 10, B: 4}


def test_a_live_group_is_not_reset_or_deleted(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["orders"])
    with group.consumer() as consumer:
        consumer.poll(0)
        for call in (group.reset_offsets, group.delete):
            with pytest.raises(NonEmptyGroupError) as caught:
                call()  # type: ignore[operator]
            assert caught.value.code == 68
        assert group.reset_offsets("latest", dry_run=True) == {A: 10, B: 4}
    group.delete()
    assert group.offsets() == {} and cluster.groups == []
    with pytest.raises(GroupIdNotFoundError):
        group.delete()


def test_members(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["orders"])
    assert (group.members(), group.state) == ([], "Empty")
    one, two = group.consumer(group_instance_id="static"), group.consumer()
    for _ in range(3):
        one.poll(0), two.poll(0)
    members = group.members()
    assert {member.group_instance_id for member in members} == {"static", None}
    assert sorted(tp for member in members for tp in member.assignment) == [A, B]
    assert group.state == "Stable" and group.topics == ["orders"] and "2 members" in repr(group)


def test_options_of_one_member(cluster: Cluster, filled: Topic) -> None:
    group = cluster.consumer_group("g", ["orders"], max_poll_records=3)
    assert group.consumer().config.max_poll_records == 3
    assert group.consumer(max_poll_records=5).config.max_poll_records == 5
    assert group.consumer(config={"max.poll.records": "7"}).config.max_poll_records == 7
    assert group.consumer(stop_at_end=True).config.group_id == "g"
    with pytest.raises(ConfigError):
        group.consumer(max_pol_records=5)


def test_a_group_without_topics_has_no_members_to_give(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="opened without topics"):
        cluster.consumer_group("g").consumer()


def test_groups_survive_reopening(tmp_path: Any) -> None:
    import streamlog

    with streamlog.open(tmp_path / "d", sync="off") as cluster:
        cluster.create_topic("orders", partitions=2)
        cluster.consumer_group("g", ["orders"]).consumer().poll(0)
        cluster.consumer(group_id="h").commit({A: 7})
    with streamlog.open(tmp_path / "d", sync="off") as cluster:
        assert cluster.consumer_group("h").offsets() == {A: 7}
        assert cluster.consumer_group("g").members() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"workers": "2"},
        {"workers": True},
        {"on_error": "ignore"},
        {"on_error": None},
        {"max_pol": 1},
    ],
)
def test_impossible_runs(cluster: Cluster, orders: Topic, wrong: dict[str, Any]) -> None:
    group = cluster.consumer_group("g", ["orders"])
    with pytest.raises(StreamlogError):
        group.run(print, stop_at_end=True, **wrong)
    assert group.members() == [] and not cluster._consumers
