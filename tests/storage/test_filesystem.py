"""streamlog/storage/filesystem.py."""

from __future__ import annotations

import errno
import os
import resource
import stat
from pathlib import Path

import pytest

from streamlog.errors import (
    DiskFullError,
    NetworkFileSystemError,
    NotAStreamlogDirectoryError,
    ReadOnlyError,
    StorageError,
)
from streamlog.storage import filesystem
from streamlog.storage.filesystem import (
    file_system_type,
    free_bytes,
    is_full,
    is_network_file_system,
    is_new,
    prepare_directory,
    refuse_network_file_system,
    sync_directory,
)

MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
23 22 0:21 / /proc rw - proc proc rw
40 22 0:40 / /home rw shared:7 master:1 - nfs4 server:/home rw
41 40 0:41 / /home/me/local rw - btrfs /dev/sdb rw
42 22 0:42 / /mnt/my\040share rw - cifs //server/share rw
43 22 0:43 / /mnt/fuse rw - fuse.sshfs host: rw
44 22 0:44 / /data rw - nfs old:/data rw
45 22 0:45 / /data rw - xfs /dev/sdc rw
nonsense
46 22 0:46 / /homes rw - zfs tank rw
"""


def test_a_place_is_new_until_something_is_there(tmp_path: Path) -> None:
    place = tmp_path / "place"
    assert is_new(place)
    place.mkdir()
    assert is_new(place)
    file = place / "file"
    file.touch()
    assert not is_new(place) and not is_new(file)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib", "ext4"),
        ("/home", "nfs4"),
        ("/home/me", "nfs4"),
        ("/home/me/local", "btrfs"),
        ("/home/me/local/deep/er", "btrfs"),
        ("/home/me/locals", "nfs4"),
        ("/homes/x", "zfs"),
        ("/mnt/my share/x", "cifs"),
        ("/mnt/fuse", "fuse.sshfs"),
        ("/data/x", "xfs"),  # the later mount hides the earlier one
    ],
)
def test_the_longest_mount_point_tells_the_type(path: str, kind: str) -> None:
    assert file_system_type(Path(path), MOUNTS) == kind


def test_no_mounts_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert file_system_type(Path("/x"), "") is None
    monkeypatch.setattr(filesystem, "MOUNTINFO", "/does/not/exist")
    assert file_system_type(Path("/x")) is None


def test_this_machine_answers(tmp_path: Path) -> None:
    assert file_system_type(tmp_path) is not None
    refuse_network_file_system(tmp_path)


@pytest.mark.parametrize(
    ("kind", "network"),
    [
        *[("nfs", True), ("nfs4", True), ("cifs", True), ("9p", True), ("fuse", True), ("fuse.sshfs", True)],
        *[("ext4", False), ("tmpfs", False), ("overlay", False), ("fuseblk", False), (None, False)],
    ],
)
def test_network_file_systems(kind: str | None, network: bool) -> None:
    assert is_network_file_system(kind) is network


def test_the_refusal_says_what_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "file_system_type", lambda path: "cifs")
    with pytest.raises(NetworkFileSystemError, match=r"cifs.*allow_network_fs=True") as caught:
        refuse_network_file_system(Path("/x"))
    assert (caught.value.path, caught.value.file_system) == ("/x", "cifs")


def test_free_space_and_full_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (free_bytes(tmp_path) or 0) > 0
    assert free_bytes(tmp_path / "nothing") is None
    file = tmp_path / "file"
    file.write_bytes(b"x" * 5000)
    assert not is_full(tmp_path, file)
    assert not is_full(tmp_path, tmp_path / "nothing")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (8000, 8000))
    assert is_full(tmp_path, file)
    monkeypatch.setattr(filesystem, "free_bytes", lambda path: 100)
    assert is_full(tmp_path, tmp_path / "nothing")


def test_directories_are_private_and_made_with_their_parents(tmp_path: Path) -> None:
    prepare_directory(tmp_path / "a" / "b", "data", read_only=False)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    prepare_directory(tmp_path / "a" / "b", "data", read_only=False)
    sync_directory(tmp_path / "a")


def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotAStreamlogDirectoryError, match="is a file"):
        prepare_directory(tmp_path / "file", "data", read_only=False)
    with pytest.raises(StorageError) as caught:
        prepare_directory(tmp_path / "file" / "below", "data", read_only=False)
    assert caught.value.errno in (20, 17)
    with pytest.raises(NotAStreamlogDirectoryError, match="no store"):
        prepare_directory(tmp_path, "data", read_only=True)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *[(errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EACCES, ReadOnlyError)],
        *[(errno.EROFS, ReadOnlyError), (errno.EIO, StorageError)],
    ],
)
def test_an_error_of_the_system_gets_a_name(code: int, kind: type[StorageError]) -> None:
    error = filesystem.failed("write x", "/d", OSError(code, os.strerror(code)))
    assert type(error) is kind and error.facts["path"] == "/d"
    assert str(error).startswith(f"cannot write x: {os.strerror(code)}")
