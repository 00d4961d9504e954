"""A consistent copy of an environment in use (ECOSYSTEM 3.2 row 23: never `cp` a live store).

The copy is compact: free pages stay behind. The engine's plain copy is not offered: it waits for the writer,
and waits for ever if the writer is the same thread.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from streamlog.errors import StorageError
from streamlog.storage.filesystem import DIRECTORY_MODE, FILE_MODE, sync_directory


def copy_into(engine: Any, path: str | os.PathLike[str], data_file: str) -> None:
    """Copy what the engine (an lmdb.Environment) holds into a new or empty directory; complete, or not
    there.
    """
    path = Path(path)
    made = not path.exists()
    path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise StorageError(f"cannot back up into {path}: it is not empty", path=str(path))
    file = path / data_file
    try:
        engine.copy(str(path), compact=True)
        file.chmod(FILE_MODE)
        with open(file, "rb+") as copied:
            os.fsync(copied.fileno())
        sync_directory(path)
    except BaseException:
        file.unlink(missing_ok=True)
        if made:
            path.rmdir()
        raise
