"""`streamlog consume`: records of topics to stdout, or to one file per key.

Without a group it reads what is there and ends, beside a live owner too. With a group it goes on where the
group stopped, and commits what it has written out: after a kill, records written but not yet committed come
again (at least once).
"""

from __future__ import annotations

import argparse
import os
from typing import Any, Final

from streamlog.cli.arguments import Commands, add_command, add_sync, seconds, whole
from streamlog.cli.failures import CommandError, UsageError
from streamlog.cli.formats import CONSUME_FORMATS, Format, make_format
from streamlog.cli.interrupts import SLICE_SECONDS, Interrupts
from streamlog.cli.opening import partitions_of, reading, topic_of, writing
from streamlog.cli.outputs import Output, OutputDirectory, StdoutOutput
from streamlog.cli.starting import HELP, Start, parse_start
from streamlog.cli.terminal import Terminal
from streamlog.clock import SystemClock
from streamlog.errors import CommitFailedError
from streamlog.record import TopicPartition
from streamlog.wording import plural

DESCRIPTION: Final = """\
Reads to the end and stops; --follow goes on with what is written from then on.

  streamlog consume logs --from -10                      the last ten records of each partition
  streamlog consume logs --group billing > new.txt       what the group billing has not seen yet
  streamlog consume logs --format json --from 2024-05-01T12:00:00Z | jq .value
  streamlog consume logs --output-dir out                one file per key; with keys from
                                                         `produce --key-file` these are the files again

A group's offsets are committed after its records are written out, so nothing is lost when the command is
killed; what was not yet committed comes again (at least once). Records are in order within a partition."""

POLL_RECORDS_MAX: Final = 5000
COMMIT_INTERVAL_MS: Final = 1000


def add_parser(commands: Commands) -> None:
    """Add `consume`."""
    parser = add_command(commands, "consume", run, "read records of topics", DESCRIPTION)
    parser.add_argument("topics", metavar="TOPIC", nargs="+")
    parser.add_argument(
        "--group", "-g", metavar="NAME", help="read as this consumer group and commit what was read"
    )
    parser.add_argument(
        "--from", dest="start", type=parse_start, metavar="WHERE", help="where to start (default earliest): "
                                                                        f"{HELP}. "
        "With --group: earliest or latest, for partitions the group has not committed yet",
    )  # fmt: skip
    parser.add_argument(
        "--partition",
        type=whole(0),
        action="append",
        metavar="N",
        help="only this partition (may be repeated)",
    )
    parser.add_argument(
        "--follow", "-f", action="store_true", help="go on at the end and wait for new records"
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="with --follow: end when nothing new came for so long",
    )
    parser.add_argument("--max", "-n", type=whole(1), metavar="N", help="end after N records")
    parser.add_argument(
        "--format",
        choices=CONSUME_FORMATS,
        help="how to write a record (default value; --json is --format json)",
    )
    parser.add_argument(
        "--separator",
        default="\t",
        metavar="TEXT",
        help="between key and value with --format key-value (default: a tab)",
    )
    parser.add_argument(
        "--output-dir", metavar="DIR", help="write to one file per key in this directory instead of stdout"
    )
    add_sync(parser)


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Consume until the end, the count, the timeout or a signal."""
    _check(arguments)
    # With --output-dir, --json is about the report on stdout.
    json_records = arguments.json and arguments.output_dir is None
    name = arguments.format or ("json" if json_records else "value")
    write = make_format(name, os.fsencode(arguments.separator))
    output = _output(arguments, terminal, write)
    opening = writing if arguments.group else reading
    with opening(arguments) as cluster, Interrupts() as interrupts:
        for topic in arguments.topics:
            topic_of(cluster, topic, arguments.dir)
        consumer, total = (
            _joined(cluster, arguments) if arguments.group else _assigned(cluster, arguments, terminal)
        )
        # Progress only where it does not run into the output.
        with (
            output,
            consumer,
            terminal.progress("consuming", total, "records")
            if not terminal.is_terminal
            else _no_bar() as progress,
        ):
            consumption = Consumption(consumer, output, arguments, interrupts, terminal)
            consumption.run(progress.advance)
    output.report(terminal, consumption.records)
    return interrupts.exit_code


def _no_bar() -> Any:
    from streamlog.cli.progress import Progress

    return Progress()


def _check(arguments: argparse.Namespace) -> None:
    start: Start | None = arguments.start
    if arguments.group == "":
        raise UsageError("--group is empty; give the group a name")
    if arguments.group and start is not None and start.kind not in ("earliest", "latest"):
        raise UsageError(
            "with --group, --from is earliest or latest, for partitions the group has not committed yet. "
            f"`streamlog groups reset-offsets {arguments.group} --to ...` moves a group anywhere else"
        )
    if arguments.group and arguments.partition:
        raise UsageError("--partition does not go with --group: a group shares out the partitions itself")
    if arguments.timeout is not None and not arguments.follow:
        raise UsageError("--timeout goes with --follow; without it the command ends at the end by itself")
    if arguments.json and arguments.output_dir is None and arguments.format not in (None, "json"):
        raise UsageError(f"--json is --format json; --format {arguments.format} contradicts it")


def _output(arguments: argparse.Namespace, terminal: Terminal, write: Format) -> Output:
    if arguments.output_dir is None:
        return StdoutOutput(terminal, write)
    return OutputDirectory(arguments.output_dir, write, append=bool(arguments.group))


def _joined(cluster: Any, arguments: argparse.Namespace) -> tuple[Any, int | None]:
    """A member of the group, and how many records wait for it (None with --follow)."""
    reset = "latest" if arguments.start is not None and arguments.start.kind == "latest" else "earliest"
    group = cluster.consumer_group(
        arguments.group, arguments.topics, auto_offset_reset=reset, enable_auto_commit=False
    )
    total = None if arguments.follow else sum(group.lag().values())
    return group.consumer(stop_at_end=not arguments.follow, max_poll_records=POLL_RECORDS_MAX), total


def _assigned(cluster: Any, arguments: argparse.Namespace, terminal: Terminal) -> tuple[Any, int | None]:
    """A consumer that stands where --from says, and how many records are before it."""
    partitions = [
        TopicPartition(name, number)
        for name in dict.fromkeys(arguments.topics)
        for number in partitions_of(topic_of(cluster, name, arguments.dir), arguments.partition)
    ]
    consumer = cluster.consumer(stop_at_end=not arguments.follow, max_poll_records=POLL_RECORDS_MAX)
    consumer.assign(partitions)
    begins, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    _seek(consumer, arguments.start or Start("earliest"), begins, ends, terminal)
    total = sum(max(0, ends[tp] - consumer.position(tp)) for tp in partitions)
    return consumer, None if arguments.follow else total


def _seek(
    consumer: Any,
    start: Start,
    begins: dict[TopicPartition, int],
    ends: dict[TopicPartition, int],
    terminal: Terminal,
) -> None:
    if start.kind == "offset" and all(start.number > end for end in ends.values()):
        raise CommandError(
            f"offset {start.number} is behind the end: "
            + ", ".join(f"{tp.topic}-{tp.partition} has offsets {begins[tp]} to "
                        f"{end - 1}" if end > begins[tp] else
                        f"{tp.topic}-{tp.partition} is empty" for tp, end in list(ends.items())[:4])
        )  # fmt: skip
    for tp, end in ends.items():
        begin = begins[tp]
        match start.kind:
            case "earliest":
                consumer.seek(tp, begin)
            case "latest":
                consumer.seek(tp, end)
            case "last":
                consumer.seek(tp, max(begin, end - start.number))
            case "timestamp":
                consumer.seek_to_timestamp(tp, start.number)
            case _:
                if start.number < begin:
                    terminal.note(
                        f"streamlog: {tp.topic}-{tp.partition} begins at offset {begin}: what was before "
                        "is deleted"
                    )
                consumer.seek(tp, min(max(begin, start.number), end))


class Consumption:
    """One run of `consume`."""

    def __init__(
        self,
        consumer: Any,
        output: Output,
        arguments: argparse.Namespace,
        interrupts: Interrupts,
        terminal: Terminal,
    ) -> None:
        self._consumer = consumer
        self._output = output
        self._grouped = bool(arguments.group)
        self._count_max: int | None = arguments.max
        self._timeout_ms = None if arguments.timeout is None else int(arguments.timeout * 1000)
        self._interrupts = interrupts
        self._terminal = terminal
        self._clock = SystemClock()
        self._written: dict[TopicPartition, int] = {}
        self._committed_ms = self._clock.monotonic_ms()
        self.records = 0

    def run(self, advance: Any) -> None:
        """Poll, write, flush, commit; what was flushed is committed whatever ends the run."""
        try:
            self._loop(advance)
        finally:
            self._commit()

    def _loop(self, advance: Any) -> None:
        consumer, clock = self._consumer, self._clock
        last_news_ms = clock.monotonic_ms()
        while self._interrupts.requested is None and not consumer.at_end:
            left = (
                POLL_RECORDS_MAX
                if self._count_max is None
                else min(POLL_RECORDS_MAX, self._count_max - self.records)
            )
            if left <= 0:
                return
            records = consumer.poll(SLICE_SECONDS, max_records=left)
            now_ms = clock.monotonic_ms()
            if records:
                self._output.write(records)
                self._output.flush()
                self.records += len(records)
                last_news_ms = now_ms
                advance(len(records))
                self._note_written()
            elif self._timeout_ms is not None and now_ms - last_news_ms >= self._timeout_ms:
                return
            if self._grouped and now_ms - self._committed_ms >= COMMIT_INTERVAL_MS:
                self._commit()

    def _note_written(self) -> None:
        if self._grouped:
            self._written = {tp: self._consumer.position(tp) for tp in self._consumer.assignment}

    def _commit(self) -> None:
        written, self._written = self._written, {}
        self._committed_ms = self._clock.monotonic_ms()
        if not written:
            return
        try:
            self._consumer.commit(written)
        except CommitFailedError as error:
            self._terminal.warn(
                f"streamlog: {plural(len(written), 'partition')} not committed, their records will come "
                f"again: {error}"
            )
