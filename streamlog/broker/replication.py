"""One broker's part in replication, inside its turns: roles, followers' fetches, the ISR, acknowledgements.

    image --Reconcile--> leader (epoch entered at the log end) | follower (of whom the image says)
    Produce acks=all --append--> parked (`broker.acknowledgements`) --followers fetch past it--> answered
    FollowerFetch --> epochs checked, progress noted, high watermark, who may join the ISR (`broker.in_sync_sets`)

What is decided here is `core.leadership`'s and `core.leader_epochs`'; this module hosts it: the overlay of a turn, the
checkpoints, the requests that wait. A partition with one replica never comes here.

Invariants:
 1. A partition leads in the epoch its broker has entered into its epoch list, durably, before it appends in it.
 2. Marks in `dirty` go only after the turn that compared them; a change meanwhile marks anew.
 3. High watermarks that moved without an append are written within `replica.high.watermark.checkpoint.interval.ms`.

Sources: Kafka Partition, ReplicaManager, DelayedProduce; SEMANTICS 3.1 to 3.4.
Not implemented: eligible leader replicas (KIP-966), replication quotas, tiered storage.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from streamlog.broker.acknowledgements import Acknowledgements
from streamlog.broker.copying import append_as_follower
from streamlog.broker.delayed_deletes import DelayedDeletes
from streamlog.broker.in_sync_sets import InSyncSets
from streamlog.broker.partition import Partition, known_epochs, load_epochs, save_epochs
from streamlog.broker.replica_requests import (
    AppendAsFollower,
    FollowerFetch,
    ForgetReplica,
    IsrRefused,
    Reconcile,
    SaveHighWatermarks,
)
from streamlog.broker.serving_followers import not_leader, serve_follower
from streamlog.broker.turn import Pending, Turn
from streamlog.broker.upkeep import MoveHighWatermarks
from streamlog.core import leadership as rules
from streamlog.core.cluster_image import NO_LEADER, TRANSACTION_STATE_TOPIC, PartitionImage
from streamlog.core.leader_epochs import UNDEFINED, EpochHistory
from streamlog.core.leadership import Leadership
from streamlog.core.replica import ReplicaState
from streamlog.errors import NotCoordinatorError, NotEnoughReplicasError, StreamlogError
from streamlog.storage import log
from streamlog.wording import plural

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.peers import Peers
    from streamlog.config import ClusterConfig

Key = tuple[str, int]

RECONCILE_PARTITIONS_MAX: Final = 512
"""Roles compared in one turn; the others follow in the next."""
ROLE_WAIT_MS: Final = 1_000


class Replication:
    """What one broker does for replication. Everything but `mark` and the queries runs inside its turns."""

    def __init__(self, broker: Broker, peers: Peers) -> None:
        self._broker = broker
        self.peers = peers
        self.in_sync_sets = InSyncSets(broker, peers, self.move_high_watermark)
        self.dirty: dict[Key, int] = {}
        self.acknowledgements = Acknowledgements(broker)
        self.deletes = DelayedDeletes(broker)
        self._unsaved: dict[Partition, None] = {}
        self._unsaved_since_ms = 0
        self.truncations = 0
        self.trace = peers.trace

    def __repr__(self) -> str:
        return f"Replication(broker {self._broker.id}, {self.acknowledgements.count} parked, {len(self.dirty)} dirty)"

    def configure(self, config: ClusterConfig) -> None:
        self.in_sync_sets.configure(config)

    @property
    def has_deadlines(self) -> bool:
        is_parked = not (self.acknowledgements.is_empty and self.deletes.is_empty)
        return bool(is_parked or self._unsaved or self.in_sync_sets.is_busy)

    def decide(self, turn: Turn, pending: Pending, request: object) -> bool:
        """Decide a request of replication; False if it is another's."""
        match request:
            case FollowerFetch():
                serve_follower(self._broker, self, turn, pending, request)
            case AppendAsFollower():
                append_as_follower(self._broker, self, turn, pending, request)
            case Reconcile():
                self.reconcile(turn, pending)
            case IsrRefused():
                if self.in_sync_sets.refused(turn, request):
                    self.take_role(turn, request.partition)
                turn.reply(pending, None)
            case MoveHighWatermarks():
                for partition in list(self._broker.partitions.values()):
                    self.move_high_watermark(turn, partition)
                turn.reply(pending, None)
            case ForgetReplica():
                turn.effects.append(lambda: self.forget(request.partition))
                turn.reply(pending, None)
            case SaveHighWatermarks():
                if self._unsaved:
                    self._save_marks(turn)
                turn.reply(pending, None)
            case _:
                return False
        return True

    def publish(self, turn: Turn) -> None:
        """Take over what a turn staged, and tell who waits for it. Re-runnable."""
        for partition, leadership in turn.leaderships.items():
            partition.leadership = leadership
        for partition, epochs in turn.epochs.items():
            partition.epochs = epochs
        for partition, state in turn.staged.items():
            partition.publish(state)
        for partition in turn.staged:
            if partition.view is not None:  # not dropped in this very turn
                self._on_published(turn, partition)
        if not self.deletes.is_empty:
            self.deletes.release(turn)

    # -- roles -------------------------------------------------------------------------------------------------------

    def mark(self, keys: list[Key], version: int) -> None:
        """The image has news of these partitions. Called by any thread; `Reconcile` follows."""
        for key in keys:
            self.dirty[key] = version

    def wait_for_role(self, partition: Partition) -> None:
        """A partition that has just come from the disk takes its role in a turn; inside of one that is the turn's own."""
        broker = self._broker
        if broker.is_runner or broker.paused:
            return
        try:
            broker.call(Reconcile(), ROLE_WAIT_MS)
        except StreamlogError:
            return  # who reads or writes is told that nobody serves it
        if partition.leadership is not None:
            # What was replicated before is so still: let the followers say it, before somebody asks for the end.
            self.peers.helping.help(lambda: None, lambda: is_readable(partition))

    def reconcile(self, turn: Turn, pending: Pending) -> None:
        """Take the roles the image gives for what is marked."""
        taken = list(islice(self.dirty.items(), RECONCILE_PARTITIONS_MAX))
        for key, _ in taken:
            partition = self._broker.partitions.get(key)
            if partition is not None:
                self.take_role(turn, partition)
        turn.effects.append(lambda: self._clean(taken))
        turn.reply(pending, None)

    def _clean(self, taken: list[tuple[Key, int]]) -> None:
        for key, version in taken:
            if self.dirty.get(key) == version:
                del self.dirty[key]
        if self.dirty:
            self._broker.slip_in(Reconcile())

    def take_role(self, turn: Turn, partition: Partition) -> None:
        """Become what the cluster image says this replica is."""
        image = self.peers.image
        topic = image.topics.get(partition.topic)
        if topic is None or topic.topic_id != partition.topic_id:
            return  # deleted: DropTopic is on its way
        of = topic.partitions[partition.number]
        if self._broker.id not in of.replicas:
            self._broker.on_coordinator_moved(turn, partition)
            turn.leaderships[partition] = None  # whoever comes later in this turn is refused
            turn.effects.append(lambda: self._broker.drop_logs([partition.log_id]))  # reassigned to others
            return
        leadership = turn.leaderships.get(partition, partition.leadership)
        if of.leader == self._broker.id:
            if leadership is None or leadership.leader_epoch < of.leader_epoch:
                self._become_leader(turn, partition, of)
            else:
                self._settle(turn, partition, leadership, of)
        elif (
            leadership is not None
            or partition.leader_id != of.leader
            or partition.role_epoch != of.leader_epoch
        ):
            self._become_follower(turn, partition, of)

    def forget(self, partition: Partition) -> None:
        """Its topic is gone, or others have it now. Called by the runner; again changes nothing."""
        partition.leadership = None
        self.acknowledgements.fail(partition, not_leader(partition, self._broker.id))
        self.in_sync_sets.forget(partition)
        self._unsaved.pop(partition, None)

    def _become_leader(self, turn: Turn, partition: Partition, of: PartitionImage) -> None:
        state: ReplicaState = turn.staged.get(partition) or partition.state
        entered = known_epochs(turn.epochs.get(partition, partition.epochs), state).entered(
            of.leader_epoch, state.log_end_offset
        )
        leadership = rules.become_leader(
            self._broker.id,
            of.leader_epoch,
            of.replicas,
            of.isr,
            of.partition_epoch,
            state.log_end_offset,
            turn.now_ms,
            self._unavailable(of),
        )
        leadership._check()
        self._broker.transaction(turn)  # first: with a full disk nothing may be staged
        self.stage_epochs(turn, partition, entered)
        turn.leaderships[partition] = leadership
        turn.staged[partition] = msgspec.structs.replace(state, leader_epoch=of.leader_epoch)
        self.move_high_watermark(turn, partition)

        def lead() -> None:
            partition.take_role(self._broker.id, of.leader_epoch, True, len(of.replicas) == 1)
            self.in_sync_sets.behind[partition] = None
            self.trace(f"broker {self._broker.id} leads {partition.name} in epoch {of.leader_epoch}")

        turn.effects.append(lead)
        if partition.topic == TRANSACTION_STATE_TOPIC:
            # Nobody may ask for what the leader before has left to do: it is looked for now.
            self._broker.after_turn(turn, lambda: self._broker.coordinator.transactions.load(partition))

    def _become_follower(self, turn: Turn, partition: Partition, of: PartitionImage) -> None:
        state: ReplicaState = turn.staged.get(partition) or partition.state
        self.stage_epochs(turn, partition, known_epochs(turn.epochs.get(partition, partition.epochs), state))
        turn.leaderships[partition] = None
        turn.staged[partition] = msgspec.structs.replace(
            state, leader_epoch=max(state.leader_epoch, of.leader_epoch)
        )

        def follow() -> None:
            was_leader = partition.leadership is not None
            partition.take_role(of.leader, of.leader_epoch, False, False)
            self.in_sync_sets.forget(partition)
            if was_leader:
                self.acknowledgements.fail(partition, not_leader(partition, self._broker.id))
            self.trace(
                f"broker {self._broker.id} follows {of.leader} in {partition.name}, epoch {of.leader_epoch}"
            )

        turn.effects.append(follow)
        key = (partition.topic, partition.number)
        self._broker.after_turn(turn, lambda: self.peers.news_for(self._broker.id, of.leader, key))
        self._broker.on_coordinator_moved(turn, partition)

    def _settle(self, turn: Turn, partition: Partition, leadership: Leadership, of: PartitionImage) -> None:
        """Still the leader: take over ISR, replicas and who is there."""
        epochs = {broker_id: known.broker_epoch for broker_id, known in self.peers.image.brokers.items()}
        settled = rules.settled(
            leadership, of.replicas, of.isr, of.partition_epoch, self._unavailable(of), turn.now_ms, epochs
        )
        if settled is leadership:
            return
        settled._check()
        turn.leaderships[partition] = settled
        if settled.replicas != leadership.replicas:  # alone until now, perhaps, or from now on
            role = (self._broker.id, partition.role_epoch, True, settled.is_alone)
            turn.effects.append(lambda: partition.take_role(*role))
        if settled.isr != leadership.isr:
            turn.effects.append(lambda: self.in_sync_sets.changed(partition, leadership.isr, settled.isr))
        self.move_high_watermark(turn, partition)
        state = turn.staged.get(partition) or partition.state
        # Who was not eligible when it last fetched may be now, and has no reason to fetch again.
        joining = [follower for follower in settled.followers if rules.may_join(settled, state, follower)]
        if joining:
            self.in_sync_sets.propose(turn, partition, settled, (*settled.isr, *joining))

    def on_loaded(self, partition: Partition, of: PartitionImage) -> None:
        """A partition comes from the disk. One that is ours alone, in the epoch we know, goes on; others take a role."""
        with self._broker.environment.snapshot() as snapshot:
            epochs = load_epochs(snapshot, partition.log_id, partition.state)
        partition.epochs = epochs
        is_ours = of.replicas == (self._broker.id,) and of.leader == self._broker.id
        if is_ours and epochs.latest_epoch in (of.leader_epoch, UNDEFINED) and of.leader_epoch == 0:
            return
        partition.take_role(NO_LEADER, -1, False, False)
        self.mark([(partition.topic, partition.number)], 0)
        self._broker.slip_in(Reconcile())

    def _unavailable(self, of: PartitionImage) -> frozenset[int]:
        image = self.peers.image
        return frozenset(broker for broker in of.replicas if not image.is_active(broker))

    # -- appending as the leader ---------------------------------------------------------------------------------------

    def check_leads(self, turn: Turn, partition: Partition, acks: int) -> Leadership | None:
        """Before a client's batch is appended. None: the partition has one replica.

        Raises   NotLeaderOrFollowerError, NotEnoughReplicasError (acks=all and fewer in sync than min.insync.replicas).
        """
        self._catch_up(turn, partition)
        if turn.is_alone(partition):
            return None
        leadership: Leadership | None = turn.leaderships.get(partition, partition.leadership)
        if leadership is None:
            self.take_role(turn, partition)
            leadership = turn.leaderships.get(partition, partition.leadership)
            if leadership is None:
                raise not_leader(partition, self._broker.id)
        if acks == -1 and rules.is_under_min_isr(leadership, partition.config.min_insync_replicas):
            raise NotEnoughReplicasError(
                f"{partition.name} has {plural(len(leadership.isr), 'replica')} in sync "
                f"({_brokers(leadership.isr)}), fewer than min.insync.replicas="
                f"{partition.config.min_insync_replicas}; with acks='all' nothing is written until more are back",
                topic=partition.topic,
                partition=partition.number,
                isr=leadership.isr,
                min_insync_replicas=partition.config.min_insync_replicas,
            )
        return leadership

    def check_coordinates(self, turn: Turn, partition: Partition) -> None:
        """Before a group, or a transactional id, is decided on. Raises NotCoordinatorError."""
        self._catch_up(turn, partition)
        if turn.is_alone(partition):
            return
        leadership = turn.leaderships.get(partition, partition.leadership)
        if leadership is None:
            self.take_role(turn, partition)
            if turn.leaderships.get(partition, partition.leadership) is None:
                raise NotCoordinatorError(
                    f"broker {self._broker.id} does not lead {partition.name}; {partition.leader_id} does",
                    leader=partition.leader_id,
                )

    def _catch_up(self, turn: Turn, partition: Partition) -> None:
        """Before a leader of yesterday writes what waited while it was silent."""
        is_behind = self.dirty and (partition.topic, partition.number) in self.dirty
        if is_behind and self.peers.hears_metadata(self._broker.id):
            self.take_role(turn, partition)

    def move_high_watermark(self, turn: Turn, partition: Partition) -> None:
        """Stage the high watermark that follows from what is staged."""
        leadership: Leadership | None = turn.leaderships.get(partition, partition.leadership)
        if leadership is None:
            return
        state: ReplicaState = turn.staged.get(partition) or partition.state
        mark = rules.high_watermark(
            leadership, state, partition.config.min_insync_replicas, turn.now_ms, self.in_sync_sets.limits
        )
        if mark > state.high_watermark:
            turn.staged[partition] = msgspec.structs.replace(state, high_watermark=mark)

    def _on_published(self, turn: Turn, partition: Partition) -> None:
        """Answer who waited for this high watermark, tell the followers who are behind."""
        leadership, state = partition.leadership, partition.state
        if leadership is not None:
            for follower, progress in leadership.followers.items():
                if progress.log_end_offset != state.log_end_offset:
                    self.in_sync_sets.behind[partition] = None
                elif progress.log_start_offset >= state.log_start_offset:
                    continue
                self.peers.news_for(follower, self._broker.id, (partition.topic, partition.number))
            self.acknowledgements.release(partition, leadership, state)
        if turn.transaction is None and partition not in self._unsaved:
            if not self._unsaved:
                self._unsaved_since_ms = turn.now_ms
            self._unsaved[partition] = None

    # -- epochs, checkpoints, deadlines ----------------------------------------------------------------------------------

    def stage_epochs(self, turn: Turn, partition: Partition, epochs: EpochHistory) -> None:
        """Write another epoch list along with this turn."""
        if epochs == turn.epochs.get(partition, partition.epochs):
            return
        epochs._check()
        transaction = self._broker.transaction(turn)  # first: with a full disk nothing may be staged
        turn.epochs[partition] = epochs
        save_epochs(transaction, partition.log_id, epochs)

    def on_tick(self, turn: Turn) -> None:
        """Do what is due: give up on acknowledgements, shrink ISRs, write high watermarks."""
        turn.effects.append(lambda: self.acknowledgements.expire(turn.now_ms))
        self.in_sync_sets.on_tick(turn)
        if self._unsaved and turn.now_ms >= self._save_deadline_ms():
            self._save_marks(turn)

    def _save_marks(self, turn: Turn) -> None:
        """Write the high watermarks that moved without an append."""
        saved = [partition for partition in self._unsaved if partition.view is not None]
        transaction = self._broker.transaction(turn)
        for partition in saved:
            log.put_checkpoint(transaction, partition.log_id, turn.staged.get(partition) or partition.state)
        turn.effects.append(self._unsaved.clear)

    def _save_deadline_ms(self) -> int:
        return self._unsaved_since_ms + self._broker.config.replica_high_watermark_checkpoint_interval_ms

    def next_deadline_ms(self, now_ms: int) -> int | None:
        """When `on_tick` has something to do."""
        deadlines = (
            self.acknowledgements.next_deadline_ms(),
            self.deletes.next_deadline_ms(),
            self.in_sync_sets.next_deadline_ms(now_ms),
            self._save_deadline_ms() if self._unsaved else None,
        )
        return min([deadline_ms for deadline_ms in deadlines if deadline_ms is not None], default=None)


def is_readable(partition: Partition) -> bool:
    """Whether the end of the log may be told to clients (SEMANTICS 3.2.4)."""
    leadership = partition.leadership
    return leadership is None or rules.is_readable(leadership, partition.state)


def _brokers(ids: tuple[int, ...]) -> str:
    return "brokers " + ", ".join(map(str, ids)) if ids else "no broker"
