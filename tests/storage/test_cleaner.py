"""streamlog/storage/cleaner.py: bounds, slices, accounting. The rules are in
tests/spec/test_{retention,compaction}.py.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from streamlog.batch import Codec, parse_batch
from streamlog.errors import CorruptRecordError, CorruptStoreError
from streamlog.storage import cleaner, log
from streamlog.storage.cleaner import Compaction, CompactionWork
from streamlog.storage.env import Environment
from streamlog.storage.keys import CheckpointKind, pack_key
from streamlog.storage.verification import verify_log
from tests.storage.builders import OwnedLog


def work(end_offset: int, **changes: Any) -> CompactionWork:
    options = {
        "log_start_offset": 0,
        "first_dirty_offset": 0,
        "now_ms": 0,
        "delete_retention_ms": 0,
    } | changes
    return CompactionWork(end_offset=end_offset, **options)


def apply_all(owned: OwnedLog, compaction: Compaction) -> list[int]:
    """Sizes of the plans' replacements."""
    sizes = []
    for plan in compaction.plans():
        transaction = owned.environment.write()
        cleaner.apply_compaction(transaction, owned.log_id, plan)
        transaction.commit()
        sizes.append(len(plan.replacements))
    return sizes


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.ZSTD])
def test_size_accounting_is_exact_and_the_log_stays_sound(owned: OwnedLog, codec: Codec) -> None:
    choose = random.Random(5)
    for _ in range(60):
        owned.append(
            *[
                (
                    b"key-%d" % choose.randrange(40),
                    None if choose.random() < 0.2 else b"v" * choose.randrange(200),
                    5,
                )
                for _ in range(choose.randrange(1, 8))
            ],
            codec=codec,
        )
    for now_ms in (10, 20, 2000):
        before = owned.checkpoint.size_bytes
        owned.compact(now_ms=now_ms)
        assert owned.checkpoint.size_bytes == sum(stored.header.size_bytes for stored in owned.headers())
        assert owned.checkpoint.size_bytes <= before + 8 * len(owned.headers())
        assert verify_log(owned.environment, 7, compacted=True) == []


def test_a_pass_comes_in_slices_and_holds_no_snapshot_meanwhile(owned: OwnedLog) -> None:
    for number in range(40):
        owned.append((b"a", b"%d" % number, 0))
    size = owned.headers()[0].header.size_bytes
    compaction = Compaction(owned.environment, 7, work(40, slice_bytes_max=5 * size))
    for plan in compaction.plans():
        assert owned.environment.stats().snapshots == 0
        assert len(plan.replacements) <= 5
        transaction = owned.environment.write()
        cleaner.apply_compaction(transaction, 7, plan)
        transaction.commit()
    assert owned.offsets() == [39]
    assert (compaction.records_read, compaction.records_kept) == (40, 1)


def test_others_come_to_run_after_every_batch(owned: OwnedLog) -> None:
    """One batch is a megabyte at most; the interpreter alone would let nobody in for five milliseconds."""
    for number in range(40):
        owned.append((b"a", b"%d" % number, 0))
    ways: list[int] = []
    with owned.environment.snapshot() as snapshot:
        cleaner.measure_dirty(snapshot, 7, 0, 40, 0, lambda: ways.append(0))
        assert not ways  # so few headers are one piece
    compaction = Compaction(
        owned.environment, 7, work(40), lambda: ways.append(owned.environment.stats().snapshots)
    )
    plans = list(compaction.plans())
    assert plans and len(ways) >= 2 * 40, "once where keys are collected, once where records are filtered"
    assert not any(ways), "with no snapshot open meanwhile"


def test_a_pass_that_is_dropped_half_way_has_lost_nothing(owned: OwnedLog) -> None:
    for number in range(40):
        owned.append((b"%d" % (number % 5), b"%d" % number, 0))
    newest = {key: value for _, key, value in owned.records()}
    plans = Compaction(owned.environment, 7, work(40, slice_bytes_max=500)).plans()
    transaction = owned.environment.write()
    cleaner.apply_compaction(transaction, 7, next(plans))
    transaction.commit()
    plans.close()  # type: ignore[attr-defined]
    assert len(owned.records()) < 40
    assert {key: value for _, key, value in owned.records()} == newest
    apply_all(owned, Compaction(owned.environment, 7, work(40)))
    assert {key: value for _, key, value in owned.records()} == newest
    assert len(owned.records()) == 5


def test_applying_a_plan_twice_changes_nothing(owned: OwnedLog) -> None:
    owned.append((b"a", b"1", 0), (b"b", b"1", 0))
    owned.append((b"a", b"2", 0))
    owned.append((b"c", b"2", 0))
    plans = list(Compaction(owned.environment, 7, work(3)).plans())
    transaction = owned.environment.write()
    first = [cleaner.apply_compaction(transaction, 7, plan) for plan in plans]
    again = [cleaner.apply_compaction(transaction, 7, plan) for plan in plans]
    transaction.commit()
    assert sum(first) < 0 and sum(again) == 0
    assert owned.offsets() == [1, 2, 3]


def test_a_clean_log_gives_no_plans(owned: OwnedLog) -> None:
    for number in range(5):
        owned.append((b"%d" % number, b"v", 0))
    assert list(Compaction(owned.environment, 7, work(5)).plans()) == []


def test_the_map_of_keys_is_bounded_and_the_next_pass_goes_on(owned: OwnedLog) -> None:
    for number in range(30):
        owned.append((b"%d" % (number % 10), b"%d" % number, 0))
    compaction = Compaction(owned.environment, 7, work(30, map_bytes_max=4 * cleaner.MAP_ENTRY_BYTES))
    apply_all(owned, compaction)
    assert compaction.cleaned_end_offset == 4  # four different keys fit
    assert len(compaction._latest) <= 4
    first_dirty, rounds = 0, 0
    while first_dirty < 30:
        compaction = Compaction(
            owned.environment,
            7,
            work(30, first_dirty_offset=first_dirty, map_bytes_max=4 * cleaner.MAP_ENTRY_BYTES),
        )
        apply_all(owned, compaction)
        assert compaction.cleaned_end_offset > first_dirty
        first_dirty, rounds = compaction.cleaned_end_offset, rounds + 1
    assert rounds >= 7
    assert [offset for offset, _, _ in owned.records()] == list(range(20, 30))


def test_a_batch_with_more_keys_than_the_map_holds_is_cleaned_all_the_same(owned: OwnedLog) -> None:
    owned.append(*[(b"%d" % number, b"v", 0) for number in range(20)])
    owned.append((b"0", b"new", 0))
    compaction = Compaction(owned.environment, 7, work(21, map_bytes_max=1))
    apply_all(owned, compaction)
    assert compaction.cleaned_end_offset == 20


def test_long_keys_are_told_apart_by_a_digest_that_no_short_key_can_be() -> None:
    long_key = b"k" * 1000
    digest = cleaner._fingerprint(long_key)
    assert len(digest) == 17
    assert cleaner._fingerprint(digest) != digest  # 17 bytes are digested too
    assert cleaner._fingerprint(digest[:16]) == digest[:16]
    assert cleaner._fingerprint(b"k" * 999) != digest
    assert cleaner._fingerprint(b"") == b""


def test_long_and_empty_keys_are_compacted_like_others(owned: OwnedLog) -> None:
    for key in (b"x" * 300, b"", b"x" * 300, b"", b"x" * 301):
        owned.append((key, b"v", 0))
    apply_all(owned, Compaction(owned.environment, 7, work(5)))
    assert owned.offsets() == [2, 3, 4]


def test_many_small_batches_are_split_into_plans_for_one_turn(environment: Environment) -> None:
    owned = OwnedLog(environment)
    transaction = environment.write()
    batch = None
    for offset in range(2500):
        if batch is None:
            owned.append((b"a", b"v", 0))
            batch = owned.batches()[0]
            transaction = environment.write()
        log.append(transaction, 7, batch, offset, 1, 0)
    transaction.commit()
    assert apply_all(owned, Compaction(environment, 7, work(2500))) == [1000, 1000, 499]


def test_a_corrupt_batch_stops_the_pass_before_it_does_harm(owned: OwnedLog) -> None:
    for _ in range(5):
        owned.append((b"a", b"v", 0))
    transaction = owned.environment.write()
    value = bytearray(transaction.get(pack_key(7, 2)) or b"")
    value[-2] ^= 1
    transaction.put(pack_key(7, 2), bytes(value))
    transaction.commit()
    with pytest.raises(CorruptRecordError, match="offset 2"):
        apply_all(owned, Compaction(owned.environment, 7, work(5)))
    assert len(owned.headers()) == 5


def test_the_running_maximum_survives_recoding(owned: OwnedLog) -> None:
    owned.append((b"a", b"v", 100), (b"b", b"v", 5))
    owned.append((b"a", b"v", 7))
    owned.append((b"c", b"v", 8))
    owned.compact()
    stored = owned.headers()[0]
    assert (stored.running_max_timestamp, stored.header.max_timestamp) == (100, 5)


def test_a_recoded_batch_is_whole_on_disk(owned: OwnedLog) -> None:
    owned.append((b"a", b"v", 1), (b"b", b"v", 2), (b"a", b"w", 3))
    owned.append((b"c", b"v", 4))
    owned.compact()
    with owned.environment.snapshot() as snapshot:
        value = snapshot.get(pack_key(7, 2)) or b""
    batch = parse_batch(value, position=8)
    assert (batch.leader_epoch, batch.base_offset, batch.record_count) == (3, 0, 2)


def test_the_cleaners_checkpoint(environment: Environment) -> None:
    checkpoint = cleaner.CleanerCheckpoint(1 << 60, 12)
    transaction = environment.write()
    assert cleaner.load_cleaner_checkpoint(transaction, 7) is None
    cleaner.save_cleaner_checkpoint(transaction, 7, checkpoint)
    assert cleaner.load_cleaner_checkpoint(transaction, 7) == checkpoint
    log.put_extra(transaction, 7, CheckpointKind.CLEANER, b"junk")
    with pytest.raises(CorruptStoreError, match="log 7"):
        cleaner.load_cleaner_checkpoint(transaction, 7)
    transaction.abort()


def test_an_empty_log_has_nothing_to_clean(environment: Environment) -> None:
    owned = OwnedLog(environment)
    with environment.snapshot() as snapshot:
        assert cleaner.cleanable_end_offset(snapshot, 7, 0, 0, 0, 0) == 0
        assert cleaner.measure_dirty(snapshot, 7, 0, 0, 0).ratio == 0.0
    assert list(Compaction(environment, 7, work(0)).plans()) == []
    owned.append((b"a", b"v", 0))
    owned.delete_head(1)
    owned.compact()
