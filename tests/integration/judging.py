"""Comparing what a killed writer said with what its directory holds."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import streamlog
from streamlog import TopicPartition
from streamlog.broker.verification import verify_directory
from tests.integration.replicas import assert_alike
from tests.integration.writer import PARTITIONS, PRODUCERS


class Said:
    """What writers have said, round after round."""

    def __init__(self) -> None:
        self.acked: dict[tuple[int, int], tuple[int, int]] = {}  # thread, sequence -> partition, offset
        self.short: dict[int, int] = {}  # sequence -> offset
        self.topics: dict[str, str] = {}  # name -> the last letter said of it
        self.commit_wanted = self.commit_acked = -1
        self.errors: list[str] = []
        self.lines = 0

    def hear(self, text: str) -> None:
        """Complete lines only: the last may be cut by the kill."""
        for line in text.split("\n")[:-1]:
            self.lines += 1
            letter, _, rest = line.partition(" ")
            words = rest.split()
            if letter == "A":
                thread, sequence, partition, offset = map(int, words)
                self.acked[thread, sequence] = (partition, offset)
            elif letter == "S":
                self.short[int(words[0])] = int(words[1])
            elif letter in "cCdD" and words:
                self.topics[words[0]] = letter
            elif letter == "g":
                self.commit_wanted = int(rest)
            elif letter == "G":
                self.commit_acked = int(rest)
            elif letter == "!":
                self.errors.append(line)


def judge(path: Path, said: Said, reopen_seconds: float = 1.0, alike: bool = False) -> int:
    """Open what a killed writer left. Returns how many records it holds.

    alike:  compare the replicas of several brokers, too.
    """
    assert not said.errors, said.errors
    check_sound(path)
    began = time.perf_counter()
    with streamlog.open(path) as cluster:
        opened_seconds = time.perf_counter() - began
        assert opened_seconds < reopen_seconds, f"reopening took {opened_seconds:.2f} s"
        if alike:  # what was on its way to the followers gets there first
            for topic in cluster.topics:
                assert_alike(cluster, topic)
        count = check_data(cluster, said)
        check_short(cluster, said)
        check_topics(cluster, said)
        check_commits(cluster, said)
        before = cluster.topic("data")[0].log_end_offset
        with cluster.producer() as producer:
            assert producer.send("data", b"9-%d-probe" % before, partition=0).result().offset == before
    return count


def check_sound(path: Path) -> None:
    report = verify_directory(path)
    assert report.is_sound, [str(problem) for problem in report.problems[:5]]


def read_dense(partition: Any) -> list[Any]:
    """All records of a partition; asserts that offsets have no gap."""
    records: list[Any] = []
    offset = start = partition.log_start_offset
    while offset < partition.high_watermark:
        found = partition.read(offset=offset, max_records=5000)
        assert found, f"{partition}: nothing at {offset}"
        records += found
        offset = found[-1].offset + 1
    assert [record.offset for record in records] == list(range(start, partition.log_end_offset)), partition
    return records


def check_data(cluster: Any, said: Said) -> int:
    """Every acknowledged record there once, at its offset, in order."""
    if "data" not in cluster.topics:
        assert not said.acked
        cluster.create_topic("data", partitions=PARTITIONS)
        return 0
    found: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for partition in cluster.topic("data").partitions:
        for record in read_dense(partition):
            thread, sequence, _ = record.value.split(b"-", 2)
            found[int(thread), int(sequence)].append((partition.number, record.offset))
    for key, place in said.acked.items():
        assert found[key] == [place], f"acknowledged {key} at {place}; found at {found[key]}"
    for thread in range(PRODUCERS):
        for number in range(PARTITIONS):
            acked = sorted(
                (sequence, place[1])
                for (of, sequence), place in said.acked.items()
                if of == thread and place[0] == number
            )
            offsets = [offset for _, offset in acked]
            assert offsets == sorted(set(offsets)), f"thread {thread}, partition {number}: out of order"
    twice = [(key, places) for key, places in found.items() if len(places) > 1]
    assert not twice, twice[:3]
    return sum(map(len, found.values()))


def check_short(cluster: Any, said: Said) -> None:
    if not said.short:
        return
    records = {record.offset: record.value for record in read_dense(cluster.topic("short")[0])}
    partition = cluster.topic("short")[0]
    for sequence, offset in said.short.items():
        assert offset < partition.log_end_offset
        if offset >= partition.log_start_offset:
            assert records[offset].startswith(b"%d-" % sequence)
    assert partition.size_bytes < 40_000, "retention was not kept"


def check_topics(cluster: Any, said: Said) -> None:
    there = set(cluster.topics)
    for name, letter in said.topics.items():
        if letter == "C":
            assert name in there, f"{name} was created"
            assert sum(len(partition.read()) for partition in cluster.topic(name).partitions) <= 1
        elif letter == "D":
            assert name not in there, f"{name} was deleted"


def check_commits(cluster: Any, said: Said) -> None:
    if said.commit_acked < 0:
        return
    committed = cluster.consumer_group("g", ["data"]).offsets().get(TopicPartition("data", 0), -1)
    assert said.commit_acked <= committed <= said.commit_wanted
