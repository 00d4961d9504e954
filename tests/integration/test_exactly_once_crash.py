"""A read-process-write pipeline, killed with SIGKILL at random moments: its output is its input, each record once."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import streamlog

SEED = 20_271
RECORDS_A_ROUND = 400
PIPELINE = Path(__file__).with_name("pipeline.py")


def fill(path: Path, first: int, brokers: int) -> None:
    with streamlog.open(path, sync="off", brokers=brokers) as cluster:
        cluster.create_topic("in", partitions=3, replication_factor=brokers, exist_ok=True)
        cluster.create_topic("out", partitions=2, replication_factor=brokers, exist_ok=True)
        with cluster.producer() as producer:
            numbers = range(first, first + RECORDS_A_ROUND)
            producer.send_many("in", [(b"%d" % (number % 11), b"%d" % number) for number in numbers])


def run(path: Path, *arguments: str) -> subprocess.Popen[str]:
    root = PIPELINE.parent.parent.parent
    return subprocess.Popen(
        [sys.executable, str(PIPELINE), str(path), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": ""},
    )


def committed(path: Path) -> list[tuple[bytes | None, int]]:
    """Key and number of what readers of committed records see, partition by partition."""
    with streamlog.open(path, mode="r") as cluster:
        consumer = cluster.consumer(isolation_level="read_committed", stop_at_end=True)
        consumer.assign([("out", 0), ("out", 1)])
        return [(record.key, int(record.value)) for record in consumer]


def killed_again_and_again(path: Path, rounds: int, brokers: int) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    ready_ms: list[int] = []
    for number in range(rounds):
        fill(path, number * RECORDS_A_ROUND, brokers)
        with run(path) as process:
            assert process.stdout is not None
            ready_ms.append(int(process.stdout.readline().split()[1]))
            time.sleep(chance.uniform(0, 0.12))  # when it is killed is what varies, nothing waits for it
            process.kill()
        counts = Counter(value for _, value in committed(path))
        assert max(counts.values(), default=1) == 1, f"round {number}: something is there twice"
    with run(path, "to-end") as process:
        assert process.wait(60) == 0
    output = committed(path)
    assert sorted(value for _, value in output) == list(range(rounds * RECORDS_A_ROUND))
    for key in {key for key, _ in output}:
        of_key = [value for other, value in output if other == key]
        assert of_key == sorted(of_key), f"the order of key {key!r}"
    with streamlog.open(path, mode="r") as cluster:
        written = sum(partition.log_end_offset for partition in cluster.topic("out"))
    print(
        f"first record after {max(ready_ms)} ms at most; {written - len(output)} offsets of markers and aborted records"
    )


@pytest.mark.parametrize(("brokers", "rounds"), [(1, 10), (3, 4)])
def test_output_is_input_after_some_kills(tmp_path: Path, brokers: int, rounds: int) -> None:
    killed_again_and_again(tmp_path / "c", rounds, brokers)


@pytest.mark.long
@pytest.mark.parametrize("brokers", [1, 3])
def test_output_is_input_after_a_hundred_kills(tmp_path: Path, brokers: int) -> None:
    killed_again_and_again(tmp_path / "c", 100, brokers)
