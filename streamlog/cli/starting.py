"""Where to start reading, as people write it: earliest, latest, an offset, a count from the end, a time."""

from __future__ import annotations

import argparse
import re
from typing import Final, NamedTuple

HELP: Final = (
    "earliest, latest, an OFFSET, -N (the last N records of each partition), @MS (ms since the epoch), "
    "or a time such as 2024-05-01T12:00:00 (local, or with Z or +02:00)"
)
_HABITS: Final = {
    "beginning": "earliest",
    "smallest": "earliest",
    "start": "earliest",
    "end": "latest",
    "largest": "latest",
    "now": "latest",
}


class Start(NamedTuple):
    """kind: earliest, latest, offset, last (count from the end) or timestamp (ms)."""

    kind: str
    number: int = 0

    @property
    def reset(self) -> str | int:
        """As `ConsumerGroup.reset_offsets` takes it."""
        if self.kind == "timestamp":
            return f"timestamp:{self.number}"
        return self.number if self.kind == "offset" else self.kind


def parse_start(text: str) -> Start:
    """Raises ArgumentTypeError naming what is allowed."""
    if text in ("earliest", "latest"):
        return Start(text)
    if text in _HABITS:
        raise argparse.ArgumentTypeError(f"{text!r}: did you mean {_HABITS[text]!r}?")
    if re.fullmatch(r"\d+", text):
        return Start("offset", int(text))
    if re.fullmatch(r"-\d+", text):
        return Start("last", -int(text))
    if re.fullmatch(r"@\d+", text):
        return Start("timestamp", int(text[1:]))
    timestamp_ms = _time(text)
    if timestamp_ms is None:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {HELP}")
    return Start("timestamp", timestamp_ms)


def _time(text: str) -> int | None:
    from datetime import datetime

    if not re.match(r"\d{4}-\d\d-\d\d", text):
        return None
    try:
        moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text)
    except ValueError:
        return None
    milliseconds = int(moment.timestamp() * 1000)
    return milliseconds if milliseconds >= 0 else None
