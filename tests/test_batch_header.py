"""The header of a batch: its layout, its flags, what cannot be."""

from __future__ import annotations

import struct
from itertools import product

import pytest

from streamlog import batch_header
from streamlog.batch import (
    CRC_START,
    HEADER_BYTES,
    HEADER_LAYOUT,
    ControlType,
    control_batch,
    parse_batch,
    parse_header,
    records_of,
)
from streamlog.errors import CorruptRecordError, InvalidRecordError
from tests.batch_samples import T, both_layouts, counts, forge, sample


def test_header_layout_is_kafkas() -> None:
    sizes = {field.name: struct.calcsize(">" + field.code) for field in HEADER_LAYOUT}
    assert list(sizes.values()) == [8, 4, 4, 1, 4, 2, 4, 8, 8, 8, 2, 4, 4]
    assert HEADER_BYTES == sum(sizes.values()) == 61
    assert CRC_START == sum(list(sizes.values())[:5]) == 21
    skipped = batch_header.unpack_read_header(bytes(range(61)))
    fields = batch_header.unpack_header(bytes(range(61)))
    assert skipped == fields[:2] + fields[3:9] + fields[12:]


@both_layouts
def test_parse_header_walks_batches(layout: str) -> None:
    first, second = sample(layout, 3).encode(), sample(layout, 5).with_offsets(3, 1).encode()
    data = first + second
    header = parse_header(data)
    assert (header.base_offset, header.record_count, header.size_bytes) == (0, 3, len(first))
    header = parse_header(memoryview(data), header.size_bytes)
    assert (header.base_offset, header.next_offset, header.record_count) == (3, 8, 5)
    assert parse_header(second[:61]) == header  # no body needed
    assert "BatchHeader" in repr(header)


@both_layouts
@counts
@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"attributes": 5}, InvalidRecordError),
        ({"attributes": 7}, InvalidRecordError),
        ({"record_count": -1}, InvalidRecordError),
        ({"record_count": 2**31 - 1}, InvalidRecordError),
        ({"last_offset_delta": -1, "record_count": 0}, InvalidRecordError),
        ({"base_offset": -1}, InvalidRecordError),
        ({"length": 48}, CorruptRecordError),
        ({"length": -1}, CorruptRecordError),
        ({"magic": 1}, CorruptRecordError),
        ({"crc": 1}, CorruptRecordError),
    ],
)
def test_impossible_headers(layout: str, count: int, fields: dict[str, int], error: type[Exception]) -> None:
    data = forge(sample(layout, count), **fields)
    for read in (parse_batch, lambda damaged: records_of(damaged, "t", 0)):
        with pytest.raises(error):
            read(data)
    if "crc" not in fields:
        with pytest.raises(error):
            parse_header(data)


def test_every_field_combination_of_flags() -> None:
    for bits in product([0, 1], repeat=4):
        attributes = sum(bit << shift for bit, shift in zip(bits, (3, 4, 5, 6), strict=True))
        batch = parse_batch(forge(sample("v2", 1), attributes=attributes))
        flags = (batch.is_log_append_time, batch.is_transactional, batch.is_control, batch.has_delete_horizon)
        assert flags == tuple(bool(bit) for bit in bits)


def test_repr_is_short() -> None:
    text = repr(sample("columnar", 100, producer_id=7, producer_epoch=0, base_sequence=3).with_offsets(5, 1))
    assert text.startswith("<Batch [5, 105) columnar epoch=1 records=100 bytes=") and text.endswith(
        "producer=7/0/3>"
    )
    marker = control_batch(ControlType.ABORT, producer_id=7, producer_epoch=0, timestamp=T)
    assert "transactional control" in repr(marker)


def test_errors_carry_facts() -> None:
    data = sample("columnar", 3).with_offsets(77, 0).encode()
    with pytest.raises(CorruptRecordError) as caught:
        parse_batch(data[:-1] + b"\xff")
    assert caught.value.offset == 77 and caught.value.expected != caught.value.actual
    with pytest.raises(CorruptRecordError) as caught:
        parse_batch(data[:-1])
    assert (caught.value.expected, caught.value.actual) == (len(data), len(data) - 1)
    with pytest.raises(CorruptRecordError) as caught:
        parse_batch(data[:16] + b"\x01" + data[17:])
    assert caught.value.magic == 1
    assert parse_batch(data[:-1] + b"\xff", check_crc=False).base_offset == 77
