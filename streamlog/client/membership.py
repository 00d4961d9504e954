"""The client's side of a consumer group: join, sync, heartbeat, leave, without ever blocking.

    UNJOINED --JoinGroup--> JOINING --reply--> SYNCING --reply--> STABLE --group rebalances--> UNJOINED ...

`advance` takes as many steps as the answers that have arrived allow and returns. The consumer calls it from `poll`, so
listeners run in the caller's thread, a join goes on across polls, and members polled in turn by one thread converge.

Invariants:
 1. At most one request is under way; its answer is looked at exactly once.
 2. Eager: nothing is owned between the revocation and the next assignment. Cooperative: what stays is never given up.
 3. Lost partitions (the coordinator dropped us) are reported as lost, never as revoked.

Sources: Kafka AbstractCoordinator, ConsumerCoordinator; KIP-429 (cooperative), KIP-345 (static members).
Not implemented: KIP-848.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streamlog.broker.purgatory import Listener, Subscription
from streamlog.broker.turn import Pending
from streamlog.client.measuring import MemberCounts
from streamlog.client.patience import COORDINATOR_MOVES
from streamlog.client.syncing import sync_after
from streamlog.config import ConsumerConfig
from streamlog.core import assignor, consumer_protocol
from streamlog.core import group_events as events
from streamlog.core.group_state import State as GroupPhase
from streamlog.errors import (
    ClosedError,
    FencedInstanceIdError,
    IllegalGenerationError,
    MemberIdRequiredError,
    RebalanceInProgressError,
    StreamlogError,
    UnknownMemberIdError,
)
from streamlog.record import TopicPartition

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster

CLIENT_ID: Final = "streamlog"


class Phase(Enum):
    """Where a member stands in the protocol.

    UNJOINED  action: send JoinGroup at the next poll.      transition: sent => JOINING
    JOINING   action: wait for the join phase to complete.  transition: reply => SYNCING, error => UNJOINED
    SYNCING   action: wait for the assignment.              transition: reply => STABLE, error => UNJOINED
    STABLE    action: read; heartbeat.                      transition: rebalance, expelled, subscription
              changed => UNJOINED
    """

    UNJOINED = "unjoined"
    JOINING = "joining"
    SYNCING = "syncing"
    STABLE = "stable"


class Membership:
    """One member of one group, driven by its consumer."""

    def __init__(
        self,
        backend: BrokerCluster,
        group_id: str,
        config: ConsumerConfig,
        listener: Listener,
        member: MemberCallbacks,
    ) -> None:
        self.group_id = group_id
        self.config = config
        self.member_id = ""
        self.generation = -1
        self.phase = Phase.UNJOINED
        # In process the member draws its id itself: so it can leave even before its first join is answered.
        self._drawn_id = ""
        self.counts = MemberCounts()
        self.last_poll_ms = backend.runtime.clock.monotonic_ms()
        self.expired = False
        # Set while the consumer waits inside `poll`: that is no silence, however long.
        self.is_waiting = False
        self._advancing = False
        self._backend = backend
        self._listener = listener
        self._member = member
        self._pending: Pending | None = None
        # The join whose answer nobody has taken up yet; who pops it asks for the assignment.
        self._unclaimed: dict[Pending, bool] = {}
        # The sync another member's thread sent for us, after which join, and the partition counts it assigned by.
        self._early_sync: tuple[Pending, Pending, dict[str, int]] | None = None
        self._protocol: str | None = None
        self._is_leader = False
        self._last_owned: list[
            TopicPartition
        ] = []  # what `sticky` tells the leader we had before giving it up
        self._assigned_counts: dict[str, int] = {}
        self._joined_topics: tuple[str, ...] = ()
        backend.ensure_offsets_topic()
        self._leaders_seen = backend.leaders_version
        self._not_before_ms = 0  # without a coordinator: when to look for one again
        self._hosted = backend.coordinator.hosted(group_id)
        self._group_subscription: Subscription = listener.subscribe(self._hosted, self)
        self.is_cooperative = all(
            assignor.ASSIGNORS[name].protocol is assignor.RebalanceProtocol.COOPERATIVE
            for name in config.partition_assignment_strategy
        )

    def __repr__(self) -> str:
        return f"Membership({self.group_id!r}, {self.member_id!r}, generation={self.generation}, {self.phase.value})"

    @property
    def heartbeat_interval_ms(self) -> int:
        return self.config.heartbeat_interval_ms

    @property
    def is_advancing(self) -> bool:
        """Whether a rebalance listener is running."""
        return self._advancing

    @property
    def is_stable(self) -> bool:
        return self.phase is Phase.STABLE

    @property
    def is_settled(self) -> bool:
        """Stable, and no partition we want is on its way from one member to another (cooperative, first round)."""
        if self.phase is not Phase.STABLE:
            return False
        if not self.is_cooperative:
            return True
        held = {
            tp
            for member in self._hosted.view.members
            if member.assignment
            for tp in consumer_protocol.decode_assignment(member.assignment).partitions
        }
        images = self._backend.topics
        counts = {topic: len(images[topic].partitions) for topic in self._joined_topics if topic in images}
        return all(
            TopicPartition(topic, number) in held
            for topic, count in counts.items()
            for number in range(count)
        )

    # -- driving -----------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Take every step that can be taken now. Runs rebalance listeners. Raises FencedInstanceIdError and the like."""
        if self._advancing:
            return  # a listener called poll or commit: the step it was called from goes on afterwards
        self._advancing = True
        try:
            self._take_steps()
        finally:
            self._advancing = False

    def _take_steps(self) -> None:
        moved = True
        while moved:
            moved = False
            while self._step():
                moved = True
            moved = moved and self._help_others()

    def _help_others(self) -> bool:
        """Send the syncs of this process's other members whose joins ours has completed. Whether there was one.

        They need not be polled for it: members that one thread polls in turn would all wait for the leader's turn.
        """
        helped = False
        for other in self._backend.heartbeats.members():
            if other is not self and isinstance(other, Membership) and other.group_id == self.group_id:
                helped = other.sync_early() or helped
        return helped

    def sync_early(self) -> bool:
        """Ask for our assignment where our join is answered; called by any thread. Whether it was asked for.

        Changes nothing of ours but notes what was sent: our own thread goes on from there, and runs the listeners.
        """
        join = self._pending
        if self.phase is not Phase.JOINING or join is None or not join.done or join.error is not None:
            return False
        try:
            if not self._unclaimed.pop(join, False):
                return False
            event, counts = sync_after(join.reply, self.config.group_instance_id, self._backend.topics)
            self._early_sync = join, self._post_event(event), counts
        except BaseException as error:
            self._unclaimed[join] = True
            if not isinstance(error, StreamlogError):
                raise
            return False  # our own thread will meet the same
        finally:
            self._listener.wake()
        return True

    def _find_coordinator(self) -> bool:
        """The coordinator moved to another broker: listen to it there. False: it is not to be found now."""
        version = self._backend.leaders_version
        try:
            hosted = self._backend.coordinator.hosted(self.group_id)
        except StreamlogError as error:
            if not error.retriable:
                raise
            self._rest()
            return False
        self._leaders_seen = version
        if hosted is not self._hosted:
            self._listener.unsubscribe(self._group_subscription)
            self._hosted = hosted
            self._group_subscription = self._listener.subscribe(hosted, self)
        return True

    def _rest(self) -> None:
        self._not_before_ms = self._backend.runtime.clock.monotonic_ms() + self.config.retry_backoff_ms

    def _step(self) -> bool:
        """One step; False when there is only waiting left."""
        if self._not_before_ms and self._not_before_ms > self._backend.runtime.clock.monotonic_ms():
            return False
        moved = self._hosted.is_gone or self._leaders_seen != self._backend.leaders_version
        if moved and not self._find_coordinator():
            return False
        if self.phase is Phase.STABLE:
            return self._notice_change()
        if self.phase is Phase.UNJOINED:
            if self.expired:
                self._lose()
                self.expired = False
            self._join()
            return True
        pending = self._pending
        if pending is None:
            self._resume()
            return True
        if not pending.done:
            return False
        self._pending = None
        if pending.error is not None:
            self._on_error(pending.error)
            return True
        if self.phase is Phase.JOINING:
            early = self._early_sync
            if early is not None and early[0] is pending:
                self._on_joined(pending.reply, early)
            elif self._unclaimed.pop(pending, False):
                self._on_joined(pending.reply)
            else:
                self._pending = pending  # another thread is at it, and wakes us
                return False
        else:
            self._on_synced(pending.reply)
        return True

    def _notice_change(self) -> bool:
        """Whether the group moves on without us, or we want it to."""
        view = self._hosted.view
        if self.expired:
            self.phase = Phase.UNJOINED
            return True
        if view.generation != self.generation or view.state not in (
            GroupPhase.STABLE,
            GroupPhase.COMPLETING_REBALANCE,
        ):
            if not any(member.member_id == self.member_id for member in view.members):
                self._lose()
            self.phase = Phase.UNJOINED
            return True
        topics = self._member.topics()
        if topics != self._joined_topics or (self._is_leader and self._counts_changed()):
            self.phase = Phase.UNJOINED
            return True
        return False

    def _counts_changed(self) -> bool:
        images = self._backend.topics
        return any(
            count != (len(images[topic].partitions) if topic in images else 0)
            for topic, count in self._assigned_counts.items()
        )

    # -- the protocol ------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        self._last_owned = self._member.owned() or self._last_owned
        if not self.is_cooperative:
            self._member.revoke(self._member.owned())
        owned = self._member.owned()
        topics = self._joined_topics = self._member.topics()
        subscription = consumer_protocol.Subscription(
            topics=topics, owned=tuple(owned), generation=self.generation, rack=self.config.client_rack
        )
        strategies = [assignor.ASSIGNORS[name] for name in self.config.partition_assignment_strategy]
        config = self.config
        if not self.member_id:
            self._drawn_id = f"{CLIENT_ID}-{self._backend.runtime.random.getrandbits(128):032x}"
        self._post(
            Phase.JOINING,
            events.JoinGroup(
                token=0,
                member_id=self.member_id,
                new_member_id=self._drawn_id,
                client_id=CLIENT_ID,
                group_instance_id=config.group_instance_id,
                session_timeout_ms=config.session_timeout_ms,
                rebalance_timeout_ms=config.max_poll_interval_ms,
                protocols=tuple(
                    (strategy.name, self._subscription_bytes(strategy, subscription))
                    for strategy in strategies
                ),
                incarnation=self._backend.incarnation,
            ),
        )

    def _subscription_bytes(
        self, strategy: assignor.Assignor, subscription: consumer_protocol.Subscription
    ) -> bytes:
        user_data = strategy.user_data(self._last_owned, self.generation)
        return consumer_protocol.encode_subscription(
            msgspec.structs.replace(subscription, user_data=user_data)
        )

    def _on_joined(
        self, reply: events.JoinGroupReply, early: tuple[Pending, Pending, dict[str, int]] | None = None
    ) -> None:
        self.member_id = reply.member_id
        self.generation = reply.generation
        self._protocol = reply.protocol
        self._is_leader = reply.leader == reply.member_id
        self._early_sync = None
        if early is None:
            event, self._assigned_counts = sync_after(
                reply, self.config.group_instance_id, self._backend.topics
            )
            self._post(Phase.SYNCING, event)
            return
        self.counts.syncs += 1
        self._assigned_counts = early[2]
        self._pending = early[1]
        self.phase = Phase.SYNCING

    def _on_synced(self, reply: events.SyncGroupReply) -> None:
        try:
            self._take_over(reply)
        except Exception:
            raise
        except BaseException:
            self.phase = Phase.UNJOINED  # interrupted: the assignment may be taken over by half
            raise

    def _take_over(self, reply: events.SyncGroupReply) -> None:
        self.phase = Phase.STABLE
        self.counts.rebalances += 1
        self.counts.last_rebalance_ms = self._backend.runtime.clock.monotonic_ms()
        target = consumer_protocol.decode_assignment(reply.assignment).partitions if reply.assignment else ()
        owned = set(self._member.owned())
        if not self.is_cooperative:
            try:
                self._member.revoke(sorted(owned))
            finally:
                self._member.assign(list(target))
            return
        revoked = sorted(owned.difference(target))
        try:
            if revoked:
                self._member.revoke(revoked)
        finally:  # whatever the user's listener raised: what we were given must be read
            if revoked:
                self.phase = Phase.UNJOINED  # KIP-429: what we gave up is handed out in a second round
            self._member.assign([tp for tp in target if tp not in owned])

    def _on_error(self, error: BaseException) -> None:
        self.phase = Phase.UNJOINED
        self.counts.failed_rebalances += 1
        if isinstance(error, MemberIdRequiredError):
            self.member_id = str(error.facts.get("member_id", ""))
        elif isinstance(error, (UnknownMemberIdError, IllegalGenerationError)):
            self._lose()
        elif isinstance(error, FencedInstanceIdError):
            self._lose()
            raise error
        elif isinstance(error, COORDINATOR_MOVES):
            self._rest()
        elif not isinstance(error, RebalanceInProgressError) and not (
            isinstance(error, StreamlogError) and error.retriable
        ):
            raise error

    def _lose(self) -> None:
        """The coordinator no longer knows us: what we owned may already be somebody else's."""
        self.member_id = ""
        self.generation = -1
        self._member.lose(self._member.owned())

    def _resume(self) -> None:
        """An interrupt came between sending a request and keeping hold of it, or while its answer was looked at.

        The group may know us by now, by the id we drew; if it does not, it says so.
        """
        self.member_id = self.member_id or self._drawn_id
        self.phase = Phase.UNJOINED

    def _post(self, phase: Phase, event: Any) -> None:
        self._pending = None
        self.phase = phase
        if phase is Phase.JOINING:
            self.counts.joins += 1
        else:
            self.counts.syncs += 1
        self._pending = pending = self._post_event(event)
        if phase is Phase.JOINING:
            self._unclaimed = {pending: True}

    def _post_event(self, event: Any) -> Pending:
        # The wake-up is a courtesy; a poll that waits also looks by itself now and then.
        return self._backend.post_group(self.group_id, event, lambda _: self._listener.wake())

    # -- beside polling ----------------------------------------------------------------------------------------------

    def heartbeat(self, now_ms: int) -> None:
        """Called by the heartbeat thread: tell the coordinator we live, or leave if nobody has polled for too long."""
        if self.phase is Phase.UNJOINED or not self.member_id or self.expired:
            return
        if self.is_waiting:
            self.last_poll_ms = now_ms
        if now_ms - self.last_poll_ms > self.config.max_poll_interval_ms:
            self.expired = True
            self.leave(wait=False)
            return
        if self.generation >= 0:
            self.counts.heartbeats += 1
            self.counts.last_heartbeat_ms = now_ms
            self._backend.post_group(
                self.group_id,
                events.Heartbeat(
                    token=0,
                    member_id=self.member_id,
                    generation=self.generation,
                    group_instance_id=self.config.group_instance_id,
                ),
            )

    def excuse(self, late_ms: int) -> None:
        """This process stood still for so long (a debugger, SIGSTOP): that is no failure to poll."""
        self.last_poll_ms += late_ms

    def leave(self, *, wait: bool) -> None:
        """Tell the coordinator we go. A static member goes silently (KIP-345): it may be back soon."""
        if not self.member_id or self.config.group_instance_id is not None:
            return
        event = events.LeaveGroup(token=0, members=(events.LeavingMember(self.member_id),))
        try:
            if wait:
                self._backend.call_group(self.group_id, event, self.config.default_api_timeout_ms)
            else:
                self._backend.post_group(self.group_id, event)
        except ClosedError:
            pass  # the cluster went first: its coordinator has forgotten us

    def close(self, *, leave: bool = True) -> None:
        if leave:
            if self.phase is not Phase.UNJOINED and not self.member_id:
                self.member_id = self._drawn_id
            self.leave(wait=True)
        self._listener.unsubscribe(self._group_subscription)
        self.member_id = ""
        self.generation = -1
        self.phase = Phase.UNJOINED


class MemberCallbacks:
    """What a membership needs of its consumer."""

    def __init__(
        self,
        topics: Callable[[], tuple[str, ...]],
        owned: Callable[[], list[TopicPartition]],
        assign: Callable[[Sequence[TopicPartition]], None],
        revoke: Callable[[Sequence[TopicPartition]], None],
        lose: Callable[[Sequence[TopicPartition]], None],
    ) -> None:
        self.topics = topics
        self.owned = owned
        self.assign = assign
        self.revoke = revoke
        self.lose = lose
