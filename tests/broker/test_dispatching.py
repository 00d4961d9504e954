"""What leaves together for one leader, and what must not."""

from __future__ import annotations

import streamlog
from streamlog.broker.api import Produce
from streamlog.broker.pending import Pending
from streamlog.testing import Simulation
from tests.broker.builders import batch_of


def test_no_request_travels_with_the_acks_of_another_producer() -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", partitions=3, replication_factor=2)
        first, *_, last = [p.number for p in cluster.topic("t").partitions if p.leader == 0]
        assert first != last
        cluster.brokers[1].pause()
        dispatcher = cluster._backend.peers.dispatcher
        now_ms = simulation.clock.wall_ms()
        careless = Pending(Produce([("t", first, batch_of(b"x", timestamp=now_ms))], 1))
        careful = Pending(Produce([("t", last, batch_of(b"y", timestamp=now_ms))], -1))
        dispatcher.put(careless)
        dispatcher.put(careful)
        dispatcher.advance()
        assert careless.done and careless.reply[0].base_offset == 0
        assert not careful.done, "acks=all waits for the follower, whoever else sends to the same leader"
        assert cluster.topic("t")[last].high_watermark == 0
        cluster.brokers[1].resume()
        dispatcher.wait(careful, 10_000)
        assert careful.reply[0].base_offset == 0
        assert cluster.topic("t")[last].high_watermark == 1
