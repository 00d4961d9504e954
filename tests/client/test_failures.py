"""How failures are told: to the record at fault, to its neighbours, and beside another error."""

from __future__ import annotations

import time

import pytest

from streamlog import Cluster
from streamlog.client.failures import attach
from streamlog.errors import DeliveryError, InvalidRecordError, InvalidTimestampError


def test_neighbours_of_a_refused_record_are_told_whose_fault_it_was(cluster: Cluster) -> None:
    cluster.create_topic("latest", config={"cleanup.policy": "compact"})
    producer = cluster.producer(linger_ms=60_000)
    good, bad, other = (producer.send("latest", b"v", key) for key in (b"k", None, b"l"))
    assert bad.exception() is bad.batch.error and "needs a key" in str(bad.exception())
    for future in (good, other):
        error = future.exception()
        assert isinstance(error, InvalidRecordError) and error.record_indexes == [1]
        assert str(error).startswith(
            "nothing is wrong with this record for latest-0, but with another of its batch"
        )
        assert error.__cause__ is bad.batch.error
        with pytest.raises(InvalidRecordError, match="send it again"):
            future.result()
    producer.send("latest", b"again", b"k").result()
    producer.close()  # all were told
    assert [record.value for record in cluster.topic("latest")[0].read()] == [b"again"]


def test_neighbours_nobody_asked_about_come_out_of_flush(cluster: Cluster) -> None:
    cluster.create_topic("latest", config={"cleanup.policy": "compact"})
    producer = cluster.producer(linger_ms=60_000)
    sent = producer.send_many("latest", [(b"k", b"1"), (None, b"2"), (b"l", b"3")])
    with pytest.raises(InvalidRecordError, match="needs a key"):
        sent[1].result()
    with pytest.raises(DeliveryError, match="2 records could not be written") as caught:
        producer.flush()
    assert [record.value for record in caught.value.failed] == [b"1", b"3"]
    producer.close()


def test_a_wrong_time_is_refused_by_send_and_costs_no_other_record(cluster: Cluster) -> None:
    topic = cluster.create_topic("timed", config={"message.timestamp.before.max.ms": 1000})
    now_ms = time.time_ns() // 1_000_000
    with cluster.producer(linger_ms=60_000) as producer:
        producer.send("timed", b"before")
        for wrong, where in ((now_ms + 7_200_000, "ahead of"), (1, "before")):
            with pytest.raises(
                InvalidTimestampError, match=f"topic 'timed': timestamp {wrong} is .* {where} now"
            ):
                producer.send("timed", b"x", timestamp=wrong)
        producer.send("timed", b"after", timestamp=now_ms)
    assert [record.value for record in topic[0].read()] == [b"before", b"after"]
    topic.alter_config({"message.timestamp.type": "LogAppendTime"})
    with cluster.producer() as producer:
        producer.send("timed", b"x", timestamp=1).result()  # the broker's clock counts


def test_attach_makes_no_circle() -> None:
    first, second = KeyError("a"), ValueError("b")
    second.__context__ = first
    attach(first, second)
    assert first.__context__ is second and second.__context__ is None
    attach(first, second)
    attach(first, first)
    seen, link = set(), first
    while link is not None:
        assert id(link) not in seen
        seen.add(id(link))
        link = link.__cause__ or link.__context__  # type: ignore[assignment]
