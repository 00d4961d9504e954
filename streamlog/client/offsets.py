"""Where to read: positions, resets, and offsets by time, for consumers and for groups.

    committed offset, else auto_offset_reset: earliest -> log start, latest -> end, none -> error, by_duration -> by time

Source: SEMANTICS 3.8 (Kafka OffsetFetcher, AutoOffsetResetStrategy, KIP-1106 for durations).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from streamlog.broker.partition import Partition
from streamlog.broker.reading import end_for, view_of
from streamlog.client.fetching import UNKNOWN_OFFSET, AssignedPartition
from streamlog.config import ConsumerConfig
from streamlog.core.leadership import is_readable
from streamlog.errors import (
    ConfigError,
    LogTruncationError,
    NoOffsetForPartitionError,
    OffsetNotAvailableError,
    OffsetOutOfRangeError,
)
from streamlog.record import OffsetAndTimestamp, TopicPartition

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster

BY_DURATION: Final = "by_duration:"


Partitions: TypeAlias = "TopicPartition | tuple[str, int] | Iterable[TopicPartition | tuple[str, int]]"
"""One, or several."""


def checked_partitions(partitions: Partitions | Iterable[Any]) -> list[TopicPartition]:
    """Partitions given as TopicPartition or (topic, number), or one. Raises ConfigError naming what is neither."""
    if isinstance(partitions, tuple) and partitions and isinstance(partitions[0], str):
        partitions = [partitions]
    if not isinstance(partitions, Iterable) or isinstance(partitions, (str, bytes)):
        partitions = [partitions]
    checked: list[TopicPartition] = []
    for given in partitions:
        partition = getattr(given, "topic_partition", given)  # a Partition does as well
        if (
            not isinstance(partition, tuple)
            or len(partition) != 2
            or not isinstance(partition[0], str)
            or isinstance(partition[1], bool)
            or not isinstance(partition[1], int)
        ):
            raise ConfigError(
                f"{partition!r} is no partition; allowed: TopicPartition(topic, number) or a tuple of a str and an int",
                option="partition",
                value=partition,
                allowed="TopicPartition(topic, number)",
            )
        checked.append(partition if isinstance(partition, TopicPartition) else TopicPartition(*partition))
    return checked


def checked_count(argument: str, count: object) -> int:
    """How many to read at most. Raises ConfigError naming the argument."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(
            f"{argument}={count!r}: allowed: an int >= 1",
            option=argument,
            value=count,
            allowed="an int >= 1",
        )
    return count


class OffsetLookup:
    """Answers about offsets, as one consumer's options have them."""

    def __init__(self, backend: BrokerCluster, config: ConsumerConfig) -> None:
        self._backend = backend
        self._config = config

    def beginning_offset(self, partition: Partition) -> int:
        return view_of(partition).log_start_offset

    def end_offset(self, partition: Partition) -> int:
        view = view_of(partition)
        leadership = partition.leadership
        if leadership is not None and not is_readable(leadership, view):
            raise OffsetNotAvailableError(
                f"{partition.name} has just got another leader, which does not know yet what is replicated",
                topic=partition.topic,
                partition=partition.number,
            )
        return end_for(view, self._config.isolation_level)

    def for_timestamp(self, partition: Partition, ms: object) -> OffsetAndTimestamp | None:
        if isinstance(ms, bool) or not isinstance(ms, int) or ms < 0:
            raise ConfigError(
                f"timestamp {ms!r}: allowed: ms since the epoch, an int >= 0",
                option="ms",
                value=ms,
                allowed="an int >= 0",
            )
        reader = self._backend.leader_of(partition).reader
        return reader.offset_for_timestamp(partition, ms, self._config.isolation_level)

    def committed(self, tp: TopicPartition) -> int | None:
        group_id = self._config.group_id
        if group_id is None:
            return None
        found: Mapping[TopicPartition, Any] = self._backend.coordinator.committed(group_id, [tp])
        return found[tp].offset if tp in found else None

    def resolve(self, assigned: AssignedPartition) -> bool:
        """Give a partition its first position. False: there is none yet (by_duration). Raises
        NoOffsetForPartitionError.
        """
        if assigned.position != UNKNOWN_OFFSET:
            return True
        committed = None if assigned.is_resetting else self.committed(assigned.tp)
        if committed is not None:
            assigned.seek(committed)
            assigned.committed_position = committed
            return True
        offset = self.reset_offset(assigned.partition)
        if offset is None:
            if self._config.auto_offset_reset == "none":
                raise NoOffsetForPartitionError(
                    f"{assigned.tp} has no committed offset for group {self._config.group_id!r} and "
                    "auto_offset_reset is 'none'; "
                    "seek to an offset, or use 'earliest' or 'latest'",
                    topic=assigned.tp.topic,
                    partition=assigned.tp.partition,
                )
            return False
        assigned.seek(offset)
        assigned.reset_position = offset
        return True

    def reset_offset(self, partition: Partition) -> int | None:
        """Where `auto_offset_reset` leads; None for "none", and for a duration no record is young enough for."""
        policy = self._config.auto_offset_reset
        if policy == "earliest":
            return self.beginning_offset(partition)
        if policy == "latest":
            return self.end_offset(partition)
        back_ms = self._config.auto_offset_reset_ms
        if back_ms is not None:
            since_ms = self._backend.runtime.clock.wall_ms() - back_ms
            found = self.for_timestamp(partition, max(0, since_ms))
            return None if found is None else found.offset
        return None

    def reset(self, assigned: AssignedPartition, error: OffsetOutOfRangeError) -> None:
        """The position is out of range: apply the reset policy; with "none" the error is the user's."""
        if self._config.auto_offset_reset == "none":
            raise error
        offset = self.reset_offset(assigned.partition)
        assigned.seek(UNKNOWN_OFFSET if offset is None else offset)
        assigned.is_resetting = offset is None

    def on_truncated(self, assigned: AssignedPartition, end_offset: int) -> None:
        """The new leader does not have what was read behind `end_offset` (an unclean election): go there.

        Raises LogTruncationError with auto_offset_reset="none". Source: KIP-320.
        """
        if self._config.auto_offset_reset == "none":
            raise LogTruncationError(
                f"{assigned.tp} was truncated to {end_offset} by an unclean election, behind the position "
                f"{assigned.position}; seek to where you want to go on",
                topic=assigned.tp.topic,
                partition=assigned.tp.partition,
                position=assigned.position,
                next_offset=end_offset,
            )
        assigned.seek(end_offset)

    def unresolved(self, assigned: Mapping[TopicPartition, AssignedPartition]) -> list[AssignedPartition]:
        """The partitions that have no position yet and must be asked again (by_duration only)."""
        if not self._config.auto_offset_reset.startswith(BY_DURATION):
            return []
        return [one for one in assigned.values() if one.position == UNKNOWN_OFFSET and not one.paused]
