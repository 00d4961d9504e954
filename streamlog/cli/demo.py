"""`streamlog demo`: the whole story on real-looking input, with a proof at its end.

this process                                   the application, a process of its own (demo_process)
  makes the input, starts the application  -->   3 producers, a group of readers that come and go
  shows what it tells                      <--   what happens, as JSON lines
  kills it half way (SIGKILL)
  starts it again                          -->   goes on: producers behind the log, readers behind their
  commits compares input, log and deliveries
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

import streamlog
from streamlog.cli.arguments import DIRECTORY_DEFAULT, Commands, add_command, whole
from streamlog.cli.demo_lines import Input, made_up_log, read_input
from streamlog.cli.demo_process import GROUP, PARTITIONS, READERS, TOPIC, Act, Task, read_journal
from streamlog.cli.demo_proof import Proof, SourceProof, document, prove
from streamlog.cli.demo_view import View, make_view, tell_verdict
from streamlog.cli.failures import DAMAGED, OK, CommandError, UsageError
from streamlog.cli.opening import require_new
from streamlog.cli.terminal import Terminal, size
from streamlog.clock import SystemClock
from streamlog.record import TopicPartition
from streamlog.wording import plural

DESCRIPTION: Final = """\
Log lines of a make-believe shop (or your own FILEs) are written by three producers and read by a group of
three readers that come and go. Half way the process that does all this is killed with SIGKILL; a new one
goes on. At the end every line is accounted for: once in the log, delivered, in order, byte for byte as it
was read.

  streamlog demo
  streamlog demo /var/log/*.log --dir demo-data     your own files; the directory is kept to look at

Takes about ten seconds; --fast takes two."""

KILL_SHARE: Final = 0.5
SECONDS: Final = 7.0
LINES: Final = 20_000
LINES_MIN: Final = 200
ANSWER_SECONDS: Final = 60

ONE, TWO, THREE = READERS
FIRST_RUN: Final = (
    Act(0.10, reader=ONE, does="joins"),
    Act(0.20, reader=TWO, does="joins"),
    Act(0.32, reader=THREE, does="joins"),
    Act(0.42, reader=TWO, does="leaves"),
    Act(0.65, until=2, reader=TWO, does="joins"),  # it is killed before this ends
)
SECOND_RUN: Final = (
    Act(0, until=0, reader=ONE, does="joins"),
    Act(0, until=0, reader=TWO, does="joins"),
    Act(0.75, reader=THREE, does="joins"),
    Act(0.88, reader=THREE, does="leaves"),
    Act(1, reader=THREE, does="joins"),
)


def add_parser(commands: Commands) -> None:
    """Add `demo`."""
    parser = add_command(
        commands, "demo", run, "see what it does: produce, consume, kill, resume, prove", DESCRIPTION
    )
    parser.add_argument(
        "files", metavar="FILE", nargs="*", help="your own log files instead of made-up lines"
    )
    parser.add_argument(
        "--lines",
        type=whole(LINES_MIN),
        default=LINES,
        metavar="N",
        help=f"how many lines to make up (default {LINES:,})",
    )
    parser.add_argument(
        "--seed", type=int, default=7, metavar="N", help="another seed makes other lines (default 7)"
    )
    parser.add_argument(
        "--key-regex", metavar="REGEX", help="how to find the component in a line of FILE (its first group)"
    )
    parser.add_argument("--fast", action="store_true", help="no slower than it must be")


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    import shutil
    from tempfile import mkdtemp

    keep = arguments.dir is not DIRECTORY_DEFAULT
    if keep:
        require_new(arguments.dir, "a temporary one")
    _check_key_regex(arguments.key_regex)
    scratch = Path(mkdtemp(prefix="streamlog-demo-"))
    directory = Path(arguments.dir).absolute() if keep else scratch / "data"
    try:
        with make_view(terminal) as view:
            demo = Demo(arguments, view, scratch, directory)
            proof = demo.run()
        _show(proof, demo, terminal, str(arguments.dir) if keep else None)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return OK if proof.holds else DAMAGED


def _check_key_regex(key_regex: str | None) -> None:
    if key_regex is not None:
        import re

        try:
            re.compile(key_regex.encode())
        except re.error as error:
            raise UsageError(f"--key-regex {key_regex!r} is no regular expression: {error}") from error


class Demo:
    """One performance."""

    def __init__(self, arguments: argparse.Namespace, view: View, scratch: Path, directory: Path) -> None:
        self._arguments = arguments
        self._view = view
        self._scratch = scratch
        self._directory = directory
        self._clock = SystemClock()
        self.started_ms = self._clock.monotonic_ms()
        self.elapsed_ms = 0
        self.killed_at: dict[str, Any] = {}
        self.resumed_at: dict[str, Any] = {}

    def run(self) -> Proof:
        """Perform, and judge."""
        files = self._arguments.files or [self._make_up()]
        given = read_input(files, self._arguments.key_regex)
        if len(given.lines) < LINES_MIN:
            raise CommandError(
                f"the files have {plural(len(given.lines), 'line')}; the demo needs {LINES_MIN} or more to "
                "tell its story"
            )
        self._view.begin(len(given.lines))
        self._tell_input(given)
        journals = [str(self._scratch / f"delivered-{number}") for number in (1, 2)]
        self._perform(files, given, journals[0], FIRST_RUN, kill_at=int(len(given.lines) * KILL_SHARE))
        self._perform(files, given, journals[1], SECOND_RUN, kill_at=None)
        self._view.say(
            "Both processes are gone. Now the proof: input, log and deliveries are held against each other."
        )
        proof = self._prove(given, journals)
        self.elapsed_ms = self._clock.monotonic_ms() - self.started_ms
        return proof

    def _make_up(self) -> str:
        path = self._scratch / "shop.log"
        path.write_bytes(made_up_log(self._arguments.lines, self._arguments.seed))
        return str(path)

    def _tell_input(self, given: Input) -> None:
        keys = len({line.key for line in given.lines})
        total = size(sum(len(line.value) + 1 for line in given.lines))
        what = (
            f"{plural(len(given.sources), 'file')} of yours"
            if self._arguments.files
            else f"the made-up log of a shop (seed {self._arguments.seed})"
        )
        self._view.say(
            f"Input: {plural(len(given.lines), 'line')}, {total}, from {plural(keys, 'component')}: {what}."
        )

    def _perform(
        self, files: list[str], given: Input, journal: str, acts: tuple[Act, ...], kill_at: int | None
    ) -> None:
        total = len(given.lines)
        task = Task(
            dir=str(self._directory),
            files=files,
            journal=journal,
            key_regex=self._arguments.key_regex,
            lines_per_second=0 if self._arguments.fast else total / SECONDS,
            commit_lines=max(20, min(500, total // 50)),
            acts=list(acts),
        )
        with Application(task, self._scratch / "errors") as application:
            for event in application.events():
                if event["event"] == "opened":
                    self._tell_opened(event, second=kill_at is None)
                self._view.show(event)
                if event["event"] == "progress" and kill_at is not None and event["delivered"] >= kill_at:
                    application.kill()
                    self.killed_at = event
                    self._view.killed()
                    self._view.say(
                        f"KILLED. Process {application.pid} got a SIGKILL in mid-work: {event['written']:,} "
                        "lines were acknowledged as "
                        f"written, {event['delivered']:,} were read, {sum(event['committed']):,} of them "
                        "committed."
                    )
                    return

    def _tell_opened(self, event: dict[str, Any], *, second: bool) -> None:
        pid, opened = event["pid"], f"{event['opened_ms']:.0f} ms"
        if not second:
            self._view.say(
                f"Process {pid} opens a new directory ({opened}) and makes the topic {TOPIC!r} with "
                f"{PARTITIONS} partitions. Three producers "
                "write; a line's key is the component it came from, so the lines of a component stay "
                "in order."
            )
            return
        self.resumed_at = event
        self._view.say(
            f"Process {pid} opens the same directory ({opened}): the log holds {event['stored']:,} lines, "
            f"and the group {GROUP!r} goes on "
            f"behind the {event['committed']:,} it had committed. Producers go on behind the last line of "
            "each component."
        )

    def _prove(self, given: Input, journals: list[str]) -> Proof:
        with streamlog.open(self._directory) as cluster:
            consumer = cluster.consumer(stop_at_end=True)
            consumer.assign([TopicPartition(TOPIC, number) for number in range(PARTITIONS)])
            with consumer:
                stored = list(consumer)
            lag = sum(cluster.consumer_group(GROUP, [TOPIC]).lag().values())
        return prove(given, stored, [read_journal(path) for path in journals], lag)


class Application:
    """The application's process, as seen from here. Leaving `with` ends it in any case."""

    def __init__(self, task: Task, errors: Path) -> None:
        import subprocess

        place = str(Path(streamlog.__file__).resolve().parent.parent)
        self._errors = open(errors, "w+b")  # noqa: SIM115
        # A session of its own: Ctrl-C is for us, and we end the application ourselves.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streamlog.cli.demo_process", msgspec.json.encode(task).decode()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [place, os.environ.get("PYTHONPATH", "")])),
            },
        )
        self.pid = self._process.pid
        self._killed = False

    def __enter__(self) -> Application:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def kill(self) -> None:
        """SIGKILL: nothing of the process gets to run any more."""
        self._killed = True
        self._process.kill()
        self._process.wait()

    def events(self) -> Any:
        """What the application tells, until it ends. Raises CommandError if it failed."""
        assert self._process.stdout is not None
        decode = msgspec.json.decode
        for line in self._process.stdout:
            yield decode(line)
            if self._killed:
                return
        if self._process.wait(ANSWER_SECONDS) != 0:
            self._errors.seek(0)
            told = self._errors.read().decode("utf-8", "replace").strip()
            raise CommandError(f"the demo's process ended with code {self._process.returncode}:\n{told}")


def _show(proof: Proof, demo: Demo, terminal: Terminal, kept: str | None) -> None:
    if terminal.json:
        facts = {
            "elapsed_ms": demo.elapsed_ms,
            "directory": kept,
            "killed_at": demo.killed_at,
            "resumed_at": demo.resumed_at,
        }
        terminal.document(document(proof) | facts)
        return
    rows = [
        ("lines read", proof.lines, ""),
        ("in the log", proof.stored, "each once, with its key and its very bytes"),
        ("delivered to the group", proof.delivered, "nothing lost"),
        (
            "delivered again after the kill",
            proof.redelivered,
            "read but not yet committed: at-least-once delivery",
        ),
        (
            "components in order",
            proof.in_order,
            f"of {proof.components}, across every rebalance and the kill",
        ),
        ("lag of the group", proof.lag, "everything is committed"),
    ]
    proved = (
        f"PROVED in {demo.elapsed_ms / 1000:.1f} s: every line is accounted for, in order per component, exactly "
        "as it was read."
    )
    tell_verdict(terminal, rows, proof, proved, between=map(_told_checksums, proof.sources))
    if kept is not None:
        terminal.line(f"Look at it: streamlog topics describe --dir {kept}; streamlog groups describe --dir "
                      f"{kept}; "
                      f"streamlog consume {TOPIC} --from -5 --format full --dir {kept}")  # fmt: skip
    elif proof.holds:
        terminal.line(
            "Next: `streamlog demo YOUR.log --dir demo-data` does the same with your file and keeps the "
            "directory to look at."
        )


def _told_checksums(source: SourceProof) -> str:
    return (
        f"{Path(source.name).name}: sha256 read {source.sha256_read[:16]}... {'==' if source.holds else '!='} "
        f"delivered {source.sha256_delivered[:16]}..."
    )
