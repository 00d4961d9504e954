"""Three brokers: what replicating costs, how long a failover takes, what opening and idling cost, what is left behind.

Back of the envelope: a record acknowledged by all is one LMDB transaction at each of three brokers (9 us each), one read,
and the turns around them. Handing it to two threads and back, as brokers in threads would, costs two wake-ups and two
switches of the interpreter's lock more, which is what `bare hand-off` measures; a caller that *helps* spares them.
A hand-off is what it is in all benchmarks here (see `rivals`): a bare LMDB put and a `threading.Condition`. Python's
cheapest way from thread to thread, `SimpleQueue`, is measured beside it.
"""

from __future__ import annotations

import gc
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks import ours
from benchmarks.harness import Bench, Cell, Contestant, Goal, Metrics
from benchmarks.kafka_brokers import create_kafka_topic, kafka_brokers
from benchmarks.payload import chunks, latency_metrics, pairs
from benchmarks.rivals import RawLmdb
from benchmarks.startup import TRIES, _compile_bytecode, _medians

PARTITIONS = 4
VALUE = b"v" * 100
CLUSTERS = 100
WARM_CLUSTERS = 30
WARM_RECORDS = 20_000
"""The brokers are young Java processes: their compiler needs so many records, and so many single ones, to settle."""
WARM_SINGLE_RECORDS = 5_000


# ---------------------------------------------------------------- throughput


def send_many(cell: Cell, factor: int) -> Metrics:
    """Lists of 1,000, acks=all, four partitions, three brokers, until everything is acknowledged."""
    items = pairs(cell.scaled(1_000_000), 100)
    with ours.opened(cell.directory, brokers=3) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=PARTITIONS, replication_factor=factor)
        with cluster.producer(acks="all") as producer:
            started = time.perf_counter()
            for chunk in chunks(items, ours.CALL_RECORDS):
                producer.send_many(ours.TOPIC, chunk)
            producer.flush()
            return {"records_per_s": len(items) / (time.perf_counter() - started)}


def kafka_many(cell: Cell) -> Metrics:
    """confluent-kafka's `produce_batch` into three brokers, acks=all."""
    items = pairs(cell.scaled(60_000), 100)
    with kafka_brokers(cell.directory) as bootstrap:
        create_kafka_topic(bootstrap, ours.TOPIC, PARTITIONS)
        producer = _kafka_producer(bootstrap, linger_ms=5)
        for number in range(cell.scaled(WARM_RECORDS, 1_000)):
            producer.produce(ours.TOPIC, VALUE, partition=number % PARTITIONS)
        producer.flush(60)
        started = time.perf_counter()
        for chunk in chunks(items, ours.CALL_RECORDS):
            producer.produce_batch(ours.TOPIC, [{"key": key, "value": value} for key, value in chunk])
            producer.poll(0)
        if producer.flush(60):
            raise RuntimeError("records were not delivered in 60 s")
        return {"records_per_s": len(items) / (time.perf_counter() - started)}


def _kafka_producer(bootstrap: str, linger_ms: int) -> Any:
    from confluent_kafka import Producer

    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "acks": "all",
            "linger.ms": linger_ms,
            "socket.nagle.disable": True,
            "queue.buffering.max.messages": 1_000_000,
            "log_level": 0,
        }
    )


# ---------------------------------------------------------------- one record, acknowledged by all


def _one_by_one(count: int, send: Callable[[], object]) -> Metrics:
    for _ in range(count // 10):
        send()
    seconds = []
    for _ in range(count):
        before = time.perf_counter()
        send()
        seconds.append(time.perf_counter() - before)
    return latency_metrics(seconds)


def acked(cell: Cell, factor: int, helps: bool = True) -> Metrics:
    """`send(...).result()` with acks=all. helps: whether the caller copies for the followers, or waits for threads."""
    with ours.opened(cell.directory, brokers=3) as cluster:
        if not helps:
            cluster._backend.runtime.may_help = lambda: False
        cluster.create_topic(ours.TOPIC, partitions=1, replication_factor=factor)
        with cluster.producer(acks="all", linger_ms=0) as producer:
            return _one_by_one(
                cell.scaled(3_000, 500), lambda: producer.send(ours.TOPIC, VALUE).result(timeout=10)
            )


class ConditionQueue:
    """A queue of one reader as everywhere in these benchmarks a hand-off is made: a `threading.Condition`."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._items: deque[int] = deque()

    def put(self, item: int) -> None:
        with self._condition:
            self._items.append(item)
            self._condition.notify()

    def get(self) -> int:
        with self._condition:
            while not self._items:
                self._condition.wait()
            return self._items.popleft()


def bare_hand_off(cell: Cell, channel: Callable[[], Any]) -> Metrics:
    """The same event without a log: a put here, two threads that read it and put it into theirs, two answers."""
    stores = []
    for number in range(3):
        directory = cell.directory / f"broker-{number}"
        directory.mkdir()
        stores.append(RawLmdb(directory))
    leader, *followers = stores
    questions = [channel() for _ in followers]
    answers = channel()

    def follow(store: RawLmdb, asked: Any) -> None:
        while (offset := asked.get()) >= 0:
            data = leader.get(offset)
            assert data is not None
            answers.put(store.put(data))

    threads = [
        threading.Thread(target=follow, args=each, daemon=True)
        for each in zip(followers, questions, strict=True)
    ]
    for thread in threads:
        thread.start()

    def send() -> None:
        offset = leader.put(VALUE)
        for asked in questions:
            asked.put(offset)
        for _ in questions:
            answers.get()

    found = _one_by_one(cell.scaled(3_000, 500), send)
    for asked in questions:
        asked.put(-1)
    for thread in threads:
        thread.join()
    return found


def kafka_acked(cell: Cell) -> Metrics:
    """`produce` and `flush` of one record, acks=all, three brokers."""
    with kafka_brokers(cell.directory) as bootstrap:
        create_kafka_topic(bootstrap, ours.TOPIC)
        producer = _kafka_producer(bootstrap, linger_ms=0)

        def send() -> None:
            producer.produce(ours.TOPIC, VALUE, partition=0)
            if producer.flush(30):
                raise RuntimeError("a record was not delivered in 30 s")

        for _ in range(cell.scaled(WARM_SINGLE_RECORDS, 500)):
            send()
        return _one_by_one(cell.scaled(2_000, 300), send)


# ---------------------------------------------------------------- failover


def failover(cell: Cell, fault: str) -> Metrics:
    """From the moment the leader goes to the next acknowledged record, again and again."""
    gaps = []
    with ours.opened(cell.directory, brokers=3) as cluster:
        topic = cluster.create_topic(
            ours.TOPIC, partitions=1, replication_factor=3, config={"min.insync.replicas": 2}
        )
        with cluster.producer(acks="all", linger_ms=0) as producer:
            for _ in range(cell.scaled(30, 8)):
                for _ in range(20):
                    producer.send(ours.TOPIC, VALUE).result(timeout=30)
                leader = topic[0].leader
                before = time.perf_counter()
                getattr(cluster.brokers[leader], fault)()
                producer.send(ours.TOPIC, VALUE).result(timeout=30)
                gaps.append((time.perf_counter() - before) * 1e3)
                cluster.brokers[leader].start()
                deadline = time.monotonic() + 30
                while len(topic[0].isr) < 3:
                    if time.monotonic() > deadline:
                        raise RuntimeError("the broker did not come back into the in-sync set in 30 s")
                    time.sleep(0.005)
    return {"p50_ms": statistics.median(gaps), "max_ms": max(gaps)}


# ---------------------------------------------------------------- opening, idling, leaving nothing behind

_OPEN_THREE = """
import json, time
import streamlog
begin = time.perf_counter()
cluster = streamlog.open(":memory:", brokers=3)
opened = time.perf_counter()
cluster.create_topic("t", partitions=3, replication_factor=3)
with cluster.producer(acks="all") as producer:
    producer.send("t", b"x").result(timeout=10)
acked = time.perf_counter()
cluster.close()
closed = time.perf_counter()
print(json.dumps({"open_ms": (opened - begin) * 1e3, "first_acked_ms": (acked - begin) * 1e3,
                  "close_ms": (closed - acked) * 1e3}))
"""

_IDLE_THREE = """
import json, sys, time
import streamlog
with streamlog.open(":memory:", brokers=3) as cluster:
    cluster.create_topic("idle", partitions=4, replication_factor=3)
    producer, consumer = cluster.producer(acks="all"), cluster.consumer()
    consumer.assign([streamlog.TopicPartition("idle", number) for number in range(4)])
    for _ in range(20):
        producer.send("idle", b"x").result()
    consumer.poll(timeout=0.5)
    time.sleep(1)
    seconds = float(sys.argv[1])
    begin, cpu = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    share = (time.process_time() - cpu) / (time.perf_counter() - begin)
    print(json.dumps({"cpu_percent": share * 100}))
"""


def open_three(cell: Cell) -> Metrics:
    """A cluster in memory, to the first record acknowledged by all; in a bare interpreter."""
    _compile_bytecode()
    return _medians(2 if cell.quick else TRIES, _OPEN_THREE)


def idle_three(cell: Cell) -> Metrics:
    """The share of a core that a cluster with a producer and a consumer takes while nothing happens."""
    return _medians(1, _IDLE_THREE, 2 if cell.quick else 20)


def hundred_clusters(cell: Cell) -> Metrics:
    """Open, use and close clusters in this process, after as many as the allocator needs to grow to its size."""
    count = cell.scaled(CLUSTERS, 20)
    streamlog = ours.library()
    places: list[Path] = []

    def use() -> None:
        with streamlog.open(":memory:", brokers=3) as cluster:
            places.append(cluster.path)
            cluster.create_topic("t", partitions=3, replication_factor=3)
            with cluster.producer(acks="all") as producer:
                for number in range(6):
                    producer.send("t", VALUE, partition=number % 3).result(timeout=30)
            cluster.brokers[1].crash()
            cluster.brokers[1].start()
            with cluster.consumer_group("g", ["t"]).consumer() as consumer:
                consumer.poll(timeout=0.2)

    for _ in range(WARM_CLUSTERS):
        use()
    before = _held(places)
    started = time.perf_counter()
    for _ in range(count):
        use()
    seconds = time.perf_counter() - started
    after = _held(places)
    return {**{name: after[name] - before[name] for name in before}, "each_ms": seconds / count * 1e3}


def _held(places: list[Path]) -> dict[str, float]:
    gc.collect()
    return {
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
        "directories": sum(1 for path in places if path.exists()),
        "memory_mb": _resident_bytes() / 1e6,
    }


def _resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


BENCHES = [
    Bench(
        "replicated send_many",
        "replication",
        [
            Contestant("streamlog, 3 replicas", partial(send_many, factor=3)),
            Contestant("streamlog, 1 replica", partial(send_many, factor=1)),
            Contestant("Apache Kafka, 3 brokers", kafka_many),
        ],
        [
            Goal("records_per_s", "streamlog, 3 replicas", of="streamlog, 1 replica", at_least=0.3),
        ],
        note="Three brokers, four partitions, acks=all, sync=off, 100-byte values.",
    ),
    Bench(
        "acknowledged by all",
        "replication",
        [
            Contestant("streamlog, 3 replicas", partial(acked, factor=3)),
            Contestant("streamlog, 3 replicas, threads copy", partial(acked, factor=3, helps=False)),
            Contestant("streamlog, 1 replica", partial(acked, factor=1)),
            Contestant("bare hand-off", partial(bare_hand_off, channel=ConditionQueue)),
            Contestant("bare hand-off, SimpleQueue", partial(bare_hand_off, channel=SimpleQueue)),
            Contestant("Apache Kafka, 3 brokers", kafka_acked),
        ],
        [
            Goal("p50_us", "streamlog, 3 replicas", of="bare hand-off", at_most=2.0),
            Goal("p50_us", "streamlog, 3 replicas", of="Apache Kafka, 3 brokers", at_most=0.1),
        ],
        note="One record at a time, acks=all, sync=off. Bare hand-off: three LMDB environments, two follower threads, "
        "a threading.Condition each way; beside it with queue.SimpleQueue.",
    ),
    Bench(
        "failover",
        "replication",
        [Contestant(f"streamlog, {fault}", partial(failover, fault=fault)) for fault in ("crash", "stop")],
        [Goal("p50_ms", f"streamlog, {fault}", at_most=50) for fault in ("crash", "stop")],
        note="From the leader's end, that call included, to the next record acknowledged by all.",
    ),
    Bench(
        "open three brokers",
        "replication",
        [Contestant("streamlog", open_three)],
        [Goal("open_ms", "streamlog", at_most=60)],
    ),
    Bench(
        "idle three brokers",
        "replication",
        [Contestant("streamlog", idle_three)],
        [Goal("cpu_percent", "streamlog", at_most=2.0)],
    ),
    Bench(
        "a hundred clusters",
        "replication",
        [Contestant("streamlog", hundred_clusters)],
        [
            Goal("threads", "streamlog", at_most=0),
            Goal("files", "streamlog", at_most=0),
            Goal("directories", "streamlog", at_most=0),
            Goal("memory_mb", "streamlog", at_most=2),
        ],
        repeats_max=3,
        note="Each is opened, written, loses and regains a broker, is read by a group, closed. What 100 add to 30.",
    ),
]
