"""The in-sync set of a partition, as its leader proposes it and the controller decides (sans-I/O).

    leader                              controller
      | AlterPartition(ISR, leader epoch, partition epoch)
      |------------------------------------>|  compare: is that the partition the leader knows?
      |<------------------------------------|  swap: the ISR, and with it perhaps a finished reassignment
      |   the partition as it is now, or an error

A leader has one proposal in flight; the partition epoch makes it a compare-and-swap. A proposal that completes a
reassignment may cost the proposer its leadership: then there are records *and* an error.

Sources: KIP-497 (AlterPartition), KIP-704 (recovering), KIP-841 (ineligible replicas), KIP-903 (their broker epochs);
Kafka `ReplicationControlManager.alterPartition` and `validateAlterPartitionData`, whose precedence of errors is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from streamlog.core.broker_states import check_broker_epoch
from streamlog.core.cluster_image import ClusterImage, MetadataRecord, PartitionImage
from streamlog.core.partition_changes import (
    AllowsUnclean,
    ChangedPartitions,
    by_override,
    change_partition,
    online_or_unclean,
)
from streamlog.errors import (
    FencedLeaderEpochError,
    IneligibleReplicaError,
    InvalidRequestError,
    InvalidUpdateVersionError,
    NewLeaderElectedError,
    NotControllerError,
    UnknownTopicIdError,
)


class Proposal(msgspec.Struct, frozen=True):
    """AlterPartition of one partition."""

    broker_id: int
    broker_epoch: int
    topic_id: str
    number: int
    leader_epoch: int
    partition_epoch: int
    isr: tuple[int, ...]
    is_recovering: bool = False
    """False ends the recovery of a leader that was elected uncleanly."""
    broker_epochs: Mapping[int, int] = {}
    """The lives in which the followers fetched what makes them eligible, as far as the leader knows (KIP-903)."""


class Alteration(msgspec.Struct, frozen=True):
    """What became of a proposal that was not refused."""

    records: list[MetadataRecord]
    partition: PartitionImage
    """As it is once the records are applied."""
    error: NewLeaderElectedError | None = None
    """The answer where the change was made and made somebody else the leader."""


def alter_partition(
    image: ClusterImage, proposal: Proposal, allows_unclean: AllowsUnclean = by_override
) -> Alteration:
    """Decide a proposal.

    Raises, in this order: StaleBrokerEpochError, UnknownTopicIdError, UnknownTopicOrPartitionError,
    NotControllerError (the leader knows more than this controller), FencedLeaderEpochError, InvalidRequestError
    (not the leader), InvalidUpdateVersionError, InvalidRequestError (no possible ISR), IneligibleReplicaError.
    """
    check_broker_epoch(image, proposal.broker_id, proposal.broker_epoch)
    name = image.topic_names.get(proposal.topic_id)
    if name is None:
        raise UnknownTopicIdError(
            f"no topic has the id {proposal.topic_id}; it was deleted", topic_id=proposal.topic_id
        )
    topic, partition = image.topic(name), image.partition(name, proposal.number)
    where = f"{name}-{proposal.number}"
    _check_epochs(where, partition, proposal)
    _check_isr(where, partition, proposal)
    _check_eligible(where, image, proposal)
    after = change_partition(
        partition,
        image.is_active,
        online_or_unclean(topic, allows_unclean),
        isr=proposal.isr,
        is_recovering=proposal.is_recovering,
    )
    changes = ChangedPartitions()
    changes.add(topic, proposal.number, after)
    error = None
    if after.leader != proposal.broker_id:
        error = NewLeaderElectedError(
            f"{where}: the proposal completed a reassignment; broker {after.leader} leads now",
            topic=name,
            partition=proposal.number,
            leader=after.leader,
        )
    return Alteration(changes.records(), after, error)


def _check_epochs(where: str, partition: PartitionImage, proposal: Proposal) -> None:
    have = (proposal.leader_epoch, proposal.partition_epoch)
    known = (partition.leader_epoch, partition.partition_epoch)
    says = f"{where}: the proposal has (leader epoch, partition epoch) {have}, the controller {known}"
    facts = {"leader_epoch": partition.leader_epoch, "partition_epoch": partition.partition_epoch}
    if proposal.leader_epoch > partition.leader_epoch or proposal.partition_epoch > partition.partition_epoch:
        raise NotControllerError(f"{says}: ask the present controller", **facts)
    if proposal.leader_epoch < partition.leader_epoch:
        raise FencedLeaderEpochError(f"{says}: look up the leader", **facts)
    if proposal.broker_id != partition.leader:
        raise InvalidRequestError(
            f"{where}: broker {proposal.broker_id} proposes an ISR, but broker {partition.leader} leads",
            **facts,
        )
    if proposal.partition_epoch < partition.partition_epoch:
        raise InvalidUpdateVersionError(f"{says}: take over the partition, then propose again", **facts)


def _check_isr(where: str, partition: PartitionImage, proposal: Proposal) -> None:
    isr = proposal.isr
    reason = ""
    if not isr or len(set(isr)) != len(isr) or not set(isr) <= set(partition.replicas):
        reason = f"allowed: some of the replicas {list(partition.replicas)}, each once"
    elif proposal.broker_id not in isr:
        reason = f"the leader {proposal.broker_id} is not in it"
    elif proposal.is_recovering and len(isr) > 1:
        reason = "a leader that is recovering is alone in it"
    elif proposal.is_recovering and not partition.is_recovering:
        reason = "the leader has recovered already"
    if reason:
        raise InvalidRequestError(f"{where}: the ISR {list(isr)} is not possible: {reason}", isr=list(isr))


def _check_eligible(where: str, image: ClusterImage, proposal: Proposal) -> None:
    ineligible = [
        f"{broker_id} {reason}"
        for broker_id in proposal.isr
        if (reason := _why_ineligible(image, broker_id, proposal.broker_epochs.get(broker_id)))
    ]
    if ineligible:
        raise IneligibleReplicaError(
            f"{where}: the ISR {list(proposal.isr)} has ineligible brokers: {', '.join(ineligible)}",
            isr=list(proposal.isr),
        )


def _why_ineligible(image: ClusterImage, broker_id: int, broker_epoch: int | None) -> str:
    broker = image.brokers.get(broker_id)
    if broker is None:
        return "is not registered"
    if broker.shutting_down:
        return "is shutting down"
    if broker.fenced:
        return "is fenced"
    if broker_epoch is not None and broker_epoch != broker.broker_epoch:
        return f"has broker epoch {broker.broker_epoch}, not {broker_epoch}"
    return ""
