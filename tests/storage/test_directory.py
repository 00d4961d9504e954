"""streamlog/storage/directory.py: FORMAT, LOCK and the directory in memory."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from streamlog.errors import (
    ClusterLockedError,
    CorruptStoreError,
    DiskFullError,
    NetworkFileSystemError,
    NotAStreamlogDirectoryError,
    ReadOnlyError,
    StorageError,
    UnsupportedFormatError,
)
from streamlog.storage import directory, filesystem
from streamlog.storage.directory import (
    ClusterDirectory,
    memory_directory,
    read_format,
    read_owner,
    sweep_memory,
)

ROOT = Path(__file__).resolve().parents[2]

HOLDER = """if True:
    import sys
    from streamlog.storage.directory import ClusterDirectory, memory_directory
    from pathlib import Path
    if sys.argv[1] == "memory":
        held = memory_directory(shared_memory=sys.argv[2])
    else:
        held = ClusterDirectory.open(sys.argv[2])
        held.announce("127.0.0.1:9092")
    print(held.path, flush=True)
    FORK
    sys.stdin.read()
    """


class Holder:
    """Another process that owns a directory until it is killed."""

    def __init__(self, kind: str, path: Path, fork: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER.replace("FORK", fork), kind, str(path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.path = Path(self.process.stdout.readline().strip())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


def test_a_new_directory_gets_a_format_and_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data"
    opened = ClusterDirectory.open(path, written_by="1.2.3")
    assert (path / "FORMAT").read_text() == "streamlog-store 1\nwritten-by 1.2.3\n"
    assert sorted(os.listdir(path)) == ["FORMAT", "LOCK"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}
    assert (opened.format.number, opened.format.written_by, opened.read_only) == (1, "1.2.3", False)
    opened.close()
    opened.close()
    again = ClusterDirectory.open(path, written_by="9.9.9")
    assert again.format.written_by == "1.2.3"
    again.close()


def test_the_places_inside(tmp_path: Path) -> None:
    opened = ClusterDirectory.open(tmp_path)
    assert opened.metadata_path == str(tmp_path / "metadata")
    assert opened.broker_path(2) == str(tmp_path / "broker-2")
    for name in ("broker-10", "broker-2", "broker-x", "metadata"):
        (tmp_path / name).mkdir()
    assert opened.brokers() == [2, 10]
    opened.close()


# -- what is not ours


def test_a_directory_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(NotAStreamlogDirectoryError, match=r"thesis\.txt.*not touched"):
        ClusterDirectory.open(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_file_or_nothing_is_no_cluster(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotAStreamlogDirectoryError, match="is a file"):
        ClusterDirectory.open(tmp_path / "file")
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(NotAStreamlogDirectoryError):
            ClusterDirectory.open(path, read_only=True)
    assert os.listdir(tmp_path) == ["file"]


def test_a_creation_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    (tmp_path / "LOCK").write_text("")
    (tmp_path / "FORMAT.new").write_text("streamlo")
    ClusterDirectory.open(tmp_path).close()
    assert read_format(tmp_path) is not None


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "FORMAT").write_text("streamlog-store 2\nwritten-by 7.0\n")
    for read_only in (False, True):
        with pytest.raises(
            UnsupportedFormatError, match=r"format 2, written by streamlog 7\.0.*Upgrade"
        ) as caught:
            ClusterDirectory.open(tmp_path, read_only=read_only)
        assert caught.value.format == 2
    assert os.listdir(tmp_path) == ["FORMAT"]


@pytest.mark.parametrize(
    "text", ["", "\n", "streamlog-store", "streamlog-store one\n", "PK\3\4", "streamlog-store -1"]
)
def test_a_damaged_format_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "FORMAT").write_text(text)
    with pytest.raises(CorruptStoreError, match="FORMAT should begin"):
        ClusterDirectory.open(tmp_path)


def test_a_directory_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ReadOnlyError, match='mode="r"'):
        ClusterDirectory.open(tmp_path)
    with pytest.raises(StorageError, match="cannot create"):
        ClusterDirectory.open("/proc/nowhere/data")


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "file_system_type", lambda path: "nfs")
    with pytest.raises(NetworkFileSystemError):
        ClusterDirectory.open(tmp_path / "data")
    ClusterDirectory.open(tmp_path / "data", allow_network_fs=True).close()


# -- the lock


def test_this_process_cannot_own_it_twice(tmp_path: Path) -> None:
    opened = ClusterDirectory.open(tmp_path)
    with pytest.raises(ClusterLockedError, match="this process") as caught:
        ClusterDirectory.open(tmp_path)
    assert (caught.value.pid, caught.value.path) == (os.getpid(), str(tmp_path))
    beside = ClusterDirectory.open(tmp_path, read_only=True)
    assert beside.read_only
    beside.close()
    opened.close()
    ClusterDirectory.open(tmp_path).close()


def test_another_process_is_told_who_owns_it_and_what_to_do(tmp_path: Path) -> None:
    holder = Holder("disk", tmp_path / "data")
    try:
        with pytest.raises(ClusterLockedError) as caught:
            ClusterDirectory.open(tmp_path / "data")
        assert caught.value.pid == holder.process.pid
        assert isinstance(caught.value, BlockingIOError)
        message = str(caught.value)
        assert f"process {holder.process.pid}" in message
        assert 'mode="r"' in message and "127.0.0.1:9092" in message
        ClusterDirectory.open(tmp_path / "data", read_only=True).close()
    finally:
        holder.kill()


def test_the_lock_dies_with_its_owner(tmp_path: Path) -> None:
    holder = Holder("disk", tmp_path)
    holder.kill()
    assert read_owner(tmp_path).pid == holder.process.pid  # the file is still there and means nothing
    opened = ClusterDirectory.open(tmp_path)
    assert opened.owner().pid == os.getpid()
    opened.close()


def test_a_forked_child_does_not_keep_a_dead_parents_lock(tmp_path: Path) -> None:
    holder = Holder("disk", tmp_path, fork="import os; os.fork() or print('CHILD', flush=True)")
    assert holder.process.stdout is not None and holder.process.stdout.readline() == "CHILD\n"
    holder.process.kill()
    holder.process.wait()
    try:
        ClusterDirectory.open(tmp_path).close()  # the child is alive: it reads our pipe
    finally:
        holder.kill()


def test_a_forked_childs_close_leaves_the_lock_alone(tmp_path: Path) -> None:
    opened = ClusterDirectory.open(tmp_path)
    child = os.fork()
    if child == 0:
        opened.announce("nowhere")
        opened.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert opened.owner().listener == ""
    with pytest.raises(ClusterLockedError):
        ClusterDirectory.open(tmp_path)
    opened.close()


def test_a_lock_file_removed_and_made_anew_is_not_mistaken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between open and flock somebody may have removed the file we opened."""
    real, calls = directory._same_file, []

    def race(descriptor: int, file: str) -> bool:
        calls.append(file)
        if len(calls) == 1:
            os.unlink(file)
        return real(descriptor, file)

    monkeypatch.setattr(directory, "_same_file", race)
    opened = ClusterDirectory.open(tmp_path)
    assert len(calls) == 2 and opened.owner().pid == os.getpid()
    with pytest.raises(ClusterLockedError):
        ClusterDirectory.open(tmp_path)
    opened.close()


def test_announcing_a_listener(tmp_path: Path) -> None:
    opened = ClusterDirectory.open(tmp_path)
    opened.announce("127.0.0.1:1234")
    assert opened.owner().listener == "127.0.0.1:1234"
    opened.announce("")
    assert opened.owner().listener == ""
    assert opened.owner().host == os.uname().nodename
    opened.close()


def test_what_lock_says_is_never_mixed_with_what_it_said(tmp_path: Path) -> None:
    opened = ClusterDirectory.open(tmp_path)
    opened.announce("a-long-name.example.org:65535", incarnation="f" * 16)
    opened.announce("b:1", incarnation="")
    assert [(owner.listener, owner.incarnation) for owner in [opened.owner()]] == [("b:1", "")]
    assert "f" not in (tmp_path / "LOCK").read_text().split("listener")[1]
    opened.close()


@pytest.mark.parametrize("path", ["/a/b", "/a/b/", "/a//./b", "a/../b", "x"])
def test_a_path_is_made_absolute_as_pathlib_does(path: str) -> None:
    """Not as os.path.abspath does: `link/..` is where the link leads to."""
    assert Path(directory._absolute(path)) == Path(path).absolute()


def test_an_unreadable_lock_says_nothing(tmp_path: Path) -> None:
    assert read_owner(tmp_path).pid is None
    (tmp_path / "LOCK").write_bytes(b"\xff\xfe pid\n\npid x\n")
    assert read_owner(tmp_path).pid is None


# -- in memory


def test_memory_is_private_and_gone_when_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "MEMORY_BYTES_MIN", 1)
    first = memory_directory("or/ders", shared_memory=str(tmp_path))
    second = memory_directory(shared_memory=str(tmp_path))
    assert first.path.parent == tmp_path and first.path != second.path
    assert first.path.name.endswith("-orders") and first.in_memory
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o700
    assert read_format(first.path) is not None
    os.mkdir(first.metadata_path)
    Path(first.metadata_path, "data.mdb").write_bytes(b"x")
    first.close()
    assert not first.path.exists() and second.path.exists()
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_memory_that_nobody_closes_is_gone_with_the_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "MEMORY_BYTES_MIN", 1)
    forgotten = memory_directory(shared_memory=str(tmp_path))
    path = forgotten.path
    del forgotten
    assert not path.exists()


def test_a_small_shared_memory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(directory, "free_bytes", lambda path: 64 << 20)
    opened = memory_directory(shared_memory=str(tmp_path))
    assert opened.path.parent == tmp_path / "tmp"
    opened.close()
    monkeypatch.setattr(directory, "free_bytes", lambda path: None)
    opened = memory_directory(shared_memory="/does/not/exist")
    assert opened.path.parent == tmp_path / "tmp"
    opened.close()


def test_leftovers_of_killed_processes_are_swept_and_the_living_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_memory_base", str)
    (tmp_path / "other").mkdir()
    holder = Holder("disk", tmp_path / f"{directory.MEMORY_PREFIX}{os.getuid()}-1-aaaa")
    dead = Holder("disk", tmp_path / f"{directory.MEMORY_PREFIX}{os.getuid()}-2-bbbb")
    (dead.path / "metadata").mkdir()
    unlocked = tmp_path / f"{directory.MEMORY_PREFIX}{os.getuid()}-3-cccc"
    unlocked.mkdir()
    try:
        dead.kill()
        assert sweep_memory(tmp_path) == 2
        assert sorted(path.name[-4:] for path in tmp_path.iterdir()) == ["aaaa", "ther"]
    finally:
        holder.kill()
    opened = memory_directory(shared_memory=str(tmp_path))
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "other", opened.path])
    opened.close()


def test_a_sweep_between_making_and_locking_is_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_memory_base", lambda shared_memory: str(tmp_path))
    real, calls = directory._lock, []

    def swept(path: str, create: bool = True) -> int:
        calls.append(path)
        if len(calls) == 1:
            os.rmdir(path)
        return real(path, create)

    monkeypatch.setattr(directory, "_lock", swept)
    opened = memory_directory()
    assert len(calls) == 2 and opened.location == calls[1]
    opened.close()


def test_a_full_disk_while_a_directory_is_made_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match="FORMAT"):
            ClusterDirectory.open(tmp_path / "c")
    ClusterDirectory.open(tmp_path / "c").close()
