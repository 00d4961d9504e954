"""The cluster image: what each record does to it, and that bytes, checkpoints and former formats give it back."""

from __future__ import annotations

import msgspec
import pytest

from streamlog.core.cluster_image import (
    CLUSTER_DEFAULT,
    BrokerFenced,
    BrokerImage,
    BrokerRegistered,
    BrokerShuttingDown,
    BrokerUnfenced,
    ClusterImage,
    ConfigChanged,
    ControllerElected,
    ImageCheckpoint,
    MetadataRecord,
    PartitionChange,
    PartitionImage,
    PartitionsAdded,
    PartitionsChanged,
    ProducerIdsAllocated,
    TopicConfigChanged,
    TopicCreated,
    TopicDeleted,
)
from streamlog.errors import UnknownTopicOrPartitionError

decode = msgspec.msgpack.Decoder(MetadataRecord).decode


def stored(record: MetadataRecord) -> MetadataRecord:
    """What comes back from the log: bytes in between."""
    return decode(msgspec.msgpack.encode(record))  # type: ignore[no-any-return]


def folded(*records: MetadataRecord) -> ClusterImage:
    image = ClusterImage()
    for record in records:
        image.apply(stored(record))
        image.apply(stored(record))  # re-runnable
    return image


def three_brokers() -> list[MetadataRecord]:
    return [BrokerRegistered(broker_id, f"i-{broker_id}", 1) for broker_id in range(3)]


TOPIC = TopicCreated("t", "id-t", 16, [[0, 1, 2], [1, 2, 0]], {"retention.ms": "5"})


def moved(number: int, **fields: object) -> PartitionChange:
    partition = folded(*three_brokers(), TOPIC).topic("t").partitions[number]
    return PartitionChange("t", "id-t", number, msgspec.structs.replace(partition, **fields))


# One record of each kind after `three_brokers() + TOPIC`, and what is then true.
EFFECTS: list[tuple[MetadataRecord, str, object]] = [
    (BrokerRegistered(3, "i"), "image.brokers[3]", BrokerImage("i")),
    (BrokerRegistered(1, "j", 2, True), "image.brokers[1]", BrokerImage("j", 2, True)),
    (BrokerFenced(1, 1), "image.active_brokers()", [0, 2]),
    (BrokerFenced(1, 0), "image.active_brokers()", [0, 1, 2]),  # of a former life
    (BrokerFenced(7, 1), "image.active_brokers()", [0, 1, 2]),
    (BrokerShuttingDown(1, 1), "image.inactive_brokers()", [1]),
    (BrokerShuttingDown(1, 0), "image.inactive_brokers()", []),
    (BrokerUnfenced(1, 1), "image.brokers[1]", BrokerImage("i-1", 1)),
    (ControllerElected(2, 9), "image.controller_id, image.controller_epoch", (2, 9)),
    (PartitionsAdded("id-t", "t", 18, [[2, 0, 1]]), "image.partition('t', 2).leader", 2),
    (PartitionsAdded("id-t", "t", 18, [[2, 0]], [2]), "image.partition('t', 2).isr", (0,)),
    (PartitionsAdded("id-x", "t", 18, [[2, 0, 1]]), "len(image.topic('t').partitions)", 2),
    (PartitionsChanged([moved(1, leader=2)]), "image.partition('t', 1).leader", 2),
    (PartitionsChanged([moved(1, isr=(1,)), moved(0, isr=(2,))]), "image.partition('t', 0).isr", (2,)),
    (
        PartitionsChanged([PartitionChange("t", "x", 0, moved(1).partition)]),
        "image.partition('t', 0).leader",
        0,
    ),
    (
        PartitionsChanged([PartitionChange("t", "id-t", 9, moved(1).partition)]),
        "len(image.topic('t').partitions)",
        2,
    ),
    (TopicDeleted("id-t", "t"), "image.topics, image.topic_names", ({}, {})),
    (TopicDeleted("id-x", "t"), "sorted(image.topics)", ["t"]),
    (TopicConfigChanged("id-t", "t", {"a": "1"}), "image.topic('t').config", {"a": "1"}),
    (TopicConfigChanged("id-x", "t", {"a": "1"}), "image.topic('t').config", {"retention.ms": "5"}),
    (ConfigChanged(CLUSTER_DEFAULT, {"a": "1"}), "image.broker_configs", {"": {"a": "1"}}),
    (ConfigChanged("2", {"a": "1"}), "image.broker_configs", {"2": {"a": "1"}}),
    (ConfigChanged("2", {}), "image.broker_configs", {}),
    (ProducerIdsAllocated(1_000), "image.next_producer_id", 1_000),
    (TopicCreated("u", "id-u", 18, [[1, 0]], {}, [1]), "image.partition('u', 0).leader", 0),
    (TopicCreated("u", "id-u", 18, [[1, 0]], {}, [1]), "image.next_log_id", 19),
]


@pytest.mark.parametrize(("record", "expression", "value"), EFFECTS)
def test_each_record_does_this(record: MetadataRecord, expression: str, value: object) -> None:
    image = folded(*three_brokers(), TOPIC, record)
    assert eval(expression) == value
    restored = folded(image.checkpoint())
    assert restored.checkpoint() == image.checkpoint()
    assert restored.topic_names == image.topic_names


def test_every_kind_of_record_has_an_effect_here() -> None:
    kinds = {type(record) for record, _, _ in EFFECTS} | {ImageCheckpoint}
    assert kinds == set(MetadataRecord.__args__)


FORMAT_1 = [
    b"\x93\xa6broker\x00\xa3i-0",
    b"\x93\xaacontroller\x00\x04",
    b"\x96\xa5topic\xa1t\xa4id-t\x10\x92\x91\x00\x91\x00\x81\xacretention.ms\xa15",
    b"\x95\xaapartitions\xa4id-t\xa1t\x12\x91\x91\x00",
    b"\x94\xa6config\xa4id-t\xa1t\x81\xa8flush.ms\xa11",
]
FORMAT_1_IMAGE = (
    b"\x96\xa5image\x00\x04\x13\x81\x00\xa3i-0\x91\x94\xa1t\xa4id-t\x81\xa8flush.ms\xa11\x93"
    b"\x96\x10\x91\x00\x91\x00\x00\x00\x00\x96\x11\x91\x00\x91\x00\x00\x00\x00\x96\x12\x91\x00\x91\x00\x00\x00\x00"
)


def test_records_and_checkpoints_of_before_there_were_several_brokers_still_load() -> None:
    image, restored = ClusterImage(), ClusterImage()
    for value in FORMAT_1:
        image.apply(decode(value))
    restored.apply(decode(FORMAT_1_IMAGE))
    for each in (image, restored):
        each._check()
        assert each.brokers == {0: BrokerImage("i-0", 0, False, False)}
        assert each.active_brokers() == [0]
        assert each.partition("t", 2) == PartitionImage(18, (0,), (0,), 0, 0, 0, (), (), False)
    assert restored.checkpoint() == image.checkpoint()


def test_a_partition_under_reassignment_knows_its_targets() -> None:
    partition = PartitionImage(16, (2, 3, 0, 1), (0, 1), 0, 4, 7, (2, 3), (0, 1))
    assert partition.is_reassigning and partition.targets == (2, 3)
    at_rest = PartitionImage(16, (2, 3), (2, 3), 2, 4, 8)
    assert not at_rest.is_reassigning and at_rest.targets == (2, 3)


@pytest.mark.parametrize(("name", "number"), [("nix", 0), ("t", 2), ("t", -1)])
def test_an_unknown_topic_or_partition_is_named(name: str, number: int) -> None:
    with pytest.raises(UnknownTopicOrPartitionError, match=name):
        folded(*three_brokers(), TOPIC).partition(name, number)


# A partition that breaks an invariant; the brokers 0, 1, 2 are active, 3 is fenced, 4 shuts down.
BROKEN = {
    "log id of another": PartitionImage(17, (0,), (0,), 0, 0, 0),
    "log id too low": PartitionImage(15, (0,), (0,), 0, 0, 0),
    "log id not dealt yet": PartitionImage(18, (0,), (0,), 0, 0, 0),
    "no ISR": PartitionImage(16, (0, 1), (), -1, 0, 0),
    "a replica twice": PartitionImage(16, (0, 1, 0), (0,), 0, 0, 0),
    "an ISR member twice": PartitionImage(16, (0, 1), (0, 0), 0, 0, 0),
    "ISR outside the replicas": PartitionImage(16, (0, 1), (0, 2), 0, 0, 0),
    "adding outside the replicas": PartitionImage(16, (0, 1), (0, 1), 0, 0, 0, (2,)),
    "removing outside the replicas": PartitionImage(16, (0, 1), (0, 1), 0, 0, 0, (), (2,)),
    "leader outside the ISR": PartitionImage(16, (0, 1), (0,), 1, 0, 0),
    "fenced leader": PartitionImage(16, (3, 1), (3,), 3, 0, 0),
    "leader that shuts down": PartitionImage(16, (4, 1), (4,), 4, 0, 0),
    "no leader though there could be one": PartitionImage(16, (0, 1), (0,), -1, 0, 0),
    "fenced ISR member beside another": PartitionImage(16, (0, 3), (0, 3), 0, 0, 0),
    "ISR member shutting down beside another": PartitionImage(16, (0, 4), (0, 4), 0, 0, 0),
    "two fenced ISR members": PartitionImage(16, (3, 4), (3, 4), -1, 0, 0),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_invariant_can_be_broken(name: str) -> None:
    image = folded(
        *three_brokers(),
        BrokerRegistered(3, "i", 1, True),
        BrokerRegistered(4, "i", 1),
        BrokerShuttingDown(4, 1),
        TOPIC,
    )
    image._check()
    image.apply(PartitionsChanged([PartitionChange("t", "id-t", 0, BROKEN[name])]))
    with pytest.raises(AssertionError):
        image._check()


def test_the_last_member_of_an_isr_may_be_fenced() -> None:
    image = folded(*three_brokers(), BrokerRegistered(3, "i", 1, True), TOPIC)
    alone = PartitionImage(16, (3, 1), (3,), -1, 1, 1)
    image.apply(PartitionsChanged([PartitionChange("t", "id-t", 0, alone)]))
    image._check()
