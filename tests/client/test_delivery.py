"""Futures and what flush and leaving `with` report: nothing is ever dropped silently."""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading

import pytest

from streamlog import Cluster, Producer, Record, Topic
from streamlog.errors import ClosedError, DeliveryError, InvalidRecordError


@pytest.fixture
def compacted(cluster: Cluster) -> Topic:
    """A topic whose broker refuses records without a key: the one failure that comes back late."""
    return cluster.create_topic("compacted", config={"cleanup.policy": "compact"})


# -- flush and leaving -------------------------------------------------------------------------------------


def test_flush_raises_what_nobody_read_once(cluster: Cluster, compacted: Topic) -> None:
    with cluster.producer(linger_ms=10_000) as producer:
        for number in range(3):
            producer.send("compacted", b"%d" % number, headers=[("h", b"%d" % number)], timestamp=number)
        with pytest.raises(DeliveryError) as caught:
            producer.flush()
        error = caught.value
        assert error.count == 3 and isinstance(error.__cause__, InvalidRecordError)
        assert list(error.failed) == [
            Record("compacted", 0, -1, number, None, b"%d" % number, (("h", b"%d" % number),))
            for number in range(3)
        ]
        assert "3 records" in str(error)
        producer.flush()  # told once
        producer.send("compacted", b"fine", key=b"k")
    assert pickle.loads(pickle.dumps(error)).count == 3


def test_every_failed_record_is_in_the_error(cluster: Cluster, compacted: Topic) -> None:
    producer = cluster.producer()
    producer.send_many("compacted", [(None, b"%d" % number) for number in range(5000)])
    with pytest.raises(DeliveryError) as caught:
        producer.close()
    assert sorted(int(record.value or b"") for record in caught.value.failed) == list(range(5000))


def test_failures_that_were_read_are_not_told_again(cluster: Cluster, compacted: Topic) -> None:
    with cluster.producer(linger_ms=10_000) as producer:
        by_result, by_exception, unread = (producer.send("compacted", b"%d" % number) for number in range(3))
        with pytest.raises(InvalidRecordError):
            by_result.result()
        assert isinstance(by_exception.exception(), InvalidRecordError)
        assert unread.done()  # knowing that it is over is not knowing how
        with pytest.raises(DeliveryError) as caught:
            producer.flush()
        assert [record.value for record in caught.value.failed] == [b"2"]


def test_leaving_raises_too_and_closes(cluster: Cluster, compacted: Topic) -> None:
    with pytest.raises(DeliveryError), cluster.producer(linger_ms=10_000) as producer:
        producer.send("compacted", b"x")
    with pytest.raises(ClosedError):
        producer.send("compacted", b"x", key=b"k")
    producer.close()


def test_one_topics_failure_does_not_keep_the_others(
    cluster: Cluster, compacted: Topic, single: Topic
) -> None:
    with pytest.raises(DeliveryError) as caught, cluster.producer(linger_ms=10_000) as producer:
        producer.send("compacted", b"x")
        producer.send("single", b"y")
    assert caught.value.count == 1 and single[0].high_watermark == 1


def test_an_exception_in_flight_is_the_news_and_carries_ours(cluster: Cluster, compacted: Topic) -> None:
    with pytest.raises(KeyError) as caught, cluster.producer(linger_ms=10_000) as producer:
        producer.send("compacted", b"x")
        raise KeyError("mine")
    assert isinstance(caught.value.__context__, DeliveryError)
    assert caught.value.__context__.__context__ is not caught.value


def test_an_exception_with_a_past_carries_ours_behind_it(cluster: Cluster, compacted: Topic) -> None:
    with pytest.raises(KeyError) as caught, cluster.producer(linger_ms=10_000) as producer:
        producer.send("compacted", b"x")
        try:
            raise ValueError("first")
        except ValueError as error:
            raise KeyError("second") from error
    cause = caught.value.__cause__
    assert isinstance(cause, ValueError) and isinstance(cause.__context__, DeliveryError)


def test_an_exception_in_flight_does_not_keep_records_from_being_sent(
    cluster: Cluster, single: Topic
) -> None:
    with pytest.raises(KeyError), cluster.producer(linger_ms=10_000) as producer:
        producer.send("single", b"x")
        raise KeyError
    assert single[0].high_watermark == 1


def test_failures_somebody_read_are_forgotten(cluster: Cluster, compacted: Topic) -> None:
    with cluster.producer(linger_ms=0) as producer:
        for _ in range(500):
            assert producer.send("compacted", b"x").exception() is not None
        assert len(producer._failed) < 200


def test_a_batch_that_cannot_be_sealed_fails_alone_and_is_told(
    cluster: Cluster, orders: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamlog.client import delivery

    seal = delivery.seal_columnar

    def failing(keys: list[bytes], values: list[bytes], **options: object) -> object:
        if values[0] == b"bad":
            raise MemoryError("no room to compress")
        return seal(keys, values, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(delivery, "seal_columnar", failing)
    producer = cluster.producer(linger_ms=10_000)
    good, bad = producer.send("orders", b"good", partition=0), producer.send("orders", b"bad", partition=1)
    called: list[object] = []
    bad.add_done_callback(called.append)
    with pytest.raises(DeliveryError) as caught:
        producer.close()
    assert isinstance(caught.value.__cause__, MemoryError) and caught.value.count == 1
    assert good.result().offset == 0 and called == [bad]
    assert isinstance(bad.exception(), MemoryError)


# -- futures -----------------------------------------------------------------------------------------------


def test_result_sends_at_once(cluster: Cluster, single: Topic) -> None:
    with cluster.producer(linger_ms=60_000) as producer:
        first, second = producer.send("single", b"x"), producer.send("single", b"y")
        assert not first.done() and "pending" in repr(first)
        assert first.result(timeout=5).offset == 0
        assert second.done() and second.result().offset == 1  # the same batch
        assert first.result() == first.result() and first.exception() is None and "done" in repr(first)


def test_futures_outlive_the_producer(cluster: Cluster, single: Topic, compacted: Topic) -> None:
    with pytest.raises(DeliveryError), cluster.producer() as producer:
        fine, failed = producer.send("single", b"x"), producer.send("compacted", b"x")
    assert fine.result().offset == 0
    assert isinstance(failed.exception(), InvalidRecordError) and "failed" in repr(failed)
    called: list[object] = []
    fine.add_done_callback(called.append)
    assert called == [fine]


def test_an_error_raised_often_does_not_grow(cluster: Cluster, compacted: Topic) -> None:
    with cluster.producer() as producer:
        future = producer.send("compacted", b"x")
        depths = []
        for _ in range(3):
            with pytest.raises(InvalidRecordError) as caught:
                future.result()
            depths.append(len(caught.traceback))
        assert len(set(depths)) == 1


def test_done_callbacks_run_in_order_in_one_other_thread(cluster: Cluster, single: Topic) -> None:
    called: list[tuple[int, int]] = []
    with cluster.producer(batch_size=300, linger_ms=1) as producer:
        for _ in range(500):
            producer.send("single", b"x" * 40).add_done_callback(
                lambda future: called.append((future.result().offset, threading.get_ident()))
            )
    assert [offset for offset, _ in called] == list(range(500))


def test_several_callbacks_of_one_record(cluster: Cluster, single: Topic) -> None:
    called: list[str] = []
    with cluster.producer(linger_ms=10_000) as producer:
        future = producer.send("single", b"x")
        future.add_done_callback(lambda _: called.append("first"))
        future.add_done_callback(lambda _: called.append("second"))
        future.result()
        future.add_done_callback(lambda _: called.append("late"))
    assert called == ["first", "second", "late"]


def test_a_callback_that_reads_the_failure_has_been_told(cluster: Cluster, compacted: Topic) -> None:
    errors: list[BaseException | None] = []
    with cluster.producer() as producer:
        future = producer.send("compacted", b"x")
        told = threading.Event()
        future.add_done_callback(lambda f: (errors.append(f.exception()), told.set()))
        assert told.wait(10)
    assert isinstance(errors[0], InvalidRecordError)


def test_a_callback_that_raises_is_logged_and_stops_nothing(
    cluster: Cluster, single: Topic, caplog: pytest.LogCaptureFixture
) -> None:
    called = []
    with caplog.at_level(logging.ERROR), cluster.producer() as producer:
        producer.send("single", b"x").add_done_callback(lambda _: 1 / 0)
        producer.send("single", b"y").add_done_callback(called.append)
    assert len(called) == 1 and "ZeroDivisionError" in caplog.text


def test_a_callback_may_send_flush_and_close(cluster: Cluster, single: Topic) -> None:
    producer: Producer = cluster.producer(linger_ms=1)
    finished = threading.Event()

    def more(_: object) -> None:
        producer.send("single", b"from the callback")
        producer.flush()
        producer.close()
        finished.set()

    producer.send("single", b"x").add_done_callback(more)
    assert finished.wait(10)
    assert [record.value for record in single[0].read()] == [b"x", b"from the callback"]


def test_futures_are_awaitable(cluster: Cluster, single: Topic, compacted: Topic) -> None:
    async def main(producer: Producer) -> None:
        assert (await producer.send("single", b"x")).offset == 0
        found = await asyncio.gather(*(producer.send("single", b"%d" % i) for i in range(200)))
        assert [metadata.offset for metadata in found] == list(range(1, 201))
        with pytest.raises(InvalidRecordError):
            await producer.send("compacted", b"x")

    with cluster.producer(linger_ms=60_000) as producer:
        asyncio.run(asyncio.wait_for(main(producer), 20))


def test_waiting_for_a_future_does_not_hold_up_the_loop(cluster: Cluster, single: Topic) -> None:
    ticks = 0

    async def main(producer: Producer) -> None:
        nonlocal ticks
        sending = asyncio.ensure_future(_await(producer))
        while not sending.done():
            ticks += 1
            await asyncio.sleep(0)

    async def _await(producer: Producer) -> None:
        await producer.send("single", b"x")

    with cluster.producer() as producer:
        asyncio.run(asyncio.wait_for(main(producer), 20))
    assert ticks >= 1


# -- the batch ---------------------------------------------------------------------------------------------


def test_sent_many_is_a_sequence(cluster: Cluster, orders: Topic) -> None:
    with cluster.producer() as producer:
        sent = producer.send_many("orders", [(b"%d" % i, b"x") for i in range(10)])
        assert len(sent) == 10 == len(list(sent)) and "10 records" in repr(sent)
        assert [future.result() for future in sent] == sent.result()
        assert sent[3].result() == sent.result()[3] and len(sent[2:5]) == 3
