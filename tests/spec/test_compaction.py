"""SEMANTICS 3.7 sentence by sentence, and 3.11 C1. Over both body layouts."""

from __future__ import annotations

import pytest

from streamlog.batch import ControlType
from streamlog.storage import cleaner, log
from streamlog.storage.cleaned_transactions import AbortedTransaction
from streamlog.storage.cleaner import ProducerTail
from streamlog.storage.env import Environment
from tests.storage.builders import OwnedLog, marker

FILLER = (b"filler", b"-", 0)
"""One more batch "rolls" the log: the newest batch is never cleaned."""


def test_c1(owned: OwnedLog) -> None:
    """C1: k1=a@0,k2=b@1,k1=c@2,k2=null@3, roll, clean: left 2,3; first pass stamps the horizon; after
    delete.retention.ms the next pass leaves 2 (+ possibly empty last batch); fetch from 0 returns 2 first."""
    for key, value in ((b"k1", b"a"), (b"k2", b"b"), (b"k1", b"c"), (b"k2", None)):
        owned.append((key, value, 0))
    owned.append(FILLER)
    owned.compact(now_ms=100, delete_retention_ms=1000)
    assert owned.offsets() == [2, 3, 4]
    tombstone = owned.batches(3)[0]
    assert tombstone.delete_horizon_ms == 1100
    assert owned.records(0)[0] == (2, b"k1", b"c")
    owned.compact(now_ms=1099)
    assert owned.offsets() == [2, 3, 4]
    owned.compact(now_ms=1100)
    assert owned.offsets() == [2, 4]
    empty = owned.batches(3)[0]
    assert (empty.base_offset, empty.next_offset, empty.record_count) == (3, 4, 0)
    assert owned.records(0)[0] == (2, b"k1", b"c")


def test_c1_in_one_batch(owned: OwnedLog) -> None:
    """C1, with the four records in one batch: the batch keeps its offset range."""
    owned.append((b"k1", b"a", 5), (b"k2", b"b", 6), (b"k1", b"c", 7), (b"k2", None, 8))
    owned.append(FILLER)
    owned.compact(now_ms=100, delete_retention_ms=1000)
    assert owned.offsets() == [2, 3, 4]
    batch = owned.batches()[0]
    assert (batch.base_offset, batch.next_offset, batch.delete_horizon_ms) == (0, 4, 1100)
    assert [record.timestamp for record in batch.records("t", 0)] == [7, 8]
    owned.compact(now_ms=1100)
    batch = owned.batches()[0]
    assert (owned.offsets(), batch.base_offset, batch.next_offset) == ([2, 4], 0, 4)
    assert [record.timestamp for record in batch.records("t", 0)] == [7]


# -- 1


def test_1_keeps_at_least_the_last_value_per_key(owned: OwnedLog) -> None:
    """3.7.1: keeps at least the last value per key; never reorders, never renumbers."""
    for number in range(30):
        owned.append(*[(b"k%d" % (number * item % 7), b"v%d" % number, number) for item in range(1, 4)])
    before = owned.records()
    owned.append(FILLER)
    owned.compact()
    after = owned.records()[:-1]
    assert set(after) <= set(before)
    assert after == sorted(after)
    assert {key: value for _, key, value in before} == {key: value for _, key, value in after}
    assert len(after) == 7


def test_1_offsets_of_survivors_are_unchanged_and_a_removed_offset_reads_the_next(owned: OwnedLog) -> None:
    """3.7.1: offsets of survivors unchanged; reading a removed offset returns the next one."""
    for key in (b"a", b"b", b"a", b"c"):
        owned.append((key, b"v", 0))
    owned.append(FILLER)
    owned.compact()
    assert [owned.records(start)[0][0] for start in range(5)] == [1, 1, 2, 3, 4]
    assert owned.checkpoint.log_end_offset == 5
    assert owned.append(FILLER) == 5


def test_1_records_keep_timestamp_and_headers(owned: OwnedLog) -> None:
    """3.7.1: survivors are the same records."""
    owned.append((b"a", b"1", 10), (b"b", b"2", 20), (b"a", b"3", 30))
    owned.append(FILLER)
    kept = owned.batches()[0].records("t", 0)[1:]
    owned.compact()
    assert owned.batches()[0].records("t", 0) == kept
    assert owned.batches()[0].magic == owned.headers()[1].header.magic  # the layout stays


# -- 2


def test_2_never_cleans_the_newest_batch(owned: OwnedLog) -> None:
    """3.7.2: never cleans: active segment."""
    owned.append((b"a", b"1", 0))
    owned.append((b"a", b"2", 0), (b"a", b"3", 0))
    owned.compact()
    assert owned.offsets() == [0, 1, 2]


def test_2_never_cleans_at_or_above_the_last_stable_offset(owned: OwnedLog) -> None:
    """3.7.2: never cleans anything >= LSO."""
    for _ in range(4):
        owned.append((b"a", b"v", 0))
    owned.compact(last_stable_offset=2)
    assert owned.offsets() == [1, 2, 3]
    owned.compact(last_stable_offset=3)
    assert owned.offsets() == [2, 3]


def test_2_never_cleans_what_is_younger_than_the_lag(owned: OwnedLog) -> None:
    """3.7.2: never cleans segments with largestTimestamp > now - min.compaction.lag.
    So duplicates in the head are normal: do not promise unique keys."""
    for timestamp in (10, 20, 31, 5, 40):
        owned.append((b"a", b"v", timestamp))
    owned.compact(now_ms=130, min_compaction_lag_ms=100)
    assert owned.offsets() == [1, 2, 3, 4]  # 31 is young, and everything behind it waits with it
    owned.compact(now_ms=131, min_compaction_lag_ms=100)
    assert owned.offsets() == [3, 4]


# -- 3


@pytest.mark.parametrize(
    ("clean", "dirty", "ratio", "due"),
    [
        (100, 100, 0.5, False),
        (100, 101, 0.5, True),
        (0, 10, 0.99, True),
        (0, 0, 0.0, False),
        (10, 0, 0.0, False),
    ],
)
def test_3_triggers_when_dirty_bytes_to_total_exceed_the_ratio(
    clean: int, dirty: int, ratio: float, due: bool
) -> None:
    """3.7.3: triggers: dirty bytes/total > ratio (strictly)."""
    dirtiness = cleaner.Dirtiness(clean, dirty, 50)
    assert due == cleaner.needs_compaction(
        dirtiness, now_ms=100, min_cleanable_dirty_ratio=ratio, max_compaction_lag_ms=1 << 62
    )


@pytest.mark.parametrize(
    ("dirty", "earliest", "now_ms", "due"),
    [(1, 50, 150, False), (1, 50, 151, True), (0, 50, 999, False), (1, -1, 999, False)],
)
def test_3_triggers_when_the_oldest_dirty_record_is_too_old(
    dirty: int, earliest: int, now_ms: int, due: bool
) -> None:
    """3.7.3: ... or oldest dirty record older than max.compaction.lag."""
    dirtiness = cleaner.Dirtiness(1000, dirty, earliest)
    assert due == cleaner.needs_compaction(
        dirtiness, now_ms=now_ms, min_cleanable_dirty_ratio=0.5, max_compaction_lag_ms=100
    )


def test_3_dirt_is_measured_from_the_first_dirty_offset_to_the_uncleanable_head(owned: OwnedLog) -> None:
    """3.7.3, LogToClean: total = clean + cleanable; the head counts for neither."""
    for timestamp in (40, 30, 20, 10, 5):
        owned.append((b"a", b"v", timestamp))
    size = owned.batches()[0].size_bytes
    with owned.environment.snapshot() as snapshot:
        measured = cleaner.measure_dirty(snapshot, 7, 1, 4, owned.checkpoint.size_bytes)
        assert measured == cleaner.Dirtiness(size, 3 * size, 10)
        assert measured.ratio == 0.75
        everything = cleaner.measure_dirty(snapshot, 7, 0, 4, owned.checkpoint.size_bytes)
        assert everything == cleaner.Dirtiness(0, 4 * size, 10)
        assert cleaner.measure_dirty(snapshot, 7, 4, 4, 5 * size) == cleaner.Dirtiness(4 * size, 0, -1)


# -- 4


def test_4_the_first_pass_stamps_the_horizon_and_a_later_pass_removes(owned: OwnedLog) -> None:
    """3.7.4: first pass that sees a tombstone stamps deleteHorizon = now + delete.retention.ms; removed on a
    later pass when now >= horizon. Later passes do not move the horizon."""
    owned.append((b"a", None, 7))
    owned.append((b"b", b"v", 8))
    owned.append(FILLER)
    assert owned.compact(now_ms=50, delete_retention_ms=100).next_delete_horizon_ms == 150
    assert owned.compact(now_ms=149, delete_retention_ms=100).next_delete_horizon_ms == 150
    assert owned.batches()[0].delete_horizon_ms == 150
    assert owned.batches()[0].records("t", 0)[0].timestamp == 7
    assert owned.compact(now_ms=150).next_delete_horizon_ms == -1
    assert owned.offsets() == [1, 2]


def test_4_tombstones_may_be_kept_for_ever(owned: OwnedLog) -> None:
    """delete.retention.ms may be Long.MAX_VALUE; a horizon is an i64 as well."""
    owned.append((b"a", None, 7))
    owned.append(FILLER)
    for now_ms in (1_700_000_000_000, 1 << 61):
        compaction = owned.compact(now_ms=now_ms, delete_retention_ms=2**63 - 1)
        assert compaction.next_delete_horizon_ms > 1 << 61
        assert owned.records()[0] == (0, b"a", None)
    assert owned.batches()[0].records("t", 0)[0].timestamp == 7


def test_4_a_horizon_makes_a_pass_due_though_nothing_is_dirty(owned: OwnedLog) -> None:
    """Beyond Kafka, which waits for the next dirty records."""
    nothing = cleaner.Dirtiness(100, 0, -1)
    options = {"min_cleanable_dirty_ratio": 0.5, "max_compaction_lag_ms": 1 << 62}
    for horizon, due in ((-1, False), (100, True), (101, False)):
        assert due == cleaner.needs_compaction(nothing, now_ms=100, next_delete_horizon_ms=horizon, **options)  # type: ignore[arg-type]


def test_4_a_tombstone_with_a_newer_value_is_just_removed(owned: OwnedLog) -> None:
    """3.7.4: a tombstone with a newer value is just removed."""
    owned.append((b"a", None, 0))
    owned.append((b"a", b"v", 0))
    owned.append(FILLER)
    assert owned.compact().next_delete_horizon_ms == -1
    assert owned.offsets() == [1, 2]


def test_4_a_tombstone_removes_the_values_before_it_at_once(owned: OwnedLog) -> None:
    """3.7.4: a reader that starts at 0 within delete.retention.ms sees the delete, not the value."""
    owned.append((b"a", b"v", 0))
    owned.append((b"a", None, 0))
    owned.append(FILLER)
    owned.compact()
    assert owned.records()[0] == (1, b"a", None)


def test_4_values_beside_a_removed_tombstone_stay(owned: OwnedLog) -> None:
    """3.7.4: the horizon is the batch's, what it removes are tombstones only."""
    owned.append((b"a", None, 5), (b"b", b"v", 6), (b"c", None, 7))
    owned.append(FILLER)
    owned.compact(now_ms=50, delete_retention_ms=100)
    owned.compact(now_ms=150)
    assert owned.records()[:-1] == [(1, b"b", b"v")]
    assert owned.batches()[0].records("t", 0)[0].timestamp == 6


# -- 5


def transaction_log(owned: OwnedLog) -> list[AbortedTransaction]:
    """producer 1 aborts k=lost@0 (marker 2), producer 2 commits k2=kept@1 (marker 3), then k3 and filler."""
    options = {"producer_epoch": 0, "base_sequence": 0, "transactional": True}
    owned.append((b"k", b"lost", 0), producer_id=1, **options)
    owned.append((b"k2", b"kept", 0), producer_id=2, **options)
    owned.append(marker(ControlType.ABORT, 1))
    owned.append(marker(ControlType.COMMIT, 2))
    owned.append((b"k3", b"v", 0))
    owned.append(FILLER)
    return [AbortedTransaction(1, 0, 2)]


def test_5_aborted_records_are_removed_regardless_of_key(owned: OwnedLog) -> None:
    """3.7.5: aborted txn records are removed regardless of key."""
    aborted = transaction_log(owned)
    owned.compact(aborted=aborted)
    assert owned.offsets() == [1, 4, 5]


def test_5_an_aborted_record_does_not_supersede_a_committed_one(owned: OwnedLog) -> None:
    """3.7.5: the offset map does not contain aborted records."""
    owned.append((b"k", b"kept", 0))
    owned.append((b"k", b"lost", 0), producer_id=1, producer_epoch=0, base_sequence=0, transactional=True)
    owned.append(marker(ControlType.ABORT, 1))
    owned.append(FILLER)
    owned.compact(aborted=[AbortedTransaction(1, 1, 2)])
    assert owned.records()[:-1] == [(0, b"k", b"kept")]


def test_5_markers_stay_until_their_data_is_gone_and_the_horizon_passed(owned: OwnedLog) -> None:
    """3.7.5: commit/abort markers stay until their data is gone and the horizon passed."""
    aborted = transaction_log(owned)

    def markers() -> list[int]:
        return [stored.header.base_offset for stored in owned.headers() if stored.header.is_control]

    owned.compact(now_ms=10, delete_retention_ms=100, aborted=aborted)  # removes the aborted data
    assert markers() == [2, 3]
    compaction = owned.compact(now_ms=20, delete_retention_ms=100, aborted=aborted)  # no data left: stamps
    assert compaction.next_delete_horizon_ms == 120
    assert owned.batches(2)[0].delete_horizon_ms == 120
    assert owned.batches(2)[0].control_record().kind is ControlType.ABORT
    owned.compact(now_ms=119, aborted=aborted)
    assert markers() == [2, 3]
    owned.compact(now_ms=120, aborted=aborted)
    assert markers() == [3]  # producer 2's data is there still
    owned.append((b"k2", b"newer", 0))
    owned.append(FILLER)
    owned.compact(now_ms=200, delete_retention_ms=100)
    owned.compact(now_ms=210, delete_retention_ms=100)
    assert markers() == [3]
    owned.compact(now_ms=310)
    assert markers() == []


def test_5_a_stale_range_does_not_eat_the_producers_next_transaction(owned: OwnedLog) -> None:
    """3.7.5, CleanedTransactionMetadata: a range ends with its marker, also when the marker is long gone."""
    aborted = transaction_log(owned)
    owned.compact(now_ms=0, delete_retention_ms=0, aborted=aborted)
    owned.compact(now_ms=0, delete_retention_ms=0, aborted=aborted)
    owned.compact(now_ms=0, delete_retention_ms=0, aborted=aborted)
    assert all(stored.header.producer_id != 1 for stored in owned.headers())
    owned.append((b"k", b"again", 0), producer_id=1, producer_epoch=1, base_sequence=0, transactional=True)
    owned.append(marker(ControlType.COMMIT, 1))
    owned.append(FILLER)
    owned.compact(aborted=aborted)
    assert (6, b"k", b"again") in owned.records()
    owned.compact(aborted=aborted, first_dirty_offset=0)
    assert (6, b"k", b"again") in owned.records()


# -- 6


def test_6_the_last_batch_of_an_active_producer_is_kept_even_if_emptied(owned: OwnedLog) -> None:
    """3.7.6: last batch of every active producer is kept even if emptied (0 records; offset still advances
    via lastOffsetDelta)."""
    owned.append((b"a", b"1", 3), (b"a", b"2", 4), producer_id=9, producer_epoch=2, base_sequence=5)
    owned.append((b"a", b"3", 5))
    owned.append(FILLER)
    owned.compact(producers={9: ProducerTail(1, 2)})
    empty = owned.batches()[0]
    assert (empty.base_offset, empty.next_offset, empty.record_count) == (0, 2, 0)
    assert (empty.producer_id, empty.producer_epoch, empty.base_sequence, empty.last_sequence) == (9, 2, 5, 6)
    assert empty.max_timestamp == 4
    owned.compact(producers={9: ProducerTail(1, 2)}, first_dirty_offset=0)
    assert owned.batches()[0] == empty
    owned.compact(producers={9: ProducerTail(70, 2)}, first_dirty_offset=0)  # it wrote on, or expired
    assert owned.batches()[0].base_offset == 2


def test_6_of_a_producer_whose_newest_entry_is_a_marker_the_marker_is_kept(owned: OwnedLog) -> None:
    """3.7.6; Cleaner.isBatchLastRecordOfProducer: the marker has the last producer epoch."""
    owned.append((b"a", b"1", 0), producer_id=9, producer_epoch=2, base_sequence=0, transactional=True)
    owned.append(marker(ControlType.COMMIT, 9, producer_epoch=2))
    owned.append((b"a", b"2", 0))
    owned.append(FILLER)
    for now_ms in range(0, 60, 10):
        owned.compact(now_ms=now_ms, delete_retention_ms=5, producers={9: ProducerTail(None, 2)})
    assert owned.offsets() == [2, 3]
    kept = owned.batches()[0]
    assert (kept.base_offset, kept.is_control, kept.producer_epoch, kept.record_count) == (1, True, 2, 0)
    owned.compact(now_ms=60, delete_retention_ms=5, producers={})
    assert owned.batches()[0].base_offset == 2


def test_6_the_last_batch_of_the_cleaned_range_is_kept_even_if_emptied(owned: OwnedLog) -> None:
    """3.7.6: last batch of the cleaned range is kept even if emptied."""
    owned.append((b"a", b"1", 0))
    owned.append((None, b"unkeyed", 0))
    owned.append(FILLER)
    owned.compact()
    assert [(s.header.base_offset, s.header.record_count) for s in owned.headers()] == [
        (0, 1),
        (1, 0),
        (2, 1),
    ]
    owned.append(FILLER)
    owned.compact()
    assert [stored.header.base_offset for stored in owned.headers()] == [0, 2, 3]


def test_6_a_reader_steps_over_an_empty_batch(owned: OwnedLog) -> None:
    """3.7.6: clients must handle batches with 0 records."""
    owned.append((None, b"unkeyed", 0))
    owned.append(FILLER)
    owned.compact()
    batch = owned.batches()[0]
    assert batch.records("t", 0) == []
    assert batch.next_offset == 1


# -- 7, 8, 9


def test_7_compact_and_delete_both_apply(owned: OwnedLog) -> None:
    """3.7.7: compact,delete: both apply. Head deletion between plan and swap does no harm."""
    for number in range(6):
        owned.append((b"a", b"%d" % number, number))
    with owned.environment.snapshot() as snapshot:
        end = cleaner.cleanable_end_offset(snapshot, 7, 0, 6, 0, 0)
    work = cleaner.CompactionWork(0, 0, end, now_ms=0, delete_retention_ms=0)
    compaction = cleaner.Compaction(owned.environment, 7, work)
    plans = list(compaction.plans())
    owned.delete_head(3)
    size = owned.checkpoint.size_bytes
    transaction = owned.environment.write()
    change = sum(cleaner.apply_compaction(transaction, 7, plan) for plan in plans)
    transaction.commit()
    assert owned.offsets() == [4, 5]
    assert size + change == sum(stored.header.size_bytes for stored in owned.headers())


def test_8_unkeyed_records_are_dropped(owned: OwnedLog) -> None:
    """3.7.8: unkeyed records found in a compacted log (policy switched later) are dropped."""
    owned.append((None, b"1", 0), (b"a", b"2", 0), (None, None, 0))
    owned.append(FILLER)
    owned.compact()
    assert owned.records()[:-1] == [(1, b"a", b"2")]


def test_9_a_plan_does_not_touch_what_was_truncated_and_written_anew(owned: OwnedLog) -> None:
    """3.7.9: truncation while cleaning aborts the cleaning. (Owners check the generation; the plan's own
    check, base offset and CRC, stands behind it.)"""
    for value in (b"1", b"2", b"3", b"4"):
        owned.append((b"a", value, 0))
    work = cleaner.CompactionWork(0, 0, 3, now_ms=0, delete_retention_ms=0)
    plans = list(cleaner.Compaction(owned.environment, 7, work).plans())
    assert sum(len(plan.replacements) for plan in plans) == 2
    owned.truncate(0)
    owned.append((b"x", b"new 0", 0))
    owned.append((b"y", b"new 1", 0))
    transaction = owned.environment.write()
    assert [cleaner.apply_compaction(transaction, 7, plan) for plan in plans] == [0]
    transaction.commit()
    assert owned.records() == [(0, b"x", b"new 0"), (1, b"y", b"new 1")]


def test_9_a_checkpoint_beyond_the_log_is_not_believed() -> None:
    """3.7.9, LogCleanerManager.cleanableOffsets: a truncated log is dirty from its start."""
    checkpoint = cleaner.CleanerCheckpoint(50)
    assert cleaner.first_dirty_offset(checkpoint, 10, 60) == 50
    assert cleaner.first_dirty_offset(checkpoint, 10, 49) == 10
    assert cleaner.first_dirty_offset(checkpoint, 55, 60) == 55
    assert cleaner.first_dirty_offset(None, 10, 60) == 10


def test_the_neighbouring_logs_are_not_cleaned(environment: Environment) -> None:
    logs = [OwnedLog(environment, log_id) for log_id in (6, 7, 8)]
    for owned in logs:
        for _ in range(3):
            owned.append((b"a", b"v", 0))
    logs[1].compact()
    assert [owned.offsets() for owned in logs] == [[0, 1, 2], [1, 2], [0, 1, 2]]
    with environment.snapshot() as snapshot:
        assert log.log_ids(snapshot) == [6, 7, 8]
