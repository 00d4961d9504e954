"""Kafka's classic (non-flexible) primitive types, as the group's stored records and the consumers' blobs
use them.

    int8, int16, int32, int64   big endian
    string                int16 length, UTF-8; length -1 = null
    bytes                 int32 length, the bytes; length -1 = null
    array                 int32 count, the elements; count -1 = null, read as empty

Source: Kafka protocol guide, "Protocol Primitive Types".
Not implemented: compact types, varints and tagged fields (of these `group_records` has what OffsetCommitValue v4 needs).
"""

from __future__ import annotations

import struct

_INT8 = struct.Struct(">b")
_INT16 = struct.Struct(">h")
_INT32 = struct.Struct(">i")
_INT64 = struct.Struct(">q")
STRING_BYTES_MAX = 2**15 - 1


def is_storable(text: str) -> bool:
    """Does the text fit a classic string? Lone surrogates and 32 KiB do not."""
    try:
        return len(text.encode()) <= STRING_BYTES_MAX
    except UnicodeEncodeError:
        return False


class TypesWriter:
    """Appends values one after the other; `finish()` gives the bytes."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def int8(self, value: int) -> None:
        self._parts.append(_INT8.pack(value))

    def int16(self, value: int) -> None:
        self._parts.append(_INT16.pack(value))

    def int32(self, value: int) -> None:
        self._parts.append(_INT32.pack(value))

    def int64(self, value: int) -> None:
        self._parts.append(_INT64.pack(value))

    def string(self, value: str | None) -> None:
        if value is None:
            self._parts.append(_INT16.pack(-1))
            return
        encoded = value.encode()
        if len(encoded) > STRING_BYTES_MAX:
            raise ValueError(
                f"a string of {len(encoded)} bytes; Kafka's classic strings hold {STRING_BYTES_MAX}"
            )
        self._parts.append(_INT16.pack(len(encoded)))
        self._parts.append(encoded)

    def bytes_(self, value: bytes | None) -> None:
        if value is None:
            self._parts.append(_INT32.pack(-1))
            return
        self._parts.append(_INT32.pack(len(value)))
        self._parts.append(value)

    def finish(self) -> bytes:
        return b"".join(self._parts)


class TypesReader:
    """Reads values one after the other. Raises ValueError where the data ends too early or a length is
    nonsense."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def remaining_bytes(self) -> int:
        return len(self._data) - self._position

    def int8(self) -> int:
        return int(_INT8.unpack(self._take(1))[0])

    def int16(self) -> int:
        return int(_INT16.unpack(self._take(2))[0])

    def int32(self) -> int:
        return int(_INT32.unpack(self._take(4))[0])

    def int64(self) -> int:
        return int(_INT64.unpack(self._take(8))[0])

    def string(self) -> str:
        value = self.nullable_string()
        if value is None:
            raise ValueError(f"null string at byte {self._position - 2} where one is required")
        return value

    def nullable_string(self) -> str | None:
        length = self.int16()
        return None if length == -1 else self._take(length).decode()

    def bytes_(self) -> bytes:
        return self.nullable_bytes() or b""

    def nullable_bytes(self) -> bytes | None:
        length = self.int32()
        return None if length == -1 else self._take(length)

    def array_count(self, element_bytes_min: int) -> int:
        """The count of an array, checked against what is left: a torn count must not cost gigabytes."""
        count = self.int32()
        if count == -1:
            return 0
        if count < 0 or count * element_bytes_min > self.remaining_bytes:
            raise ValueError(
                f"array of {count} elements at byte {self._position - 4}, {self.remaining_bytes} bytes left"
            )
        return count

    def _take(self, length: int) -> bytes:
        end = self._position + length
        if length < 0 or end > len(self._data):
            raise ValueError(f"{length} bytes wanted at byte {self._position} of {len(self._data)}")
        taken = self._data[self._position : end]
        self._position = end
        return taken
