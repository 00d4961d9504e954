"""Log aggregation: the log files of many programs in one topic, counted by a group of consumers. Resumable.

    files --ship--> topic "lines", keyed by file --group "aggregators"--> topic "totals" (compacted) --> table

Both halves may be killed at any moment and run again; nothing is lost and nothing is counted twice:

* Each line carries its end position in the file as a header. The shipper asks the topic how far it got,
  because what is in the log was shipped, and only that.
* Each aggregator writes a partition's counts *and* the offset they reach into one record. Whoever gets the
  partition next reads that record and goes on from that offset. State and position travel together, so they
  cannot contradict each other.

    python examples/log_aggregation.py                                     a made-up sample
    python examples/log_aggregation.py /var/log/*.log --data logs-data     yours; again when they grew
    python examples/log_aggregation.py LOGS/ --data logs-data --crash-after 500   die like kill -9, then again
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import streamlog
from streamlog import Record, TopicPartition

LINES, TOTALS = "lines", "totals"
PARTITIONS = 4
LINES_PER_SEND = 1000
SEVERITY = ("trace", "debug", "info", "notice", "warn", "error", "severe", "fatal", "critical", "other")
LEVEL = re.compile(rb"\b(trace|debug|info|notice|warn|error|severe|fatal|critical)(?:ing)?\b", re.IGNORECASE)


# -- files to the topic ------------------------------------------------------------------------------------


def ship(cluster: Any, files: list[Path], complete: bool, crash_after: int | None) -> tuple[int, int]:
    """Send every line that is not in the topic yet.

    Returns how many lines that were, and how many files end inside a line.
    """
    shipped = positions_shipped(cluster)
    count = unfinished = 0
    with cluster.producer(compression="zstd") as producer:
        for path in files:
            key = str(path).encode()
            batch: list[Record] = []
            for line, end in lines_of(path, shipped.get(key, 0)):
                if not line.endswith(b"\n") and not complete:
                    unfinished += 1  # somebody may still be writing it: next time
                    break
                batch.append(Record(key=key, value=line, headers=(("end", b"%d" % end),)))
                if len(batch) == LINES_PER_SEND or crash_after == count + len(batch):
                    count += len(batch)
                    producer.send_many(LINES, batch)
                    batch = []
                if crash_after == count:
                    producer.flush()
                    print(f"crashing after {count} lines, as asked", flush=True)
                    os._exit(9)  # no goodbye: nothing is closed, no `with` is left
            count += len(batch)
            producer.send_many(LINES, batch)
    return count, unfinished


def positions_shipped(cluster: Any) -> dict[bytes, int]:
    """How far each file is in the topic already: the header of its last line."""
    positions: dict[bytes, int] = {}
    for record in everything(cluster, LINES):
        positions[record.key] = int(record.headers[0][1] or 0)
    return positions


def lines_of(path: Path, start: int) -> Iterator[tuple[bytes, int]]:
    """The lines from byte `start` on, with the position behind each."""
    with path.open("rb") as file:
        file.seek(start)
        end = start
        for line in file:
            end += len(line)
            yield line, end


# -- the topic to totals -----------------------------------------------------------------------------------


class Aggregator:
    """One member of the group: counts the lines of the partitions it is given."""

    def __init__(self, cluster: Any, producer: Any) -> None:
        self.cluster = cluster
        self.producer = producer
        self.counts: dict[int, dict[str, Counter[str]]] = {}
        self.next_offset: dict[int, int] = {}
        self.error: BaseException | None = None

    def run(self, group: Any) -> None:
        try:
            with group.consumer(
                stop_at_end=True, on_assigned=self.load, on_revoked=self.save
            ) as self.consumer:
                while not self.consumer.at_end:
                    records = self.consumer.poll(0.2)
                    for record in records:
                        self.count(record)
                    if records:
                        self.save({TopicPartition(r.topic, r.partition) for r in records})
        except BaseException as error:
            self.error = error

    def count(self, record: Record) -> None:
        found = LEVEL.search(record.value)
        level = found[1].decode().lower() if found else "other"
        self.counts[record.partition].setdefault(record.key.decode(), Counter())[level] += 1
        self.next_offset[record.partition] = record.offset + 1

    def load(self, partitions: list[TopicPartition]) -> None:
        """Take over the counts of partitions we were given, and go on exactly where they end."""
        saved = latest_totals(self.cluster)
        for tp in partitions:
            state = saved.get(tp.partition, {"next_offset": 0, "counts": {}})
            self.counts[tp.partition] = {file: Counter(levels) for file, levels in state["counts"].items()}
            self.next_offset[tp.partition] = state["next_offset"]
            self.consumer.seek(tp, state["next_offset"])

    def save(self, partitions: Any) -> None:
        for tp in sorted(partitions):
            state = {"next_offset": self.next_offset[tp.partition], "counts": self.counts[tp.partition]}
            self.producer.send(TOTALS, state, key=tp.partition)
        self.producer.flush()


def latest_totals(cluster: Any) -> dict[int, Any]:
    """The newest record of each key of the compacted topic: a table."""
    return {
        r.key: r.value
        for r in everything(cluster, TOTALS, key_deserializer="int64", value_deserializer="json")
    }


def everything(cluster: Any, topic: str, **options: Any) -> Iterator[Record]:
    reader = cluster.consumer(stop_at_end=True, **options)
    with reader:
        reader.assign([partition.topic_partition for partition in cluster.topic(topic)])
        yield from reader


# -- the program -------------------------------------------------------------------------------------------


def run(
    files: list[Path], data: str, workers: int, complete: bool = False, crash_after: int | None = None
) -> dict[str, Counter[str]]:
    """Ship, aggregate, and return level counts by file."""
    with streamlog.open(data) as cluster:
        cluster.create_topic(LINES, PARTITIONS, exist_ok=True, config={"retention.ms": -1})
        cluster.create_topic(TOTALS, 1, exist_ok=True, config={"cleanup.policy": "compact"})
        count, unfinished = ship(cluster, files, complete, crash_after)
        print(f"shipped {count} new lines of {len(files)} files")
        if unfinished:
            print(
                f"{unfinished} files end without a newline: their last lines wait for it"
                " (--complete ships them as they are)"
            )

        group = cluster.consumer_group("aggregators", [LINES])
        with cluster.producer(key_serializer="int64", value_serializer="json") as producer:
            aggregators = [Aggregator(cluster, producer) for _ in range(workers)]
            threads = [threading.Thread(target=a.run, args=(group,)) for a in aggregators]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for aggregator in aggregators:
            if aggregator.error is not None:
                raise aggregator.error

        totals: dict[str, Counter[str]] = {}
        for state in latest_totals(cluster).values():
            totals.update({file: Counter(levels) for file, levels in state["counts"].items()})
        return totals


def show(totals: dict[str, Counter[str]]) -> None:
    levels = sorted(sum(totals.values(), Counter()), key=SEVERITY.index)
    width = max((len(Path(file).name) for file in totals), default=4)
    print(f"{'file':{width}}  {'lines':>8}" + "".join(f"  {level:>8}" for level in levels))
    for file, counts in sorted(totals.items()):
        print(
            f"{Path(file).name:{width}}  {sum(counts.values()):8}"
            + "".join(f"  {counts[level]:8}" for level in levels)
        )
    print(f"{sum(sum(counts.values()) for counts in totals.values())} lines in all")


def sample(directory: Path) -> list[Path]:
    """Three small log files, always the same."""
    words = {"web": ("INFO GET /cart 200", "WARN GET /pay 503", "INFO GET / 200", "ERROR upstream timed out"),
             "db": ("INFO checkpoint done", "INFO vacuum", "ERROR deadlock detected"),
             "auth": ("NOTICE session opened", "WARN bad password", "NOTICE session closed")}  # fmt: skip
    files = []
    for name, messages in words.items():
        path = directory / f"{name}.log"
        path.write_text(
            "".join(
                f"2024-05-01T12:{n // 60:02}:{n % 60:02} {messages[n % len(messages)]}\n" for n in range(400)
            )
        )
        files.append(path)
    return files


def files_in(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [path.resolve() for path in found]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="FILE_OR_DIRECTORY", help="default: a made-up sample"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="where the topics live (default: a temporary directory)"
    )
    parser.add_argument(
        "--workers", type=int, default=3, metavar="N", help="members of the group (default 3)"
    )
    parser.add_argument(
        "--complete",
        action="store_true",
        help="nobody writes the files any more: a last line needs no newline",
    )
    parser.add_argument(
        "--crash-after", type=int, metavar="N", help="die without a goodbye after shipping N lines"
    )
    options = parser.parse_args(arguments)
    for path in options.paths:
        if not path.exists():
            parser.error(f"there is no {path}")
    with tempfile.TemporaryDirectory() as scratch:
        files = files_in(options.paths) if options.paths else sample(Path(scratch))
        if not files:
            print("no files there", file=sys.stderr)
            return 1
        totals = run(
            files, options.data or f"{scratch}/data", options.workers, options.complete, options.crash_after
        )
    show(totals)
    return 0


if __name__ == "__main__":
    sys.exit(main())
