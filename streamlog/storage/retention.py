"""Retention of one log: where its start moves to, by the age of its oldest batches or by its size.

    outlines of the oldest batches --plan_retention, size_retention_target--> new log start offset
    the bytes below it go later, slice by slice (`log.delete_head`)

Only sizes and times are looked at, and where a header is damaged the key, the value's length and the running
maximum have them too: a flipped bit must neither keep a log from shrinking nor a producer from writing.

Sources: SEMANTICS 1.1 "retention", "guard"; scenarios R1 to R5 with "batch" for "segment"; Kafka
UnifiedLog.deleteOldSegments.
Not implemented: deleting inside a batch; a batch goes whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from streamlog.batch import parse_header
from streamlog.errors import CorruptRecordError, InvalidRecordError
from streamlog.storage.keys import BATCH_START, unpack_running_max
from streamlog.storage.log import Reader, iterate_values

UNLIMITED: Final = -1


class Outline(msgspec.Struct, frozen=True, gc=False):
    """What retention asks of a stored batch."""

    next_offset: int
    size_bytes: int
    newest_timestamp: int
    """Where it has none, Kafka falls back to the file's time; we, to the log's running maximum."""


def iterate_outlines(reader: Reader, log_id: int, start_offset: int = 0) -> Iterator[Outline]:
    """The batches that end at or behind `start_offset`, in order. Use them while the transaction lives."""
    for last_offset, value in iterate_values(reader, log_id, start_offset):
        newest: int = unpack_running_max(value)[0]
        try:
            stated = parse_header(value, BATCH_START).max_timestamp
            if 0 <= stated < newest:
                newest = stated
        except (CorruptRecordError, InvalidRecordError):
            pass
        yield Outline(last_offset + 1, len(value) - BATCH_START, newest)


def plan_retention(
    outlines: Iterable[Outline],
    *,
    now_ms: int,
    retention_ms: int,
    retention_bytes: int,
    size_bytes: int,
    log_start_offset: int,
    high_watermark: int,
) -> int:
    """The log start offset after retention; `log_start_offset` if nothing is to go.

    outlines:     from `iterate_outlines(reader, log_id, log_start_offset)`; read up to the first survivor.
    retention_*:  -1 = unlimited. A compact-only topic passes -1 for both (SEMANTICS 3.7.7).
    """
    start_offset = log_start_offset
    by_time = retention_ms != UNLIMITED
    excess_bytes = size_bytes - retention_bytes if retention_bytes != UNLIMITED else -1
    for outline in outlines:
        if outline.next_offset > high_watermark:
            break
        newest = outline.newest_timestamp
        by_time = by_time and newest >= 0 and now_ms - newest > retention_ms
        if not by_time and excess_bytes < outline.size_bytes:
            break
        excess_bytes -= outline.size_bytes
        start_offset = outline.next_offset
    return start_offset


def size_retention_target(
    reader: Reader, log_id: int, size_bytes: int, retention_bytes: int, high_watermark: int, bytes_max: int
) -> int | None:
    """The log start offset that brings a log down to `retention_bytes`, never below; None: nothing is to go.

    bytes_max:  look at about so many bytes only, one slice of deleting.
    """
    target, seen_bytes = None, 0
    for outline in iterate_outlines(reader, log_id):
        if outline.next_offset > high_watermark or size_bytes - retention_bytes < outline.size_bytes:
            break
        target = outline.next_offset
        size_bytes -= outline.size_bytes
        seen_bytes += outline.size_bytes
        if seen_bytes >= bytes_max:
            break
    return target
