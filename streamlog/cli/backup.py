"""`streamlog backup`: a consistent copy of the directory while it is in use."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from streamlog.broker.runner import ThreadedRuntime
from streamlog.cli.arguments import Commands, add_command
from streamlog.cli.failures import CommandError
from streamlog.cli.interrupts import Interrupts
from streamlog.cli.opening import reading
from streamlog.cli.terminal import Terminal, duration, size
from streamlog.clock import SystemClock

LOOK_MS = 50
DESCRIPTION = """\
The copy is a directory like any other: `streamlog topics list --dir COPY`. It appears whole or not at all,
and it is compact. Works beside a live owner. Never copy a directory in use with cp or rsync."""


def add_parser(commands: Commands) -> None:
    """Add `backup`."""
    parser = add_command(commands, "backup", run, "copy the directory, also while it is in use", DESCRIPTION)
    parser.add_argument("copy", metavar="COPY", help="a new or empty directory")


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    copy = Path(arguments.copy).absolute()
    if copy.is_relative_to(Path(arguments.dir).absolute()):
        raise CommandError(
            f"{arguments.copy} lies inside {arguments.dir}; a backup needs a directory of its own"
        )
    if not copy.parent.is_dir():
        raise CommandError(f"there is no directory {copy.parent} to make {copy.name} in")
    clock, runtime = SystemClock(), ThreadedRuntime()
    started_ms = clock.monotonic_ms()
    failed: list[BaseException] = []
    with reading(arguments) as cluster, Interrupts() as interrupts:

        def work() -> None:
            try:
                cluster.backup(copy)
            except BaseException as error:
                failed.append(error)

        with terminal.progress("copying", _used_bytes(Path(arguments.dir)), "bytes") as progress:
            task = runtime.spawn("streamlog-backup", work)
            done_bytes = 0
            while not task.join(LOOK_MS):
                seen = max((_used_bytes(place) for place in _partial(copy)), default=0)
                progress.advance(max(0, seen - done_bytes))
                done_bytes = max(seen, done_bytes)
                if interrupts.requested is not None:
                    progress.close()
                    _give_up(copy, interrupts.exit_code, terminal)
    if failed:
        raise failed[0]
    copied, elapsed_ms = _used_bytes(copy), max(1, clock.monotonic_ms() - started_ms)
    if terminal.json:
        terminal.document(
            {"directory": arguments.dir, "copy": str(copy), "bytes": copied, "elapsed_ms": elapsed_ms}
        )
    elif not terminal.quiet:
        terminal.line(f"copied {arguments.dir} to {arguments.copy}: {size(copied)} in {duration(elapsed_ms)}")
    return 0


def _partial(copy: Path) -> list[Path]:
    """What this process has copied so far."""
    return list(copy.parent.glob(f"{copy.name}.partial-{os.getpid()}"))


def _give_up(copy: Path, exit_code: int, terminal: Terminal) -> None:
    """Leave at once, nothing behind: the engine's copying cannot be stopped, only the process can."""
    import shutil

    for place in _partial(copy):
        shutil.rmtree(place, ignore_errors=True)
    terminal.warn("streamlog: interrupted; there is no copy")
    os._exit(exit_code)


def _used_bytes(directory: Path) -> int:
    """What the data files occupy."""
    total = 0
    for file in directory.glob("*/data.mdb"):
        try:
            total += file.stat().st_size
        except OSError:
            continue  # it was renamed while we looked
    return total
