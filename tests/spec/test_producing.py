"""DESIGN section 2, "Producing", and SEMANTICS 1.2, sentence by sentence as far as one broker shows them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import streamlog
from streamlog import Cluster, Topic
from streamlog.client.delivery import SendFuture
from streamlog.client.partitioner import murmur2
from streamlog.errors import (
    BufferExhaustedError,
    ConfigError,
    DeliveryError,
    InvalidRecordError,
    RecordTooLargeError,
)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with streamlog.open(":memory:", sync="off") as cluster:
        cluster.create_topic("t", partitions=3)
        cluster.create_topic("keyed", config={"cleanup.policy": "compact"})
        yield cluster


@pytest.fixture
def topic(cluster: Cluster) -> Topic:
    return cluster.topic("t")


# -- DESIGN ------------------------------------------------------------------------------------------------


def test_leaving_a_with_producer_flushes(cluster: Cluster, topic: Topic) -> None:
    with cluster.producer(linger_ms=60_000) as producer:
        producer.send("t", b"x", partition=0)
        assert topic[0].high_watermark == 0
    assert topic[0].high_watermark == 1


@pytest.mark.parametrize("how", ["flush", "leave"])
def test_flush_and_leaving_raise_if_any_send_failed_whose_future_nobody_read(
    cluster: Cluster, how: str
) -> None:
    producer = cluster.producer(linger_ms=60_000)
    read = producer.send("keyed", b"read")
    producer.send("keyed", b"unread")
    assert isinstance(read.exception(), InvalidRecordError)
    with pytest.raises(DeliveryError) as caught:
        producer.flush() if how == "flush" else producer.__exit__(None, None, None)
    assert isinstance(caught.value.__cause__, InvalidRecordError)  # first cause,
    assert caught.value.count == 1  # count,
    assert [record.value for record in caught.value.failed] == [b"unread"]  # the failed records


def test_if_another_exception_is_in_flight_it_is_attached_to_that_one(cluster: Cluster) -> None:
    with pytest.raises(ZeroDivisionError) as caught, cluster.producer(linger_ms=60_000) as producer:
        producer.send("keyed", b"x")
        1 / 0  # noqa: B018
    assert isinstance(caught.value.__context__, DeliveryError)


def test_a_full_buffer_blocks_up_to_max_block_ms(cluster: Cluster, topic: Topic) -> None:
    turn = cluster._backend.broker._lock
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with turn:
            held.set()
            release.wait(20)

    holder = threading.Thread(target=hold)
    producer = cluster.producer(buffer_memory=1000, batch_size=0, max_block_ms=20_000)
    holder.start()
    held.wait()
    for number in range(2):
        producer.send("t", b"%0500d" % number, partition=0)
    threading.Timer(0.02, release.set).start()
    producer.send("t", b"blocked, then taken", partition=0).result()
    holder.join()
    assert topic[0].high_watermark == 3 and issubclass(BufferExhaustedError, TimeoutError)
    producer.close()


def test_result_on_an_unsent_record_sends_at_once(cluster: Cluster) -> None:
    with cluster.producer(linger_ms=60_000) as producer:
        assert producer.send("t", b"x").result(timeout=10).offset == 0


# -- SEMANTICS 1.2 -----------------------------------------------------------------------------------------


def test_acks_other_than_0_1_all_are_refused(cluster: Cluster) -> None:
    for acks in (2, -2, "some"):
        with pytest.raises(ConfigError):
            cluster.producer(acks=acks)
    for acks in (0, 1, -1, "all", "0", "1", "-1"):
        cluster.producer(acks=acks).close()


def test_acks_0_tells_no_offset_but_still_every_failure(cluster: Cluster, topic: Topic) -> None:
    """Kafka answers nothing: the client sees offset -1. What fails is told all the same (differences from Kafka)."""
    with cluster.producer(acks=0) as producer:
        metadata = producer.send("t", b"x", partition=1, timestamp=7).result()
        assert (metadata.topic, metadata.partition, metadata.offset, metadata.timestamp) == ("t", 1, -1, 7)
        assert [sent.offset for sent in producer.send_many("t", [(b"k", b"v")] * 3).result()] == [-1] * 3
        with pytest.raises(InvalidRecordError):
            producer.send("keyed", b"no key").result()
    assert sum(partition.log_end_offset for partition in topic.partitions) == 4
    with cluster.producer(acks=1) as producer:
        assert producer.send("t", b"x", partition=1).result().offset == topic[1].log_end_offset - 1


def test_idempotence_conflicts(cluster: Cluster) -> None:
    assert cluster.producer().config.enable_idempotence
    assert not cluster.producer(acks=1).config.enable_idempotence
    assert not cluster.producer(retries=0).config.enable_idempotence
    for conflict in ({"acks": 1}, {"retries": 0}, {"max_in_flight_requests_per_connection": 6}):
        with pytest.raises(ConfigError):
            cluster.producer(enable_idempotence=True, **conflict)


def test_delivery_timeout_must_cover_linger_and_request_timeout(cluster: Cluster) -> None:
    with pytest.raises(ConfigError):
        cluster.producer(delivery_timeout_ms=10, linger_ms=5, request_timeout_ms=10)
    assert (
        cluster.producer(linger_ms=100_000, request_timeout_ms=100_000).config.delivery_timeout_ms == 200_000
    )


def test_a_full_batch_goes_at_once(cluster: Cluster, topic: Topic) -> None:
    with cluster.producer(linger_ms=60_000, batch_size=100) as producer:
        producer.send("t", b"x" * 60, partition=0)
        assert topic[0].high_watermark == 0
        producer.send("t", b"x" * 60, partition=0)
        assert topic[0].high_watermark == 2


def test_max_request_size_caps_a_record_at_send(cluster: Cluster) -> None:
    with cluster.producer(compression="zstd") as producer, pytest.raises(RecordTooLargeError):
        producer.send("t", b"x" * 1_048_577)


def test_order_is_kept_per_partition(cluster: Cluster, topic: Topic) -> None:
    with cluster.producer(batch_size=300) as producer:
        for number in range(3000):
            producer.send("t", b"%d" % number, partition=number % 3)
    for partition in topic:
        found = [int(record.value or b"") for record in partition.read(max_records=5000)]
        assert found == sorted(found) and len(found) == 1000


def test_callbacks_run_in_another_thread_in_order_per_partition(cluster: Cluster) -> None:
    called: list[tuple[int, int]] = []
    threads: set[int] = set()

    def note(future: SendFuture) -> None:
        metadata = future.result()
        called.append((metadata.partition, metadata.offset))
        threads.add(threading.get_ident())

    with cluster.producer(batch_size=300, linger_ms=1) as producer:
        futures = [producer.send("t", b"x" * 30, partition=number % 3) for number in range(300)]
        for future in futures:
            future.add_done_callback(note)
        while len(called) < 300:
            pass
    for partition in range(3):
        assert [offset for number, offset in called if number == partition] == list(range(100))
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_an_explicit_partition_beats_the_partitioner(cluster: Cluster) -> None:
    with cluster.producer(partitioner=lambda topic, key, value, count: 0) as producer:
        assert producer.send("t", b"x", key=b"k", partition=2).result().partition == 2
        assert producer.send("t", b"x", key=b"k").result().partition == 0


def test_murmur2_places_keys_over_all_partitions_as_java_does(cluster: Cluster) -> None:
    with cluster.producer(partitioner="murmur2") as producer:
        for key, partition in ((b"user-1", 2), (b"foobar", 0), (b"key", 1)):  # SEMANTICS 3.9, N=3
            assert producer.send("t", b"x", key=key).result().partition == partition
            [metadata] = producer.send_many("t", [(key, b"x")]).result()
            assert metadata.partition == partition == (murmur2(key) & 0x7FFFFFFF) % 3


def test_an_empty_key_is_hashed_only_none_is_keyless(cluster: Cluster) -> None:
    for partitioner in ("murmur2", "crc32"):
        with cluster.producer(partitioner=partitioner, batch_size=0) as producer:
            assert len({producer.send("t", b"x", key=b"").result().partition for _ in range(30)}) == 1
            assert len({producer.send("t", b"x").result().partition for _ in range(30)}) == 3


def test_without_a_key_records_stick_to_a_partition_for_a_batch(cluster: Cluster) -> None:
    with cluster.producer(batch_size=1000, linger_ms=60_000) as producer:
        futures = [producer.send("t", b"x" * 92) for _ in range(600)]
        producer.flush()
        partitions = [future.result().partition for future in futures]
    runs = [
        partitions[start : start + 10] for start in range(0, 600, 10)
    ]  # ten would miss one of three in 20 runs
    assert all(len(set(run)) == 1 for run in runs) and len(set(partitions)) == 3


def test_partitioner_ignore_keys(cluster: Cluster) -> None:
    with cluster.producer(partitioner_ignore_keys=True, batch_size=0) as producer:
        assert len({producer.send("t", b"x", key=b"k").result().partition for _ in range(30)}) == 3


def test_a_null_value_is_a_tombstone(cluster: Cluster) -> None:
    with cluster.producer(value_serializer="json") as producer:
        producer.send("keyed", None, key=b"k").result()
    [record] = cluster.topic("keyed")[0].read()
    assert record.value is None
