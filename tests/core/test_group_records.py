"""The bytes of __consumer_offsets, as Kafka's OffsetCommit*.json and GroupMetadata*.json say."""

from __future__ import annotations

import pytest

from streamlog.core.group_records import (
    CommittedOffset,
    GroupKey,
    OffsetKey,
    StoredGroup,
    StoredMember,
    client_host_of,
    decode_group_value,
    decode_key,
    decode_offset_value,
    encode_group_key,
    encode_group_value,
    encode_offset_key,
    encode_offset_value,
    incarnation_of,
)
from streamlog.errors import CorruptRecordError
from streamlog.record import TopicPartition

MEMBER = StoredMember("m", "i", "c", "/h", 300, 45, b"sub", b"as")
GROUP = StoredGroup("consumer", 9, "range", "m", 1000, (MEMBER,))
EMPTY = StoredGroup(None, 4, None, None, 1000, ())

OFFSET_KEY = "0001 0001 67 0006 6f7264657273 00000003"
GROUP_KEY = "0002 0001 67"
OFFSET_VALUE = "0003 000000000000002a 00000007 0002 6d64 00000000000003e8"
GROUP_HEAD = "0008 636f6e73756d6572 00000009 0005 72616e6765 0001 6d"
MEMBER_TAIL = "00000003 737562 00000002 6173"
GROUP_VALUE = (
    f"0003 {GROUP_HEAD} 00000000000003e8 00000001"
    f" 0001 6d 0001 69 0001 63 0002 2f68 0000012c 0000002d {MEMBER_TAIL}"
)
EMPTY_VALUE = "0003 0000 00000004 ffff ffff 00000000000003e8 00000000"


def hexed(text: str) -> bytes:
    return bytes.fromhex(text.replace(" ", ""))


def test_keys() -> None:
    assert encode_offset_key("g", TopicPartition("orders", 3)) == hexed(OFFSET_KEY)
    assert decode_key(hexed(OFFSET_KEY)) == OffsetKey("g", TopicPartition("orders", 3))
    assert encode_group_key("g") == hexed(GROUP_KEY)
    assert decode_key(hexed(GROUP_KEY)) == GroupKey("g")


def test_offset_key_version_0_is_the_same() -> None:
    assert decode_key(b"\x00\x00" + hexed(OFFSET_KEY)[2:]) == OffsetKey("g", TopicPartition("orders", 3))


@pytest.mark.parametrize("version", [3, 5, 11, 15])
def test_other_kinds_of_key_are_stepped_over(version: int) -> None:
    assert decode_key(bytes([0, version, 1, 2, 3])) is None


def test_offset_value() -> None:
    committed = CommittedOffset(42, 7, "md", 1000)
    assert encode_offset_value(committed) == hexed(OFFSET_VALUE)
    assert decode_offset_value(hexed(OFFSET_VALUE)) == committed


def test_offset_value_with_a_topic_id() -> None:
    """OffsetCommitValue v4: flexible, the topic id in tagged field 0; other tagged fields are stepped over."""
    topic_id = "00112233445566778899aabbccddeeff"
    committed = CommittedOffset(42, 7, "md", 1000, topic_id)
    value = f"0004 000000000000002a 00000007 03 6d64 00000000000003e8 01 00 10 {topic_id}"
    assert encode_offset_value(committed) == hexed(value)
    assert decode_offset_value(hexed(value)) == committed
    other = f"0004 000000000000002a 00000007 03 6d64 00000000000003e8 02 00 10 {topic_id} 07 02 ffff"
    assert decode_offset_value(hexed(other)) == committed
    none = "0004 000000000000002a 00000007 03 6d64 00000000000003e8 00"
    assert decode_offset_value(hexed(none)) == CommittedOffset(42, 7, "md", 1000)
    long = CommittedOffset(1, -1, "é" * 4096, 5, topic_id)
    assert decode_offset_value(encode_offset_value(long)) == long
    whole = hexed(value)
    for length in range(len(whole)):
        with pytest.raises(CorruptRecordError):
            decode_offset_value(whole[:length])


@pytest.mark.parametrize(
    "value",
    [
        "0000 000000000000002a 0002 6d64 00000000000003e8",
        "0001 000000000000002a 0002 6d64 00000000000003e8 0000000000000fff",
        "0002 000000000000002a 0002 6d64 00000000000003e8",
    ],
)
def test_older_offset_values(value: str) -> None:
    assert decode_offset_value(hexed(value)) == CommittedOffset(42, -1, "md", 1000)


def test_group_value() -> None:
    assert encode_group_value(GROUP) == hexed(GROUP_VALUE)
    assert decode_group_value(hexed(GROUP_VALUE)) == GROUP
    assert encode_group_value(EMPTY) == hexed(EMPTY_VALUE)
    assert decode_group_value(hexed(EMPTY_VALUE)) == EMPTY


def test_older_group_values() -> None:
    ids = "0001 6d 0001 63 0002 2f68"
    version_0 = decode_group_value(hexed(f"0000 {GROUP_HEAD} 00000001 {ids} 0000002d {MEMBER_TAIL}"))
    assert version_0.members == (StoredMember("m", None, "c", "/h", 45, 45, b"sub", b"as"),)
    assert version_0.state_timestamp_ms == -1
    version_1 = decode_group_value(hexed(f"0001 {GROUP_HEAD} 00000001 {ids} 0000012c 0000002d {MEMBER_TAIL}"))
    assert version_1.members[0].rebalance_timeout_ms == 300
    version_2 = decode_group_value(
        hexed(f"0002 {GROUP_HEAD} 00000000000003e8 00000001 {ids} 0000012c 0000002d {MEMBER_TAIL}")
    )
    assert version_2.state_timestamp_ms == 1000


def test_torn_and_unknown_records_are_named_errors() -> None:
    for decode, data in (
        (decode_key, OFFSET_KEY),
        (decode_key, GROUP_KEY),
        (decode_offset_value, OFFSET_VALUE),
        (decode_group_value, GROUP_VALUE),
    ):
        whole = hexed(data)
        for length in range(len(whole)):
            with pytest.raises(CorruptRecordError):
                decode(whole[:length])
    with pytest.raises(CorruptRecordError, match="version 5"):
        decode_offset_value(b"\x00\x05" + hexed(OFFSET_VALUE)[2:])
    with pytest.raises(CorruptRecordError, match="version 9"):
        decode_group_value(b"\x00\x09" + hexed(GROUP_VALUE)[2:])


def test_the_incarnation_stands_in_client_host() -> None:
    assert client_host_of("abc") == "streamlog/abc"
    assert incarnation_of("streamlog/abc") == "abc"
    assert incarnation_of("/10.0.0.1") == ""
    assert incarnation_of("") == ""
