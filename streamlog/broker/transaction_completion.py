"""Completing decided transactions over several brokers: markers to every partition, then the record that says so.

    Prepare appended --replicated--> WriteMarkers to the leaders --all answered--> MarkersWritten to us --> Complete
                                        ^ again, until each has

With Prepare replicated the outcome stands, whatever dies: whoever leads the partition of `__transaction_state` next finds
it there and goes on. Writing a marker twice is harmless, see `transaction_markers`.

Invariants:
 1. No marker leaves before the record of the decision is below the high watermark of its partition.
 2. A transaction is complete once every partition of it that still exists has its marker, replicated.
 3. Who asked for the end is answered once: when it is complete, when its time is over (the outcome stands all the same),
    or when another broker coordinates.

Source: SEMANTICS 3.5.11; Kafka TransactionMarkerChannelManager, DESIGN ("Turns, not locks": you read your own commit).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from streamlog.broker.api import MarkersWritten, TransactionRequest, WriteMarkers
from streamlog.broker.pending import Pending, Turn
from streamlog.core.transaction import State, TransactionState
from streamlog.errors import (
    InvalidProducerEpochError,
    NotCoordinatorError,
    StreamlogError,
    UnknownTopicOrPartitionError,
)
from streamlog.record import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamlog.broker.api import Produced
    from streamlog.broker.broker import Broker
    from streamlog.broker.partition import Partition
    from streamlog.broker.peers import Peers

MARKERS_AGAIN_MS: Final = 500
"""Markers nobody has answered for are sent again after this; also to a leader that has changed."""
REPLICATED_LOOK_MS: Final = 20
NEVER_MS: Final = 2**60


class Completing:
    """One decided transaction."""

    __slots__ = (
        "asking",
        "end_offset",
        "left",
        "partition",
        "reply_by_ms",
        "send_at_ms",
        "state",
        "transactional_id",
    )

    def __init__(
        self,
        transactional_id: str,
        state: TransactionState,
        partition: Partition,
        end_offset: int,
        now_ms: int,
    ) -> None:
        self.transactional_id = transactional_id
        self.state = state
        self.partition = partition
        self.end_offset = end_offset
        """Behind the record of the decision; what the high watermark has to reach."""
        self.left = dict.fromkeys(state.partitions)
        """Partitions that have not answered for their marker."""
        self.send_at_ms = now_ms
        self.asking: Pending | None = None
        self.reply_by_ms = NEVER_MS

    def __repr__(self) -> str:
        return f"Completing({self.transactional_id!r}, {self.state.state.name}, {len(self.left)} left)"

    @property
    def is_replicated(self) -> bool:
        return self.partition.state.high_watermark >= self.end_offset

    @property
    def answer(self) -> tuple[int, int]:
        return self.state.producer_id, self.state.producer_epoch


class Completions:
    """The decided transactions of one broker. Changes in its turns only; markers are sent outside of them."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._open: dict[str, Completing] = {}

    def __repr__(self) -> str:
        return f"Completions({len(self._open)} transactions)"

    def pending_markers(self) -> list[tuple[str, int]]:
        """The partitions of decided transactions that have not answered for their marker. By any thread."""
        return [partition for completing in list(self._open.values()) for partition in list(completing.left)]

    @property
    def _peers(self) -> Peers:
        assert self._broker.replication is not None
        return self._broker.replication.peers

    def begin(self, turn: Turn, completing: Completing) -> None:
        """A decision was staged in this turn: see it through."""
        turn.effects.append(lambda: self.resume(completing))
        if turn.is_alone(completing.partition):
            self._broker.after_turn(turn, lambda: self._send(completing))
            return
        assert self._broker.replication is not None
        watch = Pending(None, on_done=lambda _: self._send(completing))
        waiting = [(completing.partition, completing.end_offset, -1)]
        self._broker.replication.acknowledgements.park(turn, watch, None, waiting, NEVER_MS - turn.now_ms)

    def resume(self, completing: Completing) -> None:
        """From now on it is tried until it is complete. Again changes nothing."""
        self._open[completing.transactional_id] = completing

    def written(self, turn: Turn, transactional_id: str, event: MarkersWritten) -> Completing | None:
        """Some partitions have their markers: the transaction, if it can be completed now."""
        completing = self._open.get(transactional_id)
        if completing is None or completing.answer != (event.producer_id, event.producer_epoch):
            return None  # of one that is complete
        for partition in event.partitions:
            completing.left.pop(TopicPartition(*partition), None)  # a fact, whatever becomes of this turn
        return None if completing.left else completing

    def completed(self, turn: Turn, completing: Completing) -> None:
        """The completion is staged in this turn."""
        if completing.asking is not None:
            turn.reply(completing.asking, completing.answer)
        turn.effects.append(lambda: self._forget(completing))

    def _forget(self, completing: Completing) -> None:
        if self._open.get(completing.transactional_id) is completing:
            del self._open[completing.transactional_id]

    # -- time ----------------------------------------------------------------------------------------------------------

    def next_deadline_ms(self) -> int | None:
        return min([min(one.send_at_ms, one.reply_by_ms) for one in list(self._open.values())], default=None)

    def on_tick(self, turn: Turn) -> None:
        """Send again what was not answered, and let go of who has waited long enough."""
        for completing in list(self._open.values()):
            if (
                completing.reply_by_ms <= turn.now_ms
                and completing.asking is not None
                and completing.is_replicated
            ):
                turn.reply(completing.asking, completing.answer)
                turn.effects.append(lambda one=completing: self._let_go(one))  # type: ignore[misc]
            if completing.send_at_ms <= turn.now_ms:
                pause_ms = MARKERS_AGAIN_MS if completing.is_replicated else REPLICATED_LOOK_MS
                completing.send_at_ms = turn.now_ms + pause_ms  # a plan, whatever becomes of this turn
                self._broker.after_turn(turn, lambda one=completing: self._send(one))  # type: ignore[misc]
            if completing.reply_by_ms <= turn.now_ms:
                completing.reply_by_ms = turn.now_ms + REPLICATED_LOOK_MS if completing.asking else NEVER_MS

    @staticmethod
    def _let_go(completing: Completing) -> None:
        completing.asking = None

    # -- markers, outside of turns -------------------------------------------------------------------------------------

    def _send(self, completing: Completing) -> None:
        """Have the leaders of all partitions that are left write their markers."""
        if not completing.is_replicated or self._open.get(completing.transactional_id) is not completing:
            return
        completing.send_at_ms = self._broker.runtime.clock.monotonic_ms() + MARKERS_AGAIN_MS
        by_leader: dict[int, list[tuple[str, int]]] = {}
        gone: list[tuple[str, int]] = []
        for topic, number in list(completing.left):
            try:
                by_leader.setdefault(self._peers.leader(topic, number), []).append((topic, number))
            except UnknownTopicOrPartitionError:
                gone.append((topic, number))  # deleted: nobody waits there
            except StreamlogError:
                continue  # nobody leads it now: later
        if gone or not completing.left:
            self._report(completing, self._broker.id, gone)
        for leader_id, partitions in by_leader.items():
            self._ask(completing, leader_id, partitions)

    def _ask(self, completing: Completing, leader_id: int, partitions: list[tuple[str, int]]) -> None:
        state, peers = completing.state, self._peers
        request = WriteMarkers(
            *completing.answer,
            completing.partition.state.leader_epoch,
            state.state is State.PREPARE_COMMIT,
            partitions,
        )

        def answered(pending: Pending) -> None:
            results: list[Produced] = [] if pending.error is not None else pending.reply
            written = [
                partition
                for partition, produced in zip(partitions, results, strict=False)
                if produced.error is None or isinstance(produced.error, _OVER)
            ]
            if written:
                peers.send(leader_id, self._broker.id, lambda: self._report(completing, leader_id, written))

        def arrive() -> None:
            leader = peers.running(leader_id)
            if leader is not None:
                try:
                    leader.post(request, on_done=answered)
                except StreamlogError:
                    pass  # it has just stopped: the markers are sent again

        peers.send(self._broker.id, leader_id, arrive)

    def _report(self, completing: Completing, leader_id: int, partitions: list[tuple[str, int]]) -> None:
        event = MarkersWritten(*completing.answer, partitions)
        self._broker.offer(TransactionRequest(completing.transactional_id, event))

    # -- the end of coordinating ---------------------------------------------------------------------------------------

    def unload(self, partition: Partition) -> None:
        """Another broker coordinates these ids. Called by the runner."""
        for completing in [one for one in self._open.values() if one.partition is partition]:
            self._forget(completing)
            if completing.asking is not None:
                refusal = NotCoordinatorError(
                    f"broker {self._broker.id} does not lead {partition.name} any more; the transaction of "
                    f"{completing.transactional_id!r} is completed by the one that does",
                    leader=partition.leader_id,
                )
                self._broker.answer(completing.asking, None, refusal)

    def close(
        self, refusal: StreamlogError, answer: Callable[[Pending, object, BaseException | None], None]
    ) -> None:
        """No turn runs any more: whoever waits learns it."""
        while self._open:
            completing = self._open.popitem()[1]
            if completing.asking is not None:
                answer(completing.asking, None, refusal)


_OVER: Final = (InvalidProducerEpochError, UnknownTopicOrPartitionError)
"""Of a partition that needs no marker: a later transaction has begun there, or it is no more."""
