"""Seconds in, milliseconds out."""

from __future__ import annotations

import pytest

from streamlog.client.timeouts import milliseconds
from streamlog.errors import ConfigError


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, 0), (1, 1000), (0.25, 250), (300, 300_000), (None, 77)]
)
def test_seconds_become_milliseconds(seconds: float | None, expected: int) -> None:
    assert milliseconds("poll", seconds, 77) == expected


def test_above_five_minutes_warns_that_milliseconds_were_meant() -> None:
    with pytest.warns(UserWarning, match=r"poll\(timeout=1000\) means 1000 seconds; did you mean 1 "):
        assert milliseconds("poll", 1000, 0) == 1_000_000


@pytest.mark.filterwarnings("ignore:poll")
def test_infinity_is_bounded() -> None:
    assert milliseconds("poll", float("inf"), 0) == 10_000_000_000


@pytest.mark.parametrize("wrong", [-1, True, "1", float("nan"), b"1", [1]])
def test_what_is_no_duration_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError) as caught:
        milliseconds("poll", wrong, 0)  # type: ignore[arg-type]
    assert (caught.value.option, caught.value.value) == ("timeout", wrong) or wrong != wrong
    assert "a number >= 0" in str(caught.value)
