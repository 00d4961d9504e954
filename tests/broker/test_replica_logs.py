"""What each replica has, seen beside the leader."""

from __future__ import annotations

import streamlog
from streamlog.broker.replica_logs import checksums, replica_logs
from streamlog.testing import Simulation


def test_replicas_are_alike_and_one_that_missed_something_is_not() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", replication_factor=3)
        cluster.create_topic("u", replication_factor=3)
        backend = cluster._backend
        with cluster.producer() as producer:
            for topic in ("t", "u"):
                producer.send_many(topic, [(b"k", b"%d" % n) for n in range(10)]).result()
            simulation.sleep(1)
            logs = replica_logs(backend, "t", 0)
            assert [(log.broker_id, log.log_end_offset, log.high_watermark) for log in logs] == [
                (broker, 10, 10) for broker in (0, 1, 2)
            ]
            sums = checksums(backend, "t", 0)
            assert sorted(sums) == [0, 1, 2] and len(set(sums.values())) == 1
            cluster.network.partition({0, 1}, {2})
            with cluster.producer(acks=1) as careless:
                careless.send("t", b"more").result()
                simulation.sleep(0.5)
            sums = checksums(backend, "t", 0)
            assert sums[0] == sums[1] != sums[2]
            assert [log.log_end_offset for log in replica_logs(backend, "t", 0)] == [11, 11, 10]
            cluster.network.heal()
            cluster.brokers[1].crash()
            simulation.sleep(3)
            assert sorted(checksums(backend, "t", 0)) == [0, 2], "who is down is left out"
            assert len(set(checksums(backend, "t", 0).values())) == 1
