"""Compaction of one log: planned from snapshots, outside every turn; applied in a turn.

    1. cleanable_end_offset, measure_dirty, needs_compaction     whether, and how far
    2. Compaction(environment, log id, CompactionWork).plans()   a pass, as a sequence of plans
    3. apply_compaction(transaction, log id, plan)               each in a turn, generation checked
    4. save_cleaner_checkpoint                                   where the next pass begins

    log start            first dirty          map end          uncleanable
        [ cleaned before ) [ offsets of keys  ) [ map was full ) [ head: open transactions, young, newest
                            are collected here
        [ ----------- records are filtered here ----------- )

Invariants:
 1. A record goes only if a record with its key at a higher offset lies in the dirty range, or it is a
    tombstone past its horizon, or its transaction was aborted, or it has no key. So every prefix of a pass is
    safe.
 2. Survivors keep offset, order and timestamp; a recoded batch keeps base and last offset, hence its key.
 3. A plan replaces exactly the batches it was made from (base offset and CRC are compared), so applying one
    late or twice changes nothing.
 4. Memory: `map_bytes_max` for the offsets of keys, `slice_bytes_max` for batches. No transaction is held
    between two slices.

Sources: SEMANTICS 3.7; Kafka Cleaner, LogCleanerManager, CleanedTransactionMetadata; KIP-58 (min lag), KIP-354 (max lag),
KIP-534 (delete horizon), KIP-98 (markers).
Not implemented: merging small batches into larger ones; legacy message formats' tombstones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from streamlog.batch import Batch, parse_header
from streamlog.errors import CorruptStoreError
from streamlog.storage.cleaned_transactions import AbortedTransaction as AbortedTransaction
from streamlog.storage.cleaned_transactions import CleanedTransactions
from streamlog.storage.env import EngineError, Environment, WriteTransaction
from streamlog.storage.keys import (
    BATCH_START,
    CHECKPOINT_VERSION,
    CLEANER_CHECKPOINT,
    CheckpointKind,
    checkpoint_key,
    pack_key,
)
from streamlog.storage.log import (
    Reader,
    get_extra,
    iterate_headers,
    newest_place,
    put_extra,
    read,
)

MAP_ENTRY_BYTES: Final = 192
"""One key of the offset map: key or digest (about 56 bytes), offset (32), dict slot (about 100)."""
SLICE_REPLACEMENTS_MAX: Final = 1000
HEADERS_AT_ONCE: Final = 64
DELETE_HORIZON_MS_MAX: Final = 1 << 62
"""Later is never: a horizon is an i64, and so are the timestamps against it."""
_DIGEST_BYTES: Final = 16


class Dirtiness(msgspec.Struct, frozen=True, gc=False):
    """How much of a log a pass would look at for the first time."""

    clean_bytes: int
    dirty_bytes: int  # cleanable ones
    earliest_dirty_timestamp: int  # -1 = none

    @property
    def ratio(self) -> float:
        total_bytes = self.clean_bytes + self.dirty_bytes
        return self.dirty_bytes / total_bytes if total_bytes else 0.0


class ProducerTail(NamedTuple):
    """The newest state of an active producer; its last batch is kept, even empty (SEMANTICS 3.7.6)."""

    last_data_offset: int | None  # None: its newest entry is a marker
    producer_epoch: int


class CleanerCheckpoint(msgspec.Struct, frozen=True, gc=False):
    """Where the next pass begins (CLEANER_CHECKPOINT_LAYOUT)."""

    first_dirty_offset: int
    next_delete_horizon_ms: int = -1


class CompactionWork(msgspec.Struct, frozen=True):
    """One pass: the range and the rules."""

    log_start_offset: int
    first_dirty_offset: int
    end_offset: int  # from cleanable_end_offset
    now_ms: int
    delete_retention_ms: int
    aborted: Sequence[AbortedTransaction] = ()
    producers: Mapping[int, ProducerTail] = {}
    map_bytes_max: int = 64 * 1024 * 1024
    slice_bytes_max: int = 1024 * 1024


class Replacement(msgspec.Struct, frozen=True, gc=False):
    """A stored batch, told by base offset and CRC, and what comes in its place; None = nothing."""

    last_offset: int
    base_offset: int
    crc: int
    batch: Batch | None


class CompactionPlan(msgspec.Struct, frozen=True, gc=False):
    """A slice of a pass, small enough for a turn."""

    replacements: tuple[Replacement, ...]


# -- compaction: whether and how far -----------------------------------------------------------------


def first_dirty_offset(
    checkpoint: CleanerCheckpoint | None, log_start_offset: int, log_end_offset: int
) -> int:
    """Where the dirty range begins. A checkpoint outside of the log (truncated since, or behind) is not
    believed.
    """
    if checkpoint is None or not log_start_offset <= checkpoint.first_dirty_offset <= log_end_offset:
        return log_start_offset
    return checkpoint.first_dirty_offset


def cleanable_end_offset(
    reader: Reader,
    log_id: int,
    first_dirty: int,
    last_stable_offset: int,
    now_ms: int,
    min_compaction_lag_ms: int,
) -> int:
    """The end of what may be cleaned: min(last stable offset, first young dirty batch, newest batch),
    exclusive.
    """
    newest = newest_place(reader, log_id)
    if newest is None:
        return first_dirty
    stored = next(iterate_headers(reader, log_id, newest[0]), None)
    end_offset = last_stable_offset if stored is None else min(last_stable_offset, stored.header.base_offset)
    if min_compaction_lag_ms > 0:
        for stored in iterate_headers(reader, log_id, first_dirty):
            if stored.header.base_offset >= end_offset:
                break
            if stored.header.max_timestamp > now_ms - min_compaction_lag_ms:
                end_offset = stored.header.base_offset
                break
    return max(end_offset, first_dirty)


def measure_dirty(
    reader: Reader,
    log_id: int,
    first_dirty: int,
    end_offset: int,
    size_bytes: int,
    give_way: Callable[[], object] = bool,
) -> Dirtiness:
    """Sizes of the clean and the cleanable dirty range; `size_bytes` is the whole log's.

    give_way: called between pieces of the work, so that others come to run.
    """
    dirty_bytes = head_bytes = 0
    earliest = -1
    for count, stored in enumerate(iterate_headers(reader, log_id, first_dirty), 1):
        if not count % HEADERS_AT_ONCE:
            give_way()
        header = stored.header
        if header.last_offset >= end_offset:
            head_bytes += header.size_bytes
            continue
        dirty_bytes += header.size_bytes
        timestamp = header.base_timestamp if header.delete_horizon_ms is None else header.max_timestamp
        if timestamp >= 0 and (earliest < 0 or timestamp < earliest):
            earliest = timestamp
    return Dirtiness(max(0, size_bytes - dirty_bytes - head_bytes), dirty_bytes, earliest)


def needs_compaction(
    dirtiness: Dirtiness,
    *,
    now_ms: int,
    min_cleanable_dirty_ratio: float,
    max_compaction_lag_ms: int,
    next_delete_horizon_ms: int = -1,
) -> bool:
    """Whether a pass is due: dirty enough, dirty for too long, or (beyond Kafka) a delete horizon has
    passed.
    """
    if dirtiness.dirty_bytes:
        if dirtiness.ratio > min_cleanable_dirty_ratio:
            return True
        earliest = dirtiness.earliest_dirty_timestamp
        if 0 <= earliest < now_ms - max_compaction_lag_ms:
            return True
    return 0 <= next_delete_horizon_ms <= now_ms


def load_cleaner_checkpoint(reader: Reader, log_id: int) -> CleanerCheckpoint | None:
    """Where the next pass begins; None if there was no pass."""
    value = get_extra(reader, log_id, CheckpointKind.CLEANER)
    if value is None:
        return None
    if len(value) != CLEANER_CHECKPOINT.size or value[0] != CHECKPOINT_VERSION:
        raise CorruptStoreError(
            f"the cleaner's checkpoint of log {log_id} begins {value[:1]!r} and has {len(value)} bytes, "
            f"expected version {CHECKPOINT_VERSION} and {CLEANER_CHECKPOINT.size} bytes",
            log_id=log_id,
        )
    return CleanerCheckpoint(*CLEANER_CHECKPOINT.unpack(value)[1:])


def save_cleaner_checkpoint(
    transaction: WriteTransaction, log_id: int, checkpoint: CleanerCheckpoint
) -> None:
    """Store where the next pass begins."""
    value = CLEANER_CHECKPOINT.pack(
        CHECKPOINT_VERSION, checkpoint.first_dirty_offset, checkpoint.next_delete_horizon_ms
    )
    put_extra(transaction, log_id, CheckpointKind.CLEANER, value)


# -- compaction: a pass ------------------------------------------------------------------------------


class Compaction:
    """One pass over one log. Take its `plans` one by one, apply each; then read what it found."""

    def __init__(
        self,
        environment: Environment,
        log_id: int,
        work: CompactionWork,
        give_way: Callable[[], object] = bool,
    ) -> None:
        """give_way: called after each batch, so that others come to run."""
        self.environment = environment
        self._give_way = give_way
        self.log_id = log_id
        self.work = work
        self.cleaned_end_offset = work.first_dirty_offset  # the next pass's first dirty offset
        self.next_delete_horizon_ms = -1  # earliest among what was kept
        self.records_read = 0
        self.records_kept = 0
        self._latest: dict[bytes, int] = {}
        self._last_kept_offset = -1

    @property
    def checkpoint(self) -> CleanerCheckpoint:
        """What to save when the last plan is applied."""
        return CleanerCheckpoint(self.cleaned_end_offset, self.next_delete_horizon_ms)

    def plans(self) -> Iterator[CompactionPlan]:
        """Read the log in slices and yield what to replace. Nothing is held open while the caller applies a
        plan.
        """
        self.cleaned_end_offset = self._collect_latest()
        with self.environment.snapshot() as snapshot:
            last_kept = newest_place(snapshot, self.log_id, self.cleaned_end_offset)
        self._last_kept_offset = -1 if last_kept is None else last_kept[0]
        transactions = CleanedTransactions(self.work.aborted, self.work.log_start_offset)
        replacements: list[Replacement] = []
        for batches in self._slices(self.work.log_start_offset, self.cleaned_end_offset):
            for batch in batches:
                cleaned = self._clean(batch, transactions)
                self.records_read += batch.record_count
                self.records_kept += 0 if cleaned is None else cleaned.record_count
                if cleaned is not batch:
                    replacements.append(Replacement(batch.last_offset, batch.base_offset, batch.crc, cleaned))
                if len(replacements) >= SLICE_REPLACEMENTS_MAX:
                    yield CompactionPlan(tuple(replacements))
                    replacements.clear()
                self._give_way()
            if replacements:
                yield CompactionPlan(tuple(replacements))
                replacements.clear()

    def _slices(self, start_offset: int, end_offset: int) -> Iterator[list[Batch]]:
        offset = start_offset
        while offset < end_offset:
            with self.environment.snapshot() as snapshot:
                batches = read(snapshot, self.log_id, offset, end_offset, self.work.slice_bytes_max)
            if not batches:
                return
            self._give_way()
            yield batches
            offset = batches[-1].next_offset

    def _collect_latest(self) -> int:
        """Fill the map of keys to their newest offset from the dirty range; where it ended."""
        work = self.work
        entries_max = max(1, work.map_bytes_max // MAP_ENTRY_BYTES)
        transactions = CleanedTransactions(work.aborted, work.first_dirty_offset)
        latest = self._latest
        for batches in self._slices(work.first_dirty_offset, work.end_offset):
            for batch in batches:
                if batch.is_control:
                    transactions.on_marker(batch)
                    continue
                if transactions.on_batch(batch) or not batch.record_count:
                    continue
                if latest and len(latest) + batch.record_count > entries_max:
                    return batch.base_offset
                columns = batch.columns()
                for delta, key in zip(columns.offsets, columns.keys, strict=True):
                    if key is not None:
                        latest[_fingerprint(key)] = batch.base_offset + delta
                self._give_way()
        return work.end_offset

    def _clean(self, batch: Batch, transactions: CleanedTransactions) -> Batch | None:
        """The batch itself if nothing changes, its successor, or None if it goes. Source:
        Cleaner.cleanInto.
        """
        work = self.work
        horizon_ms = batch.delete_horizon_ms
        past_horizon = horizon_ms is not None and horizon_ms <= work.now_ms
        if batch.is_control:
            # A marker goes when all data of its transaction is gone and its own horizon has passed (3.7.5).
            discardable = transactions.on_marker(batch)
            kept = [] if discardable and past_horizon else list(range(batch.record_count))
            expiring = discardable and bool(kept)
        else:
            kept, expiring = self._surviving(batch, transactions.on_batch(batch), past_horizon)
        if not kept:
            if batch.last_offset == self._last_kept_offset or self._is_last_of_producer(batch):
                return batch.retain(()) if batch.record_count else batch
            return None
        stamp_ms = None
        if expiring and horizon_ms is None:
            stamp_ms = min(work.now_ms + work.delete_retention_ms, DELETE_HORIZON_MS_MAX)
        if expiring:
            due_ms = stamp_ms if stamp_ms is not None else horizon_ms
            if due_ms is not None and not 0 <= self.next_delete_horizon_ms <= due_ms:
                self.next_delete_horizon_ms = due_ms
        if stamp_ms is None and len(kept) == batch.record_count:
            return batch
        return batch.retain(kept, stamp_ms)

    def _surviving(self, batch: Batch, aborted: bool, past_horizon: bool) -> tuple[list[int], bool]:
        """Positions of the records that stay, and whether a tombstone is among them.
        Cleaner.shouldRetainRecord.
        """
        if aborted or not batch.record_count:
            return [], False
        columns = batch.columns()
        newest_of = self._latest.get
        kept: list[int] = []
        tombstones = False
        for index, (delta, key, value) in enumerate(
            zip(columns.offsets, columns.keys, columns.values, strict=True)
        ):
            if key is None or newest_of(_fingerprint(key), -1) > batch.base_offset + delta:
                continue
            if value is None:
                if past_horizon:
                    continue
                tombstones = True
            kept.append(index)
        return kept, tombstones

    def _is_last_of_producer(self, batch: Batch) -> bool:
        if not batch.has_producer:
            return False
        tail = self.work.producers.get(batch.producer_id)
        if tail is None:
            return False
        if tail.last_data_offset is None:
            return batch.is_control and batch.producer_epoch == tail.producer_epoch
        return batch.last_offset == tail.last_data_offset


def apply_compaction(transaction: WriteTransaction, log_id: int, plan: CompactionPlan) -> int:
    """Put a plan's batches in the place of the ones it was made from; the change of the log's size in bytes.

    The caller has checked that the log was not truncated since. A batch that is gone (head deletion) or that
    changed is left alone.
    """
    change_bytes = 0
    try:
        cursor = transaction.cursor()
        for replacement in plan.replacements:
            key = pack_key(log_id, replacement.last_offset)
            if not cursor.set_key(key):
                continue
            value = cursor.value()
            header = parse_header(value, BATCH_START)
            if header.crc != replacement.crc or header.base_offset != replacement.base_offset:
                continue
            if replacement.batch is None:
                cursor.delete()
                change_bytes -= header.size_bytes
            else:
                # The running maximum stays: it bounds what was ever below this offset.
                transaction.put(key, bytes(value[:BATCH_START]) + replacement.batch.encode())
                change_bytes += replacement.batch.size_bytes - header.size_bytes
        # A fold's checkpoint may know values whose tombstones went just now: replayed over what is left of the log, they
        # would live again. It is a cache.
        transaction.delete(checkpoint_key(log_id, CheckpointKind.FOLD))
    except EngineError as error:
        raise transaction.environment.named(error) from error
    return change_bytes


def _fingerprint(key: bytes) -> bytes:
    """The key, or its digest if that is shorter. A digest is a byte longer than the longest key kept as it
    is.
    """
    if len(key) <= _DIGEST_BYTES:
        return key
    from hashlib import blake2b

    return blake2b(key, digest_size=_DIGEST_BYTES).digest() + b"#"
