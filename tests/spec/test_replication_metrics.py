"""SEMANTICS 2.2: what replication and the controller tell, before, during and after a fault; simulated, so exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import streamlog
from streamlog import Cluster
from streamlog.broker.replica_requests import IsrRefused
from streamlog.errors import InvalidRequestError
from streamlog.testing import Simulation

REPLICAS = "kafka.server:type=ReplicaManager,name="
CONTROLLER = "kafka.controller:type=KafkaController,name="
ELECTIONS = "kafka.controller:type=ControllerStats,name="
EVENTS = "kafka.controller:type=ControllerEventManager,name="
FETCHERS = "kafka.server:type=ReplicaFetcherManager,clientId=Replica,name="
FETCHER = "kafka.server:type=FetcherStats,name="
TOPICS = "kafka.server:type=BrokerTopicMetrics,name="
PARTITION = "kafka.cluster:type=Partition,topic=t,partition=1,name="
REQUESTS = "kafka.network:type=RequestMetrics,name="
PURGATORY = "kafka.server:type=DelayedOperationPurgatory,name=PurgatorySize,delayedOperation=Produce"
RAFT = "kafka.server:type=raft-metrics"
LAG = "kafka.server:type=FetcherLagMetrics,name=ConsumerLag"


@pytest.fixture
def simulation() -> Simulation:
    return Simulation(seed=7)


@pytest.fixture
def cluster(simulation: Simulation) -> Iterator[Cluster]:
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation) as cluster:
        assert isinstance(cluster, Cluster)
        cluster.create_topic("t", partitions=3, replication_factor=3, config={"min.insync.replicas": 2})
        yield cluster


def send(cluster: Cluster, count: int, partition: int = 1, **options: Any) -> None:
    with cluster.producer(**options) as producer:
        for number in range(count):
            producer.send("t", b"%d" % number, partition=partition).result()


# Partition 1 is led by broker 1, 0 by 0, 2 by 2. Broker 1 crashes (two leaders of its followers shrink the ISR, one is
# elected), comes back (expands, three of them), and gets its leadership back.
TABLE = [
    # metric                                   before  crashed  back  given back
    (REPLICAS + "PartitionCount", 9, 6, 9, 9),
    (REPLICAS + "PartitionCount,broker=1", 3, 0, 3, 3),
    (REPLICAS + "LeaderCount", 3, 3, 3, 3),
    (REPLICAS + "LeaderCount,broker=1", 1, 0, 0, 1),
    (REPLICAS + "OfflineReplicaCount", 0, 3, 0, 0),
    (REPLICAS + "OfflineReplicaCount,broker=1", 0, 3, 0, 0),
    (REPLICAS + "UnderReplicatedPartitions", 0, 3, 0, 0),
    (REPLICAS + "UnderMinIsrPartitionCount", 0, 0, 0, 0),
    (REPLICAS + "AtMinIsrPartitionCount", 0, 3, 0, 0),
    (REPLICAS + "ReassigningPartitions", 0, 0, 0, 0),
    (REPLICAS + "IsrShrinksPerSec", 0, 2, 2, 2),
    (REPLICAS + "IsrExpandsPerSec", 0, 0, 3, 3),
    (REPLICAS + "FailedIsrUpdatesPerSec", 0, 0, 0, 0),
    (REPLICAS + "IsrChangeTimeMs", 0, 0, 3, 3),
    (PARTITION + "InSyncReplicasCount", 3, 2, 3, 3),
    (PARTITION + "ReplicasCount", 3, 3, 3, 3),
    (PARTITION + "UnderReplicated", 0, 1, 0, 0),
    (PARTITION + "UnderMinIsr", 0, 0, 0, 0),
    (PARTITION + "AtMinIsr", 0, 1, 0, 0),
    (CONTROLLER + "ActiveControllerCount", 1, 1, 1, 1),
    (CONTROLLER + "ActiveBrokerCount", 3, 2, 3, 3),
    (CONTROLLER + "FencedBrokerCount", 0, 1, 0, 0),
    (CONTROLLER + "BrokerRegistrationState,broker=1", 30, 10, 30, 30),
    (CONTROLLER + "OfflinePartitionsCount", 0, 0, 0, 0),
    (CONTROLLER + "PreferredReplicaImbalanceCount", 0, 1, 1, 0),
    (CONTROLLER + "NewActiveControllersCount", 0, 0, 0, 0),
    (CONTROLLER + "TimedOutBrokerHeartbeatCount", 0, 0, 0, 0),
    (ELECTIONS + "LeaderElectionRateAndTimeMs", 0, 1, 1, 2),
    (ELECTIONS + "UncleanLeaderElectionsPerSec", 0, 0, 0, 0),
    (FETCHERS + "MaxLag", 0, 0, 0, 0),
    (FETCHERS + "FailedPartitionsCount", 0, 0, 0, 0),
    (PURGATORY, 0, 0, 0, 0),
    (TOPICS + "MessagesInPerSec", 12, 17, 17, 17),
    (REQUESTS + "RequestsPerSec,request=Produce", 12, 17, 17, 17),
    (REQUESTS + "RemoteTimeMs,request=Produce", 12, 17, 17, 17),
    (REQUESTS + "RequestsPerSec,request=ElectLeaders", 0, 0, 0, 1),
]


def test_every_row_before_during_and_after_a_crash(cluster: Cluster, simulation: Simulation) -> None:
    send(cluster, 10)
    send(cluster, 1, 0)
    send(cluster, 1, 2)
    simulation.sleep(2)
    seen = [cluster.metrics()]
    cluster.brokers[1].crash()
    send(cluster, 5)
    simulation.sleep(2)
    seen.append(cluster.metrics())
    cluster.brokers[1].start()
    simulation.sleep(2)
    seen.append(cluster.metrics())
    cluster.elect_leaders("t", [1])
    simulation.sleep(2)
    seen.append(cluster.metrics())
    table = [(name, *(int(metrics.value(name)) for metrics in seen)) for name, *_ in TABLE]
    assert table == TABLE


def test_copied_bytes_come_in_where_they_went_out(cluster: Cluster, simulation: Simulation) -> None:
    send(cluster, 10)
    simulation.sleep(1)
    size = cluster.topic("t")[1].size_bytes
    metrics = cluster.metrics()
    assert metrics.value(TOPICS + "ReplicationBytesInPerSec") == 2 * size
    assert metrics.value(TOPICS + "ReplicationBytesOutPerSec") == 2 * size
    assert metrics.value(TOPICS + "ReplicationBytesOutPerSec", broker=1) == 2 * size
    for follower in (0, 2):
        tags = {"clientId": "ReplicaFetcherThread-0-1", "broker": follower}
        assert metrics.value(TOPICS + "ReplicationBytesInPerSec", broker=follower) == size
        assert metrics.value(FETCHER + "BytesPerSec", **tags) == size
        assert metrics.value(FETCHER + "RequestsPerSec", **tags) >= 10
    fetches = metrics.value(REQUESTS + "RequestsPerSec", request="FetchFollower")
    assert fetches == sum(
        metrics[name]["Count"] for name in metrics if name.startswith(FETCHER + "RequestsPerSec")
    )
    assert metrics.value(REQUESTS + "TotalTimeMs", request="FetchFollower") == fetches
    assert metrics.value(FETCHERS + "MinFetchRate") > 0


def test_a_follower_that_is_cut_off_lags_and_the_purgatory_holds_what_waits(
    cluster: Cluster, simulation: Simulation
) -> None:
    send(cluster, 3)
    cluster.network.partition({0, 1}, {2})
    with cluster.producer(acks=1) as producer:
        for _ in range(4):
            producer.send("t", b"x", partition=1).result()
        with cluster.producer() as waiting:
            future = waiting.send("t", b"y", partition=1)
            simulation.sleep(1)
            metrics = cluster.metrics()
            assert metrics.value(PURGATORY) == 1 and not future.done()
            tags = {"clientId": "ReplicaFetcherThread-0-1", "topic": "t", "partition": 1}
            assert metrics.value(LAG, broker=2, **tags) == 5 == metrics.value(FETCHERS + "MaxLag")
            assert metrics.value(LAG, broker=0, **tags) == 0
            # After the session the controller fences it, the rest is in sync, and the record acknowledged.
            simulation.sleep(12)
            metrics = cluster.metrics()
            assert future.done() and metrics.value(PURGATORY) == 0
            assert metrics.value(CONTROLLER + "TimedOutBrokerHeartbeatCount") == 1
            assert metrics.value(CONTROLLER + "FencedBrokerCount") == 1
            assert metrics.value(REQUESTS + "RemoteTimeMs", "Max", request="Produce") > 5_000
    cluster.network.heal()
    simulation.sleep(3)
    metrics = cluster.metrics()
    assert metrics.value(FETCHERS + "MaxLag") == 0 == metrics.value(CONTROLLER + "FencedBrokerCount")


def test_a_paused_controller_is_none_until_another_takes_over(
    cluster: Cluster, simulation: Simulation
) -> None:
    assert cluster.metrics().value(RAFT, "current-leader") == 0
    cluster.brokers[0].pause()
    assert cluster.metrics().value(CONTROLLER + "ActiveControllerCount") == 0
    simulation.sleep(15)
    metrics = cluster.metrics()
    assert metrics.value(CONTROLLER + "ActiveControllerCount") == 1
    assert metrics.value(CONTROLLER + "NewActiveControllersCount") == 1
    assert metrics.value(RAFT, "current-leader") in (1, 2) and metrics.value(RAFT, "current-epoch") == 2
    assert (
        metrics.value(EVENTS + "EventQueueTimeMs") > 0 < metrics.value(EVENTS + "EventQueueProcessingTimeMs")
    )


def test_without_a_leader_a_partition_is_offline_and_an_unclean_election_is_counted(
    cluster: Cluster, simulation: Simulation
) -> None:
    cluster.create_topic("risky", replication_factor=1)
    alone = cluster.topic("risky")[0].leader
    assert alone is not None
    cluster.reassign("risky", {0: [alone, (alone + 1) % 3]})
    simulation.sleep(1)
    cluster.brokers[(alone + 1) % 3].crash()
    cluster.brokers[alone].crash()
    cluster.brokers[(alone + 1) % 3].start()
    simulation.sleep(1)
    metrics = cluster.metrics()
    risky = "kafka.cluster:type=Partition,topic=risky,partition=0,name="
    assert metrics.value(CONTROLLER + "OfflinePartitionsCount") == 1
    assert metrics.value(risky + "InSyncReplicasCount") == 0 == metrics.value(risky + "UnderReplicated")
    assert metrics.value(ELECTIONS + "UncleanLeaderElectionsPerSec") == 0
    cluster.elect_leaders("risky", [0], "unclean")
    metrics = cluster.metrics()
    assert metrics.value(CONTROLLER + "OfflinePartitionsCount") == 0
    assert metrics.value(ELECTIONS + "UncleanLeaderElectionsPerSec") == 1


def test_reassigning_and_refused_in_sync_sets(cluster: Cluster, simulation: Simulation) -> None:
    cluster.create_topic("moving", replication_factor=1)
    leader = cluster.topic("moving")[0].leader
    assert leader is not None
    target = (leader + 1) % 3
    cluster.brokers[target].pause()
    cluster.reassign("moving", {0: [target]})
    assert cluster.metrics().value(REPLICAS + "ReassigningPartitions") == 1
    assert cluster.metrics().value(REPLICAS + "UnderReplicatedPartitions") == 0
    cluster.brokers[target].resume()
    simulation.sleep(2)
    assert cluster.metrics().value(REPLICAS + "ReassigningPartitions") == 0
    broker = cluster._backend.leader("t", 1)
    partition = broker.partition("t", 1)
    assert partition.leadership is not None
    broker.call(IsrRefused(partition, partition.leadership.partition_epoch, 0, InvalidRequestError("")))
    assert cluster.metrics().value(REPLICAS + "FailedIsrUpdatesPerSec") == 1


def test_counts_outlive_the_broker_they_are_of(cluster: Cluster, simulation: Simulation) -> None:
    send(cluster, 10)
    simulation.sleep(1)
    before = cluster.metrics()
    for broker in cluster.brokers[1:]:
        broker.crash()
        broker.start()
    simulation.sleep(1)
    after = cluster.metrics()
    for name in before:
        if name.startswith((TOPICS + "Replication", FETCHER, REPLICAS + "Isr")):
            assert after[name]["Count"] >= before[name]["Count"], name


def test_a_partition_damaged_at_its_leader_fails_alone(
    cluster: Cluster, simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamlog.broker import fetcher
    from streamlog.errors import CorruptRecordError

    damaged = cluster._backend.metadata.image.partition("t", 1).log_id
    read = fetcher.log.read

    def reading(snapshot: Any, log_id: int, *rest: Any) -> Any:
        if log_id == damaged:
            raise CorruptRecordError("the checksum does not fit")
        return read(snapshot, log_id, *rest)

    monkeypatch.setattr(fetcher.log, "read", reading)
    send(cluster, 2, acks=1)
    cluster.create_topic("other", replication_factor=3)
    with cluster.producer(delivery_timeout_ms=60_000) as producer:
        producer.send("other", b"x").result(30)  # the same fetchers go on with what is whole
    assert cluster.metrics().value(FETCHERS + "FailedPartitionsCount") == 2
    cluster.delete_topic("t")
    simulation.sleep(1)
