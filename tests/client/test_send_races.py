"""`send` appends without the lock: what may happen between any two of its steps, driven bytecode by bytecode.

    sweep    at one place of an operation another thread, or a handler on this very thread, sends and flushes
    storm    is test_producer's (threads) and test_interrupts' (Ctrl-C)

Whatever comes in between: each record is written once, a thread's records stay in order, and each future knows
where its own record is.
"""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from streamlog import Cluster, Producer, Topic
from streamlog.client.delivery import OpenBatch, SendFuture
from streamlog.client.gathering import TopicBuffer
from tests.broker.builders import in_thread
from tests.broker.interrupting import watching

GATHERING = ("client/producer.py", "client/delivery.py", "client/accumulator.py")
SAMPLE = 150
SEED = 20_262


class Intervention:
    """Runs `meddle` once, at the n-th bytecode of the gathering code that `act` executes."""

    def __init__(self, at: int, meddle: Callable[[], object]) -> None:
        self.at = at
        self.meddle = meddle
        self.seen = 0
        self.place = ""

    def run(self, act: Callable[[], object]) -> object:
        with watching(lambda path: path.endswith(GATHERING), self._step):
            return act()

    def _step(self, frame: FrameType, last: int) -> None:
        self.seen += 1
        if self.seen == self.at:
            code = frame.f_code
            self.place = f"{code.co_filename.rsplit('/', 1)[1]}:{frame.f_lineno} {code.co_name}"
            self.meddle()


class Table:
    """A topic, a producer that lingers, and what was sent with it."""

    def __init__(self, cluster: Cluster, topic: Topic, **options: Any) -> None:
        self.topic = topic
        self.producer: Producer = cluster.producer(linger_ms=600_000, **options)
        self.sent: list[tuple[bytes, bytes, SendFuture]] = []
        self.begin = topic[0].high_watermark
        self.late: list[threading.Thread] = []

    def send(self, who: bytes, value: bytes | None = None) -> None:
        value = who + b" %d" % len(self.sent) if value is None else value
        headers = [("who", who)] if len(self.sent) % 3 == 0 else None
        self.sent.append((who, value, self.producer.send(self.topic.name, value, key=who, headers=headers)))

    def elsewhere(self, run: Callable[[], object]) -> None:
        """In another thread; where that must wait for the lock, this thread goes on meanwhile."""
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(0.02 if self.producer._lock._is_owned() else 20)
        self.late.append(thread)

    def check(self, where: str) -> None:
        for thread in self.late:
            thread.join(20)
            assert not thread.is_alive(), f"{where}: hangs"
        self.producer.flush()
        count = self.topic[0].high_watermark - self.begin
        found = self.topic[0].read(self.begin, max_records=count)
        assert sorted(record.value or b"" for record in found) == sorted(
            value for _, value, _ in self.sent
        ), where
        for who in {who for who, _, _ in self.sent}:
            own = [value for sender, value, _ in self.sent if sender == who]
            assert [record.value for record in found if record.key == who] == own, f"{where}: order"
        for who, value, future in self.sent:
            record = found[future.result().offset - self.begin]
            assert (record.key, record.value) == (who, value), f"{where}: a future of somebody else's record"
            assert record.timestamp == future.result().timestamp
            assert not record.headers or record.headers == (("who", who),)


def send_into_open_batch(table: Table) -> None:
    table.send(b"own")


def send_into_full_batch(table: Table) -> None:
    table.send(b"own", b"own " + b"x" * 5000)


def send_two_and_flush(table: Table) -> None:
    table.send(b"own")
    table.send(b"own")
    table.producer.flush()


def send_many(table: Table) -> None:
    values = [b"own many %d" % number for number in range(3)]
    sent = table.producer.send_many(table.topic.name, [(b"own", value) for value in values])
    table.sent += [(b"own", value, future) for value, future in zip(values, sent, strict=True)]


def other_thread_flushes(table: Table) -> None:
    def run() -> None:
        table.send(b"other")
        table.producer.flush()

    if table.producer._lock._is_owned():
        return  # it would only wait for the lock
    table.elsewhere(run)


def other_thread_sends(table: Table) -> None:
    table.elsewhere(lambda: table.send(b"other"))


def handler_sends(table: Table) -> None:
    table.send(b"handler")


@pytest.mark.parametrize("act", [send_into_open_batch, send_into_full_batch, send_two_and_flush, send_many])
@pytest.mark.parametrize("meddle", [other_thread_flushes, other_thread_sends, handler_sends])
def test_whatever_comes_in_between(
    cluster: Cluster, single: Topic, act: Callable[[Table], None], meddle: Callable[[Table], None]
) -> None:
    sweep(cluster, single, act, meddle, SAMPLE)


@pytest.mark.long
@pytest.mark.parametrize("act", [send_into_open_batch, send_into_full_batch, send_two_and_flush, send_many])
@pytest.mark.parametrize("meddle", [other_thread_flushes, other_thread_sends, handler_sends])
def test_whatever_comes_in_between_anywhere(
    cluster: Cluster, single: Topic, act: Callable[[Table], None], meddle: Callable[[Table], None]
) -> None:
    sweep(cluster, single, act, meddle, 10**9)


def sweep(
    cluster: Cluster, topic: Topic, act: Callable[[Table], None], meddle: Callable[[Table], None], count: int
) -> None:
    def struck(at: int) -> Intervention:
        table = Table(cluster, topic, batch_size=4000)
        table.send(b"own")
        intervention = Intervention(at, lambda: meddle(table))
        intervention.run(lambda: act(table))
        table.check(f"bytecode {at}, {intervention.place}")
        table.producer.close()
        return intervention

    total = struck(0).seen
    assert total > 50
    chance = random.Random(SEED)
    places = range(1, total + 1)
    for at in places if total <= count else sorted(chance.sample(places, count)):
        struck(at)


# -- single races, by name -------------------------------------------------------------------------------------


class Tail(list[SendFuture]):
    """The tail of a batch, with somebody coming right before or right behind an append."""

    def __init__(self, before: Callable[[], object] = list, behind: Callable[[], object] = list) -> None:
        super().__init__()
        self.before, self.behind = before, behind

    def append(self, future: SendFuture) -> None:
        self.before()
        super().append(future)
        self.behind()


def open_batch(producer: Producer) -> OpenBatch:
    batch = producer._topics["single"].batches[0]
    assert batch is not None
    return batch


@pytest.mark.parametrize("when", ["before", "behind"])
def test_a_batch_sealed_around_an_append(cluster: Cluster, single: Topic, when: str) -> None:
    table = Table(cluster, single)
    table.send(b"own")
    batch = open_batch(table.producer)
    tail = Tail(**{when: lambda: in_thread(table.producer.flush).result(20)})
    list.extend(tail, batch.tail)
    batch.tail = tail
    table.send(b"own")
    table.send(b"own")
    assert [future.batch is batch for _, _, future in table.sent] == [True, when == "behind", False]
    table.check(when)


def test_an_empty_batch_sealed_before_its_first_record(cluster: Cluster, single: Topic) -> None:
    """Nothing was sealed, so the late record may still travel in that batch."""
    table = Table(cluster, single)
    table.send(b"own")
    table.producer.flush()
    batch = table.producer._open_batch(table.producer._topics["single"], 0)
    batch.tail = Tail(before=lambda: in_thread(table.producer.flush).result(20))
    table.send(b"own")
    table.send(b"own")
    assert [future.batch is batch for _, _, future in table.sent] == [False, True, False]
    table.check("empty")


def test_records_that_looked_at_once_get_numbers_of_their_own(cluster: Cluster, single: Topic) -> None:
    table = Table(cluster, single)
    table.send(b"first")
    batch = open_batch(table.producer)
    early = SendFuture(batch, len(batch.tail), b"late", b"late", 5)  # looked, and was stopped there
    table.send(b"own")
    batch.tail.append(early)
    table.sent.append((b"late", b"late", early))
    table.check("two looked at the same tail")
    assert [future.index for _, _, future in table.sent] == [0, 1, 2]


def test_sends_and_send_many_share_a_batch(cluster: Cluster, single: Topic) -> None:
    table = Table(cluster, single)
    for _ in range(3):
        table.send(b"own")
        send_many(table)
        table.send(b"other")
    assert len({id(future.batch) for _, _, future in table.sent}) == 1
    assert table.producer.pending_records == 15
    table.check("mixed")


def test_an_interrupt_between_taking_and_counting_takes_again(cluster: Cluster, single: Topic) -> None:
    batch = OpenBatch(cluster.producer(), "single", 0, 5, 1000)
    batch.put(b"k", b"1", (("h", None),), 7)
    batch.take()
    batch.keys += [b"left", b"behind"]
    batch.timestamps += [1]
    batch.put(None, b"2", (), 8)
    batch.take()
    batch.values.append(b"left behind")
    assert batch.extend([b"k"], [b"3"], 9) == 2
    assert (batch.keys, batch.values, batch.timestamps) == ([b"k", None, b"k"], [b"1", b"2", b"3"], [7, 8, 9])
    assert batch.header_column() == [(("h", None),), (), ()]
    assert "3 records, open" in repr(batch)


def test_a_sealing_cut_short_is_finished_by_the_next_sender(
    cluster: Cluster, single: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamlog.client import delivery

    table = Table(cluster, single)
    table.send(b"own")

    def interrupted(*columns: object, **options: object) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(delivery, "seal_columnar", interrupted)
        with pytest.raises(KeyboardInterrupt):
            table.producer.flush()
    closed = open_batch(table.producer)
    assert closed.is_closed and closed.is_unsent
    table.send(b"own")  # goes along with it
    table.send(b"own")
    assert [future.batch is closed for _, _, future in table.sent] == [True, True, False]
    table.check("after the interrupt")


def test_a_handler_in_the_middle_of_a_sealing_is_neither_lost_nor_doubled(
    cluster: Cluster, single: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = OpenBatch.take
    table = Table(cluster, single)

    def struck(batch: OpenBatch) -> None:
        monkeypatch.setattr(OpenBatch, "take", take)
        table.send(b"handler")
        take(batch)
        table.send(b"handler")

    for _ in range(2):
        table.send(b"own")
    monkeypatch.setattr(OpenBatch, "take", struck)
    table.producer.flush()
    assert len(table.sent) == 4
    table.check("a handler on the sealing thread")


def test_a_size_that_was_counted_wrong_never_makes_a_batch_too_large(cluster: Cluster) -> None:
    topic = cluster.create_topic("small", config={"max.message.bytes": 4000})
    table = Table(cluster, topic)
    called: list[object] = []
    for number in range(100):
        table.send(b"own", b"%03d" % number + b"x" * 100)
        table.sent[-1][2].add_done_callback(called.append)
        batch = table.producer._topics["small"].batches[0]
        assert batch is not None
        batch.size_bytes = 0  # a thread that was stopped while it counted now stores what it knew
    assert len({id(future.batch) for _, _, future in table.sent}) == 1
    table.check("in parts")
    table.producer.close()
    assert called == [future for _, _, future in table.sent]
    assert [future.result().offset for _, _, future in table.sent] == list(range(100))
    assert [m.offset for m in table.sent[0][2].batch.metadata_of(0, 100)] == list(range(100))


def test_parts_of_a_batch_fail_together(cluster: Cluster) -> None:
    cluster.create_topic("keyed", config={"max.message.bytes": 2000, "cleanup.policy": "compact"})
    with cluster.producer(linger_ms=600_000) as producer:
        futures = []
        for number in range(50):
            futures.append(producer.send("keyed", b"x" * 100, key=b"k" if number < 49 else None))
            producer._topics["keyed"].batches[0].size_bytes = 0  # type: ignore[union-attr]
        assert all(future.exception() is not None for future in futures)


def batches_alive() -> int:
    gc.collect()
    return sum(type(one) is OpenBatch for one in gc.get_objects())


def test_nothing_of_a_sent_batch_stays(cluster: Cluster, single: Topic) -> None:
    before = batches_alive()
    with cluster.producer(batch_size=2000) as producer:
        for number in range(200):
            producer.send("single", b"%d" % number)
        producer.send_many("single", [(None, b"x")] * 5)
    del producer
    assert batches_alive() == before


def test_nothing_stays_of_what_could_not_be_sent(single: Topic, cluster: Cluster) -> None:
    before = batches_alive()
    producer = cluster.producer(linger_ms=600_000)
    producer.send("single", b"never sent")
    buffer: TopicBuffer = producer._topics["single"]
    assert buffer.open_batches() and batches_alive() == before + 1
    cluster._backend.broker._closed = True
    with pytest.raises(Exception, match="closed"):
        producer.close()
    cluster._backend.broker._closed = False
    del producer, buffer
    assert batches_alive() == before
