"""The interpreter of transaction scripts: three simulated brokers, topic `t` of two partitions, group `g`, one id.

A producer is known by a name; the id is the same for all.

    init NAME [timeout_ms=10000]    a producer comes with the id, known as NAME from now on
    add NAME 0,1                    the partitions join its transaction
    write NAME PARTITION VALUE [again]    a record; again: the last one of that partition once more
    offsets NAME OFFSET             of t-0, for group g, held until the end
    end NAME commit|abort [old]     old: as a delayed request, with the epoch its last end had
    hold      release               markers stay with the coordinator; go out again
    crash coordinator|B   start B   sleep SECONDS
    read [PARTITION]                as a reader of committed records
    status                          the id's state, and of each partition the stable offset and the end

The trace has what each is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

from runner import Command

import streamlog
from streamlog.batch import seal_columnar
from streamlog.broker.api import AddPartitions, EndTxn, InitProducerId, Produce
from streamlog.broker.transaction_completion import Completions
from streamlog.broker.transaction_coordinators import call, coordinator_of
from streamlog.core.group import group_partition
from streamlog.core.group_events import TxnOffsetCommit
from streamlog.errors import StreamlogError
from streamlog.record import OffsetAndMetadata, TopicPartition
from streamlog.testing import Simulation

ID = "x"
PATIENCE_MS = 2_000
Stamp = tuple[int, int]


class TransactionScript:
    def __init__(self) -> None:
        self._simulation = Simulation(1)
        self._cluster = streamlog.open(":memory:", brokers=3, sync="off", runtime=self._simulation)  # type: ignore[arg-type]
        self._cluster.create_topic("t", 2, replication_factor=3)
        self._backend: Any = self._cluster._backend
        self._backend.ensure_offsets_topic()
        self._stamps: dict[str, Stamp] = {}
        self._ended: dict[str, Stamp] = {}
        self._next: dict[tuple[Stamp, int], int] = {}
        self._held: Any = None

    def close(self) -> None:
        if self._held is not None:
            self._held.stop()
        for broker in self._cluster.brokers:
            if broker.state == "down":
                broker.start()
        self._cluster.close()

    def run(self, command: Command) -> Iterable[str]:
        try:
            for line in getattr(self, f"_{command.name}")(command):
                yield f"{command.arguments[0] if command.arguments else command.name:<8} {line}"
        except StreamlogError as error:
            yield f"{command.arguments[0]:<8} {command.name} refused: {type(error).__name__}"

    def _init(self, command: Command) -> Iterable[str]:
        [name] = command.arguments
        event = InitProducerId(command.number("timeout_ms", 10_000), self._backend.metadata.new_producer_id())
        self._stamps[name] = self._call(event)
        yield f"init {_shown(self._stamps[name])}"

    def _call(self, event: object) -> Stamp:
        return call(self._backend, ID, event, PATIENCE_MS)

    def _add(self, command: Command) -> Iterable[str]:
        name, numbers = command.arguments
        self._call(AddPartitions(*self._stamps[name], [("t", int(number)) for number in numbers.split(",")]))
        yield f"add {numbers} done"

    def _write(self, command: Command) -> Iterable[str]:
        name, number, value = command.arguments[:3]
        stamp, partition = self._stamps[name], int(number)
        sequence = self._next.get((stamp, partition), 0) - command.flag("again")
        batch = seal_columnar(
            None,
            [value.encode()],
            timestamps=1,
            producer_id=stamp[0],
            producer_epoch=stamp[1],
            base_sequence=sequence,
            transactional=True,
        )
        [produced] = self._backend.leader("t", partition).call(
            Produce([("t", partition, batch)]), PATIENCE_MS
        )
        if produced.error is not None:
            raise produced.error
        self._next[stamp, partition] = sequence + 1
        yield f"write {value} at t-{partition} offset {produced.base_offset}"

    def _offsets(self, command: Command) -> Iterable[str]:
        name, offset = command.arguments
        stamp = self._stamps[name]
        count = len(self._backend.topic("__consumer_offsets").partitions)
        self._call(AddPartitions(*stamp, [("__consumer_offsets", group_partition("g", count))]))
        where = {TopicPartition("t", 0): OffsetAndMetadata(int(offset))}
        event = TxnOffsetCommit(token=0, offsets=where, producer_id=stamp[0], producer_epoch=stamp[1])
        self._backend.call_group("g", event)
        yield f"offsets {offset} held"

    def _end(self, command: Command) -> Iterable[str]:
        name, how = command.arguments[:2]
        stamp = self._ended[name] if command.flag("old") else self._stamps[name]
        after = self._call(EndTxn(*stamp, how == "commit", wait_ms=500))
        if not command.flag("old"):
            self._ended[name], self._stamps[name] = stamp, after
        yield f"end {how} done, next {_shown(after)}"

    def _hold(self, command: Command) -> Iterable[str]:
        self._held = patch.object(Completions, "_send", lambda *_: None)
        self._held.start()
        return ()

    def _release(self, command: Command) -> Iterable[str]:
        self._held.stop()
        self._held = None
        return ()

    def _crash(self, command: Command) -> Iterable[str]:
        which = command.arguments[0]
        broker = coordinator_of(self._backend, ID).id if which == "coordinator" else int(which)
        self._cluster.brokers[broker].crash()
        yield "crashed"

    def _start(self, command: Command) -> Iterable[str]:
        for broker in self._cluster.brokers:
            if broker.state == "down":
                broker.start()
        yield "runs"

    def _sleep(self, command: Command) -> Iterable[str]:
        self._simulation.sleep(float(command.arguments[0]))
        return ()

    def _read(self, command: Command) -> Iterable[str]:
        with self._cluster.consumer(isolation_level="read_committed", stop_at_end=True) as reader:
            reader.assign([("t", number) for number in range(2)])
            found = list(reader)
        for number in range(2):
            values = [record.value.decode() for record in found if record.partition == number]
            yield f"t-{number}: {' '.join(values) or 'nothing'}"

    def _status(self, command: Command) -> Iterable[str]:
        known = coordinator_of(self._backend, ID).coordinator.transactions._states[ID]
        joined = ",".join(f"{topic}-{number}" for topic, number in known.partitions if topic == "t")
        yield f"{known.state.name} epoch {known.producer_epoch}" + (f" in {joined}" if joined else "")
        for number in range(2):
            state = self._backend.leader("t", number).partition("t", number).state
            yield f"t-{number}: stable {state.last_stable_offset}, high watermark {state.high_watermark}"
        offsets = self._cluster.consumer_group("g").offsets()
        group = self._backend.coordinator.group("g")
        is_stable = group is None or group.machine.is_stable("t", 0)
        yield f"g: {offsets.get(TopicPartition('t', 0), 'nothing')}{'' if is_stable else ', another one is held'}"


def _shown(stamp: Stamp) -> str:
    return f"producer {stamp[0]} epoch {stamp[1]}"
