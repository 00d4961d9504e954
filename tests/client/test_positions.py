"""The lowest layer of a consumer. Its behaviour is in test_offsets.py; here: it refuses what is closed."""

from __future__ import annotations

import pytest

from streamlog import Cluster, Topic
from streamlog.errors import ClosedError


def test_nothing_can_be_asked_of_a_closed_consumer(cluster: Cluster, single: Topic) -> None:
    consumer = cluster.consumer(group_id="g")
    consumer.assign([("single", 0)])
    consumer.close()
    calls = [
        lambda: consumer.seek(("single", 0), 0),
        lambda: consumer.seek_to_beginning(),
        lambda: consumer.seek_to_end(),
        lambda: consumer.seek_to_timestamp(("single", 0), 0),
        lambda: consumer.position(("single", 0)),
        lambda: consumer.committed(("single", 0)),
        lambda: consumer.beginning_offsets([("single", 0)]),
        lambda: consumer.end_offsets([("single", 0)]),
        lambda: consumer.offsets_for_times({}),
        lambda: consumer.lag(("single", 0)),
        lambda: consumer.pause(("single", 0)),
        lambda: consumer.resume(("single", 0)),
        lambda: consumer.subscribe("single"),
        consumer.unsubscribe,
        lambda: consumer.assign([]),
        consumer.poll,
        consumer.commit,
        lambda: list(consumer),
        consumer.__enter__,
    ]
    for call in calls:
        with pytest.raises(ClosedError):
            call()  # type: ignore[operator]
    assert consumer.assignment == frozenset() == consumer.paused()
