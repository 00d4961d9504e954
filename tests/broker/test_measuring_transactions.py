"""Metrics of producers' ids and transactions, against known traffic."""

from __future__ import annotations

import streamlog
from streamlog.broker.measuring_transactions import LATE_MS
from streamlog.testing import Simulation

REPLICA_MANAGER = "kafka.server:type=ReplicaManager,name="
IDS = "kafka.server:type=transaction-coordinator-metrics,state="
GROUPS = "kafka.server:type=group-coordinator-metrics"


def test_producers_and_late_transactions_are_counted() -> None:
    simulation = Simulation(1)
    options = {"transaction_max_timeout_ms": 3_600_000, "producer_id_expiration_ms": 86_400_000}
    with streamlog.open(":memory:", sync="off", runtime=simulation, **options) as cluster:
        cluster.create_topic("t", partitions=3)

        def value(name: str) -> int:
            return cluster.metrics()[REPLICA_MANAGER + name]["Value"]

        assert value("ProducerIdCount") == value("PartitionsWithLateTransactionsCount") == 0
        first = cluster.producer(transactional_id="first")
        with first.transaction():
            for partition in range(3):
                first.send("t", b"x", partition=partition)
        assert value("ProducerIdCount") == 3, "one producer in three partitions"
        second = cluster.producer(transactional_id="second", transaction_timeout_ms=3_600_000)
        second.transaction().__enter__()
        second.send("t", b"open", partition=1)
        second.flush()
        assert value("ProducerIdCount") == 4
        coordinator = cluster._backend.broker.coordinator.transactions
        coordinator._deadlines.clear()  # as if its coordinator had forgotten it
        simulation.jump_wall_clock(3_600_000 + LATE_MS - 1)
        assert value("PartitionsWithLateTransactionsCount") == 0
        simulation.jump_wall_clock(1)
        assert value("PartitionsWithLateTransactionsCount") == 1
        second.close()
        assert value("PartitionsWithLateTransactionsCount") == 0, "closing aborts it"


def test_offsets_that_go_with_a_transaction_are_commits() -> None:
    for brokers in (1, 3):
        with streamlog.open(":memory:", brokers=brokers, sync="off") as cluster:
            cluster.create_topic("in", partitions=2)
            cluster.create_topic("out")
            with cluster.producer() as producer:
                for partition in range(2):
                    producer.send("in", b"x", partition=partition).result()
            group = cluster.consumer_group("g", ["in"], enable_auto_commit=False)
            read = 0
            with group.consumer() as consumer, cluster.producer(transactional_id="t") as producer:
                while read < 2:
                    with producer.transaction(consumer):
                        records = consumer.poll(1.0)
                        read += len(records)
                        for record in records:
                            producer.send("out", record.value)
            assert cluster.metrics()[GROUPS]["offset-commit-count"] == 2, f"{brokers} brokers"


def test_asking_makes_no_coordinator_and_loads_no_partition() -> None:
    with streamlog.open(":memory:") as cluster:
        cluster.create_topic("orders", partitions=3)
        for state in ("Empty", "Ongoing", "PrepareCommit", "PrepareAbort", "CompleteCommit", "CompleteAbort"):
            assert cluster.metrics().value(IDS + state, "transactional-id-count") == 0
        broker = cluster._backend.broker
        assert not broker.has_coordinator and not broker.partitions
