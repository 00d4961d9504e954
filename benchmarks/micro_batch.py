"""Nanoseconds a record for sealing, parsing and decoding batches, both layouts, 1 and 1000 records.

    python benchmarks/micro_batch.py [--profile]

One workload: keys of 16 bytes, values of 100 random bytes, no headers, one timestamp; best of seven rounds.
Back of the envelope (CPython 3.11): msgpack encode 16 and decode 38 ns, Record 65 ns, CRC 5 ns, copy 3 ns a
record.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

from streamlog.batch import (
    Batch,
    Codec,
    parse_batch,
    parse_header,
    records_of,
    seal_columnar,
    seal_v2_columns,
)

TIMESTAMP = 1_700_000_000_000
RANDOM = random.Random(1)


def best_ns(function: Callable[[], object], calls: int) -> float:
    """Nanoseconds a call, the best of seven rounds."""
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter_ns()
        for _ in range(calls):
            function()
        best = min(best, (time.perf_counter_ns() - start) / calls)
    return best


def rows(count: int) -> list[tuple[str, float]]:
    """The measurements for batches of `count` records, in nanoseconds a batch."""
    keys: list[bytes | None] = [b"k%015d" % number for number in range(count)]
    values: list[bytes | None] = [RANDOM.randbytes(100) for _ in range(count)]
    times = [TIMESTAMP + number // 50 for number in range(count)]
    headers = [(("trace", b"%08d" % number),) for number in range(count)]
    calls = max(20, 20_000 // count)
    measured: list[tuple[str, float]] = []

    def add(name: str, function: Callable[[], object]) -> None:
        measured.append((name, best_ns(function, calls)))

    def reading(name: str, batch: Batch) -> None:
        data = batch.encode()
        view = memoryview(b"12345678" + data)
        add(f"{name} records()", lambda: batch.records("t", 0))
        add(f"{name} parse_batch", lambda: parse_batch(data))
        add(f"{name} parse_batch + records()", lambda: parse_batch(data).records("t", 0))
        add(f"{name} records_of bytes", lambda: records_of(data, "t", 0))
        add(f"{name} records_of memoryview", lambda: records_of(view, "t", 0, position=8))
        add(f"{name} columns()", batch.columns)

    add("columnar seal", lambda: seal_columnar(keys, values, timestamps=TIMESTAMP))
    add("columnar seal, timestamps", lambda: seal_columnar(keys, values, timestamps=times))
    add("columnar seal, headers", lambda: seal_columnar(keys, values, timestamps=TIMESTAMP, headers=headers))
    add("columnar seal, zstd", lambda: seal_columnar(keys, values, timestamps=TIMESTAMP, codec=Codec.ZSTD))
    columnar = seal_columnar(keys, values, timestamps=TIMESTAMP)
    reading("columnar", columnar)
    add("columnar encode()", columnar.encode)
    add("columnar prefix + payload", lambda: columnar.prefix(42, 7) + columnar.payload)
    data = columnar.encode()
    add("parse_header", lambda: parse_header(data))
    with_times = seal_columnar(keys, values, timestamps=times)
    add("columnar records(), timestamps", lambda: with_times.records("t", 0))
    with_headers = seal_columnar(keys, values, timestamps=TIMESTAMP, headers=headers)
    add("columnar records(), headers", lambda: with_headers.records("t", 0))
    zstd = seal_columnar(keys, values, timestamps=TIMESTAMP, codec=Codec.ZSTD)
    add("columnar records(), zstd", lambda: zstd.records("t", 0))
    add("v2 seal", lambda: seal_v2_columns(keys, values, timestamps=TIMESTAMP))
    add("v2 seal, headers", lambda: seal_v2_columns(keys, values, timestamps=TIMESTAMP, headers=headers))
    v2 = seal_v2_columns(keys, values, timestamps=times)
    reading("v2", v2)
    v2_headers = seal_v2_columns(keys, values, timestamps=TIMESTAMP, headers=headers)
    add("v2 records(), headers", lambda: v2_headers.records("t", 0))
    add("columnar to_v2", columnar.to_v2)
    add("v2 to_columnar", v2.to_columnar)
    return measured


def main() -> None:
    """Print one table: ns a record in batches of 1000, ns a batch of one."""
    if "--profile" in sys.argv:
        import cProfile

        cProfile.run("rows(1000)", sort="tottime")
        return
    print(f"{'':34}{'of 1000: ns/record':>20}{'of 1: ns':>12}")
    for (name, many), (_, one) in zip(rows(1000), rows(1), strict=True):
        print(f"{name:34}{many / 1000:20.1f}{one:12.0f}")


if __name__ == "__main__":
    main()
