"""Kafka's classic primitive types, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.core.kafka_types import STRING_BYTES_MAX, TypesReader, TypesWriter


def test_bytes() -> None:
    writer = TypesWriter()
    writer.int16(-2)
    writer.int32(258)
    writer.int64(-1)
    writer.string("ü")
    writer.string(None)
    writer.bytes_(b"ab")
    writer.bytes_(None)
    assert writer.finish().hex(" ") == (
        "ff fe 00 00 01 02 ff ff ff ff ff ff ff ff 00 02 c3 bc ff ff 00 00 00 02 61 62 ff ff ff ff"
    )


@given(st.text(), st.binary(), st.integers(-(2**63), 2**63 - 1))
def test_round_trip(text: str, data: bytes, number: int) -> None:
    writer = TypesWriter()
    writer.string(text)
    writer.bytes_(data)
    writer.int64(number)
    reader = TypesReader(writer.finish())
    assert (reader.string(), reader.bytes_(), reader.int64()) == (text, data, number)
    assert reader.remaining_bytes == 0


def test_nulls() -> None:
    assert TypesReader(b"\xff\xff").nullable_string() is None
    assert TypesReader(b"\xff\xff\xff\xff").nullable_bytes() is None
    assert TypesReader(b"\xff\xff\xff\xff").bytes_() == b""
    assert TypesReader(b"\xff\xff\xff\xff").array_count(4) == 0
    with pytest.raises(ValueError, match="null string"):
        TypesReader(b"\xff\xff").string()


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"\x00\x05abc", b"\xff\xfe", b"\x00\x01\xff"],
    ids=["none", "half", "cut", "negative", "utf8"],
)
def test_torn_string(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        TypesReader(data).string()


def test_an_array_count_is_believed_only_if_it_fits() -> None:
    assert TypesReader(b"\x00\x00\x00\x02abcd").array_count(2) == 2
    for data in (b"\x7f\xff\xff\xffabcd", b"\xff\xff\xff\xfeabcd", b"\x00\x00\x00\x03abcd"):
        with pytest.raises(ValueError, match="array"):
            TypesReader(data).array_count(2)


def test_a_string_has_its_limit() -> None:
    writer = TypesWriter()
    writer.string("x" * STRING_BYTES_MAX)
    with pytest.raises(ValueError, match="32768"):
        writer.string("x" * (STRING_BYTES_MAX + 1))
