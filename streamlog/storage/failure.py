"""A streamlog name for everything that can go wrong in the engine.

The engine's classes are told apart by their names, so that `env` stays the only module that imports lmdb.

Sources: lmdb.h "Return Codes"; ECOSYSTEM 3.2, whose row numbers stand at the branches below.
"""

from __future__ import annotations

import errno
import os
from struct import error as struct_error
from typing import Final

from streamlog.errors import (
    ClosedError,
    CorruptStoreError,
    DiskFullError,
    IllegalStateError,
    ReadersFullError,
    ReadOnlyError,
    StorageError,
    StoreFullError,
    UnsupportedFormatError,
)
from streamlog.storage import filesystem

_FULL: Final = frozenset({"MapFullError", "TxnFullError"})
_FOREIGN: Final = frozenset({"VersionMismatchError", "InvalidError"})
_CORRUPT: Final = frozenset({"CorruptedError", "PageNotFoundError", "PanicError", "PageFullError"})


def named(error: Exception, path: str, data_file: str) -> Exception:
    """The streamlog error for an engine error of the environment `path`, whose file is `data_file`."""
    name, text = type(error).__name__, str(error)
    file = os.path.join(path, data_file)
    code: int = getattr(error, "code", 0)
    if isinstance(error, struct_error):  # row 21
        return CorruptStoreError(
            f"{file} has a key or a value of a length that nothing of ours has ({text}). Run `streamlog verify`",
            path=path,
        )
    if name in _FULL:  # row 1
        return StoreFullError(
            f"the store {path} is full (its map or disk_bytes_max is used up); nothing of it is stored."
            " Shorten retention, delete records or topics, or raise disk_bytes_max",
            path=path,
        )
    if name == "ReadersFullError":  # row 6
        return ReadersFullError(
            f"all reader slots of {path} are taken: raise max_readers, or find who keeps them", path=path
        )
    if name == "MapResizedError":  # row 3
        return StorageError(f"another process grew {path}; try again", path=path, retriable=True)
    if code in filesystem.FULL_CODES or (code == errno.EIO and filesystem.is_full(path, file)):  # row 17
        return DiskFullError(
            f"no space left for {file} ({text}); nothing of this write is stored, nothing before it is lost",
            path=path,
            errno=code,
        )
    if name == "ReadonlyError" or code in filesystem.REFUSED_CODES:
        return ReadOnlyError(f"{path}: {text}", path=path)
    if name in _FOREIGN:  # row 22
        return UnsupportedFormatError(
            f"{file} is not in the format this version reads (LMDB 0.9): {text}", path=path
        )
    if name == "BadTxnError":
        return IllegalStateError(f"{path}: the transaction failed or ended before: {text}", path=path)
    if name in _CORRUPT:  # row 21
        return CorruptStoreError(
            f"{file} contradicts itself, or the engine gave up on it: {text}. Close it and run "
            "`streamlog verify`",
            path=path,
        )
    if "already open" in text:  # row 4
        return IllegalStateError(f"{path} is open in this process: use the environment you have", path=path)
    if "closed" in text:
        return ClosedError(f"the store {path}, or the transaction, is closed", path=path)
    return StorageError(f"{path}: {text}", path=path, errno=code)
