"""`streamlog consume`: where it starts, when it ends, what it commits."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamlog

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def filled(cli: Any) -> Any:
    """A topic `logs` with one partition and the values 0 to 9, a second apart."""
    lines = b"".join(
        b'{"key":"k%d","value":"%d","timestamp":%d}\n' % (n % 2, n, 1_700_000_000_000 + n * 1000)
        for n in range(10)
    )
    assert cli("produce", "logs", "--create", "--format", "json", stdin=lines).code == 0
    return cli


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], range(10)),
        (["--from", "earliest"], range(10)),
        (["--from", "latest"], []),
        (["--from", "7"], range(7, 10)),
        (["--from", "10"], []),
        (["--from", "-3"], range(7, 10)),
        (["--from", "-30"], range(10)),
        (["--from", "@1700000004000"], range(4, 10)),
        (["--from", "@1700000004001"], range(5, 10)),
        (["--from", "2023-11-14T22:13:25Z"], range(5, 10)),
        (["--from", "2023-11-14T23:13:25+01:00"], range(5, 10)),
        (["--from", "2099-01-01"], []),
        (["--max", "3"], range(3)),
        (["-n", "2", "--from", "5"], range(5, 7)),
        (["--partition", "0", "--max", "100"], range(10)),
    ],
)
def test_where_it_starts_and_ends(filled: Any, options: list[str], expected: Any) -> None:
    done = filled("consume", "logs", *options)
    assert (done.code, done.out) == (0, b"".join(b"%d\n" % n for n in expected))


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("value", b"0\n"),
        ("key", b"k0\n"),
        ("key-value", b"k0\t0\n"),
        ("raw", b"0"),
    ],
)
def test_formats(filled: Any, name: str, first: bytes) -> None:
    assert filled("consume", "logs", "--format", name, "--max", "1").out == first


def test_full_format_is_for_people(filled: Any) -> None:
    line = filled("consume", "logs", "--format", "full", "--max", "1").text
    assert line.startswith("logs-0@0  2023-11-1") and line.endswith("  key=k0  0\n")


def test_json_shape(filled: Any) -> None:
    expected = {
        "topic": "logs",
        "partition": 0,
        "offset": 3,
        "timestamp": 1_700_000_003_000,
        "key": "k1",
        "value": "3",
        "headers": [],
    }
    for option in (["--json"], ["--format", "json"], ["--json", "--format", "json"]):
        assert filled("consume", "logs", "--from", "3", "--max", "1", *option).json == expected


def test_tombstones_are_null(cli: Any) -> None:
    cli("produce", "logs", "--create", "--format", "json", stdin=b'{"value":null}\n{"value":"x"}\n')
    assert cli("consume", "logs").out == b"null\nx\n"
    assert cli("consume", "logs", "--format", "key-value").out == b"null\tnull\nnull\tx\n"
    assert cli("consume", "logs", "--format", "raw").out == b"x"


def test_several_topics_and_partitions(cli: Any) -> None:
    cli("topics", "create", "a", "--partitions", "2")
    cli("topics", "create", "b", "--partitions", "2")
    for topic in "ab":
        for partition in "01":
            cli("produce", topic, "--partition", partition, stdin=f"{topic}{partition}\n".encode())
    assert sorted(cli("consume", "a", "b").out.split()) == [b"a0", b"a1", b"b0", b"b1"]
    assert sorted(cli("consume", "a", "b", "a", "--partition", "1").out.split()) == [b"a1", b"b1"]
    assert sorted(cli("consume", "a", "b", "--group", "g").out.split()) == [b"a0", b"a1", b"b0", b"b1"]


def test_a_group_goes_on_where_it_stopped(filled: Any) -> None:
    assert filled("consume", "logs", "--group", "g", "--max", "4").out == b"0\n1\n2\n3\n"
    assert filled("consume", "logs", "--group", "g").out == b"4\n5\n6\n7\n8\n9\n"
    assert filled("consume", "logs", "--group", "g").out == b""
    assert filled("consume", "logs", "--group", "other", "--from", "latest").out == b""
    filled("produce", "logs", stdin=b"new\n")
    assert filled("consume", "logs", "--group", "g").out == b"new\n"
    assert len(filled("consume", "logs", "--group", "third", "--from", "earliest").out.split()) == 11


def test_consuming_without_a_group_commits_nothing(filled: Any) -> None:
    filled("consume", "logs")
    assert filled("groups", "list", "--json").json == []


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--from", "beginning"], 2, ["did you mean 'earliest'?"]),
        (["--from", "end"], 2, ["did you mean 'latest'?"]),
        (["--from", "yesterday"], 2, ["none of earliest, latest"]),
        (["--from", "2024-13-01"], 2, ["none of earliest"]),
        (["--from", "11"], 1, ["offset 11 is behind the end", "logs-0 has offsets 0 to 9"]),
        (["--group", "g", "--from", "3"], 2, ["reset-offsets g"]),
        (["--group", "g", "--partition", "0"], 2, ["--partition does not go with --group"]),
        (["--group", ""], 2, ["--group"]),
        (["--timeout", "1"], 2, ["--follow"]),
        (["--follow", "--timeout", "-1"], 2, ["seconds"]),
        (["--partition", "1"], 1, ["no partition 1", "numbered from 0 to 0"]),
        (["--max", "0"], 2, ["below 1"]),
        (["--json", "--format", "value"], 2, ["contradicts"]),
        (["--unknown"], 2, ["--unknown", "--help"]),
    ],
)
def test_errors(filled: Any, options: list[str], code: int, words: list[str]) -> None:
    filled("consume", "logs", *options).failed(code, *words)


def test_no_such_topic(filled: Any) -> None:
    filled("consume", "lgs").failed(1, "no topic 'lgs'", "did you mean 'logs'?")
    filled("consume", "lgs", "--group", "g").failed(1, "no topic 'lgs'")
    filled("consume", "zzz").failed(1, "it has logs")
    assert filled("groups", "list", "--json").json == []


def test_what_retention_took_is_said(filled: Any, store: str) -> None:
    with streamlog.open(store) as cluster:
        cluster.topic("logs")[0].delete_records(4)
    done = filled("consume", "logs", "--from", "2")
    assert done.out == b"4\n5\n6\n7\n8\n9\n"
    assert "begins at offset 4" in done.err


def test_follow_ends_after_a_quiet_time(filled: Any) -> None:
    assert filled("consume", "logs", "--follow", "--timeout", "0.2", "--from", "-1").out == b"9\n"


# -- one file per key ------------------------------------------------------------------------------


def test_output_directory(filled: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = filled("consume", "logs", "--output-dir", str(out), "--json")
    assert done.json == {"records": 10, "files": [str(out / "k0"), str(out / "k1")]}
    assert (out / "k0").read_bytes() == b"0\n2\n4\n6\n8\n"
    filled("consume", "logs", "--output-dir", str(out)).failed(1, "exists", "choose another --output-dir")
    assert (out / "k0").read_bytes() == b"0\n2\n4\n6\n8\n"


def test_a_group_goes_on_with_its_files(filled: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for count in (3, 2, 5):
        assert (
            filled("consume", "logs", "--group", "g", "--max", str(count), "--output-dir", str(out)).code == 0
        )
    assert (out / "k0").read_bytes() == b"0\n2\n4\n6\n8\n"
    assert (out / "k1").read_bytes() == b"1\n3\n5\n7\n9\n"


def test_an_output_directory_that_cannot_be_made(filled: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    filled("consume", "logs", "--output-dir", str(tmp_path / "file" / "x")).failed(1, "cannot write")
    filled("consume", "logs", "--group", "g", "--output-dir", str(tmp_path / "file" / "x")).failed(
        1, "cannot write"
    )
    assert filled("consume", "logs", "--group", "g", "--max", "1").out == b"0\n", (
        "what was not written is not committed"
    )


# -- processes -------------------------------------------------------------------------------------


def first_lines(started: subprocess.Popen[bytes], count: int) -> list[bytes]:
    assert started.stdout is not None
    return [started.stdout.readline() for _ in range(count)]


@pytest.mark.integration
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_commits_what_was_written_out(filled: Any, process: Start, number: int, code: int) -> None:
    started = process("consume", "logs", "--group", "g", "--follow")
    assert first_lines(started, 10) == [b"%d\n" % n for n in range(10)]
    started.send_signal(number)
    out, err = started.communicate(timeout=30)
    assert (started.returncode, out) == (code, b"")
    assert b"Traceback" not in err
    assert filled("groups", "describe", "g", "--json").json[0]["partitions"][0]["committed"] == 10
    assert filled("consume", "logs", "--group", "g").out == b""


@pytest.mark.integration
def test_a_kill_loses_nothing(filled: Any, process: Start) -> None:
    started = process("consume", "logs", "--group", "g", "--follow")
    seen = first_lines(started, 10)
    started.kill()
    started.communicate(timeout=30)
    again = filled("consume", "logs", "--group", "g").out.splitlines(keepends=True)
    assert seen == [b"%d\n" % n for n in range(10)]
    assert again == seen[len(seen) - len(again) :], "what is delivered again is a tail, in order"


@pytest.mark.integration
@pytest.mark.parametrize("group", [(), ("--group", "g")], ids=["alone", "group"])
def test_a_pipe_whose_reader_goes_away(cli: Any, process: Start, group: tuple[str, ...]) -> None:
    cli(
        "produce",
        "logs",
        "--create",
        stdin=b"".join(b"line %d %s\n" % (n, b"x" * 200) for n in range(20_000)),
    )
    started = process("consume", "logs", *group)
    assert first_lines(started, 1)[0].startswith(b"line 0 ")
    assert started.stdout is not None and started.stderr is not None
    started.stdout.close()
    assert started.stderr.read() == b""
    assert started.wait(30) == 141
    started.stderr.close()
    if group:
        assert cli("consume", "logs", *group, "--max", "1").out != b"", "what nobody took is not committed"


@pytest.mark.integration
def test_output_that_cannot_be_written(filled: Any, process: Start) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with open("/dev/full", "wb") as full:
        started = process("consume", "logs", "--group", "g", stdout=full)
        _, err = started.communicate(timeout=30)
    assert started.returncode == 1
    assert err.decode().startswith("streamlog: ") and "No space left" in err.decode()
    assert err.count(b"\n") == 1
    assert filled("consume", "logs", "--group", "g", "--max", "1").out == b"0\n"


# -- beside an owner -------------------------------------------------------------------------------


@pytest.mark.integration
def test_beside_a_live_owner(run_process: Any, store: str) -> None:
    with streamlog.open(store) as cluster:
        cluster.create_topic("logs")
        with cluster.producer() as producer:
            producer.send("logs", b"hello")
        assert run_process("consume", "logs").out == b"hello\n"
        for command in (["consume", "logs", "--group", "g"], ["produce", "logs"]):
            done = run_process(*command)
            done.failed(3, f"process {os.getpid()}", "Stop that process", "reading commands")
            assert done.out == b""


@pytest.mark.integration
def test_following_a_live_owner(process: Start, store: str) -> None:
    """Each record is seen, also those whose commit was under way when the reader looked."""
    with streamlog.open(store) as cluster:
        cluster.create_topic("logs")
        started = process("consume", "logs", "--follow", "--max", "60")
        with cluster.producer() as producer:
            for number in range(60):
                producer.send("logs", b"%d" % number).result(10)
                assert first_lines(started, 1) == [b"%d\n" % number]
        assert started.wait(30) == 0
        started.communicate()
