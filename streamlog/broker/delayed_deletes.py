"""Where a DeleteRecords waits until the followers have deleted, too: Kafka's DelayedDeleteRecords, one per broker.

    log start raised at the leader --> parked
        low watermark >= what was asked for  --> answered with it
        deadline                             --> REQUEST_TIMED_OUT: deleted here, and sooner or later everywhere
        leadership lost, topic gone          --> NOT_LEADER_OR_FOLLOWER: the next leader may begin earlier

Invariants:
 1. A request is answered once.
 2. Everything here happens in effects of a turn or after publishing; doing it twice changes nothing.

Source: SEMANTICS 1.1 (delete records); Kafka DelayedDeleteRecords, Partition.lowWatermarkIfLeader.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from streamlog.broker.partition import Partition
from streamlog.broker.serving_followers import not_leader
from streamlog.broker.turn import Pending, Turn
from streamlog.core.leadership import Leadership, low_watermark
from streamlog.errors import StreamlogError, StreamlogTimeoutError

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker


class ParkedDelete(msgspec.Struct, eq=False):
    """A request whose answer waits for the followers' log starts."""

    pending: Pending
    partition: Partition
    log_start_offset: int
    deadline_ms: int


class DelayedDeletes:
    """The deletions of one broker that wait for followers."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._parked: dict[ParkedDelete, None] = {}

    def __repr__(self) -> str:
        return f"DelayedDeletes({self.count} parked)"

    @property
    def is_empty(self) -> bool:
        return not self._parked

    @property
    def count(self) -> int:
        """Requests that wait (Kafka's PurgatorySize)."""
        return len(self._parked)

    def park(
        self, turn: Turn, pending: Pending, partition: Partition, log_start_offset: int, timeout_ms: int
    ) -> None:
        """Answer `pending` once no live replica begins below `log_start_offset`."""
        parked = ParkedDelete(pending, partition, log_start_offset, turn.now_ms + timeout_ms)
        turn.effects.append(lambda: self._parked.setdefault(parked))

    def release(self, turn: Turn) -> None:
        """After publishing: followers may have told of another log start, or count no longer; others may lead now."""
        for parked in list(self._parked):
            partition = parked.partition
            # Without a view its topic, or our replica, is gone, whatever it led.
            leadership: Leadership | None = None if partition.view is None else partition.leadership
            if parked.pending.done:
                self._parked.pop(parked, None)
            elif leadership is None:
                self._answer(parked, None, not_leader(partition, self._broker.id))
            else:
                lowest = low_watermark(leadership, partition.state)
                if lowest >= parked.log_start_offset:
                    self._answer(parked, lowest, None)
                elif turn.now_ms >= parked.deadline_ms:
                    self._answer(parked, None, _too_late(parked, leadership))

    def next_deadline_ms(self) -> int | None:
        """When a turn has something to give up on."""
        return min([parked.deadline_ms for parked in list(self._parked)], default=None)

    def close(
        self, refusal: StreamlogError, answer: Callable[[Pending, object, BaseException | None], None]
    ) -> None:
        """No turn runs any more: whoever is parked learns it."""
        for parked in self._parked:
            answer(parked.pending, None, refusal)
        self._parked.clear()

    def _answer(self, parked: ParkedDelete, value: object, error: StreamlogError | None) -> None:
        self._broker.answer(parked.pending, value, error)
        self._parked.pop(parked, None)  # last: an interrupt before it answers again, never not at all


def _too_late(parked: ParkedDelete, leadership: Leadership) -> StreamlogTimeoutError:
    partition = parked.partition
    late = [
        follower
        for follower, progress in leadership.followers.items()
        if follower not in leadership.unavailable and progress.log_start_offset < parked.log_start_offset
    ]
    return StreamlogTimeoutError(
        f"{partition.name}: the records below {parked.log_start_offset} are deleted at the leader, but not in time at "
        f"brokers {', '.join(map(str, late))}; there they go as soon as those fetch again",
        topic=partition.topic,
        partition=partition.number,
        log_start_offset=parked.log_start_offset,
        brokers=late,
    )
