"""aio/cluster.py: opening, topics, partitions, closing."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

import streamlog
import streamlog.aio
from streamlog.errors import (
    ClosedError,
    ConfigError,
    DeliveryError,
    ReadOnlyError,
    TopicAlreadyExistsError,
)
from tests.aio.loops import in_loop, until, watched

LATE_OR_MISSING = {
    # Names of the blocking classes that have no twin here, and why.
    "Cluster": {"add_broker", "elect_leaders", "network", "reassign"},  # they come with replication
    "Topic": set(),
    "Partition": set(),
    "Producer": set(),
    "Consumer": set(),
    "ConsumerGroup": set(),
}


@in_loop
async def test_open_make_a_topic_and_read_a_partition(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with watched(monkeypatch):
        async with streamlog.aio.open(tmp_path / "c", sync="normal") as cluster:
            topic = await cluster.create_topic("orders", partitions=2, config={"retention.ms": 1_000_000})
            with pytest.raises(TopicAlreadyExistsError):
                await cluster.create_topic("orders")
            assert topic == await cluster.create_topic("orders", exist_ok=True)
            await topic.add_partitions(3)
            await topic.alter_config({"retention.ms": None})
            async with cluster.producer() as producer:
                await producer.send("orders", b"x", partition=2)
            assert [record.value for record in await topic[2].read()] == [b"x"]
            assert await topic[2].delete_records(-1) == 1
            await cluster.backup(tmp_path / "copy")
            await cluster.clean()
            assert len(await cluster.metrics()) > 0
    with streamlog.open(tmp_path / "c") as blocking:
        assert blocking.topics == ["orders"] and len(blocking.topic("orders")) == 3


@in_loop
async def test_facts_in_memory_are_plain_attributes() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        topic = await cluster.create_topic("orders", partitions=2)
        assert cluster.topics == ["orders"] and cluster.topic("orders") == topic and len(topic) == 2
        assert (topic.name, topic.replication_factor, topic.config_overrides) == ("orders", 1, {})
        assert topic.config["cleanup.policy"] == "delete" and len(topic.topic_id) == 32
        partition = topic[1]
        assert partition == topic.partitions[1] and {partition, topic[1]} == {partition} and bool(topic)
        assert (partition.topic, partition.number, partition.leader) == ("orders", 1, 0)
        assert (partition.replicas, partition.isr, partition.size_bytes) == ((0,), (0,), 0)
        assert partition.topic_partition == ("orders", 1)
        offsets = partition.log_start_offset, partition.high_watermark, partition.log_end_offset
        assert offsets == (0, 0, 0)
        await topic.delete()
        assert cluster.topics == [] and cluster.path.exists()


@in_loop
async def test_open_can_be_awaited_and_closed_by_hand() -> None:
    cluster = await streamlog.aio.open(":memory:")
    async with cluster:
        await cluster.create_topic("orders")
    await cluster.close()
    for call in (cluster.create_topic("x"), cluster.metrics()):
        with pytest.raises(ClosedError):
            await call
    with pytest.raises(ClosedError):
        cluster.producer()


@in_loop
async def test_opening_with_wrong_options_leaves_no_threads() -> None:
    with pytest.raises(ConfigError):
        await streamlog.aio.open(":memory:", sync="maybe")
    await until(lambda: not any("streamlog-aio" in thread.name for thread in threading.enumerate()))


@in_loop
async def test_a_cancelled_open_closes_what_it_opened(tmp_path: Path) -> None:
    opening = asyncio.ensure_future(streamlog.aio.open(tmp_path / "c")._open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening

    def is_free() -> bool:
        from streamlog.client import cluster

        return not any(
            opened.backend.directory.path == tmp_path / "c" for opened in cluster._open_clusters.values()
        )

    await until(lambda: (tmp_path / "c" / "FORMAT").exists())
    await until(is_free)


@in_loop
async def test_closing_flushes_producers_and_closes_consumers() -> None:
    async with streamlog.aio.open(":memory:c") as cluster:
        topic = await cluster.create_topic("orders", partitions=1, config={"max.message.bytes": 1_000})
        producer = cluster.producer(linger_ms=60_000)
        producer.send("orders", b"x")
        consumer = cluster.consumer_group("g", ["orders"]).consumer()
        await consumer.poll(0)
        other = await streamlog.aio.open(":memory:c")
        await cluster.close()
        assert other.topic("orders")[0].high_watermark == 1
        with pytest.raises(ClosedError):
            await consumer.poll(0)
        with pytest.raises(ClosedError):
            producer.send("orders", b"y")
        failing = other.producer(linger_ms=60_000)
        failing.send("orders", b"x" * 2_000)
        with pytest.raises(DeliveryError):
            await other.close()
        assert topic.name == "orders"


@in_loop
async def test_a_cluster_is_shared_with_the_blocking_api() -> None:
    async with streamlog.aio.open(":memory:shared") as cluster:
        await cluster.create_topic("orders", partitions=1)
        async with cluster.consumer_group("g", ["orders"]).consumer() as consumer:
            with streamlog.open(":memory:shared") as blocking:
                waiting = asyncio.ensure_future(consumer.poll(20))
                await until(lambda: bool(consumer.assignment))
                with blocking.producer() as producer:
                    producer.send("orders", b"x").result()
                assert [record.value for record in await waiting] == [b"x"]


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


@pytest.mark.parametrize("name", sorted(LATE_OR_MISSING))
def test_the_names_are_mirrored(name: str) -> None:
    blocking, here = getattr(streamlog, name), getattr(streamlog.aio, name)
    assert public(blocking) - public(here) == LATE_OR_MISSING[name]
    for method in public(blocking) & public(here):
        theirs, ours = getattr(blocking, method), getattr(here, method)
        if inspect.isfunction(theirs) and inspect.isfunction(ours):
            wanted = list(inspect.signature(theirs).parameters)
            assert list(inspect.signature(ours).parameters) == wanted, method


def test_import_streamlog_does_not_import_asyncio() -> None:
    probe = "import sys, streamlog; sys.exit('asyncio' in sys.modules or 'streamlog.aio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


@in_loop
async def test_habits_from_elsewhere_get_a_did_you_mean() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        for owner, habit, meant in (
            (cluster, "list_topics", "topics"),
            (cluster.producer(), "produce", "send"),
            (cluster.consumer(), "consume", "poll"),
        ):
            with pytest.raises(AttributeError, match=meant):
                getattr(owner, habit)
        consumer, producer = cluster.consumer(group_id="g"), cluster.producer()
        for call, given, meant in (
            (partial(cluster.create_topic, "fresh"), {"num_partitions": 3}, "`partitions`"),
            (consumer.poll, {"timeout_ms": 100}, "`timeout, in seconds`"),
            (consumer.commit, {"asynchronous": True}, "waits until"),
            (partial(consumer.subscribe, ["orders"]), {"on_assign": print}, "`on_assigned`"),
            (producer.flush, {"timeout_ms": 100}, "`timeout, in seconds`"),
            (producer.close, {"timeout_ms": 100}, "`timeout, in seconds`"),
        ):
            with pytest.raises(ConfigError, match=meant):
                await call(**given)


@in_loop
async def test_a_reader_refuses_what_writes(tmp_path: Path) -> None:
    async with streamlog.aio.connect(str(tmp_path / "d")) as owner:
        await owner.create_topic("orders")
        async with owner.producer() as producer:
            await producer.send("orders", b"one")
        async with streamlog.aio.open(tmp_path / "d", mode="r") as reader:
            assert reader.brokers == owner.brokers
            with pytest.raises(ReadOnlyError):
                reader.producer()
            with pytest.raises(ReadOnlyError):
                await reader.create_topic("more")
            consumer = reader.consumer(stop_at_end=True)
            await consumer.assign([("orders", 0)])
            assert [record.value async for record in consumer] == [b"one"]
