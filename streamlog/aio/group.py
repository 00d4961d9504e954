"""A consumer group for asyncio: members, lag, offsets, resets, and `run` with coroutines.

Each worker of `run` is a member and a task: it handles the records of one poll one by one, commits what
finished, polls again. In order per partition, at least once.

Invariants:
 1. A record whose handler did not finish, or that cannot be deserialized, is never committed past (unless
    `on_error` says to skip it).
 2. When one worker fails, all stop after the record in hand, commit what they finished, and the first error
    is raised.
 3. Cancelling `run` cancels the handlers, commits what finished, and leaves the group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from streamlog.aio.consumer import Consumer, Handler
from streamlog.aio.waiting import Workers
from streamlog.client.handling import check_run, unread_record
from streamlog.config import ConsumerConfig
from streamlog.errors import CommitFailedError, DeserializationError, IllegalStateError
from streamlog.record import Record, TopicPartition

if TYPE_CHECKING:
    from streamlog.client.consumer_group import ConsumerGroup as BlockingGroup
    from streamlog.client.consumer_group import GroupMember

POLL_SECONDS: Final = 30.0


class ConsumerGroup:
    """Consumers that share the partitions of topics. Make it with `cluster.consumer_group(...)`."""

    def __init__(
        self, workers: Workers, core: BlockingGroup, adopt: Callable[[Callable[..., Any]], Consumer]
    ) -> None:
        """adopt: makes a consumer of this loop out of what makes one of the core's."""
        self._workers = workers
        self._core = core
        self._adopt = adopt
        self._run: _Run | None = None

    def __repr__(self) -> str:
        return f"<aio ConsumerGroup {self._core.group_id!r}>"

    @property
    def group_id(self) -> str:
        return self._core.group_id

    @property
    def config(self) -> ConsumerConfig:
        return self._core.config

    def consumer(
        self,
        *,
        config: Mapping[str, Any] | None = None,
        on_assigned: Handler | None = None,
        on_revoked: Handler | None = None,
        on_lost: Handler | None = None,
        **options: Any,
    ) -> Consumer:
        """One more member. It joins at its first poll; options override the group's for this member.

        on_...: functions or coroutine functions, run in the loop, see `Consumer.subscribe`.
        """
        core = self._core

        def make() -> Any:
            listeners = consumer._listeners(on_assigned=on_assigned, on_revoked=on_revoked, on_lost=on_lost)
            return core.consumer(config=config, **listeners, **options)

        consumer = self._adopt(make)
        return consumer

    async def state(self) -> str:
        """Kafka's name of the group's state: Empty, PreparingRebalance, CompletingRebalance, Stable, Dead."""
        return await self._workers.call(lambda: self._core.state)

    async def topics(self) -> list[str]:
        """The topics the group reads, as far as it is told here or its members say."""
        return await self._workers.call(lambda: self._core.topics)

    async def members(self) -> list[GroupMember]:
        """The live members and what they own."""
        return await self._workers.call(self._core.members)

    async def offsets(self) -> dict[TopicPartition, int]:
        """The committed offsets: for each partition the next record to read."""
        return await self._workers.call(self._core.offsets)

    async def lag(self) -> dict[TopicPartition, int]:
        """For each partition, how many offsets are behind what is committed; see the blocking group's."""
        return await self._workers.call(self._core.lag)

    async def reset_offsets(
        self,
        to: str | int | Mapping[TopicPartition, int] = "earliest",
        *,
        topics: Iterable[str] | None = None,
        dry_run: bool = False,
    ) -> dict[TopicPartition, int]:
        """Move the committed offsets; see the blocking group's. The group must have no live members."""
        return await self._workers.call(self._core.reset_offsets, to, topics=topics, dry_run=dry_run)

    async def delete(self) -> None:
        """Forget the group and its offsets. Raises NonEmptyGroupError, GroupIdNotFoundError."""
        await self._workers.call(self._core.delete)

    async def run(
        self,
        handler: Callable[[Record], Any],
        *,
        workers: int = 1,
        on_error: str | Callable[[Record, Exception], Any] = "raise",
        stop_at_end: bool = False,
        **options: Any,
    ) -> None:
        """`await handler(record)` for every record, in order per partition; commit after handling.

        handler:  a coroutine function; a plain function works too, and blocks the loop while it runs.
        on_error: "raise" stops everybody, commits what finished and raises; "skip" goes on behind the
                  record; a function or coroutine function gets (record, exception) and may raise. A record
                  that cannot be deserialized is judged like one whose handler failed, its key and value as
                  bytes.
        Runs until `stop()`, an error, or - with `stop_at_end` - until everything there was at the start is
        handled.
        """
        check_run(handler, workers, on_error)
        if self._run is not None:
            raise IllegalStateError(f"group {self.group_id!r} is running already; stop() it first")
        members = [
            self.consumer(enable_auto_commit=False, stop_at_end=stop_at_end, **options)
            for _ in range(workers)
        ]
        self._run = _Run(members, handler, on_error)
        try:
            await self._run.run()
        finally:
            self._run = None

    def stop(self) -> None:
        """End a `run` under way; records being handled are finished and committed. From the loop's thread."""
        if self._run is not None:
            self._run.stop()


class _Run:
    """One run of a handler."""

    def __init__(self, members: list[Consumer], handler: Callable[[Record], Any], on_error: Any) -> None:
        self._members = members
        self._handler = handler
        self._on_error = on_error
        self._stopping = False

    async def run(self) -> None:
        tasks = [asyncio.ensure_future(self._work(member)) for member in self._members]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        self.stop()
        errors = [
            error for error in await asyncio.gather(*tasks, return_exceptions=True) if error is not None
        ]
        if errors:
            raise errors[0]

    def stop(self) -> None:
        self._stopping = True
        for member in self._members:
            member.wakeup()

    async def _work(self, consumer: Consumer) -> None:
        try:
            async with consumer:
                while True:
                    if self._stopping:
                        return
                    try:
                        records = await consumer.poll(POLL_SECONDS)
                    except DeserializationError as error:
                        await self._pass_over(consumer, error)
                        continue
                    if records:
                        await self._handle(consumer, records)
                    elif await consumer.at_end():
                        return
        except BaseException:
            self.stop()
            raise

    async def _handle(self, consumer: Consumer, records: list[Record]) -> None:
        """Handle one poll's records and commit what finished, whatever the handler does."""
        finished: dict[TopicPartition, int] = {}
        try:
            for record in records:
                if self._stopping:
                    break
                consumer.note_alive()  # each record handled is a sign of life, not only each poll
                try:
                    await _maybe_await(self._handler(record))
                except Exception as error:
                    await self._judge(record, error)
                finished[TopicPartition(record.topic, record.partition)] = record.offset + 1
        finally:
            if finished:
                await self._commit(consumer, finished)

    async def _pass_over(self, consumer: Consumer, error: DeserializationError) -> None:
        """Go on behind a record that cannot be read, if `on_error` says so."""
        record = unread_record(error)
        await self._judge(record, error)
        place = TopicPartition(record.topic, record.partition)
        await consumer.seek(place, record.offset + 1)
        await self._commit(consumer, {place: record.offset + 1})

    async def _judge(self, record: Record, error: Exception) -> None:
        if self._on_error == "raise":
            raise error
        if callable(self._on_error):
            await _maybe_await(self._on_error(record, error))

    async def _commit(self, consumer: Consumer, finished: dict[TopicPartition, int]) -> None:
        try:
            await consumer.commit(finished)
        except CommitFailedError:
            # the partitions moved on: their new owner handles these records again (at least once)
            pass


async def _maybe_await(result: object) -> None:
    if isinstance(result, Awaitable):
        await result
