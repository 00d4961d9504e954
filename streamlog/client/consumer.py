"""The consumer: reads partitions it was given or that its group gave it.

    poll --> advance the membership (join, listeners) --> auto-commit --> fetch from ready partitions --> hand out --> wait

Everything happens in the caller's thread, inside `poll` (iterating is polling); heartbeats come from the cluster's own
thread. A consumer belongs to one thread at a time; `wakeup` may be called from any.

Invariants:
 1. A commit never passes a record that was not handed out; while iterating, nor the record the loop body still holds:
    committing happens at the start of the next poll, and at close.
 2. Records of one partition are handed out in offset order, each once per assignment.
 3. `poll` never exceeds its timeout, whatever the group does.

Sources: Kafka ClassicKafkaConsumer, SubscriptionState; SEMANTICS 3.6.4 (auto-commit), 3.8.4 (resets), KIP-62.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from re import Pattern
from typing import TYPE_CHECKING, Any, Final

from streamlog.client.commits import Commits
from streamlog.client.fetching import UNKNOWN_OFFSET, AssignedPartition
from streamlog.client.membership import MemberCallbacks, Membership
from streamlog.client.offsets import OffsetLookup, checked_partitions
from streamlog.client.serde import resolve_deserializer
from streamlog.client.timeouts import milliseconds
from streamlog.config import ConsumerConfig
from streamlog.errors import (
    ClosedError,
    ConfigError,
    IllegalStateError,
    InvalidGroupIdError,
    NotLeaderOrFollowerError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
)
from streamlog.record import OffsetAndTimestamp, Record, TopicPartition

if TYPE_CHECKING:
    from typing_extensions import Self

    from streamlog.broker.cluster import BrokerCluster

JOIN_LOOK_MS: Final = 50
"""While a join is under way, look at its answer this often: an interrupt may have eaten the wake-up."""

Listener = Callable[[list[TopicPartition]], object]


class Consumer:
    """Reads records. Make it with `cluster.consumer(...)` (then `assign`) or `group.consumer(...)`."""

    def __init__(self, backend: BrokerCluster, config: ConsumerConfig, on_close: Callable[[Consumer], None]) -> None:
        self.config = config
        self._backend = backend
        self._on_close = on_close
        self._clock = backend.runtime.clock
        self._listener = backend.listener()
        self._offsets = OffsetLookup(backend, config)
        self._deserialize_key = resolve_deserializer(config.key_deserializer, "key_deserializer")
        self._deserialize_value = resolve_deserializer(config.value_deserializer, "value_deserializer")
        self._assigned: dict[TopicPartition, AssignedPartition] = {}
        self._membership: Membership | None = None
        self._subscribed: tuple[str, ...] = ()
        self._pattern: Pattern[str] | None = None
        self._manual = False
        self._ever_assigned = False
        self._on_assigned: Listener | None = None
        self._on_revoked: Listener | None = None
        self._on_lost: Listener | None = None
        self._commits = Commits(backend, config, self._assigned)
        self._closed = False
        self._wake_up = False
        self._owner: int | None = None
        self._iterating: list[Record] = []

    def __repr__(self) -> str:
        what = f"group={self.config.group_id!r}" if self.config.group_id else "no group"
        state = "closed" if self._closed else f"{len(self._assigned)} partitions"
        return f"<Consumer {what} {state}>"

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, kind: object, exception: BaseException | None, traceback: object) -> None:
        # On an exception the record in hand was not processed: do not commit past it.
        self._close(commit=exception is None)

    # -- what to read ------------------------------------------------------------------------------------------------

    def assign(self, partitions: Iterable[TopicPartition | tuple[str, int]]) -> None:
        """Read exactly these partitions, without a group's help. Replaces the former assignment.

        Raises   UnknownTopicOrPartitionError; IllegalStateError after `subscribe`.
        """
        self._check_open()
        if self._subscribed or self._pattern is not None:
            raise IllegalStateError("this consumer is subscribed; assign() and subscribe() exclude each other, unsubscribe() first")
        wanted = checked_partitions(partitions)
        for tp in wanted:
            self._backend.topic_for_client(tp.topic)
            self._backend.partition(tp.topic, tp.partition)
        self._commits.maybe_auto_commit(force=True)
        self._manual = bool(wanted)
        for tp in [tp for tp in self._assigned if tp not in wanted]:
            self._drop(tp)
        for tp in wanted:
            if tp not in self._assigned:
                self._take_up(tp)
        self._ever_assigned = True

    def subscribe(
        self,
        topics: str | Iterable[str] | Pattern[str],
        *,
        on_assigned: Listener | None = None,
        on_revoked: Listener | None = None,
        on_lost: Listener | None = None,
    ) -> None:
        """Share the partitions of these topics with the other members of the group.

        topics:  names, or a compiled regular expression that topics must match from their start; new topics that
                 match are followed.
        on_...:  rebalance listeners; called inside `poll` with a list of TopicPartition.
        Raises   InvalidGroupIdError without a group; IllegalStateError after `assign`.
        """
        self._check_open()
        if self.config.group_id is None:
            raise InvalidGroupIdError("subscribe() needs a group: cluster.consumer_group(name, topics).consumer(), or assign() instead")
        if self._manual:
            raise IllegalStateError("this consumer has assigned partitions; assign() and subscribe() exclude each other")
        if hasattr(topics, "pattern") and hasattr(topics, "match"):
            self._pattern, self._subscribed = topics, ()  # type: ignore[assignment]
        else:
            names = [topics] if isinstance(topics, str) else list(topics)  # type: ignore[arg-type]
            if not names or not all(isinstance(name, str) and name for name in names):
                raise ConfigError(
                    f"subscribe({topics!r}): allowed: topic names, at least one, or a compiled regular expression",
                    option="topics",
                    value=topics,
                    allowed="topic names or a pattern",
                )
            self._pattern, self._subscribed = None, tuple(sorted(set(names)))  # type: ignore[arg-type]
            for name in self._subscribed:
                if self._backend.config.auto_create_topics:
                    self._backend.topic_for_client(name)
        self._on_assigned, self._on_revoked, self._on_lost = on_assigned, on_revoked, on_lost
        if self._membership is None:
            callbacks = MemberCallbacks(
                self._topics_wanted, lambda: list(self._assigned), self._assign_members, self._revoke_members, self._lose_members
            )
            self._membership = Membership(self._backend, self.config.group_id, self.config, self._listener, callbacks)
            self._commits.membership = self._membership
            self._backend.heartbeats.add(self._membership)
        self._listener.wake()

    def unsubscribe(self) -> None:
        """Leave the group, or drop the assignment."""
        self._check_open()
        self._commits.maybe_auto_commit(force=True)
        self._leave_group()
        for tp in list(self._assigned):
            self._drop(tp)
        self._subscribed, self._pattern, self._manual = (), None, False

    @property
    def subscription(self) -> frozenset[str]:
        """The topics this consumer is subscribed to."""
        return frozenset(self._topics_wanted())

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions this consumer reads now."""
        return frozenset(self._assigned)

    def _topics_wanted(self) -> tuple[str, ...]:
        if self._pattern is None:
            return self._subscribed
        match = self._pattern.match
        return tuple(sorted(t.name for t in list(self._backend.topics.values()) if not t.internal and match(t.name)))

    # -- reading -----------------------------------------------------------------------------------------------------

    def poll(self, timeout: float = 1.0, max_records: int | None = None) -> list[Record]:
        """The next records: as soon as there are any, at most `max_records` (default `max_poll_records`).

        timeout: seconds to wait for the first record; 0 = only what is there. Never exceeded.
        Returns an empty list when the time is over, or at once at the end with `stop_at_end`.
        Raises   OffsetOutOfRangeError, NoOffsetForPartitionError (auto_offset_reset="none"), DeserializationError,
                 CorruptRecordError: the position does not move; ClosedError.
        """
        self._check_open()
        deadline_ms = self._clock.monotonic_ms() + milliseconds("poll", timeout, 1000)
        count_max = self.config.max_poll_records if max_records is None else _checked_count(max_records)
        self._acquire()
        try:
            return self._poll(deadline_ms, count_max)
        finally:
            self._owner = None

    def _poll(self, deadline_ms: int | None, count_max: int) -> list[Record]:
        self._commits.maybe_auto_commit()
        while True:
            membership = self._membership
            if membership is not None:
                membership.last_poll_ms = self._clock.monotonic_ms()
                membership.advance()
            records = self._collect(count_max)
            if records or self.at_end:
                return records
            left_ms = None
            if deadline_ms is not None:
                left_ms = deadline_ms - self._clock.monotonic_ms()
                if left_ms <= 0:
                    return records
            if self._wake_up:
                self._wake_up = False
                return records
            if membership is not None and not membership.is_stable:
                left_ms = JOIN_LOOK_MS if left_ms is None else min(left_ms, JOIN_LOOK_MS)
            elif self._offsets.unresolved(self._assigned) or (membership is not None and self._pattern is not None):
                left_ms = JOIN_LOOK_MS if left_ms is None else min(left_ms, JOIN_LOOK_MS)
            self._listener.wait(left_ms)
            self._check_open()

    def __iter__(self) -> Iterator[Record]:
        """Records, one after the other, endlessly; with `stop_at_end=True` up to the end offsets of the first assignment."""
        while True:
            self._check_open()
            self._acquire()
            try:
                membership = self._membership
                if self._commits.is_due():
                    self._commits.maybe_auto_commit()
                if membership is not None:
                    membership.last_poll_ms = self._clock.monotonic_ms()
                    if not membership.is_stable or self._listener.ready:
                        membership.advance()
                record = self._next_buffered()
                if record is None:
                    if self.at_end:
                        return
                    self._fill()
                    record = self._next_buffered()
            finally:
                self._owner = None
            if record is not None:
                yield record
            elif self.at_end:
                return

    def _fill(self) -> None:
        """Fetch into the buffers, or wait for something to fetch."""
        if self._fetch_one() is not None:
            return
        if self.at_end:
            return
        membership = self._membership
        waiting = (membership is not None and (not membership.is_stable or self._pattern is not None)) or self._offsets.unresolved(
            self._assigned
        )
        due_ms = self._commits.due_in_ms()
        left_ms = JOIN_LOOK_MS if waiting else due_ms
        self._listener.wait(left_ms)

    def _next_buffered(self) -> Record | None:
        for assigned in self._assigned.values():
            if assigned.next_index < len(assigned.buffer) and not assigned.paused:
                return assigned.take(1, self._deserialize_key, self._deserialize_value)[0]
        return None

    def _collect(self, count_max: int) -> list[Record]:
        """Hand out what is decoded, then decode more, until there is enough or nothing left."""
        records: list[Record] = []
        for assigned in self._assigned.values():
            if assigned.buffer and not assigned.paused:
                records += self._take(assigned, count_max - len(records), bool(records))
                if len(records) >= count_max:
                    return records
        while len(records) < count_max:
            fetched = self._fetch_one()
            if fetched is None:
                break
            taken = self._take(fetched, count_max - len(records), bool(records))
            records = taken if not records else records + taken
        return records

    def _take(self, assigned: AssignedPartition, count_max: int, have_some: bool) -> list[Record]:
        if have_some and (self._deserialize_key is not None or self._deserialize_value is not None):
            return []  # an error must not cost the records collected before it: they are handed out first
        return assigned.take(count_max, self._deserialize_key, self._deserialize_value)

    def _fetch_one(self) -> AssignedPartition | None:
        """Decode from the next partition that has something; None if no ready partition has."""
        listener, config = self._listener, self.config
        for _ in range(len(listener.ready)):
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
            if assigned.fetch_offset == UNKNOWN_OFFSET and not self._offsets.resolve(assigned):
                listener.mark(subscription)
                continue
            try:
                reader = self._backend.leader_of(assigned.partition).reader
                more = assigned.fetch(reader, config.max_partition_fetch_bytes, config.isolation_level, config.check_crcs)
            except OffsetOutOfRangeError as error:
                listener.mark(subscription)
                self._offsets.reset(assigned, error)
                continue
            except NotLeaderOrFollowerError:
                self._on_unserved(assigned)
                continue
            except BaseException:
                listener.mark(subscription)
                raise
            if more:
                listener.mark(subscription)
            if assigned.buffer:
                return assigned
            self._commits.note_progress()
        return None

    def _on_unserved(self, assigned: AssignedPartition) -> None:
        """The partition's topic was deleted (perhaps made anew) or the cluster closes."""
        self._check_open()
        self._backend.check_usable()
        tp = assigned.tp
        try:
            fresh = self._backend.partition(tp.topic, tp.partition)
        except UnknownTopicOrPartitionError:
            if self._manual:
                raise
            return  # the group will take it away from us
        if fresh is not assigned.partition:
            self._drop(tp)
            self._take_up(tp)

    @property
    def at_end(self) -> bool:
        """With `stop_at_end`: whether every partition was read up to the end it had when it was first assigned."""
        if not self.config.stop_at_end:
            return False
        membership = self._membership
        if membership is not None and not (membership.is_stable and self._ever_assigned):
            return False
        if not self._ever_assigned:
            return False
        for assigned in self._assigned.values():
            if assigned.end_offset is None:
                assigned.end_offset = self._offsets.end_offset(assigned.partition)
            if assigned.position == UNKNOWN_OFFSET:
                # Without a position yet, an empty log is at its end already.
                if assigned.end_offset > self._offsets.beginning_offset(assigned.partition) or self._offsets.resolve(assigned):
                    if assigned.position == UNKNOWN_OFFSET or assigned.position < assigned.end_offset:
                        return False
                continue
            if assigned.position < assigned.end_offset and not assigned.paused:
                return False
        return True

    def wakeup(self) -> None:
        """Let a poll that waits in another thread return at once."""
        self._wake_up = True
        self._listener.wake()

    # -- positions ---------------------------------------------------------------------------------------------------

    def seek(self, partition: TopicPartition | tuple[str, int], offset: int) -> None:
        """Read from `offset` next. Checked against the log at the next poll, as Kafka does."""
        assigned = self._assigned_partition(partition)
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            raise ConfigError(f"seek to {offset!r}: allowed: an offset >= 0", option="offset", value=offset, allowed="an int >= 0")
        self._move(assigned, offset)

    def seek_to_beginning(self, partitions: Iterable[TopicPartition | tuple[str, int]] | None = None) -> None:
        """Read from the log's start next; all assigned partitions by default."""
        for assigned in self._several(partitions):
            self._move(assigned, self._offsets.beginning_offset(assigned.partition))

    def seek_to_end(self, partitions: Iterable[TopicPartition | tuple[str, int]] | None = None) -> None:
        """Read only what comes from now on; all assigned partitions by default."""
        for assigned in self._several(partitions):
            self._move(assigned, self._offsets.end_offset(assigned.partition))

    def seek_to_timestamp(self, partition: TopicPartition | tuple[str, int], ms: int) -> None:
        """Read from the first record that is not older than `ms`; from the end if there is none."""
        assigned = self._assigned_partition(partition)
        found = self._offsets.for_timestamp(assigned.partition, ms)
        self._move(assigned, self._offsets.end_offset(assigned.partition) if found is None else found.offset)

    def _move(self, assigned: AssignedPartition, offset: int) -> None:
        assigned.seek(offset)
        if assigned.subscription is not None:
            self._listener.mark(assigned.subscription)
        self._listener.wake()

    def position(self, partition: TopicPartition | tuple[str, int]) -> int:
        """The offset of the next record this consumer hands out."""
        assigned = self._assigned_partition(partition)
        if assigned.position == UNKNOWN_OFFSET:
            self._offsets.resolve(assigned)
            if assigned.position == UNKNOWN_OFFSET:
                raise IllegalStateError(f"{assigned.tp} has no position yet: auto_offset_reset={self.config.auto_offset_reset!r} found none")
        return assigned.position

    def committed(self, partition: TopicPartition | tuple[str, int]) -> int | None:
        """The group's committed offset of a partition; None if nobody has committed. Works without being assigned."""
        self._check_open()
        [tp] = checked_partitions([partition])
        return self._offsets.committed(tp)

    def beginning_offsets(self, partitions: Iterable[TopicPartition | tuple[str, int]]) -> dict[TopicPartition, int]:
        """The log start offset of each."""
        self._check_open()
        return {tp: self._offsets.beginning_offset(self._backend.partition(*tp)) for tp in checked_partitions(partitions)}

    def end_offsets(self, partitions: Iterable[TopicPartition | tuple[str, int]]) -> dict[TopicPartition, int]:
        """The offset behind the last readable record of each: high watermark, or last stable offset if read_committed."""
        self._check_open()
        return {tp: self._offsets.end_offset(self._backend.partition(*tp)) for tp in checked_partitions(partitions)}

    def offsets_for_times(self, times: Mapping[TopicPartition, int]) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """For each partition the first record that is not older than the time (ms); None if there is none."""
        self._check_open()
        return {
            tp: self._offsets.for_timestamp(self._backend.partition(*tp), times[key])
            for key, tp in zip(times, checked_partitions(times), strict=True)
        }

    def lag(self, partition: TopicPartition | tuple[str, int]) -> int:
        """How many offsets this consumer's position is behind the end."""
        assigned = self._assigned_partition(partition)
        return self._offsets.end_offset(assigned.partition) - self.position(partition)

    def pause(self, *partitions: TopicPartition | tuple[str, int]) -> None:
        """Hand out no more records of these partitions until `resume`; membership and buffers stay."""
        for assigned in self._several(partitions):
            assigned.paused = True

    def resume(self, *partitions: TopicPartition | tuple[str, int]) -> None:
        for assigned in self._several(partitions):
            assigned.paused = False
            if assigned.subscription is not None:
                self._listener.mark(assigned.subscription)
        self._listener.wake()

    def paused(self) -> frozenset[TopicPartition]:
        return frozenset(tp for tp, assigned in self._assigned.items() if assigned.paused)

    def commit(self, offsets: Mapping[TopicPartition, Any] | None = None, timeout: float | None = None) -> None:
        """Store positions for the group, and wait until they are stored.

        offsets: None = the positions of everything handed out; else partition -> next offset (int or OffsetAndMetadata).
        A rebalance under way is driven to its end and the commit tried again. With nothing consumed it does nothing.
        Raises   CommitFailedError if a partition now belongs to another member; InvalidGroupIdError without a group;
                 StreamlogTimeoutError.
        """
        self._check_open()
        timeout_ms = milliseconds("commit", timeout, self.config.default_api_timeout_ms)
        self._commits.commit(offsets, timeout_ms)

    # -- the group's orders ------------------------------------------------------------------------------------------

    def _assign_members(self, partitions: Sequence[TopicPartition]) -> None:
        for tp in partitions:
            if tp not in self._assigned and tp.topic in self._backend.topics:
                self._take_up(tp)
        self._ever_assigned = True
        if self._on_assigned is not None:
            self._on_assigned(list(partitions))

    def _revoke_members(self, partitions: Sequence[TopicPartition]) -> None:
        if not partitions:
            return
        self._commits.maybe_auto_commit(force=True, leaving=True)
        if self._on_revoked is not None:
            self._on_revoked(list(partitions))
        for tp in partitions:
            self._drop(tp)

    def _lose_members(self, partitions: Sequence[TopicPartition]) -> None:
        if not partitions:
            return
        listener = self._on_lost or self._on_revoked
        if listener is not None:
            listener(list(partitions))
        for tp in partitions:
            self._drop(tp)

    def _take_up(self, tp: TopicPartition) -> None:
        assigned = AssignedPartition(tp, self._backend.partition(tp.topic, tp.partition))
        assigned.subscription = self._listener.subscribe(assigned.partition, assigned)
        self._assigned[tp] = assigned
        if self.config.stop_at_end:
            assigned.end_offset = self._offsets.end_offset(assigned.partition)

    def _drop(self, tp: TopicPartition) -> None:
        assigned = self._assigned.pop(tp, None)
        if assigned is not None and assigned.subscription is not None:
            self._listener.unsubscribe(assigned.subscription)
            assigned.subscription = None

    # -- closing -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Commit what was handed out (with auto-commit), leave the group, end. Closing twice is harmless."""
        self._close(commit=True)

    def _close(self, *, commit: bool) -> None:
        if self._closed:
            return
        try:
            if commit:
                self._commits.maybe_auto_commit(force=True, leaving=True)
        finally:
            self._leave_group()
            for tp in list(self._assigned):
                self._drop(tp)
            self._closed = True
            self._listener.wake()
            self._on_close(self)

    def _leave_group(self) -> None:
        membership, self._membership = self._membership, None
        if membership is not None:
            self._backend.heartbeats.remove(membership)
            membership.close()
            self._commits.membership = None

    # -- small things ------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this consumer is closed; make another with cluster.consumer(...) or group.consumer()")
        if self._backend.closed:
            self._backend.check_usable()

    def _acquire(self) -> None:
        caller = self._backend.runtime.caller()
        owner = self._owner
        if owner is not None and owner != caller:
            raise IllegalStateError("a consumer belongs to one thread at a time; another thread is inside poll (use wakeup or one each)")
        self._owner = caller

    def _assigned_partition(self, partition: TopicPartition | tuple[str, int]) -> AssignedPartition:
        self._check_open()
        [tp] = checked_partitions([partition])
        assigned = self._assigned.get(tp)
        if assigned is None:
            raise IllegalStateError(
                f"{tp} is not assigned to this consumer; it has: {', '.join(map(str, sorted(self._assigned))) or 'nothing'}",
                topic=tp.topic,
                partition=tp.partition,
            )
        return assigned

    def _several(self, partitions: Iterable[TopicPartition | tuple[str, int]] | None) -> list[AssignedPartition]:
        if partitions is None:
            self._check_open()
            return list(self._assigned.values())
        return [self._assigned_partition(tp) for tp in checked_partitions(partitions)]


def _checked_count(count: object) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"max_records={count!r}: allowed: an int >= 1", option="max_records", value=count, allowed="an int >= 1")
    return count


