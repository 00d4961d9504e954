"""The columnar body of a record batch (magic 0x53): one msgpack array of five columns.

    # | column     | msgpack                                      | a constant column is
    0 | timestamps | int, or array of int                         | the int
    1 | keys       | nil, bin, or array of (bin or nil)           | nil or the bin
    2 | values     | nil, bin, or array of (bin or nil)           | nil or the bin
    3 | headers    | nil, or array of arrays of [str, bin or nil] | nil, or an array of one element
    4 | offsets    | int, or array of int                         | the int, of the first record

Timestamps are against the base timestamp, offsets against the base offset; an int for the offsets means that
they follow each other without holes. `COLUMNAR_LAYOUT` is the table as data, with the meanings; the
storage-format document prints it.

The usual batch (keys and values differ, no headers, no holes) is its keys, its values and a few bytes, and a
batch of one record is five scalars. msgspec checks the types while it decodes, at no measurable cost.

A `Body` is the same five columns as Python values: both layouts decode to it and encode from it.

Invariants of a `Body` that came out of `decode_body` (or of batch_v2's):
 1. A column that is a list has one element per record; headers have that many, or one shared by all records.
 2. Offsets rise strictly and lie within [0, last offset delta].
 3. The number of records is bounded by the bytes of the body, or by CONSTANT_RECORDS_MAX where every column
    is constant: a few bytes cannot claim two thousand million records.
Not implemented: dictionaries or runs inside a column (zstd on the body does that better).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import ge
from typing import TypeAlias

import msgspec

from .errors import InvalidRecordError

# Evaluated at import: msgspec builds the decoder from them.
Headers: TypeAlias = tuple[tuple[str, bytes | None], ...]
BytesColumn: TypeAlias = bytes | list[bytes | None] | None
IntColumn: TypeAlias = int | list[int]
HeadersColumn: TypeAlias = list[Headers] | None
Body: TypeAlias = tuple[IntColumn, BytesColumn, BytesColumn, HeadersColumn, IntColumn]

CONSTANT_RECORDS_MAX = 1 << 20


class ColumnLayout(msgspec.Struct, frozen=True, gc=False):
    """One row of the layout table."""

    name: str
    msgpack: str
    constant: str
    meaning: str


COLUMNAR_LAYOUT = (
    ColumnLayout("timestamps", "int, or array of int", "the int", "record timestamp - base timestamp (ms)"),
    ColumnLayout("keys", "nil, bin, or array of (bin or nil)", "nil or the bin", "key; nil = no key"),
    ColumnLayout("values", "nil, bin, or array of (bin or nil)", "nil or the bin", "value; nil = tombstone"),
    ColumnLayout(
        "headers",
        "nil, or array of arrays of [str, bin or nil]",
        "nil, or an array of one element",
        "headers of a record; nil = no record has any",
    ),
    ColumnLayout(
        "offsets",
        "int, or array of int",
        "the int, of the first",
        "offset - base offset; an int means no holes",
    ),
)

DECODE_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
encode_columns = msgspec.msgpack.Encoder().encode  # takes a Body
decode_columns: Callable[[bytes | memoryview], Body] = msgspec.msgpack.Decoder(Body).decode
LoneBody = tuple[int, bytes | None, bytes | None, list[Headers] | None, int]
decode_lone: Callable[[bytes | memoryview], LoneBody] = msgspec.msgpack.Decoder(LoneBody).decode


def encode_body(body: Body, count: int) -> bytes:
    """Encode the columns of `count` records: a constant column becomes a scalar, no record no bytes."""
    if not count:
        return b""
    timestamps, keys, values, headers, offsets = body
    if isinstance(timestamps, list):
        timestamps = _fold_ints(timestamps)
    if isinstance(offsets, list):
        offsets = _fold_offsets(offsets)
    if isinstance(keys, list):
        keys = _fold_bytes(keys)
    if isinstance(values, list):
        if count <= CONSTANT_RECORDS_MAX:
            values = _fold_bytes(values)
    elif count > CONSTANT_RECORDS_MAX:
        values = [values] * count
    try:
        return encode_columns((timestamps, keys, values, _fold_headers(headers), offsets))
    except OverflowError as error:
        raise InvalidRecordError(f"a timestamp of a batch is too far from its base: {error}") from error


def decode_body(data: bytes | memoryview, count: int, last_offset_delta: int) -> Body:
    """Decode and check the columns of `count` records; raises InvalidRecordError on anything else."""
    try:
        body = decode_columns(data)
    except DECODE_ERRORS as error:
        raise InvalidRecordError(f"the body of a columnar batch does not decode: {error}") from error
    check_body(body, count, last_offset_delta)
    return body


def check_body(body: Body, count: int, last_offset_delta: int) -> None:
    """Raise InvalidRecordError unless the columns fit a batch of `count` records."""
    timestamps, keys, values, headers, offsets = body
    bounded = False
    for name, column in (
        ("timestamps", timestamps),
        ("keys", keys),
        ("values", values),
        ("offsets", offsets),
    ):
        if type(column) is list:
            bounded = True
            if len(column) != count:
                raise _wrong_length(name, len(column), count)
    if headers is not None and len(headers) != count:
        if len(headers) != 1:
            raise _wrong_length("headers", len(headers), count)
    elif headers is not None and count > 1:
        bounded = True
    if not bounded and count > CONSTANT_RECORDS_MAX:
        raise InvalidRecordError(
            f"a batch claims {count} equal records", count=count, count_max=CONSTANT_RECORDS_MAX
        )
    check_offsets(offsets, count, last_offset_delta)


def check_offsets(offsets: IntColumn, count: int, last_offset_delta: int) -> None:
    """Raise InvalidRecordError unless the offset deltas rise strictly within [0, last_offset_delta]."""
    if type(offsets) is int:
        valid = offsets >= 0 and offsets + count - 1 <= last_offset_delta
    else:
        deltas: list[int] = offsets  # type: ignore[assignment]
        valid = not deltas or (
            deltas[0] >= 0 and deltas[-1] <= last_offset_delta and not any(map(ge, deltas, deltas[1:]))
        )
    if not valid:
        raise InvalidRecordError(
            f"offset deltas of a batch do not rise strictly within [0, {last_offset_delta}]",
            last_offset_delta=last_offset_delta,
        )


def _wrong_length(name: str, actual: int, expected: int) -> InvalidRecordError:
    return InvalidRecordError(
        f"the column {name} of a batch holds {actual} elements, the batch has {expected} records",
        column=name,
        expected=expected,
        actual=actual,
    )


def _fold_ints(column: list[int]) -> IntColumn:
    if not column:
        return 0
    first = column[0]
    if first == column[-1] and column.count(first) == len(column):
        return first
    return column


def _fold_offsets(column: list[int]) -> IntColumn:
    if not column:
        return 0
    first, count = column[0], len(column)
    # Deltas rise strictly, so the last one tells whether there is a hole.
    return first if column[-1] - first == count - 1 else column


def _fold_bytes(column: list[bytes | None]) -> BytesColumn:
    if not column:
        return None
    first = column[0]
    if first == column[-1] and column.count(first) == len(column):
        return first
    return column


def _fold_headers(column: Sequence[Headers] | None) -> HeadersColumn:
    if not column or not any(column):
        return None
    first = column[0]
    if first == column[-1] and column.count(first) == len(column):
        return [first]
    return list(column)
