"""What consumers tell each other through the group: subscription and assignment bytes (Kafka's
ConsumerProtocol).

The coordinator carries these bytes without needing them, so that any Kafka client can sit in the same
group; the leader's assignor reads the subscriptions and writes the assignments.

    subscription v0   int16 version | [string] topics | bytes? user_data
                 v1   | [string topic, [int32] partitions] owned_partitions
                 v2   | int32 generation
                 v3   | string? rack
    assignment v0-v3  int16 version | [string topic, [int32] partitions] assigned | bytes? user_data

    user data of `sticky`               [string topic, [int32] partitions] previous assignment | int32
    generation user data of `cooperative-sticky`   int32 generation (read where the subscription is older
    than v2)

A version above ours is read as ours: newer versions only add fields at the end. Data that is cut short
raises ValueError.

Sources: ConsumerProtocolSubscription.json, ConsumerProtocolAssignment.json, StickyAssignor.java (user
data); KIP-429 (owned partitions), KIP-792 (generation), KIP-881 (rack).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from streamlog.core.kafka_types import TypesReader, TypesWriter
from streamlog.record import TopicPartition

SUBSCRIPTION_VERSION_MAX: Final = 3
ASSIGNMENT_VERSION_MAX: Final = 3
NO_GENERATION: Final = -1


class Subscription(msgspec.Struct, frozen=True, gc=False):
    """What one member wants, and what it had."""

    topics: tuple[str, ...]
    user_data: bytes | None = None
    owned: tuple[TopicPartition, ...] = ()
    """The partitions the member still holds (cooperative) when it joins."""
    generation: int = NO_GENERATION
    """The generation in which it was given them: of two claims the newer counts."""
    rack: str | None = None
    group_instance_id: str | None = None
    """Not part of the bytes: the leader learns it from JoinGroup and sorts members by it."""


class Assignment(msgspec.Struct, frozen=True, gc=False):
    partitions: tuple[TopicPartition, ...] = ()
    user_data: bytes | None = None


def encode_subscription(subscription: Subscription, version: int = SUBSCRIPTION_VERSION_MAX) -> bytes:
    version = min(version, SUBSCRIPTION_VERSION_MAX)
    writer = TypesWriter()
    writer.int16(version)
    topics = sorted(subscription.topics)
    writer.int32(len(topics))
    for topic in topics:
        writer.string(topic)
    writer.bytes_(subscription.user_data)
    if version >= 1:
        _write_partitions(writer, subscription.owned)
    if version >= 2:
        writer.int32(subscription.generation)
    if version >= 3:
        writer.string(subscription.rack)
    return writer.finish()


def decode_subscription(data: bytes, group_instance_id: str | None = None) -> Subscription:
    reader = TypesReader(data)
    version = _version(reader)
    topics = tuple(reader.string() for _ in range(reader.array_count(2)))
    user_data = reader.nullable_bytes()
    owned = _read_partitions(reader) if version >= 1 else ()
    generation = reader.int32() if version >= 2 else NO_GENERATION
    rack = reader.nullable_string() if version >= 3 else None
    return Subscription(topics, user_data, owned, generation, rack, group_instance_id)


def encode_assignment(assignment: Assignment, version: int = ASSIGNMENT_VERSION_MAX) -> bytes:
    writer = TypesWriter()
    writer.int16(min(version, ASSIGNMENT_VERSION_MAX))
    _write_partitions(writer, assignment.partitions)
    writer.bytes_(assignment.user_data)
    return writer.finish()


def decode_assignment(data: bytes) -> Assignment:
    """The assignment in the bytes; no bytes at all (a member the leader forgot) is an empty one."""
    if not data:
        return Assignment()
    reader = TypesReader(data)
    _version(reader)
    partitions = _read_partitions(reader)
    return Assignment(partitions, reader.nullable_bytes())


def encode_sticky_user_data(previous: Sequence[TopicPartition], generation: int) -> bytes:
    """What a member of a `sticky` group sends along: eager members own nothing when they join, so it goes
    here."""
    writer = TypesWriter()
    _write_partitions(writer, previous)
    writer.int32(generation)
    return writer.finish()


def decode_sticky_user_data(data: bytes | None) -> tuple[tuple[TopicPartition, ...], int]:
    """(previous assignment, its generation). Unreadable data counts as none, as in StickyAssignor: it is
    only a hint."""
    if not data:
        return (), NO_GENERATION
    reader = TypesReader(data)
    try:
        previous = _read_partitions(reader)
        return previous, reader.int32() if reader.remaining_bytes else NO_GENERATION
    except ValueError:
        return (), NO_GENERATION


def decode_cooperative_user_data(data: bytes | None) -> int:
    """The generation a client older than subscription v2 hides in the user data; NO_GENERATION where there
    is none."""
    if not data or len(data) != 4:
        return NO_GENERATION
    return TypesReader(data).int32()


def subscribed_topics(protocols: Iterable[tuple[str, bytes]]) -> frozenset[str] | None:
    """The topics a member's subscriptions name; None where some are not of this protocol, so that nobody
    can tell."""
    topics: set[str] = set()
    for _, metadata in protocols:
        try:
            topics.update(decode_subscription(metadata).topics)
        except ValueError:
            return None
    return frozenset(topics)


def _version(reader: TypesReader) -> int:
    version = reader.int16()
    if version < 0:
        raise ValueError(f"version {version} of a consumer protocol value")
    return version


def _write_partitions(writer: TypesWriter, partitions: Iterable[TopicPartition]) -> None:
    by_topic: dict[str, list[int]] = {}
    for topic, partition in partitions:
        by_topic.setdefault(topic, []).append(partition)
    writer.int32(len(by_topic))
    for topic in sorted(by_topic):
        writer.string(topic)
        writer.int32(len(by_topic[topic]))
        for partition in by_topic[topic]:
            writer.int32(partition)


def _read_partitions(reader: TypesReader) -> tuple[TopicPartition, ...]:
    partitions: list[TopicPartition] = []
    for _ in range(reader.array_count(6)):
        topic = reader.string()
        partitions.extend([TopicPartition(topic, reader.int32()) for _ in range(reader.array_count(4))])
    return tuple(partitions)
