"""SEMANTICS 1.4, the controller's rows, a test per sentence. The docstring is the sentence.

Without eligible leader replicas (KIP-966), which streamlog does not have; what they would add is left out.
"""

from __future__ import annotations

import pytest

from streamlog.cluster_config import ClusterConfig, TopicConfig
from streamlog.core.broker_states import controlled_shutdown, fence, register, unfence
from streamlog.core.cluster_image import ClusterImage, PartitionImage
from streamlog.core.elections import elect_leaders, imbalanced_partitions
from streamlog.core.isr_changes import Alteration, Proposal, alter_partition
from streamlog.core.leases import LeaseTable
from streamlog.core.reassignment import reassign
from streamlog.errors import StreamlogError
from tests.core.clusters import allow, cluster, digits, partition, take


def only(image: ClusterImage) -> PartitionImage:
    return image.partition("t", 0)


def leader_and_isr(image: ClusterImage) -> tuple[int, str]:
    return only(image).leader, digits(only(image).isr)


def proposed(image: ClusterImage, isr: tuple[int, ...], **stale: int) -> Alteration:
    """What the present leader proposes, or, with `stale`, one that is behind."""
    p = only(image)
    epochs = {"leader_epoch": p.leader_epoch, "partition_epoch": p.partition_epoch, **stale}
    broker_epoch = image.brokers[p.leader].broker_epoch
    alteration = alter_partition(image, Proposal(p.leader, broker_epoch, "id-t", 0, isr=isr, **epochs))
    take(image, alteration.records)
    return alteration


def code_of(image: ClusterImage, election: str) -> int:
    outcome = elect_leaders(image, [("t", 0)], election)
    take(image, outcome.records)
    return next((error.code for error in outcome.errors.values()), 0)


# -- elections -------------------------------------------------------------------------------------------------------


def test_preferred_is_the_first_replica_in_the_assignment() -> None:
    """ONLINE/PREFERRED/UNCLEAN; preferred = first replica in assignment."""
    image = cluster(partition("1", "201", "012"))
    assert code_of(image, "preferred") == 0
    assert leader_and_isr(image) == (2, "012")


def test_leadership_is_given_back_every_300_s() -> None:
    """auto.leader.rebalance.enable true, check 300 s."""
    config = ClusterConfig()
    assert config.auto_leader_rebalance_enable and config.leader_imbalance_check_interval_seconds == 300
    image = cluster(*[partition("1", "01", "01")] * 2, partition("0", "01", "01"))
    wanted = imbalanced_partitions(image, config.leader_imbalance_per_broker_percentage)
    take(image, elect_leaders(image, wanted, "preferred").records)
    assert [p.leader for _, _, p in image.partitions()] == [0, 0, 0]


def test_unclean_leader_election_is_off() -> None:
    """`unclean.leader.election.enable` false."""
    assert not TopicConfig.with_overrides({}, ClusterConfig()).unclean_leader_election_enable
    image = cluster(partition("0", "01", "0"))
    take(image, fence(image, [0]))
    assert leader_and_isr(image) == (-1, "0")


@pytest.mark.parametrize(
    ("leader", "isr", "election", "code"),
    [
        ("0", "01", "preferred", 84),
        ("1", "01", "unclean", 84),
        ("1", "1", "preferred", 80),
        ("1", "01", "preferred", 0),
    ],
)
def test_elect_leaders_is_refused_by_number(leader: str, isr: str, election: str, code: int) -> None:
    """ElectLeaders: ELECTION_NOT_NEEDED(84), PREFERRED_LEADER_NOT_AVAILABLE(80), ..."""
    assert code_of(cluster(partition(leader, "01", isr)), election) == code


def test_elect_leaders_finds_nobody_eligible() -> None:
    """... ELIGIBLE_LEADERS_NOT_AVAILABLE(83)."""
    image = cluster(partition("0", "01", "01"))
    take(image, fence(image, [0, 1]))
    assert code_of(image, "unclean") == 83


# -- leader choice ---------------------------------------------------------------------------------------------------


def test_the_current_leader_is_kept_if_valid() -> None:
    """keep current if valid."""
    image = cluster(partition("2", "012", "012"))
    take(image, fence(image, [0]))
    assert leader_and_isr(image) == (2, "12")


def test_else_the_first_in_assignment_order_that_is_in_isr_and_alive() -> None:
    """else first in assignment order that is in ISR and alive."""
    image = cluster(partition("0", "0312", "0123"))
    take(image, fence(image, [0, 3]))
    assert leader_and_isr(image) == (1, "12")
    image = cluster(partition("0", "0312", "02"))
    take(image, fence(image, [0]))
    assert leader_and_isr(image) == (2, "2")


def test_else_unclean_the_first_alive_replica() -> None:
    """else UNCLEAN: first alive replica."""
    image = cluster(partition("0", "0312", "0"))
    take(image, fence(image, [0, 3], allow))
    assert leader_and_isr(image) == (1, "1")
    assert only(image).is_recovering


def test_else_there_is_no_leader() -> None:
    """else leader -1."""
    image = cluster(partition("0", "0312", "0"))
    before = only(image)
    take(image, fence(image, [0]))
    assert only(image).leader == -1
    assert (
        only(image).leader_epoch == before.leader_epoch + 1
    )  # nobody goes on writing as the leader of before


# -- last ISR member dies --------------------------------------------------------------------------------------------


def test_the_isr_stays_with_the_last_member_and_there_is_no_leader() -> None:
    """without ELR: ISR stays [that broker], leader -1."""
    image = cluster(partition("0", "012", "012"))
    for broker_id in (1, 0, 2):
        take(image, fence(image, [broker_id]))
    assert leader_and_isr(image) == (-1, "2")


def test_only_the_last_member_can_come_back_clean() -> None:
    """only it can come back clean."""
    image = cluster(partition("0", "012", "012"))
    for broker_id in (1, 0, 2):
        take(image, fence(image, [broker_id]))
    take(image, unfence(image, [0, 1]))
    assert leader_and_isr(image) == (-1, "2")
    take(image, register(image, 2, "again"))
    assert leader_and_isr(image) == (-1, "2")
    take(image, unfence(image, [2]))
    assert leader_and_isr(image) == (2, "2")
    assert not only(image).is_recovering


# -- broker states ---------------------------------------------------------------------------------------------------


def test_a_session_lasts_9_s_and_is_renewed_every_2() -> None:
    """heartbeat 2 s, session 9 s."""
    config = ClusterConfig()
    assert (config.broker_heartbeat_interval_ms, config.broker_session_timeout_ms) == (2_000, 9_000)
    leases = LeaseTable(config.broker_session_timeout_ms, config.broker_heartbeat_interval_ms)
    for broker_id in (1, 2):
        leases.renew(broker_id, 0)
    for now_ms in range(2_000, 10_000, 2_000):
        leases.renew(2, now_ms)
        assert leases.expired(now_ms) == []
    assert leases.expired(9_000) == [1]


def test_fenced_means_removed_from_all_isrs_and_leaderships_at_once() -> None:
    """fenced -> removed from all ISRs and leaderships at once."""
    image = cluster(partition("0", "01", "01"), partition("1", "10", "01"), partition("1", "12", "12"))
    take(image, fence(image, [0]))
    assert [(p.leader, digits(p.isr)) for _, _, p in image.partitions()] == [(1, "1"), (1, "1"), (1, "12")]


def test_controlled_shutdown_moves_off_first() -> None:
    """controlled shutdown -> moved off first."""
    image = cluster(partition("0", "01", "01"), partition("0", "02", "0"))
    shutdown = controlled_shutdown(image, 0)
    take(image, shutdown.records)
    assert not image.brokers[0].fenced  # it is still there
    assert leader_and_isr(image) == (1, "1")
    assert shutdown.remaining == [("t", 1)]
    take(image, fence(image, [0]))
    assert leader_and_isr(image) == (1, "1")


def test_an_unclean_restart_is_detected_by_the_broker_epoch() -> None:
    """unclean restart detected by broker epoch."""
    image = cluster(partition("0", "01", "01"))
    of_former_life = Proposal(0, image.brokers[0].broker_epoch, "id-t", 0, 5, 9, (0,))
    take(image, register(image, 0, "again"))  # it was never fenced: nobody had noticed
    assert leader_and_isr(image) == (1, "1")
    take(image, unfence(image, [0]))
    with pytest.raises(StreamlogError) as caught:
        alter_partition(image, of_former_life)
    assert caught.value.code == 77


# -- ISR change protocol ---------------------------------------------------------------------------------------------


def test_the_leader_proposes_with_the_partition_epoch_as_compare_and_swap() -> None:
    """leader proposes AlterPartition with partitionEpoch (CAS)."""
    image = cluster(partition("0", "012", "01"))
    epoch = only(image).partition_epoch
    assert proposed(image, (0, 1, 2)).partition.partition_epoch == epoch + 1
    with pytest.raises(StreamlogError) as caught:
        proposed(image, (0,), partition_epoch=epoch)
    assert caught.value.code == 95
    assert leader_and_isr(image) == (0, "012")


def test_the_controller_fences_a_former_leader() -> None:
    """controller errors: FENCED_LEADER_EPOCH."""
    image = cluster(partition("0", "012", "012"))
    with pytest.raises(StreamlogError) as caught:
        proposed(image, (0,), leader_epoch=only(image).leader_epoch - 1)
    assert caught.value.code == 74


@pytest.mark.parametrize("state", ["fenced", "leaving"])
def test_a_replica_that_is_fenced_or_shutting_down_is_ineligible(state: str) -> None:
    """INELIGIBLE_REPLICA(107)."""
    image = cluster(partition("0", "012", "01"), **{state: "2"})  # type: ignore[arg-type]
    with pytest.raises(StreamlogError) as caught:
        proposed(image, (0, 1, 2))
    assert caught.value.code == 107


def test_the_proposal_that_costs_the_leader_its_leadership_is_answered_so() -> None:
    """NEW_LEADER_ELECTED(108)."""
    image = cluster(partition("0", "01", "01"))
    take(image, reassign(image, "t", {0: [2, 1]}).records)
    error = proposed(image, (0, 1, 2)).error
    assert error is not None and error.code == 108
    assert leader_and_isr(image) == (2, "12")


# -- reassignment ----------------------------------------------------------------------------------------------------


def test_a_reassignment_has_adding_and_removing_sets() -> None:
    """adding/removing sets."""
    image = cluster(partition("0", "01", "01"))
    take(image, reassign(image, "t", {0: [2, 1]}).records)
    assert (only(image).adding, only(image).removing) == ((2,), (0,))
    assert set(only(image).replicas) == {0, 1, 2}
    assert leader_and_isr(image) == (0, "01")


def test_a_reassignment_completes_when_all_targets_are_in_the_isr() -> None:
    """completes when all targets in ISR."""
    image = cluster(partition("0", "01", "01"))
    take(image, reassign(image, "t", {0: [2, 3]}).records)
    assert proposed(image, (0, 1, 2)).partition.is_reassigning
    done = proposed(image, (0, 1, 2, 3)).partition
    assert (done.replicas, done.isr, done.adding, done.removing) == ((2, 3), (2, 3), (), ())


def test_a_reassignment_is_cancelable() -> None:
    """cancelable."""
    image = cluster(partition("0", "01", "01"))
    take(image, reassign(image, "t", {0: [2, 3]}).records)
    proposed(image, (0, 1, 2))
    take(image, reassign(image, "t", {0: None}).records)
    assert (only(image).replicas, leader_and_isr(image)) == ((0, 1), (0, "01"))
    assert not only(image).is_reassigning
