"""Opening the directory a command names: as its owner to write, beside whoever owns it to read.

Reading commands never take the owner's lock, never create anything, and so never stand in an application's
way.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import streamlog
from streamlog.cli.arguments import closest
from streamlog.cli.failures import CommandError, UsageError
from streamlog.client.topic import Topic
from streamlog.core.cluster_image import INTERNAL_TOPICS
from streamlog.errors import ConfigError, UnknownTopicOrPartitionError
from streamlog.storage.directory import read_format
from streamlog.storage.filesystem import is_new
from streamlog.wording import plural


@contextmanager
def reading(arguments: argparse.Namespace) -> Iterator[Any]:
    """The cluster to read from (`mode="r"`). Works beside a live owner."""
    require_directory(arguments.dir)
    with streamlog.open(arguments.dir, mode="r") as cluster:
        yield cluster


@contextmanager
def writing(arguments: argparse.Namespace, *, create: bool = False) -> Iterator[Any]:
    """The cluster to write to, as its owner. `create`: make the directory if there is none."""
    if not create:
        require_directory(arguments.dir)
    with _owned(arguments) as cluster:
        yield cluster


def _owned(arguments: argparse.Namespace) -> Any:
    brokers = getattr(arguments, "brokers", None)  # None: as many as the directory has, else 1
    try:
        return streamlog.open(arguments.dir, brokers=brokers, sync=getattr(arguments, "sync", "full"))
    except ConfigError as error:
        if error.option != "brokers" or error.allowed is None:
            raise
        raise UsageError(
            f"--brokers {brokers}: {arguments.dir} has {plural(int(error.allowed), 'broker')}; leave --brokers out. More "
            "are added in Python: cluster.add_broker()"
        ) from error


def require_directory(path: str) -> None:
    """Refuse a path that is no streamlog directory, before anything is made there."""
    if path.startswith(":memory:"):
        raise CommandError("':memory:' lives only inside one process; name a directory with --dir")
    place = Path(path)
    if not place.exists():
        raise CommandError(
            f"there is no directory {path}. `streamlog topics create NAME --dir {path}` makes one; --dir "
            "names another"
        )
    if place.is_dir() and read_format(place) is None:
        raise CommandError(
            f"{path} is not a streamlog directory (it has no file FORMAT); --dir names another"
        )


def require_new(path: str, otherwise: str) -> None:
    """Refuse a path where a demo would not find itself alone. `otherwise`: what it uses if no path is given."""
    if not is_new(Path(path)):
        raise CommandError(
            f"{path} is not empty; the demo needs a new directory, or leave --dir out and it uses {otherwise}"
        )


def refuse_internal(name: str) -> None:
    """Refuse a topic that streamlog keeps for itself: made by hand it would have other options than it needs."""
    if name in INTERNAL_TOPICS:
        raise CommandError(
            f"topic {name!r} is internal: streamlog makes it when it is first needed, and writes it alone. "
            f"`streamlog topics describe {name}` shows it, `streamlog dump {name}` what is in it"
        )


def topic_of(cluster: Any, name: str, directory: str) -> Topic:
    """A topic, or an error that says which there are."""
    try:
        topic: Topic = cluster.topic(name)
    except UnknownTopicOrPartitionError:
        names = cluster.topics
        near = closest(name, names)
        if near:
            hint = f"did you mean {near!r}?"
        else:
            hint = (
                f"it has {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}."
                if names
                else "it has no topics yet."
            )
        raise CommandError(
            f"there is no topic {name!r} in {directory}; {hint} `streamlog topics create {name} --dir "
            f"{directory}` makes it"
        ) from None
    return topic


def partitions_of(topic: Topic, wanted: list[int] | None) -> list[int]:
    """The partitions to use: those asked for, checked, or all."""
    if not wanted:
        return list(range(len(topic)))
    for number in wanted:
        if number >= len(topic):
            raise CommandError(
                f"topic {topic.name!r} has no partition {number}; it has {len(topic)}, numbered from 0 to "
                f"{len(topic) - 1}"
            )
    return sorted(set(wanted))
