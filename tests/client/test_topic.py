"""Topics and partitions as users hold them."""

from __future__ import annotations

import pytest

from streamlog import Cluster, Topic, TopicPartition
from streamlog.errors import (
    ConfigError,
    InvalidPartitionsError,
    OffsetOutOfRangeError,
    PolicyViolationError,
    StreamlogError,
    UnknownTopicOrPartitionError,
)


def fill(cluster: Cluster, topic: str, count: int, partition: int = 0, batch: int = 10) -> None:
    with cluster.producer() as producer:
        for number in range(count):
            producer.send(topic, b"%d" % number, key=b"k%d" % (number % 3), partition=partition)
            if number % batch == batch - 1:
                producer.flush()


def test_what_a_partition_says_of_itself(cluster: Cluster, orders: Topic) -> None:
    partition = orders[1]
    assert (partition.topic, partition.number, partition.topic_partition) == (
        "orders",
        1,
        TopicPartition("orders", 1),
    )
    assert (partition.leader, partition.replicas, partition.isr, partition.leader_epoch) == (0, (0,), (0,), 0)
    assert (partition.log_start_offset, partition.high_watermark, partition.log_end_offset) == (0, 0, 0)
    fill(cluster, "orders", 25, partition=1)
    assert (partition.log_start_offset, partition.high_watermark, partition.log_end_offset) == (0, 25, 25)
    assert partition.size_bytes > 0
    assert "orders-1 [0, 25)" in repr(partition)


def test_a_topic_is_a_sequence_of_partitions(orders: Topic) -> None:
    assert len(orders) == 2 and bool(orders)
    assert [partition.number for partition in orders] == [0, 1]
    assert orders.partitions == (orders[0], orders[1])
    assert orders[-1] == orders[1] and orders[0] != orders[1]
    assert len({orders[0], orders[0], orders[1]}) == 2


@pytest.mark.parametrize("number", [2, -3, 99])
def test_unknown_partitions(orders: Topic, number: int) -> None:
    with pytest.raises(UnknownTopicOrPartitionError, match="0 to 1") as caught:
        orders[number]
    assert (caught.value.topic, caught.value.partition) == ("orders", number)


@pytest.mark.parametrize("number", ["0", 0.0, None, True, slice(0, 1)])
def test_what_is_no_partition_number(orders: Topic, number: object) -> None:
    with pytest.raises(ConfigError):
        orders[number]  # type: ignore[index]


def test_topics_are_equal_by_name_and_cluster(cluster: Cluster, orders: Topic) -> None:
    assert cluster.topic("orders") == orders
    assert len({cluster.topic("orders"), orders}) == 1


def test_config(cluster: Cluster) -> None:
    topic = cluster.create_topic("t", config={"retention.ms": 3_600_000})
    assert topic.config["retention.ms"] == "3600000"
    assert topic.config["cleanup.policy"] == "delete"
    assert topic.config_overrides == {"retention.ms": "3600000"}
    topic.alter_config({"retention.ms": None, "max.message.bytes": 500})
    assert topic.config_overrides == {"max.message.bytes": "500"}
    with pytest.raises(ConfigError):
        topic.alter_config({"max.message.bytes": 600, "retention.ms": "x"})
    assert topic.config_overrides == {"max.message.bytes": "500"}


def test_growing(orders: Topic) -> None:
    orders.add_partitions(5)
    assert len(orders) == 5
    for total in (5, 4, 0, -1, True, "6", 6.0):
        with pytest.raises((InvalidPartitionsError, ConfigError)):
            orders.add_partitions(total)  # type: ignore[arg-type]
    assert len(orders) == 5


def test_a_deleted_topic_is_unknown_through_old_handles(cluster: Cluster, orders: Topic) -> None:
    partition, identity = orders[0], orders.topic_id
    fill(cluster, "orders", 3)
    orders.delete()
    for call in (
        lambda: len(orders),
        lambda: partition.high_watermark,
        partition.read,
        orders.delete,
        lambda: orders.config,
    ):
        with pytest.raises(UnknownTopicOrPartitionError):
            call()  # type: ignore[no-untyped-call]
    assert "deleted" in repr(orders) and repr(partition) == "<Partition orders-0 deleted>"
    again = cluster.create_topic("orders", partitions=1)
    assert again.topic_id != identity
    assert (partition.high_watermark, partition.read()) == (0, [])


# -- reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "count"), [(0, 25), (3, 22), (9, 16), (10, 15), (24, 1), (25, 0)])
def test_read_from_any_offset(cluster: Cluster, orders: Topic, offset: int, count: int) -> None:
    fill(cluster, "orders", 25)
    records = orders[0].read(offset)
    assert [record.offset for record in records] == list(range(offset, offset + count))
    assert [record.value for record in records] == [b"%d" % number for number in range(offset, 25)]
    assert {(record.topic, record.partition) for record in records} <= {("orders", 0)}


@pytest.mark.parametrize("most", [1, 2, 10, 11, 24, 1000])
def test_read_at_most(cluster: Cluster, orders: Topic, most: int) -> None:
    fill(cluster, "orders", 25)
    assert len(orders[0].read(1, max_records=most)) == min(most, 24)
    assert len(orders[0].read()) == 25


def test_reading_above_the_end(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 5)
    with pytest.raises(OffsetOutOfRangeError) as caught:
        orders[0].read(6)
    assert (caught.value.offset, caught.value.log_start_offset, caught.value.log_end_offset) == (6, 0, 5)
    assert isinstance(caught.value, LookupError) and caught.value.code == 1


@pytest.mark.parametrize(
    "arguments", [{"offset": -1}, {"offset": "0"}, {"offset": True}, {"max_records": 0}, {"max_records": 1.0}]
)
def test_impossible_arguments_of_read(orders: Topic, arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        orders[0].read(**arguments)  # type: ignore[arg-type]
    assert caught.value.option == next(iter(arguments))


# -- deleting records --------------------------------------------------------------------------------------


def test_deleted_records_are_gone_at_once(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 25)
    assert orders[0].delete_records(13) == 13
    assert orders[0].log_start_offset == 13
    assert [record.offset for record in orders[0].read(13)] == list(range(13, 25))
    assert [record.offset for record in orders[0].read()] == list(range(13, 25))  # 0: from wherever it begins
    with pytest.raises(OffsetOutOfRangeError):
        orders[0].read(12)
    assert orders[0].delete_records(5) == 13  # never back
    assert orders[0].delete_records(-1) == 25
    assert orders[0].read() == []


@pytest.mark.parametrize("before", [26, -2, "3", True, 1.0, None])
def test_impossible_deletions_change_nothing(cluster: Cluster, orders: Topic, before: object) -> None:
    fill(cluster, "orders", 25)
    with pytest.raises(StreamlogError):
        orders[0].delete_records(before)  # type: ignore[arg-type]
    assert orders[0].log_start_offset == 0


def test_compacted_topics_refuse_deletions(cluster: Cluster) -> None:
    topic = cluster.create_topic("t", config={"cleanup.policy": "compact"})
    fill(cluster, "t", 3)
    with pytest.raises(PolicyViolationError):
        topic[0].delete_records(1)
