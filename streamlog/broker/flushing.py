"""When what is committed goes to the disk, where commits do not see to that themselves (`sync="off"`).

    commit --> unsynced --`flush_ms` of the cluster, `flush.ms` of a topic: by the broker's thread--> synced
                        --`flush.messages` of a topic: in the turn, before it replies--------------->

One sync covers the whole environment, so the earliest deadline of any partition is everybody's.

Invariants:
 1. While anything is unsynced there is a deadline, and it is never later than the first unsynced turn plus the
    shortest time any partition written since then allows.
 2. A failed sync keeps the deadline: it is tried again. The error is kept until one works.

Source: Kafka `UnifiedLog.append` (flush.messages counts records since the log's last flush), `LogManager.flushDirtyLogs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from streamlog.broker import api
from streamlog.broker.partition import Partition
from streamlog.broker.turn import Turn
from streamlog.clock import Clock
from streamlog.config import TopicConfig
from streamlog.errors import StorageError, StreamlogError
from streamlog.option_rules import INT64_MAX
from streamlog.storage.env import Environment

if TYPE_CHECKING:
    from streamlog.metrics import Timer


class Flushing:
    """What one broker has still to sync. Changed in its turns, and by its own thread when it syncs."""

    def __init__(self, environment: Environment, clock: Clock, flush_ms: int) -> None:
        self.is_needed = environment.sync_mode == "off"
        self.deadline_ms: int | None = None
        self.error: StorageError | None = None
        self.times: Timer | None = None
        self.has_topic_rules = False
        """Whether any topic has been seen that wants more than the cluster does: spares the others the look."""
        self.synced_ends: dict[int, int] = {}
        """Where logs ended at the last sync, by log id: what a loss of power spares."""
        self.ends: Callable[[], dict[int, int]] | None = None
        self._environment = environment
        self._clock = clock
        self._flush_ms = flush_ms

    def learn(self, config: TopicConfig) -> None:
        """A topic's options are in force from now on."""
        if self.is_needed and (config.flush_ms != INT64_MAX or config.flush_messages != INT64_MAX):
            self.has_topic_rules = True

    def note(self, turn: Turn) -> bool:
        """A turn has committed. Returns whether there is an earlier deadline now. Again changes nothing."""
        deadline_ms = self.deadline_ms
        if deadline_ms is not None and not self.has_topic_rules:
            return False  # if it is being synced this very moment, so is what this turn has committed
        flush_ms = self._flush_ms
        if self.has_topic_rules:
            flush_ms = min([flush_ms, *(partition.config.flush_ms for partition in turn.staged)])
        if deadline_ms is not None and deadline_ms <= turn.now_ms + flush_ms:
            return False
        self.deadline_ms = turn.now_ms + flush_ms
        return True

    def flush_full(self, turn: Turn) -> None:
        """Sync now if a partition has as many unsynced records as its topic allows. Again changes nothing.

        Where that fails, those who wrote into it are told the error: their records are there, and may not survive
        a power loss. (Kafka's log has appended as well when its flush fails.)
        """
        full: dict[Partition, int] = {}
        for partition, state in turn.staged.items():
            end_offset = state.log_end_offset
            partition.synced_offset = min(partition.synced_offset, end_offset)  # truncated
            if end_offset - partition.synced_offset >= partition.config.flush_messages:
                full[partition] = end_offset
        if not full:
            return
        if self.flush():
            for partition, end_offset in full.items():
                partition.synced_offset = end_offset
        elif self.error is not None:
            _fail_unsynced(turn, {(partition.topic, partition.number) for partition in full}, self.error)

    def flush(self) -> bool:
        """Bring what is committed to the disk. Returns whether that worked."""
        deadline_ms, self.deadline_ms = self.deadline_ms, None
        ends = None if self.ends is None else self.ends()
        begun_us = self._clock.monotonic_us()
        try:
            self._environment.sync()
            self.error = None
            if ends is not None:
                self.synced_ends.update(ends)
            if self.times is not None:
                self.times.update((self._clock.monotonic_us() - begun_us) / 1_000)
        except StorageError as error:
            self.error = error  # tried again, and told by closing if it never works
            self.deadline_ms = deadline_ms
        except StreamlogError:
            pass  # closed meanwhile: that syncs
        return self.error is None


def _fail_unsynced(turn: Turn, places: set[tuple[str, int]], error: StorageError) -> None:
    for index, (pending, results, failure) in enumerate(turn.replies):
        if type(pending.request) is api.Produce and failure is None:
            told = [
                api.Produced(-1, -1, -1, error) if entry[:2] in places and result.error is None else result
                for entry, result in zip(pending.request.entries, results, strict=True)
            ]
            turn.replies[index] = (pending, told, None)
