"""What is sent, and how long things took: the same for every contestant."""

from __future__ import annotations

import random
import string
import struct
from collections.abc import Iterator, Sequence
from itertools import cycle, islice

KEY_BYTES = 16
BLOB_BYTES = 64 * 1024
KEYS_DISTINCT = 1_000
VALUES_DISTINCT = 4_096

Pair = tuple[bytes, bytes]

_LENGTHS = struct.Struct("<HI")


def pairs(count: int, value_bytes: int, seed: int = 1) -> list[Pair]:
    """`count` (key, value) pairs: 16-byte keys, ASCII values, drawn from small pools as an application's
    would be warm."""
    chance = random.Random(seed)
    alphabet = string.ascii_letters + string.digits + " :/.-"
    text = "".join(chance.choices(alphabet, k=value_bytes + VALUES_DISTINCT * 7))
    values = [text[at * 7 : at * 7 + value_bytes].encode() for at in range(VALUES_DISTINCT)]
    keys = [f"key-{number:012d}".encode() for number in range(KEYS_DISTINCT)]
    return list(islice(zip(cycle(keys), cycle(values)), count))


def chunks(items: Sequence[Pair], size: int) -> Iterator[Sequence[Pair]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def records_in_blob(value_bytes: int) -> int:
    """How many records make a blob of about 64 KiB."""
    return max(1, BLOB_BYTES // (_LENGTHS.size + KEY_BYTES + value_bytes))


def pack_blob(items: Sequence[Pair]) -> bytes:
    """The plainest packing somebody would write by hand: two lengths, key, value."""
    pack = _LENGTHS.pack
    return b"".join([pack(len(key), len(value)) + key + value for key, value in items])


def unpack_blob(blob: bytes) -> list[Pair]:
    items = []
    unpack, header = _LENGTHS.unpack_from, _LENGTHS.size
    at, end = 0, len(blob)
    while at < end:
        key_bytes, value_bytes = unpack(blob, at)
        at += header
        middle = at + key_bytes
        stop = middle + value_bytes
        items.append((blob[at:middle], blob[middle:stop]))
        at = stop
    return items


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank; 0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def latency_metrics(seconds: Sequence[float], prefix: str = "") -> dict[str, float]:
    return {
        f"{prefix}p50_us": percentile(seconds, 50) * 1e6,
        f"{prefix}p99_us": percentile(seconds, 99) * 1e6,
        f"{prefix}max_us": max(seconds, default=0.0) * 1e6,
    }
