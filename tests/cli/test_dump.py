"""`streamlog dump`."""

from __future__ import annotations

from typing import Any

import pytest

import streamlog


@pytest.fixture
def filled(cli: Any) -> Any:
    """Three batches of `logs`: two plain records, one compressed, one with everything."""
    cli("produce", "logs", "--create", stdin=b"a\nb\n")
    cli("produce", "logs", "--compression", "zstd", stdin=b"c" * 1000 + b"\n")
    cli("produce", "logs", "--format", "json", stdin=b'{"key":"k","value":null,"headers":{"h":"x"}}\n')
    return cli


def test_batches(filled: Any) -> None:
    found = filled("dump", "logs", "--json").json_lines
    assert [
        (b["base_offset"], b["last_offset"], b["records_count"], b["codec"], b["sound"]) for b in found
    ] == [
        (0, 1, 2, "none", True),
        (2, 2, 1, "zstd", True),
        (3, 3, 1, "none", True),
    ]
    assert {b["layout"] for b in found} == {"columnar"}
    assert all(len(b["crc"]) == 8 and b["bytes"] > 61 for b in found)
    assert "records" not in found[0]
    lines = filled("dump", "logs").text.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["0..1", "2 records"],
        ["2..2", "1 record"],
        ["3..3", "1 record"],
    ]
    assert all(line.endswith("  ok") for line in lines)


def test_headers_do_not_judge(filled: Any) -> None:
    assert "sound" not in filled("dump", "logs", "--show", "headers", "--json").json_lines[0]
    assert not filled("dump", "logs", "--show", "headers").text.splitlines()[0].endswith("ok")


def test_records(filled: Any) -> None:
    batches = filled("dump", "logs", "--show", "records", "--json").json_lines
    assert [r["value"] for b in batches for r in b["records"]] == ["a", "b", "c" * 1000, None]
    assert batches[2]["records"][0]["headers"] == [["h", "x"]]
    lines = filled("dump", "logs", "--show", "records").text.splitlines()
    assert lines[1].strip().startswith("logs-0@0 ") and lines[-1].endswith("key=k  h=x  null")


def test_limits(filled: Any) -> None:
    assert len(filled("dump", "logs", "--max", "2", "--json").json_lines) == 2
    assert [b["base_offset"] for b in filled("dump", "logs", "--from", "1", "--json").json_lines] == [0, 2, 3]
    assert [b["base_offset"] for b in filled("dump", "logs", "--from", "2", "--json").json_lines] == [2, 3]
    done = filled("dump", "logs", "--from", "9")
    assert (done.out, done.code) == (b"", 0) and "nothing from offset 9" in done.err


def test_partitions(cli: Any) -> None:
    cli("topics", "create", "logs", "--partitions", "3")
    for number in "02":
        cli("produce", "logs", "--partition", number, stdin=b"x\n")
    assert [b["partition"] for b in cli("dump", "logs", "--json").json_lines] == [0, 2]
    assert [b["partition"] for b in cli("dump", "logs", "--partition", "2", "--json").json_lines] == [2]
    assert "-- logs-2" in cli("dump", "logs").text
    cli("dump", "logs", "--partition", "3").failed(1, "no partition 3")


def test_internal_topics_too(cli: Any) -> None:
    cli("produce", "logs", "--create", stdin=b"x\n")
    cli("consume", "logs", "--group", "g")
    found = cli("dump", "__consumer_offsets", "--show", "records", "--json").json_lines
    assert {b["layout"] for b in found} == {"v2"} and sum(len(b["records"]) for b in found) >= 1


def test_beside_a_live_owner(run_process: Any, store: str) -> None:
    with streamlog.open(store) as cluster:
        cluster.create_topic("logs")
        with cluster.producer() as producer:
            producer.send("logs", b"x").result(10)
            assert run_process("dump", "logs", "--json").json["records_count"] == 1


def test_errors(cli: Any) -> None:
    cli("dump", "logs").failed(1, "no directory")
    cli("topics", "create", "logs")
    cli("dump", "lags").failed(1, "did you mean 'logs'?")
    cli("dump", "logs", "--show", "all").failed(2, "--show")
    cli("dump", "logs", "--from", "-1").failed(2, "--from")
