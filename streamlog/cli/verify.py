"""`streamlog verify`: walk every batch, index and checkpoint, and say what is wrong. Works beside a live
owner.
"""

from __future__ import annotations

import argparse
from typing import Any

from streamlog.cli.arguments import Commands, add_command
from streamlog.cli.failures import DAMAGED, OK
from streamlog.cli.opening import require_directory
from streamlog.cli.terminal import Terminal, duration, size
from streamlog.clock import SystemClock
from streamlog.wording import plural

DESCRIPTION = """\
Checks CRC, header, offsets and timestamps of every batch, every checkpoint against its log, and what is
folded from logs (topics, groups) against a fresh fold. Nothing is changed. Beside a live owner the pages of
the files are not checked.

Exit code: 0 if all is sound, 4 if anything is wrong."""


def add_parser(commands: Commands) -> None:
    """Add `verify`."""
    add_command(commands, "verify", run, "check every batch, index and checkpoint", DESCRIPTION)


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from streamlog.broker.verification import verify_directory

    require_directory(arguments.dir)
    clock = SystemClock()
    started_ms = clock.monotonic_ms()
    with terminal.progress("verifying", None, "bytes") as progress:
        done_bytes = 0

        def tell(now: Any) -> None:
            nonlocal done_bytes
            progress.advance(now.done_bytes - done_bytes)
            done_bytes = now.done_bytes

        report = verify_directory(arguments.dir, tell)
    elapsed_ms = max(1, clock.monotonic_ms() - started_ms)
    if terminal.json:
        terminal.document(_document(report, elapsed_ms))
    else:
        _show(report, elapsed_ms, arguments.dir, terminal)
    return OK if report.is_sound else DAMAGED


def _document(report: Any, elapsed_ms: int) -> dict[str, Any]:
    return {
        "sound": report.is_sound,
        "path": report.path,
        "owner_pid": report.owner_pid,
        "files_checked": report.files_checked,
        "topics": report.topics,
        "groups": report.groups,
        "batches": report.batches,
        "records": report.records,
        "bytes": report.size_bytes,
        "elapsed_ms": elapsed_ms,
        "orphans": [
            {"environment": o.environment, "log_id": o.log_id, "batches": o.batches, "bytes": o.size_bytes}
            for o in report.orphans
        ],
        "problems": [
            {
                "environment": p.environment,
                "topic": p.topic or None,
                "partition": p.partition if p.topic else None,
                "log_id": p.log_id,
                "offset": p.offset if p.offset >= 0 else None,
                "what": p.what,
                "expected": p.expected,
                "actual": p.actual,
            }
            for p in report.problems
        ],
    }


def _show(report: Any, elapsed_ms: int, directory: str, terminal: Terminal) -> None:
    wrong: dict[tuple[str, int], int] = {}
    for problem in report.problems:
        place = (problem.topic, problem.partition)
        wrong[place] = wrong.get(place, 0) + 1
    rows = [
        (
            tp.topic,
            str(tp.partition),
            log.batches,
            log.records,
            size(log.size_bytes),
            wrong.get((tp.topic, tp.partition), 0),
        )
        for tp, log in sorted(report.partitions.items())
    ]
    if rows:
        terminal.table(("topic", "partition", "batches", "records", "stored", "problems"), rows)
        terminal.line()
    for problem in report.problems:
        terminal.line(f"problem: {problem}")
    walked = (
        f"{plural(report.batches, 'batch')}, {plural(report.records, 'record')}, "
        f"{size(report.size_bytes)} in {duration(elapsed_ms)}"
    )
    if report.orphans:
        terminal.line(
            f"{plural(len(report.orphans), 'log')} of deleted topics wait to be removed: not a problem"
        )
    if report.owner_pid is not None:
        terminal.line(f"process {report.owner_pid} owns {directory}: the pages of its files were not checked")
    if report.is_sound:
        terminal.line(f"{directory} is sound: {walked}")
    else:
        terminal.line(
            f"{directory} is damaged: {plural(len(report.problems), 'problem')} in {walked}. Other records "
            "stay readable; "
            "a copy made by `streamlog backup` replaces the directory"
        )
