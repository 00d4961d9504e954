"""Markers: how the decision about a transaction gets into the partitions it wrote to.

    WriteMarkers --each partition: leads? epoch? --> control batch appended, the transaction ends --> replicated --> told

A marker is a batch like any other: it takes an offset, is copied, and survives a failover. Writing one again is harmless:
the coordinator repeats itself until it was told that each is there.

Source: SEMANTICS 3.5.7, 3.5.11, 3.5.12; Kafka WriteTxnMarkers, ProducerAppendInfo.appendEndTxnMarker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlog.batch import ControlRecord, ControlType, control_batch
from streamlog.broker.api import Produced, WriteMarkers
from streamlog.broker.partition import Partition
from streamlog.broker.pending import Pending, Turn
from streamlog.broker.producer_states import observe, state_of
from streamlog.core.cluster_image import CONSUMER_OFFSETS_TOPIC
from streamlog.core.producer_state import admit_marker
from streamlog.errors import StreamlogError

if TYPE_CHECKING:
    from streamlog.batch import Batch
    from streamlog.broker.broker import Broker


def append_marker(
    broker: Broker, turn: Turn, partition: Partition, marker: Batch, control: ControlRecord
) -> None:
    """Stage a marker; in a partition of groups the offsets of its transaction count from then on, or never did.

    control:  what it says.
    """
    if partition.topic == CONSUMER_OFFSETS_TOPIC:
        broker.coordinator.end_transaction(
            turn, partition, marker.producer_id, control.kind is ControlType.COMMIT
        )
    produced = broker.append(turn, partition, marker)
    observe(broker.transaction(turn), turn, partition, marker, produced.base_offset, control)


def write_markers(broker: Broker, turn: Turn, pending: Pending, request: WriteMarkers) -> None:
    """Append a marker to each partition, or say why not; answered when those are replicated, one `Produced` each."""
    kind = ControlType.COMMIT if request.is_commit else ControlType.ABORT
    control = ControlRecord(kind, request.coordinator_epoch)
    marker = control_batch(
        kind,
        producer_id=request.producer_id,
        producer_epoch=request.producer_epoch,
        timestamp=turn.wall_ms,
        coordinator_epoch=request.coordinator_epoch,
    )
    results: list[Produced] = []
    waiting: list[tuple[Partition, int, int]] = []
    for topic, number in request.partitions:
        try:
            partition = broker.partition(topic, number)
            if broker.replication is not None:
                broker.replication.check_leads(turn, partition, -1)
            known = state_of(turn, partition, request.producer_id)
            is_new = admit_marker(known, marker, request.coordinator_epoch, topic, number)
        except StreamlogError as error:
            results.append(Produced(-1, -1, -1, error))
            continue
        if is_new:
            append_marker(broker, turn, partition, marker, control)
        state = turn.staged.get(partition) or partition.state
        results.append(Produced(state.log_end_offset - 1, -1, state.log_start_offset))
        if not turn.is_alone(partition) and state.high_watermark < state.log_end_offset:
            waiting.append((partition, state.log_end_offset, len(results) - 1))
    if waiting and broker.replication is not None:
        broker.replication.acknowledgements.park(turn, pending, results, waiting, request.timeout_ms)
    else:
        turn.reply(pending, results)
