"""The environment: one LMDB file, its transactions, and a name for everything that can go wrong with them.

The only module that imports lmdb. Above it there are keys and values (`keys`) and logs (`log`), nothing else.

    Environment.write()    -> WriteTransaction   one at a time, its owner's turn lock sees to that
    Environment.snapshot() -> Snapshot           any number, from any thread, short: begin, copy, end

Invariants:
 1. A commit is whole or did not happen; its number, `WriteTransaction.id`, is `last_transaction_id()` then.
 2. Memory handed out by a cursor belongs to its transaction: whoever reads copies before it ends.
 3. The engine's environment is closed by nobody while a snapshot is open: `close()` refuses new ones, the last
    open one closes the file. Readers append to `_readers` before they look at `_begin`, and `close()` replaces
    `_begin` before it looks at `_readers`; so one of the two sees the other.
 4. A forked child never touches the engine: its copy of the environment only raises StoreForkedError.
 5. Every engine error leaves this floor under a streamlog name.

Sources: lmdb.h "Caveats"; ECOSYSTEM 3.2, whose row numbers stand at the branches below.
Not implemented: growing the map (reserved large at opening; row 1, 2), named databases (row 13), several writers.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections import deque
from struct import error as struct_error
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

import lmdb
import msgspec

from streamlog.errors import (
    ClosedError,
    ConfigError,
    CorruptStoreError,
    ReadOnlyError,
    StoreForkedError,
    StoreFullError,
)
from streamlog.storage import filesystem
from streamlog.storage.failure import named
from streamlog.storage.statistics import EnvironmentStats, is_being_read, live_pages, read_stats

if TYPE_CHECKING:
    from pathlib import Path

    Cursor = lmdb.Cursor[memoryview]
    Transaction = lmdb.Transaction[memoryview]

Sync = Literal["full", "normal", "off"]

DATA_FILE: Final = "data.mdb"
LIB_VERSION: Final = 0  # row 22: LMDB 0.9's file format, whatever LMDB_DEFAULT_LIB_VERSION says
MAP_BYTES: Final = (1 << 40, 1 << 38, 1 << 34, 1 << 30)
DISK_BYTES_MIN: Final = 1 << 20
RECLAIM_RESERVE_SHARE: Final = 16
RECLAIM_RESERVE_BYTES: Final = (1 << 18, 1 << 26)
"""Of `disk_bytes_max`, 1/16 but between these two is kept for deleting: copy-on-write needs pages to free pages."""

EngineError = (lmdb.Error, struct_error)  # the second: a damaged page gave a key or a value a wrong length


class Snapshot(msgspec.Struct, gc=False, eq=False):
    """A read transaction: the store as one commit left it. `with` it, copy what you need, leave."""

    environment: Environment
    transaction: Any  # lmdb.Transaction[memoryview]; Any is a field type msgspec need not look at
    readers: deque[None] | None

    def get(self, key: bytes) -> bytes | None:
        found: memoryview | None = self.transaction.get(key)
        return None if found is None else bytes(found)

    def cursor(self) -> Cursor:
        cursor: Cursor = self.transaction.cursor()
        return cursor

    def close(self) -> None:
        """End the snapshot; every memoryview of its cursors is invalid from now on. May be called twice."""
        readers = self.readers
        if readers is None:
            return
        self.readers = None
        self.transaction.abort()
        self.transaction = _ENDED  # the engine frees the reader's slot only with the last reference
        readers.pop()
        if self.environment.closing and not readers:
            self.environment._close_engine()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close()
        if error is not None and isinstance(error, EngineError):
            raise self.environment.named(error) from error


class _Ended:
    """Stands where the transaction of a closed snapshot was."""

    def get(self, key: bytes) -> NoReturn:
        raise ClosedError("this snapshot was closed")

    def cursor(self) -> NoReturn:
        raise ClosedError("this snapshot was closed")


_ENDED: Final = _Ended()


class WriteTransaction(msgspec.Struct, gc=False, eq=False):
    """The write transaction. Ends with `commit()` or `abort()`; after an error only `abort()` is left."""

    environment: Environment
    transaction: Any
    id: int

    def put(self, key: bytes, value: bytes) -> None:
        try:
            self.transaction.put(key, value)
        except EngineError as error:
            raise self.environment.named(error) from error

    def get(self, key: bytes) -> bytes | None:
        try:
            found: memoryview | None = self.transaction.get(key)
        except EngineError as error:
            raise self.environment.named(error) from error
        return None if found is None else bytes(found)

    def delete(self, key: bytes) -> bool:
        """Remove a key; False if it was not there."""
        try:
            deleted: bool = self.transaction.delete(key)
        except EngineError as error:
            raise self.environment.named(error) from error
        return deleted

    def cursor(self) -> Cursor:
        cursor: Cursor = self.transaction.cursor()
        return cursor

    def commit(self) -> None:
        """Make it so. An error means that nothing of it is in the store."""
        try:
            self.transaction.commit()
        except EngineError as error:
            raise self.environment.named(error) from error

    def abort(self) -> None:
        """Drop it; a no-op after `commit()` or `abort()`."""
        self.transaction.abort()


class Environment:
    """One LMDB environment. See the module's invariants."""

    __slots__ = (
        "__weakref__",
        "_begin",
        "_begin_write",
        "_bytes_max",
        "_close_token",
        "_engine",
        "_forked",
        "newest_write",
        "_live_pages_max",
        "_readers",
        "closed",
        "closing",
        "disk_bytes_max",
        "location",
        "read_only",
        "sync_mode",
    )

    def __init__(
        self,
        location: str,
        engine: lmdb.Environment,
        sync: Sync,
        read_only: bool,
        disk_bytes_max: int | None,
        bytes_max: int | None = None,
    ) -> None:
        """Use `open`."""
        self.location = location
        self.sync_mode: Sync = sync
        self.read_only = read_only
        self.disk_bytes_max = disk_bytes_max
        self.closing = False
        self.closed = False
        self._engine = engine
        # The hot path's only check for "closed", "forked" and "read-only" is which function stands here.
        self._begin: Any = engine.begin
        self._begin_write: Any = self._refuse_write if read_only else engine.begin
        self._readers: deque[None] = deque()  # its length counts open snapshots; append and pop are atomic
        self.newest_write: Any = None  # lmdb.Transaction; whoever is interrupted aborts it, in its own thread
        self._live_pages_max = (0, 0)  # (for everybody, for reclaiming transactions); 0 = no bound
        self._close_token = [None]
        self._forked = False
        self._bytes_max = 0
        if bytes_max is not None and bytes_max >= DISK_BYTES_MIN:
            self._bytes_max = bytes_max
            page_bytes = engine.stat()["psize"]
            low, high = RECLAIM_RESERVE_BYTES
            reserve_bytes = min(max(bytes_max // RECLAIM_RESERVE_SHARE, low), high)
            self._live_pages_max = ((bytes_max - reserve_bytes) // page_bytes, bytes_max // page_bytes)
        _environments[id(self)] = self

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        sync: Sync = "full",
        read_only: bool = False,
        map_bytes: int | None = None,
        disk_bytes_max: int | None = None,
        max_readers: int = 1024,
        allow_network_fs: bool = False,
    ) -> Environment:
        """Open the environment in directory `path`; create it unless `read_only`.

        sync:           "full": an acknowledged commit survives power loss; "normal": the store stays intact,
                        the last commits may be missing; "off": survives `kill -9` only.
        map_bytes:      address space to reserve; None: the largest that works, up to 1 TiB.
        disk_bytes_max: bound of the data file; a share of it is kept for deleting (`write(reclaiming=True)`).
        Raises          NotAStreamlogDirectoryError, NetworkFileSystemError, UnsupportedFormatError,
                        CorruptStoreError, IllegalStateError (open in this process already), StorageError.
        """
        path = os.fspath(path)
        if disk_bytes_max is not None and disk_bytes_max < DISK_BYTES_MIN:
            raise ConfigError(
                f"disk_bytes_max={disk_bytes_max} is too small: a store needs at least {DISK_BYTES_MIN}",
                option="disk_bytes_max",
                value=disk_bytes_max,
            )
        if sync not in ("full", "normal", "off"):
            raise ConfigError(f'sync={sync!r}: allowed: "full", "normal", "off"', option="sync", value=sync)
        filesystem.prepare_directory(path, DATA_FILE, read_only)
        if not allow_network_fs:
            filesystem.refuse_network_file_system(path)  # row 18
        candidates: tuple[int, ...] = MAP_BYTES if map_bytes is None else (map_bytes,)
        if disk_bytes_max is not None:
            candidates = tuple(dict.fromkeys(min(disk_bytes_max, size) & ~4095 for size in candidates))
        is_new = not read_only and sync != "off" and not os.path.exists(os.path.join(path, DATA_FILE))
        engine = _open_engine(path, candidates, sync, read_only, max_readers)
        try:
            _check_complete(path, engine)
            if is_new:
                # A power loss must not leave half of the engine's two first pages: such a file cannot be opened again.
                engine.sync(True)
                filesystem.sync_directory(path)
            # A map the user made small is a bound as well: without a reserve a full one could not even be deleted from.
            bytes_max = map_bytes if disk_bytes_max is None else disk_bytes_max
            environment = cls(path, engine, sync, read_only, disk_bytes_max, bytes_max)
            environment.release_stale_readers()
        except BaseException:
            engine.close()
            raise
        return environment

    @property
    def path(self) -> Path:
        """The directory. Inside the library `location` is used: importing pathlib takes milliseconds."""
        from pathlib import Path

        return Path(self.location)

    # -- transactions ------------------------------------------------------------------------------

    def write(self, *, reclaiming: bool = False) -> WriteTransaction:
        """Begin the write transaction. The caller owns the right to write (its turn lock).

        reclaiming: the transaction mostly deletes and may use the pages kept for that.
        A transaction that its turn left open when it was cut short (Ctrl-C) is aborted first.
        Raises StoreFullError, ReadOnlyError, ClosedError, StoreForkedError.
        """
        left_open = self.newest_write
        if left_open is not None:
            left_open.abort()
        if self._live_pages_max[0]:
            self._check_room(reclaiming)
        try:
            # The engine's transaction never has a local name: an interrupt finds it in `newest_write`, or
            # nowhere. A frame of its traceback would keep it alive, and the next turn could not begin.
            self.newest_write = self._begin_write(None, None, True, True)
            return WriteTransaction(self, self.newest_write, self.newest_write.id())
        except EngineError as error:
            raise self.named(error) from error

    def snapshot(self) -> Snapshot:
        """Begin a read transaction. Raises ReadersFullError, ClosedError, StoreForkedError."""
        readers = self._readers
        readers.append(None)
        try:
            return Snapshot(self, self._begin(None, None, False, True), readers)
        except BaseException as error:
            try:
                if isinstance(error, EngineError):
                    return self._snapshot_after(error)
                raise
            except BaseException:
                readers.pop()
                if self.closing and not readers:
                    self._close_engine()
                raise

    def last_transaction_id(self) -> int:
        """The number of the newest commit. Raises ClosedError."""
        try:
            return self._live_engine().info()["last_txnid"]
        except EngineError as error:
            raise self.named(error) from error

    # -- care --------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Force everything committed so far to the disk."""
        try:
            self._live_engine().sync(True)
        except EngineError as error:
            raise self.named(error) from error

    def release_stale_readers(self) -> int:
        """Free the reader slots of killed processes (row 7); how many there were."""
        return self._live_engine().reader_check()

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy it, as the newest commit left it and without free pages, into a new or empty directory, while it is in
        use. Raises StorageError."""
        from streamlog.storage.backup import copy_into

        try:
            copy_into(self._live_engine(), path, DATA_FILE)
        except EngineError as error:
            raise named(error, os.fspath(path), DATA_FILE) from error

    def stats(self) -> EnvironmentStats:
        """What it holds and how far it may grow."""
        return read_stats(self._live_engine(), self.location, self.disk_bytes_max, len(self._readers))

    def close(self, *, force: bool = False) -> bool:
        """Refuse everything from now on and close the file; True if it is closed when this returns.

        With snapshots open in other threads it answers False, and the last of them closes the file (invariant
        3; row 24). force: close in spite of them. Only for an owner that knows that no thread is reading.
        """
        if self._forked:
            return True
        self._begin = self._begin_write = self._refuse
        if self.closed:
            return True
        left_open = self.newest_write
        if left_open is not None:
            left_open.abort()
        try:
            # Before `closing`: from then on the last snapshot of another thread may close the engine under us.
            if not self.closing and self.sync_mode != "full" and not self.read_only:
                self._engine.sync(True)
        except EngineError as error:
            raise self.named(error) from error
        finally:
            self.closing = True
            if force or not self._readers or not is_being_read(self._engine):
                self._close_engine()
        return self.closed

    def check_process(self) -> None:
        """Raises StoreForkedError in a child process that inherited this environment."""
        if self._forked:
            self._refuse()

    def named(self, error: Exception) -> Exception:
        """The streamlog error for an engine error."""
        return named(error, self.location, DATA_FILE)

    def _close_engine(self) -> None:
        try:
            self._close_token.pop()  # of several threads that come here, one goes on
            self._engine.close()
        except IndexError:
            return
        except BaseException:
            self._close_token.append(None)  # interrupted: calling again goes on
            raise
        self.closed = True

    def _live_engine(self) -> lmdb.Environment:
        if self.closing or self._forked:
            self._refuse()
        return self._engine

    def _refuse(self, *_: object) -> NoReturn:
        if self._forked:
            raise StoreForkedError(
                f"{self.location} was opened before this process was forked from its parent. Open it after the "
                "fork, use the 'spawn' start method, or connect through the parent's listener",
                path=self.location,
            )
        raise ClosedError(f"the store {self.location} is closed", path=self.location)

    def _refuse_write(self, *_: object) -> NoReturn:
        raise ReadOnlyError(f'{self.location} is open for reading only (mode="r")', path=self.location)

    def _check_room(self, reclaiming: bool) -> None:
        """Row 1: `disk_bytes_max` is the map's size, so the engine holds it; this keeps pages for deleting."""
        stat = self._live_engine().stat()
        pages = live_pages(stat)  # type: ignore[arg-type]
        if pages > self._live_pages_max[reclaiming]:
            raise StoreFullError(
                f"{self.location} holds {pages * stat['psize']} bytes; disk_bytes_max (or map_bytes) is "
                f"{self._bytes_max}, the rest is kept for deleting. Shorten retention, delete records or raise it",
                path=self.location,
                disk_bytes_max=self._bytes_max,
            )

    def _snapshot_after(self, error: Exception) -> Snapshot:
        """Once more, after what stood in the way is removed. The reader is announced already."""
        if isinstance(error, lmdb.ReadersFullError):  # row 6
            self.release_stale_readers()
        elif isinstance(error, lmdb.MapResizedError) and len(self._readers) == 1:  # row 3
            self._engine.set_mapsize(0)
        else:
            raise self.named(error) from error
        try:
            return Snapshot(self, self._begin(None, None, False, True), self._readers)
        except EngineError as again:
            raise self.named(again) from again


def _open_engine(
    path: str, candidates: tuple[int, ...], sync: Sync, read_only: bool, max_readers: int
) -> lmdb.Environment:
    for index, map_bytes in enumerate(candidates):
        try:
            return lmdb.Environment(
                path,
                map_size=map_bytes,
                readonly=read_only,
                sync=sync != "off",
                metasync=sync == "full",
                mode=filesystem.DIRECTORY_MODE,
                create=not read_only,
                writemap=False,  # row 17: a full disk would kill the process
                max_readers=max_readers,
                max_spare_txns=0,  # row 5: a cached reader would keep its slot across a fork
                lib_version=LIB_VERSION,
            )
        except lmdb.Error as error:
            # row 1: RLIMIT_AS, a container or an old kernel may refuse a large map
            no_memory = isinstance(error, lmdb.MemoryError) or error.code == errno.ENOMEM
            if no_memory and index + 1 < len(candidates):
                continue
            raise named(error, path, DATA_FILE) from error
    raise AssertionError("no candidate for the size of the map")


def _check_complete(path: str, engine: lmdb.Environment) -> None:
    """A file that lost its tail would kill the process with SIGBUS at the first touch of a lost page."""
    file_bytes_expected = (engine.info()["last_pgno"] + 1) * engine.stat()["psize"]
    file = os.path.join(path, DATA_FILE)
    if os.stat(file).st_size >= file_bytes_expected:
        return
    # Pages at the end that were allocated and freed in one transaction are never written: only a walk can tell.
    problems = verify_file(path)
    if problems:
        raise CorruptStoreError(
            f"{file} is torn: it should have {file_bytes_expected} bytes ({problems[0]}). Restore a backup",
            path=path,
            problems=problems[:10],
        )


def verify_file(path: str | os.PathLike[str]) -> list[str]:
    """Walk the pages of an environment nobody writes to, without the engine: what is wrong with them (row 21)."""
    from lmdb.verify import VerifyError, verify

    try:
        problems: list[object] = verify(os.path.join(path, DATA_FILE), subdir=False)  # type: ignore[no-untyped-call]
        return [str(problem) for problem in problems]
    except (VerifyError, OSError) as error:
        return [str(error)]


_environments: weakref.WeakValueDictionary[int, Environment] = weakref.WeakValueDictionary()


def _mark_forked() -> None:
    """Row 5: in a child the engine would silently work, and closing it there would free the parent's reader slots."""
    for environment in list(_environments.values()):
        environment._forked = True
        environment._begin = environment._begin_write = environment._refuse


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_forked)
