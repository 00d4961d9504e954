"""What a log is without reading it: its checkpoint beside its newest batch, and other values kept there.

Written in the transaction of the batches it covers, on the same leaf page. A checkpoint is a cache: `verification`
rebuilds it from the batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import msgspec

from streamlog.errors import CorruptStoreError
from streamlog.storage.env import Snapshot, WriteTransaction
from streamlog.storage.keys import (
    CHECKPOINT_BASE,
    CHECKPOINT_VERSION,
    LOG_CHECKPOINT,
    CheckpointKind,
    checkpoint_key,
    pack_key,
)

if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object  # real ones cost import time, and nobody asks isinstance of them

Reader: TypeAlias = Snapshot | WriteTransaction


class LogCheckpoint(msgspec.Struct, frozen=True, gc=False):
    """What a log is without reading it (LOG_CHECKPOINT_LAYOUT); written in the transaction of the batches it
    covers.
    """

    log_start_offset: int = 0
    log_end_offset: int = 0
    high_watermark: int = 0
    size_bytes: int = 0
    max_timestamp: int = -1
    leader_epoch: int = -1

    def fits(self, newest: tuple[int, int] | None) -> bool:
        """Whether it can be true of a log with this newest batch (last offset, running maximum; None: no batch)."""
        in_order = 0 <= self.log_start_offset <= self.high_watermark <= self.log_end_offset
        return in_order and newest in (None, (self.log_end_offset - 1, self.max_timestamp))


class CheckpointFields(Protocol):
    """What `put_checkpoint` reads."""

    @property
    def log_start_offset(self) -> int: ...
    @property
    def log_end_offset(self) -> int: ...
    @property
    def high_watermark(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def max_timestamp(self) -> int: ...
    @property
    def leader_epoch(self) -> int: ...


def put_checkpoint(transaction: WriteTransaction, log_id: int, checkpoint: CheckpointFields) -> None:
    """Store the checkpoint of a log: a LogCheckpoint, or whatever has its fields."""
    transaction.put(
        pack_key(log_id, CHECKPOINT_BASE),
        LOG_CHECKPOINT.pack(
            CHECKPOINT_VERSION,
            checkpoint.leader_epoch,
            checkpoint.log_start_offset,
            checkpoint.log_end_offset,
            checkpoint.high_watermark,
            checkpoint.size_bytes,
            checkpoint.max_timestamp,
        ),
    )


def load_checkpoint(reader: Reader, log_id: int) -> LogCheckpoint | None:
    """The checkpoint of a log; None if it was never written."""
    value = reader.get(checkpoint_key(log_id, CheckpointKind.LOG))
    if value is None:
        return None
    if len(value) != LOG_CHECKPOINT.size or value[0] != CHECKPOINT_VERSION:
        raise CorruptStoreError(
            f"the checkpoint of log {log_id} begins {value[:1]!r} and has {len(value)} bytes, expected "
            f"version {CHECKPOINT_VERSION} and {LOG_CHECKPOINT.size} bytes",
            log_id=log_id,
        )
    _, leader_epoch, start, end, high_watermark, size_bytes, max_timestamp = LOG_CHECKPOINT.unpack(value)
    return LogCheckpoint(start, end, high_watermark, size_bytes, max_timestamp, leader_epoch)


def put_extra(transaction: WriteTransaction, log_id: int, kind: int, value: bytes) -> None:
    """Store another checkpoint (CheckpointKind, or any kind the floors above agree on) beside the log's
    own.
    """
    transaction.put(checkpoint_key(log_id, kind), value)


def get_extra(reader: Reader, log_id: int, kind: int) -> bytes | None:
    """A checkpoint stored by `put_extra`; None if there is none."""
    return reader.get(checkpoint_key(log_id, kind))
