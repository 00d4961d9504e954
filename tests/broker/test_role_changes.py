"""Roles, epochs and leases where they change at awkward moments: each found by the hunt, as small as it could be made."""

from __future__ import annotations

from typing import Any

import pytest

import streamlog
from streamlog.broker.api import DeleteTopic
from streamlog.broker.upkeep import DropTopic
from streamlog.errors import NotLeaderOrFollowerError, UnknownTopicOrPartitionError
from streamlog.record import TopicPartition
from streamlog.testing import Simulation
from tests.spec.replicas import replicated


def replica(cluster: Any, broker_id: int, topic: str = "t") -> Any:
    return cluster._backend.peers.running(broker_id).partition(topic, 0)


def send(cluster: Any, count: int, acks: Any = "all", at_once: bool = False) -> None:
    with cluster.producer(acks=acks, linger_ms=50) as producer:
        futures = []
        for number in range(count):
            futures.append(producer.send("t", b"%d" % number))
            if not at_once:
                futures[-1].result(30)
        for future in futures:
            future.result(30)


def test_what_was_written_alone_has_its_epoch_however_the_next_begins() -> None:
    simulation = Simulation(3)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", replication_factor=1)
        send(cluster, 3)
        leader = cluster.topic("t")[0].leader
        cluster.brokers[leader].pause()
        simulation.sleep(15)  # fenced: nobody leads
        cluster.brokers[leader].resume()
        simulation.sleep(5)
        assert replica(cluster, leader).epochs.entries == ((0, 0), (2, 3))


def test_an_epoch_led_without_a_record_is_forgotten_where_the_log_goes_on_with_an_older_one() -> None:
    """The next leader has more of an older epoch than who led an epoch without writing anything."""
    from streamlog.broker.replica_requests import AppendAsFollower, CopiedPart, FetchPosition
    from streamlog.storage import log

    simulation = Simulation(4)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", replication_factor=2)
        send(cluster, 2)
        partition = cluster.topic("t")[0]
        first = partition.leader
        cluster.network.partition({first}, {1 - first, "metadata"})
        send(cluster, 2, acks=1)  # the cut-off leader's own: of epoch 0
        simulation.sleep(15)
        assert partition.leader == 1 - first
        source, follower = cluster._backend.peers.running(first), replica(cluster, 1 - first)
        assert follower.epochs.entries == ((0, 0), (1, 2))
        with source.environment.snapshot() as snapshot:
            batches = log.read(snapshot, follower.log_id, 2, 4, 1 << 20)
        # As if it had lost the leadership again, in epoch 2, to the broker that has those records.
        follower.leadership = None
        follower.take_role(first, 2, False, False)
        position = FetchPosition("t", 0, follower.topic_id, 2, 0, 2, 0)
        cluster._backend.peers.running(1 - first).call(
            AppendAsFollower([CopiedPart(follower, position, batches, 2, 0)])
        )
        assert follower.epochs.entries == ((0, 0),)
        assert follower.state.log_end_offset == 4


def test_a_reader_waits_while_a_slow_disk_takes_a_truncation() -> None:
    """With one baton, a reader that looked again and again would never let the turn end."""
    simulation = Simulation(6)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", replication_factor=2)
        send(cluster, 4)
        partition = cluster.topic("t")[0]
        broker = cluster._backend.peers.running(partition.leader)
        hosted = broker.partition("t", 0)
        hosted.is_cutting = True

        def cut_ends() -> None:
            simulation.sleep(0.5)
            hosted.is_cutting = False

        simulation.spawn(cut_ends)
        assert len(partition.read()) == 4
        assert simulation.now_ms >= 500


def test_a_proposal_answered_in_the_turn_that_would_send_it_again() -> None:
    from streamlog.broker.turn import Turn

    simulation = Simulation(7)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", replication_factor=2)
        send(cluster, 1)
        broker = cluster._backend.peers.running(cluster.topic("t")[0].leader)
        replication, partition = broker.replication, broker.partition("t", 0)
        simulation.sleep(1)
        sets = replication.in_sync_sets
        sets.proposals[partition] = (0, 0)
        sets.next_check_ms = 0
        turn = Turn(simulation.now_ms, 0)
        sets.on_tick(turn)
        sets.proposals.clear()
        for effect in turn.effects * 2:  # an apply may be run again
            effect()
        assert not sets.proposals


def test_who_ceases_to_lead_a_lone_replica_takes_no_record_in_that_turn() -> None:
    from streamlog.broker.api import Produce
    from streamlog.broker.replica_requests import Reconcile
    from streamlog.broker.turn import Pending
    from streamlog.errors import NotLeaderOrFollowerError
    from streamlog.storage import log

    simulation = Simulation(8)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", replication_factor=1)
        send(cluster, 1)
        leader = cluster.topic("t")[0].leader
        broker, hosted = cluster._backend.peers.running(leader), replica(cluster, leader)
        with broker.environment.snapshot() as snapshot:
            batches = log.read(snapshot, hosted.log_id, 0, 1, 1 << 20)
        cluster.brokers[leader].pause()
        simulation.sleep(15)
        assert cluster.topic("t")[0].leader is None
        produce = Pending(Produce([("t", 0, batches[0])], 1))
        broker.replication.mark([("t", 0)], 0)
        broker.slip_in(Reconcile())
        broker.put(produce)
        broker.paused = False
        broker.advance()
        assert isinstance(produce.reply[0].error, NotLeaderOrFollowerError)
        assert hosted.state.log_end_offset == 1


def test_who_waits_for_followers_of_a_deleted_topic_is_told_at_once() -> None:
    """Somebody asks for the topic after its deletion is committed, before the broker's DropTopic has come."""
    with replicated() as replicas:
        replicas.cluster.network.drop(0, 1)
        pending = replicas.post(b"a")
        replicas.sleep(0.1)
        assert not pending.done
        leader = replicas.broker(0)
        image = replicas.cluster._backend.ask_controller(DeleteTopic("t"))
        with pytest.raises(UnknownTopicOrPartitionError):
            leader.partition("t", 0)
        leader.call(DropTopic(image))
        assert isinstance(replicas.outcome(pending).error, NotLeaderOrFollowerError)


def test_a_lone_replica_that_was_silent_learns_its_role_before_it_decides_on_a_group() -> None:
    """The request that waited is older than the news that nobody leads."""
    simulation = Simulation(3)
    with streamlog.open(
        ":memory:", sync="off", runtime=simulation, offsets_topic_num_partitions=1
    ) as cluster:
        cluster.create_topic("t")
        with cluster.consumer(group_id="g", enable_auto_commit=False) as consumer:
            consumer.commit({("t", 0): 1})
            cluster.add_broker()
            offsets = cluster._backend.brokers[0].partitions["__consumer_offsets", 0]
            written: list[tuple[int, int]] = []
            publish = type(offsets).publish
            cluster.brokers[0].pause()
            commit = simulation.spawn(lambda: consumer.commit({("t", 0): 2}, timeout=60))
            simulation.sleep(15)
            assert cluster.topic("__consumer_offsets")[0].leader is None

            def noting(self: Any, state: Any) -> None:
                if self is offsets and state.log_end_offset > self.state.log_end_offset:
                    written.append((self.leader_id, state.leader_epoch))
                publish(self, state)

            with pytest.MonkeyPatch.context() as patching:
                patching.setattr(type(offsets), "publish", noting)
                cluster.brokers[0].resume()
                commit.result()
            leads = cluster.topic("__consumer_offsets")[0]
            assert leads.leader == 0 and written == [(0, 2)], "as the leader it became, not as that of before"
            assert consumer.committed(("t", 0)) == 2


def test_a_full_disk_that_hides_a_role_does_not_let_the_broker_run_in_circles() -> None:
    """A transaction is to be aborted for its age, who leads its id was just decided, and nothing can be written."""
    simulation = Simulation(1)
    with streamlog.open(":memory:", sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t")
        producer = cluster.producer(transactional_id="p", transaction_timeout_ms=4_000)
        producer.transaction().__enter__()
        producer.send("t", b"open")
        producer.flush()
        cluster.brokers[0].fill_disk()
        cluster.add_broker()  # which is to have replicas of the coordinators' topics
        switches = simulation.switches
        simulation.sleep(10)
        assert simulation.switches - switches < 2_000
        cluster.brokers[0].fill_disk(False)
        simulation.sleep(5)
        with cluster.consumer(isolation_level="read_committed") as reader:
            assert reader.end_offsets([("t", 0)]) == {TopicPartition("t", 0): 2}, (
                "its marker follows the record"
            )
