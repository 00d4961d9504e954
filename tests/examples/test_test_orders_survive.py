"""examples/test_orders_survive.py: a user's test of a user's service. It holds, and it can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import streamlog

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "test_orders_survive.py"


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_it_holds(example: ModuleType, seed: int) -> None:
    example.test_a_crashed_leader_loses_no_acknowledged_order(seed)


def test_a_user_needs_nothing_but_pytest_to_run_it() -> None:
    """Within a checkout, too: the project's own options want pytest-xdist."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(EXAMPLE)]
    done = subprocess.run(command, cwd=EXAMPLE.parents[1], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_it_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 40


def careless(*arguments: Any, **options: Any) -> Any:
    """A cluster as a careless deployment has it: followers are slow, and producers do not wait for them."""
    cluster: Any = opened(*arguments, **options)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        cluster.network.delay(one, other, ms=40)
    producer = cluster.producer
    cluster.producer = lambda **_: producer(acks=1)
    return cluster


opened = streamlog.open


def test_it_can_fail(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamlog, "open", careless)
    with pytest.raises(AssertionError):
        example.test_a_crashed_leader_loses_no_acknowledged_order(1)
