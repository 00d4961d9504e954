"""Runs of seeds that several tests look at: each is made once in a process."""

from __future__ import annotations

from functools import cache

from streamlog.testing.workload import Outcome, Workload


@cache
def ran(seed: int) -> tuple[Workload, Outcome]:
    """The workload of a seed, over, and what came of it."""
    workload = Workload(seed)
    return workload, workload.run()


def outcome_of(seed: int, without: frozenset[str] = frozenset()) -> Outcome:
    """In the place of `hunt.run`, for what is about the hunt and not about the seed."""
    assert not without
    return ran(seed)[1]
