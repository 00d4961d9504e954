"""Which partitions a consumer reads: given to it by `assign`, or shared out by its group after `subscribe`.

The middle layer of a consumer, see `positions`.

Invariant: assigning and subscribing exclude each other until `unsubscribe`.

Source: Kafka SubscriptionState, ConsumerCoordinator (onJoinPrepare, onJoinComplete, onLeavePrepare).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from re import Pattern
from typing import TYPE_CHECKING, TypeAlias

from streamlog.broker.replica_selection import nearest_replica
from streamlog.client.commits import Commits
from streamlog.client.fetching import UNKNOWN_OFFSET, AssignedPartition
from streamlog.client.habits import unknown_argument
from streamlog.client.measuring import ConsumerTraffic
from streamlog.client.offsets import Partitions, checked_partitions
from streamlog.client.patience import UNSERVED
from streamlog.client.positions import ConsumerPositions
from streamlog.config import ConsumerConfig
from streamlog.core.controller import validate_topic_name
from streamlog.errors import (
    ConfigError,
    IllegalStateError,
    InvalidGroupIdError,
    InvalidTopicError,
    LeaderNotAvailableError,
    NetworkError,
    NotLeaderOrFollowerError,
    StreamlogError,
    UnknownTopicOrPartitionError,
)
from streamlog.record import TopicPartition

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from streamlog.broker.cluster import BrokerCluster
    from streamlog.broker.partition import Partition
    from streamlog.client.habits import NoOthers
    from streamlog.client.membership import Membership

Listener = Callable[[list[TopicPartition]], object]
Topics: TypeAlias = "str | Iterable[str] | Pattern[str]"


def checked_topics(topics: Topics) -> tuple[str, ...] | Pattern[str]:
    """What to subscribe to: names, each a valid one, or a compiled pattern. Raises ConfigError,
    InvalidTopicError.
    """
    if isinstance(topics, Pattern):
        if isinstance(topics.pattern, str):
            return topics
        raise _no_topics(topics)
    if isinstance(topics, str):
        topics = (topics,)
    if isinstance(topics, (bytes, Mapping)) or not isinstance(topics, Iterable):
        raise _no_topics(topics)
    names = tuple(topics)
    for name in names:
        if isinstance(name, str) and name.startswith("^"):
            raise InvalidTopicError(
                f"{name!r} looks like a regular expression; did you mean re.compile({name[1:]!r})?",
                topic=name,
                suggestion=f"re.compile({name[1:]!r})",
            )
        validate_topic_name(name)
    return names


def _warn_of_missing(names: list[str]) -> None:
    """Kafka's UNKNOWN_TOPIC_OR_PARTITION warning: a topic may come later, or the name is misspelt."""
    if names:
        import logging

        logging.getLogger("streamlog.consumer").warning(
            "subscribed to %s, which %s not exist; records come once somebody creates %s",
            ", ".join(map(repr, names)),
            "does" if len(names) == 1 else "do",
            "it" if len(names) == 1 else "them",
        )


def _no_topics(topics: object) -> ConfigError:
    return ConfigError(
        f"topics={topics!r:.80}: allowed: a topic name, several, or a compiled regular expression over str",
        option="topics",
        value=topics,
        allowed="topic names or a compiled pattern",
    )


class ConsumerAssignment(ConsumerPositions):
    """What a consumer reads, by its own choice or its group's."""

    def __init__(self, backend: BrokerCluster, config: ConsumerConfig) -> None:
        super().__init__(backend, config)
        self._commits = Commits(backend, config, self._assigned)
        self._membership: Membership | None = None
        self._subscribed: tuple[str, ...] = ()
        self._pattern: Pattern[str] | None = None
        self._manual = False
        self._ever_assigned = False
        # Where `stop_at_end` stops: each partition's end when it first came to us, whatever rebalances
        # follow.
        self._unled: dict[AssignedPartition, None] = {}  # partitions nobody leads at the moment
        self._leaders_seen = backend.leaders_version
        self._rack = config.client_rack if backend.config.replica_selector_class is not None else None
        self._first_ends: dict[TopicPartition, int] = {}
        # Which partitions may have decoded records, and which were not at their end when last looked at: with
        # thousands of partitions, looking at all of them for each record would take longer than reading.
        self._filled: dict[AssignedPartition, None] = {}
        self._unfinished: list[AssignedPartition] = []
        self._matched: tuple[int, tuple[str, ...]] = (-1, ())
        self._on_assigned: Listener | None = None
        self._on_revoked: Listener | None = None
        self._on_lost: Listener | None = None
        self._traffic = ConsumerTraffic(backend.metrics, self, backend.runtime.clock.monotonic_ms())
        self._commits.counts = self._traffic.member

    def assign(self, partitions: Partitions) -> None:
        """Read exactly these partitions, or this one, without a group's help. Replaces the former assignment.

        Raises   UnknownTopicOrPartitionError; IllegalStateError after `subscribe`.
        """
        self._check_open()
        if self._subscribed or self._pattern is not None:
            raise IllegalStateError(
                "this consumer is subscribed; assign() and subscribe() exclude each other, unsubscribe() "
                "first"
            )
        wanted = checked_partitions(partitions)
        for tp in wanted:
            self._backend.topic_for_client(tp.topic)
            try:
                self._backend.partition(tp.topic, tp.partition)
            except (LeaderNotAvailableError, NetworkError):
                pass  # it exists; it is read as soon as somebody leads it
        self._commits.maybe_auto_commit(force=True)
        self._manual = bool(wanted)
        for tp in [tp for tp in self._assigned if tp not in wanted]:
            self._drop(tp)
            self._first_ends.pop(tp, None)
        for tp in wanted:
            if tp not in self._assigned:
                self._take_up(tp)
        self._ever_assigned = True

    def subscribe(
        self,
        topics: Topics,
        *,
        on_assigned: Listener | None = None,
        on_revoked: Listener | None = None,
        on_lost: Listener | None = None,
        **others: Unpack[NoOthers],
    ) -> None:
        """Share the partitions of these topics with the other members of the group.

        topics:  names, or a compiled regular expression that topics must match from their start; new topics
        that
                 match are followed.
        on_...:  rebalance listeners; called inside `poll` with a list of TopicPartition.
        Raises   InvalidGroupIdError without a group; IllegalStateError after `assign`.
        """
        if others:
            raise unknown_argument(self.subscribe, others)
        self._check_open()
        if self.config.group_id is None:
            raise InvalidGroupIdError(
                "subscribe() needs a group: cluster.consumer_group(name, topics).consumer(), or assign() "
                "instead"
            )
        if self._manual:
            raise IllegalStateError(
                "this consumer has assigned partitions; assign() and subscribe() exclude each other"
            )
        wanted = checked_topics(topics)
        if isinstance(wanted, tuple):
            if not wanted:
                raise _no_topics(topics)
            if self._backend.config.auto_create_topics:
                for name in wanted:
                    self._backend.topic_for_client(name)
            else:
                _warn_of_missing([name for name in wanted if name not in self._backend.topics])
            self._pattern, self._subscribed = None, tuple(sorted(set(wanted)))
        else:
            self._pattern, self._subscribed = wanted, ()
            self._matched = (-1, ())
        self._on_assigned, self._on_revoked, self._on_lost = on_assigned, on_revoked, on_lost
        if self._membership is None:
            from streamlog.client.membership import MemberCallbacks, Membership

            callbacks = MemberCallbacks(
                self._topics_wanted,
                lambda: list(self._assigned),
                self._assign_members,
                self._revoke_members,
                self._lose_members,
            )
            self._membership = Membership(
                self._backend, self.config.group_id, self.config, self._listener, callbacks
            )
            self._membership.counts = self._traffic.member
            self._commits.membership = self._membership
            self._backend.heartbeats.add(self._membership)
        self._listener.wake()

    def unsubscribe(self) -> None:
        """Leave the group, or drop the assignment. Calls `on_revoked` with what the group had given."""
        self._check_open()
        self._commits.maybe_auto_commit(force=True)
        try:
            self._leave_group()
        finally:
            for tp in list(self._assigned):
                self._drop(tp)
            self._subscribed, self._pattern, self._manual = (), None, False
            self._ever_assigned = False
            self._first_ends.clear()

    @property
    def subscription(self) -> frozenset[str]:
        """The topics this consumer is subscribed to."""
        return frozenset(self._topics_wanted())

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions this consumer reads now."""
        return frozenset(self._assigned)

    def _topics_wanted(self) -> tuple[str, ...]:
        if self._pattern is None:
            return self._subscribed
        # Asked at every poll: looked up again only when the cluster's topics have changed.
        version = self._backend.metadata.state.log_end_offset
        if self._matched[0] != version:
            match = self._pattern.match
            images = list(self._backend.topics.values())
            self._matched = version, tuple(sorted(t.name for t in images if not t.internal and match(t.name)))
        return self._matched[1]

    # -- the group's orders ----------------------------------------------------------------------------------

    def _assign_members(self, partitions: Sequence[TopicPartition]) -> None:
        for tp in partitions:
            if tp not in self._assigned:
                try:
                    self._take_up(tp)
                except UnknownTopicOrPartitionError:
                    continue  # deleted, or made anew with fewer partitions: the next rebalance leaves it out
        self._ever_assigned = True
        if self._on_assigned is not None:
            self._on_assigned(list(partitions))

    def _revoke_members(self, partitions: Sequence[TopicPartition]) -> None:
        if not partitions:
            return
        try:
            self._commits.maybe_auto_commit(force=True, leaving=True)
            if self._on_revoked is not None:
                self._on_revoked(list(partitions))
        finally:
            for tp in partitions:
                self._drop(tp)

    def _lose_members(self, partitions: Sequence[TopicPartition]) -> None:
        if not partitions:
            return
        listener = self._on_lost or self._on_revoked
        try:
            if listener is not None:
                listener(list(partitions))
        finally:
            for tp in partitions:
                self._drop(tp)

    def _take_up(self, tp: TopicPartition) -> None:
        try:
            partition = self._backend.partition(tp.topic, tp.partition)
        except (LeaderNotAvailableError, NetworkError):
            partition = self._backend.any_replica(tp.topic, tp.partition)  # read as soon as somebody leads
        assigned = AssignedPartition(tp, partition)
        assigned.traffic = self._traffic
        assigned.subscription = self._listener.subscribe(assigned.partition, assigned)
        self._assigned[tp] = assigned
        if self.config.stop_at_end:
            end_offset = self._first_ends.get(tp)
            if end_offset is None:
                try:
                    end_offset = self._first_ends[tp] = self._offsets.end_offset(assigned.partition)
                except UNSERVED:
                    pass  # the end it has when somebody leads, see `at_end`
            assigned.end_offset = end_offset

    def _drop(self, tp: TopicPartition) -> None:
        assigned = self._assigned.pop(tp, None)
        if assigned is not None and assigned.has_uncommitted:
            self._commits.lost.add(tp)
        if assigned is not None and assigned.subscription is not None:
            self._listener.unsubscribe(assigned.subscription)
            assigned.subscription = None
            # Whoever iterates over the buffer must not hand out more of what is no longer ours.
            assigned.buffer, assigned.next_index = [], 0
            self._filled.pop(assigned, None)
            self._unled.pop(assigned, None)  # else it would be read from as soon as somebody leads it

    # -- where it stands -------------------------------------------------------------------------------------

    def _next_buffered(self) -> AssignedPartition | None:
        """A partition with decoded records to hand out."""
        filled = self._filled
        for assigned in tuple(filled):
            if assigned.next_index >= len(assigned.buffer):
                filled.pop(assigned, None)
            elif not assigned.paused:
                return assigned
        return None

    def _all_at_end(self) -> bool:
        """Whether every partition was read up to its end offset (`stop_at_end`)."""
        unfinished = self._unfinished
        while unfinished:
            assigned = unfinished[-1]
            if self._assigned.get(assigned.tp) is assigned and not self._is_at_end(assigned):
                return False
            unfinished.pop()
        # Each was at its end once. A seek or a new assignment may have changed that.
        unfinished += [assigned for assigned in self._assigned.values() if not self._is_at_end(assigned)]
        return not unfinished

    def _is_at_end(self, assigned: AssignedPartition) -> bool:
        try:
            if assigned.end_offset is None:
                assigned.end_offset = self._offsets.end_offset(assigned.partition)
            if assigned.position == UNKNOWN_OFFSET and not self._offsets.resolve(assigned):
                return True  # by_duration: nothing that is there is young enough
        except UNSERVED:
            return False  # nobody leads it at the moment
        return assigned.paused or assigned.position >= assigned.end_offset

    def _on_unserved(self, assigned: AssignedPartition, error: StreamlogError) -> None:
        """Another broker leads now, or none; the topic was deleted (perhaps made anew); the cluster closes."""
        self._check_open()
        self._backend.check_usable()
        tp = assigned.tp
        if self._assigned.get(tp) is not assigned:
            return
        try:
            fresh = self._backend.partition(tp.topic, tp.partition)
        except UnknownTopicOrPartitionError:
            if self._manual:
                if assigned.subscription is not None:
                    self._listener.mark(assigned.subscription)  # the next poll says so again
                raise
            return  # the group will take it away from us
        except UNSERVED:
            self._unled[assigned] = None
            return
        if fresh.topic_id != assigned.partition.topic_id:
            self._drop(tp)
            self._take_up(tp)
        elif fresh is not assigned.partition:
            self._follow(assigned, fresh)
        elif not isinstance(error, NotLeaderOrFollowerError) or not fresh.serves:
            self._unled[assigned] = None

    def _look_for_leaders(self) -> None:
        """Look again at what nobody led, and whether what we read from still leads: a broker that is silent, or cut
        off, does not say so itself.
        """
        version = self._backend.leaders_version
        if version != self._leaders_seen:
            if self._rack is not None:
                for assigned in self._assigned.values():
                    assigned.is_chosen = False
                    if assigned.subscription is not None:
                        self._listener.mark(assigned.subscription)
            for assigned in self._assigned.values():
                home = assigned.partition.home
                image = self._backend.topics.get(assigned.tp.topic)
                if home is None or image is None or assigned.tp.partition >= len(image.partitions):
                    continue
                if image.partitions[assigned.tp.partition].leader != home.id:
                    self._unled[assigned] = None
            for assigned in list(self._unled):
                self._on_unserved(assigned, NotLeaderOrFollowerError("another leads"))
            self._leaders_seen = version  # not before: who was told of a truncation is told again
        unled, self._unled = self._unled, {}
        for assigned in unled:
            if assigned.subscription is not None and self._assigned.get(assigned.tp) is assigned:
                self._listener.mark(assigned.subscription)

    def _follow(self, assigned: AssignedPartition, partition: Partition) -> None:
        """Read on at another leader, from where we stand."""
        truncated_to = assigned.parts_at(partition)
        if truncated_to is not None:
            # If this raises nothing has moved, and it is told again until there is a seek.
            self._offsets.on_truncated(assigned, truncated_to)
        assigned.partition = partition
        assigned.is_chosen = False
        self._read_from(assigned, partition)

    def _choose_replica(self, assigned: AssignedPartition) -> bool:
        """Look for the replica nearest to us. Whether we read elsewhere now. Source: KIP-392."""
        assert self._rack is not None
        assigned.is_chosen = True
        nearest = nearest_replica(self._backend, assigned.partition, self._rack, assigned.fetch_offset)
        if nearest is assigned.replica:
            return False
        self._read_from(assigned, nearest)
        return True

    def _read_from(self, assigned: AssignedPartition, replica: Partition) -> None:
        """Read on at another replica of the same log, from where we stand."""
        if assigned.subscription is not None:
            self._listener.unsubscribe(assigned.subscription)
        assigned.replica = replica
        assigned.subscription = self._listener.subscribe(replica, assigned)

    def _leave_group(self) -> None:
        membership = self._membership
        if membership is None:
            return
        try:
            self._backend.heartbeats.remove(membership)
            owned = list(self._assigned)
            if owned:
                # Kafka's onLeavePrepare: revoked while the group still knows us, lost if it does not.
                listener = (
                    self._on_revoked if membership.generation >= 0 else self._on_lost or self._on_revoked
                )
                if listener is not None:
                    listener(owned)
        finally:
            try:
                membership.close()
            except StreamlogError:
                raise
            except BaseException:
                membership.close()  # interrupted: the others must not have to wait for our session to end
                raise
            finally:
                self._membership = None
                self._commits.membership = None
