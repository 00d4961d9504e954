"""SEMANTICS 2.2: groups, lags, errors and transactions, step by step of known traffic; simulated, so exact."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import streamlog
from streamlog import Cluster, TopicPartition
from streamlog.broker.measuring_transactions import LATE_MS
from streamlog.broker.transaction_completion import Completions
from streamlog.broker.transaction_coordinator import TransactionCoordinator
from streamlog.errors import OffsetOutOfRangeError, ProducerFencedError, ResourceNotFoundError
from streamlog.testing import Simulation

GROUPS = "kafka.server:type=group-coordinator-metrics"
GROUP_STATES = "kafka.coordinator.group:type=GroupMetadataManager,name="
REQUESTS = "kafka.network:type=RequestMetrics,name=RequestsPerSec,request="
ERRORS = "kafka.network:type=RequestMetrics,name=ErrorsPerSec,request="
REPLICAS = "kafka.server:type=ReplicaManager,name="
IDS = "kafka.server:type=transaction-coordinator-metrics,state="
MARKERS = "kafka.coordinator.transaction:type=TransactionMarkerChannelManager,name="
UNSTABLE = "kafka.cluster:type=Partition,name=LastStableOffsetLag,partition=0,topic="
FETCHING = "kafka.consumer:type=consumer-fetch-manager-metrics,client-id="
PRODUCER = "kafka.producer:type=producer-metrics,client-id="
TOPICS = "kafka.server:type=BrokerTopicMetrics,name="
CONSUMER = "kafka.consumer:type=consumer-metrics,client-id=consumer-null-1"
IN, OUT = TopicPartition("in", 0), TopicPartition("out", 0)
COMMITTED, UNCOMMITTED = "consumer-null-1", "consumer-null-2"
BROKERS = pytest.mark.parametrize("brokers", [1, 3], ids=["alone", "replicated"])


@pytest.fixture
def simulation() -> Simulation:
    return Simulation(seed=7)


@pytest.fixture
def cluster(simulation: Simulation, brokers: int) -> Iterator[Cluster]:
    with streamlog.open(":memory:", brokers=brokers, sync="off", runtime=simulation) as cluster:
        assert isinstance(cluster, Cluster)
        for topic in ("in", "out"):
            cluster.create_topic(topic, partitions=1, replication_factor=brokers)
        yield cluster


# Ten records are in `in`. A transaction reads four of them, writes three to `out`, and commits its offset; the next one
# writes two and is aborted; one more is open when another producer takes the id, which aborts it. Read by two consumers
# that stand at 0: `read_committed`, and not. Markers take an offset each.
TABLE: list[tuple[str, str | None, int, int, int, int, int]] = [
    # metric, attribute                                        idle  open  committed  aborted  fenced
    (IDS + "Empty", "transactional-id-count", 1, 0, 0, 0, 1),
    (IDS + "Ongoing", "transactional-id-count", 0, 1, 0, 0, 0),
    (IDS + "PrepareCommit", "transactional-id-count", 0, 0, 0, 0, 0),
    (IDS + "PrepareAbort", "transactional-id-count", 0, 0, 0, 0, 0),
    (IDS + "CompleteCommit", "transactional-id-count", 0, 0, 1, 0, 0),
    (IDS + "CompleteAbort", "transactional-id-count", 0, 0, 0, 1, 0),
    (UNSTABLE + "out", None, 0, 3, 0, 0, 0),
    (UNSTABLE + "in", None, 0, 0, 0, 0, 0),
    (FETCHING + COMMITTED + ",topic=out,partition=0", "records-lag", 0, 0, 4, 7, 9),
    (FETCHING + COMMITTED, "records-lag-max", 0, 0, 4, 7, 9),
    (FETCHING + UNCOMMITTED + ",topic=out,partition=0", "records-lag", 0, 3, 4, 7, 9),
    (FETCHING + UNCOMMITTED, "records-lag-max", 0, 3, 4, 7, 9),
    (ERRORS + "InitProducerId,error=NONE", None, 1, 1, 1, 1, 2),
    (REQUESTS + "EndTxn", None, 0, 0, 1, 2, 3),
    (ERRORS + "EndTxn,error=NONE", None, 0, 0, 1, 2, 2),
    (GROUPS, "offset-commit-count", 0, 0, 1, 1, 1),
    (GROUP_STATES + "NumOffsets", None, 0, 0, 1, 1, 1),
    (MARKERS + "PendingMarkersCount", None, 0, 0, 0, 0, 0),
    (MARKERS + "UnknownDestinationQueueSize", None, 0, 0, 0, 0, 0),
    (REPLICAS + "PartitionsWithLateTransactionsCount", None, 0, 0, 0, 0, 0),
]


def value(cluster: Cluster, name: str, attribute: str | None) -> float:
    arguments = (name,) if attribute is None else (name, attribute)
    return cluster.metrics().value(*arguments)


def steps(cluster: Cluster, simulation: Simulation) -> Iterator[str]:
    """The traffic; a look at the metrics comes after each step."""
    for isolation in ("read_committed", "read_uncommitted"):
        reader = cluster.consumer(isolation_level=isolation)
        reader.assign([OUT])
        reader.seek(OUT, 0)
    producer = cluster.producer(transactional_id="t", linger_ms=0)
    with cluster.producer(enable_idempotence=False) as feeder:
        feeder.send_many("in", [(b"k", b"v")] * 10)
    group = cluster.consumer_group("g", ["in"], enable_auto_commit=False)
    with group.consumer() as consumer:
        records = consumer.poll(1, max_records=4)
        assert len(records) == 4
        yield "idle"
        with producer.transaction(consumer):
            for _ in range(3):
                producer.send("out", b"x").result()
            yield "open"
        simulation.sleep(1)
        yield "committed"
        assert group.lag() == {IN: 6} and group.offsets() == {IN: 4}
    transaction = producer.transaction()
    with transaction:
        for _ in range(2):
            producer.send("out", b"y").result()
        transaction.abort()
    simulation.sleep(1)
    yield "aborted"
    with pytest.raises(ProducerFencedError), producer.transaction():
        producer.send("out", b"z").result()
        cluster.producer(transactional_id="t")
    simulation.sleep(1)
    yield "fenced"


@BROKERS
def test_transactions_step_by_step(cluster: Cluster, simulation: Simulation, brokers: int) -> None:
    found: dict[str, list[float]] = {}
    for _ in steps(cluster, simulation):
        for name, attribute, *_ in TABLE:
            found.setdefault(f"{name} {attribute}", []).append(value(cluster, name, attribute))
    wrong = {
        f"{name} {attribute}": (found[f"{name} {attribute}"], wanted)
        for name, attribute, *wanted in TABLE
        if found[f"{name} {attribute}"] != wanted
    }
    assert not wrong


@BROKERS
def test_offsets_and_rebalances_are_counted_wherever_they_are_replicated(
    cluster: Cluster, simulation: Simulation, brokers: int
) -> None:
    """Where an answer waits for followers, too."""
    group = cluster.consumer_group("g", ["in"], enable_auto_commit=False)
    with group.consumer() as consumer:
        consumer.poll(0.5)
        consumer.commit({IN: 0})
        consumer.commit({IN: 0})
    group.reset_offsets({OUT: 0})
    metrics = cluster.metrics()
    assert metrics.value(GROUPS, "offset-commit-count") == 3
    assert metrics.value(GROUPS, "group-completed-rebalance-count") == 1
    assert metrics.value(GROUP_STATES + "NumOffsets") == 2
    elapsed_s = simulation.clock.monotonic_ms() / 1_000
    assert metrics.value(GROUPS, "offset-commit-rate") == pytest.approx(3 / (30 + elapsed_s), rel=0.01)
    assert metrics.value(REQUESTS + "OffsetCommit") == 3
    group.delete()
    metrics = cluster.metrics()
    assert (
        metrics.value(GROUPS, "offset-deletion-count")
        == metrics.value(GROUPS, "offset-expiration-count")
        == 0
    )
    assert metrics.value(GROUP_STATES + "NumOffsets") == 0


@pytest.mark.parametrize("brokers", [3])
def test_a_transaction_over_several_brokers_asks_for_every_part(
    cluster: Cluster, simulation: Simulation, brokers: int
) -> None:
    before = cluster.metrics()
    group = cluster.consumer_group("g", ["in"], enable_auto_commit=False)
    producer = cluster.producer(transactional_id="t")
    with cluster.producer() as feeder, group.consumer() as consumer:
        feeder.send("in", b"x").result()
        while not consumer.poll(1):
            pass
        with producer.transaction(consumer):
            producer.send("out", b"x").result()
    simulation.sleep(1)
    metrics = cluster.metrics()
    for request, count in (
        *(("InitProducerId", 1), ("AddPartitionsToTxn", 2), ("TxnOffsetCommit", 1), ("EndTxn", 1)),
        ("OffsetCommit", 0),
    ):
        assert metrics.value(REQUESTS + request) - before.value(REQUESTS + request) == count, request
    written = metrics.value(ERRORS + "WriteTxnMarkers,error=NONE")
    assert written == 2  # in `out`, and where the group lives
    assert metrics.value(GROUPS, "offset-commit-count") == 1


@pytest.mark.parametrize("brokers", [3])
def test_markers_that_are_not_written_yet_are_pending(
    cluster: Cluster, simulation: Simulation, brokers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = cluster.producer(transactional_id="t", max_block_ms=2_000)
    with monkeypatch.context() as patch:
        patch.setattr(Completions, "_ask", lambda *_: None)  # lost on the way
        with producer.transaction():
            producer.send("out", b"x").result()
        metrics = cluster.metrics()
        assert metrics.value(IDS + "PrepareCommit", "transactional-id-count") == 1
        assert metrics.value(MARKERS + "PendingMarkersCount") == 1
        assert metrics.value(MARKERS + "UnknownDestinationQueueSize") == 0
        assert metrics.value(UNSTABLE + "out") == 1
    simulation.sleep(2)
    metrics = cluster.metrics()
    assert metrics.value(IDS + "CompleteCommit", "transactional-id-count") == 1
    assert metrics.value(MARKERS + "PendingMarkersCount") == 0
    assert metrics.value(UNSTABLE + "out") == 0


@pytest.mark.parametrize("brokers", [3])
def test_a_marker_for_a_partition_without_a_leader_has_no_destination(
    cluster: Cluster, simulation: Simulation, brokers: int
) -> None:
    cluster.create_topic("lone", partitions=1, replication_factor=1)
    producer = cluster.producer(transactional_id="t", max_block_ms=2_000)
    leader = cluster.topic("lone")[0].leader
    assert leader is not None
    transaction = producer.transaction()
    with transaction:
        producer.send("lone", b"x").result()
        cluster.brokers[leader].crash()
        simulation.sleep(15)
        assert cluster.topic("lone")[0].leader is None
        transaction.commit()
    assert cluster.metrics().value(MARKERS + "UnknownDestinationQueueSize") == 1
    cluster.brokers[leader].start()
    simulation.sleep(5)
    assert cluster.metrics().value(MARKERS + "UnknownDestinationQueueSize") == 0
    assert cluster.metrics().value(IDS + "CompleteCommit", "transactional-id-count") == 1


@BROKERS
def test_every_replica_knows_its_producers(cluster: Cluster, simulation: Simulation, brokers: int) -> None:
    assert cluster.metrics().value(REPLICAS + "ProducerIdCount") == 0
    for number in range(2):
        with cluster.producer(transactional_id=f"t{number}") as producer, producer.transaction():
            producer.send("out", b"x")
    with cluster.producer(enable_idempotence=False) as producer:
        producer.send("in", b"nobody's")
    simulation.sleep(1)
    metrics = cluster.metrics()
    assert metrics.value(REPLICAS + "ProducerIdCount") == 2 * brokers
    if brokers > 1:
        assert [metrics.value(f"{REPLICAS}ProducerIdCount,broker={n}") for n in range(3)] == [2, 2, 2]


@BROKERS
def test_a_transaction_nobody_ends_is_late(
    cluster: Cluster, simulation: Simulation, brokers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = REPLICAS + "PartitionsWithLateTransactionsCount"
    producer = cluster.producer(transactional_id="t")
    transaction = producer.transaction()
    with transaction:
        producer.send("out", b"x").result()
        # A coordinator that forgets to abort it.
        monkeypatch.setattr(TransactionCoordinator, "on_tick", lambda *_: None)
        monkeypatch.setattr(TransactionCoordinator, "next_deadline_ms", lambda *_: None)
        allowed_s = (cluster._backend.config.transaction_max_timeout_ms + LATE_MS) / 1_000
        simulation.sleep(allowed_s - 10)
        assert cluster.metrics().value(late) == 0
        simulation.sleep(20)
        assert cluster.metrics().value(late) == 1  # at its leader alone
        monkeypatch.undo()
        transaction.abort()
    simulation.sleep(1)
    assert cluster.metrics().value(late) == 0


@BROKERS
def test_errors_of_producers_and_consumers(cluster: Cluster, simulation: Simulation, brokers: int) -> None:
    cluster.create_topic("keyed", partitions=1, config={"cleanup.policy": "compact"})
    with cluster.producer(linger_ms=60_000) as producer:
        [name] = [name for name in cluster.metrics() if name.startswith(PRODUCER)]
        begun_ms = simulation.clock.monotonic_ms()
        futures = [producer.send("keyed", b"no key") for _ in range(3)]
        futures.append(producer.send("in", b"good"))
        errors = [future.exception(10) for future in futures]
        assert [error is None for error in errors] == [False, False, False, True]
        reader = cluster.consumer(auto_offset_reset="none")
        reader.assign([IN])
        reader.seek(IN, 99)
        with pytest.raises(OffsetOutOfRangeError):
            reader.poll(0)
        metrics = cluster.metrics()
        assert metrics.value(name, "record-error-total") == 3
        assert metrics.value(name, "record-send-total") == 4
        elapsed_s = (simulation.clock.monotonic_ms() - begun_ms) / 1_000
        assert metrics.value(name, "record-error-rate") == pytest.approx(3 / (30 + elapsed_s), rel=0.02)
        of_topic = name.replace("producer-metrics", "producer-topic-metrics")
        assert metrics.value(of_topic + ",topic=keyed", "record-error-total") == 3
        assert metrics.value(of_topic + ",topic=in", "record-error-total") == 0
        assert metrics.value(TOPICS + "FailedProduceRequestsPerSec", topic="keyed") == 1
        assert metrics.value(CONSUMER, "consumer-error-total") == 1
        assert metrics.value(CONSUMER, "consumer-error-rate") == pytest.approx(1 / 30, rel=0.1)
        assert metrics.value(ERRORS + "Fetch,error=OFFSET_OUT_OF_RANGE") == 1
        assert metrics.value(TOPICS + "FailedFetchRequestsPerSec") == 0


@pytest.mark.parametrize("brokers", [1])
def test_groups_of_the_new_protocol_do_not_exist(cluster: Cluster, brokers: int) -> None:
    for attribute in ("consumer-group-count", "consumer-group-rebalance-count"):
        with pytest.raises(ResourceNotFoundError):
            cluster.metrics().value(GROUPS, attribute)
