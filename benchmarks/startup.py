"""Import, open to the first record, close, and what an idle cluster costs.

Every number is taken in a bare interpreter (`python -c`) that has imported nothing of the harness, several
times; each cell gives the median of its tries, so that one hiccup of the machine is not a result.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks import ours
from benchmarks.harness import Bench, Cell, Contestant, Goal, Metrics
from benchmarks.payload import pack_blob, pairs
from benchmarks.rivals import SQLITE_INSERT, RawLmdb, open_sqlite
from benchmarks.scale import ten_million

CORE_DEPENDENCIES = ("lmdb", "zstandard", "msgspec", "google_crc32c", "typing_extensions")
TRIES = 5
RECORDS = 10_000

_IMPORT = """
import time
for name in {dependencies!r}:
    __import__(name)
before = time.perf_counter()
import streamlog
streamlog.open
imported = time.perf_counter()
"""

_OPEN = """
import sys, time, json
import streamlog
path, topic, partition = sys.argv[1], sys.argv[2], int(sys.argv[3])
begin = time.perf_counter()
cluster = streamlog.open(path, sync="off")
opened = time.perf_counter()
consumer = cluster.consumer(stop_at_end=True)
consumer.assign([streamlog.TopicPartition(topic, partition)])
records = consumer.poll(timeout=10, max_records=1)
first = time.perf_counter()
assert records[0].offset == 0, records
consumer.close()
before = time.perf_counter()
cluster.close()
closed = time.perf_counter()
print(json.dumps({"open_ms": (opened - begin) * 1e3, "first_record_ms": (first - begin) * 1e3,
                  "close_ms": (closed - before) * 1e3}))
"""

_KILLED = """
import os, signal, sys
import streamlog
cluster = streamlog.open(sys.argv[1], sync="off")
producer = cluster.producer()
for number in range(20):
    producer.send_many(sys.argv[2], [(b"k" * 16, b"v" * 100)] * 1000)
os.kill(os.getpid(), signal.SIGKILL)
"""

_OPEN_LMDB = """
import sys, time, json, lmdb, struct
begin = time.perf_counter()
environment = lmdb.open(sys.argv[1], map_size=1 << 38, sync=False, max_spare_txns=0, lib_version=0)
opened = time.perf_counter()
with environment.begin() as transaction:
    assert transaction.get(struct.pack(">Q", 0))
first = time.perf_counter()
environment.close()
closed = time.perf_counter()
print(json.dumps({"open_ms": (opened - begin) * 1e3, "first_record_ms": (first - begin) * 1e3,
                  "close_ms": (closed - first) * 1e3}))
"""

_OPEN_SQLITE = """
import sys, time, json, sqlite3
begin = time.perf_counter()
connection = sqlite3.connect(sys.argv[1] + "/queue.db", isolation_level=None)
connection.execute("PRAGMA journal_mode=WAL")
opened = time.perf_counter()
assert connection.execute("SELECT key, value FROM log ORDER BY id LIMIT 1").fetchone()
first = time.perf_counter()
connection.close()
closed = time.perf_counter()
print(json.dumps({"open_ms": (opened - begin) * 1e3, "first_record_ms": (first - begin) * 1e3,
                  "close_ms": (closed - first) * 1e3}))
"""

_IDLE = """
import sys, time, json
import streamlog
with streamlog.open(sys.argv[1], sync="off") as cluster:
    cluster.create_topic("idle", partitions=4)
    producer, consumer = cluster.producer(), cluster.consumer()
    consumer.assign([streamlog.TopicPartition("idle", number) for number in range(4)])
    producer.send("idle", b"x").result()
    consumer.poll(timeout=0.5)
    seconds = float(sys.argv[2])
    begin, cpu = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    share = (time.process_time() - cpu) / (time.perf_counter() - begin)
    print(json.dumps({"cpu_percent": share * 100}))
"""


def _search_path() -> str:
    """This checkout first, then whatever the caller's PYTHONPATH holds."""
    here = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))


def _python(code: str, *arguments: object) -> str:
    """Run code in a bare interpreter and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": _search_path()},
    )
    if done.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return done.stdout


def _medians(tries: int, code: str, *arguments: object, before: str | None = None) -> Metrics:
    """The median of each metric over some tries; `before` runs ahead of each, with the same arguments."""
    taken: dict[str, list[float]] = {}
    for _ in range(tries):
        if before is not None:
            _python(before, *arguments)
        for name, value in json.loads(_python(code, *arguments)).items():
            taken.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in taken.items()}


def _compile_bytecode() -> None:
    """What `pip install` does: without it every interpreter started with PYTHONDONTWRITEBYTECODE compiles again."""
    import compileall

    import streamlog

    compileall.compile_dir(Path(streamlog.__file__).parent, quiet=2)


def import_time(cell: Cell) -> Metrics:
    """`import streamlog` where its core dependencies are imported already, and the dependencies alone."""
    _compile_bytecode()
    ours.library()
    code = (
        _IMPORT.format(dependencies=CORE_DEPENDENCIES)
        + 'print("{\\"import_ms\\":", (imported - before) * 1e3, "}")'
    )
    metrics = _medians(2 * TRIES, code)
    alone = "import time, sys; before = time.perf_counter()\n"
    alone += f"import {', '.join(CORE_DEPENDENCIES)}\n"
    alone += 'print("{\\"dependencies_ms\\":", (time.perf_counter() - before) * 1e3, "}")'
    return {**metrics, **_medians(2 * TRIES, alone)}


def open_small(cell: Cell, killed: bool) -> Metrics:
    """10,000 records in one partition."""
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        ours.fill(cluster, pairs(RECORDS, 100))
    path = cell.directory / "streamlog"
    return _medians(TRIES, _OPEN, path, ours.TOPIC, 0, before=_KILLED if killed else None)


def open_ten_million(cell: Cell, killed: bool) -> Metrics:
    """Ten million records in one partition; killed means that a writer was, right before each opening."""
    path = ten_million(cell) / "streamlog"
    return _medians(TRIES, _OPEN, path, ours.TOPIC, 0, before=_KILLED if killed else None)


def open_many_partitions(cell: Cell, killed: bool) -> Metrics:
    """10,000 partitions with a record each."""
    count = cell.scaled(10_000, 1_000)

    def build(path: Path) -> None:
        with ours.opened(path) as cluster:
            cluster.create_topic(ours.TOPIC, partitions=count)
            with cluster.producer() as producer:
                for number in range(count):
                    producer.send(ours.TOPIC, b"value", key=b"key", partition=number)

    path = cell.shared("many-partitions", build) / "streamlog"
    return _medians(TRIES, _OPEN, path, ours.TOPIC, count // 2, before=_KILLED if killed else None)


def open_lmdb(cell: Cell) -> Metrics:
    store = RawLmdb(cell.directory)
    for pair in pairs(RECORDS, 100):
        store.put(pack_blob([pair]))
    store.close()
    return _medians(TRIES, _OPEN_LMDB, cell.directory / "lmdb")


def open_sqlite_file(cell: Cell) -> Metrics:
    connection = open_sqlite(cell.directory)
    connection.executemany(SQLITE_INSERT, pairs(RECORDS, 100))
    connection.close()
    return _medians(TRIES, _OPEN_SQLITE, cell.directory)


def idle(cell: Cell) -> Metrics:
    """CPU share of an open cluster with a topic, a producer and a consumer, when nobody does anything."""
    ours.library()
    metrics: Metrics = json.loads(_python(_IDLE, cell.directory / "streamlog", 1.5 if cell.quick else 5))
    return metrics


_STORES = (
    ("10,000 records", open_small, 5.0),
    ("10 M records", open_ten_million, 20.0),
    ("10,000 partitions", open_many_partitions, 20.0),
)

BENCHES = [
    Bench(
        "import",
        "startup",
        [Contestant("streamlog", import_time)],
        [Goal("import_ms", "streamlog", at_most=25)],
        note="Beyond lmdb, zstandard, msgspec, google-crc32c, typing-extensions (their time beside it).",
    ),
    Bench(
        "open to first record",
        "startup",
        [
            *[
                Contestant(
                    f"streamlog, {name}{', after SIGKILL' if killed else ''}", partial(run, killed=killed)
                )
                for name, run, _ in _STORES
                for killed in (False, True)
            ],
            Contestant("raw LMDB, 10,000 records", open_lmdb),
            Contestant("SQLite, 10,000 records", open_sqlite_file),
        ],
        [
            Goal("first_record_ms", f"streamlog, {name}{suffix}", at_most=bound_ms)
            for name, _, bound_ms in _STORES
            for suffix in ("", ", after SIGKILL")
        ]
        + [Goal("close_ms", f"streamlog, {name}", at_most=2.0) for name, _, _ in _STORES],
    ),
    Bench(
        "idle",
        "startup",
        [Contestant("streamlog", idle)],
        [Goal("cpu_percent", "streamlog", at_most=1.0)],
    ),
]
