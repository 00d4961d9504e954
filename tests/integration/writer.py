"""A process that writes until it is killed, and says what it was told is safe.

    python writer.py DIRECTORY SYNC SEED ROUND [EXTRA_JSON]

EXTRA_JSON bounds what is done ("records", "topics", "commits"), and says how many "brokers" replicate it (1).

Lines on stdout, each written with one call: an upper case line is what streamlog has acknowledged, a lower case line an
intention. Threads: three producers (single sends and send_many over four partitions), one into a topic with tight
retention, one that makes and deletes topics, one that commits offsets.

    A thread sequence partition offset     a record is acknowledged
    S sequence offset                      the same, in the topic with retention
    c/C name, d/D name                     a topic is going to be, was, created or deleted
    g/G offset                             an offset is going to be, was, committed
    R                                      the cluster is open
    F                                      flushed: everything so far (in sync mode "off" of the power-loss test)
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

PRODUCERS = 3
PARTITIONS = 4
SHORT_RETENTION_BYTES = 4_000


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def value_of(thread: int, sequence: int) -> bytes:
    return b"%d-%d-" % (thread, sequence) + b"x" * (sequence * 37 % 300)


class Writer:
    def __init__(self, cluster: Any, seed: int, number: int, limits: dict[str, int]) -> None:
        self.cluster = cluster
        self.seed = seed
        self.number = number
        self.limits = limits
        self.stopping = False
        self.replicas = limits.get("brokers", 1)
        cluster.create_topic("data", partitions=PARTITIONS, replication_factor=self.replicas, exist_ok=True)
        cluster.create_topic(
            "short",
            partitions=1,
            replication_factor=self.replicas,
            config={"retention.bytes": SHORT_RETENTION_BYTES},
            exist_ok=True,
        )

    def produce(self, thread: int) -> None:
        """Values are numbered per thread, a million numbers a round: no value is sent twice."""
        chance = random.Random(self.seed * 31 + thread)
        sequence = self.number * 1_000_000
        end = sequence + self.limits.get("records", 1_000_000)
        with self.cluster.producer(linger_ms=chance.choice((0, 1, 5))) as producer:
            while sequence < end:
                count = chance.choice((1, 1, 1, 2, 20))
                partition = chance.randrange(PARTITIONS)
                values = [value_of(thread, sequence + index) for index in range(count)]
                if chance.random() < 0.3:
                    futures = list(producer.send_many("data", [(value[-5:], value) for value in values]))
                else:
                    futures = [producer.send("data", value, partition=partition) for value in values]
                acked = [future.result() for future in futures]
                say(
                    "\n".join(
                        f"A {thread} {sequence + i} {a.partition} {a.offset}" for i, a in enumerate(acked)
                    )
                )
                sequence += count

    def produce_short(self) -> None:
        sequence = self.number * 1_000_000
        with self.cluster.producer(linger_ms=0) as producer:
            for index in range(self.limits.get("records", 1_000_000)):
                metadata = producer.send("short", b"%d-" % (sequence + index) + b"r" * 200).result()
                say(f"S {sequence + index} {metadata.offset}")

    def administrate(self) -> None:
        chance = random.Random(self.seed * 37)
        with self.cluster.producer(linger_ms=0) as producer:
            for index in range(self.limits.get("topics", 1_000_000)):
                name = f"topic-{self.number}-{index}"
                say(f"c {name}")
                self.cluster.create_topic(name, partitions=2, replication_factor=self.replicas)
                say(f"C {name}")
                producer.send(name, b"in it").result()
                if chance.random() < 0.7:
                    say(f"d {name}")
                    self.cluster.delete_topic(name)
                    say(f"D {name}")

    def commit(self) -> None:
        group = self.cluster.consumer_group("g", ["data"], enable_auto_commit=False)
        offset = self.number * 1_000_000
        with group.consumer() as consumer:
            while not consumer.assignment:
                consumer.poll(0.05)
            for _ in range(self.limits.get("commits", 1_000_000)):
                offset += 1
                say(f"g {offset}")
                consumer.commit({("data", 0): offset})
                say(f"G {offset}")
                if offset % 16 == 0:
                    consumer.poll(0)

    def run(self) -> None:
        work: list[Callable[[], None]] = [self.administrate, self.commit, self.produce_short]
        work += [lambda thread=thread: self.produce(thread) for thread in range(PRODUCERS)]  # type: ignore[misc]
        threads = [threading.Thread(target=self.guarded, args=(each,), daemon=True) for each in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            say(f"! {type(error).__name__}: {error}")
            os._exit(3)


def main(path: str, sync: str, seed: str, number: str, extra: str = "{}") -> None:
    import streamlog

    limits = json.loads(extra)
    with streamlog.open(path, sync=sync, brokers=limits.get("brokers")) as cluster:
        say("R")
        Writer(cluster, int(seed), int(number), limits).run()
    say("F")


if __name__ == "__main__":
    main(*sys.argv[1:])
