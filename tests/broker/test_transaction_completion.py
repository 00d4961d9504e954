"""Decided transactions are completed, whoever dies before the last marker, and none before its decision stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog.broker import lifecycle, transaction_completion
from streamlog.broker.transaction_completion import Completing, Completions
from streamlog.broker.transaction_coordinators import coordinator_of
from streamlog.core.transaction import State, TransactionState
from streamlog.record import TopicPartition
from streamlog.testing import Simulation

SEEDS = pytest.mark.parametrize("seed", range(3))


def opened(seed: int = 1, **options: Any) -> tuple[Any, Simulation]:
    simulation = Simulation(seed)
    cluster = streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation, **options)
    cluster.create_topic("t", 3, replication_factor=3)
    return cluster, simulation


def state_of(cluster: Any) -> State | None:
    known = coordinator_of(cluster._backend, "t").coordinator.transactions._states.get("t")
    return None if known is None else known.state


def read(cluster: Any) -> list[bytes]:
    with cluster.consumer(isolation_level="read_committed", stop_at_end=True) as reader:
        reader.assign([("t", number) for number in range(3)])
        return [record.value for record in reader]


def keep_markers(monkeypatch: pytest.MonkeyPatch) -> list[Completing]:
    """No marker is sent from now on; what would have been."""
    kept: list[Completing] = []
    monkeypatch.setattr(Completions, "_send", lambda self, completing: kept.append(completing))
    return kept


@SEEDS
def test_the_next_coordinator_writes_the_markers_of_one_that_died_in_between(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, simulation = opened(seed)
    with cluster:
        producer = cluster.producer(transactional_id="t", max_block_ms=1_000)
        with monkeypatch.context() as patched:
            kept = keep_markers(patched)
            with producer.transaction():
                for partition in range(3):
                    producer.send("t", b"%d" % partition, partition=partition)
            assert kept and state_of(cluster) is State.PREPARE_COMMIT and read(cluster) == []
            first = coordinator_of(cluster._backend, "t").id
            cluster.brokers[first].crash()
        simulation.sleep(12)
        assert state_of(cluster) is State.COMPLETE_COMMIT
        assert sorted(read(cluster)) == [b"0", b"1", b"2"]
        with producer.transaction():
            producer.send("t", b"next", partition=0)
        assert b"next" in read(cluster)
        producer.close()
        cluster.brokers[first].start()


@SEEDS
def test_a_coordinator_that_comes_back_goes_on(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All brokers die with the decision in their logs."""
    cluster, simulation = opened(seed)
    with cluster:
        producer = cluster.producer(transactional_id="t", max_block_ms=1_000)
        with monkeypatch.context() as patched:
            keep_markers(patched)
            with producer.transaction():
                producer.send("t", b"x", partition=0)
            for broker in cluster.brokers:
                broker.crash()
        for broker in cluster.brokers:
            broker.start()
        simulation.sleep(12)
        assert read(cluster) == [b"x"]
        producer.close()


def test_who_asked_is_answered_when_its_time_is_over_and_the_decision_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster, simulation = opened()
    with cluster, cluster.producer(transactional_id="t", max_block_ms=2_000) as producer:
        with monkeypatch.context() as patched:
            keep_markers(patched)
            begun_ms = simulation.now_ms
            with producer.transaction():
                producer.send("t", b"x", partition=0)
            assert 2_000 <= simulation.now_ms - begun_ms <= 2_200
        simulation.sleep(1)
        assert read(cluster) == [b"x"]


def test_a_partition_nobody_leads_gets_its_marker_when_somebody_does() -> None:
    cluster, simulation = opened()
    with cluster, cluster.producer(transactional_id="t", max_block_ms=2_000) as producer:
        cluster.create_topic("lone", replication_factor=1)
        leader = cluster.topic("lone")[0].leader
        transaction = producer.transaction().__enter__()
        producer.send("lone", b"x").result()
        producer.send("t", b"y", partition=(leader + 1) % 3).result()
        cluster.brokers[leader].crash()
        transaction.commit()
        assert state_of(cluster) is State.PREPARE_COMMIT
        cluster.brokers[leader].start()
        simulation.sleep(3)
        assert state_of(cluster) is State.COMPLETE_COMMIT
        with cluster.consumer(isolation_level="read_committed", stop_at_end=True) as reader:
            reader.assign([("lone", 0)])
            assert [record.value for record in reader] == [b"x"]


def test_a_deleted_topic_needs_no_marker() -> None:
    cluster, _ = opened()
    with cluster, cluster.producer(transactional_id="t") as producer:
        cluster.create_topic("gone", replication_factor=3)
        with producer.transaction():
            producer.send("gone", b"x").result()
            producer.send("t", b"y", partition=0).result()
            cluster.delete_topic("gone")
        assert state_of(cluster) is State.COMPLETE_COMMIT and read(cluster) == [b"y"]


def test_markers_go_again_until_they_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, simulation = opened()
    with cluster, cluster.producer(transactional_id="t") as producer:
        with producer.transaction():
            producer.send("t", b"0", partition=0)
        lost: list[object] = []
        ask = Completions._ask

        def loses(self: Completions, completing: Completing, leader_id: int, partitions: Any) -> None:
            if len(lost) < 3:
                lost.append(partitions)
            else:
                ask(self, completing, leader_id, partitions)

        monkeypatch.setattr(Completions, "_ask", loses)
        begun_ms = simulation.now_ms
        with producer.transaction():
            producer.send("t", b"1", partition=0)
        assert len(lost) == 3
        assert simulation.now_ms - begun_ms >= 3 * transaction_completion.MARKERS_AGAIN_MS
        assert sorted(read(cluster)) == [b"0", b"1"]


def test_no_marker_leaves_before_the_decision_is_replicated() -> None:
    cluster, _ = opened()
    with cluster:
        with cluster.producer(transactional_id="t") as producer, producer.transaction():
            producer.send("t", b"0", partition=0)
        broker = coordinator_of(cluster._backend, "t")
        [partition] = [
            one
            for one in broker.partitions.values()
            if one.topic == "__transaction_state" and one.state.log_end_offset
        ]
        asked: list[object] = []
        completions = Completions(broker)
        completions._ask = lambda *arguments: asked.append(arguments)  # type: ignore[method-assign]
        prepared = TransactionState(7, 1, 1_000, State.PREPARE_COMMIT, (TopicPartition("t", 0),), 1, 1)
        for behind, count in ((1, 0), (0, 1)):
            end_offset = partition.state.high_watermark + behind
            completing = Completing("x", prepared, partition, end_offset, 0)
            completions.resume(completing)
            completions._send(completing)
            assert len(asked) == count


def test_what_a_process_has_decided_is_completed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by SIGKILL: the cleaner loaded the partition before the brokers knew each other, and nobody copied it."""
    opening = lifecycle.open_peers

    def watched(cluster: Any, peers: Any) -> None:
        cluster.housekeeping.wake()  # as a fold that has grown enough does
        opening(cluster, peers)
        assert not cluster.housekeeping._transactions_loaded

    monkeypatch.setattr(lifecycle, "open_peers", watched)
    for number in range(3):
        simulation = Simulation(number)
        with streamlog.open(tmp_path / "c", brokers=3, sync="off", runtime=simulation) as cluster:
            cluster.create_topic("t", 3, replication_factor=3, exist_ok=True)
            simulation.sleep(3)
            assert sorted(read(cluster)) == [b"%d" % before for before in range(number)]
            with monkeypatch.context() as patched:
                keep_markers(patched)
                producer = cluster.producer(transactional_id="t", max_block_ms=1_000)
                with producer.transaction():
                    producer.send("t", b"%d" % number, partition=number)
                assert state_of(cluster) is State.PREPARE_COMMIT
                producer.close()
