"""Where to start, as people write it."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from streamlog.cli.starting import Start, parse_start


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("earliest", Start("earliest")),
        ("latest", Start("latest")),
        ("0", Start("offset", 0)),
        ("42", Start("offset", 42)),
        ("-10", Start("last", 10)),
        ("@1700000000000", Start("timestamp", 1700000000000)),
        ("2023-11-14T22:13:20Z", Start("timestamp", 1700000000000)),
        ("2023-11-14 22:13:20.500+00:00", Start("timestamp", 1700000000500)),
        ("2023-11-15T00:13:20+02:00", Start("timestamp", 1700000000000)),
    ],
)
def test_understood(text: str, start: Start) -> None:
    assert parse_start(text) == start


def test_a_time_without_a_zone_is_local() -> None:
    from datetime import datetime

    assert parse_start("2024-05-01").number == int(datetime(2024, 5, 1).timestamp() * 1000)


@pytest.mark.parametrize(
    "text", ["", "first", "1.5", "@", "@-1", "--1", "2024-02-30", "1900-01-01Z", "12:00"]
)
def test_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="none of earliest"):
        parse_start(text)


def test_habits() -> None:
    with pytest.raises(ArgumentTypeError, match="did you mean 'earliest'"):
        parse_start("beginning")


def test_for_groups() -> None:
    assert Start("timestamp", 5).reset == "timestamp:5"
    assert Start("offset", 5).reset == 5
    assert Start("latest").reset == "latest"
