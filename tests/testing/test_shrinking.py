"""Failing seeds made small: of parts that matter together, and of a mistake that the workload finds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.testing import hunt
from streamlog.testing.checkers import InvariantViolatedError
from streamlog.testing.shrinking import kind_of, shrink
from tests.sim.mutations import mutated, retries_are_new_batches
from tests.sim.seeds import outcome_of

PARTS = [f"part-{number}" for number in range(20)]


def needing(*needed: int) -> Callable[[frozenset[str]], bool]:
    return lambda without: not without & {PARTS[number] for number in needed}


@given(st.sets(st.integers(0, 19), max_size=4))
def test_what_is_needed_is_left(needed: set[int]) -> None:
    without = shrink(PARTS, needing(*needed), lambda: True)
    assert without == frozenset(PARTS) - {PARTS[number] for number in needed}


def test_what_fails_in_any_case_needs_nothing_and_nothing_can_be_spared_of_nothing() -> None:
    assert shrink(PARTS, lambda without: True, lambda: True) == frozenset(PARTS)
    assert shrink([], needing(), lambda: True) == frozenset()
    assert shrink(PARTS, lambda without: False, lambda: True) == frozenset()


def test_when_time_is_over_the_best_so_far_is_the_answer() -> None:
    tries: list[frozenset[str]] = []

    def still_fails(without: frozenset[str]) -> bool:
        tries.append(without)
        return needing(0)(without)

    without = shrink(PARTS, still_fails, lambda: len(tries) < 3)
    assert len(tries) == 3 and PARTS[0] not in without and len(without) >= 10


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (ValueError("t-0 ended at 5"), ValueError("t-2 ended at 17"), True),
        (ValueError("b'0-75' is gone"), ValueError("b'2-1' is gone"), True),
        (ValueError("ends at 5"), ValueError("begins at 5"), False),
        (ValueError("the same"), KeyError("the same"), False),
        (ValueError(), ValueError(), True),
    ],
)
def test_failures_of_a_kind(one: Exception, other: Exception, is_same: bool) -> None:
    assert (kind_of(one) == kind_of(other)) is is_same


def test_a_seed_that_fails_is_told_with_less_than_it_had(capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake in the code: the trace names what can be left out, and with that left out it still is found."""
    with mutated(retries_are_new_batches):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hunt, "SHRINK_SECONDS_MAX", 6.0)
            assert hunt.hunt([0], required=()) == 1
        said = capsys.readouterr().out
        [command] = [line for line in said.splitlines() if "--without" in line]
        without = frozenset(command.split("--without ")[1].split(","))
        assert len(without) >= 3
        with pytest.raises(InvariantViolatedError, match="EachOnceInOrder"):
            hunt.run(0, without=without)


def test_progress_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(hunt, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(hunt, "_watched", outcome_of)
    assert hunt.hunt([3], required=()) == 0
    assert "1 of 1 seeds, 0 failed, about 0 s to go" in capsys.readouterr().out
