"""The consumer for asyncio: looks in a thread, waits in the loop.

    poll:  look (in a thread: join, listeners, auto-commit, fetch, decode) --Parked--> wait in the loop
           --news--> look ...

The core's own `poll` does the looking; only its latch is ours, and raises Parked where a thread would wait.
So a waiting consumer is a future in the loop, and a thousand of them need no more threads than one.

Invariants:
 1. One call at a time is inside the core; others wait their turn, except those of a rebalance listener,
    which belong to the call they run in.
 2. A cancelled poll loses nothing: what it had taken is put back before anybody else gets in, so neither the
    next poll nor a commit passes it.
 3. Between two looks, iterating hands out what is decoded without leaving the loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from re import Pattern
from typing import TYPE_CHECKING, Any, Final, TypeVar

from streamlog.aio.mistakes import EnteredInLoop, IteratedInLoop
from streamlog.aio.waiting import LoopWaiter, Parked, Servant, Workers, serving
from streamlog.client.consumer import Consumer as BlockingConsumer
from streamlog.client.habits import KnowsHabits, unknown_argument
from streamlog.client.offsets import Partitions, checked_partitions
from streamlog.client.timeouts import milliseconds
from streamlog.errors import ClosedError, IllegalStateError
from streamlog.record import OffsetAndTimestamp, Record, TopicPartition

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from streamlog.client.habits import NoOthers

ResultT = TypeVar("ResultT")
Handler = Callable[[list[TopicPartition]], Any]
Named = "TopicPartition | tuple[str, int]"

ITERATION_RECORDS_MAX: Final = 500
ITERATION_SECONDS_MAX: Final = 0.05
"""While iterating over decoded records, the group and the clock are looked at after so many, or so long."""


class Consumer(EnteredInLoop, IteratedInLoop, KnowsHabits):
    """Reads records. Make it with `cluster.consumer(...)` (then `assign`) or `group.consumer(...)`.

    Everything that may touch the disk or the group is a coroutine. Several tasks may use one consumer: a
    commit or a seek goes in between while another task's poll waits.
    """

    def __init__(
        self,
        workers: Workers,
        make: Callable[[], BlockingConsumer],
        on_close: Callable[[Consumer], object],
    ) -> None:
        """make: makes the core's consumer, at the first use, in a thread: subscribing may create a topic."""
        self._workers = workers
        self._make = make
        self._on_close = on_close
        self._core: BlockingConsumer | None = None
        self._waiter = workers.waiter()
        self._commit_waiter = workers.waiter()
        self._inside = asyncio.Lock()
        self._servant: Servant | None = None  # the listener of ours that runs now
        self._is_polling = False
        self._is_closed = False
        self._unlooked = 0
        self._look_at = 0.0

    def __repr__(self) -> str:
        return f"<aio {'Consumer' if self._core is None else repr(self._core)[1:-1]}>"

    async def __aenter__(self) -> Self:
        await self._run(lambda core: None)
        return self

    async def __aexit__(self, kind: object, exception: BaseException | None, traceback: object) -> None:
        await self._close(left_by=exception)

    # -- reading ---------------------------------------------------------------------------------------------

    async def poll(
        self, timeout: float = 1.0, max_records: int | None = None, **others: Unpack[NoOthers]
    ) -> list[Record]:
        """The next records: as soon as there are any, at most `max_records` (default `max_poll_records`).

        timeout: seconds to wait for the first record; 0 = only what is there.
        Returns an empty list when the time is over, or at once at the end with `stop_at_end`.
        Cancelled, it has taken nothing: the next poll returns the same records.
        Raises   as the blocking `poll`; IllegalStateError if another task polls this consumer already.
        """
        if others:
            raise unknown_argument(self.poll, others)
        wait_ms = milliseconds("poll", timeout, 1000)
        self._begin_polling()
        try:
            deadline = self._workers.loop.time() + wait_ms / 1000
            while True:
                left = max(0.0, deadline - self._workers.loop.time())

                def look(core: BlockingConsumer, left: float = min(left, 60)) -> list[Record] | Parked:
                    try:
                        return core.poll(left, max_records)
                    except Parked as parked:
                        return parked

                found = await self._run(look, self._put_back)
                if not isinstance(found, Parked):
                    if found or left <= 60:
                        return found
                    continue
                await self._park(found, deadline - self._workers.loop.time())
        finally:
            self._is_polling = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record:
        """The next record; endlessly, or with `stop_at_end=True` up to the ends of the first assignment."""
        record = self._next_decoded()
        if record is not None:
            return record
        self._begin_polling()
        try:
            while True:
                found = await self._run(_look_for_one, self._put_back)
                if not isinstance(found, Parked):
                    break
                await self._park(found, None)
        finally:
            self._is_polling = False
        self._unlooked = ITERATION_RECORDS_MAX
        self._look_at = self._workers.loop.time() + ITERATION_SECONDS_MAX
        if not found:
            raise StopAsyncIteration
        return found[0]

    def _next_decoded(self) -> Record | None:
        """A record that is decoded already, while it is not time for a look."""
        core = self._core
        if core is None or self._inside.locked() or self._is_closed or core._closed:
            return None
        if self._unlooked <= 0 or self._workers.loop.time() >= self._look_at:
            return None
        self._unlooked -= 1
        assigned = core._next_buffered()
        if assigned is None:
            return None
        return core._deserialized_one(assigned)

    def _begin_polling(self) -> None:
        if self._is_polling:
            raise IllegalStateError(
                "another task polls this consumer already; one poll at a time, or one consumer each"
            )
        self._is_polling = True
        self._unlooked = 0  # should it be cancelled: a look comes before the next record

    async def _park(self, parked: Parked, left: float | None) -> None:
        """Wait in the loop for news, the core's next look, or the end of the time."""
        look = None if parked.timeout_ms is None else parked.timeout_ms / 1000
        bounds = [seconds for seconds in (look, left) if seconds is not None]
        core = self._core
        assert core is not None  # it was inside that it parked
        membership, waiting = core._membership, core._listener.waiting
        if membership is not None:
            membership.is_waiting = True
        waiting.append(None)
        try:
            await self._waiter.park(min(bounds) if bounds else None)
        finally:
            waiting.pop()
            if membership is not None:
                membership.is_waiting = False

    def _put_back(self, found: object) -> None:
        """Nobody gets these records: stand before them again."""
        core = self._core
        if core is None or not isinstance(found, list):
            return
        first: dict[TopicPartition, int] = {}
        for record in found:
            first.setdefault(TopicPartition(record.topic, record.partition), record.offset)
        for partition, offset in first.items():
            assigned = core._assigned.get(partition)
            if assigned is not None:
                core._go_back(assigned, offset)
        core._commits.is_waiting = True

    # -- assignment ------------------------------------------------------------------------------------------

    async def assign(self, partitions: Partitions) -> None:
        """Read exactly these partitions, without a group's help. Replaces the former assignment."""
        listed = checked_partitions(partitions)
        await self._run(lambda core: core.assign(listed))

    async def subscribe(
        self,
        topics: str | Iterable[str] | Pattern[str],
        *,
        on_assigned: Handler | None = None,
        on_revoked: Handler | None = None,
        on_lost: Handler | None = None,
        **others: Unpack[NoOthers],
    ) -> None:
        """Share the partitions of these topics with the group's other members.

        on_...: functions or coroutine functions; they run in the loop, inside a poll, and may await what
                they like.
        """
        if others:
            raise unknown_argument(self.subscribe, others)
        listeners = self._listeners(on_assigned=on_assigned, on_revoked=on_revoked, on_lost=on_lost)
        await self._run(lambda core: core.subscribe(topics, **listeners))

    async def unsubscribe(self) -> None:
        """Leave the group, or drop the assignment."""
        await self._run(lambda core: core.unsubscribe())

    def _listeners(self, **handlers: Handler | None) -> dict[str, Any]:
        """Rebalance listeners that run in the loop while the thread that polls waits and serves them."""
        return {name: self._listener(handler) for name, handler in handlers.items()}

    def _listener(self, handler: Handler | None) -> Callable[..., None] | None:
        if handler is None:
            return None

        def listen(partitions: list[TopicPartition]) -> None:
            servant = self._servant = Servant(self._workers.loop)
            try:
                servant.run(handler, (partitions,))
            finally:
                self._servant = None

        return listen

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions this consumer reads now."""
        return frozenset() if self._core is None else self._core.assignment

    @property
    def subscription(self) -> frozenset[str]:
        """The topics this consumer is subscribed to."""
        return frozenset() if self._core is None else self._core.subscription

    def paused(self) -> frozenset[TopicPartition]:
        return frozenset() if self._core is None else self._core.paused()

    # -- positions -------------------------------------------------------------------------------------------

    async def seek(self, partition: TopicPartition | tuple[str, int], offset: int) -> None:
        """Read from `offset` next. Checked against the log at the next poll, as Kafka does."""
        await self._run(lambda core: core.seek(partition, offset))

    async def seek_to_beginning(self, partitions: Partitions | None = None) -> None:
        """Read from the log's start next; all assigned partitions by default."""
        await self._run(lambda core: core.seek_to_beginning(partitions))

    async def seek_to_end(self, partitions: Partitions | None = None) -> None:
        """Read only what comes from now on; all assigned partitions by default."""
        await self._run(lambda core: core.seek_to_end(partitions))

    async def seek_to_timestamp(self, partition: TopicPartition | tuple[str, int], ms: int) -> None:
        """Read from the first record that is not older than `ms`; from the end if there is none."""
        await self._run(lambda core: core.seek_to_timestamp(partition, ms))

    async def position(self, partition: TopicPartition | tuple[str, int]) -> int:
        """The offset of the next record this consumer hands out."""
        return await self._run(lambda core: core.position(partition))

    async def committed(self, partition: TopicPartition | tuple[str, int]) -> int | None:
        """The group's committed offset of a partition; None if nobody has committed."""
        return await self._run(lambda core: core.committed(partition))

    async def beginning_offsets(self, partitions: Partitions) -> dict[TopicPartition, int]:
        """The log start offset of each."""
        return await self._run(lambda core: core.beginning_offsets(partitions))

    async def end_offsets(self, partitions: Partitions) -> dict[TopicPartition, int]:
        """The offset behind the last readable record of each."""
        return await self._run(lambda core: core.end_offsets(partitions))

    async def offsets_for_times(
        self, times: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """For each partition the first record that is not older than the time (ms); None if there is none."""
        return await self._run(lambda core: core.offsets_for_times(times))

    async def lag(self, partition: TopicPartition | tuple[str, int]) -> int:
        """How many offsets this consumer's position is behind the end."""
        return await self._run(lambda core: core.lag(partition))

    async def pause(self, *partitions: TopicPartition | tuple[str, int]) -> None:
        """Hand out no more records of these partitions until `resume`; membership and buffers stay."""
        await self._run(lambda core: core.pause(*partitions))

    async def resume(self, *partitions: TopicPartition | tuple[str, int]) -> None:
        await self._run(lambda core: core.resume(*partitions))

    async def at_end(self) -> bool:
        """With `stop_at_end`: whether every partition was read up to the end it had at first."""
        return await self._run(lambda core: core.at_end)

    def note_alive(self) -> None:
        """Count as a poll for `max_poll_interval_ms`: for work that takes long on the records of one poll."""
        if self._core is not None:
            self._core.note_alive()

    def wakeup(self) -> None:
        """Let the poll that waits return at once. May be called from any thread."""
        if self._core is not None:
            self._core.wakeup()

    async def commit(
        self,
        offsets: Mapping[TopicPartition, Any] | None = None,
        timeout: float | None = None,
        **others: Unpack[NoOthers],
    ) -> None:
        """Store positions for the group, and wait until they are stored. As the blocking `commit`.

        Cancelled while it waits for a rebalance, nothing is stored; later, it may be.
        """
        if others:
            raise unknown_argument(self.commit, others)
        loop = self._workers.loop
        timeout_ms = 0 if timeout is None else milliseconds("commit", timeout, 0)
        deadline = None if timeout is None else loop.time() + timeout_ms / 1000

        def attempt(core: BlockingConsumer) -> Parked | None:
            nonlocal deadline
            if deadline is None:
                deadline = loop.time() + core.config.default_api_timeout_ms / 1000
            try:
                core.commit(offsets, min(max(0.0, deadline - loop.time()), 60))
            except Parked as parked:
                return parked
            return None

        while (parked := await self._run(attempt)) is not None:
            await self._commit_waiter.park(None if parked.timeout_ms is None else parked.timeout_ms / 1000)

    # -- closing ---------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Commit what was handed out (with auto-commit), leave the group, end. Closing twice is harmless."""
        await self._close()

    async def _close(self, *, left_by: BaseException | None = None) -> None:
        if self._is_closed:
            return
        try:
            if self._core is not None:
                await self._run(lambda core: core._close(left_by=left_by))
        finally:
            self._is_closed = True
            self._waiter.set()
            self._on_close(self)

    # -- inside the core, one at a time ----------------------------------------------------------------------

    async def _run(
        self,
        work: Callable[[BlockingConsumer], ResultT],
        undo: Callable[[ResultT], None] | None = None,
        *,
        waits: bool = False,
    ) -> ResultT:
        """Do `work` in a thread, alone. If the caller is cancelled, `undo` its result before the next.

        waits:  it may wait for more than a turn.
        """
        if self._is_closed:
            raise ClosedError(
                "this consumer is closed; make another with group.consumer() or cluster.consumer()"
            )
        servant = serving()
        if servant is not None and servant is self._servant and self._core is not None:
            core = self._core
            return await servant.submit(lambda: work(core))  # part of the call that runs the listener
        await self._inside.acquire()
        try:
            future = self._workers.submit(lambda: work(self._made()), waits=waits)
        except BaseException:
            self._inside.release()
            raise
        try:
            result = await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda done: self._after_cancel(done, undo))
            raise
        except BaseException:
            self._inside.release()
            raise
        self._inside.release()
        return result

    def _after_cancel(self, done: asyncio.Future[ResultT], undo: Callable[[ResultT], None] | None) -> None:
        try:
            if not done.cancelled() and done.exception() is None and undo is not None:
                undo(done.result())
        finally:
            self._inside.release()

    def _made(self) -> BlockingConsumer:
        core = self._core
        if core is None:
            core = self._make()
            waiter: LoopWaiter = self._waiter
            core._listener.waiter = waiter
            core._commits.waiter = self._commit_waiter
            self._core = core
        return core


def _look_for_one(core: BlockingConsumer) -> list[Record] | Parked:
    """One record, or none at the end; what was decoded with it stays in the buffer."""
    try:
        for record in core:
            return [record]
    except Parked as parked:
        return parked
    return []
