"""Kafka's record format: golden bytes, independent implementations, garbage."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog import batch_v2
from streamlog.batch import (
    Codec,
    ControlRecord,
    ControlType,
    control_batch,
    parse_batch,
    seal_v2,
    seal_v2_columns,
)
from streamlog.batch_columnar import Body
from streamlog.batch_v2 import decode_body, decode_control, encode_body, encode_control
from streamlog.errors import InvalidRecordError
from streamlog.record import Record

T = 1_700_000_000_000
# Made by aiokafka 0.14 and checked by hand.
GOLDEN = bytes.fromhex(
    "0000000000000000 0000005f ffffffff 02 1fdf02d2 0010 00000002 0000018bcfe56800 0000018bcfe56805"
    "0000000000001092 0007 00000063 00000003"
    "38 00 00 00 0a 616c696365 04 7631 04 0a 7472616365 02 31 0a 7472616365 01"  # alice, v1, two headers
    "0c 00 0a 02 01 00 00"  # null key, empty value, 5 ms later
    "12 00 01 04 06 626f62 01 00"  # bob, tombstone, 1 ms earlier
)
GOLDEN_RECORDS = [
    Record("t", 3, 0, T, b"alice", b"v1", (("trace", b"1"), ("trace", None))),
    Record("t", 3, 1, T + 5, None, b""),
    Record("t", 3, 2, T - 1, b"bob", None),
]
# A commit marker (type 1) of coordinator epoch 9.
COMMIT_BODY = bytes.fromhex("20 00 00 00 08 00000001 0c 000000000009 00")


def test_golden_bytes_decode() -> None:
    batch = parse_batch(GOLDEN)
    assert batch.records("t", 3) == GOLDEN_RECORDS
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (4242, 7, 99)
    assert batch.is_transactional and not batch.is_control
    assert (batch.base_timestamp, batch.max_timestamp) == (T, T + 5)


def test_golden_bytes_encode() -> None:
    batch = seal_v2(GOLDEN_RECORDS, producer_id=4242, producer_epoch=7, base_sequence=99, transactional=True)
    assert batch.encode() == GOLDEN


def test_commit_marker_bytes() -> None:
    batch = control_batch(
        ControlType.COMMIT, producer_id=4242, producer_epoch=7, timestamp=T, coordinator_epoch=9
    )
    assert batch.payload[40:] == COMMIT_BODY
    assert batch.payload[:2] == b"\x00\x30"
    assert batch.is_control and batch.is_transactional
    assert (batch.base_sequence, batch.last_sequence, batch.record_count, batch.next_offset) == (-1, -1, 1, 1)
    assert parse_batch(batch.encode()).control_record() == ControlRecord(ControlType.COMMIT, 9)


def test_control_records() -> None:
    assert decode_control(*encode_control(ControlType.ABORT, 3)) == ControlRecord(ControlType.ABORT, 3)
    later = (b"\x00\x01\x00\x01more", b"\x00\x02\x00\x00\x00\x05more")
    assert decode_control(*later) == ControlRecord(ControlType.COMMIT, 5)
    assert decode_control(b"\x00\x00\x00\x02", b"anything") == ControlRecord(ControlType.UNKNOWN, -1)
    for key, value in (
        (b"\x00", b""),
        (None, None),
        (b"\x00\x00\x00\x00", b"\x00"),
        (b"\x00\x00\x00\x01", None),
    ):
        with pytest.raises(InvalidRecordError):
            decode_control(key, value)
    with pytest.raises(InvalidRecordError):
        decode_control(b"\xff\xff\x00\x00", b"\x00\x00\x00\x00\x00\x00")


@pytest.mark.parametrize(
    ("number", "encoded"),
    [
        (0, "00"),
        (-1, "01"),
        (1, "02"),
        (-64, "7f"),
        (63, "7e"),
        (64, "8001"),
        (-65, "8101"),
        (300, "d804"),
        (2**31 - 1, "feffffff0f"),
        (-(2**31), "ffffffff0f"),
        (2**63 - 1, "feffffffffffffffff01"),
        (-(2**63), "ffffffffffffffffff01"),
    ],
)
def test_varints(number: int, encoded: str) -> None:
    assert batch_v2._varints[number].hex() == encoded
    raw, end = batch_v2._decode_varint(bytes.fromhex(encoded), 0)
    assert ((raw >> 1) ^ -(raw & 1), end) == (number, len(encoded) // 2)


def test_varint_out_of_range() -> None:
    with pytest.raises(InvalidRecordError):
        batch_v2._varints[2**63]
    for encoded in (b"\xff" * 9 + b"\x02", b"\x80" * 10 + b"\x01", b"\xff" * 1000):
        with pytest.raises(InvalidRecordError):
            batch_v2._decode_varint(encoded, 0)


def test_the_varint_table_stays_small() -> None:
    batch_v2._varints[10**9]
    assert 10**9 not in batch_v2._varints
    assert min(batch_v2._varints) >= -1


optional_bytes = st.none() | st.binary(max_size=300)
header = st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=200))
row = st.tuples(
    st.integers(-(2**62), 2**62), optional_bytes, optional_bytes, st.lists(header, max_size=3).map(tuple)
)


@given(st.lists(row, max_size=150))
def test_round_trip_of_the_body(rows: list[Any]) -> None:
    count = len(rows)
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
    headers = columns[3] if any(columns[3]) else None
    body: Body = (columns[0] or 0, columns[1], columns[2], headers, 0)
    encoded = encode_body(body, count)
    assert decode_body(encoded, count, count) == body


@pytest.mark.parametrize(
    "body",
    [
        (5, b"k", b"v", [(("h", b"1"),)], 0),
        (5, None, None, None, 7),
        ([1, 2, 3], b"", [b"a", None, b"c"], None, [0, 4, 9]),
    ],
)
def test_constant_columns_are_spread(body: Body) -> None:
    times, keys, values, headers, offsets = decode_body(encode_body(body, 3), 3, 20)

    def spread(column: Any) -> Any:
        return column if isinstance(column, list) else [column] * 3

    assert [times, keys, values] == [spread(column) for column in body[:3]]
    assert headers == (body[3] * 3 if body[3] else None)
    assert offsets == body[4]


def test_header_key_that_is_not_utf8() -> None:
    encoded = encode_body((0, None, b"v", [(("ab", b"1"),)], 0), 1).replace(b"ab", b"a\xff")
    assert decode_body(encoded, 1, 0)[3] == [(("a�", b"1"),)]


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("", 1),
        ("0c 00 00 00 01 01 00 00", 1),  # a byte behind the record
        ("0e 00 00 00 01 01 00", 1),  # stated too long
        ("0a 00 00 00 01 01 00", 1),  # stated too short
        ("0b 00 00 00 01 01 00", 1),  # negative length
        ("0c 00 00 00 01 01 01", 1),  # negative headers count
        ("0c 00 00 00 01 01 7e", 1),  # more headers than bytes
        ("10 00 00 00 01 01 02 01 01", 1),  # null header key
        ("0c 00 00 00 01 7e 00", 1),  # value longer than the body
        ("0c 00 00 01 01 01 00", 1),  # offset delta -1
        ("0c 00 00 04 01 01 00", 1),  # offset delta behind the last
        ("0c 00 00 00 01 01 00 0c 00 00 00 01 01 00", 2),  # offsets do not rise
        ("0c 00 00 00 01 01 00", 2**31 - 1),
        ("ffffffffffffffffffff01 00", 1),
    ],
)
def test_nonsense(body: str, count: int) -> None:
    with pytest.raises(InvalidRecordError):
        decode_body(bytes.fromhex(body), count, 1)


@given(st.binary(max_size=200), st.integers(0, 20))
def test_random_bytes(data: bytes, count: int) -> None:
    try:
        decode_body(data, count, 100)
    except InvalidRecordError:
        pass


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_changed_bytes(position: int, byte: int) -> None:
    data = bytearray(GOLDEN[61:])
    data[position % len(data)] = byte
    try:
        timestamps, keys, values, _, _ = decode_body(bytes(data), 3, 5)
        assert all(isinstance(column, list) and len(column) == 3 for column in (timestamps, keys, values))
    except InvalidRecordError:
        pass


# Independent implementations.

oracle_row = st.tuples(
    st.integers(0, 2**50),
    st.none() | st.binary(max_size=200),
    st.none() | st.binary(max_size=200),
    st.lists(st.tuples(st.text(max_size=5), st.none() | st.binary(max_size=20)), max_size=3),
)


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.GZIP])
@pytest.mark.parametrize("module", ["aiokafka.record.default_records", "kafka.record.default_records"])
@given(rows=st.lists(oracle_row, min_size=1, max_size=20))
def test_bytes_equal_those_of(module: str, codec: Codec, rows: list[Any]) -> None:
    oracle = pytest.importorskip(module)
    builder = oracle.DefaultRecordBatchBuilder(2, int(codec), 1, 42, 3, 77, 1 << 20)
    for index, (timestamp, key, value, headers) in enumerate(rows):
        builder.append(index, timestamp, key, value, headers)
    theirs = bytes(builder.build())
    ours = seal_v2(
        [Record(timestamp=t, key=k, value=v, headers=tuple(h)) for t, k, v, h in rows],
        codec=codec,
        producer_id=42,
        producer_epoch=3,
        base_sequence=77,
        transactional=True,
    ).encode()
    # kafka-python leaves out the leader epoch and, uncompressed where that is not smaller, the codec.
    parsed = parse_batch(theirs)
    if codec == Codec.NONE:
        assert ours[16:] == theirs[16:]
    assert [(r.timestamp, r.key, r.value, list(r.headers)) for r in parsed.records("t", 0)] == rows
    read = [
        (r.timestamp, r.key, r.value, list(r.headers)) for r in oracle.DefaultRecordBatch(bytearray(ours))
    ]
    assert read == rows


@pytest.mark.parametrize("codec", [Codec.SNAPPY, Codec.LZ4, Codec.ZSTD])
def test_other_codecs_against_aiokafka(codec: Codec) -> None:
    oracle = pytest.importorskip("aiokafka.record.default_records")
    pytest.importorskip("cramjam")
    values = [b"value %d" % number * 20 for number in range(500)]
    builder = oracle.DefaultRecordBatchBuilder(2, int(codec), 0, -1, -1, -1, 1 << 20)
    for index, value in enumerate(values):
        builder.append(index, T, None, value, [])
    assert [record.value for record in parse_batch(bytes(builder.build())).records("t", 0)] == values
    ours = seal_v2_columns(None, values, timestamps=T, codec=codec).encode()
    assert [record.value for record in oracle.DefaultRecordBatch(bytearray(ours))] == values
