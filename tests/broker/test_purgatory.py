"""Waiting for news without missing any."""

from __future__ import annotations

from typing import Any

import pytest

from streamlog.broker.purgatory import Listener, Source, Subscription
from streamlog.broker.runner import ThreadedRuntime
from tests.broker.builders import in_thread
from tests.broker.interrupting import count_places, interrupted_at


class Numbered(Source):
    """A source with a view."""

    __slots__ = ("view",)

    def __init__(self) -> None:
        super().__init__()
        self.view = 0

    def publish(self, view: int) -> None:
        self.view = view
        self.notify()


def listener_of(*sources: Source) -> Listener:
    runtime = ThreadedRuntime()
    listener = Listener(runtime, runtime.lock())
    for source in sources:
        listener.subscribe(source, source)
    return listener


def taken(listener: Listener) -> list[Any]:
    found = []
    while (subscription := listener.take()) is not None:
        found.append(subscription.subject)
    return found


def test_what_a_source_has_already_counts_as_news() -> None:
    source = Numbered()
    assert taken(listener_of(source)) == [source]


def test_only_sources_with_news_are_taken_each_once_the_oldest_first() -> None:
    sources = [Numbered() for _ in range(4)]
    listener = listener_of(*sources)
    taken(listener)
    for index in (2, 1, 2, 2):
        sources[index].publish(index)
    assert taken(listener) == [sources[2], sources[1]]
    assert taken(listener) == []


def test_a_reader_that_never_looks_makes_nothing_grow() -> None:
    source = Numbered()
    listener = listener_of(source)
    for view in range(100):
        source.publish(view)
    assert len(listener.ready) == 1


def test_news_after_the_mark_was_taken_set_it_again() -> None:
    source = Numbered()
    listener = listener_of(source)
    assert listener.take() is not None
    source.publish(1)
    assert listener.wait(0) and taken(listener) == [source]


def test_waiting_returns_at_once_when_there_is_news_and_is_woken_by_it() -> None:
    source = Numbered()
    listener = listener_of(source)
    assert listener.wait(0)
    taken(listener)
    while listener.waiter.wait(0):
        pass
    assert not listener.wait(0)
    waiting = in_thread(lambda: listener.wait(10_000))
    source.publish(1)
    assert waiting.result() is True


def test_wake_ends_a_wait_without_news() -> None:
    listener = listener_of()
    waiting = in_thread(lambda: listener.wait(None))
    listener.wake()
    assert waiting.result() is True and taken(listener) == []


def test_a_cancelled_subscription_hears_no_more_and_the_others_do() -> None:
    source = Numbered()
    first, second = listener_of(source), listener_of(source)
    subscription = first.take()
    assert subscription is not None
    first.unsubscribe(subscription)
    taken(second)
    source.publish(1)
    assert taken(first) == [] and taken(second) == [source]


def test_marking_and_putting_back() -> None:
    source = Numbered()
    listener = listener_of(source)
    listener.put_back()
    subscription = listener.take()
    assert subscription is not None and taken(listener) == []
    listener.put_back()
    assert taken(listener) == [source]
    listener.mark(subscription), listener.mark(subscription)
    assert taken(listener) == [source]


def test_interrupts_anywhere_in_notify_cost_no_wake_up_when_the_turn_publishes_again() -> None:
    """A turn that is cut short is applied again: then everybody must have been told, or be told now."""
    sources = (Numbered(), Numbered())
    listener = listener_of(*sources)
    for place in range(1, 40):
        taken(listener)
        while listener.waiter.wait(0):
            pass
        struck = interrupted_at(place, lambda: [source.notify() for source in sources])
        for source in sources:
            source.notify()
        assert listener.waiter.wait(0), struck
        assert set(taken(listener)) == set(sources), struck
        if struck is None:
            return
    raise AssertionError("too many places")


def test_interrupts_anywhere_in_take_lose_no_mark() -> None:
    source = Numbered()
    listener = listener_of(source)
    total = count_places(listener.take)
    for place in range(1, total + 1):
        listener.mark(next(iter(source.subscriptions)))
        if interrupted_at(place, listener.take) is not None:
            listener.put_back()
            assert taken(listener) == [source]


@pytest.mark.parametrize("threads", [3])
def test_no_news_are_lost_between_threads(threads: int) -> None:
    sources = [Numbered() for _ in range(threads)]
    listener = listener_of(*sources)
    rounds = 2_000

    def publish(source: Numbered) -> None:
        for view in range(1, rounds + 1):
            source.publish(view)

    publishing = [in_thread(lambda source=source: publish(source)) for source in sources]
    seen = dict.fromkeys(sources, 0)
    while any(view < rounds for view in seen.values()):
        subscription = listener.take()
        if subscription is None:
            assert listener.wait(10_000), f"lost: {seen.values()}"
            continue
        assert isinstance(subscription, Subscription)
        seen[subscription.subject] = subscription.subject.view
    for thread in publishing:
        thread.result()
