"""A request on its way, and the turn that answers it."""

from __future__ import annotations

import pytest

from streamlog.broker.pending import Pending, Turn, chain
from streamlog.broker.runner import ThreadedRuntime
from streamlog.errors import InvalidRequestError


def test_a_pending_says_where_it_is() -> None:
    pending = Pending("request", cost_bytes=7)
    assert repr(pending) == "Pending(str, waiting)" and pending.cost_bytes == 7
    pending.taken = True
    assert repr(pending) == "Pending(str, parked)"
    pending.done = True
    assert repr(pending) == "Pending(str, done)"


def test_the_result_is_the_reply_or_raises_the_very_error() -> None:
    pending = Pending(None)
    pending.reply = [1]
    assert pending.result() is pending.reply
    pending.error = InvalidRequestError("no")
    with pytest.raises(InvalidRequestError) as caught:
        pending.result()
    assert caught.value is pending.error


def test_requests_are_told_apart_by_identity() -> None:
    one, other = Pending("same"), Pending("same")
    assert one != other and len({one, other}) == 2 and one not in (other,)


def test_answering_in_a_turn_tells_nobody_yet() -> None:
    turn, good, bad = Turn(1, 2), Pending("good"), Pending("bad")
    error = InvalidRequestError("no")
    turn.reply(good, "value")
    turn.fail(bad, error)
    assert turn.replies == [(good, "value", None), (bad, None, error)]
    assert not (good.done or bad.done or good.taken or bad.error)


def test_turns_share_nothing() -> None:
    one, other = Turn(1, 2), Turn(1, 2)
    one.staged["a"] = one.staged_machines["a"] = 1
    one.requests.append(Pending(None))
    one.effects.append(lambda: None)
    one.reply(Pending(None), None)
    assert not (other.staged or other.staged_machines or other.requests or other.effects or other.replies)
    assert (other.now_ms, other.wall_ms, other.transaction, other.committed) == (1, 2, None, False)


def test_only_the_first_who_waits_is_woken_by_the_turn_each_wakes_the_next() -> None:
    pendings = [Pending(number) for number in range(4)]
    waiters = [ThreadedRuntime().waiter() for _ in pendings]
    for pending, waiter in zip(pendings, waiters, strict=True):
        pending.waiter = waiter
    pendings[1].waiter = None  # nobody waits for it
    chain([(pending, None, None) for pending in pendings])
    assert [pending.is_chained for pending in pendings] == [False, False, True, True]
    assert [pending.following for pending in pendings] == [waiters[2], None, waiters[3], None]
