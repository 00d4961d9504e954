"""Where a consumer stands in each partition it has: seeking, positions, ends, times, pausing.

The lowest of a consumer's three layers: ConsumerPositions <- ConsumerAssignment (what it reads) <- Consumer
(reading).
Layers, not parts: they are one object to the user and to the hot path.

Invariant: a position is only moved here by a seek; reading moves it in `fetching`.

Source: Kafka KafkaConsumer (seek, position, offsetsForTimes), SEMANTICS 3.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streamlog.client.fetching import UNKNOWN_OFFSET, AssignedPartition
from streamlog.client.offsets import OffsetLookup, Partitions, checked_partitions
from streamlog.client.patience import patient
from streamlog.config import ConsumerConfig
from streamlog.errors import ClosedError, ConfigError, IllegalStateError
from streamlog.record import OffsetAndTimestamp, TopicPartition

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster


class ConsumerPositions:
    """The assigned partitions of a consumer and where it stands in each."""

    def __init__(self, backend: BrokerCluster, config: ConsumerConfig) -> None:
        self.config = config
        self._backend = backend
        self._listener = backend.listener()
        self._offsets = OffsetLookup(backend, config)
        self._assigned: dict[TopicPartition, AssignedPartition] = {}
        self._closed = False

    def seek(self, partition: TopicPartition | tuple[str, int], offset: int) -> None:
        """Read from `offset` next. Checked against the log at the next poll, as Kafka does."""
        assigned = self._assigned_partition(partition)
        if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
            raise ConfigError(
                f"seek to {offset!r}: allowed: an offset >= 0",
                option="offset",
                value=offset,
                allowed="an int >= 0",
            )
        self._move(assigned, offset)

    @patient
    def seek_to_beginning(self, partitions: Partitions | None = None) -> None:
        """Read from the log's start next; all assigned partitions by default."""
        for assigned in self._several(partitions):
            self._move(assigned, self._offsets.beginning_offset(assigned.partition))

    @patient
    def seek_to_end(self, partitions: Partitions | None = None) -> None:
        """Read only what comes from now on; all assigned partitions by default."""
        for assigned in self._several(partitions):
            self._move(assigned, self._offsets.end_offset(assigned.partition))

    @patient
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

    def _go_back(self, assigned: AssignedPartition, offset: int) -> None:
        """Stand before records again that nobody got. What was handed out before them is as uncommitted as it was."""
        before = assigned.uncommitted_from
        self._move(assigned, offset)
        if before < offset:
            assigned.uncommitted_from = before

    @patient
    def position(self, partition: TopicPartition | tuple[str, int]) -> int:
        """The offset of the next record this consumer hands out."""
        assigned = self._assigned_partition(partition)
        if assigned.position == UNKNOWN_OFFSET:
            self._offsets.resolve(assigned)
            if assigned.position == UNKNOWN_OFFSET:
                raise IllegalStateError(
                    f"{assigned.tp} has no position yet: "
                    f"auto_offset_reset={self.config.auto_offset_reset!r} found none"
                )
        return assigned.position

    @patient
    def committed(self, partition: TopicPartition | tuple[str, int]) -> int | None:
        """The group's committed offset of a partition; None if nobody has committed. Works without being
        assigned.
        """
        self._check_open()
        [tp] = checked_partitions([partition])
        return self._offsets.committed(tp)

    @patient
    def beginning_offsets(self, partitions: Partitions) -> dict[TopicPartition, int]:
        """The log start offset of each; one partition does as well."""
        self._check_open()
        return {
            tp: self._offsets.beginning_offset(self._backend.partition(*tp))
            for tp in checked_partitions(partitions)
        }

    @patient
    def end_offsets(self, partitions: Partitions) -> dict[TopicPartition, int]:
        """The offset behind the last readable record of each: high watermark, or last stable offset if
        read_committed. One partition does as well.
        """
        self._check_open()
        return {
            tp: self._offsets.end_offset(self._backend.partition(*tp))
            for tp in checked_partitions(partitions)
        }

    @patient
    def offsets_for_times(
        self, times: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """For each partition the first record that is not older than the time (ms); None if there is none."""
        self._check_open()
        return {
            tp: self._offsets.for_timestamp(self._backend.partition(*tp), times[key])
            for key, tp in zip(times, checked_partitions(times), strict=True)
        }

    @patient
    def lag(self, partition: TopicPartition | tuple[str, int]) -> int:
        """How many offsets this consumer's position is behind the end."""
        assigned = self._assigned_partition(partition)
        return self._offsets.end_offset(assigned.partition) - self.position(partition)

    def pause(self, *partitions: TopicPartition | tuple[str, int]) -> None:
        """Hand out no more records of these partitions until `resume`; membership and buffers stay.

        As everywhere else, one list of partitions does as well.
        """
        for assigned in self._named(partitions):
            assigned.paused = True

    def resume(self, *partitions: TopicPartition | tuple[str, int]) -> None:
        for assigned in self._named(partitions):
            assigned.paused = False
            if assigned.subscription is not None:
                self._listener.mark(assigned.subscription)
        self._listener.wake()

    def paused(self) -> frozenset[TopicPartition]:
        return frozenset(tp for tp, assigned in self._assigned.items() if assigned.paused)

    # -- small things ----------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(
                "this consumer is closed; make another with cluster.consumer(...) or group.consumer()"
            )
        if self._backend.closed:
            self._backend.check_usable()

    def _nothing_to_read(self) -> IllegalStateError:
        return IllegalStateError(
            "this consumer has nothing to read: assign([(topic, number), ...]), or subscribe to topics as a "
            "member of a group, cluster.consumer_group(name, topics).consumer()"
        )

    def _assigned_partition(self, partition: TopicPartition | tuple[str, int]) -> AssignedPartition:
        self._check_open()
        [tp] = checked_partitions([partition])
        assigned = self._assigned.get(tp)
        if assigned is None:
            held = ", ".join(map(str, sorted(self._assigned))) or "nothing"
            raise IllegalStateError(
                f"{tp} is not assigned to this consumer; it has: {held}",
                topic=tp.topic,
                partition=tp.partition,
            )
        return assigned

    def _several(self, partitions: Partitions | None) -> list[AssignedPartition]:
        if partitions is None:
            self._check_open()
            return list(self._assigned.values())
        return [self._assigned_partition(tp) for tp in checked_partitions(partitions)]

    def _named(self, arguments: tuple[Any, ...]) -> list[AssignedPartition]:
        """The partitions that are a call's arguments, or one list of them."""
        one_list = len(arguments) == 1 and isinstance(arguments[0], (list, set, frozenset))
        return self._several(arguments[0] if one_list else list(arguments))
