"""The rivals, each as plain as its own documentation shows it.

raw LMDB          one put a transaction: a packed blob of about 64 KiB, or one record. The bound, not a
                  product: no index by offset, no checksum, no consumers, no locks. Settings as streamlog's.
SQLite            WAL, synchronous=NORMAL, autocommit.
confluent-kafka   librdkafka (C) into its built-in mock cluster: memory only, the broker in a C thread of
                  this process. It is the client's cost a message, an upper bound for Kafka from Python.
Redis Streams     redis-server (another process), append-only file everysec, redis-py with hiredis.
hand-off          the same event through a bare LMDB put and a threading.Condition.
"""

from __future__ import annotations

import importlib
import shutil
import socket
import sqlite3
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import UnavailableError
from benchmarks.payload import Pair

_offset_key = struct.Struct(">Q").pack

MOCK_PARTITIONS = 4
"""librdkafka's mock creates every topic with four partitions."""
MOCK_PARTITION_BYTES_MAX = 3_000_000
"""It keeps at most 5 MB a partition and silently drops the rest; we stay well below."""


def _module(name: str, distribution: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(f"{name} is missing: pip install {distribution}") from error


# ---------------------------------------------------------------- LMDB


class RawLmdb:
    """An environment with one database of offset -> bytes; `put` is one transaction."""

    def __init__(self, directory: Path, sync: bool = False) -> None:
        lmdb = _module("lmdb", "lmdb")
        path = directory / "lmdb"
        path.mkdir(exist_ok=True)
        self.environment = lmdb.open(str(path), map_size=1 << 38, sync=sync, max_spare_txns=0, lib_version=0)
        self.next_offset = int(self.environment.stat()["entries"])

    def put(self, data: bytes) -> int:
        offset = self.next_offset
        transaction = self.environment.begin(write=True)
        transaction.put(_offset_key(offset), data)
        transaction.commit()
        self.next_offset = offset + 1
        return offset

    def get(self, offset: int) -> bytes | None:
        transaction = self.environment.begin()
        data: bytes | None = transaction.get(_offset_key(offset))
        transaction.abort()
        return data

    def blobs(self) -> Iterator[bytes]:
        """All values, each read in a transaction of its own."""
        for offset in range(self.next_offset):
            data = self.get(offset)
            if data is None:
                raise RuntimeError(f"blob {offset} is missing")
            yield data

    def close(self) -> None:
        self.environment.close()


class HandOff:
    """One record at a time, thread to thread: a put, then a notification; the reader gets it from LMDB."""

    def __init__(self, directory: Path) -> None:
        self.store = RawLmdb(directory)
        self.condition = threading.Condition()
        self.end_offset = 0

    def send(self, data: bytes) -> None:
        self.store.put(data)
        with self.condition:
            self.end_offset += 1
            self.condition.notify()

    def receive(self, offset: int, timeout: float = 10.0) -> bytes:
        with self.condition:
            while self.end_offset <= offset:
                if not self.condition.wait(timeout):
                    raise RuntimeError(f"lost wake-up: record {offset} did not come in {timeout} s")
        data = self.store.get(offset)
        if data is None:
            raise RuntimeError(f"record {offset} is missing")
        return data


# ---------------------------------------------------------------- SQLite


def open_sqlite(directory: Path, synchronous: str = "NORMAL") -> sqlite3.Connection:
    connection = sqlite3.connect(directory / "queue.db", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute("CREATE TABLE IF NOT EXISTS log (id INTEGER PRIMARY KEY, key BLOB, value BLOB)")
    return connection


SQLITE_INSERT = "INSERT INTO log (key, value) VALUES (?, ?)"


# ---------------------------------------------------------------- confluent-kafka


class MockKafka:
    """A producer with its mock cluster, and consumers into the same cluster."""

    def __init__(self, **options: object) -> None:
        self.confluent_kafka = _module("confluent_kafka", "confluent-kafka")
        self.producer = self.confluent_kafka.Producer(
            {
                "bootstrap.servers": "mock",
                "test.mock.num.brokers": 1,
                "partitioner": "consistent_random",
                "linger.ms": 5,
                "queue.buffering.max.messages": 10_000_000,
                "queue.buffering.max.kbytes": 2_000_000,
                "log_level": 0,
                **{name.replace("_", "."): value for name, value in options.items()},
            }
        )

    def create_topics(self, count: int) -> list[str]:
        """The mock creates a topic when it is first asked for."""
        names = [f"bench-{number}" for number in range(count)]
        for name in names:
            deadline = time.monotonic() + 10
            while True:
                topic = self.producer.list_topics(name, timeout=10).topics[name]
                if topic.error is None and topic.partitions:
                    break
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the mock cluster does not create {name}: {topic.error}")
                time.sleep(0.01)
        return names

    def flush(self) -> None:
        left = self.producer.flush(60)
        if left:
            raise RuntimeError(f"{left} messages were not delivered in 60 s")

    def fill(self, items: Sequence[Pair], topics: Sequence[str]) -> None:
        """Spread over all partitions of all topics, so that the mock keeps every record."""
        produce = self.producer.produce
        places = [(topic, partition) for topic in topics for partition in range(MOCK_PARTITIONS)]
        for number, (key, value) in enumerate(items):
            topic, partition = places[number % len(places)]
            produce(topic, value, key, partition)
        self.flush()

    def consumer(self, topics: Sequence[str]) -> Any:
        """At offset 0 of all partitions; the default of `fetch.queue.backoff.ms` would cost a factor 5."""
        brokers = self.producer.list_topics(timeout=10).brokers.values()
        consumer = self.confluent_kafka.Consumer(
            {
                "bootstrap.servers": ",".join(f"{broker.host}:{broker.port}" for broker in brokers),
                "group.id": "bench",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.queue.backoff.ms": 5,
                "fetch.wait.max.ms": 5,
                "log_level": 0,
            }
        )
        topic_partition = self.confluent_kafka.TopicPartition
        consumer.assign(
            [topic_partition(topic, number, 0) for topic in topics for number in range(MOCK_PARTITIONS)]
        )
        return consumer


def mock_topics_for(count: int, value_bytes: int) -> int:
    """How many topics keep `count` records below the mock's limit."""
    stored_bytes = count * (value_bytes + 16 + 16)
    return max(1, -(-stored_bytes // (MOCK_PARTITION_BYTES_MAX * MOCK_PARTITIONS)))


# ---------------------------------------------------------------- Redis Streams


@contextmanager
def redis_server(directory: Path, appendfsync: str = "everysec") -> Iterator[Any]:
    """A server of our own on a free port; yields a function that connects."""
    redis = _module("redis", "'redis[hiredis]'")
    binary = shutil.which("redis-server")
    if binary is None:
        raise UnavailableError("redis-server is missing: apt-get install redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""]
    server = subprocess.Popen(
        [binary, *arguments, "--appendonly", "yes", "--appendfsync", appendfsync], stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                redis.Redis(port=port).ping()
                break
            except redis.exceptions.ConnectionError:
                if time.monotonic() > deadline or server.poll() is not None:
                    raise
                time.sleep(0.02)
        yield lambda: redis.Redis(port=port)
    finally:
        server.kill()
        server.wait()
