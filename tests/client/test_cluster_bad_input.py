"""What makes no sense of several brokers gets a named error that says what was given, what is allowed, what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import streamlog
from streamlog.errors import (
    ConfigError,
    ElectionNotNeededError,
    EligibleLeadersNotAvailableError,
    IllegalStateError,
    InvalidReplicaAssignmentError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    LeaderNotAvailableError,
    NoReassignmentInProgressError,
    NotControllerError,
    PreferredLeaderNotAvailableError,
    StreamlogError,
    UnknownTopicOrPartitionError,
)
from streamlog.testing import Simulation


@pytest.fixture
def simulation() -> Simulation:
    return Simulation(1)


@pytest.fixture
def cluster(simulation: Simulation) -> Iterator[Any]:
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", replication_factor=3)
        yield cluster


WRONG: dict[str, tuple[Callable[[Any], object], type[StreamlogError], str]] = {
    "a factor above the brokers there are": (
        lambda c: c.create_topic("u", replication_factor=4),
        InvalidReplicationFactorError,
        r"4.*3",
    ),
    "a factor of zero": (
        lambda c: c.create_topic("u", replication_factor=0),
        InvalidReplicationFactorError,
        r"\b0\b",
    ),
    "a factor that is no number": (
        lambda c: c.create_topic("u", replication_factor="3"),
        InvalidReplicationFactorError,
        "'3'",
    ),
    "reassigning to an unknown broker": (
        lambda c: c.reassign("t", {0: [0, 9]}),
        InvalidReplicaAssignmentError,
        "9",
    ),
    "reassigning to a negative broker": (
        lambda c: c.reassign("t", {0: [-1]}),
        InvalidReplicaAssignmentError,
        "-1",
    ),
    "reassigning to one broker twice": (
        lambda c: c.reassign("t", {0: [1, 1]}),
        InvalidReplicaAssignmentError,
        "1",
    ),
    "reassigning to nobody": (lambda c: c.reassign("t", {0: []}), InvalidReplicaAssignmentError, "t-0"),
    "reassigning to something else": (
        lambda c: c.reassign("t", {0: ["1"]}),
        InvalidReplicaAssignmentError,
        "'1'",
    ),
    "reassigning to True": (lambda c: c.reassign("t", {0: [True]}), InvalidReplicaAssignmentError, "True"),
    "reassigning to a number": (lambda c: c.reassign("t", {0: 1}), ConfigError, "1"),
    "reassigning to a str": (lambda c: c.reassign("t", {0: "12"}), StreamlogError, "1"),
    "reassigning a list": (lambda c: c.reassign("t", [0, 1]), ConfigError, "partition"),
    "reassigning a partition there is not": (
        lambda c: c.reassign("t", {7: [0]}),
        UnknownTopicOrPartitionError,
        "7",
    ),
    "reassigning a topic there is not": (
        lambda c: c.reassign("nope", {0: [0]}),
        UnknownTopicOrPartitionError,
        "nope",
    ),
    "cancelling nothing": (lambda c: c.reassign("t", {0: None}), NoReassignmentInProgressError, "t-0"),
    "an election that is not needed": (lambda c: c.elect_leaders("t"), ElectionNotNeededError, "t-0"),
    "an unclean election of a led partition": (
        lambda c: c.elect_leaders("t", election="unclean"),
        ElectionNotNeededError,
        "t-0",
    ),
    "an election of another kind": (
        lambda c: c.elect_leaders("t", election="best"),
        StreamlogError,
        "best.*preferred",
    ),
    "an election of a topic there is not": (
        lambda c: c.elect_leaders("nope"),
        UnknownTopicOrPartitionError,
        "nope",
    ),
    "an election of a partition there is not": (
        lambda c: c.elect_leaders("t", [7]),
        UnknownTopicOrPartitionError,
        "7",
    ),
    "starting who runs": (lambda c: c.brokers[1].start(), IllegalStateError, "broker 1 runs already"),
    "resuming who is not paused": (
        lambda c: c.brokers[1].resume(),
        IllegalStateError,
        "broker 1 is not paused",
    ),
    "a disk of another kind of slowness": (lambda c: c.brokers[1].slow_disk(-1), ConfigError, "0 to 60000"),
    "a network of unknown brokers": (
        lambda c: c.network.partition({0}, {1, 9}),
        ConfigError,
        r"no broker 9; there are 0, 1, 2 and 'metadata'",
    ),
    "a network in one piece": (lambda c: c.network.partition({0, 1, 2}), ConfigError, "two or more groups"),
    "a broker in two pieces": (
        lambda c: c.network.partition({0, 1}, {1, 2}),
        ConfigError,
        "1 is in two groups",
    ),
    "a delay of the past": (lambda c: c.network.delay(0, 1, -1), ConfigError, "ms=-1.*allowed: 0 to"),
    "a link with one end": (lambda c: c.network.delay(0, 0, 1), ConfigError, "two ends"),
    "more than everything lost": (lambda c: c.network.drop(0, 1, 1.5), ConfigError, "1.5.*allowed: 0 to 1"),
    "a link to nobody": (lambda c: c.network.drop(0, 9), ConfigError, "no broker 9"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_makes_no_sense(cluster: Any, simulation: Simulation, name: str) -> None:
    call, kind, text = WRONG[name]
    before = repr(cluster._backend.metadata.image.topics)
    with pytest.raises(kind, match=text):
        call(cluster)
    assert repr(cluster._backend.metadata.image.topics) == before, "and nothing was changed"
    assert cluster.network.is_perfect and simulation.now_ms < 1_000


@pytest.mark.parametrize("brokers", [0, -1, 2.0, "three", True])
def test_impossible_numbers_of_brokers(brokers: object) -> None:
    with pytest.raises(ConfigError, match="brokers="):
        streamlog.open(":memory:", brokers=brokers)  # type: ignore[arg-type]


def test_a_factor_above_the_brokers_that_live(cluster: Any) -> None:
    cluster.brokers[2].crash()
    with pytest.raises(InvalidReplicationFactorError, match=r"3.*\b2\b"):
        cluster.create_topic("u", replication_factor=3)
    cluster.create_topic("v", replication_factor=2)
    assert 2 not in cluster.topic("v")[0].replicas


@pytest.mark.parametrize("fault", ["stop", "crash", "pause", "fill_disk"])
@pytest.mark.parametrize("first", ["stop", "crash"])
def test_a_fault_of_who_is_down_already(cluster: Any, first: str, fault: str) -> None:
    getattr(cluster.brokers[1], first)()
    with pytest.raises(
        IllegalStateError, match=r"broker 1 does not run; start it with cluster\.brokers\[1\]\.start\(\)"
    ):
        getattr(cluster.brokers[1], fault)()
    assert cluster.brokers[1].state == "down"
    cluster.brokers[1].start()
    assert cluster.brokers[1].state == "running"


def test_more_faults_than_replicas(cluster: Any, simulation: Simulation) -> None:
    with cluster.producer() as producer:
        producer.send("t", b"a").result(5)
        for broker in cluster.brokers:
            broker.crash()
        with pytest.raises(IllegalStateError, match="does not run"):
            cluster.brokers[0].crash()
        with pytest.raises(LeaderNotAvailableError, match=r"t-0.*none of them runs"):
            cluster.topic("t")[0].read()
        begun_ms = simulation.now_ms
        with pytest.raises((NotControllerError, InvalidReplicationFactorError)):
            cluster.create_topic("u")
        assert simulation.now_ms - begun_ms <= 61_000
        last = cluster._backend.metadata.image.partition("t", 0).isr
        for broker in cluster.brokers:
            broker.start()
        producer.send("t", b"b").result(30)
    assert [record.value for record in cluster.topic("t")[0].read()] == [b"a", b"b"] and len(last) == 1


def test_elections_that_find_nobody(cluster: Any) -> None:
    preferred = cluster.topic("t")[0].replicas[0]
    cluster.brokers[preferred].crash()
    with pytest.raises(PreferredLeaderNotAvailableError, match=str(preferred)):
        cluster.elect_leaders("t")
    cluster.create_topic("one", replication_factor=1)
    home = cluster.topic("one")[0].replicas[0]
    cluster.brokers[home].crash()
    with pytest.raises(EligibleLeadersNotAvailableError):
        cluster.elect_leaders("one", election="unclean")


def test_without_a_controller_everything_that_asks_for_one_ends(cluster: Any, simulation: Simulation) -> None:
    cluster.network.partition({0, 1, 2}, {"metadata"})
    simulation.sleep(30)
    begun_ms = simulation.now_ms
    with pytest.raises(NotControllerError, match="one that runs takes over as soon as") as caught:
        cluster.create_topic("u")
    assert caught.value.retriable and 50_000 < simulation.now_ms - begun_ms <= 61_000
    cluster.network.heal()
    cluster.create_topic("u")


@pytest.mark.parametrize("name", ["__consumer_offsets", "__transaction_state"])
def test_internal_topics_are_not_made_by_hand(name: str) -> None:
    """With options of a user's, retention say, committed offsets would be lost."""
    with streamlog.open(":memory:") as cluster:
        for exist_ok in (False, True):
            with pytest.raises(InvalidTopicError, match="internal"):
                cluster.create_topic(name, exist_ok=exist_ok)
