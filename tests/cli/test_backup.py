"""`streamlog backup`."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog.client.reader_cluster import ReaderCluster


def test_a_copy_is_a_directory_like_any_other(cli: Any, tmp_path: Path) -> None:
    cli("produce", "logs", "--create", stdin=b"a\nb\n")
    cli("consume", "logs", "--group", "g", "--max", "1")
    copy = str(tmp_path / "copy")
    done = cli("backup", copy, "--json").json
    assert done["copy"] == copy and done["bytes"] > 0
    assert cli("consume", "logs", "--dir", copy).out == b"a\nb\n"
    assert cli("consume", "logs", "--group", "g", "--dir", copy).out == b"b\n"
    assert cli("verify", "--dir", copy).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "store"]
    assert "copied" in cli("backup", str(tmp_path / "again")).text


def test_beside_a_live_owner(run_process: Any, store: str, tmp_path: Path) -> None:
    with streamlog.open(store) as cluster:
        cluster.create_topic("logs")
        with cluster.producer() as producer:
            producer.send("logs", b"x").result(10)
            assert run_process("backup", str(tmp_path / "copy")).code == 0
    with streamlog.open(tmp_path / "copy") as cluster:
        assert cluster.topic("logs")[0].read()[0].value == b"x"


def test_errors(cli: Any, store: str, tmp_path: Path) -> None:
    cli("backup", str(tmp_path / "copy")).failed(1, f"no directory {store}")
    cli("topics", "create", "logs")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    cli("backup", str(tmp_path / "full")).failed(1, "not empty")
    assert (tmp_path / "full" / "file").read_text() == "mine"
    cli("backup", str(Path(store) / "inside")).failed(1, "lies inside")
    cli("backup", str(tmp_path / "no" / "where")).failed(1, "no directory")
    cli("backup").failed(2, "COPY")


def test_interrupted(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the process at once, and there is no copy, not even a part of one."""
    gone = threading.Event()

    def slow_copy(self: object, path: Path) -> None:
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        partial.mkdir()
        (partial / "FORMAT").write_text("half")
        os.kill(os.getpid(), signal.SIGINT)
        gone.wait(30)

    class Left(BaseException):
        pass

    def leave(code: int) -> None:
        gone.set()
        raise Left(code)

    monkeypatch.setattr(ReaderCluster, "backup", slow_copy)
    monkeypatch.setattr(os, "_exit", leave)
    cli("topics", "create", "logs")
    with pytest.raises(Left) as left:
        cli("backup", str(tmp_path / "copy"))
    assert left.value.args == (130,)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
