"""`streamlog topics`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import streamlog


def test_create_makes_the_directory(cli: Any, store: str) -> None:
    done = cli("topics", "create", "a", "b", "--partitions", "3", "--config", "retention.ms=1000")
    assert (
        done.text
        == f"created topic a with 3 partitions in {store}\ncreated topic b with 3 partitions in {store}\n"
    )
    with streamlog.open(store) as cluster:
        assert cluster.topics == ["a", "b"]
        assert len(cluster.topic("b")) == 3
        assert cluster.topic("a").config_overrides == {"retention.ms": "1000"}


def test_create_json_and_if_not_exists(cli: Any) -> None:
    assert cli("topics", "create", "a", "--json").json == [{"topic": "a", "partitions": 1, "created": True}]
    again = cli("topics", "create", "a", "b", "--if-not-exists", "--json").json
    assert again == [
        {"topic": "a", "partitions": 1, "created": False},
        {"topic": "b", "partitions": 1, "created": True},
    ]
    cli("topics", "create", "a").failed(1, "'a'", "exists", "--if-not-exists")
    again = ("topics", "create", "a", "--if-not-exists")
    cli(*again, "--partitions", "2").failed(
        1, "partitions=1, not 2", "leave --partitions out", "topics alter"
    )
    cli(*again, "--replication-factor", "2").failed(1, "leave --replication-factor out")
    cli(*again, "--config", "retention.ms=7").failed(1, "leave --config retention.ms out", "not 7")
    cli("topics", "create", "wide", "--partitions", "4")
    assert cli("topics", "create", "wide", "--if-not-exists").code == 0, "nothing was asked for"


@pytest.mark.parametrize(
    "command",
    [["topics", "create"], ["produce", "--create"], ["perf", "produce", "--records", "1", "--topic"]],
)
def test_internal_topics_are_not_made_by_hand(cli: Any, store: str, command: list[str]) -> None:
    cli("topics", "create", "a")
    cli(*command, "__consumer_offsets", stdin=b"x\n").failed(1, "is internal", "when it is first needed")
    cli("topics", "describe", "__consumer_offsets").failed(1, "no topic '__consumer_offsets'")


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (["no/slash"], 1, "no/slash"),
        (["a", "--config", "retention.mss=1"], 2, "retention.ms"),
        (["a", "--config", "retention.ms=soon"], 2, "soon"),
        (["a", "--config", "retention.ms"], 2, "NAME=VALUE"),
        (["a", "--partitions", "0"], 2, "below 1"),
        (["a", "--partitions", "many"], 2, "whole number"),
        (["a", "--replication-factor", "3"], 1, "3"),
        ([], 2, "TOPIC"),
    ],
)
def test_create_errors(cli: Any, options: list[str], code: int, word: str) -> None:
    cli("topics", "create", *options).failed(code, word)


def test_list(cli: Any, store: str) -> None:
    cli("topics", "create", "a", "--partitions", "2", "--config", "cleanup.policy=compact")
    cli("produce", "b", "--create", stdin=b"1\n2\n")
    assert [
        (t["topic"], t["partitions"], t["records"], t["cleanup_policy"])
        for t in cli("topics", "list", "--json").json
    ] == [
        ("a", 2, 0, "compact"),
        ("b", 1, 2, "delete"),
    ]
    lines = cli("topics", "list").text.splitlines()
    assert lines[0].split() == ["topic", "partitions", "records", "stored", "cleanup"]
    assert [line.split()[:3] for line in lines[1:]] == [["a", "2", "0"], ["b", "1", "2"]]


def test_list_of_nothing(cli: Any, store: str, tmp_path: Path) -> None:
    with streamlog.open(store):
        pass
    done = cli("topics", "list")
    assert (done.code, done.out) == (0, b"") and "no topics yet" in done.err
    assert cli("topics", "list", "--json").json == []
    nowhere = str(tmp_path / "nowhere")
    cli("topics", "list", "--dir", nowhere).failed(1, "no directory", nowhere, "topics create")
    assert not Path(nowhere).exists()
    (tmp_path / "other").mkdir()
    cli("topics", "list", "--dir", str(tmp_path / "other")).failed(1, "not a streamlog directory")
    (tmp_path / "file").write_text("x")
    cli("topics", "list", "--dir", str(tmp_path / "file")).failed(1, "is a file")
    cli("topics", "list", "--dir", ":memory:").failed(1, "one process")


def test_describe(cli: Any) -> None:
    cli("topics", "create", "a", "--partitions", "2", "--config", "retention.ms=5000")
    cli("produce", "a", "--partition", "1", stdin=b"x\ny\n")
    [topic] = cli("topics", "describe", "a", "--json").json
    assert (topic["topic"], topic["replication_factor"], topic["config"]) == (
        "a",
        1,
        {"retention.ms": "5000"},
    )
    assert topic["partitions"][1] | {"bytes": 0} == {
        "partition": 1,
        "leader": 0,
        "replicas": [0],
        "isr": [0],
        "leader_epoch": 0,
        "log_start_offset": 0,
        "high_watermark": 2,
        "log_end_offset": 2,
        "bytes": 0,
    }
    assert topic["partitions"][1]["bytes"] > 61
    text = cli("topics", "describe").text
    assert (
        text.startswith("a: 2 partitions, replication factor 1, id ") and "options: retention.ms=5000" in text
    )
    every = cli("topics", "describe", "--all-config").text
    assert ["cleanup.policy", "delete"] in [line.split() for line in every.splitlines()]
    assert cli("topics", "describe", "--all-config", "--json").json[0]["config"]["cleanup.policy"] == "delete"
    cli("topics", "describe", "b").failed(1, "no topic 'b'")


def test_alter(cli: Any) -> None:
    cli("topics", "create", "a")
    assert (
        cli("topics", "alter", "a", "--partitions", "4", "--config", "retention.ms=9").text
        == "altered topic a\n"
    )
    [topic] = cli("topics", "alter", "a", "--config", "cleanup.policy=compact", "--json").json
    assert (len(topic["partitions"]), topic["config"]) == (
        4,
        {"cleanup.policy": "compact", "retention.ms": "9"},
    )
    [topic] = cli("topics", "alter", "a", "--delete-config", "retention.ms", "--json").json
    assert topic["config"] == {"cleanup.policy": "compact"}
    cli("topics", "alter", "a").failed(2, "nothing to alter")
    cli("topics", "alter", "a", "--partitions", "2").failed(1, "4 partitions")
    cli("topics", "alter", "a", "--config", "nonsense=1").failed(2, "nonsense")
    cli("topics", "alter", "zz", "--partitions", "2").failed(1, "no topic 'zz'")


def test_delete(cli: Any) -> None:
    cli("topics", "create", "a", "b", "c")
    cli("topics", "delete", "a", "zz").failed(1, "no topic 'zz'")
    assert [t["topic"] for t in cli("topics", "list", "--json").json] == ["a", "b", "c"], (
        "nothing, or all of it"
    )
    assert cli("topics", "delete", "a", "zz", "--if-exists").text == "deleted topic a\n"
    assert cli("topics", "delete", "b", "--json").json == [{"topic": "b", "deleted": True}]
    assert [t["topic"] for t in cli("topics", "list", "--json").json] == ["c"]


def test_a_person_is_asked_before_deleting(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("produce", "a", "--create", stdin=b"1\n")
    from streamlog.cli import topics

    class Terminal:
        @staticmethod
        def isatty() -> bool:
            return True

        @staticmethod
        def readline() -> str:
            return answers.pop()

        @staticmethod
        def write(text: str) -> None:
            asked.append(text)

        flush = staticmethod(lambda: None)

    answers, asked = ["y\n", "no\n", "\n"], []

    class Streams:
        stdin = stderr = Terminal

    monkeypatch.setattr(topics, "sys", Streams)
    assert cli("topics", "delete", "a").code == 1
    assert cli("topics", "delete", "a").code == 1
    assert cli("topics", "delete", "a").code == 0
    assert asked[0] == "Delete a (1 record) for good? [y/N] "


def test_beside_a_live_owner(run_process: Any, store: str) -> None:
    with streamlog.open(store) as cluster:
        cluster.create_topic("logs", partitions=2)
        assert run_process("topics", "list", "--json").json[0]["partitions"] == 2
        assert run_process("topics", "describe", "--json").json[0]["topic"] == "logs"
        for command in (["create", "x"], ["delete", "logs"], ["alter", "logs", "--partitions", "3"]):
            run_process("topics", *command).failed(3, store, f"process {os.getpid()}")
        assert cluster.topics == ["logs"]


# -- several brokers ---------------------------------------------------------------------------------


def replicas(topic: dict[str, Any]) -> list[tuple[int, list[int], list[int]]]:
    return [(p["leader"], p["replicas"], p["isr"]) for p in topic["partitions"]]


def test_several_brokers(cli: Any, store: str) -> None:
    options = ["--brokers", "3", "--partitions", "3", "--replication-factor", "2"]
    assert cli("topics", "create", "a", *options).code == 0
    [topic] = cli("topics", "describe", "a", "--json").json
    assert topic["replication_factor"] == 2 and topic["under_replicated_partitions"] == []
    assert replicas(topic) == [(0, [0, 1], [0, 1]), (1, [1, 2], [1, 2]), (2, [2, 0], [2, 0])]
    assert cli("produce", "a", stdin=b"".join(b"%d\n" % n for n in range(300))).code == 0
    assert len(cli("consume", "a").out.splitlines()) == 300
    assert len(cli("consume", "a", "--group", "g").out.splitlines()) == 300
    assert cli("groups", "describe", "g", "--json").json[0]["lag"] == 0
    assert cli("verify").code == 0
    cli("topics", "create", "b", "--replication-factor", "4").failed(1, "4", "3")
    cli("topics", "create", "b", "--brokers", "2").failed(
        2, f"--brokers 2: {store} has 3 brokers; leave --brokers out", "cluster.add_broker()"
    )


def test_what_is_not_in_sync_is_told(cli: Any, store: str) -> None:
    cli("topics", "create", "a", "--brokers", "3", "--partitions", "3", "--replication-factor", "3")
    assert "in sync" not in cli("topics", "describe", "a").text
    with streamlog.open(store) as cluster:
        cluster.brokers[2].crash()
    [topic] = cli("topics", "describe", "a", "--json").json
    assert topic["under_replicated_partitions"] == [0, 1, 2]
    assert [2 in p["isr"] or p["leader"] == 2 for p in topic["partitions"]] == [False] * 3
    assert cli("topics", "describe", "a").text.endswith(
        "not all replicas are in sync: 3 partitions (0,1,2)\n"
    )


@pytest.mark.parametrize(
    "command",
    [["produce", "a", "--create"], ["perf", "produce", "--topic", "a", "--records", "50", "--sync", "off"]],
    ids=["produce", "perf"],
)
def test_commands_that_make_a_directory(cli: Any, store: str, command: list[str]) -> None:
    done = cli(*command, "--brokers", "2", "--replication-factor", "2", stdin=b"1\n2\n")
    assert done.code == 0, done
    with streamlog.open(store) as cluster:
        assert len(cluster.brokers) == 2 and cluster.topic("a").replication_factor == 2
        assert cluster.topic("a")[0].high_watermark in (2, 50)


@pytest.mark.integration
def test_beside_a_live_owner_of_several_brokers(run_process: Any, store: str) -> None:
    with streamlog.open(store, brokers=3) as cluster:
        cluster.create_topic("a", partitions=2, replication_factor=3)
        with cluster.producer() as producer:
            producer.send_many("a", [(b"%d" % n, b"%d" % n) for n in range(40)])
            producer.flush()
            leader = cluster.topic("a")[0].leader
            cluster.brokers[leader].crash()
            producer.send_many("a", [(b"%d" % n, b"%d" % n) for n in range(40, 80)])
        read = run_process("consume", "a")
        assert (read.code, sorted(map(int, read.out.split()))) == (0, list(range(80))), read
        [topic] = run_process("topics", "describe", "a", "--json").json
        assert leader not in [p["leader"] for p in topic["partitions"]]
        assert topic["under_replicated_partitions"] == [0, 1]
        run_process("produce", "a", stdin=b"x\n").failed(3, "one owner")
