"""Which timestamps a topic takes."""

from __future__ import annotations

import pytest

from streamlog.config import TopicConfig
from streamlog.core.timestamps import timestamp_refusal

NOW_MS = 1_700_000_000_000
CONFIG = TopicConfig(message_timestamp_before_max_ms=5000, message_timestamp_after_max_ms=1000)


@pytest.mark.parametrize("offset_ms", [0, 1000, -5000])
def test_within_both_ends(offset_ms: int) -> None:
    assert timestamp_refusal(NOW_MS + offset_ms, NOW_MS, CONFIG) is None


@pytest.mark.parametrize(
    ("offset_ms", "told"),
    [
        (1001, "is 1001 ms ahead of now; allowed: at most 1000 (message.timestamp.after.max.ms)"),
        (-5001, "is 5001 ms before now; allowed: at most 5000 (message.timestamp.before.max.ms)"),
    ],
)
def test_beyond_them(offset_ms: int, told: str) -> None:
    assert timestamp_refusal(NOW_MS + offset_ms, NOW_MS, CONFIG) == f"timestamp {NOW_MS + offset_ms} {told}"


def test_by_default_any_past_is_taken() -> None:
    assert timestamp_refusal(0, NOW_MS, TopicConfig()) is None
