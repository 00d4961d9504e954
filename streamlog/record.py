"""The values users hold: a record, where it went, and what was committed.

1. All are frozen, hashable when their fields are, picklable, and built at C speed (`msgspec.Struct`, no
   hook at construction).
2. Offsets are Kafka's: int64, -1 = not yet known. Timestamps are milliseconds since the epoch, -1 = the
   producer stamps it.
3. `key` and `value` are bytes or None, or whatever a deserializer made of them; a None value is a
   tombstone.
4. `headers` keep their order and duplicates: pairs of a str and bytes or None.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

NO_OFFSET = -1
NO_TIMESTAMP = -1
NO_LEADER_EPOCH = -1

Headers = tuple[tuple[str, bytes | None], ...]

_REPR_BYTES_MAX = 24


class TopicPartition(NamedTuple):
    """One partition of one topic; sorts by topic, then number."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}"


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record. `Record(value=b"x")` is enough to send; what a consumer returns has every field set."""

    topic: str = ""
    partition: int = -1
    offset: int = NO_OFFSET
    timestamp: int = NO_TIMESTAMP
    key: Any = None
    value: Any = None
    headers: Headers = ()

    def __repr__(self) -> str:
        parts = [
            f"{self.topic}-{self.partition}@{self.offset}",
            f"key={_brief(self.key)}",
            f"value={_brief(self.value)}",
        ]
        if self.timestamp != NO_TIMESTAMP:
            parts.append(f"timestamp={self.timestamp}")
        if self.headers:
            parts.append(f"headers={len(self.headers)}")
        return f"<Record {' '.join(parts)}>"


class RecordMetadata(msgspec.Struct, frozen=True, gc=False):
    """Where a sent record is. With acks=0 nobody knows: the offset is -1."""

    topic: str
    partition: int
    offset: int
    timestamp: int


class OffsetAndMetadata(msgspec.Struct, frozen=True, gc=False):
    """A committed position: the next offset to read, a short text, the epoch of the last record read."""

    offset: int
    metadata: str = ""
    leader_epoch: int = NO_LEADER_EPOCH


class OffsetAndTimestamp(msgspec.Struct, frozen=True, gc=False):
    """The answer to "first record at or after this time"."""

    offset: int
    timestamp: int
    leader_epoch: int = NO_LEADER_EPOCH


def _brief(value: object) -> str:
    """repr, cut short; bytes say how many they are, because a log's values are rarely worth a screen."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        size = len(value)
        if size <= _REPR_BYTES_MAX:
            return repr(bytes(value))
        return f"{bytes(value[:_REPR_BYTES_MAX])!r}...({size} bytes)"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
