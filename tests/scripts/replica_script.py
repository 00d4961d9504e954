"""The interpreter of replica scripts: real brokers whose threads never start; each step is a command.

    cluster [brokers=3] [partitions=1] [rf=all] [TOPIC OPTION=value ...] [@CLUSTER_OPTION=value ...]
                                          once, first: topic `t`, and the status of its partition 0
    append VALUE ... [acks=all] [to=B] [timeout_ms=30000] [partition=0]    one batch, to the leader the image names;
                                          to=B: to whom a client with old metadata takes for it
    append_everywhere VALUE [acks=all]    one request, a batch for each partition led by the leader of partition 0
    fetch B ...       one fetch of that follower for all it follows (`fetch 1 1`: two)
    settle            fetches of all that run until none brings anything
    read [OFFSET] [from=B]                as a consumer: below the high watermark only
    latest            as ListOffsets(latest)
    crash B [lose_unsynced]   stop B   start B   pause B   resume B   fill_disk B   empty_disk B   sync B
    cut GROUP GROUP   (0,1 2: 2 is cut off; `m` is the metadata log, else with the largest group)      heal
    add_broker        reassign 3,1        cancel        elect preferred|unclean
    delete_records OFFSET [timeout_ms=30000]
    alter OPTION=value                    of the topic
    advance_ms N      leases are renewed by who can, deadlines fire at their time
    status   log   epochs [B ...]         what each replica holds;     controller

The trace has what changed at each replica (end, high watermark, epochs, start), what brokers note (roles, ISR,
truncations), what a fetch asked and was told, and what producers (p1, p2, ...) are told.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from runner import Command

import streamlog
from streamlog.batch import seal_columnar
from streamlog.broker import api
from streamlog.broker.pending import Pending
from streamlog.broker.replication import is_readable
from streamlog.broker.runner import Task, ThreadedRuntime
from streamlog.broker.turn import Tick
from streamlog.clock import ManualClock
from streamlog.errors import StreamlogError, StreamlogTimeoutError
from streamlog.storage import log

START_MS = 1_000
STEP_MS = 500
ROUNDS_MAX = 50


class NeverRun:
    """A thread that was asked for and not started."""

    def join(self, timeout_ms: int | None = None) -> bool:
        return True


class PassingWaiter:
    """Whoever waits lets the clock pass: nobody else could set the latch meanwhile."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def wait(self, timeout_ms: int | None) -> bool:
        if not self._is_set:
            assert timeout_ms is not None, "this would wait for ever"
            self._clock.advance(max(1, timeout_ms))
        was_set, self._is_set = self._is_set, False
        return was_set


class StepRuntime(ThreadedRuntime):
    """No threads, a clock that a script moves, and ears for what brokers note."""

    def __init__(self) -> None:
        super().__init__(ManualClock(START_MS), seed=1)
        self.notes: list[str] = []

    def spawn(self, name: str, run: Callable[[], None]) -> Task:
        return NeverRun()

    def waiter(self) -> Any:
        assert isinstance(self.clock, ManualClock)
        return PassingWaiter(self.clock)

    def note(self, text: str) -> None:
        if self.notes[-1:] != [text]:
            self.notes.append(text)


class Seen(NamedTuple):
    """One replica as the script last saw it."""

    start: int
    high_watermark: int
    end: int
    epochs: tuple[tuple[int, int], ...]


class ReplicaScript:
    def __init__(self) -> None:
        self.runtime = StepRuntime()
        self.cluster: Any = None
        self.seen: dict[tuple[int, int], Seen] = {}
        self.wrapped: set[int] = set()
        self.lines: list[str] = []
        self.producers = 0

    def run(self, command: Command) -> Iterable[str]:
        handler: Callable[[Command], Iterable[str] | None] = getattr(self, f"do_{command.name}")
        said: Iterable[str] = ()
        try:
            said = list(handler(command) or ())
        except StreamlogError as error:
            said = [f"refused: {type(error).__name__}"]
        self.look()
        lines, self.lines = self.lines, []
        return [*lines, *said]

    def close(self) -> None:
        if self.cluster is not None:
            for broker in self.backend.brokers:
                broker.paused = False
                broker.disk_is_full = False
            self.cluster.close()

    # -- the cluster -------------------------------------------------------------------------------------------------

    def do_cluster(self, command: Command) -> Iterable[str]:
        options = dict(command.options)
        brokers = int(options.pop("brokers", 3))
        partitions, factor = int(options.pop("partitions", 1)), int(options.pop("rf", brokers))
        opening = {name[1:]: value for name, value in options.items() if name.startswith("@")}
        topic = {name: value for name, value in options.items() if not name.startswith("@")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of options that are legacy
            self.cluster = streamlog.open(
                ":memory:", brokers=brokers, sync="off", runtime=self.runtime, config=opening
            )

        def nobody_helps(begin: Callable[[], None], is_done: Callable[[], bool]) -> None:
            begin()

        self.backend.peers.helping.help = nobody_helps
        self.cluster.create_topic("t", partitions=partitions, replication_factor=factor, config=topic)
        for broker in self.backend.brokers:
            for number in range(partitions):
                if broker.id in self.image(number).replicas:
                    broker.partition("t", number)
        self.runtime.notes.clear()
        self.seen = self.replicas()
        return self.do_status(command)

    def do_add_broker(self, command: Command) -> Iterable[str]:
        return [f"broker {self.cluster.add_broker().id} joined"]

    def do_reassign(self, command: Command) -> None:
        self.cluster.reassign("t", {0: [int(word) for word in command.arguments[0].split(",")]})

    def do_cancel(self, command: Command) -> None:
        self.cluster.reassign("t", {0: None})

    def do_elect(self, command: Command) -> None:
        self.cluster.elect_leaders("t", [0], command.arguments[0])

    def do_alter(self, command: Command) -> None:
        self.cluster.topic("t").alter_config(command.options)

    def do_delete_records(self, command: Command) -> None:
        before = int(command.arguments[0])

        def answered(pending: Pending) -> None:
            self.look()
            told = f"begins at {pending.reply}" if pending.error is None else type(pending.error).__name__
            self.lines.append(f"delete below {before}: {told}")

        request = api.DeleteRecords("t", 0, before, command.number("timeout_ms", 30_000))
        pending = self.broker(self.image(0).leader).post(request, on_done=answered)
        self.look()
        if not pending.done:
            self.lines.append(f"delete below {before} waits")

    def do_controller(self, command: Command) -> Iterable[str]:
        image = self.backend.metadata.image
        return [f"controller {image.controller_id} epoch={image.controller_epoch}"]

    # -- faults ------------------------------------------------------------------------------------------------------

    def do_crash(self, command: Command) -> None:
        self.handle(command).crash(lose_unsynced=command.flag("lose_unsynced"))

    def do_stop(self, command: Command) -> None:
        self.handle(command).stop()

    def do_start(self, command: Command) -> None:
        self.handle(command).start()
        self.load(int(command.arguments[0]))

    def do_pause(self, command: Command) -> None:
        self.handle(command).pause()

    def do_resume(self, command: Command) -> None:
        self.handle(command).resume()

    def do_fill_disk(self, command: Command) -> None:
        self.handle(command).fill_disk()

    def do_empty_disk(self, command: Command) -> None:
        self.handle(command).fill_disk(False)

    def do_sync(self, command: Command) -> None:
        broker = self.broker(int(command.arguments[0]))
        assert broker.flushing.flush()

    def do_cut(self, command: Command) -> None:
        groups = [
            {"metadata" if word == "m" else int(word) for word in group.split(",")}
            for group in command.arguments
        ]
        self.cluster.network.partition(*groups)

    def do_heal(self, command: Command) -> None:
        self.cluster.network.heal()

    def do_advance_ms(self, command: Command) -> None:
        clock = self.runtime.clock
        assert isinstance(clock, ManualClock)
        until_ms = clock.monotonic_ms() + int(command.arguments[0])
        while (now_ms := clock.monotonic_ms()) < until_ms:
            deadlines = [broker._next_deadline_ms(now_ms) or 0 for broker in self.backend.brokers]
            next_ms = min([ms for ms in deadlines if ms > now_ms], default=until_ms)
            clock.advance(min(STEP_MS, until_ms - now_ms, next_ms - now_ms))
            now_ms = clock.monotonic_ms()
            told = len(self.lines)
            for broker in self.backend.brokers:
                self.backend.peers._keep_lease(broker, now_ms)
            for broker in self.backend.brokers:
                deadline_ms = broker._next_deadline_ms(now_ms)
                if not broker.paused and deadline_ms is not None and deadline_ms <= now_ms:
                    broker.post(Tick())
            self.look()
            if len(self.lines) > told:
                self.lines.insert(told, f"at {now_ms - START_MS} ms")

    # -- records -----------------------------------------------------------------------------------------------------

    def do_append(self, command: Command) -> None:
        number = command.number("partition", 0)
        self.append(command, [number], list(command.arguments))

    def do_append_everywhere(self, command: Command) -> None:
        leader = self.image(0).leader
        numbers = [
            number
            for number, of in enumerate(self.backend.metadata.image.topics["t"].partitions)
            if of.leader == leader
        ]
        self.append(command, numbers, list(command.arguments))

    def append(self, command: Command, numbers: list[int], values: list[str]) -> None:
        self.producers += 1
        name = f"p{self.producers}"
        acks = {"all": -1, "1": 1, "0": 0}[command.option("acks", "all")]
        batch = seal_columnar(
            [None] * len(values),
            [value.encode() for value in values],
            timestamps=self.runtime.clock.wall_ms(),
        )
        request = api.Produce(
            [("t", number, batch) for number in numbers], acks, command.number("timeout_ms", 30_000)
        )

        def answered(pending: Pending) -> None:
            self.look()
            if pending.error is not None:
                self.lines.append(f"{name} refused: {type(pending.error).__name__}")
                return
            outcomes = []
            for number, produced in zip(numbers, pending.reply, strict=True):
                which = f"t-{number} " if len(numbers) > 1 else ""
                if produced.error is not None:
                    outcomes.append(f"{which}refused: {type(produced.error).__name__}")
                elif produced.base_offset < 0:
                    outcomes.append(f"{which}sent")  # acks=0: nobody says where
                else:
                    end = produced.base_offset + len(values)
                    outcomes.append(f"{which}[{produced.base_offset},{end}) acknowledged")
            self.lines.append(f"{name} " + ", ".join(outcomes))

        to = command.number("to", self.image(numbers[0]).leader)
        broker = self.backend.peers.running(to)
        if broker is None:
            self.lines.append(
                f"{name} finds nobody: broker {to} is down" if to >= 0 else f"{name} finds no leader"
            )
            return
        pending = broker.post(request, on_done=answered)
        self.look()
        if not pending.done:
            self.lines.append(f"{name} waits")

    def do_read(self, command: Command) -> Iterable[str]:
        offset = int(command.arguments[0]) if command.arguments else 0
        broker = self.broker(command.number("from", self.image(0).leader))
        partition = broker.partition("t", 0)
        _, batches = broker.reader.read(partition, offset, 1 << 20)
        high_watermark = partition.state.high_watermark
        found = [
            f"{record.offset}:{record.value.decode()}"
            for batch in batches
            for record in batch.records("t", 0, offset)
        ]
        return [f"reads {' '.join(found) or 'nothing'} (high watermark {high_watermark})"]

    def do_latest(self, command: Command) -> Iterable[str]:
        partition = self.broker(self.image(0).leader).partition("t", 0)
        if not is_readable(partition):
            return ["latest: not available yet"]
        return [f"latest: {partition.state.high_watermark}"]

    def do_fetch(self, command: Command) -> None:
        for word in command.arguments:
            if not self.fetch_once(int(word), is_told=True):
                self.lines.append(f"b{word} has nobody to fetch from")
            self.look()

    def do_settle(self, command: Command) -> None:
        for _ in range(ROUNDS_MAX):
            before = (self.replicas(), [self.image(number) for number in self.numbers()])
            for broker in list(self.backend.brokers):
                self.fetch_once(broker.id, is_told=False)
                self.look()
            if before == (self.replicas(), [self.image(number) for number in self.numbers()]):
                return
        raise AssertionError(f"not settled after {ROUNDS_MAX} rounds")

    def fetch_once(self, follower_id: int, is_told: bool) -> bool:
        """One fetch for everything that broker follows; False if it has nothing to do or cannot."""
        peers = self.backend.peers
        follower = peers.running(follower_id)
        if follower is None or follower.paused:
            return False
        self.load(follower_id)
        sources = {}
        for number in self.numbers():
            partition = follower.partitions.get(("t", number))
            if partition is not None and partition.leadership is None and partition.leader_id >= 0:
                fetcher = peers.fetcher(follower_id, partition.leader_id, ("t", number))
                if fetcher is not None:
                    fetcher.mark(("t", number))
                    sources[id(fetcher)] = fetcher
        has_fetched = False
        for fetcher in sources.values():
            fetcher.retry_now()
            self.telling = follower_id if is_told else None
            self.wrap(fetcher)
            fetcher._owed.clear()  # each fetch of a script asks
            failures = fetcher.failures
            has_fetched = fetcher.run_once(1) or has_fetched
            if fetcher.failures > failures and is_told:
                has_fetched = True
        if not sources:
            return False
        if not has_fetched and is_told:
            self.lines.append(f"b{follower_id} reaches nobody")
        return True

    telling: int | None = None

    def wrap(self, fetcher: Any) -> None:
        """Have what a fetch asks and is told in the trace."""
        if id(fetcher) in self.wrapped:
            return
        self.wrapped.add(id(fetcher))
        hear = fetcher._hear

        def traced(source: Any, pending: Pending, wait_ms: int) -> Any:
            request: Any = pending.request
            if self.telling is None:
                return hear(source, pending, wait_ms)
            try:
                answers = hear(source, pending, wait_ms)
            except StreamlogTimeoutError:
                asked = " ".join(f"{p.fetch_offset}@{p.last_fetched_epoch}" for p in request.positions)
                self.lines.append(f"b{request.follower_id} asks b{source.id} for {asked}: no answer")
                raise
            self.look()
            for position, answer in zip(request.positions, answers, strict=True):
                asked = f"{position.fetch_offset}@{position.last_fetched_epoch}"
                which = f" t-{position.number}" if len(self.numbers()) > 1 else ""
                if answer.error is not None:
                    told = f"{type(answer.error).__name__}"
                elif answer.diverging is not None:
                    told = f"diverging, epoch {answer.diverging.epoch} ends at {answer.diverging.end_offset}"
                else:
                    told = f"end {answer.log_end_offset} hw {answer.high_watermark}"
                self.lines.append(f"b{request.follower_id} asks b{source.id}{which} for {asked}: {told}")
            return answers

        fetcher._hear = traced

    # -- what there is -----------------------------------------------------------------------------------------------

    def do_status(self, command: Command) -> Iterable[str]:
        lines = []
        for number in self.numbers():
            of = self.image(number)
            which = f"t-{number}" if len(self.numbers()) > 1 else "t"
            leader = f"leader {of.leader}" if of.leader >= 0 else "no leader"
            moving = (
                f" adding={list(of.adding)} removing={list(of.removing)}" if of.adding or of.removing else ""
            )
            lines.append(
                f"{which}: {leader} epoch={of.leader_epoch} isr={list(of.isr)} replicas={list(of.replicas)}{moving}"
            )
            for broker in self.backend.brokers:
                partition = broker.partitions.get(("t", number))
                if partition is None:
                    continue
                state = partition.state
                role = "leads  " if partition.leadership is not None or partition.is_alone else "follows"
                lines.append(
                    f"  b{broker.id}@{partition.role_epoch} {role} leo={state.log_end_offset} "
                    f"hw={state.high_watermark}" + (" paused" if broker.paused else "")
                )
        return lines

    def do_log(self, command: Command) -> Iterable[str]:
        wanted = [int(word) for word in command.arguments] or [broker.id for broker in self.backend.brokers]
        for broker_id in wanted:
            broker = self.broker(broker_id)
            partition = broker.partition("t", 0)
            state = partition.state
            found = []
            with broker.environment.snapshot() as snapshot:
                offset = state.log_start_offset
                while offset < state.log_end_offset:
                    batches = log.read(snapshot, partition.log_id, offset, state.log_end_offset, 1 << 20)
                    for batch in batches:
                        found += [
                            f"{record.offset}:{record.value.decode()}@{batch.leader_epoch}"
                            for record in batch.records("t", 0, offset)
                        ]
                        offset = batch.next_offset
            yield f"b{broker_id} holds {' '.join(found) or 'nothing'}"

    def do_epochs(self, command: Command) -> Iterable[str]:
        wanted = [int(word) for word in command.arguments] or [broker.id for broker in self.backend.brokers]
        for broker_id in wanted:
            entries = self.broker(broker_id).partition("t", 0).epochs.entries
            yield f"b{broker_id} epochs " + (
                " ".join(f"({epoch},{start})" for epoch, start in entries) or "none"
            )

    def look(self) -> None:
        """Put what has changed since the last look into the trace."""
        if self.cluster is None:
            return
        self.lines += [f"* {note}" for note in self.runtime.notes]
        self.runtime.notes.clear()
        now = self.replicas()
        for key, after in now.items():
            before = self.seen.get(key, Seen(0, 0, 0, ()))
            if after != before:
                self.lines += self.changes(key, before, after)
        self.seen = now

    def changes(self, key: tuple[int, int], before: Seen, after: Seen) -> Iterable[str]:
        broker_id, number = key
        name = f"b{broker_id}" + (f" t-{number}" if len(self.numbers()) > 1 else "")
        if after.end > before.end:
            yield f"{name} append [{before.end},{after.end})"
        elif after.end < before.end:
            yield f"{name} cut [{after.end},{before.end})"
        if after.start != before.start:
            yield f"{name} start {before.start} => {after.start}"
        if after.high_watermark != before.high_watermark:
            yield f"{name} hw {before.high_watermark} => {after.high_watermark}"
        if after.epochs != before.epochs:
            yield f"{name} epochs " + (" ".join(f"({e},{s})" for e, s in after.epochs) or "none")

    def replicas(self) -> dict[tuple[int, int], Seen]:
        found = {}
        for broker in self.backend.brokers:
            for number in self.numbers():
                partition = broker.partitions.get(("t", number))
                if partition is not None:
                    state = partition.state
                    entries = tuple((entry.epoch, entry.start_offset) for entry in partition.epochs.entries)
                    found[broker.id, number] = Seen(
                        state.log_start_offset, state.high_watermark, state.log_end_offset, entries
                    )
                elif (broker.id, number) in self.seen and broker.id in self.image(number).replicas:
                    found[broker.id, number] = self.seen[broker.id, number]
        down = {broker_id for broker_id, _ in self.seen} - {broker.id for broker in self.backend.brokers}
        found.update({key: seen for key, seen in self.seen.items() if key[0] in down})
        return dict(sorted(found.items()))

    # -- small things ------------------------------------------------------------------------------------------------

    @property
    def backend(self) -> Any:
        return self.cluster._backend

    def numbers(self) -> range:
        return range(len(self.backend.metadata.image.topics["t"].partitions))

    def image(self, number: int) -> Any:
        return self.backend.metadata.image.topics["t"].partitions[number]

    def broker(self, broker_id: int) -> Any:
        broker = self.backend.peers.running(broker_id)
        assert broker is not None, f"broker {broker_id} does not run"
        return broker

    def handle(self, command: Command) -> Any:
        wanted = int(command.arguments[0])
        return next(handle for handle in self.cluster.brokers if handle.id == wanted)

    def load(self, broker_id: int) -> None:
        """Have it look at its replicas, as a broker does that starts."""
        for number in self.numbers():
            if broker_id in self.image(number).replicas:
                self.broker(broker_id).partition("t", number)
