"""The cluster's and the topics' options: the two tables of config.py that brokers read.

1. A topic's effective value is its own override, else the cluster's default for topics, else Kafka's
   default. `TopicConfig.with_overrides` is the only place that knows this, `TOPIC_DEFAULTS` the only table
   of the pairs.
2. Bounds of queues and disks that Kafka leaves to the operating system are here, named `_max`.
3. -1 means "no limit" exactly where Kafka says so.

Sources: Kafka's TopicConfig, ServerConfigs, ReplicationConfigs, GroupCoordinatorConfig, TransactionLogConfig;
SEMANTICS 2.1.
Not implemented: tiered storage, quotas, listeners, `segment.*` and file options (accepted without effect).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from typing_extensions import Self

from streamlog.option_rules import INT32_MAX, INT64_MAX, Choice, Flag, Maybe, Real, Text, Whole, Words
from streamlog.options import Role

_MS = Whole(0, INT32_MAX)
_MS_LONG = Whole(0)
_MS_OR_NEVER = Whole(-1)
_COUNT = Whole(1, INT32_MAX)
_FACTOR = Whole(1, 32_767)
_BYTES = Whole(0, INT32_MAX)
_NEEDS_CRAMJAM = {"snappy": "cramjam", "lz4": "cramjam"}

_CLEANUP_POLICY = Words(Choice(("delete", "compact")), or_empty=True)
_TIMESTAMP_TYPE = Choice(
    ("CreateTime", "LogAppendTime"),
    habits={
        "createtime": "CreateTime",
        "create_time": "CreateTime",
        "logappendtime": "LogAppendTime",
        "log_append_time": "LogAppendTime",
    },
)
_COMPRESSION = Choice(
    ("producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"),
    habits={"none": "uncompressed"},
    needs=_NEEDS_CRAMJAM,
)

# Topic option -> the cluster option that is its default.
TOPIC_DEFAULTS: Mapping[str, str] = {
    "cleanup_policy": "log_cleanup_policy",
    "retention_ms": "log_retention_ms",
    "retention_bytes": "log_retention_bytes",
    "delete_retention_ms": "log_cleaner_delete_retention_ms",
    "min_compaction_lag_ms": "log_cleaner_min_compaction_lag_ms",
    "max_compaction_lag_ms": "log_cleaner_max_compaction_lag_ms",
    "min_cleanable_dirty_ratio": "log_cleaner_min_cleanable_ratio",
    "max_message_bytes": "message_max_bytes",
    "message_timestamp_type": "log_message_timestamp_type",
    "message_timestamp_before_max_ms": "log_message_timestamp_before_max_ms",
    "message_timestamp_after_max_ms": "log_message_timestamp_after_max_ms",
    "min_insync_replicas": "min_insync_replicas",
    "unclean_leader_election_enable": "unclean_leader_election_enable",
    "compression_type": "compression_type",
    "flush_ms": "log_flush_interval_ms",
    "flush_messages": "log_flush_interval_messages",
}


class ClusterConfig(Role, frozen=True, kw_only=True):
    """Options of `streamlog.open(..., config={...})`: those of Kafka's brokers, and the store's bounds."""

    ROLE: ClassVar[str] = "cluster"
    DOTTED: ClassVar[Mapping[str, str]] = {"auto_create_topics": "auto.create.topics.enable"}
    ALIASES: ClassVar[Mapping[str, tuple[str, int]]] = {
        "log.retention.minutes": ("log_retention_ms", 60_000),
        "log.retention.hours": ("log_retention_ms", 3_600_000),
        "auto.create.topics": ("auto_create_topics", 1),
    }
    ARGUMENTS: ClassVar[tuple[str, ...]] = ("brokers", "sync", "mode", "runtime")
    HABITS: ClassVar[Mapping[str, str]] = {
        "bootstrap_servers": 'this is the cluster; streamlog.connect("kafka://host:9092") reaches a Kafka',
        "sync": "sync is a keyword of streamlog.open, chosen at each opening and not stored",
        "brokers": "brokers is a keyword of streamlog.open",
        "broker_id": "brokers are numbered from 0 by streamlog",
        "zookeeper_connect": "there is no ZooKeeper: the metadata log does its work",
        "retention_ms": 'topics have it; the default for all topics is "log.retention.ms"',
        "retention_bytes": 'topics have it; the default for all topics is "log.retention.bytes"',
        "cleanup_policy": 'topics have it; the default for all topics is "log.cleanup.policy"',
        "max_message_bytes": 'topics have it; the default for all topics is "message.max.bytes"',
    }
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = (
        *(
            "ssl.",
            "sasl.",
            "socket.",
            "security.",
            "metrics.",
            "metric.",
            "listener.",
            "quota.",
            "remote.log.",
        ),
        *(
            "log.segment.",
            "log.index.",
            "log.roll.",
            "log.dir",
            "log.dirs",
            "log.local.",
            "log.preallocate",
            "node.id",
        ),
        *(
            "listeners",
            "advertised.listeners",
            "control.plane.listener.name",
            "inter.broker.listener.name",
        ),
        *(
            "process.roles",
            "controller.",
            "num.network.threads",
            "num.io.threads",
            "background.threads",
            "metadata.log.",
        ),
        *(
            "num.recovery.threads.per.data.dir",
            "log.cleaner.threads",
            "log.cleaner.dedupe.buffer.size",
            "connections.",
        ),
        *(
            "log.cleaner.io.",
            "log.flush.scheduler.interval.ms",
            "log.flush.offset.checkpoint.interval.ms",
            "max.connections",
        ),
        *(
            "log.flush.start.offset.checkpoint.interval.ms",
            "replica.socket.timeout.ms",
        ),
        *(
            "replica.socket.receive.buffer.bytes",
            "offsets.topic.segment.bytes",
            "offsets.topic.compression.codec",
        ),
        *(
            "transaction.state.log.segment.bytes",
            "offsets.load.buffer.size",
            "queued.max.requests",
            "request.timeout.ms",
        ),
        *("log.segment.delete.delay.ms", "authorizer.class.name", "super.users"),
    )

    # Topics.
    num_partitions: Annotated[int, _COUNT, "Partitions of a topic created without a number."] = 1
    default_replication_factor: Annotated[int, _FACTOR, "Replicas of a topic created without a factor."] = 1
    auto_create_topics: Annotated[
        bool,
        Flag(),
        "Create a topic at its first use. Kafka's default is on; a typo should not make a topic.",
    ] = False
    delete_topic_enable: Annotated[bool, Flag(), "Allow deleting topics."] = True

    # Defaults of topic options.
    log_cleanup_policy: Annotated[tuple[str, ...], _CLEANUP_POLICY, "Default of cleanup.policy."] = (
        "delete",
    )
    log_retention_ms: Annotated[int, _MS_OR_NEVER, "Default of retention.ms; -1 keeps forever."] = 604_800_000
    log_retention_bytes: Annotated[int, _MS_OR_NEVER, "Default of retention.bytes; -1 is no limit."] = -1
    log_cleaner_delete_retention_ms: Annotated[int, _MS_LONG, "Default of delete.retention.ms."] = 86_400_000
    log_cleaner_min_compaction_lag_ms: Annotated[int, _MS_LONG, "Default of min.compaction.lag.ms."] = 0
    log_cleaner_max_compaction_lag_ms: Annotated[int, Whole(1), "Default of max.compaction.lag.ms."] = (
        INT64_MAX
    )
    log_cleaner_min_cleanable_ratio: Annotated[float, Real(0, 1), "Default of min.cleanable.dirty.ratio."] = (
        0.5
    )
    message_max_bytes: Annotated[int, _BYTES, "Default of max.message.bytes."] = 1_048_588
    log_message_timestamp_type: Annotated[str, _TIMESTAMP_TYPE, "Default of message.timestamp.type."] = (
        "CreateTime"
    )
    log_message_timestamp_before_max_ms: Annotated[
        int, _MS_LONG, "Default of message.timestamp.before.max.ms."
    ] = INT64_MAX
    log_message_timestamp_after_max_ms: Annotated[
        int, _MS_LONG, "Default of message.timestamp.after.max.ms."
    ] = 3_600_000
    min_insync_replicas: Annotated[int, _COUNT, "Default of the topics' min.insync.replicas."] = 1
    unclean_leader_election_enable: Annotated[bool, Flag(), "Default of the topics' option of that name."] = (
        False
    )
    compression_type: Annotated[str, _COMPRESSION, "Default of the topics' compression.type."] = "producer"
    log_flush_interval_ms: Annotated[int, _MS_LONG, "Default of flush.ms."] = INT64_MAX
    log_flush_interval_messages: Annotated[int, Whole(1), "Default of flush.messages."] = INT64_MAX

    # Retention and compaction.
    log_retention_check_interval_ms: Annotated[int, Whole(1), "How often retention looks at the logs."] = (
        300_000
    )
    log_cleaner_enable: Annotated[bool, Flag(), "Run the cleaner."] = True
    log_cleaner_backoff_ms: Annotated[
        int, _MS_LONG, "How long the cleaner rests when nothing is to clean."
    ] = 15_000

    # Groups and their offsets.
    offsets_topic_num_partitions: Annotated[
        int, _COUNT, "Partitions of __consumer_offsets, fixed at its creation."
    ] = 50
    offsets_topic_replication_factor: Annotated[
        int, _FACTOR, "Replicas of __consumer_offsets; as many as there are brokers, up to this."
    ] = 3
    offsets_retention_minutes: Annotated[int, _COUNT, "How long the offsets of an empty group are kept."] = (
        10_080
    )
    offsets_retention_check_interval_ms: Annotated[
        int, Whole(1), "How often expired offsets are looked for."
    ] = 600_000
    offset_metadata_max_bytes: Annotated[int, _BYTES, "Longest text committed beside an offset."] = 4_096
    group_initial_rebalance_delay_ms: Annotated[
        int,
        _MS,
        "How long a new group waits for more members. Kafka's default is 3000; in process nobody is late.",
    ] = 0
    group_min_session_timeout_ms: Annotated[int, _MS, "Shortest session_timeout_ms a member may ask for."] = (
        6_000
    )
    group_max_session_timeout_ms: Annotated[int, _MS, "Longest session_timeout_ms a member may ask for."] = (
        1_800_000
    )
    group_max_size: Annotated[int, _COUNT, "Most members of one group."] = INT32_MAX

    # Transactions and idempotent producers.
    transaction_state_log_num_partitions: Annotated[int, _COUNT, "Partitions of __transaction_state."] = 50
    transaction_state_log_replication_factor: Annotated[
        int, _FACTOR, "Replicas of __transaction_state; as many as there are brokers, up to this."
    ] = 3
    transaction_state_log_min_isr: Annotated[int, _COUNT, "min.insync.replicas of __transaction_state."] = 2
    transaction_max_timeout_ms: Annotated[int, Whole(1, INT32_MAX), "Longest transaction_timeout_ms."] = (
        900_000
    )
    transaction_abort_timed_out_transaction_cleanup_interval_ms: Annotated[
        int, Whole(1, INT32_MAX), "How often open transactions past their timeout are looked for."
    ] = 10_000
    transactional_id_expiration_ms: Annotated[
        int, Whole(1, INT32_MAX), "How long a transactional id without transactions is remembered."
    ] = 604_800_000
    producer_id_expiration_ms: Annotated[
        int, Whole(1, INT32_MAX), "How long a partition remembers an idempotent producer that is silent."
    ] = 86_400_000

    # Replication.
    replica_lag_time_max_ms: Annotated[
        int, Whole(1), "A follower that was not caught up for so long leaves the in-sync set."
    ] = 30_000
    replica_lag_max_messages: Annotated[
        int | None,
        Maybe(Whole(0)),
        "Kafka 0.8's rule: so many records behind leaves the in-sync set too. None is off; a use warns.",
    ] = None
    replica_fetch_wait_max_ms: Annotated[
        int, _MS, "How long the leader holds a follower's fetch for new records."
    ] = 500
    replica_fetch_min_bytes: Annotated[
        int, _BYTES, "A follower's fetch waits until so many bytes are there."
    ] = 1
    replica_fetch_max_bytes: Annotated[int, _BYTES, "Most bytes of one partition in a follower's fetch."] = (
        1_048_576
    )
    replica_fetch_response_max_bytes: Annotated[int, _BYTES, "Most bytes of one follower's fetch."] = (
        10_485_760
    )
    num_replica_fetchers: Annotated[
        int, Whole(1, 64), "Threads with which a broker copies from each of the others."
    ] = 1
    replica_fetch_backoff_ms: Annotated[int, _MS, "How long a follower rests after a failed fetch."] = 1_000
    replica_high_watermark_checkpoint_interval_ms: Annotated[
        int,
        Whole(1),
        "Latest moment a high watermark is written to disk. Kafka's 5000 is too late for other readers.",
    ] = 100
    broker_rack: Annotated[
        str | None,
        Maybe(Text()),
        "Where a broker stands; set it for each: cluster.brokers[1].rack = ... See replica_selector_class.",
    ] = None
    replica_selector_class: Annotated[
        str | None,
        Maybe(
            Choice(
                ("rack-aware",),
                habits={"org.apache.kafka.common.replica.rackawarereplicaselector": "rack-aware"},
            )
        ),
        "Which replica a consumer reads: None the leader, rack-aware one in client_rack (KIP-392).",
    ] = None

    # Brokers and the controller.
    broker_heartbeat_interval_ms: Annotated[
        int, Whole(1, INT32_MAX), "How often a broker renews its lease."
    ] = 2_000
    broker_session_timeout_ms: Annotated[
        int, Whole(1, INT32_MAX), "Silence after which a broker is fenced."
    ] = 9_000
    auto_leader_rebalance_enable: Annotated[bool, Flag(), "Give leadership back to preferred replicas."] = (
        True
    )
    leader_imbalance_check_interval_seconds: Annotated[int, _COUNT, "How often that is looked at."] = 300
    leader_imbalance_per_broker_percentage: Annotated[int, Whole(0, 100), "Imbalance that is left alone."] = (
        10
    )

    # The store and the inbox: streamlog's own.
    disk_bytes_max: Annotated[
        int | None, Maybe(Whole(1_048_576)), "Most bytes one broker's store may use; None is the disk's size."
    ] = None
    map_bytes: Annotated[
        int | None,
        Maybe(Whole(1_048_576)),
        "Size of LMDB's virtual map; None is the largest that works, up to 1 TiB.",
    ] = None
    max_readers: Annotated[
        int, Whole(1, 65_536), "Reader slots of a store: threads that read at the same moment."
    ] = 1_024
    flush_ms: Annotated[
        int, Whole(1, INT32_MAX), 'With sync="off": how often the store is synced anyway.'
    ] = 500
    inbox_requests_max: Annotated[int, _COUNT, "Requests a broker's inbox holds before callers wait."] = (
        10_000
    )
    allow_network_fs: Annotated[bool, Flag(), "Open on a network file system, at your own risk."] = False

    def _checked(self, given: frozenset[str]) -> Self:
        if self.group_min_session_timeout_ms > self.group_max_session_timeout_ms:
            option = "group_min_session_timeout_ms"
            allowed = f"<= group.max.session.timeout.ms = {self.group_max_session_timeout_ms}"
            raise self._conflict(option, allowed, "lower it or raise the maximum")
        if self.replica_fetch_wait_max_ms > self.replica_lag_time_max_ms:
            option = "replica_fetch_wait_max_ms"
            allowed = f"<= replica.lag.time.max.ms = {self.replica_lag_time_max_ms}"
            raise self._conflict(option, allowed, "else waiting followers leave the in-sync set")
        if self.broker_heartbeat_interval_ms >= self.broker_session_timeout_ms:
            option = "broker_heartbeat_interval_ms"
            allowed = f"< broker.session.timeout.ms = {self.broker_session_timeout_ms}"
            raise self._conflict(option, allowed, "else living brokers are fenced")
        return self


class TopicConfig(Role, frozen=True, kw_only=True):
    """Options of one topic: `create_topic(..., config={...})`."""

    ROLE: ClassVar[str] = "topic"
    HABITS: ClassVar[Mapping[str, str]] = {
        "partitions": "partitions is an argument of create_topic, not an option",
        "num_partitions": "partitions is an argument of create_topic, not an option",
        "replication_factor": "replication_factor is an argument of create_topic, not an option",
        "message_max_bytes": 'for a topic it is called "max.message.bytes"',
        "log_retention_ms": 'for a topic it is called "retention.ms"',
    }
    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = (
        *("segment.", "index.", "preallocate", "file.delete.delay.ms", "message.downconversion.enable"),
        *(
            "remote.",
            "local.retention.",
            "leader.replication.",
            "follower.replication.",
            "message.format.version",
        ),
        *(
            "internal.segment.bytes",
            "compression.gzip.level",
            "compression.lz4.level",
            "compression.zstd.level",
        ),
    )

    cleanup_policy: Annotated[
        tuple[str, ...], _CLEANUP_POLICY, "delete old records, compact by key, both, or (empty) neither."
    ] = ("delete",)
    retention_ms: Annotated[
        int, _MS_OR_NEVER, "Records older than this are deleted, by batch; -1 keeps forever."
    ] = 604_800_000
    retention_bytes: Annotated[
        int, _MS_OR_NEVER, "A partition never shrinks below this; -1 is no limit."
    ] = -1
    delete_retention_ms: Annotated[int, _MS_LONG, "How long compaction keeps tombstones."] = 86_400_000
    min_compaction_lag_ms: Annotated[int, _MS_LONG, "Records younger than this are not compacted."] = 0
    max_compaction_lag_ms: Annotated[
        int, Whole(1), "Records older than this make a log worth compacting."
    ] = INT64_MAX
    min_cleanable_dirty_ratio: Annotated[
        float, Real(0, 1), "Share of uncompacted bytes above which to compact."
    ] = 0.5
    max_message_bytes: Annotated[int, _BYTES, "Largest batch, after compression."] = 1_048_588
    message_timestamp_type: Annotated[
        str, _TIMESTAMP_TYPE, "CreateTime keeps the producer's timestamps, LogAppendTime sets the leader's."
    ] = "CreateTime"
    message_timestamp_before_max_ms: Annotated[int, _MS_LONG, "How old a record's timestamp may be."] = (
        INT64_MAX
    )
    message_timestamp_after_max_ms: Annotated[int, _MS_LONG, "How far ahead a record's timestamp may be."] = (
        3_600_000
    )
    min_insync_replicas: Annotated[
        int, _COUNT, 'In-sync replicas without which acks="all" is refused and the high watermark stands.'
    ] = 1
    unclean_leader_election_enable: Annotated[
        bool, Flag(), "Let a replica lead that is not in sync: available, but acknowledged records are lost."
    ] = False
    compression_type: Annotated[
        str, _COMPRESSION, "Codec batches are stored with; producer keeps what the producer chose."
    ] = "producer"
    flush_ms: Annotated[int, _MS_LONG, "Sync to disk at least so often."] = INT64_MAX
    flush_messages: Annotated[int, Whole(1), "Sync to disk after so many records."] = INT64_MAX

    @classmethod
    def with_overrides(cls, overrides: Mapping[str, object], defaults: ClusterConfig) -> TopicConfig:
        """The effective options of a topic: its own, else the cluster's defaults for topics."""
        inherited = cls(**{name: getattr(defaults, source) for name, source in TOPIC_DEFAULTS.items()})
        return cls._build(cls._parse({}, overrides), inherited)

    @property
    def compacts(self) -> bool:
        """Whether the cleaner compacts this topic, so that its records need keys."""
        return "compact" in self.cleanup_policy

    @property
    def deletes(self) -> bool:
        """Whether retention deletes from this topic."""
        return "delete" in self.cleanup_policy

    def _checked(self, given: frozenset[str]) -> Self:
        if self.min_compaction_lag_ms > self.max_compaction_lag_ms:
            option = "min_compaction_lag_ms"
            allowed = f"<= max.compaction.lag.ms = {self.max_compaction_lag_ms}"
            raise self._conflict(option, allowed, "lower it or raise the maximum")
        return self
