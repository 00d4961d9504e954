"""`verify` over producers: sound logs have nothing wrong, and each lie is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamlog.batch import Batch, seal_columnar
from streamlog.broker import api, producer_states
from streamlog.broker.producer_states import SAVE_BATCHES, ProducerCheckpoint
from streamlog.broker.transaction_coordinator import TransactionCoordinator
from streamlog.broker.upkeep import RaiseLogStart
from streamlog.broker.verifying_producers import check_producers
from streamlog.storage import log
from streamlog.storage.aborted import put_aborted
from streamlog.storage.cleaned_transactions import AbortedTransaction
from streamlog.storage.keys import CheckpointKind
from tests.broker.builders import opened

T = 1_700_000_000_000


def batch(sequence: int, producer_id: int, epoch: int = 0, transactional: bool = False) -> Batch:
    return seal_columnar(
        [b"k"],
        [b"v"],
        timestamps=T,
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=sequence,
        transactional=transactional,
    )


class Written:
    """Idempotent batches of producer 7, then transactions of producer 8: committed, aborted, open."""

    def __init__(self, path: Path) -> None:
        self.cluster = opened(path)
        self.cluster.create_topic("t", 1, 1, {})
        for number in range(SAVE_BATCHES + 10):
            self.call(api.Produce([("t", 0, batch(number, 7))]))
        for epoch, is_commit in enumerate((True, False)):
            self.call(api.Produce([("t", 0, batch(0, 8, epoch, True))]))
            self.call(api.WriteMarkers(8, epoch + 1, 0, is_commit, [("t", 0)]))
        self.call(api.Produce([("t", 0, batch(0, 8, 2, True))]))
        self.partition = self.cluster.broker.partition("t", 0)

    def call(self, request: Any) -> None:
        (produced,) = self.cluster.broker.call(request)
        assert produced.error is None

    def problems(self) -> list[str]:
        found = check_producers(self.cluster.broker.environment, self.partition.log_id)
        return [what for what, _, _ in found]

    def put(self, kind: CheckpointKind, value: bytes) -> None:
        transaction = self.cluster.broker.environment.write()
        log.put_extra(transaction, self.partition.log_id, kind, value)
        transaction.commit()

    def checkpoint(self) -> ProducerCheckpoint:
        with self.cluster.broker.environment.snapshot() as snapshot:
            value = log.get_extra(snapshot, self.partition.log_id, CheckpointKind.PRODUCER_STATE)
        assert value is not None
        return producer_states.decode(value)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    monkeypatch.setattr(TransactionCoordinator, "admit", lambda *_: None)  # the test plays the coordinator
    made = Written(tmp_path / "c")
    yield made
    made.cluster.close()


def test_a_sound_log_has_nothing_wrong(written: Written) -> None:
    assert written.problems() == []


def test_nor_has_one_whose_head_is_deleted(written: Written) -> None:
    end = written.partition.state.log_end_offset
    written.cluster.broker.call(RaiseLogStart(written.partition, end - 2, 0))
    assert written.problems() == []


def test_a_checkpoint_that_says_something_else(written: Written) -> None:
    saved = written.checkpoint()
    state = msgspec.structs.replace(saved.states[7], producer_epoch=3)
    lie = msgspec.structs.replace(saved, end_offset=SAVE_BATCHES + 10, states={7: state})
    written.put(CheckpointKind.PRODUCER_STATE, msgspec.msgpack.encode(lie))
    assert written.problems() == ["producer 7 is another in the producers' checkpoint"]


@pytest.mark.parametrize("kind", ["PRODUCER_STATE", "PRODUCER_STATE_BEFORE"])
def test_a_checkpoint_that_is_none(written: Written, kind: str) -> None:
    written.put(CheckpointKind[kind], b"\xc1")
    assert written.problems() == [f"the producers' checkpoint {kind} cannot be decoded"]


def test_a_checkpoint_that_covers_more_than_there_is(written: Written) -> None:
    ahead = msgspec.structs.replace(written.checkpoint(), end_offset=10**6)
    written.put(CheckpointKind.PRODUCER_STATE, msgspec.msgpack.encode(ahead))
    assert written.problems() == ["the producers' checkpoint PRODUCER_STATE covers more than the log"]


def test_an_aborted_transaction_without_its_marker(written: Written) -> None:
    transaction = written.cluster.broker.environment.write()
    put_aborted(transaction, written.partition.log_id, AbortedTransaction(7, 0, 3))
    transaction.commit()
    [problem] = written.problems()
    assert problem.startswith("a transaction is noted as aborted at offset 3, where")
