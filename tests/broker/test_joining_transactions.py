"""A transactional batch travels only once its partition is part of its transaction."""

from __future__ import annotations

from typing import Any

import pytest

import streamlog
from streamlog.broker.api import AddPartitions, Produce
from streamlog.broker.producing import decide as decide_produce
from streamlog.broker.transaction_coordinator import TransactionCoordinator
from streamlog.errors import (
    CoordinatorNotAvailableError,
    DeliveryError,
    InvalidProducerIdMappingError,
    StreamlogError,
)
from streamlog.testing import Simulation


def watch(monkeypatch: pytest.MonkeyPatch, refusals: list[StreamlogError]) -> list[tuple[str, Any]]:
    """What coordinators and leaders are asked, in order. refusals: what the first questions are answered."""
    seen: list[tuple[str, Any]] = []
    add = TransactionCoordinator._add

    def added(
        self: Any, turn: Any, pending: Any, transactional_id: str, partition: Any, event: AddPartitions
    ) -> None:
        seen.append(("add", list(event.partitions)))
        if refusals:
            raise refusals.pop(0)
        add(self, turn, pending, transactional_id, partition, event)

    def produced(broker: Any, turn: Any, pending: Any, request: Produce) -> None:
        seen.extend(
            ("produce", (topic, number)) for topic, number, batch in request.entries if batch.is_transactional
        )
        decide_produce(broker, turn, pending, request)

    monkeypatch.setattr(TransactionCoordinator, "_add", added)
    monkeypatch.setattr("streamlog.broker.producing.decide", produced)
    return seen


def write(cluster: Any, rounds: int = 2) -> None:
    with cluster.producer(transactional_id="t", linger_ms=0) as producer:
        for _ in range(rounds):
            with producer.transaction():
                for partition in (0, 1, 0):
                    producer.send("t", b"x", partition=partition).result()


@pytest.mark.parametrize("seed", range(3))
def test_each_partition_is_added_first_and_once_a_transaction(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch, [])
    with streamlog.open(":memory:", brokers=3, runtime=Simulation(seed)) as cluster:
        cluster.create_topic("t", 2, replication_factor=3)
        write(cluster)
    first, second = ("t", 0), ("t", 1)
    once = [("add", [first]), ("produce", first), ("add", [second]), ("produce", second), ("produce", first)]
    assert seen == once * 2


def test_what_is_retriable_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch, [CoordinatorNotAvailableError("not now")] * 3)
    with streamlog.open(":memory:", brokers=3, runtime=Simulation(1)) as cluster:
        cluster.create_topic("t", 2, replication_factor=3)
        write(cluster, 1)
    assert [what for what, _ in seen] == ["add"] * 4 + ["produce", "add", "produce", "produce"]


def test_what_is_final_fails_the_records_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch, [InvalidProducerIdMappingError("expired")])
    with streamlog.open(":memory:", brokers=3, runtime=Simulation(1)) as cluster:
        cluster.create_topic("t", 2, replication_factor=3)
        producer = cluster.producer(transactional_id="t", linger_ms=0)
        with pytest.raises(InvalidProducerIdMappingError), producer.transaction():
            producer.send("t", b"x", partition=0)
        producer.close()
        assert [what for what, _ in seen] == ["add"]
        assert cluster.topic("t")[0].high_watermark == 0


def test_a_coordinator_that_keeps_silent_is_asked_again() -> None:
    with streamlog.open(":memory:", brokers=3, runtime=Simulation(1)) as cluster:
        cluster.create_topic("t", 3, replication_factor=3)
        with cluster.producer(transactional_id="t", linger_ms=0, request_timeout_ms=1_000) as producer:
            with producer.transaction():
                producer.send("t", b"x", partition=0).result()
            [silent] = [
                broker.id for broker in cluster._backend.brokers if broker.coordinator.transactions._states
            ]
            [number, *_] = [number for number in range(3) if cluster.topic("t")[number].leader != silent]
            cluster.brokers[silent].pause()
            with producer.transaction():
                assert producer.send("t", b"y", partition=number).result().offset >= 0
            cluster.brokers[silent].resume()


def test_records_that_fail_for_it_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch, [InvalidProducerIdMappingError("expired")])
    with streamlog.open(":memory:", brokers=3, runtime=Simulation(1)) as cluster:
        cluster.create_topic("t", 2, replication_factor=3)
        producer = cluster.producer(transactional_id="t", linger_ms=0)
        transaction = producer.transaction().__enter__()
        future = producer.send("t", b"x", partition=0)
        with pytest.raises(DeliveryError, match="expired"):
            producer.flush()
        assert isinstance(future.exception(), InvalidProducerIdMappingError)
        with pytest.raises(StreamlogError):
            transaction.commit()
        producer.close()
