"""A news feed: several publishers, many independent readers; each reader sees everything, at its own pace.

    publishers --> topic "news", keyed by section --> group "alice"  reads along
                                                  --> group "bob"    reads along, leaves half way, comes back
                                                  --> group "carol"  joins when all is over, replays it all

Publish-subscribe is nothing but one group per reader: groups do not know of each other, reading takes nothing
away. At the end every reader holds the same stories, each section in the order it was published: the
digests are equal.

    python examples/news_feed.py                           made-up stories
    python examples/news_feed.py sports.txt politics.txt   a file is a publisher's section, a line a story
    python examples/news_feed.py *.txt --data news-data    keep the feed; readers go on where they were
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

import streamlog

NEWS = "news"
PARTITIONS = 3
BLOCK = 50  # stories a publisher sends at a time


class Reading(NamedTuple):
    """What one reader has seen."""

    reader: str
    stories: int
    sections: int
    digest: str


class Reader:
    """A subscriber: a consumer group of one."""

    def __init__(self, cluster: Any, name: str) -> None:
        self.name = name
        self.group = cluster.consumer_group(name, [NEWS])
        self.sections: dict[str, Any] = {}
        self.stories = 0
        self.half_read = threading.Event()
        self.error: BaseException | None = None

    def take(self, record: streamlog.Record) -> None:
        """Read one story."""
        self.stories += 1
        digest = self.sections.setdefault(record.key, hashlib.sha256())
        digest.update(record.value.encode() + b"\n")

    def follow(self, published: threading.Event, leave_after: int | None = None) -> None:
        """Read along until everything is published and read, or until so many stories."""
        try:
            with self.group.consumer(key_deserializer="str", value_deserializer="str") as consumer:
                while True:
                    was_published = (
                        published.is_set()
                    )  # looked at before the poll: what is published later comes next time
                    records = consumer.poll(0.1, max_records=BLOCK)
                    for record in records:
                        self.take(record)
                    if leave_after is not None and self.stories >= leave_after:
                        break
                    if was_published and not records and consumer.assignment:
                        break
        except BaseException as error:
            self.error = error
        finally:
            self.half_read.set()

    def catch_up(self) -> None:
        """Read what there is and end."""
        with self.group.consumer(
            key_deserializer="str", value_deserializer="str", stop_at_end=True
        ) as consumer:
            for record in consumer:
                self.take(record)

    def reading(self) -> Reading:
        """What was read, as one comparable line: sections in alphabetical order, each with its own digest."""
        whole = hashlib.sha256()
        for name in sorted(self.sections):
            whole.update(name.encode() + b"\0" + self.sections[name].digest())
        return Reading(self.name, self.stories, len(self.sections), whole.hexdigest()[:16])


def publish(cluster: Any, section: str, stories: list[str]) -> None:
    """One publisher: its own producer, its own section."""
    with cluster.producer(key_serializer="str", value_serializer="str") as producer:
        for start in range(0, len(stories), BLOCK):
            producer.send_many(NEWS, [(section, story) for story in stories[start : start + BLOCK]])
            producer.flush()


def run(sections: dict[str, list[str]], data: str) -> list[Reading]:
    """Publish everything while alice and bob read, then let carol replay. Returns what each has seen."""
    total = sum(map(len, sections.values()))
    with streamlog.open(data) as cluster:
        cluster.create_topic(NEWS, PARTITIONS, exist_ok=True, config={"retention.ms": -1})
        alice, bob, carol = readers = [Reader(cluster, name) for name in ("alice", "bob", "carol")]
        published = threading.Event()
        publishers = [threading.Thread(target=publish, args=(cluster, *item)) for item in sections.items()]
        followers = [
            threading.Thread(target=alice.follow, args=(published,)),
            threading.Thread(target=bob.follow, args=(published, total // 2)),
        ]
        for thread in publishers + followers:
            thread.start()
        for thread in publishers:
            thread.join()
        published.set()
        for thread in followers:
            thread.join()
        for reader in (alice, bob):
            if reader.error is not None:
                raise reader.error
        print(f"{len(sections)} publishers have published {total} stories")
        print(f"bob left after {bob.stories}, {sum(bob.group.lag().values())} wait for him")
        bob.catch_up()
        print(f"carol joins now: {sum(carol.group.lag().values())} wait for her")
        carol.catch_up()
        return [reader.reading() for reader in readers]


def sample() -> dict[str, list[str]]:
    """Made-up stories, always the same."""
    subjects = {
        "sports": ("The home team", "A newcomer", "The referee"),
        "markets": ("Copper", "The index", "A startup"),
        "weather": ("Fog", "A heat wave", "The first snow"),
    }
    verbs = ("surprises everybody", "is back", "disappoints", "breaks a record", "has a quiet day")
    return {
        section: [f"{names[n % len(names)]} {verbs[n % len(verbs)]} (no. {n})" for n in range(200)]
        for section, names in subjects.items()
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="a section each, a story a line (default: made-up stories)",
    )
    parser.add_argument("--data", metavar="DIR", help="where the feed lives (default: a temporary directory)")
    options = parser.parse_args(arguments)
    for path in options.files:
        if not path.exists():
            parser.error(f"there is no {path}")
    sections = sample()
    if options.files:
        sections = {path.stem: path.read_text("utf-8", "replace").splitlines() for path in options.files}
    with tempfile.TemporaryDirectory() as scratch:
        readings = run(sections, options.data or f"{scratch}/data")
    for reading in readings:
        print(
            f"{reading.reader:6} read {reading.stories:6} stories in {reading.sections} sections,"
            f" digest {reading.digest}"
        )
    if options.data is None:  # with --data, readers that were here before have read less this time
        same = len({reading[1:] for reading in readings}) == 1
        print("all readers have seen the same" if same else "THE READERS DISAGREE")
        return 0 if same else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
