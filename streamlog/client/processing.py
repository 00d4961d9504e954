"""`Cluster.process`: read, process, write, exactly once: a handler whose output and whose progress are one transaction.

    poll --handler(record), one by one--> outputs --> a transaction: outputs, and the offsets of what was read --> poll
         a handler fails: what is finished is committed, the rest is read again; the error is judged as in `run`
         the transaction fails: all of that poll is read again, by whoever owns its partitions then

As `handling.GroupRun`, of which this is a kind: workers are members with a thread each, and a producer each.

Invariants:
 1. Output of a record is committed with its offset, or not at all: also when one of several outputs cannot be sent.
 2. After an outcome that is not known a worker begins anew, from what is committed.

Source: DESIGN section 5; SEMANTICS 3.5.17 to 3.5.19 (KIP-447).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from streamlog.client.consumer import Consumer
from streamlog.client.consumer_group import ConsumerGroup
from streamlog.client.handling import POLL_SECONDS, GroupRun, unread_record
from streamlog.errors import (
    CommitFailedError,
    ConfigError,
    DeserializationError,
    InvalidProducerIdMappingError,
    ProducerFencedError,
    StreamlogError,
    TransactionAbortableError,
    UnknownTopicOrPartitionError,
)
from streamlog.record import Record

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from streamlog.broker.cluster import BrokerCluster
    from streamlog.client.producer import Producer

Output = tuple[Any, Any] | Record
PAUSE_MS: Final = 50
"""Before a worker begins anew."""
_FENCED = (ProducerFencedError, InvalidProducerIdMappingError)

_names_in_use: WeakKeyDictionary[BrokerCluster, dict[str, object]] = WeakKeyDictionary()


class ProcessRun(GroupRun):
    """One run of a handler with output."""

    def __init__(
        self,
        backend: BrokerCluster,
        group: ConsumerGroup,
        handler: Callable[[Record], Any],
        to: str,
        *,
        exactly_once: bool,
        workers: int,
        on_error: str | Callable[[Record, Exception], Any],
        make_producer: Callable[..., Producer],
        producer_options: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        isolation = {"isolation_level": "read_committed"} if exactly_once else {}
        super().__init__(backend, group, handler, workers, on_error, {**isolation, **options})
        self._backend = backend
        self._to = to
        self._exactly_once = exactly_once
        self._make_producer = make_producer
        self._producer_options = dict(producer_options)

    def _consume(self, consumer: Consumer) -> None:
        names, ours, number = _names_in_use.setdefault(self._backend, {}), object(), 0
        while names.setdefault(name := f"{self._group.group_id}-process-{number}", ours) is not ours:
            number += 1  # the lowest that is free: the next process takes it, and what this one has left open
        try:
            self._consume_as(name, consumer)
        finally:
            del names[name]

    def _consume_as(self, name: str, first: Consumer) -> None:
        consumer = first
        identity = {"transactional_id": name} if self._exactly_once else {}
        waiter = self._runtime.waiter()
        while True:
            failure: BaseException | None = None
            is_over = False
            try:
                with self._make_producer(**self._producer_options, **identity) as producer:
                    while not self._stopping and not consumer.at_end and failure is None:
                        failure = self._turn(consumer, producer)
                is_over = True
            except StreamlogError as error:
                goes_on = error.retriable or isinstance(error, _FENCED)
                if self._stopping or not goes_on or isinstance(error, UnknownTopicOrPartitionError):
                    raise
            finally:
                if consumer is not first:
                    consumer.close()
            if failure is not None:
                raise failure  # the handler's, of whatever kind: not a reason to begin anew
            if is_over:
                return
            first.close()  # what it has handed out may be committed, or not: another one asks
            waiter.wait(PAUSE_MS)
            consumer = self._group.consumer(**self._member_options)
            self._consumers.append(consumer)

    def _turn(self, consumer: Consumer, producer: Producer) -> BaseException | None:
        """One poll, and one transaction. Returns what a handler raised, once what was finished before is committed."""
        failure: BaseException | None = None
        try:
            with self._transaction(consumer, producer):
                failure = self._process(consumer, producer)
                if not self._exactly_once:
                    producer.flush()
                    consumer.commit()
        except (CommitFailedError, TransactionAbortableError):
            return None  # who owns the partitions now reads it again, the record at fault as well
        return failure

    def _transaction(self, consumer: Consumer, producer: Producer) -> AbstractContextManager[object]:
        if not self._exactly_once:
            return nullcontext()
        transactional: Any = producer
        made: AbstractContextManager[object] = transactional.transaction(consumer)
        return made

    def _process(self, consumer: Consumer, producer: Producer) -> BaseException | None:
        """Handle what a poll gives and send the output. Returns what a handler raised: then nothing behind it counts."""
        try:
            records = consumer.poll(POLL_SECONDS)
        except DeserializationError as error:
            record = unread_record(error)
            failure = self._judged(record, error)
            if failure is None:
                consumer.seek((record.topic, record.partition), record.offset + 1)
            return failure
        outputs: list[Output] = []
        ends: list[int] = []
        failure = None
        for record in records:
            if self._stopping:
                break
            try:
                outputs += outputs_of(record, self._handler(record))
            except Exception as error:
                failure = self._judged(record, error)
                if failure is not None:
                    break
            ends.append(len(outputs))
            consumer.note_alive()
        finished, failure_sending = self._send(producer, records, outputs, ends)
        for record in reversed(records[finished:]):  # the first of each partition last
            consumer.seek((record.topic, record.partition), record.offset)
        return failure_sending or failure

    def _send(
        self, producer: Producer, records: list[Record], outputs: list[Output], ends: list[int]
    ) -> tuple[int, BaseException | None]:
        """Send all output at once; record by record only to find out whose cannot be sent. How many records are done."""
        if not outputs:
            return len(ends), None
        try:
            producer.send_many(self._to, outputs)
            return len(ends), None
        except (ValueError, TypeError):
            pass  # nothing was sent
        start = 0
        for number, end in enumerate(ends):
            try:
                producer.send_many(self._to, outputs[start:end])
            except Exception as error:
                failure = self._judged(records[number], error)
                if failure is not None:
                    return number, failure
            start = end
        return len(ends), None

    def _judged(self, record: Record, error: Exception) -> BaseException | None:
        """None: go on behind the record."""
        try:
            self._judge(record, error)
        except BaseException as final:
            return final
        return None


def check_process(group: object, to: object, exactly_once: object) -> None:
    """Raises ConfigError for arguments of `Cluster.process` that make no sense."""
    for option, value, kind, allowed in (
        ("group", group, ConsumerGroup, 'a group: cluster.consumer_group("name", ["topic"])'),
        ("to", to, str, "the name of a topic"),
        ("exactly_once", exactly_once, bool, "True or False"),
    ):
        if not isinstance(value, kind):
            raise ConfigError(
                f"{option}={value!r:.80}: allowed: {allowed}", option=option, value=value, allowed=allowed
            )


def outputs_of(record: Record, result: object) -> list[Output]:
    """What a handler's result means: None; a value, which goes with the record's key; (key, value); a Record; or an
    iterable of those.
    """
    if result is None:
        return []
    if isinstance(result, (Record, tuple, bytes, bytearray, memoryview, str, Mapping)) or not isinstance(
        result, Iterable
    ):
        return [_output(record, result)]
    return [_output(record, one) for one in result if one is not None]


def _output(record: Record, one: Any) -> Output:
    if isinstance(one, Record):
        return one
    if isinstance(one, tuple):
        key, value = one
        return key, value
    return record.key, one
