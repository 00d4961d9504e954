"""The hunt's exactly-once workers: without faults they copy everything, and what they are told is true."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import streamlog
from streamlog.testing import Simulation
from streamlog.testing.pipeline import Pipeline
from streamlog.testing.transaction_checkers import ExactlyOnce
from tests.sim.seeds import ran


def test_a_seed_copies_everything_and_has_transactions_of_every_fate() -> None:
    workload, outcome = ran(3)
    checker = workload.checks[ExactlyOnce]
    assert len(checker.copied) > 100
    assert outcome.counts["committed transactions"] > 20 and outcome.counts["aborted transactions"] > 0


def test_the_hunt_waits_for_transactions_that_were_left_open() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", sync="off", runtime=simulation) as cluster:
        workload: Any = SimpleNamespace(
            seed=1,
            cluster=cluster,
            simulation=simulation,
            options=SimpleNamespace(session_timeout_ms=6_000, replication_factor=1),
            without=frozenset({"worker-0", "worker-1"}),
        )
        pipeline = Pipeline(workload)
        pipeline.create({})
        assert pipeline.lag() == ""
        producer = cluster.producer(transactional_id="p", transaction_timeout_ms=4_000)
        transaction = producer.transaction()
        transaction.__enter__()
        producer.send("copies", b"lost=1", partition=0)
        producer.flush()
        assert pipeline.lag() == "a transaction is open; copies are stable up to {'copies-0': 0}"
        simulation.sleep(6)
        assert pipeline.lag() == "", "it was aborted for its age"
