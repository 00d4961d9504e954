"""Reassignments: begun, replaced, completed, cancelled; and the internal topics' growth."""

from __future__ import annotations

import pytest

from streamlog.core.broker_states import fence
from streamlog.core.cluster_image import CONSUMER_OFFSETS_TOPIC, ClusterImage, PartitionImage
from streamlog.core.reassignment import raise_internal_factors, reassign
from streamlog.errors import NoReassignmentInProgressError, UnknownTopicOrPartitionError
from tests.core.clusters import (
    EPOCHS,
    allow,
    changed_topics,
    check_epochs,
    cluster,
    digits,
    ids,
    partition,
    take,
)


def shown(p: PartitionImage) -> str:
    leader = "-" if p.leader < 0 else str(p.leader)
    return " ".join([leader, *map(digits, (p.replicas, p.isr, p.adding, p.removing))])


# Before, the target ("cancel" cancels), and after; the epochs that rise. Brokers 0 to 5; 5 is fenced.
MOVES = """
leader replicas isr adding removing | to     | leader replicas isr adding removing | epochs
0      01       01  -      -        | 01     | 0      01       01  -      -        | -
0      01       01  -      -        | 10     | 0      10       01  -      -        | p
0      01       01  -      -        | 21     | 0      210      01  2      0        | p
0      01       01  -      -        | 23     | 0      2301     01  23     01       | p
0      01       01  -      -        | 012    | 0      012      01  2      -        | p
0      01       01  -      -        | 05     | 0      051      01  5      1        | p
0      01       01  -      -        | 0      | 0      0        0   -      -        | lp
0      01       01  -      -        | 1      | 1      1        1   -      -        | lp
1      01       1   -      -        | 0      | 1      01       1   -      1        | p
-      50       5   -      -        | 5      | -      5        5   -      -        | lp
0      210      01  2      0        | cancel | 0      10       01  -      -        | lp
0      2301     012 23     01       | cancel | 0      01       01  -      -        | lp
2      2301     2   23     01       | 3      | 2      3201     2   32     201      | p
2      2301     20  23     01       | cancel | 0      01       0   -      -        | lp
1      01       1   -      1        | cancel | 1      01       1   -      -        | p
0      012      01  2      -        | cancel | 0      01       01  -      -        | lp
0      210      01  2      0        | 31     | 0      310      01  3      0        | lp
0      210      01  2      0        | 01     | 0      01       01  -      -        | lp
0      210      01  2      0        | 21     | 0      210      01  2      0        | -
2      2301     20  23     01       | 45     | 0      4501     0   45     01       | lp
2      2301     2   23     01       | 45     | 2      452301   2   4523   2301     | p
2      452301   2   4523   2301     | 42     | 2      4201     2   42     01       | lp
2      452301   20  4523   2301     | cancel | 0      01       0   -      -        | lp
0      201      012 -      12       | 20     | 0      20       02  -      -        | lp
"""


@pytest.mark.parametrize("row", MOVES.strip().splitlines()[1:])
def test_where_the_replicas_go(row: str) -> None:
    given, target, expected, epochs = (" ".join(cell.split()) for cell in row.split("|"))
    leader, replicas, isr, adding, removing = given.split()
    image = cluster(partition(leader, replicas, isr, adding, removing), brokers="012345", fenced="5")
    before = image.partition("t", 0)
    outcome = reassign(image, "t", {0: None if target == "cancel" else ids(target)})
    take(image, outcome.records)
    after = image.partition("t", 0)
    assert (outcome.errors, shown(after)) == ({}, expected)
    rises = (after.leader_epoch - EPOCHS[0], after.partition_epoch - EPOCHS[1])
    assert rises == ("l" in epochs, "p" in epochs)
    check_epochs(before, after)


# In the order of precedence. The partition is t-0: replicas 01, both in sync; brokers 0 to 3.
REFUSED = """
partition | to        | error
7         | None      | UnknownTopicOrPartitionError
-1        | []        | UnknownTopicOrPartitionError
0         | []        | InvalidReplicaAssignmentError
0         | [0, 7]    | InvalidReplicaAssignmentError
0         | [-1]      | InvalidReplicaAssignmentError
0         | ["1"]     | InvalidReplicaAssignmentError
0         | [True]    | InvalidReplicaAssignmentError
0         | [0, 1, 0] | InvalidReplicaAssignmentError
0         | None      | NoReassignmentInProgressError
"""


@pytest.mark.parametrize("row", REFUSED.strip().splitlines()[1:])
def test_what_a_reassignment_is_refused_for(row: str) -> None:
    number, target, expected = (cell.strip() for cell in row.split("|"))
    image = cluster(partition("0", "01", "01"), partition("0", "01", "01"))
    outcome = reassign(image, "t", {int(number): eval(target), 1: [2]})
    assert [type(error).__name__ for error in outcome.errors.values()] == [expected]
    assert changed_topics(outcome.records) == [("t", 1)]  # the other one is not stopped by it


def test_an_unknown_topic_is_refused_as_a_whole() -> None:
    with pytest.raises(UnknownTopicOrPartitionError, match="nix"):
        reassign(ClusterImage(), "nix", {0: [0]})


def test_cancelling_where_nobody_of_before_is_in_sync_takes_an_unclean_election() -> None:
    def stuck() -> ClusterImage:
        return cluster(partition("2", "2013", "2", "2", "013"), fenced="0")

    image = stuck()
    [error] = reassign(image, "t", {0: None}).errors.values()
    assert error.code == 39 and "unclean" in str(error)
    take(image, reassign(image, "t", {0: None}, allow).records)
    after = image.partition("t", 0)
    assert (shown(after), after.is_recovering) == ("1 013 1 - -", True)

    image = stuck()
    take(image, fence(image, [1, 3]))
    take(image, reassign(image, "t", {0: None}, allow).records)
    assert shown(image.partition("t", 0)) == "- 013 0 - -"


def test_cancelling_twice_is_refused() -> None:
    image = cluster(partition("0", "210", "01", "2", "0"))
    take(image, reassign(image, "t", {0: None}).records)
    [error] = reassign(image, "t", {0: None}).errors.values()
    assert isinstance(error, NoReassignmentInProgressError)


def test_a_target_that_is_fenced_is_waited_for() -> None:
    image = cluster(partition("0", "01", "01"))
    take(image, reassign(image, "t", {0: [2, 1]}).records)
    take(image, fence(image, [2]))
    assert shown(image.partition("t", 0)) == "0 210 01 2 0"


# -- internal topics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("brokers", "fenced", "expected"),
    [
        ("0", "-", ["0", "0", "0"]),
        ("01", "-", ["01", "01", "01"]),
        ("012", "-", ["012", "021", "012"]),
        ("01234", "-", ["012", "023", "034"]),
        ("01234", "1", ["023", "023", "034"]),
        ("01234", "123", ["041", "042", "043"]),
    ],
)
def test_internal_topics_are_spread_over_three_brokers(
    brokers: str, fenced: str, expected: list[str]
) -> None:
    internal = [partition("0", "0", "0")] * 3
    image = cluster(*internal, brokers=brokers, fenced=fenced, topic=CONSUMER_OFFSETS_TOPIC)
    take(image, raise_internal_factors(image, ids(brokers)))
    after = image.topic(CONSUMER_OFFSETS_TOPIC).partitions
    assert [digits(p.replicas) for p in after] == expected
    assert all(p.leader == 0 and p.isr == (0,) and p.adding == p.replicas[1:] for p in after)
    assert raise_internal_factors(image, ids(brokers)) == []


def test_neither_users_topics_nor_what_is_being_moved_is_touched() -> None:
    image = cluster(partition("0", "0", "0"))
    assert raise_internal_factors(image, [0, 1, 2, 3]) == []
    image = cluster(partition("0", "10", "0", "1", "0"), topic=CONSUMER_OFFSETS_TOPIC)
    assert raise_internal_factors(image, [0, 1, 2, 3]) == []
