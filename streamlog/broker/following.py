"""Following a cluster without being told: partitions, reads and listeners of a process that is not the owner.

There are no wake-ups across processes. A `BesideListener` that waits looks for news every few ms, more rarely
the longer nothing happens; one that nobody waits on looks when it is asked.

Invariants:
 1. No lost news: the marks (transaction ids) are taken before the views, so what is committed in between is
    found by the next look; a subscription is marked whenever its view differs from the one noted before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from streamlog.broker.partition import Partition, TopicMeters, load_producers
from streamlog.broker.purgatory import Listener, Source, Subscription
from streamlog.broker.reading import LogReader
from streamlog.broker.runner import Lock, Runtime
from streamlog.config import TopicConfig
from streamlog.core.cluster_image import PartitionImage, TopicImage
from streamlog.core.replica import ReplicaState
from streamlog.storage.env import Snapshot

if TYPE_CHECKING:
    from streamlog.broker.reading_beside import ClusterBeside

LOOK_MS_MIN: Final = 1
LOOK_MS_MAX: Final = 16
"""How often a waiting reader looks for news: at once 1 ms, twice that after each look in vain, at most
this.
"""
LOOK_BUSY_MS: Final = 5
"""With news still to be read, other partitions are looked at this often: a busy one must not hide the quiet
ones.
"""


class PartitionBeside(Partition):
    """A partition whose view is read from the store each time."""

    __slots__ = ("_cluster", "_known_end")

    def __init__(
        self, cluster: ClusterBeside, topic: TopicImage, number: int, config: TopicConfig, meters: TopicMeters
    ) -> None:
        self._cluster = cluster
        self._known_end = -1  # up to here `producers` goes
        image = topic.partitions[number]
        super().__init__(topic, number, image, config, ReplicaState(leader_epoch=image.leader_epoch), meters)
        self.leader_id = broker_of(image)

    @property
    def view(self) -> ReplicaState | None:
        [view] = self._cluster.views([self])
        return view

    @view.setter
    def view(self, view: ReplicaState | None) -> None:
        """Nobody publishes here."""

    def stabilized(self, snapshot: Snapshot, state: ReplicaState) -> ReplicaState:
        """A view with its first unstable offset: open transactions are told by the producers' states in that snapshot."""
        if self._known_end != state.log_end_offset:
            self.producers = load_producers(snapshot, self.log_id, state)
            self._known_end = state.log_end_offset
        return state if self.producers is None else self.producers.stabilized(state)

    def __repr__(self) -> str:
        return f"PartitionBeside({self.topic}-{self.number})"


def broker_of(image: PartitionImage) -> int:
    return image.leader if image.leader >= 0 else image.isr[0]


class ReaderBeside(LogReader):
    """The read protocol beside an owner: the view is in the snapshot."""

    __slots__ = ("_cluster",)

    def __init__(self, cluster: ClusterBeside) -> None:
        self._cluster = cluster

    def open(self, partition: Partition) -> tuple[ReplicaState, Snapshot]:
        return self._cluster.open_view(partition)


class BesideListener(Listener):
    """Finds out by itself which partitions have news, when asked for them."""

    __slots__ = ("_clock", "_cluster", "_looked_ms", "_marks", "_queue", "_seen")

    def __init__(self, cluster: ClusterBeside, runtime: Runtime, lock: Lock) -> None:
        self._cluster = cluster
        self._clock = runtime.clock
        self._looked_ms = 0
        self._marks: tuple[int, ...] = ()
        self._seen: dict[Subscription, ReplicaState | None] = {}
        super().__init__(runtime, lock)

    @property
    def ready(self) -> Any:
        """The subscriptions with news; looks for them if there are none, or if the last look is a while
        ago.
        """
        if not self._queue or self._clock.monotonic_ms() - self._looked_ms >= LOOK_BUSY_MS:
            self._look()
        return self._queue

    @ready.setter
    def ready(self, queue: Any) -> None:
        self._queue = queue

    def subscribe(self, source: Source, subject: Any) -> Subscription:
        subscription = super().subscribe(source, subject)
        self._seen[subscription] = None
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._seen.pop(subscription, None)
        super().unsubscribe(subscription)

    def mark(self, subscription: Subscription) -> None:
        self._queue[subscription] = None

    def take(self) -> Subscription | None:
        if not self._queue:
            self._look()
        queue = self._queue
        if not queue:
            return None
        subscription: Subscription = queue.popitem(last=False)[0]
        return subscription

    def wait(self, timeout_ms: int | None) -> bool:
        deadline_ms = None if timeout_ms is None else self._clock.monotonic_ms() + timeout_ms
        step_ms = LOOK_MS_MIN
        while not self.ready:
            left_ms = (
                step_ms if deadline_ms is None else min(step_ms, deadline_ms - self._clock.monotonic_ms())
            )
            if left_ms <= 0:
                return self.waiter.wait(0)
            if self.waiter.wait(left_ms):
                return True
            step_ms = min(2 * step_ms, LOOK_MS_MAX)
        return True

    def _look(self) -> None:
        self._looked_ms = self._clock.monotonic_ms()
        # The marks are taken before the views: news in between are found by the next look.
        marks = self._cluster.marks()
        if marks == self._marks or not self._seen:
            return
        subscriptions = list(self._seen)
        for subscription, view in zip(
            subscriptions, self._cluster.views([s.source for s in subscriptions]), strict=True
        ):
            if view is None or view != self._seen.get(subscription):
                self._seen[subscription] = view
                self.mark(subscription)
        self._marks = marks
