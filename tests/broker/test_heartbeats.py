"""Heartbeats: when, for whom, and who is to blame when the thread itself was late."""

from __future__ import annotations

import pytest

from streamlog.broker.heartbeats import LATE_MS_MAX, Heartbeats
from streamlog.broker.runner import ThreadedRuntime
from streamlog.clock import ManualClock
from streamlog.errors import ClosedError


class Member:
    heartbeat_interval_ms = 100

    def __init__(self, error: Exception | None = None) -> None:
        self.beats: list[int] = []
        self.excused_ms = 0
        self.error = error

    def heartbeat(self, now_ms: int) -> None:
        self.beats.append(now_ms)
        if self.error is not None:
            raise self.error

    def excuse(self, late_ms: int) -> None:
        self.excused_ms += late_ms


@pytest.fixture
def heartbeats(monkeypatch: pytest.MonkeyPatch) -> Heartbeats:
    monkeypatch.setattr("streamlog.broker.runner.Service.wake", lambda self: None)
    return Heartbeats(ThreadedRuntime(ManualClock(0)))


def test_each_member_beats_at_its_interval(heartbeats: Heartbeats) -> None:
    member = Member()
    heartbeats.add(member)
    assert heartbeats._serve(99) == 100 and member.beats == []
    assert heartbeats._serve(100) == 200
    assert heartbeats._serve(250) == 350
    assert member.beats == [100, 250] and member.excused_ms == 0


def test_an_error_of_one_member_does_not_keep_the_others_from_beating(heartbeats: Heartbeats) -> None:
    members = [Member(ClosedError("closing")), Member()]
    for member in members:
        heartbeats.add(member)
    heartbeats._serve(100), heartbeats._serve(200)
    assert [member.beats for member in members] == [[100, 200], [100, 200]]


def test_a_member_that_left_beats_no_more(heartbeats: Heartbeats) -> None:
    member = Member()
    heartbeats.add(member)
    heartbeats.remove(member), heartbeats.remove(member)
    assert heartbeats._serve(1_000) is None and member.beats == []
    assert repr(heartbeats) == "Heartbeats(0 members)"


def test_a_thread_that_was_stopped_itself_blames_nobody(heartbeats: Heartbeats) -> None:
    member = Member()
    heartbeats.add(member)
    late = 100 + LATE_MS_MAX + 1
    heartbeats._serve(late)
    assert member.excused_ms == LATE_MS_MAX + 1 and member.beats == [late]
