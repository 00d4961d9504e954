"""The producer from the user's side: sending, placing, stamping, refusing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from itertools import pairwise

import pytest

import streamlog
from streamlog import Cluster, Record, RecordMetadata, Topic
from streamlog.errors import (
    BufferExhaustedError,
    ClosedError,
    ConfigError,
    InvalidRecordError,
    InvalidTimestampError,
    InvalidTopicError,
    RecordTooLargeError,
    SerializationError,
    StreamlogTimeoutError,
    UnknownTopicOrPartitionError,
)


def values(topic: Topic, partition: int = 0) -> list[bytes | None]:
    return [record.value for record in topic[partition].read(max_records=1_000_000)]


# -- what is sent is what is read --------------------------------------------------------------------------


def test_every_field_arrives(cluster: Cluster, orders: Topic) -> None:
    headers = [("trace", b"1"), ("trace", None), ("", b"")]
    with cluster.producer() as producer:
        metadata = producer.send(
            "orders", b"v", key=b"k", headers=headers, partition=1, timestamp=1234
        ).result()
    assert metadata == RecordMetadata("orders", 1, 0, 1234)
    assert orders[1].read() == [Record("orders", 1, 0, 1234, b"k", b"v", tuple(headers))]


def test_a_producer_stamps_with_its_own_clock(cluster: Cluster, single: Topic) -> None:
    before = time.time_ns() // 1_000_000
    with cluster.producer() as producer:
        stamped = producer.send("single", b"x").result().timestamp
    assert before <= stamped <= time.time_ns() // 1_000_000
    assert single[0].read()[0].timestamp == stamped


def test_log_append_time_replaces_the_producers(cluster: Cluster) -> None:
    topic = cluster.create_topic("t", config={"message.timestamp.type": "LogAppendTime"})
    before = time.time_ns() // 1_000_000
    with cluster.producer() as producer:
        futures = [producer.send("t", b"x", timestamp=5), producer.send("t", b"y", timestamp=7)]
        stamped = {future.result().timestamp for future in futures}
    assert len(stamped) == 1 and min(stamped) >= before
    assert {record.timestamp for record in topic[0].read()} == stamped


def test_log_append_time_on_a_compacted_topic(cluster: Cluster) -> None:
    topic = cluster.create_topic(
        "t", config={"message.timestamp.type": "LogAppendTime", "cleanup.policy": "compact"}
    )
    with cluster.producer() as producer:
        producer.send_many("t", [(b"a", b"1"), (b"a", b"2"), (b"b", None)])
        producer.flush()
        producer.send("t", b"3", key=b"a").result()
    cluster.clean()
    assert [(record.offset, record.key, record.value) for record in topic[0].read()] == [
        (1, b"a", b"2"),  # the newer one is in the last batch, which is not cleaned yet
        (2, b"b", None),
        (3, b"a", b"3"),
    ]


def test_tombstones_empty_values_and_empty_keys_are_three_things(cluster: Cluster, single: Topic) -> None:
    sent = [(b"k", None), (b"k", b""), (b"", b"v"), (None, b"v"), (None, None)]
    with cluster.producer() as producer:
        for key, value in sent:
            producer.send("single", value, key=key)
        producer.send_many("single", sent)
    assert [(record.key, record.value) for record in single[0].read()] == sent * 2


def test_other_buffers_are_copied(cluster: Cluster, single: Topic) -> None:
    buffer = bytearray(b"abc")
    with cluster.producer() as producer:
        producer.send("single", memoryview(buffer), key=buffer, headers={"h": buffer})  # type: ignore[arg-type]
        buffer[:] = b"xyz"
    [record] = single[0].read()
    assert (record.key, record.value, record.headers) == (b"abc", b"abc", (("h", b"abc"),))


def test_headers_of_some_records_of_a_batch(cluster: Cluster, single: Topic) -> None:
    with cluster.producer(linger_ms=10_000) as producer:
        producer.send("single", b"0")
        producer.send("single", b"1", headers=[("a", b"1")])
        producer.send("single", b"2", headers=())
        producer.send("single", b"3", headers={"b": None})
    assert [record.headers for record in single[0].read()] == [(), (("a", b"1"),), (), (("b", None),)]


def test_serializers(cluster: Cluster, single: Topic) -> None:
    with cluster.producer(key_serializer="str", value_serializer="json") as producer:
        producer.send("single", {"a": 1}, key="k")
        producer.send_many("single", [("k2", [1]), (None, None)])
        with pytest.raises(SerializationError):
            producer.send("single", object(), key="k")
        with pytest.raises(SerializationError):
            producer.send_many("single", [("k", 1), (7, 1)])
    assert [(record.key, record.value) for record in single[0].read()] == [
        (b"k", b'{"a":1}'),
        (b"k2", b"[1]"),
        (None, None),
    ]


# -- send_many ---------------------------------------------------------------------------------------------


def test_send_many_takes_pairs_and_records(cluster: Cluster, orders: Topic) -> None:
    with cluster.producer() as producer:
        sent = producer.send_many(
            "orders",
            [
                (b"k", b"pair"),
                Record(value=b"record", key=b"x", partition=1, timestamp=9, headers=(("h", b"1"),)),
                (None, b"p"),
            ],
        )
        assert len(sent) == 3
        found = sent.result()
    record = orders[1].read(found[1].offset)[0]
    assert (record.value, record.timestamp, record.headers) == (b"record", 9, (("h", b"1"),))


def test_send_many_takes_any_iterable_and_none_at_all(cluster: Cluster, single: Topic) -> None:
    with cluster.producer() as producer:
        assert len(producer.send_many("single", ((None, b"%d" % i) for i in range(5)))) == 5
        assert list(producer.send_many("single", [])) == [] == producer.send_many("single", []).result()
    assert values(single) == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("count", [7, 2500])
@pytest.mark.parametrize("keyed", [True, False])
def test_the_futures_of_send_many_are_in_the_order_of_the_items(
    cluster: Cluster, count: int, keyed: bool
) -> None:
    topic = cluster.create_topic("t", partitions=3)
    items = [(b"k%d" % i if keyed else None, b"%d" % i) for i in range(count)]
    with cluster.producer(batch_size=700) as producer:
        found = producer.send_many("t", items).result()
    stored = {
        (number, record.offset): record.value
        for number in range(3)
        for record in topic[number].read(max_records=9999)
    }
    assert [stored[metadata.partition, metadata.offset] for metadata in found] == [
        value for _, value in items
    ]
    assert len(stored) == count


@pytest.mark.parametrize(
    "items", [[b"x"], [(b"k",)], [(b"a", b"b", b"c")], ["kv"], [None], {"kv": 1}, [(b"k", 7)], [(7, b"v")]]
)
def test_what_is_no_item(cluster: Cluster, single: Topic, items: object) -> None:
    with cluster.producer() as producer, pytest.raises(SerializationError):
        producer.send_many("single", items)  # type: ignore[arg-type]
    assert values(single) == []


# -- placing -----------------------------------------------------------------------------------------------


def test_equal_keys_stay_together_however_they_are_sent(cluster: Cluster) -> None:
    topic = cluster.create_topic("t", partitions=7)
    with cluster.producer() as producer:
        producer.send_many("t", [(b"%d" % (i % 50), b"many") for i in range(500)])
        for i in range(500):
            producer.send("t", b"one", key=b"%d" % (i % 50))
    places: dict[bytes | None, set[int]] = {}
    for number in range(7):
        for record in topic[number].read(max_records=9999):
            places.setdefault(record.key, set()).add(number)
    assert len(places) == 50 and all(len(numbers) == 1 for numbers in places.values())
    assert len(set.union(*places.values())) == 7


def test_records_without_a_key_stay_together_for_a_batch_and_reach_all_partitions(cluster: Cluster) -> None:
    topic = cluster.create_topic("t", partitions=4)
    with cluster.producer(batch_size=200) as producer:
        partitions = [producer.send("t", b"x" * 50).result().partition for _ in range(3)]
        futures = [producer.send("t", b"x" * 50) for _ in range(400)]
        partitions = [future.result().partition for future in futures]
    switches = sum(left != right for left, right in pairwise(partitions))
    assert set(partitions) == {0, 1, 2, 3}
    assert switches < len(partitions) / 2, "sticky: not a new partition for each record"
    assert sum(topic[number].high_watermark for number in range(4)) == 403


def test_one_big_send_many_without_keys_reaches_all_partitions(cluster: Cluster) -> None:
    topic = cluster.create_topic("t", partitions=4)
    with cluster.producer(batch_size=1000) as producer:
        producer.send_many("t", [(None, b"x" * 50)] * 20_000)
    assert all(topic[number].high_watermark > 0 for number in range(4))


@pytest.mark.parametrize("partitioner", ["murmur2", "round_robin", "sticky", "crc32"])
def test_every_partitioner_places_singles_and_many(cluster: Cluster, partitioner: str) -> None:
    topic = cluster.create_topic("t", partitions=3)
    with cluster.producer(partitioner=partitioner) as producer:
        for i in range(30):
            producer.send("t", b"x", key=b"%d" % i)
        producer.send_many("t", [(b"%d" % i, b"y") for i in range(30)])
    assert sum(topic[number].high_watermark for number in range(3)) == 60


def test_a_callable_partitioner(cluster: Cluster, orders: Topic) -> None:
    with cluster.producer(partitioner=lambda topic, key, value, count: int(value[-1:]) % count) as producer:
        producer.send_many("orders", [(None, b"%d" % i) for i in range(4)])
        producer.send("orders", b"5")
    assert (values(orders, 0), values(orders, 1)) == ([b"0", b"2"], [b"1", b"3", b"5"])


@pytest.mark.parametrize("partition", [2, -1, 99])
def test_unknown_partitions(cluster: Cluster, orders: Topic, partition: int) -> None:
    with cluster.producer() as producer, pytest.raises(UnknownTopicOrPartitionError) as caught:
        producer.send("orders", b"x", partition=partition)
    assert (caught.value.topic, caught.value.partition) == ("orders", partition)


@pytest.mark.parametrize("partition", ["0", 0.0, True, b"0", [0]])
def test_what_is_no_partition(cluster: Cluster, orders: Topic, partition: object) -> None:
    with cluster.producer() as producer, pytest.raises(ConfigError) as caught:
        producer.send("orders", b"x", partition=partition)  # type: ignore[arg-type]
    assert caught.value.option == "partition"


# -- refusing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", ["", "a b", "x" * 250, "..", 7, None, b"orders", ["orders"]])
def test_impossible_topic_names(cluster: Cluster, orders: Topic, topic: object) -> None:
    with cluster.producer() as producer:
        with pytest.raises(InvalidTopicError) as caught:
            producer.send(topic, b"x")  # type: ignore[arg-type]
        with pytest.raises(InvalidTopicError):
            producer.send_many(topic, [(None, b"x")])  # type: ignore[arg-type]
    assert caught.value.code == 17


def test_internal_topics_are_refused(cluster: Cluster, single: Topic) -> None:
    cluster.consumer_group("g", ["single"]).reset_offsets("earliest")
    with cluster.producer() as producer, pytest.raises(InvalidTopicError):
        producer.send("__consumer_offsets", b"x").result()


@pytest.mark.parametrize("wrong", ["text", 7, 1.5, {"a": 1}, object()])
def test_without_serializers_only_bytes_and_none(cluster: Cluster, single: Topic, wrong: object) -> None:
    with cluster.producer() as producer:
        with pytest.raises(SerializationError, match="value_serializer"):
            producer.send("single", wrong)
        with pytest.raises(SerializationError, match="key_serializer"):
            producer.send("single", b"x", key=wrong)
    assert values(single) == []


@pytest.mark.parametrize(
    "headers",
    ["ab", b"ab", 7, [("a",)], [("a", "b")], [(b"a", b"b")], [("a", b"b", b"c")], ["ab"], [("\ud800", b"x")]],
)
def test_what_are_no_headers(cluster: Cluster, single: Topic, headers: object) -> None:
    with cluster.producer() as producer:
        with pytest.raises(SerializationError):
            producer.send("single", b"x", headers=headers)  # type: ignore[arg-type]
        producer.send("single", b"next")
    assert [(record.value, record.headers) for record in single[0].read()] == [(b"next", ())]


@pytest.mark.parametrize("timestamp", [-1, "1", 1.0, True, 2**63])
def test_what_is_no_timestamp(cluster: Cluster, single: Topic, timestamp: object) -> None:
    with cluster.producer() as producer, pytest.raises(InvalidTimestampError) as caught:
        producer.send("single", b"x", timestamp=timestamp)  # type: ignore[arg-type]
    assert caught.value.timestamp == timestamp


def test_timestamps_too_far_ahead(cluster: Cluster, single: Topic) -> None:
    with cluster.producer() as producer, pytest.raises(InvalidTimestampError) as caught:
        producer.send("single", b"x", timestamp=time.time_ns() // 1_000_000 + 7_200_000).result()
    assert caught.value.topic == "single"


def test_oversized_records(cluster: Cluster, single: Topic) -> None:
    with cluster.producer(max_request_size=1000) as producer:
        for call in (
            lambda: producer.send("single", b"x" * 1001),
            lambda: producer.send("single", b"x", key=b"k" * 1001),
            lambda: producer.send("single", b"x", headers=[("h", b"y" * 1001)]),
            lambda: producer.send_many("single", [(None, b"ok"), (None, b"x" * 1001)]),
        ):
            with pytest.raises(RecordTooLargeError) as caught:
                call()
            assert (caught.value.topic, caught.value.allowed_bytes) == ("single", 1000)
            assert caught.value.size_bytes > 1000
    assert values(single) == []


def test_a_null_key_on_a_compacted_topic(cluster: Cluster) -> None:
    topic = cluster.create_topic("t", config={"cleanup.policy": "compact"})
    with cluster.producer() as producer:
        with pytest.raises(InvalidRecordError) as caught:
            producer.send("t", b"x").result()
        producer.send("t", b"fine", key=b"k").result()
    assert (caught.value.code, caught.value.topic) == (87, "t")
    assert values(topic) == [b"fine"]


# -- batches and the topic's own limit ---------------------------------------------------------------------


def test_a_large_record_does_not_take_small_ones_down(cluster: Cluster, single: Topic) -> None:
    with cluster.producer(linger_ms=10_000) as producer:
        for _ in range(1000):
            producer.send("single", b"s" * 100)
        producer.send("single", b"L" * 1_000_000)
        producer.send("single", b"last")
        producer.send_many(
            "single", [(None, b"s" * 100)] * 1000 + [(None, b"L" * 1_000_000)] + [(None, b"s")]
        )
    found = values(single)
    assert [len(value or b"") for value in found] == [100] * 1000 + [1_000_000, 4] + [100] * 1000 + [
        1_000_000,
        1,
    ]


@pytest.mark.parametrize("many", [True, False])
def test_batches_stay_below_the_topics_limit(cluster: Cluster, many: bool) -> None:
    topic = cluster.create_topic("t", config={"max.message.bytes": 2000})
    sent = [(b"%d" % i, bytes([65 + i % 26]) * (1 + i * 7 % 300)) for i in range(500)]
    with cluster.producer(linger_ms=10_000) as producer:
        if many:
            producer.send_many("t", sent)
        else:
            for number, (key, value) in enumerate(sent):
                producer.send("t", value, key=key, timestamp=number * 977 % 100_000)
    assert [(record.key, record.value) for record in topic[0].read(max_records=9999)] == sent


def test_only_the_record_that_is_too_large_for_the_topic_fails(cluster: Cluster) -> None:
    topic = cluster.create_topic("t", config={"max.message.bytes": 2000})
    with cluster.producer(linger_ms=10_000) as producer:
        futures = [producer.send("t", b"x" * size) for size in (10, 5000, 20)]
        futures += producer.send_many("t", [(None, b"x" * size) for size in (30, 5000, 40)])
        errors = [type(future.exception()) for future in futures]
    assert errors == [type(None), RecordTooLargeError, type(None)] * 2
    assert [len(value or b"") for value in values(topic)] == [10, 20, 30, 40]


def test_a_batch_goes_when_it_is_full(cluster: Cluster, single: Topic) -> None:
    with cluster.producer(linger_ms=60_000, batch_size=1000) as producer:
        futures = [producer.send("single", b"x" * 92) for _ in range(10)]
        assert futures[0].done() and single[0].high_watermark == 10
        assert not producer.send("single", b"x").done()


@pytest.mark.parametrize("options", [{"linger_ms": 0}, {"batch_size": 0}, {"batch_size": 1}])
def test_without_lingering_each_record_goes_at_once(
    cluster: Cluster, single: Topic, options: dict[str, int]
) -> None:
    with cluster.producer(**options) as producer:
        for number in range(3):
            producer.send("single", b"x")
            assert single[0].high_watermark == number + 1
        producer.send_many("single", [(None, b"x")] * 4)
        assert single[0].high_watermark == 7


def test_lingering_ends_by_itself(cluster: Cluster, single: Topic) -> None:
    with cluster.producer(linger_ms=20) as producer:
        arrived = threading.Event()
        producer.send("single", b"x").add_done_callback(lambda _: arrived.set())
        assert arrived.wait(10)
        arrived.clear()
        producer.send("single", b"y").add_done_callback(lambda _: arrived.set())  # the thread sleeps by now
        assert arrived.wait(10)
    assert values(single) == [b"x", b"y"]


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_compression(cluster: Cluster, single: Topic, codec: str) -> None:
    with cluster.producer(compression=codec) as producer:
        producer.send_many("single", [(b"k", b"aaaaaaaa" * 10)] * 1000)
    assert values(single) == [b"aaaaaaaa" * 10] * 1000
    assert codec == "none" or single[0].size_bytes < 40_000


@pytest.mark.parametrize("acks", ["all", 1, 0])
def test_acks(cluster: Cluster, single: Topic, acks: object) -> None:
    with cluster.producer(acks=acks) as producer:
        producer.send("single", b"x").result()
    assert values(single) == [b"x"]


# -- the buffer --------------------------------------------------------------------------------------------


def test_a_full_buffer_blocks_and_then_refuses_the_record_it_did_not_take(
    cluster: Cluster, single: Topic
) -> None:
    turn = cluster._backend.broker._lock
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with turn:
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    with cluster.producer(buffer_memory=3000, max_block_ms=30, batch_size=1000) as producer:
        holder.start()
        held.wait()
        taken = 0
        with pytest.raises(BufferExhaustedError) as caught:
            for _ in range(1000):
                producer.send("single", b"%0492d" % taken)
                taken += 1
        with pytest.raises(BufferExhaustedError):
            producer.send_many("single", [(None, b"y")])
        assert isinstance(caught.value, TimeoutError) and caught.value.allowed_bytes == 3000
        release.set()
        holder.join()
        producer.send("single", b"later").result()
        assert values(single) == [b"%0492d" % number for number in range(taken)] + [b"later"]
        assert 6 <= taken <= 8


def test_flush_and_result_time_out_and_may_be_asked_again(cluster: Cluster, single: Topic) -> None:
    turn = cluster._backend.broker._lock
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with turn:
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    with cluster.producer() as producer:
        holder.start()
        held.wait()
        future = producer.send("single", b"x")
        with pytest.raises(StreamlogTimeoutError):
            future.result(timeout=0.02)
        with pytest.raises(StreamlogTimeoutError):
            future.exception(timeout=0)
        with pytest.raises(StreamlogTimeoutError):
            producer.flush(timeout=0.02)
        assert not future.done()
        release.set()
        holder.join()
        assert future.result().offset == 0


# -- topics that change ------------------------------------------------------------------------------------


def test_a_topic_that_grows_is_used_at_once(cluster: Cluster, orders: Topic) -> None:
    with cluster.producer(linger_ms=10_000) as producer:
        producer.send_many("orders", [(b"%d" % i, b"before") for i in range(50)])
        orders.add_partitions(6)
        producer.send_many("orders", [(b"%d" % i, b"after") for i in range(50)])
        producer.send("orders", b"x", partition=5)
    found = Counter(record.value for partition in orders for record in partition.read(max_records=999))
    assert found == {b"before": 50, b"after": 50, b"x": 1}
    assert all(partition.high_watermark > 0 for partition in orders)


def test_a_topic_deleted_under_the_producer(cluster: Cluster, orders: Topic) -> None:
    with cluster.producer(linger_ms=10_000) as producer:
        future = producer.send("orders", b"x")
        orders.delete()
        with pytest.raises(UnknownTopicOrPartitionError):
            producer.send("orders", b"y")
        assert isinstance(future.exception(), UnknownTopicOrPartitionError)


def test_a_topic_made_anew_with_fewer_partitions(cluster: Cluster, orders: Topic) -> None:
    with cluster.producer(linger_ms=10_000) as producer:
        producer.send("orders", b"zero", partition=0)
        lost = producer.send("orders", b"one", partition=1)
        orders.delete()
        again = cluster.create_topic("orders", partitions=1)
        producer.send("orders", b"new").result()
        assert isinstance(lost.exception(), UnknownTopicOrPartitionError)
        with pytest.raises(UnknownTopicOrPartitionError):
            producer.send("orders", b"x", partition=1)
    assert b"new" in values(again)


def test_options_that_change_are_followed(cluster: Cluster, single: Topic) -> None:
    with cluster.producer(linger_ms=10_000) as producer:
        producer.send("single", b"no key").result()
        single.alter_config({"cleanup.policy": "compact"})
        assert isinstance(producer.send("single", b"no key").exception(), InvalidRecordError)


# -- threads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["send", "send_many", "acked"])
def test_eight_threads_lose_double_and_reorder_nothing(cluster: Cluster, kind: str) -> None:
    topic = cluster.create_topic("t", partitions=3)
    each = {"send": 4000, "send_many": 6000, "acked": 150}[kind]
    failures: list[BaseException] = []

    def work(name: int) -> None:
        try:
            if kind == "send_many":
                for start in range(0, each, 40):
                    producer.send_many("t", [(None, b"%d %d" % (name, i)) for i in range(start, start + 40)])
            for i in range(each if kind != "send_many" else 0):
                future = producer.send("t", b"%d %d" % (name, i), partition=i % 3)
                if kind == "acked":
                    future.result()
        except BaseException as error:
            failures.append(error)

    with cluster.producer(batch_size=2000, linger_ms=1) as producer:
        threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    seen: Counter[tuple[int, int]] = Counter()
    for partition in topic:
        last = dict.fromkeys(range(8), -1)
        for record in partition.read(max_records=1_000_000):
            name, number = map(int, (record.value or b"").split())
            assert number > last[name], "reordered within a partition"
            last[name] = number
            seen[name, number] += 1
    assert len(seen) == 8 * each and set(seen.values()) == {1}


def test_threads_that_meet_a_topic_at_once_lose_nothing(cluster: Cluster) -> None:
    for attempt in range(30):
        name = f"t{attempt}"
        topic = cluster.create_topic(name)
        start = threading.Barrier(8)

        def work(name: str = name, start: threading.Barrier = start) -> None:
            start.wait()
            for _ in range(5):
                producer.send(name, b"x")

        with cluster.producer(linger_ms=10_000) as producer:
            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert topic[0].high_watermark == 40


def test_a_topic_that_keeps_growing_under_eight_threads_loses_nothing(cluster: Cluster) -> None:
    topic = cluster.create_topic("t")
    done = threading.Event()
    sent: Counter[int] = Counter()

    def work(name: int) -> None:
        while not done.is_set():
            producer.send("t", b"%d" % name, key=b"%d" % (sent[name] % 20))
            sent[name] += 1

    with cluster.producer(linger_ms=10_000) as producer:
        threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for total in range(2, 30):
            topic.add_partitions(total)
        done.set()
        for thread in threads:
            thread.join()
    assert sum(partition.high_watermark for partition in topic) == sum(sent.values())


def test_close_while_others_send_loses_nothing_that_was_taken(cluster: Cluster, single: Topic) -> None:
    for _ in range(20):
        before = single[0].high_watermark
        producer = cluster.producer(linger_ms=10_000)
        taken: Counter[int] = Counter()
        started = threading.Barrier(5)

        def work(
            name: int,
            producer: streamlog.Producer = producer,
            taken: Counter[int] = taken,
            started: threading.Barrier = started,
        ) -> None:
            started.wait()
            try:
                while True:
                    producer.send("single", b"x")
                    taken[name] += 1
            except ClosedError:
                pass

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        started.wait()
        producer.close()
        for thread in threads:
            thread.join()
        assert single[0].high_watermark - before == sum(taken.values())


def test_send_from_a_signal_handler_in_the_middle_of_send(cluster: Cluster, single: Topic) -> None:
    """DESIGN, turns, law 1: `send` from a signal handler only enqueues, whatever it interrupts."""
    import signal

    handled, busy = 0, False

    def handler(number: int, frame: object) -> None:
        nonlocal handled, busy
        if not busy:  # a handler may itself be interrupted; the order of such two is nobody's
            busy = True
            producer.send("single", b"handler %d" % handled, key=b"handler")
            handled += 1
            busy = False

    former = signal.signal(signal.SIGALRM, handler)
    try:
        with cluster.producer(batch_size=2000) as producer:
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0005)
            sent = 0
            while handled < 200:
                producer.send("single", b"main %d" % sent, key=b"main")
                sent += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    found = single[0].read(max_records=10_000_000)
    assert all((record.value or b"").startswith(record.key or b"?") for record in found), (
        "columns out of step"
    )
    assert [record.value for record in found if record.key == b"main"] == [
        b"main %d" % i for i in range(sent)
    ]
    assert [record.value for record in found if record.key == b"handler"] == [
        b"handler %d" % i for i in range(handled)
    ]


def test_repr_and_small_things(cluster: Cluster, orders: Topic) -> None:
    producer = cluster.producer()
    assert "acks=all" in repr(producer)
    assert producer.partitions_for("orders") == [0, 1]
    producer.send("orders", b"x")
    assert producer.pending_records == 1
    producer.close()
    assert "closed" in repr(producer) and producer.pending_records == 0
