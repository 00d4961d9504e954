"""Fixtures of the client tests: clusters in memory, opened in about 3 ms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import streamlog
from streamlog import Cluster, Topic


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with streamlog.open(":memory:", sync="off") as cluster:
        yield cluster


@pytest.fixture
def orders(cluster: Cluster) -> Topic:
    """A topic of two partitions."""
    return cluster.create_topic("orders", partitions=2)


@pytest.fixture
def single(cluster: Cluster) -> Topic:
    """A topic of one partition."""
    return cluster.create_topic("single")
