"""Options that change while the cluster is open: which may, where they hold, and that they are kept (KIP-226)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog import Cluster
from streamlog.broker.dynamic_config import CONTROLLER_OPTIONS, DYNAMIC_OPTIONS, effective
from streamlog.config import ClusterConfig
from streamlog.errors import BrokerIdNotRegisteredError, ConfigError, NotEnoughReplicasError
from streamlog.testing import Simulation


@pytest.fixture
def simulation() -> Simulation:
    return Simulation(seed=3)


@pytest.fixture
def cluster(simulation: Simulation) -> Iterator[Cluster]:
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation) as cluster:
        assert isinstance(cluster, Cluster)
        yield cluster


def test_every_dynamic_option_is_one() -> None:
    assert {option.name for option in ClusterConfig.options()} >= DYNAMIC_OPTIONS >= CONTROLLER_OPTIONS


def test_a_brokers_own_comes_before_all_brokers_before_the_opening_before_the_default() -> None:
    given = ClusterConfig.from_options({"replica_fetch_max_bytes": 1})
    stored = {"": {"replica.fetch.min.bytes": "2"}, "1": {"replica.fetch.min.bytes": "3"}}
    assert [effective(given, stored, b).replica_fetch_min_bytes for b in (None, 0, 1)] == [2, 2, 3]
    assert effective(given, stored, 1).replica_fetch_max_bytes == 1
    assert effective(given, {}) is given


@pytest.mark.parametrize(
    ("changes", "broker", "message"),
    [
        ({"flush.ms": 7}, None, "needs reopening"),
        ({"num_replica_fetchers": None}, None, "needs reopening"),
        ({"log.retention.msec": 7}, None, "did you mean"),
        ({"log.retention.ms": -7}, None, "allowed"),
        ({"replica.fetch.wait.max.ms": 40_000}, None, "replica.lag.time.max.ms"),
        ({"min.insync.replicas": 2}, 1, "one value for all brokers"),
        (["log.retention.ms"], None, "a mapping"),
    ],
)
def test_what_may_not_be_is_told_and_changes_nothing(
    cluster: Cluster, changes: Any, broker: int | None, message: str
) -> None:
    before = cluster.config
    with pytest.raises(ConfigError, match=message):
        cluster.alter_config(changes, broker=broker)
    assert cluster.config == before and not cluster._backend.metadata.image.broker_configs


def test_an_unknown_broker_is_named(cluster: Cluster) -> None:
    with pytest.raises(BrokerIdNotRegisteredError, match="9"):
        cluster.alter_config({"replica.fetch.min.bytes": 7}, broker=9)


def test_topics_inherit_at_once_and_their_own_options_win(cluster: Cluster) -> None:
    plain = cluster.create_topic("plain")
    own = cluster.create_topic("own", config={"retention.ms": 5})
    plain[0].read(), own[0].read()  # loaded
    cluster.alter_config({"log.retention.ms": 77, "message.max.bytes": 1000})
    assert (plain.config["retention.ms"], own.config["retention.ms"]) == ("77", "5")
    with cluster.producer() as producer, pytest.raises(streamlog.StreamlogError, match="1000"):
        producer.send("plain", b"x" * 2000).result()
    cluster.alter_config({"message_max_bytes": None})
    with cluster.producer() as producer:
        producer.send("plain", b"x" * 2000).result()
    assert cluster.config["log.retention.ms"] == "77"


def test_min_insync_replicas_refuses_at_once_and_moves_the_high_watermark(
    cluster: Cluster, simulation: Simulation
) -> None:
    topic = cluster.create_topic("t", replication_factor=3)
    cluster.brokers[2].crash()
    with (
        cluster.producer(acks=1) as any_number,
        cluster.producer(retries=0, enable_idempotence=False) as strict,
    ):
        strict.send("t", b"a").result()
        cluster.alter_config({"min.insync.replicas": 3})
        with pytest.raises(NotEnoughReplicasError):
            strict.send("t", b"refused").result()
        any_number.send("t", b"b").result()
        simulation.sleep(1)
        assert (topic[0].high_watermark, topic[0].log_end_offset) == (1, 2)
        topic.alter_config({"min.insync.replicas": 2})
        assert topic[0].high_watermark == 2
        strict.send("t", b"c").result()


def test_unclean_elections_that_become_allowed_are_held_at_once(
    cluster: Cluster, simulation: Simulation
) -> None:
    for name in ("by-topic", "by-cluster", "never"):
        config = {"unclean.leader.election.enable": "false"} if name == "never" else None
        cluster.create_topic(name, replication_factor=1, config=config)
        leader = cluster.topic(name)[0].leader
        assert leader is not None
        if leader != 1:
            cluster.reassign(name, {0: [1]})
            simulation.sleep(1)
        cluster.reassign(name, {0: [1, 2]})
    cluster.brokers[2].crash()
    cluster.brokers[1].crash()
    cluster.brokers[2].start()
    leaders = lambda: [cluster.topic(name)[0].leader for name in ("by-topic", "by-cluster", "never")]  # noqa: E731
    assert leaders() == [None, None, None]
    cluster.topic("by-topic").alter_config({"unclean.leader.election.enable": True})
    assert leaders() == [2, None, None]
    cluster.alter_config({"unclean.leader.election.enable": True})
    assert leaders() == [2, 2, None]


def test_a_lag_time_holds_for_leaders_at_once(cluster: Cluster, simulation: Simulation) -> None:
    topic = cluster.create_topic("t", replication_factor=3)
    with cluster.producer() as producer:
        producer.send("t", b"x").result()
        leader = topic[0].leader
        assert leader is not None
        slow = (leader + 1) % 3
        cluster.alter_config({"replica.lag.time.max.ms": 1_000, "replica.fetch.wait.max.ms": 500})
        cluster.brokers[slow].slow_disk(5_000)
        with cluster.producer(acks=1) as quick:
            quick.send("t", b"y").result()
        simulation.sleep(3)
        assert slow not in topic[0].isr


def test_one_broker_may_have_its_own(cluster: Cluster) -> None:
    cluster.alter_config({"replica.fetch.max.bytes": 5_000}, broker=1)
    cluster.alter_config({"replica.fetch.max.bytes": 6_000})
    seen = [broker.config.replica_fetch_max_bytes for broker in cluster._backend.brokers]
    assert seen == [6_000, 5_000, 6_000] and cluster.config["replica.fetch.max.bytes"] == "6000"
    cluster.brokers[1].crash()
    cluster.brokers[1].start()
    assert cluster._backend.brokers[1].config.replica_fetch_max_bytes == 5_000


def test_a_paused_broker_takes_them_when_it_goes_on(cluster: Cluster) -> None:
    cluster.brokers[1].pause()
    cluster.alter_config({"replica.fetch.max.bytes": 5_000})
    assert cluster._backend.brokers[1].config.replica_fetch_max_bytes != 5_000
    cluster.brokers[1].resume()
    assert cluster._backend.brokers[1].config.replica_fetch_max_bytes == 5_000


@pytest.mark.parametrize("brokers", [1, 2])
def test_they_are_in_force_after_reopening_also_beside_the_owner(tmp_path: Path, brokers: int) -> None:
    with streamlog.open(tmp_path / "data", brokers=brokers) as cluster:
        topic = cluster.create_topic("t")
        cluster.alter_config({"log.retention.ms": 77, "leader.imbalance.per.broker.percentage": 3})
        assert brokers != 1 or not cluster._backend.is_replicated, "one broker stays as light as it was"
    with streamlog.open(tmp_path / "data") as cluster:
        topic = cluster.topic("t")
        assert topic.config["retention.ms"] == "77"
        assert cluster._backend.metadata.controlling._config.leader_imbalance_per_broker_percentage == 3
    with streamlog.open(tmp_path / "data", mode="r") as reader:
        assert reader.topic("t").config["retention.ms"] == "77"
    with streamlog.open(tmp_path / "data") as cluster:
        cluster.alter_config({"log.retention.ms": None})
        assert cluster.topic("t").config["retention.ms"] == "604800000"
