"""docs/metrics.md against the code: the same metrics, with the same attributes, in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import streamlog
from streamlog.metrics import Histogram, Meter, Timer, parse_name

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "metrics.md"
KINDS = {
    "meter": frozenset(Meter(0).read(0)),
    "histogram": frozenset(Histogram().read(0)),
    "timer": frozenset(Timer(0).read(0)),
    "gauge": frozenset({"Value"}),
}
OPEN_TAGS = {
    "topic",
    "partition",
    "request",
    "error",
    "client-id",
    "broker",
    "clientId",
}  # their values are data
ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def shape(name: str) -> str:
    """An MBean name without the values of its open tags."""
    domain, properties = parse_name(name)
    return (
        domain
        + ":"
        + ",".join(key if key in OPEN_TAGS else f"{key}={value}" for key, value in sorted(properties))
    )


def on_page() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, kind, meaning in ROW.findall(PAGE.read_text(encoding="utf-8")):
        attributes = KINDS[kind] if kind in KINDS else set(re.findall(r"`([^`]+)`", kind))
        assert attributes, f"{name}: what is a {kind}?"
        tags = re.findall(r"also with `([a-z]+)=\{", meaning)
        names = [name, *(f"{name},{tag}=x" for tag in tags)]
        for each in names:
            found.setdefault(shape(each), set()).update(attributes)
    return found


def in_code(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, attributes in metrics.items():
        found.setdefault(shape(name), set()).update(attributes)
    return found


def test_the_page_names_every_metric_and_no_other() -> None:
    with streamlog.open(":memory:", brokers=2, sync="off") as cluster:
        cluster.create_topic("orders", partitions=2, replication_factor=2)
        with (
            cluster.producer() as producer,
            cluster.consumer_group("g", ["orders"]).consumer(stop_at_end=True) as consumer,
        ):
            producer.send_many("orders", [(b"k", b"v")] * 10)
            producer.flush()
            assert len(list(consumer)) == 10
            code, page = in_code(cluster.metrics()), on_page()
    assert sorted(code) == sorted(page)
    assert {name: sorted(code[name]) for name in code} == {name: sorted(page[name]) for name in page}
