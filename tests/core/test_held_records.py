"""What counts of a log with transactions: held records, and when they take effect."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streamlog import batch as batches
from streamlog.batch import Batch, ControlType, control_batch, seal_v2_columns
from streamlog.core.held_records import HeldRecords, settled_records


def data(key: bytes, value: bytes | None, producer_id: int = -1) -> Batch:
    stamp = {} if producer_id < 0 else {"producer_id": producer_id, "producer_epoch": 0, "base_sequence": 0}
    return seal_v2_columns([key], [value], timestamps=1, transactional=producer_id >= 0, **stamp)


def marker(producer_id: int, is_commit: bool) -> Batch:
    kind = ControlType.COMMIT if is_commit else ControlType.ABORT
    return control_batch(kind, producer_id=producer_id, producer_epoch=1, timestamp=1)


def fold(*log: batches.Batch, held: HeldRecords | None = None) -> dict[bytes, bytes]:
    held = HeldRecords() if held is None else held
    latest: dict[bytes, bytes] = {}
    for batch in log:
        for key, value in settled_records(held, batch, "t", 0, 0):
            if value is None:
                latest.pop(key, None)
            else:
                latest[key] = value
    return latest


def test_a_transaction_counts_from_its_marker_on() -> None:
    log = [data(b"a", b"1", 7), data(b"b", b"2", 7), data(b"a", b"3", 7)]
    assert fold(*log) == {}
    assert fold(*log, marker(7, False)) == {}
    assert fold(*log, marker(7, True)) == {b"a": b"3", b"b": b"2"}
    assert fold(*log, marker(8, True)) == {}


def test_what_is_written_since_wins_over_what_is_held() -> None:
    assert fold(data(b"a", b"old", 7), data(b"a", b"new"), marker(7, True)) == {b"a": b"new"}
    assert fold(data(b"a", b"old"), data(b"a", b"new", 7), marker(7, True)) == {b"a": b"new"}
    assert fold(data(b"a", b"old", 7), data(b"a", None), marker(7, True)) == {}


def test_of_two_transactions_the_later_record_wins_whichever_ends_first() -> None:
    log = [data(b"a", b"first", 7), data(b"a", b"second", 8)]
    for ends in ([marker(7, True), marker(8, True)], [marker(8, True), marker(7, True)]):
        assert fold(*log, *ends) == {b"a": b"second"}
    assert fold(*log, marker(8, False), marker(7, True)) == {b"a": b"first"}
    assert fold(*log, marker(7, True), marker(8, False)) == {b"a": b"first"}


def test_what_is_held_can_be_asked_for_and_copied() -> None:
    held = HeldRecords()
    fold(data(b"a", b"1", 7), data(b"b", b"2", 8), held=held)
    assert b"a" in held and b"c" not in held and held.keys() == {b"a", b"b"} and held
    assert list(held.remaining()) == [(7, b"a", b"1"), (8, b"b", b"2")]
    other = held.copy()
    assert other.end(7, True) == [(b"a", b"1")] and other.end(7, True) == []
    assert b"a" in held and b"a" not in other
    assert not HeldRecords()


STEPS = st.lists(
    st.tuples(st.sampled_from("wtca"), st.sampled_from([b"a", b"b"]), st.integers(0, 2)), max_size=25
)


@given(STEPS)
def test_what_counts_is_the_newest_of_all_that_is_not_aborted(steps: list[tuple[str, bytes, int]]) -> None:
    """Against the definition: of each key the last record that is outside of transactions or of one that committed."""
    log: list[Batch] = []
    rounds = [0, 0, 0]
    told: list[tuple[int, bytes, int, int]] = []  # offset, key, producer or -1, its which transaction
    fates: dict[tuple[int, int], bool] = {}
    for kind, key, producer_id in steps:
        offset = len(log)
        if kind == "w":
            log.append(data(key, b"%d" % offset))
            told.append((offset, key, -1, 0))
        elif kind == "t":
            log.append(data(key, b"%d" % offset, producer_id))
            told.append((offset, key, producer_id, rounds[producer_id]))
        else:
            log.append(marker(producer_id, kind == "c"))
            fates[producer_id, rounds[producer_id]] = kind == "c"
            rounds[producer_id] += 1
    expected = {
        key: b"%d" % offset
        for offset, key, producer, which in told
        if producer < 0 or fates.get((producer, which))
    }
    assert fold(*log) == expected
