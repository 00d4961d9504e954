"""The interpreter of group scripts: one GroupMachine, its log, and members with names.

    group [delay_ms=0] [max=N] [retention_ms=N] [incarnation=a]    once, first; defaults otherwise
    join NAME [topics=orders] [protocols=range] [instance=I] [session_ms=10000] [rebalance_ms=60000]
              [incarnation=a] [handshake] [forget] [old_client]
              options are remembered for the next join of NAME, flags are not; handshake: JoinGroup v4 and
              later; forget: come back without the member id; old_client: before v9
    sync NAME [assign topic=count ...] [generation=N]              assign: as leader, by the group's assignor
    heartbeat NAME ...   leave NAME ...   leave_instance I         generation=N: another than its own
    repeat                                                         the last request again, same token
    commit NAME|nobody topic-n=offset ... [generation=N] [metadata=N characters]
    fetch topic-n ...    delete_offsets topic-n ...    delete_group
    expire_offsets       topics_deleted topic ...
    advance_ms N                                                   deadlines on the way fire at their time
    suspend_ms N                                                   the coordinator sleeps: deadlines move
    along status               log                                       the group; its compacted log
    restart [incarnation=a]                                        a new machine replays the log

Every decision is also checked against the laws of `streamlog.core.machine`: handle changes nothing, apply
may run twice, the log says what the machine says, nobody is answered twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec
from runner import Command

from streamlog.core import group_events as events
from streamlog.core.assignor import ASSIGNORS, RebalanceProtocol
from streamlog.core.consumer_protocol import (
    Assignment,
    Subscription,
    decode_assignment,
    decode_subscription,
    encode_assignment,
    encode_subscription,
)
from streamlog.core.group import GroupMachine
from streamlog.core.group_draft import GroupChanged
from streamlog.core.group_records import (
    GroupKey,
    OffsetKey,
    decode_group_value,
    decode_key,
    decode_offset_value,
)
from streamlog.core.group_state import GroupLimits
from streamlog.core.machine import Decision
from streamlog.errors import MemberIdRequiredError, StreamlogError
from streamlog.record import OffsetAndMetadata, TopicPartition


class Client:
    """What a member knows of itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.member_id = ""
        self.generation = -1
        self.options: dict[str, str] = {}
        self.owned: tuple[TopicPartition, ...] = ()
        self.joined: events.JoinGroupReply | None = None

    @property
    def instance(self) -> str | None:
        return self.options.get("instance")


class GroupScript:
    def __init__(self) -> None:
        self.now_ms = 0
        self.log: dict[bytes, bytes | None] = {}
        self.clients: dict[str, Client] = {}
        self.tokens: dict[int, tuple[str, str]] = {}  # parked or just asked: token -> (name, kind)
        self.last_token = 0
        self.asked = ("", "")
        self.last_request: events.GroupEvent | None = None
        self.members_made = 0
        self.limits = GroupLimits()
        self.incarnation = "a"
        self.machine = self._new_machine()

    def run(self, command: Command) -> Iterable[str]:
        handler: Callable[[Command], Iterable[str]] = getattr(self, f"do_{command.name}")
        return handler(command)

    # -- commands ------------------------------------------------------------------------------------------

    def do_group(self, command: Command) -> Iterable[str]:
        self.limits = GroupLimits(
            initial_rebalance_delay_ms=command.number("delay_ms", 0),
            members_max=command.number("max", 1000),
            offsets_retention_ms=command.number("retention_ms", 10_080 * 60_000),
        )
        self.incarnation = command.option("incarnation", "a")
        self.machine = self._new_machine()
        return ()

    def do_join(self, command: Command) -> Iterable[str]:
        client = self._client(command.arguments[0])
        client.options.update(command.options)
        options = client.options
        if command.flag("forget"):
            client.member_id, client.generation, client.owned = "", -1, ()
        names = options.get("protocols", "range").split(",")
        subscription = Subscription(tuple(options.get("topics", "orders").split(",")))
        if all(ASSIGNORS[name].protocol is RebalanceProtocol.COOPERATIVE for name in names):
            subscription = msgspec.structs.replace(
                subscription, owned=client.owned, generation=client.generation
            )
        return self._request(
            client.name,
            "join",
            lambda token: events.JoinGroup(
                token=token,
                member_id=client.member_id,
                client_id=client.name,
                client_host="/10.0.0.1",
                group_instance_id=client.instance,
                session_timeout_ms=int(options.get("session_ms", 10_000)),
                rebalance_timeout_ms=int(options.get("rebalance_ms", 60_000)),
                protocols=tuple((name, encode_subscription(subscription)) for name in names),
                require_known_member_id=command.flag("handshake"),
                supports_skip_assignment=not command.flag("old_client"),
                incarnation=options.get("incarnation", ""),
            ),
        )

    def do_sync(self, command: Command) -> Iterable[str]:
        client = self._client(command.arguments[0])
        assignments: tuple[tuple[str, bytes], ...] = ()
        if command.flag("assign"):
            counts = {name: int(count) for name, count in command.options.items() if name != "generation"}
            assignments = self._assign(client, counts)
        return self._request(
            client.name,
            "sync",
            lambda token: events.SyncGroup(
                token=token,
                member_id=client.member_id,
                generation=command.number("generation", client.generation),
                group_instance_id=client.instance,
                assignments=assignments,
            ),
        )

    def do_heartbeat(self, command: Command) -> Iterator[str]:
        for name in command.arguments:
            client = self._client(name)
            generation = command.number("generation", client.generation)
            yield from self._request(
                name,
                "heartbeat",
                lambda token, client=client, generation=generation: events.Heartbeat(
                    token=token,
                    member_id=client.member_id,
                    generation=generation,
                    group_instance_id=client.instance,
                ),
            )

    def do_leave(self, command: Command) -> Iterable[str]:
        leaving = tuple(
            events.LeavingMember(self._client(name).member_id, self._client(name).instance)
            for name in command.arguments
        )
        return self._request(
            command.arguments[0], "leave", lambda token: events.LeaveGroup(token=token, members=leaving)
        )

    def do_leave_instance(self, command: Command) -> Iterable[str]:
        leaving = tuple(events.LeavingMember("", name) for name in command.arguments)
        return self._request("admin", "leave", lambda token: events.LeaveGroup(token=token, members=leaving))

    def do_repeat(self, command: Command) -> Iterable[str]:
        event = self.last_request
        assert event is not None, "nothing to repeat"
        name, kind = self.tokens.get(self.last_token, self.asked)
        self.tokens[self.last_token] = (name, kind)
        return self._decide(lambda machine: machine.handle(event, self.now_ms), name, kind)

    def do_commit(self, command: Command) -> Iterable[str]:
        name = command.arguments[0]
        client = self._client(name)
        is_nobody = name == "nobody"
        metadata = "x" * command.number("metadata", 0)
        offsets = {
            _partition(word): OffsetAndMetadata(int(offset), metadata)
            for word, offset in command.options.items()
            if word not in ("generation", "metadata")
        }
        return self._request(
            name,
            "commit",
            lambda token: events.OffsetCommit(
                token=token,
                offsets=offsets,
                member_id="" if is_nobody else client.member_id,
                generation=command.number("generation", -1 if is_nobody else client.generation),
                group_instance_id=None if is_nobody else client.instance,
            ),
        )

    def do_fetch(self, command: Command) -> Iterator[str]:
        for word in command.arguments:
            committed = self.machine.committed(*_partition(word))
            yield f"{word} = {'none' if committed is None else committed.offset}"

    def do_delete_offsets(self, command: Command) -> Iterable[str]:
        partitions = tuple(map(_partition, command.arguments))
        return self._request(
            "admin", "delete", lambda token: events.OffsetDelete(token=token, partitions=partitions)
        )

    def do_delete_group(self, command: Command) -> Iterable[str]:
        return self._request("admin", "delete", lambda token: events.DeleteGroup(token=token))

    def do_expire_offsets(self, command: Command) -> Iterable[str]:
        return self._decide(lambda machine: machine.handle(events.ExpireOffsets(), self.now_ms))

    def do_topics_deleted(self, command: Command) -> Iterable[str]:
        event = events.TopicsDeleted(command.arguments)
        return self._decide(lambda machine: machine.handle(event, self.now_ms))

    def do_advance_ms(self, command: Command) -> Iterator[str]:
        end_ms = self.now_ms + int(command.arguments[0])
        while (deadline_ms := self.machine.next_deadline_ms()) is not None and deadline_ms <= end_ms:
            self.now_ms = max(self.now_ms, deadline_ms)
            yield f"at {self.now_ms} ms"
            for line in self._decide(lambda machine: machine.on_deadline(self.now_ms)):
                yield "  " + line
        self.now_ms = end_ms

    def do_suspend_ms(self, command: Command) -> Iterable[str]:
        by_ms = int(command.arguments[0])
        self.now_ms += by_ms
        return self._decide(lambda machine: machine.handle(events.ExtendDeadlines(by_ms), self.now_ms))

    def do_status(self, command: Command) -> Iterator[str]:
        view = self.machine.view()
        deadline_ms = self.machine.next_deadline_ms()
        summary = self._summary(self.machine)
        yield f"group    {summary} protocol={view.protocol} next_deadline_ms={deadline_ms}"
        for member in view.members:
            leader = " leader" if view.leader == member.member_id else ""
            instance = f" instance={member.group_instance_id}" if member.group_instance_id else ""
            topics = ",".join(decode_subscription(member.metadata).topics) if member.metadata else "-"
            yield f"  {member.member_id}{leader}{instance} topics={topics} {_assigned(member.assignment)}"

    def do_log(self, command: Command) -> Iterator[str]:
        for key, value in self.log.items():
            yield _record_line(key, value)

    def do_restart(self, command: Command) -> Iterable[str]:
        self.incarnation = command.option("incarnation", self.incarnation)
        self.tokens.clear()
        self.machine = self._new_machine()
        for key, value in self.log.items():
            self.machine.replay(key, value, self.now_ms)
        return self._decide(lambda machine: machine.finish_loading(self.now_ms))

    # -- requests and decisions ----------------------------------------------------------------------------

    def _request(self, name: str, kind: str, make: Callable[[int], events.GroupEvent]) -> Iterable[str]:
        self.last_token += 1
        self.asked = self.tokens[self.last_token] = (name, kind)
        event = self.last_request = make(self.last_token)
        return self._decide(lambda machine: machine.handle(event, self.now_ms), name, kind)

    def _decide(
        self, decide: Callable[[GroupMachine], Decision[GroupChanged]], name: str = "", kind: str = ""
    ) -> list[str]:
        machine = self.machine
        before, before_line = self._dump(machine), self._summary(machine)
        made = self.members_made
        decision = decide(machine)
        self.members_made = made
        again = decide(machine)
        assert repr(again) == repr(decision), "the same event, decided twice, gave two decisions"
        assert self._dump(machine) == before, "handle changed the machine"
        for key, value in decision.records:
            self.log.pop(key, None)
            if value is not None:
                self.log[key] = value
        fork = machine.fork()
        fork.apply(decision.records, decision.changes)
        assert self._dump(machine) == before, "applying to a fork changed the machine"
        machine.apply(decision.records, decision.changes)
        once = self._dump(machine)
        machine.apply(decision.records, decision.changes)
        assert self._dump(machine) == once, "apply is not re-runnable"
        assert self._dump(fork) == once, "the fork went another way"
        self._check_log()

        lines = []
        after_line = self._summary(machine)
        if after_line != before_line:
            lines.append(f"group    {before_line} => {after_line}")
        lines += [f"log      {_record_line(key, value)}" for key, value in decision.records]
        lines += [self._reply_line(token, answer) for token, answer in decision.replies]
        if kind and self.last_token in self.tokens and self.tokens[self.last_token] == (name, kind):
            lines.append(f"{name:<8} {kind} parked")
        return lines

    def _check_log(self) -> None:
        """What the log holds is what the machine holds."""
        replayed = GroupMachine("g", self.limits, self.incarnation, self._new_member_id)
        for key, value in self.log.items():
            replayed.replay(key, value, self.now_ms)
        assert replayed.all_committed() == self.machine.all_committed()
        state = self.machine._group
        if state.state.value in ("Stable", "Empty") and state.is_stored:
            assert replayed._group.to_stored() == state.to_stored()

    def _reply_line(self, token: int, answer: object) -> str:
        name, kind = self.tokens.pop(token)
        client = self._client(name)
        text = ""
        match answer:
            case MemberIdRequiredError():
                client.member_id = answer.member_id or ""
                text = f"refused: MemberIdRequiredError member_id={answer.member_id}"
            case StreamlogError():
                text = f"refused: {type(answer).__name__}"
            case events.JoinGroupReply():
                client.member_id, client.generation, client.joined = (
                    answer.member_id,
                    answer.generation,
                    answer,
                )
                members = (
                    f" members={','.join(m.member_id for m in answer.members)}" if answer.members else ""
                )
                skip = " skip_assignment" if answer.skip_assignment else ""
                text = (
                    f"as {answer.member_id} generation={answer.generation} protocol={answer.protocol} "
                    f"leader={answer.leader}{members}{skip}"
                )
            case events.SyncGroupReply():
                client.owned = decode_assignment(answer.assignment).partitions
                text = _assigned(answer.assignment)
            case events.LeaveGroupReply():
                outcomes = [
                    (m.member_id or m.group_instance_id, "left" if error is None else type(error).__name__)
                    for m, error in answer.members
                ]
                text = ", ".join(f"{who} {outcome}" for who, outcome in outcomes)
            case events.OffsetCommitReply() | events.OffsetDeleteReply():
                text = " ".join(
                    f"{p} {'ok' if error is None else type(error).__name__}"
                    for p, error in answer.errors.items()
                )
            case _:
                text = "ok"
        return f"{name:<8} {kind} {text}"

    # -- small things --------------------------------------------------------------------------------------

    def _assign(self, leader: Client, counts: dict[str, int]) -> tuple[tuple[str, bytes], ...]:
        joined = leader.joined
        assert joined is not None, f"{leader.name} has not joined"
        subscriptions = {
            m.member_id: decode_subscription(m.metadata, m.group_instance_id) for m in joined.members
        }
        assigned = ASSIGNORS[joined.protocol or ""].assign(counts, subscriptions)
        return tuple(
            (member_id, encode_assignment(Assignment(tuple(partitions))))
            for member_id, partitions in assigned.items()
        )

    def _new_machine(self) -> GroupMachine:
        return GroupMachine("g", self.limits, self.incarnation, self._new_member_id)

    def _new_member_id(self, prefix: str) -> str:
        self.members_made += 1
        return f"{prefix}-{self.members_made}"

    def _client(self, name: str) -> Client:
        return self.clients.setdefault(name, Client(name))

    @staticmethod
    def _dump(machine: GroupMachine) -> str:
        return f"{machine._group} {machine.all_committed()}"

    @staticmethod
    def _summary(machine: GroupMachine) -> str:
        view = machine.view()
        return f"{view.state.value} generation={view.generation} members={len(view.members)}"


def _partition(word: str) -> TopicPartition:
    topic, _, number = word.rpartition("-")
    return TopicPartition(topic, int(number))


def _assigned(assignment: bytes) -> str:
    partitions = decode_assignment(assignment).partitions
    return "assigned " + (" ".join(map(str, partitions)) or "nothing")


def _record_line(key: bytes, value: bytes | None) -> str:
    match decode_key(key):
        case OffsetKey(_, partition):
            return f"offset {partition} " + (
                "deleted" if value is None else f"= {decode_offset_value(value).offset}"
            )
        case GroupKey():
            if value is None:
                return "group deleted"
            stored = decode_group_value(value)
            members = ",".join(m.member_id for m in stored.members) or "none"
            return f"group generation={stored.generation} leader={stored.leader} members={members}"
    return "another kind of record"
