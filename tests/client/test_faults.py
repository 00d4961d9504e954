"""Bad input and faults, line by line of the issue: a named error with code, what was given, what is allowed;
nothing changes.

Seen from a user of the client. What only the store can do to itself (full disk, full map, readers) is in
tests/storage.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog import Cluster, Topic, TopicPartition
from streamlog.errors import (
    ClosedError,
    ClusterLockedError,
    CommitFailedError,
    ConfigError,
    InvalidRecordError,
    InvalidTopicError,
    NotAStreamlogDirectoryError,
    OffsetOutOfRangeError,
    ReadOnlyError,
    RecordTooLargeError,
    SerializationError,
    StreamlogError,
    UnknownTopicOrPartitionError,
    UnsupportedFormatError,
)

T0 = TopicPartition("single", 0)
Call = Callable[[Cluster], object]


def send(cluster: Cluster, *arguments: Any, **options: Any) -> object:
    with cluster.producer() as producer:
        return producer.send(*arguments, **options).result()


def poll_from(cluster: Cluster, offset: int) -> object:
    consumer = cluster.consumer(auto_offset_reset="none")
    consumer.assign([T0])
    consumer.seek(T0, offset)
    return consumer.poll(0)


def stale_commit(cluster: Cluster) -> object:
    consumer = cluster.consumer_group("g", ["single"], enable_auto_commit=False).consumer()
    consumer.poll(0)
    membership = consumer._membership
    assert membership is not None
    membership.heartbeat(membership.last_poll_ms + 300_001)  # nobody polled: the group goes on without it
    return consumer.commit({T0: 1})


FAULTS: list[tuple[str, Call, type[StreamlogError], int, type[Exception], dict[str, object], str]] = [
    # what is wrong, the call, the error, Kafka's code, its standard-library kin, its facts, what the message
    # says is allowed
    (
        "invalid topic name",
        lambda c: c.create_topic("a b"),
        InvalidTopicError,
        17,
        ValueError,
        {"topic": "a b"},
        "a-z",
    ),
    ("long topic name", lambda c: c.create_topic("a" * 250), InvalidTopicError, 17, ValueError, {}, "249"),
    (
        "unknown topic",
        lambda c: send(c, "nowhere", b"x"),
        UnknownTopicOrPartitionError,
        3,
        LookupError,
        {"topic": "nowhere"},
        "",
    ),
    (
        "unknown topic by name",
        lambda c: c.topic("nowhere"),
        UnknownTopicOrPartitionError,
        3,
        LookupError,
        {"topic": "nowhere"},
        "",
    ),
    (
        "unknown partition",
        lambda c: send(c, "single", b"x", partition=9),
        UnknownTopicOrPartitionError,
        3,
        LookupError,
        {"partition": 9},
        "0 to 0",
    ),
    (
        "unknown partition to read",
        lambda c: c.topic("single")[9],
        UnknownTopicOrPartitionError,
        3,
        LookupError,
        {"partition": 9},
        "0 to 0",
    ),
    (
        "unknown option",
        lambda c: c.producer(linger=5),
        ConfigError,
        40,
        ValueError,
        {"option": "linger", "value": 5},
        "linger_ms",
    ),
    (
        "unknown topic option",
        lambda c: c.create_topic("t", config={"retention": 5}),
        ConfigError,
        40,
        ValueError,
        {"value": 5},
        "retention",
    ),
    (
        "wrong type",
        lambda c: send(c, "single", "text"),
        SerializationError,
        -1,
        ValueError,
        {},
        "bytes or None",
    ),
    (
        "wrong type of option",
        lambda c: c.producer(linger_ms="soon"),
        ConfigError,
        40,
        ValueError,
        {"option": "linger_ms", "value": "soon"},
        "",
    ),
    (
        "bool is no int",
        lambda c: c.producer(linger_ms=True),
        ConfigError,
        40,
        ValueError,
        {"option": "linger_ms"},
        "",
    ),
    (
        "out of range",
        lambda c: c.producer(acks=2),
        ConfigError,
        40,
        ValueError,
        {"option": "acks", "value": 2},
        "all",
    ),
    (
        "oversized record",
        lambda c: send(c, "single", b"x" * 2_000_000),
        RecordTooLargeError,
        10,
        ValueError,
        {"topic": "single"},
        "1048576",
    ),
    (
        "null key, compacted",
        lambda c: send(c, "compacted", b"x"),
        InvalidRecordError,
        87,
        ValueError,
        {"topic": "compacted"},
        "key",
    ),
    (
        "offset out of range",
        lambda c: poll_from(c, 7),
        OffsetOutOfRangeError,
        1,
        LookupError,
        {"offset": 7, "topic": "single"},
        "0 to 1",
    ),
    (
        "offset to read",
        lambda c: c.topic("single")[0].read(7),
        OffsetOutOfRangeError,
        1,
        LookupError,
        {"offset": 7},
        "0 to 1",
    ),
    (
        "stale member",
        stale_commit,
        CommitFailedError,
        -1,
        RuntimeError,
        {"group_id": "g"},
        "max_poll_interval_ms",
    ),
    (
        "beginning",
        lambda c: c.consumer(auto_offset_reset="beginning"),
        ConfigError,
        40,
        ValueError,
        {"suggestion": "earliest"},
        "earliest",
    ),
    (
        "largest",
        lambda c: c.consumer(auto_offset_reset="largest"),
        ConfigError,
        40,
        ValueError,
        {"suggestion": "latest"},
        "latest",
    ),
    (
        "bootstrap servers",
        lambda c: c.producer(bootstrap_servers="x:9092"),
        ConfigError,
        40,
        ValueError,
        {"option": "bootstrap_servers"},
        "streamlog.connect",
    ),
    (
        "reset to beginning",
        lambda c: c.consumer_group("h", ["single"]).reset_offsets("beginning"),
        ConfigError,
        40,
        ValueError,
        {"suggestion": "earliest"},
        "earliest",
    ),
]


@pytest.mark.parametrize(
    ("name", "call", "kind", "code", "kin", "facts", "allowed"), FAULTS, ids=[fault[0] for fault in FAULTS]
)
def test_faults(
    cluster: Cluster,
    single: Topic,
    name: str,
    call: Call,
    kind: type[StreamlogError],
    code: int,
    kin: type[Exception],
    facts: dict[str, object],
    allowed: str,
) -> None:
    cluster.create_topic("compacted", config={"cleanup.policy": "compact"})
    send(cluster, "single", b"there")
    with pytest.raises(kind) as caught:
        call(cluster)
    error = caught.value
    assert error.code == code and isinstance(error, kin) and not isinstance(error, KeyError)
    assert {fact: getattr(error, fact) for fact in facts} == facts
    assert allowed in str(error) and str(error)
    assert cluster.topics == ["compacted", "single"]
    assert [record.value for record in single[0].read()] == [b"there"] and cluster.topic("compacted")[
        0
    ].read() == []
    assert cluster.consumer_group("g").offsets() == {} == cluster.consumer_group("h").offsets()


def test_every_error_survives_pickling(cluster: Cluster, single: Topic) -> None:
    import pickle

    cluster.create_topic("compacted", config={"cleanup.policy": "compact"})
    send(cluster, "single", b"there")
    for name, call, kind, *_ in FAULTS:
        with pytest.raises(kind) as caught:
            call(cluster)
        again = pickle.loads(pickle.dumps(caught.value))
        assert type(again) is type(caught.value) and str(again) == str(caught.value), name


# -- closed handles ----------------------------------------------------------------------------------------


def test_use_after_close_raises_at_once(cluster: Cluster, single: Topic) -> None:
    producer, consumer = cluster.producer(), cluster.consumer()
    producer.close(), consumer.close()
    for call in (
        lambda: producer.send("single", b"x"),
        producer.flush,
        consumer.poll,
        lambda: consumer.assign([T0]),
    ):
        with pytest.raises(ClosedError) as caught:
            call()  # type: ignore[no-untyped-call]
        assert "closed" in str(caught.value) and isinstance(caught.value, RuntimeError) and caught.value.fatal
    assert single[0].high_watermark == 0


FORK = """
import os, sys, warnings
import streamlog
from streamlog.errors import ClusterLockedError, StoreForkedError, StreamlogError
warnings.simplefilter("ignore")
cluster = streamlog.open(sys.argv[1], sync="off")
topic = cluster.create_topic("t")
producer, consumer = cluster.producer(linger_ms=60000), cluster.consumer()
group = cluster.consumer_group("g", ["t"]); member = group.consumer(); member.poll(0)
consumer.assign([("t", 0)])
producer.send("t", b"1").result(); consumer.poll(1); iterator = iter(consumer)
waiting = producer.send("t", b"2")
child = os.fork()
if child == 0:
    calls = dict(
        send=lambda: producer.send("t", b"x"), send_many=lambda: producer.send_many("t", [(None, b"x")]),
        flush=producer.flush,
        result=waiting.result, poll=consumer.poll, iterate=lambda: next(iterator), read=lambda: topic[0].read(),
        create=lambda: cluster.create_topic("u"),
        topics=lambda: cluster.topics, seek=lambda: consumer.seek(("t", 0), 0), join=member.poll,
        commit=member.commit, lag=group.lag,
        delete=lambda: cluster.delete_topic("t"), producer=cluster.producer, metrics=cluster.metrics,
        grow=lambda: topic.add_partitions(3),
    )
    wrong = []
    for name, call in calls.items():
        try:
            call()
            wrong.append(name + " went through")
        except StoreForkedError:
            pass
        except BaseException as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
    try:
        streamlog.open(sys.argv[1], sync="off")
        wrong.append("opened the parent's directory")
    except ClusterLockedError:
        pass
    cluster.close()
    with streamlog.open(":memory:") as own:   # a cluster of its own is fine
        own.create_topic("mine")
        with own.producer() as p: p.send("mine", b"x").result()
    print("\\n".join(wrong), flush=True)
    sys.exit(1 if wrong else 0)               # runs the exit hooks, which must not touch the parent's store
_, status = os.waitpid(child, 0)
producer.send("t", b"3"); producer.flush()
print("values", [record.value for record in topic[0].read()])
cluster.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60
    )


def test_use_after_fork(tmp_path: Path) -> None:
    ended = run(FORK, str(tmp_path / "d"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "values [b'1', b'2', b'3']" in ended.stdout and "Traceback" not in ended.stderr


# -- the directory -----------------------------------------------------------------------------------------


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"mine")
    for mode in ("rw", "r"):
        with pytest.raises(NotAStreamlogDirectoryError) as caught:
            streamlog.open(tmp_path / "f", mode=mode)
        assert caught.value.path == str(tmp_path / "f") and isinstance(caught.value, OSError)
    assert (tmp_path / "f").read_bytes() == b"mine"


def test_a_directory_that_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    for mode in ("rw", "r"):
        with pytest.raises(NotAStreamlogDirectoryError):
            streamlog.open(tmp_path, mode=mode)
    assert tree(tmp_path) == {"holiday.jpg": b"mine"}


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_directory_that_is_not_writable(tmp_path: Path) -> None:
    streamlog.open(tmp_path / "d").close()
    (tmp_path / "d").chmod(0o500)
    try:
        with pytest.raises(ReadOnlyError) as caught:
            streamlog.open(tmp_path / "d")
        assert isinstance(caught.value, PermissionError) and 'mode="r"' in str(caught.value)
    finally:
        (tmp_path / "d").chmod(0o700)


def test_not_writable_as_the_system_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, for those who run the tests as root."""
    streamlog.open(tmp_path / "d").close()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(ReadOnlyError) as caught:
        streamlog.open(tmp_path / "d")
    assert isinstance(caught.value, PermissionError) and 'mode="r"' in str(caught.value)


def test_a_newer_format(tmp_path: Path) -> None:
    streamlog.open(tmp_path / "d").close()
    text = (tmp_path / "d" / "FORMAT").read_text().split("\n", 1)
    (tmp_path / "d" / "FORMAT").write_text(f"streamlog-store 99\n{text[1]}")
    before = tree(tmp_path)
    for mode in ("rw", "r"):
        with pytest.raises(UnsupportedFormatError) as caught:
            streamlog.open(tmp_path / "d", mode=mode)
        assert caught.value.format == 99 and "pgrade" in str(caught.value)
    assert tree(tmp_path) == before


def test_a_second_process_on_the_same_directory(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "d", sync="off") as cluster:
        cluster.create_topic("t")
        script = (
            "import streamlog, sys\n"
            "try: streamlog.open(sys.argv[1], sync='off')\n"
            "except streamlog.errors.ClusterLockedError as error:\n"
            "    print(error.pid, isinstance(error, BlockingIOError), error)\n"
        )
        ended = run(script, str(tmp_path / "d"))
        assert ended.stdout.startswith(f"{os.getpid()} True"), ended.stdout + ended.stderr
        assert 'mode="r"' in ended.stdout
        cluster.create_topic("u")
    assert not issubclass(ClusterLockedError, KeyError)
    ended = run(
        "import streamlog, sys\nprint(streamlog.open(sys.argv[1], sync='off').topics)", str(tmp_path / "d")
    )
    assert "['t', 'u']" in ended.stdout, ended.stderr
