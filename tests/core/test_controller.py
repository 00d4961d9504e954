"""The controller's decisions about topics."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.core import controller
from streamlog.core.cluster_image import (
    CLUSTER_DEFAULT,
    CONSUMER_OFFSETS_TOPIC,
    FIRST_LOG_ID,
    BrokerFenced,
    BrokerRegistered,
    BrokerShuttingDown,
    ClusterImage,
    MetadataRecord,
    PartitionChange,
    PartitionsChanged,
    TopicCreated,
)
from streamlog.core.controller import (
    assign_replicas,
    decide_add_partitions,
    decide_change_broker_config,
    decide_change_config,
    decide_create_topic,
    decide_delete_topic,
    decide_producer_ids,
    validate_topic_name,
)
from streamlog.errors import (
    BrokerIdNotRegisteredError,
    InvalidPartitionsError,
    InvalidReplicaAssignmentError,
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
    return decide_create_topic(image, name, f"id-{name}", partitions, factor, {})


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
            decide_add_partitions(image, "a", total)  # type: ignore[arg-type]
    record = decide_add_partitions(image, "a", 5)
    image.apply(record)
    image.apply(record)  # re-runnable
    assert len(image.topic("a").partitions) == 5
    image._check()


def test_records_of_a_former_topic_of_that_name_change_nothing() -> None:
    image = image_with("a")
    grown = decide_add_partitions(image, "a", 5)
    changed = decide_change_config(image, "a", {"retention.ms": "5"})
    deleted = decide_delete_topic(image, "a")
    image.apply(deleted)
    image.apply(decide_create_topic(image, "a", "another id", 1, 1, {}))
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


@pytest.mark.parametrize("brokers", range(1, 6))
def test_leaders_followers_and_successors_are_spread_evenly(brokers: int) -> None:
    for factor in range(1, brokers + 1):
        rounds = max(1, brokers - 1)
        assignments = assign_replicas(brokers * rounds, factor, range(brokers), start=0)
        assert all(len(set(replicas)) == factor for replicas in assignments)
        for place in range(factor):
            held = [replicas[place] for replicas in assignments]
            assert [held.count(broker) for broker in range(brokers)] == [rounds] * brokers
        # Whose leader fails, its partitions go to all the others, equally.
        heirs = [(replicas[0], replicas[1]) for replicas in assignments if factor > 1]
        assert len(set(heirs)) == len(heirs)


def test_the_dealing_goes_on_where_the_last_topic_ended() -> None:
    image = image_with(brokers=3)
    for name in ("a", "b"):
        image.apply(create(image, name, 2, 2))
    image.apply(decide_add_partitions(image, "b", 4))
    leaders = [p.leader for topic in "ab" for p in image.topic(topic).partitions]
    assert leaders == [0, 1, 2, 0, 1, 2]
    image._check()


def test_only_active_brokers_are_dealt_replicas() -> None:
    image = image_with(brokers=4)
    image.apply(BrokerFenced(0, 0))
    image.apply(BrokerShuttingDown(2, 0))
    image.apply(create(image, "a", 4, 2))
    assert {broker for p in image.topic("a").partitions for broker in p.replicas} == {1, 3}
    with pytest.raises(InvalidReplicationFactorError, match="1 to 2"):
        create(image, "b", 1, 3)
    image._check()


def test_new_partitions_have_as_many_replicas_as_the_reassignment_will_leave() -> None:
    image = image_with(brokers=3)
    image.apply(create(image, "a", 1, 2))
    partition = image.partition("a", 0)
    under_way = msgspec.structs.replace(partition, replicas=(2, 0, 1), adding=(2,), removing=(0, 1))
    image.apply(PartitionsChanged([PartitionChange("a", "id-a", 0, under_way)]))
    assert [len(replicas) for replicas in decide_add_partitions(image, "a", 2).assignments] == [1]
    for broker_id in (1, 2):
        image.apply(BrokerFenced(broker_id, 0))
    with pytest.raises(InvalidReplicationFactorError):
        decide_create_topic(image, "b", "id-b", 1, 2, {})


# In the order of precedence: each row mends what the row before it was refused for. Brokers 0, 1, 2; 2 is fenced.
CREATIONS = """
name     partitions factor assignments              refused with
a b      0          0      {0: []}                  InvalidTopicError
taken    0          0      {0: []}                  TopicAlreadyExistsError
ta.ken   0          0      {0: []}                  InvalidTopicError
new      0          0      {0: []}                  InvalidRequestError
new      -1         0      {0: []}                  InvalidRequestError
new      -1         -1     {1: [], 0: []}           InvalidReplicaAssignmentError
new      -1         -1     {1: [0], 2: [1]}         InvalidReplicaAssignmentError
new      -1         -1     {}                       InvalidReplicaAssignmentError
new      -1         -1     {0: [0, 7]}              InvalidReplicaAssignmentError
new      -1         -1     {0: [0, 0]}              InvalidReplicaAssignmentError
new      -1         -1     {0: [0, 1], 1: [1]}      InvalidReplicaAssignmentError
new      -1         -1     {0: [0], 1: [2]}         InvalidReplicaAssignmentError
new      -1         -1     {0: [2, 1], 1: [1, 0]}   -
new      0          0      None                     InvalidReplicationFactorError
new      0          3      None                     InvalidPartitionsError
new      1          3      None                     InvalidReplicationFactorError
new      1          2      None                     -
"""


@pytest.mark.parametrize("row", CREATIONS.strip().splitlines()[1:])
def test_what_a_new_topic_is_refused_for_in_order(row: str) -> None:
    rest, refusal = row.rsplit(maxsplit=1)
    rest, assignments = re.split(r" +(?=None|\{)", rest)
    name, partitions, factor = rest.rsplit(maxsplit=2)
    image = image_with("ta_ken", "taken", brokers=3, partitions=1)  # `ta_ken` collides with `ta.ken`
    image.apply(BrokerFenced(2, 0))

    def decide() -> TopicCreated:
        return decide_create_topic(image, name, "id", int(partitions), int(factor), {}, eval(assignments))

    if refusal != "-":
        with pytest.raises(StreamlogError) as caught:
            decide()
        assert type(caught.value).__name__ == refusal
        return
    image.apply(decide())
    image._check()


def test_replicas_that_are_assigned_to_fenced_brokers_begin_outside_of_the_isr() -> None:
    image = image_with(brokers=3)
    image.apply(BrokerFenced(0, 0))
    image.apply(decide_create_topic(image, "a", "id", -1, -1, {}, {0: [0, 2, 1], 1: [1, 0, 2]}))
    assert [(p.leader, p.isr) for p in image.topic("a").partitions] == [(2, (2, 1)), (1, (1, 2))]
    image.apply(decide_add_partitions(image, "a", 3, [[0, 1, 2]]))
    assert image.partition("a", 2).isr == (1, 2)
    image._check()


@pytest.mark.parametrize(
    ("total", "assignments", "refusal"),
    [
        (2, [[0]], InvalidPartitionsError),
        (3, [[0], [1]], InvalidReplicaAssignmentError),
        (3, [[0, 1]], InvalidReplicaAssignmentError),
        (3, [[]], InvalidReplicaAssignmentError),
        (3, [[9]], InvalidReplicaAssignmentError),
        (3, [[1]], InvalidReplicaAssignmentError),  # broker 1 is fenced
    ],
)
def test_impossible_assignments_of_new_partitions(
    total: int, assignments: list[list[int]], refusal: type[Exception]
) -> None:
    image = image_with("a", brokers=2)
    image.apply(BrokerFenced(1, 0))
    with pytest.raises(refusal):
        decide_add_partitions(image, "a", total, assignments)


def test_brokers_have_options_of_their_own_and_of_the_cluster() -> None:
    image = image_with(brokers=2)
    image.apply(decide_change_broker_config(image, "1", {"a": "1", "b": "2"}))
    image.apply(decide_change_broker_config(image, CLUSTER_DEFAULT, {"a": "3"}))
    image.apply(decide_change_broker_config(image, "1", {"a": None}))
    assert image.broker_configs == {"1": {"b": "2"}, "": {"a": "3"}}
    image.apply(decide_change_broker_config(image, "1", {"b": None}))
    assert image.broker_configs == {"": {"a": "3"}}
    with pytest.raises(BrokerIdNotRegisteredError, match=r"no broker '2'; there are 0, 1"):
        decide_change_broker_config(image, "2", {"a": "1"})


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
                record = decide_create_topic(image, name, f"id-{number}", count, 1 + count % 2, {})
            elif verb == "grow":
                record = decide_add_partitions(image, name, count + 1)
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


def test_producer_ids_are_given_away_once() -> None:
    image = ClusterImage()
    records, first = decide_producer_ids(image)
    assert image.next_producer_id == 0, "a decision changes nothing"
    for record in records:
        image.apply(record)
    _, second = decide_producer_ids(image)
    assert first == range(1_000) and second == range(1_000, 2_000)
