"""A lone commit of offsets: its turn does what any other does, and leaves to it what is not usual."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamlog.broker import committing
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.runner import ThreadedRuntime
from streamlog.clock import ManualClock
from streamlog.core import group_events as events
from streamlog.core.cluster_image import CONSUMER_OFFSETS_TOPIC
from streamlog.core.group import group_partition
from streamlog.errors import IllegalGenerationError, StoreFullError, UnknownMemberIdError
from streamlog.record import OffsetAndMetadata, TopicPartition
from streamlog.storage import log
from tests.broker.builders import in_thread, opened
from tests.broker.interrupting import count_places, interrupted_at, places

SEED = 20_264
NOW_MS = 1_700_000_000_000
T0, T1 = TopicPartition("t", 0), TopicPartition("t", 1)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What `run_alone` answered, commit by commit."""
    answers: list[bool] = []
    run = committing.run_alone

    def asked(broker: Any, pending: Any) -> bool:
        answer = run(broker, pending)
        if type(pending.request.event) is events.OffsetCommit:
            answers.append(answer)
        return answer

    monkeypatch.setattr(committing, "run_alone", asked)
    return answers


def commit(cluster: BrokerCluster, offsets: dict[TopicPartition, int], **options: Any) -> Any:
    wanted = {place: OffsetAndMetadata(offset) for place, offset in offsets.items()}
    return cluster.call_group("g", events.OffsetCommit(token=0, offsets=wanted, **options)).errors


def member(cluster: BrokerCluster) -> events.JoinGroupReply:
    joining = events.JoinGroup(
        token=0,
        protocols=(("range", b""),),
        incarnation=cluster.incarnation,
        session_timeout_ms=10_000,
        rebalance_timeout_ms=30_000,
    )
    joined: events.JoinGroupReply = cluster.call_group("g", joining)
    cluster.call_group(
        "g", events.SyncGroup(token=0, member_id=joined.member_id, generation=joined.generation)
    )
    return joined


def committed(cluster: BrokerCluster) -> dict[TopicPartition, int]:
    return {place: where.offset for place, where in cluster.coordinator.committed("g", None).items()}


def left_behind(path: Path, *, may_be_alone: bool) -> dict[str, Any]:
    """Everything that a few commits leave in the store, the machine and the metrics."""
    clock = ManualClock()
    clock.set_wall_ms(NOW_MS)
    cluster = opened(path, ThreadedRuntime(clock))
    try:
        cluster.create_topic("t", 2, 1, {})
        commit(cluster, {T0: 0})
        if not may_be_alone:
            # Nothing but a rule of size: the lone turn leaves that to the general one.
            partition = cluster.partition(CONSUMER_OFFSETS_TOPIC, group_partition("g"))
            partition.config = partition.config.with_overrides(
                {"cleanup.policy": "compact", "retention.bytes": "1000000000"}, cluster.config
            )
        replies = []
        for number in range(5):
            clock.advance(number)
            replies.append(commit(cluster, {T0: number, T1: number + 1} if number % 2 else {T0: number}))
        partition = cluster.partition(CONSUMER_OFFSETS_TOPIC, group_partition("g"))
        with cluster.broker.environment.snapshot() as snapshot:
            found = log.read(snapshot, partition.log_id, 0, partition.state.log_end_offset, 1 << 20)
        stored = [
            # The last 16 bytes are the topic's id, which is drawn.
            (batch.base_offset, batch.size_bytes, batch.max_timestamp, record.key, record.value[:-16])
            for batch in found
            for record in batch.records("", 0, 0)
        ]
        groups = {
            name: values for name, values in cluster.metrics.snapshot().items() if "OffsetCommit" in name
        }
        return {
            "replies": replies,
            "stored": stored,
            "state": partition.state,
            "committed": cluster.coordinator.committed("g", None),
            "groups": {name: values["Count"] for name, values in groups.items() if "Count" in values},
        }
    finally:
        cluster.close()


def test_a_lone_commit_leaves_behind_what_a_general_turn_does(tmp_path: Path, alone: list[bool]) -> None:
    by_itself = left_behind(tmp_path / "alone", may_be_alone=True)
    assert alone == [True] * 5, "the first one, that makes the coordinator, is not even asked for"
    del alone[:]
    general = left_behind(tmp_path / "general", may_be_alone=False)
    assert not any(alone)
    assert by_itself["stored"] and by_itself["groups"], "there was something to compare"
    for name, value in by_itself.items():
        assert value == general[name], name


def test_a_commit_survives_reopening(tmp_path: Path, alone: list[bool]) -> None:
    cluster = opened(tmp_path)
    cluster.create_topic("t", 2, 1, {})
    commit(cluster, {T0: 1})
    commit(cluster, {T0: 7, T1: 9})
    assert alone == [True]
    cluster.close()
    cluster = opened(tmp_path)
    try:
        assert committed(cluster) == {T0: 7, T1: 9}
    finally:
        cluster.close()


def test_the_unusual_is_left_to_the_general_turn(tmp_path: Path, alone: list[bool]) -> None:
    cluster = opened(tmp_path)
    try:
        cluster.create_topic("t", 2, 1, {})
        commit(cluster, {T0: 1})
        errors = commit(cluster, {T0: 2, TopicPartition("t", 7): 1, TopicPartition("nowhere", 0): 1})
        assert [str(place) for place, error in errors.items() if error is not None] == ["t-7", "nowhere-0"]
        errors = cluster.call_group(
            "g", events.OffsetCommit(token=0, offsets={T1: OffsetAndMetadata(1, "m" * 5_000)})
        ).errors
        assert "characters of metadata" in str(errors[T1])
        assert alone == [False] * 2 and committed(cluster) == {T0: 2}
        joined = member(cluster)
        with pytest.raises(UnknownMemberIdError):
            commit(cluster, {T0: 3})
        with pytest.raises(IllegalGenerationError):
            commit(cluster, {T0: 3}, member_id=joined.member_id, generation=joined.generation + 1)
        assert alone[2:] == [False, False] and committed(cluster) == {T0: 2}
        commit(cluster, {T0: 3}, member_id=joined.member_id, generation=joined.generation)
        assert alone[4:] == [True] and committed(cluster) == {T0: 3}
    finally:
        cluster.close()


def test_a_commit_is_a_sign_of_life(
    tmp_path: Path, alone: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlog.broker.runner.Service.wake", lambda self: None)
    clock = ManualClock(1_000_000)
    cluster = opened(tmp_path, ThreadedRuntime(clock))
    try:
        cluster.create_topic("t", 2, 1, {})
        joined = member(cluster)
        clock.advance(6_000)
        commit(cluster, {T0: 3}, member_id=joined.member_id, generation=joined.generation)
        assert alone == [True]
        machine = cluster.coordinator.group("g").machine
        assert machine.next_deadline_ms() == clock.monotonic_ms() + 10_000
    finally:
        cluster.close()


def test_the_topic_as_it_is_now_is_stored_beside(tmp_path: Path, alone: list[bool]) -> None:
    cluster = opened(tmp_path)
    try:
        cluster.create_topic("t", 2, 1, {})
        commit(cluster, {T0: 1})
        commit(cluster, {T0: 5})
        cluster.delete_topic("t")
        cluster.create_topic("t", 2, 1, {})
        assert committed(cluster) == {}
        commit(cluster, {T1: 6})
        assert alone == [True, True] and committed(cluster) == {T1: 6}
    finally:
        cluster.close()


def test_a_store_that_is_full_is_told_and_nothing_is_kept(
    tmp_path: Path, alone: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = opened(tmp_path)
    try:
        cluster.create_topic("t", 2, 1, {})
        commit(cluster, {T0: 1})
        append = committing.log.append_alone

        def full(*given: Any) -> None:
            append(*given)
            raise StoreFullError("full")

        monkeypatch.setattr(committing.log, "append_alone", full)
        with pytest.raises(StoreFullError):
            commit(cluster, {T0: 2})
        assert alone == [True] and committed(cluster) == {T0: 1}
        monkeypatch.undo()
        commit(cluster, {T0: 3})
        assert committed(cluster) == {T0: 3}
    finally:
        cluster.close()


def swept(path: Path, count: int) -> None:
    cluster = opened(path)
    try:
        cluster.create_topic("t", 2, 1, {})
        commit(cluster, {T0: 0})
        total = count_places(lambda: commit(cluster, {T0: 1}))
        print(f"seed {SEED}, {total} places")
        for place in places(total, count, SEED):
            struck, after = place * 10, place * 10 + 1
            before = committed(cluster)[T0]
            where = interrupted_at(place, lambda struck=struck: commit(cluster, {T0: struck}))
            assert cluster.broker._unfinished is None or not cluster.broker._unfinished.committed, where
            in_thread(lambda: commit(cluster, {T1: 1})).result()
            assert committed(cluster)[T0] in (before, struck), where
            in_thread(lambda after=after: commit(cluster, {T0: after})).result()
            assert committed(cluster)[T0] == after, where
    finally:
        cluster.close()
    cluster = opened(path)
    try:
        assert committed(cluster)[T0] == after
    finally:
        cluster.close()


def test_an_interrupt_keeps_the_commit_whole(tmp_path: Path) -> None:
    swept(tmp_path, 60)


@pytest.mark.long
def test_an_interrupt_anywhere_keeps_the_commit_whole(tmp_path: Path) -> None:
    swept(tmp_path, 1_000_000)
