"""How many bytes a record takes, beyond its key and value, and what zstd makes of a real log file."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks import ours
from benchmarks.harness import Bench, Cell, Contestant, Goal, Metrics, UnavailableError
from benchmarks.payload import KEY_BYTES, chunks, pack_blob, pairs, records_in_blob
from benchmarks.rivals import SQLITE_INSERT, RawLmdb, open_sqlite
from benchmarks.scale import disk_bytes

VALUE_BYTES = 100
LOG_FILE_TIMES = 20
LOG_FILE_PLACES = ("shared/data/Apache_2k.log", "../shared/data/Apache_2k.log")


def _beyond(used_bytes: int, count: int) -> Metrics:
    return {
        "bytes_per_record": used_bytes / count,
        "overhead_bytes_per_record": used_bytes / count - KEY_BYTES - VALUE_BYTES,
    }


def overhead(cell: Cell) -> Metrics:
    """Batches of exactly 1,000 records; what an empty topic takes already is subtracted."""
    count = cell.scaled(1_000_000)
    items = pairs(1_000, VALUE_BYTES)
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
    empty_bytes = disk_bytes(cell.directory)
    with ours.opened(cell.directory) as cluster, cluster.producer(batch_size=1 << 18) as producer:
        for _ in range(count // len(items)):
            producer.send_many(ours.TOPIC, items)
            producer.flush()
    return _beyond(disk_bytes(cell.directory) - empty_bytes, count)


def overhead_lmdb(cell: Cell) -> Metrics:
    count = cell.scaled(1_000_000)
    store = RawLmdb(cell.directory)
    for chunk in chunks(pairs(count, VALUE_BYTES), records_in_blob(VALUE_BYTES)):
        store.put(pack_blob(chunk))
    store.close()
    return _beyond(disk_bytes(cell.directory), count)


def overhead_sqlite(cell: Cell) -> Metrics:
    count = cell.scaled(1_000_000)
    connection = open_sqlite(cell.directory)
    connection.execute("BEGIN")
    connection.executemany(SQLITE_INSERT, pairs(count, VALUE_BYTES))
    connection.execute("COMMIT")
    connection.close()
    return _beyond(disk_bytes(cell.directory), count)


def log_file() -> Path:
    """Apache_2k.log: given by STREAMLOG_BENCH_LOG, else beside the repository."""
    given = os.environ.get("STREAMLOG_BENCH_LOG")
    root = Path(__file__).resolve().parent.parent
    for path in [Path(given)] if given else [root / place for place in LOG_FILE_PLACES]:
        if path.is_file():
            return path
    raise UnavailableError("Apache_2k.log is not here: set STREAMLOG_BENCH_LOG to its path")


def log_file_zstd(cell: Cell) -> Metrics:
    """The file's lines, twenty times over and flushed each time: pages are counted, fixed costs are not."""
    data = log_file().read_bytes()
    items = [(None, line) for line in data.splitlines(keepends=True)]
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        with cluster.producer(compression="zstd") as producer:
            producer.send_many(ours.TOPIC, items)
    one_bytes = disk_bytes(cell.directory)
    with ours.opened(cell.directory) as cluster, cluster.producer(compression="zstd") as producer:
        for _ in range(LOG_FILE_TIMES):
            producer.send_many(ours.TOPIC, items)
            producer.flush()
    stored_bytes = (disk_bytes(cell.directory) - one_bytes) / LOG_FILE_TIMES
    return {"stored_bytes": stored_bytes, "part_of_size": stored_bytes / len(data)}


def log_file_zstd_alone(cell: Cell) -> Metrics:
    """The whole file through zstd at its default level, without records."""
    import zstandard

    data = log_file().read_bytes()
    stored_bytes = len(zstandard.ZstdCompressor().compress(data))
    return {"stored_bytes": stored_bytes, "part_of_size": stored_bytes / len(data)}


BENCHES = [
    Bench(
        "bytes on disk, 1,000-record batches",
        "disk",
        [
            Contestant("streamlog", overhead),
            Contestant("raw LMDB", overhead_lmdb),
            Contestant("SQLite", overhead_sqlite),
        ],
        [Goal("overhead_bytes_per_record", "streamlog", at_most=8)],
        repeats_max=2,
    ),
    Bench(
        "Apache_2k.log with zstd",
        "disk",
        [Contestant("streamlog", log_file_zstd), Contestant("zstd alone", log_file_zstd_alone)],
        [Goal("part_of_size", "streamlog", at_most=1 / 6)],
        repeats_max=2,
    ),
]
