"""broker/measuring.py: what is counted while it happens. By value: tests/spec/test_metrics.py."""

from __future__ import annotations

import pytest

from streamlog import errors
from streamlog.broker.api import CreateTopic, Produce
from streamlog.broker.measuring import PROCESS_IO, RequestTimes, error_name, read_disk
from streamlog.broker.pending import Pending
from streamlog.clock import ManualClock


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (errors.UnknownTopicOrPartitionError, "UNKNOWN_TOPIC_OR_PARTITION"),
        (errors.RecordTooLargeError, "MESSAGE_TOO_LARGE"),
        (errors.RebalanceInProgressError, "REBALANCE_IN_PROGRESS"),
        (errors.UnknownMemberIdError, "UNKNOWN_MEMBER_ID"),
    ],
)
def test_errors_have_kafkas_names(kind: type[Exception], name: str) -> None:
    assert error_name(kind) == error_name(kind) == name


def test_a_request_takes_from_its_posting_to_the_end_of_its_turn() -> None:
    clock = ManualClock(1_000)
    times = RequestTimes(clock)
    pending = Pending(Produce([]))
    pending.posted_us = clock.monotonic_us()
    other = Pending(CreateTopic("t"))
    other.posted_us = pending.posted_us
    clock.advance(7)
    times.count(
        [(pending, [], None), (other, None, errors.InvalidTopicError("t")), (Pending(object()), None, None)]
    )
    read = dict(times.read(clock.monotonic_ms()))
    prefix = "kafka.network:type=RequestMetrics,name="
    assert pending.took_us == 7_000
    assert read[prefix + "TotalTimeMs,request=Produce"]["Max"] == 7
    assert read[prefix + "RequestsPerSec,request=CreateTopics"]["Count"] == 1
    assert read[prefix + "ErrorsPerSec,request=CreateTopics,error=INVALID_TOPIC"]["Count"] == 1
    assert read[prefix + "ErrorsPerSec,request=CreateTopics,error=NONE"]["Count"] == 0
    assert read[prefix + "RequestsPerSec,request=JoinGroup"]["Count"] == 0


def test_where_the_system_tells_no_disk_io_there_are_no_such_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamlog.broker.measuring.PROCESS_IO", PROCESS_IO + "-not-here")
    assert list(read_disk(None, 0)) == []  # type: ignore[arg-type]
