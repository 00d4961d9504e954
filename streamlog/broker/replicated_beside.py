"""How far a log is replicated, for who reads it when its owner is no more.

A leader that moves its high watermark writes that down with its next commit, or within
`replica_high_watermark_checkpoint_interval_ms`: a process that is killed before leaves a mark below what it
acknowledged. The next owner finds the truth when its followers fetch. A reader finds it here: the logs of all in-sync
replicas lie in the same directory, and nobody writes them.

Invariant: what is told is in the log of every in-sync replica, the same batches, and there are enough of those. So no
owner that comes next takes it back.

Source: the log matching property (Raft, 5.3): batches of the same offset and epoch end equal logs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlog.errors import CorruptRecordError
from streamlog.storage import log

if TYPE_CHECKING:
    from streamlog.broker.stores_beside import Stores
    from streamlog.core.cluster_image import PartitionImage
    from streamlog.core.replica import ReplicaState
    from streamlog.storage.env import Snapshot


def replicated_end(
    stores: Stores,
    snapshot: Snapshot,
    image: PartitionImage,
    leader_id: int,
    state: ReplicaState,
    min_insync_replicas: int,
) -> int:
    """The high watermark that follows from the stores. snapshot, state: of the broker `leader_id`."""
    if len(image.isr) < min_insync_replicas or leader_id not in image.isr:
        return state.high_watermark
    end_offset = state.log_end_offset
    for broker_id in image.isr:
        if broker_id != leader_id:
            with stores.broker(broker_id).snapshot() as other:
                end_offset = min(
                    end_offset, _equal_up_to(snapshot, other, image.log_id, state.high_watermark)
                )
    return max(end_offset, state.high_watermark)


def _equal_up_to(one: Snapshot, other: Snapshot, log_id: int, offset: int) -> int:
    """Up to which offset two logs are equal, that are so up to `offset`."""
    here, there = log.iterate_headers(one, log_id, offset), log.iterate_headers(other, log_id, offset)
    try:
        for first, second in zip(here, there, strict=False):
            if first.header != second.header:
                break
            offset = first.header.next_offset
    except CorruptRecordError:
        pass  # what is damaged is not vouched for
    return offset
