"""A copy of a cluster while it is in use.

    data/  --each environment, one snapshot--> copy.partial-.../  --renamed when complete--> copy/

Brokers are copied before the metadata log: a topic the copy knows may lack its newest records, never the
other way round; what the copy has of a topic deleted meanwhile is an orphan, and the next owner deletes it.
Offsets committed by groups lie in the environment of the records they count, so they never run ahead of them.

Invariants:
 1. The copy appears whole, under its name, or not at all.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from streamlog.errors import DiskFullError, StorageError
from streamlog.storage.directory import FORMAT_FILE, ClusterDirectory
from streamlog.storage.env import Environment
from streamlog.storage.filesystem import sync_directory


def backup_environments(
    directory: ClusterDirectory, brokers: Mapping[int, Environment], metadata: Environment, path: Path
) -> None:
    """Copy the cluster into `path`, which must be new or empty. Raises StorageError; then there is no
    copy.
    """
    path = Path(path).absolute()
    if path.is_relative_to(directory.path):
        raise StorageError(
            f"cannot back up into {path}: it lies inside {directory.path}, the cluster itself", path=str(path)
        )
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StorageError(
            f"cannot back up into {path}: it is not empty; a backup needs a new directory", path=str(path)
        )
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        copy = ClusterDirectory.open(partial, allow_network_fs=True, written_by=directory.format.written_by)
        try:
            for number in sorted(brokers):
                brokers[number].backup(copy.broker_path(number))
            metadata.backup(copy.metadata_path)
        finally:
            copy.close()
        (partial / "LOCK").unlink(missing_ok=True)
        sync_directory(partial)
        partial.rename(path)
        sync_directory(path.parent)
    except BaseException as error:
        _remove(partial)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
            raise kind(
                f"cannot back up into {path}: {error.strerror}", path=str(path), errno=error.errno
            ) from error
        raise


def _remove(partial: Path) -> None:
    import shutil

    if (partial / FORMAT_FILE).exists():  # ours, and not something that happened to have the name
        shutil.rmtree(partial, ignore_errors=True)
