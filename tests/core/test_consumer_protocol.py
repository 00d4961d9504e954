"""Subscription and assignment bytes, as ConsumerProtocol*.json says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.core.consumer_protocol import (
    NO_GENERATION,
    Assignment,
    Subscription,
    decode_assignment,
    decode_cooperative_user_data,
    decode_sticky_user_data,
    decode_subscription,
    encode_assignment,
    encode_sticky_user_data,
    encode_subscription,
    subscribed_topics,
)
from streamlog.record import TopicPartition

T0, T1, U0 = TopicPartition("t", 0), TopicPartition("t", 1), TopicPartition("u", 0)
FULL = Subscription(("t", "u"), b"ud", (T0, T1, U0), 7, "r1")

PARTITIONS_HEX = "00000002 0001 74 00000002 00000000 00000001 0001 75 00000001 00000000"
HEAD_HEX = "00000002 0001 74 0001 75 00000002 7564"


@pytest.mark.parametrize(
    ("version", "data", "decoded"),
    [
        (0, f"0000 {HEAD_HEX}", Subscription(("t", "u"), b"ud")),
        (1, f"0001 {HEAD_HEX} {PARTITIONS_HEX}", Subscription(("t", "u"), b"ud", (T0, T1, U0))),
        (2, f"0002 {HEAD_HEX} {PARTITIONS_HEX} 00000007", Subscription(("t", "u"), b"ud", (T0, T1, U0), 7)),
        (3, f"0003 {HEAD_HEX} {PARTITIONS_HEX} 00000007 0002 7231", FULL),
    ],
)
def test_subscription_bytes(version: int, data: str, decoded: Subscription) -> None:
    assert encode_subscription(FULL, version).hex() == data.replace(" ", "")
    assert decode_subscription(bytes.fromhex(data)) == decoded


def test_assignment_bytes() -> None:
    data = bytes.fromhex(f"0003 {PARTITIONS_HEX} ffffffff")
    assert encode_assignment(Assignment((T0, T1, U0))) == data
    assert decode_assignment(data) == Assignment((T0, T1, U0))
    assert decode_assignment(b"") == Assignment()  # a member the leader forgot


def test_topics_are_written_sorted() -> None:
    """So that a member that asks for the same topics again is seen as unchanged."""
    assert encode_subscription(Subscription(("b", "a"))) == encode_subscription(Subscription(("a", "b")))


def test_a_newer_version_is_read_as_ours() -> None:
    newer = b"\x00\x09" + encode_subscription(FULL)[2:] + b"something new"
    assert decode_subscription(newer) == FULL
    assert encode_subscription(FULL, 9) == encode_subscription(FULL, 3)


def test_every_cut_of_a_subscription_is_an_error() -> None:
    data = encode_subscription(FULL)
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r".+"):
            decode_subscription(data[:length])
    with pytest.raises(ValueError, match="version -1"):
        decode_subscription(b"\xff\xff" + data[2:])


def test_the_leader_adds_the_instance_id() -> None:
    assert decode_subscription(encode_subscription(FULL), "i-1").group_instance_id == "i-1"


def test_sticky_user_data() -> None:
    data = encode_sticky_user_data([T0, T1, U0], 5)
    assert data == bytes.fromhex(f"{PARTITIONS_HEX} 00000005")
    assert decode_sticky_user_data(data) == ((T0, T1, U0), 5)
    assert decode_sticky_user_data(data[:-4]) == ((T0, T1, U0), NO_GENERATION)  # its version 0
    assert decode_sticky_user_data(b"garbage") == ((), NO_GENERATION)
    assert decode_sticky_user_data(None) == ((), NO_GENERATION)


def test_cooperative_user_data() -> None:
    assert decode_cooperative_user_data(b"\x00\x00\x00\x05") == 5
    assert decode_cooperative_user_data(b"\x00\x00") == NO_GENERATION
    assert decode_cooperative_user_data(None) == NO_GENERATION


def test_subscribed_topics() -> None:
    one, two = encode_subscription(Subscription(("a",))), encode_subscription(Subscription(("b", "a")))
    assert subscribed_topics([("range", one), ("sticky", two)]) == {"a", "b"}
    assert subscribed_topics([("range", one), ("mine", b"?")]) is None
    assert subscribed_topics([]) == frozenset()


NAMES = st.text(min_size=1, max_size=8)
PARTITIONS = st.lists(st.builds(TopicPartition, NAMES, st.integers(0, 99)), unique=True, max_size=8)


@given(
    st.lists(NAMES, unique=True, max_size=5),
    st.none() | st.binary(max_size=9),
    PARTITIONS,
    st.integers(-1, 9),
    st.none() | NAMES,
)
def test_round_trip(
    topics: list[str], user_data: bytes | None, owned: list[TopicPartition], generation: int, rack: str | None
) -> None:
    decoded = decode_subscription(
        encode_subscription(Subscription(tuple(topics), user_data, tuple(owned), generation, rack))
    )
    assert sorted(decoded.owned) == sorted(owned)
    assert decoded.topics == tuple(sorted(topics))
    assert (decoded.user_data, decoded.generation, decoded.rack) == (user_data, generation, rack)
    assert sorted(decode_assignment(encode_assignment(Assignment(tuple(owned)))).partitions) == sorted(owned)
