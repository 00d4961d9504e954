"""Opening leaves no trace where it reads."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

import streamlog
from streamlog.cli.failures import CommandError
from streamlog.cli.opening import partitions_of, reading, require_directory, topic_of, writing


def arguments(path: Path) -> argparse.Namespace:
    return argparse.Namespace(dir=str(path))


def test_reading_creates_nothing(tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CommandError), reading(arguments(place)):
            pass
        with pytest.raises(CommandError), writing(arguments(place)):
            pass
    assert list(tmp_path.iterdir()) == []


def test_reading_does_not_lock(tmp_path: Path) -> None:
    with writing(arguments(tmp_path / "store"), create=True) as cluster:
        cluster.create_topic("a", partitions=2)
    with reading(arguments(tmp_path / "store")) as reader:
        assert reader.topics == ["a"]
        assert reader.owner is None
        with pytest.raises(streamlog.errors.ReadOnlyError):
            reader.create_topic("b")


def test_topics_and_partitions(tmp_path: Path) -> None:
    with writing(arguments(tmp_path), create=True) as cluster:
        with pytest.raises(CommandError, match="no topics yet"):
            topic_of(cluster, "x", "dir")
        topic = cluster.create_topic("orders", partitions=3)
        assert topic_of(cluster, "orders", "dir") == topic
        with pytest.raises(CommandError, match="did you mean 'orders'"):
            topic_of(cluster, "ordres", "dir")
        assert partitions_of(topic, None) == partitions_of(topic, []) == [0, 1, 2]
        assert partitions_of(topic, [2, 0, 2]) == [0, 2]
        with pytest.raises(CommandError, match="no partition 3"):
            partitions_of(topic, [3])


def test_what_is_no_directory() -> None:
    with pytest.raises(CommandError, match="inside one process"):
        require_directory(":memory:")
