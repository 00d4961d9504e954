"""What broker tests share: a tiny owner of turns, and a broker cluster in a directory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from streamlog.batch import Batch, seal_columnar
from streamlog.broker import api
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.runner import Runtime, ThreadedRuntime
from streamlog.broker.turn import DEFER, Pending, Turn, TurnOwner
from streamlog.config import ClusterConfig
from streamlog.storage.directory import ClusterDirectory
from streamlog.storage.env import Environment
from streamlog.storage.keys import pack_key


class Add(msgspec.Struct, frozen=True):
    """Write a value, and answer its place."""

    value: Any


class Do(msgspec.Struct, frozen=True):
    """Call `action(ledger, turn, pending)` while deciding."""

    action: Callable[..., object]


class Frees(msgspec.Struct, frozen=True):
    """A request that frees room."""


class Ledger(TurnOwner):
    """An owner whose state is a list of values, each stored under its index."""

    LOG_ID = 9

    def __init__(
        self, path: Path, runtime: Runtime | None = None, requests_max: int = 10_000, **options: Any
    ) -> None:
        options.setdefault("sync", "off")
        super().__init__(
            "the ledger",
            Environment.open(path / "ledger", **options),
            runtime or ThreadedRuntime(),
            requests_max,
        )
        self.values: tuple[Any, ...] = ()
        self.applied = 0
        self.stopped_with: BaseException | None = None
        self.parked: list[Pending] = []
        self.before_commit: Callable[[Turn], object] = lambda turn: None
        self.on_apply: Callable[[Turn], object] = lambda turn: None
        self.turns: list[list[Any]] = []

    def _decide(self, turn: Turn, pending: Pending) -> object:
        request = pending.request
        if isinstance(request, Add):
            if turn.reclaiming:
                return DEFER
            values = turn.staged.get("values", self.values)
            self.transaction(turn).put(pack_key(self.LOG_ID, len(values)), repr(request.value).encode())
            turn.staged["values"] = (*values, request.value)
            turn.reply(pending, len(values))
        elif isinstance(request, Do):
            return request.action(self, turn, pending)
        elif isinstance(request, Frees):
            self.transaction(turn, reclaiming=True).put(pack_key(self.LOG_ID + 1, 0), b"freed")
            turn.reply(pending, "freed")
        else:
            raise TypeError(f"unknown {request!r}")
        return None

    def _frees(self, request: object) -> bool:
        return isinstance(request, Frees)

    def _before_commit(self, turn: Turn) -> None:
        self.before_commit(turn)

    def _apply(self, turn: Turn) -> None:
        self.on_apply(turn)
        self.applied += 1
        self.values = turn.staged.get("values", self.values)
        self.turns.append([pending.request for pending in turn.requests])

    def _on_stop(self, refusal: BaseException) -> None:
        self.stopped_with = refusal
        for pending in self.parked:
            self._answer(pending, None, refusal)

    def stored(self) -> list[str]:
        """What the store holds, in order."""
        values = []
        with self.environment.snapshot() as snapshot:
            while (value := snapshot.get(pack_key(self.LOG_ID, len(values)))) is not None:
                values.append(value.decode())
        return values

    def check(self) -> None:
        """The state is what is stored, and nobody holds the turn."""
        assert self.stored() == [repr(value) for value in self.values]
        assert not self._lock._is_owned()
        assert self._unfinished is None
        free = in_thread(lambda: self._lock.acquire(False) and (self._lock.release() or True))
        assert free.result() is True

    def close(self) -> None:
        self.stop(lambda: None)
        assert self.environment.close()


class Running:
    """A function in a thread of its own; `result()` waits, but not forever."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self._value: Any = None
        self.error: BaseException | None = None

        def body() -> None:
            try:
                self._value = run()
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=body, daemon=True)
        self.thread.start()

    def result(self, seconds: float = 20.0) -> Any:
        self.thread.join(seconds)
        assert not self.thread.is_alive(), "it hangs"
        if self.error is not None:
            raise self.error
        return self._value


def in_thread(run: Callable[[], Any]) -> Running:
    return Running(run)


def opened(path: Path, runtime: Runtime | None = None, sync: str = "off", **options: Any) -> BrokerCluster:
    """A broker cluster in a directory. The caller closes it."""
    return BrokerCluster(
        ClusterDirectory.open(path), None, sync, ClusterConfig.from_options(options), runtime
    )


def batch_of(*values: bytes, timestamp: int | None = None, keys: list[bytes | None] | None = None) -> Batch:
    stamp = ThreadedRuntime().clock.wall_ms() if timestamp is None else timestamp
    return seal_columnar(keys or [None] * len(values), list(values), timestamps=stamp)


def produce(cluster: BrokerCluster, topic: str, number: int, *values: bytes, **options: Any) -> api.Produced:
    """One batch into one partition; what became of it (its error is raised)."""
    [produced] = cluster.broker.call(api.Produce([(topic, number, batch_of(*values, **options))]))
    if produced.error is not None:
        raise produced.error
    return produced


def values_of(
    cluster: BrokerCluster, topic: str, number: int, offset: int | None = None
) -> list[tuple[int, bytes]]:
    """(offset, value) of everything visible."""
    partition = cluster.partition(topic, number)
    found: list[tuple[int, bytes]] = []
    view = partition.view
    assert view is not None
    offset = view.log_start_offset if offset is None else offset
    while True:
        view, batches = cluster.broker.reader.read(partition, offset, 1 << 20)
        if not batches:
            return found
        for batch in batches:
            found += [(record.offset, record.value) for record in batch.records(topic, number, offset)]
            offset = batch.next_offset
