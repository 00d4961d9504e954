"""streamlog/storage/failure.py: one row per engine error."""

from __future__ import annotations

import errno
from pathlib import Path

import lmdb
import pytest

from streamlog import errors
from streamlog.storage import filesystem
from streamlog.storage.failure import named


def engine_error(cls: type[lmdb.Error], text: str, code: int) -> lmdb.Error:
    error = cls(text)
    error.code = code  # type: ignore[misc]
    return error


ROWS = [
    (lmdb.MapFullError("put"), errors.StoreFullError),
    (lmdb.TxnFullError("put"), errors.StoreFullError),
    (lmdb.ReadersFullError("begin"), errors.ReadersFullError),
    (lmdb.MapResizedError("begin"), errors.StorageError),
    (engine_error(lmdb.DiskError, "commit", errno.ENOSPC), errors.DiskFullError),
    (engine_error(lmdb.Error, "commit", errno.ENOSPC), errors.DiskFullError),
    (engine_error(lmdb.Error, "commit", errno.EDQUOT), errors.DiskFullError),
    (engine_error(lmdb.Error, "commit", errno.EFBIG), errors.DiskFullError),
    (engine_error(lmdb.Error, "commit", errno.EIO), errors.StorageError),
    (lmdb.ReadonlyError("put"), errors.ReadOnlyError),
    (engine_error(lmdb.Error, "open", errno.EACCES), errors.ReadOnlyError),
    (engine_error(lmdb.Error, "open", errno.EROFS), errors.ReadOnlyError),
    (lmdb.VersionMismatchError("open"), errors.UnsupportedFormatError),
    (lmdb.InvalidError("open"), errors.UnsupportedFormatError),
    (lmdb.CorruptedError("get"), errors.CorruptStoreError),
    (lmdb.PageNotFoundError("get"), errors.CorruptStoreError),
    (lmdb.PanicError("begin"), errors.CorruptStoreError),
    (lmdb.BadTxnError("put"), errors.IllegalStateError),
    (lmdb.Error("The environment 'x' is already open in this process."), errors.IllegalStateError),
    (lmdb.Error("Attempt to operate on closed/deleted/dropped object."), errors.ClosedError),
    (lmdb.BadValsizeError("put"), errors.StorageError),
    (engine_error(lmdb.Error, "something new", 4711), errors.StorageError),
]


@pytest.mark.parametrize(
    ("error", "expected"), ROWS, ids=lambda value: getattr(value, "__name__", repr(value))
)
def test_every_engine_error_has_a_name(tmp_path: Path, error: lmdb.Error, expected: type[Exception]) -> None:
    found = named(error, str(tmp_path), "data.mdb")
    assert type(found) is expected
    assert isinstance(found, errors.StreamlogError)
    assert str(tmp_path) in str(found)


def test_an_io_error_on_a_full_disk_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine reports a short write as EIO."""
    monkeypatch.setattr(filesystem, "free_bytes", lambda path: 5000)
    found = named(engine_error(lmdb.Error, "commit", errno.EIO), str(tmp_path), "data.mdb")
    assert type(found) is errors.DiskFullError and found.errno == errno.EIO


def test_a_resized_map_may_be_tried_again(tmp_path: Path) -> None:
    assert named(lmdb.MapResizedError("begin"), str(tmp_path), "data.mdb").retriable  # type: ignore[attr-defined]
