"""The whole client against a naive model: a dict of lists.

Topics of one or two partitions, appends in both body layouts, reads, seeks, retention, compaction,
delete_records,
truncation and reopening, in any order Hypothesis thinks of. The model keeps what every offset holds and
where the batches
end, since deleting and truncating work on whole batches.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import streamlog
from streamlog import Record, TopicPartition
from streamlog import batch as batches
from streamlog.broker import api
from streamlog.errors import OffsetOutOfRangeError, PolicyViolationError, UnknownTopicOrPartitionError

SHARED_MEMORY = Path("/dev/shm")
ANCIENT_MS = 1_000
KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
VALUES = st.one_of(st.none(), st.binary(max_size=6))
ITEMS = st.lists(st.tuples(KEYS, VALUES, st.booleans()), min_size=1, max_size=6)
PLACE = st.integers(0, 60)

Entry = tuple[bytes | None, bytes | None, int]


class Log:
    """One partition as a naive list: what each offset holds, where it begins and ends, and its batches."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.start = 0
        self.end = 0
        self.batches: list[tuple[int, int]] = []  # first and next offset of each
        self.position = 0  # of the reader

    def append(self, entries: list[Entry]) -> None:
        for number, entry in enumerate(entries):
            self.entries[self.end + number] = entry
        self.batches.append((self.end, self.end + len(entries)))
        self.end += len(entries)

    def begin_at(self, offset: int) -> None:
        self.start = max(self.start, offset)
        self.entries = {at: entry for at, entry in self.entries.items() if at >= self.start}
        self.batches = [(first, behind) for first, behind in self.batches if behind > self.start]

    def truncate(self, offset: int) -> None:
        """Whole batches that reach `offset` go; where compaction has left a hole, the log ends inside of it."""
        reached = [first for first, behind in self.batches if behind > offset]
        if reached:
            self.end = max(min(offset, *reached), self.start)
        self.entries = {at: entry for at, entry in self.entries.items() if at < self.end}
        self.batches = [(first, behind) for first, behind in self.batches if behind <= self.end]

    def visible(self, offset: int) -> list[tuple[int, Entry]]:
        return sorted((at, entry) for at, entry in self.entries.items() if at >= offset)


def shown(records: list[Record]) -> list[tuple[int, Entry]]:
    return [(record.offset, (record.key, record.value, record.timestamp)) for record in records]


class ClusterModel(RuleBasedStateMachine):
    topics = Bundle("topics")

    @initialize()
    def open(self) -> None:
        self.path = Path(
            tempfile.mkdtemp(prefix="streamlog-model-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
        )
        self.cluster = streamlog.open(self.path / "d", sync="off", log_cleaner_enable=False)
        self.logs: dict[TopicPartition, Log] = {}
        self.compacted: set[str] = set()
        self.made = 0
        self.now_ms = time.time_ns() // 1_000_000
        self.reader = self.cluster.consumer()

    def teardown(self) -> None:
        if hasattr(self, "cluster"):
            self.cluster.close()
            shutil.rmtree(self.path)

    # -- topics ----------------------------------------------------------------------------------------------

    @rule(target=topics, partitions=st.integers(1, 2), compacted=st.booleans())
    def create(self, partitions: int, compacted: bool) -> str:
        name = f"t{self.made}"
        self.made += 1
        config = (
            {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": 0}
            if compacted
            else {"retention.ms": 86_400_000}
        )
        self.cluster.create_topic(name, partitions=partitions, config=config)
        self.logs |= {TopicPartition(name, number): Log() for number in range(partitions)}
        if compacted:
            self.compacted.add(name)
        self.assign()
        return name

    @rule(topic=consumes(topics), again=st.booleans())
    def delete(self, topic: str, again: bool) -> None:
        self.cluster.delete_topic(topic)
        for tp in [tp for tp in self.logs if tp.topic == topic]:
            del self.logs[tp]
        self.assign()
        with pytest.raises(UnknownTopicOrPartitionError):
            self.cluster.topic(topic)

    @rule(topic=topics)
    def grow(self, topic: str) -> None:
        total = len(self.cluster.topic(topic)) + 1
        if total <= 3:
            self.cluster.topic(topic).add_partitions(total)
            self.logs[TopicPartition(topic, total - 1)] = Log()
            self.assign()

    def assign(self) -> None:
        self.reader.assign(self.logs)
        for tp, log in self.logs.items():
            self.reader.seek(tp, log.position)

    # -- writing ---------------------------------------------------------------------------------------------

    def entries(self, items: list[tuple[bytes, bytes | None, bool]]) -> list[Entry]:
        return [(key, value, ANCIENT_MS if ancient else self.now_ms) for key, value, ancient in items]

    @rule(topic=topics, number=st.integers(0, 2), items=ITEMS, codec=st.sampled_from(["none", "zstd"]))
    def send(
        self, topic: str, number: int, items: list[tuple[bytes, bytes | None, bool]], codec: str
    ) -> None:
        number %= len(self.cluster.topic(topic))
        log = self.logs[TopicPartition(topic, number)]
        entries = self.entries(items)
        with self.cluster.producer(linger_ms=60_000, compression=codec) as producer:
            futures = producer.send_many(
                topic, [Record(topic, number, -1, timestamp, key, value) for key, value, timestamp in entries]
            )
            assert [metadata.offset for metadata in futures.result()] == list(
                range(log.end, log.end + len(entries))
            )
        log.append(entries)

    @rule(topic=topics, items=ITEMS)
    def produce_as_the_wire_does(self, topic: str, items: list[tuple[bytes, bytes | None, bool]]) -> None:
        """The same in Kafka's own body layout."""
        log = self.logs[TopicPartition(topic, 0)]
        entries = self.entries(items)
        keys, values, timestamps = (list(column) for column in zip(*entries, strict=True))
        sealed = batches.seal_v2_columns(keys, values, timestamps=timestamps)
        [produced] = self.cluster._backend.broker.call(api.Produce([(topic, 0, sealed)]))
        assert (produced.error, produced.base_offset) == (None, log.end)
        log.append(entries)

    # -- reading ---------------------------------------------------------------------------------------------

    @rule(topic=topics, offset=PLACE, most=st.integers(1, 50))
    def read(self, topic: str, offset: int, most: int) -> None:
        log = self.logs[TopicPartition(topic, 0)]
        partition = self.cluster.topic(topic)[0]
        if offset == 0 or log.start <= offset <= log.end:
            assert shown(partition.read(offset, most)) == log.visible(offset)[:most]
        else:
            with pytest.raises(OffsetOutOfRangeError):
                partition.read(offset, most)

    @rule(topic=topics, offset=PLACE)
    def seek(self, topic: str, offset: int) -> None:
        tp = TopicPartition(topic, 0)
        self.logs[tp].position = offset
        self.reader.seek(tp, offset)
        assert self.reader.position(tp) == offset

    @rule(topic=topics, most=st.integers(1, 40))
    def poll(self, topic: str, most: int) -> None:
        """One partition at a time, so that the model knows whose turn it is."""
        tp = TopicPartition(topic, 0)
        log = self.logs[tp]
        others = [other for other in self.logs if other != tp]
        self.reader.pause(*others)
        records = self.reader.poll(0, max_records=most)
        self.reader.resume(*others)
        if not log.start <= log.position <= log.end:
            log.position = log.start  # auto_offset_reset="earliest"
        expected = log.visible(log.position)[:most]
        assert shown(records) == expected
        if expected and len(log.visible(log.position)) > len(expected):
            log.position = expected[-1][0] + 1
        else:
            log.position = log.end
        if expected and expected[-1][0] + 1 < log.end and log.position == log.end:
            # Compaction left nothing behind the last record: the position may stand before the gap or behind
            # it.
            assert expected[-1][0] < self.reader.position(tp) <= log.end
            log.position = self.reader.position(tp)
        assert self.reader.position(tp) == log.position

    @rule(topic=topics, timestamp=st.sampled_from([0, ANCIENT_MS, ANCIENT_MS + 1, 10**15]))
    def by_time(self, topic: str, timestamp: int) -> None:
        tp = TopicPartition(topic, 0)
        expected = next((at for at, (_, _, stamp) in self.logs[tp].visible(0) if stamp >= timestamp), None)
        found = self.reader.offsets_for_times({tp: timestamp})[tp]
        assert (None if found is None else found.offset) == expected

    # -- taking away -----------------------------------------------------------------------------------------

    @rule(topic=topics, offset=PLACE)
    def delete_records(self, topic: str, offset: int) -> None:
        log = self.logs[TopicPartition(topic, 0)]
        partition = self.cluster.topic(topic)[0]
        if topic in self.compacted:
            with pytest.raises(PolicyViolationError):
                partition.delete_records(offset)
        elif offset > log.end:
            with pytest.raises(OffsetOutOfRangeError):
                partition.delete_records(offset)
        else:
            log.begin_at(offset)
            assert partition.delete_records(offset) == log.start
            self.assign()

    @rule(topic=topics, offset=PLACE)
    def truncate(self, topic: str, offset: int) -> None:
        """What a follower does; the client's part is to notice."""
        log = self.logs[TopicPartition(topic, 0)]
        if log.start <= offset <= log.end:
            self.cluster._backend.broker.call(api.TruncateTail(topic, 0, offset))
            log.truncate(offset)
            self.assign()

    @precondition(lambda self: self.logs)
    @rule()
    def clean(self) -> None:
        """Retention and compaction: what they may take, what they must leave."""
        self.cluster.clean()
        for tp, log in self.logs.items():
            partition = self.cluster.topic(tp.topic)[tp.partition]
            left = dict(shown(partition.read(0, 10_000)))
            if tp.topic in self.compacted:
                self.check_compacted(log, left)
                log.entries = left
                # Of a batch whose records are all gone nothing is left, but of the last one.
                log.batches = [
                    (first, behind)
                    for first, behind in log.batches
                    if behind == log.end or any(first <= at < behind for at in left)
                ]
            else:
                start = partition.log_start_offset
                gone = [entry for at, entry in log.entries.items() if at < start]
                assert all(stamp == ANCIENT_MS for _, _, stamp in gone), "retention took what is young"
                log.begin_at(start)
                for first, behind in log.batches[:1]:
                    if first < start:
                        continue  # its youngest record may be one that was deleted: the batch keeps that stamp
                    held = [log.entries[at] for at in range(first, behind)]
                    assert any(stamp != ANCIENT_MS for _, _, stamp in held) or behind == log.end, (
                        "retention left what is old"
                    )
        self.assign()

    @staticmethod
    def check_compacted(log: Log, left: dict[int, Entry]) -> None:
        assert left.items() <= log.entries.items(), "compaction invented or changed a record"
        last_batch = log.batches[-1][0] if log.batches else log.end
        newest: dict[bytes | None, int] = {}
        for at, (key, _, _) in log.visible(0):
            if at < last_batch:
                newest[key] = at
            else:
                assert at in left, "the last batch is not cleaned"
        for key, at in newest.items():
            assert at in left, f"the last value of {key!r} is gone"
        assert {at for at in left if at < last_batch} == set(newest.values()), "an older value was left"

    @rule()
    def reopen(self) -> None:
        self.cluster.close()
        self.cluster = streamlog.open(self.path / "d", sync="off", log_cleaner_enable=False)
        self.reader = self.cluster.consumer()
        self.assign()

    # -- always ----------------------------------------------------------------------------------------------

    @invariant()
    def the_cluster_is_what_the_model_says(self) -> None:
        if not hasattr(self, "cluster"):
            return
        assert self.cluster.topics == sorted({tp.topic for tp in self.logs})
        for tp, log in self.logs.items():
            partition = self.cluster.topic(tp.topic)[tp.partition]
            assert (partition.log_start_offset, partition.high_watermark, partition.log_end_offset) == (
                log.start,
                log.end,
                log.end,
            )
            assert shown(partition.read(0, 10_000)) == log.visible(0)


def run(examples: int, steps: int) -> None:
    """Derandomized: a failure is a failure for everybody; the long run takes new roads each time."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        ClusterModel,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=examples < 100,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_sequence_of_steps_agrees_with_the_model() -> None:
    run(40, 30)


@pytest.mark.long
def test_many_sequences_of_steps_agree_with_the_model() -> None:
    run(1500, 60)
