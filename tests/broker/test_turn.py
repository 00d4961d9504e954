"""The turn: riding along, deferring, poison, room, stopping, and interrupts at every bytecode."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from streamlog.broker import turn as turns
from streamlog.broker.runner import ThreadedRuntime
from streamlog.broker.turn import DEFER, Pending, Tick
from streamlog.errors import (
    ClosedError,
    IllegalStateError,
    InvalidRequestError,
    ReentrantCallError,
    StorageError,
    StoreFullError,
    StreamlogTimeoutError,
)
from tests.broker.builders import Add, Do, Frees, Ledger, in_thread
from tests.broker.interrupting import Interrupt, count_places, interrupted_at, places


def test_call_answers_and_stores(ledger: Ledger) -> None:
    assert [ledger.call(Add(value)) for value in "abc"] == [0, 1, 2]
    assert ledger.values == ("a", "b", "c")
    ledger.check()


def test_requests_in_the_inbox_share_one_turn(ledger: Ledger) -> None:
    pendings = [ledger.enqueue(Add(value)) for value in range(5)]
    before = ledger.environment.last_transaction_id()
    ledger.advance()
    assert [pending.result() for pending in pendings] == [0, 1, 2, 3, 4]
    assert ledger.environment.last_transaction_id() == before + 1


def test_a_turn_without_writes_begins_no_transaction(ledger: Ledger) -> None:
    before = ledger.environment.last_transaction_id()
    ledger.call(Do(lambda _, turn, pending: turn.reply(pending, None)))
    assert ledger.environment.last_transaction_id() == before


def test_deferred_requests_keep_their_order(ledger: Ledger) -> None:
    def once_a_turn(owner: Ledger, turn: turns.Turn, pending: Pending) -> object:
        if turn.staged:
            return DEFER
        turn.staged["values"] = (*owner.values, pending)
        owner.transaction(turn).put(b"\0\0\0\x08" + bytes(8), b"")
        turn.reply(pending, len(owner.turns))
        return None

    ledger._apply = lambda turn: (
        ledger.turns.append([]),
        setattr(ledger, "values", turn.staged.get("values", ledger.values)),
    )  # type: ignore[method-assign]
    pendings = [ledger.enqueue(Do(once_a_turn)) for _ in range(4)]
    ledger.advance()
    assert [pending.result() for pending in pendings] == [0, 1, 2, 3]
    assert ledger.values == tuple(pendings)
    ledger.values = ()


def test_an_error_of_one_request_is_its_own(ledger: Ledger) -> None:
    def refuse(*_: object) -> None:
        raise InvalidRequestError("no")

    good, bad, also_good = ledger.enqueue(Add(1)), ledger.enqueue(Do(refuse)), ledger.enqueue(Add(2))
    ledger.advance()
    assert (good.result(), also_good.result()) == (0, 1)
    with pytest.raises(InvalidRequestError):
        bad.result()
    ledger.check()


def test_an_unexpected_error_of_one_request_harms_no_other(ledger: Ledger) -> None:
    seen = []

    def broken(owner: Ledger, turn: turns.Turn, pending: Pending) -> None:
        seen.append(1)
        owner.transaction(turn).put(b"\0\0\0\x08" + bytes(8), b"half a decision")
        raise ZeroDivisionError("a bug")

    good, bad, also_good = ledger.enqueue(Add(1)), ledger.enqueue(Do(broken)), ledger.enqueue(Add(2))
    ledger.advance()
    assert (good.result(), also_good.result()) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        bad.result()
    assert len(seen) == 1, "it was decided again and again"
    with ledger.environment.snapshot() as snapshot:
        assert snapshot.get(b"\0\0\0\x08" + bytes(8)) is None
    ledger.check()


def test_out_of_memory_while_deciding_is_told_to_that_request(ledger: Ledger) -> None:
    def hungry(*_: object) -> None:
        raise MemoryError

    bad, good = ledger.enqueue(Do(hungry)), ledger.enqueue(Add(1))
    ledger.advance()
    assert good.result() == 0
    with pytest.raises(MemoryError):
        bad.result()


def test_a_commit_that_fails_is_told_to_all_who_wrote_and_nothing_is_kept(ledger: Ledger) -> None:
    ledger.call(Add("before"))
    fail = [True]

    def full(turn: turns.Turn) -> None:
        if fail and fail.pop():
            raise StoreFullError("full")

    ledger.before_commit = full
    pendings = [ledger.enqueue(Add(value)) for value in range(3)]
    ledger.advance()
    for pending in pendings:
        with pytest.raises(StoreFullError):
            pending.result()
    assert ledger.values == ("before",)
    assert ledger.call(Add("after")) == 1
    ledger.check()


def test_who_frees_room_is_not_told_that_another_write_found_none(ledger: Ledger) -> None:
    def full(turn: turns.Turn) -> None:
        if "values" in turn.staged:
            raise StoreFullError("full")

    ledger.before_commit = full
    writing, freeing = ledger.enqueue(Add(1)), ledger.enqueue(Frees())
    ledger.advance()
    with pytest.raises(StoreFullError):
        writing.result()
    assert freeing.result() == "freed"
    ledger.before_commit = lambda turn: None


def test_a_store_that_refuses_every_turn_ends_in_errors_not_in_a_loop(ledger: Ledger) -> None:
    def broken(turn: turns.Turn) -> None:
        raise StorageError("EIO")

    ledger.before_commit = broken
    pendings = [ledger.enqueue(Frees()), ledger.enqueue(Add(1)), ledger.enqueue(Tick())]
    in_thread(ledger.advance).result()
    assert all(isinstance(pending.error, (StorageError, TypeError)) for pending in pendings)
    ledger.before_commit = lambda turn: None
    assert ledger.call(Add(1)) == 0


def test_a_transaction_that_cannot_begin_fails_only_who_needs_it(ledger: Ledger) -> None:
    write = ledger.environment.write

    def refuse(*, reclaiming: bool = False) -> object:
        if not reclaiming:
            raise StoreFullError("no room")
        return write(reclaiming=True)

    ledger.transaction = lambda turn, reclaiming=False: (  # type: ignore[method-assign]
        refuse() if not reclaiming else Ledger.transaction(ledger, turn, reclaiming)
    )
    writing = ledger.enqueue(Add(1))
    reading = ledger.enqueue(Do(lambda _, turn, pending: turn.reply(pending, "read")))
    freeing = ledger.enqueue(Frees())
    ledger.advance()
    with pytest.raises(StoreFullError):
        writing.result()
    assert (reading.result(), freeing.result()) == ("read", "freed")
    del ledger.transaction


def test_writers_leave_a_turn_that_uses_the_room_kept_for_deleting(ledger: Ledger) -> None:
    freeing, writing = ledger.enqueue(Frees()), ledger.enqueue(Add(1))
    ledger.advance()
    assert freeing.result() == "freed" and writing.result() == 0
    assert [len(requests) for requests in ledger.turns] == [1, 1]


def test_applying_is_tried_again(ledger: Ledger) -> None:
    fail = [MemoryError(), MemoryError()]

    def flaky(turn: turns.Turn) -> None:
        if fail:
            raise fail.pop()

    ledger.on_apply = flaky
    assert ledger.call(Add(1)) == 0
    ledger.check()


def test_what_cannot_be_applied_stops_the_owner_with_a_named_error(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.call(Add("kept"))

    def broken(turn: turns.Turn) -> None:
        raise ZeroDivisionError("a bug in apply")

    ledger.on_apply = broken
    parked = Pending(None)
    ledger.parked.append(parked)
    with pytest.raises(IllegalStateError, match="a bug in apply") as caught:
        ledger.call(Add("in doubt"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert isinstance(parked.error, IllegalStateError)
    with pytest.raises(IllegalStateError):
        ledger.call(Add("refused"))
    assert ledger.stored() == ["'kept'", "'in doubt'"]
    ledger.environment.close()


def test_reentrant_posts_are_enqueued_and_waiting_for_them_is_refused(ledger: Ledger) -> None:
    inner: list[Pending] = []

    def nested(owner: Ledger, turn: turns.Turn, pending: Pending) -> None:
        inner.append(owner.post(Add("nested")))
        with pytest.raises(ReentrantCallError):
            owner.wait(inner[0])
        with pytest.raises(ReentrantCallError):
            owner.stop(lambda: None)
        turn.reply(pending, None)

    ledger.call(Do(nested))
    assert inner[0].result() == 0
    assert ledger.values == ("nested",)


def test_the_runner_of_one_owner_runs_no_turn_of_its_sibling(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    one, other = Ledger(tmp_path / "a"), Ledger(tmp_path / "b")
    one.siblings, other.siblings = (other,), (one,)
    posted: list[Pending] = []

    def nested(owner: Ledger, turn: turns.Turn, pending: Pending) -> None:
        posted.append(other.post(Add(1)))
        assert not posted[0].done
        with pytest.raises(ReentrantCallError):
            other.wait(posted[0])
        turn.reply(pending, None)

    one.call(Do(nested))
    other.wait(posted[0])
    assert other.values == (1,)
    one.close(), other.close()


def test_a_full_inbox_makes_callers_help(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, requests_max=3)
    pendings = [ledger.enqueue(Add(value)) for value in range(10)]
    assert len(ledger._inbox) <= 3
    ledger.advance()
    assert [pending.result() for pending in pendings] == list(range(10))
    ledger.close()


def test_callers_wait_for_room_while_another_thread_runs_the_turn(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, requests_max=2)
    entered, go = threading.Event(), threading.Event()

    def slow(owner: Ledger, turn: turns.Turn, pending: Pending) -> None:
        entered.set()
        assert go.wait(10)
        turn.reply(pending, None)

    runner = in_thread(lambda: ledger.call(Do(slow)))
    assert entered.wait(10)
    ledger.enqueue(Add("fills the inbox"))
    waiting = in_thread(lambda: ledger.call(Add("waits")))
    waiting.thread.join(0.05)
    assert waiting.thread.is_alive() and len(ledger._inbox) == 2
    go.set()
    runner.result(), waiting.result()
    assert ledger.values == ("fills the inbox", "waits")
    ledger.close()


def test_offers_never_wait_a_full_inbox_drops_them(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, requests_max=1)
    offered = ledger.offer(Add(1))
    assert offered is not None and offered.result() == 0
    ledger.enqueue(Add(2))
    assert ledger.offer(Add("dropped")) is None
    ledger.advance()
    assert ledger.values == (1, 2)
    ledger.close()
    assert ledger.offer(Add("closed")) is None


def test_the_runner_may_post_into_a_full_inbox(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, requests_max=1)

    def nested(owner: Ledger, turn: turns.Turn, pending: Pending) -> None:
        for value in range(3):
            owner.post(Add(value))
        turn.reply(pending, None)

    in_thread(lambda: ledger.call(Do(nested))).result()
    ledger.advance()
    assert ledger.values == (0, 1, 2)
    ledger.close()


def test_a_timeout_leaves_nobody_behind(ledger: Ledger) -> None:
    """The runner hands over to a caller that has just given up: somebody else must still be served."""
    held: list[Pending] = []

    def park(owner: Ledger, turn: turns.Turn, pending: Pending) -> None:
        held.append(pending)

    with pytest.raises(StreamlogTimeoutError, match="Do was not answered by the ledger within 20 ms"):
        ledger.call(Do(park), timeout_ms=20)
    assert held[0].waiter is None
    assert ledger.call(Add(1)) == 0


def test_two_callers_may_wait_for_one_request(ledger: Ledger) -> None:
    held: list[Pending] = []
    pending = ledger.post(Do(lambda owner, turn, parked: held.append(parked)))
    waiting = [in_thread(lambda: ledger.wait(pending)) for _ in range(3)]
    ledger.call(Do(lambda owner, turn, own: (turn.reply(held[0], "late"), turn.reply(own, None))[1]))
    for each in waiting:
        each.result()
    assert pending.result() == "late"


def test_on_done_runs_outside_the_turn(ledger: Ledger) -> None:
    owned: list[bool] = []
    ledger.post(Add(1), on_done=lambda pending: owned.append(ledger._lock._is_owned()))
    assert owned == [False]


def test_an_on_done_that_fails_is_nobody_elses_trouble(ledger: Ledger) -> None:
    def broken(pending: Pending) -> None:
        raise RuntimeError("can't start new thread")

    told: list[Pending] = []
    first, second = ledger.enqueue(Add(1), on_done=broken), ledger.enqueue(Add(2), on_done=told.append)
    ledger.advance()
    assert first.result() == 0 and told == [second]


# -- stopping ------------------------------------------------------------------------------------------------------------


def test_stopping_finishes_what_was_taken_and_refuses_the_rest(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    taken = ledger.enqueue(Add(1))
    ledger.stop(lambda: None)
    assert taken.result() == 0
    with pytest.raises(ClosedError):
        ledger.call(Add(2))
    ledger.stop(lambda: pytest.fail("stopped twice"))
    ledger.environment.close()


def test_stopping_answers_who_is_parked(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    entered = threading.Event()
    waiting = in_thread(
        lambda: ledger.call(Do(lambda owner, turn, pending: (owner.parked.append(pending), entered.set())[1]))
    )
    assert entered.wait(10)
    ledger.stop(lambda: None)
    with pytest.raises(ClosedError):
        waiting.result()
    ledger.environment.close()


def test_a_request_that_slips_in_behind_the_end_is_refused_not_stranded(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.stop(lambda: None)
    late = Pending(Add("late"))
    ledger._inbox.append(late)  # as a caller does that looked at `_closed` before it was set
    with pytest.raises(ClosedError):
        in_thread(lambda: (ledger.wait(late), late.result())).result()
    assert ledger.stored() == []
    lost = Pending(Add("parked, and its owner forgot it"))
    with pytest.raises(ClosedError):
        in_thread(lambda: ledger.wait(lost)).result()
    ledger.environment.close()


def test_stopping_in_the_middle_of_contention_answers_everybody(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    acked: list[list[int]] = [[] for _ in range(8)]
    started = threading.Barrier(9)

    def produce(number: int) -> None:
        started.wait()
        while True:
            acked[number].append(ledger.call(Add((number, len(acked[number])))))

    threads = [in_thread(lambda number=number: produce(number)) for number in range(8)]
    started.wait()
    while sum(map(len, acked)) < 200:
        pass
    ledger.stop(lambda: None)
    for thread in threads:
        with pytest.raises(ClosedError):
            thread.result()
    placed = sorted(place for places in acked for place in places)
    stored = ledger.stored()
    assert placed == list(range(len(placed))) or len(stored) >= len(placed)
    for number, own in enumerate(acked):
        for index, place in enumerate(own):
            assert stored[place] == repr((number, index))
    ledger.environment.close()


# -- contention ----------------------------------------------------------------------------------------------------------


def contend(ledger: Ledger, threads: int, each: int) -> None:
    def work(number: int) -> list[int]:
        return [ledger.call(Add((number, index))) for index in range(each)]

    running = [in_thread(lambda number=number: work(number)) for number in range(threads)]
    acked = [each.result(120) for each in running]
    ledger.check()
    assert sorted(place for own in acked for place in own) == list(range(threads * each))
    for number, own in enumerate(acked):
        assert own == sorted(own)
        assert [ledger.values[place] for place in own] == [(number, index) for index in range(each)]


def test_contended_callers_are_all_served_in_their_order(ledger: Ledger) -> None:
    contend(ledger, 8, 100)


@pytest.mark.long
def test_contended_callers_are_all_served_long(ledger: Ledger) -> None:
    contend(ledger, 32, 500)


def test_the_runner_serves_others_only_for_some_turns(ledger: Ledger) -> None:
    """A caller that others keep busy is let go; who waits runs the next turn."""
    go = threading.Event()
    served = in_thread(
        lambda: ledger.call(Do(lambda owner, turn, pending: (go.wait(10), turn.reply(pending, None))[1]))
    )
    others = [in_thread(lambda: [ledger.call(Add(0)) for _ in range(50)]) for _ in range(3)]
    go.set()
    served.result()
    for other in others:
        other.result()
    ledger.check()


class Bell:
    """A waiter that notes that it was set, and does something while it is waited for."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.rung = 0
        self.meanwhile = meanwhile

    def set(self) -> None:
        self.rung += 1

    def wait(self, timeout_ms: int | None) -> bool:
        self.meanwhile()
        return True


def riding(
    ledger: Ledger, meanwhile: Callable[[], object] = lambda: None
) -> tuple[list[Pending], list[Bell]]:
    """Three requests somebody waits for, in the inbox."""
    pendings = [ledger.enqueue(Add(number)) for number in range(3)]
    bells = [Bell(meanwhile) for _ in pendings]
    for pending, bell in zip(pendings, bells, strict=True):
        pending.waiter = bell
    return pendings, bells


def test_riders_wake_each_other_in_turn(ledger: Ledger) -> None:
    pendings, bells = riding(ledger)
    in_thread(ledger.advance).result()
    assert [bell.rung for bell in bells] == [1, 0, 0]
    for number, pending in enumerate(pendings):
        ledger.wait(pending)
        assert [bell.rung > 0 for bell in bells] == [True] * min(number + 2, 3) + [False] * max(1 - number, 0)


def test_a_rider_that_is_answered_before_it_waits_wakes_the_next(ledger: Ledger) -> None:
    pendings, bells = riding(ledger)
    ledger.wait(pendings[0])  # runs the turn itself
    assert bells[1].rung == 1 and not bells[2].rung


@pytest.mark.parametrize("timeout_ms", [None, 0])
def test_a_rider_that_leaves_wakes_the_next(ledger: Ledger, timeout_ms: int | None) -> None:
    def answered_and_struck() -> None:
        in_thread(ledger.advance).result()
        raise Interrupt

    busy, go = threading.Event(), threading.Event()
    blocker = in_thread(
        lambda: ledger.call(
            Do(lambda owner, turn, pending: (busy.set(), go.wait(10), turn.reply(pending, 1))[2])
        )
    )
    busy.wait(10)
    pendings, bells = riding(ledger, lambda: (go.set(), blocker.result(), answered_and_struck()))
    if timeout_ms is None:
        with pytest.raises(Interrupt):
            ledger.wait(pendings[0])
        assert bells[1].rung == 1
    else:
        with pytest.raises(StreamlogTimeoutError):
            ledger.wait(pendings[0], timeout_ms)
        go.set()
        blocker.result()
        assert bells[1].rung == 1, "it became the first who waits"
    assert not bells[2].rung


# -- interrupts ----------------------------------------------------------------------------------------------------------

SEED = 20_261


def sweep(ledger: Ledger, count: int) -> None:
    total = count_places(lambda: ledger.call(Add("measured")))
    assert total > 30
    print(f"seed {SEED}, {total} places")
    for place in places(total, count, SEED):
        before = ledger.values
        token = ("interrupted", place)
        where = interrupted_at(place, lambda token=token: ledger.call(Add(token)))
        assert where is not None, place
        after = ("after", place)
        assert in_thread(lambda after=after: ledger.call(Add(after))).result() == len(ledger.values) - 1, (
            where
        )
        assert ledger.values in ((*before, token, after), (*before, after)), where
        ledger.check()


def test_a_turn_interrupted_anywhere_is_whole_or_did_not_happen(ledger: Ledger) -> None:
    sweep(ledger, 150)


@pytest.mark.long
def test_a_turn_interrupted_at_every_bytecode_is_whole_or_did_not_happen(ledger: Ledger) -> None:
    sweep(ledger, 10**9)


@pytest.mark.parametrize(
    "reached", [False, True], ids=["before the engine's commit", "after the engine's commit"]
)
def test_an_interrupt_in_the_commit_has_either_outcome_exactly(ledger: Ledger, reached: bool) -> None:
    ledger.call(Add("first"))
    strikes = [1]
    transaction_of = Ledger.transaction

    class Interrupting:
        def __init__(self, real: object) -> None:
            self.real = real

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

        def commit(self) -> None:
            if strikes:
                strikes.pop()
                if reached:
                    self.real.commit()  # type: ignore[attr-defined]
                raise Interrupt
            self.real.commit()  # type: ignore[attr-defined]

    def patched(turn: turns.Turn, reclaiming: bool = False) -> object:
        if turn.transaction is None:
            transaction_of(ledger, turn, reclaiming)
            turn.transaction = Interrupting(turn.transaction)  # type: ignore[assignment]
        return turn.transaction

    ledger.transaction = patched  # type: ignore[method-assign,assignment]
    with pytest.raises(Interrupt):
        ledger.call(Add("struck"))
    assert ledger.values == ("first", "struck"), "the interrupted runner finishes its turn before it leaves"
    assert ledger.call(Add("next")) == 2
    ledger.check()
    del ledger.transaction


def test_an_interrupt_in_apply_leaves_the_turn_to_be_applied_again(ledger: Ledger) -> None:
    strikes = [1, 1]

    def interrupted(turn: turns.Turn) -> None:
        if strikes:
            strikes.pop()
            raise Interrupt

    ledger.on_apply = interrupted
    with pytest.raises(Interrupt):  # twice: in the turn, and in finishing it on the way out
        ledger.call(Add(1))
    assert ledger.values == () and ledger._unfinished is not None
    assert in_thread(lambda: ledger.call(Add(2))).result() == 1
    assert ledger.values == (1, 2)


def test_a_thread_that_lost_hold_of_its_lock_gets_it_back(ledger: Ledger) -> None:
    """Two interrupts in a row may keep a runner from letting go; its next call notices that no turn is on its stack."""
    ledger._lock.acquire()
    assert ledger.call(Add(1)) == 0
    ledger.check()


def test_waiters_look_up_now_and_then(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner interrupted between its last look and letting go strands nobody for long."""
    monkeypatch.setattr(turns, "STRANDED_WAIT_MS", 5)
    pending = Pending(Add(1))
    ledger._lock.acquire()
    waiting = in_thread(lambda: ledger.wait(pending))
    ledger._inbox.append(pending)
    waiting.thread.join(0.03)
    assert waiting.thread.is_alive()
    ledger._lock.release()  # nobody is told
    waiting.result()
    assert pending.result() == 0


def test_settling_compares_with_the_engines_transaction_id(ledger: Ledger) -> None:
    turn = turns.Turn(0, 0)
    ledger.transaction(turn).put(b"\0\0\0\x08" + bytes(8), b"x")
    ledger._settle(turn)
    assert not turn.committed
    turn = turns.Turn(0, 0)
    ledger.transaction(turn).put(b"\0\0\0\x08" + bytes(8), b"x")
    turn.transaction.commit()  # type: ignore[union-attr]
    ledger._settle(turn)
    assert turn.committed


def test_a_turn_takes_no_more_than_its_budgets(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_REQUESTS_MAX", 4)
    for value in range(10):
        ledger.enqueue(Add(value))
    ledger.advance()
    assert [len(requests) for requests in ledger.turns] == [4, 4, 2]
    ledger.turns.clear()
    for value in range(4):
        ledger.enqueue(Add(value), cost_bytes=turns.TURN_BYTES_MAX // 2)
    ledger.advance()
    assert [len(requests) for requests in ledger.turns] == [2, 2]


def test_a_turn_takes_no_longer_than_its_time(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_MS_MAX", 0)
    for value in range(100):
        ledger.enqueue(Add(value))
    ledger.advance()
    assert [len(requests) for requests in ledger.turns] == [32, 32, 32, 4]


def test_repr_of_a_pending_says_where_it_is(ledger: Ledger) -> None:
    pending = ledger.enqueue(Add(1))
    assert repr(pending) == "Pending(Add, waiting)"
    ledger.advance()
    assert repr(pending) == "Pending(Add, done)"
    assert isinstance(ledger.runtime, ThreadedRuntime)
