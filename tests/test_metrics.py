"""metrics.py: counts, rates and distributions under Kafka's names."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from streamlog import metrics
from streamlog.clock import ManualClock
from streamlog.errors import ResourceNotFoundError
from streamlog.metrics import (
    RESERVOIR_VALUES_MAX,
    Histogram,
    Metrics,
    MetricsRegistry,
    WindowedRate,
    full_name,
    parse_name,
)

MESSAGES_IN = "kafka.server:type=BrokerTopicMetrics,name=MessagesInPerSec"
TOTAL_TIME = "kafka.network:type=RequestMetrics,name=TotalTimeMs"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(10_000)


@pytest.fixture
def registry(clock: ManualClock) -> MetricsRegistry:
    return MetricsRegistry(clock)


def test_names_are_kafkas_with_tags_appended(registry: MetricsRegistry) -> None:
    registry.meter(MESSAGES_IN, topic="orders").count += 3
    metrics = registry.snapshot()
    assert list(metrics) == [MESSAGES_IN + ",topic=orders"]
    assert metrics[MESSAGES_IN + ",topic=orders"]["Count"] == 3


def test_asking_again_returns_the_same_metric(registry: MetricsRegistry) -> None:
    assert registry.meter(MESSAGES_IN, topic="a") is registry.meter(MESSAGES_IN, topic="a")
    assert registry.meter(MESSAGES_IN, topic="a") is not registry.meter(MESSAGES_IN, topic="b")
    with pytest.raises(TypeError, match="is a Meter already"):
        registry.histogram(MESSAGES_IN, topic="a")


def test_a_steady_rate_is_seen_by_every_window(registry: MetricsRegistry, clock: ManualClock) -> None:
    meter = registry.meter(MESSAGES_IN)
    for _ in range(120):
        meter.count += 50
        clock.advance(5_000)
        attributes = registry.snapshot()[MESSAGES_IN]
    assert attributes["Count"] == 6_000
    for name in ("MeanRate", "OneMinuteRate", "FiveMinuteRate", "FifteenMinuteRate"):
        assert attributes[name] == pytest.approx(10.0), name


def test_rates_forget_at_their_own_speed(registry: MetricsRegistry, clock: ManualClock) -> None:
    meter = registry.meter(MESSAGES_IN)
    meter.count += 600
    clock.advance(60_000)
    registry.tick()
    for _ in range(12):  # one silent minute
        clock.advance(5_000)
        registry.tick()
    attributes = registry.snapshot()[MESSAGES_IN]
    assert attributes["OneMinuteRate"] == pytest.approx(10 * math.exp(-1))
    assert attributes["FiveMinuteRate"] == pytest.approx(10 * math.exp(-1 / 5))
    assert attributes["FifteenMinuteRate"] == pytest.approx(10 * math.exp(-1 / 15))
    assert attributes["MeanRate"] == pytest.approx(5.0)


def test_how_often_somebody_reads_does_not_change_the_rate() -> None:
    readings = []
    for step_ms in (100, 1_000, 20_000):
        clock = ManualClock()
        registry = MetricsRegistry(clock)
        meter = registry.meter(MESSAGES_IN)
        for burst in (40, 0):
            for _ in range(60_000 // step_ms):
                meter.count += burst * step_ms // 100
                clock.advance(step_ms)
                registry.tick()
        readings.append(registry.snapshot().value(MESSAGES_IN, "OneMinuteRate"))
    assert readings == pytest.approx([readings[0]] * 3)
    assert readings[0] == pytest.approx(400 * math.exp(-1))


def test_reading_twice_in_one_millisecond_is_harmless(registry: MetricsRegistry, clock: ManualClock) -> None:
    registry.meter(MESSAGES_IN).count += 1
    assert registry.snapshot()[MESSAGES_IN]["MeanRate"] == 0.0
    clock.advance(1_000)
    assert registry.snapshot() == registry.snapshot()


def test_a_histogram_describes_its_values() -> None:
    histogram = Histogram()
    values = list(range(1, 100))
    random.Random(1).shuffle(values)
    for value in values:
        histogram.update(value)
    read = histogram.read(0)
    assert (read["Count"], read["Min"], read["Max"], read["Mean"]) == (99, 1, 99, 50)
    assert read["StdDev"] == pytest.approx(statistics.stdev(values))
    assert read["50thPercentile"] == 50 and read["95thPercentile"] == 95 and read["99thPercentile"] == 99
    assert set(read) == {
        *("Count", "Min", "Max", "Mean", "StdDev", "50thPercentile", "75thPercentile", "95thPercentile"),
        *("98thPercentile", "99thPercentile", "999thPercentile"),
    }


def test_percentiles_lie_between_neighbours_as_yammers_do() -> None:
    histogram = Histogram()
    for value in (10, 20, 30, 40):
        histogram.update(value)
    read = histogram.read(0)
    assert read["50thPercentile"] == 25  # rank 0.5 * 5 = 2.5
    assert read["75thPercentile"] == 37.5
    assert read["999thPercentile"] == 40


def test_a_histogram_keeps_the_last_values_only() -> None:
    histogram = Histogram()
    for value in range(RESERVOIR_VALUES_MAX + 10):
        histogram.update(value)
    read = histogram.read(0)
    assert read["Count"] == RESERVOIR_VALUES_MAX + 10
    assert (read["Min"], read["Max"]) == (10, RESERVOIR_VALUES_MAX + 9)


def test_an_empty_histogram_reads_zero_and_one_value_has_no_spread() -> None:
    histogram = Histogram()
    assert set(histogram.read(0).values()) == {0.0}
    histogram.update(7)
    read = histogram.read(0)
    assert read["StdDev"] == 0 and read["50thPercentile"] == 7 and read["Min"] == 7


def test_gauges_are_read_when_asked_and_may_share_a_name(registry: MetricsRegistry) -> None:
    lags = [5]
    fetch = "kafka.consumer:type=consumer-fetch-manager-metrics"
    registry.gauge(fetch, lambda: lags[0], attribute="records-lag-max")
    registry.gauge(fetch, lambda: 2.5, attribute="records-consumed-rate")
    lags[0] = 9
    assert registry.snapshot()[fetch] == {"records-lag-max": 9, "records-consumed-rate": 2.5}
    assert registry.snapshot().value(fetch, "records-lag-max") == 9


def test_a_later_gauge_replaces_the_earlier(registry: MetricsRegistry) -> None:
    registry.gauge("a:type=b", lambda: 1)
    registry.gauge("a:type=b", lambda: 2)
    assert registry.snapshot().value("a:type=b") == 2


def test_remove_forgets_what_has_all_the_tags(registry: MetricsRegistry) -> None:
    for topic in ("orders", "clicks"):
        for partition in (0, 1):
            registry.gauge("kafka.log:type=Log,name=Size", lambda: 1, topic=topic, partition=partition)
    registry.meter(MESSAGES_IN)
    assert registry.remove(topic="orders", partition=1) == 1
    assert registry.remove(topic="clicks") == 2
    assert list(registry.snapshot()) == ["kafka.log:type=Log,name=Size,topic=orders,partition=0", MESSAGES_IN]
    with pytest.raises(ValueError, match="at least one tag"):
        registry.remove()


def test_value_takes_tags_in_any_order_and_picks_the_plain_attribute(registry: MetricsRegistry) -> None:
    registry.gauge("kafka.log:type=Log,name=Size", lambda: 77, topic="orders", partition=0)
    registry.histogram(TOTAL_TIME, request="Produce").update(4)
    metrics = registry.snapshot()
    assert metrics.value("kafka.log:type=Log,name=Size", partition=0, topic="orders") == 77
    assert metrics.value("kafka.log:name=Size,partition=0,topic=orders,type=Log") == 77
    assert metrics.value(TOTAL_TIME, request="Produce") == 1
    assert metrics.value(TOTAL_TIME, "99thPercentile", request="Produce") == 4


def test_an_unknown_metric_is_named_with_a_suggestion(registry: MetricsRegistry) -> None:
    registry.meter(MESSAGES_IN)
    metrics = registry.snapshot()
    with pytest.raises(ResourceNotFoundError, match=r"did you mean 'kafka\.server:type=BrokerTopicMetrics"):
        metrics.value(MESSAGES_IN.replace("Messages", "Message"))
    with pytest.raises(ResourceNotFoundError, match="no attribute Median; it has Count, MeanRate"):
        metrics.value(MESSAGES_IN, "Median")


def test_a_reading_is_a_mapping_that_does_not_move(registry: MetricsRegistry) -> None:
    meter = registry.meter(MESSAGES_IN)
    before = registry.snapshot()
    meter.count += 1
    assert before.value(MESSAGES_IN) == 0 and registry.snapshot().value(MESSAGES_IN) == 1
    assert len(before) == 1 and MESSAGES_IN in before and before.get("nothing") is None
    assert repr(before) == "<Metrics: 1 MBeans>"
    assert set(before | Metrics({"a:type=b": {"Value": 1.0}})) == {MESSAGES_IN, "a:type=b"}


NASTY = ["orders", "a,b=c:d", 'say "hi"', "back\\slash", "star*?", "line\nbreak", "", "ünï", '"', "\\"]


@pytest.mark.parametrize("value", NASTY)
def test_any_tag_value_survives_the_name(value: str) -> None:
    name = full_name("kafka.server:type=T", {"group": value, "topic": "orders"})
    assert parse_name(name) == ("kafka.server", (("group", value), ("topic", "orders"), ("type", "T")))


def test_prometheus_text(registry: MetricsRegistry, clock: ManualClock) -> None:
    registry.counter("kafka.server:type=X,name=FailedPerSec", topic="b").count += 2
    registry.gauge("kafka.log:type=Log,name=Size", lambda: 1.5, topic='we"ird\\\n', **{"client-id": "c"})
    registry.counter("kafka.server:type=X,name=FailedPerSec", topic="a").count += 1
    registry.gauge("a:type=nan", lambda: math.nan)
    registry.gauge("a:type=inf", lambda: math.inf)
    assert registry.snapshot().prometheus().split("\n") == [
        "# TYPE a_inf_Value gauge",
        "a_inf_Value +Inf",
        "# TYPE a_nan_Value gauge",
        "a_nan_Value NaN",
        "# TYPE kafka_log_Log_Size_Value gauge",
        'kafka_log_Log_Size_Value{client_id="c",topic="we\\"ird\\\\\\n"} 1.5',
        "# TYPE kafka_server_X_FailedPerSec_Count counter",
        'kafka_server_X_FailedPerSec_Count{topic="b"} 2',
        'kafka_server_X_FailedPerSec_Count{topic="a"} 1',
        "",
    ]


def test_an_empty_registry_prints_nothing(registry: MetricsRegistry) -> None:
    assert registry.snapshot().prometheus() == ""


def test_a_timer_is_a_meter_and_a_distribution(registry: MetricsRegistry, clock: ManualClock) -> None:
    timer = registry.timer("kafka.log:type=LogFlushStats,name=LogFlushRateAndTimeMs")
    for ms in (1, 2, 3):
        timer.update(ms)
    clock.advance(1_000)
    read = registry.snapshot()["kafka.log:type=LogFlushStats,name=LogFlushRateAndTimeMs"]
    assert (read["Count"], read["MeanRate"], read["Mean"], read["Max"]) == (3, 3, 2, 3)


def test_a_windowed_rate_is_kafkas() -> None:
    rate = WindowedRate(0)
    assert rate.read(30, 0) == 1  # the window before the first counts as empty
    assert rate.read(60, 30_000) == 2
    total = 60
    for now_ms in range(31_000, 200_000, 1_000):
        total += 5
        found = rate.read(total, now_ms)
    assert found == pytest.approx(5, rel=0.05)
    for now_ms in range(200_000, 300_000, 1_000):
        found = rate.read(total, now_ms)
    assert found == 0


def test_a_windowed_rate_nobody_read_for_long_is_that_of_the_pause() -> None:
    rate = WindowedRate(0)
    rate.read(0, 1_000)
    assert rate.read(3_600, 3_601_000) == pytest.approx(1, rel=0.01)


def test_collectors_are_asked_at_each_snapshot_until_forgotten(registry: MetricsRegistry) -> None:
    there = ["a", "b"]

    def collect(now_ms: int) -> list[tuple[str, dict[str, float]]]:
        return [(f"d:type=T,topic={name}", {"Value": 1}) for name in there]

    registry.collect(collect)
    registry.gauge("d:type=T", lambda: 2, attribute="Other", topic="a")
    assert registry.snapshot()["d:type=T,topic=a"] == {"Other": 2, "Value": 1}
    there.remove("b")
    assert list(registry.snapshot()) == ["d:type=T,topic=a"]
    registry.forget(collect)
    registry.forget(collect)
    assert registry.snapshot()["d:type=T,topic=a"] == {"Other": 2}


def test_numbers_are_given_once(registry: MetricsRegistry) -> None:
    assert [registry.next_number("producer") for _ in range(3)] == [1, 2, 3]
    assert registry.next_number("consumer") == 1


def test_prometheus_text_of_odd_names(registry: MetricsRegistry) -> None:
    """Tags in any place, quoted or not, type and name among them: a label each, but for type and name."""
    registry.gauge("d:name=N,type=T", lambda: 1, z="1", a="2")
    registry.gauge("d:type=T,topic=x,name=M", lambda: 2, b="3")
    registry.gauge('d:type=T,name="a,b"', lambda: 3, client='we"ird,=\\')
    registry.gauge("plain", lambda: 4)
    registry.gauge("plain", lambda: 5, tag="t")
    registry.gauge("d:type=T,name=Q", lambda: 6, client="x,type=U", k="v")
    samples = [line for line in registry.snapshot().prometheus().split("\n") if line and line[0] != "#"]
    assert sorted(samples) == sorted(
        [
            'd_T_N_Value{a="2",z="1"} 1',
            'd_T_M_Value{b="3",topic="x"} 2',
            'd_T_a_b_Value{client="we\\"ird,=\\\\"} 3',
            "plain_Value 4",
            'plain_Value{tag="t"} 5',
            'd_T_Q_Value{client="x,type=U",k="v"} 6',
        ]
    )


def test_prometheus_text_parses_what_partitions_have_in_common_once(
    registry: MetricsRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for partition in range(50):
        for name in ("Size", "Start", "End", "Lag", "Segments"):
            registry.gauge(f"kafka.log:type=Log,name={name}", lambda: 1, topic="t", partition=partition)
    parsed: list[str] = []
    real = metrics.parse_name
    monkeypatch.setattr(metrics, "parse_name", lambda name: parsed.append(name) or real(name))
    assert registry.snapshot().prometheus().count("\n") == 250 + 5
    assert len(parsed) == 50 + 5
