"""Offsets a transaction commits: their records carry its producer's stamp, and count once its marker is there (KIP-447).

    TxnOffsetCommit --> records of the transaction in __consumer_offsets --marker--> the group's offsets
                                             +--until then whoever asks for them has to ask again

Source: SEMANTICS 3.5.17; Kafka GroupCoordinatorShard.commitTransactionalOffset.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from streamlog import batch as batches
from streamlog.errors import InvalidProducerEpochError, UnstableOffsetCommitError

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.partition import Partition
    from streamlog.broker.pending import Turn
    from streamlog.core.group import GroupMachine
    from streamlog.core.group_events import OffsetCommit, TxnOffsetCommit
    from streamlog.core.machine import Key, Value
    from streamlog.record import TopicPartition


def transactional(commit: OffsetCommit, producer_id: int, producer_epoch: int) -> TxnOffsetCommit:
    """A member's commit as part of a transaction."""
    from streamlog.core.group_events import TxnOffsetCommit

    return TxnOffsetCommit(
        producer_id=producer_id, producer_epoch=producer_epoch, **msgspec.structs.asdict(commit)
    )


def append_records(
    broker: Broker,
    turn: Turn,
    partition: Partition,
    records: list[tuple[Key, Value]],
    transactional: TxnOffsetCommit | None,
) -> None:
    """Stage a group's records, as part of a transaction or not."""
    stamp: dict[str, Any] = {}
    if transactional is not None:
        # The coordinator writes in its client's place: no sequences to be checked, as in Kafka.
        stamp = {
            "producer_id": transactional.producer_id,
            "producer_epoch": transactional.producer_epoch,
            "base_sequence": 0,
            "transactional": True,
        }
    keys, values = [key for key, _ in records], [value for _, value in records]
    batch = batches.seal_v2_columns(keys, values, timestamps=turn.wall_ms, **stamp)
    produced = broker.append(turn, partition, batch)
    if transactional is not None:
        from streamlog.broker.producer_states import observe

        observe(broker.transaction(turn), turn, partition, batch, produced.base_offset)


def check_epoch(turn: Turn, partition: Partition, event: TxnOffsetCommit) -> None:
    """Raises InvalidProducerEpochError for a transaction that is over."""
    from streamlog.broker.producer_states import state_of

    known = state_of(turn, partition, event.producer_id)
    if known is not None and known.producer_epoch > event.producer_epoch:
        raise InvalidProducerEpochError(
            f"producer {event.producer_id} commits offsets in epoch {event.producer_epoch}; epoch "
            f"{known.producer_epoch} has begun in {partition.name}",
            producer_id=event.producer_id,
            producer_epoch=event.producer_epoch,
            current_epoch=known.producer_epoch,
        )


def check_stable(machine: GroupMachine, partitions: Iterable[TopicPartition]) -> None:
    """Raises UnstableOffsetCommitError."""
    for partition in partitions:
        if not machine.is_stable(*partition):
            raise UnstableOffsetCommitError(
                f"group {machine.group_id!r}: a transaction is about to commit the offset of {partition}; ask again",
                group_id=machine.group_id,
                topic=partition[0],
                partition=partition[1],
            )
