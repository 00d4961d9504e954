"""SEMANTICS 2.2 and docs/metrics.md: every metric against traffic whose numbers are known."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog import TopicPartition
from streamlog.clock import ManualClock
from streamlog.errors import (
    DeliveryError,
    DeserializationError,
    InvalidRecordError,
    OffsetOutOfRangeError,
    ResourceNotFoundError,
    TopicAlreadyExistsError,
)

TOPICS = "kafka.server:type=BrokerTopicMetrics,name="
REQUESTS = "kafka.network:type=RequestMetrics,name="
REPLICAS = "kafka.server:type=ReplicaManager,name="
CONTROLLER = "kafka.controller:type=KafkaController,name="
GROUPS = "kafka.server:type=group-coordinator-metrics"
GROUP_STATES = "kafka.coordinator.group:type=GroupMetadataManager,name="
PURGATORY = "kafka.server:type=DelayedOperationPurgatory,name=PurgatorySize"
PRODUCER = "kafka.producer:type=producer-metrics"
PRODUCER_TOPIC = "kafka.producer:type=producer-topic-metrics"
FETCHING = "kafka.consumer:type=consumer-fetch-manager-metrics"
COORDINATION = "kafka.consumer:type=consumer-coordinator-metrics"
CONSUMER = "kafka.consumer:type=consumer-metrics"
TP = TopicPartition("orders", 0)


@pytest.fixture
def cluster() -> Iterator[streamlog.Cluster]:
    with streamlog.open(":memory:") as cluster:
        assert isinstance(cluster, streamlog.Cluster)
        cluster.create_topic("orders", partitions=1)
        yield cluster


def send(cluster: streamlog.Cluster, count: int, topic: str = "orders", **options: Any) -> None:
    with cluster.producer(**options) as producer:
        producer.send_many(topic, [(b"%d" % number, b"%100d" % number) for number in range(count)])


def read_all(cluster: streamlog.Cluster, topic: str = "orders") -> int:
    with cluster.consumer(stop_at_end=True) as consumer:
        consumer.assign([(topic, 0)])
        return len(list(consumer))


# -- brokers -------------------------------------------------------------------------------------------------


def test_messages_and_bytes_in_are_those_of_the_batches_appended(cluster: streamlog.Cluster) -> None:
    cluster.create_topic("others", partitions=1)
    send(cluster, 30)
    send(cluster, 12, "others", compression="zstd")
    metrics = cluster.metrics()
    sizes = {name: cluster.topic(name)[0].size_bytes for name in ("orders", "others")}
    assert metrics.value(TOPICS + "MessagesInPerSec") == 42
    assert metrics.value(TOPICS + "MessagesInPerSec", topic="orders") == 30
    assert metrics.value(TOPICS + "MessagesInPerSec", topic="others") == 12
    assert metrics.value(TOPICS + "BytesInPerSec", topic="orders") == sizes["orders"] > 30 * 100
    assert metrics.value(TOPICS + "BytesInPerSec", topic="others") == sizes["others"] < 12 * 100
    assert metrics.value(TOPICS + "BytesInPerSec") == sum(sizes.values())
    assert metrics.value(TOPICS + "TotalProduceRequestsPerSec") == 2
    assert metrics.value(TOPICS + "FailedProduceRequestsPerSec") == 0
    assert metrics.value(TOPICS + "MessagesInPerSec", "MeanRate") > 0


def test_messages_and_bytes_out_are_those_of_readers(cluster: streamlog.Cluster) -> None:
    send(cluster, 30)
    size = cluster.topic("orders")[0].size_bytes
    assert read_all(cluster) == 30
    assert len(cluster.topic("orders")[0].read(max_records=100)) == 30
    metrics = cluster.metrics()
    for topic in ({}, {"topic": "orders"}):
        assert metrics.value(TOPICS + "MessagesOutPerSec", **topic) == 60
        assert metrics.value(TOPICS + "BytesOutPerSec", **topic) == 2 * size
        assert metrics.value(TOPICS + "TotalFetchRequestsPerSec", **topic) == 2
        assert metrics.value(TOPICS + "FailedFetchRequestsPerSec", **topic) == 0


def test_commits_of_groups_are_not_traffic_of_clients(cluster: streamlog.Cluster) -> None:
    send(cluster, 5)
    with cluster.consumer_group("g", ["orders"]).consumer() as consumer:
        consumer.poll()
        consumer.commit()
    assert cluster.metrics().value(TOPICS + "MessagesInPerSec") == 5
    assert cluster.metrics().value(TOPICS + "MessagesInPerSec", topic="__consumer_offsets") == 0


def test_too_large_is_rejected_bytes_and_invalid_is_a_failed_request(cluster: streamlog.Cluster) -> None:
    cluster.create_topic("small", config={"max.message.bytes": 1_000})
    cluster.create_topic("compacted", config={"cleanup.policy": "compact"})
    with cluster.producer(linger_ms=0) as producer:
        for topic, key, value in (("small", b"k", b"x" * 2_000), ("compacted", None, b"x")):
            with pytest.raises(streamlog.StreamlogError):
                producer.send(topic, value, key).result()
    metrics = cluster.metrics()
    assert metrics.value(TOPICS + "FailedProduceRequestsPerSec") == 1
    assert metrics.value(TOPICS + "FailedProduceRequestsPerSec", topic="compacted") == 1
    rejected = metrics.value(TOPICS + "BytesRejectedPerSec", topic="small")
    if rejected:  # refused by the broker; the producer may know the limit and refuse first
        assert rejected > 2_000 and metrics.value(TOPICS + "BytesRejectedPerSec") == rejected
    assert metrics.value(TOPICS + "MessagesInPerSec") == 0


def test_unknown_topics_leave_no_metrics(cluster: streamlog.Cluster) -> None:
    for number in range(3):
        with cluster.producer() as producer, pytest.raises(streamlog.StreamlogError):
            producer.send(f"nowhere-{number}", b"x")
    assert not [name for name in cluster.metrics() if "nowhere" in name]


def test_requests_are_counted_timed_and_told_apart_by_error(cluster: streamlog.Cluster) -> None:
    with pytest.raises(TopicAlreadyExistsError):
        cluster.create_topic("orders")
    with cluster.producer(linger_ms=0) as producer:
        for number in range(7):
            producer.send("orders", b"%d" % number).result()
    assert read_all(cluster) == 7
    group = cluster.consumer_group("g", ["orders"])
    with group.consumer() as consumer:
        consumer.poll()
        consumer.commit()
    cluster.topic("orders")[0].delete_records(3)
    cluster.topic("orders").alter_config({"retention.ms": 10_000_000})
    cluster.topic("orders").add_partitions(2)
    group.delete()
    cluster.delete_topic("orders")
    metrics = cluster.metrics()
    counts = {
        "Produce": 7,
        "FetchConsumer": 2 + 6,
        "JoinGroup": 1,
        "SyncGroup": 1,
        "OffsetCommit": 1,
        "LeaveGroup": 1,
        "CreateTopics": 3,
        "DeleteTopics": 1,
        "DeleteGroups": 1,
        "DeleteRecords": 1,
        "CreatePartitions": 1,
        "IncrementalAlterConfigs": 1,
    }
    del counts["FetchConsumer"]  # batches of one record are read together or not: counted below
    for request, count in counts.items():
        assert metrics.value(REQUESTS + "RequestsPerSec", request=request) == count, request
        times = metrics[f"{REQUESTS}TotalTimeMs,request={request}"]
        assert (
            times["Count"] == count and 0 < times["Min"] <= times["99thPercentile"] <= times["Max"] < 30_000
        )
    assert metrics.value(REQUESTS + "ErrorsPerSec", request="Produce", error="NONE") == 7
    assert metrics.value(REQUESTS + "ErrorsPerSec", request="CreateTopics", error="TOPIC_ALREADY_EXISTS") == 1
    assert metrics.value(REQUESTS + "ErrorsPerSec", request="CreateTopics", error="NONE") == 2
    fetches = metrics.value(REQUESTS + "RequestsPerSec", request="FetchConsumer")
    assert fetches == metrics.value(TOPICS + "TotalFetchRequestsPerSec") == 2
    assert metrics.value(REQUESTS + "ErrorsPerSec", request="Fetch", error="NONE") == 2


def test_a_position_out_of_range_is_an_error_of_the_request_and_no_failed_fetch(
    cluster: streamlog.Cluster,
) -> None:
    send(cluster, 5)
    consumer = cluster.consumer(auto_offset_reset="none")
    consumer.assign([TP])
    consumer.seek(TP, 99)
    with pytest.raises(OffsetOutOfRangeError):
        consumer.poll(0)
    metrics = cluster.metrics()
    assert metrics.value(REQUESTS + "ErrorsPerSec", request="Fetch", error="OFFSET_OUT_OF_RANGE") == 1
    assert metrics.value(TOPICS + "FailedFetchRequestsPerSec") == 0
    [name] = [name for name in metrics if name.startswith(CONSUMER + ",")]
    assert metrics.value(name, "consumer-error-total") == 1


def test_parked_joins_take_the_time_they_are_parked(cluster: streamlog.Cluster) -> None:
    group = cluster.consumer_group("g", ["orders"])
    with group.consumer() as first, group.consumer() as second:
        first.poll(0)
        assert cluster.metrics().value(PURGATORY, delayedOperation="Rebalance") == 0
        second.poll(0)  # waits for first to join again
        assert cluster.metrics().value(PURGATORY, delayedOperation="Rebalance") == 1
        assert cluster.metrics().value(GROUP_STATES + "NumGroupsPreparingRebalance") == 1
        first.poll(0)
        second.poll(0)
        metrics = cluster.metrics()
        assert metrics.value(PURGATORY, delayedOperation="Rebalance") == 0
        assert metrics.value(REQUESTS + "RequestsPerSec", request="JoinGroup") == 3


def test_partition_gauges_are_read_from_every_partition_loaded_or_not(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "c") as cluster:
        topic = cluster.create_topic("orders", partitions=3)
        with cluster.producer() as producer:
            producer.send_many("orders", [streamlog.Record(value=b"x" * 50, partition=1)] * 20)
        topic[1].delete_records(5)
        size = topic[1].size_bytes
    with streamlog.open(tmp_path / "c") as cluster:
        for _ in range(2):  # not loaded, then loaded
            metrics = cluster.metrics()
            for name, wanted in (
                *(("Size", size), ("LogStartOffset", 5), ("LogEndOffset", 20), ("NumLogSegments", 1)),
            ):
                found = metrics.value(f"kafka.log:type=Log,name={name}", topic="orders", partition=1)
                assert found == wanted, name
            assert metrics.value("kafka.log:type=Log,name=LogEndOffset", topic="orders", partition=0) == 0
            for name, wanted in (
                *(
                    ("InSyncReplicasCount", 1),
                    ("ReplicasCount", 1),
                    ("UnderReplicated", 0),
                    ("UnderMinIsr", 0),
                ),
                *(("AtMinIsr", 1), ("LastStableOffsetLag", 0)),
            ):
                mbean = f"kafka.cluster:type=Partition,name={name}"
                assert metrics.value(mbean, topic="orders", partition=2) == wanted, name
            assert cluster.topic("orders")[1].high_watermark == 20


def test_replica_manager_and_controller_count_the_clusters_partitions(cluster: streamlog.Cluster) -> None:
    cluster.create_topic("others", partitions=6)
    metrics = cluster.metrics()
    for name, wanted in (
        *(("PartitionCount", 7), ("LeaderCount", 7), ("OfflineReplicaCount", 0)),
        *(("UnderReplicatedPartitions", 0), ("UnderMinIsrPartitionCount", 0), ("AtMinIsrPartitionCount", 7)),
    ):
        assert metrics.value(REPLICAS + name) == wanted, name
    for name, wanted in (
        *(("ActiveControllerCount", 1), ("ActiveBrokerCount", 1), ("FencedBrokerCount", 0)),
        *(("GlobalTopicCount", 2), ("GlobalPartitionCount", 7), ("OfflinePartitionsCount", 0)),
        *(("PreferredReplicaImbalanceCount", 0),),
    ):
        assert metrics.value(CONTROLLER + name) == wanted, name
    cluster.delete_topic("others")
    assert cluster.metrics().value(CONTROLLER + "GlobalPartitionCount") == 1


def test_opening_and_ten_thousand_partitions_register_nothing() -> None:
    with streamlog.open(":memory:", sync="off") as cluster:
        registry = cluster._backend.metrics
        before = len(registry._metrics)
        cluster.create_topic("big", partitions=10_000)
        assert len(registry._metrics) == before
        metrics = cluster.metrics()
        assert metrics.value(REPLICAS + "PartitionCount") == 10_000
        assert len(cluster._backend.broker.partitions) == 0  # asking loads nothing
        assert len(registry._metrics) == before


def test_a_flush_is_a_commit_that_reached_the_disk(tmp_path: Path) -> None:
    flushes = "kafka.log:type=LogFlushStats,name=LogFlushRateAndTimeMs"
    with streamlog.open(tmp_path / "full", sync="full") as cluster:
        cluster.create_topic("orders", partitions=1)
        before = cluster.metrics().value(flushes, "Count")
        with cluster.producer(linger_ms=0) as producer:
            for _ in range(5):
                producer.send("orders", b"x").result()
        after = cluster.metrics()[flushes]
        assert after["Count"] == before + 5 and after["Max"] > 0
    with streamlog.open(tmp_path / "off", sync="off", flush_ms=10_000_000) as cluster:
        cluster.create_topic("orders", partitions=1)
        send(cluster, 10)
        assert cluster.metrics().value(flushes, "Count") == 0


def test_disk_io_is_the_processs(cluster: streamlog.Cluster) -> None:
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    metrics = cluster.metrics()
    for name, field in (
        ("disk-read-bytes", "read_bytes"),
        ("disk-write-bytes", "write_bytes"),
        ("disk-rchar", "rchar"),
    ):
        assert metrics.value(f"kafka.server:type=KafkaServer,name=linux-{name}") >= int(facts[field])


def test_consumers_that_wait_are_in_the_fetch_purgatory(cluster: streamlog.Cluster) -> None:
    consumers = [cluster.consumer() for _ in range(3)]
    threads = []
    for consumer in consumers:
        consumer.assign([TP])
        threads.append(threading.Thread(target=consumer.poll, args=(30,)))
        threads[-1].start()
    while cluster.metrics().value(PURGATORY, delayedOperation="Fetch") < 3:
        pass
    assert cluster.metrics().value(PURGATORY, delayedOperation="Produce") == 0
    send(cluster, 1)
    for thread in threads:
        thread.join()
    assert cluster.metrics().value(PURGATORY, delayedOperation="Fetch") == 0


# -- groups --------------------------------------------------------------------------------------------------


def test_group_states_offsets_and_rebalances(cluster: streamlog.Cluster) -> None:
    cluster.topic("orders").add_partitions(3)
    metrics = cluster.metrics()
    assert metrics.value(GROUPS, "group-count", protocol="classic") == 0
    send(cluster, 30)
    group = cluster.consumer_group("g", ["orders"], enable_auto_commit=False)
    with group.consumer() as consumer:
        while len(consumer.poll()) == 0:
            pass
        metrics = cluster.metrics()
        assert metrics.value(GROUP_STATES + "NumGroupsStable") == 1
        assert metrics.value(GROUP_STATES + "NumGroups") == 1
        assert metrics.value(GROUPS, "group-completed-rebalance-count") == 1
        assert metrics.value(GROUPS, "offset-commit-count") == 0
        consumer.commit({TopicPartition("orders", number): 1 for number in range(3)})
        consumer.commit({TP: 2})
    metrics = cluster.metrics()
    assert metrics.value(GROUPS, "offset-commit-count") == 4
    assert 0 < metrics.value(GROUPS, "offset-commit-rate") <= 4 / 30
    assert metrics.value(GROUP_STATES + "NumOffsets") == 3
    assert metrics.value(GROUP_STATES + "NumGroupsEmpty") == 1
    assert metrics.value(GROUP_STATES + "NumGroupsStable") == 0
    assert metrics.value(GROUPS, "num-partitions", state="active") == 50
    with group.consumer() as first:
        first.poll(0)
        with group.consumer() as second:
            for _ in range(4):
                second.poll(0.01), first.poll(0.01)
            assert second.assignment and first.assignment
    assert cluster.metrics().value(GROUPS, "group-completed-rebalance-count") == 3
    group.delete()
    metrics = cluster.metrics()
    assert metrics.value(GROUP_STATES + "NumGroups") == metrics.value(GROUP_STATES + "NumOffsets") == 0


def test_expired_offsets_are_counted() -> None:
    with streamlog.open(":memory:", offsets_retention_minutes=1) as cluster:
        cluster.create_topic("orders", partitions=2)
        group = cluster.consumer_group("g", ["orders"], enable_auto_commit=False)
        with group.consumer() as consumer:  # so that there is a record of the group itself to forget, too
            consumer.poll(0)
        group.reset_offsets({TopicPartition("orders", 0): 0, TopicPartition("orders", 1): 0})
        backend = cluster._backend
        later = ManualClock(backend.runtime.clock.wall_ms() + 120_000)
        backend.broker._clock = later
        backend.broker._wall_ns = later.wall_ns
        backend.broker.coordinator.expire_offsets()
        metrics = cluster.metrics()
        assert metrics.value(GROUPS, "offset-expiration-count") == 2
        assert metrics.value(GROUP_STATES + "NumOffsets") == 0


def test_a_reopened_cluster_counts_its_groups_and_no_rebalance(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "c") as cluster:
        cluster.create_topic("orders", partitions=2)
        cluster.consumer_group("g", ["orders"]).reset_offsets("earliest")
        with cluster.consumer_group("h", ["orders"], enable_auto_commit=False).consumer() as consumer:
            consumer.poll(0)
    with streamlog.open(tmp_path / "c") as cluster:
        metrics = cluster.metrics()
        assert metrics.value(GROUP_STATES + "NumOffsets") == 2
        assert (
            metrics.value(GROUP_STATES + "NumGroupsEmpty") == 2
        )  # h is remembered until its offsets would expire
        assert metrics.value(GROUPS, "group-completed-rebalance-count") == 0


# -- producers -----------------------------------------------------------------------------------------------


def test_producer_metrics(cluster: streamlog.Cluster) -> None:
    cluster.create_topic("compacted", partitions=1, config={"cleanup.policy": "compact"})
    producer = cluster.producer(compression="zstd", linger_ms=60_000, buffer_memory=1_000_000)
    try:
        producer.send_many("orders", [(b"k", b"x" * 100)] * 50)
        producer.flush()
        producer.send("orders", b"y" * 100)
        producer.flush()
        with pytest.raises(InvalidRecordError):
            producer.send("compacted", b"no key").result()
        size = cluster.topic("orders")[0].size_bytes
        metrics = cluster.metrics()
        whole = metrics[f"{PRODUCER},client-id=producer-1"]
        orders = metrics[f"{PRODUCER_TOPIC},client-id=producer-1,topic=orders"]
        failed = metrics[f"{PRODUCER_TOPIC},client-id=producer-1,topic=compacted"]
        assert (whole["record-send-total"], orders["record-send-total"], failed["record-send-total"]) == (
            52,
            51,
            1,
        )
        assert (whole["record-error-total"], orders["record-error-total"], failed["record-error-total"]) == (
            1,
            0,
            1,
        )
        assert 0 < whole["record-error-rate"] <= 1 / 30 and 0 < whole["record-send-rate"] <= 52 / 30
        assert whole["record-retry-total"] == whole["record-retry-rate"] == 0
        assert orders["byte-total"] == size
        assert whole["request-total"] == 3 and whole["records-per-request-avg"] == pytest.approx(52 / 3)
        assert whole["batch-size-max"] <= size < 3 * whole["batch-size-avg"]
        assert 100 < whole["record-size-avg"] < 120
        assert 0 < whole["compression-rate-avg"] < 0.5
        assert 0 < whole["request-latency-avg"] <= whole["request-latency-max"]
        assert whole["requests-in-flight"] == 0
        assert whole["buffer-total-bytes"] == whole["buffer-available-bytes"] == 1_000_000
    finally:
        producer.close()


def test_every_producer_has_its_own_until_it_is_closed(cluster: streamlog.Cluster) -> None:
    with cluster.producer() as first, cluster.producer() as second:
        first.send("orders", b"x").result()
        metrics = cluster.metrics()
        assert metrics.value(PRODUCER, "record-send-total", **{"client-id": "producer-1"}) == 1
        assert metrics.value(PRODUCER, "record-send-total", **{"client-id": "producer-2"}) == 0
        assert repr(second)
    assert not [name for name in cluster.metrics() if "client-id" in name]
    failing = cluster.producer()
    cluster.create_topic("small", config={"max.message.bytes": 1_000})
    with pytest.raises((DeliveryError, streamlog.StreamlogError)):
        failing.send("small", b"x" * 5_000)
        failing.close()
    failing.close()
    assert not [name for name in cluster.metrics() if "client-id" in name]


# -- consumers -----------------------------------------------------------------------------------------------


def test_fetch_metrics_and_lag(cluster: streamlog.Cluster) -> None:
    cluster.topic("orders").add_partitions(2)
    with cluster.producer(
        linger_ms=60_000
    ) as producer:  # one batch a partition, however slow this machine is
        for partition, count in ((0, 10), (1, 30)):
            producer.send_many(
                "orders", [streamlog.Record(value=b"%100d" % n, partition=partition) for n in range(count)]
            )
    consumer = cluster.consumer(group_id=None)
    consumer.assign([("orders", 0), ("orders", 1)])
    consumer.seek(("orders", 0), 4)
    consumer.seek(("orders", 1), 0)
    tags = {"client-id": "consumer-null-1"}
    metrics = cluster.metrics()
    assert metrics.value(FETCHING, "records-lag-max", **tags) == 30
    assert metrics.value(FETCHING, "records-lead-min", **tags) == 0
    assert metrics.value(FETCHING, "records-lag", **tags, topic="orders", partition=0) == 6
    assert metrics.value(FETCHING, "records-lead", **tags, topic="orders", partition=0) == 4
    read = 0
    while read < 36:
        read += len(consumer.poll())
    metrics = cluster.metrics()
    whole = metrics[f"{FETCHING},client-id=consumer-null-1"]
    assert whole["records-consumed-total"] == 36 and 0 < whole["records-consumed-rate"] <= 36 / 30
    assert whole["bytes-consumed-total"] == sum(cluster.topic("orders")[n].size_bytes for n in (0, 1))
    assert whole["fetch-total"] == 2 and whole["records-per-request-avg"] == 18
    assert 0 < whole["fetch-latency-avg"] <= whole["fetch-latency-max"]
    assert 0 < whole["fetch-size-avg"] < whole["fetch-size-max"]
    assert whole["records-lag-max"] == 0 and whole["records-lead-min"] == 10
    assert metrics.value(FETCHING, "records-consumed-total", **tags, topic="orders") == 36
    assert metrics.value(CONSUMER, "last-poll-seconds-ago", **tags) == 0
    assert not [name for name in metrics if name.startswith(COORDINATION)]  # it has no group
    consumer.close()
    assert not [name for name in cluster.metrics() if "client-id" in name]


def test_coordinator_metrics_of_a_member(cluster: streamlog.Cluster) -> None:
    send(cluster, 10)
    group = cluster.consumer_group("g", ["orders"], enable_auto_commit=False)
    tags = {"client-id": "consumer-g-1"}
    with group.consumer() as consumer:
        assert cluster.metrics().value(COORDINATION, "last-rebalance-seconds-ago", **tags) == -1
        assert cluster.metrics().value(CONSUMER, "last-poll-seconds-ago", **tags) == -1
        consumer.poll()
        consumer.commit()
        membership = consumer._membership
        assert membership is not None
        membership.heartbeat(cluster._backend.runtime.clock.monotonic_ms())
        facts = cluster.metrics()[f"{COORDINATION},client-id=consumer-g-1"]
        wanted = {
            "assigned-partitions": 1,
            "commit-total": 1,
            "join-total": 1,
            "sync-total": 1,
            "rebalance-total": 1,
            "failed-rebalance-total": 0,
            "heartbeat-total": 1,
            "last-heartbeat-seconds-ago": 0,
            "last-rebalance-seconds-ago": 0,
        }
        assert {name: facts[name] for name in wanted} == wanted
        assert (
            0 < facts["commit-rate"] <= 1 / 30
            and 0 < facts["commit-latency-avg"] <= facts["commit-latency-max"]
        )
        assert 0 < facts["rebalance-rate-per-hour"] <= 3_600 / 30
        with group.consumer() as other:
            other.poll(0)
            for _ in range(4):
                consumer.poll(0.01), other.poll(0.01)
            metrics = cluster.metrics()
            assert metrics.value(COORDINATION, "rebalance-total", **tags) == 2
            assert metrics.value(COORDINATION, "rebalance-total", **{"client-id": "consumer-g-2"}) == 1


def test_errors_that_reach_the_user_are_counted(cluster: streamlog.Cluster) -> None:
    send(cluster, 3)
    consumer = cluster.consumer(value_deserializer="int64")
    consumer.assign([TP])
    tags = {"client-id": "consumer-null-1"}
    assert cluster.metrics().value(CONSUMER, "consumer-error-total", **tags) == 0
    with pytest.raises(DeserializationError):
        consumer.poll()
    with pytest.raises(DeserializationError):
        next(iter(consumer))
    metrics = cluster.metrics()
    assert metrics.value(CONSUMER, "consumer-error-total", **tags) == 2
    assert 0 < metrics.value(CONSUMER, "consumer-error-rate", **tags) <= 2 / 30


# -- the whole -----------------------------------------------------------------------------------------------


def test_a_deleted_topic_has_no_metrics(cluster: streamlog.Cluster) -> None:
    send(cluster, 3)
    assert read_all(cluster) == 3
    assert [name for name in cluster.metrics() if "topic=orders" in name]
    cluster.delete_topic("orders")
    assert not [name for name in cluster.metrics() if "topic=orders" in name]
    assert cluster.metrics().value(TOPICS + "MessagesInPerSec") == 3  # what happened, happened
    with pytest.raises(ResourceNotFoundError):
        cluster.metrics().value(TOPICS + "MessagesInPerSec", topic="orders")
    cluster.create_topic("orders", partitions=1)
    send(cluster, 2)
    assert cluster.metrics().value(TOPICS + "MessagesInPerSec", topic="orders") == 2


def test_prometheus_text_has_the_same_numbers(cluster: streamlog.Cluster) -> None:
    send(cluster, 30)
    lines = cluster.metrics().prometheus().splitlines()
    assert 'kafka_server_BrokerTopicMetrics_MessagesInPerSec_Count{topic="orders"} 30' in lines
    assert "kafka_controller_KafkaController_ActiveControllerCount_Value 1" in lines
    assert 'kafka_log_Log_LogEndOffset_Value{partition="0",topic="orders"} 30' in lines
    for line in lines:
        if not line.startswith("#"):
            float(line.rsplit(" ", 1)[1])


def test_reading_by_many_threads_loses_no_count(cluster: streamlog.Cluster) -> None:
    send(cluster, 100, linger_ms=0, batch_size=1_000)
    fetches = 200

    def read() -> None:
        for _ in range(fetches):
            cluster.topic("orders")[0].read(max_records=10)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    metrics = cluster.metrics()
    assert metrics.value(TOPICS + "TotalFetchRequestsPerSec", topic="orders") % (4 * fetches) == 0
    assert metrics.value(TOPICS + "TotalFetchRequestsPerSec") == metrics.value(
        REQUESTS + "RequestsPerSec", request="FetchConsumer"
    )


def test_metrics_can_be_read_while_everything_changes(cluster: streamlog.Cluster) -> None:
    going = True
    errors: list[BaseException] = []

    def change() -> None:
        try:
            number = 0
            while going:
                number += 1
                cluster.create_topic(f"t{number}", partitions=1)
                send(cluster, 5, f"t{number}")
                read_all(cluster, f"t{number}")
                cluster.delete_topic(f"t{number}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=change)]
    threads[0].start()
    for _ in range(100):
        cluster.metrics()
    going = False
    threads[0].join()
    assert not errors
