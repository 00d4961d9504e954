"""Partitioners: which partition a record goes to when its sender did not say.

    partitioner=      record with a key                     record without (key is None)
    "crc32"           crc32(key) % partitions               sticky     (the default; as librdkafka)
    "murmur2"         (murmur2(key) & 0x7fffffff) % parts   sticky     (as the Java client)
    "sticky"          sticky                                sticky     (Java: partitioner.ignore.keys)
    "round_robin"     next partition                        next partition
    callable          callable(topic, key, value, partition_count) -> int, for every record

Sticky: all records go to one partition until the producer says that this partition's batch was sealed; then
another is drawn. Batches grow full instead of being spread thin (KIP-480).

A partitioner belongs to one topic of one producer, so a topic's stickiness is its own. The producer's hot
path hands over a whole list of keys: `assign(keys, partition_count)`. Give it about one batch's worth at a
time: sticky does not move inside a call.

Invariants:
 1. 0 <= partition < partition_count, for a user's callable too: anything else is a ConfigError.
 2. A key's partition depends on its bytes and the partition count only; the empty key is hashed, only None is
    keyless.
 3. All partitions count, also those that have no leader right now: keyed placement never moves because of a
    failure.

Threads: state is one int that calls may race on; a race costs evenness, never a bound of invariant 1.
Sources: KIP-480, KIP-794; Java DefaultPartitioner, Utils.murmur2, RoundRobinPartitioner,
StickyPartitionCache; librdkafka rd_kafka_msg_partitioner_consistent_random. Deviation: librdkafka draws a
random partition for an empty key also.
Not implemented: adaptive partitioning by queue length (KIP-794) - in process there is no queue per broker to
measure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import index
from typing import TYPE_CHECKING, cast
from zlib import crc32

from streamlog.errors import ConfigError

if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object  # real ones cost import time, and nobody asks isinstance of them

PartitionFunction = Callable[[str, "bytes | None", "bytes | None", int], int]
"""The user's: (topic, key, value, partition_count) -> partition; key and value as serialized, or None."""

MURMUR2_SEED = 0x9747B28C
MURMUR2_CACHE_KEYS_MAX = 16_384
"""Pure Python needs about 2 us a key, a cached key 0.1 us; a topic's hot keys repeat."""


class Chance(Protocol):
    """The part of `random.Random` that partitioners need; injected, so that a seed fixes every choice."""

    def randrange(self, stop: int, /) -> int: ...


class Partitioner(Protocol):
    def assign(
        self,
        keys: Sequence[bytes | None],
        partition_count: int,
        values: Sequence[bytes | None] | None = None,
    ) -> list[int]:
        """The partitions of many records, in order. `values` matter to a user's callable only."""

    def one(self, key: bytes | None, partition_count: int, value: bytes | None = None) -> int:
        """The partition of one record."""

    def on_batch_sealed(self, partition: int) -> None:
        """The producer sealed a batch of this partition: sticky partitioners move on."""


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit murmur2 as the Java client computes it: a signed int."""
    unsigned = _murmur2(data)
    return unsigned - (1 << 32) if unsigned >= 1 << 31 else unsigned


@lru_cache(maxsize=MURMUR2_CACHE_KEYS_MAX)
def _murmur2(data: bytes) -> int:
    mask = 0xFFFFFFFF
    m = 0x5BD1E995
    length = len(data)
    words = length >> 2
    h = MURMUR2_SEED ^ length
    for k in struct.unpack_from(f"<{words}I", data):
        k = (k * m) & mask
        k = ((k ^ (k >> 24)) * m) & mask
        h = ((h * m) & mask) ^ k
    tail = data[words << 2 :]
    if tail:
        h = ((h ^ int.from_bytes(tail, "little")) * m) & mask
    h = ((h ^ (h >> 13)) * m) & mask
    return h ^ (h >> 15)


class StickyPartitioner:
    """One partition for all records until its batch is sealed."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._partition = -1
        self._partition_count = 0

    def assign(
        self,
        keys: Sequence[bytes | None],
        partition_count: int,
        values: Sequence[bytes | None] | None = None,
    ) -> list[int]:
        return [self.current(partition_count)] * len(keys)

    def one(self, key: bytes | None, partition_count: int, value: bytes | None = None) -> int:
        return self.current(partition_count)

    def current(self, partition_count: int) -> int:
        self._partition_count = partition_count
        partition = self._partition
        if 0 <= partition < partition_count:
            return partition
        # No choice yet, or a topic of this name came back smaller.
        partition = self._partition = self._chance.randrange(partition_count)
        return partition

    def on_batch_sealed(self, partition: int) -> None:
        if partition != self._partition:
            return  # a keyed record filled it, or somebody else moved us on already
        if self._partition_count < 2:
            return
        # Draw among the others: the sealed one would be a batch behind.
        drawn = self._chance.randrange(self._partition_count - 1)
        self._partition = drawn + 1 if drawn >= partition else drawn


class Crc32Partitioner(StickyPartitioner):
    """Keys by CRC-32, the rest sticky."""

    def assign(
        self,
        keys: Sequence[bytes | None],
        partition_count: int,
        values: Sequence[bytes | None] | None = None,
    ) -> list[int]:
        if partition_count == 1:
            return [0] * len(keys)
        sticky = self.current(partition_count)
        return [sticky if key is None else crc32(key) % partition_count for key in keys]

    def one(self, key: bytes | None, partition_count: int, value: bytes | None = None) -> int:
        return self.current(partition_count) if key is None else crc32(key) % partition_count


class Murmur2Partitioner(StickyPartitioner):
    """Keys where the Java client puts them, the rest sticky."""

    def assign(
        self,
        keys: Sequence[bytes | None],
        partition_count: int,
        values: Sequence[bytes | None] | None = None,
    ) -> list[int]:
        if partition_count == 1:
            return [0] * len(keys)
        sticky = self.current(partition_count)
        return [sticky if key is None else (_murmur2(key) & 0x7FFFFFFF) % partition_count for key in keys]

    def one(self, key: bytes | None, partition_count: int, value: bytes | None = None) -> int:
        return (
            self.current(partition_count) if key is None else (_murmur2(key) & 0x7FFFFFFF) % partition_count
        )


class RoundRobinPartitioner:
    """Every record to the next partition, whatever its key."""

    def __init__(self) -> None:
        self._next = 0

    def assign(
        self,
        keys: Sequence[bytes | None],
        partition_count: int,
        values: Sequence[bytes | None] | None = None,
    ) -> list[int]:
        start = self._next
        self._next = start + len(keys)
        return [number % partition_count for number in range(start, start + len(keys))]

    def one(self, key: bytes | None, partition_count: int, value: bytes | None = None) -> int:
        number = self._next
        self._next = number + 1
        return number % partition_count

    def on_batch_sealed(self, partition: int) -> None:
        """Nothing to move."""


class CallablePartitioner:
    """The user's function, its results checked. What it raises reaches the sender as it is."""

    def __init__(self, function: PartitionFunction, topic: str) -> None:
        self._function = function
        self._topic = topic

    def assign(
        self,
        keys: Sequence[bytes | None],
        partition_count: int,
        values: Sequence[bytes | None] | None = None,
    ) -> list[int]:
        one = self.one
        if values is None:
            return [one(key, partition_count) for key in keys]
        return [one(key, partition_count, value) for key, value in zip(keys, values, strict=True)]

    def one(self, key: bytes | None, partition_count: int, value: bytes | None = None) -> int:
        given = self._function(self._topic, key, value, partition_count)
        try:
            partition = -1 if isinstance(given, bool) else index(given)
        except TypeError:
            partition = -1
        if 0 <= partition < partition_count:
            return partition
        name = getattr(self._function, "__qualname__", None) or type(self._function).__name__
        raise ConfigError(
            f"partitioner {name} returned {given!r} for topic {self._topic!r}; "
            f"it must return an int from 0 to {partition_count - 1}",
            option="partitioner",
            value=repr(given),
            allowed=f"0..{partition_count - 1}",
        )

    def on_batch_sealed(self, partition: int) -> None:
        """The function keeps its own state."""


_BY_NAME: Mapping[str, Callable[[Chance], Partitioner]] = {
    "crc32": Crc32Partitioner,
    "murmur2": Murmur2Partitioner,
    "sticky": StickyPartitioner,
    "round_robin": lambda chance: RoundRobinPartitioner(),
}
_ALLOWED = ('"crc32"', '"murmur2"', '"round_robin"', '"sticky"', "a callable")


def create_partitioner(spec: object, topic: str, chance: Chance) -> Partitioner:
    """The partitioner of one topic of one producer.

    spec:    the producer's option `partitioner`.
    chance:  a seeded `random.Random`; the only source of choice.
    Raises   ConfigError for anything that is neither a name nor a callable.
    """
    if isinstance(spec, str) and spec in _BY_NAME:
        return _BY_NAME[spec](chance)
    if callable(spec):
        return CallablePartitioner(cast("PartitionFunction", spec), topic)
    raise ConfigError(
        f"partitioner={spec!r}: allowed are {', '.join(_ALLOWED)}",
        option="partitioner",
        value=repr(spec),
        allowed=", ".join(_ALLOWED),
    )
