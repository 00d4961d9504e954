"""DESIGN section 2: the names, and its code block executed (without replication, transactions and faults)."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import streamlog
from streamlog import Record, TopicPartition
from streamlog.errors import ConfigError

NAMES = {
    *(
        "Cluster",
        "Consumer",
        "ConsumerGroup",
        "OffsetAndMetadata",
        "OffsetAndTimestamp",
        "Partition",
        "Producer",
        "Record",
    ),
    *(
        "RecordMetadata",
        "StreamlogError",
        "Topic",
        "TopicPartition",
        "__version__",
        "connect",
        "errors",
        "open",
        "serde",
    ),
}


def test_the_names_of_the_package() -> None:
    assert set(streamlog.__all__) >= NAMES
    assert all(hasattr(streamlog, name) for name in streamlog.__all__)
    assert list(streamlog.__all__) == sorted(streamlog.__all__)


LATE = (
    # What takes milliseconds to import and is not needed to open a cluster and read it as bytes.
    *(
        "pathlib",
        "random",
        "zlib",
        "tempfile",
        "shutil",
        "logging",
        "asyncio",
        "dataclasses",
        "json",
        "inspect",
    ),
    *("streamlog.client.producer", "streamlog.client.serde", "streamlog.broker.coordinator"),
)


def test_importing_and_reading_load_nothing_that_takes_long(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "data") as cluster:
        cluster.create_topic("t", partitions=1)
        with cluster.producer() as producer:
            producer.send("t", b"v")
    program = """if True:
        import sys
        sys.modules.update({name: None for name in sys.argv[2].split()})  # importing one of them fails
        import streamlog
        with streamlog.open(sys.argv[1]) as cluster, cluster.consumer() as consumer:
            consumer.assign([streamlog.TopicPartition("t", 0)])
            print(consumer.poll(10)[0].value)
    """
    before = subprocess.run(
        [sys.executable, "-c", "import sys, lmdb, zstandard, msgspec, google_crc32c; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    late = " ".join(name for name in LATE if name not in before)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "data"), late], capture_output=True, text=True
    )
    assert done.stdout == "b'v'\n", done.stderr


@pytest.mark.parametrize("before", ["", "gc.disable()", "gc.freeze()"])
def test_importing_leaves_the_collector_as_it_was(before: str) -> None:
    program = f"""if True:
        import gc, msgspec
        {before}
        was = gc.isenabled(), gc.get_freeze_count() > 1000
        import streamlog
        assert (gc.isenabled(), gc.get_freeze_count() > 1000) == was, was
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_comes_later_is_there_when_asked_for() -> None:
    assert {"Producer", "Topic", "serde", "connect"} <= set(dir(streamlog))
    assert streamlog.serde.json().name == "json" and streamlog.Producer.__name__ == "Producer"
    with pytest.raises(AttributeError, match="no attribute 'Produzer'"):
        _ = streamlog.Produzer  # type: ignore[attr-defined]


def test_the_code_block(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "data/", brokers=1, sync="full") as cluster:
        orders = cluster.create_topic(
            "orders", partitions=4, replication_factor=1, config={"retention.ms": 3_600_000}, exist_ok=True
        )
        cluster.create_topic("gone")
        assert cluster.topics == ["gone", "orders"] and cluster.topic("orders") == orders
        cluster.delete_topic("gone")
        orders.add_partitions(8)

        called = threading.Event()
        with cluster.producer(acks="all", linger_ms=5, compression="zstd") as producer:
            future = producer.send(
                "orders", b"value", key=b"alice", headers=[("trace", b"1")], partition=None, timestamp=None
            )
            metadata = future.result(timeout=10)
            assert (
                (metadata.topic, metadata.offset) == ("orders", 0)
                and metadata.partition in range(8)
                and metadata.timestamp > 0
            )
            future.add_done_callback(lambda f: called.set())
            producer.send_many("orders", [(b"k1", b"v1"), (None, b"v2")])
            producer.flush()
            assert called.wait(10)

        group = cluster.consumer_group("billing", ["orders"], auto_offset_reset="earliest")
        assert sum(group.lag().values()) == 3 and group.offsets() == {}
        with group.consumer() as consumer:
            got = []
            while len(got) < 3:
                for record in consumer.poll(timeout=1.0, max_records=500):
                    got.append(record)
            consumer.commit()
            assert len(group.members()) == 1
        with group.consumer(stop_at_end=True) as consumer:
            for record in consumer:
                raise AssertionError(record)
        assert {record.value for record in got} == {b"value", b"v1", b"v2"}
        assert len(group.lag()) == 8 and sum(group.lag().values()) == 0
        assert all(isinstance(tp, TopicPartition) for tp in group.offsets())
        assert sum(group.offsets().values()) == 3 and group.members() == []
        group.reset_offsets("earliest")
        assert sum(group.offsets().values()) == 0

        handled: list[Record] = []

        def handler(record: Record) -> None:
            handled.append(record)
            if len(handled) == 3:
                group.stop()

        group.run(handler, workers=4)
        assert len(handled) == 3

        reader = cluster.consumer(isolation_level="read_committed", stop_at_end=True)
        tp = streamlog.TopicPartition("orders", metadata.partition)
        reader.assign([tp])
        reader.seek(tp, 42)
        reader.seek_to_timestamp(tp, metadata.timestamp)
        reader.pause(tp)
        reader.resume(tp)
        assert reader.assignment == {tp} and reader.position(tp) == 0 and reader.committed(tp) is None
        assert reader.beginning_offsets([tp]) == {tp: 0} and reader.end_offsets([tp])[tp] >= 1
        assert next(iter(reader)).value == b"value"

        partition = cluster.topic("orders")[metadata.partition]
        assert len(orders.partitions) == 8 and orders.config["retention.ms"] == "3600000"
        assert (partition.topic, partition.number) == ("orders", metadata.partition)
        assert (partition.leader, partition.replicas, partition.isr, partition.leader_epoch) == (
            0,
            (0,),
            (0,),
            0,
        )
        assert partition.log_start_offset == 0 and partition.high_watermark == partition.log_end_offset >= 1
        [first, *_] = partition.read(offset=0, max_records=100)
        assert (first.key, first.value, first.headers) == (b"alice", b"value", (("trace", b"1"),))
        assert cluster.metrics()

    with streamlog.connect(str(tmp_path / "data/"), sync="full") as again:
        assert again.topics == ["orders"]
    with streamlog.connect(":memory:") as memory:
        assert memory.topics == []


def test_the_second_example_of_iterating() -> None:
    with streamlog.open(":memory:") as cluster:
        cluster.create_topic("orders", partitions=2)
        with cluster.producer() as producer:
            producer.send_many("orders", [(b"%d" % i, b"x") for i in range(50)])
        with cluster.consumer_group("billing", ["orders"]).consumer(stop_at_end=True) as consumer:
            assert len(list(consumer)) == 50


def test_records() -> None:
    record = Record(
        topic="t", partition=1, offset=2, timestamp=3, key=b"k", value=b"v", headers=(("h", None),)
    )
    assert pickle.loads(pickle.dumps(record)) == record
    assert Record("t", 1, 2, 3, b"k", b"v", (("h", None),)) == record
    with pytest.raises(AttributeError):
        record.value = b"x"  # type: ignore[misc]
    assert len(repr(Record(value=b"x" * 10_000))) < 200
    assert Record().key is None and Record().headers == ()


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (streamlog.open, ["path", "brokers", "sync", "mode", "config", "runtime"]),
        (
            streamlog.Cluster.create_topic,
            ["self", "name", "partitions", "replication_factor", "config", "exist_ok"],
        ),
        (streamlog.Cluster.consumer_group, ["self", "group_id", "topics"]),
        (streamlog.Producer.send, ["self", "topic", "value", "key", "headers", "partition", "timestamp"]),
        (streamlog.Consumer.poll, ["self", "timeout", "max_records"]),
        (streamlog.Partition.read, ["self", "offset", "max_records"]),
        (streamlog.ConsumerGroup.run, ["self", "handler", "workers", "on_error"]),
    ],
)
def test_the_order_of_arguments(call: object, names: list[str]) -> None:
    assert list(inspect.signature(call).parameters)[: len(names)] == names  # type: ignore[arg-type]


def test_every_place_that_takes_options_takes_kafkas_names() -> None:
    with streamlog.open(":memory:", config={"num.partitions": "3"}) as cluster:
        assert len(cluster.create_topic("t", config={"retention.ms": "5"})) == 3
        assert cluster.producer(config={"linger.ms": 7}).config.linger_ms == 7
        assert cluster.consumer(config={"max.poll.records": 7}).config.max_poll_records == 7
        group = cluster.consumer_group("g", ["t"], config={"max.poll.records": 7})
        assert group.consumer(config={"fetch.min.bytes": 7}).config.max_poll_records == 7
        for make in (cluster.producer, cluster.consumer):
            with pytest.raises(ConfigError) as caught:
                make(config={"lingerr.ms": 7})
            assert "lingerr.ms" in str(caught.value)


def test_known_options_that_mean_nothing_here_are_accepted() -> None:
    ported = {"bootstrap.servers": "x:9092"}
    with streamlog.open(":memory:") as cluster:
        cluster.producer(config={"ssl.ca.location": "/x", "socket.timeout.ms": 5, "client.id": "a"}).close()
        cluster.consumer(config={"security.protocol": "SSL", "sasl.mechanism": "PLAIN"}).close()
        with pytest.raises(ConfigError, match="connect"):
            cluster.producer(config=ported)


@pytest.mark.parametrize(
    "name", ["KafkaProducer", "KafkaConsumer", "AIOKafkaProducer", "AdminClient", "NewTopic"]
)
def test_classes_of_other_clients_say_what_it_is_here(name: str) -> None:
    with pytest.raises(AttributeError, match=r"here it is `.*cluster\."):
        getattr(streamlog, name)
    with pytest.raises(AttributeError, match=r"no attribute 'opn'$"):
        getattr(streamlog, "opn")  # noqa: B009
