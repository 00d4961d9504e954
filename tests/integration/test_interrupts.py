"""Interrupts (Ctrl-C, PyThreadState_SetAsyncExc) into clients: no loss, no duplicate, no eviction, no hang.

    sweep    one operation, interrupted at every place CPython looks for interrupts (default: a seeded sample)
    storm    threads that produce, consume, commit and create topics, struck at random moments all the time
    sigint   a process that works and gets SIGINT again and again

What an interrupted call may leave behind is what it would have done, or nothing; what everybody else did is untouched.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog import TopicPartition
from streamlog.errors import UnknownTopicOrPartitionError
from tests.broker.builders import in_thread
from tests.broker.interrupting import Interrupt, count_places, interrupted_at, places, raise_in

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

    def __init__(self) -> None:
        self.cluster: Any = streamlog.open(":memory:", sync="off")
        self.cluster.create_topic("t", partitions=2)
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
        deadline = time.monotonic() + 5
        while broker.deletions.doomed and time.monotonic() < deadline:
            time.sleep(0.001)
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


CASES = [
    *(SendAndWait, SendWithHeaders, SendWithoutLinger, SendMany, Flush, CreateTopic, DeleteTopic),
    *(JoinGroup, Poll, Commit, Rebalance, LeaveGroup),
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
