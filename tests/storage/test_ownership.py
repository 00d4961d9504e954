"""streamlog/storage/ownership.py: who owns a directory, without touching its lock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streamlog.errors import ClusterLockedError
from streamlog.storage import ownership
from streamlog.storage.directory import LOCK_FILE, ClusterDirectory
from streamlog.storage.ownership import live_owner


@pytest.fixture(params=["proc", "pid"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the list of locks, and without one (macOS)."""
    if request.param == "pid":
        monkeypatch.setattr(ownership, "PROC_LOCKS", "/nowhere/locks")
    elif not Path(ownership.PROC_LOCKS).exists():
        pytest.skip("no /proc/locks here")
    return str(request.param)


def test_the_owner_is_seen_while_it_lives(tmp_path: Path, by: str) -> None:
    assert live_owner(tmp_path) is None
    directory = ClusterDirectory.open(tmp_path)
    directory.announce(listener="127.0.0.1:9092", incarnation="abc")
    owner = live_owner(tmp_path)
    assert owner is not None
    assert (owner.pid, owner.listener, owner.incarnation) == (os.getpid(), "127.0.0.1:9092", "abc")
    directory.close()
    if by == "proc":
        assert live_owner(tmp_path) is None, "the process lives, but owns it no more"


def test_a_dead_process_owns_nothing(tmp_path: Path, by: str) -> None:
    ClusterDirectory.open(tmp_path).close()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    (tmp_path / LOCK_FILE).write_text(f"pid {child}\nhost {os.uname().nodename}\n")
    assert live_owner(tmp_path) is None


def test_asking_turns_no_owner_away(tmp_path: Path, by: str) -> None:
    ClusterDirectory.open(tmp_path).close()
    live_owner(tmp_path)
    ClusterDirectory.open(tmp_path).close()
    with ClosingLater(ClusterDirectory.open(tmp_path)):
        live_owner(tmp_path)
        with pytest.raises(ClusterLockedError):
            ClusterDirectory.open(tmp_path)


class ClosingLater:
    def __init__(self, directory: ClusterDirectory) -> None:
        self.directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.directory.close()


def test_announcing_one_fact_keeps_the_other(tmp_path: Path) -> None:
    directory = ClusterDirectory.open(tmp_path)
    directory.announce(incarnation="abc")
    directory.announce(listener="host:1")
    directory.announce(listener="")
    assert directory.owner().incarnation == "abc"
    assert directory.owner().listener == ""
    directory.close()
