"""`streamlog produce`, and the way of bytes through produce and consume."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

DATA = Path("/work/shared/data")
LOGS = sorted(DATA.glob("*.log"))
Start = Callable[..., "subprocess.Popen[bytes]"]


def values(cli: Any, topic: str = "logs") -> list[Any]:
    return [record["value"] for record in cli("consume", topic, "--json").json_lines]


@pytest.mark.parametrize("group", [(), ("--group", "g")], ids=["alone", "group"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_bytes_come_out_as_they_went_in(
    cli: Any, tmp_path: Path, nasty: list[bytes], group: tuple[str, ...], compression: str
) -> None:
    data = b"".join(nasty)
    (tmp_path / "nasty.log").write_bytes(data)
    produced = cli(
        "produce", "logs", str(tmp_path / "nasty.log"), "--create", "--compression", compression, "--json"
    )
    assert produced.code == 0
    assert (produced.json["records"], produced.json["bytes"]) == (len(nasty), len(data))
    assert cli("consume", "logs", *group).out == data


def test_every_line_is_one_record(cli: Any) -> None:
    cli("produce", "logs", "--create", stdin=b"a\r\n\nb")
    records = cli("consume", "logs", "--json").json_lines
    assert [record["value"] for record in records] == ["a\r", "", "b"]
    assert [record["headers"] for record in records] == [[], [], [["streamlog.line-end", ""]]]


@pytest.mark.parametrize("data", [b"", b"\n", b"x", b"x\n", b"\n\n\nx", b"\r", b"\x00\n"])
def test_small_inputs(cli: Any, data: bytes) -> None:
    assert cli("produce", "logs", "--create", stdin=data).code == 0
    assert cli("consume", "logs").out == data


def test_a_line_longer_than_a_chunk_stays_one(cli: Any) -> None:
    line = b"y" * 700_000
    cli("produce", "logs", "--create", stdin=line + b"\nshort\n")
    assert cli("consume", "logs").out == line + b"\nshort\n"
    assert len(values(cli)) == 2


@pytest.mark.parametrize("file", LOGS or [None], ids=lambda file: getattr(file, "name", "absent"))
def test_a_real_log_through_a_group(cli: Any, file: Path | None) -> None:
    if file is None:
        pytest.skip(f"{DATA} is not there")
    assert cli("produce", "logs", str(file), "--create").code == 0
    out = cli("consume", "logs", "--group", "archive").out
    assert sha256(out).hexdigest() == sha256(file.read_bytes()).hexdigest()
    assert cli("consume", "logs", "--group", "archive").out == b""


@pytest.mark.integration
def test_through_two_processes(run_process: Any, tmp_path: Path, nasty: list[bytes]) -> None:
    data = b"".join(nasty * 20)
    assert run_process("produce", "logs", "--create", stdin=data).code == 0
    assert run_process("consume", "logs", "--group", "archive").out == data


@pytest.mark.skipif(len(LOGS) != 5, reason=f"the five logs of {DATA} are not there")
def test_the_real_logs_through_one_topic(cli: Any, tmp_path: Path) -> None:
    """All files into one topic of four partitions, out again per file, by a group."""
    files = [str(file) for file in LOGS]
    assert cli("produce", "logs", *files, "--create", "--partitions", "4", "--key-file").code == 0
    assert cli("consume", "logs", "--group", "g", "--output-dir", str(tmp_path / "out")).code == 0
    for file in LOGS:
        came_out = tmp_path / "out" / str(file).lstrip("/")
        assert sha256(came_out.read_bytes()).hexdigest() == sha256(file.read_bytes()).hexdigest()


def test_several_nasty_files_through_one_topic(cli: Any, tmp_path: Path, nasty: list[bytes]) -> None:
    names = ["a.log", "b.log", "c.log", "sub dir/ä.log"]
    for number, name in enumerate(names):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(nasty[number:] * (number + 1)))
    given = [str(tmp_path / "in" / name) for name in names]
    assert cli("produce", "logs", *given, "--create", "--partitions", "3", "--key-file").code == 0
    out = cli("consume", "logs", "--group", "g", "--output-dir", str(tmp_path / "out"), "--json")
    assert out.json["records"] == sum(
        len(nasty[n:]) * (n + 1) - n for n in range(4)
    )  # "...newline" + "plain" is one line
    for name in given:
        assert (tmp_path / "out" / name.lstrip("/")).read_bytes() == Path(name).read_bytes()


def test_stdin_and_files_in_their_order(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"one")
    (tmp_path / "two").write_bytes(b"two\n")
    cli("produce", "logs", str(tmp_path / "one"), "-", str(tmp_path / "two"), "--create", stdin=b"stdin\n")
    assert cli("consume", "logs").out == b"onestdin\ntwo\n"


def test_keys_from_a_regular_expression(cli: Any) -> None:
    lines = b"INFO auth: in\nINFO cart: add\n  continued\nWARN auth: out\n"
    done = cli("produce", "logs", "--create", "--partitions", "3", "--key-regex", r"^\w+ (\w+):", stdin=lines)
    assert "1 line did not match --key-regex" in done.err
    records = cli("consume", "logs", "--json").json_lines
    assert sorted((r["key"] or "", r["value"]) for r in records) == [
        ("", "  continued"),
        ("auth", "INFO auth: in"),
        ("auth", "WARN auth: out"),
        ("cart", "INFO cart: add"),
    ]
    auth = [(r["partition"], r["offset"]) for r in records if r["key"] == "auth"]
    assert auth[0][0] == auth[1][0] and auth[0][1] < auth[1][1]


def test_a_regular_expression_without_a_group_uses_its_match(cli: Any) -> None:
    cli("produce", "logs", "--create", "--key-regex", r"\d+", stdin=b"order 12 and 13\n")
    assert cli("consume", "logs", "--json").json["key"] == "12"


def test_one_key_for_all_and_a_partition(cli: Any) -> None:
    cli("topics", "create", "logs", "--partitions", "3")
    assert cli("produce", "logs", "--key", "ä", "--partition", "2", stdin=b"a\nb\n").code == 0
    records = cli("consume", "logs", "--json").json_lines
    assert [(r["partition"], r["key"], r["value"]) for r in records] == [(2, "ä", "a"), (2, "ä", "b")]


def test_key_value_lines(cli: Any) -> None:
    cli("produce", "logs", "--create", "--format", "key-value", stdin=b"k1\tv1\nk2\t\n\tv\twith tab\n")
    assert cli("consume", "logs", "--format", "key-value").out == b"k1\tv1\nk2\t\n\tv\twith tab\n"
    cli("produce", "other", "--create", "--format", "key-value", "--separator", "=>", stdin=b"a=>b=>c\n")
    assert cli("consume", "other", "--format", "key-value", "--separator", "|").out == b"a|b=>c\n"


def test_json_round_trip(cli: Any) -> None:
    lines = (
        b'{"key":"k","value":"v","timestamp":1700000000000,"headers":[["a","1"],["a",null],["b",{"base64":"/w=="}]]}\n'
        b'{"key":null,"value":null}\n'
        b'{"value":{"nested":[1,2]}}\n'
        b'{"value":{"base64":"/wA="},"headers":{"h":"x"}}\n'
        b'{"value":7,"topic":"elsewhere","partition":9,"offset":4}\n'
    )
    assert cli("produce", "logs", "--create", "--format", "json", stdin=lines).code == 0
    first = cli("consume", "logs", "--json")
    assert [(r["key"], r["value"]) for r in first.json_lines] == [
        ("k", "v"),
        (None, None),
        (None, '{"nested":[1,2]}'),
        (None, {"base64": "/wA="}),
        (None, "7"),
    ]
    assert first.json_lines[0]["timestamp"] == 1700000000000
    assert first.json_lines[0]["headers"] == [["a", "1"], ["a", None], ["b", {"base64": "/w=="}]]
    cli("produce", "copy", "--create", "--format", "json", stdin=first.out)
    again = cli("consume", "copy", "--json").json_lines
    assert [{**r, "topic": "logs"} for r in again] == first.json_lines


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b"not json", "not JSON"),
        (b"[1]", "not an object"),
        (b'{"key":"k"}', '"value"'),
        (b'{"value":"v","timestamp":"now"}', '"timestamp"'),
        (b'{"value":{"base64":"*"}}', "base64"),
        (b'{"value":"v","headers":[1]}', '"headers"'),
    ],
)
def test_a_bad_json_line_is_named(cli: Any, line: bytes, word: str) -> None:
    done = cli(
        "produce",
        "logs",
        "--create",
        "--format",
        "json",
        stdin=b'{"value":"good"}\n' + line + b'\n{"value":"x"}\n',
    )
    done.failed(1, "line 2 of stdin", word, "Written before it: 1 record; nothing after it")
    assert values(cli) == ["good"]


def test_a_line_without_a_separator_is_named(cli: Any) -> None:
    done = cli("produce", "logs", "--create", "--format", "key-value", stdin=b"a\tb\nc\td\nbroken\ne\tf\n")
    done.failed(1, "line 3 of stdin", "no separator", "--separator")
    assert values(cli) == ["b", "d"]


@pytest.mark.parametrize(
    ("options", "lines", "told"),
    [
        ([], b"a 1\nb 2\n", ["line 1 of stdin", "--key-regex, --key, --key-file", "Nothing was written"]),
        (
            ["--key-regex", r"^(\w) "],
            b"a 1\nb 2\nno key\na 3\n",
            ["line 3 of", "--key-regex does not match it"],
        ),
        (["--format", "json"], b'{"key":"a","value":"1"}\n{"value":"2"}\n', ["line 2 of", "missing or null"]),
    ],
)
def test_a_line_without_a_key_for_a_compacted_topic_is_named(
    cli: Any, options: list[str], lines: bytes, told: list[str]
) -> None:
    cli("topics", "create", "logs", "--config", "cleanup.policy=delete,compact")
    cli("produce", "logs", *options, stdin=lines).failed(1, "compacted", *told)
    written = int(told[0].split()[1]) - 1
    assert len(cli("consume", "logs").out.splitlines()) == written, "what stands before it"


def test_an_oversized_line_is_named(cli: Any) -> None:
    done = cli("produce", "logs", "--create", stdin=b"good\n" + b"x" * 1_100_000 + b"\nafter\n")
    done.failed(1, "line 2 of stdin")
    assert values(cli) == ["good"]


def test_nothing_is_made_for_a_missing_file(cli: Any, store: str) -> None:
    cli("produce", "logs", "/nowhere/app.log", "--create").failed(
        1, "cannot read /nowhere/app.log", "No such file"
    )
    assert not Path(store).exists()
    cli("produce", "logs", "/", "--create").failed(1, "cannot read /")


def test_no_topic_no_directory(cli: Any, store: str) -> None:
    cli("produce", "logs", stdin=b"a\n").failed(1, f"no directory {store}", "topics create")
    cli("topics", "create", "logs")
    cli("produce", "lugs", stdin=b"a\n").failed(1, "no topic 'lugs'", "did you mean 'logs'?")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--key-regex", "("], "no regular expression"),
        (["--key", "a", "--key-file"], "not allowed with"),
        (["--format", "json", "--key-file"], "brings its own keys"),
        (["--format", "key-value", "--key", "a"], "brings its own keys"),
        (["--format", "xml"], "invalid choice"),
        (["--separator", ""], "--separator"),
        (["--partitions", "2"], "--create"),
        (["--partition", "-1"], "below 0"),
        (["--partition", "x"], "not a whole number"),
    ],
)
def test_usage_errors(cli: Any, options: list[str], word: str) -> None:
    cli("topics", "create", "logs")
    cli("produce", "logs", *options, stdin=b"a\n").failed(2, word)
    assert values(cli) == []


def test_partitions_that_are_not_there(cli: Any) -> None:
    cli("topics", "create", "logs", "--partitions", "2")
    cli("produce", "logs", "--partition", "2", stdin=b"a\n").failed(1, "there is no 2")
    cli("produce", "logs", "--create", "--partitions", "3", stdin=b"a\n").failed(1, "2 partitions, not 3")
    assert cli("produce", "logs", "--create", "--partitions", "2", stdin=b"a\n").code == 0


@pytest.mark.integration
def test_lines_of_a_pipe_are_written_as_they_come(process: Start, cli: Any) -> None:
    """A reader beside the producing process sees a line while the pipe is still open; Ctrl-C ends it
    cleanly.
    """
    cli("topics", "create", "logs")
    producing = process("produce", "logs")
    assert producing.stdin is not None
    producing.stdin.write(b"first\nsecond\nunfinished")
    producing.stdin.flush()
    seen = cli("consume", "logs", "--follow", "--max", "2", "--timeout", "30")
    assert seen.out == b"first\nsecond\n"
    producing.send_signal(signal.SIGINT)
    out, err = producing.communicate(timeout=30)
    assert producing.returncode == 130, err
    assert b"2 records" in out and b"Traceback" not in err
    assert values(cli) == ["first", "second"]


@pytest.mark.integration
def test_terminated(process: Start, cli: Any) -> None:
    cli("topics", "create", "logs")
    producing = process("produce", "logs", "--json")
    assert producing.stdin is not None
    producing.stdin.write(b"first\n")
    producing.stdin.flush()
    assert cli("consume", "logs", "--follow", "--max", "1", "--timeout", "30").out == b"first\n"
    producing.terminate()
    _, err = producing.communicate(timeout=30)
    assert (producing.returncode, err) == (143, b"")


def test_options_may_stand_between_topic_and_file(cli: Any, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_bytes(b"one\n")
    assert cli("produce", "logs", "--create", str(log)).code == 0
    assert cli("produce", "--key", "k", "logs", "--partition", "0", str(log), str(log)).code == 0
    assert values(cli) == ["one", "one", "one"]
    cli("produce", "--quiet").failed(2, "required: TOPIC.")


def test_a_first_line_that_cannot_be_written_says_that_nothing_was(cli: Any) -> None:
    cli("produce", "logs", "--create", "--format", "json", stdin=b"no json\n").failed(
        1, "Nothing was written"
    )
