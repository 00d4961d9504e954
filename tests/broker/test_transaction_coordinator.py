"""The coordinator of transactions inside of a broker: loading, deferring, what a full disk leaves.

What users see of it: tests/client/test_transactions.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamlog.batch import Batch, seal_columnar
from streamlog.broker import api
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.transaction_coordinators import call
from streamlog.broker.turn import Turn
from streamlog.core import group_events as events
from streamlog.core.transaction import State
from streamlog.errors import (
    InvalidProducerIdMappingError,
    InvalidTxnStateError,
    NotCoordinatorError,
    ProducerFencedError,
    StreamlogError,
    UnknownMemberIdError,
)
from streamlog.record import OffsetAndMetadata, TopicPartition
from streamlog.storage import log
from tests.broker.builders import opened

T = 1_700_000_000_000
T0 = TopicPartition("t", 0)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[BrokerCluster]:
    made = opened(tmp_path / "c")
    made.create_topic("t", 2, 1, {})
    made.ensure_offsets_topic()
    yield made
    made.close()


def init(cluster: BrokerCluster, name: str = "x", timeout_ms: int = 60_000) -> tuple[int, int]:
    return call(cluster, name, api.InitProducerId(timeout_ms, cluster.metadata.new_producer_id()))


def batch(identity: tuple[int, int], sequence: int = 0) -> Batch:
    return seal_columnar(
        None,
        [b"v"],
        timestamps=T,
        producer_id=identity[0],
        producer_epoch=identity[1],
        base_sequence=sequence,
        transactional=True,
    )


def produce(cluster: BrokerCluster, one: Batch, number: int = 0, name: str | None = "x") -> Any:
    request = api.Produce([("t", number, one)], transactional_id=name)
    (produced,) = cluster.broker.call(request)
    return produced


def state(cluster: BrokerCluster, name: str = "x") -> Any:
    return cluster.broker.coordinator.transactions._states[name]


def records(cluster: BrokerCluster) -> int:
    """How many are in `__transaction_state`."""
    count = len(cluster.topics["__transaction_state"].partitions)
    return sum(
        cluster.broker.partition("__transaction_state", number).state.log_end_offset
        for number in range(count)
    )


def test_each_partition_is_noted_once(cluster: BrokerCluster) -> None:
    identity = init(cluster)
    assert records(cluster) == 1
    for sequence in range(3):
        assert produce(cluster, batch(identity, sequence)).error is None
    assert records(cluster) == 2
    assert produce(cluster, batch(identity), 1).error is None
    assert records(cluster) == 3 and state(cluster).partitions == (T0, TopicPartition("t", 1))


def test_the_end_is_one_commit(cluster: BrokerCluster) -> None:
    """Markers, offsets and completion: the engine's transaction ids say how many there were."""
    identity = init(cluster)
    produce(cluster, batch(identity))
    produce(cluster, batch(identity), 1)
    before = cluster.broker.environment.last_transaction_id()
    offsets = [("g", events.OffsetCommit(token=0, offsets={T0: OffsetAndMetadata(1)}))]
    assert call(cluster, "x", api.EndTxn(*identity, True, offsets)) == (identity[0], identity[1] + 1)
    assert cluster.broker.environment.last_transaction_id() == before + 1
    assert cluster.coordinator.committed("g", None) == {T0: OffsetAndMetadata(1)}
    assert state(cluster).state is State.COMPLETE_COMMIT and state(cluster).partitions == ()


def test_what_the_group_refuses_leaves_all_as_it_was(cluster: BrokerCluster) -> None:
    identity = init(cluster)
    produce(cluster, batch(identity))
    stale = events.OffsetCommit(token=0, offsets={T0: OffsetAndMetadata(1)}, member_id="gone", generation=3)
    cluster.coordinator.group("g")
    ends = cluster.broker.log_ends()
    with pytest.raises(StreamlogError):
        call(cluster, "x", api.EndTxn(*identity, True, [("g", stale)]))
    assert cluster.broker.log_ends() == ends and state(cluster).state is State.ONGOING
    call(cluster, "x", api.EndTxn(*identity, False))
    assert cluster.coordinator.committed("g", None) == {}


def test_two_ends_of_one_group_in_one_turn_see_each_other(cluster: BrokerCluster) -> None:
    """The second is deferred to the next turn: a group decides once a turn."""
    posted = []
    for number, name in enumerate(("a", "b")):
        identity = init(cluster, name)
        assert produce(cluster, batch(identity), number, name).error is None
        commit = events.OffsetCommit(token=0, offsets={TopicPartition("t", number): OffsetAndMetadata(7)})
        request = api.TransactionRequest(name, api.EndTxn(*identity, True, [("g", commit)]))
        posted.append(cluster.broker.enqueue(request))
    cluster.broker.advance()
    assert all(pending.result()[1] == 1 for pending in posted)
    assert len(cluster.coordinator.committed("g", None)) == 2


def test_who_has_not_begun_writes_nothing(cluster: BrokerCluster) -> None:
    identity = init(cluster)
    for name, error in ((None, InvalidTxnStateError), ("nobody", InvalidProducerIdMappingError)):
        assert isinstance(produce(cluster, batch(identity), name=name).error, error)
    newer = init(cluster)
    assert isinstance(produce(cluster, batch(identity)).error, ProducerFencedError)
    assert produce(cluster, batch(newer)).error is None


def test_a_topic_that_is_deleted_meanwhile_is_left_out(cluster: BrokerCluster) -> None:
    identity = init(cluster)
    produce(cluster, batch(identity))
    cluster.delete_topic("t")
    assert call(cluster, "x", api.EndTxn(*identity, True)) == (identity[0], identity[1] + 1)


@pytest.mark.parametrize("is_compacted", [False, True])
def test_reopened_everything_is_known_and_what_was_open_is_aborted(
    tmp_path: Path, is_compacted: bool
) -> None:
    cluster = opened(tmp_path / "c", transaction_state_log_num_partitions=3)
    cluster.create_topic("t", 1, 1, {})
    identities = {}
    for number in range(8):
        name = f"x-{number}"
        for round_number in range(3):
            identities[name] = identity = init(cluster, name)
            assert produce(cluster, batch(identity), name=name).error is None
            if number % 2 == 0 or round_number < 2:
                call(cluster, name, api.EndTxn(*identity, True))
    if is_compacted:
        cluster.housekeeping.run_now()
    known = {name: state(cluster, name) for name in identities}
    cluster.close()
    cluster = opened(tmp_path / "c")
    coordinator = cluster.broker.coordinator.transactions
    coordinator.load_all()
    for name in identities:
        if int(name[2:]) % 2 == 0:
            assert coordinator._states[name] == known[name]
    for number in range(1, 8, 2):
        name = f"x-{number}"
        producer_id, epoch = init(cluster, name)  # at the latest, who comes aborts what was open
        assert producer_id == identities[name][0] and epoch == identities[name][1] + 2
    partition = cluster.broker.partition("t", 0)
    assert partition.view is not None and partition.view.last_stable_offset == partition.view.log_end_offset
    cluster.close()


def test_its_log_is_no_clients(cluster: BrokerCluster) -> None:
    init(cluster)
    request = api.Produce([("__transaction_state", 0, seal_columnar([b"k"], [b"v"], timestamps=T))])
    (refused,) = cluster.broker.call(request)
    assert refused.error is not None and "internal" in str(refused.error)


def test_a_full_disk_lets_a_transaction_end_later(cluster: BrokerCluster) -> None:
    identity = init(cluster)
    produce(cluster, batch(identity))
    cluster.broker.disk_is_full = True
    with pytest.raises(StreamlogError, match="full"):
        call(cluster, "x", api.EndTxn(*identity, True))
    cluster.broker.disk_is_full = False
    assert call(cluster, "x", api.EndTxn(*identity, True))[1] == identity[1] + 1
    with cluster.broker.environment.snapshot() as snapshot:
        headers = [h.header for h in log.iterate_headers(snapshot, cluster.broker.partition("t", 0).log_id)]
    assert [header.is_control for header in headers] == [False, True]


def test_a_member_that_is_unknown_is_named(cluster: BrokerCluster) -> None:
    call_group = events.OffsetCommit(token=0, offsets={T0: OffsetAndMetadata(0)})
    cluster.call_group("g", call_group, 1_000)
    identity = init(cluster)
    stale = events.OffsetCommit(token=0, offsets={T0: OffsetAndMetadata(1)}, member_id="gone", generation=0)
    with pytest.raises(UnknownMemberIdError):
        call(cluster, "x", api.EndTxn(*identity, True, [("g", stale)]))


def test_what_was_decided_alone_is_not_written_in_a_role_learnt_after_it(cluster: BrokerCluster) -> None:
    """Its batch would carry an epoch that nobody led; who follows such a log cuts it and copies it for ever."""
    init(cluster)
    transactions = cluster.broker.coordinator.transactions
    known, end = state(cluster), records(cluster)
    turn = Turn(0, T)
    partition = transactions._partition(turn, "x")
    transactions._stage(turn, "x", partition, known)
    turn.leaderships[partition] = None
    with pytest.raises(NotCoordinatorError):
        transactions.write_staged(turn)
    assert turn.transaction is None and records(cluster) == end
