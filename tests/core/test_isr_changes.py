"""AlterPartition: the compare-and-swap, its errors in Kafka's order, and what it completes."""

from __future__ import annotations

import msgspec
import pytest

from streamlog.core.cluster_image import ClusterImage
from streamlog.core.isr_changes import Alteration, Proposal, alter_partition
from streamlog.errors import StreamlogError
from tests.core.clusters import EPOCHS, allow, cluster, digits, ids, partition, take

LEADER_EPOCH, PARTITION_EPOCH = EPOCHS


def proposal(isr: str, broker_id: int = 0, **fields: object) -> Proposal:
    given = Proposal(broker_id, 1, "id-t", 0, LEADER_EPOCH, PARTITION_EPOCH, ids(isr))
    return msgspec.structs.replace(given, **fields)


def propose(image: ClusterImage, asked: Proposal) -> Alteration:
    alteration = alter_partition(image, asked)
    take(image, alteration.records)
    assert alteration.partition == image.partition("t", 0)
    return alteration


# Each row mends what the row before it was refused for. Partition t-0: leader 0, replicas 01234, ISR 01; broker 3 is
# fenced, 4 shuts down, epochs 5 and 9, broker epochs 1. The recovering column is the proposal's; "-" leaves as is.
REFUSED = """
broker epoch topic number leader_epoch partition_epoch isr    recovering seen | error
1      7     id-x  7      6            8               -      yes        -    | StaleBrokerEpochError
8      1     id-x  7      6            8               -      yes        -    | StaleBrokerEpochError
1      1     id-x  7      6            8               -      yes        -    | UnknownTopicIdError
1      1     id-t  7      6            8               -      yes        -    | UnknownTopicOrPartitionError
1      1     id-t  0      6            8               -      yes        -    | NotControllerError
1      1     id-t  0      4            10              -      yes        -    | NotControllerError
1      1     id-t  0      4            8               -      yes        -    | FencedLeaderEpochError
1      1     id-t  0      5            8               -      yes        -    | InvalidRequestError
0      1     id-t  0      5            8               -      yes        -    | InvalidUpdateVersionError
0      1     id-t  0      5            9               -      yes        -    | InvalidRequestError
0      1     id-t  0      5            9               0110   yes        -    | InvalidRequestError
0      1     id-t  0      5            9               035    yes        -    | InvalidRequestError
0      1     id-t  0      5            9               13     yes        -    | InvalidRequestError
0      1     id-t  0      5            9               013    yes        -    | InvalidRequestError
0      1     id-t  0      5            9               0      yes        -    | InvalidRequestError
0      1     id-t  0      5            9               013    no         -    | IneligibleReplicaError
0      1     id-t  0      5            9               014    no         -    | IneligibleReplicaError
0      1     id-t  0      5            9               012    no         2    | IneligibleReplicaError
0      1     id-t  0      5            9               012    no         1    | -
"""


@pytest.mark.parametrize("row", REFUSED.strip().splitlines()[1:])
def test_what_a_proposal_is_refused_for_in_order(row: str) -> None:
    given, expected = row.split("|")
    broker, epoch, topic_id, number, leader_epoch, partition_epoch, isr, recovering, seen = given.split()
    image = cluster(partition("0", "01234", "01"), brokers="012345", fenced="3", leaving="4")
    asked = Proposal(
        int(broker),
        int(epoch),
        topic_id,
        int(number),
        int(leader_epoch),
        int(partition_epoch),
        ids(isr),
        recovering == "yes",
        {} if seen == "-" else {2: int(seen)},
    )
    if expected.strip() == "-":
        assert propose(image, asked).partition.isr == ids(isr)
        return
    before = image.checkpoint()
    with pytest.raises(StreamlogError) as caught:
        alter_partition(image, asked)
    assert type(caught.value).__name__ == expected.strip()
    assert image.checkpoint() == before


@pytest.mark.parametrize("isr", ["0", "01", "012", "20"])
def test_the_isr_shrinks_and_grows_without_a_new_leader_epoch(isr: str) -> None:
    image = cluster(partition("0", "012", "01"))
    alteration = propose(image, proposal(isr))
    after = alteration.partition
    assert (digits(after.isr), after.leader, after.leader_epoch) == (isr, 0, LEADER_EPOCH)
    assert after.partition_epoch == PARTITION_EPOCH + (isr != "01")
    assert alteration.error is None


def test_of_two_proposals_with_the_same_partition_epoch_one_wins() -> None:
    image = cluster(partition("0", "012", "01"))
    propose(image, proposal("012"))
    with pytest.raises(StreamlogError) as caught:
        alter_partition(image, proposal("0"))
    assert (caught.value.code, caught.value.partition_epoch) == (95, PARTITION_EPOCH + 1)
    propose(image, proposal("0", partition_epoch=PARTITION_EPOCH + 1))


def test_a_leader_that_was_elected_uncleanly_says_when_it_has_recovered() -> None:
    image = cluster(partition("0", "012", "0", recovering=True))
    assert propose(image, proposal("0", is_recovering=True)).records == []
    with pytest.raises(StreamlogError, match="recovering is alone"):
        alter_partition(image, proposal("01", is_recovering=True))
    assert not propose(image, proposal("01")).partition.is_recovering


def test_a_proposal_that_completes_a_reassignment_is_told_what_became_of_it() -> None:
    image = cluster(partition("0", "201", "01", "2", "1"))
    alteration = propose(image, proposal("012"))
    after = alteration.partition
    assert (after.leader, digits(after.replicas), digits(after.isr)) == (0, "20", "02")
    assert (alteration.error, after.leader_epoch) == (
        None,
        LEADER_EPOCH + 1,
    )  # 1 left: what it sends is refused


def test_a_proposal_may_cost_the_leader_its_leadership() -> None:
    image = cluster(partition("0", "210", "01", "2", "0"))
    alteration = propose(image, proposal("012"))
    after = alteration.partition
    assert (after.leader, digits(after.replicas), digits(after.isr)) == (2, "21", "12")
    assert alteration.error is not None and alteration.error.code == 108
    assert alteration.error.leader == 2


def test_the_topics_choice_of_unclean_elections_changes_nothing_for_a_leader_that_stays() -> None:
    image = cluster(partition("0", "012", "01"))
    after = alter_partition(image, proposal("0"), allow).partition
    assert (after.leader, after.isr, after.is_recovering) == (0, (0,), False)
