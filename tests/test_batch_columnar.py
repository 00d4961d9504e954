"""The columnar body: its bytes, what constant columns cost, what cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from streamlog import batch_columnar
from streamlog.batch import (
    parse_batch,
    records_of,
    seal_columnar,
    seal_v2_columns,
)
from streamlog.batch_columnar import CONSTANT_RECORDS_MAX, encode_columns
from streamlog.errors import InvalidRecordError
from tests.batch_samples import T, forge, sample


def test_columnar_layout_table_is_the_docstrings() -> None:
    for index, column in enumerate(batch_columnar.COLUMNAR_LAYOUT):
        doc = batch_columnar.__doc__ or ""
        assert f"{index} | {column.name:10} | {column.msgpack:44} | {column.constant}" in doc


def test_golden_columnar_bytes() -> None:
    """The format on disk: changing these bytes is a format change."""
    one = seal_columnar([b"k"], [b"v"], timestamps=T)
    assert one.payload[40:].hex() == "9500c4016bc40176c000"
    assert (
        one.encode()[:21].hex() == "0000000000000000 0000003b ffffffff 53".replace(" ", "") + f"{one.crc:08x}"
    )
    two = seal_columnar(
        [b"k", None], [b"v", b"v"], timestamps=[T, T + 1], headers=[(), (("h", b"1"),)], offsets=[1, 9]
    )
    assert two.payload[40:].hex() == "9592000192c4016bc0c4017692909192a168c40131920109"


def test_constant_columns_cost_nothing() -> None:
    def body_bytes(**options: Any) -> int:
        columns = {"keys": None, "values": [b"v%02d" % n for n in range(50)], "timestamps": T} | options
        return len(seal_columnar(columns.pop("keys"), columns.pop("values"), **columns).payload) - 40

    plain = body_bytes()
    assert plain == 1 + 1 + 1 + 3 + 50 * 5 + 1 + 1
    assert body_bytes(keys=[None] * 50) == plain
    assert body_bytes(timestamps=[T] * 50) == plain
    assert body_bytes(headers=[()] * 50) == plain
    assert body_bytes(offsets=list(range(50))) == plain
    assert body_bytes(offsets=list(range(7, 57))) == plain
    assert body_bytes(keys=[b"abc"] * 50) == plain + 4
    assert body_bytes(headers=[(("h", b"1"),)] * 50) == plain + 7
    assert body_bytes(values=[None] * 50) == 6
    assert body_bytes(offsets=[*range(49), 60]) == plain + 3 - 1 + 50


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "body",
    [
        (0, b"k", b"v", None),
        (0, b"k", b"v", None, 0, 0),
        ("0", b"k", b"v", None, 0),
        (0, "k", b"v", None, 0),
        (0, b"k", 7, None, 0),
        (0, b"k", b"v", [], 0),
        (0, b"k", b"v", [(), ()], 0),
        (0, b"k", b"v", [((b"h", b"1"),)], 0),
        (0, b"k", b"v", [(("h",),)], 0),
        (0, b"k", b"v", None, -1),
        (0, b"k", b"v", None, 3),
        (0, [b"k"] * 2, b"v", None, 0),
        ([1, 2], b"k", b"v", None, 0),
        (0, b"k", b"v", None, [0, 1]),
        (0, b"k", b"v", None, None),
    ],
)
def test_impossible_columns(body: Any, count: int) -> None:
    data = forge(sample("columnar", count), body=encode_columns(body), last_offset_delta=2)
    with pytest.raises(InvalidRecordError):
        parse_batch(data).records("t", 0)
    with pytest.raises(InvalidRecordError):
        records_of(data, "t", 0)


@pytest.mark.parametrize("offsets", [[0, 0, 1], [0, 2, 1], [-1, 0, 1], [0, 1, 3]])
def test_impossible_offsets(offsets: list[int]) -> None:
    data = forge(sample("columnar", 3), body=encode_columns((0, None, None, None, offsets)))
    with pytest.raises(InvalidRecordError):
        records_of(data, "t", 0)


@pytest.mark.parametrize(
    "wrapper", [b"\x81\xc0", b"\x91", b"\xdd\xff\xff\xff\xff", b"\x95\xdd\x7f\xff\xff\xff"]
)
def test_nested_and_oversized_msgpack(wrapper: bytes) -> None:
    data = forge(sample("columnar", 1), body=wrapper * 5000)
    with pytest.raises(InvalidRecordError):
        records_of(data, "t", 0)


def test_header_name_that_is_not_utf8() -> None:
    body = encode_columns((0, b"k", b"v", [(("ab", b"1"),)], 0)).replace(b"ab", b"a\xff")
    with pytest.raises(InvalidRecordError):
        records_of(forge(sample("columnar", 1), body=body), "t", 0)


def test_many_equal_records() -> None:
    count = CONSTANT_RECORDS_MAX + 1
    batch = seal_columnar(None, [None] * count, timestamps=T)
    assert len(batch.columns().values) == count
    assert len(seal_v2_columns(None, [None] * 10, timestamps=T).to_columnar().payload) == 46
