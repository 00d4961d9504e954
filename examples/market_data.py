"""Market data: ticks by symbol; alerts from moving averages in a second topic, latest prices in a third.

    CSV files --> topic "ticks" --group "strategy"--> topic "alerts"   a price crossed its average, or jumped
                                                  --> topic "latest"   compacted: the newest price of a symbol

The window of a moving average is state, and state is a fold over the log: a member that is given a partition
reads its ticks up to the committed offset again, silently, and so has its windows back. Nothing else is kept.

Output is at least once: a crash between writing alerts and committing the ticks writes those alerts again.
Alerts carry the offset of their tick, so a reader can tell; "latest" does not care.

    python examples/market_data.py                                       made-up ticks
    python examples/market_data.py stocks.csv sp500-2000.csv             your own: a header line, then rows
    python examples/market_data.py ticks.csv --window 50 --jump 5 --data market-data
    python examples/market_data.py trades.csv --symbol-column ticker --price-column last --time-column ts

Without --symbol-column a column `symbol` or `ticker`, else the file's name; without --price-column `price` or
`close`.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

import streamlog
from streamlog import TopicPartition, serde

TICKS, ALERTS, LATEST = "ticks", "alerts", "latest"
PARTITIONS = 4
TIME_FORMATS = ("%Y-%m-%d", "%b %d %Y", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%m/%d/%Y")


class Tick(msgspec.Struct):
    """One price, as it stands in the topic (JSON, checked against this class when it is read)."""

    symbol: str
    time: str
    price: float


class Alert(msgspec.Struct):
    """Something happened to a symbol. partition and offset name the tick."""

    symbol: str
    time: str
    kind: str
    price: float
    average: float
    partition: int
    offset: int


class Columns(msgspec.Struct):
    """Which columns of the CSV files count; None: the usual names."""

    symbol: str | None = None
    price: str | None = None
    time: str | None = None


def ticks_of(path: Path, columns: Columns) -> Iterator[Tick]:
    """The rows of a file; rows without a price are left out."""
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        there = rows.fieldnames or []

        def column(wanted: str | None, usual: tuple[str, ...]) -> str | None:
            if wanted is not None and wanted not in there:
                raise SystemExit(f"{path} has no column {wanted!r}; it has {', '.join(there)}")
            return wanted or next((name for name in usual if name in there), None)

        symbol = column(columns.symbol, ("symbol", "ticker"))
        price = column(columns.price, ("price", "close"))
        time = column(columns.time, ("time", "timestamp", "date"))
        if price is None:
            raise SystemExit(
                f"{path} has no column price or close; --price-column names another of {', '.join(there)}"
            )
        for row in rows:
            try:
                yield Tick(row[symbol] if symbol else path.stem, row[time] if time else "", float(row[price]))
            except ValueError:
                continue


def timestamp_ms(time: str) -> int | None:
    """The tick's own time in ms, so that `seek_to_timestamp` works on it; None if nobody knows."""
    for form in TIME_FORMATS:
        try:
            moment = datetime.strptime(time, form).replace(tzinfo=timezone.utc)
        except ValueError:
            continue
        milliseconds = int(moment.timestamp() * 1000)
        return milliseconds if milliseconds >= 0 else None
    return None


class Strategy:
    """Moving averages of the symbols in the partitions we were given."""

    def __init__(self, cluster: Any, window: int, jump_percent: float) -> None:
        self.cluster = cluster
        self.window = window
        self.jump_percent = jump_percent
        self.windows: dict[int, dict[str, deque[float]]] = {}  # by partition: they come and go with it
        self.consumer: Any = None

    def remember(self, partitions: list[TopicPartition]) -> None:
        """Refill the windows from the log: all ticks before the position, without output."""
        for tp in partitions:
            self.windows[tp.partition] = {}
            position = self.consumer.position(tp)
            with self.cluster.consumer(value_deserializer=serde.json(Tick)) as reader:
                reader.assign([tp])
                while reader.position(tp) < position:
                    for record in reader.poll(0, max_records=500):
                        if record.offset < position:
                            self.advance(record)

    def advance(self, record: Any) -> Alert | None:
        """Take one tick in; an alert if the price crossed its average or jumped."""
        tick: Tick = record.value
        window = self.windows[record.partition].setdefault(tick.symbol, deque(maxlen=self.window + 1))
        before = window[-1] if window else tick.price
        full = len(window) > self.window
        average_before = sum(window) / len(window) if window else tick.price
        window.append(tick.price)
        average = sum(window) / len(window)
        kind = None
        if before and abs(tick.price / before - 1) * 100 >= self.jump_percent:
            kind = "jump up" if tick.price > before else "jump down"
        elif full and before < average_before and tick.price > average:
            kind = "crossed up"
        elif full and before > average_before and tick.price < average:
            kind = "crossed down"
        if kind is None:
            return None
        return Alert(
            tick.symbol, tick.time, kind, tick.price, round(average, 4), record.partition, record.offset
        )

    def run(self) -> None:
        """Work off what there is: alerts and latest prices out, then the ticks committed."""
        group = self.cluster.consumer_group(
            "strategy", [TICKS], enable_auto_commit=False, value_deserializer=serde.json(Tick)
        )
        with (
            self.cluster.producer(key_serializer="str", value_serializer="json") as producer,
            group.consumer(stop_at_end=True, on_assigned=self.remember) as self.consumer,
        ):
            while not self.consumer.at_end:
                records = self.consumer.poll(0.5)
                newest: dict[str, Tick] = {}
                for record in records:
                    newest[record.value.symbol] = record.value
                    alert = self.advance(record)
                    if alert is not None:
                        producer.send(ALERTS, alert, key=alert.symbol)
                producer.send_many(LATEST, list(newest.items()))
                producer.flush()  # first the output is safe ...
                self.consumer.commit()  # ... then its input is done


def run(
    files: list[Path], data: str, columns: Columns, window: int, jump_percent: float
) -> tuple[dict[str, Tick], list[Alert], int]:
    """Returns the latest tick of each symbol, all alerts, and how many ticks came in now."""
    with streamlog.open(data, sync="normal") as cluster:
        # Ticks carry their own, old times: retention by time would delete them at once.
        cluster.create_topic(TICKS, PARTITIONS, exist_ok=True, config={"retention.ms": -1})
        cluster.create_topic(ALERTS, 1, exist_ok=True, config={"retention.ms": -1})
        cluster.create_topic(LATEST, 1, exist_ok=True, config={"cleanup.policy": "compact"})
        count = 0
        with cluster.producer(
            key_serializer="str", value_serializer=serde.json(Tick), compression="zstd"
        ) as producer:
            for path in files:
                for tick in ticks_of(path, columns):
                    producer.send(TICKS, tick, key=tick.symbol, timestamp=timestamp_ms(tick.time))
                    count += 1
        Strategy(cluster, window, jump_percent).run()
        cluster.clean()
        latest = {tick.symbol: tick for tick in read(cluster, LATEST, Tick)}
        return latest, list(read(cluster, ALERTS, Alert)), count


def read(cluster: Any, topic: str, of_type: type) -> Iterator[Any]:
    """The values of a topic, from its start to its end."""
    with cluster.consumer(stop_at_end=True, value_deserializer=serde.json(of_type)) as reader:
        reader.assign([partition.topic_partition for partition in cluster.topic(topic)])
        for record in reader:
            yield record.value


def sample(directory: Path) -> list[Path]:
    """Two made-up symbols: a wave that crosses its average, and a line with two jumps."""
    path = directory / "ticks.csv"
    with path.open("w") as file:
        file.write("symbol,date,price\n")
        for day in range(200):
            date = datetime.fromtimestamp(day * 86_400, timezone.utc).strftime("%Y-%m-%d")
            file.write(f"WAVE,{date},{100 + abs(day % 40 - 20) / 2}\n")
            file.write(f"STEP,{date},{10 if day < 80 else 13 if day < 150 else 9}\n")
    return [path]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="CSV", help="default: made-up ticks")
    parser.add_argument(
        "--window", type=int, default=20, metavar="N", help="ticks in a moving average (default 20)"
    )
    parser.add_argument(
        "--jump",
        type=float,
        default=20,
        metavar="PERCENT",
        help="a change that is an alert by itself (default 20)",
    )
    parser.add_argument(
        "--data", metavar="DIR", help="where the topics live (default: a temporary directory)"
    )
    for name in ("symbol", "price", "time"):
        parser.add_argument(f"--{name}-column", metavar="NAME")
    options = parser.parse_args(arguments)
    for path in options.files:
        if not path.exists():
            parser.error(f"there is no {path}")
    columns = Columns(options.symbol_column, options.price_column, options.time_column)
    with tempfile.TemporaryDirectory() as scratch:
        files = options.files or sample(Path(scratch))
        latest, alerts, count = run(
            files, options.data or f"{scratch}/data", columns, options.window, options.jump
        )
    print(f"{count} ticks of {len(latest)} symbols came in; {len(alerts)} alerts in all")
    for symbol, tick in sorted(latest.items()):
        of_symbol = [alert for alert in alerts if alert.symbol == symbol]
        newest = (
            f"; newest alert: {of_symbol[-1].kind} at {of_symbol[-1].price:g} on {of_symbol[-1].time}"
            if of_symbol
            else ""
        )
        print(f"{symbol:12} latest {tick.price:10g} on {tick.time:12} {len(of_symbol):4} alerts{newest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
