"""Runs of lone batches: the records their batches give one by one, or None for whatever is not such a run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from streamlog import batch_lone
from streamlog.batch import Batch, Codec, control_batch, lone_records_of, records_of
from streamlog.batch_lone import RUN_RECORDS
from streamlog.batch_v2 import ControlType
from streamlog.record import Record
from tests.batch_samples import SEALERS, T, both_layouts, forge, seal

PREFIX = b"12345678"  # what the store puts before a batch; of no interest here
FIRST = 65_536 - 100  # so that a run crosses a byte of the offset
counts = pytest.mark.parametrize("count", [1, 2, 100, RUN_RECORDS])


def lone(number: int, layout: str = "columnar", **options: Any) -> Batch:
    options = {"timestamps": [T + number]} | options
    return seal(layout, [b"k%05d" % number], [b"value %05d" % number], **options)


def stored(batches: Sequence[Batch | bytes], first: int = FIRST) -> list[bytes]:
    """As they stand in the store, one offset each."""
    return [
        PREFIX + (batch if isinstance(batch, bytes) else batch.with_offsets(first + index, 5).encode())
        for index, batch in enumerate(batches)
    ]


def found(
    values: Sequence[bytes | memoryview], *, check_crc: bool = True, first: int = FIRST
) -> list[Record] | None:
    return lone_records_of(values, list(map(len, values)), "t", 3, first, check_crc, len(PREFIX))


def one_by_one(values: Sequence[bytes]) -> list[Record]:
    return [record for value in values for record in records_of(value, "t", 3, position=len(PREFIX))]


def alike(values: Sequence[bytes]) -> bool:
    """Whether the quick way takes them."""
    joined, size = b"".join(values), len(values[0])
    places = batch_lone._places(joined[24], joined[69:size])
    return places is not None and batch_lone._are_alike(joined, size, len(PREFIX), places)


@counts
@both_layouts
def test_a_run_alike_gives_the_records_of_its_batches(layout: str, count: int) -> None:
    values = stored([lone(number, layout) for number in range(count)])
    assert alike(values)
    assert found(values) == one_by_one(values)
    assert found([memoryview(value) for value in values]) == one_by_one(values)


SHAPES: dict[str, Callable[[int], dict[str, Any]]] = {
    "no keys": lambda n: {"keys": None},
    "tombstones": lambda n: {"values": [None]},
    "neither": lambda n: {"keys": None, "values": [None]},
    "empty": lambda n: {"keys": [b""], "values": [b""]},
    "large": lambda n: {"keys": [b"%0300d" % n], "values": [b"%070000d" % n]},
    "transactional": lambda n: {
        "transactional": True,
        "producer_id": 7,
        "producer_epoch": n % 3,
        "base_sequence": n,
    },
    "times before 1970": lambda n: {"timestamps": [-n]},
    "lengths differ": lambda n: {"values": [b"x" * (n * 7 % 50)]},
    "marks differ in equal sizes": lambda n: {
        "keys": [b"k" * (1 + n % 3)],
        "values": [b"v" * (3 - n % 3)],
    },
    "a key now and then": lambda n: {"keys": [b"k" * (n % 2)] if n % 3 else None},
    "headers": lambda n: {"headers": [(("trace", b"%d" % n), ("none", None))]},
    "headers now and then": lambda n: {"headers": [(("h", b"1"),) if n % 4 else ()]},
}


@pytest.mark.parametrize("shape", SHAPES)
@both_layouts
def test_a_run_of_any_shape_gives_the_records_of_its_batches_or_none(layout: str, shape: str) -> None:
    batches = []
    for number in range(40):
        options = {"keys": [b"k%05d" % number], "values": [b"v%05d" % number], "timestamps": [T + number]}
        options |= SHAPES[shape](number)
        batches.append(SEALERS[layout](options.pop("keys"), options.pop("values"), **options))
    values = stored(batches)
    records = found(values)
    assert records == (one_by_one(values) if layout == "columnar" or alike(values) else None)


@both_layouts
@pytest.mark.parametrize("width", [1, 40], ids=["alike", "general"])
def test_with_log_append_time_the_time_is_the_brokers(layout: str, width: int) -> None:
    batches = [
        seal(layout, [b"k"], [b"v" * (1 + n % width)], timestamps=T).with_log_append_time(T + 9 * n)
        for n in range(40)
    ]
    values = stored(batches)
    records = found(values)
    if layout == "columnar" or width == 1:
        assert records is not None
        assert [record.timestamp for record in records] == [T + 9 * n for n in range(40)]
    else:
        assert records is None
    assert found(stored([*batches, lone(40, layout)])) is None  # times of two kinds are not a run


def test_deltas_of_a_foreign_writer_are_added() -> None:
    values = stored(
        [
            forge(
                lone(n), base_offset=FIRST + n, body=b"\x95\xcd\x01" + bytes([n]) + b"\xc0\xc4\x01v\xc0\x00"
            )
            for n in range(30)
        ]
    )
    records = found(values)
    assert records is not None
    assert [record.timestamp for record in records] == [T + n + 256 + n for n in range(30)]
    assert records == one_by_one(values)


ODD: dict[str, Callable[[], Batch | bytes]] = {
    "two records": lambda: seal("columnar", [b"a", b"b"], [b"1", b"2"], timestamps=T),
    "compressed": lambda: lone(7, codec=Codec.ZSTD),
    "a marker": lambda: control_batch(ControlType.COMMIT, producer_id=1, producer_epoch=0, timestamp=T),
    "the other layout": lambda: lone(7, "v2"),
    "a hole before it": lambda: lone(7, offsets=[3]),
    "no record": lambda: lone(7).retain([]),
    "a delete horizon": lambda: lone(7).retain([0], delete_horizon_ms=T),
    "another offset": lambda: lone(7).with_offsets(FIRST + 8, 5).encode(),
    "another magic": lambda: forge(lone(7), base_offset=FIRST + 7, magic=3),
    "a wrong count": lambda: forge(lone(7), base_offset=FIRST + 7, record_count=2),
    "nonsense": lambda: forge(lone(7), base_offset=FIRST + 7, body=b"\x95\x00\xc4\x01"),
    "not a body": lambda: forge(lone(7), base_offset=FIRST + 7, body=b"\x93\x00\x00\x00"),
    "an inner offset": lambda: forge(lone(7), base_offset=FIRST + 7, body=b"\x95\x00\xc0\xc0\xc0\x01"),
    "two headers for one": lambda: forge(
        lone(7), base_offset=FIRST + 7, body=b"\x95\x00\xc0\xc0\x92\x90\x90\x00"
    ),
    "too short": lambda: b"\0" * 20,
    "nothing but a header": lambda: lone(7).with_offsets(FIRST + 7, 5).encode()[:61],
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("width", [1, 40], ids=["alike", "general"])
def test_one_odd_batch_makes_it_no_run(odd: str, width: int) -> None:
    batches: list[Batch | bytes] = [
        seal("columnar", [b"k%05d" % n], [b"value" * (1 + n % width)], timestamps=T) for n in range(40)
    ]
    assert found(stored(batches)) is not None
    batches[7] = ODD[odd]()
    assert found(stored(batches)) is None
    batches[0], batches[7] = batches[7], batches[8]
    assert found(stored(batches)) is None


@pytest.mark.parametrize("count", [40, RUN_RECORDS])
@pytest.mark.parametrize("width", [1, 40], ids=["alike", "general"])
def test_any_flipped_bit_of_any_batch_is_found(width: int, count: int) -> None:
    values = stored([seal("columnar", [b"k"], [b"v" * (n % width)], timestamps=T) for n in range(count)])
    assert found(values) is not None
    chance = random.Random(count)
    epoch = range(20, 24)  # nobody checks it: the leader stamps it, and neither a CRC nor an offset tells
    for at in range(count):
        for position in {*chance.sample(range(8, len(values[at])), 5), 69 if at % 2 else 25} - {*epoch}:
            damaged = bytearray(values[at])
            damaged[position] ^= 1 << chance.randrange(8)
            assert found([*values[:at], bytes(damaged), *values[at + 1 :]]) is None, (at, position)


def test_damage_in_many_batches_at_once_does_not_cancel_out() -> None:
    values = stored([lone(number) for number in range(RUN_RECORDS)])
    chance = random.Random(5)
    for _ in range(200):
        damaged = [bytearray(value) for value in values]
        position, bit = chance.randrange(75, 90), 1 << chance.randrange(8)
        for at in chance.sample(range(RUN_RECORDS), chance.choice([2, 3, 4, 100, RUN_RECORDS])):
            damaged[at][position] ^= bit
        assert found([bytes(value) for value in damaged]) is None


@pytest.mark.parametrize("width", [1, 40], ids=["alike", "general"])
def test_without_the_check_a_wrong_crc_is_let_through(width: int) -> None:
    values = stored([seal("columnar", [b"k"], [b"v" * (1 + n % width)], timestamps=T) for n in range(30)])
    values[9] = values[9][:-3] + b"!" + values[9][-2:]
    assert found(values) is None
    records = found(values, check_crc=False)
    assert records is not None
    assert records[9].value == b"v" * (9 % width) + b"!"


def test_another_first_offset_is_not_this_run() -> None:
    values = stored([lone(number) for number in range(30)])
    assert found(values, first=FIRST + 1) is None
    assert found([*values[:10], *values[11:]]) is None
