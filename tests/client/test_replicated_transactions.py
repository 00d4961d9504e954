"""Transactions of a replicated cluster: all or none, whatever happens to its brokers, and read as soon as committed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import streamlog
from streamlog.core.group import group_partition
from streamlog.errors import (
    ProducerFencedError,
    StreamlogError,
    TransactionAbortableError,
    UnstableOffsetCommitError,
)
from streamlog.testing import Simulation

SEEDS = pytest.mark.parametrize(
    "seed", [0, *[pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 12)]]
)
ROUNDS = 12


@contextmanager
def opened(seed: int, **options: Any) -> Iterator[tuple[Any, Simulation]]:
    simulation = Simulation(seed)
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation, **options) as cluster:
        cluster.create_topic("out", 3, replication_factor=3, config={"min.insync.replicas": 2})
        yield cluster, simulation


def read(cluster: Any, level: str = "read_committed") -> list[bytes]:
    with cluster.consumer(isolation_level=level, stop_at_end=True) as reader:
        reader.assign([("out", number) for number in range(3)])
        return [record.value for record in reader]


@SEEDS
def test_what_was_committed_is_read_at_once_and_what_was_aborted_never(seed: int) -> None:
    with opened(seed) as (cluster, _), cluster.producer(transactional_id="t") as producer:
        committed: list[bytes] = []
        for number in range(6):
            values = [b"%d-%d" % (number, partition) for partition in range(3)]
            try:
                with producer.transaction():
                    for partition, value in enumerate(values):
                        producer.send("out", value, partition=partition)
                    if number % 3 == 1:
                        producer.flush()
                        raise LookupError
            except LookupError:
                continue
            committed += values
            assert sorted(read(cluster)) == sorted(committed)
        assert len(read(cluster, "read_uncommitted")) == 18


@SEEDS
def test_one_that_comes_later_fences_and_aborts_the_one_before(seed: int) -> None:
    with opened(seed) as (cluster, _):
        old = cluster.producer(transactional_id="t")
        old.transaction().__enter__()
        old.send("out", b"old").result()
        with cluster.producer(transactional_id="t") as new, new.transaction():
            new.send("out", b"new")
        assert read(cluster) == [b"new"]
        with pytest.raises(ProducerFencedError):
            old._transaction.commit()
        old.close()


@SEEDS
def test_what_is_open_for_too_long_is_aborted_and_its_producer_fenced(seed: int) -> None:
    with opened(seed) as (cluster, simulation):
        producer = cluster.producer(transactional_id="t", transaction_timeout_ms=2_000)
        transaction = producer.transaction().__enter__()
        producer.send("out", b"slow", partition=0).result()
        with cluster.producer() as plain:
            plain.send("out", b"behind", partition=0)
        assert read(cluster) == []  # held back by the open one
        simulation.sleep(4)
        assert read(cluster) == [b"behind"]
        with pytest.raises(TransactionAbortableError, match="longer than transaction_timeout_ms=2000"):
            transaction.commit()
        with producer.transaction():
            producer.send("out", b"again", partition=0)
        assert read(cluster) == [b"behind", b"again"]
        producer.close()


def crash_the_coordinator(cluster: Any, simulation: Simulation, number: int) -> None:
    leader = coordinator(cluster)
    cluster.brokers[leader].crash()
    simulation.sleep(3)
    cluster.brokers[leader].start()


def crash_a_leader(cluster: Any, simulation: Simulation, number: int) -> None:
    leader = cluster.topic("out")[number % 3].leader
    if leader >= 0:
        cluster.brokers[leader].crash()
        simulation.sleep(2)
        cluster.brokers[leader].start()


def cut_the_coordinator_off(cluster: Any, simulation: Simulation, number: int) -> None:
    cluster.network.partition({coordinator(cluster)}, {0, 1, 2} - {coordinator(cluster)})
    simulation.sleep(15)
    cluster.network.heal()


def lose_messages(cluster: Any, simulation: Simulation, number: int) -> None:
    for a, b in ((0, 1), (1, 2), (0, 2)):
        cluster.network.drop(a, b, 0.4)
    simulation.sleep(5)
    cluster.network.heal()


def pause_a_leader(cluster: Any, simulation: Simulation, number: int) -> None:
    broker = cluster.brokers[number % 3]
    broker.pause()
    simulation.sleep(12)
    broker.resume()


def coordinator(cluster: Any) -> int:
    [image] = [
        image
        for number, image in enumerate(cluster._backend.topic("__transaction_state").partitions)
        if number == group_partition("t", 50)
    ]
    return int(max(image.leader, 0))


FAULTS = [crash_the_coordinator, crash_a_leader, cut_the_coordinator_off, lose_messages, pause_a_leader]


@SEEDS
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_all_or_none_through_faults(seed: int, fault: Any) -> None:
    """Each transaction is whole or not there; there if its commit returned, not there if it was aborted."""
    with opened(seed) as (cluster, simulation):
        told: dict[int, str] = {}

        def writes() -> None:
            options = {"request_timeout_ms": 2_000, "delivery_timeout_ms": 20_000}
            with cluster.producer(transactional_id="t", **options) as producer:
                for number in range(ROUNDS):
                    try:
                        with producer.transaction():
                            for partition in range(3):
                                producer.send("out", b"%d" % number, partition=partition)
                            if number % 4 == 3:
                                raise LookupError
                        told[number] = "committed"
                    except LookupError:
                        told[number] = "aborted"
                    except StreamlogError:
                        told[number] = "in doubt"
                    simulation.sleep(0.5)

        writing = simulation.spawn(writes)
        for number in range(3):
            simulation.sleep(1 + number / 3)
            fault(cluster, simulation, number)
        writing.result()
        simulation.sleep(30)
        seen: dict[int, int] = defaultdict(int)
        for value in read(cluster):
            seen[int(value)] += 1
        assert set(seen.values()) <= {3}, seen
        for number, fate in told.items():
            assert fate == "in doubt" or (number in seen) == (fate == "committed"), (number, fate, seen)
        assert len(told) == ROUNDS and "committed" in told.values()


# -- reading, processing, writing --------------------------------------------------------------------------------------


def fill(cluster: Any, count: int) -> None:
    cluster.create_topic("in", 3, replication_factor=3, config={"min.insync.replicas": 2})
    with cluster.producer() as producer:
        for number in range(count):
            producer.send("in", b"%04d" % number, key=b"%d" % number)


def process(cluster: Any, simulation: Simulation, name: str, is_over: Any, **options: Any) -> Any:
    """A worker that copies "in" to "out", exactly once; it begins anew after what it cannot go on from."""

    def work() -> None:
        group = cluster.consumer_group("g", ["in"], enable_auto_commit=False, session_timeout_ms=6_000)
        chance = simulation.random
        while not is_over():
            try:
                with (
                    group.consumer() as consumer,
                    cluster.producer(transactional_id=name, **options) as producer,
                ):
                    while not is_over():
                        with producer.transaction(consumer):
                            for record in consumer.poll(0.5, max_records=7):
                                producer.send("out", record.value, key=record.key)
                            if chance.random() < 0.1:
                                raise LookupError
            except LookupError:
                continue
            except StreamlogError:
                simulation.sleep(0.2)

    return simulation.spawn(work)


@SEEDS
@pytest.mark.parametrize("fault", [None, *FAULTS], ids=lambda fault: getattr(fault, "__name__", "no fault"))
def test_output_is_input_exactly_once_through_faults(seed: int, fault: Any) -> None:
    with opened(seed) as (cluster, simulation):
        fill(cluster, 200)
        over: list[bool] = []
        options = {
            "request_timeout_ms": 2_000,
            "delivery_timeout_ms": 20_000,
            "transaction_timeout_ms": 15_000,
        }
        workers = [
            process(cluster, simulation, f"t{n}" if n else "t", lambda: bool(over), **options)
            for n in range(2)
        ]
        for number in range(3):
            simulation.sleep(1 + number / 3)
            if fault is not None:
                fault(cluster, simulation, number)
        group = cluster.consumer_group("g", ["in"])
        for _ in range(240):
            if sum(group.lag().values()) == 0 and len(group.lag()) == 3:
                break
            simulation.sleep(0.5)
        over.append(True)
        for worker in workers:
            worker.result()
        simulation.sleep(20)
        assert sorted(read(cluster)) == [b"%04d" % number for number in range(200)]


@SEEDS
def test_who_takes_a_partition_over_waits_for_the_transaction_that_commits_its_offset(seed: int) -> None:
    """KIP-447: else it would read again what an open transaction is about to commit."""
    with opened(seed) as (cluster, simulation):
        fill(cluster, 30)
        group = cluster.consumer_group("g", ["in"], enable_auto_commit=False)
        with cluster.producer(transactional_id="t", transaction_timeout_ms=5_000) as producer:
            first = group.consumer()
            transaction = producer.transaction().__enter__()
            got: list[Any] = []
            while len(got) < 30:
                got += first.poll(1)
            transaction.commit_offsets(first)
            producer._send_offsets(list(transaction._offsets.items()))  # held from now on, and then it hangs
            first.close()
            second = group.consumer()
            assert second.poll(2) == [] and group.offsets() == {}
            with pytest.raises(UnstableOffsetCommitError, match="a transaction is about to commit"):
                group.consumer(default_api_timeout_ms=500).committed(("in", 0))
            simulation.sleep(5)  # its time is over: aborted
            got = []
            while len(got) < 30:
                got += second.poll(1)
            second.close()
            with pytest.raises(ProducerFencedError):
                transaction.commit()


@SEEDS
def test_offsets_of_a_transaction_survive_the_coordinator_of_their_group(seed: int) -> None:
    with opened(seed) as (cluster, simulation):
        fill(cluster, 30)
        group = cluster.consumer_group("g", ["in"], enable_auto_commit=False)
        with group.consumer() as consumer, cluster.producer(transactional_id="t") as producer:
            with producer.transaction(consumer) as transaction:
                got: list[Any] = []
                while len(got) < 30:
                    got += consumer.poll(1)
                transaction.commit_offsets(consumer)
                producer._send_offsets(list(transaction._offsets.items()))
                home = cluster._backend.coordinator.broker("g").id
                cluster.brokers[home].crash()
                simulation.sleep(1)
            assert sum(group.lag().values()) == 0
            cluster.brokers[home].start()
        simulation.sleep(1)
        assert sum(group.offsets().values()) == 30
