"""SyncGroup after a join: the leader assigns, the others ask, and any thread may send it."""

from __future__ import annotations

import pytest

from streamlog import Cluster, Consumer
from streamlog.client.membership import Membership, Phase
from streamlog.client.syncing import sync_after
from streamlog.core import consumer_protocol
from streamlog.core.cluster_image import PartitionImage, TopicImage
from streamlog.core.group_events import JoinedMember, JoinGroupReply

TOPICS = {"t": TopicImage("t", "id", {}, tuple(PartitionImage(n, (0,), (0,), 0, 0, 0) for n in (16, 17)))}
SUBSCRIBED = consumer_protocol.encode_subscription(
    consumer_protocol.Subscription(topics=("t", "later"), owned=(), generation=-1, rack=None)
)
MEMBERS = tuple(JoinedMember(name, None, SUBSCRIBED) for name in ("a", "b"))


def reply(member_id: str, skip_assignment: bool = False) -> JoinGroupReply:
    members = MEMBERS if member_id == "a" else ()
    return JoinGroupReply(7, "consumer", "range", "a", member_id, members, skip_assignment)


def test_the_leader_assigns_and_remembers_by_which_counts() -> None:
    event, counts = sync_after(reply("a"), None, TOPICS)
    assigned = {
        member: [tp.partition for tp in consumer_protocol.decode_assignment(assignment).partitions]
        for member, assignment in event.assignments
    }
    assert assigned == {"a": [0], "b": [1]} and counts == {"t": 2, "later": 0}


@pytest.mark.parametrize("answer", [reply("b"), reply("a", skip_assignment=True)])
def test_others_and_a_static_leader_that_is_back_only_ask(answer: JoinGroupReply) -> None:
    event, counts = sync_after(answer, "instance", TOPICS)
    assert event.assignments == () and counts == {}
    assert (event.member_id, event.generation, event.group_instance_id) == (answer.member_id, 7, "instance")


def membership(consumer: Consumer) -> Membership:
    found = consumer._membership
    assert found is not None
    return found


def joined_pair(cluster: Cluster) -> tuple[Consumer, Consumer]:
    """Two members; both joins are answered, the second's poll completed them."""
    cluster.create_topic("t", partitions=4)
    group = cluster.consumer_group("g", ["t"], partition_assignment_strategy=["range"])
    first, second = group.consumer(), group.consumer()
    first.poll(0)
    second.poll(0)
    return first, second


def test_a_member_that_completes_the_join_sends_the_others_syncs(cluster: Cluster) -> None:
    first, second = joined_pair(cluster)
    first.poll(0)  # it rejoins, which completes the join phase: the second's sync goes along
    waiting = membership(second)
    assert waiting.phase is Phase.JOINING and waiting._early_sync is not None
    assert waiting._early_sync[1].done and len(first.assignment) == 2
    second.poll(0)
    assert len(second.assignment) == 2 and waiting.counts.syncs == 1 and waiting._early_sync is None


def test_one_sync_is_sent_for_a_join_whoever_is_first(cluster: Cluster) -> None:
    first, second = joined_pair(cluster)
    first.poll(0)
    assert not membership(second).sync_early()
    second.poll(0)
    assert not membership(second).sync_early() and not membership(first).sync_early()


def test_an_interrupted_early_sync_leaves_the_join_to_its_member(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = joined_pair(cluster)

    def interrupt(event: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(membership(second), "_post_event", interrupt)
        with pytest.raises(KeyboardInterrupt):
            first.poll(0)
    for _ in range(2):
        second.poll(0)
        first.poll(0)
    assert len(first.assignment) == len(second.assignment) == 2
