"""`streamlog verify`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import streamlog


def test_a_sound_directory(cli: Any, store: str) -> None:
    cli("topics", "create", "logs", "--partitions", "2")
    cli("produce", "logs", "--partition", "1", stdin=b"a\nb\nc\n")
    cli("consume", "logs", "--group", "g")
    found = cli("verify", "--json")
    assert found.code == 0
    assert (found.json["sound"], found.json["problems"], found.json["topics"], found.json["groups"]) == (
        True,
        [],
        2,
        1,
    )
    assert found.json["files_checked"] is True and found.json["records"] >= 4
    text = cli("verify").text
    assert [line.split()[:4] for line in text.splitlines() if line.startswith("logs")] == [
        ["logs", "1", "1", "3"]
    ]
    assert text.splitlines()[-1].startswith(f"{store} is sound: ")


def damage(store: str, needle: bytes) -> None:
    """Flip a bit of every occurrence in the broker's file."""
    path = Path(store) / "broker-0" / "data.mdb"
    data = path.read_bytes()
    assert needle in data
    path.write_bytes(data.replace(needle, bytes([needle[0] ^ 1]) + needle[1:]))


def test_a_flipped_bit(cli: Any, store: str) -> None:
    cli("produce", "logs", "--create", stdin=b"first batch\n")
    cli("produce", "logs", stdin=b"a very special value\n")
    damage(store, b"a very special value")
    found = cli("verify", "--json")
    assert found.code == 4
    assert found.json["sound"] is False
    [problem] = found.json["problems"]
    assert (problem["topic"], problem["partition"], problem["offset"]) == ("logs", 0, 1)
    assert "CRC" in problem["actual"] or "crc" in problem["actual"].lower()
    told = cli("verify")
    assert told.code == 4
    assert (
        "problem: broker-0: logs-0, batch ending at 1" in told.text and "is damaged: 1 problem" in told.text
    )
    dumped = cli("dump", "logs")
    assert dumped.text.splitlines()[0].endswith("ok") and "DAMAGED" in dumped.text.splitlines()[1]
    assert "1 batch damaged" in dumped.err
    assert cli("consume", "logs", "--max", "1").out == b"first batch\n"
    cli("produce", "logs", stdin=b"behind it\n")
    alone, grouped = cli("consume", "logs", "--from", "1"), cli("consume", "logs", "--group", "g")
    for told in (alone, grouped):
        told.failed(
            1, "logs-0 is corrupt at offset 1", "CRC", "--partition 0 --from 2", "--partition 0 --to 2"
        )
        assert told.err.count("verify") == 1 and "next_offset" not in told.err
    assert cli("consume", "logs", "--partition", "0", "--from", "2").out == b"behind it\n"
    reset = ["--topic", "logs", "--partition", "0", "--to", "2"]
    assert cli("groups", "reset-offsets", "g", *reset).code == 0
    assert cli("consume", "logs", "--group", "g").out == b"behind it\n"


def test_beside_a_live_owner(run_process: Any, store: str) -> None:
    with streamlog.open(store) as cluster:
        cluster.create_topic("logs")
        found = run_process("verify", "--json").json
        assert (found["sound"], found["owner_pid"], found["files_checked"]) == (True, os.getpid(), False)


def test_nothing_there(cli: Any, store: str) -> None:
    cli("verify").failed(1, f"no directory {store}")
