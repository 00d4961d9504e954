"""Percentiles by nearest rank."""

from __future__ import annotations

import pytest

from streamlog.cli.latencies import Latencies


def test_percentiles() -> None:
    latencies = Latencies()
    for number in range(1000, 0, -1):
        latencies.add(number)
    assert [latencies.percentile(share) for share in (0, 0.5, 0.99, 0.999, 1)] == [1, 501, 991, 1000, 1000]
    latencies.add(0.5)
    assert latencies.percentile(0) == 0.5
    assert latencies.maximum == 1000
    assert latencies.average == pytest.approx(500.5, abs=0.6)
    assert len(latencies) == latencies.document()["samples"] == 1001


def test_none() -> None:
    latencies = Latencies()
    assert (latencies.average, latencies.maximum, latencies.percentile(0.5)) == (0, 0, 0)
