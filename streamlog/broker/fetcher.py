"""How a follower copies its leaders: fetch, append, and by fetching again acknowledge.

    leader appends --mark--> marks --run_once--> FollowerFetch (leader's turn) --> read the leader's store
                                                                               --> AppendAsFollower (our turn) --> marks

One fetcher serves some of the partitions that one broker follows at one other. It is a step that anybody may take, one
at a time: its own thread, which `wake` wakes, or a caller that waits for acks=all and would rather work (it *helps*).
A fetch asks for what is marked only; what has no news costs nothing.

Invariants:
 1. At most one thread is inside `run_once` of a fetcher.
 2. A mark goes only when what it asked for was done; a fetch that fails or is interrupted leaves all its marks.
 3. Bytes are copied as the leader stored them, never decoded or encoded again.
 4. No snapshot of the leader's store is open while our own turn runs.

Sources: Kafka ReplicaFetcherThread, AbstractFetcherThread; KIP-595 (truncate on fetch).
Not implemented: fetch sessions (a fetch here names only what has news), throttles.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from streamlog.broker.partition import Partition
from streamlog.broker.replica_requests import (
    AppendAsFollower,
    CopiedPart,
    FetchAnswer,
    FetchPosition,
    FollowerFetch,
)
from streamlog.broker.runner import Service
from streamlog.core.leader_epochs import UNDEFINED
from streamlog.errors import (
    CorruptRecordError,
    FencedLeaderEpochError,
    OffsetOutOfRangeError,
    StreamlogError,
    UnknownTopicOrPartitionError,
)
from streamlog.storage import log

if TYPE_CHECKING:
    from streamlog.batch import Batch
    from streamlog.broker.broker import Broker
    from streamlog.broker.peers import Peers

Key = tuple[str, int]

FETCH_PARTITIONS_MAX: Final = 512
LEADER_WAIT_MS: Final = 30_000
"""Kafka's replica.socket.timeout.ms: how long an answer is waited for."""
ROLES_LOOK_MS: Final = 20
"""After an answer that says that roles are not settled yet: they are, soon."""
HELPED_WAIT_MS: Final = 100
"""Who helps waits this long for another broker's turn at most."""


class ReplicaFetcher:
    """Copies some partitions of one leader broker into one follower broker."""

    def __init__(self, peers: Peers, follower: Broker, source_id: int, index: int) -> None:
        self._peers = peers
        self._follower = follower
        self.source_id = source_id
        self._config = follower.config
        self._clock = follower.runtime.clock
        self._marks: OrderedDict[Key, None] = OrderedDict()
        self._later: dict[Key, int] = {}
        """Partitions whose high watermark is behind their log end: asked again when the time has come."""
        self._lock = follower.runtime.turn_lock()
        self._service = Service(
            follower.runtime, f"streamlog-fetcher-{follower.id}-from-{source_id}.{index}", self._serve
        )
        self._waiter = follower.runtime.waiter()
        self._not_before_ms = 0
        self._gathering_since_ms: int | None = None
        self._is_serving = False
        self._looks_ms: int | None = None
        """When our thread looks at `_later` by itself; None: only when it is woken."""
        self._stopped = False
        self.requests = 0
        self.bytes = 0
        self.failures = 0

    def __repr__(self) -> str:
        return f"ReplicaFetcher({self._follower.id} from {self.source_id}, {len(self._marks)} marked)"

    # -- marks, by any thread ------------------------------------------------------------------------------------------

    @property
    def has_marks(self) -> bool:
        return bool(self._marks)

    def mark(self, key: Key) -> None:
        """The leader has something for us, or may have."""
        self._marks[key] = None

    def wake(self) -> None:
        """Let our thread look at the marks."""
        self._service.wake()

    def retry_now(self) -> None:
        """What kept us from fetching may be over (a network that healed)."""
        self._not_before_ms = 0
        if self._marks:
            self._service.wake()

    def stop(self) -> None:
        self._stopped = True
        self._service.stop(0)
        self._marks.clear()

    def join(self) -> None:
        self._service.stop()

    # -- the step ------------------------------------------------------------------------------------------------------

    def can_be_helped(self) -> bool:
        """Whether a caller of ours may fetch in our place: both brokers run, the link is prompt, nobody rests."""
        return (
            not self._stopped
            and bool(self._marks)
            and not self._follower.paused
            and self._not_before_ms <= self._clock.monotonic_ms()
            and self._peers.is_prompt(self._follower.id, self.source_id)
        )

    def run_once(self, wait_ms: int = HELPED_WAIT_MS) -> bool:
        """Fetch once for what is marked. False if there was nothing to do, or somebody else is doing it."""
        if self._stopped or not self._marks or self._lock._is_owned() or not self._lock.acquire(False):
            return False
        keys: list[Key] = []
        try:
            keys = self._take_marks()
            return self._fetch(keys, wait_ms)
        except BaseException as error:
            for key in keys:
                self._marks[key] = None
            if not isinstance(error, StreamlogError):
                raise
            self.failures += 1
            self._not_before_ms = self._clock.monotonic_ms() + self._config.replica_fetch_backoff_ms
            return False
        finally:
            self._lock.release()

    def _take_marks(self) -> list[Key]:
        keys: list[Key] = []
        while len(keys) < FETCH_PARTITIONS_MAX:
            try:
                keys.append(self._marks.popitem(last=False)[0])
            except KeyError:
                break
        return keys

    def _fetch(self, keys: list[Key], wait_ms: int) -> bool:
        partitions, positions = self._positions(keys)
        if not positions:
            return False
        source = self._peers.running(self.source_id)
        if source is None or not self._peers.carry(self._follower.id, self.source_id, self._waiter):
            raise _lost(self.source_id)
        self.requests += 1
        answers: list[FetchAnswer] = source.call(
            FollowerFetch(self._follower.id, positions, self._follower.epoch), timeout_ms=wait_ms
        )
        parts: list[CopiedPart] = []
        bytes_left = self._config.replica_fetch_response_max_bytes
        for partition, position, answer in zip(partitions, positions, answers, strict=True):
            key = (position.topic, position.number)
            part = None
            if answer.error is not None:
                part = self._on_error(partition, position, answer.error)
            elif answer.diverging is not None:
                part = CopiedPart(
                    partition, position.leader_epoch, [], answer.high_watermark, -1, answer.diverging
                )
                self._marks[key] = None
            elif position.fetch_offset < answer.log_end_offset and bytes_left > 0:
                batches = self._read(source, answer, position, bytes_left)
                bytes_left -= sum([batch.size_bytes for batch in batches])
                part = self._copied(partition, position, answer, batches)
                self._marks[key] = None  # what we append now is acknowledged by the next fetch
            elif position.fetch_offset < answer.log_end_offset:
                self._marks[key] = None
            elif _moves(partition, answer):
                part = self._copied(partition, position, answer, [])
            if part is not None:
                parts.append(part)
        if parts and self._peers.carry(self.source_id, self._follower.id, self._waiter):
            self.bytes += self._config.replica_fetch_response_max_bytes - bytes_left
            self._follower.call(AppendAsFollower(parts), timeout_ms=wait_ms)
        elif parts:
            raise _lost(self.source_id)
        self._plan_high_watermarks(partitions)
        return True

    def _positions(self, keys: list[Key]) -> tuple[list[Partition], list[FetchPosition]]:
        partitions: list[Partition] = []
        positions: list[FetchPosition] = []
        for key in keys:
            self._later.pop(key, None)
            try:
                if self._follower.id not in self._peers.image.partition(*key).replicas:
                    continue  # reassigned to others
                partition = self._follower.partition(*key)
            except UnknownTopicOrPartitionError:
                continue
            if partition.leader_id != self.source_id or partition.leadership is not None:
                continue  # it follows another by now, or leads
            state, epochs = partition.state, partition.epochs
            partitions.append(partition)
            positions.append(
                FetchPosition(
                    partition.topic,
                    partition.number,
                    partition.topic_id,
                    state.log_end_offset,
                    epochs.epoch_of(state.log_end_offset - 1) if state.log_end_offset else UNDEFINED,
                    partition.role_epoch,
                    state.log_start_offset,
                )
            )
        return partitions, positions

    def _read(
        self, source: Broker, answer: FetchAnswer, position: FetchPosition, bytes_left: int
    ) -> list[Batch]:
        """The leader's batches from our offset on, up to the end it told us."""
        assert answer.partition is not None
        view, snapshot = source.reader.open_as_replica(answer.partition)
        with snapshot:
            if view.leader_epoch != position.leader_epoch:
                raise FencedLeaderEpochError(f"{answer.partition.name} is led in another epoch by now")
            try:
                return log.read(
                    snapshot,
                    answer.partition.log_id,
                    position.fetch_offset,
                    min(answer.log_end_offset, view.log_end_offset),
                    min(bytes_left, self._config.replica_fetch_max_bytes),
                )
            except CorruptRecordError as error:
                # Kafka: the partition is marked failed and not fetched again; a damaged record is never copied.
                self._peers.trace(f"{answer.partition.name} is damaged at its leader: {error}")
                raise

    def _copied(
        self, partition: Partition, position: FetchPosition, answer: FetchAnswer, batches: list[Batch]
    ) -> CopiedPart:
        return CopiedPart(
            partition, position.leader_epoch, batches, answer.high_watermark, answer.log_start_offset
        )

    def _on_error(
        self, partition: Partition, position: FetchPosition, error: StreamlogError
    ) -> CopiedPart | None:
        """SEMANTICS 3.4.12 for an offset out of range; else the roles are not settled: ask again a little later."""
        if isinstance(error, OffsetOutOfRangeError):
            facts: dict[str, Any] = error.facts
            start, end = facts["log_start_offset"], facts["log_end_offset"]
            restart_at = end if end < position.fetch_offset else start
            self._marks[position.topic, position.number] = None
            return CopiedPart(
                partition, position.leader_epoch, [], partition.state.high_watermark, -1, None, restart_at
            )
        self.failures += 1
        self._peers.mark_dirty(self._follower, [(position.topic, position.number)])
        pause_ms = min(ROLES_LOOK_MS, self._config.replica_fetch_backoff_ms)
        self._ask_later((position.topic, position.number), self._clock.monotonic_ms() + pause_ms)
        return None

    def _plan_high_watermarks(self, partitions: list[Partition]) -> None:
        """What we hold, but do not know to be replicated yet, is asked for again though nothing may be appended."""
        due_ms = self._clock.monotonic_ms() + self._config.replica_fetch_wait_max_ms
        for partition in partitions:
            key = (partition.topic, partition.number)
            if partition.state.high_watermark < partition.state.log_end_offset and key not in self._marks:
                self._ask_later(key, due_ms)

    def _ask_later(self, key: Key, due_ms: int) -> None:
        """Have our thread look then: who fetches may be a caller that helps, and is gone by that time."""
        if key in self._later:
            return
        self._later[key] = due_ms
        if not self._is_serving and (self._looks_ms is None or due_ms < self._looks_ms):
            self._service.wake()

    # -- its own thread --------------------------------------------------------------------------------------------------

    def _serve(self, now_ms: int) -> int | None:
        self._looks_ms = None
        self._is_serving = True
        try:
            self._serve_marks(now_ms)
        finally:
            # In this order: what is added meanwhile is either seen by the next line or wakes us again.
            self._is_serving = False
        self._looks_ms = None if self._stopped or self._follower.paused else self._next_ms()
        return self._looks_ms

    def _serve_marks(self, now_ms: int) -> None:
        if self._stopped:
            return
        for key, due_ms in list(self._later.items()):
            if due_ms <= now_ms:
                self._later.pop(key, None)
                self._marks[key] = None
        if self._follower.paused:
            return  # `resume` wakes us
        while self._marks and not self._stopped:
            if self._not_before_ms > self._clock.monotonic_ms() or self._is_gathering():
                break
            if not self.run_once(LEADER_WAIT_MS):
                break

    def _is_gathering(self) -> bool:
        """replica.fetch.min.bytes: whether to wait for more before fetching."""
        bytes_min = self._config.replica_fetch_min_bytes
        if bytes_min <= 1:
            return False
        now_ms = self._clock.monotonic_ms()
        if self._peers.bytes_behind(self._follower, self.source_id, list(self._marks)) >= bytes_min:
            self._gathering_since_ms = None
            return False
        if self._gathering_since_ms is None:
            self._gathering_since_ms = now_ms
        if now_ms - self._gathering_since_ms >= self._config.replica_fetch_wait_max_ms:
            self._gathering_since_ms = None
            return False
        return True

    def _next_ms(self) -> int | None:
        deadlines = list(self._later.values())
        if self._marks:
            if self._gathering_since_ms is not None:
                deadlines.append(self._gathering_since_ms + self._config.replica_fetch_wait_max_ms)
            else:
                deadlines.append(max(self._not_before_ms, self._clock.monotonic_ms() + 1))
        return min(deadlines, default=None)


def _moves(partition: Partition, answer: FetchAnswer) -> bool:
    """Whether an answer without records still tells something: a high watermark, a log start."""
    state = partition.state
    return (
        min(answer.high_watermark, state.log_end_offset) > state.high_watermark
        or answer.log_start_offset > state.log_start_offset
    )


def _lost(source_id: int) -> StreamlogError:
    from streamlog.errors import NetworkError

    return NetworkError(f"broker {source_id} does not answer", broker_id=source_id)
