"""The waist: Kafka's requests and responses as plain typed values.

In-process clients pass these to a broker by method call; the wire listener will be a codec in front of the same
values. So an in-process consumer and a real Kafka client can sit in one group and never notice each other.

Group requests (JoinGroup, SyncGroup, Heartbeat, LeaveGroup, OffsetCommit, ...) are the events of `core.group` itself.

Not implemented yet: OffsetForLeaderEpoch, ElectLeaders, AlterPartitionReassignments (replication).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from streamlog.batch import Batch
from streamlog.errors import StreamlogError

if TYPE_CHECKING:
    from streamlog.broker.pending import Pending
    from streamlog.broker.producer_identity import ProducerIdentity
    from streamlog.core.group_events import GroupEvent, OffsetCommit

LATEST: Final = -1
EARLIEST: Final = -2
MAX_TIMESTAMP: Final = -3


class Retrying(msgspec.Struct, frozen=True, gc=False):
    """How a producer's batches are tried again; no part of Kafka's request. Options of the producer, in ms."""

    delivery_timeout_ms: int = 120_000
    request_timeout_ms: int = 30_000
    retries: int = 2_147_483_647
    backoff_ms: int = 100
    backoff_max_ms: int = 1_000


class Produce(msgspec.Struct, frozen=True):
    """Append one batch per entry. Each entry succeeds or fails on its own; all are one commit.

    entries: (topic, partition, sealed batch).
    acks:    0, 1 or -1 (all).
    """

    entries: list[tuple[str, int, Batch]]
    acks: int = -1
    timeout_ms: int = 30_000
    """How long acks=all may take: then REQUEST_TIMED_OUT, and the records may still become readable."""
    retrying: Retrying | None = None
    transactional_id: str | None = None
    identity: ProducerIdentity | None = None
    """Of an idempotent producer of this process; no part of Kafka's request, whose batches are stamped already."""


class Produced(msgspec.Struct, frozen=True, gc=False):
    """What became of one entry of a Produce."""

    base_offset: int
    log_append_time: int
    log_start_offset: int
    error: StreamlogError | None = None


class InitProducerId(msgspec.Struct, frozen=True):
    """A producer begins with a transactional id. Answered with (producer id, epoch); who had it before is fenced."""

    timeout_ms: int
    new_producer_id: int
    """Taken if the transactional id is new, or its producer id has no epochs left."""


class AddPartitions(msgspec.Struct, frozen=True):
    """A producer is about to write to these partitions for the first time in its transaction.

    Answered once that is replicated: what is written before might never get a marker.
    """

    producer_id: int
    producer_epoch: int
    partitions: list[tuple[str, int]]


class EndTxn(msgspec.Struct, frozen=True):
    """Commit or abort what is open. Answered with (producer id, epoch) of the next transaction, once it is complete."""

    producer_id: int
    producer_epoch: int
    is_commit: bool
    offsets: list[tuple[str, OffsetCommit]] = []
    """By group: what its consumer has read, committed with it or not at all; where one broker has all."""
    after: tuple[Pending, ...] = ()
    """Commit only if these Produces of the transaction are written; in the same turn, if they are still waiting. No part
    of Kafka's request, whose client waits for them first."""
    wait_ms: int = 60_000
    """Answered after this, too, if the decision is replicated: the markers come later then."""


class MarkersWritten(msgspec.Struct, frozen=True):
    """Of a decided transaction: these partitions have their markers."""

    producer_id: int
    producer_epoch: int
    partitions: list[tuple[str, int]]


class ExpireTransactionalId(msgspec.Struct, frozen=True):
    """Forget a transactional id, if it is idle for long enough. Source: Kafka `transactional.id.expiration.ms`."""


class TransactionRequest(msgspec.Struct, frozen=True):
    """A request about one transactional id."""

    transactional_id: str
    event: InitProducerId | AddPartitions | EndTxn | MarkersWritten | ExpireTransactionalId


class WriteMarkers(msgspec.Struct, frozen=True):
    """End one producer's transaction in some partitions. Answered with a `Produced` each, once replicated."""

    producer_id: int
    producer_epoch: int
    """The one after the transaction's records (KIP-890)."""
    coordinator_epoch: int
    is_commit: bool
    partitions: list[tuple[str, int]]
    timeout_ms: int = 30_000


class Fetch(msgspec.Struct, frozen=True):
    """Read from several partitions; parked until `bytes_min` are there or `wait_ms_max` is over.

    positions: (topic, partition, offset, bytes_max of this partition).
    """

    positions: list[tuple[str, int, int, int]]
    bytes_min: int = 1
    bytes_max: int = 50 * 1024 * 1024
    wait_ms_max: int = 500
    isolation_level: str = "read_uncommitted"
    check_crcs: bool = True


class FetchedPartition(msgspec.Struct, frozen=True):
    """What a Fetch found in one partition: whole batches; the first may hold records below the position."""

    topic: str
    partition: int
    high_watermark: int
    last_stable_offset: int
    log_start_offset: int
    batches: list[Batch]
    error: StreamlogError | None = None


class ListOffsets(msgspec.Struct, frozen=True):
    """Offsets by time: (topic, partition, timestamp or LATEST, EARLIEST, MAX_TIMESTAMP)."""

    targets: list[tuple[str, int, int]]
    isolation_level: str = "read_uncommitted"


class CreateTopic(msgspec.Struct, frozen=True):
    """partitions, replication_factor: -1 = the cluster's defaults."""

    name: str
    partitions: int = -1
    replication_factor: int = -1
    config: dict[str, str] = {}


class DeleteTopic(msgspec.Struct, frozen=True):
    """Unknown topics and internal ones are refused."""

    name: str


class CreatePartitions(msgspec.Struct, frozen=True):
    """`total` is the new count, not the increase."""

    name: str
    total: int


class AlterTopicConfig(msgspec.Struct, frozen=True):
    """IncrementalAlterConfigs of one topic: a value sets, None resets."""

    name: str
    changes: dict[str, str | None]


class AlterBrokerConfig(msgspec.Struct, frozen=True):
    """IncrementalAlterConfigs of a broker (its id as text), or with "" of all: a value sets, None resets."""

    broker_id: str
    changes: dict[str, str | None]


class DeleteRecords(msgspec.Struct, frozen=True):
    """Move the log start offset up to `before_offset` (-1: the high watermark); answers the new start.

    With several replicas the answer comes when all that live begin there, or after `timeout_ms` as an error.
    """

    topic: str
    partition: int
    before_offset: int
    timeout_ms: int = 30_000


class TruncateTail(msgspec.Struct, frozen=True):
    """Drop everything from `from_offset` on: what a follower does; here also for tests and repair."""

    topic: str
    partition: int
    from_offset: int


class GroupRequest(msgspec.Struct, frozen=True):
    """An event of `core.group_events` for one group."""

    group_id: str
    event: GroupEvent
