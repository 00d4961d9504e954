"""DESIGN section 2, "Opening", "Consuming" and "Errors", and SEMANTICS 1.3, beyond what groups and offsets
have for themselves
(test_group_members.py, test_offset_reset.py)."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

import streamlog
from streamlog import Cluster, TopicPartition
from streamlog.errors import (
    ClosedError,
    ConfigError,
    DeserializationError,
    IllegalStateError,
    InvalidGroupIdError,
    OffsetMetadataTooLargeError,
    StreamlogError,
    TopicAlreadyExistsError,
)

TP = TopicPartition("t", 0)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with streamlog.open(":memory:", sync="off") as cluster:
        cluster.create_topic("t")
        with cluster.producer(linger_ms=10_000) as producer:
            for number in range(1000):
                producer.send("t", b"%d" % number)
        yield cluster


# -- Opening -----------------------------------------------------------------------------------------------


def test_brokers_none_means_what_is_there_else_1_and_another_number_is_refused(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "d") as cluster:
        assert len(cluster.brokers) == 1
    with pytest.raises(ConfigError, match="add_broker"):
        streamlog.open(tmp_path / "d", brokers=2)


def test_sync_is_per_opening_not_stored(tmp_path: Path) -> None:
    for sync in ("off", "full", "normal"):
        with streamlog.open(tmp_path / "d", sync=sync) as cluster:
            assert f"sync={sync!r}" in repr(cluster)


def test_a_path_opened_twice_is_the_same_counted_cluster(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "d") as one:
        with streamlog.open(tmp_path / "d") as two:
            two.create_topic("t")
        assert one.topics == ["t"]
        with pytest.raises(ConfigError):
            streamlog.open(tmp_path / "d", sync="off")
    with pytest.raises(ClosedError):
        one.topics  # noqa: B018


def test_named_memory_is_shared_by_name() -> None:
    with (
        streamlog.open(":memory:n") as one,
        streamlog.open(":memory:n") as two,
        streamlog.open(":memory:") as other,
    ):
        one.create_topic("t")
        assert (two.topics, other.topics) == (["t"], [])


def test_exist_ok_with_other_partitions_or_factor_raises(cluster: Cluster) -> None:
    for other in ({"partitions": 2}, {"replication_factor": 2}):
        with pytest.raises(TopicAlreadyExistsError):
            cluster.create_topic("t", exist_ok=True, **other)  # type: ignore[arg-type]


# -- SEMANTICS 1.3 -----------------------------------------------------------------------------------------


def test_subscribe_and_assign_exclude_each_other(cluster: Cluster) -> None:
    one = cluster.consumer(group_id="g")
    one.subscribe(["t"])
    with pytest.raises(IllegalStateError):
        one.assign([TP])
    two = cluster.consumer(group_id="g")
    two.assign([TP])
    with pytest.raises(IllegalStateError):
        two.subscribe(["t"])


def test_without_group_id_assign_only_and_no_commit(cluster: Cluster) -> None:
    one = cluster.consumer()
    with pytest.raises(InvalidGroupIdError):
        one.subscribe(["t"])
    one.assign([TP])
    one.poll(0)
    with pytest.raises(InvalidGroupIdError):
        one.commit()


def test_poll_returns_at_most_max_poll_records_from_what_is_buffered(cluster: Cluster) -> None:
    one = cluster.consumer()
    one.assign([TP])
    assert len(one.poll(0)) == 500
    fetches = cluster._backend.partition("t", 0).meters.messages_out.count
    assert len(one.poll(0, max_records=10)) == 10
    assert cluster._backend.partition("t", 0).meters.messages_out.count == fetches, "no new fetch"


def test_commit_stores_the_next_offset_with_at_most_4096_characters(cluster: Cluster) -> None:
    one = cluster.consumer(group_id="g")
    one.assign([TP])
    assert one.poll(0, max_records=7)[-1].offset == 6
    one.commit()
    assert one.committed(TP) == 7
    with pytest.raises(OffsetMetadataTooLargeError):
        one.commit({TP: streamlog.OffsetAndMetadata(1, "x" * 4097)})


def test_position_of_what_is_not_assigned_is_an_illegal_state(cluster: Cluster) -> None:
    for call in (cluster.consumer().position, lambda tp: cluster.consumer().seek(tp, 0)):
        with pytest.raises(IllegalStateError):
            call(TP)


def test_pause_keeps_membership_and_is_lost_when_the_partition_is_revoked(cluster: Cluster) -> None:
    group = cluster.consumer_group("g", ["t"], partition_assignment_strategy=["range"])
    one = group.consumer()
    one.poll(0)
    one.pause(TP)
    assert one.poll(0) == [] and len(group.members()) == 1
    with group.consumer() as two:
        two.poll(0), one.poll(0), two.poll(0)
    for _ in range(3):
        one.poll(0)
    assert one.assignment == {TP} and one.paused() == frozenset()


def test_the_assigned_listener_is_called_at_every_rebalance_even_with_nothing(cluster: Cluster) -> None:
    calls: list[int] = []
    group = cluster.consumer_group("g", ["t"], partition_assignment_strategy=["cooperative-sticky"])
    one = group.consumer(on_assigned=lambda partitions: calls.append(len(partitions)))
    one.poll(0)
    two = group.consumer()
    for _ in range(3):
        two.poll(0), one.poll(0)
    assert calls[0] == 1 and 0 in calls[1:]


def test_listeners_are_called_only_inside_poll_close_and_unsubscribe(cluster: Cluster) -> None:
    inside, outside = False, []

    def heard(partitions: object) -> None:
        if not inside:
            outside.append(partitions)

    group = cluster.consumer_group("g", ["t"])
    one = group.consumer(on_assigned=heard, on_revoked=heard, on_lost=heard)
    with group.consumer() as two:
        for _ in range(3):
            inside = True
            one.poll(0)
            inside = False
            two.poll(0)
    inside = True
    one.close()
    assert not outside


# -- Consuming ---------------------------------------------------------------------------------------------


def test_a_record_that_cannot_be_deserialized_raises_with_its_position_and_next_offset_and_the_position_stays(
    cluster: Cluster,
) -> None:
    with cluster.producer() as producer:
        producer.send("t", b"{", key=b"k")
    one = cluster.consumer(value_deserializer="json")
    one.assign([TP])
    one.seek(TP, 1000)
    for _ in range(2):
        with pytest.raises(DeserializationError) as caught:
            one.poll(0)
        assert (caught.value.partition, caught.value.offset, caught.value.next_offset) == (0, 1000, 1001)
        assert one.position(TP) == 1000


def test_timeouts_are_seconds_and_above_300_warn(cluster: Cluster) -> None:
    one = cluster.consumer()
    one.assign([TP])
    with pytest.warns(UserWarning, match="did you mean"):
        one.poll(500)


# -- Errors ------------------------------------------------------------------------------------------------


def test_one_root_code_retriable_fatal_and_the_facts_as_fields_also_after_pickling(cluster: Cluster) -> None:
    one = cluster.consumer(auto_offset_reset="none")
    one.assign([TP])
    one.seek(TP, 5000)
    with pytest.raises(StreamlogError) as caught:
        one.poll(0)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert (error.code, error.retriable, error.fatal) == (1, False, False)
        assert (error.topic, error.partition, error.offset) == ("t", 0, 5000)
        assert isinstance(error, LookupError) and not isinstance(error, KeyError)


def test_use_after_close_raises_at_once(cluster: Cluster) -> None:
    one, producer = cluster.consumer(), cluster.producer()
    one.close(), producer.close()
    for call in (one.poll, lambda: producer.send("t", b"x")):
        with pytest.raises(ClosedError):
            call()  # type: ignore[no-untyped-call]
