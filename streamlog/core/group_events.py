"""What may happen to a group, and what it answers: plain values with Kafka's fields.

Every request carries a `token`, a number the host chose. The answer, now or in a later decision, names the
token. The same request handed in twice (a turn that was interrupted) has the same token and is harmless.
Answers are the `...Reply` values below or a `StreamlogError`.

Sources: JoinGroupRequest.json, SyncGroupRequest.json, HeartbeatRequest.json, LeaveGroupRequest.json,
OffsetCommitRequest.json, OffsetDeleteRequest.json, DeleteGroupsRequest.json and their responses.
Not implemented: `reason` texts (KIP-800), ConsumerGroupHeartbeat (KIP-848).
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from streamlog.errors import StreamlogError
from streamlog.record import OffsetAndMetadata, TopicPartition

# ----------------------------------------------------------------------------------------------------------
# Requests
# ----------------------------------------------------------------------------------------------------------


class JoinGroup(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A member wants to be in the next generation. Parked until the group's join phase is complete."""

    token: int
    member_id: str = ""
    """Empty at the first join: the coordinator gives the id."""
    new_member_id: str = ""
    """The id to give, where the caller draws ids itself; else the machine's `new_member_id` is asked."""
    client_id: str = ""
    client_host: str = ""
    group_instance_id: str | None = None
    """Set: a static member (KIP-345), which may come back under the same name without a rebalance."""
    session_timeout_ms: int = 45_000
    rebalance_timeout_ms: int = 300_000
    """How long a rebalance waits for this member; the consumer's max.poll.interval.ms."""
    protocol_type: str = "consumer"
    protocols: tuple[tuple[str, bytes], ...] = ()
    """(assignor name, subscription bytes), the preferred first."""
    require_known_member_id: bool = False
    """JoinGroup v4 and later: the first join is answered MEMBER_ID_REQUIRED with the id to come back with
    (KIP-394)."""
    supports_skip_assignment: bool = True
    """JoinGroup v9 and later: a returning static leader is told that it is leader but need not assign
    (KIP-814)."""
    incarnation: str = ""
    """The opening of the cluster an in-process member belongs to; empty for members of the wire."""


class SyncGroup(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A member fetches its assignment; the leader brings everybody's. Parked until the leader's arrives."""

    token: int
    member_id: str
    generation: int
    group_instance_id: str | None = None
    protocol_type: str | None = None
    protocol: str | None = None
    assignments: tuple[tuple[str, bytes], ...] = ()
    """(member id, assignment bytes); only the leader's count."""


class Heartbeat(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A member is alive. REBALANCE_IN_PROGRESS tells it to join again."""

    token: int
    member_id: str
    generation: int
    group_instance_id: str | None = None


class LeavingMember(msgspec.Struct, frozen=True, gc=False):
    member_id: str = ""
    """Empty: whoever holds the instance id (an administrator removes a static member)."""
    group_instance_id: str | None = None


class LeaveGroup(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Members leave without waiting for their session to end."""

    token: int
    members: tuple[LeavingMember, ...]


class OffsetCommit(msgspec.Struct, frozen=True, kw_only=True):
    """Store positions. Generation -1, no member id: a consumer without group management, an administrator."""

    token: int
    offsets: dict[TopicPartition, OffsetAndMetadata]
    member_id: str = ""
    generation: int = -1
    group_instance_id: str | None = None
    topic_ids: dict[str, str] = {}
    """What the topics are: stored beside the offsets, so that those of a topic made anew are not taken for them."""
    names_missing_group: bool = False
    """OffsetCommit v9 and later: a group that does not exist is GROUP_ID_NOT_FOUND, before
    ILLEGAL_GENERATION."""


class TxnOffsetCommit(OffsetCommit, frozen=True, kw_only=True):
    """Positions that count once the producer's transaction is committed (KIP-98, KIP-447)."""

    producer_id: int
    producer_epoch: int


class OffsetDelete(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Forget committed offsets; refused for topics that a live consumer group reads."""

    token: int
    partitions: tuple[TopicPartition, ...]


class DeleteGroup(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Forget the group and its offsets; only when it has no members."""

    token: int


# ----------------------------------------------------------------------------------------------------------
# Events of the host: no answer
# ----------------------------------------------------------------------------------------------------------


class ExpireOffsets(msgspec.Struct, frozen=True, gc=False):
    """Look for offsets older than offsets.retention.minutes. The host posts it every
    offsets.retention.check.interval.ms."""


class TopicsDeleted(msgspec.Struct, frozen=True, gc=False):
    """Topics are gone, and with them the offsets committed for them."""

    topics: tuple[str, ...]


class StaleOffsets(msgspec.Struct, frozen=True, gc=False):
    """Offsets of a former topic of the same name were dropped at loading; the log is to forget them, too."""

    partitions: tuple[TopicPartition, ...]


class ExtendDeadlines(msgspec.Struct, frozen=True, gc=False):
    """The judge itself was late (debugger, suspended laptop): nobody is blamed for that time."""

    by_ms: int


Request: TypeAlias = (
    JoinGroup
    | SyncGroup
    | Heartbeat
    | LeaveGroup
    | OffsetCommit
    | TxnOffsetCommit
    | OffsetDelete
    | DeleteGroup
)
GroupEvent: TypeAlias = Request | ExpireOffsets | TopicsDeleted | StaleOffsets | ExtendDeadlines


# ----------------------------------------------------------------------------------------------------------
# Replies
# ----------------------------------------------------------------------------------------------------------


class JoinedMember(msgspec.Struct, frozen=True, gc=False):
    """One member as the leader sees it, to assign partitions by."""

    member_id: str
    group_instance_id: str | None
    metadata: bytes


class JoinGroupReply(msgspec.Struct, frozen=True, gc=False):
    generation: int
    protocol_type: str | None
    protocol: str | None
    leader: str
    member_id: str
    members: tuple[JoinedMember, ...] = ()
    """Filled for the leader only."""
    skip_assignment: bool = False
    """The leader need not assign: the group kept its assignment."""


class SyncGroupReply(msgspec.Struct, frozen=True, gc=False):
    protocol_type: str | None
    protocol: str | None
    assignment: bytes


class HeartbeatReply(msgspec.Struct, frozen=True, gc=False):
    """You are in the group and its generation is the one you named."""


class LeaveGroupReply(msgspec.Struct, frozen=True):
    members: tuple[tuple[LeavingMember, StreamlogError | None], ...]
    """What became of each, in the order of the request."""


class OffsetCommitReply(msgspec.Struct, frozen=True):
    errors: dict[TopicPartition, StreamlogError | None]
    """None = stored."""


class OffsetDeleteReply(msgspec.Struct, frozen=True):
    errors: dict[TopicPartition, StreamlogError | None]


class DeleteGroupReply(msgspec.Struct, frozen=True, gc=False):
    """The group is gone."""
