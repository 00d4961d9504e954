"""Between producers and the brokers of a replicated cluster: who leads, what to do when that changes (Kafka's Sender).

    producer --put(Produce)--> a queue per partition --pump--> a request per leader and acks --> done, or again later

A producer hands over a request for any number of partitions and waits for one answer. Here it is taken apart, each
batch goes to the leader of its partition, and what comes back as retriable goes again, until `delivery_timeout_ms`.

Invariants:
 1. Batches of one partition reach its log in the order they were put: at most one request of a partition is under
    way, and what failed goes first.
 2. A request is answered when each of its entries is decided: written, failed for good, or out of time; then with
    the last error of a broker as the cause.
 3. Nothing travels in a request with other acks than its producer's.
 4. Nothing here waits while it holds the lock. What an interrupt cut short is mended by who waits in vain (`_mend`): a
    batch is on its queue until its result is written down, and names its request until that is done.

Source: Kafka Sender, RecordAccumulator (muted partitions), KIP-91 (delivery.timeout.ms), KIP-580 (exponential backoff).
Not implemented: more than one request in flight a partition (with idempotence, KIP-98, order could be kept among them).
Retries of idempotent producers are told from new batches by sequences, see `producer_identity`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, cast

from streamlog.broker.api import Produce, Produced
from streamlog.broker.deliveries import Delivery, Item, Key, decide, expired, is_leader_news, too_late
from streamlog.broker.joining_transactions import Joiner, Joining, outsider
from streamlog.broker.runner import Service
from streamlog.broker.turn import Pending
from streamlog.errors import (
    ClosedError,
    NetworkError,
    OutOfOrderSequenceError,
    StreamlogError,
    StreamlogTimeoutError,
)

if TYPE_CHECKING:
    from streamlog.batch import Batch
    from streamlog.broker.broker import Broker
    from streamlog.broker.cluster import BrokerCluster
    from streamlog.broker.producer_identity import ProducerIdentity

WINDOW_BATCHES: Final = 5
"""Batches of one producer and partition in one request; `core.producer_state` recognises as many."""
REQUEST_BYTES_MAX: Final = 8 * 1024 * 1024
WAIT_LOOK_MS: Final = 50
"""A waiter looks up this often: a wake-up may have been lost to an interrupt."""
LEADER_LOOK_MS: Final = 2
"""The first pause before looking for a new leader; it doubles."""


class Dispatcher:
    """The producers' way to the leaders of one cluster."""

    def __init__(self, cluster: BrokerCluster) -> None:
        self._cluster = cluster
        self._clock = cluster.runtime.clock
        self._lock = cluster.runtime.turn_lock()
        self._queues: dict[Key, deque[Item]] = {}
        self._ready: dict[Key, None] = {}
        """Queues that may have something to send."""
        self._service = Service(cluster.runtime, "streamlog-dispatcher", self._serve)
        self._joining = Joining(cluster, self._on_joined, self._on_refused)
        self._advancing: dict[int, None] = {}
        """Callers inside of `advance`: an answer sends what waited behind it, and must not do so ever deeper."""

    def __repr__(self) -> str:
        return f"Dispatcher({sum(map(len, list(self._queues.values())))} batches on their way)"

    # -- producers -----------------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Before `put`. Raises ClosedError, StoreForkedError."""
        self._cluster.check_usable()

    def put(self, pending: Pending, again: bool = False) -> None:
        """Take a Produce over. again: after an interrupt; what was taken already stays as it is."""
        produce = pending.request
        assert isinstance(produce, Produce)
        if pending.done:
            return
        pending.posted_us = self._clock.monotonic_us()
        if pending.sent_items is None:
            delivery = Delivery(pending, produce, self._clock.monotonic_ms())
            pending.sent_items = [
                Item(delivery, index, batch) for index, (_, _, batch) in enumerate(produce.entries)
            ]
        with self._lock:
            pending.taken = True
            for item in pending.sent_items:
                key = item.key
                queue = self._queues.setdefault(key, deque())
                if not again or not (item in queue or item.is_decided):
                    queue.append(item)
                self._ready[key] = None

    def advance(self) -> None:
        """Send what can be sent, and run the turns of those it goes to."""
        caller = self._cluster.runtime.caller()
        if caller in self._advancing:
            return  # an answer, or a signal handler, inside of the loop below: it goes on by itself
        self._advancing[caller] = None
        try:
            for brokers in iter(self._pump, []):
                for broker in brokers:
                    broker.advance()
        finally:
            self._advancing.pop(caller, None)

    def wait(self, pending: Pending, timeout_ms: int | None = None) -> None:
        """Until `pending` is done: work for it as long as that helps, then wait.

        Raises   StreamlogTimeoutError after `timeout_ms`.
        """
        deadline_ms = None if timeout_ms is None else self._clock.monotonic_ms() + timeout_ms
        peers, runtime = self._cluster.peers, self._cluster.runtime
        waiter = pending.waiter
        while True:
            if pending.done:
                break
            if runtime.may_help():
                peers.helping.help(self.advance, lambda: pending.done)
            else:
                self.advance()
            if waiter is None:
                waiter = pending.waiter = pending.waiter or runtime.waiter()
                continue  # look once more: it may have been answered while nobody was listening
            left_ms = WAIT_LOOK_MS
            if deadline_ms is not None:
                left_ms = min(left_ms, deadline_ms - self._clock.monotonic_ms())
                if left_ms <= 0:
                    raise StreamlogTimeoutError(f"not answered within {timeout_ms} ms", timeout_ms=timeout_ms)
            self._service.wake()  # whoever else must act (a retry, a timeout) has a thread that does
            if not waiter.wait(left_ms):
                self._mend()
        if waiter is not None:
            waiter.set()  # somebody else may wait for the same request

    def close(self) -> None:
        """The cluster closes: whatever is on its way fails."""
        self._service.stop()
        error = ClosedError("the cluster was closed before these records were written")
        with self._lock:
            items = [item for queue in self._queues.values() for item in queue]
            self._queues.clear()
            self._ready.clear()
        for item in items:
            decide(item, Produced(-1, -1, -1, item.error or error))

    # -- sending -------------------------------------------------------------------------------------------------------

    def _pump(self) -> list[Broker]:
        """Put requests into the inboxes of leaders; the brokers that have something to do now."""
        if not self._ready:
            return []
        now_ms = self._clock.monotonic_ms()
        together: dict[tuple[Broker, int], list[tuple[Key, list[Item]]]] = {}
        joiners: dict[Joiner, list[Key]] = {}
        failed: list[tuple[Item, StreamlogError]] = []
        with self._lock:
            for key in list(self._ready):
                del self._ready[key]
                queue = self._queues.get(key)
                if not queue or queue[0].request is not None:
                    continue  # muted: the answer makes it ready again
                if queue[0].not_before_ms > now_ms:
                    self._ready[key] = None
                    continue
                items = _together(queue)
                joiner = outsider(key, items)
                if joiner is not None:
                    joiners.setdefault(joiner, []).append(key)
                    # Until it is answered; a coordinator that keeps silent is asked again.
                    queue[0].not_before_ms = now_ms + queue[0].delivery.retrying.request_timeout_ms
                    self._ready[key] = None
                    continue
                try:
                    leader = self._cluster.leader(*key)
                    together.setdefault((leader, items[0].delivery.produce.acks), []).append((key, items))
                except StreamlogError as error:
                    failed += [(item, error) for item in items]
                    for item in items:
                        item.attempts += 1
            requests = [
                (leader, self._request(leader, acks, parts, now_ms))
                for (leader, acks), parts in together.items()
            ]
        for leader, request in requests:
            try:
                leader.admit()
                leader.put(request)
            except StreamlogError as error:
                request.error = error
                request.done = True
                self._on_answer(request)
        if failed:
            self._settle([(item, None, Produced(-1, -1, -1, error)) for item, error in failed])
        asked = [self._joining.ask(joiner, keys) for joiner, keys in joiners.items()]
        return [leader for leader, _ in requests] + [broker for broker in asked if broker is not None]

    def _on_joined(self, keys: list[Key]) -> None:
        """These partitions are part of their transactions: what waited for that may go."""
        with self._lock:
            for key in keys:
                queue = self._queues.get(key)
                if queue:
                    queue[0].not_before_ms = 0
                    self._ready[key] = None
        self.advance()

    def _on_refused(self, joiner: Joiner, keys: list[Key], error: StreamlogError) -> None:
        """They are not, for now or for good."""
        with self._lock:
            items = [
                item
                for key in keys
                for item in self._queues.get(key, ())
                if _is_of(item, joiner) and item.request is None
            ]
            for item in items:
                item.attempts += 1
        self._settle([(item, None, Produced(-1, -1, -1, error)) for item in items])

    def _request(
        self, leader: Broker, acks: int, parts: list[tuple[Key, list[Item]]], now_ms: int
    ) -> Pending:
        """One Produce for one leader. Called with the lock held."""
        items = [item for _, some in parts for item in some]
        for key, some in parts:
            _stamp(key, some)
        entries = [(*key, item.batch) for key, some in parts for item in some]
        timeout_ms = min(
            min(item.delivery.retrying.request_timeout_ms, max(1, item.delivery.deadline_ms - now_ms))
            for item in items
        )
        produce = Produce(entries, acks, timeout_ms)
        request = Pending(produce, sum([item.batch.size_bytes for item in items]), self._on_answer)
        request.sent_items = items
        for item in items:
            item.leader = leader
            item.request = request
            item.attempts += 1
            item.sent_ms = now_ms
        return request

    def _on_answer(self, request: Pending) -> None:
        """A leader answered, or refused. Runs outside of turns."""
        items: list[Item] = request.sent_items
        if request.error is None:
            outcomes = list(zip(items, request.reply, strict=True))
        else:
            error = cast(StreamlogError, request.error)
            if isinstance(error, ClosedError) and not self._cluster.closed:
                error = NetworkError("the broker went down")
            outcomes = [(item, Produced(-1, -1, -1, error)) for item in items]
        self._settle([(item, request, produced) for item, produced in outcomes])
        self.advance()

    def _mend(self) -> None:
        """Take up what an interrupt let fall: an answer nobody took, a request that never left, a queue not looked at."""
        with self._lock:
            heads = self._undecided_heads()
        for request, leader in {item.request: item.leader for item in heads}.items():
            if request is None or leader is None:
                continue
            if request.done:
                self._on_answer(request)
            elif not request.taken:
                leader.put(request, again=True)
                leader.advance()

    def _undecided_heads(self) -> list[Item]:
        """The first item of each queue, without those that are decided. Called with the lock held."""
        for key, queue in list(self._queues.items()):
            for item in [item for item in queue if item.is_decided]:
                queue.remove(item)
            if queue:
                self._ready[key] = None
            else:
                del self._queues[key]
        return [queue[0] for queue in self._queues.values()]

    def _settle(self, outcomes: list[tuple[Item, Pending | None, Produced]]) -> None:
        """Take what is decided off its queue; let the rest try again. An item that is no longer in that request stays."""
        now_ms = self._clock.monotonic_ms()
        with self._lock:
            for item, request, produced in outcomes:
                if item.request is not request or item.is_decided:
                    continue  # somebody was faster
                key = item.key
                error = produced.error
                if error is not None and self._goes_again(item, error, now_ms):
                    if item.delivery.pending.on_retry is not None:
                        item.delivery.pending.on_retry(key[0], item.batch.record_count)
                else:
                    if error is not None and self._expires(item, error, now_ms):
                        produced = Produced(-1, -1, -1, expired(item, key, now_ms))
                    _note_sequences(item, error)
                    decide(item, produced)
                    queue = self._queues.get(key)
                    if queue is not None and item in queue:
                        queue.remove(item)
                        if not queue:
                            del self._queues[key]
                if key in self._queues:
                    self._ready[key] = None
                else:
                    self._ready.pop(key, None)
                item.request = None  # last: until here `_mend` finds the answer again
        if self._ready:
            self._service.wake()

    def _goes_again(self, item: Item, error: StreamlogError, now_ms: int) -> bool:
        retrying = item.delivery.retrying
        item.error = error
        item.is_doubtful |= error.retriable and item.request is not None
        is_retriable = error.retriable or self._gets_another_sequence(item, error)
        if not is_retriable or item.attempts > retrying.retries or not item.delivery.produce.acks:
            return False
        if now_ms >= item.delivery.deadline_ms:
            return False
        # A leader that changes is found within milliseconds; other troubles take the time they take.
        is_soon = is_leader_news(error) or isinstance(error, OutOfOrderSequenceError)
        first_ms = min(LEADER_LOOK_MS, retrying.backoff_ms) if is_soon else retrying.backoff_ms
        pause_ms = min(first_ms << min(max(item.attempts - 1, 0), 20), retrying.backoff_max_ms)
        item.not_before_ms = min(now_ms + pause_ms, item.delivery.deadline_ms)
        return True

    def _gets_another_sequence(self, item: Item, error: StreamlogError) -> bool:
        """A leader misses what is before a batch: whether the batch goes again. Called with the lock held.

        Source: Kafka TransactionManager.canRetry.
        """
        identity = item.delivery.produce.identity
        if identity is None or not isinstance(error, OutOfOrderSequenceError):
            return False
        for before in self._queues.get(item.key, ()):
            if before is item:
                break
            if before.delivery.produce.identity is identity and not before.is_decided:
                return True  # what is missing goes again before it
        if identity.is_transactional:
            return False  # the transaction has lost a record: it can only be aborted
        if identity.expects(item.key, item.batch):
            identity.in_doubt()  # the leader has lost what it acknowledged, or forgotten us
        item.is_stamped = False
        return True

    @staticmethod
    def _expires(item: Item, error: StreamlogError, now_ms: int) -> bool:
        """Whether it is the time that is over, not the error that is final."""
        return error.retriable and now_ms >= item.delivery.deadline_ms and item.delivery.retrying.retries > 0

    # -- its own thread --------------------------------------------------------------------------------------------------

    def _serve(self, now_ms: int) -> int | None:
        """Retry what has paused long enough, give up on what nobody answers."""
        late: list[tuple[Item, Pending | None, Produced]] = []
        with self._lock:
            for key, queue in self._queues.items():
                for item in queue:
                    error = too_late(key, item, now_ms)
                    if error is None:
                        continue
                    late.append((item, item.request, Produced(-1, -1, -1, error)))
        if late:
            self._settle(late)
        self.advance()
        with self._lock:
            deadlines: list[int] = []
            for queue in self._queues.values():
                for item in queue:
                    if item.request is not None:
                        deadlines.append(item.sent_ms + item.delivery.retrying.request_timeout_ms)
                    else:
                        deadlines.append(min(item.delivery.deadline_ms, max(item.not_before_ms, now_ms + 1)))
                    break  # those behind it wait for it
        return min(deadlines, default=None)


def _is_of(item: Item, joiner: object) -> bool:
    return item.delivery.produce.identity is joiner


def _stamp(key: Key, items: list[Item]) -> None:
    """Give their sequences to those batches of one partition that are sent for the first time, and to those behind one
    that gets another: what a leader misses before them is not in the log, so neither are they.
    """
    before: dict[ProducerIdentity, Batch] = {}
    stamping: set[ProducerIdentity] = set()
    for item in items:
        identity = item.delivery.produce.identity
        if identity is None:
            continue
        if not item.is_stamped or identity in stamping:
            item.batch = identity.stamped(key, item.batch, before.get(identity))
            item.is_stamped = True
            stamping.add(identity)
        before[identity] = item.batch


def _note_sequences(item: Item, error: StreamlogError | None) -> None:
    """What the end of a batch means for the sequences of those behind it."""
    identity = item.delivery.produce.identity
    if identity is None or not item.is_stamped:
        return
    if error is None:
        identity.written(item.key, item.batch)
    elif item.is_doubtful:
        identity.in_doubt()


def _together(queue: deque[Item]) -> list[Item]:
    """The batches at the head of a queue that may travel in one request."""
    acks = queue[0].delivery.produce.acks
    items: list[Item] = []
    total = 0
    former: set[ProducerIdentity] = set()
    batches: dict[ProducerIdentity, int] = {}
    for item in queue:
        total += item.batch.size_bytes
        if items and (total > REQUEST_BYTES_MAX or item.delivery.produce.acks != acks):
            break
        identity = item.delivery.produce.identity
        if identity is not None:
            if item.is_stamped and identity.is_of_former_epoch(item.batch):
                former.add(identity)  # it may be refused, and go again behind what would travel with it
            elif identity in former:
                break
            batches[identity] = batches.get(identity, 0) + 1
            if batches[identity] > WINDOW_BATCHES:
                break  # a leader knows no more of them again
        items.append(item)
    return items
