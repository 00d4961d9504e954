"""Brokers register, are fenced, come back and shut down; their partitions follow at once."""

from __future__ import annotations

import pytest

from streamlog.core.broker_states import (
    add_broker,
    check_broker_epoch,
    controlled_shutdown,
    elect_controller,
    elect_leaderless,
    fence,
    register,
    unfence,
)
from streamlog.core.cluster_image import (
    CONSUMER_OFFSETS_TOPIC,
    BrokerFenced,
    BrokerImage,
    BrokerRegistered,
    BrokerShuttingDown,
    BrokerUnfenced,
    ClusterImage,
    ControllerElected,
)
from streamlog.errors import BrokerIdNotRegisteredError, InvalidRequestError, StaleBrokerEpochError
from tests.core.clusters import allow, changed_topics, cluster, digits, partition, take


def shown(image: ClusterImage) -> str:
    """Leader and ISR of every partition, as `0:012 -:1`."""
    return " ".join(
        f"{digits([p.leader]) if p.leader >= 0 else '-'}:{digits(p.isr)}" for _, _, p in image.partitions()
    )


def three() -> ClusterImage:
    """Three partitions whose leaders are 0, 1, 2; of the last one only 2 is in sync."""
    return cluster(
        partition("0", "012", "012"), partition("1", "120", "120"), partition("2", "201", "2"), brokers="012"
    )


# -- fencing and coming back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fenced", "leaders"),
    [
        ([], "0:012 1:120 2:2"),
        ([0], "1:12 1:12 2:2"),
        ([1], "0:02 2:20 2:2"),
        ([2], "0:01 1:10 -:2"),
        ([0, 2], "1:1 1:1 -:2"),
        ([1, 2], "0:0 0:0 -:2"),
        ([2, 1, 0], "-:0 -:1 -:2"),
    ],
)
def test_fenced_brokers_leave_leaderships_and_isrs_at_once(fenced: list[int], leaders: str) -> None:
    image = three()
    records = take(image, fence(image, fenced))
    assert shown(image) == leaders
    assert [r for r in records if isinstance(r, BrokerFenced)] == [BrokerFenced(b, 1) for b in sorted(fenced)]
    assert image.active_brokers() == sorted({0, 1, 2} - set(fenced))
    assert fence(image, fenced) == []  # again: nothing left to decide


def test_a_partition_that_has_nothing_to_do_with_it_is_not_touched() -> None:
    image = three()
    assert changed_topics(fence(image, [0])) == [("t", 0), ("t", 1)]


@pytest.mark.parametrize(
    ("back", "leaders"),
    [
        ([0], "0:0 -:1 -:2"),
        ([1], "-:0 1:1 -:2"),
        ([2, 1], "-:0 1:1 2:2"),
        ([0, 1, 2], "0:0 1:1 2:2"),
    ],
)
def test_who_comes_back_leads_where_it_was_the_last(back: list[int], leaders: str) -> None:
    image = three()
    take(image, fence(image, [0, 1, 2]))
    records = take(image, unfence(image, back))
    assert shown(image) == leaders
    assert records[: len(back)] == [BrokerUnfenced(b, 1) for b in sorted(back)]
    assert unfence(image, back) == []


def test_where_the_topic_allows_it_any_replica_leads_rather_than_none() -> None:
    image = three()
    take(image, fence(image, [2], allow))
    assert shown(image) == "0:01 1:10 0:0"
    assert image.partition("t", 2).is_recovering
    take(image, fence(image, [0, 1], allow))
    assert shown(image) == "-:0 -:1 -:0"
    take(image, unfence(image, [2], allow))
    assert shown(image) == "2:2 2:2 2:2"


def test_allowing_unclean_elections_ends_the_wait_for_the_last_member() -> None:
    image = three()
    take(image, fence(image, [2]))
    assert elect_leaderless(image, lambda topic: False) == []
    take(image, elect_leaderless(image, allow))
    assert shown(image) == "0:01 1:10 0:0"


def test_a_broker_that_shuts_down_does_not_lead_when_it_is_unfenced() -> None:
    image = three()
    take(image, controlled_shutdown(image, 2).records)
    take(image, fence(image, [2]))
    records = take(image, unfence(image, [2]))
    assert records == [BrokerUnfenced(2, 1)] and not image.is_active(2)
    assert shown(image) == "0:01 1:10 -:2"


# -- controlled shutdown ---------------------------------------------------------------------------------------------


def test_a_controlled_shutdown_moves_what_it_can_and_names_the_rest() -> None:
    image = three()
    shutdown = controlled_shutdown(image, 2)
    records = take(image, shutdown.records)
    assert records[0] == BrokerShuttingDown(2, 1)
    assert shown(image) == "0:01 1:10 -:2"
    assert shutdown.remaining == [("t", 2)]
    again = controlled_shutdown(image, 2)
    assert (again.records, again.remaining) == ([], [("t", 2)])


def test_a_controlled_shutdown_of_a_broker_with_heirs_leaves_nothing() -> None:
    image = three()
    shutdown = controlled_shutdown(image, 0)
    take(image, shutdown.records)
    assert (shown(image), shutdown.remaining) == ("1:12 1:12 2:2", [])


# -- registering -----------------------------------------------------------------------------------------------------


def test_each_registration_is_a_new_life_that_begins_fenced() -> None:
    image = ClusterImage()
    assert take(image, register(image, 4, "a")) == [BrokerRegistered(4, "a", 1, fenced=True)]
    take(image, unfence(image, [4]))
    assert image.brokers[4] == BrokerImage("a", 1)
    take(image, register(image, 4, "b"))
    assert image.brokers[4] == BrokerImage("b", 2, fenced=True)


def test_who_registers_again_has_lost_what_its_former_life_led() -> None:
    image = three()
    take(image, controlled_shutdown(image, 1).records)
    take(image, register(image, 1, "again"))
    take(image, register(image, 2, "again"))
    assert shown(image) == "0:0 0:0 -:2"
    assert image.brokers[1] == BrokerImage("again", 2, fenced=True)  # no longer shutting down
    take(image, unfence(image, [1, 2]))
    assert shown(image) == "0:0 0:0 2:2"


@pytest.mark.parametrize("broker_id", [-1, True, "1", 1.0, None])
def test_what_is_no_broker_id_does_not_register(broker_id: int) -> None:
    with pytest.raises(InvalidRequestError, match="int >= 0"):
        register(ClusterImage(), broker_id, "i")


@pytest.mark.parametrize(("broker_id", "broker_epoch"), [(0, 0), (0, 2), (9, 1)])
def test_a_message_of_a_former_life_is_stale(broker_id: int, broker_epoch: int) -> None:
    check_broker_epoch(three(), 0, 1)
    with pytest.raises(StaleBrokerEpochError, match=f"broker {broker_id}"):
        check_broker_epoch(three(), broker_id, broker_epoch)


def test_decisions_about_unknown_brokers_are_refused() -> None:
    image = three()
    for decide in (
        lambda: fence(image, [0, 7]),
        lambda: unfence(image, [7]),
        lambda: controlled_shutdown(image, 7),
    ):
        with pytest.raises(BrokerIdNotRegisteredError, match=r"no broker 7; allowed: \[0, 1, 2\]"):
            decide()


def test_a_new_controller_has_a_higher_epoch() -> None:
    image = three()
    image.apply(ControllerElected(0, 4))
    assert elect_controller(image, 2) == ControllerElected(2, 5)


def test_a_broker_is_added_under_the_next_id_and_internal_topics_grow_to_three_replicas() -> None:
    image = cluster(
        partition("0", "0", "0"), partition("0", "0", "0"), brokers="0", topic=CONSUMER_OFFSETS_TOPIC
    )
    for expected in ["01 01", "012 012", "012 012"]:
        broker_id = len(image.brokers)
        [registered, *_] = take(image, add_broker(image, "new"))
        assert registered == BrokerRegistered(broker_id, "new", 1, fenced=True)
        moving = image.topic(CONSUMER_OFFSETS_TOPIC).partitions
        assert " ".join(digits(p.replicas) for p in moving) == expected
        take(image, unfence(image, [broker_id]))
        if expected != "012 012" or broker_id == 2:
            assert [p.adding for p in moving] == [(broker_id,)] * 2
            for number, p in enumerate(moving):  # the new replica catches up
                take(image, caught_up(image, number, (*p.isr, broker_id)))
    assert all(not p.is_reassigning for p in image.topic(CONSUMER_OFFSETS_TOPIC).partitions)


def caught_up(image: ClusterImage, number: int, isr: tuple[int, ...]) -> list[object]:
    from streamlog.core.isr_changes import Proposal, alter_partition

    p = image.partition(CONSUMER_OFFSETS_TOPIC, number)
    proposal = Proposal(
        p.leader, 1, f"id-{CONSUMER_OFFSETS_TOPIC}", number, p.leader_epoch, p.partition_epoch, isr
    )
    return [*alter_partition(image, proposal).records]


def test_new_terms_for_leaders_of_several_replicas() -> None:
    """At each opening: the same leaders and in-sync sets, in higher epochs; those with one replica go on."""
    from streamlog.core import controller
    from streamlog.core.broker_states import new_terms
    from streamlog.core.cluster_image import BrokerRegistered, ClusterImage

    image = ClusterImage()
    for broker_id in (0, 1):
        image.apply(BrokerRegistered(broker_id, "x"))
    for name, factor in (("alone", 1), ("pair", 2)):
        image.apply(controller.decide_create_topic(image, name, f"id of {name}", 1, factor, {}))
    before = {name: topic.partitions[0] for name, topic in image.topics.items()}
    for record in new_terms(image):
        image.apply(record)
    image._check()
    after = {name: topic.partitions[0] for name, topic in image.topics.items()}
    assert after["alone"] == before["alone"]
    assert (after["pair"].leader, after["pair"].isr) == (before["pair"].leader, before["pair"].isr)
    assert after["pair"].leader_epoch == before["pair"].leader_epoch + 1
    assert after["pair"].partition_epoch == before["pair"].partition_epoch + 1
