"""SEMANTICS 1.1 (retention rows) and 3.11 R1 to R5, with "batch" read for "segment" (section 6, choice 4)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from streamlog.storage import retention
from streamlog.storage.env import Environment
from tests.storage.builders import OwnedLog, seal, sized


def plan(
    owned: OwnedLog, now_ms: int = 0, retention_ms: int = -1, retention_bytes: int = -1, **changes: int
) -> int:
    checkpoint = owned.checkpoint
    with owned.environment.snapshot() as snapshot:
        return retention.plan_retention(
            retention.iterate_outlines(snapshot, owned.log_id, checkpoint.log_start_offset),
            now_ms=now_ms,
            retention_ms=retention_ms,
            retention_bytes=retention_bytes,
            size_bytes=checkpoint.size_bytes,
            log_start_offset=checkpoint.log_start_offset,
            high_watermark=changes.get("high_watermark", checkpoint.high_watermark),
        )


def log_of(environment: Environment, timestamps: Sequence[int], size_bytes: int = 100) -> OwnedLog:
    owned = OwnedLog(environment)
    for timestamp in timestamps:
        owned.append(sized(size_bytes, timestamp))
    return owned


def test_r1_nothing_is_deleted_while_that_would_go_below_retention_bytes(environment: Environment) -> None:
    """R1: retention.bytes 250, segments 100,100,100(active): nothing deleted (50-100<0)."""
    assert plan(log_of(environment, [0, 0, 0]), retention_bytes=250) == 0


def test_r2_only_the_first_batch_goes(environment: Environment) -> None:
    """R2: retention.bytes 200, same: first deleted only; logStartOffset = base of second."""
    owned = log_of(environment, [0, 0, 0])
    assert plan(owned, retention_bytes=200) == 1
    assert owned.delete_head(1).batches == 1
    assert owned.checkpoint.size_bytes == 200
    assert plan(owned, retention_bytes=200) == 1


def test_r3_the_scan_by_time_stops_at_the_first_survivor(environment: Environment) -> None:
    """R3: retention.ms 60, now 100, largestTs [10,50,20]: first deleted; third survives though older than
    60.
    """
    assert plan(log_of(environment, [10, 50, 20]), now_ms=100, retention_ms=60) == 1


def test_r4_nothing_above_the_high_watermark_goes(environment: Environment) -> None:
    """R4: R3 with largestTs [10,...] but HW < base of segment 2: nothing deleted."""
    owned = log_of(environment, [10, 50, 20])
    assert plan(owned, now_ms=100, retention_ms=60, high_watermark=0) == 0
    assert plan(owned, now_ms=100, retention_ms=60, high_watermark=1) == 1


def test_r5_a_timestamp_in_the_future_keeps_itself_and_everything_behind(environment: Environment) -> None:
    """R5: producer writes ts = now+2 days, retention 1 day: kept until now > ts + retention; blocks every
    later one.
    """
    day = 86_400_000
    owned = log_of(environment, [0, 2 * day, 0, 0])
    assert plan(owned, now_ms=day + 1, retention_ms=day) == 1
    assert plan(owned, now_ms=3 * day, retention_ms=day) == 1
    assert plan(owned, now_ms=3 * day + 1, retention_ms=day) == 4


@pytest.mark.parametrize(("now_ms", "start"), [(69, 0), (70, 0), (71, 1)])
def test_delete_iff_now_minus_largest_timestamp_is_greater_than_retention(
    environment: Environment, now_ms: int, start: int
) -> None:
    """Delete segment iff `now - segment.largestTimestamp > retention.ms` (record timestamps, not file
    time).
    """
    assert plan(log_of(environment, [10, 1000]), now_ms=now_ms, retention_ms=60) == start


def test_the_largest_timestamp_of_a_batch_counts(environment: Environment) -> None:
    """Delete segment iff `now - segment.largestTimestamp > retention.ms`."""
    owned = OwnedLog(environment)
    owned.append((None, b"v", 500), (None, b"v", 10))
    assert plan(owned, now_ms=561, retention_ms=60) == 2
    assert plan(owned, now_ms=560, retention_ms=60) == 0


def test_the_newest_batch_may_go_too(environment: Environment) -> None:
    """Active segment can go too (it is rolled first)."""
    owned = log_of(environment, [10, 20])
    assert plan(owned, now_ms=1000, retention_ms=60) == 2
    owned.delete_head(2)
    assert owned.headers() == []
    assert owned.append((None, b"v", 5)) == 2


def test_minus_one_means_none(environment: Environment) -> None:
    """retention.ms: -1 = none; retention.bytes: -1."""
    assert plan(log_of(environment, [0, 0]), now_ms=1 << 60) == 0


def test_zero_bytes_keep_nothing(environment: Environment) -> None:
    """Delete oldest segment only while `size - retention >= segment.size`."""
    assert plan(log_of(environment, [0, 0, 0]), retention_bytes=0) == 3


def test_time_and_size_add_up(environment: Environment) -> None:
    """Time first, then size over what is left (UnifiedLog.deleteOldSegments)."""
    owned = log_of(environment, [10, 90, 90, 90])
    assert plan(owned, now_ms=100, retention_ms=60, retention_bytes=200) == 2
    assert plan(owned, now_ms=100, retention_ms=60, retention_bytes=300) == 1


def test_retention_counts_from_the_log_start(environment: Environment) -> None:
    """logStartOffset moves by DeleteRecords mid-segment: the batch that holds it may go as a whole later."""
    owned = OwnedLog(environment)
    owned.append(*[(None, b"v", 10)] * 5)
    owned.append((None, b"v", 90))
    owned.delete_head(3)
    assert owned.checkpoint.log_start_offset == 3
    assert plan(owned, now_ms=100, retention_ms=60) == 5


def test_a_compact_only_topic_ignores_retention_but_loses_what_is_below_its_start(
    environment: Environment,
) -> None:
    """3.7.7: compact only: retention.* ignored but segments below logStartOffset go."""
    owned = log_of(environment, [10, 20])
    assert plan(owned, now_ms=1 << 50, retention_ms=-1, retention_bytes=-1) == 0
    assert owned.delete_head(1).batches == 1


def test_a_batch_without_timestamps_lives_as_long_as_its_predecessors(environment: Environment) -> None:
    """Kafka takes the file's time for a segment without timestamps; here the running maximum stands in."""
    owned = OwnedLog(environment)
    owned.append(seal("columnar", [(None, b"v", -1)]))
    assert plan(owned, now_ms=1 << 50, retention_ms=60) == 0
    owned = OwnedLog(environment, 8)
    owned.append((None, b"v", 500))
    owned.append((None, b"v", -1))
    assert plan(owned, now_ms=560, retention_ms=60) == 0
    assert plan(owned, now_ms=561, retention_ms=60) == 2


def test_the_plan_reads_no_further_than_the_first_survivor(environment: Environment) -> None:
    owned = log_of(environment, [10, 20, 90, 90, 90])
    with environment.snapshot() as snapshot:
        outlines = iter(list(retention.iterate_outlines(snapshot, owned.log_id)))
    start = retention.plan_retention(
        outlines,
        now_ms=100,
        retention_ms=60,
        retention_bytes=-1,
        size_bytes=500,
        log_start_offset=0,
        high_watermark=5,
    )
    assert (start, len(list(outlines))) == (2, 2)


@pytest.mark.parametrize(
    ("retention_bytes", "high_watermark", "bytes_max", "target"),
    [
        (200, 4, 1 << 20, 2),
        (250, 4, 1 << 20, 1),
        (350, 4, 1 << 20, None),
        (0, 4, 1 << 20, 4),
        (0, 2, 1 << 20, 2),
        (0, 4, 150, 2),  # a slice of deleting
        (0, 4, 1, 1),
    ],
)
def test_retention_by_size_along_with_an_append(
    environment: Environment, retention_bytes: int, high_watermark: int, bytes_max: int, target: int | None
) -> None:
    owned = log_of(environment, [0, 0, 0, 0])
    with environment.snapshot() as snapshot:
        assert (
            retention.size_retention_target(snapshot, 7, 400, retention_bytes, high_watermark, bytes_max)
            == target
        )
    if target:
        owned.delete_head(target)
        assert owned.checkpoint.size_bytes >= retention_bytes
