"""Opening, sharing and closing clusters; topics and clients as a cluster hands them out."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import streamlog
from streamlog import Cluster
from streamlog.errors import (
    ClosedError,
    ConfigError,
    DeliveryError,
    InvalidGroupIdError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from streamlog.testing import Simulation

# -- opening twice -----------------------------------------------------------------------------------------


def test_a_path_opened_twice_is_one_cluster_until_the_last_close(tmp_path: Path) -> None:
    first = streamlog.open(tmp_path / "d", sync="off")
    second = streamlog.open(str(tmp_path / "d"), sync="off")
    first.create_topic("t")
    assert second.topics == ["t"]
    first.close()
    with pytest.raises(ClosedError):
        first.topics  # noqa: B018
    second.create_topic("u")
    second.close()
    with streamlog.open(tmp_path / "d", sync="off") as again:
        assert again.topics == ["t", "u"]


def test_closing_one_handle_twice_leaves_the_other_open(tmp_path: Path) -> None:
    first, second = (streamlog.open(tmp_path / "d", sync="off") for _ in range(2))
    first.close()
    first.close()
    assert second.topics == []
    second.close()


def test_the_same_directory_by_another_name_is_the_same_cluster(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "d")
    with (
        streamlog.open(tmp_path / "d", sync="off") as first,
        streamlog.open(tmp_path / "link", sync="off") as same,
    ):
        first.create_topic("t")
        assert same.topics == ["t"]


@pytest.mark.parametrize(
    ("other", "option"),
    [
        ({"sync": "full"}, "sync"),
        ({"sync": "off", "brokers": 3}, "brokers"),
        ({"sync": "off", "num_partitions": 7}, "config"),
        ({"sync": "off", "config": {"auto.create.topics.enable": True}}, "config"),
    ],
)
def test_opening_again_with_other_options_is_refused(
    tmp_path: Path, other: dict[str, object], option: str
) -> None:
    with streamlog.open(tmp_path / "d", sync="off"):
        with pytest.raises(ConfigError) as caught:
            streamlog.open(tmp_path / "d", **other)  # type: ignore[arg-type]
        assert caught.value.option == option
    with streamlog.open(tmp_path / "d", sync="full"):  # the refused opening left nothing behind
        pass


def test_memory_is_private_and_named_memory_is_shared() -> None:
    with streamlog.open(":memory:") as one, streamlog.open(":memory:") as other:
        one.create_topic("t")
        assert other.topics == []
    with (
        streamlog.open(":memory:shared") as one,
        streamlog.open(":memory:shared") as same,
        streamlog.open(":memory:other") as other,
    ):
        one.create_topic("t")
        assert (same.topics, other.topics) == (["t"], [])
    with streamlog.open(":memory:shared") as later:
        assert later.topics == []


def test_memory_is_gone_on_close() -> None:
    with streamlog.open(":memory:") as cluster:
        path = cluster.path
        assert path.is_dir()
    assert not path.exists()


@pytest.mark.parametrize("brokers", [0, -1, True, "1", 1.0])
def test_impossible_numbers_of_brokers(tmp_path: Path, brokers: object) -> None:
    with pytest.raises(ConfigError) as caught:
        streamlog.open(tmp_path / "d", brokers=brokers)  # type: ignore[arg-type]
    assert caught.value.option == "brokers"
    with streamlog.open(tmp_path / "d", brokers=1):
        pass


def test_the_legacy_rule_of_messages_warns_once_an_opening() -> None:
    with pytest.warns(UserWarning, match="replica_lag_time_max_ms decides") as caught:
        streamlog.open(":memory:", replica_lag_max_messages=4_000).close()
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        streamlog.open(":memory:").close()


def test_another_number_of_brokers_on_an_existing_directory(tmp_path: Path) -> None:
    streamlog.open(tmp_path / "d").close()
    with pytest.raises(ConfigError, match="add_broker"):
        streamlog.open(tmp_path / "d", brokers=2)
    streamlog.open(tmp_path / "d", brokers=1).close()


@pytest.mark.parametrize(
    "wrong",
    [
        *({"sync": "fast"}, {"sync": None}, {"mode": "w"}, {"syncc": "off"}, {"config": {"no.such": 1}}),
        *({"runtime": 7}, {"runtime": Simulation}, {"runtime": 7, "mode": "r"}),
    ],
)
def test_wrong_options_of_open_create_nothing(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        streamlog.open(tmp_path / "d", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("path", ["", b"x", 7, None])
def test_what_is_no_path(path: object) -> None:
    with pytest.raises(ConfigError) as caught:
        streamlog.open(path)  # type: ignore[call-overload]
    assert caught.value.option == "path"


# -- topics ------------------------------------------------------------------------------------------------


def test_topics_by_name(cluster: Cluster) -> None:
    cluster.create_topic("b", partitions=3)
    cluster.create_topic("a", config={"retention.ms": 5})
    assert cluster.topics == ["a", "b"]
    assert len(cluster.topic("b")) == 3
    cluster.delete_topic("b")
    assert cluster.topics == ["a"]
    with pytest.raises(UnknownTopicOrPartitionError):
        cluster.topic("b")
    with pytest.raises(UnknownTopicOrPartitionError):
        cluster.delete_topic("b")


def test_exist_ok_takes_what_is_there_only_if_it_is_what_was_asked(cluster: Cluster) -> None:
    cluster.create_topic("t", partitions=2)
    with pytest.raises(TopicAlreadyExistsError):
        cluster.create_topic("t", partitions=2)
    assert len(cluster.create_topic("t", partitions=2, replication_factor=1, exist_ok=True)) == 2
    assert len(cluster.create_topic("t", exist_ok=True)) == 2
    for other in ({"partitions": 3}, {"replication_factor": 2}):
        with pytest.raises(TopicAlreadyExistsError, match=next(iter(other))):
            cluster.create_topic("t", exist_ok=True, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, -1, -5, True, 1.5, "2"])
def test_impossible_partition_counts(cluster: Cluster, count: object) -> None:
    with pytest.raises((InvalidPartitionsError, ConfigError)):
        cluster.create_topic("t", partitions=count)  # type: ignore[arg-type]
    assert cluster.topics == []


@pytest.mark.parametrize("factor", [0, -1, 2, "1"])
def test_impossible_replication_factors(cluster: Cluster, factor: object) -> None:
    with pytest.raises((InvalidReplicationFactorError, ConfigError)):
        cluster.create_topic("t", replication_factor=factor)  # type: ignore[arg-type]
    assert cluster.topics == []


def test_cluster_defaults_for_topics() -> None:
    with streamlog.open(":memory:", config={"num.partitions": 5}, log_retention_ms=77) as cluster:
        topic = cluster.create_topic("t")
        assert len(topic) == 5
        assert topic.config["retention.ms"] == "77"


def test_topics_on_first_use_only_where_asked_for(cluster: Cluster) -> None:
    with cluster.producer() as producer, pytest.raises(UnknownTopicOrPartitionError):
        producer.send("new", b"x")
    with streamlog.open(":memory:", auto_create_topics=True) as generous:
        with generous.producer() as producer:
            producer.send("new", b"x").result()
        assert generous.topics == ["new"]


def test_groups_are_listed(cluster: Cluster) -> None:
    cluster.create_topic("t")
    assert cluster.groups == []
    group = cluster.consumer_group("g", ["t"])
    assert cluster.groups == []
    group.reset_offsets("earliest")
    assert cluster.groups == ["g"]


# -- clients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_id", ["", None, 7])
def test_impossible_group_names(cluster: Cluster, group_id: object) -> None:
    with pytest.raises(InvalidGroupIdError):
        cluster.consumer_group(group_id, ["t"])  # type: ignore[arg-type]


@pytest.mark.parametrize("topics", [7, b"t", {"t": 1}, [7], ["a b"], [None]])
def test_impossible_topics_of_a_group(cluster: Cluster, topics: object) -> None:
    with pytest.raises(streamlog.StreamlogError):
        cluster.consumer_group("g", topics)  # type: ignore[arg-type]


def test_config_takes_dotted_names_and_keywords_win_over_it(cluster: Cluster) -> None:
    producer = cluster.producer(config={"linger.ms": "7", "batch.size": 10})
    assert (producer.config.linger_ms, producer.config.batch_size) == (7, 10)
    assert cluster.producer(linger_ms=1, config={"linger.ms": 2}).config.linger_ms == 1
    producer.close()


# -- closing -----------------------------------------------------------------------------------------------


def test_closing_flushes_forgotten_producers(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "d", sync="off") as cluster:
        cluster.create_topic("t")
        cluster.producer(linger_ms=60_000).send("t", b"kept")
        gc.collect()
    with streamlog.open(tmp_path / "d", sync="off") as cluster:
        assert [record.value for record in cluster.topic("t")[0].read()] == [b"kept"]


def test_closing_reports_what_nobody_read() -> None:
    with pytest.raises(DeliveryError) as caught, streamlog.open(":memory:") as cluster:
        cluster.create_topic("t", config={"cleanup.policy": "compact"})
        cluster.producer(linger_ms=60_000).send("t", b"no key")
    assert caught.value.count == 1
    with pytest.raises(ClosedError):
        cluster.topics  # noqa: B018


def test_an_exception_in_flight_stays_the_news() -> None:
    with pytest.raises(KeyError) as caught, streamlog.open(":memory:") as cluster:
        cluster.create_topic("t", config={"cleanup.policy": "compact"})
        cluster.producer(linger_ms=60_000).send("t", b"no key")
        raise KeyError("mine")
    assert isinstance(caught.value.__context__, DeliveryError)


def test_an_exception_in_flight_keeps_forgotten_consumers_from_committing(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "d", sync="off") as cluster:
        cluster.create_topic("t")
        with cluster.producer() as producer:
            producer.send_many("t", [(None, b"%d" % i) for i in range(3)])
    with pytest.raises(KeyError), streamlog.open(tmp_path / "d", sync="off") as cluster:
        for record in cluster.consumer_group("g", ["t"]).consumer():
            if record.value == b"1":
                raise KeyError("in the middle of record 1")
    with streamlog.open(tmp_path / "d", sync="off") as cluster:
        assert cluster.consumer_group("g", ["t"]).offsets() == {}


def test_everything_of_a_closed_cluster_raises_at_once() -> None:
    cluster = streamlog.open(":memory:")
    topic = cluster.create_topic("t")
    producer, consumer = cluster.producer(), cluster.consumer()
    group = cluster.consumer_group("g", ["t"])
    partition = topic[0]
    consumer.assign([("t", 0)])
    cluster.close()
    cluster.close()
    calls = [
        lambda: cluster.topics,
        lambda: cluster.topic("t"),
        lambda: cluster.create_topic("u"),
        cluster.producer,
        cluster.consumer,
        lambda: cluster.consumer_group("g"),
        cluster.metrics,
        cluster.clean,
        lambda: cluster.delete_topic("t"),
        cluster.__enter__,
        lambda: producer.send("t", b"x"),
        lambda: producer.send_many("t", [(None, b"x")]),
        producer.flush,
        producer.__enter__,
        consumer.poll,
        lambda: next(iter(consumer)),
        consumer.commit,
        lambda: consumer.seek(("t", 0), 0),
        consumer.__enter__,
        lambda: topic.add_partitions(2),
        lambda: topic.delete(),
        lambda: topic[0].read(),
        lambda: topic[0].delete_records(0),
        group.consumer,
        group.lag,
        group.offsets,
        group.members,
        lambda: group.state,
        group.delete,
        lambda: len(topic),
        lambda: topic.config,
        lambda: topic[0].leader,
        lambda: group.reset_offsets("earliest"),
        lambda: group.run(print),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(ClosedError):
            call()  # type: ignore[operator]
            pytest.fail(f"call {number} went through")
    repr(cluster), repr(producer), repr(consumer)
    for handle in (group, topic, partition):
        assert "of a closed cluster" in repr(handle)


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "default", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_interpreters_exit_flushes_and_says_so(tmp_path: Path) -> None:
    script = (
        "import streamlog, sys\n"
        "cluster = streamlog.open(sys.argv[1], sync='off')\n"
        "cluster.create_topic('t')\n"
        "cluster.producer(linger_ms=60000).send('t', b'kept')\n"
    )
    ended = run_script(script, str(tmp_path / "d"))
    assert ended.returncode == 0, ended.stderr
    assert "1 record still on the way" in ended.stderr
    with streamlog.open(tmp_path / "d", sync="off") as cluster:
        assert [record.value for record in cluster.topic("t")[0].read()] == [b"kept"]


def test_the_interpreters_exit_commits_no_record_in_hand(tmp_path: Path) -> None:
    """Nobody closed the consumer: the exception that ends the program came while a record was in hand."""
    ended = run_script(
        """
import sys
import streamlog
cluster = streamlog.open(sys.argv[1], sync="off")
cluster.create_topic("orders")
with cluster.producer() as producer:
    producer.send_many("orders", [(None, b"%d" % number) for number in range(5)])
for record in cluster.consumer_group("billing", ["orders"]).consumer():
    raise ValueError(record)
""",
        str(tmp_path / "data"),
    )
    assert "ValueError" in ended.stderr
    with streamlog.open(tmp_path / "data", sync="off") as cluster:
        assert cluster.consumer_group("billing", ["orders"]).offsets() == {}


def test_the_interpreters_exit_is_silent_when_nothing_was_pending(tmp_path: Path) -> None:
    script = (
        "import streamlog, sys\n"
        "cluster = streamlog.open(sys.argv[1], sync='off')\n"
        "cluster.create_topic('t')\n"
        "cluster.producer().send('t', b'kept').result()\n"
    )
    ended = run_script(script, str(tmp_path / "d"))
    assert (ended.returncode, ended.stderr) == (0, "")


def test_repr_and_paths(cluster: Cluster) -> None:
    cluster.create_topic("t")
    assert "topics=1" in repr(cluster) and "brokers=1" in repr(cluster)
    assert len(cluster.brokers) == 1
