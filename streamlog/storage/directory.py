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
from typing import TYPE_CHECKING, Final

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
    FILE_MODE,
    failed,
    free_bytes,
    make_directory,
    refuse_network_file_system,
    sync_directory,
)

if TYPE_CHECKING:
    from pathlib import Path

    AnyPath = str | os.PathLike[str]

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
        "_owner",
        "_pid",
        "format",
        "in_memory",
        "location",
        "read_only",
    )

    def __init__(self, location: str, store_format: StoreFormat, descriptor: int, in_memory: bool) -> None:
        """Use `open` or `memory_directory`."""
        self.location = location
        self.format = store_format
        self.read_only = descriptor < 0
        self.in_memory = in_memory
        self._descriptor = descriptor
        self._owner = Owner()
        self._pid = os.getpid()
        # The interpreter's exit counts as closing, for whoever forgets.
        self._finalizer = weakref.finalize(self, _release, location, descriptor, in_memory, self._pid)
        if descriptor >= 0:
            _locks[descriptor] = self

    @classmethod
    def open(
        cls,
        path: AnyPath,
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
        place = _absolute(path)
        if os.path.exists(place) and not os.path.isdir(place):
            raise NotAStreamlogDirectoryError(f"{place} is a file; a cluster is a directory", path=place)
        if read_only:
            if not os.path.exists(place):
                raise NotAStreamlogDirectoryError(f"{place} does not exist; nothing to read", path=place)
            store_format = _read_existing_format(place)
            if not allow_network_fs:
                refuse_network_file_system(place)
            return cls(place, store_format, -1, False)
        _make_directory(place)
        if not allow_network_fs:
            refuse_network_file_system(place)
        _check_ours(place)
        descriptor = _lock(place)
        try:
            store_format = _ensure_format(place, written_by)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError) and not isinstance(error, StorageError):
                raise failed(f"write {FORMAT_FILE} in {place}", place, error) from error
            raise
        return cls(place, store_format, descriptor, False)

    @property
    def path(self) -> Path:
        """The directory. Inside the library `location` is used: importing pathlib takes milliseconds."""
        from pathlib import Path

        return Path(self.location)

    @property
    def metadata_path(self) -> str:
        return os.path.join(self.location, METADATA)

    def broker_path(self, broker: int) -> str:
        return os.path.join(self.location, f"{BROKER_PREFIX}{broker}")

    def brokers(self) -> list[int]:
        """The brokers that have a directory here, in order."""
        names = (
            name.removeprefix(BROKER_PREFIX)
            for name in os.listdir(self.location)
            if name.startswith(BROKER_PREFIX)
        )
        return sorted(int(number) for number in names if number.isdecimal())

    def owner(self) -> Owner:
        """Who LOCK says owns the cluster."""
        return read_owner(self.location)

    def announce(self, listener: str | None = None, incarnation: str | None = None) -> None:
        """Tell who comes to a locked door where the owner listens ("" = nowhere), and readers which opening this
        is; None = as it is.
        """
        if self._descriptor >= 0 and self._pid == os.getpid():
            said = self._owner
            self._owner = _write_owner(
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
        path = mkdtemp(word and f"-{word}", f"{MEMORY_PREFIX}{os.getuid()}-{os.getpid()}-", base)
        try:
            descriptor = _lock(path)
        except (OSError, StorageError):
            continue  # somebody's sweep came between making and locking it
        try:
            return ClusterDirectory(path, _ensure_format(path, "memory"), descriptor, True)
        except BaseException:
            os.close(descriptor)
            raise
    raise StorageError(f"cannot create a directory in {base}", path=base)


def sweep_memory(base: AnyPath) -> int:
    """Remove this user's memory directories whose owner is gone: their lock is free. Returns how many."""
    removed = 0
    mine = f"{MEMORY_PREFIX}{os.getuid()}-"
    for place in sorted(os.path.join(base, name) for name in os.listdir(base) if name.startswith(mine)):
        try:
            descriptor = _lock(place, create=False)
        except FileNotFoundError:
            try:
                os.rmdir(place)  # its owner died before it locked, or is about to: then it tries again
            except OSError:
                continue
        except (OSError, StorageError):
            continue
        else:
            _remove_tree(place)
            os.close(descriptor)
        removed += 1
    return removed


def read_owner(path: AnyPath) -> Owner:
    """What LOCK says; an empty Owner if it says nothing."""
    try:
        text = _read_text(os.path.join(path, LOCK_FILE))
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


def read_format(path: AnyPath) -> StoreFormat | None:
    """What FORMAT says; None if there is none. Raises UnsupportedFormatError, CorruptStoreError."""
    file = os.path.join(path, FORMAT_FILE)
    try:
        text = _read_text(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failed(f"read {file}", path, error) from error
    lines = text.splitlines()
    magic, _, number = (lines[0] if lines else "").partition(" ")
    if magic != FORMAT_MAGIC or not number.isdecimal():
        raise CorruptStoreError(
            f"{file} should begin '{FORMAT_MAGIC} <number>', it begins {text[:40]!r}", path=str(path)
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


def _absolute(path: AnyPath) -> str:
    """As pathlib has it: `..` stays, since it may lead out of a symbolic link."""
    place = os.path.join(os.getcwd(), path)
    return place if "/../" in f"{place}/" else os.path.normpath(place)


def _read_text(file: str) -> str:
    with open(file, "rb") as opened:
        return opened.read().decode("utf-8", "replace")


def _make_directory(path: str) -> None:
    make_directory(path)
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ReadOnlyError(f'{path} is not writable for this user; open it with mode="r"', path=path)


def _check_ours(path: str) -> None:
    """Invariant 1. What a creation that was cut short leaves (LOCK, FORMAT.new) counts as empty."""
    if read_format(path) is not None:
        return
    foreign = sorted(name for name in os.listdir(path) if name not in (LOCK_FILE, FORMAT_ASIDE))
    if foreign:
        raise NotAStreamlogDirectoryError(
            f"{path} is not empty and has no {FORMAT_FILE}: it holds {', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}. It was not touched; choose an empty or a new directory",
            path=path,
        )


def _read_existing_format(path: str) -> StoreFormat:
    store_format = read_format(path)
    if store_format is None:
        raise NotAStreamlogDirectoryError(
            f"{path} has no {FORMAT_FILE}: it is not a streamlog cluster", path=path
        )
    return store_format


def _ensure_format(path: str, written_by: str) -> StoreFormat:
    store_format = read_format(path)
    if store_format is not None:
        return store_format
    aside = os.path.join(path, FORMAT_ASIDE)
    with open(
        os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE), "w", encoding="utf-8"
    ) as file:
        file.write(f"{FORMAT_MAGIC} {FORMAT_NUMBER}\nwritten-by {written_by}\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(aside, os.path.join(path, FORMAT_FILE))
    sync_directory(path)
    return StoreFormat(FORMAT_NUMBER, written_by)


def _lock(path: str, create: bool = True) -> int:
    """Take the owner's lock and say who we are; the descriptor that holds it."""
    import fcntl

    file = os.path.join(path, LOCK_FILE)
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | (os.O_CREAT if create else 0), FILE_MODE)
        except PermissionError as error:
            raise failed(f"open {file}", path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(descriptor, file):
                _write_owner(descriptor, "")
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES):
                raise failed(f"lock {file}", path, error) from error
            raise _locked(path) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the file we locked was removed meanwhile


def _same_file(descriptor: int, file: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        if not os.path.exists(os.path.dirname(file)):
            raise
        return False


def _locked(path: str) -> ClusterLockedError:
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
        path=path,
        pid=owner.pid,
        process=owner.process,
        host=owner.host,
        listener=owner.listener,
    )


def _write_owner(descriptor: int, listener: str, incarnation: str = "") -> Owner:
    import sys

    process = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python"
    owner = Owner(os.getpid(), os.uname().nodename, process, listener, incarnation)
    text = "".join(
        f"{name} {getattr(owner, name)}\n" for name in Owner.__struct_fields__ if getattr(owner, name)
    )
    # One write, the rest of what stood there becomes empty lines: a reader never finds half of it, and cutting a file
    # short takes a file system longer than all of this (0.3 ms on ext4).
    os.pwrite(descriptor, text.encode("utf-8", "replace").ljust(os.fstat(descriptor).st_size, b"\n"), 0)
    return owner


def _memory_base(shared_memory: str) -> str:
    free = free_bytes(shared_memory)
    if free is not None and free >= MEMORY_BYTES_MIN and os.access(shared_memory, os.W_OK | os.X_OK):
        return shared_memory
    from tempfile import gettempdir

    return gettempdir()


def _release(path: str, descriptor: int, in_memory: bool, pid: int) -> None:
    """What closing does. Runs once, at `close()` or at the interpreter's exit."""
    if descriptor < 0 or pid != os.getpid():
        return
    _locks.pop(descriptor, None)
    if in_memory:
        _remove_tree(path)
    os.close(descriptor)


def _remove_tree(path: str) -> None:
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
