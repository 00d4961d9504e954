"""Workers of a hunt that read, process and write exactly once, while others take their names, die, abort and hang.

    orders --member of "pipeline"--> a transaction: what was read goes to copies, its offsets to the group
                                      --> committed, aborted by us, timed out, fenced, or in doubt

Each copy names what it is of and the transaction that wrote it: `<partition>.<offset>=<transaction>`. So whoever reads
sees what is there twice, torn, or aborted; the checker `ExactlyOnce` does, and `Pipeline.judge` looks at all of it at the
end.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from streamlog.errors import (
    CommitFailedError,
    InvalidProducerEpochError,
    ProducerFencedError,
    StreamlogError,
    TransactionAbortableError,
)
from streamlog.testing.transaction_checkers import ExactlyOnce

if TYPE_CHECKING:
    from streamlog.testing.workload import Workload

GROUP: Final = "pipeline"
COPIES: Final = "copies"
WORKERS: Final = 2
ABORTS: Final = 0.08
HANGS: Final = 0.04
DIES: Final = 0.15
TAKES_ANOTHERS_NAME: Final = 0.2
MAX_POLL_INTERVAL_MS: Final = 9_000


class _ChangedMind(Exception):
    """A worker aborts of its own accord."""


class Pipeline:
    """The exactly-once workers of one seed, and a reader of what they have committed."""

    def __init__(self, workload: Workload) -> None:
        chance = random.Random(f"pipeline {workload.seed}")
        self._workload = workload
        self._cluster: Any = workload.cluster
        self._simulation = workload.simulation
        self._options = {
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "session_timeout_ms": workload.options.session_timeout_ms,
            "max_poll_interval_ms": MAX_POLL_INTERVAL_MS,
            "partition_assignment_strategy": chance.choice(
                ("range", "cooperative-sticky", "cooperative-sticky")
            ),
            "isolation_level": "read_committed",
        }
        self._partitions = chance.randint(1, 3)
        self._begun = 0

    def create(self, config: dict[str, Any]) -> None:
        self._cluster.create_topic(
            COPIES, self._partitions, self._workload.options.replication_factor, config
        )

    def spawn(self) -> list[Any]:
        """Start everybody; they go on until the workload is over."""
        spawn = self._workload._spawn
        workers = [spawn("worker", number, partial(self._work, number=number)) for number in range(WORKERS)]
        return [*workers, spawn("copy-reader", 0, self._read)]

    @property
    def _counts(self) -> Counter[str]:
        return self._workload.counts

    def _checker(self) -> ExactlyOnce:
        found: ExactlyOnce = self._workload.checks[ExactlyOnce]
        return found

    # -- workers -----------------------------------------------------------------------------------------------------

    def _work(self, chance: random.Random, number: int) -> None:
        workload, simulation = self._workload, self._simulation
        group = self._cluster.consumer_group(GROUP, ["orders"], **self._options)
        while not workload.is_over:
            timeout_ms = chance.choice((4_000, 8_000))
            name = chance.randrange(WORKERS) if chance.random() < TAKES_ANOTHERS_NAME else number
            producer = workload._attempt(
                f"take pipeline-{name}",
                self._cluster.producer,
                transactional_id=f"pipeline-{name}",
                transaction_timeout_ms=timeout_ms,
                request_timeout_ms=workload.options.request_timeout_ms,
                delivery_timeout_ms=workload.options.delivery_timeout_ms,
                max_block_ms=10_000,
                linger_ms=chance.choice((0, 5)),
            )
            consumer = None if producer is None else workload._attempt("join", group.consumer)
            if consumer is None:
                simulation.sleep(0.5)
                continue
            self._workload.checks.joined(consumer)
            goes_on = True
            for _ in range(chance.randint(3, 40)):
                goes_on = not workload.is_over and self._transact(chance, producer, consumer, timeout_ms)
                if not goes_on:
                    break
            if not workload.is_over and chance.random() < DIES:
                self._die(chance, producer)  # nothing is closed: others wait until it is missed
                self._cluster._producers.pop(producer, None)
                self._workload.checks.left(consumer)
                continue
            workload._attempt("leave", consumer.close)
            self._workload.checks.left(consumer)
            workload._attempt("close", producer.close)

    def _transact(self, chance: random.Random, producer: Any, consumer: Any, timeout_ms: int) -> bool:
        """One transaction. Whether the worker can go on."""
        workload, checker = self._workload, self._checker()
        workload.operations += 1
        self._begun += 1
        number, written = self._begun, 0
        try:
            with producer.transaction(consumer):
                for record in consumer.poll(1.0, max_records=chance.choice((1, 5, 50))):
                    value = b"%d.%d=%d" % (record.partition, record.offset, number)
                    producer.send(COPIES, value, key=record.key)
                    written += 1
                if chance.random() < ABORTS:
                    producer.flush()
                    raise _ChangedMind
                if chance.random() < HANGS:
                    self._simulation.sleep(timeout_ms / 1_000 + 1)
        except _ChangedMind:
            fate, goes_on = "aborted", True
        except (CommitFailedError, TransactionAbortableError) as error:
            self._counts["timed out transactions"] += "longer than" in str(error)
            fate, goes_on = "aborted", True
        except (ProducerFencedError, InvalidProducerEpochError):
            fate, goes_on = "fenced", False  # perhaps only after it was committed: then the answer got lost
        except StreamlogError as error:
            self._simulation.note(f"transaction {number}: {type(error).__name__}: {str(error)[:200]}")
            fate, goes_on = "in doubt", False
        else:
            fate, goes_on = "committed", True
        self._simulation.note(f"transaction {number} of {written} is {fate}")
        self._counts[f"{fate} transactions"] += bool(written)
        checker.on_transaction(number, written, fate)
        return goes_on

    def _die(self, chance: random.Random, producer: Any) -> None:
        """Leave without a word, sometimes in the middle of a transaction."""
        self._counts["workers that died"] += 1
        if chance.random() < 0.5:
            self._begun += 1
            transaction = producer.transaction()
            if self._workload._attempt("begin", transaction.__enter__) is not None:
                self._workload._attempt("send", producer.send, COPIES, b"lost=%d" % self._begun)
                self._workload._attempt("flush", producer.flush, 2)
                self._checker().on_transaction(self._begun, 1, "aborted")

    # -- reading and judging -----------------------------------------------------------------------------------------

    def _read(self, chance: random.Random) -> None:
        """Read what is committed, from the beginning, now and then."""
        while not self._workload.is_over:
            self._simulation.sleep(chance.uniform(1.0, 5.0))
            self._workload._attempt("read copies", self.read_all)

    def read_all(self) -> list[Any]:
        """Every committed copy there is."""
        options = {"isolation_level": "read_committed", "stop_at_end": True, "default_api_timeout_ms": 5_000}
        found: list[Any] = []
        with self._cluster.consumer(**options) as consumer:
            consumer.assign([(COPIES, number) for number in range(self._partitions)])
            for _ in range(200):
                records = consumer.poll(0.3)
                found += records
                self._workload._on_read(records)
                self._checker().on_copies(records)
                if consumer.at_end:
                    break
        return found

    def lag(self) -> str:
        """What the workers have not copied yet, or not ended, for who waits for it; empty: nothing."""
        with self._cluster.consumer(isolation_level="read_committed") as consumer:
            ends = consumer.end_offsets([(COPIES, number) for number in range(self._partitions)])
        copies = self._cluster.topic(COPIES)
        stable = {str(place): end for place, end in ends.items() if end < copies[place[1]].high_watermark}
        if stable:
            return f"a transaction is open; copies are stable up to {stable}"
        if any(f"worker-{number}" not in self._workload.without for number in range(WORKERS)):
            lag = self._cluster.consumer_group(GROUP, ["orders"]).lag()
            behind = {str(place): count for place, count in lag.items() if count}
            return f"the pipeline lags: {behind}" if behind else ""
        return ""

    def judge(self, missed: Any) -> None:
        """Everything there is to copy was, exactly once; whole transactions. missed: raises what it is told."""
        checker = self._checker()
        checker.on_all_copies(self.read_all())
        for number in range(len(self._cluster.topic("orders"))):
            partition = self._cluster.topic("orders")[number]
            deleted_below = self._workload.checks.deleted_below("orders", number)
            for record in partition.read(0, 1_000_000):
                is_missed = (number, record.offset) not in checker.copied
                if is_missed and record.offset >= deleted_below and not self._workload.without:
                    missed(f"orders-{number} offset {record.offset} was never copied")
