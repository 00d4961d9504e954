"""The group coordinators of a replicated cluster as one: each group at the broker that leads its offsets partition.

    group id --hash--> partition of __consumer_offsets --leader--> that broker's Coordinator

Same look-ups as `coordinator.Coordinator`, which a cluster of one broker uses directly.

Source: Kafka FindCoordinator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from streamlog.broker.api import GroupRequest
from streamlog.broker.coordinator import Coordinator, HostedGroup
from streamlog.broker.turn import Pending
from streamlog.core.cluster_image import CONSUMER_OFFSETS_TOPIC
from streamlog.core.group import group_partition
from streamlog.errors import (
    ClosedError,
    CoordinatorNotAvailableError,
    LeaderNotAvailableError,
    NetworkError,
    StreamlogError,
)
from streamlog.record import OffsetAndMetadata, TopicPartition

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.cluster import BrokerCluster


class Coordinators:
    """Looks up the coordinator anew for each call: it moves with the leadership."""

    def __init__(self, cluster: BrokerCluster) -> None:
        self._cluster = cluster

    def __repr__(self) -> str:
        return f"Coordinators({self._cluster!r})"

    def broker(self, group_id: str) -> Broker:
        """The broker that coordinates a group. Raises CoordinatorNotAvailableError, which is retriable."""
        count = len(self._cluster.metadata.image.topic(CONSUMER_OFFSETS_TOPIC).partitions)
        number = group_partition(group_id, count)
        try:
            broker = self._cluster.leader(CONSUMER_OFFSETS_TOPIC, number)
            broker.partition(CONSUMER_OFFSETS_TOPIC, number)  # takes its role
            return broker
        except (LeaderNotAvailableError, NetworkError, ClosedError) as error:
            self._cluster.check_usable()
            raise CoordinatorNotAvailableError(
                f"group {group_id!r} has no coordinator at the moment: {error}", group_id=group_id
            ) from error

    def of(self, group_id: str) -> Coordinator:
        return self.broker(group_id).coordinator

    def group(self, group_id: str) -> HostedGroup | None:
        return self.of(group_id).group(group_id)

    def hosted(self, group_id: str) -> HostedGroup:
        return self.of(group_id).hosted(group_id)

    def groups(self) -> list[HostedGroup]:
        for number, image in enumerate(self._cluster.metadata.image.topic(CONSUMER_OFFSETS_TOPIC).partitions):
            if self._cluster.peers.running(image.leader) is None:
                raise CoordinatorNotAvailableError(
                    f"nobody leads {CONSUMER_OFFSETS_TOPIC}-{number} at the moment"
                )
        found = [group for broker in self._cluster.brokers for group in broker.coordinator.groups()]
        return sorted(found, key=lambda hosted: hosted.group_id)

    def committed(
        self, group_id: str, partitions: list[TopicPartition] | None
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        return self.of(group_id).committed(group_id, partitions)

    def forget_topic(self, topic: str) -> None:
        for broker in self._cluster.brokers:
            try:
                broker.coordinator.forget_topic(topic)
            except (ClosedError, NetworkError):
                continue  # it has just stopped: its groups forget when another loads them

    @property
    def parked_count(self) -> int:
        return sum(broker.coordinator.parked_count for broker in self._cluster.brokers)

    @property
    def loaded_count(self) -> int:
        return sum(broker.coordinator.loaded_count for broker in self._cluster.brokers)

    def post(self, group_id: str, event: Any, on_done: Callable[[Pending], None] | None) -> Pending:
        """Hand an event to the group's coordinator; without one the answer is there at once."""
        request = GroupRequest(group_id, event)
        try:
            return self.broker(group_id).post(request, on_done=on_done)
        except (ClosedError, NetworkError, CoordinatorNotAvailableError) as error:
            return _refused(request, error)

    def call(self, group_id: str, event: Any, timeout_ms: int) -> Any:
        """Hand an event over and wait; helps with the replication of what it writes."""
        broker = self.broker(group_id)
        peers = self._cluster.peers
        if not self._cluster.runtime.may_help():
            return broker.call(GroupRequest(group_id, event), timeout_ms)
        pending = broker.enqueue(GroupRequest(group_id, event))
        peers.helping.help(broker.advance, lambda: pending.done)
        broker.wait(pending, timeout_ms)
        return pending.result()


def _refused(request: GroupRequest, error: StreamlogError) -> Pending:
    pending = Pending(request)
    pending.error = error
    pending.taken = pending.done = True
    return pending
