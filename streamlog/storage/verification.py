"""Does an environment hold what its format promises? Reads every byte, changes nothing, reports all it finds.

    1. structure   every key and header, in one snapshot: kinds of keys, offsets, running maxima, epochs,
                   checkpoints
    2. bodies      every batch, in slices of a few MB with a snapshot each: CRC, decoding, offsets and times
                   of its records

So a store in use can be walked for as long as it takes: the long part pins no pages, the short one sees one
moment. The engine's own pages are `env.verify_file`'s business; what folds say is `broker.verification`'s.

A log that was never compacted has no holes: its batches follow each other from its start to its end. One that
was has holes, and its batches' own times may have fallen behind their running maxima; whether it was, its
cleaner's checkpoint tells, or the caller (`compacted`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from typing import Final

import msgspec

from streamlog.batch import HEADER_BYTES, Batch, BatchHeader, parse_batch, parse_header
from streamlog.errors import CorruptStoreError, StreamlogError
from streamlog.storage.cleaner import load_cleaner_checkpoint
from streamlog.storage.env import EngineError, Environment
from streamlog.storage.fold_checkpoints import is_piece
from streamlog.storage.keys import (
    ABORTED_BASE,
    BATCH_START,
    CHECKPOINT_BASE,
    ENVIRONMENT_LOG_ID,
    KEY,
    CheckpointKind,
    pack_key,
    unpack_key,
    unpack_running_max,
)
from streamlog.storage.log import LogCheckpoint, Reader, iterate_values, load_checkpoint

SLICE_BYTES: Final = 8 * 1024 * 1024
PROBLEMS_MAX: Final = 10_000
NO_OFFSET: Final = -1
_KINDS: Final = frozenset(int(kind) for kind in CheckpointKind)


class Problem(msgspec.Struct, frozen=True):
    """One contradiction."""

    log_id: int
    offset: int
    """The last offset of the batch concerned, which is its key; -1: the log or its checkpoint."""
    what: str
    expected: str = ""
    actual: str = ""
    environment: str = ""
    topic: str = ""
    partition: int = -1

    @property
    def place(self) -> str:
        """Where it is, for people."""
        log = f"{self.topic}-{self.partition}" if self.topic else f"log {self.log_id}"
        batch = "" if self.offset < 0 else f", batch ending at {self.offset}"
        return f"{self.environment}: {log}{batch}" if self.environment else log + batch

    def __str__(self) -> str:
        said = f"{self.place}: {self.what}"
        if self.expected:
            return f"{said}: expected {self.expected}, found {self.actual}"
        return f"{said}: {self.actual}" if self.actual else said


class LogReport(msgspec.Struct):
    """What one log holds."""

    log_id: int
    batches: int = 0
    records: int = 0
    size_bytes: int = 0
    first_offset: int = NO_OFFSET
    """Base offset of the oldest batch."""
    end_offset: int = 0
    """Behind the newest batch."""
    hidden_batches: int = 0
    """Wholly below the log start offset, waiting to be deleted: not a problem."""
    checkpoint: LogCheckpoint | None = None
    running_max: int = -1
    leader_epoch: int = -1
    was_compacted: bool = False


class EnvironmentReport(msgspec.Struct):
    """What one environment holds, and everything wrong with it."""

    name: str
    logs: dict[int, LogReport] = {}
    problems: list[Problem] = []
    batches_checked: int = 0
    bytes_checked: int = 0

    @property
    def size_bytes(self) -> int:
        return sum(log.size_bytes for log in self.logs.values())

    def add(self, log_id: int, offset: int, what: str, expected: object = "", actual: object = "") -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Problem(log_id, offset, what, str(expected), str(actual), self.name))


class Dumped(msgspec.Struct, frozen=True):
    """One stored batch as it is found; `header` and `batch` are None where the bytes are not one."""

    last_offset: int
    running_max_timestamp: int
    size_bytes: int
    header: BatchHeader | None
    batch: Batch | None
    error: str = ""


OnBytes = Callable[[str, int], object]
"""Called between slices with (the environment's name, bytes checked since the last call)."""


def verify_environment(
    environment: Environment, name: str = "", compacted: Collection[int] = (), on_bytes: OnBytes | None = None
) -> EnvironmentReport:
    """Everything an environment holds and everything wrong with it.

    compacted:  logs whose topic is compacted now.
    Raises      ClosedError, StorageError; damage does not raise, it is reported.
    """
    report = check_structure(environment, name, compacted)
    for log_id in list(report.logs):
        check_bodies(environment, report, log_id, on_bytes)
    return report


def verify_log(environment: Environment, log_id: int, compacted: bool = False) -> list[Problem]:
    """Everything wrong with one log; empty if it is sound."""
    report = check_structure(environment, compacted=[log_id] if compacted else ())
    check_bodies(environment, report, log_id)
    return [problem for problem in report.problems if problem.log_id == log_id]


# -- structure -----------------------------------------------------------------------------------------------


def check_structure(
    environment: Environment, name: str = "", compacted: Collection[int] = ()
) -> EnvironmentReport:
    """Every key, header and checkpoint, as one commit left them."""
    report = EnvironmentReport(name)
    with environment.snapshot() as snapshot:
        try:
            _walk_keys(snapshot, report, compacted)
            for log in report.logs.values():
                _check_checkpoint(snapshot, report, log)
        except EngineError as error:
            report.add(
                ENVIRONMENT_LOG_ID, NO_OFFSET, "the engine cannot read on", actual=environment.named(error)
            )
    return report


def _walk_keys(reader: Reader, report: EnvironmentReport, compacted: Collection[int]) -> None:
    log = LogReport(ENVIRONMENT_LOG_ID)
    cursor = reader.cursor()
    found = cursor.first()
    while found:
        key, value = cursor.item()
        if len(key) != KEY.size:
            report.add(ENVIRONMENT_LOG_ID, NO_OFFSET, "unknown key", f"{KEY.size} bytes", bytes(key).hex())
        else:
            log_id, number = unpack_key(key)
            if log_id == ENVIRONMENT_LOG_ID:
                report.add(log_id, NO_OFFSET, "unknown key", "a log id from 1", bytes(key).hex())
            else:
                if log_id != log.log_id:
                    log = report.logs[log_id] = LogReport(log_id)
                    log.was_compacted = (
                        log_id in compacted or load_raw(reader, log_id, CheckpointKind.CLEANER) is not None
                    )
                if number < CHECKPOINT_BASE:
                    _check_header(report, log, number, value)
                elif number >= ABORTED_BASE:
                    pass  # `broker.verification` compares them with the markers
                elif number - CHECKPOINT_BASE not in _KINDS and not is_piece(number - CHECKPOINT_BASE):
                    report.add(
                        log_id,
                        NO_OFFSET,
                        "unknown kind of checkpoint",
                        ", ".join(map(str, sorted(_KINDS))),
                        number - CHECKPOINT_BASE,
                    )
        found = cursor.next()


def load_raw(reader: Reader, log_id: int, kind: CheckpointKind) -> bytes | None:
    """The bytes of a checkpoint; None if there is none."""
    return reader.get(pack_key(log_id, CHECKPOINT_BASE + kind))


def _check_header(report: EnvironmentReport, log: LogReport, last_offset: int, value: memoryview) -> None:
    log.batches += 1
    log.size_bytes += max(0, len(value) - BATCH_START)
    previous_end, previous_max = log.end_offset, log.running_max
    is_first = log.first_offset < 0
    log.end_offset = last_offset + 1
    try:
        header = parse_header(value, BATCH_START)
    except StreamlogError as error:
        report.add(log.log_id, last_offset, "the header is no batch's", actual=error)
        return
    running_max: int = unpack_running_max(value)[0]
    if header.last_offset != last_offset:
        report.add(
            log.log_id,
            last_offset,
            "the batch ends elsewhere than its key says",
            last_offset,
            header.last_offset,
        )
        return  # its base offset is as doubtful
    log.records += header.record_count
    if is_first:
        log.first_offset = header.base_offset
    elif header.base_offset < previous_end:
        report.add(
            log.log_id,
            last_offset,
            "the batch overlaps the one before",
            f"a base offset >= {previous_end}",
            header.base_offset,
        )
    elif header.base_offset > previous_end and not log.was_compacted:
        report.add(
            log.log_id,
            last_offset,
            "offsets before the batch are missing",
            f"base offset {previous_end}",
            header.base_offset,
        )
    is_untouched = header.record_count == header.last_offset_delta + 1 and header.base_offset == previous_end
    lowest = max(previous_max, header.max_timestamp if header.record_count else -1)
    if running_max < lowest:
        report.add(
            log.log_id, last_offset, "the running maximum timestamp is too low", f">= {lowest}", running_max
        )
    elif not is_first and is_untouched and running_max > lowest:
        report.add(log.log_id, last_offset, "the running maximum timestamp is too high", lowest, running_max)
    if header.leader_epoch < log.leader_epoch:
        report.add(
            log.log_id, last_offset, "the leader epoch falls", f">= {log.leader_epoch}", header.leader_epoch
        )
    log.running_max = max(previous_max, running_max)
    log.leader_epoch = max(log.leader_epoch, header.leader_epoch)


def _check_checkpoint(reader: Reader, report: EnvironmentReport, log: LogReport) -> None:
    log_id = log.log_id

    def wrong(what: str, expected: object, actual: object) -> None:
        report.add(log_id, NO_OFFSET, what, expected, actual)

    try:
        checkpoint = log.checkpoint = load_checkpoint(reader, log_id)
        cleaner = load_cleaner_checkpoint(reader, log_id)
    except CorruptStoreError as error:
        wrong("a checkpoint cannot be read", "", error)
        return
    if checkpoint is None:
        wrong("the checkpoint is missing", "one beside the newest batch", "none")
        return
    start, high_watermark, end = (
        checkpoint.log_start_offset,
        checkpoint.high_watermark,
        checkpoint.log_end_offset,
    )
    if not 0 <= start <= high_watermark <= end:
        wrong(
            "the checkpoint's offsets are out of order",
            "start <= high watermark <= end",
            f"{start}, {high_watermark}, {end}",
        )
    if checkpoint.size_bytes != log.size_bytes:
        wrong("the checkpoint's size is not that of the batches", log.size_bytes, checkpoint.size_bytes)
    if cleaner is not None and cleaner.first_dirty_offset > end:
        wrong("the cleaner was beyond the end", f"<= {end}", cleaner.first_dirty_offset)
    if log.batches == 0:
        if start < end and not log.was_compacted:
            wrong("there are no batches", f"batches from {start} to {end}", "none")
        return
    if end < log.end_offset or (end > log.end_offset and not log.was_compacted):
        wrong("the checkpoint's log end offset is not behind the newest batch", log.end_offset, end)
    if start < log.first_offset and not log.was_compacted:
        wrong(
            "offsets at the start are missing",
            f"a batch that holds {start}",
            f"the first begins at {log.first_offset}",
        )
    if checkpoint.max_timestamp != log.running_max:
        wrong(
            "the checkpoint's maximum timestamp is not the newest batch's",
            log.running_max,
            checkpoint.max_timestamp,
        )
    if checkpoint.leader_epoch < log.leader_epoch:
        wrong(
            "the checkpoint's leader epoch is behind the batches'",
            f">= {log.leader_epoch}",
            checkpoint.leader_epoch,
        )


# -- bodies --------------------------------------------------------------------------------------------------


def check_bodies(
    environment: Environment, report: EnvironmentReport, log_id: int, on_bytes: OnBytes | None = None
) -> None:
    """Every batch of a log that was there when its structure was checked."""
    log = report.logs.get(log_id)
    if log is None or log.batches == 0:
        return
    headless = {
        problem.offset for problem in report.problems if problem.log_id == log_id and "header" in problem.what
    }
    hidden_below = -1 if log.checkpoint is None else log.checkpoint.log_start_offset
    for slice_ in _slices(environment, log_id, 0, log.end_offset):
        slice_bytes = 0
        for last_offset, _, data in slice_:
            slice_bytes += len(data)
            log.hidden_batches += last_offset < hidden_below
            if last_offset not in headless:
                for what, expected, actual in _wrong_in(data):
                    report.add(log_id, last_offset, what, expected, actual)
        report.batches_checked += len(slice_)
        report.bytes_checked += slice_bytes
        if on_bytes is not None:
            on_bytes(report.name, slice_bytes)


def _wrong_in(data: bytes) -> Iterator[tuple[str, object, object]]:
    try:
        batch = parse_batch(data)
    except StreamlogError as error:
        yield "the batch is corrupt", "", error
        return
    try:
        columns = batch.columns()
    except StreamlogError as error:
        yield "the records cannot be decoded", "", error
        return
    offsets, timestamps = list(columns.offsets), list(columns.timestamps)
    if len(offsets) != batch.record_count:
        yield "the number of records is not the header's", batch.record_count, len(offsets)
    if any(after <= before for before, after in pairwise(offsets)):
        yield "the records' offsets do not rise", "rising offsets", offsets[:100]
    if offsets and not 0 <= offsets[0] <= offsets[-1] <= batch.last_offset_delta:
        yield (
            "records lie outside the batch",
            f"0 to {batch.last_offset_delta}",
            f"{offsets[0]} to {offsets[-1]}",
        )
    if timestamps and max(timestamps) > batch.max_timestamp:
        yield (
            "a record is younger than the batch's maximum timestamp",
            f"<= {batch.max_timestamp}",
            max(timestamps),
        )


def _slices(
    environment: Environment, log_id: int, start_offset: int, end_offset: int
) -> Iterator[list[tuple[int, int, bytes]]]:
    """(last offset, running maximum, batch) of the batches with a key in [start, end), a few MB and one
    snapshot a time.
    """
    while start_offset < end_offset:
        slice_: list[tuple[int, int, bytes]] = []
        bytes_left = SLICE_BYTES
        with environment.snapshot() as snapshot:
            cursor = snapshot.cursor()
            found = cursor.set_range(pack_key(log_id, start_offset))
            while True:
                if not found or bytes_left <= 0:
                    break
                key, value = cursor.item()
                if len(key) != KEY.size or bytes(key) >= pack_key(log_id, end_offset):
                    break
                last_offset = unpack_key(key)[1]
                running_max = unpack_running_max(value)[0] if len(value) >= BATCH_START else -1
                slice_.append((last_offset, running_max, bytes(value[BATCH_START:])))
                bytes_left -= len(value) + HEADER_BYTES
                start_offset = last_offset + 1
                found = cursor.next()
        if not slice_:
            return
        yield slice_


# -- dumping, rebuilding -------------------------------------------------------------------------------------


def dump(
    environment: Environment, log_id: int, start_offset: int = 0, end_offset: int | None = None
) -> Iterator[Dumped]:
    """The stored batches of a log that end in [start_offset, end_offset), damaged ones too. Take your time
    with each: no snapshot is held.
    """
    for slice_ in dump_slices(environment, log_id, start_offset, end_offset):
        yield from slice_


def dump_slices(
    environment: Environment, log_id: int, start_offset: int, end_offset: int | None
) -> Iterator[list[Dumped]]:
    """`dump`, a few MB and one snapshot at a time."""
    for slice_ in _slices(
        environment, log_id, start_offset, CHECKPOINT_BASE if end_offset is None else end_offset
    ):
        yield [_dumped(*stored) for stored in slice_]


def _dumped(last_offset: int, running_max: int, data: bytes) -> Dumped:
    header: BatchHeader | None = None
    batch: Batch | None = None
    error = ""
    try:
        header = parse_header(data)
        batch = parse_batch(data)
    except StreamlogError as reason:
        error = str(reason)
    return Dumped(last_offset, running_max, len(data), header, batch, error)


def rebuild_checkpoint(reader: Reader, log_id: int) -> LogCheckpoint | None:
    """The checkpoint that the batches imply; None for a log without any. Everything stored counts as
    replicated.
    """
    report = EnvironmentReport("")
    log = LogReport(log_id)
    for last_offset, value in iterate_values(reader, log_id):
        _check_header(report, log, last_offset, value)
    if log.batches == 0:
        return None
    start = max(0, log.first_offset)
    return LogCheckpoint(
        start, log.end_offset, log.end_offset, log.size_bytes, log.running_max, log.leader_epoch
    )
