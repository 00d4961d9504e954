"""Every layout of the store that is not a batch (`streamlog.batch` has that), as tables.

    log 7                                                        log 8
    | 7,3 | 7,9 | 7,10 | ... newest batch | 7,2**63+0 | +1 | ... | 8,0 | ...
      batches, by last offset              checkpoints, by kind

1. One unnamed database; a key is (log id, number), big-endian, so that LMDB's byte order is log order.
2. A batch stands under its *last* offset: `set_range(log id, n)` finds the batch that holds offset n, or the
   next one where compaction left a hole. Compaction keeps the last offset, so it never moves a batch.
3. Checkpoints stand above every offset, hence behind the newest batch and mostly on its page: appending a
   batch and writing its checkpoint dirties one leaf (7.2 us a commit against 10.5 us with the checkpoint in a
   database of its own).
4. Log id 0 belongs to the environment itself. Log ids come from the metadata log and are never used twice.
5. A table below is the definition: the struct codes are derived from it, and docs/internals/storage-format.md
   prints it.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

import msgspec


class Field(msgspec.Struct, frozen=True, gc=False):
    """One row of a layout; `code` is the struct code of its type, None = the rest of the bytes."""

    name: str
    code: str | None
    meaning: str


KEY_LAYOUT: Final = (
    Field("log_id", "I", "the log; 0 = the environment itself"),
    Field(
        "number",
        "Q",
        "below 2**63: last offset of the batch; from 2**63: checkpoint kind + 2**63; from 2**63 + 2**62: offset of an "
        "abort marker + that",
    ),
)
BATCH_VALUE_LAYOUT: Final = (
    Field(
        "running_max_timestamp",
        "q",
        "largest timestamp of the log up to and with this batch when it was appended",
    ),
    Field("batch", None, "the batch, header and body, as `streamlog.batch` lays it out"),
)
LOG_CHECKPOINT_LAYOUT: Final = (
    Field("version", "B", "1"),
    Field("leader_epoch", "i", "newest leader epoch known to the log"),
    Field("log_start_offset", "q", "first offset that may be read"),
    Field("log_end_offset", "q", "offset the next record will get"),
    Field("high_watermark", "q", "offsets below are on all in-sync replicas"),
    Field("size_bytes", "q", "bytes of all stored batches, without this floor's 8 bytes a batch"),
    Field("max_timestamp", "q", "running maximum timestamp of the newest batch; -1 = none"),
)
CLEANER_CHECKPOINT_LAYOUT: Final = (
    Field("version", "B", "1"),
    Field("first_dirty_offset", "q", "everything below was compacted once"),
    Field(
        "next_delete_horizon_ms",
        "q",
        "earliest time at which a tombstone or marker below may go; -1 = there is none",
    ),
)

ABORTED_TRANSACTION_LAYOUT: Final = (
    Field("producer_id", "q", "whose transaction it was"),
    Field("first_offset", "q", "of its first record in this log"),
)

FOLD_HEAD_LAYOUT: Final = (
    Field("mark", "B", "0xC1, which begins no msgpack value"),
    Field("piece_set", "B", "0 or 1: a new set is written beside the old one, then the head names it"),
    Field("pieces", "I", "how many pieces there are"),
)


def layout_struct(layout: tuple[Field, ...]) -> Struct:
    """The struct of a layout; a last field without a code is what follows it."""
    return Struct(">" + "".join(field.code for field in layout if field.code is not None))


class CheckpointKind(IntEnum):
    """What stands at 2**63 + kind. Numbers are stored: never renumber. A checkpoint is a cache; deleting it
    costs time. Only the LOG checkpoint of a log whose batches are all deleted knows where that log ends.
    """

    LOG = 0  # LOG_CHECKPOINT_LAYOUT
    CLEANER = 1  # CLEANER_CHECKPOINT_LAYOUT
    PRODUCER_STATE = 2  # the kinds from here on belong to the floors above: bytes to this one
    LEADER_EPOCHS = 3
    ABORTED_TRANSACTIONS = 4  # never written: they stand one by one, from ABORTED_BASE on
    FOLD = 5  # the value itself, or FOLD_HEAD_LAYOUT where it is in pieces
    PRODUCER_STATE_BEFORE = 6  # what PRODUCER_STATE was before: for a tail that is cut below what that covers


FOLD_PIECES: Final = 1 << 16
"""Kinds from here on are pieces of a large FOLD: FOLD_PIECES + piece set * FOLD_PIECES_MAX + number of the piece."""

FOLD_PIECES_MAX: Final = 1 << 20
FOLD_HEAD_MARK: Final = 0xC1  # begins no msgpack value

ENVIRONMENT_LOG_ID: Final = 0
LOG_ID_MAX: Final = (1 << 32) - 1
OFFSET_MAX: Final = (1 << 63) - 1
CHECKPOINT_BASE: Final = 1 << 63
CHECKPOINT_VERSION: Final = 1
ABORTED_BASE: Final = CHECKPOINT_BASE + (1 << 62)
"""From here on aborted transactions, by the offset of their marker (ABORTED_TRANSACTION_LAYOUT)."""
OFFSET_BITS_MAX: Final = 1 << 62
"""Above every offset that a marker may have."""

KEY: Final = layout_struct(KEY_LAYOUT)
BATCH_VALUE_PREFIX: Final = layout_struct(BATCH_VALUE_LAYOUT)
LOG_CHECKPOINT: Final = layout_struct(LOG_CHECKPOINT_LAYOUT)
CLEANER_CHECKPOINT: Final = layout_struct(CLEANER_CHECKPOINT_LAYOUT)
FOLD_HEAD: Final = layout_struct(FOLD_HEAD_LAYOUT)
ABORTED_TRANSACTION: Final = layout_struct(ABORTED_TRANSACTION_LAYOUT)

BATCH_START: Final = BATCH_VALUE_PREFIX.size

pack_key: Final = KEY.pack  # (log id, last offset)
unpack_key: Final = KEY.unpack
unpack_running_max: Final = BATCH_VALUE_PREFIX.unpack_from


def checkpoint_key(log_id: int, kind: int) -> bytes:
    """The key of a checkpoint of a log."""
    return pack_key(log_id, CHECKPOINT_BASE + kind)
