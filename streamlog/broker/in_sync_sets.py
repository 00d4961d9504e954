"""The in-sync sets of what one broker leads: who is behind, what is proposed to the controller, what became of it.

    a follower lags too long --> proposal without it ---.
    a follower has caught up --> proposal with it ------+--> AlterPartition --> the image has news --> `changed`
                                                        '--> no answer: again -- refused: see `core.leadership.refused`

Invariants:
 1. One proposal of a partition is in flight; it is sent again every `PROPOSAL_RETRY_MS` until there is an answer.
 2. Whoever may have a follower behind its end is in `behind`; it leaves when a check has found all level.
 3. Everything but queries and `_send` happens inside turns; what it changes here is an effect of the turn.

Sources: KIP-497; Kafka Partition.maybeShrinkIsr, AlterPartitionManager.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from streamlog.broker.partition import Partition
from streamlog.broker.replica_requests import IsrRefused, alter_partition
from streamlog.broker.turn import Pending, Turn
from streamlog.core import leadership as rules
from streamlog.core.leadership import LagLimits, Leadership
from streamlog.core.replica import ReplicaState
from streamlog.errors import NotControllerError, StreamlogError

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.peers import Peers
    from streamlog.config import ClusterConfig

PROPOSAL_RETRY_MS: Final = 500
"""A proposal that got no answer is sent again after this."""


class InSyncSets:
    """What one broker does for the in-sync sets of its partitions."""

    def __init__(
        self, broker: Broker, peers: Peers, move_high_watermark: Callable[[Turn, Partition], None]
    ) -> None:
        self._broker = broker
        self._peers = peers
        self._move_high_watermark = move_high_watermark
        self.behind: dict[Partition, None] = {}
        self.proposals: dict[Partition, tuple[int, int]] = {}
        """Of those in flight: when it was sent last, in ms, and first, in us."""
        self.next_check_ms: int | None = None
        self.counts = peers.counts.broker(broker.id)
        self.configure(broker.config)

    def __repr__(self) -> str:
        return (
            f"InSyncSets(broker {self._broker.id}, {len(self.behind)} behind, {len(self.proposals)} proposed)"
        )

    @property
    def is_busy(self) -> bool:
        """Whether there is something to look after."""
        return bool(self.behind or self.proposals)

    def configure(self, config: ClusterConfig) -> None:
        self.limits = LagLimits(config.replica_lag_time_max_ms, config.replica_lag_max_messages)
        self.next_check_ms = None

    def forget(self, partition: Partition) -> None:
        """It is led by others, or gone. Again changes nothing."""
        self.behind.pop(partition, None)
        self.proposals.pop(partition, None)

    def changed(self, partition: Partition, old: tuple[int, ...], new: tuple[int, ...]) -> None:
        """The image has another set."""
        sent = self.proposals.pop(partition, None)
        self.behind[partition] = None
        self.counts.isr_expands += not set(new) <= set(old)
        self.counts.isr_shrinks += not set(old) <= set(new)
        if sent is not None:
            took_us = self._broker.runtime.clock.monotonic_us() - sent[1]
            self._peers.counts.isr_change_times.update(took_us / 1_000)
        self._peers.trace(f"isr of {partition.name} {list(old)} => {list(new)}")

    # -- proposals ---------------------------------------------------------------------------------------------------

    def propose(self, turn: Turn, partition: Partition, leadership: Leadership, isr: tuple[int, ...]) -> None:
        """Ask the controller for another set."""
        proposal = rules.proposed(leadership, isr)
        proposal._check()
        turn.leaderships[partition] = proposal
        sent = turn.now_ms, self._broker.runtime.clock.monotonic_us()

        def effect() -> None:
            self.proposals[partition] = sent
            self.next_check_ms = None  # sooner than it was planned: see `next_deadline_ms`

        turn.effects.append(effect)
        self._broker.after_turn(turn, lambda: self._send(partition, proposal, turn.now_ms))

    def _send(self, partition: Partition, proposal: Leadership, sent_ms: int) -> None:
        """Outside of the turn: to the controller."""
        if partition.leadership is not proposal and (
            partition.leadership is None or partition.leadership.proposed_isr != proposal.proposed_isr
        ):
            return
        request = alter_partition(self._broker.id, self._broker.epoch, partition, proposal)

        def answered(pending: Pending) -> None:
            # While there is no controller there is no answer: it is sent again after PROPOSAL_RETRY_MS.
            error = pending.error
            if isinstance(error, StreamlogError) and not isinstance(error, NotControllerError):
                self._broker.offer(IsrRefused(partition, proposal.partition_epoch, sent_ms, error))

        self._peers.tell_controller(self._broker.id, request, answered)

    def refused(self, turn: Turn, request: IsrRefused) -> bool:
        """The controller refused a proposal; whether it is one that counts: the image knows better than we."""
        partition = request.partition
        leadership: Leadership | None = turn.leaderships.get(partition, partition.leadership)
        if leadership is None or leadership.partition_epoch != request.partition_epoch:
            return False
        newest_ms, _ = self.proposals.get(partition, (request.sent_ms, 0))
        if newest_ms == request.sent_ms:  # else it is on its way again, and may be accepted
            turn.leaderships[partition] = rules.refused(leadership, request.error)
        self.counts.isr_failures += 1
        return True

    # -- what is due -------------------------------------------------------------------------------------------------

    def on_tick(self, turn: Turn) -> None:
        """Propose sets without those that have been behind for too long; send again what got no answer."""
        if self.next_check_ms is None or self.next_check_ms > turn.now_ms:
            return
        level: list[Partition] = []
        for partition in list(self.behind):
            leadership: Leadership | None = turn.leaderships.get(partition, partition.leadership)
            if leadership is None:
                level.append(partition)
                continue
            state: ReplicaState = turn.staged.get(partition) or partition.state
            out = rules.lagging(leadership, state, turn.now_ms, self.limits)
            if out:
                self.propose(turn, partition, leadership, tuple(b for b in leadership.isr if b not in out))
            self._move_high_watermark(turn, partition)  # one that lags outside of the set holds it no longer
            if all(p.log_end_offset == state.log_end_offset for p in leadership.followers.values()):
                level.append(partition)
        late = [p for p, sent in self.proposals.items() if turn.now_ms - sent[0] >= PROPOSAL_RETRY_MS]
        known = {partition: turn.leaderships.get(partition, partition.leadership) for partition in late}
        again = {p: term for p, term in known.items() if term is not None and term.proposed_isr is not None}
        for partition, leadership in again.items():
            self._broker.after_turn(turn, partial(self._send, partition, leadership, turn.now_ms))

        def effect() -> None:
            self.next_check_ms = None
            for partition in level:
                self.behind.pop(partition, None)
            for partition in late:
                sent = self.proposals.pop(partition, None)  # None: this very turn brought the answer
                if sent is not None and partition in again:
                    self.proposals[partition] = turn.now_ms, sent[1]

        turn.effects.append(effect)

    def next_deadline_ms(self, now_ms: int) -> int | None:
        """When `on_tick` has something to do."""
        if not self.is_busy:
            return None
        if self.next_check_ms is None:
            pause_ms = max(1, self.limits.time_max_ms // 2)
            if self.proposals:
                pause_ms = min(pause_ms, PROPOSAL_RETRY_MS)
            self.next_check_ms = now_ms + pause_ms
        return self.next_check_ms
