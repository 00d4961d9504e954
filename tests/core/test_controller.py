"""The cluster image and the controller's decisions over it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.core import controller
from streamlog.core.controller import (
    CONSUMER_OFFSETS_TOPIC,
    FIRST_LOG_ID,
    BrokerRegistered,
    ClusterImage,
    ControllerElected,
    MetadataRecord,
    TopicCreated,
    assign_replicas,
    decide_add_partitions,
    decide_change_config,
    decide_create_topic,
    decide_delete_topic,
    validate_topic_name,
)
from streamlog.errors import (
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidRequestError,
    InvalidTopicError,
    StreamlogError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)


def image_with(*topics: str, brokers: int = 1, partitions: int = 2) -> ClusterImage:
    image = ClusterImage()
    for broker_id in range(brokers):
        image.apply(BrokerRegistered(broker_id, "incarnation"))
    for name in topics:
        image.apply(create(image, name, partitions))
    return image


def create(image: ClusterImage, name: str, partitions: int = 2, factor: int = 1) -> TopicCreated:
    return decide_create_topic(image, name, f"id-{name}", partitions, factor, {}, sorted(image.brokers))


def test_a_decision_changes_nothing_until_it_is_applied() -> None:
    image = image_with()
    record = create(image, "orders")
    assert "orders" not in image.topics
    image.apply(record)
    assert len(image.topic("orders").partitions) == 2
    image._check()


def test_log_ids_are_dense_and_never_used_twice() -> None:
    image = image_with("a", "b")
    assert list(image.log_ids()) == [FIRST_LOG_ID + n for n in range(4)]
    image.apply(decide_delete_topic(image, "b"))
    image.apply(create(image, "b"))
    assert [p.log_id for p in image.topic("b").partitions] == [FIRST_LOG_ID + 4, FIRST_LOG_ID + 5]
    image._check()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "empty"),
        (".", "cannot be called"),
        ("..", "cannot be called"),
        ("a" * 250, "too long"),
        ("a b", "' '"),
        ("käse", "'ä'"),
        ("a/b", "'/'"),
        ("line\n", r"'\\n'"),
        (b"bytes", "not bytes"),
        (None, "not NoneType"),
        (7, "not int"),
    ],
)
def test_names_kafka_refuses_are_refused_with_the_reason(name: object, says: str) -> None:
    with pytest.raises(InvalidTopicError, match=says) as caught:
        validate_topic_name(name)
    assert caught.value.facts["topic"] == name


@pytest.mark.parametrize("name", ["a", "A-1_x.y", "x" * 249, "..."])
def test_names_kafka_allows(name: str) -> None:
    assert validate_topic_name(name) == name


def test_names_that_would_collide_in_metrics_are_refused() -> None:
    image = image_with("a.b")
    with pytest.raises(InvalidTopicError, match=r"'a_b' collides with 'a\.b'"):
        create(image, "a_b")
    create(image, "a-b")


def test_a_topic_exists_once() -> None:
    with pytest.raises(TopicAlreadyExistsError, match="exist_ok"):
        create(image_with("a"), "a")


@pytest.mark.parametrize("partitions", [0, -2, True, 1.5, "3", 10**6])
def test_impossible_partition_counts(partitions: object) -> None:
    with pytest.raises(InvalidPartitionsError, match="allowed: 1 to"):
        create(image_with(), "a", partitions)  # type: ignore[arg-type]


@pytest.mark.parametrize(("factor", "brokers"), [(0, 1), (2, 1), (-5, 3), (4, 3)])
def test_impossible_replication_factors(factor: int, brokers: int) -> None:
    with pytest.raises(InvalidReplicationFactorError, match=f"1 to {brokers}"):
        create(image_with(brokers=brokers), "a", factor=factor)


def test_partitions_are_only_added() -> None:
    image = image_with("a")
    for total in (2, 1, 0, True, "4"):
        with pytest.raises(InvalidPartitionsError, match="must be larger"):
            decide_add_partitions(image, "a", total, [0])  # type: ignore[arg-type]
    record = decide_add_partitions(image, "a", 5, [0])
    image.apply(record)
    image.apply(record)  # re-runnable
    assert len(image.topic("a").partitions) == 5
    image._check()


def test_records_of_a_former_topic_of_that_name_change_nothing() -> None:
    image = image_with("a")
    grown = decide_add_partitions(image, "a", 5, [0])
    changed = decide_change_config(image, "a", {"retention.ms": "5"})
    deleted = decide_delete_topic(image, "a")
    image.apply(deleted)
    image.apply(decide_create_topic(image, "a", "another id", 1, 1, {}, [0]))
    for stale in (grown, changed, deleted):
        image.apply(stale)
    assert len(image.topic("a").partitions) == 1
    assert image.topic("a").config == {}


def test_options_are_set_and_reset() -> None:
    image = image_with("a")
    image.apply(decide_change_config(image, "a", {"retention.ms": "5", "retention.bytes": "7"}))
    image.apply(decide_change_config(image, "a", {"retention.ms": None}))
    assert image.topic("a").config == {"retention.bytes": "7"}
    image.apply(decide_change_config(image, "a", {"flush.ms": "1"}, replace=True))
    assert image.topic("a").config == {"flush.ms": "1"}


def test_what_is_unknown_or_internal_cannot_be_deleted() -> None:
    image = image_with(CONSUMER_OFFSETS_TOPIC)
    with pytest.raises(InvalidRequestError, match="internal"):
        decide_delete_topic(image, CONSUMER_OFFSETS_TOPIC)
    with pytest.raises(UnknownTopicOrPartitionError, match=r"create_topic\('nix'\)"):
        decide_delete_topic(image, "nix")


def test_an_internal_topic_does_not_grow() -> None:
    """A group lives in the partition its name hashes to: another number of partitions would lose all of them."""
    image = image_with(CONSUMER_OFFSETS_TOPIC)
    with pytest.raises(InvalidRequestError, match="internal"):
        decide_add_partitions(image, CONSUMER_OFFSETS_TOPIC, 60, [0])


def test_log_ids_run_out_with_a_clear_error() -> None:
    image = image_with()
    image.next_log_id = controller.LOG_ID_MAX - 1
    with pytest.raises(InvalidPartitionsError, match="log ids"):
        create(image, "a", 5)


def test_replicas_are_dealt_round_robin_and_differ() -> None:
    assignments = assign_replicas(6, 3, [3, 1, 2], start=0)
    assert assignments[0] == [1, 2, 3]
    assert assignments[1] == [2, 3, 1]
    leaders = [replicas[0] for replicas in assignments]
    assert all(leaders.count(broker) == 2 for broker in (1, 2, 3))
    assert all(len(set(replicas)) == 3 for replicas in assignments)


def test_the_controller_is_known_by_id_and_epoch() -> None:
    image = image_with()
    image.apply(ControllerElected(0, 4))
    assert (image.controller_id, image.controller_epoch) == (0, 4)


names = st.sampled_from(["a", "b", "c.d", "e_f"])
steps = st.lists(st.tuples(st.sampled_from(["create", "grow", "delete", "config"]), names, st.integers(1, 4)))


@given(steps)
def test_replay_and_checkpoint_give_the_image_that_decisions_gave(
    history: list[tuple[str, str, int]],
) -> None:
    image, log = image_with(brokers=2), [BrokerRegistered(0, "i"), BrokerRegistered(1, "i")]
    records: list[MetadataRecord] = list(log)
    for number, (verb, name, count) in enumerate(history):
        try:
            record: MetadataRecord
            if verb == "create":
                record = decide_create_topic(image, name, f"id-{number}", count, 1 + count % 2, {}, [0, 1])
            elif verb == "grow":
                record = decide_add_partitions(image, name, count + 1, [0, 1])
            elif verb == "delete":
                record = decide_delete_topic(image, name)
            else:
                record = decide_change_config(image, name, {"retention.ms": str(count)})
        except StreamlogError:
            continue
        # What is stored is bytes: the record must survive them.
        record = msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=MetadataRecord)  # type: ignore[arg-type]
        image.apply(record)
        image._check()
        records.append(record)
    replayed = ClusterImage()
    for record in records:
        replayed.apply(record)
        replayed.apply(record)
    restored = ClusterImage()
    restored.apply(image.checkpoint())
    assert replayed.topics == image.topics == restored.topics
    assert replayed.next_log_id == image.next_log_id == restored.next_log_id
    restored._check()
