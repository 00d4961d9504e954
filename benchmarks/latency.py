"""From `send` in one thread to the record in another: alone, at half load, and a million times in a row.

The time of sending travels in the value. Back of the envelope: waking a thread costs 45 us here
(SimpleQueue), a commit 10 us, so the bare hand-off needs about 75 us; everything a real log adds has to fit
into half of that.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from functools import partial

from benchmarks import ours
from benchmarks.harness import Bench, Cell, Contestant, Goal, Metrics
from benchmarks.payload import latency_metrics
from benchmarks.rivals import HandOff, MockKafka, redis_server

VALUE_BYTES = 100
_stamp = struct.Struct("<Q")
_PADDING = bytes(VALUE_BYTES - _stamp.size)
LOST_AFTER_S = 1.0
"""A record that takes longer than this from thread to thread counts as a lost wake-up."""


def _stamped() -> bytes:
    return _stamp.pack(time.perf_counter_ns()) + _PADDING


def _age_s(value: bytes) -> float:
    return (time.perf_counter_ns() - int(_stamp.unpack_from(value)[0])) / 1e9


def _paced(count: int, send: Callable[[bytes], object], receive: Callable[[int], list[bytes]]) -> Metrics:
    """Send a record a millisecond or so from this thread; another receives and keeps each record's age."""
    ages: list[float] = []
    failures: list[BaseException] = []
    is_ready = threading.Event()

    def consume() -> None:
        is_ready.set()
        try:
            while len(ages) < count:
                for value in receive(len(ages)):
                    ages.append(_age_s(value))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    is_ready.wait()
    time.sleep(0.05)
    for _ in range(count):
        send(_stamped())
        time.sleep(0.001)
    thread.join(30)
    if failures:
        raise failures[0]
    if len(ages) < count:
        raise RuntimeError(f"only {len(ages)} of {count} records came")
    warm = ages[count // 20 :]
    return latency_metrics(warm)


def _count(cell: Cell) -> int:
    return cell.scaled(4_000, 500)


def streamlog_latency(cell: Cell) -> Metrics:
    """`send` with linger 0; the other thread blocks in `poll`."""
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        with cluster.producer(linger_ms=0) as producer, ours.reader(cluster, stop_at_end=False) as consumer:
            return _paced(
                _count(cell),
                lambda value: producer.send(ours.TOPIC, value),
                lambda received: [record.value for record in consumer.poll(timeout=10.0, max_records=1_000)],
            )


def hand_off_latency(cell: Cell) -> Metrics:
    hand_off = HandOff(cell.directory)
    return _paced(_count(cell), hand_off.send, lambda received: [hand_off.receive(received)])


def redis_latency(cell: Cell) -> Metrics:
    """XADD on one connection, XREAD BLOCK on another."""
    with redis_server(cell.directory) as connect:
        sender, receiver = connect(), connect()
        last_id = [b"0"]

        def receive(received: int) -> list[bytes]:
            answer = receiver.xread({"bench": last_id[0]}, count=1_000, block=10_000)
            entries = answer[0][1] if answer else []
            if entries:
                last_id[0] = entries[-1][0]
            return [fields[b"v"] for _, fields in entries]

        return _paced(_count(cell), lambda value: sender.xadd("bench", {"v": value}), receive)


def confluent_latency(cell: Cell) -> Metrics:
    """For the record only: the mock answers an empty fetch no earlier than fetch.wait.max.ms (5)."""
    kafka = MockKafka(linger_ms=0)
    topics = kafka.create_topics(1)
    consumer = kafka.consumer(topics)

    def send(value: bytes) -> None:
        kafka.producer.produce(topics[0], value, partition=0)
        kafka.producer.poll(0)

    def receive(received: int) -> list[bytes]:
        message = consumer.poll(10.0)
        return [] if message is None or message.error() else [message.value()]

    return _paced(_count(cell), send, receive)


# ---------------------------------------------------------------- at half of what it can


def _load(send: Callable[[bytes], object], seconds: float, records_per_s: float | None) -> int:
    """Send for `seconds`, as fast as it goes or in bursts of a millisecond; return the number sent."""
    sent = 0
    started = time.perf_counter()
    while True:
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            return sent
        due = sent + 256 if records_per_s is None else int(elapsed * records_per_s)
        while sent < due:
            send(_stamped())
            sent += 1
        if records_per_s is not None:
            time.sleep(0.001)


def _half_load(cell: Cell, send: Callable[[bytes], object], receive: Callable[[], list[bytes]]) -> Metrics:
    """First the most that producer and consumer do together, then ages at half of that."""
    seconds = 1.0 if cell.quick else 4.0
    ages: list[float] = []
    state = {"received": 0, "is_stopped": False}
    failures: list[BaseException] = []

    def consume() -> None:
        try:
            while not state["is_stopped"]:
                values = receive()
                state["received"] += len(values)
                if values:
                    ages.append(_age_s(values[0]))
                    ages.append(_age_s(values[-1]))
        except BaseException as error:
            failures.append(error)

    def wait_for(sent: int) -> None:
        deadline = time.monotonic() + 60
        while state["received"] < sent and not failures and time.monotonic() < deadline:
            time.sleep(0.005)

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    started = time.perf_counter()
    sent = _load(send, seconds, None)
    wait_for(sent)
    rate = state["received"] / (time.perf_counter() - started)
    ages.clear()
    sent += _load(send, seconds, rate / 2)
    wait_for(sent)
    state["is_stopped"] = True
    thread.join(15)
    if failures:
        raise failures[0]
    if state["received"] != sent:
        raise RuntimeError(f"{state['received']} of {sent} records came")
    return {"max_records_per_s": rate, **latency_metrics(ages)}


def streamlog_half_load(cell: Cell, linger_ms: int) -> Metrics:
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        with (
            cluster.producer(linger_ms=linger_ms) as producer,
            ours.reader(cluster, stop_at_end=False) as consumer,
        ):
            return _half_load(
                cell,
                lambda value: producer.send(ours.TOPIC, value),
                lambda: [record.value for record in consumer.poll(timeout=0.1, max_records=1_000)],
            )


def hand_off_half_load(cell: Cell) -> Metrics:
    hand_off = HandOff(cell.directory)
    next_offset = [0]

    def receive() -> list[bytes]:
        with hand_off.condition:
            if not hand_off.condition.wait_for(lambda: hand_off.end_offset > next_offset[0], 0.1):
                return []
        values = [hand_off.receive(next_offset[0])]
        next_offset[0] += 1
        return values

    return _half_load(cell, hand_off.send, receive)


# ---------------------------------------------------------------- a million wake-ups


def _wake_ups(count: int, send: Callable[[bytes], object], receive: Callable[[int], list[bytes]]) -> Metrics:
    """Send one, wait until the other thread has it, send the next: every record needs its own wake-up."""
    turn = threading.Semaphore(0)
    failures: list[BaseException] = []
    slowest = [0.0]

    def consume() -> None:
        received = 0
        try:
            while received < count:
                for value in receive(received):
                    received += 1
                    slowest[0] = max(slowest[0], _age_s(value))
                    turn.release()
        except BaseException as error:
            failures.append(error)
            turn.release()

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    lost = 0
    started = time.perf_counter()
    for _ in range(count):
        send(_stamped())
        if not turn.acquire(timeout=LOST_AFTER_S):
            lost += 1
            if not turn.acquire(timeout=30) or failures:
                break
    elapsed = time.perf_counter() - started
    if failures:
        raise failures[0]
    thread.join(30)
    return {"lost": lost, "wake_ups_per_s": count / elapsed, "max_us": slowest[0] * 1e6}


def streamlog_wake_ups(cell: Cell) -> Metrics:
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        with cluster.producer(linger_ms=0) as producer, ours.reader(cluster, stop_at_end=False) as consumer:
            return _wake_ups(
                cell.scaled(1_000_000, 10_000),
                lambda value: producer.send(ours.TOPIC, value),
                lambda received: [record.value for record in consumer.poll(timeout=20.0, max_records=10)],
            )


def hand_off_wake_ups(cell: Cell) -> Metrics:
    hand_off = HandOff(cell.directory)
    count = cell.scaled(100_000, 10_000)
    return _wake_ups(count, hand_off.send, lambda received: [hand_off.receive(received, timeout=20.0)])


BENCHES = [
    Bench(
        "send to receive",
        "latency",
        [
            Contestant("streamlog", streamlog_latency),
            Contestant("hand-off", hand_off_latency),
            Contestant("Redis Streams", redis_latency),
            Contestant("confluent-kafka", confluent_latency),
        ],
        [
            Goal("p50_us", "streamlog", at_most=1.5, of="hand-off"),
            Goal("p50_us", "streamlog", at_most=0.5, of="Redis Streams"),
        ],
    ),
    Bench(
        "latency at half of maximum throughput",
        "latency",
        [
            Contestant("streamlog", partial(streamlog_half_load, linger_ms=5)),
            Contestant("streamlog, linger 0", partial(streamlog_half_load, linger_ms=0)),
            Contestant("hand-off", hand_off_half_load),
        ],
        [
            Goal("p99_us", "streamlog", at_most=10_000),
            Goal("p99_us", "streamlog, linger 0", at_most=10_000),
        ],
    ),
    Bench(
        "a million wake-ups",
        "latency",
        [Contestant("streamlog", streamlog_wake_ups), Contestant("hand-off", hand_off_wake_ups)],
        [Goal("lost", "streamlog", at_most=0)],
        repeats_max=1,
    ),
]
