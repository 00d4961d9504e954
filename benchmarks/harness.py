"""The measuring harness: every number is taken beside its rival, in the same run, many times, in turn.

    repeat 1:  [streamlog] [raw LMDB] [confluent]      each box is a *cell*: one contestant, once,
    repeat 2:  [confluent] [streamlog] [raw LMDB]      in a fresh process and a fresh directory,
    repeat 3:  [raw LMDB] [confluent] [streamlog]      order shuffled in every repeat

Machines drift (a neighbour wakes up, a disk changes its mode), so absolute numbers of different minutes
cannot be compared. Hence:
 1. A ratio is taken inside one repeat; what is reported is the median of those ratios and their range.
 2. A metric is reported as median (min-max) over the repeats.
 3. A contestant that is missing on this machine is skipped with its reason, never silently.
 4. A contestant that fails in one repeat keeps its other repeats, and the failure is reported.

A contestant is a function `(Cell) -> {metric: value}`. Metric names end in their unit: `records_per_s`,
`p99_us`, `open_ms`, `file_bytes`. What is timed and what is preparation is the function's business and stands
in its docstring.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

Metrics = dict[str, float]
CELL_TIMEOUT_S = 900
RESULT_MARK = "BENCHMARK-RESULT "


class UnavailableError(Exception):
    """This contestant cannot run here; the text says what is missing and how to get it."""


@dataclass(frozen=True)
class Cell:
    """One contestant, once: where it may write, and how much it is to do."""

    directory: Path
    quick: bool
    params: Mapping[str, Any]
    shared_directory: Path

    def scaled(self, count: int, quick_count: int | None = None) -> int:
        """`count`, or about a tenth of it in a quick run."""
        if not self.quick:
            return count
        return quick_count if quick_count is not None else max(1, count // 10)

    def shared(self, name: str, build: Callable[[Path], None]) -> Path:
        """A directory that is built once a run and then reused, for stores that take long to fill."""
        path = self.shared_directory / (f"{name}-quick" if self.quick else name)
        done = path / "BUILT"
        if not done.exists():
            rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
            build(path)
            done.touch()
        return path


@dataclass(frozen=True)
class Contestant:
    name: str
    run: Callable[[Cell], Metrics]


@dataclass(frozen=True)
class Goal:
    """`metric` of `name`, alone or divided by `of_metric` of `of`, held against one bound.

    The quotient is taken inside each repeat and its median judged.
    """

    metric: str
    name: str
    at_least: float | None = None
    at_most: float | None = None
    of: str | None = None
    of_metric: str | None = None

    @property
    def title(self) -> str:
        if self.of is None and self.of_metric is None:
            return f"{self.name}: {self.metric}"
        below = self.of or self.name
        of_metric = self.of_metric or self.metric
        if of_metric == self.metric:
            return f"{self.metric}: {self.name} / {below}"
        return f"{self.name} {self.metric} / {below} {of_metric}"

    @property
    def bound(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"

    def values(self, repeats: Sequence[Mapping[str, Metrics]]) -> list[float]:
        """The quotient of every repeat in which both sides were measured."""
        found = []
        for repeat in repeats:
            value = repeat.get(self.name, {}).get(self.metric)
            if self.of is not None or self.of_metric is not None:
                divisor = repeat.get(self.of or self.name, {}).get(self.of_metric or self.metric)
                value = value / divisor if value is not None and divisor else None
            if value is not None:
                found.append(value)
        return found

    def is_met(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most


@dataclass(frozen=True)
class Bench:
    """One question: its contestants, and the goals their numbers are held against."""

    name: str
    group: str
    contestants: Sequence[Contestant]
    goals: Sequence[Goal] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    repeats_max: int = 1_000
    """For runs of minutes, where the question is yes or no rather than how much."""
    note: str = ""

    def contestant(self, name: str) -> Contestant:
        return next(contestant for contestant in self.contestants if contestant.name == name)


@dataclass
class BenchResult:
    bench: Bench
    repeats: list[dict[str, Metrics]] = field(default_factory=list)
    probes: list[Metrics] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def values(self, name: str, metric: str) -> list[float]:
        return [repeat[name][metric] for repeat in self.repeats if metric in repeat.get(name, {})]

    def metrics_of(self, name: str) -> list[str]:
        seen: dict[str, None] = {}
        for repeat in self.repeats:
            seen.update(dict.fromkeys(repeat.get(name, {})))
        return list(seen)


@dataclass(frozen=True)
class Options:
    repeats: int = 5
    quick: bool = False
    only: Sequence[str] = ()
    scratch: Path | None = None
    seed: int = 0
    say: Callable[[str], None] = lambda line: None


CellRunner = Callable[[Bench, Contestant, Cell], Metrics]


def run_bench(
    bench: Bench, options: Options, shared_directory: Path, run_cell: CellRunner | None = None
) -> BenchResult:
    """Measure all contestants of a bench, interleaved.

    run_cell:  measures one cell; by default in a process of its own.
    """
    run_cell = run_cell or run_cell_in_process_of_its_own
    result = BenchResult(bench)
    chance = random.Random(options.seed)
    repeats = min(options.repeats, bench.repeats_max)
    for number in range(1, repeats + 1):
        order = [one for one in bench.contestants if not options.only or one.name in options.only]
        chance.shuffle(order)
        measured: dict[str, Metrics] = {}
        result.probes.append(probe_machine(shared_directory))
        for contestant in order:
            if contestant.name in result.skipped:
                continue
            where = f"{bench.name} [{contestant.name}] {number}/{repeats}"
            with fresh_directory(shared_directory) as directory:
                cell = Cell(directory, options.quick, bench.params, shared_directory)
                try:
                    measured[contestant.name] = run_cell(bench, contestant, cell)
                    options.say(f"{where}: {shown_metrics(measured[contestant.name])}")
                except UnavailableError as error:
                    result.skipped[contestant.name] = str(error)
                    options.say(f"{where}: skipped: {error}")
                except CellFailedError as error:
                    result.failures.append(f"{where}: {error}")
                    options.say(f"{where}: FAILED: {error}")
        result.repeats.append(measured)
    return result


def shown_metrics(metrics: Metrics) -> str:
    return "  ".join(
        f"{name}={value:,.4g}" if value < 1000 else f"{name}={value:,.0f}" for name, value in metrics.items()
    )


@contextmanager
def fresh_directory(parent: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="cell-", dir=parent))
    try:
        yield path
    finally:
        rmtree(path, ignore_errors=True)


def probe_machine(directory: Path) -> Metrics:
    """How fast the machine is right now; without it a slow minute looks like a slow library."""
    started = time.perf_counter()
    for _ in range(200_000):
        pass
    loop_ns = (time.perf_counter() - started) * 1e9 / 200_000
    path = directory / "probe"
    syncs_us = []
    with open(path, "wb", buffering=0) as file:
        for _ in range(5):
            file.write(bytes(4096))
            before = time.perf_counter()
            os.fdatasync(file.fileno())
            syncs_us.append((time.perf_counter() - before) * 1e6)
    path.unlink()
    return {"loop_ns": loop_ns, "fdatasync_us": statistics.median(syncs_us)}


# ---------------------------------------------------------------- one cell, one process


class CellFailedError(Exception):
    """The cell's process failed; the text is the end of its error output."""


def run_cell_in_process_of_its_own(bench: Bench, contestant: Contestant, cell: Cell) -> Metrics:
    """Run a cell with a fresh interpreter: no warm allocator, no threads or caches of the one before."""
    order = {
        "bench": bench.name,
        "contestant": contestant.name,
        "directory": str(cell.directory),
        "shared_directory": str(cell.shared_directory),
        "quick": cell.quick,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.cell", json.dumps(order)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parent.parent,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=CELL_TIMEOUT_S)
    except BaseException as error:
        # The cell's own children (a Redis server) live in its session and go with it.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise CellFailedError(f"no result after {CELL_TIMEOUT_S} s") from None
        raise
    for line in reversed(output.splitlines()):
        if line.startswith(RESULT_MARK):
            return _result_of(json.loads(line[len(RESULT_MARK) :]))
    tail = errors.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
    raise CellFailedError(tail[0])


def _result_of(answer: Mapping[str, Any]) -> Metrics:
    if "unavailable" in answer:
        raise UnavailableError(answer["unavailable"])
    if "failed" in answer:
        raise CellFailedError(answer["failed"])
    metrics: Metrics = answer["metrics"]
    return metrics


def run_cell_here(bench: Bench, contestant: Contestant, cell: Cell) -> Metrics:
    """Run a cell in this process (tests, profilers, pytest-benchmark)."""
    return contestant.run(cell)
