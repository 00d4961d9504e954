"""streamlog/storage/keys.py, and that docs/internals/storage-format.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from struct import calcsize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.batch_columnar import COLUMNAR_LAYOUT
from streamlog.batch_header import HEADER_BYTES, HEADER_LAYOUT
from streamlog.storage import keys
from streamlog.storage.keys import (
    BATCH_START,
    CHECKPOINT_BASE,
    OFFSET_MAX,
    CheckpointKind,
    checkpoint_key,
    pack_key,
    unpack_key,
)

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "internals" / "storage-format.md"
TYPES = {"q": "i64", "Q": "u64", "i": "i32", "I": "u32", "h": "i16", "H": "u16", "B": "u8", None: "bytes"}

numbers = st.integers(0, (1 << 64) - 1)
log_ids = st.integers(0, (1 << 32) - 1)


def table(name: str) -> list[list[str]]:
    """The rows of the document's table of this name, without its heading."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end -->", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"no table {name} in {DOCUMENT.name}"
    rows = [line.strip("|").split(" | ") for line in found[1].strip().splitlines()]
    return [[cell.strip().strip("`") for cell in row] for row in rows[2:]]


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("KEY_LAYOUT", keys.KEY_LAYOUT),
        ("BATCH_VALUE_LAYOUT", keys.BATCH_VALUE_LAYOUT),
        ("LOG_CHECKPOINT_LAYOUT", keys.LOG_CHECKPOINT_LAYOUT),
        ("CLEANER_CHECKPOINT_LAYOUT", keys.CLEANER_CHECKPOINT_LAYOUT),
        ("FOLD_HEAD_LAYOUT", keys.FOLD_HEAD_LAYOUT),
        ("ABORTED_TRANSACTION_LAYOUT", keys.ABORTED_TRANSACTION_LAYOUT),
        ("HEADER_LAYOUT", HEADER_LAYOUT),
    ],
)
def test_the_document_prints_the_layouts(name: str, layout: tuple[keys.Field, ...]) -> None:
    assert table(name) == [
        [row.name, TYPES[row.code], str(calcsize(">" + row.code)) if row.code else "the rest", row.meaning]
        for row in layout
    ]


def test_the_document_prints_the_columns_and_the_kinds() -> None:
    assert table("COLUMNAR_LAYOUT") == [
        [row.name, row.msgpack, row.constant, row.meaning] for row in COLUMNAR_LAYOUT
    ]
    assert table("CheckpointKind") == [[str(kind.value), kind.name] for kind in CheckpointKind]


@pytest.mark.parametrize("section", ["Assumptions about the disk", "Caveats", "Version changes"])
def test_the_document_has_its_sections(section: str) -> None:
    assert f"\n## {section}\n" in DOCUMENT.read_text(encoding="utf-8")


def test_sizes_are_what_they_were() -> None:
    """A change here is a new format."""
    assert (keys.KEY.size, BATCH_START, HEADER_BYTES) == (12, 8, 61)
    assert (keys.LOG_CHECKPOINT.size, keys.CLEANER_CHECKPOINT.size) == (45, 17)
    assert pack_key(0x01020304, 0x05060708090A0B0C).hex() == "0102030405060708090a0b0c"


@given(log_ids, numbers, log_ids, numbers)
def test_keys_sort_as_logs_and_numbers_do(log_a: int, number_a: int, log_b: int, number_b: int) -> None:
    a, b = pack_key(log_a, number_a), pack_key(log_b, number_b)
    assert unpack_key(a) == (log_a, number_a)
    assert (a < b) == ((log_a, number_a) < (log_b, number_b))


def test_checkpoints_stand_behind_every_batch_of_their_log_and_before_the_next_log() -> None:
    last_batch = pack_key(7, OFFSET_MAX)
    checkpoints = [checkpoint_key(7, kind) for kind in CheckpointKind]
    assert [last_batch, *checkpoints, pack_key(8, 0)] == sorted([*checkpoints, pack_key(8, 0), last_batch])
    assert unpack_key(checkpoints[0]) == (7, CHECKPOINT_BASE)
