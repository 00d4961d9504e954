"""What power-loss safety costs: `sync="full"`, every ack after its flush.

Disks change their mode from minute to minute, so only ratios inside one repeat mean anything. Back of the
envelope: an LMDB commit is two flushes, 0.4-0.9 ms here; 32 threads that ride in one transaction should make
ten times one thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from benchmarks import ours
from benchmarks.harness import Bench, Cell, Contestant, Goal, Metrics
from benchmarks.payload import chunks, latency_metrics, pack_blob, pairs, records_in_blob
from benchmarks.rivals import SQLITE_INSERT, RawLmdb, open_sqlite

VALUE_BYTES = 100


def send_many_synced(cell: Cell) -> Metrics:
    """Lists of 1,000, the producer batches as it likes; flushed at the end."""
    items = pairs(cell.scaled(500_000), VALUE_BYTES)
    with ours.opened(cell.directory, sync="full") as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        with cluster.producer() as producer:
            started = time.perf_counter()
            for chunk in chunks(items, ours.CALL_RECORDS):
                producer.send_many(ours.TOPIC, chunk)
            producer.flush()
            return {"records_per_s": len(items) / (time.perf_counter() - started)}


def send_many_each_acknowledged(cell: Cell) -> Metrics:
    """As many records as the rival's blob holds, acknowledged before the next: the same work a flush."""
    items = pairs(cell.scaled(500_000), VALUE_BYTES)
    with ours.opened(cell.directory, sync="full") as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        with cluster.producer() as producer:
            started = time.perf_counter()
            for chunk in chunks(items, records_in_blob(VALUE_BYTES)):
                producer.send_many(ours.TOPIC, chunk)
                producer.flush()
            return {"records_per_s": len(items) / (time.perf_counter() - started)}


def raw_lmdb_synced(cell: Cell) -> Metrics:
    """64 KiB blobs, each transaction flushed."""
    items = pairs(cell.scaled(500_000), VALUE_BYTES)
    store = RawLmdb(cell.directory, sync=True)
    started = time.perf_counter()
    for chunk in chunks(items, records_in_blob(VALUE_BYTES)):
        store.put(pack_blob(chunk))
    return {"records_per_s": len(items) / (time.perf_counter() - started)}


def _acked_by_threads(threads: int, seconds: float, one: Callable[[bytes, bytes], object]) -> Metrics:
    """Each thread calls `one` and waits for it, again and again."""
    key, value = pairs(1, VALUE_BYTES)[0]
    taken: list[list[float]] = [[] for _ in range(threads)]
    failures: list[BaseException] = []
    barrier = threading.Barrier(threads + 1)

    def work(mine: list[float]) -> None:
        barrier.wait()
        before = time.perf_counter()
        stop_at = before + seconds
        try:
            while before < stop_at:
                one(key, value)
                now = time.perf_counter()
                mine.append(now - before)
                before = now
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(mine,)) for mine in taken]
    for worker in workers:
        worker.start()
    barrier.wait()
    started = time.perf_counter()
    for worker in workers:
        worker.join()
    elapsed = time.perf_counter() - started
    if failures:
        raise failures[0]
    everything = [each for mine in taken for each in mine]
    return {"records_per_s": len(everything) / elapsed, **latency_metrics(everything)}


def _seconds(cell: Cell) -> float:
    return 0.5 if cell.quick else 2.0


def send_result_synced(cell: Cell, threads: int) -> Metrics:
    """`send().result()` from one producer shared by all threads."""
    with ours.opened(cell.directory, sync="full") as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        with cluster.producer() as producer:

            def one(key: bytes, value: bytes) -> None:
                producer.send(ours.TOPIC, value, key=key).result()

            return _acked_by_threads(threads, _seconds(cell), one)


def raw_lmdb_put_synced(cell: Cell, threads: int) -> Metrics:
    """One put and one flushed commit a record, no group commit: threads take turns by a lock."""
    store = RawLmdb(cell.directory, sync=True)
    lock = threading.Lock()

    def one(key: bytes, value: bytes) -> None:
        with lock:
            store.put(pack_blob([(key, value)]))

    return _acked_by_threads(threads, _seconds(cell), one)


def sqlite_full(cell: Cell, threads: int) -> Metrics:
    """SQLite WAL with synchronous=FULL, one connection a thread."""
    local = threading.local()
    open_sqlite(cell.directory).close()

    def one(key: bytes, value: bytes) -> None:
        if not hasattr(local, "connection"):
            local.connection = open_sqlite(cell.directory, "FULL")
            local.connection.execute("PRAGMA busy_timeout=10000")
        local.connection.execute(SQLITE_INSERT, (key, value))

    return _acked_by_threads(threads, _seconds(cell), one)


BENCHES = [
    Bench(
        "synced batches",
        "durability",
        [
            Contestant("streamlog", send_many_synced),
            Contestant("streamlog, each batch acknowledged", send_many_each_acknowledged),
            Contestant("raw LMDB", raw_lmdb_synced),
        ],
        [
            Goal("records_per_s", "streamlog", at_least=0.8, of="raw LMDB"),
            Goal("records_per_s", "streamlog, each batch acknowledged", at_least=0.8, of="raw LMDB"),
        ],
    ),
    Bench(
        "synced single records",
        "durability",
        [
            Contestant("streamlog, 1 thread", partial(send_result_synced, threads=1)),
            Contestant("streamlog, 32 threads", partial(send_result_synced, threads=32)),
            Contestant("raw LMDB, 1 thread", partial(raw_lmdb_put_synced, threads=1)),
            Contestant("raw LMDB, 32 threads", partial(raw_lmdb_put_synced, threads=32)),
            Contestant("SQLite FULL, 1 thread", partial(sqlite_full, threads=1)),
            Contestant("SQLite FULL, 32 threads", partial(sqlite_full, threads=32)),
        ],
        [
            Goal("records_per_s", "streamlog, 1 thread", at_least=0.8, of="raw LMDB, 1 thread"),
            Goal("records_per_s", "streamlog, 32 threads", at_least=4.0, of="streamlog, 1 thread"),
        ],
    ),
]
