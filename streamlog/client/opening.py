"""Opening a cluster: for writing, shared and counted by its directory within a process, or for reading.

Invariant: whatever opens or closes the environments of a directory holds `_open_lock` (see `client.cluster`),
so that the engine never sees one file opened twice in a process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.runner import Runtime
from streamlog.client import cluster as clusters
from streamlog.client.cluster import MEMORY, Cluster
from streamlog.config import ClusterConfig
from streamlog.errors import ConfigError
from streamlog.storage.directory import ClusterDirectory, memory_directory

if TYPE_CHECKING:
    from streamlog.client.reader_cluster import ReaderCluster

SYNC_MODES: Final = ("full", "normal", "off")


def open_cluster(
    path: str | os.PathLike[str],
    *,
    brokers: int | None = None,
    sync: str = "full",
    mode: str = "rw",
    config: Mapping[str, Any] | None = None,
    runtime: Runtime | None = None,
    **options: Any,
) -> Cluster | ReaderCluster:
    """Open the cluster in a directory, making it if there is none.

    path:     a directory; ":memory:" is private and gone on close, ":memory:name" is shared by name in this
              process.
    brokers:  None = what is there, else 1.
    sync:     "full" - an acked record survives power loss; "normal" - after power loss the store is intact
              and at most the last commits are missing; "off" - survives kill -9, synced every `flush_ms` and
              on close.
    mode:     "rw", or "r" to read beside a live owner.
    config:   cluster options by Kafka's names; also as keywords (`auto_create_topics=True`).
    Raises    ClusterLockedError (another process has it open), ConfigError, and StorageErrors that say what
              is wrong.
    """
    if sync not in SYNC_MODES:
        raise ConfigError(
            f"sync={sync!r}: allowed: {', '.join(map(repr, SYNC_MODES))}",
            option="sync",
            value=sync,
            allowed=SYNC_MODES,
        )
    if mode not in ("rw", "r"):
        raise ConfigError(
            f"mode={mode!r}: allowed: 'rw' or 'r'", option="mode", value=mode, allowed="'rw' or 'r'"
        )
    _check_runtime(runtime)
    parsed = ClusterConfig.from_options(options, config)
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text:
        raise ConfigError(
            f"path {path!r}: allowed: a directory, or ':memory:'",
            option="path",
            value=path,
            allowed="a directory",
        )
    if mode == "r":
        from streamlog.client.reader_cluster import open_reader  # who only writes need not load it

        return open_reader(text, parsed, runtime)
    asked = {"brokers": brokers, "sync": sync, "config": parsed, "runtime": runtime}
    with clusters._open_lock:
        key = clusters._identity(text)
        opened = None if key is None else clusters._open_clusters.get(key)
        if opened is not None and not opened.backend.closed:
            _check_same_options(text, opened, asked)
            return Cluster(opened)
        reader = clusters._open_readers.get(key)
        if reader is not None:
            # The engine allows one environment per file in a process: from now on the reader borrows ours.
            reader.beside.release()
        if parsed.replica_lag_max_messages is not None:
            _warn_of_lag_in_messages(parsed.replica_lag_max_messages)
        backend = BrokerCluster(_directory(text, parsed), brokers, sync, parsed, runtime)
        if key is None or isinstance(key, tuple):
            key = clusters._identity(text) or object()
        opened = clusters._Opened(backend, key, asked)
        clusters._open_clusters[key] = opened
        return Cluster(opened)


def _check_runtime(runtime: object) -> None:
    if runtime is not None and not hasattr(runtime, "clock"):  # nor has the class Simulation one
        allowed = "streamlog.testing.Simulation(seed=7), or None for real time"
        raise ConfigError(
            f"runtime={runtime!r}: allowed: {allowed}", option="runtime", value=runtime, allowed=allowed
        )


def _warn_of_lag_in_messages(messages: int) -> None:
    """Once an opening. Source: KIP-16, which removed the option: a burst took healthy followers out of the ISR."""
    import warnings

    warnings.warn(
        f"replica_lag_max_messages={messages}: a rule of Kafka 0.8, removed in 0.9; a burst of more records than that "
        "takes healthy followers out of the in-sync set. Leave it out: replica_lag_time_max_ms decides",
        stacklevel=3,
    )


def _directory(text: str, config: ClusterConfig) -> ClusterDirectory:
    if text.startswith(MEMORY):
        return memory_directory(text[len(MEMORY) :])
    from streamlog.version import VERSION

    return ClusterDirectory.open(
        text, allow_network_fs=config.allow_network_fs, written_by=f"streamlog {VERSION}"
    )


def _check_same_options(text: str, opened: clusters._Opened, asked: Mapping[str, Any]) -> None:
    have = {**opened.options, "brokers": len(opened.backend.brokers)}
    for option, value in asked.items():
        if value is not None and value != have[option]:
            raise ConfigError(
                f"{text!r} is open in this process with another {option}: {have[option]!r:.100}, "
                f"not {value!r:.100}; open it with the same options, or close it first",
                option=option,
                value=value,
                allowed=repr(have[option]),
            )
