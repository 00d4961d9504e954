"""When groups are looked at: entries that stay where they are, due ones that survive a dropped turn."""

from __future__ import annotations

from typing import Any

from streamlog.broker.group_deadlines import GroupDeadlines


class Group:
    """As much of a hosted group as deadlines look at."""

    def __init__(self, group_id: str, deadline_ms: int | None) -> None:
        self.group_id, self.scheduled_ms, self.deadline_ms = group_id, None, deadline_ms
        self.machine = self

    def next_deadline_ms(self) -> int | None:
        return self.deadline_ms


def noted(*deadlines_ms: int | None) -> tuple[GroupDeadlines, dict[str, Any]]:
    deadlines = GroupDeadlines()
    groups: dict[str, Any] = {f"g{n}": Group(f"g{n}", at_ms) for n, at_ms in enumerate(deadlines_ms)}
    for group in groups.values():
        deadlines.note(group)
    return deadlines, groups


def test_the_earliest_comes_first() -> None:
    deadlines, _ = noted(30, 10, None, 20)
    assert deadlines.next_ms == 10 and repr(deadlines) == "GroupDeadlines(3, next at 10 ms)"
    assert sorted(deadlines.due(20)) == ["g1", "g3"]
    assert sorted(deadlines.due(20)) == ["g1", "g3"], "looking takes nothing away"


def test_only_an_earlier_one_is_news() -> None:
    deadlines, groups = noted(30)
    assert deadlines.has_changed
    deadlines.has_changed = False
    groups["g0"].deadline_ms = 40
    deadlines.note(groups["g0"])
    assert not deadlines.has_changed and deadlines.next_ms == 30 and len(deadlines._heap) == 1
    groups["g0"].deadline_ms = 5
    deadlines.note(groups["g0"])
    assert deadlines.has_changed and deadlines.next_ms == 5


def test_what_was_due_is_asked_when_it_wants_to_be_looked_at_next() -> None:
    deadlines, groups = noted(10, 20, 15)
    groups["g0"].deadline_ms, groups["g1"].deadline_ms = 50, None
    del groups["g2"]  # deleted, or another broker's
    deadlines.reschedule(20, groups)
    assert deadlines.next_ms == 50 and groups["g0"].scheduled_ms == 50 and groups["g1"].scheduled_ms is None
    deadlines.clear()
    assert deadlines.next_ms is None
