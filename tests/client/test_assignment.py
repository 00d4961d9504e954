"""What a consumer reads: the rules of `checked_topics` and of handing partitions over. Groups are in
test_membership.py.
"""

from __future__ import annotations

import re

import pytest

from streamlog import Cluster, Topic, TopicPartition
from streamlog.client.assignment import checked_topics
from streamlog.errors import ConfigError, InvalidTopicError


def test_topics_in_every_spelling() -> None:
    pattern = re.compile("a.*")
    assert checked_topics("a") == ("a",)
    assert checked_topics(["b", "a"]) == ("b", "a") == checked_topics(iter(("b", "a")))
    assert checked_topics(pattern) is pattern


@pytest.mark.parametrize("wrong", [7, None, b"a", {"a": 1}, re.compile(b"a")])
def test_what_are_no_topics(wrong: object) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_topics(wrong)  # type: ignore[arg-type]
    assert caught.value.option == "topics"


@pytest.mark.parametrize("wrong", ["", "a b", [""], [7], ["ok", "a/b"]])
def test_what_is_no_topic_name(wrong: object) -> None:
    with pytest.raises(InvalidTopicError):
        checked_topics(wrong)  # type: ignore[arg-type]


def test_a_pattern_is_matched_again_only_when_topics_changed(cluster: Cluster, single: Topic) -> None:
    consumer = cluster.consumer(group_id="g")
    consumer.subscribe(re.compile("sing|two"))
    first = consumer._topics_wanted()
    assert first == ("single",) and consumer._topics_wanted() is first
    cluster.create_topic("two")
    assert consumer._topics_wanted() == ("single", "two")


def test_what_is_dropped_is_handed_out_no_more(cluster: Cluster, single: Topic) -> None:
    with cluster.producer() as producer:
        producer.send_many("single", [(None, b"%d" % i) for i in range(10)])
    consumer = cluster.consumer(stop_at_end=True)
    consumer.assign([("single", 0)])
    got = []
    for record in consumer:
        got.append(record.offset)
        if len(got) == 3:
            consumer.assign([])
    assert got == [0, 1, 2]


def test_a_partition_that_is_gone_by_the_time_it_is_assigned_is_left_out(
    cluster: Cluster, single: Topic
) -> None:
    consumer = cluster.consumer_group("g", ["single"]).consumer()
    consumer._assign_members(
        [TopicPartition("single", 0), TopicPartition("single", 9), TopicPartition("gone", 0)]
    )
    assert consumer.assignment == {("single", 0)}


def test_text_that_looks_like_a_pattern_is_told_so() -> None:
    with pytest.raises(InvalidTopicError, match=re.escape("did you mean re.compile('orders.*')?")) as caught:
        checked_topics(["^orders.*"])
    assert caught.value.suggestion == "re.compile('orders.*')"


def test_subscribing_to_what_does_not_exist_warns(
    cluster: Cluster, single: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.consumer_group("g", ["single", "sinlge"]).consumer()
    assert [record.getMessage() for record in caplog.records] == [
        "subscribed to 'sinlge', which does not exist; records come once somebody creates it"
    ]
    caplog.clear()
    cluster.consumer_group("g", ["single"]).consumer()
    assert not caplog.records


def test_partitions_of_a_topic_can_be_assigned_as_they_are(cluster: Cluster, orders: Topic) -> None:
    consumer = cluster.consumer()
    consumer.assign(orders.partitions)
    assert consumer.assignment == {TopicPartition("orders", 0), TopicPartition("orders", 1)}
    consumer.seek(orders[1], 0)
    assert consumer.position(orders[1]) == 0
