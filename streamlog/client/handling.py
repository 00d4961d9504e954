"""`ConsumerGroup.run`: a handler called for every record by several members of the group.

Each worker is a member with a thread of its own. It handles the records of one poll one by one, commits what
finished,
and polls again: in order per partition, at least once.

Invariants:
 1. A record whose handler did not finish, or that cannot be deserialized, is never committed past (unless `on_error`
    says to skip it).
 2. When one worker fails all stop, every worker commits what it finished, and the first error is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from streamlog.client.consumer import Consumer
from streamlog.errors import CommitFailedError, ConfigError, DeserializationError
from streamlog.record import Record, TopicPartition

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster
    from streamlog.broker.runner import Task
    from streamlog.client.consumer_group import ConsumerGroup

POLL_SECONDS: Final = 0.25
WORKERS_MAX: Final = 1000


def check_run(handler: object, workers: object, on_error: object) -> None:
    """Raises ConfigError for arguments of `run` that make no sense."""
    if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= WORKERS_MAX:
        raise ConfigError(
            f"workers={workers!r}: allowed: 1 to {WORKERS_MAX}",
            option="workers",
            value=workers,
            allowed=f"1 to {WORKERS_MAX}",
        )
    if not (callable(on_error) or on_error in ("raise", "skip")):
        raise ConfigError(
            f"on_error={on_error!r}: allowed: 'raise', 'skip' or a callable (record, exception)",
            option="on_error",
            value=on_error,
            allowed="'raise', 'skip' or a callable",
        )
    if not callable(handler):
        raise ConfigError(
            f"handler {handler!r} is not callable",
            option="handler",
            value=handler,
            allowed="a callable (record)",
        )


def unread_record(error: DeserializationError) -> Record:
    """The record that could not be read, its key and value as bytes."""
    if error.record is None:
        raise error  # a handler's own, or of a serde called by hand
    return error.record


class GroupRun:
    """One run of a handler."""

    def __init__(
        self,
        backend: BrokerCluster,
        group: ConsumerGroup,
        handler: Callable[[Record], Any],
        workers: int,
        on_error: str | Callable[[Record, Exception], Any],
        options: Mapping[str, Any],
    ) -> None:
        check_run(handler, workers, on_error)
        self._runtime = backend.runtime
        self._group = group
        self._handler = handler
        self._workers = workers
        self._on_error = on_error
        self._member_options = {**options, "enable_auto_commit": False}
        self._stopping = False
        self._first_error: BaseException | None = None
        self._consumers: list[Consumer] = []
        self._ended = self._runtime.waiter()

    def run(self) -> None:
        try:
            for _ in range(self._workers):
                self._consumers.append(self._group.consumer(**self._member_options))
        except BaseException:
            for consumer in self._consumers:
                consumer.close()
            raise
        tasks = []
        try:
            for number, consumer in enumerate(self._consumers):
                work = partial(self._work, consumer)
                tasks.append(self._runtime.spawn(f"streamlog-worker-{number}", work))
            self._join(tasks)
        except BaseException as error:  # Ctrl-C in the waiting thread
            self._first_error = self._first_error or error
            self.stop()
            for task in tasks:
                task.join()
            for consumer in self._consumers:  # those whose worker never started
                consumer.close()
        if self._first_error is not None:
            raise self._first_error

    @staticmethod
    def _join(tasks: list[Task]) -> None:
        for task in tasks:
            while not task.join(1000):
                pass

    def stop(self) -> None:
        self._stopping = True
        for consumer in self._consumers:
            consumer.wakeup()

    def _work(self, consumer: Consumer) -> None:
        try:
            with consumer:
                self._consume(consumer)
        except BaseException as error:
            if self._first_error is None:
                self._first_error = error
            self.stop()

    def _consume(self, consumer: Consumer) -> None:
        while not self._stopping and not consumer.at_end:
            try:
                records = consumer.poll(POLL_SECONDS)
            except DeserializationError as error:
                self._pass_over(consumer, error)
                continue
            if records:
                self._handle(consumer, records)

    def _handle(self, consumer: Consumer, records: list[Record]) -> None:
        """Handle one poll's records and commit what finished, also when the handler raises."""
        finished: dict[TopicPartition, int] = {}
        try:
            for record in records:
                if self._stopping:
                    break
                try:
                    self._handler(record)
                except Exception as error:
                    self._judge(record, error)
                finished[TopicPartition(record.topic, record.partition)] = record.offset + 1
                consumer.note_alive()  # each record handled is a sign of life, not only each poll
        finally:
            if finished:
                self._commit(consumer, finished)

    def _pass_over(self, consumer: Consumer, error: DeserializationError) -> None:
        """Go on behind a record that cannot be read, if `on_error` says so."""
        record = unread_record(error)
        self._judge(record, error)
        place = TopicPartition(record.topic, record.partition)
        consumer.seek(place, record.offset + 1)
        self._commit(consumer, {place: record.offset + 1})

    def _judge(self, record: Record, error: Exception) -> None:
        if self._on_error == "raise":
            raise error
        if callable(self._on_error):
            self._on_error(record, error)

    def _commit(self, consumer: Consumer, finished: dict[TopicPartition, int]) -> None:
        try:
            consumer.commit(finished)
        except CommitFailedError:
            # The partitions moved on in between: their new owner handles these records again (at least once).
            pass
