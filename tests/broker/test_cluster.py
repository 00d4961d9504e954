"""The cluster inside the process: opening that fails, closing that is interrupted or fails, topics, forks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from streamlog.broker import cluster as broker_cluster
from streamlog.broker.cluster import BrokerCluster
from streamlog.errors import (
    ClosedError,
    ClusterLockedError,
    ConfigError,
    CorruptStoreError,
    NetworkFileSystemError,
    StorageError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from streamlog.storage import filesystem
from streamlog.storage.directory import ClusterDirectory
from streamlog.storage.env import Environment
from tests.broker.builders import in_thread, opened, produce, values_of
from tests.broker.interrupting import Interrupt, count_places, interrupted_at, places


def test_an_opening_that_fails_lets_go_of_the_directory(tmp_path: Path) -> None:
    opened(tmp_path / "c").close()
    for brokers, error in ((2, ConfigError), (0, ConfigError)):
        with pytest.raises(error):
            BrokerCluster(ClusterDirectory.open(tmp_path / "c"), brokers, "off", opened_config())
    opened(tmp_path / "c").close()


def opened_config() -> Any:
    from streamlog.config import ClusterConfig

    return ClusterConfig.from_options({})


def test_an_environment_mounted_from_elsewhere_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where it lies on the directory's own file system is it not asked again whether that is a network's."""
    opened(tmp_path / "c").close()
    metadata = str(tmp_path / "c" / "metadata")
    monkeypatch.setattr(filesystem, "file_system_type", lambda path: "nfs" if path == metadata else "ext4")
    opened(tmp_path / "c").close()
    monkeypatch.setattr(broker_cluster, "device", lambda path: 2 if path == metadata else 1)
    with pytest.raises(NetworkFileSystemError, match="metadata"):
        opened(tmp_path / "c")


def test_a_second_owner_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    with pytest.raises(ClusterLockedError):
        opened(tmp_path / "c")
    cluster.close(), cluster.close()
    opened(tmp_path / "c").close()


def test_a_step_of_closing_that_fails_does_not_keep_the_others_from_being_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = opened(tmp_path / "c")
    close = Environment.close
    failed: list[Environment] = []

    def failing(environment: Environment, **options: Any) -> bool:
        close(environment, **options)
        if not failed:
            failed.append(environment)
            raise StorageError("EIO")
        return True

    with monkeypatch.context() as patch:
        patch.setattr(Environment, "close", failing)
        with pytest.raises(StorageError):
            cluster.close()
    opened(tmp_path / "c").close()


def test_closing_goes_on_after_an_interrupt(tmp_path: Path) -> None:
    measured = opened(tmp_path / "measured")
    total = count_places(measured.close)
    for place in places(total, 25, 20_265):
        path = tmp_path / str(place)
        cluster = opened(path)
        cluster.create_topic("t", 1, 1, {})
        produce(cluster, "t", 0, b"kept")
        where = interrupted_at(place, cluster.close)
        in_thread(cluster.close).result()
        again = opened(path)
        assert values_of(again, "t", 0) == [(0, b"kept")], where
        again.close()


def test_closing_waits_for_readers(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    produce(cluster, "t", 0, b"a")
    snapshot = cluster.broker.environment.snapshot()
    closing = in_thread(cluster.close)
    closing.thread.join(0.05)
    assert closing.thread.is_alive()
    snapshot.close()
    closing.result()
    opened(tmp_path / "c").close()


def test_after_closing_everything_is_refused(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    cluster.close()
    for act in (
        lambda: cluster.create_topic("u", 1, 1, {}),
        lambda: cluster.delete_topic("t"),
        lambda: cluster.alter_topic("t", {}),
        lambda: cluster.create_partitions("t", 2),
        lambda: cluster.delete_records("t", 0, 0),
        lambda: cluster.partition("t", 0),
        cluster.check_usable,
        cluster.ensure_offsets_topic,
    ):
        with pytest.raises(ClosedError):
            act()
    assert "closed" in repr(cluster)


def test_the_owners_know_each_others_locks(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    assert cluster.broker.siblings == (cluster.metadata,)
    assert cluster.metadata.siblings == (cluster.broker,)
    cluster.close()


def test_topics_are_made_on_first_use_where_that_is_on(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "auto", auto_create_topics=True)
    made = [in_thread(lambda: cluster.topic_for_client("t")) for _ in range(6)]
    assert len({thread.result().topic_id for thread in made}) == 1
    cluster.close()
    cluster = opened(tmp_path / "plain")
    with pytest.raises(UnknownTopicOrPartitionError):
        cluster.topic_for_client("t")
    cluster.create_topic("t", 1, 1, {})
    with pytest.raises(TopicAlreadyExistsError):
        cluster.create_topic("t", 1, 1, {})
    assert len(cluster.create_partitions("t", 3).partitions) == 3
    cluster.close()


def test_metadata_is_durable_at_once(tmp_path: Path) -> None:
    """After a power loss a topic must not be gone whose records survive: the next one would get its log ids. With
    sync="off" records are synced every `flush_ms`; nothing would ever sync the topic they belong to.
    """
    modes = {}
    for sync in ("full", "normal", "off"):
        cluster = opened(tmp_path / sync, sync=sync)
        modes[sync] = (cluster.metadata.environment.sync_mode, cluster.broker.environment.sync_mode)
        cluster.close()
    assert modes == {"full": ("full", "full"), "normal": ("full", "normal"), "off": ("full", "off")}


def test_a_deletion_that_was_interrupted_is_made_good_by_housekeeping(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    produce(cluster, "t", 0, b"a")
    partition = cluster.partition("t", 0)
    post = cluster.broker.post
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.broker, "post", lambda *_: (_ for _ in ()).throw(Interrupt()))
        with pytest.raises(Interrupt):
            cluster.delete_topic("t")
    assert partition.view is not None and post == cluster.broker.post
    cluster.housekeeping.run_now()
    assert partition.view is None
    while cluster.broker.deletions.doomed:
        cluster.broker.advance()
    assert cluster.broker.delete_orphans() == 0
    cluster.close()


def test_brokers_without_their_metadata_are_not_taken_for_a_new_cluster(tmp_path: Path) -> None:
    """Their logs would be orphans of topics nobody knows, and deleted at the first housekeeping."""
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    produce(cluster, "t", 0, b"precious")
    cluster.close()
    (tmp_path / "c" / "metadata").rename(tmp_path / "aside")
    for _ in range(2):
        with pytest.raises(CorruptStoreError, match="metadata"):
            opened(tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "metadata")
    (tmp_path / "aside").rename(tmp_path / "c" / "metadata")
    cluster = opened(tmp_path / "c")
    assert values_of(cluster, "t", 0) == [(0, b"precious")]
    cluster.close()
