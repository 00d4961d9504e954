"""A turn that is whole: committed and answered, or nothing of it. Interrupts: test_committing, test_lone_transactions."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamlog.broker import api
from streamlog.broker.lone_turns import carry_out
from streamlog.broker.pending import Pending, Turn
from streamlog.errors import StoreFullError
from streamlog.storage.keys import pack_key
from tests.broker.builders import opened

KEY = pack_key(1 << 20, 0)


def asked() -> tuple[Pending, Turn]:
    pending = Pending(api.Produce([]))
    turn = Turn(1, 1, [pending])
    turn.reply(pending, "done")
    return pending, turn


def test_it_is_answered_once_it_is_committed(tmp_path: Path) -> None:
    cluster = opened(tmp_path)
    try:
        pending, turn = asked()
        with cluster.broker.turn_lock:
            carry_out(cluster.broker, turn, lambda transaction: transaction.put(KEY, b"x"))
        with cluster.broker.environment.snapshot() as snapshot:
            assert snapshot.get(KEY) == b"x"
        assert turn.committed and pending.result() == "done" and cluster.broker._unfinished is None
    finally:
        cluster.close()


def test_what_cannot_be_written_is_told_and_nothing_is_kept(tmp_path: Path) -> None:
    cluster = opened(tmp_path)
    try:
        pending, turn = asked()

        def full(transaction: object) -> None:
            transaction.put(KEY, b"x")  # type: ignore[attr-defined]
            raise StoreFullError("full")

        with cluster.broker.turn_lock:
            carry_out(cluster.broker, turn, full)
        with cluster.broker.environment.snapshot() as snapshot:
            assert snapshot.get(KEY) is None
        with pytest.raises(StoreFullError):
            pending.result()
    finally:
        cluster.close()
