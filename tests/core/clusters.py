"""Cluster images for tests, written short: brokers are digits, so "012" is the replicas (0, 1, 2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from streamlog.core.cluster_image import (
    NO_LEADER,
    BrokerFenced,
    BrokerRegistered,
    BrokerShuttingDown,
    ClusterImage,
    MetadataRecord,
    PartitionChange,
    PartitionImage,
    PartitionsChanged,
    TopicCreated,
    TopicImage,
)

EPOCHS = (5, 9)
"""Leader and partition epoch of every partition made by `partition`."""

_decode = msgspec.msgpack.Decoder(list[MetadataRecord]).decode


def ids(text: str) -> tuple[int, ...]:
    """`"201"` is (2, 0, 1); "-" is nobody."""
    return () if text == "-" else tuple(int(digit) for digit in text)


def digits(broker_ids: Iterable[int]) -> str:
    return "".join(str(broker_id) for broker_id in broker_ids) or "-"


def partition(
    leader: str, replicas: str, isr: str, adding: str = "-", removing: str = "-", recovering: bool = False
) -> PartitionImage:
    return PartitionImage(
        16,
        ids(replicas),
        ids(isr),
        NO_LEADER if leader == "-" else int(leader),
        *EPOCHS,
        ids(adding),
        ids(removing),
        recovering,
    )


def cluster(
    *partitions: PartitionImage,
    brokers: str = "0123",
    fenced: str = "-",
    leaving: str = "-",
    topic: str = "t",
    config: dict[str, str] | None = None,
) -> ClusterImage:
    """One topic of these partitions; every broker is in its first life, those in `leaving` shut down."""
    image = ClusterImage()
    for broker_id in ids(brokers):
        image.apply(BrokerRegistered(broker_id, "i", 1))
    for broker_id in ids(fenced):
        image.apply(BrokerFenced(broker_id, 1))
    for broker_id in ids(leaving):
        image.apply(BrokerShuttingDown(broker_id, 1))
    add_topic(image, topic, partitions, config)
    image._check()
    return image


def add_topic(
    image: ClusterImage, name: str, partitions: Sequence[PartitionImage], config: dict[str, str] | None = None
) -> None:
    first = image.next_log_id
    placed = [msgspec.structs.replace(p, log_id=first + number) for number, p in enumerate(partitions)]
    image.apply(TopicCreated(name, f"id-{name}", first, [list(p.replicas) for p in placed], config or {}))
    image.apply(PartitionsChanged([PartitionChange(name, f"id-{name}", n, p) for n, p in enumerate(placed)]))


def take(image: ClusterImage, records: Sequence[MetadataRecord]) -> list[MetadataRecord]:
    """Apply what was decided as the log would: through bytes, and once more, as after an interrupt."""
    before = {(topic.topic_id, number): (topic, p) for topic, number, p in image.partitions()}
    for _ in range(2):
        for record in _decode(msgspec.msgpack.encode(list(records))):
            image.apply(record)
    image._check()
    for topic, number, after in image.partitions():
        if (topic.topic_id, number) in before:
            check_epochs(before[topic.topic_id, number][1], after)
    return list(records)


def check_epochs(before: PartitionImage, after: PartitionImage) -> None:
    """What holds between a partition and what one decision makes of it."""
    assert after.log_id == before.log_id
    changed = after != before
    assert after.partition_epoch == before.partition_epoch + changed, (before, after)
    bump = after.leader_epoch - before.leader_epoch
    assert bump in (0, 1), (before, after)
    if after.leader != before.leader or not set(before.replicas) <= set(after.replicas):
        assert bump == 1, (before, after)


def changed_topics(records: Sequence[MetadataRecord]) -> list[tuple[str, int]]:
    """Which partitions a decision changes."""
    return [
        (change.name, change.number)
        for record in records
        if isinstance(record, PartitionsChanged)
        for change in record.changes
    ]


def allow(topic: TopicImage) -> bool:
    """Every topic allows unclean elections."""
    return True
