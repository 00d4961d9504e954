"""Producers and their checkpoints: whatever was saved when, what is loaded is the fold of the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog.batch import Batch, seal_columnar
from streamlog.broker import api, producer_states
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.producer_states import SAVE_BATCHES
from streamlog.broker.runner import ThreadedRuntime
from streamlog.broker.upkeep import RaiseLogStart
from streamlog.clock import ManualClock
from streamlog.core.producer_state import ProducerState, observed
from streamlog.errors import OutOfOrderSequenceError
from streamlog.storage import log
from streamlog.storage.keys import CheckpointKind
from streamlog.testing import Simulation
from tests.broker.builders import opened

T = 1_700_000_000_000


def batch(sequence: int, producer_id: int = 7, epoch: int = 0) -> Batch:
    return seal_columnar(
        [b"k"],
        [b"%d" % sequence],
        timestamps=T,
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=sequence,
    )


def produce(cluster: BrokerCluster, *batches: Batch) -> list[Any]:
    return [cluster.broker.call(api.Produce([("t", 0, one)]))[0] for one in batches]


def folded(cluster: BrokerCluster) -> dict[int, ProducerState]:
    """The producers as the log's headers tell them, from its first to its last batch."""
    states: dict[int, ProducerState] = {}
    partition = cluster.broker.partition("t", 0)
    with cluster.broker.environment.snapshot() as snapshot:
        for stored in log.iterate_headers(snapshot, partition.log_id):
            header = stored.header
            if header.producer_id >= 0:
                states[header.producer_id] = observed(
                    states.get(header.producer_id), header, header.base_offset
                )
    return states


def known(cluster: BrokerCluster) -> dict[int, ProducerState]:
    table = cluster.broker.partition("t", 0).producers
    assert table is not None
    return table.states


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c"


def begun(path: Path) -> BrokerCluster:
    cluster = opened(path)
    if "t" not in cluster.topics:
        cluster.create_topic("t", 1, 1, {})
    return cluster


def test_a_log_without_producers_has_no_checkpoint_and_no_table(path: Path) -> None:
    cluster = begun(path)
    cluster.broker.call(api.Produce([("t", 0, seal_columnar(None, [b"x"], timestamps=T))]))
    partition = cluster.broker.partition("t", 0)
    assert partition.producers is None
    with cluster.broker.environment.snapshot() as snapshot:
        assert log.get_extra(snapshot, partition.log_id, CheckpointKind.PRODUCER_STATE) is None
    cluster.close()


@pytest.mark.parametrize("batches", [1, 3, SAVE_BATCHES - 1, SAVE_BATCHES + 1, 3 * SAVE_BATCHES + 5])
def test_reopened_the_producers_are_the_fold_of_the_log(path: Path, batches: int) -> None:
    cluster = begun(path)
    for number in range(batches):
        produce(cluster, batch(number), *([batch(number // 10, 8)] if number % 10 == 0 else []))
    assert known(cluster) == folded(cluster)
    cluster.close()
    cluster = begun(path)
    assert cluster.broker.partition("t", 0).producers is not None
    assert known(cluster) == folded(cluster)
    (duplicate,) = produce(cluster, batch(batches - 1))
    assert duplicate.error is None
    assert cluster.broker.partition("t", 0).state.log_end_offset == duplicate.base_offset + 1 + (
        1 if (batches - 1) % 10 == 0 else 0
    )
    cluster.close()


def test_a_checkpoint_spares_reading_the_log(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = begun(path)
    produce(cluster, *[batch(number) for number in range(SAVE_BATCHES + 10)])
    cluster.close()
    read: list[int] = []
    headers = log.iterate_headers

    def counted(*given: Any) -> Any:
        for stored in headers(*given):
            read.append(stored.header.base_offset)
            yield stored

    monkeypatch.setattr(log, "iterate_headers", counted)
    cluster = begun(path)
    cluster.broker.partition("t", 0)
    assert 0 < len(read) < 20
    cluster.close()


def test_without_a_usable_checkpoint_the_log_is_read_from_its_start(path: Path) -> None:
    cluster = begun(path)
    produce(cluster, *[batch(number) for number in range(20)])
    partition = cluster.broker.partition("t", 0)
    transaction = cluster.broker.environment.write()
    log.put_extra(transaction, partition.log_id, CheckpointKind.PRODUCER_STATE, b"\xc1 nonsense")
    transaction.commit()
    cluster.close()
    cluster = begun(path)
    cluster.broker.partition("t", 0)
    assert known(cluster) == folded(cluster)
    cluster.close()


@pytest.mark.parametrize("written", [5, SAVE_BATCHES + 5, 2 * SAVE_BATCHES + 5])
@pytest.mark.parametrize("left", [1, 3, SAVE_BATCHES // 2])
def test_a_cut_tail_is_forgotten(path: Path, written: int, left: int) -> None:
    """What is known then is the fold of what is left; what went may be written again, and is no duplicate."""
    cluster = begun(path)
    produce(cluster, *[batch(number) for number in range(written)], batch(0, 9))
    left = min(left, written - 1)
    cluster.broker.call(api.TruncateTail("t", 0, left))
    assert known(cluster) == folded(cluster)
    (again,) = produce(cluster, batch(left))
    assert again.error is None and again.base_offset == left
    assert known(cluster) == folded(cluster)
    cluster.close()
    cluster = begun(path)
    cluster.broker.partition("t", 0)
    assert known(cluster) == folded(cluster)
    cluster.close()


def test_a_cut_that_leaves_nothing_leaves_nobody(path: Path) -> None:
    cluster = begun(path)
    produce(cluster, batch(0), batch(1))
    cluster.broker.call(api.TruncateTail("t", 0, 0))
    assert known(cluster) == {}
    (first,) = produce(cluster, batch(5))
    assert first.error is None and first.base_offset == 0, "who is not known may begin anywhere"
    cluster.close()


def test_what_retention_deletes_is_remembered(path: Path) -> None:
    """A checkpoint covers at least what is deleted, so a producer goes on where it was, also after a restart."""
    cluster = begun(path)
    produce(cluster, *[batch(number) for number in range(10)])
    partition = cluster.broker.partition("t", 0)
    cluster.broker.call(RaiseLogStart(partition, 10, partition.state.truncation_count))
    assert partition.producers is not None and partition.producers.saved_offset == 10
    before = dict(known(cluster))
    cluster.close()
    cluster = begun(path)
    cluster.broker.partition("t", 0)
    assert known(cluster) == before
    (gap,) = produce(cluster, batch(11))
    assert isinstance(gap.error, OutOfOrderSequenceError)
    (following,) = produce(cluster, batch(10))
    assert following.base_offset == 10
    cluster.close()


def test_who_expired_is_left_out_of_the_next_checkpoint(path: Path) -> None:
    cluster = begun(path)
    produce(cluster, batch(0, 3), *[batch(number) for number in range(SAVE_BATCHES // 2)])
    cluster.close()
    clock = ManualClock(cluster.runtime.clock.wall_ms() + 60_000)
    cluster = opened(path, runtime=ThreadedRuntime(clock), producer_id_expiration_ms=50_000)
    produce(cluster, batch(SAVE_BATCHES // 2))
    assert set(known(cluster)) == {3, 7}, "it goes with the next checkpoint"
    produce(cluster, *[batch(SAVE_BATCHES // 2 + number) for number in range(1, SAVE_BATCHES)])
    assert set(known(cluster)) == {7}
    assert produce(cluster, batch(17, 3))[0].error is None, "who is not known may begin anywhere"
    cluster.close()


def test_old_timestamps_expire_nobody(path: Path) -> None:
    """Kafka forgets by the records' timestamps; who sends the records of last year would never be known again."""
    cluster = begun(path)
    one = seal_columnar(None, [b"x"], timestamps=17, producer_id=3, producer_epoch=0, base_sequence=0)
    produce(cluster, one, *[batch(number) for number in range(2 * SAVE_BATCHES)])
    assert produce(cluster, one)[0].base_offset == 0
    cluster.close()


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_a_marker_above_the_high_watermark_holds_the_stable_offset_after_loading(
    is_checkpointed: bool,
) -> None:
    """Found by the hunt, seed 39: a broker that came back took the transaction for stable."""
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=2, sync="off", runtime=simulation) as cluster:
        cluster.create_topic("t", replication_factor=2)
        with cluster.producer(transactional_id="x", linger_ms=0) as producer:
            transaction = producer.transaction().__enter__()
            for _ in range(SAVE_BATCHES - 2 if is_checkpointed else 2):
                producer.send("t", b"v").result()
            leader = cluster.topic("t")[0].leader
            broker = cluster._backend.peers.running(leader)
            cluster.network.partition({leader, "metadata"}, {1 - leader})
            state = broker.partition("t", 0).producers.states
            [producer_id] = state
            request = api.WriteMarkers(
                producer_id, state[producer_id].producer_epoch + 1, 0, False, [("t", 0)]
            )
            broker.post(request)
            broker.post(request)
            before = broker.partition("t", 0).state
            assert before.high_watermark == before.log_end_offset - 1 and before.last_stable_offset == 0
            cluster.brokers[leader].crash()
            cluster.brokers[leader].start()
            after = cluster._backend.peers.running(leader).partition("t", 0).state
            assert after.high_watermark < after.log_end_offset == before.log_end_offset
            assert after.last_stable_offset == 0
            cluster.network.heal()
            transaction.abort()
            simulation.sleep(15)
            after = cluster._backend.peers.running(cluster.topic("t")[0].leader).partition("t", 0).state
            assert after.last_stable_offset == after.high_watermark == after.log_end_offset


def test_a_table_says_what_it_holds() -> None:
    assert repr(producer_states.ProducerTable({}, 5)) == "ProducerTable(0 producers, saved up to 5)"
