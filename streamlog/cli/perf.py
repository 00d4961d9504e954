"""`streamlog perf produce|consume|e2e`: throughput and latency, printed as Kafka's own perf tools print them.

    produce   kafka-producer-perf-test      consume   kafka-consumer-perf-test      e2e   kafka-e2e-latency

A megabyte is 2**20 bytes here, as there. Latencies have decimals, since they are mostly below a millisecond.
"""

from __future__ import annotations

import argparse
import random
from typing import Any, Final

from streamlog.broker.runner import ThreadedRuntime
from streamlog.cli.arguments import (
    Commands,
    Parser,
    add_command,
    add_family,
    add_replication,
    add_sync,
    seconds,
    whole,
)
from streamlog.cli.failures import CommandError
from streamlog.cli.interrupts import SLICE_SECONDS, Interrupts
from streamlog.cli.latencies import Latencies
from streamlog.cli.opening import reading, refuse_internal, topic_of, writing
from streamlog.cli.terminal import Terminal
from streamlog.clock import SystemClock
from streamlog.record import TopicPartition
from streamlog.wording import plural

MEGABYTE: Final = 1 << 20
REPORT_MS: Final = 5000
BULK: Final = 1000
SAMPLES_MAX: Final = 100_000
E2E_WARM_UP: Final = 50
RECEIVE_US_MAX: Final = 30_000_000
POLL_RECORDS_MAX: Final = 5000
TOPIC: Final = "perf"


def add_parser(commands: Commands) -> None:
    """Add `perf` and its subcommands."""
    perf = add_family(commands, "perf", "measure throughput and latency, as Kafka's perf tools do")
    _add_produce(perf)
    _add_consume(perf)
    _add_e2e(perf)


def _add_produce(perf: Commands) -> None:
    produce = add_command(
        perf, "produce", run_produce, "measure sending",
        "Latency is from send() to the acknowledgement, of an evenly spaced sample of at most 100,000 "
        "records.\n\n"
        "  streamlog perf produce --records 1000000 --record-size 100 --sync off --bulk",
    )  # fmt: skip
    _add_topic(produce)
    produce.add_argument(
        "--records", type=whole(1), default=500_000, metavar="N", help="how many to send (default 500,000)"
    )
    produce.add_argument(
        "--record-size", type=whole(0), default=100, metavar="BYTES", help="of each value (default 100)"
    )
    produce.add_argument(
        "--key-size", type=whole(0), default=0, metavar="BYTES", help="of each key; 0 = no keys (default)"
    )
    produce.add_argument(
        "--throughput",
        type=float,
        default=-1,
        metavar="N",
        help="records a second at most; -1 = no limit (default)",
    )
    produce.add_argument(
        "--bulk",
        action="store_true",
        help=f"send_many with {BULK} records a call instead of one send a record",
    )
    produce.add_argument(
        "--linger-ms", type=whole(0), metavar="MS", help="how long a batch waits for more records (default 5)"
    )
    produce.add_argument(
        "--batch-size", type=whole(0), metavar="BYTES", help="of a batch (default: the library's)"
    )
    produce.add_argument("--compression", choices=("none", "zstd"), default="none")
    produce.add_argument("--acks", choices=("all", "1", "0"), default="all")
    produce.add_argument("--seed", type=int, default=7, help="of the records' bytes")
    add_replication(produce)
    add_sync(produce)


def _add_consume(perf: Commands) -> None:
    consume = add_command(
        perf, "consume", run_consume, "measure reading", "Reads from the start; beside a live owner too."
    )
    consume.add_argument(
        "--topic", default=TOPIC, metavar="TOPIC", help=f"the topic to read (default {TOPIC})"
    )
    consume.add_argument(
        "--records", type=whole(1), metavar="N", help="how many to read (default: all there are)"
    )
    consume.add_argument(
        "--timeout",
        type=seconds,
        default=10,
        metavar="SECONDS",
        help="end when nothing came for so long (default 10)",
    )


def _add_e2e(perf: Commands) -> None:
    e2e = add_command(
        perf, "e2e", run_e2e, "measure from send to receive",
        "One record at a time, from send() in one thread to poll() returning it in another that "
        "waits for it.",
    )  # fmt: skip
    _add_topic(e2e)
    e2e.add_argument(
        "--records", type=whole(1), default=5000, metavar="N", help="how many to send (default 5,000)"
    )
    e2e.add_argument(
        "--record-size", type=whole(8), default=100, metavar="BYTES", help="of each value (default 100)"
    )
    e2e.add_argument("--acks", choices=("all", "1", "0"), default="all")
    add_replication(e2e)
    add_sync(e2e)


def _add_topic(parser: Parser) -> None:
    parser.add_argument(
        "--topic", default=TOPIC, metavar="TOPIC", help=f"made if there is none (default {TOPIC})"
    )
    parser.add_argument(
        "--partitions", type=whole(1), default=1, metavar="N", help="of a topic that is made (default 1)"
    )


def _prepare(cluster: Any, arguments: argparse.Namespace) -> Any:
    refuse_internal(arguments.topic)
    if arguments.topic not in cluster.topics:
        cluster.create_topic(
            arguments.topic,
            partitions=arguments.partitions,
            replication_factor=arguments.replication_factor,
        )
    return topic_of(cluster, arguments.topic, arguments.dir)


# -- produce ---------------------------------------------------------------------------------------


def run_produce(arguments: argparse.Namespace, terminal: Terminal) -> int:
    options = {
        name: getattr(arguments, name)
        for name in ("linger_ms", "batch_size")
        if getattr(arguments, name) is not None
    }
    with writing(arguments, create=True) as cluster, Interrupts() as interrupts:
        _prepare(cluster, arguments)
        run = ProduceRun(arguments, terminal, interrupts)
        with terminal.progress("sending", arguments.records, "records") as progress:
            with cluster.producer(
                acks=arguments.acks, compression=arguments.compression, **options
            ) as producer:
                run.send_all(producer, progress.advance)
            run.finish()
    return interrupts.exit_code


class ProduceRun:
    """One `perf produce`: sends, samples latencies, prints a line every five seconds."""

    def __init__(self, arguments: argparse.Namespace, terminal: Terminal, interrupts: Interrupts) -> None:
        self._arguments = arguments
        self._terminal = terminal
        self._interrupts = interrupts
        self._clock = SystemClock()
        self._now_us = self._clock.monotonic_us
        self._record_bytes = arguments.record_size + arguments.key_size
        self._sample_every = max(1, -(-arguments.records // SAMPLES_MAX))
        self._total = Latencies()
        self._window = Latencies()
        self._sent = 0
        self._window_sent = 0
        self._started_us = self._window_us = self._now_us()
        self._runtime = ThreadedRuntime()

    def send_all(self, producer: Any, advance: Any) -> None:
        """Send everything, or what fits before an interrupt."""
        records = _payloads(self._arguments, random.Random(self._arguments.seed))
        step = BULK if self._arguments.bulk else 100
        total = self._arguments.records
        while self._sent < total and self._interrupts.requested is None:
            count = min(step, total - self._sent)
            pairs = [records[(self._sent + i) % len(records)] for i in range(count)]
            if self._arguments.bulk:
                self._send_bulk(producer, pairs)
            else:
                self._send_each(producer, pairs)
            self._sent += count
            advance(count)
            if self._now_us() - self._window_us >= REPORT_MS * 1000:
                self._report_window()
            self._throttle()

    def _send_each(self, producer: Any, pairs: list[tuple[bytes | None, bytes]]) -> None:
        topic, send, every, sent = self._arguments.topic, producer.send, self._sample_every, self._sent
        for number, (key, value) in enumerate(pairs, sent):
            if number % every:
                send(topic, value, key)
            else:
                self._sample(self._now_us(), send(topic, value, key))

    def _send_bulk(self, producer: Any, pairs: list[tuple[bytes | None, bytes]]) -> None:
        started_us = self._now_us()
        self._sample(started_us, producer.send_many(self._arguments.topic, pairs)[-1])

    def _sample(self, sent_us: int, future: Any) -> None:
        def acknowledged(done: Any) -> None:
            latency_ms = (self._now_us() - sent_us) / 1000
            self._total.add(latency_ms)
            self._window.add(latency_ms)

        future.add_done_callback(acknowledged)

    def _throttle(self) -> None:
        limit = self._arguments.throughput
        if limit <= 0:
            return
        ahead_ms = int(self._sent / limit * 1000 - (self._now_us() - self._started_us) / 1000)
        while ahead_ms > 0 and self._interrupts.requested is None:
            slept_ms = min(ahead_ms, int(SLICE_SECONDS * 1000))
            self._runtime.waiter().wait(slept_ms)
            ahead_ms -= slept_ms

    def _report_window(self) -> None:
        now_us = self._now_us()
        count, window, self._window = self._sent - self._window_sent, self._window, Latencies()
        if not self._terminal.json and not self._terminal.quiet:
            self._terminal.line(
                f"{count} records sent, {self._rates(count, now_us - self._window_us)}, "
                f"{window.average:.1f} ms avg latency, {window.maximum:.1f} ms max latency."
            )
            self._terminal.flush()
        self._window_sent, self._window_us = self._sent, now_us

    def _rates(self, count: int, elapsed_us: int) -> str:
        per_second = count * 1e6 / max(elapsed_us, 1)
        return f"{per_second:.1f} records/sec ({per_second * self._record_bytes / MEGABYTE:.2f} MB/sec)"

    def finish(self) -> None:
        """The closing line; everything is acknowledged by now."""
        elapsed_us, total = self._now_us() - self._started_us, self._total
        if self._terminal.json:
            per_second = self._sent * 1e6 / max(elapsed_us, 1)
            self._terminal.document(
                {
                    "records": self._sent,
                    "record_bytes": self._record_bytes,
                    "elapsed_ms": elapsed_us / 1000,
                    "records_per_second": per_second,
                    "megabytes_per_second": per_second * self._record_bytes / MEGABYTE,
                    "sync": self._arguments.sync,
                    "latency_ms": total.document(),
                }
            )
            return
        percentiles = ", ".join(
            f"{total.percentile(share):.2f} ms {name}" for name, share in Latencies.PRODUCER
        )
        self._terminal.line(
            f"{self._sent} records sent, {self._rates(self._sent, elapsed_us)}, {total.average:.2f} ms avg "
            "latency, "
            f"{total.maximum:.2f} ms max latency, {percentiles}."
        )


def _payloads(arguments: argparse.Namespace, chance: random.Random) -> list[tuple[bytes | None, bytes]]:
    """Some different records of the size asked for: letters, as Kafka's tool sends."""
    letters = bytes(range(ord("A"), ord("Z") + 1))

    def word(count: int) -> bytes:
        return bytes(chance.choices(letters, k=count))

    distinct = max(1, min(1000, 4 * MEGABYTE // max(1, arguments.record_size)))
    return [
        (word(arguments.key_size) if arguments.key_size else None, word(arguments.record_size))
        for _ in range(distinct)
    ]


# -- consume ---------------------------------------------------------------------------------------


def run_consume(arguments: argparse.Namespace, terminal: Terminal) -> int:
    clock = SystemClock()
    count = size = 0
    with reading(arguments) as cluster, Interrupts() as interrupts:
        topic = topic_of(cluster, arguments.topic, arguments.dir)
        started_ms, started_us = clock.wall_ms(), clock.monotonic_us()
        consumer = cluster.consumer(stop_at_end=arguments.records is None, max_poll_records=POLL_RECORDS_MAX)
        partitions = [TopicPartition(topic.name, number) for number in range(len(topic))]
        there = sum(p.high_watermark - p.log_start_offset for p in topic.partitions)
        total = there if arguments.records is None else arguments.records
        consumer.assign(partitions)
        joined_us = news_us = clock.monotonic_us()
        with consumer, terminal.progress("reading", total, "records") as progress:
            while count < total and not consumer.at_end and interrupts.requested is None:
                records = consumer.poll(SLICE_SECONDS, max_records=min(POLL_RECORDS_MAX, total - count))
                if records:
                    count += len(records)
                    size += sum([len(r.value or b"") + len(r.key or b"") for r in records])
                    progress.advance(len(records))
                    news_us = clock.monotonic_us()
                elif clock.monotonic_us() - news_us > arguments.timeout * 1e6:
                    terminal.warn(
                        f"streamlog: nothing came for {arguments.timeout:g} s: read {count:,} of "
                        f"{plural(total, 'record')}"
                    )
                    break
        ended_ms, ended_us = clock.wall_ms(), clock.monotonic_us()
    _report_consumed(
        terminal, count, size, (started_ms, ended_ms), ended_us - started_us, joined_us - started_us
    )
    return interrupts.exit_code


def _report_consumed(
    terminal: Terminal, count: int, size: int, times: tuple[int, int], elapsed_us: int, joining_us: int
) -> None:
    elapsed = max(elapsed_us, 1) / 1e6
    fetching = max(elapsed_us - joining_us, 1) / 1e6
    megabytes = size / MEGABYTE
    if terminal.json:
        terminal.document(
            {
                "records": count,
                "megabytes": megabytes,
                "elapsed_ms": elapsed * 1000,
                "records_per_second": count / elapsed,
                "megabytes_per_second": megabytes / elapsed,
            }
        )
        return
    terminal.line(
        "start.time, end.time, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, nMsg.sec, "
        "rebalance.time.ms, fetch.time.ms, "
        "fetch.MB.sec, fetch.nMsg.sec"
    )
    terminal.line(
        f"{_moment(times[0])}, {_moment(times[1])}, {megabytes:.4f}, {megabytes / elapsed:.4f}, {count}, "
        f"{count / elapsed:.4f}, "
        f"{joining_us // 1000}, {int(fetching * 1000)}, {megabytes / fetching:.4f}, {count / fetching:.4f}"
    )


def _moment(timestamp_ms: int) -> str:
    """yyyy-MM-dd HH:mm:ss:SSS, as Kafka's tool prints it."""
    from datetime import datetime, timezone

    moment = datetime.fromtimestamp(timestamp_ms / 1000, timezone.utc).astimezone()
    return f"{moment:%Y-%m-%d %H:%M:%S}:{timestamp_ms % 1000:03d}"


# -- end to end ------------------------------------------------------------------------------------


def run_e2e(arguments: argparse.Namespace, terminal: Terminal) -> int:
    with writing(arguments, create=True) as cluster, Interrupts() as interrupts:
        _prepare(cluster, arguments)
        latencies = EndToEnd(cluster, arguments, terminal, interrupts).run()
    if terminal.json:
        terminal.document(
            {
                "records": len(latencies),
                "latency_ms": latencies.document(),
                "sync": arguments.sync,
                "acks": arguments.acks,
            }
        )
    elif latencies:
        terminal.line(f"Avg latency: {latencies.average:.4f} ms")
        terminal.line(
            "Percentiles: "
            + ", ".join(f"{name} = {latencies.percentile(share):.3f}" for name, share in Latencies.END_TO_END)
        )
    return interrupts.exit_code


class EndToEnd:
    """Sends a record, waits until the other thread has it, sends the next."""

    def __init__(
        self, cluster: Any, arguments: argparse.Namespace, terminal: Terminal, interrupts: Interrupts
    ) -> None:
        self._cluster = cluster
        self._arguments = arguments
        self._terminal = terminal
        self._interrupts = interrupts
        self._clock = SystemClock()
        self._runtime = ThreadedRuntime()
        self._received = self._runtime.waiter()
        self._received_us = 0
        self._stopping = False
        self._error: BaseException | None = None
        topic = cluster.topic(arguments.topic)
        self._consumer = cluster.consumer()
        self._consumer.assign([TopicPartition(topic.name, number) for number in range(len(topic))])
        self._consumer.seek_to_end()

    def run(self) -> Latencies:
        """The latencies, in ms, without those of the warm-up."""
        task = self._runtime.spawn("streamlog-e2e", self._receive)
        try:
            with self._cluster.producer(acks=self._arguments.acks, linger_ms=0) as producer:
                return self._send_all(producer)
        finally:
            self._stopping = True
            task.join()
            self._consumer.close()

    def _send_all(self, producer: Any) -> Latencies:
        latencies = Latencies()
        chance = random.Random(self._arguments.records)
        value = bytes(chance.choices(range(65, 91), k=self._arguments.record_size))
        with self._terminal.progress("sending", self._arguments.records, "records") as progress:
            for number in range(-E2E_WARM_UP, self._arguments.records):
                if self._interrupts.requested is not None:
                    break
                sent_us = self._clock.monotonic_us()
                producer.send(self._arguments.topic, value)
                while not self._received.wait(1000):
                    if self._gives_up(sent_us):
                        return latencies
                if number < 0:
                    continue
                latency_ms = (self._received_us - sent_us) / 1000
                latencies.add(latency_ms)
                progress.advance(1)
                if number % 1000 == 0 and not self._terminal.json and not self._terminal.quiet:
                    self._terminal.line(f"{number}\t{latency_ms:.4f}")
        return latencies

    def _gives_up(self, sent_us: int) -> bool:
        """Whether somebody wants us to end. Raises what stopped the receiver."""
        if self._error is not None:
            raise self._error
        if self._clock.monotonic_us() - sent_us > RECEIVE_US_MAX:
            raise CommandError("a record was not received within 30 s; is somebody deleting the topic?")
        return self._interrupts.requested is not None

    def _receive(self) -> None:
        try:
            while not self._stopping:
                if self._consumer.poll(SLICE_SECONDS):
                    self._received_us = self._clock.monotonic_us()
                    self._received.set()
        except BaseException as error:
            self._error = error
