"""A process whose main thread works while its parent sends it SIGINT again and again.

    python interrupted_worker.py DIRECTORY      "ready", then works until standard input ends; then one line of JSON
    python interrupted_worker.py DIRECTORY tell           the same, with an empty line for each interrupt that it has met

It produces, makes topics, polls and commits as a member of a group, and goes on after each KeyboardInterrupt.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

import streamlog


class Worker:
    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.attempted = 0
        self.acked: list[tuple[int, int, int]] = []
        self.interrupts = 0
        self.lost: list[Any] = []
        self.steps = 0
        self.is_working = False
        cluster.create_topic("data", partitions=2)
        self.producer = cluster.producer(linger_ms=2)
        self.group = cluster.consumer_group("g", ["data"], enable_auto_commit=False)
        self.consumer = self.group.consumer(on_lost=self.lost.append)
        while not self.consumer.assignment:
            self.consumer.poll(0.1)

    def step(self) -> None:
        self.steps += 1
        number = self.attempted
        self.attempted += 1
        metadata = self.producer.send("data", b"%d" % number, partition=number % 2).result()
        self.acked.append((number, metadata.partition, metadata.offset))
        if number % 5 == 0:
            self.producer.send_many("data", [(None, b"many")] * 3).result()
        if number % 7 == 0:
            self.cluster.create_topic(f"topic-{number}", exist_ok=True)
        if number % 3 == 0:
            self.consumer.poll(0)
            self.consumer.commit()

    def work(self, stopping: threading.Event, tells: bool) -> None:
        while not stopping.is_set():
            try:
                self.is_working = True
                while not stopping.is_set():
                    self.step()
                self.is_working = False
            except KeyboardInterrupt:
                self.is_working = False
                self.interrupts += 1
                if tells:
                    os.write(1, b"\n")

    def struck(self, number: int, frame: Any) -> None:
        """Nothing may strike between one KeyboardInterrupt and the work that goes on."""
        if self.is_working:
            signal.default_int_handler(number, frame)


def main(path: str, tells: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stopping = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        stopping.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    with streamlog.open(path, sync="off") as cluster:
        worker = Worker(cluster)
        print("ready", flush=True)
        signal.signal(signal.SIGINT, worker.struck)
        worker.work(stopping, tells)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        members, generation = len(worker.group.members()), worker.consumer._membership.generation
        worker.producer.close()
        worker.consumer.close()
    facts = {
        "acked": worker.acked,
        "attempted": worker.attempted,
        "interrupts": worker.interrupts,
        "steps": worker.steps,
        "members": members,
        "generation": generation,
        "lost": len(worker.lost),
    }
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] == ["tell"])
