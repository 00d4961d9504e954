"""Interrupts (Ctrl-C, PyThreadState_SetAsyncExc) into clients: no loss, no duplicate, no eviction, no hang.

    sweep    one operation, interrupted at every place CPython looks for interrupts (default: a seeded sample)
    storm    threads that produce, consume, commit and create topics, struck at random moments all the time
    sigint   a process that works and gets SIGINT again and again

What an interrupted call may leave behind is what it would have done, or nothing; what everybody else did is untouched.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import streamlog
from streamlog import TopicPartition
from streamlog.errors import UnknownTopicOrPartitionError
from tests.broker.builders import in_thread
from tests.broker.interrupting import Interrupt, count_places, interrupted_at, places, raise_in
from tests.waiting import until

SEED = 20_262
SAMPLE = 25


def read_all(cluster: Any, topic: str = "t") -> list[tuple[int, int, bytes, Any]]:
    """(partition, offset, value, headers) of everything; offsets are dense."""
    found = []
    for partition in cluster.topic(topic).partitions:
        records = partition.read(max_records=100_000)
        assert [record.offset for record in records] == list(range(len(records)))
        found += [(partition.number, record.offset, record.value, record.headers) for record in records]
    return found


class Case:
    """One operation on a warm cluster, and what must hold when it was interrupted anywhere."""

    BROKERS = 1

    def __init__(self) -> None:
        self.cluster: Any = streamlog.open(":memory:", brokers=self.BROKERS, sync="off")
        self.cluster.create_topic("t", partitions=2, replication_factor=self.BROKERS)
        self.producer = self.cluster.producer(linger_ms=60_000)
        self.producer.send("t", b"warm", partition=0).result()
        self.prepare()

    def prepare(self) -> None: ...

    def act(self) -> object:
        raise NotImplementedError

    def check(self, where: str | None) -> None:
        """Runs in another thread, which must not hang."""
        for number in (0, 1):
            self.producer.send("t", b"after", partition=number)
        self.producer.flush()
        values = Counter(value for _, _, value, _ in read_all(self.cluster))
        assert values.pop(b"after") == 2, where
        assert all(count == 1 for count in values.values()), (where, values)
        self.check_more(values, where)

    def check_more(self, values: Counter[bytes], where: str | None) -> None: ...


class SendAndWait(Case):
    def act(self) -> object:
        return self.producer.send("t", b"x", partition=0).result()


class SendReplicated(SendAndWait):
    """Who waits for acks=all does the followers' work; no follower may be left behind by it, no answer lost."""

    BROKERS = 3


class SendWithHeaders(Case):
    def act(self) -> object:
        return self.producer.send("t", b"x", key=b"k", headers=[("name", b"data")], partition=1)

    def check_more(self, values: Counter[bytes], where: str | None) -> None:
        headers = {value: headers for _, _, value, headers in read_all(self.cluster)}
        assert headers[b"after"] == (), where
        assert headers.get(b"x", (("name", b"data"),)) == (("name", b"data"),), where


class SendWithoutLinger(Case):
    def prepare(self) -> None:
        self.eager = self.cluster.producer(linger_ms=0)
        self.eager.send("t", b"warm as well", partition=0)

    def act(self) -> object:
        return self.eager.send("t", b"x", partition=0)


class SendMany(Case):
    def act(self) -> object:
        return self.producer.send_many("t", [(b"%d" % n, b"many %d" % n) for n in range(6)]).result()


class Flush(Case):
    """What was gathered before is not lost."""

    def prepare(self) -> None:
        self.producer.send("t", b"x", partition=0)
        self.producer.send("t", b"y", partition=1)

    def act(self) -> object:
        return self.producer.flush()

    def check_more(self, values: Counter[bytes], where: str | None) -> None:
        assert values[b"x"] == values[b"y"] == 1, where


class CreateTopic(Case):
    def act(self) -> object:
        return self.cluster.create_topic("new", partitions=2)

    def check_more(self, values: Counter[bytes], where: str | None) -> None:
        topic = self.cluster.create_topic("new", partitions=2, exist_ok=True)
        self.producer.send("new", b"n", partition=1).result()
        assert [len(partition.read()) for partition in topic.partitions] == [0, 1], where


class DeleteTopic(Case):
    def prepare(self) -> None:
        self.cluster.create_topic("old")
        self.producer.send("old", b"o").result()

    def act(self) -> object:
        return self.cluster.delete_topic("old")

    def check_more(self, values: Counter[bytes], where: str | None) -> None:
        try:
            self.cluster.delete_topic("old")
        except UnknownTopicOrPartitionError:
            pass  # the interrupted call did it
        topic = self.cluster.create_topic("old", partitions=1)
        assert topic[0].read() == [], where
        self.producer.send("old", b"again").result()
        assert [record.value for record in topic[0].read()] == [b"again"], where
        self.cluster.clean()
        broker = self.cluster._backend.broker
        until(lambda: not broker.deletions.doomed, f"{where}: still deleting")
        with broker.environment.snapshot() as snapshot:
            from streamlog.storage import log

            known = set(self.cluster._backend.metadata.image.log_ids())
            assert set(log.log_ids(snapshot)) <= known, f"{where}: the deleted topic's log stays in the store"


class GroupCase(Case):
    COUNT = 6

    def prepare(self) -> None:
        self.group = self.cluster.consumer_group("g", ["t"], enable_auto_commit=False)
        self.producer.send_many("t", [(b"%d" % n, b"record %d" % n) for n in range(self.COUNT)]).result()
        self.consumer = self.group.consumer()
        self.seen: list[tuple[int, int]] = []
        self.prepare_group()

    def prepare_group(self) -> None: ...

    def take(self, records: list[Any]) -> None:
        self.seen += [(record.partition, record.offset) for record in records]

    def check(self, where: str | None) -> None:
        deadline = time.monotonic() + 10
        wanted = {(number, offset) for number, offset, _, _ in read_all(self.cluster)}
        while set(self.seen) != wanted and time.monotonic() < deadline:
            self.take(self.consumer.poll(0.2))
        assert set(self.seen) == wanted, f"{where}: records are missing"
        assert len(self.group.members()) == 1, f"{where}: {self.group.members()}"
        self.check_group(where)
        self.consumer.commit()
        assert self.group.offsets() == {
            TopicPartition("t", number): sum(place[0] == number for place in wanted) for number in (0, 1)
        }, where
        super().check(where)

    def check_group(self, where: str | None) -> None:
        assert len(self.seen) == len(set(self.seen)), f"{where}: handed out twice"


class JoinGroup(GroupCase):
    def act(self) -> object:
        records = self.consumer.poll(5)
        self.take(records)
        return records


class Poll(GroupCase):
    def prepare_group(self) -> None:
        while len(self.seen) < self.COUNT + 1:
            self.take(self.consumer.poll(1))
        self.producer.send("t", b"news", partition=1).result()

    def act(self) -> object:
        records = self.consumer.poll(5)
        self.take(records)
        return records


class Commit(GroupCase):
    def prepare_group(self) -> None:
        while len(self.seen) < self.COUNT + 1:
            self.take(self.consumer.poll(1))

    def act(self) -> object:
        return self.consumer.commit()


class Rebalance(GroupCase):
    """A second member comes and goes; the first one's poll is struck while it joins again."""

    def prepare_group(self) -> None:
        while len(self.seen) < self.COUNT + 1:
            self.take(self.consumer.poll(1))
        self.consumer.commit()
        other = self.group.consumer()
        for _ in range(5):
            other.poll(0)
            self.consumer.poll(0)
        other.close()

    def act(self) -> object:
        for _ in range(3):
            self.take(self.consumer.poll(0))
        return None


class LeaveGroup(GroupCase):
    def prepare_group(self) -> None:
        self.consumer.poll(1)
        self.leaving = self.consumer

    def act(self) -> object:
        return self.leaving.close()

    def check(self, where: str | None) -> None:
        self.leaving.close()
        self.consumer = self.group.consumer()
        super().check(where)


class LeaveWhileReading(Case):
    """Whatever is struck, no record that was not worked on to its end is committed."""

    def prepare(self) -> None:
        for number in range(6):
            self.producer.send("t", b"%d" % number, partition=number % 2)
        self.producer.flush()
        self.group = self.cluster.consumer_group("g", ["t"])
        self.finished = {TopicPartition("t", number): 0 for number in (0, 1)}
        self.consumer = self.group.consumer()
        while not self.consumer.assignment:
            self.read()

    def read(self) -> None:
        for record in self.consumer.poll(0.001, max_records=5):
            assert repr(record)  # the work: an interrupt may strike in it
            self.finished[TopicPartition("t", record.partition)] = record.offset + 1

    def act(self) -> object:
        with self.consumer:
            self.read()
            self.read()
        return None

    def check_more(self, values: Counter[bytes], where: str | None) -> None:
        committed = self.group.offsets()
        assert all(offset <= self.finished[tp] for tp, offset in committed.items()), (where, committed)


CASES = [
    *(
        SendAndWait,
        SendReplicated,
        SendWithHeaders,
        SendWithoutLinger,
        SendMany,
        Flush,
        CreateTopic,
        DeleteTopic,
    ),
    *(JoinGroup, Poll, Commit, Rebalance, LeaveGroup, LeaveWhileReading),
]


def sweep(kind: type[Case], count: int) -> None:
    measured = kind()
    total = count_places(measured.act)
    measured.cluster.close()
    print(f"{kind.__name__}: {total} places, seed {SEED}")
    assert total > 20
    for place in places(total, count, SEED):
        case = kind()
        where = f"place {place}: {interrupted_at(place, case.act)}"
        try:
            in_thread(lambda case=case, where=where: case.check(where)).result(20)
        except AssertionError as error:
            raise AssertionError(f"{kind.__name__}, {where}: {error}") from error
        in_thread(case.cluster.close).result(20)


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_interrupted_at_sampled_places(kind: type[Case]) -> None:
    sweep(kind, SAMPLE)


@pytest.mark.long
@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_interrupted_at_every_place(kind: type[Case]) -> None:
    sweep(kind, 10**9)


# -- storms: threads struck at random moments ----------------------------------------------------------------------------


class Storm:
    """Threads that work, and one that strikes them."""

    PARTITIONS = 3

    def __init__(self, cluster: Any, seconds: float) -> None:
        self.cluster = cluster
        self.seconds = seconds
        self.stopping = False
        self.interrupts: Counter[str] = Counter()
        self.acked: dict[bytes, tuple[int, int]] = {}
        self.errors: list[str] = []
        self.numbers: dict[str, Iterator[int]] = {}
        self.lost: list[Any] = []
        cluster.create_topic("t", partitions=self.PARTITIONS)
        self.producer = cluster.producer(linger_ms=1)
        self.group = cluster.consumer_group("g", ["t"], enable_auto_commit=False)
        self.consumer = self.group.consumer(on_lost=self.lost.append)
        while not self.consumer.assignment:
            self.consumer.poll(0.1)

    def produce(self, name: str) -> Callable[[int], None]:
        def step(number: int) -> None:
            value = f"{name}-{number}".encode()
            metadata = self.producer.send("t", value, partition=number % self.PARTITIONS).result()
            self.acked[value] = (metadata.partition, metadata.offset)

        return step

    def produce_many(self, number: int) -> None:
        values = [f"many-{number}-{index}".encode() for index in range(5)]
        sent = self.producer.send_many("t", [(value, value) for value in values]).result()
        for value, metadata in zip(values, sent, strict=True):
            self.acked[value] = (metadata.partition, metadata.offset)

    def create(self, number: int) -> None:
        self.cluster.create_topic(f"topic-{number}", exist_ok=True)
        self.cluster.delete_topic(f"topic-{number}")

    def consume(self, number: int) -> None:
        self.consumer.poll(0.005)
        self.consumer.commit()

    def rejoin(self, number: int) -> None:
        consumer = self.cluster.consumer_group("other", ["t"], enable_auto_commit=False).consumer()
        try:
            consumer.poll(0.02)
        finally:
            try:
                consumer.close()
            except Interrupt:
                consumer.close()
                raise

    def survive(self, name: str, step: Callable[[int], None]) -> None:
        while not self.stopping:
            try:
                self.loop(name, step)
            except Interrupt:
                pass  # it struck between two steps of `loop`

    def loop(self, name: str, step: Callable[[int], None]) -> None:
        numbers = self.numbers.setdefault(name, iter(range(10**9)))
        while not self.stopping:
            try:
                try:
                    while not self.stopping:
                        step(next(numbers))
                except Interrupt:
                    self.interrupts[name] += 1
                except UnknownTopicOrPartitionError:
                    pass  # an interrupted deletion happened after all
            except Interrupt:
                pass
            except Exception as error:
                self.errors.append(f"{name}: {error!r}")
                self.stopping = True

    def run(self, seed: int) -> None:
        chance = random.Random(seed)
        steps = {
            "producer one": self.produce("one"),
            "producer two": self.produce("two"),
            "many": self.produce_many,
            "admin": self.create,
            "member": self.consume,
            "comes and goes": self.rejoin,
        }
        threads = [
            threading.Thread(target=self.survive, args=(name, step), name=name, daemon=True)
            for name, step in steps.items()
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            pause = time.monotonic() + chance.random() * 0.004
            while time.monotonic() < pause:
                time.sleep(0)
            raise_in(chance.choice(threads))
        self.stopping = True
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive(), (
                f"{thread.name} hangs: {traceback.format_stack(sys._current_frames()[thread.ident])[-4:]}"
            )

    def judge(self) -> None:
        assert not self.errors, self.errors
        assert sum(self.interrupts.values()) > 20 * self.seconds, self.interrupts
        assert self.lost == [], "the member was evicted"
        self.producer.flush()
        found: dict[bytes, list[tuple[int, int]]] = {}
        for number, offset, value, _ in read_all(self.cluster):
            found.setdefault(value, []).append((number, offset))
        for value, place in self.acked.items():
            assert found[value] == [place], (value, place, found[value])
        assert [value for value, at in found.items() if len(at) > 1] == [], "written twice"
        assert len(self.group.members()) == 1
        self.consumer.poll(1)
        self.consumer.commit()
        self.consumer.close()
        assert self.cluster.consumer_group("other", ["t"]).members() == []


def storm(seconds: float, seed: int) -> None:
    print(f"seed {seed}")
    # An interrupt may strike a weak reference's callback, and another one the hook that is told of it: pytest's takes
    # that for a failure of its own.
    with (
        patch.object(sys, "unraisablehook", lambda told: None),
        streamlog.open(":memory:", sync="off") as cluster,
    ):
        running = Storm(cluster, seconds)
        running.run(seed)
        in_thread(running.judge).result(30)
        print(dict(running.interrupts), len(running.acked))


IGNORED = pytest.mark.filterwarnings(  # an interrupt may strike a thread's last steps
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)


@IGNORED
def test_threads_struck_at_random_moments() -> None:
    storm(1.5, SEED)


@IGNORED
@pytest.mark.long
@pytest.mark.parametrize("round_number", range(6))
def test_threads_struck_at_random_moments_long(round_number: int) -> None:
    storm(10, SEED + round_number)


# -- the real thing: SIGINT ----------------------------------------------------------------------------------------------


INTERRUPT_MET_S = 0.1
"""So long for the worker to say so; one that struck a weak reference's callback is met by nobody."""
_SKIPS_FINALLY = sys.version_info < (3, 11)
"""CPython 3.10 looks for interrupts before a handler's first step, too: one that comes while another unwinds keeps a
`finally` from running and a `with` from letting go of its lock, whoever wrote them."""


def sigint(path: Path, seconds: float) -> None:
    import json

    root = Path(__file__).resolve().parent.parent.parent
    command = [sys.executable, str(Path(__file__).with_name("interrupted_worker.py")), str(path)]
    if _SKIPS_FINALLY:
        command.append("tell")
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(root)}, cwd=root,
    ) as worker:  # fmt: skip
        assert worker.stdout is not None and worker.stderr is not None and worker.stdin is not None
        first = worker.stdout.readline()
        assert first == "ready\n", worker.stderr.read()
        told = b""
        end = time.monotonic() + seconds
        while time.monotonic() < end and worker.poll() is None:
            time.sleep(0.002 + chance.random() * 0.006)
            worker.send_signal(signal.SIGINT)
            if _SKIPS_FINALLY and select.select([worker.stdout], [], [], INTERRUPT_MET_S)[0]:
                told += os.read(worker.stdout.fileno(), 4_096)
        try:
            output, errors = worker.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            worker.kill()
            raise AssertionError("the worker hangs") from None
    assert worker.returncode == 0, errors
    facts = json.loads(told.decode() + output)
    print(
        {name: facts[name] for name in ("attempted", "interrupts", "members", "generation")},
        len(facts["acked"]),
    )
    assert facts["interrupts"] > 10 * seconds
    assert (facts["members"], facts["lost"], facts["generation"]) == (1, 0, 1), facts
    with streamlog.open(path) as cluster:
        found: dict[bytes, list[tuple[int, int]]] = {}
        for number, offset, value, _ in read_all(cluster, "data"):
            found.setdefault(value, []).append((number, offset))
    for number, partition, offset in facts["acked"]:
        assert found[b"%d" % number] == [(partition, offset)]
    assert [value for value, at in found.items() if len(at) > 1 and value != b"many"] == []


@pytest.mark.integration
def test_sigint_again_and_again(tmp_path: Path) -> None:
    sigint(tmp_path / "data", 1.0)


@pytest.mark.long
@pytest.mark.integration
def test_sigint_again_and_again_long(tmp_path: Path) -> None:
    sigint(tmp_path / "data", 30.0)
