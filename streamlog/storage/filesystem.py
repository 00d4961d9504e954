"""What storage must know of the file system below it: is it local, is it full, does it keep a name.

Sources: proc(5) "/proc/[pid]/mountinfo"; lmdb.h "Caveats" (never on a remote file system).
Not implemented: detection outside Linux (there `file_system_type` answers None, and nothing is refused).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from streamlog.errors import (
    DiskFullError,
    NetworkFileSystemError,
    NotAStreamlogDirectoryError,
    ReadOnlyError,
    StorageError,
)

if TYPE_CHECKING:
    from pathlib import Path

    AnyPath = str | os.PathLike[str]

NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "drvfs", "gfs", "gfs2", "glusterfs",
        "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs",
        "vboxsf", "virtiofs", "vmhgfs",
    }
)  # fmt: skip
"""File systems whose server or host keeps the pages: locks and mapped pages of two machines do not agree
there.
"""

MOUNTINFO: Final = "/proc/self/mountinfo"
DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
DISK_FULL_BYTES: Final = 1 << 20
"""With less free space than this a failed write is called a full disk: the engine reports a short write as
EIO.
"""
FULL_CODES: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
REFUSED_CODES: Final = frozenset({errno.EACCES, errno.EROFS, errno.EPERM})


def failed(doing: str, path: AnyPath, error: OSError) -> StorageError:
    """The streamlog error for one of the operating system's, met while `doing` something for `path`."""
    text, place = f"cannot {doing}: {error.strerror}", str(path)
    if error.errno in REFUSED_CODES:
        return ReadOnlyError(text, path=place)
    return (DiskFullError if error.errno in FULL_CODES else StorageError)(text, path=place, errno=error.errno)


def is_new(path: Path) -> bool:
    """Whether there is nothing, or a directory with nothing in it."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def file_system_type(path: AnyPath, mountinfo: str | None = None) -> str | None:
    """The type of the file system that holds `path` ("ext4", "nfs4", "fuse.sshfs"); None where it cannot be
    told.
    """
    if mountinfo is None:
        try:
            with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape") as file:
                mountinfo = file.read()
        except OSError:
            return None
    place = os.path.realpath(path)
    best_length, best_type = -1, None
    for line in mountinfo.splitlines():
        # 36 35 98:0 /root /mount/point rw,noatime shared:1 - ext4 /dev/root rw
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        mount_point = _unescape(fields[4])
        inside = place == mount_point or place.startswith(mount_point.rstrip("/") + "/")
        if inside and len(mount_point) >= best_length:  # a later mount hides an earlier one on the same point
            best_length, best_type = len(mount_point), after.split(" ", 1)[0]
    return best_type


def _unescape(mount_point: str) -> str:
    if "\\" not in mount_point:
        return mount_point
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        mount_point = mount_point.replace(escape, character)
    return mount_point


def is_network_file_system(kind: str | None) -> bool:
    """True for types known to live on another machine; a FUSE mount counts, since nobody can tell what is
    behind it.
    """
    return kind is not None and (kind in NETWORK_FILE_SYSTEMS or kind == "fuse" or kind.startswith("fuse."))


def refuse_network_file_system(path: AnyPath) -> None:
    """Raise NetworkFileSystemError if `path` lies on a network file system."""
    kind = file_system_type(path)
    if is_network_file_system(kind):
        raise NetworkFileSystemError(
            f"{path} lies on a network file system ({kind}): mapped pages and locks are not reliable there "
            "and data can be lost. Use a local directory, or allow_network_fs=True at your own risk",
            path=str(path),
            file_system=kind,
        )


def free_bytes(path: AnyPath) -> int | None:
    """Bytes an unprivileged process may still write to the file system of `path`; None if unknown."""
    try:
        facts = os.statvfs(path)
    except OSError:
        return None
    return facts.f_bavail * facts.f_frsize


def is_full(path: AnyPath, file: AnyPath) -> bool:
    """True if a failed write to `file` below `path` is explained by a full disk or this process's file size
    limit.
    """
    free = free_bytes(path)
    if free is not None and free < DISK_FULL_BYTES:
        return True
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        return limit != resource.RLIM_INFINITY and os.stat(file).st_size + DISK_FULL_BYTES > limit
    except (ImportError, OSError):
        return False


def device(path: AnyPath) -> int | None:
    """What tells one mounted file system from another; None if there is no such path."""
    try:
        return os.stat(path).st_dev
    except OSError:
        return None


def sync_directory(path: AnyPath) -> None:
    """Make the names in a directory survive power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: AnyPath) -> None:
    """Make a directory for its owner only (row 26), and those above it. Raises StorageError."""
    try:
        os.makedirs(path, DIRECTORY_MODE, exist_ok=True)
    except OSError as error:
        raise failed(f"create {path}", path, error) from error


def prepare_directory(path: AnyPath, data_file: str, read_only: bool) -> None:
    """Make the directory of an environment; to read it, it must be there.

    Raises   NotAStreamlogDirectoryError, ReadOnlyError, StorageError.
    """
    if os.path.exists(path) and not os.path.isdir(path):
        raise NotAStreamlogDirectoryError(f"{path} is a file; a store is a directory", path=str(path))
    if read_only:
        if not os.path.exists(os.path.join(path, data_file)):
            raise NotAStreamlogDirectoryError(f"there is no store in {path}", path=str(path))
        return
    make_directory(path)
