"""What a reader tells of logs whose owner was killed: all that was acknowledged, nothing that could be taken back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog.broker.replicated_beside import replicated_end
from streamlog.broker.stores_beside import Stores
from streamlog.core.cluster_image import PartitionImage
from streamlog.core.replica import ReplicaState
from streamlog.storage import log
from streamlog.storage.env import Environment
from tests.broker.builders import batch_of

KILLED = """
import os, sys, streamlog
with streamlog.open(sys.argv[1], brokers=3, sync="normal") as cluster:
    cluster.create_topic("x", partitions=2, replication_factor=3)
    with cluster.producer(transactional_id="t") as producer:
        for number in range(5):
            with producer.transaction():
                for partition in range(2):
                    producer.send("x", b"%d" % number, partition=partition)
    os.kill(os.getpid(), 9)
"""
LOG_ID = 7


def test_what_a_killed_owner_had_committed_is_read_beside_it(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "c")], timeout=60, check=False)
    with streamlog.open(tmp_path / "c", mode="r") as cluster:
        with cluster.consumer(isolation_level="read_committed", stop_at_end=True) as reader:
            reader.assign([("x", 0), ("x", 1)])
            assert sorted(record.value for record in reader) == sorted(
                2 * [b"%d" % number for number in range(5)]
            )
        assert [partition.high_watermark for partition in cluster.topic("x")] == [10, 10]


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[dict[int, Environment]]:
    opened = {number: Environment.open(tmp_path / str(number), sync="off") for number in range(3)}
    yield opened
    for environment in opened.values():
        environment.close()


def fill(environment: Environment, *batches: tuple[bytes, int]) -> None:
    """One record a batch: its value, and the epoch of the leader that wrote it."""
    transaction = environment.write()
    for offset, (value, epoch) in enumerate(batches):
        log.append(transaction, LOG_ID, batch_of(value, timestamp=1), offset, epoch, 0)
    transaction.commit()


def told(
    stores: Any, end: int, mark: int, isr: tuple[int, ...] = (0, 1, 2), min_insync_replicas: int = 1
) -> int:
    image = PartitionImage(LOG_ID, (0, 1, 2), isr, 0, 3, 0)
    state = ReplicaState(0, mark, end, 3, 0, 0, 0)
    with stores[0].snapshot() as snapshot:
        every = Stores(stores[0], stores, None)
        return replicated_end(every, snapshot, image, 0, state, min_insync_replicas)


ABC = [(b"a", 1), (b"b", 1), (b"c", 2)]


def test_what_all_in_sync_have_is_replicated(stores: dict[int, Environment]) -> None:
    fill(stores[0], *ABC)
    fill(stores[1], *ABC)
    fill(stores[2], *ABC[:2])
    assert told(stores, 3, 1) == 2
    assert told(stores, 3, 1, isr=(0, 1)) == 3
    assert told(stores, 3, 1, isr=(0,)) == 3


def test_too_few_in_sync_vouch_for_nothing(stores: dict[int, Environment]) -> None:
    for environment in stores.values():
        fill(environment, *ABC)
    assert told(stores, 3, 1, isr=(0, 1), min_insync_replicas=3) == 1
    assert told(stores, 3, 1, isr=(1, 2)) == 1, "who leads without being in sync may be cut"


def test_a_tail_of_another_leader_is_not_the_same(stores: dict[int, Environment]) -> None:
    fill(stores[0], *ABC)
    fill(stores[1], (b"a", 1), (b"b", 1), (b"c", 1))  # the same bytes, of an epoch before
    fill(stores[2], (b"a", 1), (b"other", 1), (b"c", 2))
    assert told(stores, 3, 0, isr=(0, 1)) == 2
    assert told(stores, 3, 0) == 1
    assert told(stores, 3, 2) == 2, "a mark never goes back"
