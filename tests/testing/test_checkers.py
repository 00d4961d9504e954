"""Each checker finds what it is there for, over a real cluster whose state is bent by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import streamlog
from streamlog.core.leader_epochs import EpochEntry, EpochHistory
from streamlog.record import Record
from streamlog.testing import Simulation
from streamlog.testing.checkers import (
    EachOnceInOrder,
    InvariantViolatedError,
)
from streamlog.testing.checks import CHECKERS, Checks

Opened = tuple[Any, Simulation, Checks]


@pytest.fixture
def opened() -> Iterator[Opened]:
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", replication_factor=3)
        checks = Checks(simulation, cluster)
        with cluster.producer() as producer:
            for number in range(3):
                metadata = producer.send("t", b"%d" % number).result(5)
                checks.acked("t", 0, metadata.offset)
        simulation.sleep(1)
        yield cluster, simulation, checks
        simulation.checks.clear()


def replica(cluster: Any, broker_id: int) -> Any:
    return cluster._backend.peers.running(broker_id).partition("t", 0)


def bend(cluster: Any, broker_id: int, **changes: Any) -> None:
    """Give a replica another state, as a turn would."""
    partition = replica(cluster, broker_id)
    partition.state = msgspec.structs.replace(partition.state, **changes)
    cluster._backend.peers.running(broker_id).turns_total += 1


def bend_image(cluster: Any, **changes: Any) -> None:
    metadata = cluster._backend.metadata
    topic = metadata.image.topics["t"]
    partition = msgspec.structs.replace(topic.partitions[0], **changes)
    metadata.image.topics["t"] = msgspec.structs.replace(topic, partitions=(partition,))
    metadata.turns_total += 1


def followers(cluster: Any) -> list[int]:
    return [broker_id for broker_id in (0, 1, 2) if broker_id != cluster.topic("t")[0].leader]


def found_by(checks: Checks) -> str:
    with pytest.raises(InvariantViolatedError) as caught:
        checks.look()
    return caught.value.checker


def test_a_healthy_cluster_has_nothing_to_find(opened: Opened) -> None:
    cluster, _, checks = opened
    checks.look()
    assert checks.batches_compared >= 9 and not checks.unconverged()
    checks.read(cluster.topic("t")[0].read())
    checks.told("t", 0, 3)


def test_a_high_watermark_that_goes_back(opened: Opened) -> None:
    cluster, _, checks = opened
    bend(cluster, cluster.topic("t")[0].leader, high_watermark=2)
    assert found_by(checks) == "HighWatermarkMonotonic"


def test_an_end_that_consumers_are_told_goes_back(opened: Opened) -> None:
    _, _, checks = opened
    checks.told("t", 0, 3)
    with pytest.raises(InvariantViolatedError, match="HighWatermarkMonotonic"):
        checks.told("t", 0, 2)


def test_a_leader_that_lacks_committed_records(opened: Opened) -> None:
    cluster, _, checks = opened
    bend(cluster, cluster.topic("t")[0].leader, high_watermark=2, log_end_offset=2, leader_epoch=7)
    assert found_by(checks) == "CommittedNeverLost"


def test_a_follower_with_other_bytes(opened: Opened) -> None:
    cluster, _, checks = opened
    batches = checks.logs[cluster.topic("t").topic_id, 0].batches
    for offset, batch in batches.items():
        batches[offset] = msgspec.structs.replace(batch, checksum=batch.checksum + 1)
    follower = replica(cluster, followers(cluster)[0])
    checks._verified[follower] = 0
    bend(cluster, followers(cluster)[0], size_bytes=1)
    assert found_by(checks) == "LogsIdentical"


def test_a_follower_that_knows_more_than_any_leader(opened: Opened) -> None:
    cluster, _, checks = opened
    bend(cluster, followers(cluster)[0], high_watermark=9, log_end_offset=9)
    assert found_by(checks) == "LogsIdentical"


def test_a_member_in_sync_that_lacks_committed_records(opened: Opened) -> None:
    cluster, _, checks = opened
    bend(cluster, followers(cluster)[0], high_watermark=2, log_end_offset=2, truncation_count=1)
    assert found_by(checks) == "IsrHoldsCommitted"


def test_two_leaders_of_one_epoch(opened: Opened) -> None:
    cluster, _, checks = opened
    replica(cluster, followers(cluster)[0]).serves = True
    bend(cluster, followers(cluster)[0], size_bytes=1)
    assert found_by(checks) == "OneLeaderPerEpoch"


def test_a_leader_outside_of_its_isr(opened: Opened) -> None:
    cluster, _, checks = opened
    bend_image(cluster, isr=tuple(followers(cluster)), partition_epoch=9)
    assert found_by(checks) == "LeaderInIsr"


def test_an_image_that_goes_back(opened: Opened) -> None:
    cluster, _, checks = opened
    bend_image(cluster, partition_epoch=-1, isr=(0, 2, 1))
    assert found_by(checks) == "ImageInvariants"


def test_a_hole_in_the_offsets(opened: Opened) -> None:
    from streamlog.storage.keys import pack_key

    cluster, _, checks = opened
    broker = cluster._backend.peers.running(followers(cluster)[0])
    follower = replica(cluster, broker.id)
    transaction = broker.environment.write()
    transaction.delete(pack_key(follower.log_id, 1))
    transaction.commit()
    checks._verified[follower] = 0
    bend(cluster, broker.id, size_bytes=1)
    assert found_by(checks) == "OffsetsDense"


def test_epochs_that_say_something_else_than_the_log(opened: Opened) -> None:
    cluster, _, checks = opened
    follower = replica(cluster, followers(cluster)[0])
    follower.epochs = EpochHistory((EpochEntry(0, 0), EpochEntry(1, 1)))
    checks._verified[follower] = 0
    bend(cluster, followers(cluster)[0], size_bytes=1)
    assert found_by(checks) == "EpochsMatchLog"


def test_an_acknowledgement_before_the_commit(opened: Opened) -> None:
    _, _, checks = opened
    with pytest.raises(InvariantViolatedError, match="AckedSurvives"):
        checks.acked("t", 0, 3)


def test_a_read_past_the_high_watermark(opened: Opened) -> None:
    _, _, checks = opened
    with pytest.raises(InvariantViolatedError, match="NoUncommittedRead"):
        checks.read([Record("t", 0, 3, 0, None, b"x", ())])


def test_another_record_at_an_offset_that_was_read(opened: Opened) -> None:
    _, _, checks = opened
    checks.read([Record("t", 0, 1, 0, None, b"1", ())])
    with pytest.raises(InvariantViolatedError, match="NoUncommittedRead"):
        checks.read([Record("t", 0, 1, 0, None, b"x", ())])


@pytest.mark.parametrize(
    ("offsets", "what"),
    [
        ({5: b"0-7", 6: b"0-7"}, "twice"),
        ({5: b"0-7", 6: b"0-6"}, "reordered"),
        ({6: b"0-6", 5: b"0-7"}, "reordered"),
    ],
)
def test_what_an_idempotent_producer_sent_is_there_once_and_in_order(
    opened: Opened, offsets: dict[int, bytes], what: str
) -> None:
    cluster, _, checks = opened
    checker, committed = checks[EachOnceInOrder], checks.logs[cluster.topic("t").topic_id, 0]
    records = [Record("t", 0, offset, 0, None, value, ()) for offset, value in offsets.items()]
    checker.on_read(committed, records[:1])
    checker.on_read(committed, records[:1])  # the same again is no news
    checker.on_read(
        committed, [Record("t", 0, 9, 0, None, b"1-3", ()), Record("t", 0, 1, 0, None, b"other", ())]
    )
    checker.on_read(
        committed, [Record("t", 0, 2, 0, None, b"loose-1-3", ()), Record("t", 0, 3, 0, None, None, ())]
    )
    with pytest.raises(InvariantViolatedError, match="EachOnceInOrder"):
        checker.on_read(committed, records[1:])


def test_what_was_acknowledged_is_where_it_was_told_to_be(opened: Opened) -> None:
    cluster, _, checks = opened
    checker, committed = checks[EachOnceInOrder], checks.logs[cluster.topic("t").topic_id, 0]
    checker.on_acked(committed, 2, b"0-7")
    with pytest.raises(InvariantViolatedError, match="EachOnceInOrder"):
        checker.on_read(committed, [Record("t", 0, 3, 0, None, b"0-7", ())])


def test_a_cluster_that_has_not_converged(opened: Opened) -> None:
    cluster, simulation, checks = opened
    cluster.brokers[followers(cluster)[0]].crash()
    assert checks.unconverged()
    for broker in cluster.brokers:
        if broker.state == "down":
            broker.start()
    simulation.sleep(3)
    assert not checks.unconverged()


def test_every_checker_is_tested_here() -> None:
    here = Path(__file__)
    source = here.read_text(encoding="utf-8") + here.with_name("test_transaction_checkers.py").read_text(
        encoding="utf-8"
    )
    assert not [kind.__name__ for kind in CHECKERS if source.count(kind.__name__) < 1]
