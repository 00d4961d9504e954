"""The brokers' metrics, under Kafka's names: what is counted while it happens, and what is looked up when
asked.

    counted   requests and their times (a turn's replies), traffic of topics, flushes, rebalances: one
              addition each
    asked     partitions, replicas, controller, groups, purgatories, disk I/O: read from their owners at a
              snapshot

So ten thousand partitions cost nothing until somebody looks, and what is gone (a topic) has no metric left
behind.

Invariants:
 1. A turn counts its replies once, after it is applied; nothing here can make a turn fail or write.
 2. Asking takes no turn and never creates: no topic, no coordinator that was not needed.

Sources: SEMANTICS 2.2; Kafka RequestMetrics, BrokerTopicMetrics, ReplicaManager, UnifiedLog, Partition,
ControllerMetadataMetrics, GroupCoordinatorMetrics, LinuxIoMetricsCollector (KIP-551).
Not implemented: parts of a request's time but the one a Produce waits for followers (in process they are one).
What replication and the controller count is `measuring_replication`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from streamlog.broker.api import GroupRequest, Produce, TransactionRequest
from streamlog.broker.measuring_transactions import read_transactions
from streamlog.core.cluster_image import CONSUMER_OFFSETS_TOPIC, PartitionImage, TopicImage
from streamlog.errors import ClosedError, RecordTooLargeError, StreamlogError
from streamlog.metrics import Histogram, Meter, Reading, WindowedRate, full_name
from streamlog.storage import log

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.cluster import BrokerCluster
    from streamlog.broker.turn import Pending, Turn
    from streamlog.clock import Clock
    from streamlog.metrics import MetricsRegistry

REQUEST: Final = "kafka.network:type=RequestMetrics,name="
TOPIC: Final = "kafka.server:type=BrokerTopicMetrics,name="
REPLICA_MANAGER: Final = "kafka.server:type=ReplicaManager,name="
CONTROLLER: Final = "kafka.controller:type=KafkaController,name="
LOG: Final = "kafka.log:type=Log,name="
PARTITION: Final = "kafka.cluster:type=Partition,name="
PURGATORY: Final = "kafka.server:type=DelayedOperationPurgatory,name=PurgatorySize,delayedOperation="
GROUPS: Final = "kafka.server:type=group-coordinator-metrics"
GROUP_METADATA: Final = "kafka.coordinator.group:type=GroupMetadataManager,name="
FLUSHES: Final = "kafka.log:type=LogFlushStats,name=LogFlushRateAndTimeMs"
DISK: Final = "kafka.server:type=KafkaServer,name=linux-"

PROCESS_IO: Final = "/proc/self/io"
_DISK_METRICS: Final = {
    "read_bytes": "disk-read-bytes",
    "write_bytes": "disk-write-bytes",
    "rchar": "disk-rchar",
    "wchar": "disk-wchar",
    "syscr": "disk-syscr",
    "syscw": "disk-syscw",
    "cancelled_write_bytes": "disk-cancelled-write-bytes",
}
_KAFKA_NAMES: Final = {
    # Our request (by the name of its class) -> Kafka's. What is not here is no request of Kafka's.
    "Produce": "Produce",
    "DeleteRecords": "DeleteRecords",
    "CreateTopic": "CreateTopics",
    "DeleteTopic": "DeleteTopics",
    "CreatePartitions": "CreatePartitions",
    "AlterTopicConfig": "IncrementalAlterConfigs",
    "JoinGroup": "JoinGroup",
    "SyncGroup": "SyncGroup",
    "Heartbeat": "Heartbeat",
    "LeaveGroup": "LeaveGroup",
    "OffsetCommit": "OffsetCommit",
    "OffsetDelete": "OffsetDelete",
    "DeleteGroup": "DeleteGroups",
    "InitProducerId": "InitProducerId",
    "AddPartitions": "AddPartitionsToTxn",
    "TxnOffsetCommit": "TxnOffsetCommit",
    "EndTxn": "EndTxn",
    "WriteMarkers": "WriteTxnMarkers",
    "FollowerFetch": "FetchFollower",
    "AlterPartition": "AlterPartition",
    "AlterBrokerConfig": "IncrementalAlterConfigs",
    "ElectLeaders": "ElectLeaders",
    "Reassign": "AlterPartitionReassignments",
    "RenewLease": "BrokerHeartbeat",
    "RegisterBroker": "BrokerRegistration",
}


class RequestMeters:
    """One kind of request: how many, how long, with which errors."""

    __slots__ = ("clock_us", "errors", "requests", "times")

    def __init__(self, clock: Clock) -> None:
        self.clock_us: Callable[[], int] = clock.monotonic_us
        self.requests = Meter(clock.monotonic_ms())
        self.times = Histogram()
        self.errors: dict[str, Meter] = {"NONE": Meter(clock.monotonic_ms())}

    def took(self, us: int) -> None:
        self.times.update(us / 1_000)

    def failed(self, error: BaseException | None, count: int = 1) -> None:
        """Count answers by their error; None is Kafka's NONE."""
        name = "NONE" if error is None else error_name(type(error))
        meter = self.errors.get(name)
        if meter is None:
            meter = self.errors.setdefault(name, Meter(self.clock_us() // 1_000))
        meter.count += count


class RequestTimes:
    """All kinds of requests of one cluster; several owners of turns count here."""

    def __init__(self, clock: Clock) -> None:
        self._clock_us = clock.monotonic_us
        self._by_type: dict[type, RequestMeters | None] = {}
        self.by_name = {name: RequestMeters(clock) for name in (*_KAFKA_NAMES.values(), "FetchConsumer")}
        self.fetches = self.by_name["FetchConsumer"]
        # Kafka splits times by who fetches, errors not.
        self.by_name["FetchFollower"].errors = self.fetches.errors
        self.remote = Histogram()
        self.produced = self.by_name["Produce"]
        self.written = self.produced.errors["NONE"]

    def count(self, replies: Sequence[tuple[Pending, Any, BaseException | None]]) -> None:
        """Count the replies of a finished turn."""
        now_us = self._clock_us()
        for pending, value, error in replies:
            request: Any = pending.request
            kind = type(request)
            if kind is Produce:
                pending.took_us = took_us = now_us - pending.posted_us
                self.produced.times.update(took_us / 1_000)
                continue  # its errors are counted with the traffic, partition by partition
            if kind is GroupRequest or kind is TransactionRequest:
                kind = type(request.event)
            try:
                meters = self._by_type[kind]
            except KeyError:
                meters = self._by_type[kind] = self.by_name.get(_KAFKA_NAMES.get(kind.__name__, ""))
            if meters is None:
                continue
            pending.took_us = took_us = now_us - pending.posted_us
            meters.times.update(took_us / 1_000)
            if type(value) is list:
                by_partition: Any = [answer.error for answer in value]
            else:
                by_partition = (getattr(value, "errors", None) or {}).values()
            for one in by_partition or (error,):
                meters.failed(one)

    def count_parked(self, pending: Pending, value: Any, error: BaseException | None, parked_us: int) -> None:
        """Count a request that was answered when its records were replicated."""
        self.count([(pending, value, error)])
        if type(pending.request) is Produce:
            self.remote.update((self._clock_us() - parked_us) / 1_000)
            for produced in value or ():
                self.produced.failed(produced.error)

    def read(self, now_ms: int) -> Iterator[Reading]:
        yield f"{REQUEST}RemoteTimeMs,request=Produce", self.remote.read(now_ms)
        for name, meters in self.by_name.items():
            meters.requests.count = meters.times.count  # each request is timed
            yield f"{REQUEST}RequestsPerSec,request={name}", meters.requests.read(now_ms)
            yield f"{REQUEST}TotalTimeMs,request={name}", meters.times.read(now_ms)
            if name == "FetchFollower":
                continue
            api = "Fetch" if name == "FetchConsumer" else name
            for error, meter in sorted(meters.errors.copy().items()):
                yield f"{REQUEST}ErrorsPerSec,request={api},error={error}", meter.read(now_ms)


class GroupCounters:
    """What happened to groups; counted at the end of the turn it happened in."""

    def __init__(self, now_ms: int) -> None:
        self.commits = 0
        self.expirations = 0
        self.deletions = 0
        self.rebalances = 0
        self._rates = {
            name: WindowedRate(now_ms)
            for name in ("offset-commit", "offset-expiration", "offset-deletion", "group-completed-rebalance")
        }

    def count(self, turn: Turn) -> None:
        for pending, value, error in turn.replies:
            self.count_reply(pending, value, error)
            event: Any = getattr(pending.request, "event", None)
            kind = type(event).__name__
            if kind == "ExpireOffsets":
                self.expirations += _tombstones(turn, event, pending.request)
            elif kind == "EndTxn" and error is None and event.is_commit:
                # Not again of one that was sent again: that stages nothing.
                staged = {hosted.group_id for hosted in turn.staged_machines}
                self.commits += sum(
                    [len(one.offsets) for group_id, one in event.offsets if group_id in staged]
                )
        for hosted in turn.staged_machines:
            view = hosted.view
            if view.state.value == "Stable" and view.generation != hosted.stable_generation:
                hosted.stable_generation = view.generation
                self.rebalances += 1

    def count_reply(self, pending: Pending, value: Any, error: BaseException | None) -> None:
        """Count an answer: of a turn, or one that waited until its record was replicated."""
        event: Any = getattr(pending.request, "event", None)
        kind = type(event).__name__
        if error is not None:
            return
        if kind in ("OffsetCommit", "TxnOffsetCommit"):
            self.commits += sum([failure is None for failure in value.errors.values()])
        elif kind == "OffsetDelete":
            self.deletions += sum([failure is None for failure in value.errors.values()])

    def read(self, now_ms: int) -> Iterator[Reading]:
        totals = (self.commits, self.expirations, self.deletions, self.rebalances)
        for (name, rate), total in zip(self._rates.items(), totals, strict=True):
            yield GROUPS, {f"{name}-count": total, f"{name}-rate": rate.read(total, now_ms)}


def _tombstones(turn: Turn, event: object, request: Any) -> int:
    """How many committed offsets a decision of this group forgets."""
    for hosted, decision in turn.staged_machines.items():
        if hosted.group_id == request.group_id:
            # Key versions 0 and 1 are offsets, 2 is the group itself.
            return sum([value is None and key[1] < 2 for key, value in decision.records])
    return 0


def error_name(kind: type[BaseException]) -> str:
    """Kafka's name of an error: UnknownTopicOrPartitionError -> UNKNOWN_TOPIC_OR_PARTITION."""
    known = _ERROR_NAMES.get(kind)
    if known is None:
        if issubclass(kind, RecordTooLargeError):
            known = "MESSAGE_TOO_LARGE"
        else:
            stem = kind.__name__.removesuffix("Error")
            known = "".join("_" + c if c.isupper() else c.upper() for c in stem).lstrip("_")
        _ERROR_NAMES[kind] = known
    return known


_ERROR_NAMES: dict[type[BaseException], str] = {}


# -- asked at a snapshot -----------------------------------------------------------------------------------


COUNTED: Final = (
    *("PartitionCount", "LeaderCount", "OfflineReplicaCount", "ReassigningPartitions"),
    *("UnderReplicatedPartitions", "UnderMinIsrPartitionCount", "AtMinIsrPartitionCount"),
)


def read_partitions(cluster: BrokerCluster, now_ms: int) -> Iterator[Reading]:
    """Every partition of the cluster image, loaded or not, and what the brokers sum up of them."""
    image = cluster.metadata.image
    counts = {broker_id: dict.fromkeys(COUNTED, 0) for broker_id in sorted(image.brokers)}
    snapshots: dict[int, tuple[Broker, Any]] = {}
    try:
        for broker in cluster.brokers:
            try:
                snapshots[broker.id] = broker, broker.environment.snapshot()
            except ClosedError:
                continue  # it has just stopped
        for topic in list(cluster.topics.values()):
            isr_min = int(topic.config.get("min.insync.replicas", cluster.config.min_insync_replicas))
            for number, partition in enumerate(topic.partitions):
                facts = _replica_facts(partition, isr_min)
                _count_partition(counts, snapshots, partition, facts)
                tags = full_name("", {"topic": topic.name, "partition": str(number)})[1:]
                for name, fact in facts.items():
                    yield f"{PARTITION}{name},{tags}", {"Value": fact}
                host = _host(partition, snapshots)
                if host is None:
                    continue  # of a partition whose brokers are all down nobody knows
                yield from _log_facts(host[0], topic, number, partition, tags, host[1])
    finally:
        for _, snapshot in snapshots.values():
            snapshot.close()
    for name in COUNTED:
        yield REPLICA_MANAGER + name, {"Value": sum([of_one[name] for of_one in counts.values()])}
        if len(counts) > 1:
            for broker_id, of_one in counts.items():
                yield f"{REPLICA_MANAGER}{name},broker={broker_id}", {"Value": of_one[name]}


def _host(partition: Any, snapshots: dict[int, tuple[Broker, Any]]) -> tuple[Broker, Any] | None:
    """A broker that is up and knows the partition best, with its snapshot."""
    hosts = (partition.leader, *partition.isr, *partition.replicas)
    return next((snapshots[broker_id] for broker_id in hosts if broker_id in snapshots), None)


def _count_partition(
    counts: dict[int, dict[str, int]],
    running: Mapping[int, object],
    partition: PartitionImage,
    facts: dict[str, int],
) -> None:
    """Replicas count where they are, everything else at the leader, as in Kafka."""
    for broker_id in partition.replicas:
        counts[broker_id]["PartitionCount" if broker_id in running else "OfflineReplicaCount"] += 1
    if partition.leader >= 0:
        led = counts[partition.leader]
        led["LeaderCount"] += 1
        led["UnderReplicatedPartitions"] += facts["UnderReplicated"]
        led["UnderMinIsrPartitionCount"] += facts["UnderMinIsr"]
        led["AtMinIsrPartitionCount"] += facts["AtMinIsr"]
        led["ReassigningPartitions"] += partition.is_reassigning


def _replica_facts(image: PartitionImage, isr_min: int) -> dict[str, int]:
    isr, replicas = len(image.isr), len(image.replicas)
    effective_min = min(isr_min, replicas)
    is_led = image.leader >= 0  # nobody tells of a partition without a leader: OfflinePartitionsCount does
    return {
        "InSyncReplicasCount": isr if is_led else 0,
        "ReplicasCount": replicas if is_led else 0,
        "UnderReplicated": int(is_led and isr < replicas - len(image.adding)),
        "UnderMinIsr": int(is_led and isr < effective_min),
        "AtMinIsr": int(is_led and isr == effective_min),
    }


def _log_facts(
    broker: Broker, topic: TopicImage, number: int, image: PartitionImage, tags: str, snapshot: Any
) -> Iterator[Reading]:
    partition = broker.partitions.get((topic.name, number))
    state: Any = None if partition is None else partition.view
    if state is None:
        state = log.load_checkpoint(snapshot, image.log_id)
    size = start = end = unstable = 0
    if state is not None:
        size, start, end = state.size_bytes, state.log_start_offset, state.log_end_offset
        unstable = state.high_watermark - getattr(state, "last_stable_offset", state.high_watermark)
    yield f"{LOG}Size,{tags}", {"Value": size}
    yield f"{LOG}NumLogSegments,{tags}", {"Value": 1}
    yield f"{LOG}LogStartOffset,{tags}", {"Value": start}
    yield f"{LOG}LogEndOffset,{tags}", {"Value": end}
    yield f"{PARTITION}LastStableOffsetLag,{tags}", {"Value": unstable}


def read_controller(cluster: BrokerCluster, now_ms: int) -> Iterator[Reading]:
    image = cluster.metadata.image
    partitions = [partition for topic in list(image.topics.values()) for partition in topic.partitions]
    active = not cluster.closed and any(
        broker.id == image.controller_id and not broker.paused for broker in cluster.brokers
    )
    fenced = sum([broker.fenced for broker in list(image.brokers.values())])
    for name, value in (
        ("ActiveControllerCount", int(active)),
        ("ActiveBrokerCount", len(image.brokers) - fenced),
        ("FencedBrokerCount", fenced),
        ("GlobalTopicCount", len(image.topics)),
        ("GlobalPartitionCount", len(partitions)),
        ("OfflinePartitionsCount", sum([partition.leader < 0 for partition in partitions])),
        (
            "PreferredReplicaImbalanceCount",
            sum([partition.leader != partition.replicas[0] for partition in partitions]),
        ),
    ):
        yield CONTROLLER + name, {"Value": value}


def read_groups(cluster: BrokerCluster, now_ms: int) -> Iterator[Reading]:
    hosted = []
    parked = loaded = 0
    if CONSUMER_OFFSETS_TOPIC in cluster.topics:
        for broker in cluster.brokers:
            try:
                groups = broker.coordinator.groups()
            except StreamlogError:
                continue  # it has just stopped
            hosted += [group for group in groups if not group.machine.is_vacant]
            parked += broker.coordinator.parked_count
            loaded += broker.coordinator.loaded_count
    states = [group.view.state.value for group in hosted]
    yield f"{GROUPS},protocol=classic", {"group-count": len(hosted)}
    yield f"{GROUPS},state=active", {"num-partitions": loaded}
    yield f"{GROUP_METADATA}NumGroups", {"Value": len(hosted)}
    for state in ("PreparingRebalance", "CompletingRebalance", "Stable", "Dead", "Empty"):
        yield f"{GROUP_METADATA}NumGroups{state}", {"Value": states.count(state)}
    yield (
        f"{GROUP_METADATA}NumOffsets",
        {"Value": sum([len(group.machine.all_committed()) for group in hosted])},
    )
    yield f"{PURGATORY}Rebalance", {"Value": parked}


def read_purgatories(cluster: BrokerCluster, now_ms: int) -> Iterator[Reading]:
    # Alone in its ISR a leader acknowledges in the turn that writes: no Produce is ever parked.
    replicated = [broker.replication for broker in cluster.brokers if broker.replication is not None]
    yield f"{PURGATORY}Produce", {"Value": sum([each.acknowledgements.count for each in replicated])}
    yield f"{PURGATORY}DeleteRecords", {"Value": sum([each.deletes.count for each in replicated])}
    yield f"{PURGATORY}Fetch", {"Value": len(cluster.waiting_fetches)}


def read_replication(cluster: BrokerCluster, now_ms: int) -> Iterator[Reading]:
    """Where brokers know each other; one alone has nothing to tell."""
    if cluster.is_replicated:
        yield from cluster.peers.counts.read(cluster, now_ms)


def read_disk(cluster: BrokerCluster, now_ms: int) -> Iterator[Reading]:
    """Linux only, as in Kafka: elsewhere these metrics are not there."""
    try:
        with open(PROCESS_IO, encoding="ascii") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        field, _, number = line.partition(": ")
        if field in _DISK_METRICS:
            yield DISK + _DISK_METRICS[field], {"Value": int(number)}


def measure_broker(
    cluster: BrokerCluster, broker: Broker, times: RequestTimes, groups: GroupCounters
) -> None:
    """Have one broker's requests, groups and flushes counted with those of the others."""
    broker.request_times = times
    broker.group_counters = groups
    broker.flushing.times = cluster.metrics.timer(FLUSHES)
    if not broker.flushing.is_needed:
        broker.commit_times = broker.flushing.times


def measure(cluster: BrokerCluster) -> tuple[RequestTimes, GroupCounters]:
    """Have a cluster measured. Called once, when it is open."""
    registry: MetricsRegistry = cluster.metrics
    times = RequestTimes(cluster.runtime.clock)
    cluster.metadata.request_times = times
    groups = GroupCounters(cluster.runtime.clock.monotonic_ms())
    for broker in cluster.brokers:
        measure_broker(cluster, broker, times, groups)
    registry.collect(times.read)
    registry.collect(groups.read)
    for reader in (
        read_partitions,
        read_controller,
        read_groups,
        read_transactions,
        read_purgatories,
        read_replication,
        read_disk,
    ):
        registry.collect(_asking(cluster, reader))
    return times, groups


def _asking(
    cluster: BrokerCluster, reader: Callable[[BrokerCluster, int], Iterator[Reading]]
) -> Callable[[int], list[Reading]]:
    def ask(now_ms: int) -> list[Reading]:
        try:
            return list(reader(cluster, now_ms))
        except ClosedError:
            return []  # closed by another thread meanwhile

    return ask
