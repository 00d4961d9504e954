"""The coordinator: machines are the fold of their partition's log, and change with a committed turn only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamlog.broker import coordinator as coordinators
from streamlog.broker.api import GroupRequest
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.coordinator import FOLD_KIND, LATE_MS_MAX
from streamlog.broker.turn import Pending
from streamlog.core import group_events as events
from streamlog.core.controller import CONSUMER_OFFSETS_TOPIC
from streamlog.errors import ClosedError, StoreFullError
from streamlog.record import OffsetAndMetadata, TopicPartition
from streamlog.storage import log
from tests.broker.threadless import opened_still, tick_after

SESSION_MS = 10_000


@pytest.fixture
def still(tmp_path: Path) -> Iterator[BrokerCluster]:
    cluster = opened_still(tmp_path / "cluster")
    cluster.create_topic("t", 2, 1, {})
    yield cluster
    cluster.close()


def commit(cluster: BrokerCluster, group_id: str, offset: int, number: int = 0) -> None:
    cluster.call_group(group_id, commit_of(offset, number))


def commit_of(offset: int, number: int = 0) -> events.OffsetCommit:
    return events.OffsetCommit(token=0, offsets={TopicPartition("t", number): OffsetAndMetadata(offset)})


def committed(cluster: BrokerCluster, group_id: str) -> dict[Any, int]:
    found = cluster.coordinator.committed(group_id, None)
    return {partition.partition: position.offset for partition, position in found.items()}


def join(cluster: BrokerCluster, group_id: str, member_id: str = "") -> Pending:
    event = events.JoinGroup(
        token=0,
        member_id=member_id,
        session_timeout_ms=SESSION_MS,
        protocols=(("range", b""),),
        incarnation=cluster.incarnation,
    )
    return cluster.post_group(group_id, event)


def joined(cluster: BrokerCluster, group_id: str) -> str:
    """A member alone in a stable group."""
    reply = join(cluster, group_id).result()
    cluster.call_group(
        group_id,
        events.SyncGroup(
            token=0,
            member_id=reply.member_id,
            generation=reply.generation,
            assignments=((reply.member_id, b"all"),),
        ),
    )
    return str(reply.member_id)


def is_member(cluster: BrokerCluster, group_id: str) -> bool:
    return bool(cluster.coordinator.group(group_id).view.state.name != "EMPTY")


def test_commits_are_the_fold_of_the_log(still: BrokerCluster, tmp_path: Path) -> None:
    for offset in (1, 5, 3):
        commit(still, "g", offset)
    commit(still, "g", 9, number=1)
    commit(still, "other", 2)
    assert committed(still, "g") == {0: 3, 1: 9}
    assert committed(still, "never") == {}
    still.close()
    again = opened_still(tmp_path / "cluster")
    assert committed(again, "g") == {0: 3, 1: 9} and committed(again, "other") == {0: 2}
    assert [hosted.group_id for hosted in again.coordinator.groups()] == ["g", "other"]
    again.close()


def test_a_checkpoint_and_the_records_behind_it_give_what_the_whole_log_gives(
    still: BrokerCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinators, "FOLD_CHECKPOINT_EVERY_RECORDS", 4)
    for offset in range(6):
        commit(still, "g", offset, number=offset % 2)
    hosted = still.coordinator.group("g")
    with still.broker.environment.snapshot() as snapshot:
        saved = log.get_extra(snapshot, hosted.partition.log_id, FOLD_KIND)
    assert saved is not None
    still.close()
    loaded = opened_still(tmp_path / "cluster")
    assert committed(loaded, "g") == {0: 4, 1: 5}
    # Damage the cache: all of the log is replayed instead.
    transaction = loaded.broker.environment.write()
    log.put_extra(transaction, hosted.partition.log_id, FOLD_KIND, b"\xc1")
    transaction.commit()
    loaded.close()
    replayed = opened_still(tmp_path / "cluster")
    assert committed(replayed, "g") == {0: 4, 1: 5}
    replayed.close()


def test_one_decision_per_group_a_turn_and_many_groups_share_one(still: BrokerCluster) -> None:
    for group_id in ("a", "b", "c"):
        commit(still, group_id, 0)
    broker = still.broker
    before = broker.environment.last_transaction_id()
    pendings = [broker.enqueue(GroupRequest(group_id, commit_of(1))) for group_id in ("a", "b", "c")]
    broker.advance()
    assert all(pending.done for pending in pendings)
    assert broker.environment.last_transaction_id() == before + 1
    pendings = [broker.enqueue(GroupRequest("a", commit_of(offset))) for offset in (2, 3, 4)]
    broker.advance()
    assert all(pending.done for pending in pendings)
    assert broker.environment.last_transaction_id() == before + 4
    assert committed(still, "a") == {0: 4}


def test_a_dropped_turn_changes_no_machine(still: BrokerCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(still, "g", 1)

    def full(turn: object) -> None:
        raise StoreFullError("full")

    with monkeypatch.context() as patched:
        patched.setattr(still.coordinator, "before_commit", full)
        with pytest.raises(StoreFullError):
            commit(still, "g", 2)
        with pytest.raises(StoreFullError):
            joined(still, "g")
    assert committed(still, "g") == {0: 1}
    assert still.coordinator.next_deadline_ms() is None
    assert not is_member(still, "g")
    joined(still, "g")
    assert is_member(still, "g")


def test_a_parked_join_is_answered_once_by_a_later_decision(still: BrokerCluster) -> None:
    told: list[Pending] = []
    first = joined(still, "g")
    second = join(still, "g")
    second.on_done = told.append
    assert not second.done and still.coordinator.parked_count == 1
    again = join(still, "g", first)
    assert again.done and second.done and still.coordinator.parked_count == 0
    assert told == [second]
    assert again.result().generation == second.result().generation == 2
    assert len({again.result().member_id, second.result().member_id}) == 2


def test_closing_answers_who_is_parked(still: BrokerCluster) -> None:
    joined(still, "g")
    parked = join(still, "g")
    still.close()
    with pytest.raises(ClosedError):
        parked.result()


def test_a_silent_member_is_judged_at_its_deadline_not_before(still: BrokerCluster) -> None:
    joined(still, "g")
    tick_after(still, SESSION_MS - 1)
    assert is_member(still, "g")
    tick_after(still, 1)
    assert not is_member(still, "g")
    assert still.coordinator.next_deadline_ms() is None


def test_a_judge_that_comes_late_blames_nobody(still: BrokerCluster) -> None:
    joined(still, "g")
    tick_after(still, SESSION_MS + LATE_MS_MAX + 1)
    assert is_member(still, "g")
    deadline_ms = still.coordinator.next_deadline_ms()
    assert deadline_ms is not None and deadline_ms > still.runtime.clock.monotonic_ms()


def test_members_of_a_killed_process_do_not_outlive_it(still: BrokerCluster, tmp_path: Path) -> None:
    commit(still, "g", 7)
    joined(still, "g")
    still.close()
    again = opened_still(tmp_path / "cluster")
    # A new process draws another incarnation.
    again.coordinator._incarnation = "another"
    assert not is_member(again, "g")
    assert committed(again, "g") == {0: 7}
    again.close()


def test_offsets_of_a_topic_deleted_are_forgotten(still: BrokerCluster) -> None:
    commit(still, "g", 7)
    still.delete_topic("t")
    assert committed(still, "g") == {}
    assert CONSUMER_OFFSETS_TOPIC in still.topics
