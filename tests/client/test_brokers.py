"""Brokers are known by id; what needs several of them refuses by name, not with a stray TypeError."""

from __future__ import annotations

import pytest

import streamlog
from streamlog.client.brokers import BrokerHandle
from streamlog.errors import UnsupportedOperationError


@pytest.mark.parametrize("operation", ["stop", "start", "crash", "pause", "resume"])
def test_faults_of_a_broker_are_refused_by_name(operation: str) -> None:
    with streamlog.open(":memory:") as cluster:
        [broker] = cluster.brokers
        with pytest.raises(UnsupportedOperationError, match=rf"{operation}\(\).*one broker"):
            getattr(broker, operation)()


def test_growing_and_the_network_are_refused_by_name() -> None:
    with streamlog.open(":memory:") as cluster:
        with pytest.raises(UnsupportedOperationError, match="add_broker"):
            cluster.add_broker()
        with pytest.raises(UnsupportedOperationError, match="reassign"):
            cluster.reassign("t", {})
        with pytest.raises(UnsupportedOperationError, match="network"):
            cluster.network  # noqa: B018


def test_handles_are_equal_by_id() -> None:
    assert BrokerHandle(1) == BrokerHandle(1) != BrokerHandle(2)
    assert {BrokerHandle(1), BrokerHandle(1)} == {BrokerHandle(1)}
    assert repr(BrokerHandle(3)) == "<Broker 3>"
