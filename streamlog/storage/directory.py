"""The directory of a cluster: what it is, whose it is, and the one that lives in memory.

    data/
      FORMAT       two lines: `streamlog-store 1`, `written-by 0.1.0`. Read by people and by `read_format`.
      LOCK         held with flock by the owner; says who that is
      metadata/    an environment: the metadata log
      broker-0/    an environment per broker
      ...

Invariants:
 1. Nothing is ever written into a directory that is neither empty nor a cluster's.
 2. FORMAT appears whole (written aside, synced, renamed) and only under the lock.
 3. The lock is flock's, on an open file, never the mere existence of a file and never POSIX fcntl locks: it
    ends with its owner, also by kill -9, and no other close() in the process can lose it.
 4. A forked child drops its copy of the lock's descriptor, so that it cannot keep a dead parent's lock alive.

Sources: flock(2); ECOSYSTEM 3.2 rows 4, 5, 18, 26 and "Multi-process story"; DESIGN sections 3 and 4.
Not implemented: Windows.
"""

from __future__ import annotations

import errno
import os
import weakref
from pathlib import Path
from typing import Final

import msgspec

from streamlog.errors import (
    ClusterLockedError,
    CorruptStoreError,
    NotAStreamlogDirectoryError,
    ReadOnlyError,
    StorageError,
    UnsupportedFormatError,
)
from streamlog.storage.filesystem import (
    DIRECTORY_MODE,
    FILE_MODE,
    free_bytes,
    refuse_network_file_system,
    sync_directory,
)

FORMAT_FILE: Final = "FORMAT"
FORMAT_ASIDE: Final = "FORMAT.new"
LOCK_FILE: Final = "LOCK"
METADATA: Final = "metadata"
BROKER_PREFIX: Final = "broker-"

FORMAT_MAGIC: Final = "streamlog-store"
FORMAT_NUMBER: Final = 1

SHARED_MEMORY: Final = "/dev/shm"
MEMORY_BYTES_MIN: Final = 256 * 1024 * 1024
"""Less room than this in shared memory (a container's default is 64 MB) and the temporary directory is
used.
"""
MEMORY_PREFIX: Final = "streamlog-memory-"
_MEMORY_ATTEMPTS_MAX: Final = 16


class StoreFormat(msgspec.Struct, frozen=True, gc=False):
    """What FORMAT says."""

    number: int
    written_by: str


class Owner(msgspec.Struct, frozen=True, gc=False):
    """What LOCK says of its holder. Only flock tells whether there is one."""

    pid: int | None = None
    host: str = ""
    process: str = ""
    listener: str = ""
    incarnation: str = ""  # of this opening, see `core.group_records`


class ClusterDirectory:
    """An open cluster directory; its owner's lock is held until `close()` unless it is `read_only`."""

    __slots__ = (
        "__weakref__",
        "_descriptor",
        "_finalizer",
        "_pid",
        "format",
        "in_memory",
        "path",
        "read_only",
    )

    def __init__(self, path: Path, store_format: StoreFormat, descriptor: int, in_memory: bool) -> None:
        """Use `open` or `memory_directory`."""
        self.path = path
        self.format = store_format
        self.read_only = descriptor < 0
        self.in_memory = in_memory
        self._descriptor = descriptor
        self._pid = os.getpid()
        # The interpreter's exit counts as closing, for whoever forgets.
        self._finalizer = weakref.finalize(self, _release, path, descriptor, in_memory, self._pid)
        if descriptor >= 0:
            _locks[descriptor] = self

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        read_only: bool = False,
        allow_network_fs: bool = False,
        written_by: str = "unknown",
    ) -> ClusterDirectory:
        """Open the cluster in `path`; unless `read_only`, become its owner and create it if there is none.

        written_by:  this program's version, for FORMAT.
        Raises       NotAStreamlogDirectoryError, UnsupportedFormatError, ClusterLockedError, ReadOnlyError,
                     NetworkFileSystemError, StorageError.
        """
        path = Path(path).absolute()
        if path.exists() and not path.is_dir():
            raise NotAStreamlogDirectoryError(f"{path} is a file; a cluster is a directory", path=str(path))
        if read_only:
            if not path.exists():
                raise NotAStreamlogDirectoryError(f"{path} does not exist; nothing to read", path=str(path))
            store_format = _read_existing_format(path)
            if not allow_network_fs:
                refuse_network_file_system(path)
            return cls(path, store_format, -1, False)
        _make_directory(path)
        if not allow_network_fs:
            refuse_network_file_system(path)
        _check_ours(path)
        descriptor = _lock(path)
        try:
            store_format = _ensure_format(path, written_by)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, store_format, descriptor, False)

    @property
    def metadata_path(self) -> Path:
        return self.path / METADATA

    def broker_path(self, broker: int) -> Path:
        return self.path / f"{BROKER_PREFIX}{broker}"

    def brokers(self) -> list[int]:
        """The brokers that have a directory here, in order."""
        names = (entry.name.removeprefix(BROKER_PREFIX) for entry in self.path.glob(f"{BROKER_PREFIX}*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def owner(self) -> Owner:
        """Who LOCK says owns the cluster."""
        return read_owner(self.path)

    def announce(self, listener: str | None = None, incarnation: str | None = None) -> None:
        """Tell who comes to a locked door where the owner listens ("" = nowhere), and readers which opening this
        is; None = as it is.
        """
        if self._descriptor >= 0 and self._pid == os.getpid():
            said = self.owner()
            _write_owner(
                self._descriptor,
                said.listener if listener is None else listener,
                said.incarnation if incarnation is None else incarnation,
            )

    def close(self) -> None:
        """Let go of the lock; remove a directory in memory. Idempotent; a forked child's call changes
        nothing.
        """
        self._finalizer()


def memory_directory(name: str = "", *, shared_memory: str = SHARED_MEMORY) -> ClusterDirectory:
    """A new private directory for ":memory:", gone when closed. What killed processes left is removed first.

    name:           a word for the directory's name, for people.
    shared_memory:  used if it has MEMORY_BYTES_MIN of room, else the temporary directory.
    """
    from tempfile import mkdtemp

    base = _memory_base(shared_memory)
    sweep_memory(base)
    word = "".join(letter for letter in name if letter.isalnum())[:32]
    for _ in range(_MEMORY_ATTEMPTS_MAX):
        path = Path(mkdtemp(word and f"-{word}", f"{MEMORY_PREFIX}{os.getuid()}-{os.getpid()}-", base))
        try:
            descriptor = _lock(path)
        except (OSError, StorageError):
            continue  # somebody's sweep came between making and locking it
        try:
            return ClusterDirectory(path, _ensure_format(path, "memory"), descriptor, True)
        except BaseException:
            os.close(descriptor)
            raise
    raise StorageError(f"cannot create a directory in {base}", path=str(base))


def sweep_memory(base: Path) -> int:
    """Remove this user's memory directories whose owner is gone: their lock is free. Returns how many."""
    removed = 0
    for path in sorted(base.glob(f"{MEMORY_PREFIX}{os.getuid()}-*")):
        try:
            descriptor = _lock(path, create=False)
        except FileNotFoundError:
            try:
                path.rmdir()  # its owner died before it locked, or is about to: then it tries again
            except OSError:
                continue
        except (OSError, StorageError):
            continue
        else:
            _remove_tree(path)
            os.close(descriptor)
        removed += 1
    return removed


def read_owner(path: Path) -> Owner:
    """What LOCK says; an empty Owner if it says nothing."""
    try:
        text = (path / LOCK_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Owner()
    facts = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    pid = facts.get("pid", "")
    return Owner(
        int(pid) if pid.isdecimal() else None,
        facts.get("host", ""),
        facts.get("process", ""),
        facts.get("listener", ""),
        facts.get("incarnation", ""),
    )


def read_format(path: Path) -> StoreFormat | None:
    """What FORMAT says; None if there is none. Raises UnsupportedFormatError, CorruptStoreError."""
    try:
        text = (path / FORMAT_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(
            f"cannot read {path / FORMAT_FILE}: {error.strerror}", path=str(path), errno=error.errno
        ) from error
    lines = text.splitlines()
    magic, _, number = (lines[0] if lines else "").partition(" ")
    if magic != FORMAT_MAGIC or not number.isdecimal():
        raise CorruptStoreError(
            f"{path / FORMAT_FILE} should begin '{FORMAT_MAGIC} <number>', it begins {text[:40]!r}",
            path=str(path),
        )
    facts = dict(line.split(" ", 1) for line in lines[1:] if " " in line)
    written_by = facts.get("written-by", "unknown")
    if int(number) > FORMAT_NUMBER:
        raise UnsupportedFormatError(
            f"{path} has store format {number}, written by streamlog {written_by}; this version reads up to "
            f"{FORMAT_NUMBER}. Upgrade streamlog; the directory was not touched",
            path=str(path),
            format=int(number),
            written_by=written_by,
        )
    return StoreFormat(int(number), written_by)


# -- private -----------------------------------------------------------------------------------------


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    except PermissionError as error:
        raise ReadOnlyError(f"cannot create {path}: {error.strerror}", path=str(path)) from error
    except OSError as error:
        raise StorageError(
            f"cannot create {path}: {error.strerror}", path=str(path), errno=error.errno
        ) from error
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ReadOnlyError(f'{path} is not writable for this user; open it with mode="r"', path=str(path))


def _check_ours(path: Path) -> None:
    """Invariant 1. What a creation that was cut short leaves (LOCK, FORMAT.new) counts as empty."""
    if read_format(path) is not None:
        return
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in (LOCK_FILE, FORMAT_ASIDE))
    if foreign:
        raise NotAStreamlogDirectoryError(
            f"{path} is not empty and has no {FORMAT_FILE}: it holds {', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}. It was not touched; choose an empty or a new directory",
            path=str(path),
        )


def _read_existing_format(path: Path) -> StoreFormat:
    store_format = read_format(path)
    if store_format is None:
        raise NotAStreamlogDirectoryError(
            f"{path} has no {FORMAT_FILE}: it is not a streamlog cluster", path=str(path)
        )
    return store_format


def _ensure_format(path: Path, written_by: str) -> StoreFormat:
    store_format = read_format(path)
    if store_format is not None:
        return store_format
    aside = path / FORMAT_ASIDE
    with open(
        os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE), "w", encoding="utf-8"
    ) as file:
        file.write(f"{FORMAT_MAGIC} {FORMAT_NUMBER}\nwritten-by {written_by}\n")
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path / FORMAT_FILE)
    sync_directory(path)
    return StoreFormat(FORMAT_NUMBER, written_by)


def _lock(path: Path, create: bool = True) -> int:
    """Take the owner's lock and say who we are; the descriptor that holds it."""
    import fcntl

    file = path / LOCK_FILE
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | (os.O_CREAT if create else 0), FILE_MODE)
        except PermissionError as error:
            raise ReadOnlyError(f"cannot open {file}: {error.strerror}", path=str(path)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(descriptor, file):
                _write_owner(descriptor, "")
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES):
                raise StorageError(
                    f"cannot lock {file}: {error.strerror}", path=str(path), errno=error.errno
                ) from error
            raise _locked(path) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the file we locked was removed meanwhile


def _same_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        if not file.parent.exists():
            raise
        return False


def _locked(path: Path) -> ClusterLockedError:
    owner = read_owner(path)
    if owner.pid == os.getpid():
        who, advice = "this process", "use the cluster you have"
    else:
        who = f"process {owner.pid or '(unknown)'}{owner.process and f' ({owner.process})'}"
        if owner.host not in ("", os.uname().nodename):
            who += f" on {owner.host}"
        advice = 'stop it, read beside it with mode="r"'
        advice += f", or connect a Kafka client to {owner.listener}" if owner.listener else ""
    return ClusterLockedError(
        f"{path} is open in {who}: {advice}",
        path=str(path),
        pid=owner.pid,
        process=owner.process,
        host=owner.host,
        listener=owner.listener,
    )


def _write_owner(descriptor: int, listener: str, incarnation: str = "") -> None:
    import sys

    process = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python"
    facts = {
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "process": process,
        "listener": listener,
        "incarnation": incarnation,
    }
    text = "".join(f"{name} {fact}\n" for name, fact in facts.items() if fact)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode("utf-8", "replace"), 0)


def _memory_base(shared_memory: str) -> Path:
    base = Path(shared_memory)
    free = free_bytes(base)
    if free is not None and free >= MEMORY_BYTES_MIN and os.access(base, os.W_OK | os.X_OK):
        return base
    from tempfile import gettempdir

    return Path(gettempdir())


def _release(path: Path, descriptor: int, in_memory: bool, pid: int) -> None:
    """What closing does. Runs once, at `close()` or at the interpreter's exit."""
    if descriptor < 0 or pid != os.getpid():
        return
    _locks.pop(descriptor, None)
    if in_memory:
        _remove_tree(path)
    os.close(descriptor)


def _remove_tree(path: Path) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


# -- fork --------------------------------------------------------------------------------------------

_locks: weakref.WeakValueDictionary[int, ClusterDirectory] = weakref.WeakValueDictionary()


def _drop_locks() -> None:
    """Invariant 4: closing a copy of the descriptor leaves the parent's lock as it is."""
    for descriptor, directory in list(_locks.items()):
        directory._descriptor = -1
        os.close(descriptor)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_locks)
