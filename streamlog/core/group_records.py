"""The bytes of `__consumer_offsets`: Kafka's own layouts, so that Kafka's tools and habits apply.

    key                                       value (None = tombstone)
    OffsetCommitKey v1                        OffsetCommitValue v3 (v0-v4 are read; v4 where the topic id is known)
      int16 version = 1 (0 is read alike)       int16 version = 3
      string group                              int64 offset
      string topic                              int32 leader_epoch        from v3
      int32 partition                           string metadata
                                                int64 commit_timestamp    wall clock, ms
                                                int64 expire_timestamp    v1 only, ignored
                                                v4: compact string metadata, tagged fields: 0 = uuid topic_id
    GroupMetadataKey v2                       GroupMetadataValue v3 (v0-v3 are read)
      int16 version = 2                         int16 version = 3
      string group                              string protocol_type      "" = none
                                                int32 generation
                                                string? protocol
                                                string? leader
                                                int64 state_timestamp     from v2; wall ms, -1 = unknown
                                                [member]
      member: string member_id | string? group_instance_id (from v3) | string client_id
              | string client_host | int32 rebalance_timeout_ms (from v1) | int32 session_timeout_ms
              | bytes subscription | bytes assignment

The incarnation. Kafka has no field for the opening of the cluster an in-process member belongs to. It
stands in `client_host` as `streamlog/<incarnation>`: there Kafka writes an address, which always begins
with "/" for members that came over the wire, so the two cannot be mistaken, and `kafka-consumer-groups
--describe` shows something sensible.

Of a member's protocols only the chosen one's bytes are stored, as in Kafka: after loading a member supports
just that one.

Sources: OffsetCommitKey.json, OffsetCommitValue.json, GroupMetadataKey.json, GroupMetadataValue.json.
Not implemented: GroupMetadataValue v4 (flexible), the records of
KIP-848 and share groups (key versions 3 and above: `decode_key` gives None, the caller steps over them).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

import msgspec

from streamlog.core.kafka_types import TypesReader, TypesWriter
from streamlog.errors import CorruptRecordError
from streamlog.record import TopicPartition

OFFSET_COMMIT_KEY_VERSION: Final = 1
GROUP_METADATA_KEY_VERSION: Final = 2
OFFSET_COMMIT_VALUE_VERSION: Final = 3
FLEXIBLE_OFFSET_VALUE_VERSION: Final = 4
GROUP_METADATA_VALUE_VERSION: Final = 3
NO_TIMESTAMP: Final = -1
_IN_PROCESS_HOST: Final = "streamlog/"

# Offsets are committed often, so their layouts are packed directly; groups go through TypesWriter.
_INT16 = struct.Struct(">h")
_TWO_INT16 = struct.Struct(">hh")
_INT32 = struct.Struct(">i")
_INT64 = struct.Struct(">q")
_FLEXIBLE_HEAD = struct.Struct(">hqi")
_FLEXIBLE_MARK = _INT16.pack(FLEXIBLE_OFFSET_VALUE_VERSION)
_TOPIC_ID_TAG = b"\x01\x00\x10"  # one tagged field, number 0, of 16 bytes
_OFFSET_VALUE_HEAD = struct.Struct(">hqih")
# Nearly every commit: version 4, metadata of no characters, a topic id and no other tag.
_USUAL_VALUE = struct.Struct(">hqiBq3s16s")
KEYS_KNOWN_MAX: Final = 4096
"""Keys of offsets come again and again: so many are encoded, and decoded, once."""


class OffsetKey(msgspec.Struct, frozen=True, gc=False):
    group_id: str
    partition: TopicPartition


class GroupKey(msgspec.Struct, frozen=True, gc=False):
    group_id: str


class CommittedOffset(msgspec.Struct, frozen=True, gc=False):
    offset: int
    leader_epoch: int
    metadata: str
    commit_timestamp_ms: int
    topic_id: str = ""
    """32 hexadecimal digits; "" where it is not known. A topic made anew under the same name has another."""


class StoredMember(msgspec.Struct, frozen=True, gc=False):
    member_id: str
    group_instance_id: str | None
    client_id: str
    client_host: str
    rebalance_timeout_ms: int
    session_timeout_ms: int
    subscription: bytes
    assignment: bytes


class StoredGroup(msgspec.Struct, frozen=True):
    protocol_type: str | None
    generation: int
    protocol: str | None
    leader: str | None
    state_timestamp_ms: int
    members: tuple[StoredMember, ...]


def client_host_of(incarnation: str) -> str:
    """What an in-process member's client_host says: which opening of the cluster it belongs to."""
    return _IN_PROCESS_HOST + incarnation


def incarnation_of(client_host: str) -> str:
    """The incarnation in a client_host; "" for members that came over the wire."""
    return client_host[len(_IN_PROCESS_HOST) :] if client_host.startswith(_IN_PROCESS_HOST) else ""


# -- keys --------------------------------------------------------------------------------------------------


@lru_cache(KEYS_KNOWN_MAX)
def encode_offset_key(group_id: str, partition: TopicPartition) -> bytes:
    group, topic = group_id.encode(), partition[0].encode()
    return b"".join(
        (
            _TWO_INT16.pack(OFFSET_COMMIT_KEY_VERSION, len(group)),
            group,
            _INT16.pack(len(topic)),
            topic,
            _INT32.pack(partition[1]),
        )
    )


def encode_group_key(group_id: str) -> bytes:
    writer = TypesWriter()
    writer.int16(GROUP_METADATA_KEY_VERSION)
    writer.string(group_id)
    return writer.finish()


@lru_cache(KEYS_KNOWN_MAX)
def decode_key(key: bytes) -> OffsetKey | GroupKey | None:
    """What the record is about; None for kinds this version does not know. Raises CorruptRecordError."""
    try:
        version, group_bytes = _TWO_INT16.unpack_from(key)
        if not 0 <= version <= GROUP_METADATA_KEY_VERSION:
            return None
        topic_at = 4 + group_bytes
        if version == GROUP_METADATA_KEY_VERSION:
            if group_bytes < 0 or topic_at > len(key):
                raise ValueError(f"a group id of {group_bytes} bytes in a key of {len(key)}")
            return GroupKey(key[4:topic_at].decode())
        (topic_bytes,) = _INT16.unpack_from(key, topic_at)
        partition_at = topic_at + 2 + topic_bytes
        if group_bytes < 0 or topic_bytes < 0:
            raise ValueError(f"an id of {group_bytes} or {topic_bytes} bytes")
        (number,) = _INT32.unpack_from(key, partition_at)
        topic = key[topic_at + 2 : partition_at].decode()
        return OffsetKey(key[4:topic_at].decode(), TopicPartition(topic, number))
    except (ValueError, struct.error) as error:
        raise CorruptRecordError(f"key of a __consumer_offsets record: {error}", key=key) from error


# -- values ------------------------------------------------------------------------------------------------


def encode_offset_value(committed: CommittedOffset) -> bytes:
    if committed.topic_id and not committed.metadata:
        return _USUAL_VALUE.pack(
            FLEXIBLE_OFFSET_VALUE_VERSION,
            committed.offset,
            committed.leader_epoch,
            1,
            committed.commit_timestamp_ms,
            _TOPIC_ID_TAG,
            bytes.fromhex(committed.topic_id),
        )
    metadata = committed.metadata.encode()
    if committed.topic_id:
        return b"".join(
            (
                _FLEXIBLE_HEAD.pack(FLEXIBLE_OFFSET_VALUE_VERSION, committed.offset, committed.leader_epoch),
                _unsigned_varint(len(metadata) + 1),
                metadata,
                _INT64.pack(committed.commit_timestamp_ms),
                _TOPIC_ID_TAG,
                bytes.fromhex(committed.topic_id),
            )
        )
    head = _OFFSET_VALUE_HEAD.pack(
        OFFSET_COMMIT_VALUE_VERSION, committed.offset, committed.leader_epoch, len(metadata)
    )
    return head + metadata + _INT64.pack(committed.commit_timestamp_ms)


def decode_offset_value(value: bytes) -> CommittedOffset:
    try:
        if len(value) == _USUAL_VALUE.size:
            version, offset, leader_epoch, length, timestamp_ms, tag, topic_id = _USUAL_VALUE.unpack(value)
            if version == FLEXIBLE_OFFSET_VALUE_VERSION and length == 1 and tag == _TOPIC_ID_TAG:
                return CommittedOffset(offset, leader_epoch, "", timestamp_ms, topic_id.hex())
        if value[:2] == _FLEXIBLE_MARK:
            return _decode_flexible_offset_value(value)
        version, offset, leader_epoch, metadata_bytes = _OFFSET_VALUE_HEAD.unpack_from(value)
        if version != OFFSET_COMMIT_VALUE_VERSION:
            return _decode_older_offset_value(value)
        end = _OFFSET_VALUE_HEAD.size + metadata_bytes
        if metadata_bytes < 0:
            raise ValueError(f"metadata of {metadata_bytes} bytes")
        (commit_timestamp_ms,) = _INT64.unpack_from(value, end)
        metadata = value[_OFFSET_VALUE_HEAD.size : end].decode()
        return CommittedOffset(offset, leader_epoch, metadata, commit_timestamp_ms)
    except (ValueError, struct.error) as error:
        raise CorruptRecordError(f"OffsetCommitValue: {error}", value=value) from error


def _decode_flexible_offset_value(value: bytes) -> CommittedOffset:
    _, offset, leader_epoch = _FLEXIBLE_HEAD.unpack_from(value)
    metadata_bytes, at = _read_unsigned_varint(value, _FLEXIBLE_HEAD.size)
    end = at + metadata_bytes - 1
    if metadata_bytes < 1 or end > len(value):
        raise ValueError(f"metadata of {metadata_bytes - 1} bytes")
    (commit_timestamp_ms,) = _INT64.unpack_from(value, end)
    topic_id = ""
    tags, tag_at = _read_unsigned_varint(value, end + _INT64.size)
    for _ in range(tags):
        tag, tag_at = _read_unsigned_varint(value, tag_at)
        size, tag_at = _read_unsigned_varint(value, tag_at)
        if tag_at + size > len(value):
            raise ValueError(f"a tagged field of {size} bytes")
        if tag == 0:
            topic_id = value[tag_at : tag_at + size].hex()
        tag_at += size
    return CommittedOffset(offset, leader_epoch, value[at:end].decode(), commit_timestamp_ms, topic_id)


def _unsigned_varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _read_unsigned_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number and where it ends."""
    number = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            raise ValueError("a number is cut off")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("a number of more than 5 bytes")


def _decode_older_offset_value(value: bytes) -> CommittedOffset:
    reader = TypesReader(value)
    _known_version(reader, OFFSET_COMMIT_VALUE_VERSION)
    return CommittedOffset(reader.int64(), -1, reader.string(), reader.int64())


def encode_group_value(group: StoredGroup) -> bytes:
    writer = TypesWriter()
    writer.int16(GROUP_METADATA_VALUE_VERSION)
    writer.string(group.protocol_type or "")
    writer.int32(group.generation)
    writer.string(group.protocol)
    writer.string(group.leader)
    writer.int64(group.state_timestamp_ms)
    writer.int32(len(group.members))
    for member in group.members:
        writer.string(member.member_id)
        writer.string(member.group_instance_id)
        writer.string(member.client_id)
        writer.string(member.client_host)
        writer.int32(member.rebalance_timeout_ms)
        writer.int32(member.session_timeout_ms)
        writer.bytes_(member.subscription)
        writer.bytes_(member.assignment)
    return writer.finish()


def decode_group_value(value: bytes) -> StoredGroup:
    reader = TypesReader(value)
    try:
        version = _known_version(reader, GROUP_METADATA_VALUE_VERSION)
        protocol_type = reader.string() or None
        generation = reader.int32()
        protocol = reader.nullable_string()
        leader = reader.nullable_string()
        state_timestamp_ms = reader.int64() if version >= 2 else NO_TIMESTAMP
        count = reader.array_count(18)
        members = tuple(_read_member(reader, version) for _ in range(count))
        return StoredGroup(protocol_type, generation, protocol, leader, state_timestamp_ms, members)
    except ValueError as error:
        raise CorruptRecordError(f"GroupMetadataValue: {error}", value=value) from error


def _read_member(reader: TypesReader, version: int) -> StoredMember:
    member_id = reader.string()
    group_instance_id = reader.nullable_string() if version >= 3 else None
    client_id = reader.string()
    client_host = reader.string()
    rebalance_timeout_ms = reader.int32() if version >= 1 else -1
    session_timeout_ms = reader.int32()
    if version < 1:
        rebalance_timeout_ms = session_timeout_ms  # v0 had one timeout for both
    return StoredMember(
        member_id,
        group_instance_id,
        client_id,
        client_host,
        rebalance_timeout_ms,
        session_timeout_ms,
        reader.bytes_(),
        reader.bytes_(),
    )


def _known_version(reader: TypesReader, version_max: int) -> int:
    version = reader.int16()
    if not 0 <= version <= version_max:
        raise ValueError(f"version {version}, this streamlog reads 0 to {version_max}")
    return version
