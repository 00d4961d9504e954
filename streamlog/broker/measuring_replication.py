"""The metrics of replication and of the controller, of clusters whose brokers know each other.

    counted   changes of in-sync sets, followers' fetches, elections: one addition each, by their one owner
    asked     lags, who is there, what is out of place: read from the brokers and the cluster image at a snapshot

Counts outlive the broker, or the fetcher, they are of: one that comes back goes on counting where it stopped. What one
broker counts carries the tag `broker`; without the tag it is the sum.

Sources: SEMANTICS 2.2; Kafka ReplicaManager, AbstractFetcherManager, FetcherStats, FetcherLagStats,
QuorumControllerMetrics, ControllerMetadataMetrics, BrokerRegistrationState (KIP-1131). Ours: `IsrChangeTimeMs`.
Not implemented: raft's election latency (there is no quorum), ElectionFromEligibleLeaderReplicasPerSec (KIP-966).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from streamlog.core.cluster_image import (
    BrokerImage,
    ClusterImage,
    ControllerElected,
    PartitionImage,
    PartitionsChanged,
)
from streamlog.metrics import Histogram, Meter, Reading, Timer

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.cluster import BrokerCluster
    from streamlog.broker.turn import Turn
    from streamlog.clock import Clock

REPLICA_MANAGER: Final = "kafka.server:type=ReplicaManager,name="
TOPIC: Final = "kafka.server:type=BrokerTopicMetrics,name="
FETCHERS: Final = "kafka.server:type=ReplicaFetcherManager,name="
FETCHER: Final = "kafka.server:type=FetcherStats,name="
LAG: Final = "kafka.server:type=FetcherLagMetrics,name=ConsumerLag,clientId="
CONTROLLER: Final = "kafka.controller:type=KafkaController,name="
EVENTS: Final = "kafka.controller:type=ControllerEventManager,name="
ELECTIONS: Final = "kafka.controller:type=ControllerStats,name="
RAFT: Final = "kafka.server:type=raft-metrics"

_ISR_METERS: Final = {
    "IsrShrinksPerSec": "isr_shrinks",
    "IsrExpandsPerSec": "isr_expands",
    "FailedIsrUpdatesPerSec": "isr_failures",
}
FENCED, SHUTTING_DOWN, ACTIVE = 10, 20, 30


class BrokerCounts:
    """What one broker's turns count."""

    __slots__ = ("isr_expands", "isr_failures", "isr_shrinks")

    def __init__(self) -> None:
        self.isr_shrinks = 0
        self.isr_expands = 0
        self.isr_failures = 0


class FetcherCounts:
    """What one fetcher counts, under its lock."""

    __slots__ = ("bytes", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0


class ControllerCounts:
    """What the controller decided; counted in the metadata log's turns."""

    def __init__(self, clock: Clock) -> None:
        now_ms = clock.monotonic_ms()
        self._clock_us = clock.monotonic_us
        self.elections = Timer(now_ms)
        self.unclean_elections = Meter(now_ms)
        self.controllers = 0
        self.timeouts = 0
        self.queue_times = Histogram()
        self.processing_times = Histogram()

    def applying(self, image: ClusterImage, records: Sequence[Any], turn: Turn) -> None:
        """Records are about to change the image. Counting is re-runnable: applied records change nothing again."""
        elected = False
        for record in records:
            if isinstance(record, ControllerElected):
                self.controllers += record.controller_epoch > image.controller_epoch
            elif isinstance(record, PartitionsChanged):
                for change in record.changes:
                    topic = image.topics.get(change.name)
                    if topic is not None and change.number < len(topic.partitions):
                        elected = self._elected(topic.partitions[change.number], change.partition) or elected
        if elected:
            posted = [pending.posted_us for pending, _, _ in turn.replies if pending.posted_us]
            took_us = self._clock_us() - posted[0] if posted else 0
            self.elections.update(took_us / 1_000)

    def _elected(self, before: PartitionImage, after: PartitionImage) -> bool:
        if after.leader < 0 or after.leader == before.leader:
            return False
        self.unclean_elections.count += after.leader not in before.isr
        return True

    def finished(self, turn: Turn) -> None:
        """A turn of the metadata log is over: how long its requests waited, and how long it took."""
        for pending, _, _ in turn.replies:
            if pending.posted_us:
                self.queue_times.update(max(0.0, turn.now_ms - pending.posted_us / 1_000))
        self.processing_times.update(max(0.0, self._clock_us() / 1_000 - turn.now_ms))

    def read(self, cluster: BrokerCluster, now_ms: int) -> Iterator[Reading]:
        metadata = cluster.metadata
        image, state = metadata.image, metadata.state
        yield f"{ELECTIONS}LeaderElectionRateAndTimeMs", self.elections.read(now_ms)
        yield f"{ELECTIONS}UncleanLeaderElectionsPerSec", self.unclean_elections.read(now_ms)
        yield f"{EVENTS}EventQueueTimeMs", self.queue_times.read(now_ms)
        yield f"{EVENTS}EventQueueProcessingTimeMs", self.processing_times.read(now_ms)
        yield f"{CONTROLLER}NewActiveControllersCount", {"Value": self.controllers}
        yield f"{CONTROLLER}TimedOutBrokerHeartbeatCount", {"Value": self.timeouts}
        yield f"{CONTROLLER}LastAppliedRecordOffset", {"Value": state.log_end_offset - 1}
        yield f"{CONTROLLER}LastAppliedRecordTimestamp", {"Value": state.max_timestamp}
        for broker_id, broker in sorted(image.brokers.items()):
            yield (
                f"{CONTROLLER}BrokerRegistrationState,broker={broker_id}",
                {"Value": registration_state(broker)},
            )
        yield RAFT, {"current-leader": image.controller_id, "current-epoch": image.controller_epoch}


def registration_state(broker: BrokerImage) -> int:
    """As the controller sees a broker: 10 fenced, 20 in controlled shutdown, 30 active (KIP-1131)."""
    return FENCED if broker.fenced else SHUTTING_DOWN if broker.shutting_down else ACTIVE


class ReplicationCounts:
    """All of it, for one cluster."""

    def __init__(self, clock: Clock) -> None:
        self._begun_ms = clock.monotonic_ms()
        self._brokers: dict[int, BrokerCounts] = {}
        self._fetchers: dict[tuple[int, int, int], FetcherCounts] = {}
        self._meters: dict[str, Meter] = {}
        self.controller = ControllerCounts(clock)
        self.isr_change_times = Histogram()

    def broker(self, broker_id: int) -> BrokerCounts:
        return self._brokers.setdefault(broker_id, BrokerCounts())

    def fetcher(self, follower_id: int, source_id: int, index: int) -> FetcherCounts:
        return self._fetchers.setdefault((follower_id, source_id, index), FetcherCounts())

    def read(self, cluster: BrokerCluster, now_ms: int) -> Iterator[Reading]:
        yield from self.controller.read(cluster, now_ms)
        yield from self._read_isr(now_ms)
        fetch_rates = []
        fetchers = sorted(self._fetchers.copy().items())
        for (follower, source, index), counts in fetchers:
            tags = f"clientId=ReplicaFetcherThread-{index}-{source},broker={follower}"
            rates = self._meter(f"{FETCHER}RequestsPerSec,{tags}", counts.requests, now_ms)
            yield rates
            yield self._meter(f"{FETCHER}BytesPerSec,{tags}", counts.bytes, now_ms)
            if cluster.peers.running(follower) is not None:
                fetch_rates.append(rates[1]["OneMinuteRate"])
        for name, place in (("ReplicationBytesInPerSec", 0), ("ReplicationBytesOutPerSec", 1)):
            by_broker: dict[int, int] = {}
            for key, counts in fetchers:
                by_broker[key[place]] = by_broker.get(key[place], 0) + counts.bytes
            yield self._meter(TOPIC + name, sum(by_broker.values()), now_ms)
            for broker_id, total in sorted(by_broker.items()):
                yield self._meter(f"{TOPIC}{name},broker={broker_id}", total, now_ms)
        lag_max = 0
        for name, lag in _lags(cluster):
            lag_max = max(lag_max, lag)
            yield name, {"Value": lag}
        failed = sum([len(fetcher.failed) for fetcher in cluster.peers.fetchers()])
        yield f"{FETCHERS}MaxLag,clientId=Replica", {"Value": lag_max}
        yield f"{FETCHERS}MinFetchRate,clientId=Replica", {"Value": min(fetch_rates, default=0.0)}
        yield f"{FETCHERS}FailedPartitionsCount,clientId=Replica", {"Value": failed}

    def _read_isr(self, now_ms: int) -> Iterator[Reading]:
        brokers = sorted(self._brokers.copy().items())
        for name, field in _ISR_METERS.items():
            counts = {broker_id: getattr(broker, field) for broker_id, broker in brokers}
            yield self._meter(REPLICA_MANAGER + name, sum(counts.values()), now_ms)
            for broker_id, count in counts.items():
                yield self._meter(f"{REPLICA_MANAGER}{name},broker={broker_id}", count, now_ms)
        yield f"{REPLICA_MANAGER}IsrChangeTimeMs", self.isr_change_times.read(now_ms)

    def _meter(self, name: str, count: int, now_ms: int) -> Reading:
        """A total as a meter, which is made when it is first read."""
        meter = self._meters.get(name)
        if meter is None:
            meter = self._meters.setdefault(name, Meter(self._begun_ms))
        meter.count = count
        return name, meter.read(now_ms)


def _lags(cluster: BrokerCluster) -> Iterator[tuple[str, int]]:
    """How many records each loaded follower is behind its leader, under Kafka's name."""
    peers = cluster.peers
    running: dict[int, Broker] = {broker.id: broker for broker in peers.brokers()}
    spread = cluster.config.num_replica_fetchers > 1
    for follower_id, follower in running.items():
        heads: dict[int, str] = {}
        for (topic, number), ours in list(follower.partitions.items()):
            source = running.get(ours.leader_id)
            if ours.leadership is not None or source is None or source is follower:
                continue
            theirs = source.partitions.get((topic, number))
            if theirs is None:
                continue
            index = peers.fetcher_index((topic, number)) if spread else 0
            head = heads.get(source.id) if not index else None
            if head is None:
                head = f"{LAG}ReplicaFetcherThread-{index}-{source.id},broker={follower_id},topic="
                if not index:
                    heads[source.id] = head
            lag = theirs.state.log_end_offset - ours.state.log_end_offset
            yield f"{head}{topic},partition={number}", max(0, lag)
