"""The tables of docs/ say what the code says: options, errors, commands, states, differences from Kafka."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import streamlog.aio
from streamlog import config, errors
from streamlog.core.group_state import VALID_PREVIOUS, State

DOCS = Path(__file__).resolve().parents[2] / "docs"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_reference", DOCS / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load()


@pytest.mark.parametrize("name", reference.PARTS)
def test_generated_parts_are_up_to_date(name: str) -> None:
    # Not an assert on the texts: pytest would spend minutes on a diff of pages that differ in every line.
    is_current = reference.rendered(name) == (DOCS / name).read_text()
    assert is_current, "run: python docs/reference.py"


def rows(name: str) -> Iterator[list[str]]:
    """The table rows of a page, as cells."""
    for line in (DOCS / name).read_text().splitlines():
        if line.startswith("| ") and not line.startswith("|---"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]


@pytest.mark.parametrize("role", ["cluster", "topic", "producer", "consumer"])
def test_every_option_has_its_row(role: str) -> None:
    text = (DOCS / "options.md").read_text()
    part = text[text.index(f"<!-- generated: {role} -->") : text.index(f"<!-- end: {role} -->")]
    for option in config.describe(role):
        assert re.search(
            rf"^\| `{option.name}`[°†‡]* \|.*{re.escape(option.doc[:20])}", part, re.MULTILINE
        ), option.name


def test_the_table_of_asyncio_tells_what_is_awaited() -> None:
    text = (DOCS / "guide.md").read_text()
    part = text[text.index("<!-- generated: aio -->") : text.index("<!-- end: aio -->")]
    told: dict[str, str] = {}
    for row in part.splitlines()[5:-1]:  # behind `with` and `for`
        _, form, names = row.strip("| ").split(" | ")
        for owner, members in re.findall(r"(\w+): ([^;]+)", names):
            for member in re.findall(r"`(\w+)`", members):
                assert told.setdefault(f"{owner}.{member}", form) == form, "each once"
    awaited = {name for name, form in told.items() if "`await" in form}
    coroutines = {
        f"{owner}.{member}"
        for owner in ("Cluster", "Topic", "Partition", "Producer", "Consumer", "ConsumerGroup")
        for member, value in vars(getattr(streamlog.aio, owner)).items()
        if inspect.iscoroutinefunction(value) and not member.startswith("_")
    }
    assert awaited == coroutines | {"Producer.send", "Producer.send_many"}
    assert told["Consumer.at_end"].startswith("**a method to await") == ("Consumer.at_end" in coroutines)
    assert told["Consumer.assignment"].startswith("`x.name`, as it is")
    assert told["Cluster.topic"].startswith("`x.name(...)`, as it is")


def test_every_error_has_its_row() -> None:
    named = re.findall(r'<a id="(\w+)">', (DOCS / "errors.md").read_text())
    there = {getattr(errors, name).__name__ for name in errors.__all__ if name != "error_class"}
    assert sorted(named) == sorted(there), "each once"
    found = {cells[0].split("`")[1]: cells for cells in rows("errors.md") if "<a id" in cells[0]}
    assert found["OffsetOutOfRangeError"][1:4] == ["`LookupError`", "1", ""]
    assert found["StreamlogTimeoutError"][1:4] == ["`TimeoutError`", "7", "retriable, indefinite"]


def test_what_is_raised_is_told_from_what_is_not() -> None:
    text = (DOCS / "errors.md").read_text()
    raised, reserved = text.split("## Declared, but raised by nothing yet")
    for name in (
        "ConfigError",
        "OffsetOutOfRangeError",
        "ClusterLockedError",
        "DeliveryError",
        "CommitFailedError",
    ):
        assert f'<a id="{name}">' in raised, name
    assert '<a id="ShareSessionNotFoundError">' in reserved


def test_every_error_that_is_raised_has_its_advice() -> None:
    raised = {error.__name__ for error in reference.classes() if reference.is_raised(error)}
    assert set(reference.ADVICE) == raised


def test_states_of_a_group() -> None:
    text = (DOCS / "internals" / "groups.md").read_text()
    arrows = set(re.findall(r"^    (\w+) --> (\w+)$", text, re.MULTILINE))
    table = {(previous.value, state.value) for state, before in VALID_PREVIOUS.items() for previous in before}
    assert arrows == table
    assert {cells[0] for cells in rows("internals/groups.md") if len(cells) == 4} >= {
        f"`{s.value}`" for s in State
    }


def test_states_of_brokers_and_partitions() -> None:
    """What the exploration of the rules finds, against what SEMANTICS 1.4 says there is to find."""
    text = (DOCS / "replication.md").read_text()
    arrows = set(re.findall(r"^    (\w+) --> (\w+): ", text, re.MULTILINE))
    assert arrows == {
        ("Unknown", "Fenced"),
        ("Fenced", "Active"),
        ("Active", "Fenced"),
        ("Active", "ShuttingDown"),
        ("ShuttingDown", "Fenced"),
        ("Fenced", "ShuttingDown"),
        ("InSync", "UnderReplicated"),
        ("UnderReplicated", "InSync"),
        ("UnderReplicated", "Offline"),
        ("Offline", "UnderReplicated"),
    }
    table = {cells[0]: cells[1:] for cells in rows("replication.md") if len(cells) == 4}
    assert table["the last in sync is back"] == ["stays", "another", "rises"]
    assert table["the leader finds one too slow"] == ["shrinks", "stays", "stays"], "KAFKA-15021"
    assert table["the leader is lost"] == ["shrinks or stays", "another or none", "rises"]


def test_every_changed_default_stands_in_the_table_of_differences() -> None:
    options = {option.name: option for role in reference.OWN for option in config.describe(role)}
    table = {cells[0].strip("`"): cells for cells in rows("differences-from-kafka.md") if len(cells) == 4}
    for name, kafkas in reference.KAFKA_DEFAULTS.items():
        assert options[name].default != kafkas, f"{name} is Kafka's default again"
        assert name in table, f"{name} differs from Kafka; say so"
        shown = table[name][2].strip("`").strip('"')
        assert shown.replace("_", "") == str(options[name].default).replace("_", ""), name
    described = {name for name in table if name in options}
    assert described == set(reference.KAFKA_DEFAULTS)


def test_options_without_effect_are_those_nothing_reads() -> None:
    assert "max_in_flight_requests_per_connection" in reference.without_effect("producer")
    assert "linger_ms" not in reference.without_effect("producer")
    assert "log_retention_ms" not in reference.without_effect("cluster"), "read as retention.ms of topics"
    assert "cleanup_policy" not in reference.without_effect("topic")
