"""The controller's work in the metadata log's turn: leases, fencing, elections, in-sync sets, assignments.

    broker --RenewLease--> lease table --nobody renewed for broker.session.timeout.ms--> fenced, its leaderships move
    broker --TakeControl--> the controller's lease is gone? --> ControllerElected, a higher controller epoch
    leader --AlterPartition--> compare-and-swap --> the image --> everybody reconciles

The decisions are `core`'s, over the cluster image; here they meet the requests. The controller is the broker that the
image names and whose lease lives: while there is none, whoever wants a decision gets NotControllerError: retriable.

Invariant: a decision is appended in the turn that took it, so the image it saw is the one it changes (compare-and-swap).

Sources: KIP-500, KIP-631 (broker registration and heartbeats); Kafka QuorumController, ClusterControlManager.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streamlog.broker.replica_requests import AlterPartition
from streamlog.core import broker_states, elections, isr_changes, reassignment
from streamlog.core.cluster_image import MetadataRecord, TopicImage
from streamlog.core.leases import LeaseTable
from streamlog.errors import NotControllerError

if TYPE_CHECKING:
    from streamlog.broker.metadata import MetadataLog
    from streamlog.broker.turn import Turn
    from streamlog.config import ClusterConfig


UNCLEAN_OPTION: Final = "unclean.leader.election.enable"


class RegisterBroker(msgspec.Struct, frozen=True):
    """A broker begins a new life, fenced until its first RenewLease. broker_id -1: a new broker, the next free id."""

    broker_id: int
    incarnation: str


class RenewLease(msgspec.Struct, frozen=True):
    """A broker lives and hears the metadata log (Kafka's BrokerHeartbeat)."""

    broker_id: int


class TakeControl(msgspec.Struct, frozen=True):
    """A broker would be the controller, if there is none."""

    broker_id: int


class JudgeLeases(msgspec.Struct, frozen=True):
    """The controller looks whose session is over."""

    broker_id: int
    controller_epoch: int


class BrokerLost(msgspec.Struct, frozen=True):
    """The connection to a broker broke: it is fenced at once, and is the controller no longer."""

    broker_id: int


class ShutDownBroker(msgspec.Struct, frozen=True):
    """A broker is about to stop: move its leaderships first. Answers the partitions that could not be moved."""

    broker_id: int


class ElectLeaders(msgspec.Struct, frozen=True):
    """Kafka's ElectLeaders: "preferred" or "unclean"; partitions None: all. Answers errors by partition."""

    partitions: list[tuple[str, int]] | None
    election: str


class RebalanceLeaders(msgspec.Struct, frozen=True):
    """Give leaderships back to preferred replicas where a broker lacks more than `percentage` of its own."""

    percentage: int


class Reassign(msgspec.Struct, frozen=True):
    """Kafka's AlterPartitionReassignments of one topic; None cancels. Answers errors by partition."""

    topic: str
    targets: Mapping[int, Sequence[int] | None]


class Controlling:
    """What the metadata log knows of leases, and how it decides for the controller."""

    def __init__(self, metadata: MetadataLog, config: ClusterConfig) -> None:
        self._metadata = metadata
        self._config = config
        self.leases = LeaseTable(config.broker_session_timeout_ms, config.broker_heartbeat_interval_ms)
        self.hears: Callable[[int], bool] = lambda broker_id: True
        """Whether a broker is connected to the metadata log."""

    def __repr__(self) -> str:
        return f"Controlling({self.leases!r})"

    def allows_unclean(self, topic: TopicImage) -> bool:
        own = topic.config.get(UNCLEAN_OPTION)
        return self._config.unclean_leader_election_enable if own is None else own == "true"

    def elect_unclean(
        self, topic_name: str | None, changes: Mapping[str, str | None]
    ) -> Sequence[MetadataRecord]:
        """Options are about to change, of one topic or (None) of all: where unclean elections become allowed by that,
        partitions without a leader get one. Source: Kafka ReplicationControlManager.incrementalAlterConfigs.
        """
        if changes.get(UNCLEAN_OPTION) != "true":
            return ()

        def allowed(topic: TopicImage) -> bool:
            if topic_name is None:
                return topic.config.get(UNCLEAN_OPTION, "true") == "true"
            return topic.name == topic_name or self.allows_unclean(topic)

        return broker_states.elect_leaderless(self._metadata.image, allowed)

    def configure(self, config: ClusterConfig) -> None:
        """Options have changed. What leases are made of does not."""
        self._config = config

    def check_controller(self, now_ms: int) -> None:
        """Raises NotControllerError while no broker that is heard of is the controller."""
        image = self._metadata.image
        if image.controller_id not in self.leases.live(now_ms) or not self.hears(image.controller_id):
            raise NotControllerError(
                f"broker {image.controller_id} was the controller and is not heard of; one that runs takes over as soon "
                f"as its session of {self._config.broker_session_timeout_ms} ms is over (if none does: "
                "cluster.brokers[i].start())",
                controller_id=image.controller_id,
            )

    def decide(self, turn: Turn, request: object) -> tuple[Sequence[MetadataRecord], object]:
        """The records and the answer. Raises what the decision raises."""
        image, unclean = self._metadata.image, self.allows_unclean
        match request:
            case RenewLease():
                turn.effects.append(lambda: self.leases.renew(request.broker_id, turn.now_ms))
                if image.brokers[request.broker_id].fenced:
                    return broker_states.unfence(image, [request.broker_id], unclean), None
                return (), None
            case JudgeLeases():
                return self._judge(turn, request), None
            case TakeControl():
                if not self.leases.may_take_control(request.broker_id, image.controller_id, turn.now_ms):
                    return (), image.controller_id
                if image.controller_id == request.broker_id:
                    return (), image.controller_id
                return [broker_states.elect_controller(image, request.broker_id)], request.broker_id
            case BrokerLost():
                return self._lose(turn, request.broker_id), None
            case RegisterBroker(broker_id=-1):
                return broker_states.add_broker(image, request.incarnation), max(
                    image.brokers, default=-1
                ) + 1
            case RegisterBroker():
                return broker_states.register(image, request.broker_id, request.incarnation, unclean), None
        self.check_controller(turn.now_ms)
        match request:
            case AlterPartition():
                altered = isr_changes.alter_partition(image, request, unclean)
                return altered.records, altered
            case ShutDownBroker():
                shutdown = broker_states.controlled_shutdown(image, request.broker_id, unclean)
                return shutdown.records, shutdown.remaining
            case ElectLeaders():
                elected = elections.elect_leaders(image, request.partitions, request.election)
                return elected.records, elected.errors
            case RebalanceLeaders():
                wanted = elections.imbalanced_partitions(image, request.percentage)
                return elections.elect_leaders(image, wanted, "preferred").records if wanted else (), None
            case Reassign():
                begun = reassignment.reassign(image, request.topic, request.targets, unclean)
                return begun.records, begun.errors
        raise TypeError(f"the metadata log does not know {type(request).__name__}")

    def _judge(self, turn: Turn, request: JudgeLeases) -> Sequence[MetadataRecord]:
        image = self._metadata.image
        if (request.broker_id, request.controller_epoch) != (image.controller_id, image.controller_epoch):
            raise NotControllerError(
                f"broker {request.broker_id} is not the controller of epoch {image.controller_epoch}",
                controller_id=image.controller_id,
            )
        gone = [b for b in self.leases.expired(turn.now_ms) if b in image.brokers]
        turn.effects.append(lambda: self._count_timeouts(gone))  # before the records are applied
        return broker_states.fence(image, gone, self.allows_unclean)

    def _count_timeouts(self, gone: list[int]) -> None:
        counts, brokers = self._metadata.controller_counts, self._metadata.image.brokers
        if counts is not None:
            counts.timeouts += sum([not brokers[broker_id].fenced for broker_id in gone])

    def _lose(self, turn: Turn, broker_id: int) -> Sequence[MetadataRecord]:
        image = self._metadata.image
        turn.effects.append(lambda: self.leases.drop(broker_id))
        records: list[Any] = []
        if image.controller_id == broker_id:
            live = self.leases.live(turn.now_ms)
            successors = [b for b in image.active_brokers() if b != broker_id and b in live]
            if successors:
                records.append(broker_states.elect_controller(image, successors[0]))
        return records + list(broker_states.fence(image, [broker_id], self.allows_unclean))
