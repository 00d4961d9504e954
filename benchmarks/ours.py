"""streamlog as the benchmarks use it: only the public contract (DESIGN section 2), imported late.

The late import keeps import and start-up out of everybody else's process, and lets the rivals be measured
where streamlog itself cannot be imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness import UnavailableError
from benchmarks.payload import Pair, chunks

TOPIC = "bench"
CALL_RECORDS = 1_000
"""Records handed over in one `send_many` call."""


def library() -> Any:
    try:
        module = importlib.import_module("streamlog")
    except ImportError as error:
        raise UnavailableError(f"streamlog cannot be imported: {error}") from error
    if not hasattr(module, "open"):
        raise UnavailableError("this streamlog has no open() yet")
    return module


@contextmanager
def opened(directory: Path, sync: str = "off", **options: Any) -> Iterator[Any]:
    with library().open(directory / "streamlog", sync=sync, **options) as cluster:
        yield cluster


def topic_partition(partition: int = 0, topic: str = TOPIC) -> Any:
    return library().TopicPartition(topic, partition)


def fill(cluster: Any, items: list[Pair], topic: str = TOPIC, times: int = 1, **options: Any) -> None:
    """Produce `items`, `times` over, as fast as it goes."""
    with cluster.producer(**options) as producer:
        for _ in range(times):
            for chunk in chunks(items, CALL_RECORDS):
                producer.send_many(topic, chunk)


def reader(cluster: Any, partitions: int = 1, topic: str = TOPIC, **options: Any) -> Any:
    """A consumer without group at the start of all partitions, that ends at their end."""
    options = {"stop_at_end": True, "auto_offset_reset": "earliest", **options}
    consumer = cluster.consumer(**options)
    consumer.assign([topic_partition(number, topic) for number in range(partitions)])
    return consumer


def read_all(consumer: Any, count: int, max_records: int = 1_000) -> int:
    """Poll until `count` records came; an empty poll of ten seconds is a failure."""
    received = 0
    while received < count:
        records = consumer.poll(timeout=10.0, max_records=max_records)
        if not records:
            raise RuntimeError(f"poll came back empty after {received} of {count} records")
        received += len(records)
    return received
