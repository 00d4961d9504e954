"""What the dispatcher has under way: told once, and in time."""

from __future__ import annotations

from streamlog.batch import seal_columnar
from streamlog.broker.api import Produce, Produced, Retrying
from streamlog.broker.deliveries import Delivery, Item, decide, expired, is_leader_news, too_late
from streamlog.broker.pending import Pending
from streamlog.errors import (
    LeaderNotAvailableError,
    NetworkError,
    NotEnoughReplicasError,
    NotLeaderOrFollowerError,
)

KEY = ("t", 0)
BATCH = seal_columnar(None, [b"a", b"b"], timestamps=1)


def delivery(count: int = 1, now_ms: int = 1_000) -> Delivery:
    retrying = Retrying(delivery_timeout_ms=500, request_timeout_ms=100)
    produce = Produce([("t", number, BATCH) for number in range(count)], retrying=retrying)
    return Delivery(Pending(produce), produce, now_ms)


def test_the_last_result_answers_and_only_once() -> None:
    two = delivery(2)
    told: list[Pending] = []
    two.pending.on_done = told.append
    items = [Item(two, index, BATCH) for index in range(2)]
    decide(items[1], Produced(7, -1, 0))
    assert not two.pending.done and not told
    decide(items[0], Produced(3, -1, 0))
    assert [produced.base_offset for produced in two.pending.reply] == [3, 7] and told == [two.pending]


def test_who_has_not_been_sent_in_its_time_is_told_the_last_error() -> None:
    item = Item(delivery(), 0, BATCH)
    assert too_late(KEY, item, 1_499) is None
    assert isinstance(too_late(KEY, item, 1_500), LeaderNotAvailableError)
    item.error = NotEnoughReplicasError("two")
    assert too_late(KEY, item, 1_500) is item.error


def test_a_request_nobody_answers_is_given_up_after_its_own_time() -> None:
    item = Item(delivery(), 0, BATCH)
    item.request, item.sent_ms = Pending(None), 2_000
    assert too_late(KEY, item, 2_099) is None
    error = too_late(KEY, item, 2_100)
    assert isinstance(error, NetworkError) and error.indefinite


def test_the_end_of_time_names_the_last_answer() -> None:
    item = Item(delivery(), 0, BATCH)
    item.error, item.attempts = NotEnoughReplicasError("two of three"), 4
    error = expired(item, KEY, 1_500)
    assert "2 records for t-0" in str(error) and "4 attempts; the last answer: two of three" in str(error)
    assert error.__cause__ is item.error


def test_what_a_change_of_leaders_explains() -> None:
    assert all(
        is_leader_news(kind("x"))
        for kind in (NotLeaderOrFollowerError, LeaderNotAvailableError, NetworkError)
    )
    assert not is_leader_news(NotEnoughReplicasError("x"))
