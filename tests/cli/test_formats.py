"""Formats of records."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.cli.formats import BadLine, full, make_format, parse_json_line, readable
from streamlog.record import Record

DATA = st.none() | st.binary(max_size=12) | st.text(max_size=6).map(str.encode)
HEADERS = st.lists(st.tuples(st.text(max_size=4), DATA), max_size=3).map(tuple)


@given(DATA, DATA, HEADERS, st.integers(-1, 2**50))
def test_json_keeps_every_byte(
    key: bytes | None, value: bytes | None, headers: object, timestamp: int
) -> None:
    record = Record("t", 1, 2, timestamp, key, value, headers)  # type: ignore[arg-type]
    line = make_format("json", b"\t")([record])
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    back = parse_json_line(line)
    assert (back.key, back.value, back.headers, back.timestamp) == (key, value, record.headers, timestamp)
    assert json.loads(line)["offset"] == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("value", b"v\nnull\n\xff"),
        ("raw", b"v\xff"),
        ("key", b"k\nnull\nnull\n"),
        ("key-value", b"k::v\nnull::null\nnull::\xff"),
    ],
)
def test_text(name: str, expected: bytes) -> None:
    records = [
        Record(key=b"k", value=b"v"),
        Record(),
        Record(value=b"\xff", headers=(("streamlog.line-end", b""),)),
    ]
    assert make_format(name, b"::")(records) == expected


def test_full_cannot_upset_a_terminal() -> None:
    record = Record("t", 0, 5, -1, b"k\n", b"\x1b[2J\xff\ttab \xc3\xa4", (("h", None),))
    line = full(record)
    assert line == "t-0@5  -  key=k\\n  h=null  \\x1b[2J\\xff\ttab ä".encode()
    assert readable("\u202e".encode()) == "\\u202e"
    assert full(Record("t", 0, 5, 2**62)).startswith(b"t-0@5  4611686018427387904 ms")


@pytest.mark.parametrize(
    "line", [b"", b"{", b"3", b"null", b'{"value":1,"headers":{"a":1}', b'{"value":"x","timestamp":true}']
)
def test_bad_json(line: bytes) -> None:
    with pytest.raises(BadLine):
        parse_json_line(line)
