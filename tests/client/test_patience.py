"""Look-ups during a failover wait for a leader, and no longer than they may."""

from __future__ import annotations

from typing import Any

import pytest

import streamlog
from streamlog.errors import LeaderNotAvailableError
from streamlog.testing import Simulation


class Asked:
    """An object with a backend that is (not) replicated, and a look-up that fails some times."""

    def __init__(self, simulation: Simulation, failures: int, is_replicated: bool = True) -> None:
        self.runtime = simulation
        self.is_replicated = is_replicated
        self._backend = self
        self.failures = failures
        self.calls = 0

    from streamlog.client.patience import patient

    @patient
    def look_up(self, what: str, *, how: str = "") -> tuple[str, str]:
        """Its own docstring."""
        self.calls += 1
        if self.calls <= self.failures:
            raise LeaderNotAvailableError("nobody")
        return what, how


def test_again_until_somebody_leads() -> None:
    simulation = Simulation()
    asked = Asked(simulation, 3)
    assert asked.look_up("a", how="b") == ("a", "b")
    assert asked.calls == 4 and simulation.now_ms == 10 + 20 + 40
    assert Asked.look_up.__doc__ == "Its own docstring."


def test_no_longer_than_the_default_timeout() -> None:
    simulation = Simulation()
    with pytest.raises(LeaderNotAvailableError):
        Asked(simulation, 10**9).look_up("a")
    assert 60_000 <= simulation.now_ms < 61_000


def test_one_broker_alone_is_not_waited_for() -> None:
    simulation = Simulation()
    with pytest.raises(LeaderNotAvailableError):
        Asked(simulation, 1, is_replicated=False).look_up("a")
    assert simulation.now_ms == 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda cluster, group: cluster.groups,
        lambda cluster, group: group.offsets(),
        lambda cluster, group: group.lag(),
        lambda cluster, group: group.members(),
        lambda cluster, group: group.state,
        lambda cluster, group: group.reset_offsets("earliest"),
        lambda cluster, group: cluster.consumer(group_id="g").committed(("t", 0)),
        lambda cluster, group: cluster.consumer().end_offsets([("t", 0)]),
        lambda cluster, group: cluster.consumer().beginning_offsets([("t", 0)]),
        lambda cluster, group: cluster.consumer().offsets_for_times({("t", 0): 0}),
    ],
)
def test_while_nobody_leads(ask: Any) -> None:
    simulation = Simulation(1)
    with streamlog.open(
        ":memory:", brokers=2, sync="off", runtime=simulation, offsets_topic_num_partitions=1
    ) as cluster:
        cluster.create_topic("t", replication_factor=2)
        group = cluster.consumer_group("g", ["t"])
        with cluster.producer() as producer:
            producer.send("t", b"a").result(5)
        with group.consumer(stop_at_end=True) as consumer:
            assert len(list(consumer)) == 1
        expected = ask(cluster, group)
        for number in (0, 1):
            cluster.brokers[number].crash()

        def repair() -> None:
            simulation.sleep(3)
            for number in (0, 1):
                cluster.brokers[number].start()

        simulation.spawn(repair)
        begun_ms = simulation.now_ms
        assert ask(cluster, group) == expected
        assert 3_000 <= simulation.now_ms - begun_ms < 10_000
