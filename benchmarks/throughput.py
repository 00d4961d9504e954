"""How many records a second: produce by the list, produce one by one, read; also beside a busy thread.

Back of the envelope (100-byte values): packing a blob by hand costs 230 ns a record, its put 100 ns; columnar
encoding 33 ns, CRC and put as much as the blob's: `send_many` may reach raw LMDB. A `send` with a future each
is Python: about 1 us. Decoding to Record objects costs 157 ns.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from itertools import count
from typing import Any

from benchmarks import ours
from benchmarks.harness import Bench, Cell, Contestant, Goal, Metrics
from benchmarks.payload import chunks, latency_metrics, pack_blob, pairs, records_in_blob, unpack_blob
from benchmarks.rivals import SQLITE_INSERT, MockKafka, RawLmdb, mock_topics_for, open_sqlite

PARTITIONS = 4


def _amount(cell: Cell) -> tuple[int, int]:
    """(records, value bytes): a million small ones or 200,000 of 1 KiB, half a second of raw LMDB."""
    value_bytes = cell.params["value_bytes"]
    return cell.scaled(1_000_000 if value_bytes <= 100 else 200_000), value_bytes


def _rate(count: int, started: float) -> Metrics:
    return {"records_per_s": count / (time.perf_counter() - started)}


# ---------------------------------------------------------------- many at once


def send_many(cell: Cell) -> Metrics:
    """Lists of 1,000 until everything is flushed, into one partition."""
    count, value_bytes = _amount(cell)
    items = pairs(count, value_bytes)
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        with cluster.producer() as producer:
            started = time.perf_counter()
            for chunk in chunks(items, ours.CALL_RECORDS):
                producer.send_many(ours.TOPIC, chunk)
            producer.flush()
            return _rate(count, started)


def raw_lmdb_blobs(cell: Cell) -> Metrics:
    """The same records packed by hand, 64 KiB a transaction."""
    count, value_bytes = _amount(cell)
    items = pairs(count, value_bytes)
    store = RawLmdb(cell.directory)
    started = time.perf_counter()
    for chunk in chunks(items, records_in_blob(value_bytes)):
        store.put(pack_blob(chunk))
    return _rate(count, started)


def produce_batch_confluent(cell: Cell) -> Metrics:
    """confluent-kafka's own way for many: `produce_batch`, a thousand a call; building its dicts is part of
    the price."""
    count, value_bytes = _amount(cell)
    count = min(count, 300_000)
    items = pairs(count, value_bytes)
    kafka = MockKafka()
    (topic,) = kafka.create_topics(1)
    started = time.perf_counter()
    for chunk in chunks(items, ours.CALL_RECORDS):
        kafka.producer.produce_batch(topic, [{"key": key, "value": value} for key, value in chunk])
        kafka.producer.poll(0)
    kafka.flush()
    return _rate(count, started)


# ---------------------------------------------------------------- one call a message


def send_each(cell: Cell) -> Metrics:
    """One `send` and one future a record, four partitions by key, until flushed."""
    count, value_bytes = _amount(cell)
    count = min(count, 300_000)
    items = pairs(count, value_bytes)
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=PARTITIONS)
        with cluster.producer() as producer:
            send, topic = producer.send, ours.TOPIC
            started = time.perf_counter()
            for key, value in items:
                send(topic, value, key=key)
            producer.flush()
            return _rate(count, started)


def produce_each_confluent(cell: Cell, with_callback: bool = False) -> Metrics:
    """One `produce` a record, four partitions by key, until flushed; without a callback nobody learns of a
    failure."""
    count, value_bytes = _amount(cell)
    count = min(count, 300_000)
    items = pairs(count, value_bytes)
    kafka = MockKafka()
    (topic,) = kafka.create_topics(1)
    produce, poll = kafka.producer.produce, kafka.producer.poll
    acknowledged: list[object] = []
    options: dict[str, Any] = {}
    if with_callback:
        options["on_delivery"] = lambda error, message: acknowledged.append(error)
    started = time.perf_counter()
    for number, (key, value) in enumerate(items):
        produce(topic, value, key, **options)
        if not number & 1023:
            poll(0)
    kafka.flush()
    metrics = _rate(count, started)
    if with_callback and (len(acknowledged) != count or any(acknowledged)):
        raise RuntimeError(f"{len(acknowledged)} of {count} acknowledged")
    return metrics


# ---------------------------------------------------------------- one call, one ack


def send_result(cell: Cell) -> Metrics:
    """`send(...).result()` in a loop: each record acknowledged before the next."""
    items = pairs(cell.scaled(20_000), cell.params["value_bytes"])
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        with cluster.producer() as producer:
            return _timed_each(items, lambda key, value: producer.send(ours.TOPIC, value, key=key).result())


def sqlite_autocommit(cell: Cell) -> Metrics:
    """One INSERT and its commit in a loop."""
    items = pairs(cell.scaled(20_000), cell.params["value_bytes"])
    connection = open_sqlite(cell.directory)
    return _timed_each(items, lambda key, value: connection.execute(SQLITE_INSERT, (key, value)))


def lmdb_put_each(cell: Cell) -> Metrics:
    """One record packed and put a transaction."""
    items = pairs(cell.scaled(20_000), cell.params["value_bytes"])
    store = RawLmdb(cell.directory)
    return _timed_each(items, lambda key, value: store.put(pack_blob([(key, value)])))


def produce_flush_confluent(cell: Cell) -> Metrics:
    """`produce` and `flush` in a loop, linger 0: the way people do it who need an ack."""
    items = pairs(cell.scaled(5_000), cell.params["value_bytes"])
    kafka = MockKafka(linger_ms=0)
    (topic,) = kafka.create_topics(1)

    def one(key: bytes, value: bytes) -> None:
        kafka.producer.produce(topic, value, key)
        kafka.producer.flush()

    return _timed_each(items, one)


def _timed_each(items: list[tuple[bytes, bytes]], one: Any) -> Metrics:
    clock = time.perf_counter
    seconds = []
    started = before = clock()
    for key, value in items:
        one(key, value)
        now = clock()
        seconds.append(now - before)
        before = now
    return {**_rate(len(items), started), **latency_metrics(seconds)}


# ---------------------------------------------------------------- reading


def consume(cell: Cell, check_crcs: bool = True) -> Metrics:
    """`poll(max_records=1000)` to Record objects, from the first to the last; filling is not timed.

    check_crcs: Kafka's default is True, librdkafka's (the rival's) False.
    """
    count, value_bytes = _amount(cell)
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        ours.fill(cluster, pairs(count, value_bytes))
        with ours.reader(cluster, check_crcs=check_crcs) as consumer:
            started = time.perf_counter()
            ours.read_all(consumer, count)
            return _rate(count, started)


def iterate(cell: Cell) -> Metrics:
    """`for record in consumer` over the same."""
    count, value_bytes = _amount(cell)
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        ours.fill(cluster, pairs(count, value_bytes))
        with ours.reader(cluster) as consumer:
            started = time.perf_counter()
            received = sum(1 for _ in consumer)
            metrics = _rate(received, started)
    if received != count:
        raise RuntimeError(f"{received} of {count} records came")
    return metrics


def consume_single_record_batches(cell: Cell) -> Metrics:
    """The same, but every record was acknowledged alone and so is a batch of its own."""
    count = cell.scaled(50_000)
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        with cluster.producer() as producer:
            for key, value in pairs(count, cell.params["value_bytes"]):
                producer.send(ours.TOPIC, value, key=key).result()
        with ours.reader(cluster) as consumer:
            started = time.perf_counter()
            ours.read_all(consumer, count)
            return _rate(count, started)


def raw_lmdb_read(cell: Cell) -> Metrics:
    """The blobs of `raw_lmdb_blobs`, unpacked to (key, value)."""
    count, value_bytes = _amount(cell)
    store = RawLmdb(cell.directory)
    for chunk in chunks(pairs(count, value_bytes), records_in_blob(value_bytes)):
        store.put(pack_blob(chunk))
    started = time.perf_counter()
    received = sum(len(unpack_blob(blob)) for blob in store.blobs())
    return _rate(received, started)


def consume_confluent(cell: Cell, touch: bool = False) -> Metrics:
    """`consume(1000)` from assign to the last message; `touch` also takes key and value out of each."""
    count, value_bytes = _amount(cell)
    count = min(count, 300_000 if value_bytes <= 100 else 100_000)
    kafka = MockKafka()
    topics = kafka.create_topics(mock_topics_for(count, value_bytes))
    kafka.fill(pairs(count, value_bytes), topics)
    consumer = kafka.consumer(topics)
    received, empty = 0, 0
    started = time.perf_counter()
    while received < count:
        messages = consumer.consume(1_000, 5.0)
        empty = 0 if messages else empty + 1
        if empty > 2:
            raise RuntimeError(f"{received} of {count} messages came")
        if touch:
            taken = [(message.key(), message.value()) for message in messages]
            received += len(taken)
        else:
            received += len(messages)
    metrics = _rate(count, started)
    consumer.close()
    return metrics


# ---------------------------------------------------------------- beside one CPU-bound thread


def _beside_a_busy_thread(run: Any) -> Metrics:
    """Measure `run(stop_at)` -> records alone, then beside one thread that only computes."""
    seconds = 1.5
    alone = run(time.perf_counter() + seconds) / seconds
    is_stopped = threading.Event()
    loops = [0]

    def compute() -> None:
        for number in count():
            loops[0] = number
            if not number & 4095 and is_stopped.is_set():
                return

    thread = threading.Thread(target=compute, daemon=True)
    thread.start()
    try:
        started = time.perf_counter()
        records = run(started + seconds)
        beside = records / (time.perf_counter() - started)
    finally:
        is_stopped.set()
        thread.join()
    return {"records_per_s": beside, "alone_records_per_s": alone, "busy_loops_per_s": loops[0] / seconds}


def send_many_beside(cell: Cell) -> Metrics:
    """`send_many` for a second and a half, flushed at its end, beside a busy thread."""
    items = pairs(ours.CALL_RECORDS, cell.params["value_bytes"])
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        with cluster.producer() as producer:

            def run(stop_at: float) -> int:
                records = 0
                while time.perf_counter() < stop_at:
                    producer.send_many(ours.TOPIC, items)
                    records += len(items)
                producer.flush()
                return records

            return _beside_a_busy_thread(run)


def raw_lmdb_beside(cell: Cell) -> Metrics:
    """Raw LMDB blobs for the same time beside the same thread."""
    value_bytes = cell.params["value_bytes"]
    items = pairs(records_in_blob(value_bytes), value_bytes)
    store = RawLmdb(cell.directory)

    def run(stop_at: float) -> int:
        records = 0
        while time.perf_counter() < stop_at:
            store.put(pack_blob(items))
            records += len(items)
        return records

    return _beside_a_busy_thread(run)


def _benches(value_bytes: int, label: str) -> list[Bench]:
    params = {"value_bytes": value_bytes}
    rate = "records_per_s"
    plain, touching = "confluent-kafka consume(1000)", "confluent-kafka consume(1000), key and value taken"
    return [
        Bench(
            f"send_many {label}",
            "produce",
            [
                Contestant("streamlog", send_many),
                Contestant("raw LMDB", raw_lmdb_blobs),
                Contestant("confluent-kafka produce_batch", produce_batch_confluent),
            ],
            [Goal(rate, "streamlog", at_least=0.6, of="raw LMDB")],
            params,
        ),
        Bench(
            f"send {label}",
            "produce",
            [
                Contestant("streamlog", send_each),
                Contestant("confluent-kafka produce", produce_each_confluent),
                Contestant(
                    "confluent-kafka produce, callback", partial(produce_each_confluent, with_callback=True)
                ),
            ],
            [Goal(rate, "streamlog", at_least=0.6, of="confluent-kafka produce")],
            params,
        ),
        Bench(
            f"send().result() {label}",
            "produce",
            [
                Contestant("streamlog", send_result),
                Contestant("SQLite", sqlite_autocommit),
                Contestant("raw LMDB put", lmdb_put_each),
                Contestant("confluent-kafka produce+flush", produce_flush_confluent),
            ],
            [Goal(rate, "streamlog", at_least=1.0, of="SQLite")],
            params,
        ),
        Bench(
            f"read {label}",
            "consume",
            [
                Contestant("streamlog", consume),
                Contestant("streamlog, CRCs unchecked", partial(consume, check_crcs=False)),
                Contestant("streamlog, iterating", iterate),
                Contestant("streamlog, single-record batches", consume_single_record_batches),
                Contestant("raw LMDB", raw_lmdb_read),
                Contestant(plain, consume_confluent),
                Contestant(touching, partial(consume_confluent, touch=True)),
            ],
            [
                Goal(rate, "streamlog", at_least=2.5, of=plain),
                Goal(rate, "streamlog, single-record batches", at_least=0.3, of="streamlog"),
            ],
            params,
        ),
    ]


BENCHES = [
    *_benches(100, "100 B"),
    *_benches(1024, "1 KiB"),
    Bench(
        "send_many beside a busy thread",
        "produce",
        [Contestant("streamlog", send_many_beside), Contestant("raw LMDB", raw_lmdb_beside)],
        [Goal("records_per_s", "streamlog", at_least=0.7, of="raw LMDB")],
        {"value_bytes": 100},
        note="Bimodal: every release of the interpreter's lock can cost a 5 ms switch interval.",
    ),
]
