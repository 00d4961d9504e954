"""One file per key, never outside its directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.cli.failures import CommandError
from streamlog.cli.formats import make_format
from streamlog.cli.outputs import OPEN_FILES_MAX, OutputDirectory, file_name
from streamlog.record import Record

VALUE = make_format("value", b"\t")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (None, "no-key"),
        (b"", "no-key-empty"),
        (b"/", "no-key-empty"),
        (b"a.log", "a.log"),
        (b"/var/log/a.log", "var/log/a.log"),
        (b"../../etc/passwd", "etc/passwd"),
        (b"./a//b/../c", "a/b/c"),
        (b"nul\x00byte", "nul_byte"),
    ],
)
def test_names(key: bytes | None, name: str) -> None:
    assert file_name(key) == name


@given(st.binary(max_size=30))
def test_never_outside(key: bytes) -> None:
    path = Path("/out") / file_name(key)
    assert path.is_relative_to("/out") and ".." not in path.parts and path != Path("/out")


def test_more_keys_than_open_files(tmp_path: Path) -> None:
    count = OPEN_FILES_MAX * 2
    with OutputDirectory(str(tmp_path / "out"), VALUE, append=False) as output:
        for turn in range(3):
            output.write([Record(key=b"k%d" % number, value=b"%d" % turn) for number in range(count)])
            output.flush()
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == count and {file.read_bytes() for file in files} == {b"0\n1\n2\n"}


def test_two_keys_one_name(tmp_path: Path) -> None:
    with OutputDirectory(str(tmp_path), VALUE, append=True) as output:
        output.write([Record(key=b"a/b", value=b"1")])
        with pytest.raises(CommandError, match="a/b and /a/b would both be"):
            output.write([Record(key=b"/a/b", value=b"2")])


def test_a_name_that_cannot_be(tmp_path: Path) -> None:
    with OutputDirectory(str(tmp_path), VALUE, append=True) as output:
        with pytest.raises(CommandError, match="cannot write"):
            output.write([Record(key=b"x" * 300, value=b"1")])
        output.write([Record(key=b"a", value=b"1")])
        with pytest.raises(CommandError, match="cannot write"):
            output.write([Record(key=b"a/b", value=b"1")])
