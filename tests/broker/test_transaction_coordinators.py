"""Finding the coordinator of a transactional id, and asking it until it answers."""

from __future__ import annotations

from typing import Any

import pytest

import streamlog
from streamlog.broker.api import EndTxn, InitProducerId
from streamlog.broker.transaction_coordinators import call, coordinator_of
from streamlog.errors import CoordinatorNotAvailableError, InvalidProducerIdMappingError
from streamlog.testing import Simulation


def init(backend: Any, name: str = "t", timeout_ms: int = 60_000) -> tuple[int, int]:
    return call(backend, name, InitProducerId(60_000, backend.metadata.new_producer_id()), timeout_ms)


@pytest.mark.parametrize("brokers", [1, 2, 3, 4])
def test_the_topic_is_made_at_the_first_use_with_up_to_three_replicas(brokers: int) -> None:
    with streamlog.open(":memory:", brokers=brokers, transaction_state_log_num_partitions=7) as cluster:
        backend = cluster._backend
        assert init(backend)[1] == 0
        partitions = backend.topic("__transaction_state").partitions
        assert len(partitions) == 7 and {len(one.replicas) for one in partitions} == {min(brokers, 3)}
        assert init(backend)[1] == 1


def test_it_moves_with_the_leadership_and_knows_what_was_known() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=3, runtime=simulation) as cluster:
        backend = cluster._backend
        before = init(backend)
        first = coordinator_of(backend, "t").id
        cluster.brokers[first].crash()
        assert init(backend) == (before[0], 1)
        assert coordinator_of(backend, "t").id != first
        cluster.brokers[first].start()


def test_without_any_it_is_told_so_when_the_time_is_over() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=3, runtime=simulation) as cluster:
        init(cluster._backend)
        for broker in cluster.brokers:
            broker.crash()
        begun_ms = simulation.now_ms
        with pytest.raises(CoordinatorNotAvailableError, match="'t' has no coordinator at the moment"):
            init(cluster._backend, timeout_ms=3_000)
        assert 3_000 <= simulation.now_ms - begun_ms <= 3_100


def test_what_is_final_is_told_at_once() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=3, runtime=simulation) as cluster:
        begun_ms = simulation.now_ms
        with pytest.raises(InvalidProducerIdMappingError):
            call(cluster._backend, "nobody", EndTxn(99, 0, True))
        assert simulation.now_ms - begun_ms < 1_000
