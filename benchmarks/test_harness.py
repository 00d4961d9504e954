"""The harness itself: interleaving, quotients inside a repeat, skips and failures, the tables.

Run with `pytest benchmarks/test_harness.py`; it needs neither streamlog nor a rival.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.harness import (
    Bench,
    BenchResult,
    Cell,
    CellFailedError,
    Contestant,
    Goal,
    Metrics,
    Options,
    UnavailableError,
    run_bench,
    run_cell_here,
    run_cell_in_process_of_its_own,
)
from benchmarks.payload import chunks, pack_blob, pairs, percentile, records_in_blob, unpack_blob
from benchmarks.rivals import HandOff, RawLmdb
from benchmarks.suite import BENCHES, find_bench, select


def bench_of(*names: str, goals: tuple[Goal, ...] = (), repeats_max: int = 1_000) -> Bench:
    contestants = [Contestant(name, lambda cell: {"records_per_s": 1.0}) for name in names]
    return Bench("a bench", "produce", contestants, goals, repeats_max=repeats_max)


def test_repeats_are_interleaved_and_shuffled(tmp_path: Path) -> None:
    order: list[str] = []

    def note(bench: Bench, contestant: Contestant, cell: Cell) -> Metrics:
        order.append(contestant.name)
        assert list(cell.directory.iterdir()) == []  # fresh for every cell
        (cell.directory / "left over").touch()
        return {"records_per_s": 1.0}

    result = run_bench(bench_of("a", "b", "c"), Options(repeats=20), tmp_path, note)
    rounds = [order[start : start + 3] for start in range(0, 60, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 3
    assert len(result.repeats) == len(result.probes) == 20
    assert list(tmp_path.iterdir()) == []


def test_a_quotient_is_taken_inside_a_repeat_before_the_median() -> None:
    goal = Goal("records_per_s", "ours", at_least=0.6, of="theirs")
    slow_minute = {"ours": {"records_per_s": 10.0}, "theirs": {"records_per_s": 20.0}}
    fast_minute = {"ours": {"records_per_s": 900.0}, "theirs": {"records_per_s": 1000.0}}
    half_missing = {"ours": {"records_per_s": 5.0}}
    assert goal.values([slow_minute, half_missing, fast_minute]) == [0.5, 0.9]
    assert (goal.is_met(0.6), goal.is_met(0.59), goal.bound) == (True, False, ">= 0.6")


def test_goals_of_one_metric_and_of_two_metrics_of_one_contestant() -> None:
    repeats = [{"ours": {"busy_us": 50.0, "quiet_us": 10.0, "lost": 0.0}}]
    assert Goal("lost", "ours", at_most=0).values(repeats) == [0.0]
    assert Goal("lost", "ours", at_most=0).is_met(0.0)
    quotient = Goal("busy_us", "ours", at_most=10, of_metric="quiet_us")
    assert quotient.values(repeats) == [5.0]
    assert quotient.title == "ours busy_us / ours quiet_us"


def test_a_missing_rival_is_skipped_with_its_reason_and_asked_only_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def run(bench: Bench, contestant: Contestant, cell: Cell) -> Metrics:
        asked.append(contestant.name)
        if contestant.name == "b":
            raise UnavailableError("b is missing: pip install b")
        return {"records_per_s": 1.0}

    result = run_bench(bench_of("a", "b"), Options(repeats=3), tmp_path, run)
    assert result.skipped == {"b": "b is missing: pip install b"}
    assert (asked.count("a"), asked.count("b")) == (3, 1)
    assert "Skipped: b: b is missing" in report.markdown([result], report.machine(tmp_path))


def test_a_failure_in_one_repeat_keeps_the_others(tmp_path: Path) -> None:
    calls = iter(range(10))

    def run(bench: Bench, contestant: Contestant, cell: Cell) -> Metrics:
        if next(calls) == 1:
            raise CellFailedError("boom")
        return {"records_per_s": 2.0}

    result = run_bench(bench_of("a"), Options(repeats=3), tmp_path, run)
    assert result.values("a", "records_per_s") == [2.0, 2.0]
    assert result.failures == ["a bench [a] 2/3: boom"]


def test_only_and_repeats_max(tmp_path: Path) -> None:
    options = Options(repeats=5, only=["b"])
    result = run_bench(bench_of("a", "b", repeats_max=2), options, tmp_path, run_cell_here)
    assert [list(repeat) for repeat in result.repeats] == [["b"], ["b"]]


def test_a_cell_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    bench = find_bench("send().result() 100 B")
    cell = Cell(tmp_path, True, bench.params, tmp_path)
    metrics = run_cell_in_process_of_its_own(bench, bench.contestant("SQLite"), cell)
    assert metrics["records_per_s"] > 100
    assert 0 < metrics["p50_us"] <= metrics["p99_us"] <= metrics["max_us"]
    assert (tmp_path / "queue.db").exists()


def test_a_cell_that_fails_says_why(tmp_path: Path) -> None:
    bench = find_bench("send().result() 100 B")
    cell = Cell(tmp_path / "missing", True, bench.params, tmp_path)
    with pytest.raises(CellFailedError, match="unable to open database file"):
        run_cell_in_process_of_its_own(bench, bench.contestant("SQLite"), cell)


def test_a_shared_store_is_built_once(tmp_path: Path) -> None:
    built: list[Path] = []
    cell = Cell(tmp_path, False, {}, tmp_path)
    assert cell.shared("store", built.append) == cell.shared("store", built.append)
    assert len(built) == 1
    quick = Cell(tmp_path, True, {}, tmp_path)
    assert quick.shared("store", built.append) != built[0]


def test_blobs_hold_what_was_packed() -> None:
    for value_bytes in (0, 100, 1024):
        items = pairs(1_500, value_bytes)
        assert {len(key) for key, _ in items} == {16}
        assert {len(value) for _, value in items} == {value_bytes}
        size = records_in_blob(value_bytes)
        blobs = [pack_blob(chunk) for chunk in chunks(items, size)]
        assert [pair for blob in blobs for pair in unpack_blob(blob)] == items
        assert 60_000 < len(pack_blob((items * 3)[:size])) <= 64 * 1024


def test_the_hand_off_hands_everything_over(tmp_path: Path) -> None:
    hand_off = HandOff(tmp_path)
    for number in range(50):
        hand_off.send(b"%d" % number)
    assert [hand_off.receive(number) for number in range(50)] == [b"%d" % number for number in range(50)]
    with pytest.raises(RuntimeError, match="lost wake-up"):
        hand_off.receive(50, timeout=0.01)
    hand_off.store.close()
    assert RawLmdb(tmp_path).next_offset == 50


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 99, 0.0), ([5.0], 50, 5.0), ([3.0, 1.0, 2.0], 50, 2.0), (list(map(float, range(100))), 99, 99.0)],
)
def test_percentile(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("records_per_s", 2_850_000, "2.85M/s"),
        ("records_per_s", 714_400, "714k/s"),
        ("records_per_s", 12, "12/s"),
        ("p99_us", 45.54, "45.5 us"),
        ("p99_us", 9_800, "9.80 ms"),
        ("open_ms", 0.48, "480 us"),
        ("file_bytes", 3 << 20, "3 MiB"),
        ("cpu_percent", 0.31, "0.31 %"),
        ("", 0.6149, "0.61"),
        ("lost", 0, "0"),
    ],
)
def test_numbers_carry_their_unit(metric: str, value: float, text: str) -> None:
    assert report.shown(metric, value) == text


def test_the_tables(tmp_path: Path) -> None:
    goals = (Goal("records_per_s", "ours", at_least=0.6, of="theirs"), Goal("lost", "ours", at_most=0))
    result = BenchResult(bench_of("ours", "theirs", goals=goals))
    for ours_rate in (500.0, 700.0, 800.0):
        result.repeats.append({"ours": {"records_per_s": ours_rate}, "theirs": {"records_per_s": 1000.0}})
    text = report.markdown([result], report.machine(tmp_path))
    assert "| a bench | records_per_s: ours / theirs | 0.70 (0.50 - 0.80) | >= 0.6 | met |" in text
    assert "| a bench | ours: lost | - | <= 0 | not measured |" in text
    assert "| ours | 700/s (500/s - 800/s) |" in text
    data = json.loads(json.dumps(report.as_json([result], report.machine(tmp_path))))
    (bench,) = data["benches"]
    assert bench["contestants"]["ours"]["records_per_s"]["median"] == 700
    assert bench["goals"][0] == {
        "what": "records_per_s: ours / theirs", "goal": ">= 0.6",
        "median": 0.7, "min": 0.5, "max": 0.8, "values": [0.5, 0.7, 0.8], "met": True,
    }  # fmt: skip


def test_every_goal_names_contestants_of_its_bench() -> None:
    assert len({bench.name for bench in BENCHES}) == len(BENCHES)
    for bench in BENCHES:
        names = [one.name for one in bench.contestants]
        assert len(set(names)) == len(names), bench.name
        for goal in bench.goals:
            assert goal.name in names, (bench.name, goal)
            assert goal.of is None or goal.of in names, (bench.name, goal)
            assert (goal.at_least is None) != (goal.at_most is None), (bench.name, goal)


def test_selecting_benches() -> None:
    assert select(["all"]) == BENCHES
    assert {bench.group for bench in select(["latency", "disk"])} == {"latency", "disk"}
    assert [bench.name for bench in select(["send().result() 1 KiB"])] == ["send().result() 1 KiB"]
    with pytest.raises(LookupError, match="'nonsense' is no group"):
        select(["nonsense"])


def test_the_command_writes_both_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file, markdown_file = tmp_path / "out.json", tmp_path / "out.md"
    arguments = ["send().result() 100 B", "--only", "SQLite", "--quick", "--repeats", "1"]
    files = ["--json", str(json_file), "--markdown", str(markdown_file)]
    assert main([*arguments, *files, "--scratch", str(tmp_path)]) == 0
    assert json.loads(json_file.read_text())["benches"][0]["contestants"]["SQLite"]
    assert "| SQLite |" in markdown_file.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.md"]
    assert main([]) == 0
    assert "send_many 100 B: streamlog; raw LMDB" in capsys.readouterr().out
