"""The rules of committed offsets: who may commit, what is stored, when offsets are forgotten.

The log is not looked at: any offset is stored, also one that goes back or beyond the end (the reader finds
out, and `auto_offset_reset` decides). The stored offset is the next one to read.

Sources: Kafka OffsetMetadataManager.commitOffset, deleteOffsets, cleanupExpiredOffsets; ClassicGroup
.validateOffsetCommit, .offsetExpirationCondition, .validateDeleteGroup; KIP-211 (expiry counts from the
group being empty).
Offsets of an open transaction are held by the machine; while they are, the group and its offsets stay.
Not implemented: a retention per commit (OffsetCommit v2-v4).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final

from streamlog.core.group_draft import GroupDraft
from streamlog.core.group_events import (
    DeleteGroup,
    DeleteGroupReply,
    OffsetCommit,
    OffsetCommitReply,
    OffsetDelete,
    OffsetDeleteReply,
)
from streamlog.core.group_records import (
    NO_TIMESTAMP,
    CommittedOffset,
    OffsetKey,
    decode_key,
    encode_group_key,
    encode_offset_key,
    encode_offset_value,
)
from streamlog.core.group_state import State
from streamlog.core.held_records import HeldRecords
from streamlog.errors import (
    GroupIdNotFoundError,
    GroupSubscribedToTopicError,
    IllegalGenerationError,
    InvalidRequestError,
    NonEmptyGroupError,
    OffsetMetadataTooLargeError,
    RebalanceInProgressError,
    StreamlogError,
)
from streamlog.record import OffsetAndMetadata, TopicPartition

Offsets = Mapping[TopicPartition, CommittedOffset]

NO_GENERATION: Final = -1


def commit(draft: GroupDraft, offsets: Offsets, event: OffsetCommit) -> None:
    error = _validate_commit(draft, offsets, event)
    if error is not None:
        draft.reply(event.token, error)
        return
    group = draft.group
    member = group.members.get(event.member_id)
    if member is not None and group.state in (State.STABLE, State.PREPARING_REBALANCE):
        draft.start_session(member)  # a commit is a sign of life
    reply = OffsetCommitReply(
        {
            partition: _store(draft, partition, committing, event.topic_ids.get(partition[0], ""))
            for partition, committing in event.offsets.items()
        }
    )
    draft.reply(event.token, reply)


def _store(
    draft: GroupDraft, partition: TopicPartition, committing: OffsetAndMetadata, topic_id: str
) -> StreamlogError | None:
    """Each partition stands for itself: one that is refused does not hold up the others."""
    metadata, characters_max = committing.metadata, draft.limits.offset_metadata_characters_max
    if len(metadata) > characters_max:
        return OffsetMetadataTooLargeError(
            f"{partition}: {len(metadata)} characters of metadata, {characters_max} are allowed"
        )
    stored = CommittedOffset(committing.offset, committing.leader_epoch, metadata, draft.wall_ms, topic_id)
    try:
        record = encode_offset_key(draft.group_id, partition), encode_offset_value(stored)
    except (UnicodeEncodeError, struct.error) as error:
        return InvalidRequestError(f"{partition}: cannot be stored: {error}")
    draft.records.append(record)
    return None


def _validate_commit(draft: GroupDraft, offsets: Offsets, event: OffsetCommit) -> StreamlogError | None:
    """SEMANTICS 3.6.1, in its order (Dead is refused before)."""
    group = draft.group
    if event.generation < 0 and group.state is State.EMPTY:
        return None  # a consumer outside of group management, or an administrator; creates the group
    if group.is_vacant and not offsets:
        if event.names_missing_group:
            return _group_not_found(draft)
        return IllegalGenerationError(f"group {draft.group_id} does not exist", generation=event.generation)
    if event.generation < 0 and not event.member_id and event.group_instance_id is None:
        # The group has members: nobody else may commit.
        return draft.unknown_member(event.member_id)
    error = draft.validate_member(event.member_id, event.group_instance_id)
    if error is not None:
        return error
    if event.generation != group.generation:
        return IllegalGenerationError(
            f"commit of generation {event.generation}; group {draft.group_id} is in {group.generation}",
            generation=event.generation,
            current_generation=group.generation,
        )
    if group.state is State.COMPLETING_REBALANCE:
        # It knows the new generation, but not what it may read in it: what it commits belongs to the old one.
        return RebalanceInProgressError(f"group {draft.group_id} waits for its assignment")
    return None


def delete_offsets(draft: GroupDraft, offsets: Offsets, event: OffsetDelete) -> None:
    group = draft.group
    if group.is_vacant and not offsets:
        draft.reply(event.token, _group_not_found(draft))
        return
    is_live = group.state is not State.EMPTY
    if is_live and group.protocol_type != "consumer":
        draft.reply(event.token, NonEmptyGroupError(f"group {draft.group_id} has members"))
        return
    subscribed = group.subscribed_topics() if is_live else frozenset()
    errors: dict[TopicPartition, StreamlogError | None] = {}
    for partition in event.partitions:
        if subscribed is None or partition[0] in subscribed:
            errors[partition] = GroupSubscribedToTopicError(f"group {draft.group_id} reads {partition[0]}")
            continue
        errors[partition] = None
        if partition in offsets:
            _forget(draft, (partition,))
    draft.reply(event.token, OffsetDeleteReply(errors))


def delete_group(draft: GroupDraft, offsets: Offsets, held: HeldRecords, event: DeleteGroup) -> None:
    group = draft.group
    if group.state is not State.EMPTY or group.pending:
        draft.reply(
            event.token, NonEmptyGroupError(f"group {draft.group_id} has members ({group.state.value})")
        )
    elif group.is_vacant and not offsets and not held:
        draft.reply(event.token, _group_not_found(draft))
    else:
        draft.records += [(key, None) for key in sorted(held.keys())]
        _bury(draft, offsets)
        draft.reply(event.token, DeleteGroupReply())


def expire_offsets(draft: GroupDraft, offsets: Offsets, held: HeldRecords) -> None:
    """KIP-211. A group that is empty and has no offsets left is forgotten; not while a transaction commits for it."""
    group = draft.group
    expired = [
        partition
        for partition, committed in offsets.items()
        if not (held and encode_offset_key(draft.group_id, partition) in held)
        and (since_ms := _expires_since(draft, partition, committed)) is not None
        and draft.wall_ms - since_ms >= draft.limits.offsets_retention_ms
    ]
    if len(expired) == len(offsets) and group.state is State.EMPTY and not (group.pending or held):
        _bury(draft, offsets)
    else:
        _forget(draft, expired)


def _expires_since(draft: GroupDraft, partition: TopicPartition, committed: CommittedOffset) -> int | None:
    """From when the retention of this offset counts (wall clock); None while it is in use."""
    group = draft.group
    if group.protocol_type is None:
        return committed.commit_timestamp_ms
    if group.state is State.EMPTY:
        is_known = group.state_timestamp_ms != NO_TIMESTAMP
        return group.state_timestamp_ms if is_known else committed.commit_timestamp_ms
    if group.state is State.STABLE:
        subscribed = group.subscribed_topics()
        if subscribed is not None and partition[0] not in subscribed:
            return committed.commit_timestamp_ms
    return None


def forget_topics(draft: GroupDraft, offsets: Offsets, held: HeldRecords, topics: Iterable[str]) -> None:
    """The topics are deleted: one of the same name, later, must not begin in the middle."""
    names = frozenset(topics)
    _forget(draft, [partition for partition in offsets if partition[0] in names])
    for key in sorted(held.keys()):
        decoded = decode_key(key)
        if (
            isinstance(decoded, OffsetKey)
            and decoded.partition[0] in names
            and decoded.partition not in offsets
        ):
            draft.records.append((key, None))


def bury(draft: GroupDraft, offsets: Offsets, partitions: Iterable[TopicPartition]) -> None:
    """Offsets of a former topic of that name, dropped when the group was loaded: the log forgets them, too."""
    _forget(draft, [partition for partition in partitions if partition not in offsets])


def _forget(draft: GroupDraft, partitions: Iterable[TopicPartition]) -> None:
    for partition in partitions:
        draft.records.append((encode_offset_key(draft.group_id, partition), None))


def _bury(draft: GroupDraft, offsets: Offsets) -> None:
    _forget(draft, offsets)
    if draft.group.is_stored:
        draft.records.append((encode_group_key(draft.group_id), None))
        draft.group.is_stored = False
    draft.become(State.DEAD)


def _group_not_found(draft: GroupDraft) -> StreamlogError:
    return GroupIdNotFoundError(f"there is no group {draft.group_id!r}", group_id=draft.group_id)
