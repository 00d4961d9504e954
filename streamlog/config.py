"""What can be set, one table per role: producer and consumer here, cluster and topic in cluster_config.py.

Each line is `name: Annotated[type, rule, "doc"] = default`; options.py turns it into parsing,
errors and documentation.
Kafka's dotted name is the name with dots, except where `DOTTED` says otherwise.

1. Defaults are Kafka 4's. Deviations, each with its reason in its doc: auto_offset_reset, batch_size,
   partitioner, auto_create_topics, group_initial_rebalance_delay_ms,
   replica_high_watermark_checkpoint_interval_ms.
2. Every queue, cache and retry that can grow has its bound here.
3. A config that `from_options` returned is consistent: the rules between options are in `_checked`.

Sources: Kafka's ProducerConfig, ConsumerConfig, TopicConfig, ServerConfigs; SEMANTICS 1.1 to 1.4 and 2.1;
DESIGN section 2.
Not implemented: interceptors, quotas, tiered storage, KIP-848 group settings; `segment.*`
(retention works on batches).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from typing_extensions import Self

from streamlog.cluster_config import ClusterConfig, TopicConfig
from streamlog.errors import ConfigError
from streamlog.option_rules import (
    INT32_MAX,
    Acks,
    Choice,
    Flag,
    Maybe,
    SerdeRule,
    Text,
    Whole,
    Words,
    closest,
)
from streamlog.options import Option, Role

__all__ = ["ClusterConfig", "ConsumerConfig", "Option", "ProducerConfig", "TopicConfig", "describe"]

_MS = Whole(0, INT32_MAX)
_MS_LONG = Whole(0)
_COUNT = Whole(1, INT32_MAX)
_BYTES = Whole(0, INT32_MAX)

_CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
_NEEDS_CRAMJAM = {"snappy": "cramjam", "lz4": "cramjam"}
_NO_SERVER = (
    "there is no server to bootstrap from: streamlog.open(path) is the cluster, and"
    ' streamlog.connect("kafka://host:9092") reaches a real Kafka'
)

# Options of ported client code that mean nothing inside one process.
_CLIENT_WITHOUT_EFFECT = (
    *(
        "ssl.",
        "sasl.",
        "socket.",
        "security.",
        "metrics.",
        "metric.",
        "reconnect.backoff.",
        "broker.address.",
    ),
    *(
        "client.id",
        "client.dns.lookup",
        "connections.max.idle.ms",
        "metadata.max.age.ms",
        "metadata.recovery.strategy",
    ),
    *(
        "metadata.recovery.rebootstrap.trigger.ms",
        "receive.buffer.bytes",
        "send.buffer.bytes",
        "interceptor.classes",
    ),
    *(
        "socket.connection.setup.timeout.ms",
        "enable.metrics.push",
        "allow.auto.create.topics",
        "group.protocol",
    ),
    *(
        "log.connection.close",
        "statistics.interval.ms",
        "debug",
        "api.version.request",
        "api.version",
        "error.cb",
    ),
    *(
        "stats.cb",
        "log.level",
        "queued.min.messages",
        "queued.max.messages.kbytes",
        "exclude.internal.topics",
    ),
    *(
        "partitioner.adaptive.partitioning.enable",
        "partitioner.availability.timeout.ms",
        "metadata.max.idle.ms",
    ),
)


class ProducerConfig(Role, frozen=True, kw_only=True):
    """Options of `cluster.producer(...)`."""

    ROLE: ClassVar[str] = "producer"
    DOTTED: ClassVar[Mapping[str, str]] = {
        "compression": "compression.type",
        "compression_level": "compression.zstd.level",
        "partitioner": "partitioner.class",
    }
    ALIASES: ClassVar[Mapping[str, tuple[str, int]]] = {
        "compression.codec": ("compression", 1),
        "compression.level": ("compression_level", 1),
        "queue.buffering.max.ms": ("linger_ms", 1),
        "message.timeout.ms": ("delivery_timeout_ms", 1),
        "message.send.max.retries": ("retries", 1),
        "request.required.acks": ("acks", 1),
        "max.in.flight": ("max_in_flight_requests_per_connection", 1),
    }
    HABITS: ClassVar[Mapping[str, str]] = {
        "bootstrap_servers": _NO_SERVER,
        "metadata_broker_list": _NO_SERVER,
        "on_delivery": "each record has its own: send(...).add_done_callback(...)",
    }
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = _CLIENT_WITHOUT_EFFECT

    acks: Annotated[
        int,
        Acks(),
        'Who must have a record before it counts as sent: "all" in-sync replicas, 1 the leader, 0 nobody.',
    ] = -1
    linger_ms: Annotated[int, _MS, "How long an open batch waits for more records before it is sent."] = 5
    batch_size: Annotated[
        int,
        _BYTES,
        "Bytes at which a batch is sent at once. Kafka's default is 16384; LMDB likes larger values.",
    ] = 131_072
    buffer_memory: Annotated[int, _MS_LONG, "Bytes of unsent records before `send` blocks."] = 33_554_432
    max_block_ms: Annotated[
        int, _MS_LONG, "How long `send` blocks on a full buffer before BufferExhaustedError."
    ] = 60_000
    max_request_size: Annotated[int, _BYTES, "Largest record, in bytes before compression."] = 1_048_576
    compression: Annotated[
        str,
        Choice(_CODECS, needs=_NEEDS_CRAMJAM),
        "Codec of whole batches. snappy and lz4 need the extra `kafka`.",
    ] = "none"
    compression_level: Annotated[
        int | None, Maybe(Whole(-131_072, 22)), "The codec's level; None is the codec's own default."
    ] = None
    partitioner: Annotated[
        str | Callable[..., int],
        Choice(
            ("crc32", "murmur2", "round_robin", "sticky"),
            habits={
                "consistent": "crc32",
                "consistent_random": "crc32",
                "murmur2_random": "murmur2",
                "default": "murmur2",
                "roundrobin": "round_robin",
                "random": "sticky",
            },
            or_callable=True,
        ),
        'How a record without partition finds one. "crc32" places keys as librdkafka, "murmur2" as Java'
        " does; both keep records without key together for a batch.",
    ] = "crc32"
    partitioner_ignore_keys: Annotated[bool, Flag(), "Place records with a key as if they had none."] = False
    key_serializer: Annotated[
        Any, SerdeRule("serialize"), "Turns keys into bytes; None takes bytes only."
    ] = None
    value_serializer: Annotated[
        Any, SerdeRule("serialize"), "Turns values into bytes; None takes bytes only."
    ] = None
    transactional_id: Annotated[
        str | None,
        Maybe(Text()),
        "Turns transactions on; a newer producer with the same id fences the older one.",
    ] = None
    transaction_timeout_ms: Annotated[
        int, Whole(1, INT32_MAX), "After this the coordinator aborts an open transaction by itself."
    ] = 60_000
    enable_idempotence: Annotated[
        bool,
        Flag(),
        "A retry never writes twice and never reorders. Gives way, if not set, to acks or retries.",
    ] = True
    retries: Annotated[
        int, _BYTES, "How often a retriable failure is tried again, within delivery_timeout_ms."
    ] = INT32_MAX
    retry_backoff_ms: Annotated[int, _MS_LONG, "Wait before the first retry; doubles with each."] = 100
    retry_backoff_max_ms: Annotated[int, _MS_LONG, "Longest wait before a retry."] = 1_000
    delivery_timeout_ms: Annotated[
        int, _MS, "From `send` to success or failure; at least linger_ms + request_timeout_ms."
    ] = 120_000
    request_timeout_ms: Annotated[int, _MS, "How long a broker may take over one request."] = 30_000
    max_in_flight_requests_per_connection: Annotated[
        int, _COUNT, "Requests to one broker without an answer yet; at most 5 with idempotence."
    ] = 5

    def _checked(self, given: frozenset[str]) -> Self:
        config = self
        if self.max_in_flight_requests_per_connection > 5 and self.enable_idempotence:
            raise self._conflict(
                "max_in_flight_requests_per_connection", "1 to 5", "or set enable_idempotence=False"
            )
        # Kafka ProducerConfig.postProcessAndValidateIdempotenceConfigs: a default gives way, a wish does not.
        obstacle = "acks" if self.acks != -1 else "retries" if self.retries == 0 else None
        if self.enable_idempotence and obstacle:
            allowed = '"all"' if obstacle == "acks" else "1 or more"
            if self.transactional_id is not None:
                raise self._conflict(
                    obstacle, allowed, "transactions need idempotence: leave out transactional_id"
                )
            if "enable_idempotence" in given:
                raise self._conflict(obstacle, allowed, "or leave out enable_idempotence=True")
            config = msgspec.structs.replace(config, enable_idempotence=False)
        if self.transactional_id is not None and not self.enable_idempotence:
            raise self._conflict("enable_idempotence", "True", "a transactional_id needs it")
        least_ms = min(self.linger_ms + self.request_timeout_ms, INT32_MAX)
        if self.delivery_timeout_ms < least_ms:
            if "delivery_timeout_ms" in given:
                raise self._conflict(
                    "delivery_timeout_ms",
                    f">= linger_ms + request_timeout_ms = {least_ms}",
                    "raise it or lower request_timeout_ms",
                )
            config = msgspec.structs.replace(config, delivery_timeout_ms=least_ms)
        return config


class ConsumerConfig(Role, frozen=True, kw_only=True):
    """Options of `cluster.consumer(...)`, `cluster.consumer_group(...)` and `group.consumer(...)`."""

    ROLE: ClassVar[str] = "consumer"
    ALIASES: ClassVar[Mapping[str, tuple[str, int]]] = {
        "fetch.wait.max.ms": ("fetch_max_wait_ms", 1),
        "fetch.message.max.bytes": ("max_partition_fetch_bytes", 1),
    }
    HABITS: ClassVar[Mapping[str, str]] = {
        "bootstrap_servers": _NO_SERVER,
        "metadata_broker_list": _NO_SERVER,
        "from_beginning": 'use auto_offset_reset="earliest"',
        "topics": "topics are given to cluster.consumer_group(name, topics), partitions to consumer.assign([...])",
        "consumer_timeout_ms": "use poll(timeout=...), or stop_at_end=True to end at the end of the log",
        "enable_partition_eof": "use stop_at_end=True",
        "enable_auto_offset_store": "iterate: the position never passes the record in the loop",
        "on_assign": "rebalance listeners are arguments of group.consumer and subscribe: on_assigned",
        "on_revoke": "rebalance listeners are arguments of group.consumer and subscribe: on_revoked",
    }
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = _CLIENT_WITHOUT_EFFECT

    group_id: Annotated[
        str | None, Maybe(Text()), "The group to join and commit for; None can only assign."
    ] = None
    group_instance_id: Annotated[
        str | None, Maybe(Text()), "Static membership: a restart within the session keeps its partitions."
    ] = None
    auto_offset_reset: Annotated[
        str,
        Choice(
            ("earliest", "latest", "none"),
            habits={
                "beginning": "earliest",
                "smallest": "earliest",
                "end": "latest",
                "largest": "latest",
                "": "none",
            },
            pattern=r"by_duration:P(?=\d|T\d)(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?",
            pattern_shown='"by_duration:PT1H"',
        ),
        "Where to start with no committed offset, or one that is gone: the log's start, its end, an error,"
        ' or so long ago. Kafka\'s default is "latest"; in process nobody expects to miss what was written.',
    ] = "earliest"
    enable_auto_commit: Annotated[bool, Flag(), "Commit from inside poll and at close."] = True
    auto_commit_interval_ms: Annotated[int, _MS, "How often auto-commit commits."] = 5_000
    max_poll_records: Annotated[int, _COUNT, "Most records one poll returns."] = 500
    max_poll_interval_ms: Annotated[
        int, Whole(1, INT32_MAX), "Longest time between polls before the member leaves."
    ] = 300_000
    session_timeout_ms: Annotated[
        int, Whole(1, INT32_MAX), "Silence after which the coordinator drops the member."
    ] = 45_000
    heartbeat_interval_ms: Annotated[int, Whole(1, INT32_MAX), "How often the member says it lives."] = 3_000
    fetch_min_bytes: Annotated[int, _BYTES, "A fetch waits until so many bytes are there."] = 1
    fetch_max_bytes: Annotated[int, _BYTES, "Most bytes of one fetch; a larger first batch still comes."] = (
        52_428_800
    )
    fetch_max_wait_ms: Annotated[int, _MS, "How long a fetch waits for fetch_min_bytes."] = 500
    max_partition_fetch_bytes: Annotated[int, _BYTES, "Most bytes of one partition in one fetch."] = 1_048_576
    check_crcs: Annotated[bool, Flag(), "Check each batch's CRC-32C before it is decoded."] = True
    isolation_level: Annotated[
        str,
        Choice(
            ("read_uncommitted", "read_committed"), habits={"0": "read_uncommitted", "1": "read_committed"}
        ),
        "read_committed hides records of open and aborted transactions.",
    ] = "read_uncommitted"
    partition_assignment_strategy: Annotated[
        tuple[str, ...],
        Words(
            Choice(
                ("range", "roundrobin", "sticky", "cooperative-sticky"), habits={"round_robin": "roundrobin"}
            ),
            long_names={
                "org.apache.kafka.clients.consumer.RangeAssignor": "range",
                "org.apache.kafka.clients.consumer.RoundRobinAssignor": "roundrobin",
                "org.apache.kafka.clients.consumer.StickyAssignor": "sticky",
                "org.apache.kafka.clients.consumer.CooperativeStickyAssignor": "cooperative-sticky",
            },
        ),
        "Assignors the member can follow, best first; the group takes one that all its members have.",
    ] = ("range", "cooperative-sticky")
    key_deserializer: Annotated[
        Any, SerdeRule("deserialize"), "Turns bytes into keys; None leaves bytes."
    ] = None
    value_deserializer: Annotated[
        Any, SerdeRule("deserialize"), "Turns bytes into values; None leaves bytes."
    ] = None
    stop_at_end: Annotated[
        bool, Flag(), "Iteration ends at the end offsets each partition had when it was first assigned."
    ] = False
    client_rack: Annotated[str | None, Maybe(Text()), "Read from a replica in the same rack (KIP-392)."] = (
        None
    )
    default_api_timeout_ms: Annotated[int, _MS, "Bound of blocking calls that take no timeout."] = 60_000
    request_timeout_ms: Annotated[int, _MS, "How long a broker may take over one request."] = 30_000
    retry_backoff_ms: Annotated[int, _MS_LONG, "Wait before the first retry; doubles with each."] = 100
    retry_backoff_max_ms: Annotated[int, _MS_LONG, "Longest wait before a retry."] = 1_000

    @property
    def auto_offset_reset_ms(self) -> int | None:
        """How far back `by_duration:` reaches, in milliseconds; None for the other resets."""
        if not self.auto_offset_reset.startswith("by_duration:"):
            return None
        import re

        total_ms = 0.0
        for number, unit in re.findall(r"(\d+(?:\.\d+)?)([DHMS])", self.auto_offset_reset.partition(":")[2]):
            total_ms += float(number) * {"D": 86_400_000, "H": 3_600_000, "M": 60_000, "S": 1_000}[unit]
        return int(total_ms)

    def _checked(self, given: frozenset[str]) -> Self:
        if self.heartbeat_interval_ms >= self.session_timeout_ms:
            if "heartbeat_interval_ms" not in given:  # a third, as Kafka's documentation advises
                return msgspec.structs.replace(
                    self, heartbeat_interval_ms=max(1, self.session_timeout_ms // 3)
                )
            raise self._conflict(
                "heartbeat_interval_ms",
                f"< session_timeout_ms = {self.session_timeout_ms}",
                "a third of it is usual",
            )
        return self


_ROLES: Mapping[str, type[Role]] = {
    role.ROLE: role for role in (ClusterConfig, TopicConfig, ProducerConfig, ConsumerConfig)
}


def describe(role: str) -> list[Option]:
    """Every option of a role ("cluster", "topic", "producer", "consumer"), in the table's order."""
    if role not in _ROLES:
        near = closest(role, _ROLES)
        raise ConfigError(
            f"no role {role!r}; there are {', '.join(_ROLES)}"
            + (f"; did you mean {near!r}?" if near else ""),
            option="role",
            value=role,
            allowed=", ".join(_ROLES),
            suggestion=near,
        )
    return _ROLES[role].options()
