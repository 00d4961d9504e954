"""Names from elsewhere get a did-you-mean, and cost nothing otherwise."""

from __future__ import annotations

import subprocess
import sys

import pytest

from streamlog import Cluster, Consumer, Producer
from streamlog.client.habits import HABITS
from streamlog.errors import StreamlogError, UnknownNameError

OWNERS = {"Producer": Producer, "Consumer": Consumer, "Cluster": Cluster}


@pytest.fixture
def owners(cluster: Cluster) -> dict[str, object]:
    return {"Producer": cluster.producer(), "Consumer": cluster.consumer(), "Cluster": cluster}


@pytest.mark.parametrize(
    ("kind", "name", "suggestion"),
    [
        ("Producer", "produce", "send("),
        ("Producer", "poll", "add_done_callback"),
        ("Producer", "sendMany", "send_many"),
        ("Producer", "initTransactions", "transaction()"),
        ("Producer", "flsh", "flush"),
        ("Consumer", "consume", "poll(timeout, max_records)"),
        ("Consumer", "commitSync", "commit()"),
        ("Consumer", "commit_sync", "commit()"),
        ("Consumer", "commitAsync", "commit()"),
        ("Consumer", "seekToBeginning", "seek_to_beginning"),
        ("Consumer", "offsetsForTimes", "offsets_for_times"),
        ("Consumer", "get_watermark_offsets", "end_offsets"),
        ("Consumer", "store_offsets", "commit("),
        ("Cluster", "create_topics", "create_topic("),
        ("Cluster", "createTopic", "create_topic"),
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


def test_no_habit_hides_or_repeats_a_real_name() -> None:
    for kind, habits in HABITS.items():
        assert not [name for name in habits if hasattr(OWNERS[kind], name)], kind


def test_what_is_suggested_by_name_exists() -> None:
    for kind, habits in HABITS.items():
        for name, suggestion in habits.items():
            first = suggestion.split("(")[0].split(" ")[0]
            if "." not in first and first.isidentifier() and first not in ("leaving", "raising"):
                assert hasattr(OWNERS[kind], first), (kind, name, suggestion)


def test_names_nobody_knows_show_what_there_is(owners: dict[str, object]) -> None:
    with pytest.raises(UnknownNameError, match=r"it has: .*send") as caught:
        owners["Producer"].zzzzzz  # type: ignore[attr-defined]  # noqa: B018
    assert caught.value.suggestion is None


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
