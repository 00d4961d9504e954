"""streamlog/storage/backup.py: a copy is whole or not there. What it holds is tested in test_env.py (row
23).
"""

from __future__ import annotations

from pathlib import Path

import lmdb
import pytest

from streamlog.errors import DiskFullError, StorageError
from streamlog.storage.backup import copy_into
from streamlog.storage.env import Environment


class FailingEngine:
    def copy(self, path: str, compact: bool) -> None:
        Path(path, "data.mdb").write_bytes(b"half")
        error = lmdb.Error("mdb_env_copy2")
        error.code = 28  # type: ignore[misc]
        raise error


def test_a_failed_copy_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(lmdb.Error):
        copy_into(FailingEngine(), tmp_path / "new", "data.mdb")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(lmdb.Error):
        copy_into(FailingEngine(), tmp_path, "data.mdb")
    assert list(tmp_path.iterdir()) == []


def test_the_failure_has_a_name(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Environment, "_live_engine", lambda self: FailingEngine())
    with pytest.raises(DiskFullError):
        environment.backup(tmp_path / "copy")


def test_nothing_is_overwritten(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"precious")
    with pytest.raises(StorageError, match="not empty"):
        environment.backup(tmp_path)
    assert (tmp_path / "data.mdb").read_bytes() == b"precious"
