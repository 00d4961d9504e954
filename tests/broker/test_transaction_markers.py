"""Markers for several partitions in one request: each succeeds or fails on its own. What they do: tests/spec."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamlog.batch import ControlType, control_batch
from streamlog.broker import api
from streamlog.errors import InvalidProducerEpochError, InvalidRecordError, UnknownTopicOrPartitionError
from tests.broker.builders import opened
from tests.spec.replicas import replicated


def test_each_partition_has_its_own_answer(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 2, 1, {})
    cluster.ensure_offsets_topic()
    cluster.broker.call(api.WriteMarkers(7, 5, 0, True, [("t", 1)]))
    written, fenced, unknown, internal = cluster.broker.call(
        api.WriteMarkers(7, 4, 0, False, [("t", 0), ("t", 1), ("nowhere", 0), ("__consumer_offsets", 0)])
    )
    assert (written.base_offset, written.error) == (0, None)
    assert isinstance(fenced.error, InvalidProducerEpochError)
    assert isinstance(unknown.error, UnknownTopicOrPartitionError)
    assert internal.error is None, "offsets are committed in transactions, too"
    cluster.close()


def test_they_are_answered_when_they_are_replicated() -> None:
    with replicated() as replicas:
        replicas.cluster.network.drop(0, 1)
        pending = replicas.broker(0).post(api.WriteMarkers(7, 1, 0, True, [("t", 0)]))
        again = replicas.broker(0).post(api.WriteMarkers(7, 1, 0, True, [("t", 0)]))
        replicas.sleep(0.5)
        assert not pending.done and not again.done, "the second finds it written, and waits for it, too"
        replicas.cluster.network.heal()
        replicas.sleep(2)
        assert pending.result()[0].error is again.result()[0].error is None
        assert replicas.end(0) == 1


def test_a_client_cannot_write_one(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("t", 1, 1, {})
    marker = control_batch(ControlType.COMMIT, producer_id=7, producer_epoch=0, timestamp=1)
    (refused,) = cluster.broker.call(api.Produce([("t", 0, marker)]))
    with pytest.raises(InvalidRecordError, match="control batch"):
        raise refused.error
    cluster.close()
