"""What an environment holds and how far it may grow, as one value."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from streamlog.storage import filesystem


class EnvironmentStats(msgspec.Struct, frozen=True, gc=False):
    """What an environment holds and how far it may grow."""

    path: str
    entries: int
    live_bytes: int  # pages that hold data; the file is larger by what deleting freed (row 9)
    file_bytes: int
    map_bytes: int
    disk_bytes_max: int | None
    disk_free_bytes: int | None
    last_transaction_id: int
    snapshots: int  # open in this process, now
    reader_slots: int  # taken by all processes
    oldest_reader_transactions: (
        int  # commits since the oldest open snapshot began: it holds back freed pages (row 8)
    )


def read_stats(engine: Any, path: str, disk_bytes_max: int | None, snapshots: int) -> EnvironmentStats:
    """Ask the engine (an lmdb.Environment)."""
    info, stat = engine.info(), engine.stat()
    page_bytes = stat["psize"]
    # The engine's reader table: a heading, then lines of `pid thread transaction`.
    transactions = [int(line.split()[2]) for line in engine.readers().splitlines() if line[-1:].isdigit()]
    return EnvironmentStats(
        path=path,
        entries=stat["entries"],
        live_bytes=live_pages(stat) * page_bytes,
        file_bytes=(info["last_pgno"] + 1) * page_bytes,
        map_bytes=info["map_size"],
        disk_bytes_max=disk_bytes_max,
        disk_free_bytes=filesystem.free_bytes(path),
        last_transaction_id=info["last_txnid"],
        snapshots=snapshots,
        reader_slots=len(transactions),
        oldest_reader_transactions=info["last_txnid"] - min(transactions) if transactions else 0,
    )


def is_being_read(engine: Any) -> bool:
    """Whether this process has a snapshot open, as the engine sees it: an interrupt may keep us from counting."""
    rows = [line.split() for line in engine.readers().splitlines()]
    return any(len(row) == 3 and row[0] == str(os.getpid()) and row[2] != "-" for row in rows)


def live_pages(stat: dict[str, int]) -> int:
    """Pages that hold data, of an engine's `stat()`."""
    return stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
