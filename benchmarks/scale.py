"""Does the cost stay flat: memory, latency over partitions and depth, work beside maintenance.

memory        10 M records through send_many and poll; RssAnon sampled all the way
partitions    10 against 10,000: append and fetch latency
depth         fetch at offset 0 against the middle of 10 M records
retention     writing ten times the retained size, against writing the same without retention
maintenance   p99 of acked sends while 1 GB is deleted, retained away or compacted, against quiet sends
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.harness import Bench, Cell, Contestant, Goal, Metrics
from benchmarks.payload import Pair, latency_metrics, pairs, percentile

VALUE_BYTES = 100
RECORD_BYTES = 16 + VALUE_BYTES
NEVER_MS = 7 * 24 * 3_600_000
MAINTENANCE_S_MAX = 60.0
_NO_MAINTENANCE = {"log.retention.check.interval.ms": NEVER_MS, "log.cleaner.enable": False}
_MAINTENANCE_AT_ONCE = {"log.retention.check.interval.ms": 50, "log.cleaner.backoff.ms": 50}


def rss_anon_mb() -> float:
    """Anonymous memory: what the process itself holds; the mapped store and its page cache are not in it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


def disk_bytes(directory: Path) -> int:
    """Blocks on disk, not lengths: an LMDB file is sparse."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


# ---------------------------------------------------------------- memory


def memory(cell: Cell) -> Metrics:
    """Ten million records in and out; growth is from a fifth of the way to the end."""
    count = cell.scaled(10_000_000, 500_000)
    items = pairs(ours.CALL_RECORDS, VALUE_BYTES)
    before_mb = 0.0
    samples: dict[str, list[float]] = {"produce": [], "consume": []}
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        before_mb = rss_anon_mb()
        with cluster.producer() as producer:
            for number in range(count // len(items)):
                producer.send_many(ours.TOPIC, items)
                if not number % 50:
                    samples["produce"].append(rss_anon_mb())
        with ours.reader(cluster) as consumer:
            received, next_sample = 0, 0
            while received < count:
                received += len(consumer.poll(timeout=10.0, max_records=1_000))
                if received >= next_sample:
                    samples["consume"].append(rss_anon_mb())
                    next_sample += 50_000
    metrics = {"before_mb": before_mb, "max_mb": max(samples["produce"] + samples["consume"])}
    for phase, taken in samples.items():
        settled = taken[len(taken) // 5 :]
        metrics[f"{phase}_growth_mb"] = max(settled) - settled[0]
    return metrics


# ---------------------------------------------------------------- partitions and depth


def _timed(count: int, one: Callable[[int], object]) -> list[float]:
    clock = time.perf_counter
    seconds = []
    for number in range(count):
        before = clock()
        one(number)
        seconds.append(clock() - before)
    return seconds


def many_partitions(cell: Cell, partitions: int) -> Metrics:
    """Acked sends and one-record reads at partitions drawn at random; each partition is touched before."""
    chance = random.Random(5)
    count = cell.scaled(20_000)
    (key, value) = pairs(1, VALUE_BYTES)[0]
    with ours.opened(cell.directory) as cluster:
        started = time.perf_counter()
        topic = cluster.create_topic(ours.TOPIC, partitions=partitions)
        create_ms = (time.perf_counter() - started) * 1e3
        drawn = [chance.randrange(partitions) for _ in range(count)]
        with cluster.producer(linger_ms=0) as producer:
            for number in range(partitions):
                producer.send(ours.TOPIC, value, key=key, partition=number)
            producer.flush()
            append = _timed(
                count,
                lambda number: producer.send(ours.TOPIC, value, key=key, partition=drawn[number]).result(),
            )
        parts = [topic[number] for number in range(partitions)]
        fetch = _timed(count, lambda number: parts[drawn[number]].read(offset=0, max_records=1))
    return {
        "create_ms": create_ms,
        "append_p50_us": percentile(append, 50) * 1e6,
        "append_p99_us": percentile(append, 99) * 1e6,
        "fetch_p50_us": percentile(fetch, 50) * 1e6,
        "fetch_p99_us": percentile(fetch, 99) * 1e6,
    }


def ten_million(cell: Cell) -> Path:
    """A closed store with ten million records in one partition, filled once a run."""
    count = cell.scaled(10_000_000, 300_000)

    def build(path: Path) -> None:
        with ours.opened(path) as cluster:
            cluster.create_topic(ours.TOPIC, partitions=1)
            items = pairs(100_000, VALUE_BYTES)
            ours.fill(cluster, items, times=count // len(items))

    return cell.shared("ten-million", build)


def depth(cell: Cell) -> Metrics:
    """`Partition.read` of 100 records near the start and in the middle, in turn."""
    with ours.opened(ten_million(cell)) as cluster:
        partition = cluster.topic(ours.TOPIC)[0]
        middle = partition.high_watermark // 2
        taken: dict[str, list[float]] = {"start": [], "middle": []}
        for number in range(cell.scaled(4_000)):
            for where, offset in (("start", 0), ("middle", middle)):
                before = time.perf_counter()
                records = partition.read(offset=offset + number * 13, max_records=100)
                taken[where].append(time.perf_counter() - before)
                if records[0].offset != offset + number * 13:
                    raise RuntimeError(f"asked for {offset + number * 13}, got {records[0]!r}")
    return {f"{where}_p50_us": percentile(seconds, 50) * 1e6 for where, seconds in taken.items()}


# ---------------------------------------------------------------- retention at full write rate


def write_ten_times(cell: Cell, mixed: bool, retained: bool) -> Metrics:
    """Write ten times 64 MiB; with retention the file must stay near what is live, the rate near what it was.

    Live bytes are records from log start to high watermark; their greatest number seen is what the file has
    to hold, because LMDB reuses pages but does not give them back.
    """
    retained_bytes = cell.scaled(64 << 20, 8 << 20)
    config: dict[str, Any] = {"retention.bytes": retained_bytes if retained else -1}
    chance = random.Random(3)
    with ours.opened(cell.directory, config={"log.retention.check.interval.ms": 20}) as cluster:
        partition = cluster.create_topic(ours.TOPIC, partitions=1, config=config)[0]
        written, peak_live = 0, 0
        items = pairs(4_000, VALUE_BYTES)
        with cluster.producer() as producer:
            started = time.perf_counter()
            while written * RECORD_BYTES < 10 * retained_bytes:
                size = chance.randrange(1, 2_000) if mixed else 1_000
                producer.send_many(ours.TOPIC, items[:size])
                producer.flush()
                written += size
                peak_live = max(peak_live, partition.high_watermark - partition.log_start_offset)
            elapsed = time.perf_counter() - started
        live = partition.high_watermark - partition.log_start_offset
    file_bytes = disk_bytes(cell.directory)
    return {
        "records_per_s": written / elapsed,
        "file_bytes": file_bytes,
        "file_per_peak_live": file_bytes / (peak_live * RECORD_BYTES),
        "peak_live_per_retained": peak_live * RECORD_BYTES / retained_bytes,
        "live_per_retained": live * RECORD_BYTES / retained_bytes,
    }


# ---------------------------------------------------------------- acked sends beside maintenance

_SLOW_TOPICS: dict[str, dict[str, Any]] = {
    "deletion": {},
    "retention": {"retention.bytes": 1 << 20},
    "compaction": {
        "cleanup.policy": "compact",
        "min.cleanable.dirty.ratio": 0.01,
        "max.message.bytes": 1 << 21,
    },
}


def _big(cluster: Any, name: str, size_bytes: int) -> None:
    """A topic with one partition that keeps maintenance busy for a while."""
    cluster.create_topic(name, partitions=1, config=_SLOW_TOPICS[name])
    items: list[Pair] = pairs(20_000, 1_000)
    ours.fill(cluster, items, topic=name, times=max(1, size_bytes // (len(items) * 1_016)))


def beside_maintenance(cell: Cell, kind: str) -> Metrics:
    """p99 of `send().result()` in a quiet opening, then in one whose maintenance finds 1 GB to do.

    The store is filled with maintenance off; a second opening measures the quiet p99; a third turns
    maintenance on (or deletes the topic) and measures for a second, or until the work is seen to be done.
    Work that never shows is a failure: nothing was measured then.
    """
    seconds = 1.0 if cell.quick else 4.0
    with ours.opened(cell.directory, config=_NO_MAINTENANCE) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        _big(cluster, kind, cell.scaled(1 << 30, 64 << 20))
    with ours.opened(cell.directory, config=_NO_MAINTENANCE) as cluster:
        quiet = _acked_until(cluster, lambda elapsed: elapsed > seconds)
    config = _NO_MAINTENANCE if kind == "deletion" else _MAINTENANCE_AT_ONCE
    with ours.opened(cell.directory, config=config) as cluster:
        is_done = _begin(cluster, kind)
        busy = _acked_until(
            cluster, lambda elapsed: elapsed > MAINTENANCE_S_MAX or (elapsed > 1.0 and is_done())
        )
        if not is_done():
            raise RuntimeError(f"{kind} was not done after {MAINTENANCE_S_MAX} s")
    return {
        **latency_metrics(quiet, "quiet_"),
        **latency_metrics(busy, "busy_"),
        "quiet_records_per_s": len(quiet) / sum(quiet),
        "busy_records_per_s": len(busy) / sum(busy),
        "busy_ms": sum(busy) * 1e3,
    }


def _begin(cluster: Any, kind: str) -> Callable[[], bool]:
    """Set the maintenance off; returns how to see from outside that its work is done."""
    if kind == "deletion":
        thread = threading.Thread(target=cluster.delete_topic, args=(kind,), daemon=True)
        thread.start()
        return lambda: not thread.is_alive()
    partition = cluster.topic(kind)[0]
    if kind == "retention":
        return lambda: partition.log_start_offset > partition.high_watermark * 0.9
    # Every key comes again and again, so compaction leaves nothing at the start of the log.
    return lambda: partition.read(offset=0, max_records=1)[0].offset > 0


def _acked_until(cluster: Any, is_over: Callable[[float], bool]) -> list[float]:
    """Acked sends, one after the other; `is_over` is asked every 64 and not timed."""
    (key, value) = pairs(1, VALUE_BYTES)[0]
    clock = time.perf_counter
    taken: list[float] = []
    with cluster.producer(linger_ms=0) as producer:
        for _ in range(200):
            producer.send(ours.TOPIC, value, key=key).result()
        started = clock()
        while not is_over(clock() - started):
            for _ in range(64):
                before = clock()
                producer.send(ours.TOPIC, value, key=key).result()
                taken.append(clock() - before)
    return taken


def _maintenance_bench(kind: str) -> Bench:
    return Bench(
        f"acked sends during {kind} of 1 GB",
        "scale",
        [Contestant("streamlog", partial(beside_maintenance, kind=kind))],
        [Goal("busy_p99_us", "streamlog", at_most=10, of_metric="quiet_p99_us")],
    )


def _retention_bench(name: str, mixed: bool, at_least: float) -> Bench:
    return Bench(
        name,
        "scale",
        [
            Contestant("retention", partial(write_ten_times, mixed=mixed, retained=True)),
            Contestant("no retention", partial(write_ten_times, mixed=mixed, retained=False)),
        ],
        [
            Goal("records_per_s", "retention", at_least=at_least, of="no retention"),
            Goal("file_per_peak_live", "retention", at_most=1.25),
        ],
    )


BENCHES = [
    Bench(
        "memory of 10 M records",
        "scale",
        [Contestant("streamlog", memory)],
        [
            Goal("max_mb", "streamlog", at_most=250),
            Goal("produce_growth_mb", "streamlog", at_most=20),
            Goal("consume_growth_mb", "streamlog", at_most=20),
        ],
        repeats_max=3,
    ),
    Bench(
        "10 against 10,000 partitions",
        "scale",
        [
            Contestant("10 partitions", partial(many_partitions, partitions=10)),
            Contestant("10,000 partitions", partial(many_partitions, partitions=10_000)),
        ],
        [
            Goal("append_p50_us", "10,000 partitions", at_most=1.5, of="10 partitions"),
            Goal("fetch_p50_us", "10,000 partitions", at_most=1.5, of="10 partitions"),
        ],
    ),
    Bench(
        "fetch in the middle of 10 M records",
        "scale",
        [Contestant("streamlog", depth)],
        [Goal("middle_p50_us", "streamlog", at_most=1.5, of_metric="start_p50_us")],
    ),
    _retention_bench("retention at full write rate, one batch size", mixed=False, at_least=0.8),
    _retention_bench("retention at full write rate, mixed sizes", mixed=True, at_least=0.5),
    *[_maintenance_bench(kind) for kind in _SLOW_TOPICS],
]
