"""What a group has committed, as far as it is replicated.

    commit of 5 --appended--> the machine says 5 --replicated--> readers are told 5
                                   +--until then they are told what was there before

A leader that was cut off goes on appending, and nobody keeps what it appends: an offset told too early would go back with
the next leader. (Kafka's coordinator answers from the state at its last committed offset.)

Source: Kafka CoordinatorRuntime.scheduleReadOperation, SnapshottableCoordinator; KIP-207 for what a new leader does not
know yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from streamlog.core.group_records import OffsetKey, decode_key
from streamlog.core.leadership import is_readable
from streamlog.errors import CoordinatorLoadInProgressError

if TYPE_CHECKING:
    from streamlog.broker.hosted_group import HostedGroup
    from streamlog.core.group import GroupMachine
    from streamlog.core.machine import Key, Value
    from streamlog.record import OffsetAndMetadata, TopicPartition


class UnsettledOffsets:
    """For each partition the commits that are not known to be replicated: where their record ends, and what was there
    before. Changed by effects of turns; looked at from any thread.
    """

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before: dict[TopicPartition, list[tuple[int, OffsetAndMetadata | None]]] = {}

    def __repr__(self) -> str:
        return f"UnsettledOffsets({sum(map(len, self._before.values()))} of {len(self._before)} partitions)"

    def note(
        self,
        machine: GroupMachine,
        records: Iterable[tuple[Key, Value]],
        end_offset: int,
        high_watermark: int,
    ) -> None:
        """Records that end at `end_offset` are about to be applied to the machine. Again changes nothing."""
        for key, _ in records:
            decoded = decode_key(key)
            if type(decoded) is not OffsetKey:
                continue
            place = decoded.partition
            known = [entry for entry in self._before.get(place, ()) if entry[0] > high_watermark]
            if not known or known[-1][0] != end_offset:
                known.append((end_offset, machine.committed(*place)))
            self._before[place] = known

    def settled(
        self, place: TopicPartition, newest: OffsetAndMetadata | None, high_watermark: int
    ) -> OffsetAndMetadata | None:
        """What is replicated. newest: what the machine says; asked before this."""
        for end_offset, before in self._before.get(place, ()):
            if end_offset > high_watermark:
                return before
        return newest

    def places(self) -> list[TopicPartition]:
        """Those that may have something else than the machine says."""
        return list(self._before.copy())


def settled_offsets(
    hosted: HostedGroup, partitions: list[TopicPartition] | None
) -> dict[TopicPartition, OffsetAndMetadata]:
    """The replicated offsets of these partitions (None: of all), those without one left out.

    Raises CoordinatorLoadInProgressError where a new leader does not know yet what is replicated.
    """
    partition, machine, unsettled = hosted.partition, hosted.machine, hosted.unsettled
    leadership = partition.leadership
    if not partition.is_alone and leadership is not None and not is_readable(leadership, partition.state):
        raise CoordinatorLoadInProgressError(
            f"group {hosted.group_id!r}: {partition.name} has just got another leader, which does not know yet what "
            "is replicated; ask again",
            group_id=hosted.group_id,
        )
    # The high watermark first: what settles meanwhile may be told or not, what is taken back never.
    high_watermark = partition.state.high_watermark
    if partitions is None:
        newest = machine.all_committed()
        places = [*newest, *(place for place in unsettled.places() if place not in newest)]
    else:
        newest, places = {}, partitions
        for place in places:
            if (where := machine.committed(*place)) is not None:
                newest[place] = where
    told = {place: unsettled.settled(place, newest.get(place), high_watermark) for place in places}
    return {place: where for place, where in sorted(told.items()) if where is not None}
