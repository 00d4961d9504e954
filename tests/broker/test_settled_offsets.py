"""Committed offsets are told once they are replicated, and never taken back."""

from __future__ import annotations

from typing import Any

import pytest

import streamlog
from streamlog.broker.settled_offsets import UnsettledOffsets
from streamlog.core.group_records import (
    CommittedOffset,
    encode_group_key,
    encode_offset_key,
    encode_offset_value,
)
from streamlog.errors import StreamlogTimeoutError
from streamlog.record import OffsetAndMetadata, TopicPartition
from streamlog.testing import Simulation

T0, T1 = TopicPartition("t", 0), TopicPartition("t", 1)


class Machine:
    """As much of a group's machine as is asked."""

    def __init__(self) -> None:
        self.offsets: dict[TopicPartition, OffsetAndMetadata] = {}

    def committed(self, topic: str, number: int) -> OffsetAndMetadata | None:
        return self.offsets.get(TopicPartition(topic, number))


def written(
    unsettled: UnsettledOffsets, machine: Any, place: TopicPartition, offset: int, end: int, mark: int
) -> None:
    record = encode_offset_key("g", place), encode_offset_value(CommittedOffset(offset, -1, "", 0))
    for _ in range(2):  # an effect may run again
        unsettled.note(machine, [record, (encode_group_key("g"), b"")], end, mark)
        machine.offsets[place] = OffsetAndMetadata(offset)


def told(unsettled: UnsettledOffsets, machine: Any, place: TopicPartition, mark: int) -> int | None:
    where = unsettled.settled(place, machine.committed(*place), mark)
    return None if where is None else where.offset


def test_what_was_there_before_counts_until_the_record_is_replicated() -> None:
    unsettled, machine = UnsettledOffsets(), Machine()
    written(unsettled, machine, T0, 5, end=1, mark=0)
    written(unsettled, machine, T0, 7, end=2, mark=0)
    written(unsettled, machine, T0, 9, end=4, mark=0)
    assert [told(unsettled, machine, T0, mark) for mark in range(5)] == [None, 5, 7, 7, 9]
    assert (
        told(unsettled, machine, T1, 0) is None and repr(unsettled) == "UnsettledOffsets(3 of 1 partitions)"
    )


def test_what_is_replicated_is_forgotten_at_the_next_commit() -> None:
    unsettled, machine = UnsettledOffsets(), Machine()
    for number in range(100):
        written(unsettled, machine, T0, number, end=number + 1, mark=number)
    assert repr(unsettled) == "UnsettledOffsets(1 of 1 partitions)"
    assert told(unsettled, machine, T0, 99) == 98 and told(unsettled, machine, T0, 100) == 99


def test_a_leader_that_is_cut_off_tells_nobody_what_it_alone_has() -> None:
    simulation = Simulation(7)
    with streamlog.open(
        ":memory:", brokers=3, sync="off", runtime=simulation, offsets_topic_num_partitions=1
    ) as cluster:
        cluster.create_topic("t", partitions=2, replication_factor=3)
        group = cluster.consumer_group("g")
        with cluster.consumer(group_id="g", enable_auto_commit=False) as consumer:
            consumer.commit({T0: 5})
            assert group.offsets() == {T0: 5}
            leader = cluster.topic("__consumer_offsets")[0].leader
            cluster.network.partition({leader}, {0, 1, 2, "metadata"} - {leader})
            with pytest.raises(StreamlogTimeoutError):
                consumer.commit({T0: 8, T1: 3}, timeout=1)
            assert cluster.topic("__consumer_offsets")[0].leader == leader, "it still leads"
            assert cluster._backend.brokers[leader].coordinator.group("g").machine.committed(*T0).offset == 8
            assert group.offsets() == {T0: 5}
            assert consumer.committed(T0) == 5 and consumer.committed(T1) is None
            simulation.sleep(30)
            assert cluster.topic("__consumer_offsets")[0].leader != leader
            assert group.offsets() == {T0: 5}
            cluster.network.heal()
            simulation.sleep(10)
            consumer.commit({T0: 9})
            assert group.offsets() == {T0: 9}
