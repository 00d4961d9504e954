"""A group machine and what its host keeps beside it.

The `view` is what members of this process look at, without a turn: published after each change, told to who listens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from streamlog.broker.api import GroupRequest
from streamlog.broker.checkpointing import decode_offsets
from streamlog.broker.partition import Partition
from streamlog.broker.purgatory import Source
from streamlog.broker.settled_offsets import UnsettledOffsets
from streamlog.core.group import GroupMachine
from streamlog.core.group_events import TopicsDeleted
from streamlog.core.group_records import decode_key
from streamlog.core.held_records import HeldRecords, settled_records
from streamlog.errors import StreamlogError, UnknownTopicOrPartitionError
from streamlog.record import TopicPartition
from streamlog.storage import log
from streamlog.storage.fold_checkpoints import load_fold

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.core.cluster_image import TopicImage
    from streamlog.core.group_events import OffsetCommit

READ_BYTES: Final = 4 * 1024 * 1024


class HostedGroup(Source):
    """A machine and what its host keeps beside it. `view` is published after each change."""

    __slots__ = (
        "group_id",
        "machine",
        "view",
        "partition",
        "scheduled_ms",
        "is_idle",
        "is_gone",
        "_is_news",
        "stable_generation",
        "unsettled",
    )

    def __init__(self, group_id: str, machine: GroupMachine, partition: Partition) -> None:
        super().__init__()
        self.group_id = group_id
        self.machine = machine
        self.view = machine.view()
        self.partition = partition
        # The group's entry in the host's heap; its machine may want later, which is seen when the entry comes up.
        self.scheduled_ms: int | None = None
        self._is_news = False
        self.stable_generation = self.view.generation  # of the last rebalance that was counted
        self.unsettled = UnsettledOffsets()
        self.is_idle = False  # nobody has asked for it since offsets were last expired
        self.is_gone = False  # the coordinator moved: another broker hosts the group now

    def publish(self) -> None:
        view = self.machine.view()
        if (view.state, view.generation) != (self.view.state, self.view.generation):
            self._is_news = True  # until told: an interrupt may come between publishing and telling
        self.view = view
        if self._is_news:
            self.notify()
            self._is_news = False


class LoadedFold:
    """One partition of `__consumer_offsets`, loaded: how far its checkpoint is behind, and how large that is."""

    __slots__ = ("keys_saved", "records_since_checkpoint")

    def __init__(self) -> None:
        self.keys_saved = 0
        self.records_since_checkpoint = 0


def of_known_partitions(
    commit: OffsetCommit, topics: Mapping[str, TopicImage]
) -> tuple[OffsetCommit, dict[TopicPartition, StreamlogError | None]]:
    """A commit without the partitions that do not exist, told what its topics are; and the errors of the others.

    Source: KafkaApis.handleOffsetCommitRequest.
    """
    unknown: dict[TopicPartition, StreamlogError | None] = {}
    topic_ids: dict[str, str] = {}
    for topic, number in commit.offsets:
        image = topics.get(topic)
        if image is not None and 0 <= number < len(image.partitions):
            topic_ids[topic] = image.topic_id
            continue
        unknown[TopicPartition(topic, number)] = UnknownTopicOrPartitionError(
            f"an offset of {topic}-{number} cannot be committed: there is no such partition",
            topic=topic,
            partition=number,
        )
    known = {partition: where for partition, where in commit.offsets.items() if partition not in unknown}
    return msgspec.structs.replace(commit, offsets=known, topic_ids=topic_ids), unknown


def forget_deleted_topics(broker: Broker, hosted: HostedGroup) -> None:
    """A crash may have come between the deletion of a topic and that of the offsets committed for it."""
    topics = broker.metadata.image.topics
    gone = sorted(
        {partition.topic for partition in hosted.machine.all_committed() if partition.topic not in topics}
    )
    if gone:
        broker.slip_in(GroupRequest(hosted.group_id, TopicsDeleted(tuple(gone))))


def load_machines(
    broker: Broker, partition: Partition, make: Callable[[str], GroupMachine]
) -> tuple[dict[str, HostedGroup], LoadedFold]:
    """Fold a partition of `__consumer_offsets` into the machines of its groups: from its checkpoint, where it has one."""
    fold = LoadedFold()
    machines: dict[str, HostedGroup] = {}
    environment, state = broker.environment, partition.state
    now_ms = broker.runtime.clock.monotonic_ms()

    def replay(key: bytes, value: bytes | None) -> None:
        decoded = decode_key(key)
        if decoded is None:
            return  # a kind of record this version does not know
        group_id = decoded.group_id
        hosted = machines.get(group_id)
        if hosted is None:
            hosted = machines[group_id] = HostedGroup(group_id, make(group_id), partition)
        hosted.machine.replay(key, value, now_ms)

    held = HeldRecords()
    with environment.snapshot() as snapshot:
        saved = load_fold(snapshot, partition.log_id)
    offset = state.log_start_offset
    if saved is not None:
        try:
            offset, latest = decode_offsets(saved)
        except msgspec.DecodeError:
            latest = {}  # a cache: without it all of the log is replayed
        for saved_key, saved_value in latest.items():
            replay(saved_key, saved_value)
        fold.keys_saved = len(latest)
    while True:  # until nothing is found
        with environment.snapshot() as snapshot:
            found = log.read(snapshot, partition.log_id, offset, state.log_end_offset, READ_BYTES)
        if not found:
            break
        for batch in found:
            for key, value in settled_records(held, batch, partition.topic, partition.number, offset):
                replay(key, value)
            fold.records_since_checkpoint += batch.record_count
            offset = batch.next_offset
    for producer_id, key, value in held.remaining():
        decoded = decode_key(key)
        if decoded is not None:
            group_id = decoded.group_id
            if group_id not in machines:
                machines[group_id] = HostedGroup(group_id, make(group_id), partition)
            machines[group_id].machine.hold(producer_id, [(key, value)])
    return machines, fold
