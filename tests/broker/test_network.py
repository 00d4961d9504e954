"""The network between brokers: what arrives, what does not, and what may not be asked."""

from __future__ import annotations

import random
from typing import Any

import pytest

from streamlog.broker.network import METADATA, Network, down
from streamlog.errors import ConfigError
from streamlog.testing import Simulation


def network(brokers: int = 3, seed: int = 1) -> Network:
    return Network(lambda: list(range(brokers)), random.Random(seed))


def test_perfect_until_told() -> None:
    made = network()
    assert made.is_perfect and made.is_prompt(0, 1) and not made.is_cut(0, METADATA)
    assert repr(made) == "<Network perfect>"


def test_a_partition_cuts_between_groups_and_metadata_stays_with_most_brokers() -> None:
    made = network()
    made.partition({0}, {1, 2})
    assert made.is_cut(0, 1) and made.is_cut(2, 0) and not made.is_cut(1, 2)
    assert made.is_cut(0, METADATA) and not made.is_cut(1, METADATA)
    made.heal()
    assert made.is_perfect and not made.is_cut(0, 1)


@pytest.mark.parametrize(
    ("groups", "keeps"),
    [(({2, 3}, {0, 1}), 0), (({1}, {0}), 0), (({0}, {1, METADATA}), 1), (({3}, {1, 2}), 1)],
)
def test_where_metadata_stays(groups: Any, keeps: int) -> None:
    """Of equal groups with the lowest id; or where it is named."""
    made = network(4)
    made.partition(*groups)
    for group in groups:
        for node in group - {METADATA}:
            assert made.is_cut(node, METADATA) is (keeps not in group)


def test_who_is_not_named_keeps_all_links() -> None:
    made = network(4)
    made.partition({0}, {1})
    assert not made.is_cut(0, 3) and not made.is_cut(3, 1) and not made.is_cut(3, METADATA)


def test_a_delay_takes_its_time_and_nothing_else() -> None:
    simulation = Simulation()
    made = network()
    made.delay(0, 1, ms=50)
    assert not made.is_prompt(1, 0) and made.is_prompt(0, 2) and not made.is_cut(0, 1)
    assert made.carry(0, 1, simulation.waiter()) and simulation.now_ms == 50
    assert made.carry(0, 2, simulation.waiter()) and simulation.now_ms == 50
    made.delay(0, 1, ms=0)
    assert made.is_perfect


def test_drops_lose_their_share() -> None:
    made, waiter = network(), Simulation().waiter()
    made.drop(0, 1, 0.25)
    arrived = sum(made.carry(0, 1, waiter) for _ in range(2000))
    assert 1400 < arrived < 1600 and made.messages_lost == 2000 - arrived
    made.drop(0, 1)
    assert made.is_cut(0, 1) and not made.carry(1, 0, waiter)


def test_a_message_under_way_meets_the_fault_that_came_meanwhile() -> None:
    simulation = Simulation()
    made = network()
    made.delay(0, 1, ms=50)

    def cut() -> None:
        simulation.sleep(0.02)
        made.partition({0}, {1})

    simulation.spawn(cut)
    assert not made.carry(0, 1, simulation.waiter())


def test_whoever_waits_is_told_of_changes() -> None:
    made, told = network(), []
    made.on_change.append(lambda: told.append(made.is_perfect))
    made.partition({0}, {1})
    made.heal()
    assert told == [False, True]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda n: n.partition({0}), "two or more groups"),
        (lambda n: n.partition({0}, set()), "two or more groups"),
        (lambda n: n.partition(0, METADATA), r"partition\(0, 'metadata'\): allowed: two or more groups"),
        (lambda n: n.partition({0}, METADATA), "two or more groups"),
        (lambda n: n.partition({0}, {0, 1}), "in two groups"),
        (lambda n: n.partition({0}, {7}), "there is no broker 7; there are 0, 1, 2"),
        (lambda n: n.delay(0, 0, 5), "two ends"),
        (lambda n: n.delay(0, 1, -1), "allowed: 0 to"),
        (lambda n: n.delay(0, "controller", 5), "there is no broker 'controller'"),
        (lambda n: n.drop(0, 1, 1.5), "allowed: 0 to 1"),
        (lambda n: n.drop(0, True), "there is no broker True"),
    ],
)
def test_what_may_not_be_asked(call: Any, says: str) -> None:
    made = network()
    with pytest.raises(ConfigError, match=says):
        call(made)
    assert made.is_perfect


def test_repr_tells_the_faults() -> None:
    made = network()
    made.partition({0}, {1, 2})
    made.delay(1, 2, 5)
    made.drop(0, 2, 0.5)
    assert repr(made) == "<Network 0, 1/2/metadata, 1-2 5 ms, 0-2 drops 0.5>"


def test_a_broker_that_is_down_says_how_to_start_it() -> None:
    assert "cluster.brokers[2].start()" in str(down(2)) and down(2).retriable
