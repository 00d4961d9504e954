"""When the groups of a broker want to be looked at next.

A heap of (when, group), one entry a group that counts. Sessions and timeouts move all the time, mostly to later: an entry
stays where it is, and its group is asked again when it comes up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamlog.broker.hosted_group import HostedGroup


class GroupDeadlines:
    """Changed inside turns, by effects of those that were committed."""

    __slots__ = ("_heap", "has_changed")

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        self.has_changed = False
        """There is an earlier one than whoever plans the next tick has seen."""

    def __repr__(self) -> str:
        return f"GroupDeadlines({len(self._heap)}, next at {self.next_ms} ms)"

    @property
    def next_ms(self) -> int | None:
        return self._heap[0][0] if self._heap else None

    def note(self, hosted: HostedGroup) -> None:
        """A group has changed. Only an earlier deadline needs a new entry."""
        deadline_ms = hosted.machine.next_deadline_ms()
        if deadline_ms is None or (hosted.scheduled_ms is not None and hosted.scheduled_ms <= deadline_ms):
            return
        if not self._heap or deadline_ms < self._heap[0][0]:
            self.has_changed = True
        hosted.scheduled_ms = deadline_ms
        heappush(self._heap, (deadline_ms, hosted.group_id))

    def due(self, now_ms: int) -> Iterator[str]:
        """The groups of all entries that are due; the heap is left as it is, the turn may still be dropped."""
        heap, places = self._heap, [0]
        while places:
            place = places.pop()
            if place < len(heap) and heap[place][0] <= now_ms:
                yield heap[place][1]
                places += (2 * place + 1, 2 * place + 2)

    def reschedule(self, now_ms: int, groups: Mapping[str, HostedGroup]) -> None:
        """Take off what was due, and put back when each machine wants to be looked at next."""
        due: dict[str, None] = {}
        while self._heap and self._heap[0][0] <= now_ms:
            due[heappop(self._heap)[1]] = None
        for group_id in due:
            hosted = groups.get(group_id)
            if hosted is not None:
                hosted.scheduled_ms = None
                self.note(hosted)

    def clear(self) -> None:
        self._heap.clear()
