"""One log in a transaction: append, read, cut at both ends, find an offset by time. Rules stand above.

    log start offset          start_offset                end_offset (exclusive)      log end offset
          |                        |                            |                          |
    [ batch 0..9 ][ batch 10..19 ] . . hole . . [ batch 30..30 ][ batch 31..44 ]  checkpoints
                                     (compacted)

A log is a run of keys of one environment (see `keys`); every function takes the transaction it works in,
which outlives the call. `Reader` means: a snapshot, or a write transaction that sees its own writes.

Invariants:
 1. The key of a batch is its last offset; its base offset is above the last offset of the one before.
 2. Running maximum timestamps never fall from batch to batch, and are at least the batch's own maximum.
 3. What leaves this module is bytes or parsed values, never memory of the engine (but for `iterate_values`).
 4. Batches are deleted whole, oldest first at the head, newest first at the tail: any slice leaves a log.

Sources: KIP-74 (the first batch is always returned), KIP-101 (truncation), KIP-79 (offsets by time).
Not implemented: segments and index files; LMDB's tree is the index.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import TYPE_CHECKING, Final

import msgspec

from streamlog.batch import Batch, BatchHeader, parse_batch, parse_header
from streamlog.batch_header import HEADER_LAYOUT, LENGTH_END, PREFIX_FIELDS
from streamlog.errors import CorruptRecordError, InvalidRecordError
from streamlog.record import OffsetAndTimestamp
from streamlog.storage.checkpoints import CheckpointFields as CheckpointFields
from streamlog.storage.checkpoints import LogCheckpoint as LogCheckpoint
from streamlog.storage.checkpoints import Reader as Reader
from streamlog.storage.checkpoints import get_extra as get_extra
from streamlog.storage.checkpoints import load_checkpoint as load_checkpoint
from streamlog.storage.checkpoints import put_checkpoint as put_checkpoint
from streamlog.storage.checkpoints import put_extra as put_extra
from streamlog.storage.env import EngineError, WriteTransaction
from streamlog.storage.keys import (
    BATCH_START,
    BATCH_VALUE_PREFIX,
    CHECKPOINT_BASE,
    CHECKPOINT_VERSION,
    CLEANER_CHECKPOINT,
    LOG_CHECKPOINT,
    LOG_ID_MAX,
    CheckpointKind,
    checkpoint_key,
    pack_key,
    unpack_key,
    unpack_running_max,
)

if TYPE_CHECKING:
    from streamlog.storage.env import Cursor

# What stands before the payload of a stored batch, in one step: the running maximum and the batch's first fields.
_pack_head: Final = Struct(
    BATCH_VALUE_PREFIX.format + "".join(field.code for field in HEADER_LAYOUT[:PREFIX_FIELDS])
).pack
_pack_checkpoint: Final = LOG_CHECKPOINT.pack

SLICE_BATCHES_MAX: Final = 4096
"""Small batches cost by number, not by bytes: 4,096 deletions take about 4 ms."""


class StoredHeader(msgspec.Struct, frozen=True, gc=False):
    """The header of a stored batch, its body not read, and what the store adds to it."""

    running_max_timestamp: int
    header: BatchHeader


class DeletedSlice(msgspec.Struct, frozen=True, gc=False):
    """What one slice of deleting removed; `done`: nothing is left to delete."""

    bytes: int
    batches: int
    done: bool


class TruncatedTail(msgspec.Struct, frozen=True, gc=False):
    """What cutting the tail removed, and where the log ends now."""

    bytes: int
    batches: int
    log_end_offset: int  # from_offset, or the base of the batch that held it: batches go whole
    max_timestamp: int  # running maximum of the newest batch left; -1 = none
    done: bool


# -- appending and checkpoints ---------------------------------------------------------------------


def append(
    transaction: WriteTransaction,
    log_id: int,
    batch: Batch,
    base_offset: int,
    leader_epoch: int,
    max_timestamp: int,
) -> int:
    """Store a batch at `base_offset`, the log end offset, and return its size in bytes.

    max_timestamp:  the running maximum of the log including this batch; never below the previous one.
    One put. The caller writes the checkpoint in the same transaction.
    """
    size_bytes = batch.size_bytes
    transaction.put(
        pack_key(log_id, base_offset + batch.last_offset_delta),
        _pack_head(max_timestamp, base_offset, size_bytes - LENGTH_END, leader_epoch, batch.magic, batch.crc)
        + batch.payload,
    )
    return size_bytes


def append_alone(
    transaction: WriteTransaction, log_id: int, batch: Batch, base_offset: int, state: CheckpointFields
) -> None:
    """`append` and `put_checkpoint` in one step. state: of the log including this batch."""
    put = transaction.transaction.put
    leader_epoch, max_timestamp = state.leader_epoch, state.max_timestamp
    try:
        put(
            pack_key(log_id, base_offset + batch.last_offset_delta),
            _pack_head(
                max_timestamp,
                base_offset,
                batch.size_bytes - LENGTH_END,
                leader_epoch,
                batch.magic,
                batch.crc,
            )
            + batch.payload,
        )
        put(
            pack_key(log_id, CHECKPOINT_BASE),
            _pack_checkpoint(
                CHECKPOINT_VERSION,
                leader_epoch,
                state.log_start_offset,
                state.log_end_offset,
                state.high_watermark,
                state.size_bytes,
                max_timestamp,
            ),
        )
    except EngineError as error:
        raise transaction.environment.named(error) from error


# -- reading ---------------------------------------------------------------------------------------


def read(
    snapshot: Reader, log_id: int, start_offset: int, end_offset: int, bytes_max: int, check_crcs: bool = True
) -> list[Batch]:
    """The batches that hold offsets of [start_offset, end_offset), whole, up to `bytes_max` but at least the
    first.

    start_offset:  may lie inside a batch (its earlier records come along) or in a hole (the next batch
                   follows).
    end_offset:    a batch that reaches beyond it is not returned.
    Raises         CorruptRecordError with `log_id` and `last_offset` if the first is damaged; a later one
                   ends the list before it.
    """
    batches: list[Batch] = []
    bytes_left = bytes_max
    try:
        cursor: Cursor = snapshot.transaction.cursor()
        found = cursor.set_range(pack_key(log_id, start_offset))
        while found:
            key, value = cursor.item()
            found_log_id, last_offset = unpack_key(key)
            # A checkpoint's number is above every offset, so one comparison ends the log in both ways.
            if last_offset >= end_offset or found_log_id != log_id:
                break
            bytes_left -= len(value) - BATCH_START
            if bytes_left < 0 and batches:
                break
            # The one copy of the bytes is the slice inside:
            batch = parse_batch(value, check_crc=check_crcs, position=BATCH_START)
            if batch.base_offset + batch.last_offset_delta != last_offset:
                raise CorruptRecordError(f"the batch stored there ends at offset {batch.last_offset}")
            batches.append(batch)
            if bytes_left <= 0 or last_offset + 1 >= end_offset:  # at the tail: spare looking for more
                break
            found = cursor.next()
    except EngineError as error:
        raise snapshot.environment.named(error) from error
    except (CorruptRecordError, InvalidRecordError) as error:
        if batches:
            return batches
        raise corrupt(log_id, last_offset, error) from error
    return batches


def newest_place(reader: Reader, log_id: int, below_offset: int = CHECKPOINT_BASE) -> tuple[int, int] | None:
    """Last offset and running maximum of the newest batch that ends below an offset, whatever its header says."""
    try:
        cursor = reader.cursor()
        if not _to_newest(cursor, log_id, below_offset):
            return None
        key, value = cursor.item()
        return unpack_key(key)[1], unpack_running_max(value)[0]
    except EngineError as error:
        raise reader.environment.named(error) from error


def iterate_values(reader: Reader, log_id: int, start_offset: int = 0) -> Iterator[tuple[int, memoryview]]:
    """(last offset, stored value) of the batches that end at or behind `start_offset`, in order; memory of the engine."""
    try:
        cursor = reader.cursor()
        found = cursor.set_range(pack_key(log_id, start_offset))
        while found:
            key, value = cursor.item()
            found_log_id, last_offset = unpack_key(key)
            if found_log_id != log_id or last_offset >= CHECKPOINT_BASE:
                return
            yield last_offset, value
            found = cursor.next()
    except EngineError as error:
        raise reader.environment.named(error) from error


def iterate_headers(reader: Reader, log_id: int, start_offset: int = 0) -> Iterator[StoredHeader]:
    """The headers of the batches that end at or behind `start_offset`, in order. Use them while the
    transaction lives.
    """
    for last_offset, value in iterate_values(reader, log_id, start_offset):
        try:
            header = parse_header(value, BATCH_START)
        except (CorruptRecordError, InvalidRecordError) as error:
            raise corrupt(log_id, last_offset, error) from error
        yield StoredHeader(unpack_running_max(value)[0], header)


def log_ids(reader: Reader) -> list[int]:
    """The ids of all logs that hold anything, batches or checkpoints; without the environment's own."""
    found: list[int] = []
    try:
        cursor = reader.cursor()
        log_id = 1
        while log_id <= LOG_ID_MAX and cursor.set_range(pack_key(log_id, 0)):
            log_id = unpack_key(cursor.key())[0]
            found.append(log_id)
            log_id += 1
    except EngineError as error:
        raise reader.environment.named(error) from error
    return found


# -- offsets by time -------------------------------------------------------------------------------
#
# Timestamps need not rise with offsets, but the running maximum that every batch stores does:
#
#     offset       0..9   10..19   20..29   30..39
#     max            10       30       20       40
#     running max    10       30       30       40      lookup 15 -> batch 10..19, then its records
#
# The first batch that reaches a time is found by halving the offset range; from there the batches' own maxima
# are scanned. The scan passes more than one batch only if the record that raised the running maximum is gone.
# With LogAppendTime the batch's maximum is the timestamp of each record; control records count, as in Kafka.


def offset_for_timestamp(
    reader: Reader, log_id: int, start_offset: int, end_offset: int, timestamp: int
) -> OffsetAndTimestamp | None:
    """The first record of [start_offset, end_offset), in offset order, that is not older than `timestamp`."""
    first = _first_reaching(reader, log_id, start_offset, end_offset, timestamp)
    for header in _headers(reader, log_id, first, end_offset):
        if header.max_timestamp >= timestamp:
            for offset, time in _times(reader, log_id, header, start_offset, end_offset):
                if time >= timestamp:
                    return OffsetAndTimestamp(offset, time, header.leader_epoch)
    return None


def offset_of_max_timestamp(
    reader: Reader, log_id: int, start_offset: int, end_offset: int
) -> OffsetAndTimestamp | None:
    """The first record of [start_offset, end_offset) that carries their largest timestamp (ListOffsets
    -3).
    """
    bound = _running_max(reader, log_id, end_offset)
    if bound is None:
        return None
    found = offset_for_timestamp(reader, log_id, start_offset, end_offset, bound)
    if found is not None:
        return found  # nothing is above the bound, so this is the first that reaches it
    best: OffsetAndTimestamp | None = None
    for header in _headers(reader, log_id, start_offset, end_offset):
        if best is not None and header.max_timestamp <= best.timestamp:
            continue
        for offset, time in _times(reader, log_id, header, start_offset, end_offset):
            if best is None or time > best.timestamp:
                best = OffsetAndTimestamp(offset, time, header.leader_epoch)
    return best


def _first_reaching(reader: Reader, log_id: int, start_offset: int, end_offset: int, timestamp: int) -> int:
    """The lowest offset such that it, or the batch behind it, has a running maximum of at least
    `timestamp`.
    """
    low, high = start_offset, end_offset
    try:
        cursor = reader.cursor()
        while low < high:
            middle = (low + high) // 2
            if not cursor.set_range(pack_key(log_id, middle)):
                high = middle
                continue
            key, value = cursor.item()
            found_log_id, last_offset = unpack_key(key)
            beyond = found_log_id != log_id or last_offset >= CHECKPOINT_BASE
            if beyond or unpack_running_max(value)[0] >= timestamp:
                high = middle
            else:
                low = last_offset + 1
    except EngineError as error:
        raise reader.environment.named(error) from error
    return low


def _running_max(reader: Reader, log_id: int, end_offset: int) -> int | None:
    """A bound of all timestamps below `end_offset`; None if the log holds nothing."""
    try:
        cursor = reader.cursor()
        if end_offset > 0 and cursor.set_range(pack_key(log_id, end_offset - 1)):
            key, value = cursor.item()
            found_log_id, last_offset = unpack_key(key)
            if found_log_id == log_id and last_offset < CHECKPOINT_BASE and len(value) > BATCH_START:
                bound: int = unpack_running_max(value)[0]
                return bound
    except EngineError as error:
        raise reader.environment.named(error) from error
    newest = newest_place(reader, log_id)
    return None if newest is None else newest[1]


def _headers(reader: Reader, log_id: int, start_offset: int, end_offset: int) -> Iterator[BatchHeader]:
    """Headers of the batches with records that reach into [start_offset, end_offset)."""
    for stored in iterate_headers(reader, log_id, start_offset):
        if stored.header.base_offset >= end_offset:
            return
        if stored.header.record_count:
            yield stored.header


def _times(
    reader: Reader, log_id: int, header: BatchHeader, start_offset: int, end_offset: int
) -> Iterator[tuple[int, int]]:
    """(offset, timestamp) of the records of a batch that lie in [start_offset, end_offset)."""
    [batch] = read(reader, log_id, header.last_offset, header.next_offset, 1)
    try:
        columns = batch.columns()
    except InvalidRecordError as error:
        raise corrupt(log_id, header.last_offset, error) from error
    for delta, time in zip(columns.offsets, columns.timestamps, strict=True):
        if start_offset <= batch.base_offset + delta < end_offset:
            yield batch.base_offset + delta, time


# -- deleting --------------------------------------------------------------------------------------


def delete_head(
    transaction: WriteTransaction,
    log_id: int,
    below_offset: int,
    bytes_max: int,
    batches_max: int = SLICE_BATCHES_MAX,
) -> DeletedSlice:
    """Delete the oldest batches that end below `below_offset`: one slice of at least one batch, about
    `bytes_max` bytes.

    A batch that holds `below_offset` stays whole; its earlier records are hidden by the log start offset
    (SEMANTICS 3.8.3).
    """
    return _delete_forward(transaction, log_id, below_offset, bytes_max, batches_max)


def delete_all_slice(
    transaction: WriteTransaction, log_id: int, bytes_max: int, batches_max: int = SLICE_BATCHES_MAX
) -> bool:
    """Delete a slice of everything a log has, its checkpoints last; True when nothing is left."""
    return _delete_forward(transaction, log_id, None, bytes_max, batches_max).done


def truncate_tail(
    transaction: WriteTransaction, log_id: int, from_offset: int, bytes_max: int | None = None
) -> TruncatedTail:
    """Delete the batches that end at or behind `from_offset`, newest first.

    bytes_max:  stop after about so many bytes; not `done` then, and `log_end_offset` is where the log ends
                meanwhile.
    """
    deleted_bytes = deleted_batches = 0
    end_offset, max_timestamp, done = from_offset, -1, True
    try:
        cursor = transaction.cursor()
        while _to_newest(cursor, log_id):
            last_offset = unpack_key(cursor.key())[1]
            value = cursor.value()
            if last_offset < from_offset:
                max_timestamp = unpack_running_max(value)[0]
                break
            if bytes_max is not None and deleted_batches and deleted_bytes >= bytes_max:
                max_timestamp, end_offset, done = unpack_running_max(value)[0], last_offset + 1, False
                break
            base_offset = parse_header(value, BATCH_START).base_offset
            end_offset = min(end_offset, base_offset)
            deleted_bytes += len(value) - BATCH_START
            deleted_batches += 1
            cursor.delete()
        _lower_cleaner_checkpoint(transaction, log_id, end_offset)
    except EngineError as error:
        raise transaction.environment.named(error) from error
    return TruncatedTail(deleted_bytes, deleted_batches, end_offset, max_timestamp, done)


def _lower_cleaner_checkpoint(transaction: WriteTransaction, log_id: int, end_offset: int) -> None:
    """What is appended anew is dirty. Source: LogCleanerManager.maybeTruncateCheckpoint."""
    key = checkpoint_key(log_id, CheckpointKind.CLEANER)
    value = transaction.get(key)
    if value is not None and len(value) == CLEANER_CHECKPOINT.size:
        version, first_dirty_offset, horizon_ms = CLEANER_CHECKPOINT.unpack(value)
        if first_dirty_offset > end_offset:
            transaction.put(key, CLEANER_CHECKPOINT.pack(version, end_offset, horizon_ms))


def _delete_forward(
    transaction: WriteTransaction, log_id: int, below_number: int | None, bytes_max: int, batches_max: int
) -> DeletedSlice:
    """Delete keys of a log in order while their number is below `below_number` (None: checkpoints too)."""
    deleted_bytes = deleted_batches = 0
    done = True
    try:
        cursor = transaction.cursor()
        cursor.set_range(pack_key(log_id, 0))
        while key := cursor.key():  # empty behind the last key
            found_log_id, number = unpack_key(key)
            if found_log_id != log_id or (below_number is not None and number >= below_number):
                break
            if deleted_batches and (deleted_bytes >= bytes_max or deleted_batches >= batches_max):
                done = False
                break
            size = len(cursor.value())
            cursor.delete()  # the cursor stands on the next key now
            deleted_bytes += size - BATCH_START
            deleted_batches += 1
    except EngineError as error:
        raise transaction.environment.named(error) from error
    return DeletedSlice(deleted_bytes, deleted_batches, done)


# -- private ---------------------------------------------------------------------------------------


def _to_newest(cursor: Cursor, log_id: int, below_offset: int = CHECKPOINT_BASE) -> bool:
    """Put the cursor on the newest batch of a log that ends below an offset; False if there is none."""
    found = cursor.prev() if cursor.set_range(pack_key(log_id, below_offset)) else cursor.last()
    return found and unpack_key(cursor.key())[0] == log_id


def corrupt(log_id: int, last_offset: int, error: Exception) -> CorruptRecordError:
    return CorruptRecordError(
        f"log {log_id}, batch that ends at offset {last_offset}: {error}",
        log_id=log_id,
        last_offset=last_offset,
    )
