"""Records straight from stored bytes: what consumers read, with no object per batch in between.

    cursor over [start, end) --value--> one copy of the payload --CRC, decode--> list[Record]
                             --run of lone batches, some hundreds--> list[Record]

Same guarantees as `storage.log.read`: whole batches, at least one if there is any, none that reaches beyond `end_offset`;
control batches are stepped over. A corrupt batch, or one whose codec is not installed, ends the list before it, and is
an error when it comes first: what is whole stays readable.

Batches are read one by one until several lone ones came in a row; then runs of them are read at once, until one is not
what it should be: that run is read one by one again, and the next try waits for longer. Runs change the time a read
takes, never what it finds.
"""

from __future__ import annotations

from itertools import accumulate, islice
from typing import TYPE_CHECKING, Final, NamedTuple

from streamlog.batch import lone_record_of, lone_records_of, parse_batch, parse_header, records_of
from streamlog.batch_lone import RUN_RECORDS
from streamlog.errors import CorruptRecordError, InvalidRecordError, UnsupportedCompressionTypeError
from streamlog.record import Record
from streamlog.storage.env import EngineError
from streamlog.storage.keys import BATCH_START, pack_key, unpack_key
from streamlog.storage.log import Reader, corrupt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamlog.storage.cleaned_transactions import AbortedTransaction
    from streamlog.storage.env import Cursor

_ATTRIBUTES_LOW: Final = BATCH_START + 22
_CONTROL: Final = 0x20
_TRANSACTIONAL: Final = 0x10
_NO_RUNS: Final = 1 << 62
LONE_BYTES_MAX: Final = 4096
"""Smaller batches are looked at for being a lone record: its short path costs half."""
LONE_BATCHES_MIN: Final = 16
"""After so many lone batches in a row a run of them is tried; after more where the last try brought little."""
RUN_RECORDS_WORTH: Final = 128
"""What a try must bring to be worth the next one as soon: where lone batches come forty at a time, none is."""
RUN_RECORDS_MIN: Final = 24
"""A shorter run costs as much as its batches one by one."""
STEP_RECORDS: Final = 32
"""A run is taken from the cursor in such steps: at most so many values are looked at in vain."""


class FoundRecords(NamedTuple):
    """What one read found. `next_offset`: behind the last batch looked at; None if there was none."""

    records: list[Record]
    next_offset: int | None
    batches: int
    size_bytes: int


def read_records(
    snapshot: Reader,
    log_id: int,
    topic: str,
    partition: int,
    start_offset: int,
    end_offset: int,
    bytes_max: int,
    check_crcs: bool = True,
    aborted: Sequence[AbortedTransaction] = (),
) -> FoundRecords:
    """The records at offsets [start_offset, end_offset), of batches of up to `bytes_max` together but at least one.

    aborted: transactions whose records are stepped over, all that reach into the range.
    Raises   CorruptRecordError if the very first batch is damaged, with `log_id`, `last_offset`.
    """
    reading = _Reading(log_id, topic, partition, start_offset, end_offset, bytes_max, check_crcs)
    if aborted:
        reading.hide(aborted)
    try:
        cursor = snapshot.transaction.cursor()
        while reading.one_by_one(cursor) and reading.in_runs(cursor):
            pass
    except EngineError as error:
        raise snapshot.environment.named(error) from error
    next_offset = reading.next_offset if reading.batches else None
    return FoundRecords(reading.records, next_offset, reading.batches, reading.size_bytes)


class _Reading:
    """One call of `read_records`: what is asked, and what was found up to `next_offset`."""

    __slots__ = (
        "log_id", "topic", "partition", "start_offset", "end_offset", "bytes_max", "check_crcs",
        "records", "next_offset", "batches", "size_bytes", "lone_min", "run_max", "aborted",
    )  # fmt: skip

    def __init__(
        self,
        log_id: int,
        topic: str,
        partition: int,
        start_offset: int,
        end_offset: int,
        bytes_max: int,
        check_crcs: bool,
    ) -> None:
        self.log_id = log_id
        self.topic = topic
        self.partition = partition
        self.start_offset = self.next_offset = start_offset
        self.end_offset = end_offset
        self.bytes_max = bytes_max
        self.check_crcs = check_crcs
        self.records: list[Record] = []
        self.batches = self.size_bytes = 0
        self.lone_min = LONE_BATCHES_MIN
        self.run_max = RUN_RECORDS
        self.aborted: dict[int, list[AbortedTransaction]] = {}

    def hide(self, aborted: Sequence[AbortedTransaction]) -> None:
        """Step over the records of these. Batches are looked at one by one then."""
        for transaction in aborted:
            self.aborted.setdefault(transaction.producer_id, []).append(transaction)
        self.lone_min = _NO_RUNS

    def is_hidden(self, value: memoryview) -> bool:
        """Whether a stored batch is of an aborted transaction (SEMANTICS 3.5.14)."""
        if (
            len(value) <= _ATTRIBUTES_LOW
            or value[_ATTRIBUTES_LOW] & (_TRANSACTIONAL | _CONTROL) != _TRANSACTIONAL
        ):
            return False
        header = parse_header(value, BATCH_START)
        return any(
            transaction.first_offset <= header.base_offset and header.last_offset <= transaction.last_offset
            for transaction in self.aborted.get(header.producer_id, ())
        )

    def one_by_one(self, cursor: Cursor) -> bool:
        """Read batch by batch from `next_offset`; whether it ended for a run of lone ones, else all is read.

        Raises   CorruptRecordError if the very first batch is damaged.
        """
        topic, partition, check_crcs = self.topic, self.partition, self.check_crcs
        log_id, end_offset, bytes_max = self.log_id, self.end_offset, self.bytes_max
        records, next_offset = self.records, self.next_offset
        batches, size_bytes, left = self.batches, self.size_bytes, self.lone_min
        if not cursor.set_range(pack_key(log_id, next_offset)):
            return False
        is_run = False
        for key, value in cursor.iternext():
            found_log_id, found_offset = unpack_key(key)
            # A checkpoint's number is above every offset, so one comparison ends the log in both ways.
            if found_offset >= end_offset or found_log_id != log_id:
                break
            size = len(value) - BATCH_START
            if batches and size_bytes + size > bytes_max:
                break
            try:
                if self.aborted and self.is_hidden(value):
                    next_offset = found_offset + 1
                    batches += 1
                    size_bytes += size
                    if size_bytes >= bytes_max:
                        break
                    continue
                lone = (
                    lone_record_of(value, topic, partition, found_offset, check_crcs, BATCH_START)
                    if size < LONE_BYTES_MAX
                    else None
                )
                if lone is not None:
                    records.append(lone)
                    left -= 1
                else:
                    decoded = self._decode(value, found_offset)
                    left = left - 1 if len(decoded) == 1 and size < LONE_BYTES_MAX else self.lone_min
                    if records:
                        records += decoded
                    else:
                        records = decoded
            except (CorruptRecordError, InvalidRecordError, UnsupportedCompressionTypeError) as error:
                if batches:
                    break
                if isinstance(error, UnsupportedCompressionTypeError):
                    raise  # whole, but its codec's library is not here
                raise corrupt(log_id, found_offset, error) from error
            next_offset = found_offset + 1
            batches += 1
            size_bytes += size
            if size_bytes >= bytes_max:
                break
            if left <= 0 and end_offset - next_offset >= RUN_RECORDS_MIN:
                is_run = True
                break
        self.records, self.next_offset = records, next_offset
        self.batches, self.size_bytes = batches, size_bytes
        return is_run

    def _decode(self, value: memoryview, last_offset: int) -> list[Record]:
        if len(value) <= _ATTRIBUTES_LOW or not value[_ATTRIBUTES_LOW] & _CONTROL:
            return records_of(
                value,
                self.topic,
                self.partition,
                self.start_offset,
                self.check_crcs,
                BATCH_START,
                last_offset,
            )
        if self.check_crcs:
            parse_batch(value, position=BATCH_START)  # a flipped bit must not pass for a marker
        return []

    def in_runs(self, cursor: Cursor) -> bool:
        """Read runs of lone batches from `next_offset`; whether something else follows, else all is read."""
        taken = 0
        while self.end_offset - self.next_offset >= RUN_RECORDS_MIN:
            asked = min(self.run_max, self.end_offset - self.next_offset)
            values = self._take(cursor, asked)
            sizes = list(map(len, values))
            room = self.bytes_max - self.size_bytes
            size_bytes = sum(sizes) - BATCH_START * len(sizes)
            is_full = size_bytes >= room
            if size_bytes > room:
                from bisect import bisect_right

                ends = list(accumulate([size - BATCH_START for size in sizes]))
                fitting = bisect_right(ends, room)
                values, sizes, size_bytes = values[:fitting], sizes[:fitting], ends[fitting - 1]
            records = None
            if len(values) >= RUN_RECORDS_MIN:
                records = lone_records_of(
                    values, sizes, self.topic, self.partition, self.next_offset, self.check_crcs, BATCH_START
                )
            if records is None:
                self.lone_min = LONE_BATCHES_MIN if taken >= RUN_RECORDS_WORTH else 4 * self.lone_min
                self.run_max = STEP_RECORDS
                return True
            self.records += records
            taken += len(values)
            self.next_offset += len(values)
            self.batches += len(values)
            self.size_bytes += size_bytes
            if is_full:
                return False
            if len(values) < asked:
                self.lone_min = LONE_BATCHES_MIN if taken >= RUN_RECORDS_WORTH else 4 * self.lone_min
                return True
            self.run_max = min(2 * self.run_max, RUN_RECORDS)
        return self.next_offset < self.end_offset

    def _take(self, cursor: Cursor, count: int) -> list[memoryview]:
        """The next values, up to `count`, whose keys follow each other without holes: lone batches, most likely."""
        values: list[memoryview] = []
        log_id, first = self.log_id, self.next_offset
        if not cursor.set_key(pack_key(log_id, first)):
            return values
        coming = cursor.iternext(keys=False)
        while len(values) < count:
            known = len(values)
            step = min(STEP_RECORDS, count - known)
            values += islice(coming, step)
            # Keys rise: when the last of `step` is so many further, there is none between them but these.
            if cursor.key() != pack_key(log_id, first + known + step - 1):
                del values[known:]
                break
        return values
