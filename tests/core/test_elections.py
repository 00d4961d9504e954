"""Elections by hand, per partition errors, and when leadership is given back."""

from __future__ import annotations

import pytest

from streamlog.core.cluster_image import ClusterImage
from streamlog.core.elections import elect_leaders, election_of, imbalanced_partitions
from streamlog.core.partition_changes import Election
from streamlog.errors import InvalidRequestError
from tests.core.clusters import add_topic, changed_topics, cluster, digits, partition, take

# One partition; 3 is fenced. Errors in the order of precedence.
ASKED = """
leader replicas isr partition | election  | error
0      012      012 9         | preferred | UnknownTopicOrPartitionError
0      012      012 0         | preferred | ElectionNotNeededError
2      012      012 0         | unclean   | ElectionNotNeededError
2      012      12  0         | preferred | PreferredLeaderNotAvailableError
0      302      02  0         | preferred | PreferredLeaderNotAvailableError
-      302      3   0         | preferred | PreferredLeaderNotAvailableError
-      3        3   0         | unclean   | EligibleLeadersNotAvailableError
2      012      012 0         | preferred | 0:012
-      302      3   0         | unclean   | 0:0
"""


@pytest.mark.parametrize("row", ASKED.strip().splitlines()[1:])
def test_what_an_election_is_refused_for_in_order(row: str) -> None:
    given, election, expected = (cell.strip() for cell in row.split("|"))
    leader, replicas, isr, number = given.split()
    image = cluster(partition(leader, replicas, isr), fenced="3")
    asked = ("t", int(number))
    outcome = elect_leaders(image, [asked, asked], election)
    take(image, outcome.records)
    if ":" in expected:
        after = image.partition("t", 0)
        assert (f"{after.leader}:{digits(after.isr)}", outcome.errors) == (expected, {})
        assert after.is_recovering == (election == "unclean")
    else:
        assert outcome.records == []
        assert {where: type(error).__name__ for where, error in outcome.errors.items()} == {asked: expected}


def test_one_refused_partition_does_not_stop_the_others() -> None:
    image = cluster(partition("1", "01", "01"), partition("1", "01", "1"), partition("0", "01", "01"))
    outcome = elect_leaders(image, [("t", 2), ("nix", 0), ("t", 0), ("t", 1)], Election.PREFERRED)
    assert changed_topics(outcome.records) == [("t", 0)]
    assert {where: error.code for where, error in outcome.errors.items()} == {
        ("t", 2): 84,
        ("nix", 0): 3,
        ("t", 1): 80,
    }


def test_of_all_partitions_those_that_need_no_election_are_no_errors() -> None:
    image = cluster(partition("1", "01", "01"), partition("1", "01", "1"), partition("0", "01", "01"))
    outcome = elect_leaders(image, None, "preferred")
    assert changed_topics(outcome.records) == [("t", 0)]
    assert list(outcome.errors) == [("t", 1)]


@pytest.mark.parametrize("election", ["online", Election.ONLINE, "", None, "PREFERRED"])
def test_clients_cannot_ask_for_other_elections(election: str) -> None:
    with pytest.raises(InvalidRequestError, match="'preferred', 'unclean'"):
        elect_leaders(cluster(partition("0", "01", "01")), None, election)
    assert election_of("unclean") is Election.UNCLEAN


# -- giving leadership back ------------------------------------------------------------------------------------------


def imbalanced(lost: int, kept: int, **cluster_options: str) -> ClusterImage:
    """Broker 0 is preferred for `lost + kept` partitions and leads `kept` of them."""
    partitions = [partition("1", "01", "01")] * lost + [partition("0", "01", "01")] * kept
    return cluster(*partitions, **cluster_options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lost", "kept", "percentage", "given_back"),
    [
        (0, 10, 0, 0),
        (1, 9, 0, 1),
        (1, 9, 9, 1),
        (1, 9, 10, 0),
        (2, 8, 10, 2),
        (10, 0, 99, 10),
        (10, 0, 100, 0),
    ],
)
def test_leadership_is_given_back_above_the_percentage(
    lost: int, kept: int, percentage: int, given_back: int
) -> None:
    image = imbalanced(lost, kept)
    assert imbalanced_partitions(image, percentage) == [("t", number) for number in range(given_back)]
    take(image, elect_leaders(image, imbalanced_partitions(image, percentage), "preferred").records)
    assert imbalanced_partitions(image, percentage) == []


def test_each_broker_is_weighed_for_itself() -> None:
    image = imbalanced(1, 0)
    add_topic(image, "u", [partition("1", "12", "12")] * 19 + [partition("2", "12", "12")])
    assert imbalanced_partitions(image, 10) == [("t", 0)]
    assert imbalanced_partitions(image, 4) == [("t", 0), ("u", 19)]


def test_only_what_an_election_would_give_is_given_back() -> None:
    image = cluster(
        partition("1", "31", "1"),  # the preferred leader is fenced
        partition("1", "01", "1"),  # not in sync
        partition("1", "012", "01", "-", "2"),  # being reassigned
        partition("1", "01", "01"),
        fenced="3",
    )
    assert imbalanced_partitions(image, 0) == [("t", 3)]
