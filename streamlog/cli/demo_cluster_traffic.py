"""The traffic of `streamlog demo cluster`: producers that wait for all in sync, and a group that reads.

    producer --send, acks=all--> acks: what was acknowledged, and at which offset
    reader   --poll, commit----> deliveries, in the order in which the group got them

Threads of their own; nothing here knows of the faults. What they write down is what the proof is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from streamlog.broker.runner import Runtime
from streamlog.errors import CommitFailedError
from streamlog.record import TopicPartition

TOPIC: Final = "orders"
GROUP: Final = "billing"
PRODUCERS: Final = 3
READERS: Final = 2
KEYS: Final = 8
"""Customers of each producer."""
BURST: Final = 24
TICK_MS: Final = 25
REQUEST_MS: Final = 1_000
DELIVERY_MS: Final = 30_000
END_MS: Final = 20_000


class Placed(NamedTuple):
    """A record and its place: where it was acknowledged, or from where the group got it."""

    key: bytes
    number: int
    partition: int
    offset: int


class Traffic:
    """Producers and readers, from `start` to `finish`."""

    def __init__(self, cluster: Any, runtime: Runtime) -> None:
        self._cluster = cluster
        self._runtime = runtime
        self._clock = runtime.clock
        self._group = cluster.consumer_group(GROUP, [TOPIC], enable_auto_commit=False)
        self._acks: list[list[Placed]] = [[] for _ in range(PRODUCERS)]
        self._last_ack_ms = [0] * PRODUCERS
        self._longest_gap_ms = 0
        self.deliveries: list[Placed] = []
        self.error: BaseException | None = None
        self._producing = self._reading = True
        self._producers: list[Any] = []
        self._readers: list[Any] = []

    def start(self) -> None:
        """Let everybody work."""
        now_ms = self._clock.monotonic_ms()
        self._last_ack_ms = [now_ms] * PRODUCERS
        self._producers = [
            self._spawn(f"producer-{number}", partial(self._produce, number)) for number in range(PRODUCERS)
        ]
        self._readers = [self._spawn(f"reader-{number}", self._read) for number in range(READERS)]

    def _spawn(self, name: str, run: Callable[[], None]) -> Any:
        def guarded() -> None:
            try:
                run()
            except BaseException as error:
                self.error = error

        return self._runtime.spawn(f"streamlog-demo-{name}", guarded)

    # -- counts ------------------------------------------------------------------------------------

    @property
    def acks(self) -> list[Placed]:
        """Everything acknowledged so far, by producer."""
        return [ack for some in self._acks for ack in list(some)]

    @property
    def acked(self) -> int:
        return sum(len(some) for some in self._acks)

    @property
    def lag(self) -> int:
        """What the group has not committed yet."""
        return sum(self._group.lag().values())

    def take_longest_gap_ms(self) -> int:
        """The longest time any producer was without an acknowledgement since this was last asked."""
        now_ms = self._clock.monotonic_ms()
        open_gaps = [now_ms - last_ms for last_ms in self._last_ack_ms] if self._producing else []
        longest = max(self._longest_gap_ms, *open_gaps, 0)
        self._longest_gap_ms = 0
        return longest

    # -- the end -----------------------------------------------------------------------------------

    def stop_producing(self) -> None:
        """What is under way is still acknowledged."""
        self._producing = False
        self._join(self._producers)

    def finish(self) -> None:
        """End all threads. Waits for what is under way: the cluster must be able to answer."""
        self._producing = self._reading = False
        self._join([*self._producers, *self._readers])

    def _join(self, tasks: list[Any]) -> None:
        for task in tasks:
            task.join(DELIVERY_MS + END_MS)

    # -- what the threads do -----------------------------------------------------------------------

    def _produce(self, producer_number: int) -> None:
        waiter, acks = self._runtime.waiter(), self._acks[producer_number]
        keys = [b"customer-%d-%d" % (producer_number, key) for key in range(KEYS)]
        sent = 0
        options = {"acks": "all", "request_timeout_ms": REQUEST_MS, "delivery_timeout_ms": DELIVERY_MS}
        with self._cluster.producer(**options) as producer:
            while self._producing and self.error is None:
                burst = []
                for number in range(sent, sent + BURST):
                    key = keys[number % KEYS]
                    burst.append((key, number, producer.send(TOPIC, b"%d" % number, key)))
                sent += BURST
                producer.flush()
                for key, number, future in burst:
                    metadata = future.result(0)
                    acks.append(Placed(key, number, metadata.partition, metadata.offset))
                now_ms = self._clock.monotonic_ms()
                gap_ms = now_ms - self._last_ack_ms[producer_number]
                self._longest_gap_ms = max(self._longest_gap_ms, gap_ms)
                self._last_ack_ms[producer_number] = now_ms
                waiter.wait(TICK_MS)

    def _read(self) -> None:
        def revoked(partitions: list[TopicPartition]) -> None:
            commit()  # somebody else goes on from here

        def commit() -> None:
            try:
                consumer.commit()
            except CommitFailedError:
                pass  # the partitions are another's by now, who gets these records again

        consumer: Any = self._group.consumer(on_revoked=revoked)
        with consumer:
            while self._reading and self.error is None:
                records = consumer.poll(0.05)
                if records:
                    self.deliveries += [
                        Placed(record.key or b"", int(record.value), record.partition, record.offset)
                        for record in records
                    ]
                    commit()
