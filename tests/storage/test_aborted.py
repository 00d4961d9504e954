"""The index of aborted transactions: found by where they reach, deleted with their markers."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamlog.errors import CorruptStoreError
from streamlog.storage.aborted import aborted_between, delete_aborted, put_aborted
from streamlog.storage.cleaned_transactions import AbortedTransaction
from streamlog.storage.env import Environment
from streamlog.storage.keys import ABORTED_BASE, pack_key
from streamlog.storage.verification import verify_environment

FIRST, LONG, LATER = AbortedTransaction(7, 3, 5), AbortedTransaction(8, 0, 9), AbortedTransaction(7, 10, 12)


@pytest.fixture
def filled(environment: Environment) -> Environment:
    transaction = environment.write()
    for each in (LONG, LATER, FIRST):
        put_aborted(transaction, 7, each)
    put_aborted(transaction, 8, AbortedTransaction(1, 0, 1))
    transaction.commit()
    return environment


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        (0, 100, [FIRST, LONG, LATER]),
        (5, 100, [FIRST, LONG, LATER]),
        (6, 100, [LONG, LATER]),
        (6, 10, [LONG]),
        (0, 3, [LONG]),
        (0, 0, []),
        (10, 100, [LATER]),
        (13, 100, []),
    ],
)
def test_those_that_reach_into_a_range(
    filled: Environment, start: int, end: int, found: list[AbortedTransaction]
) -> None:
    with filled.snapshot() as snapshot:
        assert aborted_between(snapshot, 7, start, end) == found


def test_they_go_by_their_markers(filled: Environment) -> None:
    transaction = filled.write()
    delete_aborted(transaction, 7, 0, 9)
    assert aborted_between(transaction, 7, 0) == [LONG, LATER]
    delete_aborted(transaction, 7, 10)
    assert aborted_between(transaction, 7, 0) == [LONG]
    assert len(aborted_between(transaction, 8, 0)) == 1, "another log's"
    transaction.abort()


def test_they_are_no_unknown_keys(filled: Environment) -> None:
    assert {problem.what for problem in verify_environment(filled).problems} == {"the checkpoint is missing"}


def test_a_torn_entry_is_named(filled: Environment, tmp_path: Path) -> None:
    transaction = filled.write()
    transaction.put(pack_key(7, ABORTED_BASE + 9), b"torn")
    with pytest.raises(CorruptStoreError, match="marker at 9 has 4 bytes"):
        aborted_between(transaction, 7, 0)
    transaction.abort()
