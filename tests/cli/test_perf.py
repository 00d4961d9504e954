"""`streamlog perf`: the lines that Kafka's tools print, and that they are true."""

from __future__ import annotations

import re
from typing import Any

import pytest

import streamlog

NUMBER = r"\d+\.\d+"


def records(store: str, topic: str = "perf") -> list[Any]:
    with streamlog.open(store, mode="r") as cluster, cluster.consumer(stop_at_end=True) as consumer:
        consumer.assign([(topic, number) for number in range(len(cluster.topic(topic)))])
        return list(consumer)


@pytest.mark.parametrize("bulk", [[], ["--bulk"]], ids=["send", "bulk"])
def test_produce(cli: Any, store: str, bulk: list[str]) -> None:
    done = cli(
        "perf",
        "produce",
        "--records",
        "2,500",
        "--record-size",
        "30",
        "--key-size",
        "8",
        "--sync",
        "off",
        *bulk,
    )
    assert done.code == 0
    assert re.fullmatch(
        rf"2500 records sent, {NUMBER} records/sec \({NUMBER} MB/sec\), {NUMBER} ms avg latency, {NUMBER} ms "
        r"max latency, "
        rf"{NUMBER} ms 50th, {NUMBER} ms 95th, {NUMBER} ms 99th, {NUMBER} ms 99.9th\.\n",
        done.text,
    )
    found = records(store)
    assert len(found) == 2500
    assert {(len(r.key), len(r.value)) for r in found} == {(8, 30)}
    assert len({r.value for r in found}) > 900


def test_produce_json(cli: Any) -> None:
    done = cli(
        "perf", "produce", "--records", "200", "--json", "--linger-ms", "0", "--compression", "zstd"
    ).json
    assert (done["records"], done["record_bytes"], done["sync"]) == (200, 100, "full")
    latency = done["latency_ms"]
    assert latency["samples"] == 200
    assert (
        0 < latency["50th"] <= latency["95th"] <= latency["99th"] <= latency["99.9th"] <= latency["maximum"]
    )
    assert done["records_per_second"] == pytest.approx(200 / done["elapsed_ms"] * 1000)


def test_produce_keeps_to_its_throughput(cli: Any) -> None:
    done = cli("perf", "produce", "--records", "400", "--throughput", "2000", "--sync", "off", "--json").json
    assert done["elapsed_ms"] >= 150


def test_consume(cli: Any) -> None:
    cli(
        "perf",
        "produce",
        "--records",
        "3000",
        "--record-size",
        "1024",
        "--partitions",
        "3",
        "--sync",
        "off",
        "--bulk",
    )
    done = cli("perf", "consume")
    header, line = done.text.splitlines()
    assert header.startswith(
        "start.time, end.time, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, nMsg.sec, "
    )
    fields = line.split(", ")
    assert len(fields) == len(header.split(", ")) == 10
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d:\d{3}", fields[0])
    assert (float(fields[2]), int(fields[4])) == (pytest.approx(3000 / 1024, abs=1e-3), 3000)
    assert cli("perf", "consume", "--records", "1234", "--json").json["records"] == 1234
    late = cli("perf", "consume", "--records", "4000", "--timeout", "0.1", "--json")
    assert late.json["records"] == 3000 and "read 3,000 of 4,000" in late.err


def test_e2e(cli: Any) -> None:
    done = cli("perf", "e2e", "--records", "300", "--sync", "off")
    first, average, percentiles = done.text.splitlines()
    assert re.fullmatch(rf"0\t{NUMBER}", first)
    assert re.fullmatch(rf"Avg latency: {NUMBER} ms", average)
    assert re.fullmatch(rf"Percentiles: 50th = {NUMBER}, 99th = {NUMBER}, 99.9th = {NUMBER}", percentiles)
    found = cli("perf", "e2e", "--records", "100", "--sync", "off", "--json").json
    assert found["records"] == found["latency_ms"]["samples"] == 100
    assert 0 < found["latency_ms"]["50th"] < 1000


def test_errors(cli: Any) -> None:
    cli("perf", "consume").failed(1, "no directory")
    cli("topics", "create", "logs")
    cli("perf", "consume").failed(1, "no topic 'perf'")
    cli("perf", "produce", "--records", "0").failed(2, "below 1")
    cli("perf", "produce", "--acks", "2").failed(2, "--acks")
    cli("perf", "e2e", "--record-size", "1").failed(2, "below 8")
    cli("perf", "produce", "--record-size", "2000000", "--records", "1").failed(1, "max_request_size")
    assert cli("perf", bare=True).code == 2
