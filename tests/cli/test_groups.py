"""`streamlog groups`."""

from __future__ import annotations

import os
from typing import Any

import pytest

import streamlog


@pytest.fixture
def filled(cli: Any) -> Any:
    """Topic `logs` with ten records a second apart; group `g` has read four of them."""
    lines = b"".join(
        b'{"value":"%d","timestamp":%d}\n' % (n, 1_700_000_000_000 + n * 1000) for n in range(10)
    )
    cli("produce", "logs", "--create", "--format", "json", stdin=lines)
    cli("consume", "logs", "--group", "g", "--max", "4")
    return cli


def test_list(filled: Any) -> None:
    assert filled("groups", "list", "--json").json == [
        {"group": "g", "state": "Empty", "members": 0, "topics": ["logs"], "lag": 6}
    ]
    header, row = filled("groups", "list").text.splitlines()
    assert header.split() == ["group", "state", "members", "topics", "lag"]
    assert row.split() == ["g", "Empty", "0", "logs", "6"]


def test_none(cli: Any) -> None:
    cli("topics", "create", "logs")
    assert cli("groups", "list", "--json").json == []
    assert cli("groups", "describe", "--json").json == []
    assert "no consumer groups yet" in cli("groups", "list").err
    cli("groups", "describe", "g").failed(1, "no consumer group 'g'", "it has none yet")


def test_describe(filled: Any) -> None:
    [group] = filled("groups", "describe", "g", "--json").json
    assert group == {
        "group": "g",
        "state": "Empty",
        "lag": 6,
        "members": [],
        "partitions": [
            {"topic": "logs", "partition": 0, "committed": 4, "end": 10, "lag": 6, "member": None}
        ],
    }
    lines = filled("groups", "describe").text.splitlines()
    assert lines[0] == "g: Empty, no members, lag 6"
    assert lines[2].split() == ["logs", "0", "4", "10", "6", "-"]
    filled("groups", "describe", "gg").failed(1, "did you mean 'g'?")


def test_describe_shows_live_members(run_process: Any, store: str) -> None:
    with streamlog.open(store) as cluster:
        cluster.create_topic("logs", partitions=2)
        with cluster.consumer_group("g", ["logs"]).consumer() as consumer:
            while len(consumer.assignment) < 2:
                consumer.poll(0.1)
            consumer.commit(dict.fromkeys(consumer.assignment, 0))
            [group] = run_process("groups", "describe", "g", "--json").json
            assert group["state"] == "Stable"
            [member] = group["members"]
            assert member["partitions"] == [["logs", 0], ["logs", 1]]
            assert [p["member"] for p in group["partitions"]] == [member["member"]] * 2
            assert run_process("groups", "list", "--json").json[0]["members"] == 1
            run_process("groups", "reset-offsets", "g", "--to", "latest").failed(3, f"process {os.getpid()}")
            run_process("groups", "delete", "g").failed(3, f"process {os.getpid()}")


def test_where_nothing_is_committed_the_lag_is_not_known(cli: Any, store: str) -> None:
    with streamlog.open(store) as cluster:
        cluster.create_topic("logs", partitions=2)
        with cluster.producer() as producer:
            for partition in (0, 0, 1):
                producer.send("logs", b"x", partition=partition)
        with cluster.consumer_group("g", ["logs"], enable_auto_commit=False).consumer() as consumer:
            while len(consumer.assignment) < 2:
                consumer.poll(0.1)
            assert cli("groups", "list", "--json").json[0]["lag"] is None
            assert cli("groups", "list").text.splitlines()[1].split() == ["g", "Stable", "1", "logs", "-"]
            [group] = cli("groups", "describe", "--json").json
            assert group["lag"] is None
            assert [(p["committed"], p["lag"]) for p in group["partitions"]] == [(None, None)] * 2
            assert cli("groups", "describe").text.splitlines()[0] == "g: Stable, 1 member, lag -"

            consumer.commit({("logs", 0): 1})
            assert cli("groups", "list", "--json").json[0]["lag"] == 1, "of what is committed"
            [group] = cli("groups", "describe", "--json").json
            assert (group["lag"], [p["lag"] for p in group["partitions"]]) == (1, [1, None])
            rows = [line.split() for line in cli("groups", "describe").text.splitlines()[2:]]
            assert [row[2:5] for row in rows] == [["1", "2", "1"], ["-", "1", "-"]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--to", "earliest"], 0),
        (["--to", "latest"], 10),
        (["--to", "7"], 7),
        (["--to", "99"], 10),
        (["--to", "@1700000004500"], 5),
        (["--to", "2023-11-14T22:13:22Z"], 2),
        (["--shift-by", "3"], 7),
        (["--shift-by", "-3"], 1),
        (["--shift-by", "-30"], 0),
    ],
)
def test_reset(filled: Any, options: list[str], expected: int) -> None:
    dry = filled("groups", "reset-offsets", "g", *options, "--dry-run", "--json").json
    row = {"topic": "logs", "partition": 0, "before": 4, "committed": expected, "lag": 10 - expected}
    assert dry == {"group": "g", "dry_run": True, "partitions": [row]}
    assert filled("groups", "list", "--json").json[0]["lag"] == 6, "a dry run changes nothing"
    assert filled("groups", "reset-offsets", "g", *options).code == 0
    assert filled("consume", "logs", "--group", "g").out == b"".join(b"%d\n" % n for n in range(expected, 10))


def test_reset_of_some_partitions(cli: Any) -> None:
    cli("topics", "create", "logs", "--partitions", "3")
    for number in range(3):
        cli("produce", "logs", "--partition", str(number), stdin=b"a\nb\n")
    cli("consume", "logs", "--group", "g")
    reset = ("groups", "reset-offsets", "g", "--to", "1", "--partition", "0", "--partition", "2")
    for options in (["--dry-run"], []):
        rows = cli(*reset, *options, "--json").json["partitions"]
        assert [(row["partition"], row["committed"]) for row in rows] == [(0, 1), (2, 1)]
    [group] = cli("groups", "describe", "g", "--json").json
    assert [p["committed"] for p in group["partitions"]] == [1, 2, 1]
    cli(*reset, "--partition", "3").failed(1, "--partition 3", "logs-0, logs-1, logs-2")


def test_a_dry_run_reads_beside_the_owner(run_process: Any, store: str) -> None:
    with streamlog.open(store) as cluster:
        cluster.create_topic("logs")
        with cluster.producer() as producer:
            producer.send("logs", b"x")
        with cluster.consumer_group("g", ["logs"]).consumer() as consumer:
            while not consumer.poll(1):
                pass
            consumer.commit()
            dry = run_process("groups", "reset-offsets", "g", "--to", "earliest", "--dry-run", "--json")
            row = {"topic": "logs", "partition": 0, "before": 1, "committed": 0, "lag": 1}
            assert dry.json["partitions"] == [row]
            assert dry.err == (
                "streamlog: group 'g' has 1 member now; offsets are moved only while it has none\n"
            )
        assert cluster.consumer_group("g").lag() == {streamlog.TopicPartition("logs", 0): 0}


def test_reset_for_people(filled: Any) -> None:
    lines = filled("groups", "reset-offsets", "g", "--to", "earliest", "--dry-run").text.splitlines()
    assert "would be committed" in lines[0] and lines[2].split() == ["logs", "0", "4", "0", "10"]
    assert filled("groups", "reset-offsets", "g", "--to", "earliest").text.splitlines()[0] == "g: committed"


def test_reset_for_a_new_group_needs_a_topic(filled: Any) -> None:
    filled("groups", "reset-offsets", "new", "--to", "5").failed(1, "no consumer group 'new'")
    assert filled("groups", "reset-offsets", "new", "--to", "5", "--topic", "logs").code == 0
    assert filled("consume", "logs", "--group", "new", "--max", "1").out == b"5\n"
    filled("groups", "reset-offsets", "g", "--to", "5", "--topic", "nope").failed(1, "no topic 'nope'")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ([], "--to"),
        (["--to", "earliest", "--shift-by", "1"], "not allowed with"),
        (["--to", "beginning"], "did you mean 'earliest'?"),
        (["--to", "-3"], "--shift-by -3"),
        (["--shift-by", "some"], "whole number"),
    ],
)
def test_reset_usage(filled: Any, options: list[str], word: str) -> None:
    filled("groups", "reset-offsets", "g", *options).failed(2, word)


def test_delete(filled: Any) -> None:
    filled("groups", "delete", "g", "nope").failed(1, "no consumer group 'nope'")
    assert len(filled("groups", "list", "--json").json) == 1
    assert filled("groups", "delete", "g").text == "deleted group g\n"
    assert filled("groups", "list", "--json").json == []
    assert len(filled("consume", "logs", "--group", "g").out.split()) == 10
    assert filled("groups", "delete", "g", "--json").json == [{"group": "g", "deleted": True}]
