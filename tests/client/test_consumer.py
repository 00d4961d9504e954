"""Reading: poll, iteration, positions of what was handed out, errors on the way."""

from __future__ import annotations

import struct
import threading
import time
from typing import Any

import pytest

import streamlog
from streamlog import Cluster, Consumer, Topic, TopicPartition
from streamlog.client.fetching import AssignedPartition
from streamlog.errors import (
    ClosedError,
    ConfigError,
    CorruptRecordError,
    DeserializationError,
    IllegalStateError,
    InvalidGroupIdError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
)
from streamlog.testing import Simulation

ORDERS_0, ORDERS_1 = TopicPartition("orders", 0), TopicPartition("orders", 1)


def fill(
    cluster: Cluster, topic: str, count: int, partition: int = 0, start: int = 0, batch: int = 10
) -> None:
    with cluster.producer(linger_ms=10_000) as producer:
        for number in range(start, start + count):
            producer.send(topic, b"%d" % number, partition=partition)
            if number % batch == batch - 1:
                producer.flush()


def numbers(records: list[Any]) -> list[int]:
    return [int(record.value) for record in records]


def reader(cluster: Cluster, *partitions: TopicPartition, **options: Any) -> Consumer:
    consumer = cluster.consumer(**{"stop_at_end": True, **options})
    consumer.assign(partitions)
    return consumer


# -- poll --------------------------------------------------------------------------------------------------


def test_poll_hands_out_everything_once_in_order(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 95)
    consumer = reader(cluster, ORDERS_0)
    got: list[int] = []
    while not consumer.at_end:
        records = consumer.poll(1, max_records=7)
        assert 1 <= len(records) <= 7
        got += numbers(records)
        assert consumer.position(ORDERS_0) == len(got)
    assert got == list(range(95))
    assert consumer.poll(10) == []  # at the end: at once


def test_poll_gives_max_poll_records_at_most(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 700, batch=100)
    assert len(reader(cluster, ORDERS_0).poll()) == 500
    assert len(reader(cluster, ORDERS_0, max_poll_records=20).poll()) == 20
    assert len(reader(cluster, ORDERS_0).poll(max_records=600)) == 600


@pytest.mark.parametrize("wrong", [0, -1, 1.0, "5", True])
def test_impossible_max_records(cluster: Cluster, orders: Topic, wrong: object) -> None:
    with pytest.raises(ConfigError) as caught:
        reader(cluster, ORDERS_0).poll(0, max_records=wrong)  # type: ignore[arg-type]
    assert caught.value.option == "max_records"


@pytest.mark.parametrize("timeout_ms", [0, 30, 200])
def test_poll_never_exceeds_its_timeout(timeout_ms: int) -> None:
    simulation = Simulation()
    with streamlog.open(":memory:", sync="off", runtime=simulation) as cluster:
        cluster.create_topic("orders")
        consumer = cluster.consumer()
        consumer.assign([ORDERS_0])
        began_ms = simulation.now_ms
        assert consumer.poll(timeout_ms / 1000) == []
        assert simulation.now_ms - began_ms == timeout_ms


def test_poll_returns_when_something_arrives(cluster: Cluster, orders: Topic) -> None:
    consumer = cluster.consumer()
    consumer.assign([ORDERS_0, ORDERS_1])
    assert consumer.poll(0) == []
    sender = threading.Timer(0.02, lambda: fill(cluster, "orders", 1, partition=1))
    sender.start()
    began = time.monotonic()
    assert len(consumer.poll(30)) == 1
    assert time.monotonic() - began < 10
    sender.join()


def test_poll_of_milliseconds_warns(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 1)
    with pytest.warns(UserWarning, match="did you mean 1 "):
        assert len(reader(cluster, ORDERS_0).poll(1000)) == 1


def test_wakeup_ends_a_poll_in_another_thread(cluster: Cluster, orders: Topic) -> None:
    consumer = cluster.consumer()
    consumer.assign([ORDERS_0])
    waker = threading.Timer(0.02, consumer.wakeup)
    waker.start()
    began = time.monotonic()
    assert consumer.poll(30) == []
    assert time.monotonic() - began < 10
    waker.join()


def test_partitions_take_turns(cluster: Cluster, orders: Topic) -> None:
    for partition in (0, 1):
        fill(cluster, "orders", 3000, partition=partition, batch=1000)
    consumer = reader(cluster, ORDERS_0, ORDERS_1, max_partition_fetch_bytes=5000)
    seen = {record.partition for _ in range(8) for record in consumer.poll(1, max_records=1000)}
    assert seen == {0, 1}


def test_one_poll_mixes_no_partition_out_of_order(cluster: Cluster, orders: Topic) -> None:
    for partition in (0, 1):
        fill(cluster, "orders", 50, partition=partition)
    records = reader(cluster, ORDERS_0, ORDERS_1).poll(1)
    assert len(records) == 100
    for partition in (0, 1):
        assert numbers([record for record in records if record.partition == partition]) == list(range(50))


def test_reading_all_the_way_while_somebody_writes(cluster: Cluster, orders: Topic) -> None:
    writer = threading.Thread(target=fill, args=(cluster, "orders", 5000), kwargs={"batch": 25})
    writer.start()
    consumer = cluster.consumer()
    consumer.assign([ORDERS_0])
    got: list[int] = []
    while len(got) < 5000:
        got += numbers(consumer.poll(10))
    writer.join()
    assert got == list(range(5000))


# -- iterating ---------------------------------------------------------------------------------------------


def test_iterating_moves_the_position_with_each_record(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 95)
    consumer = reader(cluster, ORDERS_0)
    for expected, record in enumerate(consumer):
        assert (record.offset, consumer.position(ORDERS_0)) == (expected, expected + 1)
    assert consumer.position(ORDERS_0) == 95


def test_break_loses_nothing(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 95)
    consumer = reader(cluster, ORDERS_0)
    got: list[int] = []
    while len(got) < 95:
        for record in consumer:
            got.append(int(record.value or b""))
            if len(got) % 7 == 0:
                break
        got += numbers(consumer.poll(0, max_records=3))
    assert got == list(range(95))


def test_iteration_without_stop_at_end_waits_for_more(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 3)
    consumer = cluster.consumer()
    consumer.assign([ORDERS_0])
    got = []
    for record in consumer:
        got.append(int(record.value or b""))
        if len(got) == 3:
            threading.Timer(0.02, lambda: fill(cluster, "orders", 3, start=3)).start()
        if len(got) == 6:
            break
    assert got == list(range(6))


def test_seek_pause_and_resume_inside_the_loop(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 50)
    fill(cluster, "orders", 50, partition=1)
    consumer = reader(cluster, ORDERS_0)
    got = []
    for record in consumer:
        got.append(record.offset)
        if got == [0, 1, 2]:
            consumer.seek(ORDERS_0, 40)
        elif len(got) == 5:
            consumer.seek(ORDERS_0, 1)
        elif len(got) == 7:
            consumer.seek(ORDERS_0, 48)
    assert got == [0, 1, 2, 40, 41, 1, 2, 48, 49]

    consumer = reader(cluster, ORDERS_0, ORDERS_1)
    order = []
    for record in consumer:
        order.append(record.partition)
        if len(order) == 3:
            first = record.partition
            consumer.pause(TopicPartition("orders", first))
        if len(order) == 53:
            consumer.resume(TopicPartition("orders", first))
    assert order == [first] * 3 + [1 - first] * 50 + [first] * 47


def test_polling_inside_the_loop(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 95)
    consumer = reader(cluster, ORDERS_0)
    got: list[int] = []
    for record in consumer:
        got.append(int(record.value or b""))
        if len(got) % 11 == 5:
            got += numbers(consumer.poll(0, max_records=4))
    assert got == list(range(95))


def test_closing_inside_the_loop_ends_it(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 95)
    consumer = reader(cluster, ORDERS_0)
    with pytest.raises(ClosedError):
        for record in consumer:
            if record.offset == 30:
                consumer.close()
    assert consumer.assignment == frozenset()


def test_assigning_inside_the_loop(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 20)
    fill(cluster, "orders", 20, partition=1)
    consumer = reader(cluster, ORDERS_0)
    got = []
    for record in consumer:
        got.append((record.partition, record.offset))
        if len(got) == 3:
            consumer.assign([ORDERS_1])
    assert got == [(0, 0), (0, 1), (0, 2)] + [(1, offset) for offset in range(20)]


# -- stop_at_end -------------------------------------------------------------------------------------------


def test_stop_at_end_ends_where_the_end_was_at_the_first_assignment(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 10)
    consumer = reader(cluster, ORDERS_0)
    fill(cluster, "orders", 10, start=10)
    assert numbers(list(consumer)) == list(range(10))
    assert consumer.at_end


@pytest.mark.parametrize("order", [(ORDERS_0, ORDERS_1), (ORDERS_1, ORDERS_0)])
def test_stop_at_end_hands_out_nothing_beyond_it(
    cluster: Cluster, orders: Topic, order: tuple[TopicPartition, TopicPartition]
) -> None:
    with cluster.producer() as producer:
        for number in range(20):
            producer.send("orders", b"%d" % number, partition=number % 2)
    consumer = reader(cluster, *order)
    got = []
    while not consumer.at_end:
        with cluster.producer() as producer:  # batches of their own, in partitions at their end too
            producer.send("orders", b"99", partition=0)
            producer.send("orders", b"99", partition=1)
        got += consumer.poll(1, max_records=3)
    assert sorted(numbers(got)) == list(range(20)) and consumer.poll(0) == []
    consumer.assign([])
    consumer.assign([ORDERS_1])  # chosen anew: what came meanwhile is there now
    assert len(list(consumer)) > 10


def test_stop_at_end_of_nothing(cluster: Cluster, orders: Topic) -> None:
    assert list(reader(cluster, ORDERS_0, ORDERS_1)) == []
    fill(cluster, "orders", 10)
    orders[0].delete_records(-1)
    assert list(reader(cluster, ORDERS_0)) == []
    assert list(reader(cluster, ORDERS_0, auto_offset_reset="latest")) == []
    assert list(reader(cluster, ORDERS_0, auto_offset_reset="by_duration:PT0S")) == []


def test_stop_at_end_never_ends_before_anything_was_assigned(cluster: Cluster, orders: Topic) -> None:
    consumer = cluster.consumer(stop_at_end=True)
    assert not consumer.at_end
    consumer.assign([ORDERS_0])
    assert list(consumer) == []


@pytest.mark.parametrize("read", [lambda c: c.poll(0), lambda c: c.poll(5), lambda c: next(iter(c))])
def test_a_consumer_with_nothing_to_read_says_so(cluster: Cluster, orders: Topic, read: Any) -> None:
    """Kafka: "Consumer is not subscribed to any topics or assigned any partitions"; waiting would be for ever."""
    consumer = cluster.consumer(stop_at_end=True)
    with pytest.raises(IllegalStateError, match=r"nothing to read: assign\("):
        read(consumer)
    member = cluster.consumer_group("g", ["orders"]).consumer()
    assert member.poll(0) == []  # joining is something
    member.unsubscribe()
    with pytest.raises(IllegalStateError, match="nothing to read"):
        read(member)


def test_records_deleted_while_reading_do_not_keep_it_from_ending(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 40)
    consumer = reader(cluster, ORDERS_0, max_partition_fetch_bytes=1)
    iterator = iter(consumer)
    assert next(iterator).offset == 0
    orders[0].delete_records(-1)
    rest = [record.offset for record in iterator]
    assert rest == list(range(1, 10)) and consumer.at_end  # the batch that was decoded already


# -- what goes wrong ---------------------------------------------------------------------------------------


def test_a_record_that_cannot_be_read_raises_with_its_place_and_nothing_is_lost(
    cluster: Cluster, orders: Topic
) -> None:
    with cluster.producer() as producer:
        for number in range(10):
            producer.send("orders", b"?" if number == 4 else b"%d" % number, partition=0)
    for step in (1, 3, 100):
        consumer = reader(cluster, ORDERS_0, value_deserializer="json")
        got, skipped = [], []
        while not consumer.at_end:
            try:
                got += [record.value for record in consumer.poll(1, max_records=step)]
            except DeserializationError as error:
                assert (error.topic, error.partition, error.offset, error.next_offset) == ("orders", 0, 4, 5)
                assert consumer.position(ORDERS_0) == 4 == len(got)
                with pytest.raises(DeserializationError):
                    consumer.poll(0)
                consumer.seek(ORDERS_0, error.next_offset or 0)
                skipped.append(error.offset)
        assert (got, skipped) == ([0, 1, 2, 3, 5, 6, 7, 8, 9], [4])


def test_a_record_that_cannot_be_read_while_iterating(cluster: Cluster, orders: Topic) -> None:
    with cluster.producer() as producer:
        for number in range(10):
            producer.send("orders", b"?" if number in (0, 9) else b"%d" % number, partition=0)
    consumer = reader(cluster, ORDERS_0, value_deserializer="int64" if False else "json")
    got: list[object] = []
    for _ in range(3):
        try:
            for record in consumer:
                got.append(record.value)
        except DeserializationError as error:
            consumer.seek(ORDERS_0, error.next_offset or 0)
    assert got == list(range(1, 9)) and consumer.at_end


def test_an_error_in_one_partition_costs_no_record_of_another(cluster: Cluster, orders: Topic) -> None:
    with cluster.producer() as producer:
        producer.send_many("orders", [])
        for number in range(5):
            producer.send("orders", b"%d" % number, partition=0)
            producer.send("orders", b"?", partition=1)
    for order in ((ORDERS_0, ORDERS_1), (ORDERS_1, ORDERS_0)):
        consumer = reader(cluster, *order, value_deserializer="json")
        got, errors = [], 0
        while not consumer.at_end:
            try:
                got += [record.value for record in consumer.poll(1)]
            except DeserializationError as error:
                errors += 1
                consumer.seek(ORDERS_1, error.next_offset or 0)
        assert (sorted(got), errors) == ([0, 1, 2, 3, 4], 5)


def corrupt(cluster: Cluster, partition: int) -> None:
    """Flip a bit in the first batch of orders-`partition`."""
    hosted = cluster._backend.partition("orders", partition)
    environment = cluster._backend.broker.environment
    with environment.snapshot() as snapshot:
        key = struct.pack(">IQ", hosted.log_id, 9)
        value = bytearray(snapshot.get(key) or b"")
    value[-1] ^= 1
    transaction = environment.write()
    transaction.put(key, bytes(value))
    transaction.commit()


def test_a_flipped_bit_is_told_with_its_place_and_costs_no_other_record(
    cluster: Cluster, orders: Topic
) -> None:
    for partition in (0, 1):
        fill(cluster, "orders", 30, partition=partition)
    corrupt(cluster, 1)
    for order in ((ORDERS_0, ORDERS_1), (ORDERS_1, ORDERS_0)):
        consumer = reader(cluster, *order)
        got: list[tuple[int, int]] = []
        errors = []
        while not consumer.at_end:
            try:
                got += [(record.partition, record.offset) for record in consumer.poll(1)]
            except CorruptRecordError as error:
                assert (error.topic, error.partition, error.offset) == ("orders", 1, 0)
                errors.append(error.offset)
                consumer.seek(ORDERS_1, 10)
        assert errors == [0]
        assert sorted(got) == [(0, offset) for offset in range(30)] + [
            (1, offset) for offset in range(10, 30)
        ]
    with pytest.raises(CorruptRecordError):
        orders[1].read()
    assert len(orders[1].read(10)) == 20


def test_a_position_out_of_range_follows_the_policy_or_raises_each_time(
    cluster: Cluster, orders: Topic
) -> None:
    fill(cluster, "orders", 10)
    for policy, expected in (("earliest", list(range(10))), ("latest", [])):
        consumer = reader(cluster, ORDERS_0, auto_offset_reset=policy)
        consumer.seek(ORDERS_0, 99)
        assert consumer.position(ORDERS_0) == 99  # lazy: checked at the next poll
        assert numbers(consumer.poll(0.05)) == expected
    consumer = reader(cluster, ORDERS_0, auto_offset_reset="none")
    consumer.seek(ORDERS_0, 99)
    for _ in range(2):
        with pytest.raises(OffsetOutOfRangeError) as caught:
            consumer.poll(0)
        assert caught.value.offset == 99 == consumer.position(ORDERS_0)
    consumer.seek(ORDERS_0, 8)
    assert numbers(consumer.poll(1)) == [8, 9]


def test_nothing_committed_and_policy_none_raises_each_time(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 10)
    fill(cluster, "orders", 10, partition=1)
    consumer = cluster.consumer(auto_offset_reset="none", group_id="g", enable_auto_commit=False)
    consumer.assign([ORDERS_0, ORDERS_1])
    consumer.seek(ORDERS_1, 0)
    got: list[int] = []
    for _ in range(3):
        try:
            got += numbers(consumer.poll(0.01))
        except NoOffsetForPartitionError as error:
            assert (error.topic, error.partition) == ("orders", 0)
    assert got == list(range(10))
    with pytest.raises(NoOffsetForPartitionError):
        consumer.poll(0)
    with pytest.raises(NoOffsetForPartitionError):
        consumer.position(ORDERS_0)


def test_an_interrupt_inside_poll_loses_nothing(
    cluster: Cluster, orders: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    for partition in (0, 1):
        fill(cluster, "orders", 10, partition=partition)
    consumer = reader(cluster, ORDERS_0, ORDERS_1)
    fetch, calls = consumer._fetch_one, 0

    def interrupted() -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return fetch()

    monkeypatch.setattr(consumer, "_fetch_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        consumer.poll(1)
    assert len(consumer.poll(1)) == 20


# -- topics that change ------------------------------------------------------------------------------------


def test_a_deleted_topic_raises_at_each_poll_and_one_made_anew_is_read(
    cluster: Cluster, orders: Topic
) -> None:
    fill(cluster, "orders", 10)
    consumer = cluster.consumer()
    consumer.assign([ORDERS_0])
    assert len(consumer.poll(1)) == 10
    orders.delete()
    for _ in range(2):
        with pytest.raises(UnknownTopicOrPartitionError):
            consumer.poll(0.05)
    cluster.create_topic("orders")
    fill(cluster, "orders", 4)
    assert numbers(consumer.poll(1)) == [0, 1, 2, 3]


def test_a_topic_made_anew_between_two_polls(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 10)
    consumer = cluster.consumer()
    consumer.assign([ORDERS_0])
    consumer.poll(1)
    orders.delete()
    cluster.create_topic("orders", partitions=2)
    fill(cluster, "orders", 3)
    assert numbers(consumer.poll(1)) == [0, 1, 2]


# -- who may call ------------------------------------------------------------------------------------------


def test_a_consumer_belongs_to_one_thread_at_a_time(cluster: Cluster, orders: Topic) -> None:
    consumer = cluster.consumer()
    consumer.assign([ORDERS_0])
    inside = threading.Event()
    poll = consumer._poll

    def slow(deadline_ms: int, count_max: int) -> list[Any]:
        inside.set()
        return poll(deadline_ms, count_max)

    consumer._poll = slow  # type: ignore[method-assign]
    other = threading.Thread(target=lambda: consumer.poll(5))
    other.start()
    inside.wait()
    with pytest.raises(IllegalStateError, match="one thread"):
        consumer.poll(0)
    consumer.wakeup()
    other.join()
    assert consumer.poll(0) == []  # later is fine


def test_closing_from_another_thread_ends_the_poll(cluster: Cluster, orders: Topic) -> None:
    for loop in (lambda consumer: consumer.poll(30), lambda consumer: list(consumer)):
        consumer = cluster.consumer()
        consumer.assign([ORDERS_0])
        ended: list[BaseException] = []
        started = threading.Event()

        def work(
            loop: Any = loop,
            consumer: Consumer = consumer,
            ended: list[BaseException] = ended,
            started: threading.Event = started,
        ) -> None:
            started.set()
            try:
                loop(consumer)
            except BaseException as error:
                ended.append(error)  # noqa: B023

        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        consumer.close()
        thread.join(10)
        assert not thread.is_alive() and [type(error) for error in ended] == [ClosedError]


@pytest.mark.parametrize(
    "wrong", [7, [7], [("orders",)], [("orders", "0")], [("orders", True)], ["orders"], [None], "orders"]
)
def test_what_is_no_partition(cluster: Cluster, orders: Topic, wrong: Any) -> None:
    with pytest.raises(ConfigError):
        cluster.consumer().assign(wrong)


def test_unknown_partitions_change_nothing(cluster: Cluster, orders: Topic) -> None:
    consumer = reader(cluster, ORDERS_0)
    for wrong in (("orders", 2), ("nowhere", 0), ("orders", -1)):
        with pytest.raises(UnknownTopicOrPartitionError):
            consumer.assign([ORDERS_1, wrong])
    assert consumer.assignment == {ORDERS_0}


def test_without_a_group(cluster: Cluster, orders: Topic) -> None:
    consumer = reader(cluster, ORDERS_0)
    fill(cluster, "orders", 3)
    consumer.poll(1)
    for call in (lambda: consumer.subscribe(["orders"]), consumer.commit):
        with pytest.raises(InvalidGroupIdError):
            call()  # type: ignore[operator]
    assert consumer.committed(ORDERS_0) is None
    consumer.close()


def test_small_things(cluster: Cluster, orders: Topic) -> None:
    consumer = reader(cluster, ORDERS_0)
    assert "1 partitions" in repr(consumer)
    with consumer as same:
        assert same is consumer
    consumer.close()
    assert "closed" in repr(consumer)


def test_iterating_over_many_partitions_does_not_look_at_all_of_them_for_each_record(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 200
    cluster.create_topic("wide", partitions=count)
    with cluster.producer() as producer:
        for number in range(count):
            producer.send("wide", b"x", partition=number)
    consumer = reader(cluster, *(TopicPartition("wide", number) for number in range(count)))
    looks = []
    at_end = type(consumer)._is_at_end
    monkeypatch.setattr(
        type(consumer), "_is_at_end", lambda self, one: looks.append(one) or at_end(self, one)
    )
    read = 0
    for _ in consumer:
        read += 1
        assert len(consumer._filled) <= 2
    assert read == count and len(looks) <= 4 * count  # count * count / 2, when all were looked at


def test_at_end_sees_a_seek_back(cluster: Cluster, orders: Topic) -> None:
    fill(cluster, "orders", 10)
    consumer = reader(cluster, ORDERS_0)
    first = [record.offset for record in consumer]
    assert consumer.at_end
    consumer.seek(ORDERS_0, first[-2])
    assert not consumer.at_end and [record.offset for record in consumer] == first[-2:]


def test_an_interrupt_behind_a_fetch_loses_nothing_when_iterating(
    cluster: Cluster, orders: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cluster, "orders", 10)
    consumer = reader(cluster, ORDERS_0)
    fetch = AssignedPartition.fetch

    def interrupted(self: AssignedPartition, *arguments: Any) -> bool:
        monkeypatch.setattr(AssignedPartition, "fetch", fetch)
        fetch(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(AssignedPartition, "fetch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(iter(consumer))
    assert [record.offset for record in consumer] == list(range(orders[0].high_watermark))
