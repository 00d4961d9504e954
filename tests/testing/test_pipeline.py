"""The hunt's exactly-once workers: without faults they copy everything, and what they are told is true."""

from __future__ import annotations

from streamlog.testing.transaction_checkers import ExactlyOnce
from streamlog.testing.workload import Workload, draw


def test_a_seed_copies_everything_and_has_transactions_of_every_fate() -> None:
    workload = Workload(3)
    outcome = workload.run()
    checker = workload.checks[ExactlyOnce]
    assert len(checker.copied) > 100
    assert outcome.counts["committed transactions"] > 20 and outcome.counts["aborted transactions"] > 0


def test_the_same_seed_does_the_same() -> None:
    outcomes = [Workload(5, without=frozenset({"reader-0"})).run() for _ in range(2)]
    assert outcomes[0].digest == outcomes[1].digest
    assert outcomes[0].counts == outcomes[1].counts
    assert draw(5) == draw(5)
