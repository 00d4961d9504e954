"""The adversary of a simulated run: draws faults from the seed, makes them, and ends them again.

    crash, crash without what was not synced, stop --> start      pause --> resume
    partition, drop, delay --> heal                               full disk, slow disk --> no longer
    clock jump: stays

A crash that loses what was not synced is made only where each of the broker's partitions has another member in sync:
beyond that nothing is promised.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from streamlog.errors import StreamlogError

if TYPE_CHECKING:
    from streamlog.testing.workload import Workload

KINDS: Final = (
    "crash", "lose unsynced", "stop", "pause", "partition", "drop", "delay", "full disk", "slow disk", "clock jump",
)  # fmt: skip
FAULTS_AT_ONCE_MAX: Final = 3


class Adversary:
    """Makes and ends faults; an actor of the simulation calls `act` again and again."""

    def __init__(self, workload: Workload) -> None:
        self.chance = random.Random(f"adversary {workload.seed}")
        self.faults = 0
        self._workload = workload
        self._cluster: Any = workload.cluster
        self._under_way: list[tuple[str, Callable[[], object]]] = []

    def act(self) -> None:
        """One step: a fault more, or one less."""
        if len(self._under_way) >= FAULTS_AT_ONCE_MAX or (self._under_way and self.chance.random() < 0.45):
            self._end(self.chance.randrange(len(self._under_way)))
            return
        kind = self.chance.choice(KINDS)
        if f"fault-{self.faults}" in self._workload.without:
            self.faults += 1
        elif self._make(kind):
            self.faults += 1
            self._workload.counts[kind] += 1

    def end_all(self) -> None:
        """Peace."""
        while self._under_way:
            self._end(0)
        self._cluster.network.heal()
        for broker in self._cluster.brokers:
            if broker.state == "paused":
                broker.resume()
            elif broker.state == "down":
                broker.start()

    def _end(self, index: int) -> None:
        kind, undo = self._under_way.pop(index)
        self._note(f"ends: {kind}")
        try:
            undo()
        except StreamlogError as error:
            self._note(f"{kind} ended before: {error}")

    def _note(self, text: str) -> None:
        self._workload.simulation.note(f"FAULT {text}")

    def _make(self, kind: str) -> bool:
        chance, cluster = self.chance, self._cluster
        up = [broker for broker in cluster.brokers if broker.state == "running"]
        if kind == "clock jump":
            ms = chance.choice((-3_600_000, -5_000, 5_000, 3_600_000))
            self._note(f"the wall clock jumps by {ms} ms")
            self._workload.simulation.jump_wall_clock(ms)
            return True
        if kind in ("partition", "drop", "delay"):
            return self._make_network(kind)
        if not up:
            return False
        broker = chance.choice(up)
        name = f"{kind} of broker {broker.id}"
        if kind == "lose unsynced" and not self._others_in_sync(broker.id):
            return False
        self._note(name)
        match kind:
            case "crash":
                broker.crash()
                self._under_way.append((name, broker.start))
            case "lose unsynced":
                broker.crash(lose_unsynced=True)
                self._under_way.append((name, broker.start))
            case "stop":
                broker.stop()
                self._under_way.append((name, broker.start))
            case "pause":
                broker.pause()
                self._under_way.append((name, broker.resume))
            case "full disk":
                broker.fill_disk()
                self._under_way.append((name, lambda: broker.fill_disk(False)))
            case "slow disk":
                broker.slow_disk(chance.choice((5, 50, 500)))
                self._under_way.append((name, lambda: broker.slow_disk(0)))
        return True

    def _others_in_sync(self, broker_id: int) -> bool:
        image = self._cluster._backend.metadata.image
        return all(
            len(partition.isr) > 1 for _, _, partition in image.partitions() if broker_id in partition.isr
        )

    def _make_network(self, kind: str) -> bool:
        chance, network = self.chance, self._cluster.network
        nodes: list[Any] = [broker.id for broker in self._cluster.brokers]
        nodes.append("metadata")
        if kind == "partition":
            chance.shuffle(nodes)
            cut = chance.randint(1, len(nodes) - 1)
            groups = [nodes[:cut], nodes[cut:]]
            self._note(f"partition {groups}")
            network.partition(*groups)
            self._under_way.append((kind, network.heal))
            return True
        a, b = chance.sample(nodes, 2)
        if kind == "drop":
            share = chance.choice((0.1, 0.5, 1.0))
            self._note(f"drop {share} between {a} and {b}")
            network.drop(a, b, share)
            self._under_way.append((f"drop {a}-{b}", lambda: network.drop(a, b, 0)))
        else:
            ms = chance.choice((5, 50, 500, 2_000))
            self._note(f"delay {ms} ms between {a} and {b}")
            network.delay(a, b, ms)
            self._under_way.append((f"delay {a}-{b}", lambda: network.delay(a, b, 0)))
        return True
