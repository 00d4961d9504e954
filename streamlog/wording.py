"""Words of messages that many places need."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """'1 line', '2,000 lines'."""
    return f"{count:,} {noun}" + ("" if count == 1 else "es" if noun.endswith(("s", "ch")) else "s")
