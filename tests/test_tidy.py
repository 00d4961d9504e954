"""The house rules as a test: floors, banned names, sizes, docs, mirrored tests (DESIGN 3, STYLE 28).

Each rule is a function from (path, syntax tree, source) to complaints.
`BAD` feeds every rule what it must refuse.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINES_MAX, FUNCTION_LINES_MAX = 500, 70

# Folder (or module beside them) -> floor. Modules named here with floor 0 count as one folder.
FLOOR_0 = frozenset(
    {
        *(
            "errors",
            "protocol_errors",
            "record",
            "batch",
            "batch_columnar",
            "batch_header",
            "batch_lone",
            "batch_sealed",
            "batch_v2",
        ),
        *(
            "compression",
            "config",
            "cluster_config",
            "options",
            "option_rules",
            "clock",
            "metrics",
            "version",
            "wording",
        ),
    }
)
FLOORS = dict.fromkeys(FLOOR_0, 0) | {
    **{"core": 1, "storage": 1, "broker": 2, "client": 3},  # noqa: PIE800
    **{"streams": 4, "connect": 4, "wire": 4, "kafka": 4, "aio": 4},  # noqa: PIE800
    **{"sql": 5, "cli": 6, "__init__": 6, "__main__": 6},  # noqa: PIE800
}
ONLY = {
    "streams": {"client"},
    "connect": {"client"},
    "kafka": {"client"},
    "wire": {"broker"},
}  # beside floor 0
BESIDE = "testing"  # may import all; nobody imports it

# Module -> the places that may import it (a file, or a folder ending in "/"), and why nobody else.
IMPORT_ONLY_IN = {
    "time": (["clock.py", "testing/"], "take now_ms or a Clock"),
    "threading": (["broker/runner.py", "testing/"], "locks and waiters come from the runtime"),
    "_thread": (["broker/runner.py", "testing/"], "locks and waiters come from the runtime"),
    "lmdb": (["storage/env.py"], "bytes go through storage.env"),
    "pickle": (["protocol_errors.py"], "nothing is ever stored pickled"),
    "secrets": ([], "chance is an injected random.Random"),
}
HEAVY = frozenset(
    {
        *("dataclasses", "asyncio", "logging", "concurrent", "json"),
        *("tempfile", "argparse", "difflib", "subprocess", "socket"),
    }
)
HEAVY_ALLOWED = ("cli", "testing", "aio", "wire", "kafka", "connect")
NOT_IN_CORE = frozenset(
    {"os", "io", "pathlib", "random", "select", "socket", "logging", "asyncio", "subprocess"}
)
BANNED_CALLS = {
    "datetime.now": "take now_ms",
    "datetime.utcnow": "take now_ms",
    "datetime.today": "take now_ms",
    "uuid.uuid1": "chance is an injected random.Random",
    "uuid.uuid4": "chance is an injected random.Random",
    "os.urandom": "chance is an injected random.Random",
    "hash": "differs between processes: use crc32",
    "breakpoint": "is for debugging",
}
RANDOM_IN = ("broker/runner.py",)  # the system runtime seeds the injected generators

# Modules without a test file of their own name: where they are tested, and why.
TESTED_ELSEWHERE = {
    "protocol_errors.py": ("test_errors.py", "errors.py re-exports all of it; one table holds both"),
    "options.py": ("test_config.py", "the machinery has no behaviour apart from its tables"),
    "option_rules.py": ("test_config.py", "every rule is met by a row of the options table"),
    "cluster_config.py": ("test_config.py", "one row per option of all four roles"),
    "storage/checkpoints.py": ("storage/test_log.py", "a checkpoint is judged by the log it belongs to"),
    "broker/backup.py": ("client/test_backup.py", "a copy is judged by opening it"),
    "client/opening.py": ("client/test_cluster.py", "what opens is judged by the cluster it gives"),
    "broker/following.py": ("client/test_reader_cluster.py", "the parts of one reader beside an owner"),
    "broker/groups_beside.py": ("client/test_reader_cluster.py", "the parts of one reader beside an owner"),
    "broker/reading_beside.py": ("client/test_reader_cluster.py", "the parts of one reader beside an owner"),
    "broker/acknowledgements.py": (
        "broker/test_replication.py",
        "parked requests are judged by their answers",
    ),
    "broker/controlling.py": (
        "broker/test_replication.py",
        "the decisions are core's, with tests of their own",
    ),
    "broker/coordinators.py": ("client/test_failover.py", "judged by groups whose coordinator moves"),
    "broker/fetcher.py": ("broker/test_replication.py", "judged by logs that end up alike"),
    "broker/hosted_group.py": ("broker/test_coordinator.py", "a value of its host"),
    "broker/lifecycle.py": ("broker/test_replication.py", "judged by what faults do"),
    "broker/maintaining.py": ("broker/test_broker.py", "the rare requests of a broker"),
    "broker/peers.py": ("broker/test_replication.py", "one broker alone has no peers"),
    "broker/replica_requests.py": ("broker/test_replication.py", "values without behaviour"),
    "broker/serving_followers.py": ("broker/test_replication.py", "judged by logs that end up alike"),
    "testing/checks.py": ("testing/test_checkers.py", "finds out for the checkers what changed"),
    "testing/faults.py": ("sim/test_hunt.py", "the hunt counts each kind of fault"),
    "testing/hunt.py": ("sim/test_hunt.py", "a command over the workload"),
    "testing/workload.py": ("sim/test_hunt.py", "judged by what it finds"),
    "broker/stores_beside.py": ("client/test_reader_cluster.py", "the parts of one reader beside an owner"),
}

Rule = Callable[[str, ast.Module, str], Iterator[str]]


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


def imports(path: str, tree: ast.Module) -> Iterator[tuple[str, int, bool, bool]]:
    """Every import as (full dotted target, line, at module top, for type checking only)."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    package = ["streamlog", *Path(path).parent.parts]
    at_top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        top, only = id(node) in at_top, id(node) in typing_only
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, top, only
        elif isinstance(node, ast.ImportFrom):
            stem = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*stem, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno, top, only


def place_of(path: str) -> str:
    """The folder a file lies in, or its own name at the top of the package."""
    parts = Path(path).parts
    return parts[0] if len(parts) > 1 else Path(path).stem


def allowed_in(path: str, places: list[str]) -> bool:
    return any(path == place or (place.endswith("/") and path.startswith(place)) for place in places)


def floors(path: str, tree: ast.Module, source: str) -> Iterator[str]:
    here = place_of(path)
    if here != BESIDE and here not in FLOORS:
        yield f"{path}: {here} has no floor; say in FLOORS where it stands"
        return
    for target, line, _, _ in imports(path, tree):
        parts = target.split(".")
        if parts[0] != "streamlog" or here == BESIDE:
            continue
        there = parts[1] if len(parts) > 1 and (parts[1] in FLOORS or parts[1] == BESIDE) else "__init__"
        both_ground = FLOORS[here] == 0 and FLOORS.get(there) == 0
        if there == here or both_ground or (here in ("cli", "__init__", "__main__") and there in FLOORS):
            continue
        if there == BESIDE or FLOORS[there] >= FLOORS[here]:
            yield f"{path}:{line}: {here} must not see {there}"
        elif here in ONLY and FLOORS[there] > 0 and there not in ONLY[here]:
            yield f"{path}:{line}: {here} may use {', '.join(ONLY[here])} and floor 0, not {there}"


def banned_imports(path: str, tree: ast.Module, source: str) -> Iterator[str]:
    for target, line, top, typing_only in imports(path, tree):
        module = target.split(".")[0]
        places, reason = IMPORT_ONLY_IN.get(module, (["/"], ""))
        if places != ["/"] and not allowed_in(path, places):
            yield f"{path}:{line}: {module} only in {places or 'no module'}: {reason}"
        if top and module in HEAVY and place_of(path) not in HEAVY_ALLOWED:
            yield f"{path}:{line}: import {module} where it is needed: `import streamlog` is light"
        if place_of(path) == "core" and module in NOT_IN_CORE and not typing_only:
            yield f"{path}:{line}: core is without I/O: no {module}"
        if module == "random" and target not in ("random", "random.Random"):
            yield f"{path}:{line}: {target}: pass a random.Random in"


def banned_calls(path: str, tree: ast.Module, source: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{path}:{node.lineno}: bare except"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "random" and node.attr != "Random":
            yield f"{path}:{node.lineno}: random.{node.attr}: pass a random.Random in"
        if not isinstance(node, ast.Call):
            continue
        name = ".".join(ast.unparse(node.func).split(".")[-2:])
        if name == "print" and place_of(path) != "cli":
            yield f"{path}:{node.lineno}: print outside cli"
        if name in BANNED_CALLS and not (path in RANDOM_IN and "random" in BANNED_CALLS[name]):
            yield f"{path}:{node.lineno}: {name}(): {BANNED_CALLS[name]}"


def no_leftovers(path: str, tree: ast.Module, source: str) -> Iterator[str]:
    for number, line in enumerate(source.splitlines(), 1):
        if found := re.search(r"\b(FIXME|TODO|XXX|HACK)\b", line):
            yield f"{path}:{number}: {found[0]}: do it, or write it into 'Not implemented'"


def sizes(path: str, tree: ast.Module, source: str) -> Iterator[str]:
    if (lines := source.count("\n")) > LINES_MAX:
        yield f"{path}: {lines} lines, at most {LINES_MAX}"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{path}:{node.lineno}: {node.name} has {lines} lines, at most {FUNCTION_LINES_MAX}"


def documented(path: str, tree: ast.Module, source: str) -> Iterator[str]:
    if len(ast.get_docstring(tree) or "") < 20:
        yield f"{path}: no module docstring (purpose, invariants, sources, not implemented)"


def mirrored(path: str, tree: ast.Module, source: str) -> Iterator[str]:
    if Path(path).stem in ("__init__", "__main__"):
        return
    words = Path(path).stem.split("_")  # group_events.py may be tested in test_group.py
    families = [
        Path(path).with_name(f"test_{'_'.join(words[:count])}.py") for count in range(len(words), 0, -1)
    ]
    places = [TESTED_ELSEWHERE[path][0]] if path in TESTED_ELSEWHERE else [str(place) for place in families]
    if not any((ROOT / "tests" / place).exists() for place in places):
        yield f"{path}: no tests/{places[0]}"


RULES: list[Rule] = [floors, banned_imports, banned_calls, no_leftovers, sizes, documented, mirrored]
FILES = sorted((ROOT / "streamlog").rglob("*.py"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_is_tidy(rule: Rule) -> None:
    complaints: list[str] = []
    for file in FILES:
        source = file.read_text(encoding="utf-8")
        complaints += rule(file.relative_to(ROOT / "streamlog").as_posix(), parsed(source), source)
    assert not complaints, "\n".join(complaints)


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Who imports whom while running (not for types only), as module names."""
    names = {path: "streamlog." + path.removesuffix(".py").replace("/", ".") for path in sources}
    graph: dict[str, set[str]] = {}
    for path, source in sources.items():
        if Path(path).stem == "__init__":
            continue
        found = set()
        for target, _, _, typing_only in imports(path, parsed(source)):
            if not typing_only:
                found |= {name for name in names.values() if target == name or target.startswith(name + ".")}
        graph[names[path]] = found - {names[path]}
    return graph


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    done: set[str] = set()

    def walk(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node not in done:
            for other in sorted(graph.get(node, ())):
                if cycle := walk(other, [*trail, node]):
                    return cycle
            done.add(node)
        return []

    return next((cycle for node in sorted(graph) if (cycle := walk(node, []))), [])


def test_modules_do_not_import_in_circles() -> None:
    sources = {
        file.relative_to(ROOT / "streamlog").as_posix(): file.read_text(encoding="utf-8") for file in FILES
    }
    assert not (cycle := find_cycle(import_graph(sources))), " -> ".join(cycle)


def test_every_option_is_documented() -> None:
    from streamlog.config import describe

    for role in ("cluster", "topic", "producer", "consumer"):
        assert [option.name for option in describe(role) if len(option.doc) < 16] == []


def test_exceptions_are_still_needed() -> None:
    for module in TESTED_ELSEWHERE:
        assert (ROOT / "streamlog" / module).exists(), f"{module} is gone: remove it from TESTED_ELSEWHERE"
        own = Path(module).with_name(f"test_{Path(module).name}")
        assert not (ROOT / "tests" / own).exists(), (
            f"tests/{own} exists: remove {module} from TESTED_ELSEWHERE"
        )


DOC = '"""A docstring that is long enough."""\n'
LONG_FUNCTION = "def f():\n" + "    pass\n" * FUNCTION_LINES_MAX
BAD = [
    (floors, "core/group.py", "from streamlog.storage import log"),
    (floors, "storage/log.py", "from streamlog.core.group import Group"),
    (floors, "core/group.py", "from ..broker import api"),
    (floors, "core/group.py", "def f():\n    import streamlog.client.producer"),
    (floors, "record.py", "from streamlog.core import group"),
    (floors, "record.py", "from streamlog import open"),
    (floors, "record.py", "import streamlog"),
    (floors, "broker/broker.py", "from streamlog.client.producer import Producer"),
    (floors, "client/producer.py", "from streamlog.testing import simulation"),
    (floors, "client/producer.py", "from streamlog import connect"),
    (floors, "cli/main.py", "from streamlog.testing import simulation"),
    (floors, "wire/codec.py", "from streamlog.streams import table"),
    (floors, "wire/codec.py", "from streamlog.client.producer import Producer"),
    (floors, "streams/table.py", "from streamlog.broker import api"),
    (
        floors,
        "core/group.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from streamlog.broker import api",
    ),
    (floors, "attic/old.py", "pass"),
    (banned_imports, "broker/broker.py", "import time"),
    (banned_imports, "broker/broker.py", "from time import monotonic"),
    (banned_imports, "broker/broker.py", "def f():\n    import threading"),
    (banned_imports, "broker/turn.py", "import _thread"),
    (banned_imports, "storage/log.py", "import lmdb"),
    (banned_imports, "storage/log.py", "import pickle"),
    (banned_imports, "broker/broker.py", "import secrets"),
    (banned_imports, "client/producer.py", "import logging"),
    (banned_imports, "client/producer.py", "from concurrent.futures import Future"),
    (banned_imports, "core/group.py", "def f():\n    import os"),
    (banned_imports, "core/group.py", "import random"),
    (banned_imports, "broker/broker.py", "from random import shuffle"),
    (banned_calls, "broker/broker.py", "import random\nx = random.choice([1])"),
    (banned_calls, "broker/broker.py", "print(1)"),
    (banned_calls, "broker/broker.py", "try:\n    pass\nexcept:\n    pass"),
    (banned_calls, "broker/broker.py", "import datetime\ndatetime.datetime.now()"),
    (banned_calls, "broker/broker.py", "import uuid\nuuid.uuid4()"),
    (banned_calls, "broker/broker.py", "partition = hash(key) % 4"),
    (no_leftovers, "broker/broker.py", "x = 1  # TODO: later"),
    (no_leftovers, "broker/broker.py", "# XXX"),
    (sizes, "broker/broker.py", "x = 1\n" * (LINES_MAX + 1)),
    (sizes, "broker/broker.py", LONG_FUNCTION),
    (sizes, "broker/broker.py", "class A:\n" + "    async " + LONG_FUNCTION.replace("\n", "\n    ")),
    (documented, "broker/broker.py", "x = 1"),
    (documented, "broker/broker.py", '"""Short."""'),
    (mirrored, "broker/no_such_module.py", DOC),
]
GOOD = [
    (
        floors,
        "broker/broker.py",
        "from streamlog.core import group\nfrom streamlog.storage import log\nfrom . import api",
    ),
    (floors, "record.py", "from streamlog.errors import StreamlogError"),
    (floors, "wire/codec.py", "from streamlog.broker import api\nfrom streamlog.errors import error_class"),
    (floors, "__init__.py", "from streamlog.client.cluster import open"),
    (floors, "testing/simulation.py", "from streamlog.broker import runner\nimport streamlog"),
    (banned_imports, "clock.py", "import time"),
    (banned_imports, "broker/runner.py", "import threading, random"),
    (banned_imports, "client/producer.py", "def f():\n    import logging"),
    (banned_calls, "broker/broker.py", "import random\nx = random.Random(7).choice([1])"),
    (banned_calls, "cli/main.py", "print(1)"),
    (sizes, "broker/broker.py", "x = 1\n" * LINES_MAX),
    (mirrored, "broker/__init__.py", DOC),
    (mirrored, "errors.py", DOC),
]


@pytest.mark.parametrize(("rule", "path", "source"), BAD)
def test_every_rule_can_fail(rule: Rule, path: str, source: str) -> None:
    assert list(rule(path, parsed(source), source))


@pytest.mark.parametrize(("rule", "path", "source"), GOOD)
def test_no_rule_fails_too_easily(rule: Rule, path: str, source: str) -> None:
    assert not list(rule(path, parsed(source), source))


def test_every_rule_has_a_bad_example() -> None:
    assert {rule for rule, _, _ in BAD} == set(RULES)


def test_circles_are_found() -> None:
    lazy = {"a.py": "def f():\n    from streamlog.b import x", "b.py": "from . import a"}
    assert find_cycle(import_graph(lazy)) == ["streamlog.a", "streamlog.b", "streamlog.a"]
    typed = {
        "a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import streamlog.b",
        "b.py": lazy["b.py"],
    }
    assert find_cycle(import_graph(typed)) == []
