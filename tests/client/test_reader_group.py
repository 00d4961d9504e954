"""A group seen with `mode="r"`."""

from __future__ import annotations

from pathlib import Path

import pytest

import streamlog
from streamlog import TopicPartition
from streamlog.errors import NonEmptyGroupError, ReadOnlyError


def test_a_reset_is_refused_for_what_it_is_and_may_be_tried(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "d") as owner, streamlog.open(tmp_path / "d", mode="r") as reader:
        owner.create_topic("t")
        with owner.producer() as producer:
            producer.send("t", b"x")
        with owner.consumer_group("g", ["t"]).consumer() as consumer:
            while not consumer.poll(1):
                pass
            consumer.commit()
            group = reader.consumer_group("g")
            assert len(group.members()) == 1
            with pytest.raises(ReadOnlyError, match='use the cluster of mode="rw"'):
                group.reset_offsets("earliest")
            assert group.reset_offsets("earliest", dry_run=True) == {TopicPartition("t", 0): 0}
            with pytest.raises(NonEmptyGroupError):
                owner.consumer_group("g").reset_offsets("earliest")
        with pytest.raises(ReadOnlyError):
            reader.consumer_group("nobody").reset_offsets("earliest")
        assert owner.consumer_group("g").offsets() == {TopicPartition("t", 0): 1}
