"""The brokers of one cluster among each other: the network, who copies from whom, who lives, who is controller.

    leader's turn --news_for--> marks at the followers' fetchers --> their threads, or a caller that helps
    metadata log's turn --on_image--> marks at the brokers concerned --> Reconcile in their turns
    each broker's lease thread --RenewLease, JudgeLeases (the controller), TakeControl (if there is none)--> metadata log

There is one `Peers` per cluster, and none while it has a single broker that nobody stops: all of this is about others.

Invariants:
 1. `running(id)` is the broker that serves, or None; a broker that comes back is another object over the same directory.
 2. A broker that the network cuts off from `metadata` renews no lease, proposes no ISR, and learns no role.
 3. News is only ever marked: whoever misses a wake-up finds the mark at the next look.

Not implemented: a quorum of controllers. The metadata log is one log, always up while the process is; it cannot split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from streamlog.broker.controlling import JudgeLeases, RebalanceLeaders, RenewLease, TakeControl
from streamlog.broker.coordinators import Coordinators
from streamlog.broker.dispatching import Dispatcher
from streamlog.broker.fetcher import ReplicaFetcher
from streamlog.broker.helping import Helping
from streamlog.broker.measuring_replication import ReplicationCounts
from streamlog.broker.message_link import MessageLink
from streamlog.broker.network import METADATA, Network, Node
from streamlog.broker.replica_requests import AlterPartition, Reconcile
from streamlog.broker.runner import Service, Waiter
from streamlog.core.cluster_image import (
    NO_LEADER,
    BrokerFenced,
    BrokerRegistered,
    BrokerShuttingDown,
    BrokerUnfenced,
    ClusterImage,
    PartitionImage,
    PartitionsChanged,
)
from streamlog.errors import NotControllerError, StreamlogError

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.cluster import BrokerCluster
    from streamlog.broker.turn import Pending

Key = tuple[str, int]


class Peers:
    """What the brokers of a cluster know of each other."""

    def __init__(self, cluster: BrokerCluster) -> None:
        self._cluster = cluster
        self.runtime = cluster.runtime
        self._clock = cluster.runtime.clock
        self.network = Network(lambda: sorted(self.image.brokers), cluster.runtime.random)
        self.network.on_change.append(self._on_network_change)
        self._running: dict[int, Broker] = {}
        self._fetchers: dict[int, dict[int, list[ReplicaFetcher]]] = {}
        self._leases: dict[int, Service] = {}
        self._links: dict[tuple[int, Node], MessageLink] = {}
        self.helping = Helping(cluster.runtime)
        self._next_rebalance_ms = 0
        self._note: Callable[[str], None] | None = getattr(cluster.runtime, "note", None)
        self._closed = False
        self._is_open = False
        self.dispatcher = Dispatcher(cluster)
        self.coordinators = Coordinators(cluster)
        self.counts = ReplicationCounts(self._clock)
        cluster.metadata.controller_counts = self.counts.controller
        self.leaving: dict[int, tuple[Broker, bool]] = {}
        """Brokers that stop, and whether abruptly: who was interrupted there is done with by the next."""
        self.starting: dict[int, None] = {}
        self.lost_tails: dict[int, dict[int, int]] = {}
        """Brokers that crashed without what was not synced: log id -> where the log ends at the next start."""

    def __repr__(self) -> str:
        return f"<Peers {sorted(self._running)} of {sorted(self.image.brokers)}, {self.network!r}>"

    @property
    def image(self) -> ClusterImage:
        return self._cluster.metadata.image

    def trace(self, text: str) -> None:
        """A line for the simulation's trace."""
        if self._note is not None:
            self._note(text)

    def open(self) -> None:
        """Let the brokers that run know each other. Does nothing the second time."""
        if not self._is_open:
            from streamlog.broker.lifecycle import open_peers

            self._is_open = True
            open_peers(self._cluster, self)

    # -- who is there --------------------------------------------------------------------------------------------------

    def running(self, broker_id: int) -> Broker | None:
        return self._running.get(broker_id)

    def brokers(self) -> list[Broker]:
        """Those that run, by id."""
        return [broker for _, broker in sorted(self._running.items())]

    def joined(self, broker: Broker) -> None:
        """A broker serves from now on."""
        self._running[broker.id] = broker
        self._fetchers[broker.id] = {}
        # The only one, too: it is the controller, and one that is not heard of decides nothing.
        service = self._leases[broker.id] = Service(
            self.runtime, f"streamlog-lease-{broker.id}", lambda now_ms: self._keep_lease(broker, now_ms)
        )
        service.wake()

    def left(self, broker: Broker) -> list[Callable[[], object]]:
        """A broker serves no longer; returns how to wait until its threads have ended. May be called again."""
        self._running.pop(broker.id, None)
        return self._stop_threads(broker.id)

    def _stop_threads(self, broker_id: int) -> list[Callable[[], object]]:
        ends: list[Callable[[], object]] = []
        for fetcher in [f for some in self._fetchers.get(broker_id, {}).values() for f in some]:
            fetcher.stop()
            ends.append(fetcher.join)
        service = self._leases.get(broker_id)
        if service is not None:
            service.stop(0)
            ends.append(service.stop)
        return ends

    def ended(self, broker_id: int) -> None:
        """The threads of a broker that left have ended."""
        self._fetchers.pop(broker_id, None)
        self._leases.pop(broker_id, None)

    def close(self) -> None:
        """Stop all threads."""
        self._closed = True
        self.helping.stop()
        ends = [
            end for broker_id in {*self._fetchers, *self._leases} for end in self._stop_threads(broker_id)
        ]
        for end in ends:
            end()
        for link in list(self._links.values()):
            link.close()

    # -- messages ------------------------------------------------------------------------------------------------------

    def is_prompt(self, a: int, b: int) -> bool:
        other = self._running.get(b)
        return other is not None and not other.paused and self.network.is_prompt(a, b)

    def carry(self, source: int, target: int, waiter: Waiter) -> bool:
        return self.network.carry(source, target, waiter)

    def hears_metadata(self, broker_id: int) -> bool:
        return not self.network.is_cut(broker_id, METADATA)

    def tell_controller(
        self, broker_id: int, request: AlterPartition, answered: Callable[[Pending], None]
    ) -> None:
        """Send a leader's proposal; no answer comes where the network swallows it."""

        def arrive() -> None:
            try:
                self._cluster.metadata.post(request, on_done=answered)
            except StreamlogError:
                pass  # closing

        if self.hears_metadata(broker_id):
            self.send(broker_id, METADATA, arrive)

    def leader(self, topic: str, number: int) -> int:
        """Who leads a partition. Raises UnknownTopicOrPartitionError, and what is retriable."""
        return self._cluster.leader(topic, number).id

    def send(self, source: int, target: Node, deliver: Callable[[], object]) -> None:
        """Have a message of one broker's do something at another; nothing where the network swallows it."""
        if source == target:
            deliver()
            return
        link = self._links.get((source, target))
        if link is None:
            made = MessageLink(self.runtime, self.network, source, target)
            link = self._links.setdefault((source, target), made)
        link.send(deliver)

    # -- replication -----------------------------------------------------------------------------------------------------

    def fetcher(self, follower_id: int, source_id: int, key: Key) -> ReplicaFetcher | None:
        """The fetcher of one partition; made at its first use."""
        by_source = self._fetchers.get(follower_id)
        follower = self._running.get(follower_id)
        if by_source is None or follower is None or source_id in (follower_id, NO_LEADER):
            return None
        fetchers = by_source.get(source_id)
        if fetchers is None:
            count = self._cluster.config.num_replica_fetchers
            made = [ReplicaFetcher(self, follower, source_id, index) for index in range(count)]
            fetchers = by_source.setdefault(source_id, made)
        return fetchers[0] if len(fetchers) == 1 else fetchers[self.fetcher_index(key)]

    def fetcher_index(self, key: Key) -> int:
        """Which of the fetchers from one broker serves a partition."""
        return _spread(key) % self._cluster.config.num_replica_fetchers

    def news_for(self, follower_id: int, source_id: int, key: Key) -> None:
        fetcher = self.fetcher(follower_id, source_id, key)
        if fetcher is not None:
            self.helping.news(fetcher, key)

    def fetchers(self) -> list[ReplicaFetcher]:
        return [f for by in list(self._fetchers.values()) for some in list(by.values()) for f in some]

    def bytes_behind(self, follower: Broker, source_id: int, keys: list[Key]) -> int:
        """How many bytes the leader has that the follower has not, about (replica.fetch.min.bytes)."""
        source = self._running.get(source_id)
        if source is None:
            return 0
        total = 0
        for key in keys:
            ours, theirs = follower.partitions.get(key), source.partitions.get(key)
            if ours is not None and theirs is not None:
                total += max(0, theirs.state.size_bytes - ours.state.size_bytes)
        return total

    # -- the image -------------------------------------------------------------------------------------------------------

    def on_image(self, records: Iterable[Any], version: int) -> None:
        """The metadata log has news: mark what it concerns. Called by whoever ran its turn, outside of it."""
        keys: dict[Key, None] = {}
        everything = False
        for record in records:
            if isinstance(record, PartitionsChanged):
                keys.update(dict.fromkeys((change.name, change.number) for change in record.changes))
            elif isinstance(record, (BrokerRegistered, BrokerFenced, BrokerUnfenced, BrokerShuttingDown)):
                everything = True
        if not keys and not everything:
            return
        self._cluster.leaders_version = version
        for broker in self.brokers():
            loaded = broker.partitions
            concerned = list(loaded) if everything else [key for key in keys if key in loaded]
            if concerned:
                self.mark_dirty(broker, concerned, version)
        for name, number in keys:
            topic = self.image.topics.get(name)
            if topic is not None:
                self._tell_new_replicas(topic.partitions[number], (name, number))

    def _tell_new_replicas(self, partition: PartitionImage, key: Key) -> None:
        """Replicas that nobody has touched yet begin to copy."""
        for broker_id in partition.replicas:
            broker = self._running.get(broker_id)
            if broker is not None and broker_id != partition.leader and key not in broker.partitions:
                self.news_for(broker_id, partition.leader, key)

    def mark_dirty(self, broker: Broker, keys: list[Key], version: int | None = None) -> None:
        """Have a broker compare its roles with the image, as soon as it hears of it."""
        if version is None:
            version = self._cluster.metadata.state.log_end_offset
        if broker.replication is not None:
            broker.replication.mark(keys, version)
        if self.hears_metadata(broker.id):
            broker.offer(Reconcile())

    def catch_up(self, broker: Broker) -> None:
        """A broker hears the metadata log again, or runs again: whatever it missed is looked at now."""
        self.mark_dirty(broker, list(broker.partitions))
        for fetcher in self.fetchers():
            fetcher.retry_now()
        lease = self._leases.get(broker.id)
        if lease is not None:
            lease.wake()

    def _on_network_change(self) -> None:
        for broker in self.brokers():
            if self.hears_metadata(broker.id):
                self.catch_up(broker)

    # -- leases ----------------------------------------------------------------------------------------------------------

    def _keep_lease(self, broker: Broker, now_ms: int) -> int | None:
        """A broker's lease thread: renew, and do the controller's watch if that is us, or if nobody has it."""
        if self._closed or self._running.get(broker.id) is not broker:
            return None
        if not broker.paused and not self.network.loses(broker.id, METADATA):
            self.keep_lease(broker, now_ms)
        config = self._cluster.config
        return now_ms + min(
            config.broker_heartbeat_interval_ms, max(1, config.broker_session_timeout_ms // 3)
        )

    def keep_lease(self, broker: Broker, now_ms: int) -> None:
        metadata = self._cluster.metadata
        try:
            metadata.call(RenewLease(broker.id))
            if metadata.controlling.leases.may_take_control(broker.id, self.image.controller_id, now_ms):
                metadata.call(TakeControl(broker.id))
            if self.image.controller_id == broker.id:
                metadata.call(JudgeLeases(broker.id, self.image.controller_epoch))
                self._rebalance(now_ms)
        except NotControllerError:
            pass  # another was faster
        except StreamlogError:
            return  # closing, or the disk is full: the next renewal tries again

    def _rebalance(self, now_ms: int) -> None:
        """auto.leader.rebalance.enable: give leaderships back, every leader.imbalance.check.interval.seconds."""
        config = self._cluster.config
        interval_ms = config.leader_imbalance_check_interval_seconds * 1000
        if not self._next_rebalance_ms or self._next_rebalance_ms > now_ms + interval_ms:
            self._next_rebalance_ms = now_ms + interval_ms
        if config.auto_leader_rebalance_enable and now_ms >= self._next_rebalance_ms:
            self._next_rebalance_ms = now_ms + interval_ms
            self._cluster.metadata.call(RebalanceLeaders(config.leader_imbalance_per_broker_percentage))


def _spread(key: Key) -> int:
    """Kafka's spreading of partitions over fetchers: abs(31 * hash(topic) + partition), with a hash that is the same
    in every process."""
    from zlib import crc32

    return 31 * crc32(key[0].encode()) + key[1]
