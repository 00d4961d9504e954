"""What the storage floor costs over raw lmdb, in microseconds a call: `python benchmarks/micro_storage.py
[directory]`.

Best of seven rounds, sync="off", so that the disk does not speak. Back of the envelope: a small commit is one
leaf copied, one meta page written (7 us); a read is a reader slot, four pages of tree, one copy (1 us).
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import lmdb

from streamlog.batch import Batch, parse_batch, seal_columnar
from streamlog.storage import log
from streamlog.storage.env import Environment
from streamlog.storage.keys import BATCH_START, CHECKPOINT_BASE, pack_key

ROUNDS = 7
LOG_ID = 1_000_000
RAW_LOG_ID = 1_000_001


def microseconds(action: Callable[[], object], times: int) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        start = perf_counter()
        for _ in range(times):
            action()
        best = min(best, (perf_counter() - start) / times)
    return best * 1e6


def batch_of(records: int) -> Batch:
    return seal_columnar(
        [b"k%015d" % number for number in range(records)],
        [os.urandom(100) for _ in range(records)],
        timestamps=1,
    )


class Bench:
    """An environment with 2,000 other logs in it, ours, and the raw engine below."""

    def __init__(self, path: Path) -> None:
        self.environment = Environment.open(path, sync="off")
        self.raw: lmdb.Environment = self.environment._engine
        self.offset = self.raw_offset = 0
        transaction = self.environment.write()
        small = batch_of(1)
        for log_id in range(2_000):
            for offset in range(5):
                log.append(transaction, log_id, small, offset, 0, 1)
        transaction.commit()

    def append(self, batch: Batch) -> Callable[[], None]:
        environment = self.environment

        def run() -> None:
            base = self.offset
            self.offset = base + batch.record_count
            transaction = environment.write()
            log.append(transaction, LOG_ID, batch, base, 0, 1)
            log.put_checkpoint(transaction, LOG_ID, log.LogCheckpoint(0, self.offset, self.offset, 5, 1, 0))
            transaction.commit()

        return run

    def raw_append(self, batch: Batch) -> Callable[[], None]:
        value, checkpoint = bytes(BATCH_START) + batch.encode(), bytes(45)

        def run() -> None:
            self.raw_offset += batch.record_count
            transaction = self.raw.begin(write=True)
            transaction.put(pack_key(RAW_LOG_ID, self.raw_offset - 1), value)
            transaction.put(pack_key(RAW_LOG_ID, CHECKPOINT_BASE), checkpoint)
            transaction.commit()

        return run

    def read(
        self, offset: int, end_offset: int, bytes_max: int, check_crcs: bool = True
    ) -> Callable[[], None]:
        environment = self.environment

        def run() -> None:
            with environment.snapshot() as snapshot:
                log.read(snapshot, LOG_ID, offset, end_offset, bytes_max, check_crcs)

        return run

    def raw_read(self, offset: int, parse: bool) -> Callable[[], None]:
        def run() -> None:
            transaction = self.raw.begin(buffers=True)
            cursor = transaction.cursor()
            cursor.set_range(pack_key(LOG_ID, offset))
            _, value = cursor.item()
            if parse:
                parse_batch(value, position=BATCH_START)
            else:
                bytes(value)
            transaction.abort()

        return run

    def snapshot(self) -> None:
        with self.environment.snapshot():
            pass

    def raw_snapshot(self) -> None:
        self.raw.begin(buffers=True).abort()

    def look_up(self) -> None:
        with self.environment.snapshot() as snapshot:
            log.offset_for_timestamp(snapshot, LOG_ID, 0, self.offset, 2)


def main() -> None:
    path = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
    print(f"{platform.machine()}, CPython {platform.python_version()}, lmdb {lmdb.__version__}, {path}")
    bench = Bench(path / "env")
    small, large = batch_of(1), batch_of(1000)
    rows: list[tuple[str, Callable[[], object], int]] = [
        (f"commit, batch of {small.size_bytes} B: raw", bench.raw_append(small), 3000),
        (f"commit, batch of {small.size_bytes} B: streamlog", bench.append(small), 3000),
        (f"commit, batch of {large.size_bytes} B: raw", bench.raw_append(large), 100),
        (f"commit, batch of {large.size_bytes} B: streamlog", bench.append(large), 100),
        ("begin and abort a read: raw", bench.raw_snapshot, 20000),
        ("begin and abort a read: streamlog", bench.snapshot, 20000),
        ("read one small batch: raw, copied", bench.raw_read(500, False), 20000),
        ("read one small batch: raw, parsed", bench.raw_read(500, True), 20000),
        ("read one small batch: streamlog", bench.read(500, 501, 1 << 20), 20000),
        ("read one small batch: streamlog, no CRC", bench.read(500, 501, 1 << 20, False), 20000),
        ("read 100 small batches: streamlog", bench.read(500, 600, 1 << 20), 500),
        ("look up a timestamp that is not there", bench.look_up, 1000),
    ]
    for name, action, times in rows:
        print(f"{name:52} {microseconds(action, times):9.2f} us")
    bench.environment.close()
    shutil.rmtree(path)


if __name__ == "__main__":
    main()
