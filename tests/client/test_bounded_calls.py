"""Never a hang: every blocking call has a bound, here each against a leader that is silent, or against no leader at all.

Virtual time: a call that waited for ever would stall the simulation, which says who waits for what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

import streamlog
from streamlog.errors import DeliveryError, ElectionNotNeededError, NonEmptyGroupError, StreamlogError
from streamlog.testing import Simulation

API_S = 5.0
"""default_api_timeout_ms of the consumers here."""
DELIVERY_S = 4.0
"""delivery_timeout_ms of the producers here."""
LONG_S = 60.0
"""Kafka's default.api.timeout.ms, of calls that are nobody's in particular."""
SLACK_S = 2.0


class World(NamedTuple):
    cluster: Any
    simulation: Simulation
    producer: Any
    consumer: Any
    group: Any
    member: Any
    silent: int
    path: Any


def send_without_room(world: World) -> None:
    with world.cluster.producer(
        buffer_memory=1_000, max_block_ms=3_000, request_timeout_ms=60_000, linger_ms=0
    ) as producer:
        try:
            for _ in range(10):
                producer.send("t", b"x" * 30_000)
        finally:
            producer.close(0.5)


def flush(world: World) -> None:
    world.producer.send("t", b"x")
    world.producer.flush()


def flush_for_a_second(world: World) -> None:
    world.producer.send("t", b"x")
    world.producer.flush(1)


def close_producer(world: World) -> None:
    world.producer.send("t", b"x")
    world.producer.close()


def close_producer_within_a_second(world: World) -> None:
    world.producer.send("t", b"x")
    world.producer.close(1)


def iterate(world: World) -> None:
    world.consumer.seek(("t", 0), 0)
    for _ in range(3):
        world.consumer.poll(0.5)


REFUSED: dict[str, type[StreamlogError]] = {
    "group.reset_offsets": NonEmptyGroupError,
    "elect_leaders": ElectionNotNeededError,
    "producer.flush()": DeliveryError,
    "producer.close()": DeliveryError,
}
"""What may be raised that is not retriable: asking again would not help."""

CALLS: dict[str, tuple[Callable[[World], object], float]] = {
    # Producers.
    "send, no room (max_block_ms)": (send_without_room, 3.5),
    "future.result()": (lambda w: w.producer.send("t", b"x").result(), DELIVERY_S),
    "future.result(1)": (lambda w: w.producer.send("t", b"x").result(1), 1),
    "future.exception()": (lambda w: w.producer.send("t", b"x").exception(), DELIVERY_S),
    "send_many().result()": (
        lambda w: w.producer.send_many("t", [(None, b"x")] * 500).result(),
        DELIVERY_S,
    ),
    "send_many().result(1)": (lambda w: w.producer.send_many("t", [(None, b"x")] * 500).result(1), 1),
    "producer.flush()": (flush, DELIVERY_S),
    "producer.flush(1)": (flush_for_a_second, 1),
    "producer.close()": (close_producer, DELIVERY_S),
    "producer.close(1)": (close_producer_within_a_second, 1),
    "producer.partitions_for": (lambda w: w.producer.partitions_for("t"), 0),
    # Consumers.
    "poll(1)": (lambda w: w.consumer.poll(1), 1),
    "poll(0)": (lambda w: w.consumer.poll(0), 0),
    "three polls": (iterate, 1.5),
    "position": (lambda w: w.consumer.position(("t", 0)), API_S),
    "seek_to_beginning": (lambda w: w.consumer.seek_to_beginning(), API_S),
    "seek_to_end": (lambda w: w.consumer.seek_to_end(), API_S),
    "seek_to_timestamp": (lambda w: w.consumer.seek_to_timestamp(("t", 0), 1), API_S),
    "beginning_offsets": (lambda w: w.consumer.beginning_offsets([("t", 0)]), API_S),
    "end_offsets": (lambda w: w.consumer.end_offsets([("t", 0)]), API_S),
    "offsets_for_times": (lambda w: w.consumer.offsets_for_times({("t", 0): 1}), API_S),
    "consumer.lag": (lambda w: w.consumer.lag(("t", 0)), API_S),
    "at_end": (lambda w: w.consumer.at_end, API_S),
    "assign": (lambda w: w.cluster.consumer(default_api_timeout_ms=5_000).assign([("t", 0)]), API_S),
    "consumer.close": (lambda w: w.consumer.close(), API_S),
    # Groups.
    "member.poll(1)": (lambda w: w.member.poll(1), 1),
    "member.commit": (lambda w: w.member.commit({("t", 0): 1}), API_S),
    "member.committed": (lambda w: w.member.committed(("t", 0)), API_S),
    "member.close": (lambda w: w.member.close(), API_S),
    "a member joins": (lambda w: w.group.consumer(default_api_timeout_ms=5_000).poll(1), 1),
    "group.offsets": (lambda w: w.group.offsets(), API_S),
    "group.lag": (lambda w: w.group.lag(), API_S),
    "group.members": (lambda w: w.group.members(), API_S),
    "group.state": (lambda w: w.group.state, API_S),
    "group.reset_offsets": (lambda w: w.group.reset_offsets("earliest"), API_S),
    "group.reset_offsets, nobody in it": (
        lambda w: w.cluster.consumer_group("other", ["t"]).reset_offsets("earliest"),
        LONG_S,
    ),
    "group.delete": (lambda w: w.cluster.consumer_group("other").delete(), LONG_S),
    "groups": (lambda w: w.cluster.groups, LONG_S),
    # Topics.
    "create_topic": (lambda w: w.cluster.create_topic("u", replication_factor=3), LONG_S),
    "delete_topic": (lambda w: w.cluster.delete_topic("t"), LONG_S),
    "add_partitions": (lambda w: w.cluster.topic("t").add_partitions(3), LONG_S),
    "alter_config": (lambda w: w.cluster.topic("t").alter_config({"retention.ms": 5}), LONG_S),
    "delete_records": (lambda w: w.cluster.topic("t")[0].delete_records(1), LONG_S),
    "partition.read": (lambda w: w.cluster.topic("t")[0].read(), LONG_S),
    "partition.high_watermark": (lambda w: w.cluster.topic("t")[0].high_watermark, LONG_S),
    "repr": (lambda w: repr([w.cluster, w.cluster.topic("t"), w.cluster.topic("t")[0]]), 0),
    # The cluster.
    "elect_leaders": (lambda w: w.cluster.elect_leaders("t"), LONG_S),
    "reassign": (lambda w: w.cluster.reassign("t", {0: [0, 1]}), LONG_S),
    "add_broker": (lambda w: w.cluster.add_broker(), LONG_S),
    "clean": (lambda w: w.cluster.clean(), LONG_S),
    "metrics": (lambda w: w.cluster.metrics().prometheus(), 0),
    "backup": (lambda w: w.cluster.backup(w.path / "copy"), LONG_S),
    "crash of another": (lambda w: w.cluster.brokers[(w.silent + 1) % 3].crash(), 1),
    "stop of another": (lambda w: w.cluster.brokers[(w.silent + 1) % 3].stop(), 1),
    "pause of another": (lambda w: w.cluster.brokers[(w.silent + 1) % 3].pause(), 1),
    "close": (lambda w: w.cluster.close(), DELIVERY_S + API_S),
}


def run(name: str, silence: str, seed: int, path: Any) -> tuple[float, StreamlogError | None]:
    """How long a call took, and what it raised."""
    call, _ = CALLS[name]
    simulation = Simulation(seed)
    cluster: Any = streamlog.open(
        path / "c",
        brokers=3,
        sync="off",
        runtime=simulation,
        offsets_topic_num_partitions=1,
        broker_session_timeout_ms=36_000_000,  # nobody takes over meanwhile
    )
    with cluster:
        cluster.create_topic("t", replication_factor=3)
        group = cluster.consumer_group("g", ["t"], default_api_timeout_ms=5_000, enable_auto_commit=False)
        producer = cluster.producer(delivery_timeout_ms=4_000, request_timeout_ms=1_500)
        producer.send("t", b"a").result(5)
        consumer = cluster.consumer(default_api_timeout_ms=5_000)
        consumer.assign([("t", 0)])
        member = group.consumer()
        member.poll(5)
        member.commit()
        silent = cluster.topic("t")[0].leader
        if cluster._backend.metadata.image.partition("__consumer_offsets", 0).leader != silent:
            order = [silent, *[broker for broker in range(3) if broker != silent]]
            cluster.reassign("__consumer_offsets", {0: order})
            cluster.elect_leaders("__consumer_offsets")
            simulation.sleep(1)
            member.poll(2)
        world = World(cluster, simulation, producer, consumer, group, member, silent, path)
        if silence == "paused":
            cluster.brokers[silent].pause()
        else:
            for broker in cluster.brokers:
                if broker.id != silent:
                    broker.crash()
            cluster.brokers[silent].crash()
        begun_ms = simulation.now_ms
        error = None
        try:
            call(world)
        except StreamlogError as raised:
            error = raised
        took_s = (simulation.now_ms - begun_ms) / 1000
        if silence == "paused" and not cluster._closed and cluster.brokers[silent].state == "paused":
            cluster.brokers[silent].resume()
        for forgotten in (producer, member, consumer):
            try:
                forgotten.close()
            except StreamlogError:
                pass
        return took_s, error


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("silence", ["paused", "nobody leads"])
def test_every_blocking_call_has_a_bound(name: str, silence: str, tmp_path: Any) -> None:
    if silence == "nobody leads" and "of another" in name:
        pytest.skip("all are down")
    took_s, error = run(name, silence, 1, tmp_path)
    bound_s = CALLS[name][1]
    assert took_s <= bound_s + SLACK_S, f"{name} took {took_s} s, {error!r}"
    assert error is None or error.retriable or isinstance(error, REFUSED.get(name, ())), repr(error)
