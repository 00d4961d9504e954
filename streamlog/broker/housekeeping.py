"""Retention and compaction in the background, and on request: the long work that never sits in a turn.

    every log.retention.check.interval.ms   time and size retention: look in a snapshot, then ask the turn
    every log.cleaner.backoff.ms            compaction: recode outside from a snapshot, swap in a turn
    every offsets.retention.check.interval  groups forget offsets that have expired
    when a fold has grown enough            its checkpoint is encoded here and put into the store in turns
    every minute                            reader slots of killed processes are freed: they keep deleted pages

The decisions are `storage.retention`'s, `storage.cleaner`'s and `core.replica`'s; this module only knows when, for which
partitions, and how to hand the result to the broker. A compaction whose partition moved on in the meantime is thrown
away. What is wrong with one partition (a corrupt batch) does not keep the others from being cleaned.

Sources: Kafka LogManager.cleanupLogs, LogCleanerManager.grabFilthiestCompactedLog.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from streamlog.broker.broker import Broker
from streamlog.broker.checkpointing import try_to
from streamlog.broker.partition import Partition, is_untrimmed
from streamlog.broker.pending import TOLD_WAIT_MS
from streamlog.broker.reading import aborted_of
from streamlog.broker.runner import Service
from streamlog.broker.upkeep import RaiseLogStart, SaveCleanerCheckpoint, SwapCompacted, TrimHead
from streamlog.core.cluster_image import CONSUMER_OFFSETS_TOPIC, TRANSACTION_STATE_TOPIC
from streamlog.errors import ClosedError, StreamlogError, UnknownTopicOrPartitionError

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster
    from streamlog.storage.cleaner import ProducerTail


ResultT = TypeVar("ResultT")

FIRST_RUN_AFTER_MS: Final = 30_000
"""Kafka's log.initial.task.delay.ms: opening comes first."""
BUSY_LOOK_MS: Final = 1
STALE_READERS_MS: Final = 60_000
"""ECOSYSTEM 3.2 row 7: what a killed reader had open keeps every page freed since, and the file grows."""


class CleanerReport(msgspec.Struct, frozen=True):
    """What one run did: partitions whose start moved, partitions compacted, bytes freed by compaction."""

    retained: int
    compacted: int
    compacted_bytes: int


class Housekeeping:
    """The cleaner of one cluster. `run_now()` does everything that is due, in the caller's thread."""

    def __init__(self, cluster: BrokerCluster) -> None:
        self._cluster = cluster
        self._service = Service(cluster.runtime, "streamlog-cleaner", self._serve)
        self._next_run_ms = self._next_expiry_ms = self._next_release_ms = 0
        self._next_compaction_ms: int | None = None  # None: nothing is compacted
        self._is_started = self._stopped = self._transactions_loaded = False
        self._lock = cluster.runtime.lock()
        self._is_running = False
        self._swept: dict[int, int] = {}  # broker -> the end of the metadata log when its store was compared
        self.last_error: StreamlogError | None = None

    def __repr__(self) -> str:
        return f"Housekeeping({'stopped' if self._stopped else 'on'})"

    def start(self) -> None:
        """Begin the background runs. Not before the brokers know each other: what was loaded then would take no role."""
        self._is_started = True
        config, now_ms = self._cluster.config, self._cluster.runtime.clock.monotonic_ms()
        self._next_run_ms = now_ms + min(config.log_retention_check_interval_ms, FIRST_RUN_AFTER_MS)
        self._next_expiry_ms = now_ms + config.offsets_retention_check_interval_ms
        self._next_release_ms = now_ms + STALE_READERS_MS
        self._service.wake()

    def stop(self) -> None:
        self._stopped = True
        self._service.stop()

    def run_now(self) -> CleanerReport:
        """Enforce retention and compact everything that may be compacted, now; for tests and for `streamlog topics`.

        Raises   what the store raises; ClosedError after close.
        """
        self._cluster.check_usable()
        self._expire_offsets()
        self.save_folds()
        return self._run_alone(force=True)

    def save_folds(self) -> int:
        """Save the checkpoints of folds that have grown enough, now. Returns how many were written."""
        return self._alone(self._save_folds)

    def _save_folds(self) -> int:
        count = self._cluster.metadata.save_overdue()
        for broker in self._cluster.brokers:
            if broker.has_coordinator:
                count += broker.coordinator.save_overdue()
        return count

    def wake(self) -> None:
        """A fold has grown enough. May be called inside a turn."""
        self._service.wake()

    def _alone(self, action: Callable[[], ResultT]) -> ResultT:
        """One action at a time. A flag, since nobody may wait while holding a lock."""
        waiter = self._cluster.runtime.waiter()
        mine = False
        try:
            while True:
                with self._lock:
                    mine, self._is_running = not self._is_running, True
                if mine:
                    return action()
                waiter.wait(BUSY_LOOK_MS)
        finally:
            if mine:
                self._is_running = False

    def _run_alone(self, force: bool, compacted_only: bool = False) -> CleanerReport:
        return self._alone(lambda: self._run(force, compacted_only))

    def _serve(self, now_ms: int) -> int | None:
        if self._stopped or not self._is_started:
            return None
        clock, config = self._cluster.runtime.clock, self._cluster.config
        try_to(self.save_folds)
        try:
            if not self._transactions_loaded:
                self._transactions_loaded = True
                self._load_transactions()
            if now_ms >= self._next_expiry_ms:
                self._next_expiry_ms = now_ms + config.offsets_retention_check_interval_ms
                self._expire_offsets()
                self._expire_transactional_ids()
            if now_ms >= self._next_release_ms:
                self._next_release_ms = now_ms + STALE_READERS_MS
                for broker in self._cluster.brokers:
                    broker.environment.release_stale_readers()
                self._cluster.metadata.environment.release_stale_readers()
            if now_ms >= self._next_run_ms:
                self._next_run_ms = now_ms + config.log_retention_check_interval_ms
                self._run_alone(force=False)
                self.last_error = None
            elif self._next_compaction_ms is not None and now_ms >= self._next_compaction_ms:
                self._run_alone(force=False, compacted_only=True)
                self.last_error = None
        except ClosedError:
            return None
        except StreamlogError as error:
            # A full disk or a corrupt batch must not end the cleaner: the next run tries again, verify tells more.
            self.last_error = error
            _log_failure(error)
        self._next_compaction_ms = None
        if config.log_cleaner_enable and self._any_compacted():
            self._next_compaction_ms = clock.monotonic_ms() + config.log_cleaner_backoff_ms
        return min(
            self._next_run_ms,
            self._next_expiry_ms,
            self._next_release_ms,
            self._next_compaction_ms or self._next_run_ms,
        )

    def _load_transactions(self) -> None:
        """What another process left open holds readers of committed records back until it is aborted."""
        if TRANSACTION_STATE_TOPIC in self._cluster.topics:
            for broker in self._cluster.brokers:
                broker.coordinator.transactions.load_all()

    def _expire_offsets(self) -> None:
        if CONSUMER_OFFSETS_TOPIC in self._cluster.topics:
            for broker in self._cluster.brokers:
                broker.coordinator.expire_offsets()

    def _expire_transactional_ids(self) -> None:
        if TRANSACTION_STATE_TOPIC in self._cluster.topics:
            for broker in self._cluster.brokers:
                if not broker.paused:
                    broker.coordinator.transactions.expire_ids()

    def _any_compacted(self) -> bool:
        default = ",".join(self._cluster.config.log_cleanup_policy)
        return any(
            "compact" in topic.config.get("cleanup.policy", default)
            for topic in list(self._cluster.topics.values())
        )

    def _run(self, force: bool, compacted_only: bool) -> CleanerReport:
        retained = compacted = freed = 0
        first_error: StreamlogError | None = None
        for broker in self._cluster.brokers:
            if broker.paused:
                continue  # silent: the next run finds it
            metadata_end = self._cluster.metadata.state.log_end_offset
            if self._swept.get(broker.id) != metadata_end:
                broker.delete_orphans()
                self._swept[broker.id] = metadata_end
            for topic in list(self._cluster.topics.values()):
                config = broker.topic_config(topic)
                if not (config.compacts or (config.deletes and not compacted_only)):
                    continue
                for number in range(len(topic.partitions)):
                    if self._stopped:
                        return CleanerReport(retained, compacted, freed)
                    try:
                        if broker.id not in topic.partitions[number].replicas:
                            continue
                        partition = broker.partition(topic.name, number)
                        if not compacted_only:
                            retained += self._retain(broker, partition)
                        if config.compacts and (force or self._cluster.config.log_cleaner_enable):
                            change = self._compact(broker, partition, force)
                            compacted += change is not None
                            freed -= change or 0
                    except UnknownTopicOrPartitionError:
                        break  # deleted meanwhile
                    except ClosedError:
                        raise
                    except StreamlogError as error:
                        first_error = first_error or error
        if first_error is not None:
            raise first_error
        return CleanerReport(retained, compacted, freed)

    def _retain(self, broker: Broker, partition: Partition) -> bool:
        """Move the start of one partition up as its retention says. Returns whether it moved."""
        view, config = partition.view, partition.config
        if view is None or not config.deletes or view.log_start_offset == view.log_end_offset:
            return False
        if not partition.serves:
            return False  # a follower hears of its leader's log start
        from streamlog.storage import retention

        view, snapshot = broker.reader.open(partition)
        with snapshot:
            if partition in broker.deletions.trimming or partition.view is not view:
                return False  # its size still counts what is being deleted: the next run looks again
            if is_untrimmed(snapshot, partition.log_id, view.log_start_offset):
                broker.post(TrimHead(partition))
                return False
            start = retention.plan_retention(
                retention.iterate_outlines(snapshot, partition.log_id, view.log_start_offset),
                now_ms=self._cluster.runtime.clock.wall_ms(),
                retention_ms=config.retention_ms,
                retention_bytes=config.retention_bytes,
                size_bytes=view.size_bytes,
                log_start_offset=view.log_start_offset,
                high_watermark=view.high_watermark,
            )
        if start <= view.log_start_offset:
            return False
        broker.call(RaiseLogStart(partition, start, view.truncation_count), TOLD_WAIT_MS)
        return True

    def _compact(self, broker: Broker, partition: Partition, force: bool) -> int | None:
        """Compact one partition if it is dirty enough. Returns the change in bytes, None if nothing was done."""
        view, config, generation = partition.view, partition.config, partition.generation
        if view is None:
            return None
        from streamlog.storage import cleaner

        now_ms, give_way = self._cluster.runtime.clock.wall_ms(), self._cluster.runtime.give_way
        with broker.environment.snapshot() as snapshot:
            checkpoint = cleaner.load_cleaner_checkpoint(snapshot, partition.log_id)
            first_dirty = cleaner.first_dirty_offset(checkpoint, view.log_start_offset, view.log_end_offset)
            end_offset = cleaner.cleanable_end_offset(
                snapshot,
                partition.log_id,
                first_dirty,
                view.last_stable_offset,
                now_ms,
                config.min_compaction_lag_ms,
            )
            aborted = [] if partition.producers is None else aborted_of(partition, snapshot, 0, end_offset)
            dirtiness = cleaner.measure_dirty(
                snapshot, partition.log_id, first_dirty, end_offset, view.size_bytes, give_way
            )
        if not cleaner.needs_compaction(
            dirtiness,
            now_ms=now_ms,
            min_cleanable_dirty_ratio=0.0 if force else config.min_cleanable_dirty_ratio,
            max_compaction_lag_ms=config.max_compaction_lag_ms,
            next_delete_horizon_ms=-1 if checkpoint is None else checkpoint.next_delete_horizon_ms,
        ):
            return None
        work = cleaner.CompactionWork(
            view.log_start_offset,
            first_dirty,
            end_offset,
            now_ms,
            config.delete_retention_ms,
            aborted,
            producers=_tails(partition),
        )
        compaction = cleaner.Compaction(broker.environment, partition.log_id, work, give_way)
        change = 0
        for plan in compaction.plans():
            if self._stopped:
                return change
            swapped: int | None = broker.call(SwapCompacted(partition, generation, plan), TOLD_WAIT_MS)
            if swapped is None:
                return change  # the log was truncated or its topic deleted: this pass is void
            change += swapped
        broker.call(SaveCleanerCheckpoint(partition, generation, compaction.checkpoint), TOLD_WAIT_MS)
        return change


def _tails(partition: Partition) -> dict[int, ProducerTail]:
    """Which batches stay for the sake of their producers, even empty (SEMANTICS 3.7.6)."""
    table = partition.producers
    if table is None:
        return {}
    from streamlog.storage.cleaner import ProducerTail

    return {
        producer_id: ProducerTail(state.last_offset, state.producer_epoch)
        for producer_id, state in dict(table.states).items()
    }


def _log_failure(error: StreamlogError) -> None:
    import logging

    logging.getLogger("streamlog.cleaner").warning(
        "retention or compaction failed, will try again: %s", error
    )
