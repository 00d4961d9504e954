"""Does a log hold what its format promises? Reads every byte, changes nothing, reports all it finds.

Checked: CRC and header of each batch, its body decodes, its key is its last offset, offsets rise and do not
overlap, running maxima do not fall and bound the batch, and the checkpoint agrees with the batches.
The engine's own pages are `env.verify_file`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from streamlog.batch import Batch, parse_batch
from streamlog.errors import CorruptStoreError, StreamlogError
from streamlog.storage.env import EngineError
from streamlog.storage.keys import (
    BATCH_START,
    CHECKPOINT_BASE,
    pack_key,
    unpack_key,
    unpack_running_max,
)
from streamlog.storage.log import LogCheckpoint, Reader, load_checkpoint


class Problem(msgspec.Struct, frozen=True, gc=False):
    """One contradiction; `last_offset` is the key of the batch concerned, -1 the checkpoint's."""

    log_id: int
    last_offset: int
    text: str


class _Totals(msgspec.Struct):
    """What the batches add up to."""

    size_bytes: int = 0
    next_offset: int = 0
    running_max: int = -1
    first_base_offset: int = -1


def verify(reader: Reader, log_id: int, problems_max: int = 1000) -> list[Problem]:
    """Everything wrong with one log, in offset order; empty if it is sound."""
    problems: list[Problem] = []
    totals = _Totals()
    try:
        for problem in _walk(reader, log_id, totals):
            problems.append(problem)
            if len(problems) >= problems_max:
                return problems
    except EngineError as error:
        raise reader.environment.named(error) from error
    try:
        checkpoint = load_checkpoint(reader, log_id)
    except CorruptStoreError as error:
        return [*problems, Problem(log_id, -1, str(error))]
    if checkpoint is not None:
        problems.extend(Problem(log_id, -1, text) for text in _compare(checkpoint, totals))
    return problems


def rebuild_checkpoint(reader: Reader, log_id: int) -> LogCheckpoint:
    """The checkpoint that the batches imply; what only a checkpoint knows (start, high watermark) is bounded
    by them.
    """
    totals = _Totals()
    for _ in _walk(reader, log_id, totals):
        pass
    newest = totals.next_offset
    try:
        old = load_checkpoint(reader, log_id)
    except CorruptStoreError:
        old = None
    start = max(0, totals.first_base_offset) if old is None else min(old.log_start_offset, newest)
    if old is not None and totals.first_base_offset < 0:
        start = newest = old.log_end_offset
    return LogCheckpoint(
        log_start_offset=start,
        log_end_offset=newest,
        high_watermark=newest if old is None else max(start, min(old.high_watermark, newest)),
        size_bytes=totals.size_bytes,
        max_timestamp=totals.running_max,
        leader_epoch=-1 if old is None else old.leader_epoch,
    )


def _walk(reader: Reader, log_id: int, totals: _Totals) -> Iterator[Problem]:
    cursor = reader.cursor()
    found = cursor.set_range(pack_key(log_id, 0))
    while found:
        key, value = cursor.item()
        found_log_id, last_offset = unpack_key(key)
        if found_log_id != log_id or last_offset >= CHECKPOINT_BASE:
            return
        for text in _check_value(value, last_offset, totals):
            yield Problem(log_id, last_offset, text)
        found = cursor.next()


def _check_value(value: memoryview, last_offset: int, totals: _Totals) -> Iterator[str]:
    try:
        batch = parse_batch(value, position=BATCH_START)
        batch.columns()
    except StreamlogError as error:
        yield str(error)
        totals.size_bytes += max(0, len(value) - BATCH_START)
        totals.next_offset = max(totals.next_offset, last_offset + 1)
        return
    running_max: int = unpack_running_max(value)[0]
    yield from _check_order(batch, last_offset, running_max, totals)
    if totals.first_base_offset < 0:
        totals.first_base_offset = batch.base_offset
    totals.size_bytes += batch.size_bytes
    totals.next_offset = max(totals.next_offset, last_offset + 1)
    totals.running_max = max(totals.running_max, running_max)


def _check_order(batch: Batch, last_offset: int, running_max: int, totals: _Totals) -> Iterator[str]:
    if batch.last_offset != last_offset:
        yield f"the batch ends at offset {batch.last_offset}, its key says {last_offset}"
    if batch.base_offset < totals.next_offset:
        yield f"the batch begins at {batch.base_offset}, the one before ended at {totals.next_offset - 1}"
    if running_max < totals.running_max:
        yield f"the running maximum timestamp falls from {totals.running_max} to {running_max}"
    if batch.record_count and running_max < batch.max_timestamp:
        yield f"the running maximum timestamp {running_max} is below the batch's own {batch.max_timestamp}"


def _compare(checkpoint: LogCheckpoint, totals: _Totals) -> Iterator[str]:
    if checkpoint.size_bytes != totals.size_bytes:
        yield f"the checkpoint counts {checkpoint.size_bytes} bytes, the batches have {totals.size_bytes}"
    if totals.next_offset > checkpoint.log_end_offset:
        yield f"a batch ends at {totals.next_offset - 1}, the log end offset is {checkpoint.log_end_offset}"
    if not 0 <= checkpoint.log_start_offset <= checkpoint.high_watermark <= checkpoint.log_end_offset:
        yield (
            f"offsets of the checkpoint are out of order: start {checkpoint.log_start_offset}, "
            f"high watermark {checkpoint.high_watermark}, end {checkpoint.log_end_offset}"
        )
    if totals.running_max > checkpoint.max_timestamp:
        yield f"the checkpoint's maximum timestamp {checkpoint.max_timestamp} is below {totals.running_max}"
