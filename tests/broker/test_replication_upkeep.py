"""Several brokers and what happens beside producing: deletion, retention, compaction, reassignment, one broker more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import streamlog
from streamlog.broker.controlling import BrokerLost
from streamlog.broker.pending import Tick
from streamlog.broker.replica_requests import Reconcile
from streamlog.errors import NetworkError
from streamlog.testing import Simulation

Opened = tuple[Any, Simulation]


@pytest.fixture
def opened() -> Iterator[Opened]:
    simulation = Simulation(1)
    with streamlog.open(
        ":memory:", brokers=3, sync="off", runtime=simulation, offsets_topic_num_partitions=1
    ) as cluster:
        cluster.create_topic("t", partitions=1, replication_factor=3)
        yield cluster, simulation


def running(cluster: Any, broker_id: int) -> Any:
    return cluster._backend.peers.running(broker_id)


def starts(cluster: Any, topic: str = "t") -> dict[int, int]:
    """Broker -> log start offset."""
    return {
        broker.id: partition.state.log_start_offset
        for broker in cluster._backend.brokers
        if (partition := broker.partitions.get((topic, 0))) is not None
    }


def send(cluster: Any, count: int, topic: str = "t") -> None:
    with cluster.producer() as producer:
        producer.send_many(topic, [(b"key", b"%d" % number) for number in range(count)])


# -- one broker more, one replica more ---------------------------------------------------------------------------------


def test_who_was_alone_lives_on_when_another_broker_is_added() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", partitions=1)
        with cluster.producer() as producer:
            producer.send("t", b"a").result(5)
            cluster.add_broker()
            simulation.sleep(60)
            assert cluster.topic("t")[0].leader == 0, "it renewed no lease, and was fenced for ever"
            assert cluster._backend.metadata.image.inactive_brokers() == []
            producer.send("t", b"b").result(5)


def test_a_single_broker_that_came_back_goes_on_deciding() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", sync="off", runtime=simulation) as cluster:
        cluster.brokers[0].stop()
        cluster.brokers[0].start()
        for number in range(20):
            simulation.sleep(2)
            cluster.create_topic(f"t{number}", partitions=1)
        assert simulation.now_ms < 41_000, "somebody waited for a controller"


def test_a_replica_more_is_waited_for_from_the_turn_on_that_learns_of_it() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", partitions=1, replication_factor=1)
        leader = cluster.topic("t")[0].leader
        cluster.brokers[leader].stop()
        cluster.brokers[leader].start()
        send(cluster, 1)
        partition = running(cluster, leader).partitions["t", 0]
        assert partition.is_alone and partition.leadership is not None
        cluster.reassign("t", {0: [leader, 1 - leader]})
        assert not partition.is_alone, "what is appended now is acknowledged without asking the new replica"
        simulation.sleep(2)
        assert cluster.topic("t")[0].isr == (0, 1)
        cluster.reassign("t", {0: [leader]})
        assert partition.is_alone


def test_a_new_replica_begins_in_the_middle_of_a_batch(opened: Opened) -> None:
    cluster, simulation = opened
    cluster.create_topic("u", partitions=1, replication_factor=2)
    send(cluster, 10, "u")
    partition = cluster.topic("u")[0]
    partition.delete_records(5)
    [newest] = {0, 1, 2} - set(partition.replicas)
    cluster.reassign("u", {0: [newest, *partition.replicas]})
    simulation.sleep(3)
    assert set(partition.isr) == {0, 1, 2}, "its first batch begins below the log start"
    assert set(starts(cluster, "u").values()) == {5}
    assert running(cluster, newest).partitions["u", 0].state.log_end_offset == 10
    cluster.brokers[partition.leader].crash()
    assert partition.leader == newest
    assert [record.offset for record in partition.read(5)] == [5, 6, 7, 8, 9]


def test_what_a_broker_that_was_down_has_of_partitions_moved_away_is_deleted(opened: Opened) -> None:
    cluster, simulation = opened
    send(cluster, 10)
    cluster.brokers[2].stop()
    cluster.reassign("t", {0: [0, 1]})
    cluster.brokers[2].start()
    simulation.sleep(1)
    assert running(cluster, 2).delete_orphans() == 1
    simulation.sleep(1)
    assert running(cluster, 2).delete_orphans() == 0
    cluster.reassign("t", {0: [0, 1, 2]})
    simulation.sleep(3)
    assert cluster.topic("t")[0].isr == (0, 1, 2)


# -- logs get shorter ---------------------------------------------------------------------------------------------------


def test_deleted_records_stay_deleted_when_the_leader_goes(opened: Opened) -> None:
    cluster, simulation = opened
    send(cluster, 10)
    simulation.sleep(1)
    assert cluster.topic("t")[0].delete_records(5) == 5
    simulation.sleep(1)
    assert starts(cluster) == {0: 5, 1: 5, 2: 5}
    cluster.brokers[cluster.topic("t")[0].leader].crash()
    assert cluster.topic("t")[0].log_start_offset == 5


def test_retention_and_compaction_on_leaders_and_followers(opened: Opened) -> None:
    cluster, simulation = opened
    cluster.create_topic("old", partitions=2, replication_factor=2, config={"retention.ms": 1000})
    cluster.create_topic(
        "compacted", partitions=1, replication_factor=3, config={"cleanup.policy": "compact"}
    )
    for _ in range(5):
        send(cluster, 10, "compacted")
        with cluster.producer() as producer:
            producer.send("old", b"x", partition=0).result(5)
    simulation.sleep(5)
    report = cluster._backend.housekeeping.run_now()
    assert report.retained == 1, "the leader, whose followers hear of it"
    assert report.compacted == 3
    simulation.sleep(1)
    assert list(starts(cluster, "old").values()) == [5, 5]
    states = [broker.partitions["compacted", 0].state for broker in cluster._backend.brokers]
    assert len({state.size_bytes for state in states}) == 1 and states[0].log_end_offset == 50
    cluster.brokers[1].pause()
    assert cluster._backend.housekeeping.run_now().retained == 0, "who is silent is not waited for"


# -- topics and groups go --------------------------------------------------------------------------------------------


def test_a_deleted_topic_leaves_nothing_behind(opened: Opened) -> None:
    cluster, simulation = opened
    send(cluster, 1)
    cluster.network.partition({0, 1, "metadata"}, {2})
    producer = cluster.producer(delivery_timeout_ms=3_000, request_timeout_ms=2_000)
    future = producer.send("t", b"b")
    producer._hurry(future.batch)
    simulation.sleep(0.5)
    leader = running(cluster, cluster.topic("t")[0].leader)
    assert leader.replication.acknowledgements.count == 1
    cluster.delete_topic("t")
    assert leader.replication.acknowledgements.count == 0, "nobody will ever fetch it"
    assert future.exception(30) is not None
    cluster.network.heal()
    simulation.sleep(60)
    for broker in cluster._backend.brokers:
        replication = broker.replication
        sets = replication.in_sync_sets
        assert not (sets.behind or replication._unsaved or sets.proposals), broker
        assert not broker.partitions and not broker.deletions.doomed


def test_a_group_leaves_a_broker_that_loses_its_replica(opened: Opened) -> None:
    cluster, simulation = opened
    group = cluster.consumer_group("g", ["t"])
    with group.consumer() as consumer:
        consumer.poll(1)
        old = cluster.topic("__consumer_offsets")[0].leader
        cluster.reassign("__consumer_offsets", {0: [b for b in (0, 1, 2) if b != old]})
        simulation.sleep(1)
        assert cluster.topic("__consumer_offsets")[0].leader != old
        coordinator = running(cluster, old).coordinator
        assert not coordinator._hosted and not coordinator._folds, "it would go on writing for its groups"
        consumer.poll(1)
        assert consumer.assignment


def test_a_turn_that_ends_a_coordinator_s_role_writes_nothing_for_its_groups(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, _ = opened
    with cluster.consumer_group("g", ["t"]).consumer() as member:
        member.poll(1)
        old = cluster.topic("__consumer_offsets")[0].leader
        broker = running(cluster, old)
        partition = broker.partitions["__consumer_offsets", 0]
        coordinator, end = broker.coordinator, partition.state.log_end_offset
        machine = type(coordinator._hosted["g"].machine)
        expire = machine.on_deadline
        monkeypatch.setattr(machine, "on_deadline", lambda self, now, wall: expire(self, now + 600_000, wall))
        coordinator.deadlines._heap.insert(0, (broker._clock.monotonic_ms(), "g"))
        broker.paused = True
        cluster._backend.metadata.call(BrokerLost(old))
        broker.replication.mark([("__consumer_offsets", 0)], 1 << 40)
        broker.slip_in(Reconcile())
        broker.slip_in(Tick())
        broker.paused = False
        turns = broker.turns_total
        broker.advance()
        assert broker.turns_total == turns + 1, "both in one turn"
        assert partition.leadership is None
        assert partition.state.log_end_offset == end, "written as by a leader, into an epoch of another's"
        monkeypatch.undo()


def test_of_a_partition_without_a_leader_nobody_is_asked(opened: Opened) -> None:
    cluster, simulation = opened
    for broker_id in (2, 1, 0):
        cluster.brokers[broker_id].crash()
        simulation.sleep(1)
    cluster.brokers[2].start()  # out of the ISR, so there is still no leader
    simulation.sleep(1)
    assert cluster.topic("t")[0].leader is None
    assert cluster._backend.peers.fetchers() == []


def test_a_change_reaches_the_others_while_a_broker_is_stopping(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its last turn and the moment when the cluster no longer counts on it a broker refuses what it is told."""
    cluster, simulation = opened
    send(cluster, 1)
    simulation.sleep(1)
    going = running(cluster, 0)

    def refuse(request: object, **_: Any) -> None:
        raise NetworkError("broker 0 was stopped")

    monkeypatch.setattr(going, "post", refuse)
    cluster.topic("t").alter_config({"retention.ms": 1234})
    told = [running(cluster, broker_id).partition("t", 0).config.retention_ms for broker_id in (1, 2)]
    assert told == [1234, 1234]
