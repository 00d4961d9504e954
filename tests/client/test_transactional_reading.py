"""Where a consumer stands after a transaction, however it reads: what was handed out and not committed comes again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import streamlog
from streamlog.errors import CommitFailedError

COUNT = 12


@pytest.fixture
def cluster() -> Iterator[Any]:
    with streamlog.open(":memory:") as opened:
        opened.create_topic("in")
        opened.create_topic("out")
        with opened.producer() as producer:
            producer.send_many("in", [(None, b"%02d" % number) for number in range(COUNT)])
        yield opened


def read(cluster: Any) -> list[bytes]:
    with cluster.consumer(isolation_level="read_committed", stop_at_end=True) as reader:
        reader.assign([("out", 0)])
        return [record.value for record in reader]


def group_of(cluster: Any) -> Any:
    return cluster.consumer_group("g", ["in"], enable_auto_commit=False)


@pytest.mark.parametrize("deserializer", ["bytes", "str"])
@pytest.mark.parametrize("failing", [0, 2, COUNT - 1])
def test_a_transaction_for_each_record_iterated_over(cluster: Any, failing: int, deserializer: str) -> None:
    left = [failing]
    with (
        group_of(cluster).consumer(stop_at_end=True, value_deserializer=deserializer) as consumer,
        cluster.producer(transactional_id="t", value_serializer=deserializer) as producer,
    ):
        while not consumer.at_end:
            for record in consumer:
                try:
                    with producer.transaction(consumer):
                        producer.send("out", record.value)
                        if record.offset in left:
                            left.clear()
                            raise LookupError
                except LookupError:
                    pass
    assert read(cluster) == [b"%02d" % number for number in range(COUNT)]


@pytest.mark.parametrize("taken", [1, 5, COUNT])
def test_an_abort_goes_back_over_all_that_was_iterated_over(cluster: Any, taken: int) -> None:
    with group_of(cluster).consumer() as consumer, cluster.producer(transactional_id="t") as producer:
        for goes_wrong in (True, False):
            try:
                with producer.transaction(consumer):
                    for _, record in zip(range(taken), consumer, strict=False):
                        producer.send("out", record.value)
                    if goes_wrong:
                        raise LookupError
            except LookupError:
                assert consumer.position(("in", 0)) == 0
    assert read(cluster) == [b"%02d" % number for number in range(taken)]


def test_ctrl_c_in_a_later_poll_of_a_transaction(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the interrupted poll had taken is put back; the abort goes back over an earlier one's records."""
    with group_of(cluster).consumer() as consumer, cluster.producer(transactional_id="t") as producer:

        def struck(count_max: int) -> Any:
            monkeypatch.undo()
            assert consumer._collect(count_max)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), producer.transaction(consumer):
            assert len(consumer.poll(5, max_records=4)) == 4
            monkeypatch.setattr(consumer, "_collect", struck)
            consumer.poll(5, max_records=4)
        assert consumer.poll(5, max_records=1)[0].offset == 0


def test_a_partition_that_goes_after_all_of_it_was_committed_is_not_lost(cluster: Any) -> None:
    """In the middle of a buffer, too: nothing of it is being processed. Else the next transaction would be aborted."""
    group = group_of(cluster)
    with group.consumer() as consumer, cluster.producer(transactional_id="t") as producer:
        iterator = iter(consumer)
        with producer.transaction(consumer):
            next(iterator)
        consumer.unsubscribe()
        assert consumer._commits.lost == set()
        consumer.subscribe("in")
        next(iter(consumer))
        consumer.unsubscribe()
        with pytest.raises(CommitFailedError), producer.transaction(consumer):
            pass
