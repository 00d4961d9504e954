"""The host of groups: loading, parking, deadlines, folds and their checkpoints, deletions, expiry, closing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamlog.broker import api, coordinator
from streamlog.broker.api import GroupRequest
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.coordinator import LATE_MS_MAX
from streamlog.broker.runner import ThreadedRuntime
from streamlog.broker.turn import Tick, Turn
from streamlog.clock import ManualClock
from streamlog.core import group_events as events
from streamlog.core.group import group_partition
from streamlog.core.group_state import State
from streamlog.errors import (
    ClosedError,
    CorruptStoreError,
    InvalidGroupIdError,
    InvalidRequestError,
    ReentrantCallError,
    StorageError,
    UnknownTopicOrPartitionError,
)
from streamlog.record import OffsetAndMetadata, TopicPartition
from streamlog.storage import log
from streamlog.storage.keys import CheckpointKind
from tests.broker.builders import batch_of, in_thread, opened, produce
from tests.broker.interrupting import Interrupt

T0 = TopicPartition("t", 0)


def commit(cluster: BrokerCluster, group: str, offset: int, partition: TopicPartition = T0) -> None:
    reply = cluster.call_group(
        group, events.OffsetCommit(token=0, offsets={partition: OffsetAndMetadata(offset)})
    )
    assert reply.errors == {partition: None}


def committed(cluster: BrokerCluster, group: str) -> dict[TopicPartition, int]:
    return {tp: offset.offset for tp, offset in cluster.coordinator.committed(group, None).items()}


def join(cluster: BrokerCluster, group: str, **options: Any) -> events.JoinGroupReply:
    options = {"session_timeout_ms": 10_000, "rebalance_timeout_ms": 30_000, **options}
    event = events.JoinGroup(token=0, protocols=(("range", b""),), incarnation=cluster.incarnation, **options)
    reply: events.JoinGroupReply = cluster.call_group(group, event)
    return reply


def sync(cluster: BrokerCluster, group: str, joined: events.JoinGroupReply) -> None:
    event = events.SyncGroup(
        token=0,
        member_id=joined.member_id,
        generation=joined.generation,
        assignments=((joined.member_id, b"all"),),
    )
    cluster.call_group(group, event)


class Clocked:
    """A cluster on a clock the test moves."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.clock = ManualClock(1_000_000)
        self.cluster = opened(path, ThreadedRuntime(self.clock), **options)
        self.cluster.create_topic("t", 1, 1, {})

    def tick(self, ms: int) -> None:
        self.clock.advance(ms)
        self.cluster.broker.call(Tick())


@pytest.fixture
def clocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("streamlog.broker.runner.Service.wake", lambda self: None)
    clocked = Clocked(tmp_path / "c")
    yield clocked
    clocked.cluster.close()


def two_groups_of_one_partition() -> tuple[str, str]:
    first = "g0"
    return first, next(
        f"g{n}" for n in range(1, 10_000) if group_partition(f"g{n}") == group_partition(first)
    )


# -- storing and loading -------------------------------------------------------------------------------------------------


def test_commits_survive_reopening(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    for number in range(20):
        commit(cluster, f"group {number}", number)
    cluster.close()
    cluster = opened(tmp_path / "c")
    assert [committed(cluster, f"group {number}")[T0] for number in range(20)] == list(range(20))
    assert [hosted.group_id for hosted in cluster.coordinator.groups()] == sorted(
        f"group {n}" for n in range(20)
    )
    assert cluster.coordinator.group("unheard of") is None and committed(cluster, "unheard of") == {}
    cluster.close()


def test_a_group_loads_once_however_many_ask(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    commit(cluster, "g", 5)
    cluster.close()
    cluster = opened(tmp_path / "c")
    assert {
        id(thread.result())
        for thread in [in_thread(lambda: cluster.coordinator.group("g")) for _ in range(8)]
    } == {id(cluster.coordinator.group("g"))}
    cluster.close()


def test_folds_are_saved_and_equal_the_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "FOLD_CHECKPOINT_EVERY_RECORDS", 3)
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    for offset in range(8):
        commit(cluster, "g", offset)
    cluster.housekeeping.save_folds()
    partition = cluster.coordinator.group("g").partition
    with cluster.broker.environment.snapshot() as snapshot:
        assert log.get_extra(snapshot, partition.log_id, CheckpointKind.FOLD) is not None
    cluster.close()
    cluster = opened(tmp_path / "c")
    assert committed(cluster, "g") == {T0: 7}
    cluster.close()


def test_a_fold_saved_with_two_groups_of_one_turn_holds_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint covers the offsets of the whole turn, so it must hold the records of all of it."""
    monkeypatch.setattr(coordinator, "FOLD_CHECKPOINT_EVERY_RECORDS", 2)
    first, second = two_groups_of_one_partition()
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    cluster.ensure_offsets_topic()
    cluster.housekeeping.stop()  # no turn but this test's
    requests = [
        cluster.broker.enqueue(
            GroupRequest(group, events.OffsetCommit(token=0, offsets={T0: OffsetAndMetadata(offset)}))
        )
        for group, offset in ((first, 1), (second, 2))
    ]
    before = cluster.broker.turns_total
    cluster.broker.advance()
    assert all(request.error is None for request in requests) and cluster.broker.turns_total == before + 1
    cluster.housekeeping.save_folds()
    cluster.close()
    cluster = opened(tmp_path / "c")
    assert (committed(cluster, first), committed(cluster, second)) == ({T0: 1}, {T0: 2})
    cluster.close()


def test_a_damaged_fold_is_only_a_cache(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    commit(cluster, "g", 5)
    log_id = cluster.coordinator.group("g").partition.log_id
    transaction = cluster.broker.environment.write()
    log.put_extra(transaction, log_id, CheckpointKind.FOLD, b"\xc1 nonsense")
    transaction.commit()
    cluster.close()
    cluster = opened(tmp_path / "c")
    assert committed(cluster, "g") == {T0: 5}
    cluster.close()


def test_members_of_a_killed_process_are_dropped_at_load(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    sync(cluster, "g", join(cluster, "g"))
    assert len(cluster.coordinator.group("g").view.members) == 1
    cluster.close()
    cluster = opened(tmp_path / "c")
    assert cluster.coordinator.group("g").view.members == ()
    assert join(cluster, "g").generation > 1
    cluster.close()


def test_a_group_that_cannot_be_read_troubles_only_who_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    cluster.ensure_offsets_topic()

    def corrupt(*_: object, **__: object) -> None:
        raise CorruptStoreError("torn")

    monkeypatch.setattr(cluster.coordinator, "_load", corrupt)
    good = cluster.broker.enqueue(api.Produce([("t", 0, batch_of(b"a"))]))
    bad = cluster.broker.enqueue(GroupRequest("g", events.DeleteGroup(token=0)))
    cluster.broker.advance()
    assert good.result()[0].error is None
    with pytest.raises(CorruptStoreError):
        bad.result()
    cluster.close()


# -- turns ---------------------------------------------------------------------------------------------------------------


def test_requests_of_one_group_in_one_round_keep_their_order(clocked: Clocked) -> None:
    cluster = clocked.cluster
    cluster.ensure_offsets_topic()
    requests = [
        cluster.broker.enqueue(
            GroupRequest("g", events.OffsetCommit(token=0, offsets={T0: OffsetAndMetadata(offset)}))
        )
        for offset in (1, 2, 3)
    ]
    cluster.broker.advance()
    assert all(request.error is None for request in requests)
    assert committed(cluster, "g") == {T0: 3}


def test_a_parked_join_is_answered_by_a_later_decision(clocked: Clocked) -> None:
    cluster = clocked.cluster
    first = join(cluster, "g")
    sync(cluster, "g", first)
    protocols = (("range", b""),)
    parked = cluster.post_group(
        "g", events.JoinGroup(token=0, session_timeout_ms=10_000, protocols=protocols)
    )
    assert not parked.done and len(cluster.coordinator._parked) == 1
    again = join(cluster, "g", member_id=first.member_id)
    assert parked.done and parked.result().generation == again.generation == 2
    assert cluster.coordinator._parked == {}


def test_a_request_whose_turn_failed_is_not_parked(clocked: Clocked) -> None:
    cluster, broker = clocked.cluster, clocked.cluster.broker
    cluster.ensure_offsets_topic()
    cluster.coordinator.hosted("g")

    def fails(turn: Turn) -> None:
        del broker._before_commit
        raise StorageError("EIO")

    broker._before_commit = fails  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        join(cluster, "g")
    assert cluster.coordinator._parked == {} and cluster.coordinator.group("g").view.members == ()
    assert join(cluster, "g").generation == 1


def test_applying_a_deletion_twice_is_applying_it_once(clocked: Clocked) -> None:
    """An interrupt between applying and answering: the machine has been replaced by a fresh one already."""
    cluster = clocked.cluster
    for offset in range(3):
        commit(cluster, "g", offset)
    publish, strikes = type(cluster.partition("__consumer_offsets", 0)).publish, [1]

    def interrupted(partition: Any, state: Any) -> None:
        if partition.internal and strikes:
            strikes.clear()
            raise Interrupt
        publish(partition, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamlog.broker.partition.Partition.publish", interrupted)
        with pytest.raises(Interrupt):
            cluster.call_group("g", events.DeleteGroup(token=0))
    assert committed(cluster, "g") == {}
    commit(cluster, "g", 9)
    assert committed(cluster, "g") == {T0: 9}


# -- deadlines -----------------------------------------------------------------------------------------------------------


def test_a_silent_member_is_dropped_at_its_deadline_not_before(clocked: Clocked) -> None:
    cluster = clocked.cluster
    sync(cluster, "g", join(cluster, "g"))
    clocked.tick(9_999)
    assert len(cluster.coordinator.group("g").view.members) == 1
    clocked.tick(1)
    assert cluster.coordinator.group("g").view.state is State.EMPTY


def test_heartbeats_do_not_fill_the_heap(clocked: Clocked) -> None:
    cluster = clocked.cluster
    joined = join(cluster, "g")
    sync(cluster, "g", joined)
    for _ in range(200):
        clocked.clock.advance(100)
        cluster.call_group(
            "g", events.Heartbeat(token=0, member_id=joined.member_id, generation=joined.generation)
        )
        cluster.broker.call(Tick())
    assert len(cluster.coordinator.deadlines._heap) <= 3
    clocked.tick(10_000)
    assert cluster.coordinator.group("g").view.members == ()


def test_many_groups_whose_time_has_come_are_decided_in_several_turns(
    clocked: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "TICK_GROUPS_MAX", 3)
    cluster = clocked.cluster
    names = [f"g{number}" for number in range(8)]
    for name in names:
        sync(cluster, name, join(cluster, name))
    alive = lambda: sum(len(cluster.coordinator.group(name).view.members) for name in names)  # noqa: E731
    clocked.tick(10_000)
    assert alive() == 5 and cluster.coordinator.next_deadline_ms() <= clocked.clock.monotonic_ms()
    clocked.tick(0), clocked.tick(0)
    assert alive() == 0


def test_a_judge_that_was_late_itself_extends_sessions_instead(clocked: Clocked) -> None:
    cluster = clocked.cluster
    joined = join(cluster, "g")
    sync(cluster, "g", joined)
    clocked.tick(10_000 + LATE_MS_MAX + 1)
    assert len(cluster.coordinator.group("g").view.members) == 1, "fenced for the judge's own sleep"
    clocked.tick(5_999)
    assert len(cluster.coordinator.group("g").view.members) == 1
    clocked.tick(1_000)
    assert cluster.coordinator.group("g").view.members == (), "it had time enough to say that it lives"


# -- deleted topics, expired offsets, dead groups ------------------------------------------------------------------------


def test_deleting_a_topic_forgets_what_was_committed_for_it(clocked: Clocked) -> None:
    cluster = clocked.cluster
    cluster.create_topic("u", 1, 1, {})
    commit(cluster, "g", 5), commit(cluster, "g", 7, TopicPartition("u", 0)), commit(cluster, "other", 1)
    cluster.delete_topic("t")
    assert committed(cluster, "g") == {TopicPartition("u", 0): 7} and committed(cluster, "other") == {}


def test_offsets_of_a_topic_deleted_right_before_a_crash_are_forgotten_at_load(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {}), cluster.create_topic("u", 1, 1, {})
    commit(cluster, "g", 5), commit(cluster, "g", 7, TopicPartition("u", 0))
    cluster.metadata.call(api.DeleteTopic("t"))
    cluster.close()
    cluster = opened(tmp_path / "c")
    cluster.coordinator.group("g")
    cluster.broker.advance()
    assert committed(cluster, "g") == {TopicPartition("u", 0): 7}
    cluster.create_topic("t", 1, 1, {})
    cluster.close()
    cluster = opened(tmp_path / "c")
    assert committed(cluster, "g") == {TopicPartition("u", 0): 7}, "forgotten for good"
    cluster.close()


def test_expired_offsets_and_their_groups_are_forgotten(clocked: Clocked) -> None:
    cluster = clocked.cluster
    commit(cluster, "old", 5)
    minute_ms = 60_000
    clocked.clock.advance(cluster.config.offsets_retention_minutes * minute_ms - 1)
    commit(cluster, "young", 5)
    cluster.coordinator.expire_offsets()
    assert committed(cluster, "old") == {T0: 5}
    clocked.clock.advance(1)
    cluster.coordinator.expire_offsets()
    assert committed(cluster, "old") == {} and committed(cluster, "young") == {T0: 5}
    assert cluster.coordinator.group("old") is not None, "somebody may have looked it up just now"
    cluster.coordinator.expire_offsets(), cluster.coordinator.expire_offsets()
    assert cluster.coordinator.group("old") is None
    commit(cluster, "old", 6)
    assert committed(cluster, "old") == {T0: 6}


def test_a_group_somebody_listens_to_is_kept(clocked: Clocked) -> None:
    cluster = clocked.cluster
    cluster.ensure_offsets_topic()
    hosted = cluster.coordinator.hosted("g")
    cluster.listener().subscribe(hosted, None)
    for _ in range(4):
        cluster.coordinator.expire_offsets()
    assert cluster.coordinator.group("g") is hosted


def test_a_change_of_the_group_is_news_also_when_its_publishing_was_interrupted(
    clocked: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = clocked.cluster
    cluster.ensure_offsets_topic()
    hosted, listener = cluster.coordinator.hosted("g"), cluster.listener()
    listener.subscribe(hosted, None), listener.take()
    notify, strikes = type(hosted).notify, [1]

    def interrupted(source: Any) -> None:
        if strikes:
            strikes.clear()
            raise Interrupt
        notify(source)

    monkeypatch.setattr(type(hosted), "notify", interrupted)
    with pytest.raises(Interrupt):
        join(cluster, "g")
    assert listener.take() is not None


# -- closing -------------------------------------------------------------------------------------------------------------


def test_closing_answers_parked_joins(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    first = join(cluster, "g")
    sync(cluster, "g", first)
    waiting = in_thread(lambda: join(cluster, "g"))
    while not cluster.coordinator._parked:
        pass
    cluster.close()
    with pytest.raises(ClosedError):
        waiting.result()


def test_the_log_of_a_group_is_compacted_without_loss(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    for offset in range(30):
        commit(cluster, "g", offset)
    produce(cluster, "t", 0, b"x")
    assert cluster.housekeeping.run_now().compacted >= 1
    cluster.close()
    cluster = opened(tmp_path / "c")
    assert committed(cluster, "g") == {T0: 29}
    cluster.close()


def test_what_was_deleted_stays_deleted_when_its_tombstone_is_compacted_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fold's checkpoint from before the tombstone knows the offset still; the log has forgotten both."""
    monkeypatch.setattr(coordinator, "FOLD_CHECKPOINT_EVERY_RECORDS", 4)
    clocked = Clocked(tmp_path / "c")
    cluster = clocked.cluster
    cluster.create_topic("u", 1, 1, {})
    for offset in range(4):
        commit(cluster, "g", offset)
        commit(cluster, "g", offset, TopicPartition("u", 0))
    cluster.housekeeping.save_folds()
    cluster.call_group("g", events.OffsetDelete(token=0, partitions=(T0,)))
    commit(cluster, "g", 9, TopicPartition("u", 0))
    retention_ms = cluster.broker.coordinator.group("g").partition.config.delete_retention_ms  # type: ignore[union-attr]
    for _ in range(2):
        cluster.housekeeping.run_now()
        clocked.clock.advance(retention_ms + 1)
    want = committed(cluster, "g")
    assert T0 not in want
    cluster.close()
    again = opened(tmp_path / "c")
    assert committed(again, "g") == want
    again.close()


def test_a_commit_for_a_partition_that_does_not_exist_is_refused_the_others_are_stored(
    cluster: BrokerCluster,
) -> None:
    cluster.create_topic("t", 1, 1, {})
    wrong = (TopicPartition("t", 1), TopicPartition("nix", 0), TopicPartition("t", -1))
    offsets = dict.fromkeys((T0, *wrong), OffsetAndMetadata(3))
    reply = cluster.call_group("g", events.OffsetCommit(token=0, offsets=offsets))
    assert reply.errors[T0] is None and committed(cluster, "g") == {T0: 3}
    assert {type(reply.errors[tp]) for tp in wrong} == {UnknownTopicOrPartitionError}


def test_a_name_that_is_no_unicode_is_refused_by_name(cluster: BrokerCluster) -> None:
    cluster.create_topic("t", 1, 1, {})
    with pytest.raises(InvalidGroupIdError):
        join(cluster, "\ud800")
    reply = cluster.call_group("\ud800", events.OffsetCommit(token=0, offsets={T0: OffsetAndMetadata(3)}))
    assert isinstance(reply.errors[T0], InvalidRequestError)


def test_a_signal_handler_that_needs_what_its_thread_is_loading_is_told(
    cluster: BrokerCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for itself for ever."""
    cluster.ensure_offsets_topic()
    for number in range(len(cluster.topics["__consumer_offsets"].partitions)):
        cluster.broker.partition("__consumer_offsets", number)
    replay = log.get_extra

    def struck(*given: Any) -> Any:
        monkeypatch.undo()
        with pytest.raises(ReentrantCallError):
            cluster.coordinator.group("g")
        return replay(*given)

    monkeypatch.setattr(log, "get_extra", struck)
    assert in_thread(lambda: cluster.coordinator.group("g")).result() is None


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_topic_made_anew_begins_without_the_offsets_of_the_one_that_was_deleted(
    tmp_path: Path, checkpointed: bool
) -> None:
    """The crash: the topic's deletion is in the metadata log, and the process dies before any group has heard of it."""
    other = TopicPartition("u", 0)
    cluster = opened(tmp_path / "c")
    for topic in ("t", "u"):
        cluster.create_topic(topic, 1, 1, {})
    commit(cluster, "g", 500)
    commit(cluster, "g", 7, other)
    if checkpointed:
        number = cluster.coordinator.group("g").partition.number
        cluster.coordinator.overdue[number] = None
        assert cluster.coordinator.save_overdue() == 1
    cluster.metadata.call(api.DeleteTopic("t"))
    cluster.close()

    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})  # before anything loads the group
    assert committed(cluster, "g") == {other: 7}
    end_offset = cluster.coordinator.group("g").partition.state.log_end_offset
    commit(cluster, "g", 3)
    assert committed(cluster, "g") == {T0: 3, other: 7}
    cluster.close()

    cluster = opened(tmp_path / "c")
    assert committed(cluster, "g") == {T0: 3, other: 7}, "it was committed for the new topic"
    state = cluster.coordinator.group("g").partition.state
    assert state.log_end_offset == end_offset + 2, "the tombstone, and the new offset"
    cluster.close()


def test_the_log_forgets_what_was_dropped_at_loading(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    commit(cluster, "g", 500)
    cluster.metadata.call(api.DeleteTopic("t"))
    cluster.close()
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    assert committed(cluster, "g") == {}
    cluster.broker.advance()
    number = cluster.coordinator.group("g").partition.number
    cluster.coordinator.overdue[number] = None
    assert cluster.coordinator.save_overdue() == 1
    assert cluster.coordinator._folds[number].keys_saved == 0
    cluster.close()
