"""Is a cluster sound? Every batch, index and checkpoint of its directory, and every fold rebuilt.

    files       the engine's own pages (`lmdb verify`), only while nobody owns the directory
    logs        storage.verification, for each environment; the metadata log names each log's partition
    folds       the cluster image and the groups, replayed from the start of their logs and, once more,
                from their checkpoints: both must be the same

Works beside a live owner (without the pages then), in the owner's process, and when nobody owns the
directory. Damage is reported, not raised. A log that belongs to no topic is an orphan, not a problem: what a
deletion that is under way, or was cut short, leaves behind; the owner removes it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Final

import msgspec

from streamlog.broker.groups_beside import OffsetsFold
from streamlog.broker.metadata import METADATA_LOG_ID, load_image_checkpoint
from streamlog.broker.reading_beside import ClusterBeside
from streamlog.broker.runner import new_lock
from streamlog.broker.stores_beside import Stores, load_image
from streamlog.broker.verifying_producers import check_producers
from streamlog.config import ClusterConfig, TopicConfig
from streamlog.core.cluster_image import CONSUMER_OFFSETS_TOPIC, ClusterImage
from streamlog.core.group import GroupMachine, group_partition
from streamlog.core.leader_epochs import EpochEntry, EpochHistory
from streamlog.errors import ClosedError, CorruptRecordError, CorruptStoreError, StreamlogError
from streamlog.record import TopicPartition
from streamlog.storage import log
from streamlog.storage.directory import BROKER_PREFIX, METADATA
from streamlog.storage.env import Environment, verify_file
from streamlog.storage.keys import CheckpointKind
from streamlog.storage.verification import (
    NO_OFFSET,
    EnvironmentReport,
    LogReport,
    Problem,
    check_bodies,
    check_structure,
)

_READ_BYTES: Final = 4 * 1024 * 1024
_HEADERS_MAX: Final = 4096
"""Looked at in one snapshot: a long one keeps the owner from using freed pages."""


class ProgressNow(msgspec.Struct, frozen=True):
    """How far it is."""

    stage: str
    """"files", "structure", "batches" or "folds"."""
    environment: str
    done_bytes: int
    """Of the batches of all environments found so far."""
    total_bytes: int


Progress = Callable[[ProgressNow], object]


class Orphan(msgspec.Struct, frozen=True):
    """A log no topic owns."""

    environment: str
    log_id: int
    batches: int
    size_bytes: int


class DirectoryReport(msgspec.Struct):
    """What a cluster holds, and everything wrong with it."""

    path: str
    owner_pid: int | None = None
    files_checked: bool = False
    topics: int = 0
    partitions: dict[TopicPartition, LogReport] = {}
    """The logs of topics, internal ones too; those never written to are missing."""
    groups: int = 0
    batches: int = 0
    records: int = 0
    size_bytes: int = 0
    orphans: list[Orphan] = []
    problems: list[Problem] = []

    @property
    def is_sound(self) -> bool:
        return not self.problems


def verify_directory(
    path: Path | str, progress: Progress | None = None, *, check_files: bool = True
) -> DirectoryReport:
    """`verify_cluster` of a directory that is not open in this process. Raises NotAStreamlogDirectoryError
    and the like.
    """
    lock = new_lock()
    beside = ClusterBeside(Path(path), ClusterConfig.from_options({}), lambda: None, lock)
    with lock:
        beside.open()
    try:
        return verify_cluster(beside, progress, check_files=check_files)
    finally:
        with lock:
            beside.close()


def verify_cluster(
    beside: ClusterBeside, progress: Progress | None = None, *, check_files: bool = True
) -> DirectoryReport:
    """Verify what `beside` reads.

    progress:     called now and then, between snapshots.
    check_files:  walk the engine's pages too, if nobody owns the directory.
    Raises        ClosedError when `beside` is closed meanwhile.
    """
    return beside.with_stores(lambda stores: _Verification(beside, stores, progress).run(check_files))


class _Verification:
    """One run."""

    def __init__(self, beside: ClusterBeside, stores: Stores, progress: Progress | None) -> None:
        self._beside = beside
        self._stores = stores
        self._progress = progress
        self._report = DirectoryReport(str(beside.directory.path))
        self._image = ClusterImage()
        self._names: dict[int, TopicPartition] = {}
        self._done_bytes = 0
        self._total_bytes = 0

    def run(self, check_files: bool) -> DirectoryReport:
        owner = self._beside.owner()
        self._report.owner_pid = None if owner is None else owner.pid
        broken = self._check_files() if check_files and owner is None and not self._stores.borrowed else {}
        environments = {
            f"{BROKER_PREFIX}{number}": broker for number, broker in sorted(self._stores.brokers.items())
        }
        environments[METADATA] = self._stores.metadata
        for name in broken:
            del environments[name]
        walked: dict[str, EnvironmentReport] = {}
        compacted = [] if METADATA in broken else self._compacted(self._load_image())
        for name, environment in environments.items():
            self._tell("structure", name)
            walked[name] = check_structure(environment, name, compacted)
        self._total_bytes = sum(found.size_bytes for found in walked.values())
        if METADATA not in broken:
            # Behind the snapshots of the brokers: the logs of topics that still exist were whole in them.
            self._image = self._load_image()
            self._names = _names_in(self._image)
            self._check_image()
        for name, found in walked.items():
            for log_id in found.logs:
                check_bodies(environments[name], found, log_id, self._advance)
                self._check_epochs(name, environments[name], log_id)
                for what, expected, actual in check_producers(environments[name], log_id):
                    self._wrong(name, log_id, what, expected, actual)
            self._take_over(name, found)
            if name != METADATA and METADATA not in broken:
                self._check_groups(name, environments[name])
        self._report.topics = len(self._image.topics)
        return self._report

    def _tell(self, stage: str, environment: str) -> None:
        if self._progress is not None:
            self._progress(ProgressNow(stage, environment, self._done_bytes, self._total_bytes))

    def _wrong(
        self, environment: str, log_id: int, what: str, expected: object = "", actual: object = ""
    ) -> None:
        name = self._names.get(log_id, TopicPartition("", -1))
        self._report.problems.append(
            Problem(
                log_id, NO_OFFSET, what, str(expected), str(actual), environment, name.topic, name.partition
            )
        )

    # -- files -----------------------------------------------------------------------------------------------

    def _check_files(self) -> dict[str, None]:
        """The environments whose pages are damaged; walking them with the engine could kill the process."""
        self._report.files_checked = True
        broken: dict[str, None] = {}
        for environment in (self._stores.metadata, *self._stores.brokers.values()):
            self._tell("files", environment.path.name)
            for text in verify_file(environment.path):
                broken[environment.path.name] = None
                self._wrong(environment.path.name, 0, "the file contradicts itself", actual=text)
        return broken

    # -- logs ------------------------------------------------------------------------------------------------

    def _compacted(self, image: ClusterImage) -> list[int]:
        """The logs of topics that are compacted now."""
        config = self._beside.config
        return [
            partition.log_id
            for topic in image.topics.values()
            if TopicConfig.with_overrides(topic.config, config).compacts
            for partition in topic.partitions
        ]

    def _advance(self, name: str, done_bytes: int) -> None:
        self._done_bytes += done_bytes
        self._tell("batches", name)

    def _take_over(self, name: str, found: EnvironmentReport) -> None:
        report = self._report
        orphans: dict[int, None] = {}
        for log_id, walked in found.logs.items():
            report.batches += walked.batches
            report.records += walked.records
            report.size_bytes += walked.size_bytes
            partition = self._names.get(log_id)
            if partition is not None and name != METADATA:
                report.partitions[partition] = walked
            elif name != METADATA and self._names:
                orphans[log_id] = None
                report.orphans.append(Orphan(name, log_id, walked.batches, walked.size_bytes))
            elif name == METADATA and log_id != METADATA_LOG_ID:
                self._wrong(name, log_id, "an unknown log", f"log {METADATA_LOG_ID} only", f"log {log_id}")
        for problem in found.problems:
            if problem.log_id in orphans:
                continue  # a log that is being deleted is no log any more
            where = self._names.get(problem.log_id) if name != METADATA else None
            if where is not None:
                problem = msgspec.structs.replace(problem, topic=where.topic, partition=where.partition)
            report.problems.append(problem)

    def _check_epochs(self, name: str, environment: Environment, log_id: int) -> None:
        """The list of leader epochs against the batches: each lies where the list says its epoch was written.

        Epochs without batches are right too: their leaders wrote nothing, or it was deleted or compacted away. And
        batches below the log start are nobody's: they wait to be trimmed.
        """
        offset = 0
        while True:
            with environment.snapshot() as snapshot:
                value = log.get_extra(snapshot, log_id, CheckpointKind.LEADER_EPOCHS)
                if value is None:
                    return
                try:
                    checkpoint = log.load_checkpoint(snapshot, log_id)
                    offset = max(offset, 0 if checkpoint is None else checkpoint.log_start_offset)
                    entries = msgspec.msgpack.decode(value, type=list[tuple[int, int]])
                    headers = list(islice(log.iterate_headers(snapshot, log_id, offset), _HEADERS_MAX))
                except msgspec.DecodeError as error:
                    self._wrong(name, log_id, "the list of leader epochs cannot be decoded", actual=error)
                    return
                except (CorruptRecordError, CorruptStoreError):
                    return  # said already
            history = EpochHistory(tuple(EpochEntry(*entry) for entry in entries))
            if any(not (a[0] < b[0] and a[1] < b[1]) for a, b in pairwise(entries)):
                self._wrong(name, log_id, "the leader epochs do not rise", actual=history)
                return
            for stored in headers:
                last_offset, epoch = stored.header.last_offset, stored.header.leader_epoch
                if history.epoch_of(last_offset) != epoch:
                    what = f"the list of leader epochs has another one for offset {last_offset}"
                    self._wrong(name, log_id, what, epoch, history.epoch_of(last_offset))
                    return
                offset = last_offset + 1
            if not headers:
                return

    # -- folds -----------------------------------------------------------------------------------------------

    def _load_image(self) -> ClusterImage:
        """The image as far as it can be folded."""
        image = ClusterImage()
        try:
            with self._stores.metadata.snapshot() as snapshot:
                load_image(snapshot, image, 0)
        except ClosedError:
            raise
        except StreamlogError:
            pass  # `_check_image` says it
        return image

    def _check_image(self) -> None:
        """The image from its checkpoint against the image from the log's start."""
        self._tell("folds", METADATA)
        from_checkpoint, from_start = ClusterImage(), ClusterImage()
        try:
            with self._stores.metadata.snapshot() as snapshot:
                checkpoint = log.load_checkpoint(snapshot, METADATA_LOG_ID)
                load_image_checkpoint(snapshot)  # raises if it cannot be read: folding would do without it
                load_image(snapshot, from_checkpoint, 0)
                load_image(snapshot, from_start, 0, use_checkpoint=False)
        except ClosedError:
            raise
        except StreamlogError as error:
            self._wrong(METADATA, METADATA_LOG_ID, "the cluster's image cannot be folded", actual=error)
            return
        if checkpoint is None or checkpoint.log_start_offset > 0:
            return  # what lies before the start only the checkpoint knows
        for field in (
            "controller_id",
            "controller_epoch",
            "next_log_id",
            "brokers",
            "broker_configs",
            "topics",
        ):
            expected, actual = getattr(from_start, field), getattr(from_checkpoint, field)
            if expected != actual:
                self._wrong(
                    METADATA, METADATA_LOG_ID, f"the image's checkpoint has other {field}", expected, actual
                )

    def _check_groups(self, name: str, environment: Environment) -> None:
        topic = self._image.topics.get(CONSUMER_OFFSETS_TOPIC)
        if topic is None:
            return
        self._tell("folds", name)
        for number, partition in enumerate(topic.partitions):
            from_start, from_checkpoint = OffsetsFold(partition.log_id), OffsetsFold(partition.log_id)
            try:
                if not self._fold_groups(environment, from_start, from_checkpoint):
                    continue
            except ClosedError:
                raise
            except StreamlogError as error:
                self._wrong(name, partition.log_id, "the groups cannot be folded", actual=error)
                continue
            self._compare_groups(name, from_start, from_checkpoint)
            for group_id, machine in from_start.machines.items():
                home = group_partition(group_id, len(topic.partitions))
                if home != number:
                    self._wrong(
                        name,
                        partition.log_id,
                        f"group {group_id!r} is kept in another partition",
                        home,
                        number,
                    )
                self._report.groups += not machine.is_vacant

    def _fold_groups(
        self, environment: Environment, from_start: OffsetsFold, from_checkpoint: OffsetsFold
    ) -> bool:
        """Fold one partition of `__consumer_offsets` both ways, up to one offset; False if it is empty."""
        with environment.snapshot() as snapshot:
            checkpoint = log.load_checkpoint(snapshot, from_start.log_id)
            if checkpoint is None or checkpoint.log_end_offset == 0:
                return False
            end_offset = checkpoint.log_end_offset
            if not from_checkpoint.start_from_checkpoint(snapshot) and log.get_extra(
                snapshot, from_start.log_id, CheckpointKind.FOLD
            ):
                raise CorruptStoreError("the fold's checkpoint cannot be decoded")
        for fold in (from_start, from_checkpoint):
            fold.offset = max(fold.offset, checkpoint.log_start_offset)
            more = True
            while more:
                with environment.snapshot() as snapshot:
                    more = fold.advance(snapshot, end_offset)
        return True

    def _compare_groups(self, name: str, from_start: OffsetsFold, from_checkpoint: OffsetsFold) -> None:
        for group_id in sorted(from_start.machines.keys() | from_checkpoint.machines.keys()):
            expected = _facts(from_start.machines.get(group_id))
            actual = _facts(from_checkpoint.machines.get(group_id))
            if expected != actual:
                self._wrong(
                    name,
                    from_start.log_id,
                    f"group {group_id!r} is another in the fold's checkpoint",
                    expected,
                    actual,
                )


def _names_in(image: ClusterImage) -> dict[int, TopicPartition]:
    """Whose log is whose."""
    return {
        partition.log_id: TopicPartition(topic.name, number)
        for topic in image.topics.values()
        for number, partition in enumerate(topic.partitions)
    }


def _facts(machine: GroupMachine | None) -> tuple[object, object]:
    """What a replay decides of a group."""
    if machine is None or machine.is_vacant:
        return None, {}
    return machine.view(), machine.all_committed()
