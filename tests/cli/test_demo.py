"""`streamlog demo`: the story, the proof, and that the proof can fail."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog.cli.demo_lines import Input, Line, made_up_log, read_input, rebuild
from streamlog.cli.demo_process import GROUP, PARTITIONS, Delivery, read_journal, share_out
from streamlog.cli.demo_proof import Proof, prove
from streamlog.cli.demo_view import sentence
from streamlog.record import Record

DATA = Path("/work/shared/data")

# -- the whole -------------------------------------------------------------------------------------


@pytest.mark.integration
def test_the_story_for_people(run_process: Any, tmp_path: Path) -> None:
    done = run_process("demo", "--fast", "--lines", "3000", "--dir", str(tmp_path / "kept"))
    assert done.code == 0, done
    lines = done.text.splitlines()
    assert lines[0].startswith("Input: 3,000 lines, ") and "8 components" in lines[0]
    killed = next(line for line in lines if line.startswith("KILLED"))
    pids = [line.split()[1] for line in lines if line.startswith("Process ")]
    assert len(pids) == 2 and pids[0] != pids[1] and pids[0] in killed
    for number in (1, 2, 3):
        assert f"reader-{number} joins the group." in lines
    assert (
        "reader-2 commits and leaves the group." in lines
        and "reader-3 commits and leaves the group." in lines
    )
    counts = {
        line[:30].strip(): line[30:].split()[0] for line in lines if "  " in line and line[:1].isalpha()
    }
    assert (counts["lines read"], counts["in the log"], counts["delivered to the group"]) == ("3,000",) * 3
    assert counts["lag of the group"] == "0"
    assert any(line.startswith("PROVED in ") for line in lines)
    described = run_process("groups", "describe", GROUP, "--json", "--dir", str(tmp_path / "kept"))
    assert described.json[0]["lag"] == 0
    assert sum(p["end"] for p in described.json[0]["partitions"]) == 3000
    assert run_process("verify", "--dir", str(tmp_path / "kept")).code == 0


@pytest.mark.integration
def test_the_facts_for_programs(run_process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setitem(os.environ, "TMPDIR", str(tmp_path / "tmp"))
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(streamlog.__file__).parents[1]),
        "TMPDIR": str(tmp_path / "tmp"),
    }
    done = demo_json(tmp_path, ["--lines", "2000", "--seed", "11"], environment)
    assert done["holds"] is True and done["contradictions"] == []
    assert done["lines"] == done["stored"] == done["delivered"] == 2000
    assert done["in_order"] == done["components"] == 8 and done["lag"] == 0
    assert done["sources"][0]["sha256_read"] == done["sources"][0]["sha256_delivered"]
    assert done["sources"][0]["sha256_read"] == sha256(made_up_log(2000, 11)).hexdigest()
    # It was killed in the middle: not all was read, and what was acknowledged or committed was found again.
    killed, resumed = done["killed_at"], done["resumed_at"]
    assert 1000 <= killed["delivered"] < 2000
    assert resumed["stored"] >= killed["written"] and resumed["committed"] >= sum(killed["committed"])
    assert done["redelivered"] >= 0
    assert list((tmp_path / "tmp").iterdir()) == [], "nothing is left behind"


def demo_json(tmp_path: Path, options: list[str], environment: dict[str, str]) -> Any:
    import json
    import sys

    ran = subprocess.run(
        [sys.executable, "-m", "streamlog", "demo", "--fast", "--json", *options],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    return json.loads(ran.stdout)


@pytest.mark.integration
def test_own_files(run_process: Any, tmp_path: Path, nasty: list[bytes]) -> None:
    (tmp_path / "one.log").write_bytes(b"".join(nasty * 30))
    (tmp_path / "two.log").write_bytes(b"INFO web: a\nINFO db: b\n" * 200)
    files = [str(tmp_path / name) for name in ("one.log", "two.log")]
    done = run_process(
        "demo", *files, "--fast", "--json", "--key-regex", r"(\w+):", "--dir", str(tmp_path / "kept")
    )
    assert done.code == 0, done
    assert [(s["name"], s["sha256_delivered"]) for s in done.json["sources"]] == [
        (file, sha256(Path(file).read_bytes()).hexdigest()) for file in files
    ]


@pytest.mark.integration
@pytest.mark.long
def test_at_its_own_pace(run_process: Any, tmp_path: Path) -> None:
    done = run_process("demo", "--json", "--dir", str(tmp_path / "kept"))
    assert done.json["holds"] and done.json["elapsed_ms"] < 20_000
    assert done.json["redelivered"] > 0, "killed in mid-work, something was not committed"


@pytest.mark.integration
def test_interrupted(process: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    started = process("demo", "--dir", str(tmp_path / "kept"))
    assert started.stdout is not None
    while b"reader-1 joins" not in (line := started.stdout.readline()):
        assert line, started.communicate()
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=30)
    assert (started.returncode, err) == (130, b"streamlog: interrupted\n")
    streamlog.open(tmp_path / "kept").close()  # nobody owns it any more


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (["--lines", "10"], 2, "below 200"),
        (["/nowhere.log"], 1, "cannot read /nowhere.log"),
        (["--key-regex", "("], 2, "no regular expression"),
    ],
)
def test_errors(cli: Any, options: list[str], code: int, word: str) -> None:
    cli("demo", "--fast", *options, bare=True).failed(code, word)


def test_a_directory_in_use_is_refused(cli: Any, store: str, tmp_path: Path) -> None:
    cli("topics", "create", "mine")
    cli("demo", "--fast").failed(1, "not empty", "new directory")
    (tmp_path / "short.log").write_bytes(b"one\n")
    cli("demo", str(tmp_path / "short.log"), "--fast", bare=True).failed(1, "1 line", "200")
    (tmp_path / "empty.log").write_bytes(b"")
    cli("demo", str(tmp_path / "empty.log"), "--fast", bare=True).failed(1, "no lines")


# -- the input -------------------------------------------------------------------------------------


def test_the_made_up_log_is_the_same_everywhere() -> None:
    log = made_up_log(5000, 7)
    assert log.count(b"\n") == 5000 and log.endswith(b"\n")
    assert log == made_up_log(5000, 7) != made_up_log(5000, 8)
    assert sha256(made_up_log(1000, 7)).hexdigest() == MADE_UP_SHA256
    assert made_up_log(100, 7) == b"\n".join(log.split(b"\n")[:100]) + b"\n"
    text = log.decode()
    assert (
        all(level in text for level in ("DEBUG", "INFO", "WARN", "ERROR"))
        and "Traceback" in text
        and "ü" in text
    )


MADE_UP_SHA256 = "8e62e3590740859e72b48fc5b5cb96e28f6de9c2e9e40ffbc1e300d957b5a8aa"


def test_every_component_is_found(tmp_path: Path) -> None:
    path = tmp_path / "shop.log"
    path.write_bytes(made_up_log(5000, 7))
    given = read_input([str(path)], None)
    assert {line.key for line in given.lines} == {
        *(b"auth", b"gateway", b"inventory", b"mailer", b"orders", b"payments", b"scheduler", b"search")
    }
    assert [line.number for line in given.lines] == list(range(5000))
    traces = [n for n, line in enumerate(given.lines) if line.value.startswith(b"Traceback")]
    assert traces and all(given.lines[n].key == given.lines[n + 1].key == b"payments" for n in traces)


@pytest.mark.parametrize(
    ("file", "some"),
    [
        ("Apache_2k.log", {b"error", b"notice"}),
        ("HDFS_2k.log", {b"dfs.DataNode$PacketResponder", b"dfs.FSNamesystem"}),
        ("OpenSSH_2k.log", {b"sshd"}),
        ("Spark_2k.log", {b"executor.Executor", b"storage.BlockManager"}),
        ("Zookeeper_2k.log", {b"FastLeaderElection", b"QuorumCnxManager"}),
    ],
)
def test_components_of_real_logs(file: str, some: set[bytes]) -> None:
    if not (DATA / file).exists():
        pytest.skip(f"{DATA / file} is not there")
    given = read_input([str(DATA / file)], None)
    keys = {line.key for line in given.lines}
    assert some <= keys and len(keys) < 200


def test_lines_of_files_come_back(tmp_path: Path, nasty: list[bytes]) -> None:
    for name, data in (("a", b"".join(nasty)), ("b", b"\n\n"), ("c", b"x"), ("d", b"")):
        (tmp_path / name).write_bytes(data)
    given = read_input([str(tmp_path / name) for name in "abcd"], None)
    start = 0
    for name, count, ended in given.sources:
        values = [line.value for line in given.lines[start : start + count]]
        assert name.startswith(str(tmp_path)) and rebuild(values, ended) == Path(name).read_bytes()
        start += count


def test_producers_share_the_components() -> None:
    lines = [Line(number, b"k%d" % (number % 7), b"") for number in range(70)]
    shared = share_out(lines, {})
    assert sorted(line for mine in shared for line in mine) == lines
    assert all(not {l.key for l in a} & {l.key for l in b} for a in shared for b in shared if a is not b)  # noqa: E741
    resumed = share_out(lines, {b"k0": 14, b"k1": 64})
    left = [line.number for mine in resumed for line in mine]
    assert 14 not in left and 21 in left and 64 not in left and 2 in left
    assert len(left) == 70 - 3 - 10


def test_a_torn_journal_is_read_up_to_the_tear(tmp_path: Path) -> None:
    import msgspec

    packed = msgspec.msgpack.encode([Delivery("r", 0, 1, 2, b"k", b"v")])
    entry = len(packed).to_bytes(4, "big") + packed
    path = tmp_path / "journal"
    for tail in (b"", entry[:-1], entry[:5], entry[:2]):
        path.write_bytes(entry + entry + tail)
        assert read_journal(str(path)) == [Delivery("r", 0, 1, 2, b"k", b"v")] * 2


# -- the proof -------------------------------------------------------------------------------------

LINES = [Line(number, b"k%d" % (number % 3), b"line %d" % number) for number in range(30)]
GIVEN = Input(LINES, [("a.log", 20, True), ("b.log", 10, False)])


def stored() -> list[Record]:
    return [
        Record(
            "logs",
            line.number % 3,
            line.number // 3,
            0,
            line.key,
            line.value,
            (("line", b"%d" % line.number),),
        )
        for line in LINES
    ]


def delivered(numbers: Any) -> list[Delivery]:
    return [Delivery("r", n % 3, n // 3, n, LINES[n].key, LINES[n].value) for n in numbers]


def judged(records: list[Record], *runs: list[Delivery], lag: int = 0) -> Proof:
    return prove(GIVEN, records, list(runs), lag)


def test_the_proof_holds() -> None:
    proof = judged(stored(), delivered(range(18)), delivered(range(12, 30)))
    assert proof.holds, proof
    assert (proof.lines, proof.stored, proof.delivered, proof.redelivered) == (30, 30, 30, 6)
    assert (proof.in_order, proof.components) == (3, 3)
    assert [source.holds for source in proof.sources] == [True, True]
    assert proof.sources[1].sha256_read == sha256(b"\n".join(line.value for line in LINES[20:])).hexdigest()


def test_the_proof_needs_no_global_order() -> None:
    shuffled = sorted(range(30), key=lambda n: (n % 3, n))
    assert judged(stored(), delivered(shuffled)).holds


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda log, runs: log.pop(), "not in the log: 1 line"),
        (lambda log, runs: log.append(log[4]), "line 4 is in the log twice"),
        (lambda log, runs: replace(log, 5, value=b"other"), "line 5 is not in the log as it was read"),
        (lambda log, runs: replace(log, 5, key=b"k0"), "line 5 is not in the log as it was read"),
        (lambda log, runs: runs[1].pop(), "never delivered: 1 line"),
        (lambda log, runs: runs[0].append(runs[0][3]), "was delivered twice by the same process"),
        (lambda log, runs: runs[0].insert(0, runs[0].pop(9)), "lines of k0 were delivered out of order"),
        (
            lambda log, runs: runs[0].__setitem__(2, Delivery("r", 2, 0, 2, b"k2", b"tampered")),
            "a.log did not come out",
        ),
        (
            lambda log, runs: runs[0].__setitem__(2, Delivery("r", 2, 9, 2, b"k2", b"line 2")),
            "where it is not",
        ),
    ],
)
def test_the_proof_can_fail(change: Callable[[list[Record], list[list[Delivery]]], Any], word: str) -> None:
    log, runs = stored(), [delivered(range(18)), delivered(range(15, 30))]
    change(log, runs)
    proof = judged(log, *runs)
    assert not proof.holds
    assert any(word in text for text in proof.contradictions), proof.contradictions


def replace(log: list[Record], number: int, **fields: Any) -> None:
    import msgspec

    log[number] = msgspec.structs.replace(log[number], **fields)


def test_lag_is_a_contradiction() -> None:
    assert not judged(stored(), delivered(range(30)), lag=1).holds


def test_random_losses_never_pass() -> None:
    chance = random.Random(5)
    for _ in range(50):
        numbers = list(range(30))
        del numbers[chance.randrange(30)]
        assert not judged(stored(), delivered(numbers)).holds


def test_events_in_words() -> None:
    assert sentence({"event": "assigned", "reader": "r", "partitions": [1]}) == "  r reads partition 1"
    assert sentence({"event": "assigned", "reader": "r", "partitions": []}) == ""
    assert sentence({"event": "progress"}) == ""
    assert PARTITIONS > 1
