"""SEMANTICS 3.8 (offsets lookup) and 3.11 L1, as far as they concern the log itself."""

from __future__ import annotations

import random

import pytest

from streamlog.record import OffsetAndTimestamp
from streamlog.storage import log
from streamlog.storage.env import Environment
from tests.storage.builders import OwnedLog, seal


def lookup(owned: OwnedLog, timestamp: int, start: int | None = None, end: int | None = None) -> int | None:
    """The offset found; -3 asks for the maximum."""
    start = owned.checkpoint.log_start_offset if start is None else start
    end = owned.checkpoint.high_watermark if end is None else end
    with owned.environment.snapshot() as snapshot:
        if timestamp == -3:
            found = log.offset_of_max_timestamp(snapshot, 7, start, end)
        else:
            found = log.offset_for_timestamp(snapshot, 7, start, end, timestamp)
    return None if found is None else found.offset


@pytest.fixture(params=[1, 2, 4])
def l1(request: pytest.FixtureRequest, owned: OwnedLog) -> OwnedLog:
    """Timestamps by offset [10,30,20,40], in one to four batches."""
    items = [(b"k", b"v", timestamp) for timestamp in (10, 30, 20, 40)]
    for index in range(0, 4, request.param):
        owned.append(*items[index : index + request.param])
    return owned


@pytest.mark.parametrize(("timestamp", "offset"), [(15, 1), (25, 1), (41, None), (-3, 3)])
def test_l1(l1: OwnedLog, timestamp: int, offset: int | None) -> None:
    """L1: ts by offset [10,30,20,40]; lookup 15 / 25 / 41 / -3: offset 1 / 1 / null / 3."""
    assert lookup(l1, timestamp) == offset


def test_first_in_offset_order(l1: OwnedLog) -> None:
    """First offset IN OFFSET ORDER with record.ts >= target (timestamps need not be monotonic)."""
    assert [lookup(l1, timestamp) for timestamp in (0, 10, 11, 30, 31, 40)] == [0, 0, 1, 1, 3, 3]


def test_at_or_behind_the_log_start(l1: OwnedLog) -> None:
    """... and >= logStartOffset: what lies below is out of sight though it may be on disk."""
    assert [lookup(l1, 15, start=start) for start in range(5)] == [1, 1, 2, 3, None]
    l1.delete_head(2)
    assert (lookup(l1, 5), lookup(l1, 25), lookup(l1, -3)) == (2, 3, 3)


def test_below_the_last_fetchable_offset(l1: OwnedLog) -> None:
    """None, or result >= last fetchable: (-1,-1), client null."""
    assert [lookup(l1, 35, end=end) for end in range(5)] == [None, None, None, None, 3]
    assert [lookup(l1, -3, end=end) for end in range(5)] == [None, 0, 1, 1, 3]


def test_the_answer_carries_the_records_timestamp_and_its_leader_epoch(l1: OwnedLog) -> None:
    with l1.environment.snapshot() as snapshot:
        assert log.offset_for_timestamp(snapshot, 7, 0, 4, 15) == OffsetAndTimestamp(1, 30, 3)
        assert log.offset_of_max_timestamp(snapshot, 7, 0, 4) == OffsetAndTimestamp(3, 40, 3)


def test_log_append_time_gives_every_record_the_batchs_maximum(owned: OwnedLog) -> None:
    """LogAppendTime: batch max ts applies to all records."""
    for now_ms in (100, 200):
        owned.append(seal(owned.layout, [(b"k", b"v", 5), (b"k", b"v", 6)]).with_log_append_time(now_ms))
    assert [lookup(owned, timestamp) for timestamp in (5, 100, 101, 200, 201)] == [0, 0, 2, 2, None]
    assert lookup(owned, 100, start=1) == 1
    assert lookup(owned, -3) == 2


def test_max_timestamp_is_the_first_record_that_has_it(owned: OwnedLog) -> None:
    """-3 max timestamp (offset of record with max ts; first such)."""
    for timestamps in ((1, 9), (9, 3), (9, 9), (4, 4)):
        owned.append(*[(b"k", b"v", timestamp) for timestamp in timestamps])
    assert lookup(owned, -3) == 1
    assert lookup(owned, -3, start=2) == 2
    assert lookup(owned, -3, start=3) == 4
    assert lookup(owned, -3, start=6) == 6


def test_an_empty_log_has_no_answer(owned: OwnedLog) -> None:
    assert lookup(owned, 0, 0, 0) is None
    assert lookup(owned, -3, 0, 10) is None
    owned.append((b"k", b"v", 1))
    owned.delete_head(1)
    assert lookup(owned, 0) is None
    assert lookup(owned, -3, 0, 10) is None


def test_the_record_that_raised_the_running_maximum_may_be_gone(owned: OwnedLog) -> None:
    for timestamp in (1000, 10, 20, 30):
        owned.append((b"k", b"v", timestamp))
    owned.delete_head(1)
    assert [lookup(owned, timestamp) for timestamp in (5, 15, 25, 35)] == [1, 2, 3, None]
    assert lookup(owned, -3) == 3


def test_neighbouring_logs_do_not_answer(environment: Environment) -> None:
    before, owned, behind = (OwnedLog(environment, log_id) for log_id in (6, 7, 8))
    for other in (before, behind):
        other.append((b"k", b"v", 1 << 40))
    owned.append((b"k", b"v", 5))
    assert lookup(owned, 6, 0, 1 << 50) is None
    assert lookup(owned, 5, 0, 1 << 50) == 0
    assert lookup(owned, -3, 0, 1 << 50) == 0


@pytest.mark.parametrize("seed", range(12))
def test_lookups_agree_with_a_list(owned: OwnedLog, seed: int) -> None:
    choose = random.Random(seed)
    timestamps: list[int] = []
    while len(timestamps) < 60:
        batch = [choose.randrange(100) + len(timestamps) * (seed % 3) for _ in range(choose.randrange(1, 6))]
        owned.append(*[(b"k", b"v", timestamp) for timestamp in batch])
        timestamps += batch
    owned.delete_head(choose.randrange(20))
    for _ in range(100):
        start = choose.randrange(owned.checkpoint.log_start_offset, len(timestamps))
        end = choose.randrange(start, len(timestamps) + 1)
        target = choose.randrange(-2, 250)
        answers = [offset for offset in range(start, end) if timestamps[offset] >= target]
        assert lookup(owned, target, start, end) == (answers[0] if answers else None)
        best = max(timestamps[start:end], default=None)
        expected = None if best is None else timestamps.index(best, start)
        assert lookup(owned, -3, start, end) == expected


def test_a_lookup_reads_few_batches(owned: OwnedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Back of the envelope: 2**11 offsets are 11 steps in the tree, then one header and one body."""
    for number in range(2000):
        owned.append((b"k", b"v", number))
    parsed: list[int] = []
    parse_header = log.parse_header
    monkeypatch.setattr(log, "parse_header", lambda *a: parsed.append(1) or parse_header(*a))  # type: ignore[func-returns-value]
    assert lookup(owned, 1500) == 1500
    assert len(parsed) == 1
