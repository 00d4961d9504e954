"""Who owns a cluster's directory, asked without touching its lock.

Taking the lock to see whether it is free would, for that moment, turn a starting owner away. Linux lists the
locks held in /proc/locks; elsewhere the process LOCK names counts as the owner while it lives.

Sources: proc(5) "/proc/locks"; flock(2).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from streamlog.storage.directory import LOCK_FILE, Owner, read_owner

PROC_LOCKS: Final = "/proc/locks"


def live_owner(path: Path) -> Owner | None:
    """The process that owns the cluster in `path` now; None if nobody does."""
    try:
        inode = (path / LOCK_FILE).stat().st_ino
    except OSError:
        return None
    owner = read_owner(path)
    try:
        with open(PROC_LOCKS, encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return owner if _is_alive(owner) else None
    return owner if any(_is_lock_on(line, inode, owner.pid) for line in lines) else None


def _is_lock_on(line: str, inode: int, pid: int | None) -> bool:
    # "1: FLOCK  ADVISORY  WRITE 4711 fe:00:9979414 0 EOF". A process of another pid namespace is listed as 0,
    # and an overlay's device number is not stat's: so the inode and the kind of lock must do, with the pid
    # where it is known.
    fields = line.split()
    if len(fields) < 6 or fields[1] != "FLOCK" or fields[3] != "WRITE":
        return False
    return fields[5].rpartition(":")[2] == str(inode) and (pid is None or fields[4] in (str(pid), "0", "-1"))


def _is_alive(owner: Owner) -> bool:
    if owner.pid is None or owner.host not in ("", os.uname().nodename):
        return owner.pid is not None
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
