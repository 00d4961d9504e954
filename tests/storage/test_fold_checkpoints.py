"""Checkpoints of folds in pieces: which is in force at every moment, and what is left over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streamlog.storage import log
from streamlog.storage.env import Environment
from streamlog.storage.fold_checkpoints import (
    PIECE_BYTES_MAX,
    Entry,
    is_piece,
    load_fold,
    plan_fold,
    split,
    stale_pieces,
)
from streamlog.storage.keys import FOLD_PIECES, CheckpointKind, checkpoint_key
from streamlog.storage.verification import verify_environment

LOG = 20


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    environment = Environment.open(tmp_path / "e", sync="off")
    yield environment
    environment.close()


def write(environment: Environment, *entries: Entry) -> None:
    transaction = environment.write()
    for kind, value in entries:
        if value is None:
            assert transaction.delete(checkpoint_key(LOG, kind))
        else:
            log.put_extra(transaction, LOG, kind, value)
    transaction.commit()


def loaded(environment: Environment) -> list[bytes] | None:
    with environment.snapshot() as snapshot:
        return load_fold(snapshot, LOG)


def planned(environment: Environment, pieces: list[bytes]) -> list[Entry]:
    with environment.snapshot() as snapshot:
        return plan_fold(snapshot, LOG, pieces)


def stale(environment: Environment) -> list[Entry]:
    with environment.snapshot() as snapshot:
        return stale_pieces(snapshot, LOG)


def test_one_piece_is_the_value_itself(environment: Environment) -> None:
    assert loaded(environment) is None
    assert planned(environment, [b"small"]) == [(CheckpointKind.FOLD, b"small")]
    write(environment, (CheckpointKind.FOLD, b"small"))
    assert loaded(environment) == [b"small"] and stale(environment) == []


def test_until_the_last_entry_is_written_the_old_one_is_in_force(environment: Environment) -> None:
    history: list[list[bytes]] = [[b"one"], [b"a", b"b", b"c"], [b"d", b"e"], [b"f", b"g", b"h"], [b"two"]]
    for before, pieces in zip([None, *history], history, strict=False):
        plan = planned(environment, pieces)
        for entry in plan[:-1]:
            write(environment, entry)
            assert loaded(environment) == before, "a crash here leaves it"
        write(environment, plan[-1])
        assert loaded(environment) == pieces
        # What is left over goes, and nothing else does; also what a writing that was cut short has left.
        write(environment, (planned(environment, [b"x"] * 9)[7][0], b"left over"))
        write(environment, *stale(environment))
        assert loaded(environment) == pieces and stale(environment) == []


def test_a_neighbours_pieces_are_not_ours(environment: Environment) -> None:
    transaction = environment.write()
    log.put_extra(transaction, LOG + 1, FOLD_PIECES, b"theirs")
    log.put_extra(transaction, LOG - 1, FOLD_PIECES, b"theirs")
    transaction.commit()
    assert stale(environment) == []


def test_a_missing_piece_is_told_by_an_empty_one(environment: Environment) -> None:
    write(environment, *planned(environment, [b"a", b"b", b"c"]))
    write(environment, (FOLD_PIECES + 1, None))
    assert loaded(environment) == [b"a", b"", b"c"]


def test_what_only_looks_like_a_head_is_a_value(environment: Environment) -> None:
    for value in (b"\xc1 nonsense", b"\xc1\x02\x00\x00\x00\x01", b"\xc1\x00\xff\xff\xff\xff", b""):
        write(environment, (CheckpointKind.FOLD, value))
        assert loaded(environment) == [value]


def test_splitting_and_joining_changes_nothing() -> None:
    for size in (0, 1, PIECE_BYTES_MAX, PIECE_BYTES_MAX + 1, 3 * PIECE_BYTES_MAX):
        value = bytes(size)
        pieces = split(value)
        assert b"".join(pieces) == value and max(map(len, pieces)) <= PIECE_BYTES_MAX
        assert len(pieces) == max(1, -(-size // PIECE_BYTES_MAX))


def test_verify_knows_pieces(environment: Environment) -> None:
    write(environment, *planned(environment, [b"a", b"b"]))
    log.put_checkpoint(transaction := environment.write(), LOG, log.LogCheckpoint())
    transaction.commit()
    assert verify_environment(environment).problems == []
    write(environment, (FOLD_PIECES - 1, b"?"))
    [problem] = verify_environment(environment).problems
    assert problem.what == "unknown kind of checkpoint"
    assert is_piece(FOLD_PIECES) and not is_piece(CheckpointKind.FOLD)
