"""Fixtures of the broker tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streamlog.broker.cluster import BrokerCluster
from tests.broker.builders import Ledger, opened


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path)
    yield ledger
    ledger.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[BrokerCluster]:
    cluster = opened(tmp_path / "cluster")
    yield cluster
    cluster.close()
