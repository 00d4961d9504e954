"""What was measured, as Markdown for people and JSON for programs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import BenchResult, Goal

_DISTRIBUTIONS = ("lmdb", "msgspec", "zstandard", "google-crc32c", "confluent-kafka", "redis", "hiredis")


def machine(scratch: Path) -> dict[str, Any]:
    """Where this ran: enough to know which numbers may be compared."""
    versions = {}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "filesystem": filesystem(scratch),
        "versions": {**versions, "sqlite": sqlite3.sqlite_version},
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def filesystem(path: Path) -> str:
    """The type of the file system that holds `path`: a tmpfs would make every `sync` free."""
    best, kind = "", "unknown"
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in mounts:
        _, mount, of_type = line.split()[:3]
        under = str(path.resolve())
        if (under == mount or under.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
            best, kind = mount, of_type
    return kind


# ---------------------------------------------------------------- numbers


def shown(metric: str, value: float) -> str:
    """A number with its unit, three digits long: the unit is the metric name's last part."""
    if metric.endswith("_per_s"):
        return _scaled(value, ((1e6, "M/s"), (1e3, "k/s"), (1, "/s")))
    if metric.endswith("_us"):
        return _scaled(value, ((1e6, " s"), (1e3, " ms"), (1, " us")))
    if metric.endswith("_ms"):
        return _scaled(value, ((1e3, " s"), (1, " ms"), (1e-3, " us")))
    if metric.endswith("_bytes"):
        return _scaled(value, ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB"), (1, " B")))
    if metric.endswith("_mb"):
        return f"{_digits(value)} MB"
    if metric.endswith("_percent"):
        return f"{_digits(value)} %"
    return _digits(value)


def _scaled(value: float, steps: Sequence[tuple[float, str]]) -> str:
    for size, unit in steps:
        if abs(value) >= size:
            return f"{_digits(value / size)}{unit}"
    size, unit = steps[-1]
    return f"{_digits(value / size)}{unit}"


def _digits(value: float) -> str:
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.1 else f"{value:.2g}"


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def _shown_spread(metric: str, values: Sequence[float]) -> str:
    middle = shown(metric, statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({shown(metric, min(values))} - {shown(metric, max(values))})"


# ---------------------------------------------------------------- Markdown


def markdown(results: Sequence[BenchResult], about: Mapping[str, Any]) -> str:
    lines = [
        f"Machine: {about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB, {about['system']}, "
        f"{about['python']}, scratch on {about['filesystem']}; "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        + ".",
        "",
        f"`{about['command']}`. Cells are median (min - max); ratios are taken inside each repeat.",
        "",
    ]
    lines += _goals_table(results)
    for result in results:
        lines += _bench_section(result)
    return "\n".join(lines).rstrip() + "\n"


def _goals_table(results: Sequence[BenchResult]) -> list[str]:
    rows = [(result, goal) for result in results for goal in result.bench.goals]
    if not rows:
        return []
    lines = ["| bench | what | measured | goal | |", "|---|---|---|---|---|"]
    for result, goal in rows:
        values = goal.values(result.repeats)
        if values:
            measured = _goal_value(goal, values)
            met = "met" if goal.is_met(statistics.median(values)) else "**missed**"
            lines.append(f"| {result.bench.name} | {goal.title} | {measured} | {goal.bound} | {met} |")
        else:
            lines.append(f"| {result.bench.name} | {goal.title} | - | {goal.bound} | not measured |")
    return [*lines, ""]


def _goal_value(goal: Goal, values: Sequence[float]) -> str:
    is_quotient = goal.of is not None or goal.of_metric is not None
    return _shown_spread("" if is_quotient else goal.metric, values)


def _bench_section(result: BenchResult) -> list[str]:
    bench = result.bench
    lines = [f"### {bench.name}", ""]
    if bench.note:
        lines += [bench.note, ""]
    names = [one.name for one in bench.contestants if result.metrics_of(one.name)]
    metrics = list(dict.fromkeys(metric for name in names for metric in result.metrics_of(name)))
    if names:
        lines.append(f"| {len(result.repeats)} repeats | " + " | ".join(metrics) + " |")
        lines.append("|---" * (len(metrics) + 1) + "|")
    for name in names:
        cells = [result.values(name, metric) for metric in metrics]
        row = [
            _shown_spread(metric, values) if values else ""
            for metric, values in zip(metrics, cells, strict=True)
        ]
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    for name, reason in result.skipped.items():
        lines.append(f"\nSkipped: {name}: {reason}")
    lines += [f"\nFailed: {failure}" for failure in result.failures]
    return [*lines, ""]


# ---------------------------------------------------------------- JSON


def as_json(results: Sequence[BenchResult], about: Mapping[str, Any]) -> dict[str, Any]:
    return {"machine": dict(about), "benches": [_bench_json(result) for result in results]}


def _bench_json(result: BenchResult) -> dict[str, Any]:
    bench = result.bench
    goals = []
    for goal in bench.goals:
        values = goal.values(result.repeats)
        entry: dict[str, Any] = {"what": goal.title, "goal": goal.bound}
        if values:
            entry |= {**spread(values), "met": goal.is_met(statistics.median(values))}
        goals.append(entry)
    return {
        "name": bench.name,
        "group": bench.group,
        "params": dict(bench.params),
        "repeats": len(result.repeats),
        "contestants": {
            one.name: {
                metric: spread(result.values(one.name, metric)) for metric in result.metrics_of(one.name)
            }
            for one in bench.contestants
            if result.metrics_of(one.name)
        },
        "goals": goals,
        "probes": result.probes,
        "skipped": result.skipped,
        "failures": result.failures,
    }
