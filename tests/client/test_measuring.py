"""client/measuring.py: names and life of the clients' metrics. By value: tests/spec/test_metrics.py."""

from __future__ import annotations

import pytest

import streamlog
from streamlog.errors import ClosedError

FETCHING = "kafka.consumer:type=consumer-fetch-manager-metrics"


def client_ids(cluster: streamlog.Cluster) -> set[str]:
    return {
        part[10:] for name in cluster.metrics() for part in name.split(",") if part.startswith("client-id=")
    }


def test_clients_are_called_as_kafkas_call_themselves() -> None:
    with streamlog.open(":memory:") as cluster:
        cluster.create_topic("orders")
        with (
            cluster.producer(),
            cluster.producer(),
            cluster.consumer(),
            cluster.consumer_group("g", ["orders"]).consumer(),
            cluster.consumer_group("g", ["orders"]).consumer(),
        ):
            assert client_ids(cluster) == {
                *("producer-1", "producer-2", "consumer-null-1", "consumer-g-1", "consumer-g-2"),
            }
        assert client_ids(cluster) == set()


def test_what_fails_to_close_has_no_metrics_either() -> None:
    with streamlog.open(":memory:c") as cluster, streamlog.open(":memory:c") as other:
        cluster.create_topic("orders")
        consumer = cluster.consumer_group("g", ["orders"]).consumer(on_revoked=lambda tps: 1 / 0)
        consumer.poll(0)
        with pytest.raises(ZeroDivisionError):
            cluster.close()
        assert client_ids(other) == set()
        with pytest.raises(ClosedError):
            consumer.poll(0)


def test_a_consumer_whose_topic_is_deleted_can_still_be_read() -> None:
    with streamlog.open(":memory:") as cluster:
        cluster.create_topic("orders", partitions=1)
        with cluster.producer() as producer:
            producer.send("orders", b"x")
        consumer = cluster.consumer()
        consumer.assign([("orders", 0)])
        assert len(consumer.poll()) == 1
        cluster.delete_topic("orders")
        assert cluster.metrics().value(FETCHING, "records-lag-max", **{"client-id": "consumer-null-1"}) == 0
