"""Clients, an administrator and an adversary, drawn from one seed, over a simulated cluster; then peace and a verdict.

    seed --> options --> cluster, producers, group members, a reader, an administrator --60 virtual seconds, faults-->
         --> every fault ends --> converged? everything acknowledged read, in order? groups at lag 0?

`run(seed)` raises what a checker raised, or SeedFailedError; both carry how to run the seed again and the last events.

Not implemented: compacted topics of users, clients in other processes.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

import streamlog
from streamlog.errors import StreamlogError
from streamlog.testing.checkers import ImageInvariants
from streamlog.testing.checks import Checks
from streamlog.testing.faults import Adversary
from streamlog.testing.pipeline import Pipeline
from streamlog.testing.simulation import Simulation

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamlog.record import Record

SECONDS_MIN: Final = 60.0
OPERATIONS_MIN: Final = 300
FAULTS_MIN: Final = 5
SETTLE_SECONDS_MAX: Final = 120.0
LOOK_SECONDS: Final = 0.5
TRACE_LINES: Final = 60
PARTITIONS_MAX: Final = 6
BROKERS_MAX: Final = 5


class SeedFailedError(AssertionError):
    """A seed went wrong in another way than a checker sees: not converged, an acknowledged record gone, a wrong error."""


class Options(msgspec.Struct, frozen=True):
    """What a seed draws before it begins."""

    brokers: int
    replication_factor: int
    min_insync_replicas: int
    partitions: int
    acks: tuple[str | int, ...]
    cluster: dict[str, Any]
    sync: str
    request_timeout_ms: int
    delivery_timeout_ms: int
    session_timeout_ms: int
    loose_topic: bool


def draw(seed: int) -> Options:
    """The options of a seed."""
    chance = random.Random(f"options {seed}")
    brokers = chance.choice((1, 2, 3, 3, 3, 3, 4, 5))
    factor = chance.randint(min(2, brokers), min(3, brokers))
    lag_ms = chance.choice((500, 1_000, 2_000, 5_000, 10_000))
    broker_session_ms = chance.choice((1_500, 3_000, 6_000, 9_000))
    return Options(
        brokers,
        factor,
        chance.randint(1, factor),
        chance.randint(1, 3),
        ("all", chance.choice(("all", 1)), chance.choice((0, 1, "all"))),
        {
            "broker_session_timeout_ms": broker_session_ms,
            "broker_heartbeat_interval_ms": broker_session_ms // 3,
            "replica_lag_time_max_ms": lag_ms,
            "replica_fetch_wait_max_ms": min(500, lag_ms),
            "replica_fetch_backoff_ms": chance.choice((100, 1_000)),
            "replica_fetch_max_bytes": chance.choice((1, 1 << 20)),
            "num_replica_fetchers": chance.choice((1, 1, 2)),
            "replica_high_watermark_checkpoint_interval_ms": chance.choice((500, 5_000)),
            "flush_ms": chance.choice((200, 1_000, 5_000)),
            "offsets_topic_num_partitions": chance.randint(1, 3),
            "transaction_state_log_num_partitions": 2,
            "auto_leader_rebalance_enable": chance.random() < 0.5,
            "leader_imbalance_check_interval_seconds": 10,
        },
        chance.choice(("off", "off", "normal", "full")),
        chance.choice((500, 1_000, 3_000)),
        chance.choice((4_000, 10_000, 20_000)),
        chance.choice((6_000, 10_000)),
        chance.random() < 0.5 and brokers > 1,
    )


class Outcome(msgspec.Struct):
    """What a run did, for the hunt's counts."""

    seed: int
    digest: int
    operations: int
    virtual_seconds: float
    counts: Counter[str]


class Workload:
    """One seed's run."""

    def __init__(
        self, seed: int, options: Options | None = None, without: frozenset[str] = frozenset()
    ) -> None:
        """without: clients and faults that are left out, to see whether the seed fails all the same (`shrinking`)."""
        self.seed = seed
        self.without = without
        self.options = options or draw(seed)
        self.simulation = Simulation(seed)
        self.counts: Counter[str] = Counter()
        self.operations = 0
        self.is_over = False
        """Clients stop: the end has converged."""
        self.acked: dict[tuple[str, int], dict[int, bytes]] = defaultdict(dict)
        self.seen: dict[tuple[str, int], set[int]] = defaultdict(set)
        self.cluster: Any = None
        self._deleters: list[Any] = []
        self.last_events: list[str] = []
        self.parts: list[str] = []
        """What could be left out: the clients and, after the run, the faults."""
        self.checks: Checks

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Raises InvariantViolatedError, SeedFailedError, SimulationStalledError, or what the library raised."""
        options = self.options
        simulation = self.simulation
        runtime: Any = simulation
        with streamlog.open(
            ":memory:",
            brokers=options.brokers,
            sync=options.sync,
            runtime=runtime,
            **options.cluster,
        ) as cluster:
            self.cluster = cluster
            self.checks = Checks(simulation, cluster)
            try:
                self._run()
            except BaseException:
                self.last_events = [line for line in simulation.trace if not line.endswith(": runs")]
                self.parts += [
                    f"fault-{number}" for number in range(self.adversary.faults if self.parts else 0)
                ]
                raise
            finally:
                self.is_over = True
                simulation.checks.clear()
        image = self.checks[ImageInvariants]
        self.counts.update(
            {
                "elections": image.elections,
                "ISR shrinks": image.isr_shrinks,
                "ISR expands": image.isr_expands,
                "truncations": sum(b.replication.truncations for b in self.checks.brokers if b.replication),
            }
        )
        return Outcome(self.seed, simulation.digest, self.operations, simulation.now_ms / 1_000, self.counts)

    def _run(self) -> None:
        options, cluster, simulation = self.options, self.cluster, self.simulation
        topic_config = {"min.insync.replicas": options.min_insync_replicas}
        cluster.create_topic("orders", options.partitions, options.replication_factor, topic_config)
        topics = ["orders"]
        if options.loose_topic:
            cluster.create_topic("loose", 1, 2, {"unclean.leader.election.enable": True})
            topics.append("loose")
        self.adversary = Adversary(self)
        self.pipeline = Pipeline(self)
        self.pipeline.create(topic_config)
        writers, tasks = [], []
        for number, acks in enumerate(options.acks):
            topic = topics[number % len(topics)] if acks != "all" else "orders"
            writers.append(
                self._spawn("producer", number, partial(self._produce, number=number, topic=topic, acks=acks))
            )
        for number in range(2):
            tasks.append(self._spawn("member", number, self._consume_in_group))
        tasks.append(self._spawn("reader", 0, self._read))
        tasks += self.pipeline.spawn()
        administrator = self._spawn("administrator", 0, self._administer)
        while (
            simulation.now_ms < SECONDS_MIN * 1_000
            or (self.operations < OPERATIONS_MIN and not self.without)
            or self.adversary.faults < FAULTS_MIN
        ):
            self.adversary.act()
            simulation.sleep(self.adversary.chance.uniform(0.2, 4.0))
        self.adversary.end_all()
        self.is_quiet = True
        for task in (*writers, administrator):
            task.result()
        for task in self._deleters:  # the administrator makes no more of them
            task.result()
        self._settle()
        self.is_over = True
        for task in tasks:
            task.result()
        self._judge()

    is_quiet = False
    """No more faults; producers and the administrator have stopped."""

    def _spawn(self, role: str, number: int, run: Callable[[random.Random], None]) -> Any:
        chance = random.Random(f"{role} {number} of {self.seed}")
        name = f"{role}-{number}"

        def actor() -> None:
            if name not in self.without:
                run(chance)

        if role != "deleter":
            self.parts.append(name)
        actor.__name__ = name
        return self.simulation.spawn(actor)

    def _attempt(self, what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """One operation of a client: that it fails is no news while there are faults, if it fails with a named error."""
        self.operations += 1
        try:
            result = call(*arguments, **options)
        except StreamlogError as error:
            self.counts["failed operations"] += 1
            self.simulation.note(f"{what}: {type(error).__name__}: {str(error)[:200]}")
            return None
        self.simulation.note(f"{what}: {_brief(result)}")
        return result

    def _is_done(self) -> bool:
        return self.is_over

    # -- clients -----------------------------------------------------------------------------------------------------

    def _produce(self, chance: random.Random, number: int, topic: str, acks: Any) -> None:
        options, simulation = self.options, self.simulation
        sent = 0
        last: dict[int, int] = {}
        with self.cluster.producer(
            acks=acks,
            linger_ms=chance.choice((0, 5, 50)),
            request_timeout_ms=options.request_timeout_ms,
            delivery_timeout_ms=options.delivery_timeout_ms,
            retry_backoff_ms=50,
        ) as producer:
            while not self.is_quiet:
                count = chance.choice((1, 1, 1, 2, 5, 20))
                futures = []
                for _ in range(count):
                    # Only idempotent producers promise what `EachOnceInOrder` looks for.
                    value = b"%d-%d" % (number, sent) if acks == "all" else b"loose-%d-%d" % (number, sent)
                    sent += 1
                    future = self._attempt(
                        f"send {value.decode()}", producer.send, topic, value, key=b"%d" % (sent % 5)
                    )
                    if future is not None:
                        futures.append((value, future))
                for value, future in futures:
                    metadata = self._attempt(f"result {value.decode()}", future.result, 60)
                    if metadata is not None and acks == "all" and metadata.offset >= 0:
                        self._on_acked(topic, metadata, value, last)
                simulation.sleep(chance.choice((0.05, 0.5, 1.0, 3.0)))

    def _on_acked(self, topic: str, metadata: Any, value: bytes, last: dict[int, int]) -> None:
        self.counts["acked records"] += 1
        self.checks.acked(topic, metadata.partition, metadata.offset, value)
        self.acked[topic, metadata.partition][metadata.offset] = value
        if metadata.offset <= last.get(metadata.partition, -1):
            raise SeedFailedError(
                f"{value!r} was acknowledged at {topic}-{metadata.partition} offset {metadata.offset}, what was sent "
                f"before it at {last[metadata.partition]}"
            )
        last[metadata.partition] = metadata.offset

    def _consume_in_group(self, chance: random.Random) -> None:
        group = self.cluster.consumer_group(
            "group",
            ["orders"],
            session_timeout_ms=self.options.session_timeout_ms,
            auto_offset_reset="earliest",
        )
        while not self.is_over:
            consumer: Any = self._attempt("join", group.consumer)
            if consumer is None:
                self.simulation.sleep(0.5)
                continue
            self.checks.joined(consumer)
            try:
                for _ in range(chance.randint(5, 60)):
                    records: Any = self._attempt("poll", consumer.poll, chance.choice((0.3, 1.0, 3.0)))
                    if records:
                        self._on_read(records)
                        for record in records:
                            self.seen[record.topic, record.partition].add(record.offset)
                        self._attempt("commit", consumer.commit)
                    elif records is None:
                        self.simulation.sleep(0.1)
                    if self._is_done():
                        break
            finally:
                self._attempt("leave", consumer.close)
                self.checks.left(consumer)

    def _on_read(self, records: list[Record]) -> None:
        self.counts["records read"] += len(records)
        self.checks.read(records)

    def _read(self, chance: random.Random) -> None:
        """Reads partitions by hand, from here and there, and asks where they end."""
        consumer = self.cluster.consumer(default_api_timeout_ms=5_000)
        while not self.is_over:
            topic = self.cluster.topic("orders")
            number = chance.randrange(len(topic))
            kind = chance.randrange(4)
            if kind == 0:
                end = self._attempt("end", consumer.end_offsets, [("orders", number)])
                if end:
                    self.checks.told("orders", number, next(iter(end.values())))
                for group_id in ("group", "pipeline"):
                    offsets = self._attempt("offsets", self.cluster.consumer_group(group_id).offsets)
                    self.checks.committed(group_id, offsets or {})
            elif kind == 1:
                records = self._attempt("read", topic[number].read, 0, 1_000)
                if records:
                    self._on_read(records)
            else:
                self._attempt("assign", consumer.assign, [("orders", number)])
                self._attempt("seek", consumer.seek_to_beginning)
                for _ in range(chance.randint(1, 5)):
                    records = self._attempt("poll", consumer.poll, 0.3)
                    if records:
                        self._on_read(records)
            self.simulation.sleep(chance.uniform(0.3, 4.0))
        consumer.close()

    # -- the administrator -------------------------------------------------------------------------------------------

    def _administer(self, chance: random.Random) -> None:
        actions = (
            self._create, self._add_partitions, self._delete_records, self._alter, self._reassign, self._reassign,
            self._add_broker, self._elect, self._elect,
        )  # fmt: skip
        while not self.is_quiet:
            self.simulation.sleep(chance.uniform(0.5, 5.0))
            if not self.is_quiet:
                chance.choice(actions)(chance)

    def _create(self, chance: random.Random) -> None:
        name = f"made-{self.operations}"
        factor = chance.randint(1, min(3, len(self.cluster.brokers)))
        if len(self.cluster.topics) < 6:
            self._attempt(f"create {name}", self.cluster.create_topic, name, 1, factor)

    def _add_partitions(self, chance: random.Random) -> None:
        topic = self.cluster.topic("orders")
        if len(topic) < PARTITIONS_MAX:
            self._attempt("add a partition", topic.add_partitions, len(topic) + 1)

    def _delete_records(self, chance: random.Random) -> None:
        partition = self._a_partition(chance)
        end = self._attempt("high watermark", getattr, partition, "high_watermark")
        if end:
            before = chance.randint(0, end)
            self.checks.deleting("orders", partition.number, before)

            def delete(_: random.Random) -> None:
                self._attempt(f"delete below {before}", partition.delete_records, before)

            # It waits for the followers; the administrator goes on.
            self._deleters.append(self._spawn("deleter", self.operations, delete))

    def _a_partition(self, chance: random.Random) -> Any:
        topic = self.cluster.topic("orders")
        return topic[chance.randrange(len(topic))]

    def _alter(self, chance: random.Random) -> None:
        wanted = {"min.insync.replicas": chance.randint(1, self.options.replication_factor)}
        self._attempt(f"alter {wanted}", self.cluster.topic("orders").alter_config, wanted)

    def _reassign(self, chance: random.Random) -> None:
        ids = [broker.id for broker in self.cluster.brokers]
        wanted = {
            self._a_partition(chance).number: chance.sample(ids, self.options.replication_factor),
        }
        self._attempt(f"reassign {wanted}", self.cluster.reassign, "orders", wanted)

    def _add_broker(self, chance: random.Random) -> None:
        if len(self.cluster.brokers) < BROKERS_MAX and chance.random() < 0.5:
            self._attempt("add a broker", self.cluster.add_broker)

    def _elect(self, chance: random.Random) -> None:
        self._attempt("elect", self.cluster.elect_leaders, "orders")

    # -- the end -----------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """All faults are over: everything must come right by itself."""
        simulation = self.simulation
        deadline_ms = simulation.now_ms + round(SETTLE_SECONDS_MAX * 1_000)
        group = self.cluster.consumer_group("group")
        while True:
            simulation.sleep(LOOK_SECONDS)
            wrong = self.checks.unconverged()
            if not wrong:
                try:
                    is_read = not {"member-0", "member-1"} <= self.without
                    lag = {str(tp): behind for tp, behind in group.lag().items() if behind and is_read}
                    wrong = [f"the group lags: {lag}"] if lag else []
                    wrong += [behind] if (behind := self.pipeline.lag()) else []
                except StreamlogError as error:
                    wrong = [f"the group's lag: {error!r}"]
            if not wrong:
                return
            if simulation.now_ms > deadline_ms:
                raise SeedFailedError(
                    f"not converged {SETTLE_SECONDS_MAX:g} s after the last fault: " + "; ".join(wrong)
                )

    def _judge(self) -> None:
        """Everything acknowledged is read, in order, and was seen by the group; and copied exactly once."""
        self.pipeline.judge(_fail)
        for (topic, number), acked in sorted(self.acked.items()):
            partition = self.cluster.topic(topic)[number]
            start = partition.log_start_offset
            read = partition.read(0, 1_000_000)
            self._on_read(read)
            records = {record.offset: record.value for record in read}
            seen = self.seen[topic, number]
            deleted_below = self.checks.logs[self.cluster.topic(topic).topic_id, number].deleted_below
            for offset, value in sorted(acked.items()):
                if offset >= start and records.get(offset) != value:
                    raise SeedFailedError(
                        f"{value!r} was acknowledged at {topic}-{number} offset {offset}; "
                        f"there is {records.get(offset)!r}"
                    )
                if offset >= deleted_below and offset not in seen and not self.without:
                    raise SeedFailedError(
                        f"the group never saw {value!r} at {topic}-{number} offset {offset}"
                    )


def _fail(message: str) -> None:
    raise SeedFailedError(message)


def _brief(result: object) -> str:
    if isinstance(result, list):
        return f"{len(result)} records"
    return repr(result)[:100] if isinstance(result, (int, str, dict, tuple)) else ""


def run(seed: int, options: Options | None = None, without: frozenset[str] = frozenset()) -> Outcome:
    """Run a seed, all of it or without some clients and faults.

    What it raises has a `trace` (how to run it again, its faults and the last events) and `parts`, each of which could be
    left out.
    """
    workload = Workload(seed, options, without)
    try:
        return workload.run()
    except Exception as error:
        faults = [line for line in workload.last_events[:-TRACE_LINES] if "FAULT" in line]
        lines = [*faults, *workload.last_events[-TRACE_LINES:]]
        left_out = f" --without {','.join(sorted(without))}" if without else ""
        text = (
            f"seed {seed} failed at {workload.simulation.now_ms} ms; run it again with\n"
            f"    python -m streamlog.testing.hunt --seeds {seed}{left_out}\n{workload.options}\n"
            + "\n".join(lines)
        )
        error.trace = text  # type: ignore[attr-defined]
        error.parts = workload.parts  # type: ignore[attr-defined]
        raise
