"""Whatever is decided in whatever order: the image's invariants hold, and no committed record is lost.

The model beside the image knows which replica has which records. A leader commits a record once all of its in-sync
set has it; a broker joins the in-sync set by `alter_partition` once it has all its leader has.
"""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from streamlog.core import controller
from streamlog.core.broker_states import (
    add_broker,
    controlled_shutdown,
    elect_leaderless,
    fence,
    register,
    unfence,
)
from streamlog.core.cluster_image import (
    CONSUMER_OFFSETS_TOPIC,
    NO_LEADER,
    ClusterImage,
    MetadataRecord,
    PartitionImage,
    TopicImage,
)
from streamlog.core.elections import elect_leaders, imbalanced_partitions
from streamlog.core.isr_changes import Proposal, alter_partition
from streamlog.core.reassignment import reassign
from streamlog.errors import StreamlogError
from tests.core.clusters import take

BROKERS_MAX = 6
TOPICS = ["clean", "unclean", CONSUMER_OFFSETS_TOPIC]
brokers = st.integers(0, BROKERS_MAX - 1)
broker_sets = st.sets(brokers, min_size=1, max_size=3)
numbers = st.integers(0, 2)
topics = st.sampled_from(TOPICS)


def allows(topic: TopicImage) -> bool:
    return topic.name == "unclean"


class Decisions(RuleBasedStateMachine):
    proposals = Bundle("proposals")

    def __init__(self) -> None:
        super().__init__()
        self.image = ClusterImage()
        self.records: list[MetadataRecord] = []
        self.committed: dict[int, int] = {}  # by log id: how many records clients were promised
        self.copies: dict[int, dict[int, int]] = {}  # by log id and broker: how many of them it has
        self.lost: set[int] = set()  # log ids with an unclean election behind them
        self.topic_ids = 0

    def decide(self, records: list[MetadataRecord]) -> None:
        before = {p.log_id: (t, p) for t, _, p in self.image.partitions()}
        self.records += take(self.image, records)
        for topic, _, after in self.image.partitions():
            if after.log_id in before and after is not before[after.log_id][1]:
                self.watch(topic, before[after.log_id][1], after)

    def watch(self, topic: TopicImage, before: PartitionImage, after: PartitionImage) -> None:
        """What may happen to a partition without a leader's proposal (those are made by `propose`)."""
        grown = set(after.isr) - set(before.isr)
        if grown:
            assert allows(topic) and after.is_recovering, (before, after)
            self.lost.add(after.log_id)
        if after.leader not in (before.leader, NO_LEADER) and not grown:
            assert after.leader in before.isr, (before, after)
        gone = set(before.replicas) - set(after.replicas)
        for broker_id in gone:
            self.copies.get(after.log_id, {}).pop(broker_id, None)

    def attempt(self, decide: object, *args: object) -> None:
        try:
            result = decide(*args)  # type: ignore[operator]
        except StreamlogError:
            return
        self.decide(result if isinstance(result, list) else result.records)

    # -- brokers and topics ------------------------------------------------------------------------------------------

    @initialize(count=st.integers(1, 4))
    def begin(self, count: int) -> None:
        for broker_id in range(count):
            self.decide(register(self.image, broker_id, "first"))
        self.decide(unfence(self.image, range(count)))
        for name in TOPICS:
            self.create(name, 3, min(count, 3))

    @rule()
    def add(self) -> None:
        if len(self.image.brokers) < BROKERS_MAX:
            self.decide(add_broker(self.image, "added"))

    @rule(broker_id=brokers)
    def restart(self, broker_id: int) -> None:
        if broker_id in self.image.brokers:
            self.decide(register(self.image, broker_id, "again", allows))

    @rule(broker_ids=broker_sets)
    def fence(self, broker_ids: set[int]) -> None:
        self.attempt(fence, self.image, broker_ids, allows)

    @rule(broker_ids=broker_sets)
    def unfence(self, broker_ids: set[int]) -> None:
        self.attempt(unfence, self.image, broker_ids, allows)

    @rule()
    def unfence_all(self) -> None:
        self.decide(unfence(self.image, self.image.brokers, allows))

    @rule(broker_id=brokers)
    def shut_down(self, broker_id: int) -> None:
        if broker_id not in self.image.brokers:
            return
        shutdown = controlled_shutdown(self.image, broker_id, allows)
        self.decide(shutdown.records)
        assert shutdown.remaining == [
            (topic.name, number) for topic, number, p in self.image.partitions() if p.isr == (broker_id,)
        ]

    @rule(name=topics, partitions=numbers, factor=st.integers(1, 3))
    def create(self, name: str, partitions: int, factor: int) -> None:
        self.topic_ids += 1
        try:
            created = controller.decide_create_topic(
                self.image, name, f"id-{self.topic_ids}", partitions, factor, {}
            )
        except StreamlogError:
            return
        self.decide([created])

    @rule(name=topics)
    def delete(self, name: str) -> None:
        if name in self.image.topics and name != CONSUMER_OFFSETS_TOPIC:
            self.decide([controller.decide_delete_topic(self.image, name)])

    @rule(name=topics)
    def grow(self, name: str) -> None:
        if name in self.image.topics and len(self.image.topics[name].partitions) < 4:
            self.attempt(lambda: [controller.decide_add_partitions(self.image, name, 4)])

    # -- leaders -----------------------------------------------------------------------------------------------------

    @rule(election=st.sampled_from(["preferred", "unclean"]))
    def elect(self, election: str) -> None:
        if election == "preferred":
            self.decide(elect_leaders(self.image, None, election).records)
        else:
            wanted = [("unclean", number) for number in range(4)]
            self.decide(elect_leaders(self.image, wanted, election).records)

    @rule()
    def rebalance(self) -> None:
        wanted = imbalanced_partitions(self.image, 10)
        outcome = elect_leaders(self.image, wanted, "preferred")
        assert not outcome.errors
        self.decide(outcome.records)
        assert imbalanced_partitions(self.image, 10) == []

    @rule()
    def elect_leaderless(self) -> None:
        self.decide(elect_leaderless(self.image, allows))

    @rule(name=topics, number=numbers, to=st.none() | st.lists(brokers, unique=True, max_size=3))
    def reassign(self, name: str, number: int, to: list[int] | None) -> None:
        if name in self.image.topics:
            self.decide(reassign(self.image, name, {number: to}, allows).records)

    # -- replicas ----------------------------------------------------------------------------------------------------

    @rule(name=topics, number=numbers)
    def commit(self, name: str, number: int) -> None:
        """A record reaches all in-sync replicas, and its producer is told."""
        try:
            p = self.image.partition(name, number)
        except StreamlogError:
            return
        if p.leader != NO_LEADER:
            self.committed[p.log_id] = self.committed.get(p.log_id, 0) + 1
            for broker_id in p.isr:
                self.copies.setdefault(p.log_id, {})[broker_id] = self.committed[p.log_id]

    @rule(target=proposals, name=topics, number=numbers, joins=brokers, leaves=st.none() | brokers)
    def prepare(self, name: str, number: int, joins: int, leaves: int | None) -> Proposal | None:
        """A leader makes up its mind; until `propose` the world may have changed."""
        try:
            p = self.image.partition(name, number)
        except StreamlogError:
            return None
        if p.leader == NO_LEADER:
            return None
        isr = tuple(b for b in p.isr if b != leaves or b == p.leader)
        if joins not in isr:
            isr = (*isr, joins)
        return Proposal(
            p.leader,
            self.image.brokers[p.leader].broker_epoch,
            self.image.topics[name].topic_id,
            number,
            p.leader_epoch,
            p.partition_epoch,
            isr,
            broker_epochs={b: self.image.brokers[b].broker_epoch for b in isr if b in self.image.brokers},
        )

    @rule(proposal=consumes(proposals))
    def propose(self, proposal: Proposal | None) -> None:
        if proposal is None:
            return
        try:
            alteration = alter_partition(self.image, proposal, allows)
        except StreamlogError:
            return
        # Accepted: nothing happened since it was prepared, so the joining broker has caught up by now.
        name = self.image.topic_names[proposal.topic_id]
        before = self.image.partition(name, proposal.number)
        copies = self.copies.setdefault(before.log_id, {})
        for broker_id in set(proposal.isr) - set(before.isr):
            copies[broker_id] = copies.get(proposal.broker_id, 0)
        self.records += take(self.image, alteration.records)
        after = self.image.partition(name, proposal.number)
        assert alteration.partition == after
        assert set(after.isr) <= set(proposal.isr)
        assert (alteration.error is None) == (after.leader == proposal.broker_id)
        for broker_id in set(before.replicas) - set(after.replicas):
            copies.pop(broker_id, None)

    # -- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def nothing_committed_is_lost(self) -> None:
        for topic, number, p in self.image.partitions():
            if p.log_id not in self.lost and self.committed.get(p.log_id):
                for broker_id in p.isr:
                    copies = self.copies[p.log_id].get(broker_id, 0)
                    assert copies == self.committed[p.log_id], (topic.name, number, p)

    def teardown(self) -> None:
        replayed, restored = ClusterImage(), ClusterImage()
        for record in self.records:
            replayed.apply(record)
        restored.apply(
            msgspec.msgpack.decode(msgspec.msgpack.encode(self.image.checkpoint()), type=MetadataRecord)  # type: ignore[arg-type]
        )
        assert replayed.checkpoint() == self.image.checkpoint() == restored.checkpoint()


TestDecisions = Decisions.TestCase
TestDecisions.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
