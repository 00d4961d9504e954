"""streamlog/storage/statistics.py."""

from __future__ import annotations

from streamlog.storage.env import Environment
from tests.storage.builders import OwnedLog


def test_what_an_environment_holds(environment: Environment) -> None:
    empty = environment.stats()
    assert (empty.entries, empty.live_bytes, empty.snapshots, empty.reader_slots) == (0, 0, 0, 0)
    assert (empty.disk_bytes_max, empty.path) == (None, str(environment.path))
    assert (empty.disk_free_bytes or 0) > 0
    OwnedLog(environment).append((b"k", b"v" * 10_000, 1))
    stats = environment.stats()
    assert stats.entries == 2
    assert 12_000 < stats.live_bytes < stats.file_bytes <= stats.map_bytes
    assert stats.last_transaction_id == empty.last_transaction_id + 1


def test_the_oldest_reader_holds_back_pages(environment: Environment) -> None:
    owned = OwnedLog(environment)
    owned.append((b"k", b"v", 1))
    with environment.snapshot():
        for _ in range(3):
            owned.append((b"k", b"v", 1))
        with environment.snapshot():
            stats = environment.stats()
    assert (stats.snapshots, stats.reader_slots, stats.oldest_reader_transactions) == (2, 2, 3)
    assert environment.stats().oldest_reader_transactions == 0
