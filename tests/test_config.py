"""config.py, cluster_config.py, options.py: every option has a row here (taken, wrong type, out of range)."""

from __future__ import annotations

import importlib.util
import logging
import math
import pickle
import re
from types import SimpleNamespace

import msgspec
import pytest

from streamlog.cluster_config import TOPIC_DEFAULTS
from streamlog.config import ClusterConfig, ConsumerConfig, ProducerConfig, TopicConfig, describe
from streamlog.errors import ConfigError
from streamlog.option_rules import INT32_MAX, INT64_MAX
from streamlog.options import Role

ROLES: dict[str, type[Role]] = {
    "cluster": ClusterConfig,
    "topic": TopicConfig,
    "producer": ProducerConfig,
    "consumer": ConsumerConfig,
}
NOTHING = object()  # no such case: the option takes any value of its type
INT32, INT64 = INT32_MAX + 1, INT64_MAX + 1


def print_it(*_: object) -> int:
    return 0


# role.option: Kafka's default, a value it takes and what becomes of it, a wrong type, values out of range
ROWS: dict[str, tuple[object, object, object, object, tuple[object, ...]]] = {
    "producer.acks": (-1, "all", -1, 1.0, (2, -2, "some")),
    "producer.linger_ms": (5, "0", 0, 5.0, (-1, INT32)),
    "producer.batch_size": (131_072, 0, 0, None, (-1, INT32)),
    "producer.buffer_memory": (33_554_432, 1, 1, [], (-1, INT64)),
    "producer.max_block_ms": (60_000, 0, 0, "1s", (-1, INT64)),
    "producer.max_request_size": (1_048_576, 100, 100, b"1", (-1, INT32)),
    "producer.compression": ("none", "zstd", "zstd", 4, ("brotli", "")),
    "producer.compression_level": (None, "22", 22, 1.5, (23, -131_073)),
    "producer.partitioner": ("crc32", "murmur2", "murmur2", 5, ("md5",)),
    "producer.partitioner_ignore_keys": (False, "TRUE", True, 1, ("yes",)),
    "producer.key_serializer": (None, str.encode, str.encode, 5, ("",)),
    "producer.value_serializer": (None, "json", "json", object(), ("",)),
    "producer.transactional_id": (None, "t-1", "t-1", 5, ("", "  ")),
    "producer.transaction_timeout_ms": (60_000, 1, 1, "x", (0, INT32)),
    "producer.enable_idempotence": (True, False, False, 0, ("no",)),
    "producer.retries": (INT32_MAX, 1, 1, "many", (-1, INT32)),
    "producer.retry_backoff_ms": (100, 0, 0, None, (-1, INT64)),
    "producer.retry_backoff_max_ms": (1_000, 0, 0, None, (-1, INT64)),
    "producer.delivery_timeout_ms": (120_000, 200_000, 200_000, 1e5, (-1, INT32)),
    "producer.request_timeout_ms": (30_000, 1, 1, True, (-1, INT32)),
    "producer.max_in_flight_requests_per_connection": (5, "1", 1, None, (0, INT32)),
    "consumer.group_id": (None, "billing", "billing", b"billing", ("",)),
    "consumer.group_instance_id": (None, "host-1", "host-1", 1, ("",)),
    "consumer.auto_offset_reset": (
        "earliest",
        "by_duration:PT1H",
        "by_duration:PT1H",
        0,
        ("by_duration:1h", "x"),
    ),
    "consumer.enable_auto_commit": (True, "false", False, 0, ("off",)),
    "consumer.auto_commit_interval_ms": (5_000, 0, 0, 0.5, (-1, INT32)),
    "consumer.max_poll_records": (500, 1, 1, None, (0, INT32)),
    "consumer.max_poll_interval_ms": (300_000, 1, 1, "5m", (0, INT32)),
    "consumer.session_timeout_ms": (45_000, 6_000, 6_000, "x", (0, INT32)),
    "consumer.heartbeat_interval_ms": (3_000, 1, 1, "x", (0, INT32)),
    "consumer.fetch_min_bytes": (1, 0, 0, None, (-1, INT32)),
    "consumer.fetch_max_bytes": (52_428_800, 0, 0, None, (-1, INT32)),
    "consumer.fetch_max_wait_ms": (500, 0, 0, None, (-1, INT32)),
    "consumer.max_partition_fetch_bytes": (1_048_576, 0, 0, None, (-1, INT32)),
    "consumer.check_crcs": (True, "False", False, None, ("",)),
    "consumer.isolation_level": (
        "read_uncommitted",
        "read_committed",
        "read_committed",
        1,
        ("serializable",),
    ),
    "consumer.partition_assignment_strategy": (
        ("range", "cooperative-sticky"),
        "sticky, range",
        ("sticky", "range"),
        5,
        ([], ["best"], ["range", "range"], [5]),
    ),
    "consumer.key_deserializer": (None, bytes.decode, bytes.decode, 5, ("",)),
    "consumer.value_deserializer": (None, "json", "json", 5, ("",)),
    "consumer.stop_at_end": (False, True, True, 1, ("maybe",)),
    "consumer.client_rack": (None, "a", "a", 1, ("",)),
    "consumer.default_api_timeout_ms": (60_000, 0, 0, None, (-1, INT32)),
    "consumer.request_timeout_ms": (30_000, 0, 0, None, (-1, INT32)),
    "consumer.retry_backoff_ms": (100, 0, 0, None, (-1, INT64)),
    "consumer.retry_backoff_max_ms": (1_000, 0, 0, None, (-1, INT64)),
    "topic.cleanup_policy": (
        ("delete",),
        "compact,delete",
        ("compact", "delete"),
        5,
        ("shred", ["delete", "delete"]),
    ),
    "topic.retention_ms": (604_800_000, -1, -1, "7d", (-2, INT64)),
    "topic.retention_bytes": (-1, "1000", 1_000, 1.5, (-2, INT64)),
    "topic.delete_retention_ms": (86_400_000, 0, 0, None, (-1, INT64)),
    "topic.min_compaction_lag_ms": (0, 1, 1, None, (-1, INT64)),
    "topic.max_compaction_lag_ms": (INT64_MAX, 1, 1, None, (0, INT64)),
    "topic.min_cleanable_dirty_ratio": (0.5, "0.25", 0.25, "half", (-0.1, 1.1, math.nan)),
    "topic.max_message_bytes": (1_048_588, 0, 0, None, (-1, INT32)),
    "topic.message_timestamp_type": ("CreateTime", "LogAppendTime", "LogAppendTime", 1, ("Now",)),
    "topic.message_timestamp_before_max_ms": (INT64_MAX, 0, 0, None, (-1, INT64)),
    "topic.message_timestamp_after_max_ms": (3_600_000, 0, 0, None, (-1, INT64)),
    "topic.min_insync_replicas": (1, 3, 3, None, (0, INT32)),
    "topic.unclean_leader_election_enable": (False, "true", True, None, ("t",)),
    "topic.compression_type": ("producer", "uncompressed", "uncompressed", None, ("none", "brotli")),
    "topic.flush_ms": (INT64_MAX, 0, 0, None, (-1, INT64)),
    "topic.flush_messages": (INT64_MAX, 1, 1, None, (0, INT64)),
    "cluster.num_partitions": (1, 8, 8, None, (0, INT32)),
    "cluster.default_replication_factor": (1, 3, 3, None, (0, 32_768)),
    "cluster.auto_create_topics": (False, "true", True, 1, ("on",)),
    "cluster.delete_topic_enable": (True, "false", False, 0, ("off",)),
    "cluster.log_cleanup_policy": (("delete",), [], (), None, ("shred",)),
    "cluster.log_retention_ms": (604_800_000, -1, -1, None, (-2, INT64)),
    "cluster.log_retention_bytes": (-1, 0, 0, None, (-2, INT64)),
    "cluster.log_cleaner_delete_retention_ms": (86_400_000, 0, 0, None, (-1, INT64)),
    "cluster.log_cleaner_min_compaction_lag_ms": (0, 1, 1, None, (-1, INT64)),
    "cluster.log_cleaner_max_compaction_lag_ms": (INT64_MAX, 1, 1, None, (0, INT64)),
    "cluster.log_cleaner_min_cleanable_ratio": (0.5, 1, 1.0, True, (-1, 2)),
    "cluster.message_max_bytes": (1_048_588, 0, 0, None, (-1, INT32)),
    "cluster.log_message_timestamp_type": ("CreateTime", "LogAppendTime", "LogAppendTime", None, ("x",)),
    "cluster.log_message_timestamp_before_max_ms": (INT64_MAX, 0, 0, None, (-1, INT64)),
    "cluster.log_message_timestamp_after_max_ms": (3_600_000, 0, 0, None, (-1, INT64)),
    "cluster.min_insync_replicas": (1, 2, 2, None, (0, INT32)),
    "cluster.unclean_leader_election_enable": (False, True, True, None, ("x",)),
    "cluster.compression_type": ("producer", "zstd", "zstd", None, ("x",)),
    "cluster.log_flush_interval_ms": (INT64_MAX, 0, 0, None, (-1, INT64)),
    "cluster.log_flush_interval_messages": (INT64_MAX, 1, 1, None, (0, INT64)),
    "cluster.log_retention_check_interval_ms": (300_000, 1, 1, None, (0, INT64)),
    "cluster.log_cleaner_enable": (True, False, False, None, ("x",)),
    "cluster.log_cleaner_backoff_ms": (15_000, 0, 0, None, (-1, INT64)),
    "cluster.offsets_topic_num_partitions": (50, 1, 1, None, (0, INT32)),
    "cluster.offsets_topic_replication_factor": (3, 1, 1, None, (0, 32_768)),
    "cluster.offsets_retention_minutes": (10_080, 1, 1, None, (0, INT32)),
    "cluster.offsets_retention_check_interval_ms": (600_000, 1, 1, None, (0, INT64)),
    "cluster.offset_metadata_max_bytes": (4_096, 0, 0, None, (-1, INT32)),
    "cluster.group_initial_rebalance_delay_ms": (0, 3_000, 3_000, None, (-1, INT32)),
    "cluster.group_min_session_timeout_ms": (6_000, 10, 10, None, (-1, INT32)),
    "cluster.group_max_session_timeout_ms": (1_800_000, 7_000, 7_000, None, (-1, INT32)),
    "cluster.group_max_size": (INT32_MAX, 1, 1, None, (0, INT32)),
    "cluster.transaction_state_log_num_partitions": (50, 1, 1, None, (0, INT32)),
    "cluster.transaction_state_log_replication_factor": (3, 1, 1, None, (0, 32_768)),
    "cluster.transaction_state_log_min_isr": (2, 1, 1, None, (0, INT32)),
    "cluster.transaction_max_timeout_ms": (900_000, 1, 1, None, (0, INT32)),
    "cluster.transaction_abort_timed_out_transaction_cleanup_interval_ms": (10_000, 1, 1, None, (0, INT32)),
    "cluster.transactional_id_expiration_ms": (604_800_000, 1, 1, None, (0, INT32)),
    "cluster.producer_id_expiration_ms": (86_400_000, 1, 1, None, (0, INT32)),
    "cluster.replica_lag_time_max_ms": (30_000, 500, 500, None, (0, INT64)),
    "cluster.replica_lag_max_messages": (None, 4_000, 4_000, "x", (-1, INT64)),
    "cluster.replica_fetch_wait_max_ms": (500, 0, 0, None, (-1, INT32)),
    "cluster.replica_fetch_min_bytes": (1, 0, 0, None, (-1, INT32)),
    "cluster.replica_fetch_max_bytes": (1_048_576, 0, 0, None, (-1, INT32)),
    "cluster.replica_fetch_response_max_bytes": (10_485_760, 0, 0, None, (-1, INT32)),
    "cluster.num_replica_fetchers": (1, 2, 2, "two", (0, 65)),
    "cluster.replica_fetch_backoff_ms": (1_000, 0, 0, None, (-1, INT32)),
    "cluster.broker_rack": (None, "r1", "r1", 7, ()),
    "cluster.replica_high_watermark_checkpoint_interval_ms": (100, 1, 1, None, (0, INT64)),
    "cluster.replica_selector_class": (None, "rack-aware", "rack-aware", 1, ("nearest",)),
    "cluster.broker_heartbeat_interval_ms": (2_000, 1, 1, None, (0, INT32)),
    "cluster.broker_session_timeout_ms": (9_000, 2_001, 2_001, None, (0, INT32)),
    "cluster.auto_leader_rebalance_enable": (True, False, False, None, ("x",)),
    "cluster.leader_imbalance_check_interval_seconds": (300, 1, 1, None, (0, INT32)),
    "cluster.leader_imbalance_per_broker_percentage": (10, 0, 0, None, (-1, 101)),
    "cluster.disk_bytes_max": (None, 1 << 30, 1 << 30, "1G", (1_048_575, INT64)),
    "cluster.map_bytes": (None, 1 << 40, 1 << 40, 1.5, (0, INT64)),
    "cluster.max_readers": (1_024, 1, 1, None, (0, 65_537)),
    "cluster.flush_ms": (500, 1, 1, None, (0, INT32)),
    "cluster.inbox_requests_max": (10_000, 1, 1, None, (0, INT32)),
    "cluster.allow_network_fs": (False, True, True, 1, ("x",)),
}
EACH = [pytest.param(*name.split("."), *row, id=name) for name, row in ROWS.items()]
EACH_OPTION = [
    pytest.param(role, option, id=f"{role}.{option.name}") for role in ROLES for option in describe(role)
]


def parse(role: str, options: dict[str, object], config: dict[str, object] | None = None) -> Role:
    return ROLES[role].from_options(options, config)


def test_every_option_has_a_row() -> None:
    assert set(ROWS) == {f"{role}.{option.name}" for role in ROLES for option in describe(role)}


@pytest.mark.parametrize(("role", "name", "default", "given", "parsed", "wrong", "outside"), EACH)
def test_one_option(
    role: str,
    name: str,
    default: object,
    given: object,
    parsed: object,
    wrong: object,
    outside: tuple[object, ...],
) -> None:
    assert getattr(parse(role, {}), name) == default
    value = getattr(parse(role, {name: given}), name)
    assert value == parsed and type(value) is type(parsed)
    for refused in (wrong, *outside):
        with pytest.raises(ConfigError) as caught:
            parse(role, {name: refused})
        error = caught.value
        assert error.option == name and (error.value is refused or error.value == refused)
        assert error.allowed and error.allowed in str(error) and name in str(error)
        assert type(refused).__name__ in str(error)


@pytest.mark.parametrize(("role", "option"), EACH_OPTION)
def test_one_option_by_its_dotted_name(role: str, option: SimpleNamespace) -> None:
    given, parsed = ROWS[f"{role}.{option.name}"][1:3]
    for spelling in (option.dotted, option.dotted.replace(".", "_"), option.name):
        assert getattr(parse(role, {}, {spelling: given}), option.name) == parsed


@pytest.mark.parametrize(("role", "option"), EACH_OPTION)
def test_one_option_is_documented(role: str, option: SimpleNamespace) -> None:
    assert len(option.doc) > 15 and option.doc.endswith(".") and option.doc[0] == option.doc.strip()[0]
    assert option.allowed and option.type
    assert re.fullmatch(r"[a-z]+(\.[a-z]+)*", option.dotted)
    accepted = option.rule.parse(option.default)
    assert accepted == option.default  # a default obeys its own rule


@pytest.mark.parametrize("role", ROLES)
def test_dotted_text_round_trips(role: str) -> None:
    config = parse(role, {})
    assert parse(role, {}, config.dotted()) == config


def test_configs_are_frozen_and_pickle() -> None:
    for role in ROLES:
        config = parse(role, {})
        assert pickle.loads(pickle.dumps(config)) == config
        with pytest.raises(AttributeError):
            setattr(config, describe(role)[0].name, 5)


UNKNOWN = [
    ("producer", "linger", "linger_ms"),
    ("producer", "lingr_ms", "linger_ms"),
    ("producer", "batch.szie", "batch.size"),
    ("producer", "compresion", "compression"),
    ("producer", "Linger_Ms", "linger_ms"),
    ("consumer", "groupid", "group_id"),
    ("consumer", "auto.offset.rest", "auto.offset.reset"),
    ("topic", "retention", "retention_ms"),
    ("topic", "cleanup.polcy", "cleanup.policy"),
    ("cluster", "auto_create_topic", "auto_create_topics"),
    ("cluster", "num.partition", "num.partitions"),
    ("cluster", "broker", "brokers"),
]


@pytest.mark.parametrize(("role", "name", "meant"), UNKNOWN)
def test_unknown_options_are_answered_with_the_nearest(role: str, name: str, meant: str) -> None:
    for options, config in (({name: 1}, None), ({}, {name: 1})):
        with pytest.raises(ConfigError, match=f"unknown {role} option .*did you mean") as caught:
            parse(role, options, config)
        assert caught.value.suggestion == meant and caught.value.option == name and caught.value.value == 1


def test_an_option_like_no_other_points_to_the_list() -> None:
    with pytest.raises(ConfigError, match=r"describe\('producer'\)") as caught:
        parse("producer", {"xyzzy": 1})
    assert caught.value.suggestion is None


HABITS = [
    ("topic", "num.partitions", "argument of create_topic"),
    ("producer", "on_delivery", "add_done_callback"),
    ("consumer", "on_assign", "on_assigned"),
    ("producer", "bootstrap_servers", "streamlog.connect"),
    ("consumer", "bootstrap.servers", "no server"),
    ("consumer", "consumer_timeout_ms", "stop_at_end"),
    ("consumer", "enable.partition.eof", "stop_at_end"),
    ("cluster", "sync", "keyword of streamlog.open"),
    ("cluster", "zookeeper.connect", "metadata log"),
    ("cluster", "retention.ms", "log.retention.ms"),
    ("topic", "partitions", "argument of create_topic"),
]


@pytest.mark.parametrize(("role", "name", "remark"), HABITS)
def test_habits_from_elsewhere_are_explained(role: str, name: str, remark: str) -> None:
    with pytest.raises(ConfigError, match=remark):
        parse(role, {}, {name: "x"})


VALUES = [
    ("consumer", "auto_offset_reset", "beginning", "earliest"),
    ("consumer", "auto_offset_reset", "smallest", "earliest"),
    ("consumer", "auto_offset_reset", "largest", "latest"),
    ("consumer", "auto_offset_reset", "earlist", "earliest"),
    ("consumer", "isolation_level", "committed", "read_committed"),
    ("consumer", "partition_assignment_strategy", ["round_robin"], "roundrobin"),
    ("producer", "acks", 3, "all"),
    ("producer", "partitioner", "murmur2_random", "murmur2"),
    ("producer", "compression", "zst", "zstd"),
    ("topic", "cleanup_policy", "compacted", "compact"),
    ("topic", "message_timestamp_type", "log_append_time", "LogAppendTime"),
    ("topic", "compression_type", "none", "uncompressed"),
]


@pytest.mark.parametrize(("role", "name", "value", "meant"), VALUES)
def test_wrong_words_are_answered_with_the_nearest(role: str, name: str, value: object, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'") as caught:
        parse(role, {name: value})
    assert caught.value.suggestion == meant


def test_codecs_that_need_a_package_say_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for role, name in (("producer", "compression"), ("topic", "compression_type")):
        with pytest.raises(
            ConfigError, match=r"snappy needs cramjam: pip install 'streamlog-embedded\[kafka\]'"
        ):
            parse(role, {name: "snappy"})
        assert getattr(parse(role, {name: "gzip"}), name) == "gzip"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert parse("producer", {"compression": "lz4"}) == ProducerConfig(compression="lz4")


IDLE = [
    ("producer", "ssl.ca.location"),
    ("producer", "sasl_mechanism"),
    ("producer", "client_id"),
    ("producer", "client.dns.lookup"),
    ("consumer", "socket.keepalive.enable"),
    ("consumer", "security.protocol"),
    ("topic", "segment.bytes"),
    ("topic", "segment.ms"),
    ("topic", "remote.storage.enable"),
    ("cluster", "listeners"),
    ("cluster", "log.segment.bytes"),
]


@pytest.mark.parametrize(("role", "name"), IDLE)
def test_options_without_meaning_here_are_taken_with_one_debug_line(
    role: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "streamlog"):
        assert parse(role, {name: object()}) == parse(role, {})
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert name.replace("_", ".") in caplog.text and role in caplog.text


def test_meaningful_options_log_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        parse("producer", {"linger_ms": 0})
    assert caplog.records == []


def test_a_prefix_is_not_a_licence() -> None:
    with pytest.raises(ConfigError):
        parse("producer", {"ssly": 1})
    with pytest.raises(ConfigError):
        parse("producer", {"client.id.x": 1})


def test_a_keyword_wins_over_the_mapping() -> None:
    assert parse("producer", {"linger_ms": 7}, {"linger.ms": 9}) == ProducerConfig(linger_ms=7)


def test_the_same_option_twice_in_one_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"given twice, as 'linger.ms' and 'linger_ms'"):
        parse("producer", {}, {"linger.ms": 1, "linger_ms": 2})
    with pytest.raises(ConfigError, match="given twice"):
        parse("cluster", {}, {"log.retention.hours": 1, "log.retention.ms": 2})


def test_names_must_be_text() -> None:
    with pytest.raises(ConfigError, match="names are text"):
        parse("producer", {}, {5: 1})  # type: ignore[dict-item]


def test_other_spellings_of_the_same_option() -> None:
    assert parse("producer", {}, {"compression.type": "zstd"}) == ProducerConfig(compression="zstd")
    assert parse("producer", {}, {"compression.zstd.level": 3}) == ProducerConfig(compression_level=3)
    assert parse("cluster", {"auto_create_topics": True}) == parse(
        "cluster", {}, {"auto.create.topics.enable": "true"}
    )
    assert parse("cluster", {}, {"log.retention.hours": "2"}) == ClusterConfig(log_retention_ms=7_200_000)
    assert parse("cluster", {}, {"log.retention.minutes": 2}) == ClusterConfig(log_retention_ms=120_000)
    assert parse("cluster", {}, {"log.retention.hours": -1}) == ClusterConfig(log_retention_ms=-1)
    java = "org.apache.kafka.clients.consumer.StickyAssignor"
    config = parse("consumer", {}, {"partition.assignment.strategy": java})
    assert config == ConsumerConfig(partition_assignment_strategy=("sticky",))


def test_acks_in_every_spelling() -> None:
    for given, number in (("all", -1), ("ALL", -1), (-1, -1), ("-1", -1), (0, 0), ("0", 0), (1, 1), ("1", 1)):
        assert parse("producer", {"acks": given}).acks == number
    for refused in (True, False, None, "", "two"):
        with pytest.raises(ConfigError, match="acks"):
            parse("producer", {"acks": refused})


def test_callables_and_objects_where_they_belong() -> None:
    assert parse("producer", {"partitioner": print_it}).partitioner is print_it
    serde = SimpleNamespace(serialize=print_it, deserialize=print_it)
    assert parse("producer", {"value_serializer": serde}).value_serializer is serde
    assert parse("consumer", {"value_deserializer": serde}).value_deserializer is serde
    with pytest.raises(ConfigError, match="a callable, a serde"):
        parse("producer", {"value_serializer": SimpleNamespace(serialize=5)})


DURATIONS = [
    ("by_duration:PT1H", 3_600_000),
    ("by_duration:P1D", 86_400_000),
    ("by_duration:P1DT2H3M4.5S", 86_400_000 + 7_200_000 + 180_000 + 4_500),
    ("by_duration:PT0S", 0),
    ("earliest", None),
]


@pytest.mark.parametrize(("text", "ms"), DURATIONS)
def test_reset_by_duration(text: str, ms: int | None) -> None:
    assert parse("consumer", {"auto_offset_reset": text}).auto_offset_reset_ms == ms


@pytest.mark.parametrize(
    "text", ["by_duration:", "by_duration:P", "by_duration:PT", "by_duration:P1DT", "by_duration:-PT1H"]
)
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="by_duration"):
        parse("consumer", {"auto_offset_reset": text})


def test_idempotence_gives_way_to_acks_and_retries_unless_it_was_asked_for() -> None:
    for obstacle in ({"acks": 1}, {"acks": 0}, {"retries": 0}):
        assert parse("producer", dict(obstacle)).enable_idempotence is False
        with pytest.raises(ConfigError, match="idempotence"):
            parse("producer", {**obstacle, "enable_idempotence": True})
        with pytest.raises(ConfigError, match="transactional_id"):
            parse("producer", {**obstacle, "transactional_id": "t"})


def test_more_than_five_in_flight_need_idempotence_off() -> None:
    name = "max_in_flight_requests_per_connection"
    with pytest.raises(ConfigError, match="1 to 5"):
        parse("producer", {name: 6})
    assert getattr(parse("producer", {name: 6, "enable_idempotence": False}), name) == 6


def test_a_transactional_id_needs_idempotence() -> None:
    assert parse("producer", {"transactional_id": "t"}).enable_idempotence
    with pytest.raises(ConfigError, match="transactional_id"):
        parse("producer", {"transactional_id": "t", "enable_idempotence": False})


def test_delivery_timeout_covers_linger_and_request() -> None:
    with pytest.raises(ConfigError, match="linger_ms \\+ request_timeout_ms = 30005"):
        parse("producer", {"delivery_timeout_ms": 30_004})
    assert parse("producer", {"delivery_timeout_ms": 30_005}).delivery_timeout_ms == 30_005
    assert parse("producer", {"request_timeout_ms": 200_000}).delivery_timeout_ms == 200_005


def test_heartbeats_come_within_the_session() -> None:
    with pytest.raises(ConfigError, match="session_timeout_ms = 3000"):
        parse("consumer", {"session_timeout_ms": 3_000, "heartbeat_interval_ms": 3_000})
    assert parse("consumer", {"session_timeout_ms": 3_000}).heartbeat_interval_ms == 1_000


CLUSTER_CONFLICTS = [
    {"group_min_session_timeout_ms": 2_000_000},
    {"replica_lag_time_max_ms": 499},
    {"broker_session_timeout_ms": 2_000},
]


@pytest.mark.parametrize("options", CLUSTER_CONFLICTS, ids=str)
def test_cluster_options_that_contradict_each_other(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="allowed here is <"):
        parse("cluster", options)


def test_compaction_lags_are_ordered() -> None:
    with pytest.raises(ConfigError, match=r"max.compaction.lag.ms = 5"):
        parse("topic", {}, {"min.compaction.lag.ms": 6, "max.compaction.lag.ms": 5})


def test_a_topic_inherits_what_it_does_not_set() -> None:
    cluster = parse(
        "cluster", {}, {"log.retention.ms": 5, "min.insync.replicas": 2, "log.cleanup.policy": "compact"}
    )
    assert isinstance(cluster, ClusterConfig)
    topic = TopicConfig.with_overrides({"retention.ms": "7", "segment.bytes": 1}, cluster)
    assert (topic.retention_ms, topic.min_insync_replicas, topic.cleanup_policy) == (7, 2, ("compact",))
    assert topic.compacts and not topic.deletes
    assert TopicConfig.with_overrides({}, ClusterConfig()) == TopicConfig()
    with pytest.raises(ConfigError, match=r"retention.ms"):
        TopicConfig.with_overrides({"retention.ms": "x"}, cluster)


def test_every_topic_option_has_a_default_in_the_cluster_that_obeys_it() -> None:
    topic = {option.name: option for option in describe("topic")}
    cluster = {option.name: option for option in describe("cluster")}
    assert set(TOPIC_DEFAULTS) == set(topic)
    for name, source in TOPIC_DEFAULTS.items():
        assert cluster[source].default == topic[name].default
        assert cluster[source].rule == topic[name].rule


def test_an_inherited_value_is_checked_against_an_own_one() -> None:
    cluster = msgspec.structs.replace(ClusterConfig(), log_cleaner_max_compaction_lag_ms=5)
    with pytest.raises(ConfigError, match=r"max.compaction.lag.ms = 5"):
        TopicConfig.with_overrides({"min.compaction.lag.ms": 6}, cluster)


def test_long_values_are_cut_in_messages_but_not_in_facts() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("producer", {"linger_ms": "x" * 10_000})
    assert len(str(caught.value)) < 300 and len(caught.value.value) == 10_000


def test_describe_names_its_roles() -> None:
    assert [option.name for option in describe("topic")][:2] == ["cleanup_policy", "retention_ms"]
    retention = describe("topic")[1]
    assert (retention.dotted, retention.type, retention.default) == ("retention.ms", "int", 604_800_000)
    with pytest.raises(ConfigError, match="did you mean 'producer'"):
        describe("producers")


@pytest.mark.parametrize("role", ["cluster", "topic", "producer", "consumer"])
@pytest.mark.parametrize("given", ["orders", ["orders"], [("linger.ms", 5)], 7])
def test_options_that_are_no_mapping_are_refused(role: str, given: object) -> None:
    with pytest.raises(ConfigError, match=f"{role} options .*a mapping of option names to values") as caught:
        ROLES[role].from_options({}, given)  # type: ignore[arg-type]
    assert caught.value.option == "config"
    assert ("cluster.consumer_group(name, topics)" in str(caught.value)) == (
        role == "consumer" and given != 7
    )
