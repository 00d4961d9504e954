"""SIGKILL at random moments, in each sync mode, the same directory again and again (issue 2, "Crash").

Every acknowledged record is there once, at its offset, in order; offsets have no gaps; nothing is
half-written; topics and
committed offsets are as acknowledged; reopening takes less than a second; leftovers of deletions are cleared away.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.judging import Said, judge

ROOT = Path(__file__).resolve().parent.parent.parent
WRITER = Path(__file__).with_name("writer.py")
SEED = 20_263
MODES = ("full", "normal", "off")
ROUNDS_SHORT = {"full": 7, "normal": 7, "off": 6}
ROUNDS_LONG = {"full": 67, "normal": 67, "off": 66}
LINES_BEFORE_KILL_MAX = 400


def run_and_kill(
    path: Path, sync: str, number: int, chance: random.Random, said: Said, brokers: int = 1
) -> None:
    """One round: start a writer, hear it for a while, kill it at any moment."""
    command = [sys.executable, str(WRITER), str(path), sync, str(SEED + number), str(number)]
    if brokers > 1:
        command.append(json.dumps({"brokers": brokers}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=ROOT
    ) as writer:
        assert writer.stdout is not None and writer.stderr is not None
        pipe, heard = writer.stdout.fileno(), b""
        lines_wanted = chance.randrange(LINES_BEFORE_KILL_MAX)
        deadline = time.monotonic() + 20
        while heard.count(b"\n") <= lines_wanted and time.monotonic() < deadline:
            if select.select([pipe], [], [], 0.5)[0]:
                some = os.read(pipe, 1 << 16)
                if not some:
                    break
                heard += some
        # Somewhere inside whatever it does now, not right behind a line.
        pause = time.perf_counter() + chance.random() * 0.004
        while time.perf_counter() < pause:
            pass
        writer.send_signal(signal.SIGKILL)
        while some := os.read(pipe, 1 << 16):
            heard += some
        errors = writer.stderr.read().decode()
    assert writer.returncode == -signal.SIGKILL, f"the writer ended by itself: {errors}"
    assert heard.startswith(b"R\n"), errors
    said.hear(heard.decode())


def rounds(path: Path, sync: str, count: int, brokers: int = 1) -> None:
    chance = random.Random(f"{SEED} {sync}")
    said, records = Said(), 0
    number = 0
    # Until every kind of acknowledgement was heard of: a round may be killed before its first commit or topic.
    while number < count or (number < 3 * count and not (said.commit_acked > 0 and said.topics)):
        run_and_kill(path, sync, number, chance, said, brokers)
        records = judge(path, said, alike=brokers > 1)
        number += 1
    print(
        f"seed {SEED}, sync={sync}, {brokers} brokers: {number} rounds, {records} records, "
        f"{len(said.acked)} acknowledged one by one"
    )
    assert len(said.acked) > 20 * count and said.commit_acked > 0 and said.topics


@pytest.mark.integration
@pytest.mark.parametrize("sync", MODES)
def test_killed_writers_lose_nothing_acknowledged(tmp_path: Path, sync: str) -> None:
    rounds(tmp_path / "data", sync, ROUNDS_SHORT[sync])


@pytest.mark.integration
@pytest.mark.parametrize("sync", ["off"])
def test_a_killed_process_with_three_brokers_loses_nothing_acknowledged(tmp_path: Path, sync: str) -> None:
    rounds(tmp_path / "data", sync, 4, brokers=3)


@pytest.mark.long
@pytest.mark.integration
@pytest.mark.parametrize("sync", MODES)
def test_a_killed_process_with_three_brokers_loses_nothing_acknowledged_long(
    tmp_path: Path, sync: str
) -> None:
    rounds(tmp_path / "data", sync, 40, brokers=3)


@pytest.mark.long
@pytest.mark.integration
@pytest.mark.parametrize("sync", MODES)
def test_killed_writers_lose_nothing_acknowledged_long(tmp_path: Path, sync: str) -> None:
    rounds(tmp_path / "data", sync, ROUNDS_LONG[sync])
