"""Transactions: many records, and the offsets of what they were made from, all or none.

    with cluster.producer(transactional_id="t-1") as producer:
        with producer.transaction(consumer) as transaction:     commit at the end, abort on an exception
            producer.send(...)
        begin --send, send--> open --commit--> all of it is read             } at the broker: one commit,
                                 +--abort---> nobody who reads committed     } with the consumer's offsets in it
                                              records sees any of it

A transaction that cannot be committed, because a record could not be written or its consumer lost its partitions, says so
at the commit, and is aborted. A producer whose transactional id another one has taken is fenced: it can only be closed.

Invariants:
 1. At most one transaction of a producer is open; outside of one it sends nothing.
 2. Leaving `with producer.transaction()` ends it: committed, or aborted, or (the end itself failed) with an error, and
    then the next one aborts it first.

Sources: DESIGN section 2; Kafka KafkaProducer, TransactionManager; KIP-98, KIP-447, KIP-890.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamlog.broker.api import AddPartitions, EndTxn, InitProducerId
from streamlog.broker.transaction_coordinators import AGAIN_MS, call
from streamlog.broker.transactional_commits import transactional
from streamlog.client.consumer import Consumer
from streamlog.client.delivery import OpenBatch
from streamlog.client.failures import attach
from streamlog.client.patience import COORDINATOR_MOVES
from streamlog.client.producer import Producer
from streamlog.client.timeouts import SETTLING_MS
from streamlog.client.transactional_identity import TransactionalIdentity
from streamlog.core.cluster_image import CONSUMER_OFFSETS_TOPIC
from streamlog.core.group import group_partition
from streamlog.core.transaction import PRODUCER_EPOCH_MAX
from streamlog.errors import (
    ClosedError,
    CommitFailedError,
    ConfigError,
    DeliveryError,
    FencedInstanceIdError,
    IllegalGenerationError,
    IllegalStateError,
    InvalidProducerIdMappingError,
    InvalidTxnStateError,
    ProducerFencedError,
    StreamlogError,
    TransactionAbortableError,
    UnknownMemberIdError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamlog.broker.cluster import BrokerCluster
    from streamlog.broker.pending import Pending
    from streamlog.config import ProducerConfig
    from streamlog.core.group_events import OffsetCommit, OffsetCommitReply
    from streamlog.record import TopicPartition

_FATAL = (ProducerFencedError, InvalidProducerIdMappingError)


class TransactionalProducer(Producer):
    """A producer with a `transactional_id`: it sends inside of `transaction()` only."""

    def __init__(
        self, backend: BrokerCluster, config: ProducerConfig, on_close: Callable[[Producer], None]
    ) -> None:
        """Fences whoever had the transactional id before, and aborts what that had open."""
        assert config.transactional_id is not None
        self._transactional_id = config.transactional_id
        self._transaction: Transaction | None = None
        self._may_seal = False
        """A transaction is open: what is gathered may travel."""
        self._is_in_doubt = False
        """The end of the last transaction failed: it may be open."""
        self._fatal: StreamlogError | None = None
        identity = TransactionalIdentity(self._transactional_id, *self._first_identity(backend, config))
        super().__init__(backend, config, on_close)
        self._identity = identity
        self._gate.record_bytes_max = -1  # every send asks `_admit`

    def __repr__(self) -> str:
        state = "fenced" if self._fatal else "in a transaction" if self._transaction else "idle"
        state = "closed" if self._closed else state
        return f"<Producer transactional_id={self._transactional_id!r} {state}>"

    def transaction(self, consumer: Consumer | None = None) -> Transaction:
        """A transaction, for a `with`: committed at its end, aborted on an exception.

        consumer:  its positions are committed with the transaction; after an abort it stands again before everything it
                   has handed out and not committed. It must be of a group, with `enable_auto_commit=False`.
        Raises     IllegalStateError inside of another one, ProducerFencedError, ConfigError.
        """
        if consumer is not None:
            check_consumer(consumer)
        return Transaction(self, consumer)

    def close(self, timeout: float | None = None) -> None:
        """Abort what is open, and end."""
        transaction = self._transaction
        if transaction is not None and not self._closed:
            try:
                transaction.abort()
            except (ClosedError, *_FATAL):
                pass  # the coordinator has done so, or will
        super().close(timeout)

    def _admit(self, size_bytes: int, topic: str) -> None:
        if self._transaction is None:
            raise self._fatal or IllegalStateError(
                f"a producer with transactional_id={self._transactional_id!r} sends inside of a transaction only: "
                "`with producer.transaction(): ...`"
            )
        super()._admit(size_bytes, topic)

    def _begin(self, transaction: Transaction) -> None:
        self._check_open()
        if self._fatal is not None:
            raise self._fatal.with_traceback(None)
        if self._transaction is not None:
            raise IllegalStateError("a transaction of this producer is open already; end it first")
        if self._is_in_doubt:
            self._end_after_all()
        self._take_over()
        identity = self._transactional
        identity.renew(*identity.stamp)  # whole, also where an interrupt has cut the last time short
        if self._open_batches():
            self._discard()  # what an interrupted end has left
        self._failed.clear()  # of a former transaction, which was aborted for that
        self._may_seal = True
        transaction._failed_before = self._records_failed
        transaction._stamp = identity.stamp
        self._transaction = transaction
        self._gate.record_bytes_max = self._usual_bytes_max  # nothing is gathered yet: there is room

    def _first_identity(self, backend: BrokerCluster, config: ProducerConfig) -> tuple[int, int]:
        return _init(backend, config)

    def _take_over(self) -> None:
        if self._transactional.producer_epoch > PRODUCER_EPOCH_MAX:  # its epochs are used up
            self._transactional.renew(*_init(self._backend, self.config))

    @property
    def _transactional(self) -> TransactionalIdentity:
        identity: Any = self._identity
        assert isinstance(identity, TransactionalIdentity)
        return identity

    def _end(
        self,
        is_commit: bool,
        offsets: list[tuple[str, OffsetCommit]] | None = None,
        after: tuple[Pending, ...] = (),
    ) -> None:
        """Ask the coordinator for the end; the identity is that of the next transaction then."""
        identity = self._transactional
        wait_ms = self.config.max_block_ms
        stamp = identity.stamp
        event = EndTxn(*stamp, is_commit, offsets or [], after, wait_ms)
        try:
            answer = call(self._backend, self._transactional_id, event, wait_ms + SETTLING_MS)
        except _FATAL as error:
            self._fatal = error
            raise
        identity.renew(*answer)
        self._is_in_doubt = False

    def _send_offsets(self, offsets: list[tuple[str, OffsetCommit]]) -> None:
        """Have the groups hold these offsets until the transaction has ended."""
        backend, identity = self._backend, self._transactional
        stamp = identity.stamp
        count = len(backend.topic(CONSUMER_OFFSETS_TOPIC).partitions)
        homes = [(CONSUMER_OFFSETS_TOPIC, group_partition(group_id, count)) for group_id, _ in offsets]
        clock, waiter = self._runtime.clock, None
        deadline_ms = clock.monotonic_ms() + self.config.max_block_ms
        call(backend, self._transactional_id, AddPartitions(*stamp, homes), self.config.max_block_ms)
        for group_id, commit in offsets:
            event = transactional(commit, *stamp)
            while True:
                try:
                    left_ms = max(0, deadline_ms - clock.monotonic_ms())
                    reply: OffsetCommitReply = backend.call_group(group_id, event, left_ms)
                    break
                except COORDINATOR_MOVES:
                    if clock.monotonic_ms() >= deadline_ms:
                        raise
                waiter = waiter or self._runtime.waiter()
                waiter.wait(AGAIN_MS)
            for error in reply.errors.values():
                if error is not None:
                    raise error

    def _end_after_all(self) -> bool:
        """Abort what may be open. True: it was committed before, and an interrupt has hidden the answer."""
        try:
            self._end(False)
        except InvalidTxnStateError:
            self._end(True)  # of what is committed: the same answer again
            return True
        return False

    def _seal(self, batches: list[OpenBatch]) -> None:
        """Called with the lock held: what was gathered too late belongs to no transaction."""
        if self._may_seal:
            super()._seal(batches)
            return
        for batch in batches:
            batch.is_closed = True
            batch.take()
            if batch.is_unsent:
                batch.fail(TransactionAbortableError("its transaction ended before this record was sent"))
            self._detach(batch)

    def _send_last(self) -> tuple[Pending, ...]:
        """Hand over what is gathered, and nothing more from now on; the Produces that are not known to be written."""
        with self._lock:
            self._enter()
            self._inside = True
            try:
                self._seal(self._open_batches())
                self._may_seal = False
            finally:
                self._inside = False
        self._reap()
        return tuple(
            dict.fromkeys(batch.pending for batch in tuple(self._in_flight) if batch.pending is not None)
        )

    def _discard(self) -> None:
        """From now on nothing travels; what is gathered fails."""
        with self._lock:
            self._enter()
            self._inside = True
            try:
                self._may_seal = False
                self._seal(self._open_batches())
            finally:
                self._inside = False

    def _leave(self) -> None:
        """No transaction is open any more, as far as sending goes."""
        self._transaction = None
        self._gate.record_bytes_max = -1


class Transaction:
    """One transaction of a producer. Ends once."""

    def __init__(self, producer: TransactionalProducer, consumer: Consumer | None) -> None:
        self._producer = producer
        self._consumer = consumer
        self._offsets: dict[str, OffsetCommit] = {}
        self._committing: list[tuple[Consumer, dict[TopicPartition, Any]]] = []
        self._failed_before = 0
        self._stamp = (-1, -1)
        """Its producer id and epoch. Once its end is answered the producer's are others."""
        self._has_begun = self._has_ended = False

    def __repr__(self) -> str:
        state = "ended" if self._has_ended else "open" if self._has_begun else "not begun"
        return f"<Transaction of {self._producer._transactional_id!r}, {state}>"

    def __enter__(self) -> Transaction:
        if self._has_begun:
            raise IllegalStateError("a transaction is begun once; ask the producer for another")
        try:
            self._producer._begin(self)
            self._has_begun = True
        except BaseException:  # interrupted: nobody has it, so nobody could end it
            if self._producer._transaction is self:
                self._producer._leave()
            raise
        return self

    def __exit__(self, kind: object, exception: BaseException | None, traceback: object) -> None:
        if self._has_ended:
            return
        if exception is None:
            try:
                self.commit()
            except BaseException:
                if not self._has_ended:  # interrupted on its way in
                    self.abort()
                raise
            return
        try:
            self.abort()
        except Exception as error:
            attach(exception, error)  # the user's own exception is the news

    def commit_offsets(self, consumer: Consumer) -> None:
        """Commit a consumer's positions with this transaction: of everything it has handed out up to now.

        Raises   ConfigError for a consumer that commits by itself or has no group; IllegalStateError after the end, and
                 for a second member of a group.
        """
        self._check_open()
        check_consumer(consumer)
        group_id = str(consumer.config.group_id)
        if any(other is not consumer and other.config.group_id == group_id for other, _ in self._committing):
            raise IllegalStateError(
                f"this transaction commits the offsets of another member of group {group_id!r} already; one transaction, "
                "one member"
            )
        lost = sorted(consumer._commits.lost)
        consumer._commits.lost.clear()
        if lost:
            raise CommitFailedError(
                f"{', '.join(map(str, lost))} went to another member while records of it were being processed; the "
                "transaction is aborted, and they are processed there",
                partitions=lost,
            )
        positions = consumer._commits.positions()
        if positions:
            self._offsets[group_id] = consumer._commits.event(positions)
            self._committing.append((consumer, positions))

    def commit(self) -> None:
        """End it: everything that was sent is read from now on, and the offsets are committed.

        Raises   TransactionAbortableError: a record could not be written; CommitFailedError: the consumer has lost its
                 partitions; ProducerFencedError. Nothing of the transaction is read then: it is aborted.
        """
        self._check_open()
        producer = self._producer
        try:
            if self._consumer is not None:
                self.commit_offsets(self._consumer)
            producer._leave()  # first: what another thread sends from now on is refused
            if producer._backend.is_replicated:
                self._flush()
                producer._discard()
                if self._is_known_there:
                    self._commit()
            else:
                self._commit_together()
            self._note_committed()
        except BaseException as error:
            try:
                self.abort()
            except Exception as another:
                attach(error, another)
            raise
        self._finish()

    def abort(self) -> None:
        """End it: nobody who reads committed records sees any of it, and `consumer` gives again what it gave."""
        self._check_open()
        producer = self._producer
        self._finish()
        # Answered, and interrupted since: only a commit of its own gives the producer another epoch before this.
        is_committed = producer._transactional.stamp != self._stamp
        producer._is_in_doubt = not is_committed and self._is_known_there
        try:
            producer._discard()
            if producer._fatal is None and producer._is_in_doubt:
                is_committed = producer._end_after_all()
        finally:
            if is_committed:
                self._note_committed()
            else:
                self._seek_back()

    def _commit_together(self) -> None:
        """One broker: what is gathered and the end of the transaction are decided in one turn."""
        producer = self._producer
        on_their_way = producer._send_last()
        if producer._records_failed > self._failed_before:
            self._flush()  # which says so
        if self._is_known_there:
            try:
                self._commit(on_their_way)
            except StreamlogError:
                self._flush()  # which knows the record that failed, and why
                raise
        producer._reap()

    def _commit(self, after: tuple[Pending, ...] = ()) -> None:
        """after: what has to be written for it, and may still wait for its turn."""
        producer, offsets = self._producer, list(self._offsets.items())
        try:
            if offsets and producer._backend.is_replicated:
                producer._send_offsets(offsets)
                offsets = []  # they travel by themselves, each to its group
            producer._end(True, offsets, after)
        except (UnknownMemberIdError, IllegalGenerationError, FencedInstanceIdError) as error:
            raise CommitFailedError(
                f"a consumer of this transaction is no member of its group any more, so it was aborted: {error}"
            ) from error
        except InvalidTxnStateError as error:
            timeout_ms = self._producer.config.transaction_timeout_ms
            raise TransactionAbortableError(
                f"this transaction was aborted before it was committed: it took longer than "
                f"transaction_timeout_ms={timeout_ms}; do its work in another one",
                timeout_ms=timeout_ms,
            ) from error

    @property
    def _is_known_there(self) -> bool:
        """Whether the coordinator may have heard of it."""
        return self._producer._transactional.has_sent or bool(self._offsets)

    def _note_committed(self) -> None:
        for consumer, positions in self._committing:
            consumer._commits.stored(positions)

    def _flush(self) -> None:
        """Write what is gathered. Raises ProducerFencedError, TransactionAbortableError."""
        producer = self._producer
        first: BaseException | None = None
        try:
            producer._flush(producer._patience_ms)
        except DeliveryError as error:
            first = error.__cause__
        if isinstance(first, _FATAL):
            producer._fatal = first
            raise first.with_traceback(None)
        failed = producer._records_failed - self._failed_before
        if failed:
            what = "" if first is None else f"; the first: {first}"
            raise TransactionAbortableError(
                f"records of this transaction could not be written ({failed}), so it was aborted{what}",
                count=failed,
            ) from first

    def _seek_back(self) -> None:
        consumer = self._consumer
        if consumer is None or consumer._closed:
            return
        for tp, assigned in list(consumer._assigned.items()):
            if assigned.has_uncommitted:
                consumer.seek(tp, assigned.uncommitted_from)

    def _check_open(self) -> None:
        if self._has_ended or not self._has_begun:
            raise IllegalStateError(
                "this transaction has ended"
                if self._has_ended
                else "this transaction has not begun: use `with`"
            )

    def _finish(self) -> None:
        self._has_ended = True
        self._producer._leave()


def _init(backend: BrokerCluster, config: ProducerConfig) -> tuple[int, int]:
    """Take over the transactional id: the producer id and epoch of the first transaction."""
    event = InitProducerId(config.transaction_timeout_ms, backend.metadata.new_producer_id())
    return call(backend, str(config.transactional_id), event, config.max_block_ms)


def check_consumer(consumer: Consumer) -> None:
    if not isinstance(consumer, Consumer):
        raise ConfigError(
            f"consumer={consumer!r:.80}: allowed: a consumer of a group",
            option="consumer",
            value=consumer,
            allowed="a consumer of a group",
        )
    if consumer.config.group_id is None:
        raise ConfigError(
            "a transaction commits the offsets of a group; this consumer has none: cluster.consumer_group(...)",
            option="group_id",
            value=None,
            allowed="a group",
        )
    if consumer.config.enable_auto_commit:
        raise ConfigError(
            "a consumer whose offsets a transaction commits must not commit them by itself: enable_auto_commit=False",
            option="enable_auto_commit",
            value=True,
            allowed="False",
        )
