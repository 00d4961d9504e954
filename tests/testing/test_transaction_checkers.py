"""The checkers of transactions and groups find what they are there for."""

from __future__ import annotations

import contextlib

import pytest

from streamlog.broker import api
from streamlog.record import Record
from streamlog.testing.checkers import InvariantViolatedError
from streamlog.testing.transaction_checkers import ExactlyOnce
from tests.testing.test_checkers import Opened, bend, found_by, opened, replica

__all__ = ("opened",)  # a fixture


def copies(*values: bytes) -> list[Record]:
    return [Record("copies", 0, offset, 0, None, value, ()) for offset, value in enumerate(values)]


@pytest.mark.parametrize(
    ("fate", "values", "is_wrong"),
    [
        ("committed", (b"0.1=1", b"0.2=1"), False),
        ("committed", (b"0.1=1",), True),
        ("committed", (), True),
        ("in doubt", (b"0.1=1", b"0.2=1"), False),
        ("in doubt", (), False),
        ("fenced", (b"0.1=1",), True),
        ("aborted", (), False),
    ],
)
def test_transactions_are_whole_and_their_workers_know(
    opened: Opened, fate: str, values: tuple[bytes, ...], is_wrong: bool
) -> None:
    checker = opened[2][ExactlyOnce]
    checker.on_transaction(1, 2, fate)
    checker.on_copies(copies(*values))
    if is_wrong:
        with pytest.raises(InvariantViolatedError, match="ExactlyOnce: transaction 1 is"):
            checker.on_all_copies(copies(*values))
    else:
        checker.on_all_copies(copies(*values))


def test_what_was_aborted_is_never_read_and_nothing_is_copied_twice(opened: Opened) -> None:
    checker = opened[2][ExactlyOnce]
    checker.on_transaction(1, 1, "aborted")
    with pytest.raises(InvariantViolatedError, match="was aborted"):
        checker.on_copies(copies(b"0.1=1"))
    checker.on_copies(copies(b"0.2=2"))
    checker.on_copies(copies(b"0.2=2"))  # the same again is no news
    with pytest.raises(InvariantViolatedError, match="orders-0 offset 2 was copied to"):
        checker.on_copies(copies(b"0.7=2", b"0.2=3"))


def test_a_stable_offset_that_passes_an_open_transaction(opened: Opened) -> None:
    cluster, simulation, checks = opened
    with cluster.producer(transactional_id="x") as producer:
        transaction = producer.transaction().__enter__()
        producer.send("t", b"open").result(5)
        checks.look()
        leader = cluster.topic("t")[0].leader
        checks._verified[replica(cluster, leader)] = 0
        bend(cluster, leader, first_unstable_offset=-1)
        assert found_by(checks) == "StableOffset"
        simulation.checks.clear()
        bend(cluster, leader, first_unstable_offset=3)
        transaction.abort()


def test_two_owners_of_a_partition(opened: Opened) -> None:
    cluster, simulation, checks = opened
    members = [cluster.consumer_group("g", ["t"]).consumer() for _ in range(2)]
    for member in members:
        checks.joined(member)
    for _ in range(30):
        for member in members:
            member.poll(0.05)
    checks.look()
    [owner, other] = sorted(members, key=lambda member: len(member.assignment), reverse=True)
    other._assigned.update(owner._assigned)
    assert found_by(checks) == "OneOwner"
    other._assigned.clear()
    checks.left(other)
    simulation.checks.clear()


def test_a_commit_that_goes_back(opened: Opened) -> None:
    checks = opened[2]
    checks.committed("g", {("t", 0): 5})
    checks.committed("g", {("t", 0): 6})
    checks.committed("other", {("t", 0): 1})
    with pytest.raises(InvariantViolatedError, match="CommitsMonotonic"):
        checks.committed("g", {("t", 0): 4})


def test_a_marker_nobody_has_decided(opened: Opened) -> None:
    cluster, simulation, checks = opened
    with cluster.producer(transactional_id="x") as producer:
        for is_commit in (True, False):
            with contextlib.suppress(LookupError), producer.transaction():
                producer.send("t", b"x").result(5)
                if not is_commit:
                    raise LookupError
        checks.look()
        request = api.WriteMarkers(99, 1, 0, True, [("t", 0)])
        with pytest.raises(InvariantViolatedError, match=r"MarkersFollowDecisions.*producer 99"):
            cluster._backend.leader("t", 0).call(request)
            simulation.sleep(1)
        simulation.checks.clear()
