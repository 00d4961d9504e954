"""Names from elsewhere get a did-you-mean, and cost nothing otherwise."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
from typing import Any

import pytest

import streamlog.aio
from streamlog import Cluster, Consumer, Producer
from streamlog.client.habits import ARGUMENTS, HABITS, NOT_YET, Elsewhere
from streamlog.errors import ConfigError, StreamlogError, UnknownNameError

OWNERS = {"Producer": Producer, "Consumer": Consumer, "Cluster": Cluster}


@pytest.fixture
def owners(cluster: Cluster) -> dict[str, object]:
    return {"Producer": cluster.producer(), "Consumer": cluster.consumer(), "Cluster": cluster}


@pytest.mark.parametrize(
    ("kind", "name", "suggestion"),
    [
        ("Producer", "produce", "send("),
        ("Producer", "poll", "add_done_callback"),
        ("Producer", "send_and_wait", "send("),
        ("Consumer", "consume", "poll(timeout, max_records)"),
        ("Consumer", "commitSync", "commit()"),
        ("Consumer", "commit_sync", "commit()"),
        ("Consumer", "commitAsync", "commit()"),
        ("Consumer", "seekToBeginning", "seek_to_beginning"),
        ("Consumer", "offsetsForTimes", "offsets_for_times"),
        ("Consumer", "get_watermark_offsets", "end_offsets"),
        ("Consumer", "store_offsets", "commit("),
        ("Cluster", "create_topics", "create_topic("),
        ("Cluster", "createTopics", "create_topic"),
        ("Consumer", "getmany", "poll("),
        ("Cluster", "list_topics", "topics"),
        ("Cluster", "list_consumer_groups", "groups"),
    ],
)
def test_the_name_here_is_suggested(owners: dict[str, object], kind: str, name: str, suggestion: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        getattr(owners[kind], name)
    error = caught.value
    assert isinstance(error, AttributeError) and isinstance(error, StreamlogError)
    assert error.code == -1 and error.name == name
    assert (
        suggestion in str(error) and "did you mean" in str(error) and suggestion in (error.suggestion or "")
    )
    assert "close" in error.allowed  # type: ignore[attr-defined]


CLASSES = (*OWNERS.values(), streamlog.aio.Producer, streamlog.aio.Consumer, streamlog.aio.Cluster)


@pytest.mark.parametrize("kind", CLASSES)
def test_no_habit_hides_or_repeats_a_real_name(kind: type) -> None:
    habits = {*HABITS[kind.__name__], *NOT_YET[kind.__name__]}
    if kind is streamlog.aio.Producer:
        habits.remove("transaction")  # with and without a transactional_id it is one class
    for base in kind.__mro__:
        assert not [name for name in vars(base) if name in habits and type(vars(base)[name]) is not Elsewhere]
    assert not habits.intersection(dir(kind)) and not [name for name in habits if hasattr(kind, name)]


@pytest.mark.parametrize("kind", CLASSES)
def test_no_class_of_the_hot_path_looks_for_missing_names(kind: type) -> None:
    """`__getattr__` makes each read of *any* attribute four times slower (CPython 3.11 to 3.13)."""
    assert not [base for base in kind.__mro__ if "__getattr__" in vars(base)]


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        ("Producer", "transaction", r"cluster\.producer\(transactional_id="),
        ("Producer", "initTransactions", r"cluster\.producer\(transactional_id="),
        ("Cluster", "listen", "listener for Kafka clients is not part of this version yet"),
    ],
)
def test_what_is_still_to_come_says_so(owners: dict[str, object], kind: str, name: str, told: str) -> None:
    with pytest.raises(UnknownNameError, match=told):
        getattr(owners[kind], name)


def test_help_and_completion_show_only_what_there_is(owners: dict[str, object]) -> None:
    assert "produce" not in dir(owners["Producer"]) and "send" in dir(owners["Producer"])
    assert "send_and_wait" not in pydoc.render_doc(Producer)


def test_what_is_suggested_by_name_exists() -> None:
    for kind, habits in HABITS.items():
        for name, suggestion in habits.items():
            first = suggestion.split("(")[0].split(" ")[0]
            if "." not in first and first.isidentifier() and first not in ("leaving", "raising"):
                assert hasattr(OWNERS[kind], first), (kind, name, suggestion)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("given", [({"bootstrap.servers": "localhost"},), ("orders",), ()])
def test_clients_are_made_by_their_cluster(kind: Any, given: tuple[object, ...]) -> None:
    with pytest.raises(ConfigError, match=r"did you mean `(cluster\.|streamlog\.open\()"):
        kind(*given)


@pytest.mark.parametrize(
    ("kind", "call", "given", "told"),
    [
        ("Cluster", "create_topic", {"num_partitions": 3}, "(given 3); did you mean `partitions`?"),
        ("Cluster", "create_topic", {"retention_ms": 1}, 'did you mean `config={"retention.ms": 1}`?'),
        ("Cluster", "create_topic", {"retention_mss": 1}, 'did you mean `config={"retention.ms": 1}`?'),
        ("Cluster", "create_topic", {"segment_ms": 1}, 'did you mean `config={"segment.ms": 1}`?'),
        ("Cluster", "create_topic", {"exists_ok": True}, "did you mean `exist_ok`?"),
        ("Cluster", "create_topic", {"colour": 1}, "it takes name, partitions, replication_factor, config, "),
        ("Consumer", "poll", {"timeout_ms": 100}, "did you mean `timeout, in seconds`?"),
        ("Consumer", "poll", {"max_record": 1}, "did you mean `max_records`?"),
        ("Consumer", "commit", {"asynchronous": True}, "it waits until the offsets are stored"),
        ("Consumer", "subscribe", {"on_assign": print}, "did you mean `on_assigned`?"),
        ("Producer", "flush", {"timeout_ms": 100}, "did you mean `timeout, in seconds`?"),
        ("Producer", "close", {"timeout_ms": 100}, "did you mean `timeout, in seconds`?"),
    ],
)
def test_the_argument_here_is_suggested(
    owners: dict[str, object], kind: str, call: str, given: dict[str, Any], told: str
) -> None:
    first = {"create_topic": ["fresh"], "subscribe": [["orders"]]}.get(call, [])
    [(name, value)] = given.items()
    with pytest.raises(ConfigError) as caught:
        getattr(owners[kind], call)(*first, **given)
    error = caught.value
    assert str(error).startswith(f"{call}() has no argument {name!r}") and told in str(error)
    assert (error.option, error.value) == (name, value) and "self" not in error.allowed
    assert (error.suggestion is None) == told.startswith("it takes")


@pytest.mark.parametrize("kind", CLASSES)
def test_what_is_suggested_by_argument_exists(kind: type) -> None:
    for call, habits in ARGUMENTS.items():
        parameters = inspect.signature(getattr(kind, call)).parameters if hasattr(kind, call) else {}
        if "others" in parameters:
            assert not habits.keys() & parameters.keys()
            for here in habits.values():
                first = re.split(r"\W", here)[0]
                assert first in parameters or first == call, (call, here)


def test_python_still_sees_missing_attributes(owners: dict[str, object]) -> None:
    for owner in owners.values():
        assert (
            not hasattr(owner, "produce_it")
            and not hasattr(owner, "__length_hint__")
            and not hasattr(owner, "_x")
        )
        assert getattr(owner, "commitSyncOrElse", 7) == 7


def test_importing_does_not_import_difflib() -> None:
    script = "import sys, streamlog; sys.exit('difflib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
