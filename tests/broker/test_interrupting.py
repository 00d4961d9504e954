"""The tool that strikes: it sees each place once, strikes where it was told to, and leaves nothing switched on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.broker.interrupting import Interrupt, count_places, interrupted_at, places, watching

SOURCE = """
from contextlib import suppress

def leaf(): return 1

def loop(calls):
    for number in range(3):
        calls.append(number)

def caller(calls):
    leaf()
    loop(calls)
    calls.append("end")

def guarded(calls):
    try:
        calls.append("in")
        leaf()
    finally:
        calls.append("out")

def yielding():
    yield 1
    yield 2

def drawing(calls):
    calls.extend(yielding())

def forever():
    while True:
        pass
"""


@pytest.fixture
def library() -> dict[str, Callable[..., object]]:
    """Functions that look as if they were the library's."""
    names: dict[str, Callable[..., object]] = {}
    exec(compile(SOURCE, "/somewhere/streamlog/struck.py", "exec"), names)
    return names


def test_each_place_is_struck_once_in_order(library: dict[str, Callable[..., object]]) -> None:
    """At least: the starts of three functions, behind four appends, three rounds of a loop."""
    caller = library["caller"]
    total = count_places(lambda: caller([]))
    assert 10 <= total <= 25
    reached = []
    for place in range(1, total + 1):
        calls: list[object] = []
        where = interrupted_at(place, lambda calls=calls: caller(calls))
        assert where is not None and where.startswith("struck.py:"), place
        reached.append(len(calls))
    assert reached == sorted(reached) and set(reached) == {0, 1, 2, 3, 4}
    assert interrupted_at(total + 1, lambda: caller([])) is None


def test_counting_again_counts_the_same(library: dict[str, Callable[..., object]]) -> None:
    """The first run of a function is not seen otherwise than later ones, a generator's neither."""
    for name in ("caller", "guarded", "drawing"):
        counts = {count_places(lambda name=name: library[name]([])) for _ in range(3)}
        assert len(counts) == 1 and counts.pop() >= 3, name


def test_a_handler_sees_what_strikes_inside_of_it(library: dict[str, Callable[..., object]]) -> None:
    guarded = library["guarded"]
    outcomes = set()
    for place in range(1, count_places(lambda: guarded([])) + 1):
        calls: list[object] = []
        interrupted_at(place, lambda calls=calls: guarded(calls))
        outcomes.add(tuple(calls))
        assert "in" not in calls or "out" in calls
    assert {("in", "out")} <= outcomes <= {(), ("out",), ("in", "out")}


def test_a_loop_without_calls_is_struck(library: dict[str, Callable[..., object]]) -> None:
    assert interrupted_at(1_000, library["forever"]) is not None


def test_other_threads_and_other_files_are_left_alone(library: dict[str, Callable[..., object]]) -> None:
    def elsewhere() -> None:
        thread = threading.Thread(target=library["caller"], args=([],))
        thread.start()
        thread.join()

    assert count_places(elsewhere) == 0
    assert count_places(lambda: [len("not the library's") for _ in range(9)]) == 0


def test_what_a_step_calls_is_not_watched_and_what_it_raises_ends_the_watching(
    library: dict[str, Callable[..., object]],
) -> None:
    steps: list[int] = []

    def step(frame: object, last: int) -> None:
        steps.append(last)
        library["leaf"]()
        if len(steps) == 5:
            raise Interrupt

    calls: list[object] = []
    with watching(lambda path: path.endswith("/struck.py"), step):
        with pytest.raises(Interrupt):
            library["caller"](calls)
        library["caller"](calls)
    assert len(steps) == 5 and calls == [0, 1, 2, "end"]
    library["caller"](calls)
    assert len(steps) == 5, "still on"


@pytest.fixture(autouse=True)
def nothing_stays_switched_on() -> Iterator[None]:
    before = sys.gettrace()
    yield
    assert sys.gettrace() is before
    if sys.version_info >= (3, 12):
        assert all(sys.monitoring.get_tool(number) != "streamlog's interrupts" for number in range(6))


@pytest.mark.parametrize(("total", "count"), [(5, 9), (9, 9), (10, 9), (13, 9), (1_000, 25)])
def test_no_place_is_chosen_twice(total: int, count: int) -> None:
    chosen = list(places(total, count, 7))
    assert chosen == sorted(set(chosen)) and len(chosen) == min(total, count)
    assert chosen[0] >= 1 and chosen[-1] <= total
