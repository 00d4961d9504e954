"""streamlog.client.partitioner: placement bit for bit, bounds, and the sticky rule."""

from __future__ import annotations

import random
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.client.partitioner import Partitioner, create_partitioner, murmur2
from streamlog.errors import ConfigError

NAMES = ["crc32", "murmur2", "sticky", "round_robin"]

# SEMANTICS 3.9; rows 2 to 7 are Kafka's UtilsTest.java.
MURMUR2 = [
    (b"", 275646681),
    (b"21", -973932308),
    (b"foobar", -790332482),
    (b"a-little-bit-long-string", -985981536),
    (b"a-little-bit-longer-string", -1486304829),
    (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    (b"abc", 479470107),
    (b"key", -1079937367),
    (b"1", -1993445489),
    (b"user-1", 1404122828),
    (b"\x00", 375494588),
    (b"\xff\xff\xff\xff", 644171429),
]
# key, {partition count: partition}
PLACED = [
    (b"user-1", {3: 2, 6: 2, 10: 8}),
    (b"foobar", {3: 0, 6: 0, 10: 6}),
    (b"key", {2: 1, 3: 1, 4: 1, 6: 1, 10: 1}),
]


def partitioner(name: object, seed: int = 1, topic: str = "t") -> Partitioner:
    return create_partitioner(name, topic, random.Random(seed))


@pytest.mark.parametrize(("key", "expected"), MURMUR2)
def test_murmur2_is_the_java_clients(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected
    assert murmur2(key) == expected  # the second comes from the cache


@pytest.mark.parametrize(("key", "placed"), PLACED)
def test_murmur2_placement(key: bytes, placed: dict[int, int]) -> None:
    java = partitioner("murmur2")
    for partition_count, partition in placed.items():
        assert java.one(key, partition_count) == partition
        assert java.assign([key, None, key], partition_count)[::2] == [partition, partition]


def test_crc32_placement() -> None:
    default = partitioner("crc32")
    assert default.one(b"123456789", 1000) == 0xCBF43926 % 1000  # the check value of CRC-32
    assert default.one(b"", 7) == 0  # the empty key is hashed
    assert default.assign([b"123456789", b""], 1000) == [0xCBF43926 % 1000, 0]


@pytest.mark.parametrize(("ours", "theirs"), [("crc32", "consistent_random"), ("murmur2", "murmur2_random")])
def test_keyed_placement_is_librdkafkas(ours: str, theirs: str) -> None:
    """The claim of the docs, asked of the client that people come from."""
    confluent_kafka = pytest.importorskip("confluent_kafka")
    placed: dict[bytes, int] = {}
    producer = confluent_kafka.Producer(
        {
            "bootstrap.servers": "ignored:1",
            "test.mock.num.brokers": 1,
            "partitioner": theirs,
            "linger.ms": 0,
            "log_level": 0,
        }
    )
    keys = [f"user-{number}".encode() * (1 + number % 5) for number in range(100)]
    for key in keys:
        producer.produce(
            "t",
            key=key,
            on_delivery=lambda error, message: placed.update({message.key(): message.partition()}),
        )
    assert producer.flush(10) == 0
    partition_count = len(producer.list_topics("t", timeout=10).topics["t"].partitions)
    assert partition_count > 1
    assert [placed[key] for key in keys] == partitioner(ours).assign(keys, partition_count)


keys_lists = st.lists(st.none() | st.binary(max_size=40), max_size=30)


@given(keys_lists, st.integers(1, 12), st.sampled_from(NAMES), st.integers(0, 3))
def test_many_is_one_by_one_and_in_bounds(keys: list[bytes | None], count: int, name: str, seed: int) -> None:
    at_once = partitioner(name, seed).assign(keys, count)
    single = partitioner(name, seed)
    assert at_once == [single.one(key, count) for key in keys]
    assert all(0 <= partition < count for partition in at_once)


@given(st.binary(max_size=100), st.integers(1, 50))
def test_a_keys_partition_is_a_function_of_its_bytes(key: bytes, count: int) -> None:
    assert (
        partitioner("crc32", 1).one(key, count)
        == partitioner("crc32", 2).one(key, count)
        == zlib.crc32(key) % count
    )
    assert partitioner("murmur2", 1).one(key, count) == (murmur2(key) & 0x7FFFFFFF) % count


@pytest.mark.parametrize("name", ["crc32", "murmur2", "sticky"])
def test_keyless_records_stay_together_until_the_batch_is_sealed(name: str) -> None:
    sticky = partitioner(name)
    seen = []
    for _ in range(200):
        chosen = sticky.one(None, 4)
        assert sticky.assign([None] * 5, 4) == [chosen] * 5
        sticky.on_batch_sealed((chosen + 1) % 4)  # another partition's batch moves nothing
        assert sticky.one(None, 4) == chosen
        sticky.on_batch_sealed(chosen)
        assert sticky.one(None, 4) != chosen
        seen.append(chosen)
    assert sorted(set(seen)) == [0, 1, 2, 3]
    assert all(30 <= seen.count(partition) <= 70 for partition in range(4))


def test_sticky_choice_follows_the_seed() -> None:
    def walk(seed: int) -> list[int]:
        sticky, walked = partitioner("sticky", seed), []
        for _ in range(20):
            walked.append(sticky.one(None, 10))
            sticky.on_batch_sealed(walked[-1])
        return walked

    assert walk(7) == walk(7)
    assert walk(7) != walk(8)


def test_sticky_ignores_keys_as_partitioner_ignore_keys_does() -> None:
    sticky = partitioner("sticky")
    assert len(set(sticky.assign([b"a", b"b", None, b"c"], 100))) == 1


def test_sticky_with_one_partition_and_with_a_topic_that_came_back_smaller() -> None:
    sticky = partitioner("crc32")
    assert sticky.one(None, 1) == 0
    sticky.on_batch_sealed(0)
    assert sticky.one(None, 1) == 0
    for seed in range(20):
        sticky = partitioner("crc32", seed)
        sticky.one(None, 100)
        assert 0 <= sticky.one(None, 2) < 2


def test_round_robin_takes_turns_whatever_the_key() -> None:
    turns = partitioner("round_robin")
    assert turns.assign([b"a", b"a", None, b"b"], 3) == [0, 1, 2, 0]
    assert [turns.one(b"a", 3), turns.one(None, 3)] == [1, 2]
    assert turns.assign([], 3) == []
    turns.on_batch_sealed(1)
    assert turns.one(b"a", 3) == 0


def test_a_callable_gets_topic_key_value_and_count() -> None:
    calls: list[tuple[object, ...]] = []

    def by_value(topic: str, key: bytes | None, value: bytes | None, partition_count: int) -> int:
        calls.append((topic, key, value, partition_count))
        return len(value or b"")

    mine = partitioner(by_value, topic="orders")
    assert mine.one(b"k", 5, b"vv") == 2
    assert mine.assign([b"k", None], 5, [b"v", None]) == [1, 0]
    assert mine.assign([b"k"], 5) == [0]
    mine.on_batch_sealed(0)
    assert calls == [
        ("orders", b"k", b"vv", 5),
        ("orders", b"k", b"v", 5),
        ("orders", None, None, 5),
        ("orders", b"k", None, 5),
    ]


def always(result: Any) -> Any:
    def choose(topic: str, key: bytes | None, value: bytes | None, partition_count: int) -> Any:
        return result

    return choose


@pytest.mark.parametrize("result", [-1, 3, 2**40, None, "1", 1.0, True])
def test_a_callables_wrong_result_is_named(result: object) -> None:
    wrong = partitioner(always(result), topic="orders")
    with pytest.raises(ConfigError, match=r"choose returned .* for topic 'orders'.*from 0 to 2") as caught:
        wrong.one(b"k", 3)
    assert caught.value.option == "partitioner"
    assert caught.value.allowed == "0..2"
    with pytest.raises(ConfigError):
        wrong.assign([b"k"], 3)


def test_a_callables_own_error_reaches_the_sender() -> None:
    def fails(topic: str, key: bytes | None, value: bytes | None, partition_count: int) -> int:
        raise LookupError("no route")

    with pytest.raises(LookupError, match="no route"):
        partitioner(fails).one(b"k", 3)


@pytest.mark.parametrize("spec", ["murmur3", "", None, 5, "CRC32"])
def test_a_wrong_spec_says_what_is_allowed(spec: object) -> None:
    with pytest.raises(ConfigError, match='"crc32", "murmur2", "round_robin", "sticky"') as caught:
        partitioner(spec)
    assert caught.value.option == "partitioner"
