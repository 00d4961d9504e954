"""The laws of a machine, held by the group over random histories; and what the scripts do not show."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from streamlog.core import group_events as events
from streamlog.core.consumer_protocol import Subscription, encode_subscription
from streamlog.core.group import GroupMachine
from streamlog.core.group_draft import GroupChanged
from streamlog.core.group_records import encode_group_key, encode_offset_key
from streamlog.core.group_state import GroupLimits, State
from streamlog.core.machine import Decision
from streamlog.errors import CorruptRecordError, MemberIdRequiredError, StreamlogError
from streamlog.record import OffsetAndMetadata, TopicPartition

LIMITS = GroupLimits(session_timeout_min_ms=1, members_max=4)
PARTITIONS = [TopicPartition(topic, number) for topic in ("a", "b") for number in range(2)]


def dump(machine: GroupMachine) -> str:
    return f"{machine._group} {machine.all_committed()}"


def new_machine(limits: GroupLimits = LIMITS, incarnation: str = "x", group_id: str = "g") -> GroupMachine:
    made = iter(range(1, 10**6))
    return GroupMachine(group_id, limits, incarnation, lambda prefix: f"{prefix}-{next(made)}")


class History:
    """A random history of one group: members that know little, a log, and every law looked at after every
    step."""

    def __init__(self, seed: int, delay_ms: int) -> None:
        self.random = random.Random(seed)
        self.now_ms = 0
        self.ids = 0
        self.token = 0
        self.incarnation = "0"
        self.limits = msgspec.structs.replace(LIMITS, initial_rebalance_delay_ms=delay_ms)
        self.machine = self._machine()
        self.log: dict[bytes, bytes | None] = {}
        self.parked: set[int] = set()
        self.known: list[tuple[str, int, str | None]] = [("", -1, None)]  # (member id, generation, instance)
        self.seen_states: set[State] = set()

    def _machine(self) -> GroupMachine:
        return GroupMachine("g", self.limits, self.incarnation, self._new_id)

    def _new_id(self, prefix: str) -> str:
        return f"{prefix}-{self.ids}"

    def step(self) -> None:
        chance = self.random.random()
        if chance < 0.04:
            self.restart()
        elif chance < 0.2:
            self.now_ms += self.random.choice([1, 5, 20, 100])
            self.decide(None)
        else:
            self.token += 1
            self.ids += 1
            event = self.event()
            self.decide(event)
            if self.random.random() < 0.2:
                self.decide(event)  # handed in again

    def event(self) -> events.GroupEvent:
        source = self.random
        member_id, generation, instance = source.choice(self.known[-6:])
        generation += source.random() < 0.05
        kind = source.randrange(20)
        if kind < 7:
            topics = source.choice([("a",), ("a", "b")])
            metadata = encode_subscription(Subscription(topics))
            names = source.choice([["range"], ["range", "sticky"], ["sticky", "range"], ["sticky"]])
            return events.JoinGroup(
                token=self.token,
                member_id=member_id if source.random() < 0.7 else "",
                client_id="c",
                group_instance_id=instance if source.random() < 0.8 else source.choice([None, "i1", "i2"]),
                session_timeout_ms=source.choice([10, 50]),
                rebalance_timeout_ms=source.choice([20, 80]),
                protocols=tuple((name, metadata) for name in names),
                require_known_member_id=source.random() < 0.3,
                supports_skip_assignment=source.random() < 0.5,
                incarnation=source.choice(["", self.incarnation]),
            )
        if kind < 12:
            assigned = tuple(
                (m.member_id, b"for " + m.member_id.encode()) for m in self.machine.view().members
            )
            return events.SyncGroup(
                token=self.token,
                member_id=member_id,
                generation=generation,
                group_instance_id=instance,
                assignments=assigned,
            )
        if kind < 14:
            return events.Heartbeat(token=self.token, member_id=member_id, generation=generation)
        if kind < 15:
            return events.LeaveGroup(token=self.token, members=(events.LeavingMember(member_id, instance),))
        if kind < 17:
            offsets = {p: OffsetAndMetadata(source.randrange(100)) for p in source.sample(PARTITIONS, 2)}
            return events.OffsetCommit(
                token=self.token, member_id=member_id, generation=generation, offsets=offsets
            )
        return source.choice(
            [
                events.OffsetDelete(token=self.token, partitions=tuple(PARTITIONS[:2])),
                events.ExpireOffsets(),
                events.TopicsDeleted(("b",)),
                events.ExtendDeadlines(3),
                events.Heartbeat(token=self.token, member_id=member_id, generation=generation),
            ]
        )

    def decide(self, event: events.GroupEvent | None) -> None:
        machine, before = self.machine, dump(self.machine)

        def once() -> Decision[GroupChanged]:
            return machine.on_deadline(self.now_ms) if event is None else machine.handle(event, self.now_ms)

        decision = once()
        assert repr(once()) == repr(decision), "law 5: decided twice, two decisions"
        assert dump(machine) == before, "law 1: handle changed the machine"
        generation = machine.view().generation
        self.take(decision, event)
        assert machine.view().generation >= generation
        self.check_log()
        if event is None:
            deadline_ms = machine.next_deadline_ms()
            assert deadline_ms is None or deadline_ms > self.now_ms, "what was due is still due"

    def take(self, decision: Decision[GroupChanged], event: events.GroupEvent | None) -> None:
        fork = self.machine.fork()
        fork.apply(decision.records, decision.changes)
        for key, value in decision.records:
            self.log[key] = value
        self.machine.apply(decision.records, decision.changes)
        after = dump(self.machine)
        self.machine.apply(decision.records, decision.changes)
        assert dump(self.machine) == after == dump(fork), "law 2: apply is not re-runnable, or a fork differs"
        self.seen_states.add(self.machine.state)
        token = getattr(event, "token", None)
        if token is not None:
            self.parked.add(token)
        for answered, reply in decision.replies:
            assert answered in self.parked, f"{answered} answered twice, or never asked"
            self.parked.remove(answered)
            match reply:
                case events.JoinGroupReply(generation=generation, member_id=member_id):
                    member = self.machine._group.members.get(member_id)
                    self.known.append((member_id, generation, member and member.group_instance_id))
                case MemberIdRequiredError(member_id=member_id):
                    self.known.append((member_id, -1, None))
                case StreamlogError():
                    pass
        members = self.machine._group.members.values()
        waiting = {m.join_token for m in members if m.is_joining} | {m.sync_token for m in members} - {None}
        assert self.parked == waiting, "a request is parked by nobody, or an answered one still waits"

    def check_log(self) -> None:
        replayed = self._machine()
        for key, value in self.log.items():
            replayed.replay(key, value, 0)
        assert replayed.all_committed() == self.machine.all_committed(), "law 3"
        if self.machine.state in (State.STABLE, State.EMPTY) and self.machine._group.is_stored:
            assert replayed._group.to_stored() == self.machine._group.to_stored(), "law 3"

    def restart(self) -> None:
        """The coordinator fails over, or the process dies: parked requests are lost with their callers."""
        if self.random.random() < 0.5:
            self.incarnation += "'"
        self.parked.clear()
        self.machine = self._machine()
        for key, value in self.log.items():
            self.machine.replay(key, value, self.now_ms)
        self.take(self.machine.finish_loading(self.now_ms), None)
        incarnations = {m.incarnation for m in self.machine._group.members.values()}
        assert incarnations <= {"", self.incarnation}, "members of another opening live"

    def silence(self) -> None:
        """Nobody says anything any more: everything ends."""
        for _ in range(10_000):
            deadline_ms = self.machine.next_deadline_ms()
            if deadline_ms is None:
                break
            self.now_ms = deadline_ms
            self.decide(None)
        assert self.machine.view().members == ()
        assert not self.parked, f"{self.parked} wait for ever"


@pytest.mark.parametrize("delay_ms", [0, 15])
@pytest.mark.parametrize("block", range(4))
def test_laws_over_random_histories(block: int, delay_ms: int) -> None:
    seen: set[State] = set()
    for seed in range(block * 15, block * 15 + 15):
        history = History(seed, delay_ms)
        for _ in range(120):
            history.step()
        seen |= history.seen_states
        history.silence()
    assert seen >= set(State) - {State.DEAD}, "the histories are too tame"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1400))
def test_laws_over_long_histories(seed: int) -> None:
    history = History(seed, seed % 2 * 15)
    for _ in range(600):
        history.step()
    history.silence()


def join(token: int, **fields: Any) -> events.JoinGroup:
    protocols = (("range", encode_subscription(Subscription(("a",)))),)
    return events.JoinGroup(token=token, client_id="c", protocols=protocols, **fields)


def post(machine: GroupMachine, event: events.GroupEvent, now_ms: int = 0) -> list[tuple[int, object]]:
    decision = machine.handle(event, now_ms)
    machine.apply(decision.records, decision.changes)
    return decision.replies


def test_two_events_of_one_turn_see_each_other_through_a_fork() -> None:
    machine = new_machine()
    fork = machine.fork()
    decisions = []
    for event in (
        join(1),
        events.SyncGroup(token=2, member_id="c-1", generation=1, assignments=(("c-1", b"all"),)),
        events.OffsetCommit(
            token=3, member_id="c-1", generation=1, offsets={PARTITIONS[0]: OffsetAndMetadata(5)}
        ),
    ):
        decision = fork.handle(event, 0)
        fork.apply(decision.records, decision.changes)
        decisions.append(decision)
    assert [token for decision in decisions for token, _ in decision.replies] == [1, 2, 3]
    assert machine.is_vacant
    for _ in range(2):  # cut short and applied again from the start
        for decision in decisions:
            machine.apply(decision.records, decision.changes)
    assert dump(machine) == dump(fork)
    assert machine.committed("a", 0) == OffsetAndMetadata(5)


def test_a_decision_made_from_an_older_state_is_a_bug() -> None:
    machine = new_machine()
    first, fork = machine.handle(join(1), 0), machine.fork()
    fork.apply(first.records, first.changes)
    second = fork.handle(join(2), 0)
    with pytest.raises(AssertionError, match="decision for 1, the group is at 0"):
        machine.apply(second.records, second.changes)


def test_the_view_is_immutable_and_follows_the_state() -> None:
    machine = new_machine()
    empty = machine.view()
    assert machine.view() is empty
    post(machine, join(1, group_instance_id="i", client_host="/h"))
    assert (empty.state, empty.members) == (State.EMPTY, ())
    view = machine.view()
    assert (view.state, view.generation, view.leader, view.protocol) == (
        State.COMPLETING_REBALANCE,
        1,
        "i-1",
        "range",
    )
    member = view.members[0]
    assert (member.member_id, member.client_id, member.group_instance_id, member.client_host) == (
        "i-1",
        "c",
        "i",
        "/h",
    )
    with pytest.raises(AttributeError):
        view.state = State.DEAD  # type: ignore[misc]


def test_committed_offsets_carry_metadata_and_epoch() -> None:
    machine = new_machine()
    committed = OffsetAndMetadata(7, "why", 3)
    post(machine, events.OffsetCommit(token=1, offsets={PARTITIONS[3]: committed, PARTITIONS[0]: committed}))
    assert machine.committed("b", 1) == committed
    assert machine.committed("b", 0) is None
    assert list(machine.all_committed()) == [PARTITIONS[0], PARTITIONS[3]]


def test_wall_time_is_stored_monotonic_time_is_not() -> None:
    machine = new_machine(GroupLimits(offsets_retention_ms=100))
    decision = machine.handle(
        events.OffsetCommit(token=1, offsets={PARTITIONS[0]: OffsetAndMetadata(1)}), 5, 1000
    )
    machine.apply(decision.records, decision.changes)
    assert machine.handle(events.ExpireOffsets(), 9_999_999, 1099).records == []
    assert len(machine.handle(events.ExpireOffsets(), 6, 1100).records) == 1


def test_replay_takes_any_mixture_and_names_what_is_torn() -> None:
    machine = new_machine()
    machine.replay(b"\x00\x03\x00\x01g", b"something of KIP-848", 0)
    machine.replay(encode_offset_key("g", PARTITIONS[0]), None, 0)
    machine.replay(encode_group_key("g"), None, 0)
    assert machine.is_vacant
    with pytest.raises(CorruptRecordError):
        machine.replay(encode_group_key("g"), b"\x00\x03\x00", 0)
    with pytest.raises(CorruptRecordError):
        machine.replay(encode_offset_key("g", PARTITIONS[0]), b"", 0)


def test_sessions_of_replayed_members_begin_when_the_loading_is_finished() -> None:
    machine, log = new_machine(), []
    for event in (
        join(1, session_timeout_ms=50),
        events.SyncGroup(token=2, member_id="c-1", generation=1, assignments=(("c-1", b"all"),)),
    ):
        decision = machine.handle(event, 0)
        machine.apply(decision.records, decision.changes)
        log += decision.records
    successor = new_machine()
    for key, value in log:
        successor.replay(key, value, 7_000)
    assert successor.next_deadline_ms() is None
    decision = successor.finish_loading(7_000)
    successor.apply(decision.records, decision.changes)
    assert successor.next_deadline_ms() == 7_050
    reply = post(successor, events.SyncGroup(token=3, member_id="c-1", generation=1), 7_010)
    assert reply == [(3, events.SyncGroupReply("consumer", "range", b"all"))]


def test_a_heartbeat_and_a_commit_are_cheap_in_records() -> None:
    machine = new_machine()
    post(machine, join(1))
    post(machine, events.SyncGroup(token=2, member_id="c-1", generation=1))
    heartbeat = machine.handle(events.Heartbeat(token=3, member_id="c-1", generation=1), 10)
    assert heartbeat.records == []
    commit = events.OffsetCommit(
        token=4, member_id="c-1", generation=1, offsets={p: OffsetAndMetadata(1) for p in PARTITIONS}
    )
    assert len(machine.handle(commit, 10).records) == len(PARTITIONS)
