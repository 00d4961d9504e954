"""The cluster under simulation: seeds of clients and faults, and that a seed is the same everywhere.

A failing seed prints how to run it again. `make sim` runs 100, `make long` 2,000.
"""

from __future__ import annotations

import logging
import multiprocessing
import os

import pytest

from streamlog.testing import hunt
from streamlog.testing.hunt import parse_seeds
from streamlog.testing.workload import FAULTS_MIN, OPERATIONS_MIN, SECONDS_MIN, Options, draw
from tests.processes import said_by
from tests.sim.seeds import outcome_of, ran


@pytest.mark.parametrize("seed", [3, 19])
def test_a_seed(seed: int) -> None:
    _, outcome = ran(seed)
    assert outcome.operations >= OPERATIONS_MIN and outcome.virtual_seconds >= SECONDS_MIN
    assert sum(outcome.counts[kind] for kind in hunt.KINDS) >= FAULTS_MIN
    assert outcome.counts["elections"]


def test_a_seed_is_the_same_in_every_process() -> None:
    program = (
        "from streamlog.testing.workload import run\n"
        "o = run(5)\n"
        "print(o.digest, o.operations, sorted(o.counts.items()))"
    )
    assert len(said_by(program, "0", "4242")) == 1


def test_options_are_drawn_from_the_seed() -> None:
    drawn = [draw(seed) for seed in range(200)]
    assert drawn == [draw(seed) for seed in range(200)]
    assert {options.brokers for options in drawn} == {1, 2, 3, 4, 5}
    assert {options.sync for options in drawn} == {"off", "normal", "full"}
    assert all(1 <= o.min_insync_replicas <= o.replication_factor <= o.brokers for o in drawn)
    assert all(isinstance(options, Options) for options in drawn)


def test_seeds_as_they_are_written() -> None:
    assert parse_seeds("3") == [3]
    assert parse_seeds("1,5,7-9") == [1, 5, 7, 8, 9]
    with pytest.raises(ValueError):
        parse_seeds("many")


def test_the_command_says_what_happened_and_what_never_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hunt, "run", outcome_of)
    assert hunt.hunt([3], required=("elections",)) == 0
    assert hunt.hunt([3], required=("elections", "miracles")) == 1
    said = capsys.readouterr().out
    assert "never happened: miracles" in said and "1 seeds in" in said and "elections" in said


def test_a_seed_that_fails_says_how_to_run_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from streamlog.core import leadership

    monkeypatch.setattr(leadership, "high_watermark", lambda known, state, *_: state.log_end_offset)
    level = logging.getLogger("streamlog").level
    assert hunt.main(["--seeds", "3"]) == 1
    assert logging.getLogger("streamlog").level == level  # a hunt in a process leaves its logging as it was
    said = capsys.readouterr().out
    assert "--seeds 3" in said and "Options(" in said and "failed seeds: 3" in said


@pytest.mark.long
def test_2000_seeds() -> None:
    assert hunt.hunt(list(range(2_000)), jobs=os.cpu_count() or 1) == 0


def test_each_process_of_a_hunt_keeps_to_a_processor_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = multiprocessing.get_context("spawn").Value("i", 0)
    kept: list[set[int]] = []
    monkeypatch.setattr(hunt.os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    monkeypatch.setattr(hunt.os, "sched_setaffinity", lambda pid, given: kept.append(given), raising=False)
    for _ in range(3):
        hunt._settle(settled)
    assert kept == [{3}, {5}, {3}]
