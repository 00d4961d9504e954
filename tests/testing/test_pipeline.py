"""The hunt's exactly-once workers: without faults they copy everything, and what they are told is true."""

from __future__ import annotations

from streamlog.testing.transaction_checkers import ExactlyOnce
from streamlog.testing.workload import Workload


def test_a_seed_copies_everything_and_has_transactions_of_every_fate() -> None:
    workload = Workload(3)
    outcome = workload.run()
    checker = workload.checks[ExactlyOnce]
    assert len(checker.copied) > 100
    assert outcome.counts["committed transactions"] > 20 and outcome.counts["aborted transactions"] > 0
