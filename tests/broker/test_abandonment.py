"""A thread that dies with the turn lock in its hands stops nobody."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from streamlog.broker import turn as turns
from streamlog.broker.abandonment import free_if_abandoned
from streamlog.broker.turn import TurnOwner
from tests.broker.builders import Add, Ledger, in_thread


def die_with_the_lock(ledger: Ledger, before_death: Callable[[], object] = bool) -> None:
    def run() -> None:
        assert ledger._lock.acquire(False)
        before_death()

    in_thread(run).result()


def leave_a_transaction_open(ledger: Ledger) -> None:
    ledger.environment.write().put(b"\0\0\0\x09" + bytes(8), b"never committed")


@pytest.fixture(autouse=True)
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "STRANDED_WAIT_MS", 1)


def test_a_waiter_frees_the_lock_of_a_thread_that_died(ledger: Ledger) -> None:
    die_with_the_lock(ledger)
    assert ledger.call(Add(1), 10_000) == 0
    ledger.check()


def test_what_it_left_open_in_the_store_is_dropped(ledger: Ledger) -> None:
    ledger.call(Add("before"))
    die_with_the_lock(ledger, lambda: leave_a_transaction_open(ledger))
    assert ledger.call(Add("after"), 10_000) == 1
    assert in_thread(lambda: ledger.call(Add("later"), 10_000)).result() == 2
    ledger.check()


def test_a_turn_it_was_deciding_is_decided_again(ledger: Ledger) -> None:
    pending = ledger.enqueue(Add("its"))

    def half_a_turn() -> None:
        turn = ledger._unfinished = turns.Turn(0, 0)
        turn.requests.append(pending)
        ledger._decide(turn, pending)

    die_with_the_lock(ledger, half_a_turn)
    assert ledger.call(Add("mine"), 10_000) == 1
    assert ledger.values == ("its", "mine") and pending.result() == 0
    ledger.check()


def test_a_turn_it_had_committed_is_applied(ledger: Ledger) -> None:
    pending = ledger.enqueue(Add("its"))

    def committed() -> None:
        turn = ledger._unfinished = turns.Turn(0, 0)
        turn.requests.append(pending)
        ledger._decide(turn, pending)
        assert turn.transaction is not None
        turn.transaction.commit()

    die_with_the_lock(ledger, committed)
    assert ledger.call(Add("mine"), 10_000) == 1
    assert ledger.values == ("its", "mine") and ledger.stored() == ["'its'", "'mine'"]
    ledger.check()


def test_closing_frees_it_too(ledger: Ledger) -> None:
    die_with_the_lock(ledger, lambda: leave_a_transaction_open(ledger))
    ledger.stop(lambda: None)


def test_who_lost_hold_of_the_lock_may_close(ledger: Ledger) -> None:
    assert ledger._lock.acquire(False)
    ledger.stop(lambda: None)
    assert not ledger._lock._is_owned()


def test_who_waits_for_room_in_the_inbox_frees_it(ledger: Ledger) -> None:
    ledger.requests_max = 1
    ledger.enqueue(Add(1))
    die_with_the_lock(ledger)
    assert in_thread(lambda: ledger.call(Add(2), 10_000)).result() == 1
    ledger.check()


def test_the_lock_of_a_living_thread_is_left_alone(ledger: Ledger) -> None:
    assert not free_if_abandoned(ledger), "nobody holds it"
    holds, go = threading.Event(), threading.Event()

    def hold() -> None:
        with ledger._lock:
            holds.set()
            assert go.wait(10)

    holder = in_thread(hold)
    assert holds.wait(10)
    assert not free_if_abandoned(ledger)
    assert not ledger._lock.acquire(False)
    go.set()
    holder.result()
    with ledger._lock:
        assert not free_if_abandoned(ledger), "our own"


def test_two_who_see_it_free_it_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one finds it in other hands when its turn comes."""
    die_with_the_lock(ledger)
    is_abandoned = ledger.runtime.is_abandoned
    seen: list[bool] = []

    def faster(lock: object) -> bool:
        seen.append(is_abandoned(lock))  # type: ignore[arg-type]
        if len(seen) == 1:  # between its two looks somebody else frees the lock and takes it
            assert free_if_abandoned(ledger)
            assert ledger._lock.acquire(False)
        return seen[0] if len(seen) == 1 else is_abandoned(lock)  # type: ignore[arg-type]

    monkeypatch.setattr(ledger.runtime, "is_abandoned", faster)
    assert not free_if_abandoned(ledger)
    assert ledger._lock._is_owned(), "it was taken from a living thread"
    ledger._lock.release()


def test_a_thread_that_bears_the_dead_ones_number_is_not_stopped(ledger: Ledger, tmp_path: Path) -> None:
    """It holds the locks unawares, of a sibling too: its first call lets go of them."""
    other = Ledger(tmp_path / "other")
    owners: list[TurnOwner] = [ledger, other]
    for owner in owners:
        owner.siblings = tuple(one for one in owners if one is not owner)
    assert ledger._lock.acquire(False)  # as if our number had been the dead one's
    assert not other.is_runner
    assert other.call(Add(1), 10_000) == 0
    assert in_thread(lambda: ledger.call(Add(2), 10_000)).result() == 0
    other.close()
    ledger.check()


def test_who_holds_a_dead_ones_lock_unawares_may_close(ledger: Ledger) -> None:
    assert ledger._lock.acquire(False)
    leave_a_transaction_open(ledger)
    ledger.stop(lambda: None)
    assert not ledger._lock._is_owned()
    assert in_thread(lambda: ledger._lock.acquire(False)).result()
