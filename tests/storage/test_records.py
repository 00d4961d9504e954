"""Records straight from stored bytes: the same as by way of batches, and damage stops nothing but itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamlog.batch import (
    MAGIC_COLUMNAR,
    Batch,
    Codec,
    ControlType,
    control_batch,
    lone_record_of,
    seal_columnar,
    seal_v2_columns,
)
from streamlog.batch_sealed import assemble
from streamlog.errors import CorruptRecordError, StreamlogError, UnsupportedCompressionTypeError
from streamlog.record import Record
from streamlog.storage import log, records
from streamlog.storage.env import Environment
from streamlog.storage.keys import BATCH_START, pack_key
from streamlog.storage.records import FoundRecords, read_records

LOG_ID = 20


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    opened = Environment.open(tmp_path / "store", sync="off")
    yield opened
    opened.close()


def store(environment: Environment, *batches: Batch) -> int:
    """Append the batches; returns the end offset."""
    offset = 0
    transaction = environment.write()
    for batch in batches:
        log.append(transaction, LOG_ID, batch, offset, 0, batch.max_timestamp)
        offset += batch.last_offset_delta + 1
    transaction.commit()
    return offset


def found(environment: Environment, start: int, end: int, bytes_max: int = 1 << 20) -> FoundRecords:
    with environment.snapshot() as snapshot:
        return read_records(snapshot, LOG_ID, "t", 3, start, end, bytes_max)


def lone(number: int, **options: object) -> Batch:
    return seal_columnar([b"k%d" % number], [b"v%d" % number], timestamps=[1000 + number], **options)  # type: ignore[arg-type]


def shapes() -> list[Batch]:
    return [
        lone(0),
        lone(1, headers=[(("h", b"1"), ("h", None))]),
        seal_columnar([None], [None], timestamps=[7]),
        seal_columnar([b"a", b"b"], [b"1", b"2"], timestamps=[5, 9]),
        seal_columnar([b"a"] * 50, [b"x" * 100] * 50, timestamps=5, codec=Codec.ZSTD),
        seal_v2_columns([b"w"], [b"wire"], timestamps=[11]),
        seal_v2_columns([b"w", None], [b"wire", None], timestamps=[11, 12], headers=[(("a", b""),), ()]),
        lone(8).with_log_append_time(99_999),
        seal_columnar([b"h"], [b"hole"], timestamps=[3], offsets=[4]),
        lone(9, codec=Codec.ZSTD),
    ]


def test_every_shape_of_batch_gives_the_records_its_batch_gives(environment: Environment) -> None:
    batches = shapes()
    end = store(environment, *batches)
    expected: list[Record] = []
    offset = 0
    for batch in batches:
        expected += batch.with_offsets(offset, 0).records("t", 3)
        offset += batch.last_offset_delta + 1
    answer = found(environment, 0, end)
    assert answer.records == expected
    assert (answer.next_offset, answer.batches) == (end, len(batches))
    assert answer.size_bytes == sum(batch.size_bytes for batch in batches)


def test_a_start_inside_a_batch_leaves_out_what_is_before_it(environment: Environment) -> None:
    end = store(environment, lone(0), seal_columnar([b"a"] * 5, [b"%d" % n for n in range(5)], timestamps=1))
    assert [record.offset for record in found(environment, 3, end).records] == [3, 4, 5]


def test_a_batch_that_reaches_beyond_the_end_is_not_read(environment: Environment) -> None:
    store(environment, lone(0), seal_columnar([b"a"] * 5, [b"v"] * 5, timestamps=1))
    answer = found(environment, 0, 4)
    assert [record.offset for record in answer.records] == [0]
    assert answer.next_offset == 1


def test_the_first_batch_comes_however_large_and_the_others_within_the_limit(
    environment: Environment,
) -> None:
    end = store(environment, *[lone(number) for number in range(10)])
    assert len(found(environment, 0, end, bytes_max=1).records) == 1
    two = lone(0).size_bytes * 2
    assert len(found(environment, 0, end, bytes_max=two).records) == 2


def test_control_batches_are_stepped_over_and_the_position_behind_them_is_told(
    environment: Environment,
) -> None:
    marker = control_batch(ControlType.COMMIT, producer_id=1, producer_epoch=0, timestamp=5)
    end = store(environment, lone(0), marker, lone(2), marker)
    answer = found(environment, 0, end)
    assert [record.offset for record in answer.records] == [0, 2]
    assert answer.next_offset == end == 4


def test_nothing_there_says_so(environment: Environment) -> None:
    assert found(environment, 0, 10) == FoundRecords([], None, 0, 0)
    store(environment, lone(0))
    assert found(environment, 5, 10).next_offset is None


@pytest.mark.parametrize("position", [0, 8, 16, 17, 21, 23, 61, 70, -1], ids=str)
@pytest.mark.parametrize("many", [False, True], ids=["lone", "many"])
def test_a_flipped_bit_anywhere_is_found_and_the_records_before_it_are_read(
    environment: Environment, position: int, many: bool
) -> None:
    middle = seal_columnar([b"a"] * 3, [b"v"] * 3, timestamps=1) if many else lone(1)
    end = store(environment, lone(0), middle, lone(2))
    last = 3 if many else 1
    transaction = environment.write()
    value = bytearray(transaction.get(pack_key(LOG_ID, last)) or b"")
    value[BATCH_START + position if position >= 0 else len(value) - 1] ^= 0x04
    transaction.put(pack_key(LOG_ID, last), bytes(value))
    transaction.commit()
    before = found(environment, 0, end)
    assert [record.offset for record in before.records] == [0]
    assert before.next_offset == 1
    with pytest.raises(CorruptRecordError) as caught:
        found(environment, 1, end)
    assert caught.value.facts["last_offset"] == last
    assert [record.offset for record in found(environment, last + 1, end).records] == [last + 1]


def test_other_logs_beside_are_not_read(environment: Environment) -> None:
    store(environment, lone(0))
    transaction = environment.write()
    log.append(transaction, LOG_ID + 1, lone(7), 1, 0, 5)
    log.put_checkpoint(transaction, LOG_ID, log.LogCheckpoint(log_end_offset=1, high_watermark=1))
    transaction.commit()
    assert [record.offset for record in found(environment, 0, 100).records] == [0]


def test_a_codec_that_is_not_installed_ends_the_list_before_its_batch(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cramjam", None)
    snappy = assemble(b"\x01\x00x", MAGIC_COLUMNAR, Codec.SNAPPY, 1, 5, 5, -1, -1, -1)
    end = store(environment, lone(0), snappy, lone(2))
    assert [record.value for record in found(environment, 0, end).records] == [b"v0"]
    with pytest.raises(UnsupportedCompressionTypeError, match="cramjam"):
        found(environment, 1, end)
    assert [record.value for record in found(environment, 2, end).records] == [b"v2"]


# Runs of lone batches: another way to the same answer

Answer = FoundRecords | tuple[type, str]
MANY = 400


def answers(
    environment: Environment, start: int, end: int, bytes_max: int, check_crcs: bool, runs: bool
) -> list[Answer]:
    """Everything from `start` to `end`, read after read; behind a damaged batch it goes on."""
    given: list[Answer] = []
    with pytest.MonkeyPatch.context() as patch:
        if not runs:
            patch.setattr(records, "LONE_BATCHES_MIN", 1 << 60)
        while start < end:
            try:
                with environment.snapshot() as snapshot:
                    answer = read_records(snapshot, LOG_ID, "t", 3, start, end, bytes_max, check_crcs)
            except StreamlogError as error:
                given.append((type(error), str(error)))
                start = int(error.facts.get("last_offset", start)) + 1  # type: ignore[call-overload]
                continue
            given.append(answer)
            if answer.next_offset is None:
                break
            start = answer.next_offset
    return given


def lone_alike(count: int) -> list[Batch]:
    return [seal_columnar([b"k%04d" % n], [b"v%04d" % n], timestamps=n) for n in range(count)]


def lone_of_lengths(count: int) -> list[Batch]:
    return [seal_columnar([b"k"], [b"v" * (n * 7 % 60)], timestamps=n) for n in range(count)]


def lone_v2(count: int) -> list[Batch]:
    return [seal_v2_columns([b"k%04d" % n], [b"v%04d" % n], timestamps=n) for n in range(count)]


def large_ones(count: int) -> list[Batch]:
    return [seal_columnar([b"a"] * 9, [b"%d" % n for n in range(9)], timestamps=5)] * (count % 7)


def markers(count: int) -> list[Batch]:
    return [control_batch(ControlType.COMMIT, producer_id=1, producer_epoch=0, timestamp=5)] * (count % 3)


def holes(count: int) -> list[Batch]:
    return [seal_columnar([b"h"], [b"hole"], timestamps=3, offsets=[n % 3]) for n in range(count)]


PARTS = st.lists(
    st.tuples(
        st.sampled_from([lone_alike, lone_of_lengths, lone_v2, large_ones, markers, holes]),
        st.sampled_from([1, 5, 30, 70, MANY]),
    ),
    min_size=1,
    max_size=5,
)
DAMAGE = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from(["flip", "cut", "delete"]), st.integers(0, 100), st.integers(0, 7)
    ),
    max_size=3,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    parts=PARTS,
    damage=DAMAGE,
    bytes_max=st.sampled_from([1, 900, 7_000, 40_000, 1 << 20]),
    start=st.floats(0, 1),
    check_crcs=st.booleans(),
)
def test_runs_find_what_reading_batch_by_batch_finds(
    environment: Environment,
    parts: list[tuple[Callable[[int], list[Batch]], int]],
    damage: list[tuple[float, str, int, int]],
    bytes_max: int,
    start: float,
    check_crcs: bool,
) -> None:
    transaction = environment.write()
    for key, _ in list(transaction.cursor()):
        transaction.delete(bytes(key))
    transaction.commit()
    end = store(environment, *[batch for part, count in parts for batch in part(count)])
    transaction = environment.write()
    keys = [bytes(key) for key, _ in transaction.cursor()]
    for place, kind, at, bit in damage if keys else []:
        key = keys[int(place * (len(keys) - 1))]
        value = bytearray(transaction.get(key) or b"")
        if kind == "flip" and value:
            value[at % len(value)] ^= 1 << bit
            transaction.put(key, bytes(value))
        elif kind == "cut" and value:
            transaction.put(key, bytes(value[: at % len(value)]))
        elif kind == "delete":
            transaction.delete(key)
    transaction.commit()
    first = int(start * end)
    expected = answers(environment, first, end, bytes_max, check_crcs, runs=False)
    assert answers(environment, first, end, bytes_max, check_crcs, runs=True) == expected


def test_a_long_run_is_read_at_once(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    end = store(environment, *lone_alike(MANY))
    one_by_one: list[int] = []

    def counting(data: memoryview, topic: str, partition: int, last_offset: int, *rest: Any) -> Record | None:
        one_by_one.append(last_offset)
        return lone_record_of(data, topic, partition, last_offset, *rest)

    monkeypatch.setattr(records, "lone_record_of", counting)
    assert [record.offset for record in found(environment, 0, end).records] == list(range(MANY))
    assert len(one_by_one) < MANY / 10


def test_a_try_that_fails_makes_the_next_one_wait(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lone batches by the dozen between others must not be looked at over and over."""
    batches = [batch for _ in range(40) for batch in [*lone_alike(12), *large_ones(1)]]
    end = store(environment, *batches)
    tries: list[int] = []
    take = records._Reading._take

    def counting(reading: Any, cursor: Any, count: int) -> list[memoryview]:
        tries.append(count)
        return take(reading, cursor, count)

    monkeypatch.setattr(records._Reading, "_take", counting)
    assert len(found(environment, 0, end).records) == 40 * (12 + 9)
    assert len(tries) <= 2


def test_what_is_no_run_is_not_copied(environment: Environment) -> None:
    """Large batches behind a run stay within `bytes_max`, and a look at them costs no memory."""
    large = seal_columnar([b"a"], [b"x" * 50_000], timestamps=1)
    end = store(environment, *lone_alike(8), *[large] * 60)
    answer = found(environment, 0, end, bytes_max=200_000)
    assert (answer.batches, answer.next_offset) == (8 + 3, 8 + 3)
