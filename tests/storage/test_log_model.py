"""One log against a naive model, a list of batches of records: whatever the order of appends, cuts, passes of
the cleaner, look-ups and reopenings, and whatever the layout of the bodies. Two neighbouring logs must never
notice."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamlog.batch import Codec
from streamlog.storage import log
from streamlog.storage.env import Environment
from streamlog.storage.verification import verify_log
from tests.storage.builders import LAYOUTS, OwnedLog

DELETE_RETENTION_MS = 50

KEYS = st.sampled_from([b"a", b"b", b"", b"long" * 40, None])
VALUES = st.sampled_from([b"1", b"2" * 300, None])
TIMES = st.integers(0, 100)
ITEMS = st.lists(st.tuples(KEYS, VALUES, TIMES), min_size=1, max_size=5)


class Entry(NamedTuple):
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int


class ModelBatch:
    """A batch is its range and its records."""

    def __init__(self, base_offset: int, items: list[tuple[bytes | None, bytes | None, int]]) -> None:
        self.base, self.next = base_offset, base_offset + len(items)
        self.records = [Entry(base_offset + index, *item) for index, item in enumerate(items)]
        self.horizon_ms: int | None = None


class LogMachine(RuleBasedStateMachine):
    """`model` holds what the log should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.environment = Environment.open(self.path, sync="off")
        self.owned = OwnedLog(self.environment)
        self.neighbours = [OwnedLog(self.environment, log_id) for log_id in (6, 8)]
        for neighbour in self.neighbours:
            neighbour.append((b"a", b"neighbour", 1000), (b"a", None, 0))
        self.model: list[ModelBatch] = []
        self.start = self.end = self.first_dirty = 0
        self.now_ms = 0

    @initialize(layout=st.sampled_from(LAYOUTS))
    def choose_layout(self, layout: str) -> None:
        self.owned.layout = layout

    def teardown(self) -> None:
        for neighbour in self.neighbours:
            assert [key for _, key, _ in neighbour.records()] == [b"a", b"a"]
        assert self.environment.close()
        shutil.rmtree(self.path)

    # -- what is done

    @rule(
        items=ITEMS, codec=st.sampled_from([Codec.NONE, Codec.ZSTD]), layout=st.sampled_from([*LAYOUTS, None])
    )
    def append(
        self, items: list[tuple[bytes | None, bytes | None, int]], codec: Codec, layout: str | None
    ) -> None:
        usual = self.owned.layout
        self.owned.layout = layout or usual  # a log may hold both
        assert self.owned.append(*items, codec=codec) == self.end
        self.owned.layout = usual
        self.model.append(ModelBatch(self.end, items))
        self.end += len(items)

    @precondition(lambda self: self.end > self.start)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(self.start, self.end))
        self.owned.truncate(offset)
        gone = [batch for batch in self.model if batch.next > offset]
        self.model = [batch for batch in self.model if batch.next <= offset]
        self.end = max(self.start, min([offset, *(batch.base for batch in gone)]))
        self.first_dirty = min(self.first_dirty, self.end)

    @precondition(lambda self: self.end > self.start)
    @rule(data=st.data(), bytes_max=st.sampled_from([1, 400, 1 << 20]))
    def delete_head(self, data: st.DataObject, bytes_max: int) -> None:
        offset = data.draw(st.integers(self.start, self.end))
        while not self.owned.delete_head(offset, bytes_max).done:
            pass
        self.model = [batch for batch in self.model if batch.next > offset]
        self.start = offset

    @rule(later_ms=st.integers(0, 80), slice_bytes_max=st.sampled_from([1, 500, 1 << 20]))
    def compact(self, later_ms: int, slice_bytes_max: int) -> None:
        self.now_ms += later_ms
        self.owned.compact(
            now_ms=self.now_ms, delete_retention_ms=DELETE_RETENTION_MS, slice_bytes_max=slice_bytes_max
        )
        if not self.model:
            return
        first_dirty = self.first_dirty if self.start <= self.first_dirty <= self.end else self.start
        end = max(first_dirty, self.model[-1].base)
        newest = {
            entry.key: entry.offset
            for batch in self.model
            for entry in batch.records
            if first_dirty <= batch.next - 1 < end and batch.next > first_dirty
        }
        cleaned = [batch for batch in self.model if self.start < batch.next <= end]
        for batch in cleaned:
            past = batch.horizon_ms is not None and batch.horizon_ms <= self.now_ms
            batch.records = [
                entry
                for entry in batch.records
                if entry.key is not None
                and newest.get(entry.key, -1) <= entry.offset
                and not (entry.value is None and past)
            ]
            if batch.horizon_ms is None and any(entry.value is None for entry in batch.records):
                batch.horizon_ms = self.now_ms + DELETE_RETENTION_MS
        self.model = [
            batch for batch in self.model if batch not in cleaned or batch.records or batch is cleaned[-1]
        ]
        self.first_dirty = end

    @rule()
    def reopen(self) -> None:
        assert self.environment.close()
        self.environment = Environment.open(self.path, sync="off")
        layout, checkpoint = self.owned.layout, self.owned.checkpoint
        self.owned = OwnedLog(self.environment, layout=layout)
        assert self.owned.checkpoint == checkpoint
        self.neighbours = [OwnedLog(self.environment, log_id) for log_id in (6, 8)]

    # -- what is asked

    def visible(self, start: int, end: int) -> list[Entry]:
        return [entry for batch in self.model for entry in batch.records if start <= entry.offset < end]

    @rule(data=st.data(), bytes_max=st.integers(0, 2000))
    def read(self, data: st.DataObject, bytes_max: int) -> None:
        start = data.draw(st.integers(self.start, self.end))
        end = data.draw(st.integers(start, self.end))
        found = self.owned.batches(start, end, bytes_max)
        wanted = [batch.base for batch in self.model if batch.next > start and batch.next <= end]
        assert [batch.base_offset for batch in found] == wanted[: len(found)]
        assert bool(found) == bool(wanted)
        assert len(found) == 1 or sum(batch.size_bytes for batch in found) <= bytes_max or not found
        if len(found) < len(wanted):
            sizes = {stored.header.base_offset: stored.header.size_bytes for stored in self.owned.headers()}
            assert sum(sizes[base] for base in wanted[: len(found) + 1]) > bytes_max

    @rule(data=st.data(), timestamp=st.integers(-1, 101))
    def look_up(self, data: st.DataObject, timestamp: int) -> None:
        start = data.draw(st.integers(self.start, self.end))
        end = data.draw(st.integers(start, self.end))
        entries = self.visible(start, end)
        with self.environment.snapshot() as snapshot:
            found = log.offset_for_timestamp(snapshot, 7, start, end, timestamp)
            newest = log.offset_of_max_timestamp(snapshot, 7, start, end)
        wanted = next((entry for entry in entries if entry.timestamp >= timestamp), None)
        assert (found and (found.offset, found.timestamp)) == (wanted and (wanted.offset, wanted.timestamp))
        best = max(entries, key=lambda entry: (entry.timestamp, -entry.offset), default=None)
        assert (newest and (newest.offset, newest.timestamp)) == (best and (best.offset, best.timestamp))

    # -- what always holds

    @invariant()
    def the_log_is_the_model(self) -> None:
        checkpoint = self.owned.checkpoint
        assert (checkpoint.log_start_offset, checkpoint.log_end_offset) == (self.start, self.end)
        headers = [stored.header for stored in self.owned.headers()]
        assert [(header.base_offset, header.next_offset) for header in headers] == [
            (batch.base, batch.next) for batch in self.model
        ]
        assert checkpoint.size_bytes == sum(header.size_bytes for header in headers)
        found = [
            Entry(record.offset, record.key, record.value, record.timestamp)
            for batch in self.owned.batches()
            for record in batch.records("t", 0, self.start)
        ]
        assert found == self.visible(self.start, self.end)
        assert [header.delete_horizon_ms for header in headers if header.record_count] == [
            batch.horizon_ms for batch in self.model if batch.records
        ]

    @invariant()
    def nothing_is_wrong_with_it(self) -> None:
        assert verify_log(self.environment, 7, compacted=True) == []


CHECKS_OFF = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

TestLogModel = LogMachine.TestCase
TestLogModel.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=CHECKS_OFF
)


@pytest.mark.long
class TestLogModelLong(LogMachine.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(
        max_examples=1500, stateful_step_count=60, deadline=None, suppress_health_check=CHECKS_OFF
    )
