"""What brokers ask of each other, and of themselves, to keep replicas alike: requests of `broker.replication`.

    follower --FollowerFetch--> leader          "I hold everything below these offsets; what comes next?"
    follower --AppendAsFollower--> itself       what came next, byte for byte, or where to cut first
    leader   --AlterPartition--> controller     "let this be the ISR", by compare-and-swap (KIP-497)
    image    --Reconcile--> each broker         "the cluster image has news: take your roles"

Source: Kafka Fetch, AlterPartition, LeaderAndIsr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from streamlog.batch import Batch
from streamlog.core.isr_changes import Proposal
from streamlog.core.leader_epochs import EpochEnd
from streamlog.core.leadership import Leadership
from streamlog.errors import StreamlogError

if TYPE_CHECKING:
    from streamlog.broker.partition import Partition


class Reconcile(msgspec.Struct, frozen=True):
    """Compare the roles of the partitions marked dirty with the cluster image, and take those it gives."""


class ForgetReplica(msgspec.Struct, frozen=True):
    """This broker does not serve the partition any more: whoever waits for its followers is told."""

    partition: Partition


class FetchPosition(msgspec.Struct, frozen=True, gc=False):
    """Where a follower stands in one partition."""

    topic: str
    number: int
    topic_id: str
    fetch_offset: int
    last_fetched_epoch: int
    """Of the record before `fetch_offset`; -1 for an empty log."""
    leader_epoch: int
    """Of the leader the follower believes in."""
    log_start_offset: int


class FollowerFetch(msgspec.Struct, frozen=True):
    """A follower's positions at one leader; acknowledges everything below them. Answered with FetchAnswers, in order."""

    follower_id: int
    positions: list[FetchPosition]
    broker_epoch: int = -1
    """Of the follower's present life; -1 is not checked."""


class FetchAnswer(msgspec.Struct, frozen=True):
    """The leader's answer for one partition. The bytes are read from the leader's store, up to `log_end_offset`."""

    partition: Partition | None
    log_start_offset: int = -1
    high_watermark: int = -1
    log_end_offset: int = -1
    diverging: EpochEnd | None = None
    """The follower's log is no prefix: cut it where this epoch ends, then ask again."""
    error: StreamlogError | None = None


class CopiedPart(msgspec.Struct, frozen=True):
    """What a follower takes over for one partition."""

    partition: Partition
    position: FetchPosition
    """Where it stood when it asked: what came is for that log only."""
    batches: list[Batch]
    high_watermark: int
    """The leader's."""
    log_start_offset: int
    """The leader's."""
    diverging: EpochEnd | None = None
    restart_at: int | None = None
    """Drop everything and begin here: the leader's log starts behind our end."""


class AppendAsFollower(msgspec.Struct, frozen=True):
    """Take over what was fetched, many partitions in one transaction. Parts for a log that has changed since are not."""

    parts: list[CopiedPart]


class AlterPartition(Proposal, frozen=True):
    """A leader proposes an ISR. Refused unless epochs and broker are those the controller knows."""


def alter_partition(
    broker_id: int, broker_epoch: int, partition: Partition, proposal: Leadership
) -> AlterPartition:
    """What a leader sends for an ISR it has proposed."""
    assert proposal.proposed_isr is not None
    return AlterPartition(
        broker_id,
        broker_epoch,
        partition.topic_id,
        partition.number,
        proposal.leader_epoch,
        proposal.partition_epoch,
        proposal.proposed_isr,
        broker_epochs={
            follower: proposal.followers[follower].broker_epoch
            for follower in proposal.proposed_isr
            if follower in proposal.followers and proposal.followers[follower].broker_epoch >= 0
        },
    )


class SaveHighWatermarks(msgspec.Struct, frozen=True):
    """Write what moved without an append, now: the broker is about to close."""


class IsrRefused(msgspec.Struct, frozen=True):
    """The controller refused a proposal made at this partition epoch, as it was sent at `sent_ms`."""

    partition: Partition
    partition_epoch: int
    sent_ms: int
    error: StreamlogError
