"""A record batch: Kafka's 61-byte header, always, and a body in one of two layouts told apart by `magic`.

    0        8       12      16 17   21                          61
    | base   | length| leader|m | crc | attributes ... count    | body                              |
    | offset |       | epoch |  |     |<------------ payload: what the CRC-32C covers ------------>|
    |<- stamped by the leader ->|

    magic 2      body = Kafka's records (batch_v2), byte for byte as real clients write them
    magic 0x53   body = columns in msgpack (batch_columnar), for in-process producers

`HEADER_LAYOUT` is the header as data. Sealing encodes a batch once, `records` decodes it once; between the
two everybody looks at the header only, and the leader's stamp (offset, epoch) lies outside the CRC.

Invariants of a `Batch` (what `parse_batch` and the sealers guarantee):
 1. Its sizes, magic, codec number and counts are possible; its CRC holds unless the caller waived that.
 2. 0 <= record_count <= last_offset_delta + 1. A compacted batch may have holes, or no record at all; its
    offset range stays.
 3. The body is not looked at before `records`, `columns` or a conversion; these raise InvalidRecordError if
    it is nonsense. Bytes that contradict their own header or CRC are CorruptRecordError.
 4. A record's timestamp is base_timestamp + its delta; with LogAppendTime it is max_timestamp; with a delete
    horizon (KIP-534) base_timestamp is the horizon and the deltas are against it, hence may be negative.
 5. Conversion between layouts keeps every header field but magic, size and CRC, and every record.
Speed (CPython 3.11, keys of 16 and values of 100 bytes; benchmarks/micro_batch.py):

    layout     seal      parse + records          in a batch of 1000, per record
    columnar   29 ns     110 ns
    v2         270 ns    1000 ns
    columnar   0.9 us    1.0 us                   a batch of one record
    v2         1.1 us    3.6 us

Sources: KIP-98, KIP-82, KIP-534; Kafka DefaultRecordBatch, MemoryRecords.filterTo.
Not implemented: message formats 0 and 1; several batches in one `bytes` (walk them with `parse_header`).
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import error as struct_error
from typing import Protocol

from google_crc32c import value as crc32c

from . import batch_columnar, batch_v2
from .batch_columnar import DECODE_ERRORS, Body, Headers, decode_lone, encode_columns
from .batch_header import (
    BODY_START,
    CODEC_MASK,
    CONTROL,
    CRC_START,
    HEADER_BYTES,
    HEADER_LAYOUT,
    LENGTH_END,
    LENGTH_OVER_PAYLOAD,
    MAGIC_COLUMNAR,
    MAGIC_V2,
    NO_LEADER_EPOCH,
    NO_PRODUCER_EPOCH,
    NO_PRODUCER_ID,
    NO_SEQUENCE,
    NO_TIMESTAMP,
    TRANSACTIONAL,
    BatchHeader,
    parse_header,
    reject_batch,
    reject_short,
    unpack_header,
    unpack_read_header,
)
from .batch_lone import lone_records_of
from .batch_sealed import Batch, Columns, assemble, decode_records
from .batch_v2 import ControlRecord, ControlType
from .compression import Codec, compress
from .errors import CorruptRecordError
from .record import Record

__all__ = [
    "CRC_START",
    "HEADER_BYTES",
    "HEADER_LAYOUT",
    "MAGIC_COLUMNAR",
    "MAGIC_V2",
    "NO_LEADER_EPOCH",
    "NO_PRODUCER_EPOCH",
    "NO_PRODUCER_ID",
    "NO_SEQUENCE",
    "NO_TIMESTAMP",
    "Batch",
    "BatchHeader",
    "Codec",
    "Columns",
    "ControlRecord",
    "ControlType",
    "control_batch",
    "lone_record_of",
    "lone_records_of",
    "parse_batch",
    "parse_header",
    "records_of",
    "seal_columnar",
    "seal_v2",
    "seal_v2_columns",
]


# Reading


def parse_batch(data: bytes | memoryview, *, check_crc: bool = True, position: int = 0) -> Batch:
    """Parse the one batch that fills data[position:]; the body stays encoded.

    Raises CorruptRecordError (size, magic, CRC) or InvalidRecordError (impossible counts or codec).
    """
    try:
        (
            base_offset,
            length,
            leader_epoch,
            magic,
            crc,
            attributes,
            last_offset_delta,
            base_timestamp,
            max_timestamp,
            producer_id,
            producer_epoch,
            base_sequence,
            record_count,
        ) = unpack_header(data, position)
    except struct_error:
        reject_short(len(data) - position)
    payload = data[position + CRC_START :]
    if type(payload) is not bytes:
        payload = bytes(payload)
    if (
        length != len(payload) + LENGTH_OVER_PAYLOAD
        or (magic != MAGIC_COLUMNAR and magic != MAGIC_V2)
        or attributes & CODEC_MASK > 4
        or not -1 < record_count <= last_offset_delta + 1
        or last_offset_delta < 0
        or base_offset < 0
        or (check_crc and crc32c(payload) != crc)
    ):
        reject_batch(data, position, check_crc)
    return Batch(
        base_offset,
        leader_epoch,
        magic,
        crc,
        attributes,
        last_offset_delta,
        base_timestamp,
        max_timestamp,
        producer_id,
        producer_epoch,
        base_sequence,
        record_count,
        length + LENGTH_END,
        payload,
    )


def records_of(
    data: bytes | memoryview,
    topic: str,
    partition: int,
    start_offset: int = 0,
    check_crc: bool = True,
    position: int = 0,
    last_offset: int = -1,
) -> list[Record]:
    """The records of the one batch that fills data[position:], without building a Batch.

    position:     skips what lies before the batch in a stored value; a memoryview of that is copied once.
    last_offset:  where the batch must end, if the caller knows: the CRC does not cover the base offset.
    """
    try:
        (
            base_offset,
            length,
            magic,
            crc,
            attributes,
            last_offset_delta,
            base_timestamp,
            max_timestamp,
            record_count,
        ) = unpack_read_header(data, position)
    except struct_error:
        reject_short(len(data) - position)
    payload = data[position + CRC_START :]
    if type(payload) is not bytes:
        payload = bytes(payload)
    if (
        length != len(payload) + LENGTH_OVER_PAYLOAD
        or (magic != MAGIC_COLUMNAR and magic != MAGIC_V2)
        or attributes & CODEC_MASK > 4
        or not -1 < record_count <= last_offset_delta + 1
        or last_offset_delta < 0
        or base_offset < 0
        or (check_crc and crc32c(payload) != crc)
    ):
        reject_batch(data, position, check_crc)
    if last_offset >= 0 and base_offset + last_offset_delta != last_offset:
        raise CorruptRecordError(
            f"the batch ends at offset {base_offset + last_offset_delta}, it is stored as ending at {last_offset}",
            offset=base_offset,
        )
    return decode_records(
        payload,
        magic,
        attributes,
        base_offset,
        last_offset_delta,
        base_timestamp,
        max_timestamp,
        record_count,
        topic,
        partition,
        start_offset,
    )


def lone_record_of(
    data: bytes | memoryview, topic: str, partition: int, last_offset: int, check_crc: bool, position: int
) -> Record | None:
    """The one record of a plain columnar batch; None if it is anything else, or damaged: then ask `records_of`.

    What a reader of unbatched records does most, written out: half the time of the general way.
    """
    if len(data) - position <= HEADER_BYTES:
        return None
    base_offset, length, magic, crc, attributes, delta, base_timestamp, _, count = unpack_read_header(
        data, position
    )
    if count != 1 or magic != MAGIC_COLUMNAR or attributes or delta or base_offset != last_offset:
        return None
    payload = bytes(data[position + CRC_START :])
    if length != len(payload) + LENGTH_OVER_PAYLOAD or (check_crc and crc32c(payload) != crc):
        return None
    try:
        time, key, value, headers, zero = decode_lone(payload[BODY_START:])
    except DECODE_ERRORS:
        return None
    if zero:
        return None
    if headers is None:
        return Record(topic, partition, base_offset, base_timestamp + time, key, value)
    if len(headers) != 1:
        return None
    return Record(topic, partition, base_offset, base_timestamp + time, key, value, headers[0])


# Sealing


class RecordLike(Protocol):
    """What `seal_v2` reads of a record."""

    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...


def seal_columnar(
    keys: Sequence[bytes | None] | None,
    values: Sequence[bytes | None],
    *,
    headers: Sequence[Headers] | None = None,
    timestamps: int | Sequence[int],
    offsets: Sequence[int] | None = None,
    codec: Codec = Codec.NONE,
    level: int | None = None,
    producer_id: int = NO_PRODUCER_ID,
    producer_epoch: int = NO_PRODUCER_EPOCH,
    base_sequence: int = NO_SEQUENCE,
    transactional: bool = False,
) -> Batch:
    """Encode columns into a batch at offset 0 with no leader epoch; the leader numbers it.

    keys:       None = no record has a key. Keys and values must be bytes or None: the caller has checked.
    headers:    None = no record has any; else a tuple of (str, bytes | None) pairs per record.
    timestamps: one for all records, or one each.
    offsets:    strictly rising, against the base offset; None = no holes.
    Zero records make a batch that covers one offset.
    """
    attributes = TRANSACTIONAL if transactional else 0
    count = len(values)
    if count == 1 and not codec and offsets is None:
        # The short path: a lone record is five scalars and needs no folding.
        if type(timestamps) is not int:
            timestamps = timestamps[0]  # type: ignore[index]
        key = None if keys is None else keys[0]
        one = headers if headers and headers[0] else None
        data = encode_columns((0, key, values[0], one, 0))
        return assemble(
            data,
            MAGIC_COLUMNAR,
            attributes,
            1,
            timestamps,
            timestamps,
            producer_id,
            producer_epoch,
            base_sequence,
        )
    body, base_timestamp, max_timestamp, last_delta = _body_of(keys, values, headers, timestamps, offsets)
    data = batch_columnar.encode_body(body, count)
    if codec and count:
        attributes |= codec
        data = compress(codec, data, level)
    return assemble(
        data,
        MAGIC_COLUMNAR,
        attributes,
        count,
        base_timestamp,
        max_timestamp,
        producer_id,
        producer_epoch,
        base_sequence,
        last_delta,
    )


def seal_v2_columns(
    keys: Sequence[bytes | None] | None,
    values: Sequence[bytes | None],
    *,
    headers: Sequence[Headers] | None = None,
    timestamps: int | Sequence[int],
    offsets: Sequence[int] | None = None,
    codec: Codec = Codec.NONE,
    level: int | None = None,
    producer_id: int = NO_PRODUCER_ID,
    producer_epoch: int = NO_PRODUCER_EPOCH,
    base_sequence: int = NO_SEQUENCE,
    transactional: bool = False,
    control: bool = False,
) -> Batch:
    """`seal_columnar` in Kafka's own layout."""
    count = len(values)
    if count == 1 and offsets is None:
        base_timestamp = max_timestamp = timestamps if isinstance(timestamps, int) else timestamps[0]
        last_delta = 0
        key = None if keys is None else keys[0]
        data = batch_v2.encode_lone(0, 0, key, values[0], headers[0] if headers else ())
    else:
        body, base_timestamp, max_timestamp, last_delta = _body_of(keys, values, headers, timestamps, offsets)
        data = batch_v2.encode_body(body, count)
    if codec and count:
        data = compress(codec, data, level)
    return assemble(
        data,
        MAGIC_V2,
        (codec if count else 0) | (TRANSACTIONAL if transactional else 0) | (CONTROL if control else 0),
        count,
        base_timestamp,
        max_timestamp,
        producer_id,
        producer_epoch,
        base_sequence,
        last_delta,
    )


def seal_v2(
    records: Sequence[RecordLike],
    *,
    offsets: Sequence[int] | None = None,
    codec: Codec = Codec.NONE,
    level: int | None = None,
    producer_id: int = NO_PRODUCER_ID,
    producer_epoch: int = NO_PRODUCER_EPOCH,
    base_sequence: int = NO_SEQUENCE,
    transactional: bool = False,
    control: bool = False,
) -> Batch:
    """Encode records in Kafka's own layout: internal topics, tests."""
    return seal_v2_columns(
        [record.key for record in records],
        [record.value for record in records],
        headers=[record.headers for record in records],
        timestamps=[record.timestamp for record in records] or NO_TIMESTAMP,
        offsets=offsets,
        codec=codec,
        level=level,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        base_sequence=base_sequence,
        transactional=transactional,
        control=control,
    )


def control_batch(
    kind: ControlType,
    *,
    producer_id: int,
    producer_epoch: int,
    timestamp: int,
    coordinator_epoch: int = 0,
) -> Batch:
    """A transaction marker: one control record without a sequence number; it takes one offset."""
    key, value = batch_v2.encode_control(kind, coordinator_epoch)
    return seal_v2_columns(
        [key],
        [value],
        timestamps=timestamp,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        transactional=True,
        control=True,
    )


def _body_of(
    keys: Sequence[bytes | None] | None,
    values: Sequence[bytes | None],
    headers: Sequence[Headers] | None,
    timestamps: int | Sequence[int],
    offsets: Sequence[int] | None,
) -> tuple[Body, int, int, int]:
    """Check the caller's columns and return them with base timestamp, max timestamp and last offset delta."""
    count = len(values)
    deltas: int | list[int]
    if isinstance(timestamps, int):
        base_timestamp = max_timestamp = timestamps
        deltas = 0
    elif not timestamps:
        base_timestamp = max_timestamp = NO_TIMESTAMP
        deltas = []
    elif timestamps[0] == timestamps[-1] and timestamps.count(timestamps[0]) == len(timestamps) == count:
        base_timestamp = max_timestamp = timestamps[0]
        deltas = 0
    else:
        base_timestamp, max_timestamp = timestamps[0], max(timestamps)
        deltas = [timestamp - base_timestamp for timestamp in timestamps]
    body: Body = (
        deltas,
        None if keys is None else keys if isinstance(keys, list) else list(keys),
        values if isinstance(values, list) else list(values),
        headers if headers is None or isinstance(headers, list) else list(headers),
        0 if offsets is None else list(offsets),
    )
    last_offset_delta = max(count - 1, 0) if not offsets else offsets[-1]
    batch_columnar.check_body(body, count, last_offset_delta)
    return body, base_timestamp, max_timestamp, last_offset_delta
