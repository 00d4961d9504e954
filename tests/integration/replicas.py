"""Comparing what the brokers of one cluster hold of the same partition, byte for byte."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from streamlog.storage import log
from tests.waiting import until

SETTLE_SECONDS = 30.0


Stored = tuple[int, int, bytes]


def stored(broker: Any, topic: str, number: int) -> list[Stored]:
    """What a broker holds of a partition: (base offset, leader epoch, payload) of each batch."""
    partition = broker.partition(topic, number)
    state = partition.state
    with broker.environment.snapshot() as snapshot:
        batches = log.read(snapshot, partition.log_id, state.log_start_offset, state.log_end_offset, 1 << 40)
        return [(batch.base_offset, batch.leader_epoch, bytes(batch.payload)) for batch in batches]


def is_settled(cluster: Any, topic: str) -> bool:
    """Whether each partition has a leader, all replicas in sync, and all of them at one end that is replicated."""
    running = {broker.id: broker for broker in cluster._backend.brokers}
    for number, image in enumerate(cluster._backend.metadata.image.topic(topic).partitions):
        if image.leader < 0 or set(image.isr) != set(image.replicas) or image.adding or image.removing:
            return False
        states = [running[broker_id].partition(topic, number).state for broker_id in image.replicas]
        if len({(state.log_end_offset, state.high_watermark) for state in states}) != 1:
            return False
        if states[0].high_watermark != states[0].log_end_offset:
            return False
    return True


def wait_until_settled(cluster: Any, topic: str) -> None:
    def state() -> str:
        images = cluster._backend.metadata.image.topic(topic).partitions
        states = [
            (broker.id, number, partition.state, partition.leadership)
            for broker in cluster._backend.brokers
            for (name, number), partition in sorted(broker.partitions.items())
            if name == topic
        ]
        return f"not settled within {SETTLE_SECONDS} s: {images}\n{states}"

    until(lambda: is_settled(cluster, topic), state, SETTLE_SECONDS)


def assert_alike(cluster: Any, topic: str) -> None:
    """Every replica of every partition holds the same batches."""
    wait_until_settled(cluster, topic)
    running = {broker.id: broker for broker in cluster._backend.brokers}
    for number, image in enumerate(cluster._backend.metadata.image.topic(topic).partitions):
        logs = [stored(running[broker_id], topic, number) for broker_id in image.replicas]
        for broker_id, log_of_it in zip(image.replicas, logs, strict=True):
            if log_of_it != logs[0]:
                replicas = {each: running[each].partition(topic, number) for each in image.replicas}
                raise AssertionError(
                    f"{topic}-{number}: broker {broker_id} holds something else than broker {image.replicas[0]}: "
                    f"{_difference(log_of_it, logs[0])}; {image}; "
                    + "; ".join(f"{each}: {p.state} {p.epochs}" for each, p in replicas.items())
                )


def _difference(ours: list[Stored], theirs: list[Stored]) -> str:
    for index, (one, other) in enumerate(zip_longest(ours, theirs)):
        if one != other:
            before = ours[index - 1][:2] if index else None
            return f"batch {index}, behind {before}: {_shown(one)} and {_shown(other)}, of {len(ours)} and {len(theirs)}"
    return "none"


def _shown(stored: Stored | None) -> str:
    return "nothing" if stored is None else f"({stored[0]}, epoch {stored[1]}, {stored[2][57:90]!r})"
