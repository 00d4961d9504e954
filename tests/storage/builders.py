"""What storage tests share: batches in both layouts, and a log with its owner's bookkeeping."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamlog.batch import Batch, ControlType, control_batch, seal_columnar, seal_v2
from streamlog.record import Record
from streamlog.storage import cleaner, log
from streamlog.storage.cleaner import CompactionWork
from streamlog.storage.env import Environment

LAYOUTS = ("columnar", "v2")
Item = tuple[bytes | None, bytes | None, int]  # key, value, timestamp


def seal(layout: str, items: Sequence[Item], **options: Any) -> Batch:
    """A batch of (key, value, timestamp) in one of the layouts."""
    if layout == "v2":
        return seal_v2([Record(key=k, value=v, timestamp=t) for k, v, t in items], **options)
    keys, values, timestamps = ([item[index] for item in items] for index in range(3))
    return seal_columnar(keys, values, timestamps=timestamps, **options)  # type: ignore[arg-type]


def sized(size_bytes: int, timestamp: int = 0) -> Batch:
    """A batch of one record that has exactly this many bytes."""
    batch = seal("columnar", [(None, b"", timestamp)])
    for length in range(size_bytes):
        batch = seal("columnar", [(None, b"x" * length, timestamp)])
        if batch.size_bytes >= size_bytes:
            break
    assert batch.size_bytes == size_bytes, (batch.size_bytes, size_bytes)
    return batch


def marker(kind: ControlType, producer_id: int, timestamp: int = 0, producer_epoch: int = 0) -> Batch:
    return control_batch(kind, producer_id=producer_id, producer_epoch=producer_epoch, timestamp=timestamp)


class OwnedLog:
    """A log and the numbers its leader keeps; every call is a transaction."""

    def __init__(self, environment: Environment, log_id: int = 7, layout: str = "columnar") -> None:
        self.environment = environment
        self.log_id = log_id
        self.layout = layout
        self.checkpoint = log.LogCheckpoint()
        with environment.snapshot() as snapshot:
            self.checkpoint = log.load_checkpoint(snapshot, log_id) or self.checkpoint

    def append(self, *items: Item | Batch, **options: Any) -> int:
        """Append a given batch, or one batch of items; its base offset."""
        given = items[0]
        batch = given if isinstance(given, Batch) else seal(self.layout, items, **options)  # type: ignore[arg-type]
        old = self.checkpoint
        base_offset = old.log_end_offset
        running_max = max(old.max_timestamp, batch.max_timestamp)
        transaction = self.environment.write()
        stored = log.append(transaction, self.log_id, batch, base_offset, 3, running_max)
        end = base_offset + batch.last_offset_delta + 1
        self._save(
            transaction,
            log_end_offset=end,
            high_watermark=end,
            size_bytes=old.size_bytes + stored,
            max_timestamp=running_max,
            leader_epoch=3,
        )
        return base_offset

    def _save(self, transaction: Any, **changes: int) -> None:
        import msgspec

        self.checkpoint = msgspec.structs.replace(self.checkpoint, **changes)
        log.put_checkpoint(transaction, self.log_id, self.checkpoint)
        transaction.commit()

    def delete_head(self, below_offset: int, bytes_max: int = 1 << 20) -> log.DeletedSlice:
        transaction = self.environment.write()
        cut = log.delete_head(transaction, self.log_id, below_offset, bytes_max)
        self._save(
            transaction,
            log_start_offset=max(self.checkpoint.log_start_offset, below_offset),
            size_bytes=self.checkpoint.size_bytes - cut.bytes,
        )
        return cut

    def truncate(self, from_offset: int, bytes_max: int | None = None) -> log.TruncatedTail:
        transaction = self.environment.write()
        cut = log.truncate_tail(transaction, self.log_id, from_offset, bytes_max)
        end = max(self.checkpoint.log_start_offset, cut.log_end_offset)
        self._save(
            transaction,
            log_end_offset=end,
            high_watermark=min(end, self.checkpoint.high_watermark),
            size_bytes=self.checkpoint.size_bytes - cut.bytes,
            max_timestamp=cut.max_timestamp,
        )
        return cut

    def compact(self, now_ms: int = 0, **options: Any) -> cleaner.Compaction:
        """One whole pass, as a broker would do it; the cleaner's checkpoint is used and saved."""
        first_dirty = options.pop("first_dirty_offset", None)
        lag_ms = options.pop("min_compaction_lag_ms", 0)
        stable = options.pop("last_stable_offset", self.checkpoint.high_watermark)
        with self.environment.snapshot() as snapshot:
            if first_dirty is None:
                saved = cleaner.load_cleaner_checkpoint(snapshot, self.log_id)
                first_dirty = cleaner.first_dirty_offset(
                    saved, self.checkpoint.log_start_offset, self.checkpoint.log_end_offset
                )
            end = cleaner.cleanable_end_offset(snapshot, self.log_id, first_dirty, stable, now_ms, lag_ms)
        options.setdefault("delete_retention_ms", 1000)
        work = CompactionWork(
            log_start_offset=self.checkpoint.log_start_offset,
            first_dirty_offset=first_dirty,
            end_offset=end,
            now_ms=now_ms,
            **options,
        )
        compaction = cleaner.Compaction(self.environment, self.log_id, work)
        for plan in compaction.plans():
            transaction = self.environment.write()
            change = cleaner.apply_compaction(transaction, self.log_id, plan)
            self._save(transaction, size_bytes=self.checkpoint.size_bytes + change)
        transaction = self.environment.write()
        cleaner.save_cleaner_checkpoint(transaction, self.log_id, compaction.checkpoint)
        self._save(transaction)
        return compaction

    def batches(
        self, start: int | None = None, end: int | None = None, bytes_max: int = 1 << 30
    ) -> list[Batch]:
        start = self.checkpoint.log_start_offset if start is None else start
        end = self.checkpoint.log_end_offset if end is None else end
        with self.environment.snapshot() as snapshot:
            return log.read(snapshot, self.log_id, start, end, bytes_max)

    def records(self, start: int | None = None) -> list[tuple[int, bytes | None, bytes | None]]:
        """(offset, key, value) of the data records from `start` on."""
        start = self.checkpoint.log_start_offset if start is None else start
        return [
            (record.offset, record.key, record.value)
            for batch in self.batches(start)
            if not batch.is_control
            for record in batch.records("t", 0, start)
        ]

    def offsets(self) -> list[int]:
        return [offset for offset, _, _ in self.records()]

    def headers(self, start: int = 0) -> list[log.StoredHeader]:
        with self.environment.snapshot() as snapshot:
            return list(log.iterate_headers(snapshot, self.log_id, start))


def environment_in(path: Path, **options: Any) -> Environment:
    options.setdefault("sync", "off")
    return Environment.open(path / "env", **options)
