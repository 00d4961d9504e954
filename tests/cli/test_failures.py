"""Errors as paragraphs with a next step."""

from __future__ import annotations

import errno

import pytest

from streamlog import errors
from streamlog.cli import failures
from streamlog.cli.failures import CommandError, UsageError, explain


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (CommandError("plain"), 1, ["plain"]),
        (UsageError("wrong"), 2, ["wrong"]),
        (errors.ConfigError("no such option", option="x"), 2, ["no such option"]),
        (errors.NotAStreamlogDirectoryError("/x is a file"), 1, ["/x is a file", "--dir"]),
        (errors.DiskFullError("no space"), 1, ["no space", "make room"]),
        (errors.CorruptRecordError("bad crc"), 1, ["bad crc", "streamlog verify", "backup"]),
        (
            errors.CorruptRecordError("", topic="t", partition=2, offset=5, last_offset=8, next_offset=9),
            1,
            [
                "t-2 is corrupt at offset 5, up to 8. ",
                "consume t --partition 2 --from 9",
                "--partition 2 --to 9",
            ],
        ),
        (errors.UnknownTopicOrPartitionError("unknown topic 'x'"), 1, ["topics list"]),
        (errors.NonEmptyGroupError("2 live members"), 1, ["Stop its consumers"]),
        (errors.UnknownServerError(), 1, ["UnknownServerError"]),
        (OSError(errno.EACCES, "Permission denied", "/secret"), 1, ["/secret", "Permission denied"]),
        (OSError("odd"), 1, ["odd"]),
        (MemoryError(), 1, ["out of memory"]),
        (ZeroDivisionError("division by zero"), 1, ["unexpected ZeroDivisionError", "bug", "--debug"]),
    ],
)
def test_paragraphs(error: BaseException, code: int, words: list[str]) -> None:
    found, text = explain(error)
    assert found == code
    assert all(word in text for word in words), text
    assert "\n" not in text


def test_a_locked_directory() -> None:
    error = errors.ClusterLockedError(
        "locked", path="/data", pid=77, process="app.py", host="elsewhere", listener="127.0.0.1:9092"
    )
    code, text = explain(error)
    assert code == failures.LOCKED == 3
    for word in (
        "/data is open in process 77 (app.py) on elsewhere",
        "Stop that process",
        "consume (without --group)",
        "127.0.0.1:9092",
    ):
        assert word in text


def test_exit_codes_are_documented() -> None:
    import streamlog.cli
    from streamlog.cli.arguments import EPILOG

    codes = (
        failures.OK,
        1,
        2,
        failures.LOCKED,
        failures.DAMAGED,
        failures.INTERRUPTED,
        failures.BROKEN_PIPE,
        failures.TERMINATED,
    )
    for code in codes:
        assert f"{code} " in EPILOG and f"{code} " in (streamlog.cli.__doc__ or "")
