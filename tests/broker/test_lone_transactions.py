"""The last records of a transaction and its commit in one turn: as any other turn, and what is not usual left to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamlog.batch import Batch, seal_columnar
from streamlog.broker import api, lone_transactions
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.runner import ThreadedRuntime
from streamlog.broker.transaction_coordinators import call
from streamlog.clock import ManualClock
from streamlog.core.cluster_image import TRANSACTION_STATE_TOPIC
from streamlog.core.group import group_partition
from streamlog.core.transaction import State
from streamlog.errors import (
    InvalidTxnStateError,
    ProducerFencedError,
    StoreFullError,
    TransactionAbortableError,
)
from streamlog.storage import log
from tests.broker.builders import in_thread, opened
from tests.broker.interrupting import count_places, interrupted_at, places

SEED = 20_265
NOW_MS = 1_700_000_000_000
Identity = tuple[int, int]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What `run` answered, pair by pair."""
    answers: list[bool] = []
    run = lone_transactions.run
    monkeypatch.setattr(lone_transactions, "run", lambda *given: answers.append(run(*given)) or answers[-1])
    return answers


def made(path: Path, runtime: Any = None, **config: str) -> BrokerCluster:
    cluster = opened(path, *([runtime] if runtime else []))
    cluster.create_topic("t", 2, 1, config)
    return cluster


def init(cluster: BrokerCluster, name: str = "x") -> Identity:
    return call(cluster, name, api.InitProducerId(60_000, cluster.metadata.new_producer_id()))


def batch(identity: Identity, *values: bytes, sequence: int = 0, timestamp: int = NOW_MS) -> Batch:
    return seal_columnar(
        None,
        values,
        timestamps=timestamp,
        producer_id=identity[0],
        producer_epoch=identity[1],
        base_sequence=sequence,
        transactional=True,
    )


def together(
    cluster: BrokerCluster, identity: Identity, one: Batch, number: int = 0, *, is_commit: bool = True
) -> Identity:
    """Hand both over before any turn runs; the identity of the next transaction, and the produce's error is raised."""
    broker = cluster.broker
    produce = broker.enqueue(api.Produce([("t", number, one)], transactional_id="x"))
    after = (produce,) if is_commit else ()
    end = broker.enqueue(api.TransactionRequest("x", api.EndTxn(*identity, is_commit, [], after)))
    broker.advance()
    broker.wait(end, 5_000)
    broker.wait(produce, 5_000)
    answer: Identity = end.result()
    [produced] = produce.result()
    if produced.error is not None:
        raise produced.error
    return answer


def stored(cluster: BrokerCluster, topic: str, number: int) -> list[tuple[Any, ...]]:
    partition = cluster.partition(topic, number)
    with cluster.broker.environment.snapshot() as snapshot:
        found = log.read(snapshot, partition.log_id, 0, partition.state.log_end_offset, 1 << 20)
    return [
        (
            one.base_offset, one.producer_id, one.producer_epoch, one.base_sequence, one.attributes, one.max_timestamp,
            [(record.key, record.value) for record in one.records(topic, number, 0)],
        )
        for one in found
    ]  # fmt: skip


def committed(cluster: BrokerCluster) -> list[bytes]:
    view = cluster.partition("t", 0).view
    assert view is not None and view.first_unstable_offset < 0, "nothing is open"
    return [
        value
        for _, _, _, _, attributes, _, records in stored(cluster, "t", 0)
        for _, value in records
        if not attributes & 0x20
    ]


def left_behind(path: Path) -> dict[str, Any]:
    clock = ManualClock()
    clock.set_wall_ms(NOW_MS)
    cluster = made(path, ThreadedRuntime(clock))
    try:
        identity = init(cluster)
        answers = []
        for number, timestamp in enumerate((5, 3, 9, 9, 1)):
            clock.advance(number)
            values = [b"%d" % number] * (1 + number % 2)
            identity = together(cluster, identity, batch(identity, *values, timestamp=timestamp))
            answers.append((identity[1], cluster.partition("t", 0).state))
        place = group_partition("x", len(cluster.topics[TRANSACTION_STATE_TOPIC].partitions))
        partition = cluster.partition("t", 0)
        metrics = {
            name: values
            for name, values in cluster.metrics.snapshot().items()
            if "BrokerTopicMetrics" in name or "request=Produce" in name
        }
        transactions = cluster.broker.coordinator.transactions
        ids = {producer_id: n for n, producer_id in enumerate(partition.producers.states)}
        return {
            "answers": answers,
            "stored": [(ids[one[1]], *one[2:], one[0]) for one in stored(cluster, "t", 0)],
            "ids": [
                (one[0], one[5], one[6][0][1][10:]) for one in stored(cluster, TRANSACTION_STATE_TOPIC, place)
            ],
            "producers": list(partition.producers.states.values()),
            "decided": partition.producers.decided,
            "open": partition.producers.open_offsets,
            "known": [
                (one.state, one.producer_epoch, one.partitions) for one in transactions._states.values()
            ],
            "deadlines": transactions._deadlines,
            "metrics": metrics,
        }
    finally:
        cluster.close()


def test_a_lone_end_leaves_behind_what_a_general_turn_does(
    tmp_path: Path, alone: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_itself = left_behind(tmp_path / "alone")
    assert alone == [False, *[True] * 4], "the first one finds a partition that knows no producers"
    monkeypatch.setattr(lone_transactions, "run", lambda *given: False)
    general = left_behind(tmp_path / "general")
    assert len(by_itself["stored"]) == 10 and by_itself["metrics"], "there was something to compare"
    for name, value in by_itself.items():
        assert value == general[name], name


def test_the_unusual_is_left_to_the_general_turn(tmp_path: Path, alone: list[bool]) -> None:
    cluster = made(tmp_path)
    try:
        identity = init(cluster)
        identity = together(cluster, identity, batch(identity, b"a"))
        del alone[:]
        aborted = together(cluster, identity, batch(identity, b"no"), is_commit=False)
        assert alone == [False]
        # A transaction of two partitions.
        cluster.broker.call(api.Produce([("t", 1, batch(aborted, b"b"))], transactional_id="x"))
        identity = together(cluster, aborted, batch(aborted, b"b"))
        assert alone[1:] == [False] and stored(cluster, "t", 1)[-1][4] & 0x20, "both have their markers"
        # What was written already, and is sent again.
        one = batch(identity, b"c")
        cluster.broker.call(api.Produce([("t", 0, one)], transactional_id="x"))
        identity = together(cluster, identity, one)
        assert alone[2:] == [False]
        # A producer that was replaced.
        newer = init(cluster)
        with pytest.raises(ProducerFencedError):
            together(cluster, identity, batch(identity, b"late"))
        assert alone[3:] == [False]
        # A record that cannot be stored: all of the transaction is not.
        with pytest.raises(InvalidTxnStateError):
            together(cluster, newer, batch(newer, bytes(2_000_000)))
        assert alone[4:] == [False]
        assert cluster.broker.coordinator.transactions._states["x"].state is State.EMPTY
        identity = together(cluster, newer, batch(newer, b"d"))
        assert alone[5:] == [True]
        assert committed(cluster) == [b"a", b"no", b"b", b"c", b"d"]
    finally:
        cluster.close()


@pytest.mark.parametrize(
    "config", [{"cleanup.policy": "compact,delete"}, {"retention.bytes": "100000"}, {"flush.messages": "1"}]
)
def test_a_topic_with_rules_of_its_own_is_left_to_the_general_turn(
    tmp_path: Path, alone: list[bool], config: dict[str, str]
) -> None:
    cluster = made(tmp_path, **config)
    try:
        identity = init(cluster)
        for _ in range(2):
            one = seal_columnar(
                [b"k"], [b"v"], timestamps=NOW_MS, producer_id=identity[0], producer_epoch=identity[1],
                base_sequence=0, transactional=True,
            )  # fmt: skip
            identity = together(cluster, identity, one)
        assert alone == [False, False]
    finally:
        cluster.close()


def test_a_store_that_is_full_is_told_and_nothing_is_kept(
    tmp_path: Path, alone: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = made(tmp_path)
    try:
        identity = init(cluster)
        identity = together(cluster, identity, batch(identity, b"a"))
        append = lone_transactions.log.append_alone

        def full(*given: Any) -> None:
            append(*given)
            raise StoreFullError("full")

        monkeypatch.setattr(lone_transactions.log, "append_alone", full)
        with pytest.raises((StoreFullError, TransactionAbortableError)):
            together(cluster, identity, batch(identity, b"no room"))
        assert alone == [False, True] and committed(cluster) == [b"a"]
        monkeypatch.undo()
        together(cluster, identity, batch(identity, b"room"))
        assert committed(cluster) == [b"a", b"room"]
    finally:
        cluster.close()


def swept(path: Path, count: int) -> None:
    """An interrupt anywhere: all of the transaction or none, and the next one goes well."""
    cluster = made(path)
    try:
        identities = [init(cluster)]

        def transact(value: bytes) -> None:
            identities.append(together(cluster, identities[-1], batch(identities[-1], value)))

        transact(b"warm")
        total = count_places(lambda: transact(b"measured"))
        print(f"seed {SEED}, {total} places")
        for place in places(total, count, SEED):
            before = committed(cluster)
            value, after = b"struck %d" % place, b"after %d" % place
            where = interrupted_at(place, lambda value=value: transact(value))
            # As a producer does that does not know: it takes its id over, which ends what is open.
            identities.append(in_thread(lambda: init(cluster)).result())
            in_thread(lambda after=after: transact(after)).result()
            struck = [one for one in committed(cluster) if one not in before]
            assert struck in ([value, after], [after]), where
        expected = committed(cluster)
    finally:
        cluster.close()
    cluster = opened(path)
    try:
        assert committed(cluster) == expected
    finally:
        cluster.close()


def test_an_interrupt_keeps_the_transaction_whole(tmp_path: Path) -> None:
    swept(tmp_path, 60)


@pytest.mark.long
def test_an_interrupt_anywhere_keeps_the_transaction_whole(tmp_path: Path) -> None:
    swept(tmp_path, 1_000_000)
