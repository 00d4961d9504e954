"""examples/log_aggregation.py: counts what is in the files, once, whatever is killed in between."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import streamlog

RealData = Callable[..., "list[Path]"]
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "log_aggregation.py"


def killed(code: str) -> str:
    """Run code that ends in os._exit(9); its output."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 9, done.stderr
    return done.stdout


def test_sample(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main([]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "shipped 1200 new lines of 3 files"
    assert shown[1].split() == ["file", "lines", "info", "notice", "warn", "error"]
    assert shown[2].split() == ["auth.log", "400", "0", "267", "133", "0"]
    assert shown[-1] == "1200 lines in all"


def test_nothing_to_read(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == "no files there\n"


def test_only_what_a_file_has_grown_by_is_shipped(example: ModuleType, tmp_path: Path) -> None:
    log, data = tmp_path / "a.log", str(tmp_path / "data")
    log.write_text("INFO one\nWARN two\nERROR not yet wh")
    assert example.run([log], data, 2) == {str(log): {"info": 1, "warn": 1}}
    with log.open("a") as file:
        file.write("ole\nINFO four\n")
    assert example.run([log], data, 1) == {str(log): {"info": 2, "warn": 1, "error": 1}}
    with streamlog.open(data) as cluster:
        values = [record.value for record in example.everything(cluster, example.LINES)]
    assert values == [b"INFO one\n", b"WARN two\n", b"ERROR not yet whole\n", b"INFO four\n"]


@pytest.mark.parametrize("lines", [1, 399, 401, 1000])
def test_killed_while_shipping(example: ModuleType, tmp_path: Path, lines: int) -> None:
    files, data = example.sample(tmp_path), str(tmp_path / "data")
    told = killed(f"""
import sys
sys.path.insert(0, {str(EXAMPLE.parent)!r})
import log_aggregation as e
e.main([*{list(map(str, files))}, '--data', {data!r}, '--crash-after', '{lines}'])
""")
    assert told == f"crashing after {lines} lines, as asked\n"
    assert example.run(files, data, 3) == example.run(files, str(tmp_path / "quiet"), 3)


@pytest.mark.parametrize("saves", [0, 1, 3])
def test_killed_while_aggregating(example: ModuleType, tmp_path: Path, saves: int) -> None:
    files, data = example.sample(tmp_path), str(tmp_path / "data")
    killed(f"""
import os, sys
sys.path.insert(0, {str(EXAMPLE.parent)!r})
import log_aggregation as e
from pathlib import Path
save, left = e.Aggregator.save, [{saves}]
def dying(self, partitions):
    if not left[0]:
        os._exit(9)  # what was counted since the last save dies with us
    left[0] -= 1
    save(self, partitions)
e.Aggregator.save = dying
e.run([Path(p) for p in {list(map(str, files))}], {data!r}, 1)
""")
    assert example.run(files, data, 2) == example.run(files, str(tmp_path / "quiet"), 1)


def test_real_logs(example: ModuleType, tmp_path: Path, real: RealData) -> None:
    files = real("Apache_2k.log", "HDFS_2k.log", "OpenSSH_2k.log", "Spark_2k.log", "Zookeeper_2k.log")
    totals = example.run(files, str(tmp_path / "data"), 3, complete=True)
    assert {Path(file).name: sum(counts.values()) for file, counts in totals.items()} == {
        file.name: len(file.read_bytes().rstrip(b"\n").split(b"\n")) for file in files
    }
    apache = files[0].read_bytes()
    assert totals[str(files[0])]["error"] == apache.count(b"[error]")


def test_a_file_that_is_not_there(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        example.main([str(tmp_path / "nowhere")])
    assert ended.value.code == 2 and f"there is no {tmp_path}/nowhere" in capsys.readouterr().err
