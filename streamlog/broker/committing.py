"""A commit of offsets that is alone in the inbox: its whole turn.

    decide -> append -> commit -> apply, publish -> count -> reply        the steps of any turn, in one function

As `producing.run_alone`, and by its laws: what is not usual (a group that is not loaded, a partition with followers, an
offset that is refused, ...) is left to the general turn before anything has begun, and a turn cut short anywhere is
finished by the general turn. The rules stay the machine's: nothing is decided here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from streamlog import batch as batches
from streamlog.broker.lone_turns import carry_out
from streamlog.broker.pending import Pending, Turn
from streamlog.core.cluster_image import CONSUMER_OFFSETS_TOPIC
from streamlog.core.group_events import OffsetCommit, OffsetCommitReply
from streamlog.core.replica import appended
from streamlog.storage import log

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker


def run_alone(broker: Broker, pending: Pending) -> bool:
    """Run a whole turn for this request, if it is a usual one. Called as the runner, nothing unfinished."""
    request: Any = pending.request
    commit = request.event
    if type(commit) is not OffsetCommit or pending.taken or pending.poison is not None or broker._stopped:
        return False
    hosted = broker.coordinator.known(request.group_id)
    if hosted is None:
        return False
    partition = hosted.partition
    topics = broker.metadata.image.topics
    image = topics.get(CONSUMER_OFFSETS_TOPIC)
    if (
        image is None
        or image.topic_id != partition.topic_id
        or not partition.is_alone
        or (broker.replication is not None and broker.replication.dirty)  # perhaps it leads no longer
        or partition.producers is not None  # transactions have brought offsets
        or partition.config.retention_bytes >= 0
    ):
        return False
    topic_ids: dict[str, str] = {}
    for topic, number in commit.offsets:
        known = topics.get(topic)
        if known is None or not 0 <= number < len(known.partitions):
            return False
        topic_ids[topic] = known.topic_id
    turn = Turn(broker._monotonic_ns() // 1_000_000, broker._wall_ns() // 1_000_000, [pending])
    commit = msgspec.structs.replace(commit, topic_ids=topic_ids)
    decision = hosted.machine.handle(commit, turn.now_ms, turn.wall_ms)
    if len(decision.records) != len(commit.offsets) or len(decision.replies) != 1:
        return False  # refused, all or in part; or it brings more
    reply = decision.replies[0][1]
    if type(reply) is not OffsetCommitReply:
        return False
    state = partition.state
    batch = batches.seal_v2_columns(
        [key for key, _ in decision.records],
        [value for _, value in decision.records],
        timestamps=turn.wall_ms,
    )
    staged = appended(state, batch.last_offset_delta + 1, batch.size_bytes, batch.max_timestamp)
    turn.staged[partition] = staged
    turn.staged_machines[hosted] = decision
    turn.effects.append(broker.coordinator.applying(hosted, decision))
    turn.reply(pending, reply)
    carry_out(
        broker,
        turn,
        lambda transaction: log.append_alone(
            transaction, partition.log_id, batch, state.log_end_offset, staged
        ),
    )
    return True
