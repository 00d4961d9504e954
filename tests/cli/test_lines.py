"""Lines in, lines out: no byte is lost wherever the chunks are cut."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.cli.interrupts import Interrupts
from streamlog.cli.lines import LINE_END, UNTERMINATED, Source, split_lines, terminator
from streamlog.record import Record


def chunks(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return (data[start:end] for start, end in pairwise(places))


@given(
    st.binary(max_size=60).map(lambda data: data.replace(b"a", b"\n")),
    st.lists(st.integers(0, 1000), max_size=8),
)
def test_cut_anywhere(data: bytes, cuts: list[int]) -> None:
    records: list[Record] = []
    for lines, unterminated in split_lines(chunks(data, cuts), Interrupts()):
        records += [Record(value=line, headers=UNTERMINATED if unterminated else ()) for line in lines]
        assert lines and (not unterminated or len(lines) == 1)
    assert b"".join((record.value or b"") + terminator(record) for record in records) == data
    assert not any(b"\n" in (record.value or b"") for record in records)


def test_an_unfinished_line_is_left_out_after_an_interrupt() -> None:
    interrupts = Interrupts()

    def typed() -> Iterator[bytes]:
        yield b"one\ntw"
        interrupts.requested = 2

    assert list(split_lines(typed(), interrupts)) == [([b"one"], False)]


def test_terminator() -> None:
    assert terminator(Record(headers=(("other", b"x"),))) == b"\n"
    assert terminator(Record(headers=((LINE_END, b""),))) == b""
    assert terminator(Record(headers=((LINE_END, None),))) == b""
    assert terminator(Record(headers=((LINE_END, b"\r\n"),))) == b"\r\n"


def test_a_file(tmp_path: object) -> None:
    import pathlib

    path = pathlib.Path(str(tmp_path)) / "file"
    data = random.Random(3).randbytes(600_000)
    path.write_bytes(data)
    source = Source(str(path))
    assert (source.title, source.is_stdin, source.size_bytes()) == (str(path), False, 600_000)
    pieces = list(source.chunks(Interrupts()))
    assert b"".join(pieces) == data and len(pieces) > 1
    path.write_bytes(b"")
    assert list(source.chunks(Interrupts())) == []


def test_a_missing_file() -> None:
    from streamlog.cli.failures import CommandError

    with pytest.raises(CommandError, match="cannot read /nowhere"):
        Source("/nowhere").size_bytes()
    with pytest.raises(CommandError, match="cannot read /nowhere"):
        list(Source("/nowhere").chunks(Interrupts()))
