"""`streamlog topics create|list|describe|delete|alter`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from streamlog.cli.arguments import (
    Commands,
    add_command,
    add_family,
    add_replication,
    add_sync,
    key_value,
    whole,
)
from streamlog.cli.failures import CommandError, UsageError
from streamlog.cli.opening import reading, refuse_internal, topic_of, writing
from streamlog.cli.terminal import Terminal, show, size
from streamlog.client.topic import Topic
from streamlog.wording import plural

CONFIG_HELP = "a topic option by Kafka's name, such as retention.ms=3600000 (may be repeated)"


def add_parser(commands: Commands) -> None:
    """Add `topics` and its subcommands."""
    topics = add_family(commands, "topics", "create, list, describe, delete and alter topics")
    create = add_command(topics, "create", run_create, "create topics, and the directory if there is none")
    create.add_argument("topics", metavar="TOPIC", nargs="+")
    create.add_argument(
        "--partitions", "-p", type=whole(1), metavar="N", help="how many partitions (default 1)"
    )
    create.add_argument(
        "--config", "-c", type=key_value, action="append", default=[], metavar="NAME=VALUE", help=CONFIG_HELP
    )
    create.add_argument(
        "--if-not-exists",
        action="store_true",
        help="do nothing for topics that exist with the partitions and options given",
    )
    add_replication(create)
    add_sync(create)

    add_command(topics, "list", run_list, "list the topics")

    describe = add_command(topics, "describe", run_describe, "show partitions, offsets and options of topics")
    describe.add_argument("topics", metavar="TOPIC", nargs="*", help="default: all")
    describe.add_argument(
        "--all-config", action="store_true", help="all options in force, not only those set for the topic"
    )

    delete = add_command(topics, "delete", run_delete, "delete topics and their records")
    delete.add_argument("topics", metavar="TOPIC", nargs="+")
    delete.add_argument("--if-exists", action="store_true", help="do nothing for topics that do not exist")
    delete.add_argument(
        "--yes", "-y", action="store_true", help="do not ask (nobody is asked where there is no terminal)"
    )
    add_sync(delete)

    alter = add_command(topics, "alter", run_alter, "add partitions, change options")
    alter.add_argument("topics", metavar="TOPIC", nargs="+")
    alter.add_argument(
        "--partitions",
        "-p",
        type=whole(1),
        metavar="N",
        help="grow to N partitions; keys map to other ones from then on",
    )
    alter.add_argument(
        "--config", "-c", type=key_value, action="append", default=[], metavar="NAME=VALUE", help=CONFIG_HELP
    )
    alter.add_argument(
        "--delete-config",
        action="append",
        default=[],
        metavar="NAME",
        help="back to the option's default (may be repeated)",
    )
    add_sync(alter)


def run_create(arguments: argparse.Namespace, terminal: Terminal) -> int:
    with writing(arguments, create=True) as cluster:
        created = []
        for name in arguments.topics:
            refuse_internal(name)
            existed = name in cluster.topics
            if existed and not arguments.if_not_exists:
                raise CommandError(
                    f"topic {name!r} already exists in {arguments.dir}; --if-not-exists leaves it as it is, "
                    "`streamlog topics alter` changes it"
                )
            topic = cluster.create_topic(
                name,
                partitions=arguments.partitions,
                replication_factor=arguments.replication_factor,
                config=dict(arguments.config) or None,
                exist_ok=arguments.if_not_exists,
            )
            created.append({"topic": name, "partitions": len(topic), "created": not existed})
            if not terminal.json and not terminal.quiet:
                what = "exists" if existed else "created"
                terminal.line(
                    f"{what} topic {name} with {plural(len(topic), 'partition')} in {arguments.dir}"
                )
        if terminal.json:
            terminal.document(created)
    return 0


def run_list(arguments: argparse.Namespace, terminal: Terminal) -> int:
    with reading(arguments) as cluster:
        found = [_summary(cluster.topic(name)) for name in cluster.topics]
    if terminal.json:
        terminal.document(found)
    elif not found:
        terminal.note(
            f"{arguments.dir} has no topics yet; `streamlog topics create NAME --dir {arguments.dir}` "
            "makes one"
        )
    else:
        terminal.table(
            ("topic", "partitions", "records", "stored", "cleanup"),
            [
                (t["topic"], t["partitions"], t["records"], size(t["bytes"]), t["cleanup_policy"])
                for t in found
            ],
        )
    return 0


def _summary(topic: Topic) -> dict[str, Any]:
    partitions = topic.partitions
    return {
        "topic": topic.name,
        "partitions": len(partitions),
        "records": sum(p.high_watermark - p.log_start_offset for p in partitions),
        "bytes": sum(p.size_bytes for p in partitions),
        "cleanup_policy": topic.config["cleanup.policy"],
    }


def run_describe(arguments: argparse.Namespace, terminal: Terminal) -> int:
    with reading(arguments) as cluster:
        topics = [topic_of(cluster, name, arguments.dir) for name in arguments.topics or cluster.topics]
        found = [_description(topic, arguments.all_config) for topic in topics]
    if terminal.json:
        terminal.document(found)
        return 0
    for number, topic in enumerate(found):
        if number:
            terminal.line()
        factor = topic["replication_factor"]
        terminal.line(
            f"{topic['topic']}: {plural(len(topic['partitions']), 'partition')}, replication factor "
            f"{factor}, id {topic['topic_id']}"
        )
        if arguments.all_config:
            terminal.table(("option", "value"), topic["config"].items())
            terminal.line()
        else:
            options = ", ".join(f"{name}={value}" for name, value in topic["config"].items())
            terminal.line("options: " + (options or "all at their defaults (--all-config shows them)"))
        terminal.table(
            ("partition", "leader", "replicas", "isr", "start", "end", "records", "stored"),
            [
                (
                    p["partition"],
                    p["leader"],
                    p["replicas"],
                    p["isr"],
                    p["log_start_offset"],
                    p["high_watermark"],
                    p["high_watermark"] - p["log_start_offset"],
                    size(p["bytes"]),
                )
                for p in topic["partitions"]
            ],
        )
        behind = topic["under_replicated_partitions"]
        if behind:
            terminal.line(
                f"not all replicas are in sync: {plural(len(behind), 'partition')} ({show(behind)})"
            )
    return 0


def _description(topic: Topic, all_config: bool) -> dict[str, Any]:
    return {
        "topic": topic.name,
        "topic_id": topic.topic_id,
        "replication_factor": topic.replication_factor,
        "under_replicated_partitions": [p.number for p in topic.partitions if len(p.isr) < len(p.replicas)],
        "config": dict(sorted((topic.config if all_config else topic.config_overrides).items())),
        "partitions": [
            {
                "partition": p.number,
                "leader": p.leader,
                "replicas": list(p.replicas),
                "isr": list(p.isr),
                "leader_epoch": p.leader_epoch,
                "log_start_offset": p.log_start_offset,
                "high_watermark": p.high_watermark,
                "log_end_offset": p.log_end_offset,
                "bytes": p.size_bytes,
            }
            for p in topic.partitions
        ],
    }


def run_delete(arguments: argparse.Namespace, terminal: Terminal) -> int:
    with writing(arguments) as cluster:
        names = [
            name
            for name in dict.fromkeys(arguments.topics)
            if name in cluster.topics or not arguments.if_exists
        ]
        topics = [topic_of(cluster, name, arguments.dir) for name in names]
        if (
            topics
            and not arguments.yes
            and sys.stdin.isatty()
            and sys.stderr.isatty()
            and not _confirmed(topics)
        ):
            raise CommandError("nothing was deleted")
        for topic in topics:
            topic.delete()
            if not terminal.json and not terminal.quiet:
                terminal.line(f"deleted topic {topic.name}")
    if terminal.json:
        terminal.document([{"topic": name, "deleted": True} for name in names])
    return 0


def _confirmed(topics: list[Topic]) -> bool:
    what = ", ".join(
        f"{t.name} ({plural(sum(p.high_watermark - p.log_start_offset for p in t.partitions), 'record')})"
        for t in topics
    )
    sys.stderr.write(f"Delete {what} for good? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def run_alter(arguments: argparse.Namespace, terminal: Terminal) -> int:
    if arguments.partitions is None and not arguments.config and not arguments.delete_config:
        raise UsageError("nothing to alter; give --partitions, --config or --delete-config")
    changes: dict[str, str | None] = {**dict(arguments.config), **dict.fromkeys(arguments.delete_config)}
    with writing(arguments) as cluster:
        topics = [topic_of(cluster, name, arguments.dir) for name in arguments.topics]
        for topic in topics:
            if changes:
                topic.alter_config(changes)
            if arguments.partitions is not None:
                topic.add_partitions(arguments.partitions)
            if not terminal.json and not terminal.quiet:
                terminal.line(f"altered topic {topic.name}")
        if terminal.json:
            terminal.document([_description(topic, False) for topic in topics])
    return 0
