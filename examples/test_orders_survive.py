"""Does our order service survive the loss of a broker? Run it: pytest examples/test_orders_survive.py"""

import pytest

import streamlog
from streamlog.testing import Simulation


def shop(seed: int) -> tuple[list[bytes], list[bytes], int, int]:
    """100 orders while a leader crashes and comes back: what was acknowledged, what billing got, the trace's checksum."""
    simulation = Simulation(seed)
    acknowledged, billed = [], []
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation) as cluster:
        orders = cluster.create_topic("orders", replication_factor=3, config={"min.insync.replicas": 2})

        def take_orders() -> None:
            with cluster.producer(acks="all") as producer:
                for number in range(100):
                    producer.send("orders", b"order %d" % number, key=b"alice").result(timeout=30)
                    acknowledged.append(b"order %d" % number)
                    simulation.sleep(0.01)

        taking = simulation.spawn(take_orders)
        simulation.sleep(0.3)
        leader = cluster.brokers[orders[0].leader]
        leader.crash()
        simulation.sleep(0.3)
        leader.start()
        taking.result()
        with cluster.consumer_group("billing", ["orders"]).consumer(stop_at_end=True) as consumer:
            billed += [record.value for record in consumer]
        return acknowledged, billed, orders[0].leader_epoch, simulation.digest


@pytest.mark.parametrize("seed", [1, 2])
def test_a_crashed_leader_loses_no_acknowledged_order(seed: int) -> None:
    acknowledged, billed, leader_epoch, digest = shop(seed)
    assert billed == acknowledged and len(billed) == 100 and leader_epoch > 0
    assert shop(seed)[-1] == digest, "the same seed is the same story, switch by switch"
