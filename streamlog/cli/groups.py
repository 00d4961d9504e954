"""`streamlog groups list|describe|reset-offsets|delete`."""

from __future__ import annotations

import argparse
from typing import Any

from streamlog.cli.arguments import Commands, add_command, add_family, add_sync, closest, whole
from streamlog.cli.failures import CommandError, UsageError
from streamlog.cli.opening import reading, topic_of, writing
from streamlog.cli.starting import Start, parse_start
from streamlog.cli.terminal import Terminal, show
from streamlog.record import TopicPartition
from streamlog.wording import plural

TO_HELP = "earliest, latest, an OFFSET, @MS (ms since the epoch), or a time such as 2024-05-01T12:00:00"


def add_parser(commands: Commands) -> None:
    """Add `groups` and its subcommands."""
    groups = add_family(commands, "groups", "list, describe and reset consumer groups")
    add_command(groups, "list", run_list, "list the consumer groups")

    describe = add_command(
        groups, "describe", run_describe, "show committed offsets, lag and members of groups",
        "The lag of a partition without a committed offset is - (null with --json).",
    )  # fmt: skip
    describe.add_argument("groups", metavar="GROUP", nargs="*", help="default: all")

    reset = add_command(
        groups, "reset-offsets", run_reset, "move the committed offsets of a group",
        "The group must have no members. Results are kept within each partition's log.\n\n"
        "  streamlog groups reset-offsets billing --to earliest --dry-run",
    )  # fmt: skip
    reset.add_argument("group", metavar="GROUP")
    where = reset.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", type=parse_start, metavar="WHERE", help=TO_HELP)
    where.add_argument(
        "--shift-by", type=_shift, metavar="N", help="so many records forward, or back if negative"
    )
    reset.add_argument(
        "--topic",
        action="append",
        metavar="TOPIC",
        help="only this topic (may be repeated; needed for a new group)",
    )
    reset.add_argument(
        "--partition",
        type=whole(0),
        action="append",
        metavar="N",
        help="only this partition (may be repeated)",
    )
    reset.add_argument(
        "--dry-run",
        action="store_true",
        help="only show what would be committed; works beside whoever owns the directory",
    )
    add_sync(reset)

    delete = add_command(groups, "delete", run_delete, "forget groups and their offsets")
    delete.add_argument("groups", metavar="GROUP", nargs="+")
    add_sync(delete)


def _shift(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def run_list(arguments: argparse.Namespace, terminal: Terminal) -> int:
    with reading(arguments) as cluster:
        found = []
        for name in cluster.groups:
            group = cluster.consumer_group(name)
            found.append(
                {
                    "group": name,
                    "state": group.state,
                    "members": len(group.members()),
                    "topics": sorted({tp.topic for tp in group.offsets()} | set(group.topics)),
                    "lag": _total(_lags(group)),
                }
            )
    if terminal.json:
        terminal.document(found)
    elif not found:
        terminal.note(
            f"{arguments.dir} has no consumer groups yet; `streamlog consume TOPIC --group NAME` makes one"
        )
    else:
        terminal.table(
            ("group", "state", "members", "topics", "lag"), [list(group.values()) for group in found]
        )
    return 0


def run_describe(arguments: argparse.Namespace, terminal: Terminal) -> int:
    with reading(arguments) as cluster:
        names = [_known(cluster, name, arguments.dir) for name in arguments.groups] or cluster.groups
        found = [_description(cluster, name) for name in names]
    if terminal.json:
        terminal.document(found)
        return 0
    if not found:
        terminal.note(
            f"{arguments.dir} has no consumer groups yet; `streamlog consume TOPIC --group NAME` makes one"
        )
    for number, group in enumerate(found):
        if number:
            terminal.line()
        members = len(group["members"])
        terminal.line(
            f"{group['group']}: {group['state']}, {plural(members, 'member') if members else 'no members'}, lag "
            f"{show(group['lag'])}"
        )
        terminal.table(
            ("topic", "partition", "committed", "end", "lag", "member"),
            [
                (p["topic"], str(p["partition"]), p["committed"], p["end"], p["lag"], p["member"])
                for p in group["partitions"]
            ],
        )
    return 0


def _known(cluster: Any, name: str, directory: str) -> str:
    names = cluster.groups
    if name in names:
        return name
    near = closest(name, names)
    hint = (
        f"did you mean {near!r}?"
        if near
        else f"there are {', '.join(names[:8])}"
        if names
        else "it has none yet"
    )
    raise CommandError(f"there is no consumer group {name!r} in {directory}; {hint}")


def _description(cluster: Any, name: str) -> dict[str, Any]:
    group = cluster.consumer_group(name)
    members = group.members()
    owners = {tp: member.member_id for member in members for tp in member.assignment}
    offsets, lags = group.offsets(), _lags(group)
    partitions = []
    for tp in sorted(lags.keys() | offsets.keys()):
        gone = tp.topic not in cluster.topics
        partitions.append(
            {
                "topic": tp.topic,
                "partition": tp.partition,
                "committed": offsets.get(tp),
                "end": None if gone else cluster.topic(tp.topic)[tp.partition].high_watermark,
                "lag": lags.get(tp),
                "member": owners.get(tp),
            }
        )
    return {
        "group": name,
        "state": group.state,
        "lag": _total(lags),
        "members": [
            {"member": m.member_id, "partitions": [list(tp) for tp in m.assignment]} for m in members
        ],
        "partitions": partitions,
    }


def _lags(group: Any) -> dict[TopicPartition, int | None]:
    """How far the group is behind; None where it has not committed: only its own options say where it would start."""
    committed = group.offsets()
    return {tp: lag if tp in committed else None for tp, lag in group.lag().items()}


def _total(lags: dict[TopicPartition, int | None]) -> int | None:
    """Of what is committed; None where nothing is."""
    known = [lag for lag in lags.values() if lag is not None]
    return sum(known) if known else None


def run_reset(arguments: argparse.Namespace, terminal: Terminal) -> int:
    opening = reading if arguments.dry_run else writing
    with opening(arguments) as cluster:
        known = arguments.group in cluster.groups
        if not known and not arguments.topic:
            _known(cluster, arguments.group, arguments.dir)
        topics = [topic_of(cluster, name, arguments.dir).name for name in arguments.topic or ()] or None
        group = cluster.consumer_group(arguments.group)
        before = group.offsets()
        to = _target(arguments.to, arguments.shift_by)
        target: dict[TopicPartition, int] = group.reset_offsets(to, topics=topics, dry_run=True)
        if arguments.partition:
            target = _only(target, set(arguments.partition))
        members = len(group.members())
        if not arguments.dry_run:
            group.reset_offsets(target)
        elif members:
            terminal.note(
                f"streamlog: group {arguments.group!r} has {plural(members, 'member')} now; offsets are moved only "
                "while it has none"
            )
        lag = {
            tp: cluster.topic(tp.topic)[tp.partition].high_watermark - offset for tp, offset in target.items()
        }
    rows = [
        {
            "topic": tp.topic,
            "partition": tp.partition,
            "before": before.get(tp),
            "committed": offset,
            "lag": lag[tp],
        }
        for tp, offset in sorted(target.items())
    ]
    if terminal.json:
        terminal.document({"group": arguments.group, "dry_run": arguments.dry_run, "partitions": rows})
        return 0
    title = (
        f"{arguments.group}: would be committed (--dry-run, nothing changed)"
        if arguments.dry_run
        else f"{arguments.group}: committed"
    )
    terminal.table(
        ("topic", "partition", "before", "now", "lag"),
        [(r["topic"], str(r["partition"]), r["before"], r["committed"], r["lag"]) for r in rows],
        title,
    )
    return 0


def _only(target: dict[TopicPartition, int], numbers: set[int]) -> dict[TopicPartition, int]:
    chosen = {tp: offset for tp, offset in target.items() if tp.partition in numbers}
    missing = numbers - {tp.partition for tp in chosen}
    if missing:
        there = ", ".join(f"{tp.topic}-{tp.partition}" for tp in target) or "nothing"
        raise CommandError(f"--partition {min(missing)} is none of what the group reads: {there}")
    return chosen


def _target(to: Start | None, shift_by: int | None) -> str | int:
    if to is None:
        return f"shift:{shift_by}"
    if to.kind == "last":
        raise UsageError(f"--to -{to.number}: did you mean --shift-by -{to.number}?")
    return to.reset


def run_delete(arguments: argparse.Namespace, terminal: Terminal) -> int:
    with writing(arguments) as cluster:
        names = [_known(cluster, name, arguments.dir) for name in arguments.groups]
        for name in names:
            cluster.consumer_group(name).delete()
            if not terminal.json and not terminal.quiet:
                terminal.line(f"deleted group {name}")
    if terminal.json:
        terminal.document([{"group": name, "deleted": True} for name in names])
    return 0
