"""examples/market_data.py: the right alerts, the newest prices, also when the run is split in two."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import streamlog

RealData = Callable[..., "list[Path]"]


def ticks(path: Path, rows: list[tuple[str, float]]) -> Path:
    path.write_text(
        "symbol,date,price\n" + "".join(f"{s},2024-01-{n % 28 + 1:02},{p}\n" for n, (s, p) in enumerate(rows))
    )
    return path


def run(
    example: ModuleType, files: list[Path], data: Path, window: int = 3, jump: float = 50
) -> tuple[dict[str, Any], list[Any]]:
    latest, alerts, _ = example.run(files, str(data), example.Columns(), window, jump)
    return latest, alerts


def test_sample(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main([]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("400 ticks of 2 symbols came in; ")
    assert [line.split()[:3] for line in shown[1:]] == [["STEP", "latest", "9"], ["WAVE", "latest", "109.5"]]


def test_alerts(example: ModuleType, tmp_path: Path) -> None:
    rows = [("UP", p) for p in (10, 9, 8, 7, 6, 11)] + [("JUMP", 10), ("JUMP", 20), ("FLAT", 5), ("FLAT", 5)]
    latest, alerts = run(example, [ticks(tmp_path / "t.csv", rows)], tmp_path / "data", jump=90)
    assert sorted((a.symbol, a.kind, a.price, a.average) for a in alerts) == [
        ("JUMP", "jump up", 20, 15), ("UP", "crossed up", 11, 8)
    ]  # fmt: skip
    assert {symbol: tick.price for symbol, tick in latest.items()} == {"UP": 11, "JUMP": 20, "FLAT": 5}


def test_windows_are_rebuilt_from_the_log(example: ModuleType, tmp_path: Path) -> None:
    """Two runs over halves give the alerts of one run over the whole."""
    rows = [("A" if n % 3 else "B", 10 + (n * 7) % 11) for n in range(200)]
    whole = run(example, [ticks(tmp_path / "whole.csv", rows)], tmp_path / "one")
    for half in (rows[:117], rows[117:]):
        parts = run(example, [ticks(tmp_path / "half.csv", half)], tmp_path / "two")

    def essence(alerts: list[Any]) -> list[Any]:
        return sorted((a.partition, a.offset, a.symbol, a.kind, a.price, a.average) for a in alerts)

    assert len(whole[1]) > 20
    assert essence(parts[1]) == essence(whole[1])


def test_latest_is_compacted(example: ModuleType, tmp_path: Path) -> None:
    for n in range(5):
        run(example, [ticks(tmp_path / "t.csv", [("A", n), ("B", n)])], tmp_path / "data")
    with streamlog.open(tmp_path / "data") as cluster:
        kept = cluster.topic(example.LATEST)[0].read()
    # The newest batch is never looked at, so a key may stand there and once before. Offsets stay.
    assert [record.offset for record in kept] == [6, 7, 8, 9]


def test_unknown_column(example: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no column 'last'; it has symbol, date, price"):
        example.main([str(ticks(tmp_path / "t.csv", [("A", 1)])), "--price-column", "last"])


def test_real_prices(example: ModuleType, tmp_path: Path, real: RealData) -> None:
    files = real("stocks.csv", "sp500-2000.csv")
    latest, alerts = run(example, files, tmp_path / "data", window=20, jump=20)
    with files[0].open(newline="") as file:
        stocks = list(csv.DictReader(file))
    with files[1].open(newline="") as file:
        days = list(csv.DictReader(file))
    last = {row["symbol"]: float(row["price"]) for row in stocks} | {"sp500-2000": float(days[-1]["close"])}
    assert {symbol: tick.price for symbol, tick in latest.items()} == last
    with streamlog.open(tmp_path / "data") as cluster:
        assert sum(partition.high_watermark for partition in cluster.topic(example.TICKS)) == len(
            stocks
        ) + len(days)
    assert {alert.symbol for alert in alerts} == set(last)


def test_a_file_that_is_not_there(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        example.main([str(tmp_path / "nowhere")])
    assert ended.value.code == 2 and f"there is no {tmp_path}/nowhere" in capsys.readouterr().err
