"""The demo's application: the process that owns the directory, and that is killed half way.

It runs three producers and a group of readers in threads, and tells on stdout, one JSON object a line, what
happens. Readers append what they were handed to a journal file, in one write a poll, and commit after so
many lines: what a process that is killed had read but not committed is read again by the next one.

    python -m streamlog.cli.demo_process '{"dir": ..., "files": [...], ...}'

Nothing here knows that the process will be killed. After a restart producers look into the log itself for
the last line of each component that is there, and go on behind it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Final

import msgspec

import streamlog
from streamlog.broker.runner import Runtime, ThreadedRuntime
from streamlog.cli.demo_lines import Line, read_input
from streamlog.record import Record, TopicPartition

TOPIC: Final = "logs"
GROUP: Final = "archive"
LINE_HEADER: Final = "line"
PARTITIONS: Final = 6
PRODUCERS: Final = 3
READERS: Final = ("reader-1", "reader-2", "reader-3")
TICK_MS: Final = 20
BURST_LINES: Final = 500
BURST_MS_MAX: Final = 250
TELL_MS: Final = 80
POLL_LINES_MAX: Final = 150


class Task(msgspec.Struct):
    """What the process is told."""

    dir: str
    files: list[str]
    journal: str
    key_regex: str | None
    lines_per_second: float
    """0 = as fast as it goes."""
    commit_lines: int
    """Readers commit after so many lines."""
    acts: list[Act]


class Act(msgspec.Struct):
    """One step of the story: produce up to a share of all lines, wait until so many are read, let a reader
    come or go.
    """

    share: float
    until: float = -1
    """The share that must be read before the next act; -1 = all that may be produced; above 1: the act has
    no end.
    """
    reader: str = ""
    does: str = ""
    """joins, leaves or nothing."""


class Delivery(msgspec.Struct, array_like=True):
    """One line as a reader got it; the journal is a row of lists of these, each with its length before it."""

    reader: str
    partition: int
    offset: int
    line: int
    key: bytes
    value: bytes


class Reader:
    """One member of the group, in a thread of its own."""

    def __init__(self, name: str, app: Application) -> None:
        self.name = name
        self.delivered = 0
        self.owns: list[int] = []
        self.leaving = False
        self._app = app
        self._uncommitted = 0
        self._task = app.runtime.spawn(f"streamlog-demo-{name}", lambda: app.guarded(self._run))

    def leave(self) -> None:
        """Commit, leave the group, end."""
        self.leaving = True
        self._task.join()

    def _run(self) -> None:
        def revoked(partitions: list[TopicPartition]) -> None:
            consumer.commit()  # all that was handed out is in the journal; somebody else goes on from here

        consumer: streamlog.Consumer = self._app.group.consumer(
            on_revoked=revoked, max_poll_records=POLL_LINES_MAX
        )
        with consumer:
            while not self.leaving:
                records = consumer.poll(0.05)
                self._note_owned(sorted(tp.partition for tp in consumer.assignment))
                if records:
                    self._app.journal(self.name, records)
                    self.delivered += len(records)
                    self._uncommitted += len(records)
                if self._uncommitted >= self._app.task.commit_lines:
                    self._uncommitted = 0
                    consumer.commit()
            consumer.commit()
            self.owns = []

    def _note_owned(self, owns: list[int]) -> None:
        if owns != self.owns:
            self.owns = owns
            if not self._app.closing:
                self._app.tell(event="assigned", reader=self.name, partitions=owns)


class Application:
    """The owner of the directory."""

    def __init__(self, task: Task, out: Any) -> None:
        self.task = task
        self.runtime: Runtime = ThreadedRuntime()
        self._out = out
        self._out_lock = self.runtime.lock()
        self._journal = os.open(task.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._journal_lock = self.runtime.lock()
        self._encode = msgspec.msgpack.Encoder().encode
        self._error: BaseException | None = None
        self.closing = False
        self.readers: dict[str, Reader] = {}
        self.gone_delivered = 0
        self.acknowledged = [0] * PRODUCERS
        self.stored_before = 0
        self.committed_before = 0
        self.limit = 0
        """Producers may send lines with a number below this."""
        self._clock = self.runtime.clock
        self._told_ms = 0

    def tell(self, **event: Any) -> None:
        """Say something to whoever started this process."""
        with self._out_lock:
            self._out.write(msgspec.json.encode(event) + b"\n")
            self._out.flush()

    def journal(self, reader: str, records: list[Record]) -> None:
        """Write down, in the order of delivery, what a reader was handed."""
        rows = [
            Delivery(
                reader,
                r.partition,
                r.offset,
                int(dict(r.headers)[LINE_HEADER] or b"-1"),
                r.key or b"",
                r.value or b"",
            )
            for r in records
        ]
        packed = self._encode(rows)
        left = memoryview(len(packed).to_bytes(4, "big") + packed)
        with self._journal_lock:
            while left:
                left = left[os.write(self._journal, left) :]

    def guarded(self, run: Callable[[], None]) -> None:
        """Run a thread's work; its error ends the process."""
        try:
            run()
        except BaseException as error:
            self._error = error
            raise

    def run(self) -> None:
        """The whole life of the process."""
        lines = read_input(self.task.files, self.task.key_regex).lines
        started_us = self._clock.monotonic_us()
        with streamlog.open(self.task.dir) as cluster:
            cluster.create_topic(TOPIC, partitions=PARTITIONS, exist_ok=True)
            opened_ms = (self._clock.monotonic_us() - started_us) / 1000
            self.group = cluster.consumer_group(GROUP, [TOPIC], enable_auto_commit=False)
            self._cluster = cluster
            last = self._last_lines(cluster)
            self.committed_before = sum(self.group.offsets().values())
            self.tell(
                event="opened",
                pid=os.getpid(),
                opened_ms=opened_ms,
                stored=self.stored_before,
                committed=self.committed_before,
            )
            mine = share_out(lines, last)
            producers = [self._start_producer(number, some) for number, some in enumerate(mine)]
            for act in self.task.acts:
                self._perform(act, len(lines))
            for producer in producers:
                producer.join()
            self.closing = True
            for reader in list(self.readers.values()):
                self._part(reader)
            self._progress(force=True)
            self.tell(event="done", delivered=self.gone_delivered)

    def _last_lines(self, cluster: Any) -> dict[bytes, int]:
        """For each component, the last of its lines the log holds."""
        last: dict[bytes, int] = {}
        consumer = cluster.consumer(stop_at_end=True)
        consumer.assign([TopicPartition(TOPIC, number) for number in range(PARTITIONS)])
        with consumer:
            for record in consumer:
                last[record.key] = int(dict(record.headers)[LINE_HEADER])
                self.stored_before += 1
        return last

    # -- producing ---------------------------------------------------------------------------------

    def _start_producer(self, number: int, lines: list[Line]) -> Any:
        def produce() -> None:
            self._produce(number, lines)

        return self.runtime.spawn(f"streamlog-demo-producer-{number}", lambda: self.guarded(produce))

    def _produce(self, number: int, lines: list[Line]) -> None:
        """Send one producer's lines, in their order, no faster than told, no further than the story has
        come.
        """
        waiter, rate = self.runtime.waiter(), self.task.lines_per_second / PRODUCERS
        last_ms = self._clock.monotonic_ms()
        sent = 0
        with self._cluster.producer() as producer:
            while sent < len(lines) and self._error is None:
                now_ms = self._clock.monotonic_ms()
                burst = BURST_LINES if rate <= 0 else int(rate * min(now_ms - last_ms, BURST_MS_MAX) / 1000)
                end = sent
                while end < len(lines) and end - sent < burst and lines[end].number < self.limit:
                    line = lines[end]
                    producer.send(TOPIC, line.value, line.key, headers=[(LINE_HEADER, b"%d" % line.number)])
                    end += 1
                if burst:
                    last_ms = now_ms
                if end > sent:
                    producer.flush()
                    self.acknowledged[number] += end - sent
                    sent = end
                waiter.wait(TICK_MS if rate > 0 else 1)

    # -- the story ---------------------------------------------------------------------------------

    def _perform(self, act: Act, total: int) -> None:
        if act.does == "joins":
            reader = self.readers[act.reader] = Reader(act.reader, self)
            self.tell(event="joins", reader=act.reader)
            self._wait(lambda: bool(reader.owns))
        elif act.does == "leaves":
            self.tell(event="leaves", reader=act.reader)
            self._part(self.readers[act.reader])
        self.limit = int(total * act.share)
        goal = self.limit if act.until < 0 else int(total * act.until)
        self._wait(lambda: self.delivered >= goal)

    def _part(self, reader: Reader) -> None:
        reader.leave()
        del self.readers[reader.name]
        self.gone_delivered += reader.delivered

    @property
    def delivered(self) -> int:
        """Lines read so far, by the processes before this one too."""
        return (
            self.committed_before
            + self.gone_delivered
            + sum(reader.delivered for reader in self.readers.values())
        )

    def _wait(self, done: Callable[[], bool]) -> None:
        waiter = self.runtime.waiter()
        while not done():
            if self._error is not None:
                raise self._error
            self._progress()
            waiter.wait(10)

    def _progress(self, force: bool = False) -> None:
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._told_ms < TELL_MS and not force:
            return
        self._told_ms = now_ms
        offsets = self.group.offsets()
        topic = self._cluster.topic(TOPIC)
        self.tell(
            event="progress",
            written=max(
                self.stored_before + sum(self.acknowledged), self.delivered
            ),  # what is read was written
            delivered=self.delivered,
            ends=[partition.high_watermark for partition in topic.partitions],
            committed=[offsets.get(TopicPartition(TOPIC, number), 0) for number in range(PARTITIONS)],
            owners=self._owners(),
        )

    def _owners(self) -> list[str]:
        owners = [""] * PARTITIONS
        for reader in self.readers.values():
            for number in reader.owns:
                owners[number] = reader.name
        return owners


def share_out(lines: list[Line], last: dict[bytes, int]) -> list[list[Line]]:
    """The lines of each producer: all lines of a component go to one, those the log holds already to none."""
    keys = list(dict.fromkeys(line.key for line in lines))
    producer_of = {key: number % PRODUCERS for number, key in enumerate(keys)}
    mine: list[list[Line]] = [[] for _ in range(PRODUCERS)]
    for line in lines:
        if line.number > last.get(line.key, -1):
            mine[producer_of[line.key]].append(line)
    return mine


def read_journal(path: str) -> list[Delivery]:
    """What readers wrote down. A last entry that a kill cut short was never committed, and is left out."""
    with open(path, "rb") as file:
        data = file.read()
    deliveries: list[Delivery] = []
    decode = msgspec.msgpack.Decoder(list[Delivery]).decode
    position = 0
    while position + 4 <= len(data):
        end = position + 4 + int.from_bytes(data[position : position + 4], "big")
        if end > len(data):
            break
        deliveries += decode(data[position + 4 : end])
        position = end
    return deliveries


def main() -> int:
    """Run what the first argument says."""
    task = msgspec.json.decode(sys.argv[1], type=Task)
    try:
        Application(task, sys.stdout.buffer).run()
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
