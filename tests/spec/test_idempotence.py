"""SEMANTICS 3.5.1 to 3.5.5, and rows D1 and D2 of 3.11: producers that write nothing twice and nothing out of order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog.batch import Batch, seal_columnar
from streamlog.broker import api
from streamlog.broker.cluster import BrokerCluster
from streamlog.core.producer_state import ProducerState
from streamlog.errors import InvalidProducerEpochError, OutOfOrderSequenceError
from streamlog.storage import log
from streamlog.testing import Simulation
from tests.broker.builders import opened
from tests.spec.replicas import Replicas, replicated

LAST = 2**31 - 1
T = 1_700_000_000_000


def batch(
    sequence: int,
    last: int | None = None,
    *,
    epoch: int = 0,
    value: bytes = b"x",
    producer_id: int = 7,
    key: bytes = b"k",
) -> Batch:
    records = 1 if last is None else ((last - sequence) & LAST) + 1
    return seal_columnar(
        [key] * records,
        [value] * records,
        timestamps=T,
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=sequence,
    )


class Partition:
    """Topic `t` of a cluster of one broker, and a client that sends batches by hand."""

    def __init__(self, path: Path, **config: str) -> None:
        self.path = path
        self.cluster: BrokerCluster = opened(path)
        self.cluster.create_topic("t", 1, 1, config)

    def produce(self, one: Batch) -> api.Produced:
        (produced,) = self.cluster.broker.call(api.Produce([("t", 0, one)]))
        assert isinstance(produced, api.Produced)
        return produced

    def append(self, one: Batch) -> int:
        produced = self.produce(one)
        if produced.error is not None:
            raise produced.error
        return produced.base_offset

    @property
    def end(self) -> int:
        return self.cluster.broker.partition("t", 0).state.log_end_offset

    def values(self) -> list[bytes]:
        partition = self.cluster.broker.partition("t", 0)
        with self.cluster.broker.environment.snapshot() as snapshot:
            found = log.read(snapshot, partition.log_id, 0, self.end, 1 << 20)
        return [value or b"" for one in found for value in one.columns().values]

    def restart(self) -> None:
        self.cluster.close()
        self.cluster = opened(self.path)


@pytest.fixture
def partition(tmp_path: Path) -> Iterator[Partition]:
    made = Partition(tmp_path / "c")
    yield made
    made.cluster.close()


# -- 3.5.1 -------------------------------------------------------------------------------------------------------------


def test_the_window_is_the_last_five_batches_of_a_producer_and_partition(partition: Partition) -> None:
    """Dedup window = last 5 batches per (pid, partition)."""
    for number in range(7):
        partition.append(batch(number))
        partition.append(batch(number, producer_id=8))
    assert [partition.append(batch(number)) for number in range(2, 7)] == [4, 6, 8, 10, 12]
    assert [partition.append(batch(number, producer_id=8)) for number in range(2, 7)] == [5, 7, 9, 11, 13]


def test_it_is_keyed_by_the_exact_first_and_last_sequence_in_the_same_epoch(partition: Partition) -> None:
    """Keyed by exact (firstSeq, lastSeq) with same epoch."""
    partition.append(batch(0, 4))
    assert partition.append(batch(0, 4)) == 0
    for other in (batch(0, 3), batch(1, 4), batch(0, 5)):
        assert isinstance(partition.produce(other).error, OutOfOrderSequenceError)
    assert partition.append(batch(0, 4, epoch=1)) == 5, "of another epoch: no duplicate"


@pytest.mark.parametrize("kind", ["CreateTime", "LogAppendTime"])
def test_a_hit_is_a_success_with_the_original_offsets_and_timestamp(tmp_path: Path, kind: str) -> None:
    """Hit: success with ORIGINAL offsets and timestamp, nothing appended."""
    partition = Partition(tmp_path / "c", **{"message.timestamp.type": kind})
    first = partition.produce(batch(0, 2))
    partition.append(batch(3))
    again = partition.produce(batch(0, 2))
    assert again == first and (first.log_append_time >= 0) == (kind == "LogAppendTime")
    assert partition.end == 4
    partition.cluster.close()


def test_the_same_numbers_with_another_payload_are_a_duplicate(partition: Partition) -> None:
    """Same numbers, different payload: still treated as duplicate."""
    partition.append(batch(0, value=b"first"))
    assert partition.append(batch(0, value=b"second")) == 0
    assert partition.values() == [b"first"]


def test_a_duplicate_waits_for_its_followers_as_the_first_did() -> None:
    """acks=all of a retry means the same as of the first attempt (Kafka: the duplicate's last offset is waited for)."""
    with replicated() as replicas:
        replicas.cluster.network.drop(0, 1)
        replicas.cluster.network.drop(0, 2)
        first = post(replicas, batch(0))
        again = post(replicas, batch(0))
        replicas.sleep(0.5)
        assert not first.done and not again.done
        replicas.cluster.network.heal()
        assert replicas.outcome(first, 5).base_offset == replicas.outcome(again, 5).base_offset == 0
        assert replicas.end(0) == 1


def post(replicas: Replicas, one: Batch, to: int = 0) -> Any:
    return replicas.broker(to).post(api.Produce([("t", 0, one)], -1, 30_000))


# -- 3.5.2 -------------------------------------------------------------------------------------------------------------


def test_the_next_sequence_is_the_one_after_the_last(partition: Partition) -> None:
    """Next must be lastSeq+1, else OUT_OF_ORDER_SEQUENCE."""
    partition.append(batch(0, 9))
    for wrong in (11, 9, 500):
        assert isinstance(partition.produce(batch(wrong)).error, OutOfOrderSequenceError)
    assert partition.end == 10 and partition.append(batch(10)) == 10


def test_the_sequence_after_the_largest_is_zero(partition: Partition) -> None:
    """int32 wraps MAX -> 0."""
    partition.append(batch(LAST - 1, LAST))
    assert partition.append(batch(0)) == 2
    partition.append(batch(1, 2))
    assert partition.append(batch(LAST - 1, LAST)) == 0


def test_a_batch_may_wrap_in_its_middle(partition: Partition) -> None:
    partition.append(batch(LAST - 1, 1))
    assert partition.end == 4 and partition.append(batch(2)) == 4
    assert partition.append(batch(LAST - 1, 1)) == 0


def test_what_is_older_than_the_window_is_out_of_order(partition: Partition) -> None:
    """A batch older than the 5 window: OUT_OF_ORDER too (not DUPLICATE)."""
    for number in range(6):
        partition.append(batch(number))
    assert isinstance(partition.produce(batch(0)).error, OutOfOrderSequenceError)


# -- 3.5.3 -------------------------------------------------------------------------------------------------------------


def test_a_new_epoch_starts_at_zero(partition: Partition) -> None:
    """New epoch must start at seq 0."""
    partition.append(batch(0, 4))
    for wrong in (1, 5):
        assert isinstance(partition.produce(batch(wrong, epoch=1)).error, OutOfOrderSequenceError)
    assert partition.append(batch(0, epoch=1)) == 5


def test_who_is_unknown_begins_anywhere(partition: Partition) -> None:
    """Unknown pid: any first seq accepted (state may be lost to retention)."""
    assert partition.append(batch(41, producer_id=9)) == 0
    assert partition.append(batch(42, producer_id=9)) == 1


# -- 3.5.4 -------------------------------------------------------------------------------------------------------------


def test_a_lower_epoch_is_refused(partition: Partition) -> None:
    """Lower epoch: INVALID_PRODUCER_EPOCH on produce."""
    partition.append(batch(0, epoch=3))
    refused = partition.produce(batch(1, epoch=2)).error
    assert isinstance(refused, InvalidProducerEpochError)
    assert refused.facts["current_epoch"] == 3 and partition.end == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_state_survives_a_leader_change(seed: int) -> None:
    with replicated(seed) as replicas:
        for number in range(3):
            replicas.outcome(post(replicas, batch(number)), 5)
        replicas.crash(0)
        replicas.sleep(1)
        leader = replicas.partition.leader
        assert leader != 0
        assert replicas.outcome(post(replicas, batch(1), leader), 5).base_offset == 1
        gap = replicas.outcome(post(replicas, batch(4), leader), 5)
        assert isinstance(gap.error, OutOfOrderSequenceError)
        assert replicas.outcome(post(replicas, batch(3), leader), 5).base_offset == 3


@pytest.mark.parametrize("batches", [3, 300])
def test_the_state_survives_a_restart(partition: Partition, batches: int) -> None:
    """Restart (snapshot + replay)."""
    for number in range(batches):
        partition.append(batch(number))
    partition.restart()
    assert partition.append(batch(batches - 2)) == batches - 2
    assert isinstance(partition.produce(batch(batches + 1)).error, OutOfOrderSequenceError)
    assert partition.append(batch(batches)) == batches


@pytest.mark.parametrize("batches", [8, 300, 600])
def test_the_state_is_rebuilt_by_a_truncation(partition: Partition, batches: int) -> None:
    """What was cut off is no duplicate, and what is left is known as it was."""
    for number in range(batches):
        partition.append(batch(number))
    left = batches - 3
    partition.cluster.broker.call(api.TruncateTail("t", 0, left))
    assert partition.append(batch(left - 1)) == left - 1
    assert isinstance(partition.produce(batch(left + 1)).error, OutOfOrderSequenceError)
    assert partition.append(batch(left)) == left


def test_it_is_kept_by_compaction(tmp_path: Path) -> None:
    """Kept by compaction: last batch of each pid stays, maybe empty."""
    partition = Partition(tmp_path / "c", **{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0"})
    for number in range(3):
        partition.append(batch(number, producer_id=3, value=b"%d" % number))
    for number in range(3):
        partition.append(batch(number, producer_id=4, value=b"%d" % (10 + number)))
    partition.append(batch(0, producer_id=5, key=b"other"))
    partition.cluster.housekeeping.run_now()
    stored = partition.cluster.broker.partition("t", 0)
    with partition.cluster.broker.environment.snapshot() as snapshot:
        headers = [each.header for each in log.iterate_headers(snapshot, stored.log_id)]
    assert [(h.producer_id, h.base_sequence, h.record_count) for h in headers] == [
        (3, 2, 0),
        (4, 2, 1),
        (5, 0, 1),
    ]
    partition.restart()
    transaction = partition.cluster.broker.environment.write()
    for kind in ("PRODUCER_STATE", "PRODUCER_STATE_BEFORE"):
        key = log.checkpoint_key(stored.log_id, log.CheckpointKind[kind])
        if transaction.get(key) is not None:
            log.put_extra(transaction, stored.log_id, log.CheckpointKind[kind], b"\xc1")
    transaction.commit()
    partition.restart()
    assert isinstance(partition.produce(batch(4, producer_id=3)).error, OutOfOrderSequenceError)
    assert partition.append(batch(3, producer_id=3)) == 7
    partition.cluster.close()


# -- 3.5.5 -------------------------------------------------------------------------------------------------------------


def test_followers_store_what_the_leader_has() -> None:
    """Followers do not validate sequences, only store."""
    with replicated() as replicas:
        replicas.outcome(post(replicas, batch(0)), 5)
        for broker_id in (1, 2):  # they have forgotten: what comes next would be a gap
            replicas.replica(broker_id).producers.states[7] = ProducerState(5, ())
        assert replicas.outcome(post(replicas, batch(1)), 5).base_offset == 1
        assert replicas.end(1) == replicas.end(2) == 2
        replicas.assert_alike()


# -- what a user sees --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_retry_after_a_lost_answer_writes_nothing_twice(seed: int) -> None:
    """The leader appends, and its answer is lost with it: the next leader knows the batch again."""
    simulation = Simulation(seed)
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", replication_factor=3)
        partition = cluster.topic("t")[0]
        with cluster.producer(linger_ms=0, request_timeout_ms=2_000) as producer:
            producer.send("t", b"0").result(10)
            for number in range(1, 8):
                future = producer.send("t", b"%d" % number)
                simulation.sleep(0.001 * (number % 3))
                leader = partition.leader
                cluster.brokers[leader].pause() if number % 2 else cluster.brokers[leader].crash()
                future.result(60)
                cluster.brokers[leader].resume() if number % 2 else cluster.brokers[leader].start()
                simulation.sleep(15)
        assert [record.value for record in partition.read(0)] == [b"%d" % number for number in range(8)]


def test_records_that_fail_leave_no_gap_behind() -> None:
    """What is refused has used up no sequence: the records behind it are written."""
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=3, sync="off", runtime=simulation) as cluster:
        cluster.create_topic(
            "t", replication_factor=3, config={"cleanup.policy": "compact"}
        )  # so records need keys
        with cluster.producer(linger_ms=0) as producer:
            producer.send("t", b"first", b"k").result(10)
            futures = [
                producer.send("t", b"%d" % number, None if number % 3 == 1 else b"%d" % number)
                for number in range(9)
            ]
            failed = [number for number, future in enumerate(futures) if future.exception(10) is not None]
        assert failed == [1, 4, 7]
        values = [record.value for record in cluster.topic("t")[0].read(0)]
        assert values == [b"first", b"0", b"2", b"3", b"5", b"6", b"8"]


def test_a_leader_that_lost_what_it_acknowledged_does_not_stop_its_producers() -> None:
    """An unclean election forgets acknowledged records and the sequences with them: a new epoch begins (KIP-360)."""
    simulation = Simulation(2)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", replication_factor=2, config={"unclean.leader.election.enable": "true"})
        partition = cluster.topic("t")[0]
        with cluster.producer(linger_ms=0) as producer:
            producer.send("t", b"0").result(10)
            first = partition.leader
            cluster.network.partition({first, "metadata"}, {1 - first})
            simulation.sleep(40)
            for number in (1, 2, 3):
                producer.send("t", b"%d" % number).result(10)
            cluster.brokers[first].crash()
            cluster.network.heal()
            simulation.sleep(10)
            assert partition.leader == 1 - first
            producer.send("t", b"4").result(30)
        assert [record.value for record in partition.read(0)] == [b"0", b"4"]


# -- 3.11 --------------------------------------------------------------------------------------------------------------


def test_d1(partition: Partition) -> None:
    """pid 7 epoch 0, batches seq 0-0 ... 5-5; resend 1-1: duplicate, original offset. Resend 0-0: OUT_OF_ORDER."""
    for number in range(6):
        partition.append(batch(number, number))
    assert partition.append(batch(1, 1)) == 1
    assert isinstance(partition.produce(batch(0, 0)).error, OutOfOrderSequenceError)
    assert partition.end == 6


def test_d2(partition: Partition) -> None:
    """Last seq 9, 11: OUT_OF_ORDER; epoch 1 seq 3: OUT_OF_ORDER, seq 0 ok; then epoch 0: INVALID_PRODUCER_EPOCH."""
    partition.append(batch(0, 9))
    assert isinstance(partition.produce(batch(11)).error, OutOfOrderSequenceError)
    assert isinstance(partition.produce(batch(3, epoch=1)).error, OutOfOrderSequenceError)
    assert partition.append(batch(0, epoch=1)) == 10
    assert isinstance(partition.produce(batch(10)).error, InvalidProducerEpochError)
