"""The 61-byte header of a record batch: its layout as data, its flags, and the checks on it.

Storage, replication, idempotence and transactions look at this and never at the body. See `batch` for the
picture.

Invariants of a `BatchHeader` that came out of `parse_header` (and of every `Batch`):
 1. The stated length, the magic and the codec number are possible.
 2. 0 <= record_count <= last_offset_delta + 1, and 0 <= base_offset.
Sources: KIP-98, KIP-534; Kafka DefaultRecordBatch.
"""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error
from typing import NoReturn

import msgspec
from google_crc32c import value as crc32c

from .compression import Codec
from .errors import CorruptRecordError, InvalidRecordError


class HeaderField(msgspec.Struct, frozen=True, gc=False):
    """One row of the header's layout; `code` is the struct code of its type."""

    name: str
    code: str
    meaning: str


HEADER_LAYOUT = (
    HeaderField(
        "base_offset", "q", "offset of the first record; stamped by the leader, not covered by the CRC"
    ),
    HeaderField("length", "i", "bytes behind this field"),
    HeaderField(
        "leader_epoch",
        "i",
        "epoch of the leader that appended it; stamped by the leader, not covered by the CRC",
    ),
    HeaderField("magic", "B", "layout of the body: 2 Kafka's records, 0x53 columns"),
    HeaderField("crc", "I", "CRC-32C of all bytes behind this field"),
    HeaderField(
        "attributes", "H", "bits 0-2 codec, 3 LogAppendTime, 4 transactional, 5 control, 6 delete horizon"
    ),
    HeaderField("last_offset_delta", "i", "offset of the last record - base offset; kept by compaction"),
    HeaderField("base_timestamp", "q", "what timestamp deltas are against; with bit 6 the delete horizon"),
    HeaderField("max_timestamp", "q", "largest timestamp of the records; with bit 3 the timestamp of each"),
    HeaderField("producer_id", "q", "-1 without idempotence"),
    HeaderField("producer_epoch", "h", "-1 without idempotence"),
    HeaderField("base_sequence", "i", "sequence number of the first record, -1 without idempotence"),
    HeaderField("record_count", "i", "records in the body"),
)
_CODES = "".join(field.code for field in HEADER_LAYOUT)
_HEADER = Struct(">" + _CODES)
PREFIX_FIELDS = 5  # not covered by the CRC
_PREFIX = Struct(">" + _CODES[:PREFIX_FIELDS])
_PAYLOAD_HEADER = Struct(">" + _CODES[PREFIX_FIELDS:])
_READ_HEADER = Struct(">qi4xBIHiqq14xi")  # the fields a reader needs: skipping the others saves 60 ns
unpack_header, pack_prefix, pack_payload_header = _HEADER.unpack_from, _PREFIX.pack, _PAYLOAD_HEADER.pack
unpack_read_header = _READ_HEADER.unpack_from

HEADER_BYTES = _HEADER.size
CRC_START = _PREFIX.size
BODY_START = _PAYLOAD_HEADER.size  # within the payload
LENGTH_END = 12  # the length field counts the bytes behind itself
LENGTH_OVER_PAYLOAD = CRC_START - LENGTH_END

MAGIC_V2 = 2
MAGIC_COLUMNAR = 0x53

NO_PRODUCER_ID = -1
NO_PRODUCER_EPOCH = -1
NO_SEQUENCE = -1
SEQUENCE_MASK = 0x7FFFFFFF  # sequences count records, and wrap
NO_TIMESTAMP = -1
NO_LEADER_EPOCH = -1

CODEC_MASK = 0x07
LOG_APPEND_TIME = 0x08
TRANSACTIONAL = 0x10
CONTROL = 0x20
DELETE_HORIZON = 0x40


class BatchHeader(msgspec.Struct, frozen=True, gc=False):
    """The header of a batch; guarantees invariants 1 and 2 except the CRC."""

    base_offset: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int
    size_bytes: int  # of the whole batch

    @property
    def last_offset(self) -> int:
        return self.base_offset + self.last_offset_delta

    @property
    def next_offset(self) -> int:
        return self.base_offset + self.last_offset_delta + 1

    @property
    def codec(self) -> Codec:
        return Codec(self.attributes & CODEC_MASK)

    @property
    def is_log_append_time(self) -> bool:
        return self.attributes & LOG_APPEND_TIME != 0

    @property
    def is_transactional(self) -> bool:
        return self.attributes & TRANSACTIONAL != 0

    @property
    def is_control(self) -> bool:
        return self.attributes & CONTROL != 0

    @property
    def has_delete_horizon(self) -> bool:
        return self.attributes & DELETE_HORIZON != 0

    @property
    def delete_horizon_ms(self) -> int | None:
        """When tombstones and markers of this batch may go (KIP-534); None: no cleaning has seen them yet."""
        return self.base_timestamp if self.attributes & DELETE_HORIZON else None

    @property
    def has_producer(self) -> bool:
        return self.producer_id >= 0

    @property
    def last_sequence(self) -> int:
        """Sequence number of the last record; sequences wrap from 2**31 - 1 to 0. -1 without one."""
        if self.base_sequence < 0:
            return NO_SEQUENCE
        return (self.base_sequence + self.last_offset_delta) & SEQUENCE_MASK

    def __repr__(self) -> str:
        layout = "v2" if self.magic == MAGIC_V2 else "columnar"
        producer = (
            f" producer={self.producer_id}/{self.producer_epoch}/{self.base_sequence}"
            if self.has_producer
            else ""
        )
        flags = "".join(
            f" {name}"
            for name, bit in (
                ("transactional", TRANSACTIONAL),
                ("control", CONTROL),
                ("log_append_time", LOG_APPEND_TIME),
            )
            if self.attributes & bit
        )
        return (
            f"<{type(self).__name__} [{self.base_offset}, {self.next_offset}) {layout} "
            f"epoch={self.leader_epoch} records={self.record_count} bytes={self.size_bytes}{producer}{flags}>"
        )


def parse_header(data: bytes | memoryview, position: int = 0) -> BatchHeader:
    """Parse the header of the batch that starts at `position`, without touching (or needing) the rest.

    The next batch, if there is one, starts at position + size_bytes. Checks all of a header but its CRC.
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
    check_fields(base_offset, length, magic, attributes, last_offset_delta, record_count)
    return BatchHeader(
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
    )


def check_fields(
    base_offset: int, length: int, magic: int, attributes: int, last_offset_delta: int, record_count: int
) -> None:
    """Raise unless these fields are possible (invariants 1 and 2)."""
    if length < HEADER_BYTES - LENGTH_END:
        raise CorruptRecordError(
            f"the batch at offset {base_offset} states {length} bytes, less than its header has",
            offset=base_offset,
            length=length,
        )
    if magic not in (MAGIC_V2, MAGIC_COLUMNAR):
        raise CorruptRecordError(
            f"the batch at offset {base_offset} has magic {magic}; {MAGIC_V2} and {MAGIC_COLUMNAR} are known",
            offset=base_offset,
            magic=magic,
        )
    if base_offset < 0 or last_offset_delta < 0 or not 0 <= record_count <= last_offset_delta + 1:
        raise InvalidRecordError(
            f"the batch at offset {base_offset} claims {record_count} records, "
            f"its last offset delta is {last_offset_delta}",
            offset=base_offset,
            record_count=record_count,
            last_offset_delta=last_offset_delta,
        )
    if attributes & CODEC_MASK > Codec.ZSTD:
        raise InvalidRecordError(
            f"the batch at offset {base_offset} has the unknown codec {attributes & CODEC_MASK}",
            offset=base_offset,
            codec=attributes & CODEC_MASK,
        )


def reject_short(size_bytes: int) -> NoReturn:
    raise CorruptRecordError(
        f"a batch has a header of {HEADER_BYTES} bytes, {size_bytes} are there", size_bytes=size_bytes
    )


def reject_batch(data: bytes | memoryview, position: int, check_crc: bool) -> NoReturn:
    """Say what is wrong with a batch that failed its checks: size first, then CRC, then fields."""
    base_offset, length, _, magic, crc, attributes, last_offset_delta, _, _, _, _, _, count = unpack_header(
        data, position
    )
    size_bytes = len(data) - position
    if length + LENGTH_END != size_bytes:
        raise CorruptRecordError(
            f"the batch at offset {base_offset} states {length + LENGTH_END} bytes, {size_bytes} are there",
            offset=base_offset,
            expected=length + LENGTH_END,
            actual=size_bytes,
        )
    if magic in (MAGIC_V2, MAGIC_COLUMNAR) and check_crc:
        actual = crc32c(bytes(data[position + CRC_START :]))
        if actual != crc:
            raise CorruptRecordError(
                f"the CRC of the batch at offset {base_offset} is {actual:#010x}, but {crc:#010x} is stated",
                offset=base_offset,
                expected=crc,
                actual=actual,
            )
    check_fields(base_offset, length, magic, attributes, last_offset_delta, count)
    raise CorruptRecordError(
        f"the batch at offset {base_offset} is not valid", offset=base_offset
    )  # not reached
