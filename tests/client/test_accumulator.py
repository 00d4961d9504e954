"""What a producer has gathered: invariants of the lower layer. Behaviour seen by users is in test_producer,
test_delivery.
"""

from __future__ import annotations

import pytest

from streamlog import Cluster, Topic
from streamlog.broker.turn import Pending
from streamlog.errors import ClosedError, ReentrantCallError


def test_an_interrupted_sealing_leaves_the_batch_where_flush_finds_it(
    cluster: Cluster, orders: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamlog.client import delivery

    with cluster.producer(linger_ms=10_000) as producer:
        futures = [producer.send("orders", b"%d" % partition, partition=partition) for partition in (0, 1)]
        seal = delivery.seal_columnar
        calls = 0

        def interrupted(*columns: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise KeyboardInterrupt
            return seal(*columns, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(delivery, "seal_columnar", interrupted)
        with pytest.raises(KeyboardInterrupt):
            producer.flush()
        assert not any(future.done() for future in futures) and producer.pending_records == 2
        producer.flush()
        assert [future.result().offset for future in futures] == [0, 0]
    assert [partition.high_watermark for partition in orders] == [1, 1]


@pytest.mark.parametrize("asked", ["flush", "result", "result of a later one", "results of many"])
def test_a_hand_over_that_was_interrupted_twice_is_ended_by_the_next_call(
    cluster: Cluster, single: Topic, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    put = cluster._backend.put_produce
    interrupts = [KeyboardInterrupt(), KeyboardInterrupt()]

    def interrupted(pending: Pending, again: bool = False) -> None:
        if interrupts:
            raise interrupts.pop()
        put(pending, again)

    monkeypatch.setattr(cluster._backend, "put_produce", interrupted)
    with cluster.producer(linger_ms=10_000) as producer:
        first = producer.send(single.name, b"first")
        with pytest.raises(KeyboardInterrupt):
            first.result(0)
        if asked == "flush":
            producer.flush(5)
        elif asked == "result":
            first.result(5)
        elif asked == "result of a later one":
            producer.send(single.name, b"second").result(5)
        else:
            producer.send_many(single.name, [(None, b"second")] * 2).result(5)
        assert first.result(5).offset == 0
    written = [record.value for record in single[0].read()]
    assert written[0] == b"first" and written.count(b"first") == 1


def test_blocking_calls_inside_a_gathering_of_the_same_thread_are_refused(
    cluster: Cluster, single: Topic
) -> None:
    with cluster.producer(linger_ms=10_000) as producer:
        first = producer.send("single", b"before")
        with producer._lock:
            producer._inside = True  # as a signal handler or __del__ would find it
            aside = producer.send("single", b"aside", key=b"k", headers=[("h", None)])
            for call in (producer.flush, producer.close, first.result, aside.result):
                with pytest.raises(ReentrantCallError):
                    call()
            producer._inside = False
        producer.send("single", b"after")
    assert [record.value for record in single[0].read()] == [b"before", b"aside", b"after"]
    assert single[0].read(1)[0].headers == (("h", None),)


def test_a_record_sent_aside_keeps_its_place_however_it_is_asked_for(cluster: Cluster, single: Topic) -> None:
    with cluster.producer(linger_ms=10_000) as producer:
        producer.send("single", b"before")
        with producer._lock:
            producer._inside = True
            aside = producer.send("single", b"aside")
            producer._inside = False
        assert aside.result().offset == 1


def test_a_closed_producer_opens_no_batch(cluster: Cluster, single: Topic) -> None:
    producer = cluster.producer()
    producer.send("single", b"x")
    producer.close()
    for call in (
        lambda: producer.send("single", b"y"),
        lambda: producer.send_many("single", [(None, b"y")]),
        producer.flush,
    ):
        with pytest.raises(ClosedError):
            call()  # type: ignore[operator]
    assert single[0].high_watermark == 1


def test_an_older_image_of_a_topic_never_comes_back(cluster: Cluster, single: Topic) -> None:
    with cluster.producer(linger_ms=10_000) as producer:
        producer.send("single", b"x")
        older = producer._topics["single"]
        single.add_partitions(3)
        producer.send("single", b"y", partition=2)
        assert producer._topics["single"].count == 3 and older.batches == []
        assert producer._buffer_of("single") is producer._topics["single"]
