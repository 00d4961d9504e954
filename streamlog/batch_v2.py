"""The records of a record batch in Kafka's format 2 (magic 2), byte for byte, and of control records.

    record = length varint | attributes i8 (0) | timestamp delta varlong | offset delta varint
           | key length varint (-1 = null) | key | value length varint (-1 = null) | value
           | headers count varint | header ...
    header = key length varint | key UTF-8 | value length varint (-1 = null) | value

A varint is a zigzag number (0, -1, 1, -2, ... become 0, 1, 2, 3, ...) in groups of seven bits, lowest first.

    control record: key   = version i16 | type i16 (0 abort, 1 commit)
                    value = version i16 | coordinator epoch i32

This is pure Python and the slow layout: in-process producers use the columnar one. The loops below are
written out: no call for a varint of one or two bytes, and numbers looked up in a table
(`benchmarks/micro_batch.py` measures them).

Invariants:
 1. `decode_body` ends exactly at the end of each record's stated length and of the body, or raises
    InvalidRecordError.
 2. What `encode_body` makes is canonical: shortest varints, attributes 0. Canonical bytes survive decode and
    encode.
 3. Header keys that are not UTF-8 are decoded with U+FFFD, as Kafka's Java client does: they make nothing
    unreadable.
Sources: KIP-82 (headers), KIP-98 (format 2, control records); Kafka DefaultRecord, ByteUtils,
ControlRecordType, EndTransactionMarker.
Not implemented: message formats 0 and 1 (Kafka 4 has dropped them); per-record attributes, which Kafka leaves
unused.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from itertools import repeat
from struct import Struct
from struct import error as struct_error
from typing import TypeAlias, cast

import msgspec

from .batch_columnar import Body, BytesColumn, Headers, HeadersColumn, IntColumn, check_offsets
from .errors import InvalidRecordError

_Ints: TypeAlias = list[int]
_Cells: TypeAlias = list[bytes | None]
_Found: TypeAlias = dict[int, Headers]  # record index -> its headers

RECORD_BYTES_MIN = 7  # length, attributes, two deltas, two lengths, headers count: one byte each
_VARINTS_KEPT_MAX = 1 << 13


class _Varints(dict[int, bytes]):
    """number -> its varint; the small ones are kept, so that a hot loop pays one look-up at C speed."""

    def __missing__(self, number: int) -> bytes:
        encoded = _encode_varint(number)
        if -1 <= number < _VARINTS_KEPT_MAX:
            self[number] = encoded
        return encoded


def _encode_varint(number: int) -> bytes:
    if not -(1 << 63) <= number < 1 << 63:
        raise InvalidRecordError(f"{number} does not fit in 64 bits", number=number)
    rest = (number << 1) ^ (number >> 63)
    encoded = bytearray()
    while rest > 127:
        encoded.append(rest & 127 | 128)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


_varints = _Varints()


def encode_body(body: Body, count: int) -> bytes:
    """Encode `count` records column by column, at C speed; constant columns are spread over them."""
    timestamps, keys, values, headers, offsets = body
    varint = _varints.__getitem__
    if count == 1:
        return encode_lone(
            timestamps[0] if isinstance(timestamps, list) else timestamps,
            offsets[0] if isinstance(offsets, list) else offsets,
            keys[0] if isinstance(keys, list) else keys,
            values[0] if isinstance(values, list) else values,
            headers[0] if headers else (),
        )
    key_lengths, key_bytes = _lengths_and_bytes(keys)
    value_lengths, value_bytes = _lengths_and_bytes(values)
    header_bytes: Iterable[bytes]
    if headers is None:
        header_bytes = repeat(b"\0")
    elif len(headers) == count:
        header_bytes = [_encode_headers(one) if one else b"\0" for one in headers]
    else:
        header_bytes = repeat(_encode_headers(headers[0]))
    columns = zip(  # ends with the offsets; the columns are equally long
        repeat(b"\0"),  # attributes
        map(varint, timestamps) if isinstance(timestamps, list) else repeat(varint(timestamps)),
        map(varint, offsets if isinstance(offsets, list) else range(offsets, offsets + count)),
        key_lengths,
        key_bytes,
        value_lengths,
        value_bytes,
        header_bytes,
    )
    records = list(map(b"".join, columns))
    parts: list[bytes] = [b""] * (2 * count)
    parts[::2] = map(varint, map(len, records))
    parts[1::2] = records
    return b"".join(parts)


def encode_lone(
    timestamp: int, offset: int, key: bytes | None, value: bytes | None, headers: Headers
) -> bytes:
    """Encode one record (its deltas and content): a join beats columns."""
    varints = _varints
    record = b"".join(
        (
            b"\0",
            varints[timestamp],
            varints[offset],
            varints[-1 if key is None else len(key)],
            key or b"",
            varints[-1 if value is None else len(value)],
            value or b"",
            _encode_headers(headers) if headers else b"\0",
        )
    )
    return varints[len(record)] + record


def encode_length(content: bytes | None) -> bytes:
    """The varint that stands before a key or value."""
    return _varints[-1 if content is None else len(content)]


def _lengths_and_bytes(column: BytesColumn) -> tuple[Iterable[bytes], Iterable[bytes]]:
    """The encoded lengths of a column, and its bytes with nothing for null."""
    varint = _varints.__getitem__
    if column is None:
        return repeat(varint(-1)), repeat(b"")
    if isinstance(column, bytes):
        return repeat(varint(len(column))), repeat(column)
    if None in column:
        null = varint(-1)
        return [null if item is None else varint(len(item)) for item in column], [
            item or b"" for item in column
        ]
    present = cast(list[bytes], column)
    return map(varint, map(len, present)), present


def _encode_headers(headers: Headers) -> bytes:
    varints = _varints
    encoded = varints[len(headers)]
    for key, value in headers:
        name = key.encode()
        encoded += varints[len(name)] + name
        encoded += varints[-1] if value is None else varints[len(value)] + value
    return encoded


def decode_body(body: bytes, count: int, last_offset_delta: int) -> Body:
    """Decode `count` records into columns; raises InvalidRecordError where the bytes are not such records."""
    if count * RECORD_BYTES_MIN > len(body):
        raise InvalidRecordError(
            f"a batch of {count} records cannot have a body of {len(body)} bytes",
            count=count,
            body_bytes=len(body),
        )
    timestamps: list[int] = []
    offsets: list[int] = []
    keys: list[bytes | None] = []
    values: list[bytes | None] = []
    headers: dict[int, Headers] = {}
    try:
        end = _decode_records(body, count, timestamps, offsets, keys, values, headers)
    except IndexError:
        raise InvalidRecordError(f"the records of a batch are truncated at byte {len(body)}") from None
    if end != len(body):
        raise InvalidRecordError(
            f"the {count} records of a batch end at byte {end}, its body has {len(body)}",
            expected=len(body),
            actual=end,
        )
    offset_column: IntColumn = offsets
    if not offsets or offsets == list(range(offsets[0], offsets[0] + count)):
        offset_column = offsets[0] if offsets else 0
    check_offsets(offset_column, count, last_offset_delta)
    header_column: HeadersColumn = [headers.get(index, ()) for index in range(count)] if headers else None
    key_column: BytesColumn = keys
    return timestamps if timestamps else 0, key_column, values, header_column, offset_column


def _decode_records(
    body: bytes, count: int, timestamps: _Ints, offsets: _Ints, keys: _Cells, values: _Cells, headers: _Found
) -> int:
    """Append `count` records to the columns and return their end; calls would double the time."""
    position = 0
    names: dict[bytes, str] = {}
    for index in range(count):
        number = body[position]  # record length
        position += 1
        if number > 127:
            following = body[position]
            if following < 128:
                number += (following << 7) - 128
                position += 1
            else:
                number, position = _decode_varint(body, position - 1)
        record_end = -1 if number & 1 else position + (number >> 1)
        position += 1  # attributes: unused
        number = body[position]  # timestamp delta
        position += 1
        if number > 127:
            number, position = _decode_varint(body, position - 1)
        timestamps.append((number >> 1) ^ -(number & 1))
        number = body[position]  # offset delta
        position += 1
        if number > 127:
            following = body[position]
            if following < 128:
                number += (following << 7) - 128
                position += 1
            else:
                number, position = _decode_varint(body, position - 1)
        offsets.append((number >> 1) ^ -(number & 1))
        number = body[position]  # key length
        position += 1
        if number > 127:
            number, position = _decode_varint(body, position - 1)
        if number & 1:
            keys.append(None)
        else:
            end = position + (number >> 1)
            keys.append(body[position:end])
            position = end
        number = body[position]  # value length
        position += 1
        if number > 127:
            following = body[position]
            if following < 128:
                number += (following << 7) - 128
                position += 1
            else:
                number, position = _decode_varint(body, position - 1)
        if number & 1:
            values.append(None)
        else:
            end = position + (number >> 1)
            values.append(body[position:end])
            position = end
        if body[position]:
            headers[index], position = _decode_headers(body, position, index, names)
        else:
            position += 1
        if position != record_end:
            raise _wrong_end(index, record_end, position)
    return position


def _decode_headers(body: bytes, position: int, index: int, names: dict[bytes, str]) -> tuple[Headers, int]:
    """Return the headers of one record and the position behind them; `names` keeps the header keys."""
    number = body[position]
    position += 1
    if number > 127:
        number, position = _decode_varint(body, position - 1)
    if number & 1 or number >> 1 > len(body) - position:
        raise _impossible("headers count", index)
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(number >> 1):
        number = body[position]
        position += 1
        if number > 127:
            number, position = _decode_varint(body, position - 1)
        if number & 1:
            raise _impossible("header key length", index)
        end = position + (number >> 1)
        raw_name = body[position:end]
        name = names.get(raw_name)
        if name is None:
            name = names[raw_name] = raw_name.decode(errors="replace")
        number = body[end]
        position = end + 1
        if number > 127:
            number, position = _decode_varint(body, end)
        if number & 1:
            headers.append((name, None))
        else:
            end = position + (number >> 1)
            headers.append((name, body[position:end]))
            position = end
    return tuple(headers), position


def _decode_varint(body: bytes, position: int) -> tuple[int, int]:
    """Return the number before zigzag, and the position behind it."""
    number = shift = 0
    while True:
        byte = body[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
        if shift > 63:
            break
    if number >> 64 or shift > 63:
        raise InvalidRecordError(
            f"a varint of a batch does not fit in 64 bits at byte {position}", position=position
        )
    return number, position


def _wrong_end(index: int, expected: int, actual: int) -> InvalidRecordError:
    return InvalidRecordError(
        f"record {index} of a batch should end at byte {expected} but ends at {actual}",
        index=index,
        expected=expected,
        actual=actual,
    )


def _impossible(field: str, index: int) -> InvalidRecordError:
    return InvalidRecordError(
        f"record {index} of a batch has an impossible {field}", field=field, index=index
    )


class ControlType(IntEnum):
    """What a control record says. Kafka's clients skip the types they do not know, hence UNKNOWN."""

    UNKNOWN = -1
    ABORT = 0
    COMMIT = 1


class ControlRecord(msgspec.Struct, frozen=True, gc=False):
    """The content of a transaction marker."""

    kind: ControlType
    coordinator_epoch: int


_CONTROL_KEY = Struct(">hh")  # version, type
_CONTROL_VALUE = Struct(">hi")  # version, coordinator epoch


def encode_control(kind: ControlType, coordinator_epoch: int) -> tuple[bytes, bytes]:
    """Return key and value of a transaction marker."""
    return _CONTROL_KEY.pack(0, kind), _CONTROL_VALUE.pack(0, coordinator_epoch)


def decode_control(key: bytes | None, value: bytes | None) -> ControlRecord:
    """Read a control record; later versions only append fields, so what follows the known ones is ignored."""
    try:
        key_version, kind = _CONTROL_KEY.unpack_from(key or b"")
        if key_version < 0:
            raise InvalidRecordError(f"a control record has version {key_version}", version=key_version)
        if kind not in (ControlType.ABORT, ControlType.COMMIT):
            return ControlRecord(ControlType.UNKNOWN, -1)
        value_version, coordinator_epoch = _CONTROL_VALUE.unpack_from(value or b"")
    except struct_error as error:
        raise InvalidRecordError(f"a control record is truncated: {error}") from error
    if value_version < 0:
        raise InvalidRecordError(f"a transaction marker has version {value_version}", version=value_version)
    return ControlRecord(ControlType(kind), coordinator_epoch)
