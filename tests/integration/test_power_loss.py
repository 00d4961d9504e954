"""Power loss, modelled: writes and syncs of the data files recorded with strace, replayed up to random cuts.

`sync="full"`    what was acknowledged before the cut is there, everything else is sound
`sync="normal"`  the store is sound and holds a prefix, with what was acknowledged before the last
                 completed sync began
"""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import streamlog
from tests.integration.judging import Said, check_sound, judge, read_dense
from tests.integration.power_loss import Ack, Recording, Sync, Write, python, record, strace_works

ROOT = Path(__file__).resolve().parent.parent.parent
SEED = 20_264
CUTS_SHORT, CUTS_LONG = 20, 400
LIMITS = {"records": 40, "topics": 5, "commits": 15}
LIMITS_LONG = {"records": 400, "topics": 30, "commits": 100}

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(strace_works()), reason=strace_works() or "strace works"),
]


def recorded(tmp_path: Path, sync: str, limits: dict[str, int]) -> Recording:
    directory, trace, acks = tmp_path / "written", tmp_path / "trace", tmp_path / "acks"
    command = python(
        str(ROOT / "tests/integration/writer.py"), str(directory), sync, str(SEED), "0", json.dumps(limits)
    )
    record(command, trace, acks, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT)
    recording = Recording(trace, directory, acks)
    assert {Path(file).parent.name for file in recording.files} == {"broker-0", "metadata"}
    syncs = sum(isinstance(event, Sync) for event in recording.events)
    writes = sum(isinstance(event, Write) for event in recording.events)
    said = sum(isinstance(event, Ack) for event in recording.events)
    print(f"seed {SEED}, sync={sync}: {writes} writes, {syncs} syncs, {said} acknowledgements")
    assert writes > 100 and syncs > 50 and said > 50
    return recording


def cuts(recording: Recording, count: int, chance: random.Random) -> list[int]:
    return sorted(chance.sample(range(recording.first_open_index() + 1, len(recording.events) + 1), count))


def contents(path: Path) -> dict[tuple[str, int], list[bytes]]:
    with streamlog.open(path) as cluster:
        found = {}
        for name in cluster.topics:
            for partition in cluster.topic(name).partitions:
                records = read_dense(partition)
                assert partition.log_start_offset == 0 or name == "short"
                found[name, partition.number] = [record.value for record in records]
        return found


def full(tmp_path: Path, count: int, limits: dict[str, int]) -> None:
    recording, chance = recorded(tmp_path, "full", limits), random.Random(SEED)
    for index in cuts(recording, count, chance):
        said = Said()
        said.hear(recording.said_before(index))
        recording.cut(index, chance, tmp_path / "cut", tmp_path / "written")
        try:
            judge(tmp_path / "cut", said)
        except AssertionError as error:
            raise AssertionError(f"cut before event {index} of {len(recording.events)}: {error}") from error


def normal(tmp_path: Path, count: int, limits: dict[str, int]) -> None:
    recording, chance = recorded(tmp_path, "normal", limits), random.Random(SEED)
    final = contents(tmp_path / "written")
    lost: defaultdict[str, int] = defaultdict(int)
    for index in cuts(recording, count, chance):
        recording.cut(index, chance, tmp_path / "cut", tmp_path / "written")
        try:
            check_sound(tmp_path / "cut")
            there = contents(tmp_path / "cut")
            for (name, number), values in there.items():
                if name == "data":
                    assert values == final[name, number][: len(values)], f"{name}-{number} is no prefix"
            certain = Said()
            certain.hear(recording.said_before(recording.last_sync_began(index, "broker-0")))
            for (thread, sequence), (partition, offset) in certain.acked.items():
                assert there["data", partition][offset].startswith(b"%d-%d-" % (thread, sequence))
            everything = Said()
            everything.hear(recording.said_before(index))
            lost["cuts"] += any(
                offset >= len(there["data", partition]) for partition, offset in everything.acked.values()
            )
        except AssertionError as error:
            raise AssertionError(f"cut before event {index} of {len(recording.events)}: {error}") from error
    print(f"acknowledged records were missing after {lost['cuts']} of {count} cuts")


def test_full_loses_nothing_acknowledged(tmp_path: Path) -> None:
    full(tmp_path, CUTS_SHORT, LIMITS)


def test_normal_opens_intact_and_loses_a_suffix_at_most(tmp_path: Path) -> None:
    normal(tmp_path, CUTS_SHORT, LIMITS)


@pytest.mark.long
def test_full_loses_nothing_acknowledged_long(tmp_path: Path) -> None:
    full(tmp_path, CUTS_LONG, LIMITS_LONG)


@pytest.mark.long
def test_normal_opens_intact_and_loses_a_suffix_at_most_long(tmp_path: Path) -> None:
    normal(tmp_path, CUTS_LONG, LIMITS_LONG)


def test_the_model_can_lose(tmp_path: Path) -> None:
    """Taking away what a sync promised is noticed: the judge is not blind."""
    recording: Any = recorded(tmp_path, "full", LIMITS)
    recording.events = [event for event in recording.events if not isinstance(event, Sync)]
    recording.events = [
        event._replace(is_durable=False) if isinstance(event, Write) else event for event in recording.events
    ]
    chance, noticed = random.Random(SEED), 0
    for index in cuts(recording, 6, chance):
        said = Said()
        said.hear(recording.said_before(index))
        recording.cut(index, chance, tmp_path / "cut", tmp_path / "written")
        try:
            judge(tmp_path / "cut", said)
        except (AssertionError, streamlog.errors.StreamlogError):
            noticed += 1
    assert noticed >= 2
