"""The waist: plain values, equal by content, never changed, with Kafka's numbers and defaults."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streamlog.broker import api
from streamlog.core import group_events as events
from tests.broker.builders import batch_of

VALUES: list[Any] = [
    api.WriteMarkers(7, 1, 0, True, [("t", 0)]),
    api.InitProducerId(60_000, 7),
    api.AddPartitions(7, 1, [("t", 0)]),
    api.ExpireTransactionalId(),
    api.MarkersWritten(7, 2, [("t", 0)]),
    api.EndTxn(7, 0, True),
    api.TransactionRequest("t-1", api.EndTxn(7, 0, False)),
    api.Produce([("t", 0, batch_of(b"x", timestamp=1))]),
    api.Produced(5, -1, 0),
    api.Retrying(),
    api.Fetch([("t", 0, 7, 1000)]),
    api.FetchedPartition("t", 0, 9, 9, 0, []),
    api.ListOffsets([("t", 0, api.LATEST)]),
    api.CreateTopic("t"),
    api.DeleteTopic("t"),
    api.CreatePartitions("t", 3),
    api.AlterTopicConfig("t", {"retention.ms": None}),
    api.AlterBrokerConfig("", {"log.retention.ms": None}),
    api.DeleteRecords("t", 0, -1),
    api.TruncateTail("t", 0, 3),
    api.GroupRequest("g", events.ExpireOffsets()),
]


def test_every_request_and_response_is_here() -> None:
    defined = {
        name for name, kind in vars(api).items() if isinstance(kind, type) and kind.__module__ == api.__name__
    }
    assert {type(value).__name__ for value in VALUES} == defined


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_equal_by_content_and_never_change(value: Any) -> None:
    fields = msgspec.structs.asdict(value)
    assert type(value)(**fields) == value
    for name in fields:
        with pytest.raises(AttributeError):
            setattr(value, name, None)


def test_the_numbers_and_defaults_are_kafkas() -> None:
    assert (api.LATEST, api.EARLIEST, api.MAX_TIMESTAMP) == (-1, -2, -3)  # ListOffsetsRequest
    assert api.Produce([]).acks == -1
    fetch = api.Fetch([])
    assert (fetch.bytes_min, fetch.bytes_max, fetch.wait_ms_max) == (1, 52_428_800, 500)
    assert fetch.isolation_level == api.ListOffsets([]).isolation_level == "read_uncommitted"
    assert fetch.check_crcs
    topic = api.CreateTopic("t")
    assert (topic.partitions, topic.replication_factor) == (-1, -1)


def test_defaults_are_not_shared() -> None:
    one, other = api.CreateTopic("a"), api.CreateTopic("b")
    one.config["retention.ms"] = "1"
    assert other.config == {} == api.CreateTopic("c").config
