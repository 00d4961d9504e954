"""Words of messages."""

from __future__ import annotations

from streamlog.wording import plural


def test_one_is_no_plural() -> None:
    counted = ((0, "record"), (1, "line"), (2000, "line"), (1, "batch"), (2, "batch"))
    told = ["0 records", "1 line", "2,000 lines", "1 batch", "2 batches"]
    assert [plural(count, noun) for count, noun in counted] == told
