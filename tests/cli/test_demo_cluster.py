"""`streamlog demo cluster`: the story, the proof, and that the proof can fail."""

from __future__ import annotations

import io
import signal
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import streamlog
from streamlog.cli import demo_cluster
from streamlog.cli.arguments import with_joined_names
from streamlog.cli.demo_cluster_proof import ClusterProof, out_of_order, prove_cluster
from streamlog.cli.demo_cluster_traffic import Placed
from streamlog.cli.demo_cluster_view import LiveClusterView, numbers
from streamlog.cli.terminal import Terminal
from streamlog.record import Record

# -- the whole -------------------------------------------------------------------------------------


@pytest.mark.integration
def test_the_facts_for_programs(run_process: Any, store: str) -> None:
    done = run_process("demo", "cluster", "--fast", "--json", "--dir", store)
    assert done.code == 0, done
    facts = done.json
    assert facts["holds"] is True and facts["contradictions"] == [] and facts["lag"] == 0
    assert facts["acked"] == facts["found"] == facts["delivered"] > 500
    assert facts["stored"] == facts["acked"] + facts["written_again"], (
        "nothing else, and nothing of it got lost"
    )
    assert (facts["in_order"], facts["keys"], facts["alike"], facts["replicas"]) == (24, 24, 18, 18)
    assert facts["elapsed_ms"] < 30_000
    told = [event["text"].split()[0] for event in facts["events"]]
    assert told.count("CRASH.") == told.count("CUT.") == told.count("PAUSE.") == 1
    assert sum("longest_gap_ms" in event for event in facts["events"]) == 4
    [topic] = run_process("topics", "describe", "orders", "--json", "--dir", store).json
    assert topic["partitions"][0]["replicas"] == [3, 1, 2] and topic["under_replicated_partitions"] == []
    assert sum(p["leader_epoch"] for p in topic["partitions"]) >= 6, "leaders did change"
    assert sum(p["log_end_offset"] for p in topic["partitions"]) == facts["stored"]
    assert run_process("verify", "--dir", store).code == 0
    run_process("demo", "cluster", "--dir", store).failed(1, "not empty")


@pytest.mark.integration
def test_interrupted(process: Callable[..., subprocess.Popen[bytes]], store: str) -> None:
    started = process("demo", "cluster", "--fast", "--dir", store)
    assert started.stdout is not None
    lines = []
    while not (lines and lines[-1].startswith(b"CUT")):
        lines.append(started.stdout.readline())
        assert lines[-1], started.communicate()
    started.send_signal(signal.SIGINT)  # the network is cut, a leader cannot replicate, producers wait
    _, err = started.communicate(timeout=60)
    assert (started.returncode, err) == (130, b"streamlog: interrupted\n")
    text = b"".join(lines).decode()
    assert text.startswith("3 brokers in this process. Topic 'orders': 6 partitions, each on 3 brokers")
    assert "CRASH. Broker 0, leader of 2 partitions" in text and "Preferred leaders are elected" in text
    assert "in sync 3/3 3/3 3/3 3/3 3/3 3/3" in text and "without an acknowledgement" in text
    with streamlog.open(store) as cluster:  # nobody owns it any more
        assert len(cluster.brokers) == 3


@pytest.mark.integration
@pytest.mark.long
def test_at_its_own_pace(run_process: Any, store: str) -> None:
    done = run_process("demo", "cluster", "--dir", store, timeout=90)
    assert done.code == 0 and "PROVED in " in done.text


def test_what_does_not_come_is_told(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_cluster, "WAIT_MS", -1)
    before = set(threading.enumerate())
    cli("demo", "cluster", "--fast", bare=True).failed(4, "did not come within", "'leader'")
    assert set(threading.enumerate()) <= before, "its threads have ended"


def test_an_error_in_the_traffic_ends_it(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_cluster.Traffic, "_read", lambda self: 1 / 0)
    cli("demo", "cluster", "--fast", bare=True).failed(1, "division by zero")


@pytest.mark.parametrize(
    ("words", "joined"),
    [
        (["demo", "cluster", "--fast"], ["demo cluster", "--fast"]),
        (["--json", "--dir", "demo", "demo", "cluster"], ["--json", "--dir", "demo", "demo cluster"]),
        (["-d", "x", "demo", "cluster"], ["-d", "x", "demo cluster"]),
        (["--dir=x", "demo", "cluster"], ["--dir=x", "demo cluster"]),
        (["produce", "demo", "cluster"], ["produce", "demo", "cluster"]),
        (["demo", "./cluster"], ["demo", "./cluster"]),
        (["demo", "--fast", "cluster"], ["demo", "--fast", "cluster"]),
        (["demo"], ["demo"]),
        (["--help"], ["--help"]),
        ([], []),
    ],
)
def test_two_words_are_one_command(words: list[str], joined: list[str]) -> None:
    assert with_joined_names(words) == joined


def test_help(cli: Any) -> None:
    assert "acks=all" in cli("demo", "cluster", "--help", bare=True).text
    assert "demo cluster" in cli("--help", bare=True).text


# -- the view --------------------------------------------------------------------------------------

NOW: dict[str, Any] = {
    "event": "moment",
    "brokers": [
        {"id": 0, "state": "running", "is_controller": True},
        {"id": 1, "state": "down", "is_controller": False},
        {"id": 2, "state": "paused", "is_controller": False},
    ],
    "partitions": [
        {"leader": 0, "isr": [0, 2], "replicas": [0, 1, 2], "high_watermark": 1199, "ends": {0: 1234, 2: 1199}},
        {"leader": None, "isr": [1], "replicas": [1, 2], "high_watermark": 7, "ends": {2: 7}},
    ],
    "acked": 1206,
    "acks_per_second": 345.6,
    "delivered": 1200,
    "network": "<Network 0/metadata 1/2>",
}  # fmt: skip


def test_a_moment_in_one_line() -> None:
    assert numbers(NOW) == "  leaders 0 -; in sync 2/3 1/2; 1,206 acked (346/s), 1,200 read"


def test_a_moment_as_a_picture() -> None:
    console = pytest.importorskip("rich.console")
    with LiveClusterView(Terminal()) as view:
        view.say("CRASH. Broker 1 is gone.")
        view.show(NOW)
        shown = io.StringIO()
        console.Console(file=shown, width=140).print(view._picture())
    lines = [line.split() for line in shown.getvalue().splitlines() if line.strip()]
    assert " ".join(lines[0]) == "brokers 0 running controller 1 down 2 paused Network 0/metadata 1/2"
    assert ["orders-0", "0", "0,2", "1,199", "1,234", "1,199"] in lines
    assert ["orders-1", "-", "1", "7", "7"] in lines
    assert ["346", "acks/s", "1,206", "acked", "1,200", "read", "by", "'billing'"] in lines
    assert lines[-1] == ["CRASH.", "Broker", "1", "is", "gone."]


def test_without_rich(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, where rich is not installed: the story, line by line."""
    from streamlog.cli.demo_cluster_view import PlainClusterView
    from streamlog.cli.demo_view import make_view

    def missing(terminal: Terminal) -> LiveClusterView:
        raise ImportError("rich")

    terminal = Terminal()
    terminal.is_terminal = True
    assert isinstance(make_view(terminal, PlainClusterView, missing), PlainClusterView)


# -- the proof -------------------------------------------------------------------------------------

ACKS = [Placed(b"k%d" % (n % 2), n, n % 2, n // 2) for n in range(20)]
FACTORS = {0: 3, 1: 3}


def stored() -> list[Record]:
    return [Record("orders", a.partition, a.offset, 0, a.key, b"%d" % a.number, ()) for a in ACKS]


def delivered() -> list[Placed]:
    return list(ACKS)


def sums() -> dict[int, dict[int, str]]:
    return {0: {0: "a", 1: "a", 2: "a"}, 1: {0: "b", 1: "b", 2: "b"}}


def judged(log: Any, got: Any, checksums: Any, lag: int = 0) -> ClusterProof:
    return prove_cluster(ACKS, log, got, lag, checksums, FACTORS)


def test_the_proof_holds() -> None:
    proof = judged(stored(), delivered(), sums())
    assert proof.holds, proof
    assert (proof.acked, proof.found, proof.stored, proof.delivered, proof.written_again) == (
        20,
        20,
        20,
        20,
        0,
    )
    assert (proof.keys, proof.in_order, proof.replicas, proof.alike) == (2, 2, 6, 6)


def test_what_a_retry_wrote_again_is_counted_and_no_contradiction() -> None:
    again = [msgspec.structs.replace(record, offset=record.offset + 10) for record in stored()[:4]]
    proof = judged(stored() + again, delivered() + delivered()[:4], sums())
    assert proof.holds and proof.written_again == 4, proof


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda log, got, sums: log.pop(), "was acknowledged at orders-1@9 and is not there"),
        (lambda log, got, sums: replace(log, 5, value=b"6"), "record 5 of k1 was acknowledged"),
        (lambda log, got, sums: replace(log, 5, key=b"k0"), "record 5 of k1 was acknowledged"),
        (lambda log, got, sums: got.pop(), "never delivered to 'billing': 1 acknowledged record"),
        (lambda log, got, sums: got.insert(0, got.pop(8)), "records of k0 are out of order as they were"),
        (lambda log, got, sums: log.insert(0, log.pop(8)), "records of k0 are out of order in the log"),
        (lambda log, got, sums: sums[1].__setitem__(2, "c"), "the replicas of orders-1 differ: broker 0 b"),
        (lambda log, got, sums: sums[0].pop(2), "orders-0 has 2 replicas, not 3"),
    ],
)
def test_the_proof_can_fail(change: Callable[..., Any], word: str) -> None:
    log, got, checksums = stored(), delivered(), sums()
    change(log, got, checksums)
    proof = judged(log, got, checksums)
    assert not proof.holds
    assert any(word in text for text in proof.contradictions), proof.contradictions


def replace(log: list[Record], number: int, **fields: Any) -> None:
    log[number] = msgspec.structs.replace(log[number], **fields)


def test_lag_is_a_contradiction() -> None:
    assert not judged(stored(), delivered(), sums(), lag=1).holds


@pytest.mark.parametrize(
    ("numbers_of_a_key", "holds"),
    [([1, 2, 3], True), ([1, 2, 1, 2, 3], True), ([2, 1], False), ([1, 3, 3, 2], False), ([], True)],
)
def test_order(numbers_of_a_key: list[int], holds: bool) -> None:
    assert (out_of_order([(b"k", n) for n in numbers_of_a_key], "here", []) == set()) is holds
