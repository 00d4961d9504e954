"""A cluster opened with `mode="r"`: everything that reads, beside whoever owns the directory.

    owner's process --commits--> directory <--snapshots-- this process

Reads go up to the high watermark the owner has committed. The owner may be another process that writes,
deletes topics, compacts or is killed meanwhile; this very process (then its environments are shared); or
nobody. Consumers follow with `assign`; groups can be looked at, not joined: their coordinator lives in the
owner.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import msgspec

from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.reading_beside import ClusterBeside
from streamlog.broker.runner import Runtime
from streamlog.client import cluster as clusters
from streamlog.client.brokers import BrokerHandle, Brokers
from streamlog.client.cluster import MEMORY, Cluster
from streamlog.client.consumer import Consumer
from streamlog.config import ClusterConfig, ConsumerConfig
from streamlog.errors import ConfigError, NotAStreamlogDirectoryError
from streamlog.storage.directory import Owner

if TYPE_CHECKING:
    from typing_extensions import Self

    from streamlog.broker.verification import DirectoryReport, Progress
    from streamlog.client.consumer_group import ConsumerGroup
    from streamlog.storage.verification import Dumped


class ReaderConsumer(Consumer):
    """A consumer that reads what it is assigned; a `group_id` only says from whose committed offsets it
    starts.
    """

    def subscribe(self, topics: object, **_: object) -> NoReturn:
        """Raises ReadOnlyError: membership is kept by the owner. Use `assign`."""
        self._check_open()
        _backend_of(self).refuse_write("joining a group (use assign() to read without one)")

    def commit(self, *_: object, **__: object) -> NoReturn:
        """Raises ReadOnlyError: offsets are written by the owner."""
        self._check_open()
        _backend_of(self).refuse_write("committing offsets")


def _backend_of(consumer: Consumer) -> ClusterBeside:
    return cast(ClusterBeside, consumer._backend)


class ReaderCluster(Cluster):
    """What `streamlog.open(path, mode="r")` returns. Calls that write raise ReadOnlyError."""

    def __init__(self, beside: ClusterBeside) -> None:
        """Use `open_reader`."""
        self._beside = beside
        self._backend = cast(BrokerCluster, beside)  # it offers what readers use of one
        self._producers = {}
        self._consumers = {}
        self._closed = False

    def __repr__(self) -> str:
        if self._closed:
            return f"<ReaderCluster {str(self.path)!r} closed>"
        return f"<ReaderCluster {str(self.path)!r} topics={len(self.topics)} owner={self.owner!r}>"

    def __enter__(self) -> Self:
        self._check_open()
        return self

    @property
    def path(self) -> Path:
        """The directory."""
        return self._beside.directory.path

    @property
    def owner(self) -> Owner | None:
        """The process that has the cluster open for writing now; None if there is none."""
        self._check_open()
        return self._beside.owner()

    @property
    def brokers(self) -> list[BrokerHandle]:
        """The brokers, by id."""
        return Brokers(BrokerHandle(number) for number in self._beside.brokers)

    # -- reading ---------------------------------------------------------------------------------------------

    def consumer(self, config: Mapping[str, Any] | None = None, **options: Any) -> Consumer:
        """A consumer for `assign`. With a `group_id` it starts where that group has committed; it never
        commits itself.
        """
        self._check_open()
        if options.get("enable_auto_commit") or (
            isinstance(config, Mapping) and config.get("enable.auto.commit") in (True, "true")
        ):
            self._beside.refuse_write("committing offsets")
        return super().consumer(config=config, **options)

    def _make_consumer(self, config: ConsumerConfig) -> Consumer:
        self._check_open()
        config = msgspec.structs.replace(config, enable_auto_commit=False)
        consumer = ReaderConsumer(self._backend, config, self._forget_consumer)
        self._consumers[consumer] = None
        return consumer

    def _group_class(self) -> type[ConsumerGroup]:
        from streamlog.client.reader_group import ReaderGroup

        return ReaderGroup

    def verify(self, progress: Progress | None = None, *, check_files: bool = True) -> DirectoryReport:
        """Walk every batch, index and checkpoint; see `broker.verification.verify_cluster`."""
        from streamlog.broker.verification import verify_cluster

        self._check_open()
        return verify_cluster(self._beside, progress, check_files=check_files)

    def dump(
        self, topic: str, partition: int, start_offset: int = 0, end_offset: int | None = None
    ) -> Iterator[Dumped]:
        """The stored batches of a partition as they are found, damaged ones too; internal topics as well.

        start_offset, end_offset:  batches that end in between.
        Raises                     UnknownTopicOrPartitionError.
        """
        self._check_open()
        return self._beside.dump(topic, partition, start_offset, end_offset)

    # -- writing ---------------------------------------------------------------------------------------------

    def producer(self, *_: object, **__: object) -> NoReturn:
        """Raises ReadOnlyError."""
        self._make_producer()

    def _make_producer(self, *_: object) -> NoReturn:
        self._check_open()
        self._beside.refuse_write("producing")

    def clean(self) -> NoReturn:
        """Raises ReadOnlyError."""
        self._check_open()
        self._beside.refuse_write("enforcing retention")

    # -- the end ---------------------------------------------------------------------------------------------

    def _close(self, *, left_by: BaseException | None = None, commit: bool = True) -> None:
        """Close the consumers, and the environments when no other reader of this process uses them.
        Idempotent.
        """
        if self._closed:
            return
        self._closed = True
        for consumer in list(self._consumers):
            consumer.close()
        with clusters._open_lock:
            self._let_go()

    def _let_go(self) -> None:
        for key, opened in list(clusters._open_readers.items()):
            if opened.beside is self._beside:
                opened.count -= 1
                if opened.count == 0:
                    del clusters._open_readers[key]
                    self._beside.close()

    def _check_open(self) -> None:
        if self._closed or self._beside.closed:
            self._beside.refuse_closed()
        self._beside.check_usable()


class OpenedReader:
    """A backend for reading and how often it was opened."""

    __slots__ = ("beside", "count")

    def __init__(self, beside: ClusterBeside) -> None:
        self.beside = beside
        self.count = 1


def open_reader(
    path: str | os.PathLike[str], config: ClusterConfig, runtime: Runtime | None = None
) -> ReaderCluster:
    """Open the cluster in a directory for reading.

    path:    a directory, or ":memory:name" of a cluster open in this process.
    Raises   NotAStreamlogDirectoryError, UnsupportedFormatError, CorruptStoreError, NetworkFileSystemError,
             ConfigError.
    """
    text = os.fspath(path)
    with clusters._open_lock:
        directory = _memory_path(text) if text.startswith(MEMORY) else Path(text)
        key = clusters._identity(str(directory)) or object()
        opened = clusters._open_readers.get(key)
        if opened is not None and not opened.beside.closed:
            opened.count += 1
            return ReaderCluster(opened.beside)

        def find_owner() -> BrokerCluster | None:
            owners = [owner.backend for owner in clusters._open_clusters.values()]
            return next(
                (owner for owner in owners if clusters._identity(str(owner.directory.path)) == key), None
            )

        owner = find_owner()
        if runtime is None and owner is not None:
            runtime = owner.runtime
        beside = ClusterBeside(directory, config, find_owner, clusters._open_lock, runtime)
        beside.open()
        clusters._open_readers[key] = OpenedReader(beside)
        return ReaderCluster(beside)


def _memory_path(text: str) -> Path:
    name = text[len(MEMORY) :]
    if not name:
        raise ConfigError(
            'path ":memory:" with mode="r": a private cluster has nobody to read beside; '
            'allowed: ":memory:name", or a directory',
            option="path",
            value=text,
            allowed="a directory, or ':memory:name'",
        )
    opened = clusters._open_clusters.get(clusters._identity(text))
    if opened is None or opened.backend.closed:
        raise NotAStreamlogDirectoryError(f"{text} is not open in this process; nothing to read", path=text)
    return opened.backend.directory.path
