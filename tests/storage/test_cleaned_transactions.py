"""streamlog/storage/cleaned_transactions.py as text tables: a walk over batches, what each answers."""

from __future__ import annotations

import pytest

from streamlog.batch import Batch, ControlType
from streamlog.storage.cleaned_transactions import AbortedTransaction, CleanedTransactions
from tests.storage.builders import marker, seal

# One letter and a producer: d data in a transaction, p plain data, A abort marker, C commit marker, E an
# emptied marker. The answer: x aborted, - not; f the marker is free to go, k it is kept.
WALKS = [
    ("d1 A1", [(1, 0, 1)], "xk"),
    ("A1", [(1, 0, 1)], "f"),  # its data is gone
    ("d1 C1", [], "-k"),
    ("C1", [], "f"),
    ("p1 C1", [], "-f"),  # plain data is no transaction's
    ("p1 A1", [(1, 0, 1)], "-f"),
    ("d1 d2 A1 C2", [(1, 0, 2)], "x-kk"),
    ("d1 d2 C2 A1", [(1, 0, 3)], "x-kk"),
    ("d1 A1 d1 C1", [(1, 0, 1)], "xk-k"),
    ("d1 A1 d1 A1", [(1, 0, 1), (1, 2, 3)], "xkxk"),
    ("d1 d1 d1", [(1, 0, 1)], "xx-"),  # the marker is gone, the range still ends
    ("d1 C1 d1 A1", [(1, 2, 3)], "-kxk"),
    ("E1", [], "f"),
    ("d1 E1", [], "-f"),
    ("d1 A2 A1", [(1, 0, 2), (2, -5, 1)], "xfk"),  # 2's data was below the start
    ("p1 d1 p1 A1", [(1, 1, 3)], "-x-k"),
]


@pytest.mark.parametrize(("walk", "aborted", "answers"), WALKS, ids=[row[0] for row in WALKS])
def test_walks(walk: str, aborted: list[tuple[int, int, int]], answers: str) -> None:
    transactions = CleanedTransactions([AbortedTransaction(*row) for row in aborted], 0)
    found = ""
    for offset, word in enumerate(walk.split()):
        batch = batch_of(word).with_offsets(offset, 0)
        if batch.is_control:
            found += "f" if transactions.on_marker(batch) else "k"
        else:
            found += "x" if transactions.on_batch(batch) else "-"
    assert found == answers


def batch_of(word: str) -> Batch:
    kind, producer = word[0], int(word[1:])
    if kind in "dp":
        return seal(
            "columnar",
            [(b"k", b"v", 0)],
            producer_id=producer,
            producer_epoch=0,
            base_sequence=0,
            transactional=kind == "d",
        )
    control = marker(ControlType.COMMIT if kind == "C" else ControlType.ABORT, producer)
    return control.retain(()) if kind == "E" else control


def test_ranges_that_ended_before_the_start_are_left_out() -> None:
    transactions = CleanedTransactions([AbortedTransaction(1, 0, 4), AbortedTransaction(1, 5, 9)], 5)
    assert not transactions.on_batch(batch_of("p1").with_offsets(4, 0))
    assert transactions.on_batch(batch_of("d1").with_offsets(5, 0))
    transactions = CleanedTransactions([AbortedTransaction(1, 0, 4)], 5)
    assert not transactions.on_batch(batch_of("d1").with_offsets(5, 0))


def test_an_unknown_marker_is_kept() -> None:
    strange = seal("v2", [(b"\0\0\0\7", b"", 0)], producer_id=1, producer_epoch=0, control=True)
    assert not CleanedTransactions([], 0).on_marker(strange)
