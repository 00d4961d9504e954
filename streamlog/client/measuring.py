"""The clients' metrics, under Kafka's names: of producers and consumers of this process, while they are open.

    per batch, per fetch, per commit: plain additions on the client's own object
    at a snapshot: a collector per client turns them into totals, rates, averages; closing it forgets them

Averages and maxima are of the last 1024 batches, fetches or commits; rates of the last 30 to 60 seconds.

Invariant: nothing here is on the way of a single record.

Sources: SEMANTICS 1.2, 1.3, 2.2; Kafka SenderMetricsRegistry, FetchMetricsRegistry,
ConsumerCoordinatorMetrics.
Own: `consumer-error-total` and `-rate` (Kafka has none).
Not implemented: record-queue-time, metadata-age, throttle times, poll-idle-ratio, network I/O (there is no
network in between).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from streamlog.errors import StreamlogError
from streamlog.metrics import RESERVOIR_VALUES_MAX, MetricsRegistry, Reading, WindowedRate, full_name

if TYPE_CHECKING:
    from streamlog.client.accumulator import Accumulator
    from streamlog.client.assignment import ConsumerAssignment
    from streamlog.client.delivery import OpenBatch

PRODUCER: Final = "kafka.producer:type=producer-metrics"
PRODUCER_TOPIC: Final = "kafka.producer:type=producer-topic-metrics"
FETCHING: Final = "kafka.consumer:type=consumer-fetch-manager-metrics"
COORDINATION: Final = "kafka.consumer:type=consumer-coordinator-metrics"
CONSUMER: Final = "kafka.consumer:type=consumer-metrics"

_HOUR_SECONDS: Final = 3_600
_UNKNOWN_OFFSET: Final = -1


class TopicTraffic:
    """What one client sent to or read from one topic."""

    __slots__ = ("bytes", "errors", "records", "retries")

    def __init__(self) -> None:
        self.records = 0
        self.bytes = 0
        self.errors = 0
        self.retries = 0  # records sent again


class _Rates:
    """The rates of one client, by name, made when they are first read."""

    def __init__(self, now_ms: int) -> None:
        self._begun_ms = now_ms
        self._rates: dict[str, WindowedRate] = {}

    def read(self, name: str, total: float, now_ms: int) -> float:
        rate = self._rates.get(name)
        if rate is None:
            rate = self._rates.setdefault(name, WindowedRate(self._begun_ms))
        return rate.read(total, now_ms)


class ProducerTraffic:
    """What a producer sent, and what became of it. Written under the producer's lock, retries under the dispatcher's."""

    def __init__(self, registry: MetricsRegistry, producer: Accumulator, now_ms: int) -> None:
        self.client_id = f"producer-{registry.next_number('producer')}"
        self._registry = registry
        self._producer = producer
        self._rates = _Rates(now_ms)
        self._topics: dict[str, TopicTraffic] = {}
        self.requests = 0  # raised by the producer
        # Of each batch whose fate is known: records, bytes gathered, bytes sent, microseconds.
        self._batches: deque[tuple[int, int, int, int]] = deque(maxlen=RESERVOIR_VALUES_MAX)
        registry.collect(self.read)

    def settled(self, batch: OpenBatch) -> None:
        """The fate of a batch is known."""
        traffic = self._topic(batch.topic)
        records = batch.record_count
        pending = batch.pending
        if pending is not None:
            traffic.records += records
            traffic.bytes += batch.sent_bytes
            self._batches.append((records, batch.size_bytes, batch.sent_bytes, pending.took_us))
        if batch.error is not None:
            traffic.errors += records

    def retried(self, topic: str, records: int) -> None:
        """Records go to a leader again. Called by the dispatcher, under its lock."""
        self._topic(topic).retries += records

    def _topic(self, name: str) -> TopicTraffic:
        traffic = self._topics.get(name)
        return self._topics.setdefault(name, TopicTraffic()) if traffic is None else traffic

    def close(self) -> None:
        self._registry.forget(self.read)

    def read(self, now_ms: int) -> Iterator[Reading]:
        topics = self._topics.copy()
        retries = sum([traffic.retries for traffic in topics.values()])
        records = sum([traffic.records for traffic in topics.values()])
        errors = sum([traffic.errors for traffic in topics.values()])
        batches = list(self._batches)
        latencies = [us / 1_000 for _, _, _, us in batches]
        sizes = [sent for _, _, sent, _ in batches]
        gathered = sum([size for _, size, _, _ in batches])
        batch_records = sum([count for count, _, _, _ in batches])
        producer = self._producer
        buffered = producer._buffered_bytes
        requests = {id(batch.pending) for batch in tuple(producer._in_flight)}
        rate = self._rates.read
        yield (
            full_name(PRODUCER, {"client-id": self.client_id}),
            {
                "record-send-total": records,
                "record-send-rate": rate("record-send", records, now_ms),
                "record-error-total": errors,
                "record-error-rate": rate("record-error", errors, now_ms),
                "record-retry-total": retries,
                "record-retry-rate": rate("record-retry", retries, now_ms),
                "batch-size-avg": _mean(sizes),
                "batch-size-max": max(sizes, default=0),
                "record-size-avg": gathered / batch_records if batch_records else 0.0,
                "records-per-request-avg": records / self.requests if self.requests else 0.0,
                "compression-rate-avg": sum(sizes) / gathered if gathered else 0.0,
                "request-total": self.requests,
                "request-rate": rate("request", self.requests, now_ms),
                "request-latency-avg": _mean(latencies),
                "request-latency-max": max(latencies, default=0.0),
                "requests-in-flight": len(requests),
                "buffer-total-bytes": producer.config.buffer_memory,
                "buffer-available-bytes": max(0, producer.config.buffer_memory - buffered),
            },
        )
        for topic, traffic in topics.items():
            yield (
                full_name(PRODUCER_TOPIC, {"client-id": self.client_id, "topic": topic}),
                {
                    "record-send-total": traffic.records,
                    "record-send-rate": rate(f"record-send {topic}", traffic.records, now_ms),
                    "byte-total": traffic.bytes,
                    "byte-rate": rate(f"byte {topic}", traffic.bytes, now_ms),
                    "record-error-total": traffic.errors,
                    "record-error-rate": rate(f"record-error {topic}", traffic.errors, now_ms),
                    "record-retry-total": traffic.retries,
                    "record-retry-rate": rate(f"record-retry {topic}", traffic.retries, now_ms),
                },
            )


class MemberCounts:
    """What one consumer did in its group. Written by its membership and its commits."""

    __slots__ = (
        "commit_ms",
        "commits",
        "failed_rebalances",
        "heartbeats",
        "joins",
        "last_heartbeat_ms",
        "last_rebalance_ms",
        "rebalances",
        "syncs",
    )

    def __init__(self) -> None:
        self.commits = 0
        self.commit_ms: deque[float] = deque(maxlen=RESERVOIR_VALUES_MAX)
        self.heartbeats = 0
        self.joins = 0
        self.syncs = 0
        self.rebalances = 0
        self.failed_rebalances = 0
        self.last_heartbeat_ms: int | None = None
        self.last_rebalance_ms: int | None = None


class ConsumerTraffic:
    """What a consumer read. Written by the thread that polls."""

    def __init__(self, registry: MetricsRegistry, consumer: ConsumerAssignment, now_ms: int) -> None:
        group_id = consumer.config.group_id
        number = registry.next_number(f"consumer {group_id or ''}")
        self.client_id = f"consumer-{group_id or 'null'}-{number}"  # as Kafka's clients name themselves
        self.errors = 0
        self.member = MemberCounts()
        self.last_poll_ms: int | None = None
        self._registry = registry
        self._consumer = consumer
        self._rates = _Rates(now_ms)
        self._topics: dict[str, TopicTraffic] = {}
        self._fetches = 0
        self._recent: deque[tuple[int, int, float]] = deque(maxlen=RESERVOIR_VALUES_MAX)
        registry.collect(self.read)

    def fetched(self, topic: str, records: int, size_bytes: int, ms: float) -> None:
        """One fetch brought so much."""
        traffic = self._topics.get(topic)
        if traffic is None:
            traffic = self._topics[topic] = TopicTraffic()
        traffic.records += records
        traffic.bytes += size_bytes
        self._fetches += 1
        self._recent.append((records, size_bytes, ms))

    def close(self) -> None:
        self._registry.forget(self.read)

    def read(self, now_ms: int) -> Iterator[Reading]:
        tags = {"client-id": self.client_id}
        lags = dict(self._lags())
        yield from self._read_fetches(tags, lags, now_ms)
        for (topic, partition), (lag, lead) in lags.items():
            yield (
                full_name(FETCHING, {**tags, "topic": topic, "partition": str(partition)}),
                {"records-lag": lag, "records-lead": lead},
            )
        idle_ms = None if self.last_poll_ms is None else now_ms - self.last_poll_ms
        yield (
            full_name(CONSUMER, tags),
            {
                "consumer-error-total": self.errors,
                "consumer-error-rate": self._rates.read("consumer-error", self.errors, now_ms),
                "last-poll-seconds-ago": -1 if idle_ms is None else idle_ms // 1_000,
            },
        )
        if self._consumer.config.group_id is not None:
            yield full_name(COORDINATION, tags), self._coordination(now_ms)

    def _lags(self) -> Iterable[tuple[tuple[str, int], tuple[int, int]]]:
        """(topic, partition) -> how far the position is behind the end, and ahead of the start."""
        consumer = self._consumer
        for tp, assigned in consumer._assigned.copy().items():
            if assigned.position == _UNKNOWN_OFFSET:
                continue
            try:
                end = consumer._offsets.end_offset(assigned.partition)
                start = consumer._offsets.beginning_offset(assigned.partition)
            except StreamlogError:
                continue  # the topic was deleted
            yield tp, (max(0, end - assigned.position), max(0, assigned.position - start))

    def _read_fetches(
        self, tags: dict[str, str], lags: dict[tuple[str, int], tuple[int, int]], now_ms: int
    ) -> Iterator[Reading]:
        topics = self._topics.copy()
        records = sum([traffic.records for traffic in topics.values()])
        size = sum([traffic.bytes for traffic in topics.values()])
        recent = list(self._recent)
        times = [ms for _, _, ms in recent]
        sizes = [size_bytes for _, size_bytes, _ in recent]
        rate = self._rates.read
        yield (
            full_name(FETCHING, tags),
            {
                "records-consumed-total": records,
                "records-consumed-rate": rate("records-consumed", records, now_ms),
                "bytes-consumed-total": size,
                "bytes-consumed-rate": rate("bytes-consumed", size, now_ms),
                "fetch-total": self._fetches,
                "fetch-rate": rate("fetch", self._fetches, now_ms),
                "fetch-latency-avg": _mean(times),
                "fetch-latency-max": max(times, default=0.0),
                "fetch-size-avg": _mean(sizes),
                "fetch-size-max": max(sizes, default=0),
                "records-per-request-avg": _mean([count for count, _, _ in recent]),
                "records-lag-max": max([lag for lag, _ in lags.values()], default=0),
                "records-lead-min": min([lead for _, lead in lags.values()], default=0),
            },
        )
        for topic, traffic in topics.items():
            yield (
                full_name(FETCHING, {**tags, "topic": topic}),
                {
                    "records-consumed-total": traffic.records,
                    "records-consumed-rate": rate(f"records-consumed {topic}", traffic.records, now_ms),
                    "bytes-consumed-total": traffic.bytes,
                    "bytes-consumed-rate": rate(f"bytes-consumed {topic}", traffic.bytes, now_ms),
                },
            )

    def _coordination(self, now_ms: int) -> dict[str, float]:
        member, rate = self.member, self._rates.read
        commit_ms = list(member.commit_ms)
        return {
            "assigned-partitions": len(self._consumer._assigned),
            "commit-total": member.commits,
            "commit-rate": rate("commit", member.commits, now_ms),
            "commit-latency-avg": _mean(commit_ms),
            "commit-latency-max": max(commit_ms, default=0.0),
            "heartbeat-total": member.heartbeats,
            "heartbeat-rate": rate("heartbeat", member.heartbeats, now_ms),
            "last-heartbeat-seconds-ago": _seconds_ago(member.last_heartbeat_ms, now_ms),
            "join-total": member.joins,
            "join-rate": rate("join", member.joins, now_ms),
            "sync-total": member.syncs,
            "sync-rate": rate("sync", member.syncs, now_ms),
            "rebalance-total": member.rebalances,
            "rebalance-rate-per-hour": rate("rebalance", member.rebalances, now_ms) * _HOUR_SECONDS,
            "failed-rebalance-total": member.failed_rebalances,
            "failed-rebalance-rate-per-hour": rate("failed", member.failed_rebalances, now_ms)
            * _HOUR_SECONDS,
            "last-rebalance-seconds-ago": _seconds_ago(member.last_rebalance_ms, now_ms),
        }


def _mean(values: list[float] | list[int]) -> float:
    return sum(values) / len(values) if values else 0.0


def _seconds_ago(then_ms: int | None, now_ms: int) -> int:
    """-1 = never, as Kafka says it."""
    return -1 if then_ms is None else (now_ms - then_ms) // 1_000
