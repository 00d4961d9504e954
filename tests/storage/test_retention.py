"""streamlog/storage/retention.py over damaged batches. The rules are in tests/spec/test_retention.py."""

from __future__ import annotations

import pytest

from streamlog.storage import retention
from streamlog.storage.env import Environment
from streamlog.storage.keys import BATCH_START, pack_key
from tests.storage.builders import OwnedLog, sized

MAGIC, MAX_TIMESTAMP = 16, 35


def damage(environment: Environment, last_offset: int, position: int) -> None:
    key = pack_key(7, last_offset)
    with environment.snapshot() as snapshot:
        value = bytearray(snapshot.get(key) or b"")
    value[BATCH_START + position] ^= 1
    transaction = environment.write()
    transaction.put(key, bytes(value))
    transaction.commit()


@pytest.mark.parametrize("position", [MAGIC, MAX_TIMESTAMP])
def test_a_damaged_header_does_not_end_retention(environment: Environment, position: int) -> None:
    owned = OwnedLog(environment)
    for timestamp in (10, 20, 30):
        owned.append(sized(100, timestamp))
    damage(environment, 0, position)
    with environment.snapshot() as snapshot:
        outlines = list(retention.iterate_outlines(snapshot, 7))
        assert [(o.next_offset, o.size_bytes, o.newest_timestamp) for o in outlines] == [
            (1, 100, 10),
            (2, 100, 20),
            (3, 100, 30),
        ]
        assert retention.size_retention_target(snapshot, 7, 300, 150, 3, 1 << 20) == 1
    start = retention.plan_retention(
        outlines,
        now_ms=85,
        retention_ms=60,
        retention_bytes=-1,
        size_bytes=300,
        log_start_offset=0,
        high_watermark=3,
    )
    assert start == 2
