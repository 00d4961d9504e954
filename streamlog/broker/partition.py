"""One partition on one broker: its rules (`core.replica`), its bytes (`storage.log`), and the view readers see.

Readers never take the turn lock. They read `view`, an immutable `ReplicaState` (None: this partition is not served),
open a snapshot, and look at the view again: if the leader epoch, the start offset or the truncation count differ, what
the snapshot holds may not belong to the view, and they try again.

Invariants:
 1. `state` changes only in the turn that committed it; `view` is the last state that was published.
 2. The checkpoint in the store was written in the same transaction as the batches it covers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from streamlog.batch import Batch
from streamlog.batch_header import CODEC_MASK
from streamlog.broker.purgatory import Source
from streamlog.compression import CODECS
from streamlog.config import TopicConfig
from streamlog.core.cluster_image import PartitionImage, TopicImage
from streamlog.core.leader_epochs import EpochEntry, EpochHistory
from streamlog.core.replica import ReplicaState
from streamlog.core.timestamps import timestamp_refusal
from streamlog.errors import (
    CorruptRecordError,
    CorruptStoreError,
    InvalidRecordError,
    InvalidTimestampError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
    StreamlogError,
)
from streamlog.metrics import Meter
from streamlog.option_rules import INT64_MAX
from streamlog.storage import log
from streamlog.storage.env import Environment, Snapshot, WriteTransaction
from streamlog.storage.keys import CheckpointKind

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.measuring import RequestTimes
    from streamlog.broker.producer_states import ProducerTable
    from streamlog.core.leadership import Leadership


NO_EPOCHS: Final = EpochHistory()
_encode_epochs = msgspec.msgpack.Encoder().encode


class TopicMeters:
    """The broker's traffic counters of one topic; Kafka's BrokerTopicMetrics."""

    __slots__ = (
        "messages_in",
        "bytes_in",
        "bytes_out",
        "messages_out",
        "bytes_rejected",
        "produce_requests",
        "fetch_requests",
        "failed_produce",
        "failed_fetch",
        "everything",
        "times",
    )

    def __init__(
        self,
        make: Callable[[str], Meter],
        everything: TopicMeters | None = None,
        times: RequestTimes | None = None,
    ) -> None:
        """everything: the meters of all topics together, which count fetches along with these."""
        self.messages_in: Meter = make("MessagesInPerSec")
        self.bytes_in: Meter = make("BytesInPerSec")
        self.bytes_out: Meter = make("BytesOutPerSec")
        self.messages_out: Meter = make("MessagesOutPerSec")
        self.bytes_rejected: Meter = make("BytesRejectedPerSec")
        self.produce_requests: Meter = make("TotalProduceRequestsPerSec")
        self.fetch_requests: Meter = make("TotalFetchRequestsPerSec")
        self.failed_produce: Meter = make("FailedProduceRequestsPerSec")
        self.failed_fetch: Meter = make("FailedFetchRequestsPerSec")
        self.everything = everything
        self.times = times

    def written(self, messages: int, size_bytes: int, times: RequestTimes | None) -> None:
        """Count one batch of a Produce. Only turns call it."""
        self.produce_requests.count += 1
        self.messages_in.count += messages
        self.bytes_in.count += size_bytes
        everything = self.everything
        if everything is not None:
            everything.produce_requests.count += 1
            everything.messages_in.count += messages
            everything.bytes_in.count += size_bytes
        if times is not None:
            times.written.count += 1

    def not_written(self, error: BaseException, size_bytes: int, times: RequestTimes | None) -> None:
        """Count one refused batch of a Produce."""
        for meters in (self,) if self.everything is None else (self, self.everything):
            meters.produce_requests.count += 1
            meters.refused(error, size_bytes)
        if times is not None:
            times.produced.failed(error)

    def begin_fetch(self) -> int:
        """The time a fetch begins, for `fetched`."""
        return 0 if self.times is None else self.times.fetches.clock_us()

    def fetched(self, messages: int, size_bytes: int, begun_us: int) -> int:
        """Count one fetch; how long it took, in microseconds. Readers call it, each in its own thread:
        plain additions, nothing called in between.
        """
        self.fetch_requests.count += 1
        self.messages_out.count += messages
        self.bytes_out.count += size_bytes
        everything = self.everything
        if everything is not None:
            everything.fetch_requests.count += 1
            everything.messages_out.count += messages
            everything.bytes_out.count += size_bytes
        if self.times is None:
            return 0
        fetches = self.times.fetches
        took_us = fetches.clock_us() - begun_us
        fetches.took(took_us)
        fetches.errors["NONE"].count += 1
        return took_us

    def fetch_failed(self, error: StreamlogError) -> None:
        """Count one fetch that failed. Kafka: a position out of range is no failure of the broker's."""
        is_expected = isinstance(error, OffsetOutOfRangeError)
        for meters in (self,) if self.everything is None else (self, self.everything):
            meters.fetch_requests.count += 1
            if not is_expected:
                meters.failed_fetch.count += 1
        if self.times is not None:
            self.times.fetches.failed(error)

    def refused(self, error: BaseException, size_bytes: int) -> None:
        """Count one refused batch as Kafka does: only what fails validation is a failed request."""
        if isinstance(error, RecordTooLargeError):
            self.bytes_rejected.count += size_bytes
        elif isinstance(error, (InvalidRecordError, InvalidTimestampError)):
            self.failed_produce.count += 1


class Partition(Source):
    """What the broker knows of one partition it hosts. Owned by the broker's turn; `view` may be read by anybody."""

    __slots__ = (
        "topic",
        "number",
        "topic_id",
        "log_id",
        "internal",
        "config",
        "codec",
        "is_plain",
        "state",
        "view",
        "generation",
        "is_cutting",
        "synced_offset",
        "compactions",
        "meters",
        "leadership",
        "epochs",
        "producers",
        "leader_id",
        "role_epoch",
        "serves",
        "is_alone",
        "home",
        "__weakref__",
    )

    def __init__(
        self,
        topic: TopicImage,
        number: int,
        image: PartitionImage,
        config: TopicConfig,
        state: ReplicaState,
        meters: TopicMeters,
    ) -> None:
        super().__init__()
        self.topic = topic.name
        self.number = number
        self.topic_id = topic.topic_id
        self.log_id = image.log_id
        self.internal = topic.internal
        # Who leads: with one replica we do, alone; else `broker.replication` tells, in a turn.
        self.is_alone = True
        self.serves = True  # to clients
        self.leadership: Leadership | None = None
        self.epochs = NO_EPOCHS
        self.producers: ProducerTable | None = None  # None: no batch with a producer id was ever written
        self.home: Broker | None = None
        self.leader_id = -1
        self.role_epoch = -1
        self.configure(config)
        self.state = state
        self.view: ReplicaState | None = state
        self.is_cutting = False
        self.synced_offset = state.log_end_offset  # where `flush.messages` counts from
        # Counts truncations: a compaction planned before one must not be applied after it.
        self.generation = 0
        self.compactions = 0  # and a checkpoint encoded before a compaction must not be stored after it
        self.meters = meters

    @property
    def name(self) -> str:
        return f"{self.topic}-{self.number}"

    def __repr__(self) -> str:
        state = self.state
        return (
            f"Partition({self.topic}-{self.number}, start={state.log_start_offset}, "
            f"high_watermark={state.high_watermark}, end={state.log_end_offset})"
        )

    def configure(self, config: TopicConfig) -> None:
        """Take over the topic's options."""
        self.config = config
        self.codec = CODECS[config.compression_type]
        # Whether nothing but its size and newest timestamp decides about a batch, and nothing more is to be done for it.
        self.is_plain = (
            self.is_alone
            and not self.internal
            and not config.compacts
            and self.codec is None
            and config.retention_bytes < 0
            and config.message_timestamp_type == "CreateTime"
            and config.message_timestamp_before_max_ms == INT64_MAX
            and config.flush_messages == INT64_MAX
        )

    def publish(self, state: ReplicaState) -> None:
        """Make `state` current and visible, and tell who waits."""
        assert 0 <= state.log_start_offset <= state.high_watermark <= state.log_end_offset, state
        if self.producers is not None:
            state = self.producers.stabilized(state)
        before, self.state = self.state, state
        if self.view is not None:
            self.view = state
            self.is_cutting = False
            if self.subscriptions and (self.is_alone or _is_news(before, state)):
                self.notify()

    def take_role(self, leader_id: int, role_epoch: int, serves: bool, is_alone: bool) -> None:
        """Lead or follow from now on; whoever reads here looks again."""
        self.leader_id, self.role_epoch = leader_id, role_epoch
        self.serves, self.is_alone = serves, is_alone
        self.configure(self.config)
        self.notify()

    def stop_serving(self) -> None:
        """The topic is gone: readers find no view and look up the cluster image."""
        self.view = None
        self.notify()

    def admit(self, batch: Batch, now_ms: int) -> Batch:
        """Check a client's batch against the topic's rules; the batch to store, stamped and recoded as the topic says.

        now_ms:  wall clock.
        Raises   RecordTooLargeError, InvalidTimestampError, InvalidRecordError; nothing was written.
        Source   Kafka `LogValidator`, `UnifiedLog.append`.
        """
        config = self.config
        if batch.is_control:
            raise InvalidRecordError(
                f"a control batch for {self.topic}-{self.number}: clients do not write those, coordinators do",
                topic=self.topic,
                partition=self.number,
            )
        if batch.size_bytes > config.max_message_bytes:
            self._refuse_size(batch)
        if self.codec is not None and batch.attributes & CODEC_MASK != self.codec:
            # Producers of this process have asked before sealing; who has not pays for it here.
            batch = batch.with_codec(self.codec)
            if batch.size_bytes > config.max_message_bytes:
                self._refuse_size(batch)
        if config.compacts:
            self._require_keys(batch)
        if config.message_timestamp_type == "LogAppendTime":
            return batch.with_log_append_time(now_ms)
        latest = now_ms + config.message_timestamp_after_max_ms
        earliest = now_ms - config.message_timestamp_before_max_ms
        # The header tells the youngest record only: for the oldest, all have to be looked at.
        if batch.max_timestamp > latest or earliest > 0:
            self._check_timestamps(batch, earliest, latest, now_ms)
        return batch

    def _refuse_size(self, batch: Batch) -> None:
        raise RecordTooLargeError(
            f"a batch of {batch.size_bytes} bytes for {self.topic}-{self.number} is larger than the topic's "
            f"max.message.bytes={self.config.max_message_bytes}; send smaller records, lower "
            "batch_size, or raise the option",
            topic=self.topic,
            partition=self.number,
            size_bytes=batch.size_bytes,
            allowed_bytes=self.config.max_message_bytes,
        )

    def _check_timestamps(self, batch: Batch, earliest: int, latest: int, now_ms: int) -> None:
        timestamps = batch.columns().timestamps
        at_fault = [index for index, ms in enumerate(timestamps) if not earliest <= ms <= latest]
        if at_fault:
            first = timestamps[at_fault[0]]
            raise InvalidTimestampError(
                f"a record for {self.topic}-{self.number}: {timestamp_refusal(first, now_ms, self.config)}",
                topic=self.topic,
                partition=self.number,
                timestamp=first,
                record_indexes=at_fault,
            )

    def _require_keys(self, batch: Batch) -> None:
        missing = [index for index, key in enumerate(batch.columns().keys) if key is None]
        if missing:
            raise InvalidRecordError(
                f"topic {self.topic!r} is compacted, so every record needs a key; records "
                f"{missing[:10]} of the batch have none",
                topic=self.topic,
                partition=self.number,
                record_indexes=missing,
            )


def _is_news(before: ReplicaState, state: ReplicaState) -> bool:
    """Whether readers see something else now."""
    return (
        state.high_watermark != before.high_watermark
        or state.log_start_offset != before.log_start_offset
        or state.truncation_count != before.truncation_count
        or state.first_unstable_offset != before.first_unstable_offset
    )


def load_epochs(snapshot: Snapshot, log_id: int, state: ReplicaState) -> EpochHistory:
    """The epoch list as it was stored; without one, as the batches tell it."""
    value = log.get_extra(snapshot, log_id, CheckpointKind.LEADER_EPOCHS)
    if value is not None:
        entries = msgspec.msgpack.decode(value, type=list[tuple[int, int]])
        return EpochHistory(tuple(EpochEntry(*entry) for entry in entries))
    history = EpochHistory()
    if state.log_end_offset > state.log_start_offset:
        for stored in log.iterate_headers(snapshot, log_id, state.log_start_offset):
            start = max(stored.header.base_offset, state.log_start_offset)
            history = history.entered(stored.header.leader_epoch, start)
    return history


def save_epochs(transaction: WriteTransaction, log_id: int, epochs: EpochHistory) -> None:
    """Write the epoch list along with what a transaction writes of its log."""
    log.put_extra(transaction, log_id, CheckpointKind.LEADER_EPOCHS, _encode_epochs(epochs.entries))


def known_epochs(epochs: EpochHistory, state: ReplicaState) -> EpochHistory:
    """The epoch list of a log that is compared with others from now on.

    What was written while there was one replica is not in it: then nobody compares.
    """
    if epochs.entries or state.log_end_offset == state.log_start_offset:
        return epochs
    return epochs.entered(state.leader_epoch, state.log_start_offset)


def load_producers(snapshot: Snapshot, log_id: int, state: ReplicaState) -> ProducerTable | None:
    """The producers a log knows; None, as nearly always, if it never had one."""
    if log.get_extra(snapshot, log_id, CheckpointKind.PRODUCER_STATE) is None:
        return None
    from streamlog.broker import producer_states

    return producer_states.load(snapshot, log_id, state.log_start_offset, state.log_end_offset)


def load_state(environment: Environment, log_id: int, leader_epoch: int) -> tuple[ReplicaState, bool]:
    """The state of a log as its checkpoint tells it, and whether a crash left batches below its start.

    A log never written to is empty.
    """
    with environment.snapshot() as snapshot:
        checkpoint = _load_checkpoint(snapshot, log_id)
        state = state_of(checkpoint, leader_epoch)
        return state, is_untrimmed(snapshot, log_id, state.log_start_offset)


def state_of(checkpoint: log.LogCheckpoint | None, leader_epoch: int) -> ReplicaState:
    """What a checkpoint says; None: of a log never written to."""
    if checkpoint is None:
        return ReplicaState(leader_epoch=leader_epoch)
    return ReplicaState(
        checkpoint.log_start_offset,
        checkpoint.high_watermark,
        checkpoint.log_end_offset,
        leader_epoch,
        checkpoint.size_bytes,
        checkpoint.max_timestamp,
    )


def _load_checkpoint(snapshot: Snapshot, log_id: int) -> log.LogCheckpoint | None:
    """The checkpoint; built anew, by walking the log, if it is missing or the newest batch contradicts it.

    Appending behind a wrong end would overwrite batches. Raises CorruptStoreError where there is no batch to tell.
    """
    newest = log.newest_place(snapshot, log_id)
    checkpoint = None
    try:
        checkpoint = log.load_checkpoint(snapshot, log_id)
        if checkpoint is None and newest is None:
            return None
        if checkpoint is not None and checkpoint.fits(newest):
            return checkpoint
        if newest is None:
            raise CorruptStoreError(
                f"the checkpoint of log {log_id} contradicts itself: {checkpoint}", log_id=log_id
            )
    except CorruptStoreError:
        if newest is None:
            raise
    from streamlog.storage.verification import rebuild_checkpoint

    rebuilt = rebuild_checkpoint(snapshot, log_id)
    if checkpoint is not None and rebuilt is not None:
        start = checkpoint.log_start_offset
        if rebuilt.log_start_offset <= start <= rebuilt.log_end_offset:
            return msgspec.structs.replace(rebuilt, log_start_offset=start)
    return rebuilt


def is_untrimmed(snapshot: Snapshot, log_id: int, log_start_offset: int) -> bool:
    """Whether there are whole batches below the start."""
    if log_start_offset == 0:
        return False
    try:
        oldest = next(log.iterate_headers(snapshot, log_id), None)
    except CorruptRecordError:
        return False
    return oldest is not None and oldest.header.last_offset < log_start_offset
