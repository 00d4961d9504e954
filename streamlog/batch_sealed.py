"""An encoded batch in memory: the parsed header, the CRC-covered bytes, and what can be derived from them.

See `batch` for the picture and the invariants; users of batches import from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from struct import error as struct_error
from typing import NamedTuple

from google_crc32c import value as crc32c

from . import batch_columnar, batch_v2
from .batch_columnar import DECODE_ERRORS, Body, Headers, decode_columns
from .batch_header import (
    BODY_START,
    CODEC_MASK,
    CONTROL,
    CRC_START,
    DELETE_HORIZON,
    LENGTH_END,
    LOG_APPEND_TIME,
    MAGIC_COLUMNAR,
    MAGIC_V2,
    NO_LEADER_EPOCH,
    TRANSACTIONAL,
    BatchHeader,
    pack_payload_header,
    pack_prefix,
)
from .batch_v2 import ControlRecord, ControlType
from .compression import Codec, compress, decompress
from .errors import InvalidRecordError
from .record import Record

_COPY_BYTES_MAX = 4096  # up to here, slicing bytes beats a memoryview


class Columns(NamedTuple):
    """The records of a batch, one sequence per field, each `record_count` long."""

    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Headers]
    timestamps: Sequence[int]
    offsets: Sequence[int]  # against base_offset


class Batch(BatchHeader, frozen=True, gc=False):
    """One encoded batch: the parsed header and the CRC-covered bytes."""

    payload: bytes  # bytes 21..end of the batch

    def prefix(self, base_offset: int, leader_epoch: int) -> bytes:
        """The first 21 bytes, as the leader stamps them; the batch on disk is prefix + payload."""
        return pack_prefix(base_offset, self.size_bytes - LENGTH_END, leader_epoch, self.magic, self.crc)

    def encode(self) -> bytes:
        """The whole batch."""
        return self.prefix(self.base_offset, self.leader_epoch) + self.payload

    def with_offsets(self, base_offset: int, leader_epoch: int) -> Batch:
        """The batch as numbered by a leader; the same payload and CRC."""
        return Batch(
            base_offset,
            leader_epoch,
            self.magic,
            self.crc,
            self.attributes,
            self.last_offset_delta,
            self.base_timestamp,
            self.max_timestamp,
            self.producer_id,
            self.producer_epoch,
            self.base_sequence,
            self.record_count,
            self.size_bytes,
            self.payload,
        )

    def with_log_append_time(self, now_ms: int) -> Batch:
        """The batch with one timestamp for all records; the deltas in the body stay and are ignored."""
        return self._with_header(attributes=self.attributes | LOG_APPEND_TIME, max_timestamp=now_ms)

    def with_producer(
        self, producer_id: int, producer_epoch: int, base_sequence: int, transactional: bool | None = None
    ) -> Batch:
        """The batch under another producer identity: the epoch was bumped after sealing (KIP-360)."""
        attributes = self.attributes
        if transactional is not None:
            attributes = attributes & ~TRANSACTIONAL | (TRANSACTIONAL if transactional else 0)
        return self._with_header(
            attributes=attributes,
            producer_id=producer_id,
            producer_epoch=producer_epoch,
            base_sequence=base_sequence,
        )

    def with_codec(self, codec: Codec, level: int | None = None) -> Batch:
        """The batch compressed by `codec`: a topic's compression.type differs from the producer's."""
        if codec == self.attributes & CODEC_MASK or not self.record_count:
            return self
        return self._with_header(
            compress(codec, _plain_body(self.payload, self.attributes), level),
            self.attributes & ~CODEC_MASK | codec,
        )

    def records(self, topic: str, partition: int, start_offset: int = 0) -> list[Record]:
        """Decode the records at or behind `start_offset`; the caller skips `is_control` batches."""
        return decode_records(
            self.payload,
            self.magic,
            self.attributes,
            self.base_offset,
            self.last_offset_delta,
            self.base_timestamp,
            self.max_timestamp,
            self.record_count,
            topic,
            partition,
            start_offset,
        )

    def columns(self) -> Columns:
        """Decode into one sequence per field, whatever the layout."""
        timestamps, keys, values, headers, offsets = self._body()
        count, base_timestamp = self.record_count, self.base_timestamp
        if self.attributes & LOG_APPEND_TIME:
            times = [self.max_timestamp] * count
        elif isinstance(timestamps, list):
            times = [base_timestamp + delta for delta in timestamps]
        else:
            times = [base_timestamp + timestamps] * count
        if headers is None:
            headers = [()]
        return Columns(
            keys if isinstance(keys, list) else [keys] * count,
            values if isinstance(values, list) else [values] * count,
            headers if len(headers) == count else headers * count,
            times,
            offsets if isinstance(offsets, list) else range(offsets, offsets + count),
        )

    def control_record(self) -> ControlRecord:
        """What the marker in this control batch says."""
        keys, values = self.columns()[:2]
        if not self.is_control or not keys:
            return ControlRecord(ControlType.UNKNOWN, -1)
        return batch_v2.decode_control(keys[0], values[0])

    def to_v2(self) -> Batch:
        """The same batch in Kafka's layout, for the wire."""
        return self if self.magic == MAGIC_V2 else self._in_layout(MAGIC_V2)

    def to_columnar(self) -> Batch:
        """The same batch in columns. A control batch is always Kafka's layout and is returned as it is."""
        if self.magic == MAGIC_COLUMNAR or self.attributes & CONTROL:
            return self
        return self._in_layout(MAGIC_COLUMNAR)

    def retain(self, indexes: Sequence[int], delete_horizon_ms: int | None = None) -> Batch:
        """The batch after compaction: only the records at these rising positions, none of them renumbered.

        delete_horizon_ms: stamp this horizon (KIP-534); None keeps what the batch has.
        Keeps base and last offset, producer, epoch, layout and codec. Without a record it is an empty v2
        body.
        Source: MemoryRecords.buildRetainedRecordsInto and DefaultRecordBatch.writeEmptyHeader.
        """
        if not indexes:
            timestamp = self.max_timestamp
            attributes = self.attributes & ~(CODEC_MASK | DELETE_HORIZON)
            return self._with_header(b"", attributes, 0, timestamp, timestamp)
        columns = self.columns()
        times = [columns.timestamps[index] for index in indexes]
        attributes, base_timestamp = self.attributes, self.base_timestamp
        if delete_horizon_ms is not None:
            attributes |= DELETE_HORIZON
            base_timestamp = delete_horizon_ms
        elif not attributes & DELETE_HORIZON:
            base_timestamp = times[0]
        body: Body = (
            [time - base_timestamp for time in times],
            [columns.keys[index] for index in indexes],
            [columns.values[index] for index in indexes],
            [columns.headers[index] for index in indexes] if any(columns.headers) else None,
            [columns.offsets[index] for index in indexes],
        )
        data = compress(Codec(attributes & CODEC_MASK), encode_body(self.magic, body, len(indexes)))
        return self._with_header(data, attributes, len(indexes), base_timestamp, max(times))

    def _body(self) -> Body:
        return decode_payload(
            self.payload, self.magic, self.attributes, self.record_count, self.last_offset_delta
        )

    def _in_layout(self, magic: int) -> Batch:
        data = encode_body(magic, self._body(), self.record_count)
        if self.record_count:
            data = compress(self.codec, data)
        return self._with_header(data, magic=magic)

    def _with_header(
        self,
        body: bytes | None = None,
        attributes: int | None = None,
        record_count: int | None = None,
        base_timestamp: int | None = None,
        max_timestamp: int | None = None,
        producer_id: int | None = None,
        producer_epoch: int | None = None,
        base_sequence: int | None = None,
        magic: int | None = None,
    ) -> Batch:
        """A copy with some fields replaced and a new CRC; offsets stay."""
        return assemble(
            self.payload[BODY_START:] if body is None else body,
            self.magic if magic is None else magic,
            self.attributes if attributes is None else attributes,
            self.record_count if record_count is None else record_count,
            self.base_timestamp if base_timestamp is None else base_timestamp,
            self.max_timestamp if max_timestamp is None else max_timestamp,
            self.producer_id if producer_id is None else producer_id,
            self.producer_epoch if producer_epoch is None else producer_epoch,
            self.base_sequence if base_sequence is None else base_sequence,
            self.last_offset_delta,
            self.base_offset,
            self.leader_epoch,
        )


_EMPTY: Body = (0, None, None, None, 0)


def encode_body(magic: int, body: Body, count: int) -> bytes:
    """Encode columns in the layout of `magic`."""
    if magic == MAGIC_COLUMNAR:
        return batch_columnar.encode_body(body, count)
    return batch_v2.encode_body(body, count)


def decode_payload(payload: bytes, magic: int, attributes: int, count: int, last_offset_delta: int) -> Body:
    """Decode and check the body of a batch into columns."""
    data: bytes | memoryview
    if not count and len(payload) == BODY_START:
        return _EMPTY
    if magic == MAGIC_COLUMNAR and not attributes & CODEC_MASK:
        data = payload[BODY_START:] if len(payload) <= _COPY_BYTES_MAX else memoryview(payload)[BODY_START:]
        return batch_columnar.decode_body(data, count, last_offset_delta)
    data = _plain_body(payload, attributes)
    if magic == MAGIC_COLUMNAR:
        return batch_columnar.decode_body(data, count, last_offset_delta)
    return batch_v2.decode_body(data, count, last_offset_delta)


def _plain_body(payload: bytes, attributes: int) -> bytes:
    """The body without its compression."""
    codec = attributes & CODEC_MASK
    if not codec:
        return payload[BODY_START:]
    return decompress(Codec(codec), memoryview(payload)[BODY_START:])


def decode_records(
    payload: bytes,
    magic: int,
    attributes: int,
    base_offset: int,
    last_offset_delta: int,
    base_timestamp: int,
    max_timestamp: int,
    count: int,
    topic: str,
    partition: int,
    start_offset: int,
) -> list[Record]:
    """Build the records at or behind `start_offset`."""
    if count == 1 and magic == MAGIC_COLUMNAR and not attributes & CODEC_MASK:
        # The short path of a lone record, five scalars. What looks odd takes the long one, which says why.
        try:
            delta, key, value, headers, offset = decode_columns(payload[BODY_START:])
            if (
                type(delta) is int
                and type(offset) is int
                and type(key) is not list
                and type(value) is not list
                and 0 <= offset <= last_offset_delta
                and (headers is None or len(headers) == 1)
            ):
                offset += base_offset
                if offset < start_offset:
                    return []
                timestamp = max_timestamp if attributes & LOG_APPEND_TIME else base_timestamp + delta
                if headers is None:
                    return [Record(topic, partition, offset, timestamp, key, value)]
                return [Record(topic, partition, offset, timestamp, key, value, headers[0])]
        except DECODE_ERRORS:
            pass
    body = decode_payload(payload, magic, attributes, count, last_offset_delta)
    append_time = max_timestamp if attributes & LOG_APPEND_TIME else None
    return _map_records(body, topic, partition, base_offset, base_timestamp, count, append_time, start_offset)


def _map_records(
    body: Body,
    topic: str,
    partition: int,
    base_offset: int,
    base_timestamp: int,
    count: int,
    append_time: int | None,
    start_offset: int,
) -> list[Record]:
    """Records at C speed: one `map` over the columns, a constant one repeated."""
    timestamps, keys, values, headers, offsets = body
    skip = 0
    if start_offset > base_offset:
        wanted = start_offset - base_offset
        if isinstance(offsets, list):
            from bisect import bisect_left

            skip = bisect_left(offsets, wanted)
        else:
            skip = max(0, wanted - offsets)
        if skip >= count:
            return []
    times: Iterable[int]
    if append_time is not None:
        times = repeat(append_time)
    elif isinstance(timestamps, list):
        times = map(base_timestamp.__add__, timestamps[skip:] if skip else timestamps)
    else:
        times = repeat(base_timestamp + timestamps)
    numbers: Iterable[int]
    if isinstance(offsets, list):
        numbers = map(base_offset.__add__, offsets[skip:] if skip else offsets)
    else:
        first = base_offset + offsets
        numbers = range(first + skip, first + count)
    key_column = (keys[skip:] if skip else keys) if isinstance(keys, list) else repeat(keys)
    value_column = (values[skip:] if skip else values) if isinstance(values, list) else repeat(values)
    if headers is None:
        return list(map(Record, repeat(topic), repeat(partition), numbers, times, key_column, value_column))
    header_column = headers[skip:] if len(headers) == count else repeat(headers[0])
    return list(
        map(Record, repeat(topic), repeat(partition), numbers, times, key_column, value_column, header_column)
    )


def assemble(
    body: bytes,
    magic: int,
    attributes: int,
    record_count: int,
    base_timestamp: int,
    max_timestamp: int,
    producer_id: int,
    producer_epoch: int,
    base_sequence: int,
    last_offset_delta: int = 0,
    base_offset: int = 0,
    leader_epoch: int = NO_LEADER_EPOCH,
) -> Batch:
    """Put header and body together and compute the CRC."""
    try:
        payload = (
            pack_payload_header(
                attributes,
                last_offset_delta,
                base_timestamp,
                max_timestamp,
                producer_id,
                producer_epoch,
                base_sequence,
                record_count,
            )
            + body
        )
    except struct_error as error:
        raise InvalidRecordError(
            f"a field of a batch is out of range: {error}",
            base_timestamp=base_timestamp,
            max_timestamp=max_timestamp,
            producer_id=producer_id,
            last_offset_delta=last_offset_delta,
        ) from error
    return Batch(
        base_offset,
        leader_epoch,
        magic,
        crc32c(payload),
        attributes,
        last_offset_delta,
        base_timestamp,
        max_timestamp,
        producer_id,
        producer_epoch,
        base_sequence,
        record_count,
        len(payload) + CRC_START,
        payload,
    )
