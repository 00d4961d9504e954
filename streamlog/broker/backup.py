"""A copy of a cluster while it is in use.

    data/  --each environment, one snapshot--> copy.partial-.../  --renamed when complete--> copy/

Brokers are copied before the metadata log: a topic the copy knows may lack its newest records, never the
other way round; what the copy has of a topic deleted meanwhile is an orphan, and the next owner deletes it.
Offsets committed by groups lie in the environment of the records they count, so they never run ahead of them.

Invariants:
 1. The copy appears whole, under its name, or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from streamlog.errors import StorageError
from streamlog.storage.directory import ClusterDirectory
from streamlog.storage.env import Environment
from streamlog.storage.filesystem import failed, is_new, sync_directory


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
    if not is_new(path):
        raise StorageError(
            f"cannot back up into {path}: it is not empty; a backup needs a new directory", path=str(path)
        )
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    # Refused where somebody else is writing the same copy: then it is not ours to remove.
    copy = ClusterDirectory.open(partial, allow_network_fs=True, written_by=directory.format.written_by)
    try:
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
        from shutil import rmtree

        rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise failed(f"back up into {path}", path, error) from error
        raise
