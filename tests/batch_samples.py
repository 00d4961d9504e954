"""Batches for the tests of the batch modules: sealed in either layout, or forged."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from google_crc32c import value as crc32c

from streamlog.batch import (
    HEADER_LAYOUT,
    Batch,
    seal_columnar,
    seal_v2_columns,
)
from streamlog.errors import CorruptRecordError, InvalidRecordError

T = 1_700_000_000_000
SEALERS: dict[str, Callable[..., Batch]] = {"columnar": seal_columnar, "v2": seal_v2_columns}
BAD = (CorruptRecordError, InvalidRecordError)

both_layouts = pytest.mark.parametrize("layout", SEALERS)
counts = pytest.mark.parametrize("count", [1, 2, 100])


def seal(layout: str, *args: Any, **options: Any) -> Batch:
    return SEALERS[layout](*args, **options)


def sample(layout: str, count: int, **options: Any) -> Batch:
    """`count` records with distinct keys and values, one a tombstone, headers on some."""
    keys: list[bytes | None] = [b"k%d" % number for number in range(count)]
    values: list[bytes | None] = [None if number == 1 else b"v%d" % number for number in range(count)]
    headers = [(("h", b"%d" % number), ("h", None)) if number % 3 == 2 else () for number in range(count)]
    times = [T + number * 7 % 5 for number in range(count)]
    return seal(layout, keys, values, headers=headers, timestamps=times, **options)


def forge(batch: Batch, **fields: Any) -> bytes:
    """The bytes of the batch with some fields and maybe the body replaced, its length and CRC right."""
    body = fields.pop("body", batch.payload[40:])
    names = [field.name for field in HEADER_LAYOUT]
    values = dict(zip(names, struct.unpack_from(">qiiBIHiqqqhii", batch.encode()), strict=True))
    values |= {"length": 49 + len(body)} | fields
    payload = struct.pack(">Hiqqqhii", *[values[name] for name in names[5:]]) + body
    values["crc"] = fields.get("crc", crc32c(payload))
    return struct.pack(">qiiBI", *[values[name] for name in names[:5]]) + bytes(payload)


def same_header(left: Batch, right: Batch) -> bool:
    names = set(Batch.__struct_fields__) - {"magic", "crc", "size_bytes", "payload"}
    return all(getattr(left, name) == getattr(right, name) for name in names)
