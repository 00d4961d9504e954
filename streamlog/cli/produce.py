"""`streamlog produce`: lines of files or of stdin become records.

Every byte of a line is kept (see `lines`), so `consume --format value` writes out exactly what was read.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import Any, Final

from streamlog.cli.arguments import Commands, add_command, add_replication, add_sync, whole
from streamlog.cli.failures import CommandError, UsageError
from streamlog.cli.formats import PRODUCE_FORMATS, BadLine, parse_json_line
from streamlog.cli.interrupts import Interrupts
from streamlog.cli.lines import STDIN, UNTERMINATED, Source, split_lines
from streamlog.cli.opening import refuse_internal, topic_of, writing
from streamlog.cli.terminal import Terminal, duration, size
from streamlog.client.topic import Topic
from streamlog.clock import SystemClock
from streamlog.errors import StreamlogError
from streamlog.record import Record
from streamlog.wording import plural

DESCRIPTION: Final = """\
Without FILE (or with -) lines come from stdin. A record is written as soon as its line is complete.

  streamlog produce logs app.log web.log --create --partitions 4 --key-regex '^(\\S+)'
  tail -F app.log | streamlog produce logs
  streamlog consume old --format json | streamlog produce new --format json

Records with the same key keep their order. --key-file keeps the lines of each file together and lets
`consume --output-dir` write every file out again, byte for byte."""

COUNT_MAX: Final = 4096
"""Records given to the producer at a time."""


def add_parser(commands: Commands) -> None:
    """Add `produce`."""
    parser = add_command(commands, "produce", run, "write lines of files or stdin into a topic", DESCRIPTION)
    parser.add_argument("topic", metavar="TOPIC")
    parser.add_argument(
        "files", metavar="FILE", nargs="*", default=[], help="files to read; - is stdin (default)"
    )
    parser.add_argument("--create", action="store_true", help="create the topic if there is none")
    parser.add_argument(
        "--partitions", type=whole(1), metavar="N", help="with --create: how many partitions (default 1)"
    )
    parser.add_argument(
        "--format", choices=PRODUCE_FORMATS, default="value", help="what a line is (default: a value)"
    )
    parser.add_argument(
        "--separator",
        default="\t",
        metavar="TEXT",
        help="between key and value with --format key-value (default: a tab)",
    )
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument("--key", metavar="TEXT", help="the key of every record")
    keys.add_argument(
        "--key-regex",
        metavar="REGEX",
        help="the key is the expression's first group (or its whole match) in the line",
    )
    keys.add_argument("--key-file", action="store_true", help="the key is the file's name as given")
    parser.add_argument(
        "--partition", type=whole(0), metavar="N", help="write to this partition instead of the key's"
    )
    parser.add_argument(
        "--compression", choices=("none", "zstd"), default="none", help="of the stored batches (default none)"
    )
    add_replication(parser)
    add_sync(parser)


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Produce everything, or up to the first line that cannot be."""
    refuse_internal(arguments.topic)
    make_record = _record_maker(arguments)
    sources = [Source(name) for name in arguments.files or [STDIN]]
    sizes = [source.size_bytes() for source in sources]
    total = sum(size for size in sizes if size) if all(sizes) else None
    if any(source.is_stdin for source in sources) and sys.stdin.isatty():
        terminal.note("Every line you type becomes a record; Ctrl-D ends.")
    with writing(arguments, create=arguments.create) as cluster, Interrupts() as interrupts:
        topic = _prepare_topic(cluster, arguments)
        make_record.needs_keys = "compact" in topic.config["cleanup.policy"]
        production = Production(cluster, arguments, make_record, interrupts)
        with terminal.progress("producing", total, "bytes") as progress:
            production.run(sources, progress.advance)
        production.report(terminal)
    return interrupts.exit_code


def _prepare_topic(cluster: Any, arguments: argparse.Namespace) -> Topic:
    if arguments.create and arguments.topic not in cluster.topics:
        cluster.create_topic(
            arguments.topic,
            partitions=arguments.partitions or 1,
            replication_factor=arguments.replication_factor,
        )
    topic = topic_of(cluster, arguments.topic, arguments.dir)
    if arguments.partitions is not None and len(topic) != arguments.partitions:
        raise CommandError(
            f"topic {topic.name!r} exists with {plural(len(topic), 'partition')}, not "
            f"{arguments.partitions}; leave --partitions out"
        )
    if arguments.partition is not None and arguments.partition >= len(topic):
        raise CommandError(
            f"topic {topic.name!r} has {plural(len(topic), 'partition')}, numbered from 0; there is no "
            f"{arguments.partition}"
        )
    return topic


class RecordMaker:
    """Turns a line into a record, as the options say."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.format = arguments.format
        self.key = None if arguments.key is None else os.fsencode(arguments.key)
        self.by_file = arguments.key_file
        self.separator = os.fsencode(arguments.separator)
        self.regex = _compiled(arguments.key_regex)
        self.partition = -1 if arguments.partition is None else arguments.partition
        self.keyless = 0
        """Lines that --key-regex did not match."""
        self.needs_keys = False
        """Whether the topic is compacted: it refuses records without a key, a whole batch for one of them."""

    @property
    def is_plain(self) -> bool:
        """Whether records are nothing but keys and values: then they can travel as pairs, which is faster."""
        return self.format != "json" and self.partition < 0

    def pair(self, line: bytes) -> tuple[bytes | None, bytes | None]:
        """Key and value of a line. Raises BadLine."""
        if self.format == "key-value":
            key, separator, value = line.partition(self.separator)
            if not separator:
                raise BadLine(
                    f"no separator {os.fsdecode(self.separator)!r} between key and value (--separator names "
                    "another)"
                )
            return key, value
        if self.regex is None:
            if self.key is None and self.needs_keys:
                raise _keyless("--key-regex, --key, --key-file or --format key-value give it one")
            return self.key, line
        found = self.regex.search(line)
        if found is None:
            if self.needs_keys:
                raise _keyless("--key-regex does not match it")
            self.keyless += 1
            return None, line
        return found[1] if self.regex.groups else found[0], line

    def record(self, line: bytes, terminated: bool) -> Record:
        """The record of a line. Raises BadLine."""
        headers = () if terminated else UNTERMINATED
        if self.format == "json":
            made = parse_json_line(line)
            key = self.key if made.key is None else made.key
            if key is None and self.needs_keys:
                raise _keyless('its "key" is missing or null; --key gives one to such lines')
            return Record("", self.partition, -1, made.timestamp, key, made.value, made.headers)
        key, value = self.pair(line)
        return Record("", self.partition, -1, -1, key, value, headers)


def _keyless(remedy: str) -> BadLine:
    return BadLine(f"the topic is compacted, so every record needs a key, and this line has none: {remedy}")


def _record_maker(arguments: argparse.Namespace) -> RecordMaker:
    if arguments.format != "value" and (arguments.key_regex is not None or arguments.key_file):
        raise UsageError(
            f"--format {arguments.format} brings its own keys; leave --key-regex and --key-file out"
        )
    if arguments.format == "key-value" and arguments.key is not None:
        raise UsageError("--format key-value brings its own keys; leave --key out")
    if not arguments.separator:
        raise UsageError("--separator is empty; name at least one character")
    if arguments.partitions is not None and not arguments.create:
        raise UsageError(
            "--partitions goes with --create; `streamlog topics alter` changes a topic that exists"
        )
    return RecordMaker(arguments)


def _compiled(text: str | None) -> re.Pattern[bytes] | None:
    if text is None:
        return None
    try:
        return re.compile(os.fsencode(text))
    except re.error as error:
        raise UsageError(f"--key-regex {text!r} is no regular expression: {error}") from error


class Production:
    """One run of `produce`: what was read, what is written."""

    def __init__(
        self, cluster: Any, arguments: argparse.Namespace, maker: RecordMaker, interrupts: Interrupts
    ) -> None:
        self._cluster = cluster
        self._arguments = arguments
        self._maker = maker
        self._interrupts = interrupts
        self._clock = SystemClock()
        self._started_ms = self._clock.monotonic_ms()
        self.records = 0
        self.bytes = 0

    def run(self, sources: list[Source], advance: Any) -> None:
        """Produce the sources one after the other. Raises CommandError naming the line at fault."""
        with self._cluster.producer(compression=self._arguments.compression) as producer:
            for source in sources:
                if self._maker.by_file:
                    self._maker.key = os.fsencode(source.title)
                number = 0
                for lines, unterminated in split_lines(source.chunks(self._interrupts), self._interrupts):
                    for start in range(0, len(lines), COUNT_MAX):
                        part = lines[start : start + COUNT_MAX]
                        self._send(producer, source, number, part, unterminated)
                        number += len(part)
                        done = sum(map(len, part)) + len(part) - unterminated
                        self.bytes += done
                        advance(done)
            producer.flush()

    def _send(
        self, producer: Any, source: Source, number: int, lines: list[bytes], unterminated: bool
    ) -> None:
        """Send lines number+1, number+2, ... of a source."""
        topic, maker = self._arguments.topic, self._maker
        if maker.is_plain and not unterminated and max(map(len, lines)) < 500_000:
            keyless = maker.keyless
            try:
                pairs = [maker.pair(line) for line in lines]
            except BadLine:
                maker.keyless = keyless
            else:
                producer.send_many(topic, pairs)
                self.records += len(lines)
                return
        for line in lines:
            number += 1
            try:
                record = maker.record(line, not unterminated)
                producer.send(
                    topic,
                    record.value,
                    record.key,
                    headers=record.headers or None,
                    partition=None if record.partition < 0 else record.partition,
                    timestamp=None if record.timestamp < 0 else record.timestamp,
                )
            except (BadLine, StreamlogError) as error:
                producer.flush()
                before = f"written before it: {plural(self.records, 'record')}" if self.records else ""
                raise CommandError(
                    f"line {number} of {source.title}: {error}. {before.capitalize() or 'Nothing was written'}"
                    f"{'; nothing after it' if before else ''}"
                ) from error
            self.records += 1

    def report(self, terminal: Terminal) -> None:
        """Say what was done."""
        elapsed_ms = max(1, self._clock.monotonic_ms() - self._started_ms)
        name, keyless = self._arguments.topic, self._maker.keyless
        if terminal.json:
            terminal.document(
                {
                    "topic": name,
                    "records": self.records,
                    "bytes": self.bytes,
                    "elapsed_ms": elapsed_ms,
                    "keyless": keyless,
                }
            )
        elif not terminal.quiet:
            rate = self.records * 1000 / elapsed_ms
            terminal.line(
                f"{plural(self.records, 'record')} ({size(self.bytes)}) written to {name} in "
                f"{duration(elapsed_ms)}, {rate:,.0f}/s"
            )
        if keyless:
            terminal.warn(
                f"streamlog: {plural(keyless, 'line')} did not match --key-regex and have no key: they are "
                "spread over the partitions"
            )
