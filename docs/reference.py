"""Writes the parts of the documentation that are the code's to say: options, errors, a group's states, what is awaited.

    python docs/reference.py            bring them up to date
    python docs/reference.py --check    only say whether they are (tests/docs/test_reference.py does, too)

Such a part stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->`; everything around it is prose.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

from streamlog import config, errors
from streamlog.broker.dynamic_config import DYNAMIC_OPTIONS
from streamlog.core.group_state import VALID_PREVIOUS, State
from streamlog.option_rules import INT32_MAX, INT64_MAX

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "streamlog"

# -- options -----------------------------------------------------------------------------------------------

KAFKA_DEFAULTS: dict[str, object] = {
    "auto_offset_reset": "latest",
    "batch_size": 16_384,
    "partitioner": "murmur2",
    "auto_create_topics": True,
    "group_initial_rebalance_delay_ms": 3_000,
    "replica_high_watermark_checkpoint_interval_ms": 5_000,
}
"""Kafka's default where ours differs; docs/differences-from-kafka.md gives the reasons."""

OWN = {
    "cluster": {
        "disk_bytes_max",
        "map_bytes",
        "max_readers",
        "flush_ms",
        "inbox_requests_max",
        "allow_network_fs",
    },
    "topic": set(),
    "producer": set(),
    "consumer": {"stop_at_end"},
}
"""Options Kafka does not have."""

NOT_ENFORCED: set[str] = set()
"""Options something reads (a metric, a listing), without doing what they promise."""

READ_ELSEWHERE = {"cleanup_policy"}
"""Options read through a property of their config."""

CONFIG_FILES = {"config.py", "cluster_config.py", "options.py"}


@cache
def attributes_read() -> set[str]:
    """Every attribute name the library reads outside the option tables."""
    return {
        node.attr
        for path in PACKAGE.rglob("*.py")
        if path.name not in CONFIG_FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    } - NOT_ENFORCED | READ_ELSEWHERE


def without_effect(role: str) -> set[str]:
    """Options that are parsed and checked, and that nothing reads yet."""
    from streamlog.cluster_config import TOPIC_DEFAULTS

    read = attributes_read()
    idle = {option.name for option in config.describe(role) if option.name not in read}
    if role == "cluster":
        source = {cluster: topic for topic, cluster in TOPIC_DEFAULTS.items()}
        idle = {name for name in idle if name not in source or source[name] not in read}
    return idle


def options_table(role: str) -> Iterator[str]:
    idle = without_effect(role)
    yield "| option | Kafka's name | default | allowed | meaning |"
    yield "|---|---|---|---|---|"
    for option in config.describe(role):
        marks = ("°" if option.name in OWN[role] else "") + ("†" if option.name in idle else "")
        marks += "‡" if role == "cluster" and option.name in DYNAMIC_OPTIONS else ""
        default = f"`{shown(option.default)}`"
        if option.name in KAFKA_DEFAULTS:
            default = f"**{default}**"
        dotted = "" if option.name in OWN[role] else f"`{option.dotted}`"
        allowed = option.allowed.replace(str(INT32_MAX), "2³¹-1")
        yield f"| `{option.name}`{marks} | {dotted} | {default} | {cell(allowed)} | {cell(option.doc)} |"


def shown(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{word}"' for word in value) + "]"
    if isinstance(value, str):
        return f'"{value}"'
    if value == INT64_MAX:
        return "2**63-1"
    if value == INT32_MAX:
        return "2**31-1"
    return (
        f"{value:_}"
        if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000
        else str(value)
    )


def cell(text: str) -> str:
    return text.replace("|", "\\|")


# -- errors ------------------------------------------------------------------------------------------------

ERROR_FILES = {"errors.py", "protocol_errors.py"}


@cache
def names_used() -> set[str]:
    """Error names the library uses for more than catching them."""
    used: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name in ERROR_FILES:
            continue
        tree = ast.parse(path.read_text())
        caught: set[int] = set()
        for node in ast.walk(tree):
            kind = node.type if isinstance(node, ast.ExceptHandler) else getattr(node, "cls", None)
            if isinstance(node, (ast.ExceptHandler, ast.MatchClass)) and kind is not None:
                caught |= {id(inner) for inner in ast.walk(kind)}
        for node in ast.walk(tree):
            if id(node) in caught:
                continue
            if isinstance(node, ast.Name):
                used.add(node.id)
            elif isinstance(node, ast.Attribute):
                used.add(node.attr)
    return used


def classes() -> list[type[errors.StreamlogError]]:
    """Every error class once, Kafka's by number first, then ours by name."""
    found = {
        value
        for name in errors.__all__
        if isinstance(value := getattr(errors, name), type) and issubclass(value, errors.StreamlogError)
    }
    return sorted(found, key=lambda c: (c.code < 0, c.code, c.__name__))


def errors_table(wanted: Callable[[type[errors.StreamlogError]], bool]) -> Iterator[str]:
    yield "| error | also a | code | flags | when | what to do |"
    yield "|---|---|---|---|---|---|"
    for error in classes():
        if not wanted(error):
            continue
        flags = [flag for flag in ("retriable", "fatal", "indefinite") if getattr(error, flag)]
        code = str(error.code) if error.code >= 0 else ""
        doc = " ".join((error.__doc__ or "").split())
        yield (
            f'| <a id="{error.__name__}"></a>`{error.__name__}` | {", ".join(kin(error))} | {code}'
            f" | {', '.join(flags)} | {cell(doc)} | {cell(ADVICE.get(error.__name__, ''))} |"
        )


def kin(error: type[errors.StreamlogError]) -> list[str]:
    """The classes worth catching it by, except the root."""
    direct = [base.__name__ for base in error.__bases__ if base not in (errors.StreamlogError, Exception)]
    return [f"`{name}`" for name in direct]


def is_raised(error: type[errors.StreamlogError]) -> bool:
    return error.__name__ in names_used()


ADVICE = {
    "BrokerIdNotRegisteredError": "`cluster.brokers` lists what there is.",
    "BufferExhaustedError": "Wait and send again, raise `buffer_memory` or `max_block_ms`, or send less.",
    "ClosedError": "Open or make another. A handle is not used after its `with`.",
    "ClusterLockedError": "Stop the process in `.pid`, or read beside it.",
    "CommitFailedError": "Poll again; the records come again, here or elsewhere. Process less a poll.",
    "ConfigError": "The message names what is allowed and what was probably meant.",
    "CoordinatorLoadInProgressError": "Call again; consumers and groups do so themselves.",
    "CoordinatorNotAvailableError": "Call again.",
    "CorruptRecordError": "`streamlog verify` tells how much; seek behind `.offset`, or restore a backup.",
    "CorruptStoreError": "`streamlog verify`; restore a backup.",
    "DeliveryError": "Look at `__cause__` and `.failed`, mend, send those again.",
    "DeserializationError": "Mend the deserializer, or seek to `.next_offset`.",
    "DiskFullError": "Make room; the same call works again then.",
    "ElectionNotNeededError": "Nothing: it is as you want it.",
    "EligibleLeadersNotAvailableError": "Start one of the partition's brokers.",
    "FencedInstanceIdError": "Give each member a `group_instance_id` of its own.",
    "FencedLeaderEpochError": "Call again.",
    "ForeignThreadError": "Start the thread with `simulation.spawn`.",
    "GroupIdNotFoundError": "`cluster.groups` lists what there is.",
    "GroupMaxSizeReachedError": "Fewer members, or raise `group_max_size`.",
    "GroupSubscribedToTopicError": "Close the members that read the topic first.",
    "IllegalGenerationError": "As CommitFailedError, whose cause it is.",
    "IllegalStateError": "The message says which call has to come before, or is in the way.",
    "InconsistentGroupProtocolError": "Give all members a common `partition_assignment_strategy`.",
    "IneligibleReplicaError": "Internal: the leader proposes another in-sync set.",
    "InvalidGroupIdError": 'Use `cluster.consumer_group("name", ...)`.',
    "InvalidPartitionsError": "Partitions can only be added; more than there are.",
    "ConcurrentTransactionsError": "Call again.",
    "InvalidProducerIdMappingError": "Close this producer, make another.",
    "InvalidTransactionTimeoutError": "A shorter `transaction_timeout_ms`, or raise `transaction.max.timeout.ms`.",
    "ProducerFencedError": "Close this producer; whoever has its `transactional_id` now goes on.",
    "TransactionAbortableError": "The transaction is aborted: begin another, with records that can be written.",
    "InvalidProducerEpochError": "Close this producer; a newer one has its id.",
    "UnstableOffsetCommitError": "Call again; a consumer does so itself.",
    "InvalidRecordError": "Give the record a key; if another record of its batch was at fault, send it again.",
    "InvalidReplicaAssignmentError": "The message names what is wrong with it and what is allowed.",
    "InvalidReplicationFactorError": "At most the number of live brokers; `cluster.add_broker()` adds one.",
    "InvalidRequestError": "A bug of the client: report it.",
    "InvalidSessionTimeoutError": "Stay within the bounds, or change them at `open`.",
    "InvalidTimestampError": "Mend the timestamp (it is in ms), or the topic's bounds.",
    "InvalidTopicError": "1 to 249 of `a-z A-Z 0-9 . _ -`.",
    "InvalidTxnStateError": "A bug of the client: report it.",
    "InvalidUpdateVersionError": "Internal: the leader looks again and proposes anew.",
    "LeaderNotAvailableError": "Nothing, if you send or poll: it is tried again. Else start a broker of `.isr`.",
    "LogTruncationError": "Seek to `.next_offset`, or where you want to go on; what was read behind it is gone.",
    "MemberIdRequiredError": "Nothing: clients do it themselves.",
    "NetworkError": "Nothing, if you send or poll: it is tried again. `cluster.brokers` tells who is down.",
    "NetworkFileSystemError": "A local directory.",
    "NewLeaderElectedError": "Internal: the former leader becomes a follower.",
    "NoOffsetForPartitionError": "`seek`, or another `auto_offset_reset`.",
    "NoReassignmentInProgressError": "Nothing: it is through, or was never begun.",
    "NonEmptyGroupError": "Close its members first.",
    "NotAStreamlogDirectoryError": "An empty or a new directory.",
    "NotControllerError": "Call again.",
    "NotCoordinatorError": "Call again.",
    "NotEnoughReplicasAfterAppendError": "They are written, on too few; start brokers before you send again.",
    "NotEnoughReplicasError": "Start brokers until `min.insync.replicas` are in sync, or lower it.",
    "NotLeaderOrFollowerError": "Call again; if the topic was deleted, stop.",
    "OffsetMetadataTooLargeError": "A shorter text.",
    "OffsetNotAvailableError": "Call again, in a moment.",
    "OffsetOutOfRangeError": "The message says which offsets there are.",
    "OutOfOrderSequenceError": "Nothing, if you send: a new epoch begins, and it is tried again.",
    "PolicyViolationError": "`cleanup.policy` must contain `delete` for that.",
    "PreferredLeaderNotAvailableError": "Start that broker, and wait until it is in sync.",
    "ReadOnlyError": "Do it in the owner's process, or open to write.",
    "ReadersFullError": "Fewer readers at once, or raise `max_readers`.",
    "RebalanceInProgressError": "Poll, then call again. `commit()` does so itself.",
    "RecordTooLargeError": "A smaller record, or raise `max_request_size` and `max.message.bytes`.",
    "ReentrantCallError": "Only `send` there, without waiting; wait outside.",
    "ReplicaNotAvailableError": "Internal: a follower asks again.",
    "ResourceNotFoundError": "Check the name.",
    "SerializationError": "The message names the serializer that fits.",
    "SimulationStalledError": "The message says who waits for what; give the waits a timeout, or let somebody act.",
    "StaleBrokerEpochError": "Internal: the broker registers again.",
    "StorageError": "See its cause; close, mend the disk, open again.",
    "StoreForkedError": "Open after the fork.",
    "StoreFullError": "Retention, `delete_records`, or a higher `disk_bytes_max`.",
    "StreamlogError": "The root: never raised itself.",
    "StreamlogTimeoutError": "Look whether it was written before you write again.",
    "TopicAlreadyExistsError": "`exist_ok=True`, or another name.",
    "TransactionCoordinatorFencedError": "Internal: the coordinator that took over writes it.",
    "TopicDeletionDisabledError": "Open the cluster with `delete_topic_enable=True`.",
    "UnknownLeaderEpochError": "Internal: a follower asks again.",
    "UnknownMemberIdError": "As CommitFailedError, whose cause it is.",
    "UnknownNameError": "The message says what it is called here.",
    "UnknownTopicIdError": "Call again; if the topic was deleted, stop.",
    "UnknownTopicOrPartitionError": "`cluster.topics` lists what there is.",
    "UnsupportedCompressionTypeError": '`"zstd"` is always there.',
    "UnsupportedFormatError": "Upgrade streamlog.",
    "UnsupportedOperationError": "The message says what can.",
}
"""What to do, for every error this version raises."""


# -- groups ------------------------------------------------------------------------------------------------


def states_diagram() -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield "    [*] --> Empty"
    for state in State:
        for previous in sorted(VALID_PREVIOUS[state], key=list(State).index):
            yield f"    {previous.value} --> {state.value}"
    yield "    Dead --> [*]"
    yield "```"


def transactions_diagram() -> Iterator[str]:
    """How a transactional id goes on."""
    from streamlog.core import transaction

    yield "```mermaid"
    yield "stateDiagram-v2"
    yield "    [*] --> EMPTY"
    for state in transaction.State:
        for previous in sorted(transaction.VALID_PREVIOUS[state], key=list(transaction.State).index):
            yield f"    {previous.name} --> {state.name}"
    yield "```"


def states_table() -> Iterator[str]:
    docs = state_docs()
    yield "| state | what it is | what it answers | how it ends |"
    yield "|---|---|---|---|"
    for state in State:
        what, action, transition = docs[state.name]
        yield f"| `{state.value}` | {cell(what)} | {cell(action)} | {cell(transition)} |"


def state_docs() -> dict[str, tuple[str, str, str]]:
    """The text below each member of State: purpose, action, transition."""
    tree = ast.parse((PACKAGE / "core" / "group_state.py").read_text())
    body = next(
        node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "State"
    )
    docs: dict[str, tuple[str, str, str]] = {}
    for member, text in pairwise(body):
        if (
            isinstance(member, ast.Assign)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            whole = " ".join(str(text.value.value).split())
            what, rest = whole.split(" action: ")
            action, transition = rest.split(" transition: ")
            name = member.targets[0]
            assert isinstance(name, ast.Name)
            docs[name.id] = (what, action, transition)
    return docs


# -- replication -------------------------------------------------------------------------------------------
# The pictures are not drawn by hand and not from a second table: the controller's decisions are taken, from every
# state that can be reached, and what they lead to is written down.


class Taken:
    """A cluster image that decisions have led to, and how to get there again."""

    def __init__(self, records: tuple[object, ...] = ()) -> None:
        from streamlog.core.cluster_image import ClusterImage

        self.records = records
        self.image = ClusterImage()
        for record in records:
            self.image.apply(record)  # type: ignore[arg-type]

    def then(self, records: Iterable[object]) -> Taken:
        return Taken((*self.records, *records))


def reached(
    first: Taken, decisions: Callable[[Taken], Iterator[tuple[str, Taken]]], key: Callable[[Taken], object]
) -> Iterator[tuple[Taken, str, Taken]]:
    """Every step from every state that can be reached."""
    seen, waiting = {key(first)}, [first]
    while waiting:
        before = waiting.pop(0)
        for event, after in decisions(before):
            yield before, event, after
            if key(after) not in seen:
                seen.add(key(after))
                waiting.append(after)


def broker_state(taken: Taken, broker_id: int) -> str:
    broker = taken.image.brokers.get(broker_id)
    if broker is None:
        return "Unknown"
    return "Fenced" if broker.fenced else "ShuttingDown" if broker.shutting_down else "Active"


def broker_decisions(before: Taken) -> Iterator[tuple[str, Taken]]:
    from streamlog.core import broker_states as rules

    image = before.image
    if 1 not in image.brokers or image.brokers[1].broker_epoch < 3:  # three lives show everything
        yield "it registers", before.then(rules.register(image, 1, "incarnation"))
    if 1 in image.brokers:
        yield "first lease", before.then(rules.unfence(image, [1]))
        yield "session over, or connection broken", before.then(rules.fence(image, [1]))
        if not image.brokers[1].fenced:
            yield "it asks to stop", before.then(rules.controlled_shutdown(image, 1).records)


def broker_steps() -> dict[tuple[str, str], list[str]]:
    """(state, next state) -> what leads there."""
    steps = reached(
        Taken(), broker_decisions, lambda taken: (broker_state(taken, 1), tuple(taken.image.brokers.items()))
    )
    return merged((broker_state(a, 1), event, broker_state(b, 1)) for a, event, b in steps)


def merged(steps: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for before, event, after in steps:
        events = found.setdefault((before, after), [])
        if before != after and event not in events:
            events.append(event)
    return {pair: events for pair, events in found.items() if events}


def state_diagram(steps: dict[tuple[str, str], list[str]], first: str) -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {first}"
    for (before, after), events in steps.items():
        yield f"    {before} --> {after}: {'; '.join(events)}"
    yield "```"


def brokers_diagram() -> Iterator[str]:
    return state_diagram(broker_steps(), "Unknown")


REPLICAS = (0, 1, 2)


def partition_state(taken: Taken) -> str:
    partition = taken.image.partition("t", 0)
    if partition.leader < 0:
        return "Offline"
    return "InSync" if set(partition.isr) == set(partition.replicas) else "UnderReplicated"


def partition_key(taken: Taken) -> object:
    partition = taken.image.partition("t", 0)
    fenced = tuple(broker for broker in REPLICAS if not taken.image.is_active(broker))
    return partition.leader, partition.isr, fenced, partition.is_recovering


def first_partition() -> Taken:
    from streamlog.core import broker_states as rules
    from streamlog.core.controller import decide_create_topic

    taken = Taken()
    for broker in REPLICAS:
        taken = taken.then(rules.register(taken.image, broker, "incarnation"))
        taken = taken.then(rules.unfence(taken.image, [broker]))
    return taken.then([decide_create_topic(taken.image, "t", "id", 1, 3, {})])


def partition_decisions(before: Taken) -> Iterator[tuple[str, Taken]]:
    from streamlog.core import broker_states as rules
    from streamlog.core import elections, isr_changes

    image, partition = before.image, before.image.partition("t", 0)
    for broker in REPLICAS:
        if image.is_active(broker):
            role = (
                "the leader is lost"
                if broker == partition.leader
                else "a follower is lost"
                if broker in partition.isr
                else "one not in sync is lost"
            )
            yield role, before.then(rules.fence(image, [broker]))
        else:
            role = "the last in sync is back" if broker in partition.isr else "another is back"
            yield role, before.then(rules.unfence(image, [broker]))
    if partition.leader >= 0:
        leader = partition.leader
        for broker in REPLICAS:
            if broker == leader or not image.is_active(broker):
                continue
            is_member = broker in partition.isr
            isr = tuple(b for b in (*partition.isr, broker) if b != broker or not is_member)
            proposal = isr_changes.Proposal(
                leader,
                image.brokers[leader].broker_epoch,
                "id",
                0,
                partition.leader_epoch,
                partition.partition_epoch,
                isr,
            )
            event = "the leader finds one too slow" if is_member else "one has caught up"
            yield event, before.then(isr_changes.alter_partition(image, proposal).records)
    unclean = elections.elect_leaders(image, [("t", 0)], "unclean")
    if unclean.records:
        yield "unclean election", before.then(unclean.records)


@cache
def partition_steps() -> list[tuple[Taken, str, Taken]]:
    return list(reached(first_partition(), partition_decisions, partition_key))


def partitions_diagram() -> Iterator[str]:
    steps = merged((partition_state(a), event, partition_state(b)) for a, event, b in partition_steps())
    return state_diagram(steps, "InSync")


def partition_events_table() -> Iterator[str]:
    """What each event does, in all states it can come in."""
    found: dict[str, dict[str, set[str]]] = {}
    for before, event, after in partition_steps():
        old, new = before.image.partition("t", 0), after.image.partition("t", 0)
        does = found.setdefault(event, {"in sync": set(), "leader": set(), "epoch": set()})
        grows = len(new.isr) - len(old.isr)
        changed = (
            "stays"
            if new.isr == old.isr
            else "grows"
            if grows > 0
            else "shrinks"
            if grows < 0
            else "is another"
        )
        does["in sync"].add(changed)
        does["leader"].add("stays" if new.leader == old.leader else "none" if new.leader < 0 else "another")
        does["epoch"].add("rises" if new.leader_epoch > old.leader_epoch else "stays")
    yield "| what happens | the in-sync set | the leader | the leader epoch |"
    yield "|---|---|---|---|"
    for event, does in found.items():
        cells = [" or ".join(sorted(does[name])) for name in ("in sync", "leader", "epoch")]
        yield f"| {event} | {' | '.join(cells)} |"


ELECTIONS = (
    # leader before, replicas, in sync, alive, election
    (0, (0, 1, 2), (0, 1, 2), (0, 1, 2), "ONLINE"),
    (0, (0, 1, 2), (1, 2), (1, 2), "ONLINE"),
    (0, (2, 0, 1), (0, 1, 2), (1, 2), "ONLINE"),
    (1, (0, 1, 2), (0, 1, 2), (0, 1, 2), "ONLINE"),
    (1, (0, 1, 2), (0, 1, 2), (0, 1, 2), "PREFERRED"),
    (1, (0, 1, 2), (1, 2), (0, 1, 2), "PREFERRED"),
    (0, (0, 1, 2), (0,), (1, 2), "ONLINE"),
    (0, (0, 1, 2), (0,), (1, 2), "UNCLEAN"),
)


def elections_table() -> Iterator[str]:
    """Who leads, as `choose_leader` says."""
    from streamlog.core.partition_changes import Election, choose_leader

    yield "| leader before | replicas | in sync | alive | election | leader |"
    yield "|---|---|---|---|---|---|"
    for leader, replicas, isr, alive, election in ELECTIONS:
        chosen, is_unclean = choose_leader(leader, replicas, isr, alive.__contains__, Election[election])
        told = "none" if chosen < 0 else f"{chosen}, in sync alone" if is_unclean else str(chosen)
        cells = [
            leader,
            *(" ".join(map(str, some)) for some in (replicas, isr, alive)),
            election.lower(),
            told,
        ]
        yield f"| {' | '.join(map(str, cells))} |"


def checkers_table() -> Iterator[str]:
    """What the simulation's checkers look for."""
    from streamlog.testing.checks import CHECKERS

    yield "| checker | what it holds the cluster to |"
    yield "|---|---|"
    for checker in CHECKERS:
        yield f"| `{checker.__name__}` | {cell(' '.join((checker.__doc__ or '').split()))} |"


# -- the command line --------------------------------------------------------------------------------------


def commands() -> Iterator[str]:
    from streamlog.cli.arguments import build_parser

    for name, parser in subparsers(build_parser()):
        families: list[tuple[str | None, argparse.ArgumentParser]] = list(subparsers(parser))
        for subname, leaf in families or [(None, parser)]:
            yield from command(f"{name} {subname}" if subname else name, leaf)


def subparsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    shared = {"help", "dir", "json", "quiet", "debug"}
    own = [
        action for action in parser._actions if action.dest not in shared and action.help != argparse.SUPPRESS
    ]
    usage = ["streamlog", name]
    if any(action.option_strings for action in own):
        usage.append("[options]")
    for action in own:
        if not action.option_strings:
            what = str(action.metavar or action.dest)
            usage.append(
                {"*": f"[{what} ...]", "+": f"{what} ...", "?": f"[{what}]"}.get(str(action.nargs), what)
            )
    yield f"### {name}"
    yield ""
    yield "```"
    yield " ".join(usage)
    yield "```"
    yield ""
    prose, *examples = re.split(r"\n\n(?=  )", parser.description or "")
    yield from prose.splitlines()
    for part in examples:
        lines = part.splitlines()
        code = [line[2:] for line in lines if line.startswith("  ")]
        yield from ["", "```", *code, "```", ""]
        yield from [line for line in lines if not line.startswith("  ")]
    options = [action for action in own if action.option_strings or action.help]
    if options:
        yield ""
        yield "| option | |"
        yield "|---|---|"
        for action in options:
            yield f"| {spelled(action)} | {cell((action.help or '').strip())} |"
    yield ""


def spelled(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = (
        ""
        if action.nargs == 0
        else str(
            action.metavar
            or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper())
        )
    )
    return ", ".join(f"`{option} {value}`" if value else f"`{option}`" for option in action.option_strings)


# -- asyncio -----------------------------------------------------------------------------------------------

FORMS: dict[str, tuple[str, str]] = {
    "entered": ("`with x as y:`", "`async with x as y:`"),
    "iterated": ("`for record in x:`", "`async for record in x:`"),
    "property, now awaited": ("**a property:** `x.name`", "**a method to await:** `await x.name()`"),
    "awaited": ("`x.name(...)`", "`await x.name(...)`"),
    "awaitable": ("`x.name(...).result()`", "`await x.name(...)`; without `await` it is sent all the same"),
    "method": ("`x.name(...)`", "`x.name(...)`, as it is: nothing to await"),
    "property": ("`x.name`", "`x.name`, as it is: nothing to await"),
    "new": ("not there", "`await x.name(...)`"),
    "absent": ("`x.name`, `x.name(...)`", "not there in this version"),
}
"""How a name is used in the blocking API, and how in `streamlog.aio`."""


def aio_form(blocking: type, here: type, name: str) -> str:
    """The form of one public name of a class of the blocking API in its twin here."""
    theirs, ours = (inspect.getattr_static(owner, name, None) for owner in (blocking, here))
    if ours is None:
        return "absent"
    if inspect.iscoroutinefunction(ours):
        if theirs is None:
            return "new"
        return "awaited" if inspect.isfunction(theirs) else "property, now awaited"
    if not inspect.isfunction(ours):
        return "property"
    is_awaitable = str(inspect.signature(ours).return_annotation).startswith("Awaitable")
    return "awaitable" if is_awaitable else "method"


def aio_table() -> Iterator[str]:
    import streamlog
    from streamlog import aio

    classes = [name for name in aio.__all__ if isinstance(getattr(aio, name), type)]
    functions = [name for name in aio.__all__ if name not in classes]
    found: dict[str, list[str]] = {form: [] for form in FORMS}
    found["entered"] = [f"`{name}(...)`" for name in functions]
    for name in classes:
        blocking, here = getattr(streamlog, name), getattr(aio, name)
        found["entered"] += [f"`{name}`"] * hasattr(here, "__aenter__")
        found["iterated"] += [f"`{name}`"] * hasattr(here, "__aiter__")
        forms: dict[str, list[str]] = {}
        for member in sorted({*dir(blocking), *dir(here)}):
            if not member.startswith("_"):
                forms.setdefault(aio_form(blocking, here, member), []).append(f"`{member}`")
        for form, members in forms.items():
            found[form].append(f"{name}: {', '.join(members)}")
    yield "| in the blocking API | in `streamlog.aio` | of |"
    yield "|---|---|---|"
    for form, (there, here_too) in FORMS.items():
        separator = ", " if form in ("entered", "iterated") else "; "
        yield f"| {there} | {here_too} | {separator.join(found[form])} |"


# -- putting it in its place -------------------------------------------------------------------------------

PARTS: dict[str, dict[str, Callable[[], Iterator[str]]]] = {
    "options.md": {role: (lambda role=role: options_table(role)) for role in OWN},  # type: ignore[misc]
    "errors.md": {
        "raised": lambda: errors_table(is_raised),
        "reserved": lambda: errors_table(lambda error: not is_raised(error)),
    },
    "command-line.md": {"commands": commands},
    "guide.md": {"aio": aio_table},
    "replication.md": {
        "brokers": brokers_diagram,
        "partitions": partitions_diagram,
        "events": partition_events_table,
        "elections": elections_table,
    },
    "internals/simulation.md": {"checkers": checkers_table},
    "internals/transactions.md": {"diagram": transactions_diagram},
    "internals/groups.md": {"diagram": states_diagram, "states": states_table},
}


def rendered(name: str) -> str:
    """The text of a document with its generated parts made anew."""
    text = (DOCS / name).read_text()
    for part, lines in PARTS[name].items():
        begin, end = f"<!-- generated: {part} -->", f"<!-- end: {part} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        body = "\n".join([begin, *lines(), end])
        text, count = pattern.subn(lambda _, body=body: body, text)  # type: ignore[misc]
        if count != 1:
            raise SystemExit(f"docs/{name} has {count} parts {part!r}, expected 1")
    return text


def main(arguments: list[str]) -> int:
    stale = [name for name in PARTS if rendered(name) != (DOCS / name).read_text()]
    if "--check" not in arguments:
        for name in stale:
            (DOCS / name).write_text(rendered(name))
    verb = "is out of date; run: python docs/reference.py" if "--check" in arguments else "written"
    for name in stale:
        sys.stdout.write(f"docs/{name} {verb}\n")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
