"""Deliberate mistakes are found by a checker: three here, all of them in `make long` and `make mutations`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from streamlog.core import leadership
from tests.sim.mutations import (
    MUTATIONS,
    SEEDS_MAX,
    acknowledge_before_the_commit,
    high_watermark_ignores_the_slowest,
    mutated,
    search,
    truncate_to_the_high_watermark,
)


@pytest.mark.parametrize(
    ("mutation", "seeds", "checkers"),
    [
        (truncate_to_the_high_watermark, 5, {"IsrHoldsCommitted", "CommittedNeverLost"}),
        (high_watermark_ignores_the_slowest, 5, {"IsrHoldsCommitted"}),
        (acknowledge_before_the_commit, 5, {"AckedSurvives"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_found_soon(mutation: Callable[[], list[Any]], seeds: int, checkers: set[str]) -> None:
    seed, checker, _ = search(mutation, range(seeds))
    assert seed >= 0 and checker in checkers


def test_a_mutation_ends() -> None:
    before = leadership.high_watermark
    with mutated(high_watermark_ignores_the_slowest):
        assert leadership.high_watermark is not before
    assert leadership.high_watermark is before


@pytest.mark.long
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: str(mutation.__name__))
def test_found(mutation: Callable[[], list[Any]]) -> None:
    seed, checker, _ = search(mutation, range(SEEDS_MAX))
    assert seed >= 0, f"no checker found {mutation.__name__} in {SEEDS_MAX} seeds"
    assert checker
