"""SEMANTICS 3.5.6 to 3.5.8, 3.5.11 and 3.5.16 to 3.5.20: transactions as their coordinator, and its producers, see them.

What partitions make of them: test_transactions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import streamlog
from streamlog.batch import Batch, seal_columnar
from streamlog.broker.api import AddPartitions, EndTxn, InitProducerId, Produce
from streamlog.broker.transaction_completion import Completions
from streamlog.broker.transaction_coordinators import call, coordinator_of
from streamlog.core.group_events import LeaveGroup, LeavingMember, OffsetCommit, TxnOffsetCommit
from streamlog.core.transaction import PRODUCER_EPOCH_MAX, State
from streamlog.errors import (
    CommitFailedError,
    ConcurrentTransactionsError,
    IllegalGenerationError,
    InvalidProducerEpochError,
    InvalidProducerIdMappingError,
    InvalidTxnStateError,
    ProducerFencedError,
    StreamlogError,
    StreamlogTimeoutError,
    TransactionAbortableError,
    UnknownMemberIdError,
    UnstableOffsetCommitError,
)
from streamlog.record import OffsetAndMetadata, TopicPartition
from streamlog.testing import Simulation

T0 = TopicPartition("t", 0)
Stamp = tuple[int, int]


class Client:
    """Three brokers, and requests about one transactional id."""

    def __init__(self, cluster: Any, simulation: Simulation) -> None:
        self.cluster, self.simulation = cluster, simulation
        self.backend = cluster._backend

    def init(self, timeout_ms: int = 10_000, within_ms: int = 60_000) -> Stamp:
        return call(
            self.backend, "x", InitProducerId(timeout_ms, self.backend.metadata.new_producer_id()), within_ms
        )

    def add(self, stamp: Stamp, *partitions: tuple[str, int]) -> None:
        call(self.backend, "x", AddPartitions(*stamp, list(partitions or [T0])), 5_000)

    def end(self, stamp: Stamp, is_commit: bool = True, within_ms: int = 60_000) -> Stamp:
        return call(self.backend, "x", EndTxn(*stamp, is_commit, wait_ms=within_ms), within_ms)

    def write(self, stamp: Stamp, value: bytes, sequence: int = 0) -> StreamlogError | None:
        batch: Batch = seal_columnar(
            None,
            [value],
            timestamps=1,
            producer_id=stamp[0],
            producer_epoch=stamp[1],
            base_sequence=sequence,
            transactional=True,
        )
        leader = self.backend.leader("t", 0)
        [produced] = leader.call(Produce([("t", 0, batch)]), 10_000)
        error: StreamlogError | None = produced.error
        return error

    def transact(self, stamp: Stamp, value: bytes, is_commit: bool = True) -> Stamp:
        self.add(stamp)
        assert self.write(stamp, value) is None
        return self.end(stamp, is_commit)

    @property
    def state(self) -> State:
        known: State = coordinator_of(self.backend, "x").coordinator.transactions._states["x"].state
        return known

    def read(self) -> list[bytes]:
        with self.cluster.consumer(isolation_level="read_committed", stop_at_end=True) as reader:
            reader.assign([T0])
            return [record.value for record in reader]


@pytest.fixture(params=[1, *[pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3)]])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    simulation = Simulation(request.param)
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", replication_factor=3)
        yield Client(cluster, simulation)


# -- 3.5.6 -------------------------------------------------------------------------------------------------------------


def test_init_takes_the_next_epoch(client: Client) -> None:
    first = client.init()
    assert client.init() == (first[0], first[1] + 1)


def test_init_aborts_what_is_open_and_then_takes_another_epoch(client: Client) -> None:
    old = client.init()
    client.add(old)
    client.write(old, b"left open")
    new = client.init()
    assert new == (old[0], old[1] + 2), "one for the abort, one for the new producer"
    assert client.read() == []


def test_init_has_to_ask_again_while_the_one_before_is_being_completed(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = client.init()
    client.add(old)
    with monkeypatch.context() as patched:
        patched.setattr(Completions, "_send", lambda *_: None)
        with pytest.raises(ConcurrentTransactionsError):
            client.init(within_ms=1_000)
        assert client.state is State.PREPARE_ABORT
    assert client.init() == (old[0], old[1] + 2)


def test_used_up_epochs_bring_another_producer_id(client: Client) -> None:
    first = client.init()
    transactions = coordinator_of(client.backend, "x").coordinator.transactions
    transactions._states["x"] = type(transactions._states["x"])(first[0], PRODUCER_EPOCH_MAX, 10_000)
    other = client.init()
    assert other[0] != first[0] and other[1] == 0


def test_the_older_producer_is_fenced_by_coordinator_and_partition(client: Client) -> None:
    old = client.init()
    client.add(old)
    client.write(old, b"old")
    client.init()
    with pytest.raises(ProducerFencedError):
        client.end(old)
    with pytest.raises(ProducerFencedError):
        client.add(old)
    assert isinstance(client.write(old, b"late", 1), InvalidProducerEpochError)


# -- 3.5.7, 3.5.8 ------------------------------------------------------------------------------------------------------


def test_every_end_takes_another_epoch(client: Client) -> None:
    stamp = client.init()
    for number in range(3):
        after = client.transact(stamp, b"%d" % number, is_commit=number != 1)
        assert after == (stamp[0], stamp[1] + 1)
        stamp = after
    assert client.read() == [b"0", b"2"]


@pytest.mark.parametrize(
    ("before", "retry_abort", "retry_commit"),
    [
        ("empty", ProducerFencedError, ProducerFencedError),
        ("aborted", None, InvalidTxnStateError),
        ("committed", InvalidTxnStateError, None),
    ],
)
def test_the_table_of_retries(client: Client, before: str, retry_abort: Any, retry_commit: Any) -> None:
    stamp = client.init()
    if before == "empty":
        client.init()
        after = (stamp[0], stamp[1] + 1)
    else:
        after = client.transact(stamp, b"x", is_commit=before == "committed")
    for is_commit, expected in ((False, retry_abort), (True, retry_commit)):
        if expected is None:
            assert client.end(stamp, is_commit) == after, "the answer of then, again"
        else:
            with pytest.raises(expected):
                client.end(stamp, is_commit)
    with pytest.raises(InvalidTxnStateError):
        client.end(after, True)
    assert client.end(after, False) == (after[0], after[1] + 1), (
        "an abort of nothing takes an epoch all the same"
    )


# -- 3.5.11 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_commit", [True, False])
def test_after_prepare_the_outcome_stands_whatever_crashes(
    client: Client, monkeypatch: pytest.MonkeyPatch, is_commit: bool
) -> None:
    stamp = client.init(timeout_ms=3_000)
    client.add(stamp)
    client.write(stamp, b"x")
    with monkeypatch.context() as patched:
        patched.setattr(Completions, "_send", lambda *_: None)
        assert client.end(stamp, is_commit, within_ms=500) == (stamp[0], stamp[1] + 1), (
            "answered after Prepare"
        )
        assert client.state is (State.PREPARE_COMMIT if is_commit else State.PREPARE_ABORT)
        assert client.read() == [], "a reader may see it a little later"
        for broker in client.cluster.brokers:
            broker.crash()
    for broker in client.cluster.brokers:
        broker.start()
    client.simulation.sleep(20)
    assert client.state is (State.COMPLETE_COMMIT if is_commit else State.COMPLETE_ABORT)
    assert client.read() == ([b"x"] if is_commit else [])


# -- 3.5.16 ------------------------------------------------------------------------------------------------------------


def test_what_is_open_longer_than_its_timeout_is_aborted_and_its_epoch_is_over(client: Client) -> None:
    stamp = client.init(timeout_ms=2_000)
    client.add(stamp)
    client.write(stamp, b"slow")
    client.simulation.sleep(1.9)
    assert client.state is State.ONGOING
    client.simulation.sleep(1)
    assert client.state is State.COMPLETE_ABORT
    with pytest.raises(ProducerFencedError):
        client.add(stamp)
    assert isinstance(client.write(stamp, b"slower", 1), InvalidProducerEpochError)


def test_the_time_goes_on_at_the_next_coordinator(client: Client) -> None:
    stamp = client.init(timeout_ms=4_000)
    client.add(stamp)
    client.simulation.sleep(2)
    broker = client.cluster.brokers[coordinator_of(client.backend, "x").id]
    broker.crash()
    client.simulation.sleep(1)
    assert client.state is State.ONGOING
    client.simulation.sleep(2)
    assert client.state is State.COMPLETE_ABORT
    broker.start()


@pytest.mark.parametrize("state", ["empty", "ended", "open"])
def test_an_id_that_nobody_uses_for_long_is_forgotten(client: Client, state: str) -> None:
    stamp = client.init(timeout_ms=800_000)
    if state == "ended":
        stamp = client.transact(stamp, b"x")
    elif state == "open":
        client.add(stamp)
    week_ms = client.backend.config.transactional_id_expiration_ms
    client.simulation.jump_wall_clock(week_ms - 60_000)
    client.simulation.sleep(10)
    client.simulation.jump_wall_clock(60_000)
    client.simulation.sleep(700)  # looked for every ten minutes
    for _ in range(2):
        if state == "open":
            client.add(stamp, ("t", 0))
        else:
            with pytest.raises(InvalidProducerIdMappingError):
                client.add(stamp)
            broker = client.cluster.brokers[coordinator_of(client.backend, "x").id]
            broker.crash()  # the next coordinator does not know it, either
            client.simulation.sleep(15)
            broker.start()
    if state != "open":
        other = client.init()
        assert other[0] != stamp[0] and other[1] == 0


# -- 3.5.17 ------------------------------------------------------------------------------------------------------------


def commit_offsets(client: Client, stamp: Stamp, offset: int, **member: Any) -> Any:
    homes = [("__consumer_offsets", number) for number in range(50)]
    client.add(stamp, *homes)
    event = TxnOffsetCommit(
        token=0,
        offsets={T0: OffsetAndMetadata(offset)},
        producer_id=stamp[0],
        producer_epoch=stamp[1],
        **member,
    )
    return client.backend.call_group("g", event)


@pytest.mark.parametrize("is_commit", [True, False])
def test_offsets_are_pending_until_the_marker(client: Client, is_commit: bool) -> None:
    client.backend.ensure_offsets_topic()
    client.backend.call_group("g", OffsetCommit(token=0, offsets={T0: OffsetAndMetadata(1)}))
    stamp = client.init()
    commit_offsets(client, stamp, 7)
    with pytest.raises(UnstableOffsetCommitError):
        client.backend.coordinator.committed("g", [T0])
    client.end(stamp, is_commit)
    assert client.backend.coordinator.committed("g", [T0])[T0].offset == (7 if is_commit else 1)


@pytest.mark.parametrize(
    ("member", "error"),
    [
        ({"member_id": "nobody", "generation": 1}, UnknownMemberIdError),
        ({"generation": 99}, IllegalGenerationError),
    ],
)
def test_generation_and_member_are_checked(client: Client, member: dict[str, Any], error: type) -> None:
    group = client.cluster.consumer_group("g", ["t"])
    with group.consumer() as consumer:
        while not consumer.assignment:
            consumer.poll(1)
        known = {"member_id": consumer._membership.member_id, "generation": consumer._membership.generation}
        stamp = client.init()
        with pytest.raises(error):
            commit_offsets(client, stamp, 7, **{**known, **member})
        client.end(stamp, False)
        stamp = client.init()
        commit_offsets(client, stamp, 7, **known)
        client.end(stamp)
        assert group.offsets() == {T0: 7}


# -- 3.5.18, 3.5.19 ----------------------------------------------------------------------------------------------------


def test_what_is_abortable_leaves_the_producer_usable_and_what_is_fatal_does_not(client: Client) -> None:
    with client.cluster.producer(transactional_id="x", transaction_timeout_ms=2_000) as producer:
        with pytest.raises(TransactionAbortableError), producer.transaction():
            producer.send("t", b"too slow").result()
            client.simulation.sleep(4)
        with producer.transaction():
            producer.send("t", b"good")
        client.cluster.producer(transactional_id="x").close()
        with pytest.raises(ProducerFencedError) as told, producer.transaction():
            producer.send("t", b"fenced")
        assert told.value.fatal
        with pytest.raises(ProducerFencedError), producer.transaction():
            pass
    assert client.read() == [b"good"]


def test_after_an_abort_the_consumer_stands_where_it_stood(client: Client) -> None:
    client.cluster.create_topic("in", replication_factor=3)
    with client.cluster.producer() as plain:
        plain.send_many("in", [(None, b"%d" % number) for number in range(6)])
    group = client.cluster.consumer_group("g", ["in"], enable_auto_commit=False)
    with group.consumer() as consumer, client.cluster.producer(transactional_id="x") as producer:
        for is_aborted in (True, False):
            got: list[bytes] = []
            try:
                with producer.transaction(consumer):
                    while len(got) < 6:
                        for record in consumer.poll(1):
                            got.append(record.value)
                            producer.send("t", record.value)
                    if is_aborted:
                        raise LookupError
            except LookupError:
                continue
        assert sum(group.lag().values()) == 0
    assert client.read() == [b"%d" % number for number in range(6)]


def test_a_member_that_lost_its_partitions_cannot_commit(client: Client) -> None:
    client.cluster.create_topic("in", replication_factor=3)
    with client.cluster.producer() as plain:
        plain.send("in", b"x")
    group = client.cluster.consumer_group("g", ["in"], enable_auto_commit=False)
    consumer = group.consumer()
    producer = client.cluster.producer(transactional_id="x")
    with pytest.raises(CommitFailedError), producer.transaction(consumer):
        while not consumer.poll(1):
            pass
        producer.send("t", b"x")
        gone = LeavingMember(consumer._membership.member_id)
        client.backend.call_group("g", LeaveGroup(token=0, members=(gone,)))  # as if its session had ended
    producer.close()
    assert client.read() == [] and group.offsets() == {}


# -- 3.5.20 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_commit", [True, False])
def test_a_delayed_or_doubled_end_changes_nothing_of_a_later_transaction(
    client: Client, is_commit: bool
) -> None:
    first = client.init()
    second = client.transact(first, b"first")
    client.add(second)
    assert client.write(second, b"second") is None
    for _ in range(2):
        with pytest.raises((ProducerFencedError, InvalidTxnStateError)):
            client.end(first, is_commit)
        assert client.state is State.ONGOING and client.read() == [b"first"]
    third = client.end(second)
    assert client.end(second) == third, "doubled: the same answer"
    assert client.read() == [b"first", b"second"]


def test_a_delayed_or_doubled_produce_changes_nothing(client: Client) -> None:
    first = client.init()
    client.add(first)
    assert client.write(first, b"first") is None
    assert client.write(first, b"first") is None, "doubled: known again"
    second = client.end(first)
    assert isinstance(client.write(first, b"late", 1), InvalidProducerEpochError)
    client.transact(second, b"second")
    assert isinstance(client.write(first, b"later", 1), InvalidProducerEpochError)
    assert client.read() == [b"first", b"second"]


def test_a_request_that_names_no_time_out_is_bounded(client: Client) -> None:
    stamp = client.init()
    client.add(stamp)
    for broker in client.cluster.brokers:
        broker.pause()
    begun_ms = client.simulation.now_ms
    with pytest.raises(StreamlogTimeoutError):
        client.end(stamp, within_ms=2_000)
    assert client.simulation.now_ms - begun_ms <= 2_200
    for broker in client.cluster.brokers:
        broker.resume()
