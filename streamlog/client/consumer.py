"""The consumer: reads partitions it was given or that its group gave it.

    poll --> advance the membership (join, listeners) --> auto-commit --> fetch from ready partitions -->
    hand out --> wait

Everything happens in the caller's thread, inside `poll` (iterating is polling); heartbeats come from the
cluster's own thread. A consumer belongs to one thread at a time; `wakeup` may be called from any.

Invariants:
 1. A commit never passes a record that was not handed out; while iterating, nor the record the loop body
    still holds: committing happens at the start of the next poll, and at close.
 2. Records of one partition are handed out in offset order, each once per assignment.
 3. `poll` never exceeds its timeout, whatever the group does.

Sources: Kafka ClassicKafkaConsumer, SubscriptionState; SEMANTICS 3.6.4 (auto-commit), 3.8.4 (resets), KIP-62.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from streamlog.client.assignment import ConsumerAssignment
from streamlog.client.fetching import UNKNOWN_OFFSET, AssignedPartition, Deserializer
from streamlog.client.habits import KnowsHabits, unknown_argument
from streamlog.client.offsets import checked_count
from streamlog.client.patience import UNSERVED
from streamlog.client.timeouts import milliseconds
from streamlog.config import ConsumerConfig
from streamlog.errors import (
    ClosedError,
    IllegalStateError,
    OffsetOutOfRangeError,
    StreamlogError,
)
from streamlog.record import Record, TopicPartition

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from streamlog.broker.cluster import BrokerCluster
    from streamlog.broker.reading import LogReader
    from streamlog.client.fetch_waiting import FetchGate
    from streamlog.client.habits import NoOthers

ITERATION_LOOK_RECORDS: Final = 20
"""While iterating, the clock (auto-commit, max_poll_interval_ms) is looked at after so many records."""

JOIN_LOOK_MS: Final = 50
"""While a join is under way, look at its answer this often: an interrupt may have eaten the wake-up."""

TOPICS_LOOK_MS: Final = 200
"""A member that waits looks this often whether topics were made, deleted or grown."""

CLOSE_LOOK_MS: Final = 2

LEADER_LOOK_MS: Final = 20
"""How often a consumer looks whether a partition that nobody led has a leader again."""


class Consumer(ConsumerAssignment, KnowsHabits):
    """Reads records. Make it with `cluster.consumer(...)` (then `assign`) or `group.consumer(...)`."""

    def __init__(
        self, backend: BrokerCluster, config: ConsumerConfig, on_close: Callable[[Consumer], None]
    ) -> None:
        super().__init__(backend, config)
        self._on_close = on_close
        self._clock = backend.runtime.clock
        self._deserialize_key = _deserializer(config.key_deserializer, "key_deserializer")
        self._deserialize_value = _deserializer(config.value_deserializer, "value_deserializer")
        self._deserializes = self._deserialize_key is not None or self._deserialize_value is not None
        self._gate: FetchGate | None = (
            None  # in front of `_fetch_ready`, where there is something to wait for
        )
        if config.fetch_min_bytes > 1:
            from streamlog.client.fetch_waiting import FetchGate

            self._gate = FetchGate(self._listener, self._clock, config)
        self._fetch_bytes_left = config.fetch_max_bytes
        self._wake_up = False
        self._owner: int | None = None
        self._closer: int | None = None
        # Where the poll under way took records from, and where those partitions stood before.
        self._taken_from: list[tuple[AssignedPartition, int]] = []

    def __repr__(self) -> str:
        what = f"group={self.config.group_id!r}" if self.config.group_id else "no group"
        state = "closed" if self._closed else f"{len(self._assigned)} partitions"
        return f"<Consumer {what} {state}>"

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, kind: object, exception: BaseException | None, traceback: object) -> None:
        self._close(left_by=exception)

    # -- reading ---------------------------------------------------------------------------------------------

    def poll(
        self, timeout: float = 1.0, max_records: int | None = None, **others: Unpack[NoOthers]
    ) -> list[Record]:
        """The next records: as soon as there are any, at most `max_records` (default `max_poll_records`).

        timeout: seconds to wait for the first record; 0 = only what is there. Never exceeded.
        Returns an empty list when the time is over, or at once at the end with `stop_at_end`.
        Raises   OffsetOutOfRangeError, NoOffsetForPartitionError (auto_offset_reset="none"),
        DeserializationError,
                 CorruptRecordError: the position does not move; ClosedError.
        """
        if others:
            raise unknown_argument(self.poll, others)
        self._check_open()
        self._traffic.last_poll_ms = now_ms = self._clock.monotonic_ms()
        deadline_ms = now_ms + milliseconds("poll", timeout, 1000)
        count_max = (
            self.config.max_poll_records if max_records is None else checked_count("max_records", max_records)
        )
        caller = self._backend.runtime.caller()
        self._taken_from = []
        self._commits.is_waiting = False
        try:
            try:
                self._acquire(caller)
                self._commits.deadline_ms = deadline_ms
                return self._poll(deadline_ms, count_max)
            finally:
                self._commits.deadline_ms = None
                if self._owner == caller:  # written out: no call, so no interrupt keeps us from letting go
                    self._owner = None
        except Exception as error:
            self._traffic.errors += isinstance(error, StreamlogError)
            raise
        except BaseException:
            for assigned, position in reversed(self._taken_from):  # Ctrl-C: nobody gets these, go back
                self._go_back(assigned, position)
            raise

    def _poll(self, deadline_ms: int, count_max: int) -> list[Record]:
        self._commits.maybe_auto_commit()
        while True:
            membership = self._membership
            if membership is not None:
                membership.last_poll_ms = self._clock.monotonic_ms()
                membership.advance()
            records = self._collect(count_max)
            if records or self.at_end:
                return records
            if membership is None and not self._assigned:
                raise self._nothing_to_read()
            left_ms = deadline_ms - self._clock.monotonic_ms()
            if left_ms <= 0:
                return records
            if self._wake_up:
                self._wake_up = False
                return records
            self._wait(left_ms)
            self._check_going()

    def _wait(self, left_ms: int | None) -> None:
        """Wait for news, at most so long, and not past the next look at what tells no listener."""
        membership = self._membership
        look_ms = None
        if membership is not None:
            # Topics made, deleted or grown are seen by looking.
            look_ms = TOPICS_LOOK_MS if membership.is_stable else JOIN_LOOK_MS
            membership.is_waiting = True
        unresolved = self._offsets.unresolved(self._assigned)
        if unresolved:
            look_ms = JOIN_LOOK_MS
        if self._unled:
            look_ms = LEADER_LOOK_MS
        elif (self._leaders_seen or self._rack is not None) and look_ms is None:
            look_ms = TOPICS_LOOK_MS  # leaders move without telling who reads from the old one
        held_ms = None if self._gate is None else self._gate.left_ms()
        if held_ms is not None and (look_ms is None or held_ms < look_ms):
            look_ms = held_ms
        if look_ms is not None and (left_ms is None or look_ms < left_ms):
            left_ms = look_ms
        self._commits.is_waiting = True  # and stays so if an exception ends the waiting
        try:
            self._listener.wait(left_ms)
            self._commits.is_waiting = False
        finally:
            if membership is not None:
                membership.last_poll_ms = self._clock.monotonic_ms()
                membership.is_waiting = False

    def __iter__(self) -> Iterator[Record]:
        """Records, one after the other, endlessly; with `stop_at_end=True` up to the end offsets of the
        first assignment.
        """
        while True:
            self._check_open()
            caller = self._backend.runtime.caller()
            try:
                self._acquire(caller)
                self._commits.is_waiting = False
                membership = self._membership
                if self._commits.is_due():
                    self._commits.maybe_auto_commit()
                if membership is not None:
                    membership.last_poll_ms = self._clock.monotonic_ms()
                    if not membership.is_stable or self._listener.ready or self._next_buffered() is None:
                        membership.advance()
                assigned = self._next_buffered()
                if assigned is None:
                    if self.at_end:
                        return
                    self._fill()
                    assigned = self._next_buffered()
            except StreamlogError:
                self._traffic.errors += 1
                raise
            finally:
                if self._owner == caller:
                    self._owner = None
            if assigned is None:
                if self.at_end:
                    return
            elif self._deserializes:
                yield self._deserialized_one(assigned)
            else:
                yield from self._hand_out(assigned)

    def _deserialized_one(self, assigned: AssignedPartition) -> Record:
        try:
            return assigned.take(1, self._deserialize_key, self._deserialize_value)[0]
        except StreamlogError:
            self._traffic.errors += 1
            raise

    def _hand_out(self, assigned: AssignedPartition) -> Iterator[Record]:
        """A few records of one buffer, the position moving with each; ends early for news of the group or a
        seek.
        """
        buffer, index, ready = assigned.buffer, assigned.next_index, self._listener.ready
        last = min(len(buffer), index + ITERATION_LOOK_RECORDS)
        if assigned.uncommitted_from == UNKNOWN_OFFSET:
            assigned.uncommitted_from = assigned.position
        while index < last:
            record = buffer[index]
            index += 1
            assigned.next_index = index
            assigned.position = record.offset + 1 if index < len(buffer) else assigned.fetch_offset
            yield record
            if (
                assigned.next_index != index
                or assigned.buffer is not buffer
                or assigned.paused
                or self._closed
            ):
                return  # the loop's body moved us
            if ready and self._membership is not None:
                return

    def _fill(self) -> None:
        """Fetch into the buffers, or wait for something to fetch."""
        self._fetch_bytes_left = self.config.fetch_max_bytes
        if self._fetch_one() is not None:
            return
        if self.at_end:
            return
        if self._membership is None and not self._assigned:
            raise self._nothing_to_read()
        self._wait(self._commits.due_in_ms())

    def _collect(self, count_max: int) -> list[Record]:
        """Hand out what is decoded, then decode more, until there is enough or nothing left."""
        for assigned in self._offsets.unresolved(self._assigned):
            if assigned.subscription is not None:
                self._listener.mark(assigned.subscription)
        records: list[Record] = []
        taken_from = self._taken_from = []
        try:
            for assigned in self._assigned.values():
                if assigned.buffer and not assigned.paused:
                    taken_from.append((assigned, assigned.position))
                    records += assigned.take(
                        count_max - len(records), self._deserialize_key, self._deserialize_value
                    )
                    if len(records) >= count_max:
                        return records
            self._fetch_bytes_left = self.config.fetch_max_bytes
            while len(records) < count_max:
                fetched = self._fetch_one()
                if fetched is None:
                    break
                taken_from.append((fetched, fetched.position))
                taken = fetched.take(count_max - len(records), self._deserialize_key, self._deserialize_value)
                records = taken if not records else records + taken
        except Exception:
            if not records:
                raise
            # What was collected before is handed out; the partition at fault raises again at the next poll.
        return records

    def _fetch_one(self) -> AssignedPartition | None:
        """Decode from the next partition that has something; None if no ready partition has."""
        gate = self._gate
        try:
            if self._unled or self._leaders_seen != self._backend.leaders_version:
                self._look_for_leaders()  # before the gate: what it holds back would never be marked again
            if gate is None:
                return self._fetch_ready()
            if not gate.is_open(self._reader_of, self._offsets.resolve):
                return None
            fetched = self._fetch_ready()
        except BaseException:
            self._listener.put_back()
            raise
        if fetched is not None:
            gate.fetched(fetched)
        return fetched

    def _reader_of(self, assigned: AssignedPartition) -> LogReader:
        return self._backend.leader_of(assigned.replica).reader

    def _is_fetch_full(self, reader: LogReader, assigned: AssignedPartition) -> bool:
        """Whether the next batch would lift this fetch over `fetch_max_bytes`. The first one always comes."""
        if self._fetch_bytes_left == self.config.fetch_max_bytes:
            return False
        from streamlog.client.fetch_waiting import next_batch_bytes

        return next_batch_bytes(reader, assigned) > self._fetch_bytes_left

    def _fetch_ready(self) -> AssignedPartition | None:
        listener, config = self._listener, self.config
        left = len(listener.ready)
        while left > 0:
            left -= 1
            subscription = listener.take()
            if subscription is None:
                return None
            assigned = subscription.subject
            if not isinstance(assigned, AssignedPartition) or assigned.subscription is not subscription:
                continue  # news of the group, or of a partition we gave up
            if assigned.paused or assigned.revoking:
                continue
            if assigned.next_index < len(assigned.buffer):
                listener.mark(subscription)
                continue
            try:
                if assigned.fetch_offset == UNKNOWN_OFFSET and not self._offsets.resolve(assigned):
                    continue
                if not assigned.is_chosen and self._rack is not None and self._choose_replica(assigned):
                    left += 1  # it is subscribed elsewhere now, and looked at there
                    continue
                reader = self._backend.leader_of(assigned.replica).reader
                bytes_max = config.max_partition_fetch_bytes
                if self._fetch_bytes_left < bytes_max:
                    if self._is_fetch_full(reader, assigned):
                        listener.mark(subscription)
                        return None
                    bytes_max = max(0, self._fetch_bytes_left)
                self._filled[assigned] = None  # before: an interrupt must not leave records nobody looks for
                more = assigned.fetch(reader, bytes_max, config.isolation_level, config.check_crcs)
                self._fetch_bytes_left -= assigned.fetched_bytes
                assigned.fetched_bytes = 0
            except OffsetOutOfRangeError as error:
                if assigned.replica is not assigned.partition:
                    self._read_from(assigned, assigned.partition)  # the leader knows whether it really is
                    left += 1
                    continue
                listener.mark(subscription)
                self._offsets.reset(assigned, error)
                left += assigned.position != UNKNOWN_OFFSET  # if it stands somewhere now, look there
                continue
            except (ClosedError, *UNSERVED) as error:
                if assigned.replica is not assigned.partition:
                    self._read_from(assigned, assigned.partition)
                    left += 1
                    continue
                if isinstance(error, ClosedError):
                    listener.mark(subscription)
                    raise
                self._on_unserved(assigned, error)
                continue
            except BaseException:
                listener.mark(subscription)
                raise
            if more:
                listener.mark(subscription)
            if self._rack is not None and assigned.replica is assigned.partition:
                assigned.is_chosen = False  # a leader looks for a nearer replica at each fetch
            if assigned.buffer:
                return assigned
        return None

    @property
    def at_end(self) -> bool:
        """With `stop_at_end`: whether every partition was read up to the end it had when it was first
        assigned.
        """
        if not self.config.stop_at_end:
            return False
        membership = self._membership
        if membership is not None and not (membership.is_stable and self._ever_assigned):
            return False
        if not self._ever_assigned:
            return False
        return self._all_at_end() and (membership is None or membership.is_settled)

    def note_alive(self) -> None:
        """Count as a poll for `max_poll_interval_ms`: for work that takes long on the records of one poll."""
        membership = self._membership
        if membership is not None:
            membership.last_poll_ms = self._clock.monotonic_ms()

    def wakeup(self) -> None:
        """Let a poll that waits in another thread return at once."""
        self._wake_up = True
        self._listener.wake()

    def commit(
        self,
        offsets: Mapping[TopicPartition, Any] | None = None,
        timeout: float | None = None,
        **others: Unpack[NoOthers],
    ) -> None:
        """Store positions for the group, and wait until they are stored.

        offsets: None = the positions of everything handed out; else partition -> next offset (int or
                 OffsetAndMetadata).
        A rebalance under way is driven to its end and the commit tried again. With nothing consumed it does nothing.
        Raises   CommitFailedError if a partition now belongs to another member; InvalidGroupIdError without a group;
                 StreamlogTimeoutError.
        """
        if others:
            raise unknown_argument(self.commit, others)
        self._check_open()
        timeout_ms = milliseconds("commit", timeout, self.config.default_api_timeout_ms)
        self._commits.commit(offsets, timeout_ms)

    # -- closing ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Commit what was handed out (with auto-commit), leave the group, end. Closing twice is harmless."""
        self._close()

    def _close(self, *, left_by: BaseException | None = None, commit: bool = True) -> None:
        caller = self._backend.runtime.caller()
        waiter = self._backend.runtime.waiter()
        while self._closer not in (None, caller) and not self._closed:
            waiter.wait(CLOSE_LOOK_MS)  # another thread is at it
        if self._closed or self._closer is not None:
            return
        self._closer = caller
        try:
            while True:
                if self._owner in (None, caller):
                    break  # else somebody else's poll ends first, with ClosedError
                self._listener.wake()
                waiter.wait(CLOSE_LOOK_MS)
            if commit and self._commits.may_follow(left_by):
                self._commits.maybe_auto_commit(force=True, leaving=True)
        finally:
            try:
                self._leave_group()
            finally:
                try:
                    if self._membership is not None:
                        self._leave_group()  # it was struck on its first steps
                    for tp in list(self._assigned):
                        self._drop(tp)
                    self._closed = True
                    self._listener.wake()
                    self._traffic.close()
                    self._on_close(self)
                finally:
                    self._closer = None  # interrupted before the end: calling again goes on

    # -- small things ----------------------------------------------------------------------------------------

    def _acquire(self, caller: int) -> None:
        owner = self._owner
        if owner is not None and owner != caller:
            raise IllegalStateError(
                "a consumer belongs to one thread at a time; another thread is inside poll (use wakeup "
                "or one each)"
            )
        self._owner = caller
        self._check_going()

    def _check_going(self) -> None:
        self._check_open()
        if self._closer is not None and self._closer != self._backend.runtime.caller():
            self._owner = None
            raise ClosedError("this consumer is being closed by another thread")


def _deserializer(spec: object, option: str) -> Deserializer | None:
    if spec is None:
        return None
    from streamlog.client.serde import resolve_deserializer  # who reads bytes need not load it

    return resolve_deserializer(spec, option)
