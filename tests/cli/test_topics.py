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
    cli("topics", "create", "a", "--if-not-exists", "--partitions", "2").failed(1, "partitions=1, not 2")


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
