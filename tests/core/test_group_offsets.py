"""Committed offsets: the corners the scripts leave out."""

from __future__ import annotations

from streamlog.core import group_events as events
from streamlog.core.consumer_protocol import Subscription, encode_subscription
from streamlog.core.group import GroupMachine
from streamlog.core.group_state import GroupLimits, State
from streamlog.errors import (
    GroupIdNotFoundError,
    GroupSubscribedToTopicError,
    InvalidRequestError,
    NonEmptyGroupError,
    OffsetMetadataTooLargeError,
)
from streamlog.record import OffsetAndMetadata, TopicPartition

A0, A1, B0 = TopicPartition("a", 0), TopicPartition("a", 1), TopicPartition("b", 0)


def machine(**limits: int) -> GroupMachine:
    made = iter(range(1, 100))
    return GroupMachine("g", GroupLimits(**limits), "x", lambda prefix: f"m{next(made)}")


def post(group: GroupMachine, event: events.GroupEvent, now_ms: int = 0) -> object:
    decision = group.handle(event, now_ms)
    group.apply(decision.records, decision.changes)
    return decision.replies[0][1] if decision.replies else None


def commit(group: GroupMachine, *partitions: TopicPartition, now_ms: int = 0, metadata: str = "") -> object:
    offsets = {partition: OffsetAndMetadata(1, metadata) for partition in partitions}
    return post(group, events.OffsetCommit(token=1, offsets=offsets), now_ms)


def with_member(
    group: GroupMachine, protocol_type: str = "consumer", metadata: bytes | None = None
) -> GroupMachine:
    if metadata is None:
        metadata = encode_subscription(Subscription(("a",)))
    protocols = (("range", metadata),)
    post(group, events.JoinGroup(token=2, protocol_type=protocol_type, protocols=protocols))
    post(group, events.SyncGroup(token=3, member_id="m1", generation=1))
    assert group.state is State.STABLE
    return group


def test_one_refused_partition_does_not_hold_up_the_others() -> None:
    group = machine(offset_metadata_characters_max=3)
    offsets = {
        A0: OffsetAndMetadata(1, "long"),
        A1: OffsetAndMetadata(2, "abc"),
        B0: OffsetAndMetadata(3, "\ud800"),
    }
    reply = post(group, events.OffsetCommit(token=1, offsets=offsets))
    assert isinstance(reply, events.OffsetCommitReply)
    assert [type(error) for error in reply.errors.values()] == [
        OffsetMetadataTooLargeError,
        type(None),
        InvalidRequestError,
    ]
    assert list(group.all_committed()) == [A1]


def test_metadata_is_counted_in_characters() -> None:
    group = machine()
    commit(group, A0, metadata="ü" * 4096)
    assert group.committed("a", 0) == OffsetAndMetadata(1, "ü" * 4096)


def test_deleting_offsets_of_a_live_group_that_is_no_consumer() -> None:
    group = machine()
    commit(group, A0)
    with_member(group, "connect", b"whatever")
    assert isinstance(post(group, events.OffsetDelete(token=4, partitions=(A0,))), NonEmptyGroupError)


def test_deleting_offsets_of_a_group_whose_topics_cannot_be_read() -> None:
    """Unknown protocol bytes: every topic counts as read (ClassicGroup.isSubscribedToTopic)."""
    group = machine()
    commit(group, B0)
    with_member(group, metadata=b"?")
    reply = post(group, events.OffsetDelete(token=4, partitions=(B0,)))
    assert isinstance(reply, events.OffsetDeleteReply)
    assert isinstance(reply.errors[B0], GroupSubscribedToTopicError)


def test_deleting_offsets_of_an_empty_group() -> None:
    group = machine()
    commit(group, A0, B0)
    reply = post(group, events.OffsetDelete(token=4, partitions=(A0, A1)))
    assert reply == events.OffsetDeleteReply({A0: None, A1: None})
    assert list(group.all_committed()) == [B0]


def test_a_group_with_a_join_on_its_way_is_not_deleted() -> None:
    group = machine()
    commit(group, A0)
    protocols = (("range", b""),)
    post(group, events.JoinGroup(token=2, protocols=protocols, require_known_member_id=True))
    assert isinstance(post(group, events.DeleteGroup(token=3)), NonEmptyGroupError)


def test_deleting_leaves_nothing_in_the_log() -> None:
    group = machine()
    commit(group, A0, B0)
    with_member(group)
    post(group, events.LeaveGroup(token=4, members=(events.LeavingMember("m1"),)))
    decision = group.handle(events.DeleteGroup(token=5), 0)
    assert len(decision.records) == 3
    assert {value for _, value in decision.records} == {None}
    group.apply(decision.records, decision.changes)
    assert group.state is State.DEAD
    assert group.is_vacant is False  # Dead, not vacant: the host drops it for that
    assert isinstance(post(group, events.OffsetDelete(token=6, partitions=(A0,))), GroupIdNotFoundError)
    assert post(group, events.ExpireOffsets()) is None


def test_a_group_that_was_never_stored_leaves_no_tombstone() -> None:
    group = machine()
    commit(group, A0)
    assert len(group.handle(events.DeleteGroup(token=5), 0).records) == 1


def test_expiry_of_a_rebalancing_group_waits() -> None:
    group = machine(offsets_retention_ms=10)
    commit(group, B0)
    with_member(group)
    post(group, events.JoinGroup(token=9, protocols=(("range", b""),)))
    assert group.state is State.PREPARING_REBALANCE
    assert group.handle(events.ExpireOffsets(), 5000).records == []


def test_expiry_forgets_an_empty_group_without_offsets() -> None:
    group = with_member(machine())
    post(group, events.LeaveGroup(token=4, members=(events.LeavingMember("m1"),)))
    post(group, events.ExpireOffsets(), 1)
    assert group.state is State.DEAD


def test_a_commit_after_the_group_is_empty_does_not_outlive_it() -> None:
    """KIP-211: of a group that had members, the time since it is empty counts, whenever the commit was."""
    group = with_member(machine(offsets_retention_ms=100))
    post(group, events.LeaveGroup(token=4, members=(events.LeavingMember("m1"),)), 50)
    commit(group, A0, now_ms=149)
    post(group, events.ExpireOffsets(), 150)
    assert group.committed("a", 0) is None
