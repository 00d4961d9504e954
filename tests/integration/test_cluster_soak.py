"""Three brokers, eight producers with acks=all, real threads, and everything that may happen to brokers, in turn.

Nothing acknowledged is lost, each producer's records are in order, readers never see what is lost later, all replicas
are alike in the end; the longest time without any acknowledgement is printed.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog.broker.runner import ThreadedRuntime
from streamlog.clock import SystemClock
from streamlog.errors import DiskFullError, PreferredLeaderNotAvailableError
from tests.integration.replicas import assert_alike

PRODUCERS = 8
PARTITIONS = 4
SEED = 20_264


class JumpingClock(SystemClock):
    """The machine's clocks, which jump forward: a laptop that slept, a debugger that stopped everybody."""

    __slots__ = ("ahead_ms",)

    def __init__(self) -> None:
        self.ahead_ms = 0

    def monotonic_ns(self) -> int:  # type: ignore[override]
        return time.monotonic_ns() + self.ahead_ms * 1_000_000

    def wall_ns(self) -> int:  # type: ignore[override]
        return time.time_ns() + self.ahead_ms * 1_000_000

    def monotonic_ms(self) -> int:
        return self.monotonic_ns() // 1_000_000

    def monotonic_us(self) -> int:
        return self.monotonic_ns() // 1_000

    def wall_ms(self) -> int:
        return self.wall_ns() // 1_000_000


class Soak:
    """A cluster under load, what was acknowledged, and what readers saw."""

    def __init__(self, cluster: Any, clock: JumpingClock) -> None:
        self.cluster = cluster
        self.clock = clock
        self.chance = random.Random(SEED)
        self.stopping = threading.Event()
        self.failures: list[BaseException] = []
        self.acked: list[tuple[int, int, int, int]] = []  # producer, sequence, partition, offset
        self.refused = 0
        self.acked_at: list[float] = []
        self.read: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        self.faults: dict[str, int] = defaultdict(int)
        self.left_broker: int | None = None

    # -- load --------------------------------------------------------------------------------------------------------

    def produce(self, number: int) -> None:
        """Half of the producers wait for each record, the others keep up to 64 on their way."""
        on_way: list[tuple[int, Any]] = []
        most = 1 if number % 2 else 64
        with self.cluster.producer(acks="all", linger_ms=0 if number % 2 else 2) as producer:
            sequence = 0
            while not self.stopping.is_set():
                value = b"%d-%d-" % (number, sequence) + b"x" * (sequence * 37 % 300)
                on_way.append((sequence, producer.send("t", value, partition=number % PARTITIONS)))
                sequence += 1
                if len(on_way) >= most:
                    self._await(number, on_way)
            self._await(number, on_way)

    def _await(self, number: int, on_way: list[tuple[int, Any]]) -> None:
        for sequence, future in on_way:
            try:
                metadata = future.result(60)
            except DiskFullError:  # told at once, as with one broker: it is for people to mend
                self.refused += 1
                self.stopping.wait(0.002)
                continue
            self.acked_at.append(time.monotonic())
            self.acked.append((number, sequence, metadata.partition, metadata.offset))
        on_way.clear()

    def consume(self) -> None:
        consumer = self.cluster.consumer()
        with consumer:
            consumer.assign([("t", number) for number in range(PARTITIONS)])
            while not self.stopping.is_set():
                for record in consumer.poll(0.2):
                    self.read[record.partition].append((record.offset, record.value))

    def guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.failures.append(error)
            self.stopping.set()

    # -- what happens ------------------------------------------------------------------------------------------------

    def leader(self) -> int:
        """Some partition's leader; where there is none just now, any broker that runs."""
        number = self.chance.randrange(PARTITIONS)
        leader = self.cluster.topic("t")[number].leader
        running = [broker.id for broker in self.cluster.brokers if broker.state == "running"]
        return leader if leader in running else running[0]

    def pause(self, seconds: float) -> None:
        self.stopping.wait(seconds)

    def leader_killed(self) -> None:
        broker = self.cluster.brokers[self.leader()]
        broker.crash()
        self.pause(0.3)
        broker.start()

    def controller_killed(self) -> None:
        broker = next((each for each in self.cluster.brokers if each.is_controller), None)
        if broker is not None and broker.state == "running":
            broker.crash()
            self.pause(0.3)
            broker.start()

    def controlled_shutdown(self) -> None:
        broker = self.cluster.brokers[self.leader()]
        broker.stop()
        self.pause(0.2)
        broker.start()

    def preferred_election(self) -> None:
        try:
            self.cluster.elect_leaders()
        except PreferredLeaderNotAvailableError:
            pass  # one that was killed has not caught up yet; the others are elected

    def broker_added_and_used(self) -> None:
        """A fourth broker takes a replica of each partition; the next time it is taken away again."""
        if self.left_broker is None:
            self.left_broker = self.cluster.add_broker().id
        new = self.left_broker
        for number, partition in enumerate(self.cluster.topic("t")):
            chosen = list(partition.replicas)
            if new in chosen:
                chosen = [0, 1, 2]
            else:
                chosen[self.chance.randrange(3)] = new
            self.cluster.reassign("t", {number: chosen})

    def disk_full(self) -> None:
        broker = self.cluster.brokers[self.leader()]
        broker.fill_disk()
        self.pause(0.3)
        broker.fill_disk(False)

    def clock_jump(self) -> None:
        self.clock.ahead_ms += 15_000

    def network_cut(self) -> None:
        alone = self.leader()
        others = {broker.id for broker in self.cluster.brokers} - {alone}
        self.cluster.network.partition({alone}, others)
        self.pause(0.3)
        self.cluster.network.heal()

    def torment(self, seconds: float) -> None:
        """Each kind of fault, in turn, and a leader killed in each second."""
        kinds = [
            self.leader_killed,
            self.controller_killed,
            self.controlled_shutdown,
            self.preferred_election,
            self.broker_added_and_used,
            self.leader_killed,
            self.disk_full,
            self.clock_jump,
            self.network_cut,
        ]
        pause = min(0.5, seconds / 30)
        deadline = time.monotonic() + seconds
        while not self.stopping.is_set() and (
            time.monotonic() < deadline or len(self.faults) < len(set(kinds))
        ):
            for kind in kinds:
                if self.stopping.is_set() or (
                    time.monotonic() >= deadline and self.faults.get(kind.__name__)
                ):
                    continue
                kind()
                self.faults[kind.__name__] += 1
                self.pause(pause)

    # -- the whole ---------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        work: list[Callable[[], None]] = [self.consume]
        work += [lambda number=number: self.produce(number) for number in range(PRODUCERS)]  # type: ignore[misc]
        threads = [threading.Thread(target=self.guarded, args=(each,), daemon=True) for each in work]
        for thread in threads:
            thread.start()
        self.guarded(lambda: self.torment(seconds))
        self.stopping.set()
        for thread in threads:
            thread.join(90)
        assert not any(thread.is_alive() for thread in threads), "a call did not come back"
        if self.failures:
            raise self.failures[0]

    def check(self) -> dict[str, float]:
        """Compare what was promised with what is there; how much there was of it."""
        assert_alike(self.cluster, "t")
        logs = {}
        for partition in self.cluster.topic("t"):
            records: list[Any] = []
            while len(records) < partition.high_watermark:
                records += partition.read(offset=len(records), max_records=10_000)
            assert [record.offset for record in records] == list(range(len(records)))
            logs[partition.number] = [record.value for record in records]
        self._check_acked(logs)
        for number, seen in self.read.items():
            assert all(before[0] < after[0] for before, after in pairwise(seen)), "a reader went back"
            for offset, value in seen:
                assert logs[number][offset] == value, f"a reader saw {value[:20]!r} at t-{number}@{offset}"
        at = sorted(self.acked_at)
        return {
            "acked": len(self.acked),
            "longest_gap_ms": max(after - before for before, after in pairwise(at)) * 1_000,
            "refused": self.refused,
            "stored": sum(map(len, logs.values())),
            "read": sum(map(len, self.read.values())),
        }

    def _check_acked(self, logs: dict[int, list[bytes]]) -> None:
        by_producer: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for number, sequence, partition, offset in self.acked:
            assert logs[partition][offset].startswith(b"%d-%d-" % (number, sequence)), (
                f"acknowledged {number}-{sequence} at t-{partition}@{offset}; there is {logs[partition][offset][:20]!r}"
            )
            by_producer[number].append((sequence, offset))
        assert len(by_producer) == PRODUCERS
        for number, places in by_producer.items():
            offsets = [offset for _, offset in sorted(places)]
            assert offsets == sorted(set(offsets)), f"producer {number}: out of order"
        for values in logs.values():
            there: dict[int, dict[int, None]] = defaultdict(dict)
            for value in values:
                number, sequence = map(int, value.split(b"-")[:2])
                there[number].setdefault(sequence)  # a second time: sent again, because the answer was lost
            for number, sequences in there.items():
                assert list(sequences) == sorted(sequences), f"producer {number}: readers see it out of order"


def soak(path: Path, seconds: float) -> None:
    clock = JumpingClock()
    config = {
        "broker.session.timeout.ms": 2_000,
        "broker.heartbeat.interval.ms": 300,
        "replica.fetch.backoff.ms": 50,
    }
    with streamlog.open(
        path, brokers=3, sync="off", runtime=ThreadedRuntime(clock), config=config
    ) as cluster:
        cluster.create_topic(
            "t", partitions=PARTITIONS, replication_factor=3, config={"min.insync.replicas": 2}
        )
        soaked = Soak(cluster, clock)
        soaked.run(seconds)
        found = soaked.check()
    print(f"{seconds:g} s: {found}, faults {dict(soaked.faults)}")
    assert found["acked"] > 200 and found["read"] > 0
    assert all(soaked.faults.values()) and len(soaked.faults) == 8
    assert found["longest_gap_ms"] < 15_000


@pytest.mark.integration
def test_nothing_acknowledged_is_lost_while_brokers_come_and_go(tmp_path: Path) -> None:
    soak(tmp_path / "data", 5)


@pytest.mark.long
@pytest.mark.integration
def test_nothing_acknowledged_is_lost_in_a_minute_of_it(tmp_path: Path) -> None:
    soak(tmp_path / "data", 60)
