"""A runtime that starts no threads and whose time stands still: tests run the due ticks themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamlog.broker import api
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.runner import Task, ThreadedRuntime
from streamlog.broker.turn import Tick
from streamlog.clock import ManualClock
from tests.broker.builders import opened, produce

START_MS = 1_700_000_000_000


class NeverRun:
    """A task that was asked for and not started."""

    def join(self, timeout_ms: int | None = None) -> bool:
        return True


class ThreadlessRuntime(ThreadedRuntime):
    """Locks and waiters as ever, a manual clock, and no background threads; `spawned` names those asked for."""

    def __init__(self, now_ms: int = START_MS, seed: int = 1) -> None:
        super().__init__(ManualClock(now_ms), seed)
        self.spawned: list[str] = []

    def spawn(self, name: str, run: Callable[[], None]) -> Task:
        self.spawned.append(name)
        return NeverRun()


def opened_still(path: Path, runtime: ThreadlessRuntime | None = None, **options: Any) -> BrokerCluster:
    """A broker cluster that does nothing by itself."""
    return opened(path, runtime or ThreadlessRuntime(), **options)


def tick_after(cluster: BrokerCluster, ms: int) -> None:
    """Let time pass, and run what is due."""
    clock = cluster.runtime.clock
    assert isinstance(clock, ManualClock)
    clock.advance(ms)
    cluster.broker.call(Tick())


def produce_now(cluster: BrokerCluster, topic: str, number: int, *values: bytes) -> api.Produced:
    """One batch into one partition, stamped by the cluster's own clock."""
    return produce(cluster, topic, number, *values, timestamp=cluster.runtime.clock.wall_ms())
