"""SEMANTICS 3.5.7, 3.5.10 and 3.5.12 to 3.5.15, and rows T1 and T2 of 3.11: transactions as a partition sees them.

Batches and markers are sent by hand, as a client and a coordinator would.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog.batch import Batch, seal_columnar, seal_v2_columns
from streamlog.broker import api
from streamlog.broker.transaction_coordinator import TransactionCoordinator
from streamlog.errors import (
    InvalidProducerEpochError,
    InvalidTxnStateError,
    OutOfOrderSequenceError,
    TransactionCoordinatorFencedError,
)
from streamlog.storage.aborted import aborted_between
from tests.spec.replicas import replicated
from tests.waiting import until

T = 1_700_000_000_000
A, B = 7, 8
LAYOUTS = pytest.mark.parametrize("seal", [seal_columnar, seal_v2_columns], ids=["columnar", "v2"])


@pytest.fixture(autouse=True)
def no_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part of the coordinator is played by the test."""
    monkeypatch.setattr(TransactionCoordinator, "admit", lambda *_: None)


class Client:
    """Sends to partition 0 of `t` and reads it, at both isolation levels."""

    seal: Any = staticmethod(seal_columnar)

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.sequences: dict[tuple[int, int], int] = {}

    @property
    def broker(self) -> Any:
        return self.cluster._backend.broker

    def batch(
        self, value: bytes, producer: int = -1, epoch: int = 0, transactional: bool = True, key: bytes = b"k"
    ) -> Batch:
        if producer < 0:
            return self.seal([key], [value], timestamps=T)  # type: ignore[no-any-return]
        sequence = self.sequences.get((producer, epoch), 0)
        self.sequences[producer, epoch] = sequence + 1
        return self.seal(  # type: ignore[no-any-return]
            [key],
            [value],
            timestamps=T,
            producer_id=producer,
            producer_epoch=epoch,
            base_sequence=sequence,
            transactional=transactional,
        )

    def produce(self, one: Batch) -> api.Produced:
        (produced,) = self.broker.call(api.Produce([("t", 0, one)]))
        return produced  # type: ignore[no-any-return]

    def send(self, value: bytes, producer: int = -1, epoch: int = 0, **options: Any) -> int:
        produced = self.produce(self.batch(value, producer, epoch, **options))
        if produced.error is not None:
            raise produced.error
        return produced.base_offset

    def end(self, producer: int, epoch: int, is_commit: bool, coordinator_epoch: int = 0) -> None:
        """Write a marker; `epoch` is the one of the records."""
        (produced,) = self.broker.call(
            api.WriteMarkers(producer, epoch + 1, coordinator_epoch, is_commit, [("t", 0)])
        )
        if produced.error is not None:
            raise produced.error

    def commit(self, producer: int, epoch: int = 0) -> None:
        self.end(producer, epoch, True)

    def abort(self, producer: int, epoch: int = 0) -> None:
        self.end(producer, epoch, False)

    def read(self, isolation_level: str = "read_committed", offset: int = 0) -> tuple[list[int], int]:
        """Offsets of what comes, and the position behind it."""
        with self.cluster.consumer(isolation_level=isolation_level, stop_at_end=True) as consumer:
            consumer.assign([("t", 0)])
            consumer.seek(("t", 0), offset)
            offsets = [record.offset for record in consumer]
            return offsets, consumer.position(("t", 0))

    def ends(self) -> tuple[int, int]:
        """End offsets, read_uncommitted and read_committed."""
        found = []
        for isolation_level in ("read_uncommitted", "read_committed"):
            with self.cluster.consumer(isolation_level=isolation_level) as consumer:
                found.append(consumer.end_offsets([("t", 0)])[streamlog.TopicPartition("t", 0)])
        return found[0], found[1]

    @property
    def last_stable_offset(self) -> int:
        return self.broker.partition("t", 0).view.last_stable_offset  # type: ignore[no-any-return]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with streamlog.open(tmp_path / "c", sync="off") as cluster:
        cluster.create_topic("t")
        yield Client(cluster)


def t1(client: Client) -> None:
    """Txn A data@0, plain@1, abort marker@2, txn B open data@3, plain@4."""
    assert client.send(b"a", A) == 0
    assert client.send(b"plain") == 1
    client.abort(A)
    assert client.send(b"b", B) == 3
    assert client.send(b"plain") == 4


# -- 3.11 --------------------------------------------------------------------------------------------------------------


@LAYOUTS
def test_t1(client: Client, seal: Any) -> None:
    """HW 5: LSO 3; read_committed gets offset 1 only; position 3; read_uncommitted gets 0,1,3,4; endOffsets 5 / 3."""
    client.seal = seal
    t1(client)
    assert client.last_stable_offset == 3
    assert client.read("read_committed") == ([1], 3)
    assert client.read("read_uncommitted") == ([0, 1, 3, 4], 5)
    assert client.ends() == (5, 3)


@LAYOUTS
def test_t2_at_once_where_nobody_else_has_to_have_it(client: Client, seal: Any) -> None:
    client.seal = seal
    t1(client)
    client.commit(B)
    assert client.last_stable_offset == 6
    assert client.read("read_committed") == ([1, 3, 4], 6)
    assert client.read("read_committed", 2) == ([3, 4], 6)


@pytest.mark.parametrize("seed", range(3))
def test_t2(seed: int) -> None:
    """Commit marker B@5, HW still 5: LSO 3 (marker not below HW); HW 6: LSO 6, read_committed gets 3,4; position 6."""
    with replicated(seed) as replicas:
        client = Client(replicas.cluster)
        t1(client)
        replicas.sleep(0.5)
        replicas.cluster.network.drop(0, 1)
        replicas.cluster.network.drop(0, 2)
        pending = replicas.broker(0).post(api.WriteMarkers(B, 1, 0, True, [("t", 0)]))
        replicas.sleep(0.5)
        assert replicas.end(0) == 6 and replicas.high_watermark(0) == 5 and not pending.done
        assert client.last_stable_offset == 3 and client.read() == ([1], 3)
        replicas.cluster.network.heal()
        replicas.sleep(2)
        assert pending.done and pending.result()[0].error is None
        assert client.last_stable_offset == 6 and client.read() == ([1, 3, 4], 6)
        replicas.assert_alike()


# -- 3.5.7, 3.5.10 -----------------------------------------------------------------------------------------------------


def test_a_marker_carries_the_next_epoch_and_the_old_one_is_over(client: Client) -> None:
    """TV2: markers carry epoch > data epoch."""
    client.send(b"a", A)
    client.commit(A)
    with pytest.raises(InvalidProducerEpochError):
        client.send(b"late", A)
    assert client.send(b"next", A, 1) == 2


def test_a_marker_of_the_present_epoch_is_refused_but_for_a_retry(client: Client) -> None:
    """Marker with epoch <= current refused except idempotent retry (KAFKA-19999)."""
    client.send(b"a", A)
    client.commit(A)
    client.commit(A)  # the answer was lost
    assert client.ends() == (2, 2), "nothing was written twice"
    client.send(b"b", A, 1)
    with pytest.raises(InvalidProducerEpochError):
        client.commit(A)  # delayed: it must not decide about the transaction that came after
    assert client.read() == ([0], 2)


def test_a_delayed_abort_does_not_tear_the_next_transaction(client: Client) -> None:
    """SEMANTICS 3.5.20."""
    client.send(b"a", A)
    client.commit(A)
    client.send(b"b", A, 1)
    for delayed in (0, -1):
        with pytest.raises(InvalidProducerEpochError):
            client.abort(A, delayed)
    client.commit(A, 1)
    assert client.read() == ([0, 2], 4)


def test_a_coordinator_that_was_replaced_is_fenced(client: Client) -> None:
    client.send(b"a", A)
    client.end(A, 0, True, coordinator_epoch=5)
    client.send(b"b", A, 1)
    with pytest.raises(TransactionCoordinatorFencedError):
        client.end(A, 1, True, coordinator_epoch=4)
    client.end(A, 1, True, coordinator_epoch=5)


def test_a_record_outside_of_the_transaction_that_is_open_is_refused(client: Client) -> None:
    """Non-transactional record of same pid inside open txn on that partition: INVALID_TXN_STATE."""
    client.send(b"a", A)
    with pytest.raises(InvalidTxnStateError):
        client.send(b"plain", A, transactional=False)


def test_a_transaction_of_an_unknown_producer_begins_at_zero(client: Client) -> None:
    """TV2 transactional with no state: must be 0."""
    client.sequences[A, 0] = 3
    with pytest.raises(OutOfOrderSequenceError):
        client.send(b"a", A)


# -- 3.5.12, 3.5.13 ----------------------------------------------------------------------------------------------------


def test_markers_are_records_that_take_an_offset_and_are_never_seen(client: Client) -> None:
    """Markers are real records: each takes one offset; LEO counts them; consumers never see them."""
    client.send(b"a", A)
    client.commit(A)
    assert client.send(b"plain") == 2
    for isolation_level in ("read_uncommitted", "read_committed"):
        assert client.read(isolation_level) == ([0, 2], 3)


def test_the_last_stable_offset_is_the_first_offset_of_the_earliest_open_transaction(client: Client) -> None:
    client.send(b"plain")
    client.send(b"a", A)
    client.send(b"b", B)
    assert client.last_stable_offset == 1
    client.commit(B)
    assert client.last_stable_offset == 1, "B is decided, and waits behind A"
    client.abort(A)
    assert client.last_stable_offset == 5 and client.read() == ([0, 2], 5)


def test_it_is_the_same_after_a_restart(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "c", sync="off") as cluster:
        cluster.create_topic("t")
        client = Client(cluster)
        t1(client)
        sequences = client.sequences
    with streamlog.open(tmp_path / "c", sync="off") as cluster:
        client = Client(cluster)
        client.sequences = sequences
        assert client.last_stable_offset == 3 and client.read() == ([1], 3) and client.ends() == (5, 3)
        assert client.send(b"more", B) == 5
        client.commit(B)
        assert client.read() == ([1, 3, 4, 5], 7)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_same_at_the_next_leader(seed: int) -> None:
    with replicated(seed) as replicas:
        client = Client(replicas.cluster)
        t1(client)
        replicas.crash(0)
        replicas.sleep(1)
        leader = replicas.partition.leader
        assert leader != 0
        view = replicas.replica(leader).view
        assert view.last_stable_offset == 3
        assert client.read() == ([1], 3) and client.ends() == (5, 3)
        marker = replicas.broker(leader).post(api.WriteMarkers(B, 1, 0, False, [("t", 0)]))
        replicas.sleep(1)
        assert marker.result()[0].error is None
        assert client.read() == ([1, 4], 6)
        assert client.read("read_uncommitted") == ([0, 1, 3, 4], 6)


def test_a_reader_beside_the_owner_sees_the_same(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "c", sync="off") as cluster:
        cluster.create_topic("t")
        client = Client(cluster)
        t1(client)
        with streamlog.open(tmp_path / "c", mode="r") as beside:
            reader = Client(beside)
            assert reader.read() == ([1], 3) and reader.read("read_uncommitted") == ([0, 1, 3, 4], 5)
            client.commit(B)
            assert reader.read() == ([1, 3, 4], 6)


# -- 3.5.14, 3.5.15 ----------------------------------------------------------------------------------------------------


def test_committed_records_of_a_producer_that_aborted_before_are_read(client: Client) -> None:
    """A same pid can later commit."""
    client.send(b"a", A)
    client.abort(A)
    client.send(b"b", A, 1)
    client.commit(A, 1)
    client.send(b"c", A, 2)
    client.abort(A, 2)
    assert client.read() == ([2], 6)
    assert client.read("read_uncommitted") == ([0, 2, 4], 6)


@pytest.mark.parametrize("start", range(7))
def test_a_reader_may_begin_anywhere_in_an_aborted_transaction(client: Client, start: int) -> None:
    for number in range(3):
        client.send(b"a%d" % number, A)
        client.send(b"plain")
    client.abort(A)
    assert client.read(offset=start) == ([offset for offset in (1, 3, 5) if offset >= start], 7)


def test_order_is_offset_order_so_one_hung_transaction_holds_all_back(client: Client) -> None:
    """Non-transactional records always pass, but wait behind LSO."""
    client.send(b"hung", A)
    for _ in range(5):
        client.send(b"plain")
    client.send(b"b", B)
    client.commit(B)
    assert client.read() == ([], 0)
    client.abort(A)
    assert client.read() == ([1, 2, 3, 4, 5, 6], 9)


def test_many_small_ones_are_read_as_they_were_decided(client: Client) -> None:
    expected = []
    epochs = {A: 0, B: 0}
    for number in range(120):
        producer = (A, B)[number % 2]
        offset = client.send(b"%d" % number, producer, epochs[producer])
        client.end(producer, epochs[producer], is_commit=number % 3 > 0)
        epochs[producer] += 1
        if number % 3:
            expected.append(offset)
    assert client.read() == (expected, 240)


# -- what becomes of aborted transactions --------------------------------------------------------------------------------


def index(client: Client) -> list[tuple[int, int, int]]:
    partition = client.broker.partition("t", 0)
    with client.broker.environment.snapshot() as snapshot:
        return [tuple(each) for each in aborted_between(snapshot, partition.log_id, 0)]


def test_the_index_goes_with_the_records(client: Client) -> None:
    for epoch in range(4):
        client.send(b"a", A, epoch)
        client.abort(A, epoch)
    assert index(client) == [(A, 0, 1), (A, 2, 3), (A, 4, 5), (A, 6, 7)]
    client.broker.call(api.TruncateTail("t", 0, 7))
    assert index(client) == [(A, 0, 1), (A, 2, 3), (A, 4, 5)]
    assert client.last_stable_offset == 6, "its marker was cut off: open again"
    client.abort(A, 3)
    client.cluster.topic("t")[0].delete_records(4)
    until(lambda: index(client) == [(A, 4, 5), (A, 6, 7)])


def test_compaction_takes_aborted_records_and_stops_at_an_open_transaction(tmp_path: Path) -> None:
    with streamlog.open(tmp_path / "c", sync="off") as cluster:
        cluster.create_topic("t", config={"cleanup.policy": "compact", "min.cleanable.dirty.ratio": 0})
        client = Client(cluster)
        client.send(b"kept", key=b"x")
        client.send(b"aborted", A, key=b"x")
        client.abort(A)
        client.send(b"1", key=b"y")
        client.send(b"2", key=b"y")
        client.send(b"open", B, key=b"z")
        client.send(b"3", key=b"y")
        client.send(b"4", key=b"y")
        cluster.clean()
        assert client.read("read_uncommitted") == ([0, 4, 5, 6, 7], 8), (
            "not the aborted one, nor below the open one"
        )
        client.commit(B)
        assert client.read() == ([0, 4, 5, 6, 7], 9)
        cluster.clean()
        assert client.read() == ([0, 5, 7], 9)


def test_a_follower_that_is_cut_knows_what_is_left(tmp_path: Path) -> None:
    """The marker of a leader that was deposed is cut off: at its followers the transaction is open."""
    with replicated(3, brokers=2) as replicas:
        client = Client(replicas.cluster)
        client.send(b"a", A)
        replicas.sleep(0.5)
        replicas.cut(0)
        zombie = replicas.broker(0).post(api.WriteMarkers(A, 1, 0, True, [("t", 0)]))
        replicas.sleep(20)
        assert replicas.partition.leader == 1 and replicas.end(0) == 2
        replicas.cluster.network.heal()
        replicas.sleep(5)
        assert zombie.done and zombie.result()[0].error is not None
        assert replicas.end(0) == replicas.end(1) == 1
        table = replicas.replica(0).producers
        assert table.states[A].open_offset == 0 and table.open_offsets == {A: 0}
        assert replicas.replica(0).state.last_stable_offset == 0
