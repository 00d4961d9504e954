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
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from streamlog.broker.partition import Partition
from streamlog.broker.replica_requests import (
    AppendAsFollower,
    CopiedPart,
    FetchAnswer,
    FetchPosition,
    FollowerFetch,
)
from streamlog.broker.runner import Service
from streamlog.broker.serving_followers import out_of_range
from streamlog.core.leader_epochs import UNDEFINED
from streamlog.errors import (
    CorruptRecordError,
    FencedLeaderEpochError,
    OffsetOutOfRangeError,
    StreamlogError,
    StreamlogTimeoutError,
    UnknownTopicOrPartitionError,
)
from streamlog.storage import log

if TYPE_CHECKING:
    from streamlog.batch import Batch
    from streamlog.broker.broker import Broker
    from streamlog.broker.peers import Peers
    from streamlog.broker.turn import Pending

Key = tuple[str, int]
Reads = dict[tuple[Partition, int, int, int, int], "list[Batch]"]

FETCH_PARTITIONS_MAX: Final = 512
STOP_LOOK_MS: Final = 50
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
        self._stopped = False
        self._keys: list[Key] = []
        """Marks taken by the fetch under way."""
        self._asked: _Asked | None = None
        self._owed: dict[Key, FetchPosition] = {}
        """Where we stood when the leader had no more: it owes us an answer once it has."""
        self._owed_by: Broker | None = None
        self.is_helped = False
        """Whether a caller did the last step: then the next is expected of one, too. See `broker.helping`."""
        self.requests = 0
        self.counts = peers.counts.fetcher(follower.id, source_id, index)
        self.failed: dict[Key, int] = {}
        """Partitions that are damaged at the leader, by its epoch: not fetched again before another leads."""
        self.failures = 0

    def __repr__(self) -> str:
        return f"ReplicaFetcher({self._follower.id} from {self.source_id}, {len(self._marks)} marked)"

    # -- marks, by any thread ------------------------------------------------------------------------------------------

    @property
    def has_marks(self) -> bool:
        return bool(self._marks)

    @property
    def has_plans(self) -> bool:
        """Whether there is something to ask though nobody marks it: our thread must know when."""
        return bool(self._later)

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

    def run_once(self, wait_ms: int = LEADER_WAIT_MS) -> bool:
        """Fetch once for what is marked. False if there was nothing to do, or somebody else is doing it."""
        return run_together([self], wait_ms)

    def _begin(self) -> None:
        """Take the marks and put the question into the leader's inbox. Called with the lock held, as those below."""
        keys = self._take_marks()
        partitions, positions = self._positions(keys)
        if not positions:
            self._keys = []
            return
        source = self._peers.running(self.source_id)
        if source is None or not self._peers.carry(self._follower.id, self.source_id, self._waiter):
            raise _lost(self.source_id)
        self.requests += 1
        answers = self._answers_due(source, positions)
        request = FollowerFetch(self._follower.id, positions, self._follower.epoch)
        pending = None if answers else source.enqueue(request)
        self.counts.requests += pending is not None
        self._asked = _Asked(source, pending, answers, partitions, positions)

    def _answers_due(self, source: Broker, positions: list[FetchPosition]) -> list[FetchAnswer]:
        """What the leader owes us if we stand in all partitions where it last told us that there is no more.

        Kafka's leader keeps such a fetch until there is something to answer; here it is the follower that remembers
        having asked. What the leader has appended in the same epoch continues the log it compared with ours.
        """
        answers: list[FetchAnswer] = []
        for position in positions:
            key = (position.topic, position.number)
            if self._owed.get(key) != position or self._owed_by is not source or source.paused:
                return []
            partition = source.partitions.get(key)
            if partition is None or partition.topic_id != position.topic_id:
                return []
            view, leadership = partition.view, partition.leadership
            if (
                view is None
                or leadership is None
                or leadership.leader_epoch != position.leader_epoch
                or not view.log_start_offset <= position.fetch_offset < view.log_end_offset
            ):
                return []
            answers.append(
                FetchAnswer(partition, view.log_start_offset, view.high_watermark, view.log_end_offset)
            )
        return answers

    def _finish(self, wait_ms: int, reads: Reads) -> None:
        """Wait for the answer, and take over what it says there is."""
        asked = self._asked
        assert asked is not None
        answers = asked.answers if asked.pending is None else self._hear(asked.source, asked.pending, wait_ms)
        parts: list[CopiedPart] = []
        bytes_left = bytes_max = self._follower.config.replica_fetch_response_max_bytes
        for partition, position, answer in zip(asked.partitions, asked.positions, answers, strict=True):
            key = (position.topic, position.number)
            part = None
            if answer.error is not None:
                part = self._on_error(partition, position, answer.error)
            elif answer.diverging is not None:
                part = CopiedPart(partition, position, [], answer.high_watermark, -1, answer.diverging)
                self._marks[key] = None
            elif position.fetch_offset < answer.log_end_offset and bytes_left > 0:
                try:
                    batches = self._read(asked.source, answer, position, bytes_left, reads)
                except CorruptRecordError as error:
                    # Kafka: the partition is marked failed and not fetched again; a damaged record is never copied.
                    self._peers.trace(f"{partition.name} is damaged at its leader: {error}")
                    self.failed[key] = position.leader_epoch
                    continue
                except OffsetOutOfRangeError as error:
                    part = self._on_error(partition, position, error)
                else:
                    bytes_left -= sum([batch.size_bytes for batch in batches])
                    part = self._copied(partition, position, answer, batches)
                    self._marks[key] = None  # what we append now is acknowledged by the next fetch
            elif position.fetch_offset < answer.log_end_offset:
                self._marks[key] = None
            else:
                self._owed[key] = position
                if _moves(partition, answer, wait_ms == HELPED_WAIT_MS):
                    part = self._copied(partition, position, answer, [])
                    if answer.log_start_offset > position.log_start_offset:
                        self._marks[key] = None  # who deletes waits to hear that we begin there, too
            if part is not None:
                parts.append(part)
        if parts and self._peers.carry(self.source_id, self._follower.id, self._waiter):
            self.counts.bytes += bytes_max - bytes_left
            appended = self._follower.post(AppendAsFollower(parts))
            self._wait(self._follower, appended, wait_ms)
            appended.result()
        elif parts:
            raise _lost(self.source_id)
        self._plan_high_watermarks(asked.partitions)
        self._keys = []

    def _hear(self, source: Broker, pending: Pending, wait_ms: int) -> list[FetchAnswer]:
        self._wait(source, pending, wait_ms)
        answers: list[FetchAnswer] = pending.result()
        if self._owed_by is not source:
            self._owed_by, self._owed = source, {}
        return answers

    def _wait(self, broker: Broker, pending: Pending, wait_ms: int) -> None:
        """Until it is answered, or we are stopped: who stops us must not wait for a broker that is silent."""
        deadline_ms = self._clock.monotonic_ms() + wait_ms
        while not pending.done:
            left_ms = deadline_ms - self._clock.monotonic_ms()
            if left_ms <= 0 or self._stopped:
                raise StreamlogTimeoutError(f"broker {broker.id} did not answer within {wait_ms} ms")
            try:
                broker.wait(pending, min(left_ms, STOP_LOOK_MS))
            except StreamlogTimeoutError:
                continue

    def _give_up(self, error: StreamlogError, is_helper: bool) -> None:
        """A fetch failed: try again after a while. Who helps is only less patient than our thread, no measure."""
        self._put_back()
        if is_helper and isinstance(error, StreamlogTimeoutError):
            return
        self.failures += 1
        self._not_before_ms = self._clock.monotonic_ms() + self._follower.config.replica_fetch_backoff_ms

    def _put_back(self) -> None:
        """Whatever was taken and not done is marked again."""
        for key in self._keys:
            self._marks[key] = None
        self._keys = []
        self._asked = None

    def _take_marks(self) -> list[Key]:
        # Remembered before they go: an interrupt in between marks them again.
        self._keys = keys = list(self._marks)[:FETCH_PARTITIONS_MAX]
        for key in keys:
            self._marks.pop(key, None)
        return keys

    def _positions(self, keys: list[Key]) -> tuple[list[Partition], list[FetchPosition]]:
        partitions: list[Partition] = []
        positions: list[FetchPosition] = []
        for key in keys:
            self._later.pop(key, None)
            try:
                if self._follower.id not in self._peers.image.partition(*key).replicas:
                    self.failed.pop(key, None)
                    continue  # reassigned to others
                partition = self._follower.partition(*key)
            except UnknownTopicOrPartitionError:
                self.failed.pop(key, None)
                continue
            if self.failed and self.failed.get(key) == partition.role_epoch:
                continue
            self.failed.pop(key, None)
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
        self, source: Broker, answer: FetchAnswer, position: FetchPosition, bytes_left: int, reads: Reads
    ) -> list[Batch]:
        """The leader's batches from our offset on, up to the end it told us.

        reads:  what others read for this round; followers side by side ask for the same.
        """
        assert answer.partition is not None
        offset, end = position.fetch_offset, answer.log_end_offset
        bytes_max = min(bytes_left, self._follower.config.replica_fetch_max_bytes)
        asked = (answer.partition, position.leader_epoch, offset, end, bytes_max)
        batches = reads.get(asked)
        if batches is not None:
            return batches
        view, snapshot = source.reader.open_as_replica(answer.partition)
        with snapshot:
            if view.leader_epoch != position.leader_epoch:
                raise FencedLeaderEpochError(f"{answer.partition.name} is led in another epoch by now")
            if view.log_start_offset > offset:
                # Deleted since the answer: what is left begins behind a gap.
                raise out_of_range(answer.partition, view, self._follower.id, offset)
            end = min(end, view.log_end_offset)
            reads[asked] = batches = log.read(snapshot, answer.partition.log_id, offset, end, bytes_max)
            return batches

    def _copied(
        self, partition: Partition, position: FetchPosition, answer: FetchAnswer, batches: list[Batch]
    ) -> CopiedPart:
        return CopiedPart(partition, position, batches, answer.high_watermark, answer.log_start_offset)

    def _on_error(
        self, partition: Partition, position: FetchPosition, error: StreamlogError
    ) -> CopiedPart | None:
        """SEMANTICS 3.4.12 for an offset out of range; else the roles are not settled: ask again a little later."""
        if isinstance(error, OffsetOutOfRangeError):
            facts: dict[str, Any] = error.facts
            start, end = facts["log_start_offset"], facts["log_end_offset"]
            if not start <= position.fetch_offset <= end:
                restart_at = end if end < position.fetch_offset else start
                self._marks[position.topic, position.number] = None
                mark = partition.state.high_watermark
                return CopiedPart(partition, position, [], mark, -1, None, restart_at)
            # It knows nothing of our last epoch, yet reaches as far as we do: nothing is cut on a guess.
        self.failures += 1
        self._peers.mark_dirty(self._follower, [(position.topic, position.number)])
        pause_ms = min(ROLES_LOOK_MS, self._follower.config.replica_fetch_backoff_ms)
        self._later[position.topic, position.number] = self._clock.monotonic_ms() + pause_ms
        return None

    def _plan_high_watermarks(self, partitions: list[Partition]) -> None:
        """What we hold, but do not know to be replicated yet, is asked for again though nothing may be appended."""
        due_ms = self._clock.monotonic_ms() + self._follower.config.replica_fetch_wait_max_ms
        for partition in partitions:
            key = (partition.topic, partition.number)
            if partition.state.high_watermark < partition.state.log_end_offset and key not in self._marks:
                self._later.setdefault(key, due_ms)

    # -- its own thread --------------------------------------------------------------------------------------------------

    def _serve(self, now_ms: int) -> int | None:
        if self._stopped:
            return None
        for key, due_ms in list(self._later.items()):
            if due_ms <= now_ms:
                self._later.pop(key, None)
                self._marks[key] = None
        if self._follower.paused:
            return None  # `resume` wakes us
        while self._marks and not self._stopped:
            if self._not_before_ms > self._clock.monotonic_ms() or self._is_gathering():
                break
            if not self.run_once():
                break
        return self._next_ms()

    def _is_gathering(self) -> bool:
        """replica.fetch.min.bytes: whether to wait for more before fetching."""
        bytes_min = self._follower.config.replica_fetch_min_bytes
        if bytes_min <= 1:
            return False
        now_ms = self._clock.monotonic_ms()
        if self._peers.bytes_behind(self._follower, self.source_id, list(self._marks)) >= bytes_min:
            self._gathering_since_ms = None
            return False
        if self._gathering_since_ms is None:
            self._gathering_since_ms = now_ms
        if now_ms - self._gathering_since_ms >= self._follower.config.replica_fetch_wait_max_ms:
            self._gathering_since_ms = None
            return False
        return True

    def _next_ms(self) -> int | None:
        deadlines = list(self._later.values())
        if self._marks:
            if self._gathering_since_ms is not None:
                deadlines.append(self._gathering_since_ms + self._follower.config.replica_fetch_wait_max_ms)
            else:
                deadlines.append(max(self._not_before_ms, self._clock.monotonic_ms() + 1))
        return min(deadlines, default=None)


class _Asked(NamedTuple):
    """A fetch under way: what was asked of whom. pending: None where the answers are there already."""

    source: Broker
    pending: Pending | None
    answers: list[FetchAnswer]
    partitions: list[Partition]
    positions: list[FetchPosition]


def run_together(fetchers: list[ReplicaFetcher], wait_ms: int = HELPED_WAIT_MS) -> bool:
    """Fetch once with each: what they ask of one leader is answered in one turn of its, what they read there is read
    once. Those that somebody else is busy with are left out. False if there was nothing to do.
    """
    is_helper = wait_ms == HELPED_WAIT_MS
    mine = [fetcher for fetcher in fetchers if not fetcher._lock._is_owned()]
    sources: dict[Broker, None] = {}
    reads: Reads = {}
    worked = False
    try:
        try:
            for fetcher in mine:
                if fetcher._stopped or not fetcher._marks or not fetcher._lock.acquire(False):
                    continue
                try:
                    fetcher._begin()
                except StreamlogError as error:
                    fetcher._give_up(error, is_helper)
                if fetcher._asked is None or fetcher._asked.pending is None:
                    continue
                sources[fetcher._asked.source] = None
            for source in sources:
                source.advance()
            for fetcher in mine:
                if not fetcher._lock._is_owned() or fetcher._asked is None:
                    continue
                try:
                    fetcher._finish(wait_ms, reads)
                    worked = True
                    if is_helper:
                        fetcher.is_helped = True
                except StreamlogError as error:
                    fetcher._give_up(error, is_helper)
        finally:
            _let_go(mine)
    except BaseException:
        _let_go(mine)  # an interrupt may have struck there; again changes nothing
        raise
    return worked


def _let_go(fetchers: list[ReplicaFetcher]) -> None:
    for fetcher in fetchers:
        if fetcher._lock._is_owned():
            fetcher._put_back()
            if fetcher._marks:
                fetcher._peers.helping.note(fetcher)
            fetcher._lock.release()


def _moves(partition: Partition, answer: FetchAnswer, is_helped: bool) -> bool:
    """Whether an answer without records still tells something: a high watermark, a log start.

    Who helps waits for an acknowledgement, which the high watermark here adds nothing to: unless somebody listens, it
    comes with the next records, or when it has been asked for again.
    """
    state = partition.state
    if answer.log_start_offset > state.log_start_offset:
        return True
    is_news = min(answer.high_watermark, state.log_end_offset) > state.high_watermark
    return is_news and not (is_helped and not partition.subscriptions)


def _lost(source_id: int) -> StreamlogError:
    from streamlog.errors import NetworkError

    return NetworkError(f"broker {source_id} does not answer", broker_id=source_id)
