"""A batch in memory: conversion between layouts, compaction, restamping."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlog.batch import (
    MAGIC_COLUMNAR,
    MAGIC_V2,
    Batch,
    Codec,
    ControlType,
    control_batch,
    parse_batch,
    records_of,
    seal_columnar,
    seal_v2_columns,
)
from streamlog.batch_sealed import assemble, encode_body
from streamlog.errors import InvalidRecordError, UnsupportedCompressionTypeError
from tests.batch_samples import BAD, T, both_layouts, counts, same_header, sample

header_strategy = st.tuples(st.text(max_size=4), st.none() | st.binary(max_size=8))
bytes_strategy = st.none() | st.binary(max_size=20)


@both_layouts
def test_columns(layout: str) -> None:
    columns = sample(layout, 4).columns()
    assert list(columns.keys) == [b"k0", b"k1", b"k2", b"k3"]
    assert list(columns.values) == [b"v0", None, b"v2", b"v3"]
    assert list(columns.headers) == [(), (), (("h", b"2"), ("h", None)), ()]
    assert list(columns.timestamps) == [T, T + 2, T + 4, T + 1]
    assert list(columns.offsets) == [0, 1, 2, 3]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """A batch of Kafka's layout in any state that the log may hold it in."""
    count = draw(st.integers(0, 12))

    def column(strategy: st.SearchStrategy[Any]) -> list[Any]:
        if draw(st.booleans()):
            return [draw(strategy)] * count
        return draw(st.lists(strategy, min_size=count, max_size=count))

    offsets = None
    if count and draw(st.booleans()):
        steps = draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))
        offsets = [sum(steps[: index + 1]) - 1 for index in range(count)]
    batch = seal_v2_columns(
        column(bytes_strategy),
        column(bytes_strategy),
        headers=column(st.lists(header_strategy, max_size=3).map(tuple)),
        timestamps=column(st.integers(-1, 2**45)) or T,
        offsets=offsets,
        codec=draw(st.sampled_from([Codec.NONE, Codec.ZSTD, Codec.GZIP])),
        producer_id=draw(st.sampled_from([-1, 42])),
        producer_epoch=draw(st.integers(-1, 5)),
        base_sequence=draw(st.integers(-1, 2**31 - 1)),
        transactional=draw(st.booleans()),
    ).with_offsets(draw(st.integers(0, 2**40)), draw(st.integers(-1, 9)))
    if draw(st.booleans()):
        batch = batch.with_log_append_time(draw(st.integers(0, 2**45)))
    if count and draw(st.booleans()):
        kept = [index for index in range(count) if draw(st.booleans())]
        batch = batch.retain(kept, draw(st.none() | st.integers(0, 2**45)))
    return parse_batch(batch.encode())


@settings(max_examples=200)
@given(batches())
def test_v2_to_columnar_to_v2(batch: Batch) -> None:
    columnar = batch.to_columnar()
    assert columnar.magic == MAGIC_COLUMNAR and parse_batch(columnar.encode()) == columnar
    assert same_header(columnar, batch)
    assert columnar.records("t", 1) == batch.records("t", 1) == records_of(columnar.encode(), "t", 1)
    assert [list(column) for column in columnar.columns()] == [list(column) for column in batch.columns()]
    back = columnar.to_v2()
    assert back.magic == MAGIC_V2 and same_header(back, batch)
    assert back == batch  # byte for byte
    assert columnar.to_columnar() is columnar and batch.to_v2() is batch
    for start in (batch.base_offset, batch.base_offset + 3, batch.last_offset, batch.next_offset):
        wanted = [record for record in batch.records("t", 1) if record.offset >= start]
        for layout in (batch, columnar):
            assert layout.records("t", 1, start) == records_of(layout.encode(), "t", 1, start) == wanted


@given(batches(), st.data())
def test_retain(batch: Batch, data: st.DataObject) -> None:
    """Compaction keeps the chosen records as they are, and the range and producer of the batch."""
    kept = [index for index in range(batch.record_count) if data.draw(st.booleans())]
    horizon = data.draw(st.none() | st.integers(0, 2**45))
    before = batch.records("t", 0)
    for source in (batch, batch.to_columnar()):
        after = parse_batch(source.retain(kept, horizon).encode())
        assert after.records("t", 0) == [before[index] for index in kept]
        for name in (
            "base_offset",
            "last_offset",
            "leader_epoch",
            "magic",
            "producer_id",
            "producer_epoch",
            "base_sequence",
        ):
            assert getattr(after, name) == getattr(source, name), name
        assert after.is_transactional == source.is_transactional
        assert after.is_log_append_time == source.is_log_append_time
        if kept:
            assert after.max_timestamp == max(record.timestamp for record in after.records("t", 0))
            assert after.delete_horizon_ms == (source.delete_horizon_ms if horizon is None else horizon)
            assert after.codec == source.codec
        else:
            assert (after.codec, after.delete_horizon_ms) == (Codec.NONE, None)
            assert after.max_timestamp == source.max_timestamp


def test_retain_keeps_the_delete_horizon_of_timestamps() -> None:
    """KIP-534: the base timestamp becomes the horizon; what consumers see does not change."""
    batch = sample("v2", 6).retain([1, 2, 5], delete_horizon_ms=T + 86_400_000)
    assert batch.has_delete_horizon and batch.base_timestamp == batch.delete_horizon_ms == T + 86_400_000
    assert [record.timestamp for record in batch.records("t", 0)] == [T + 2, T + 4, T]
    assert [record.offset for record in batch.records("t", 0)] == [1, 2, 5]
    again = batch.retain([1])
    assert again.delete_horizon_ms == T + 86_400_000
    assert [record.timestamp for record in again.records("t", 0)] == [T + 4]


def test_control_batch_stays_kafkas() -> None:
    marker = control_batch(ControlType.COMMIT, producer_id=1, producer_epoch=0, timestamp=T)
    assert marker.to_columnar() is marker
    assert sample("v2", 1).control_record().kind == ControlType.UNKNOWN
    stamped = marker.retain([0], delete_horizon_ms=T + 5)
    assert stamped.is_control and stamped.control_record().kind == ControlType.COMMIT
    assert stamped.retain([]).is_control


@both_layouts
@counts
def test_log_append_time(layout: str, count: int) -> None:
    batch = sample(layout, count)
    stamped = batch.with_log_append_time(T + 99)
    assert stamped.is_log_append_time and not batch.is_log_append_time
    assert (stamped.base_timestamp, stamped.max_timestamp) == (batch.base_timestamp, T + 99)
    assert stamped.crc != batch.crc
    parsed = parse_batch(stamped.encode())
    assert {record.timestamp for record in parsed.records("t", 0)} == {T + 99}
    assert set(parsed.columns().timestamps) == {T + 99}
    assert [record.key for record in parsed.records("t", 0)] == [
        record.key for record in batch.records("t", 0)
    ]


@both_layouts
def test_with_producer_and_with_codec(layout: str) -> None:
    batch = sample(layout, 50)
    bumped = batch.with_producer(5, 6, 2**31 - 2, transactional=True)
    assert (bumped.producer_id, bumped.producer_epoch, bumped.base_sequence) == (5, 6, 2**31 - 2)
    assert bumped.last_sequence == 47  # wraps from 2**31 - 1 to 0
    assert bumped.is_transactional and bumped.with_producer(5, 7, 0).is_transactional
    packed = bumped.with_codec(Codec.ZSTD, 5)
    assert packed.codec == Codec.ZSTD and packed.size_bytes < batch.size_bytes
    assert parse_batch(packed.encode()).records("t", 0) == batch.records("t", 0)
    assert packed.with_codec(Codec.NONE) == bumped
    assert packed.with_codec(Codec.ZSTD) is packed


@settings(max_examples=300)
@given(batches(), st.booleans(), st.data())
def test_damaged_without_crc_check(batch: Batch, columnar: bool, data: st.DataObject) -> None:
    """With the CRC check waived, damage gives records or an error of ours, whatever one does with it. A flipped bit may
    name a codec whose library is not installed: nobody can tell that this is not what was written."""
    broken = bytearray((batch.to_columnar() if columnar else batch).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(broken)
    for use in (
        lambda: records_of(damaged, "t", 0, 5, check_crc=False),
        lambda: parse_batch(damaged, check_crc=False).records("t", 0),
        lambda: parse_batch(damaged, check_crc=False).columns(),
        lambda: parse_batch(damaged, check_crc=False).to_v2(),
        lambda: parse_batch(damaged, check_crc=False).to_columnar(),
        lambda: parse_batch(damaged, check_crc=False).with_codec(Codec.GZIP),
        lambda: parse_batch(damaged, check_crc=False).control_record(),
        lambda: retain_half(parse_batch(damaged, check_crc=False)),
        lambda: repr(parse_batch(damaged, check_crc=False)),
    ):
        try:
            use()
        except (*BAD, UnsupportedCompressionTypeError):
            pass


@pytest.mark.parametrize("magic", [MAGIC_COLUMNAR, MAGIC_V2])
def test_timestamps_too_far_from_a_new_base(magic: int) -> None:
    """A delta of 64 bits is possible in a body; against another base it may need more."""
    body = encode_body(magic, ([2**63 - 1, 0], [b"k", b"k"], [b"v", b"v"], None, 0), 2)
    batch = assemble(body, magic, 0, 2, 2**63 - 1, 2**63 - 1, -1, -1, -1, last_offset_delta=1)
    assert batch.columns().timestamps[0] == 2**64 - 2
    with pytest.raises(InvalidRecordError):
        batch.retain([0, 1], -(2**63))
    with pytest.raises(InvalidRecordError):
        seal_columnar(None, [b"a", b"b"], timestamps=[2**63 - 1, -(2**63)])


def retain_half(batch: Batch) -> Batch:
    return batch.retain(range(0, len(batch.columns().keys), 2), 2**40)
