"""Records straight from stored bytes: what consumers read, with no object per batch in between.

    cursor over [start, end) --value--> one copy of the payload --CRC, decode--> list[Record]

Same guarantees as `storage.log.read`: whole batches, at least one if there is any, none that reaches beyond `end_offset`;
control batches are stepped over. A corrupt batch, or one whose codec is not installed, ends the list before it, and is
an error when it comes first: what is whole stays readable.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from streamlog.batch import lone_record_of, parse_batch, records_of
from streamlog.errors import CorruptRecordError, InvalidRecordError, UnsupportedCompressionTypeError
from streamlog.record import Record
from streamlog.storage.env import EngineError
from streamlog.storage.keys import BATCH_START, pack_key, unpack_key
from streamlog.storage.log import Reader, corrupt

_ATTRIBUTES_LOW: Final = BATCH_START + 22
_CONTROL: Final = 0x20
LONE_BYTES_MAX: Final = 4096
"""Smaller batches are looked at for being a lone record: its short path costs half."""


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
) -> FoundRecords:
    """The records at offsets [start_offset, end_offset), of batches of up to `bytes_max` together but at least one.

    Raises   CorruptRecordError if the very first batch is damaged, with `log_id`, `last_offset`.
    """
    records: list[Record] = []
    append = records.append
    batches = size_bytes = 0
    last_offset = -1
    try:
        cursor = snapshot.transaction.cursor()
        if not cursor.set_range(pack_key(log_id, start_offset)):
            return FoundRecords(records, None, 0, 0)
        for key, value in cursor.iternext():
            found_log_id, found_offset = unpack_key(key)
            # A checkpoint's number is above every offset, so one comparison ends the log in both ways.
            if found_offset >= end_offset or found_log_id != log_id:
                break
            size = len(value) - BATCH_START
            if batches and size_bytes + size > bytes_max:
                break
            try:
                lone = (
                    lone_record_of(value, topic, partition, found_offset, check_crcs, BATCH_START)
                    if size < LONE_BYTES_MAX
                    else None
                )
                if lone is not None:
                    append(lone)
                elif len(value) <= _ATTRIBUTES_LOW or not value[_ATTRIBUTES_LOW] & _CONTROL:
                    decoded = records_of(
                        value, topic, partition, start_offset, check_crcs, BATCH_START, found_offset
                    )
                    if records:
                        records += decoded
                    else:
                        records = decoded
                        append = records.append
                elif check_crcs:
                    parse_batch(value, position=BATCH_START)  # a flipped bit must not pass for a marker
            except (CorruptRecordError, InvalidRecordError, UnsupportedCompressionTypeError) as error:
                if batches:
                    break
                if isinstance(error, UnsupportedCompressionTypeError):
                    raise  # whole, but its codec's library is not here
                raise corrupt(log_id, found_offset, error) from error
            last_offset = found_offset
            batches += 1
            size_bytes += size
            if size_bytes >= bytes_max:
                break
    except EngineError as error:
        raise snapshot.environment.named(error) from error
    return FoundRecords(records, last_offset + 1 if batches else None, batches, size_bytes)
