"""Who reads which partition: the assignors a group's leader runs.

    two topics, t0p0 t0p1 t0p2 and t1p0 t1p1 t1p2; two members read both
      range        C0: t0p0 t0p1 t1p0 t1p1   C1: t0p2 t1p2         topic by topic, neighbours together
      roundrobin   C0: t0p0 t0p2 t1p1        C1: t0p1 t1p0 t1p2    dealt like cards
      sticky                                 as even as it can be; who has something keeps it
      cooperative-sticky                     the same, but a partition that moves is left out for one round:
                                             its owner gives it up, joins again, then somebody else gets it

How sticky works. (1) Claims: every member keeps what it had, if it still exists and is subscribed; of two
claims to one partition the newer generation counts, of two in one generation neither. (2) What nobody holds
goes, scarcest first, to the least loaded member that may have it. (3) While there is a chain of members a
-> b -> ... -> z, each holding a partition the next may have, and a holds at least two more than z, one
partition is passed along each step of the shortest such chain. When no such chain is left the loads are as
even as any assignment can make them (a cost-reducing path is the only thing an assignment can lack: Harvey,
Ladner, Lovasz, Tamir, "Semi-matchings for bipartite graphs and load balancing").

Invariants (checked by the tests against a naive model, over all small cases):
 1. Every partition of a topic with a subscriber is assigned exactly once, to a subscriber (cooperative: at
    most once, and in the next round once).
 2. cooperative-sticky never gives a member a partition it does not hold while another one claims it.
 3. sticky: no assignment has a smaller sum of squared loads; with equal subscriptions none moves fewer
    partitions.
 4. The result depends on the arguments only, not on the order of the members' dict.

Members come in the order of group.instance.id (they first), then of member id. Topics that do not exist are
ignored.

Cost of 100 members x 1,000 partitions in 10 topics: range 1, roundrobin 1, sticky 4 ms; in 1,000 topics,
one member owning all before: range 40, roundrobin 13, sticky 50 ms (tests/core/test_assignor.py bounds it).
Sources: RangeAssignor, RoundRobinAssignor, AbstractStickyAssignor, CooperativeStickyAssignor; KIP-54,
KIP-341, KIP-429.
Not implemented: rack awareness (KIP-881: racks are carried, not used).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Final

import msgspec

from streamlog.core.consumer_protocol import (
    NO_GENERATION,
    Subscription,
    decode_cooperative_user_data,
    decode_sticky_user_data,
    encode_sticky_user_data,
)
from streamlog.record import TopicPartition

Assignments = dict[str, list[TopicPartition]]
"""Member id -> its partitions, every member named."""

AssignFunction = Callable[[Mapping[str, int], Mapping[str, Subscription]], Assignments]


class RebalanceProtocol(Enum):
    EAGER = 0
    """A member gives up everything before it joins."""
    COOPERATIVE = 1
    """A member keeps what it has and gives up only what moves."""


class Assignor(msgspec.Struct, frozen=True):
    """One strategy, by Kafka's name."""

    name: str
    protocol: RebalanceProtocol
    assign: AssignFunction
    """(partitions by topic, subscriptions by member id) -> partitions by member id."""

    def user_data(self, owned: Sequence[TopicPartition], generation: int) -> bytes | None:
        """What a member of this strategy adds to its subscription."""
        if self.name == "sticky":
            return encode_sticky_user_data(owned, generation)
        return None  # cooperative-sticky: the subscription itself carries both since v2


def member_order(subscriptions: Mapping[str, Subscription]) -> list[str]:
    """Static members by their instance id, then the others by member id: restarts must not reshuffle."""

    def order(member_id: str) -> tuple[bool, str, str]:
        instance_id = subscriptions[member_id].group_instance_id
        return (instance_id is None, instance_id or "", member_id)

    return sorted(subscriptions, key=order)


def _members_by_topic(
    partitions: Mapping[str, int], subscriptions: Mapping[str, Subscription]
) -> dict[str, list[str]]:
    """The subscribers of each topic that exists; topics by name, members in their order."""
    members: dict[str, list[str]] = {}
    for member_id in member_order(subscriptions):
        for topic in dict.fromkeys(subscriptions[member_id].topics):
            if partitions.get(topic, 0) > 0:
                members.setdefault(topic, []).append(member_id)
    return {topic: members[topic] for topic in sorted(members)}


# -- range, roundrobin -------------------------------------------------------------------------------------


def assign_range(partitions: Mapping[str, int], subscriptions: Mapping[str, Subscription]) -> Assignments:
    """Each topic cut into runs of neighbours; the first members get one more where it does not come out even.

    Topics with the same partitions and subscribers are cut alike, so that joins find their partner partition.
    """
    assignments: Assignments = {member_id: [] for member_id in member_order(subscriptions)}
    for topic, members in _members_by_topic(partitions, subscriptions).items():
        quota, longer_runs = divmod(partitions[topic], len(members))
        start = 0
        for position, member_id in enumerate(members):
            end = start + quota + (position < longer_runs)
            assignments[member_id].extend([TopicPartition(topic, number) for number in range(start, end)])
            start = end
    return assignments


def assign_round_robin(
    partitions: Mapping[str, int], subscriptions: Mapping[str, Subscription]
) -> Assignments:
    """All partitions in order, dealt to the members in order, stepping over those that do not subscribe."""
    order = member_order(subscriptions)
    assignments: Assignments = {member_id: [] for member_id in order}
    position = 0
    for topic, members in _members_by_topic(partitions, subscriptions).items():
        subscribers = frozenset(members)
        for number in range(partitions[topic]):
            while order[position] not in subscribers:
                position = (position + 1) % len(order)
            assignments[order[position]].append(TopicPartition(topic, number))
            position = (position + 1) % len(order)
    return assignments


# -- sticky ------------------------------------------------------------------------------------------------


def assign_sticky(partitions: Mapping[str, int], subscriptions: Mapping[str, Subscription]) -> Assignments:
    """As balanced as possible, and of what was assigned before, as much as possible stays."""
    claims: dict[str, tuple[Sequence[TopicPartition], int]] = {}
    for member_id, subscription in subscriptions.items():
        # Eager members own nothing when they join: what they had is in the user data only.
        previous, generation = decode_sticky_user_data(subscription.user_data)
        if not previous and subscription.owned:
            previous, generation = subscription.owned, subscription.generation
        claims[member_id] = (previous, generation)
    return _StickyBalance(partitions, subscriptions, claims).run()


def assign_cooperative_sticky(
    partitions: Mapping[str, int], subscriptions: Mapping[str, Subscription]
) -> Assignments:
    """The sticky assignment without the partitions that somebody else still holds.

    Those are assigned to nobody in this round. Their owners see that they lost them, revoke them and join
    again (KIP-429); that round gives them away.
    """
    claims: dict[str, tuple[Sequence[TopicPartition], int]] = {}
    holders: dict[TopicPartition, set[str]] = {}
    for member_id, subscription in subscriptions.items():
        generation = subscription.generation
        if generation == NO_GENERATION:
            generation = decode_cooperative_user_data(subscription.user_data)
        claims[member_id] = (subscription.owned, generation)
        for partition in subscription.owned:
            holders.setdefault(partition, set()).add(member_id)
    target = _StickyBalance(partitions, subscriptions, claims).run()
    # A claim that won against an older one stays: taking it away would only make one more partition move.
    return {
        member_id: [partition for partition in assigned if member_id in holders.get(partition, {member_id})]
        for member_id, assigned in target.items()
    }


class _StickyBalance:
    """One run of the sticky algorithm (module doc). Members are numbers here, in member order."""

    def __init__(
        self,
        partitions: Mapping[str, int],
        subscriptions: Mapping[str, Subscription],
        claims: Mapping[str, tuple[Sequence[TopicPartition], int]],
    ) -> None:
        self._partitions = partitions
        self._member_ids = member_order(subscriptions)
        numbers = {member_id: number for number, member_id in enumerate(self._member_ids)}
        self._subscribers = {
            topic: [numbers[member_id] for member_id in members]
            for topic, members in _members_by_topic(partitions, subscriptions).items()
        }
        self._loads = [0] * len(self._member_ids)
        # What each member holds: topic -> partition numbers, the last assigned last (they move first:
        # nobody reads them yet).
        self._held: list[dict[str, list[int]]] = [{} for _ in self._member_ids]
        self._claims = [claims[member_id] for member_id in self._member_ids]

    def run(self) -> Assignments:
        self._assign_unclaimed(self._keep_claims())
        self._even_out()
        return {
            member_id: [
                TopicPartition(topic, number) for topic, numbers in held.items() for number in numbers
            ]
            for member_id, held in zip(self._member_ids, self._held, strict=True)
        }

    def _keep_claims(self) -> dict[TopicPartition, int]:
        """Step 1. Returns the owner of each claimed partition."""
        owners: dict[TopicPartition, int] = {}
        generations: dict[TopicPartition, int] = {}
        disputed: set[TopicPartition] = set()
        for member, (claimed, generation) in enumerate(self._claims):
            for partition in dict.fromkeys(claimed):
                known = generations.get(partition)
                if known is None or generation > known:
                    owners[partition] = member
                    generations[partition] = generation
                    disputed.discard(partition)
                elif generation == known:
                    disputed.add(partition)
        subscribers = {topic: frozenset(members) for topic, members in self._subscribers.items()}
        kept: dict[TopicPartition, int] = {}
        for partition, member in owners.items():
            topic, number = partition
            exists = topic in subscribers and 0 <= number < self._partitions[topic]
            if exists and partition not in disputed and member in subscribers[topic]:
                kept[partition] = member
                self._give(member, topic, number)
        return kept

    def _assign_unclaimed(self, kept: Mapping[TopicPartition, int]) -> None:
        """Step 2. Topics with few subscribers first: their partitions have the least choice."""
        loads = self._loads
        for topic in sorted(self._subscribers, key=lambda topic: (len(self._subscribers[topic]), topic)):
            subscribers = self._subscribers[topic]
            for number in range(self._partitions[topic]):
                if (topic, number) not in kept:
                    self._give(min(subscribers, key=loads.__getitem__), topic, number)

    def _even_out(self) -> None:
        """Step 3. The most loaded member passes on until no chain from it helps; then the next.

        `settled`: members no chain can start from or pass through any more. All that a settled member
        reaches is settled, with a load at most one less than its own, so nobody with as much or less gains
        by a chain through it.
        """
        loads = self._loads
        settled: set[int] = set()
        unsettled = list(range(len(loads)))
        while unsettled:
            source = max(unsettled, key=loads.__getitem__)  # the first of equals
            chain, reached = self._chain(source, settled)
            if chain:
                for giver, topic, taker in chain:
                    self._give(taker, topic, self._held[giver][topic].pop())
                    loads[giver] -= 1
                    if not self._held[giver][topic]:
                        del self._held[giver][topic]
            else:
                settled.update(reached)
                unsettled = [member for member in unsettled if member not in settled]

    def _chain(self, source: int, settled: set[int]) -> tuple[list[tuple[int, str, int]], Iterable[int]]:
        """The shortest chain (giver, topic, taker) to a member with two less; else all that was reached."""
        loads, load_max = self._loads, self._loads[source] - 2
        came_from: dict[int, tuple[int, str]] = {source: (source, "")}
        seen_topics: set[str] = set()
        frontier = [source]
        while frontier:
            following: list[int] = []
            for giver in frontier:
                for topic in reversed(self._held[giver]):
                    if topic in seen_topics:
                        continue
                    seen_topics.add(topic)
                    takers = [m for m in self._subscribers[topic] if m not in came_from and m not in settled]
                    for taker in takers:
                        came_from[taker] = (giver, topic)
                    following.extend(takers)
                    if takers:
                        target = min(takers, key=loads.__getitem__)
                        if loads[target] <= load_max:
                            return self._walk_back(target, came_from), ()
            frontier = following
        return [], came_from

    @staticmethod
    def _walk_back(target: int, came_from: Mapping[int, tuple[int, str]]) -> list[tuple[int, str, int]]:
        """The chain, last step first: each taker has room before it is given something."""
        chain: list[tuple[int, str, int]] = []
        taker = target
        while came_from[taker][0] != taker:
            giver, topic = came_from[taker]
            chain.append((giver, topic, taker))
            taker = giver
        return chain

    def _give(self, member: int, topic: str, number: int) -> None:
        self._held[member].setdefault(topic, []).append(number)
        self._loads[member] += 1


RANGE: Final = Assignor("range", RebalanceProtocol.EAGER, assign_range)
ROUND_ROBIN: Final = Assignor("roundrobin", RebalanceProtocol.EAGER, assign_round_robin)
STICKY: Final = Assignor("sticky", RebalanceProtocol.EAGER, assign_sticky)
COOPERATIVE_STICKY: Final = Assignor(
    "cooperative-sticky", RebalanceProtocol.COOPERATIVE, assign_cooperative_sticky
)

ASSIGNORS: Final[Mapping[str, Assignor]] = {
    assignor.name: assignor for assignor in (RANGE, ROUND_ROBIN, STICKY, COOPERATIVE_STICKY)
}
