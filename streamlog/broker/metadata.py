"""The metadata log: one log in its own environment `metadata/`, always up while the process is.

    create_topic --> controller decides over the image --> records appended, compare-and-swap --> image.apply

Its fold is the `ClusterImage`. The controller is the broker whose lease carries the controller epoch; every append
names that epoch and the offset it expects to write at, so a deposed controller cannot write.

Invariants:
 1. The image is the fold of exactly the committed records below `state.log_end_offset`.
 2. An append with another controller epoch, or another expected offset, is refused and changes nothing.
 3. The image's checkpoint only saves time: without it the log is replayed from its start.

What several brokers need of a controller (leases, elections, in-sync sets) is `broker.controlling`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from streamlog import batch as batches
from streamlog.broker import api
from streamlog.broker.checkpointing import copy_of, save_image, try_to
from streamlog.broker.partition import load_state
from streamlog.broker.runner import Runtime
from streamlog.broker.turn import DEFER, Pending, Turn, TurnOwner
from streamlog.broker.upkeep import PutCheckpoints
from streamlog.core import cluster_image, controller
from streamlog.core.cluster_image import ClusterImage, MetadataRecord
from streamlog.core.replica import ReplicaState, appended
from streamlog.errors import (
    CorruptStoreError,
    FencedLeaderEpochError,
    NotControllerError,
    UnsupportedFormatError,
)
from streamlog.record import Record
from streamlog.storage import log
from streamlog.storage.env import Environment, Snapshot
from streamlog.storage.fold_checkpoints import load_fold
from streamlog.storage.keys import CheckpointKind

if TYPE_CHECKING:
    from streamlog.broker.controlling import Controlling
    from streamlog.broker.measuring_replication import ControllerCounts
    from streamlog.config import ClusterConfig

METADATA_LOG_ID: Final = 1
IMAGE_KIND: Final = CheckpointKind.FOLD
"""The kind of checkpoint that holds the image (see storage.keys)."""

CHECKPOINT_EVERY_RECORDS: Final = 512
_READ_BYTES: Final = 4 * 1024 * 1024

_OF_CLIENTS: Final = frozenset(
    {api.CreateTopic, api.CreatePartitions, api.DeleteTopic, api.AlterTopicConfig, api.AlterBrokerConfig}
)
"""What only a controller decides."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(MetadataRecord).decode


class AppendMetadata(msgspec.Struct, frozen=True):
    """Append records as the controller of `controller_epoch`, at `expected_offset` (-1: wherever the end is)."""

    records: list[Any]
    controller_epoch: int
    expected_offset: int = -1


class CopyImage(msgspec.Struct, frozen=True):
    """Answer the offset and a copy of the image at it."""


class AllocateProducerIds(msgspec.Struct, frozen=True):
    """Take producer ids out of circulation, one record for many of them; answered with their range. Source: KIP-730."""


class MetadataLog(TurnOwner):
    """The metadata log and the image that is its fold."""

    def __init__(
        self,
        environment: Environment,
        runtime: Runtime,
        requests_max: int,
        default_counts: Callable[[], tuple[int, int]],
        config: ClusterConfig | None = None,
    ) -> None:
        """default_counts: partitions and replication factor of a topic whose creator names none.
        config: what the controller among the brokers goes by (`broker.controlling`, made at its first use).
        """
        super().__init__("the metadata log", environment, runtime, requests_max)
        self.image = ClusterImage()
        self.state = ReplicaState()
        self._default_counts = default_counts
        self._producer_ids: Iterator[int] = iter(())
        self.transactional_ids: dict[str, None] = {}
        """Those that producers of this process have had: what is open of them is theirs to end."""
        self.saved_offset = 0  # up to here the image's checkpoint goes
        self._asked_offset = 0  # and up to here it was asked to
        self._config = config
        self._controlling: Controlling | None = None
        self.on_records: Callable[[list[Any], int], None] | None = None
        """Told, outside of the turn, what was appended and where the log ends now."""
        self.on_config: Callable[[], None] | None = None
        """Told, outside of the turn, that dynamic options changed."""
        self.controller_counts: ControllerCounts | None = None
        self._load()

    def __repr__(self) -> str:
        return f"MetadataLog(end={self.state.log_end_offset}, {self.image!r})"

    # -- opening -----------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        self.state, _ = load_state(self.environment, METADATA_LOG_ID, 0)
        end = self.state.log_end_offset
        with self.environment.snapshot() as snapshot:
            begun = fold_image(snapshot, self.image, self.state.log_start_offset, end)
        self.saved_offset = self._asked_offset = begun

    @property
    def controlling(self) -> Controlling:
        """The controller's work, made at its first use: who has one broker need not import it."""
        controlling = self._controlling
        if controlling is None:
            from streamlog.broker.controlling import Controlling

            assert self._config is not None
            controlling = self._controlling = Controlling(self, self._config)
        return controlling

    # -- deciding ----------------------------------------------------------------------------------------------------

    def _decide(self, turn: Turn, pending: Pending) -> object:
        if turn.staged:
            return DEFER  # one decision a turn: the next one must see this one's records in the image
        request = pending.request
        if self._controlling is not None and type(request) in _OF_CLIENTS:
            self._controlling.check_controller(turn.now_ms)
        match request:
            case CopyImage():
                turn.reply(pending, (self.state.log_end_offset, copy_of(self.image)))
                return None
            case PutCheckpoints():
                request.put_into(self.transaction(turn))
                turn.reply(pending, True)
                return None
            case AppendMetadata():
                if request.expected_offset not in (-1, self.state.log_end_offset):
                    raise NotControllerError(
                        f"the metadata log ends at {self.state.log_end_offset}, not at {request.expected_offset}: "
                        "somebody else wrote in between",
                        expected_offset=request.expected_offset,
                    )
                if request.controller_epoch > self.image.controller_epoch:
                    raise NotControllerError(
                        f"nobody was elected in controller epoch {request.controller_epoch}; the current one is "
                        f"{self.image.controller_epoch}"
                    )
                if request.controller_epoch < self.image.controller_epoch:
                    raise FencedLeaderEpochError(
                        f"controller epoch {request.controller_epoch} is over; the current one is "
                        f"{self.image.controller_epoch}"
                    )
                records: Sequence[Any] = request.records
                reply: object = None
            case AllocateProducerIds():
                records, reply = controller.decide_producer_ids(self.image)
            case api.CreateTopic():
                partitions, factor = self._default_counts()
                created = controller.decide_create_topic(
                    self.image,
                    request.name,
                    self.new_topic_id(),
                    partitions if request.partitions == -1 else request.partitions,
                    factor if request.replication_factor == -1 else request.replication_factor,
                    request.config,
                )
                records, reply = [created], created
            case api.CreatePartitions():
                grown = controller.decide_add_partitions(self.image, request.name, request.total)
                records, reply = [grown], grown
            case api.DeleteTopic():
                deleted = controller.decide_delete_topic(self.image, request.name)
                records, reply = [deleted], self.image.topic(request.name)
            case api.AlterTopicConfig():
                changed = controller.decide_change_config(self.image, request.name, request.changes)
                records, reply = [changed, *self._elect_unclean(request.name, request.changes)], changed
            case api.AlterBrokerConfig():
                altered = controller.decide_change_broker_config(
                    self.image, request.broker_id, request.changes
                )
                name = None if request.broker_id == cluster_image.CLUSTER_DEFAULT else ""
                records, reply = [altered, *self._elect_unclean(name, request.changes)], altered
            case _:
                records, reply = self.controlling.decide(turn, request)
        if not records:
            turn.reply(pending, reply)
            return None
        self.transaction(turn, reclaiming=self._frees(request))
        self._append(turn, records)
        turn.reply(pending, reply)
        return None

    def _elect_unclean(self, topic: str | None, changes: dict[str, str | None]) -> Sequence[MetadataRecord]:
        return () if self._controlling is None else self._controlling.elect_unclean(topic, changes)

    def configure(self, config: ClusterConfig) -> None:
        """Options have changed."""
        self._config = config
        if self._controlling is not None:
            self._controlling.configure(config)

    def _frees(self, request: object) -> bool:
        return type(request) is api.DeleteTopic

    def _append(self, turn: Turn, records: Sequence[MetadataRecord]) -> None:
        values = [_encode(record) for record in records]
        batch = batches.seal_v2_columns([None] * len(values), values, timestamps=turn.wall_ms)
        stored = log.append(
            self.transaction(turn),
            METADATA_LOG_ID,
            batch,
            self.state.log_end_offset,
            self.image.controller_epoch,
            max(self.state.max_timestamp, batch.max_timestamp),
        )
        state = appended(self.state, len(records), stored, batch.max_timestamp)
        state = msgspec.structs.replace(state, leader_epoch=self.image.controller_epoch)
        turn.staged[METADATA_LOG_ID] = (state, list(records))

    def new_producer_id(self) -> int:
        """A producer id nobody ever had. Not inside a turn: one call in a thousand writes a record."""
        for producer_id in self._producer_ids:
            return producer_id
        self._producer_ids = iter(self.call(AllocateProducerIds()))
        return next(self._producer_ids)

    def new_topic_id(self) -> str:
        return f"{self.runtime.random.getrandbits(128):032x}"

    def _before_commit(self, turn: Turn) -> None:
        if METADATA_LOG_ID in turn.staged:
            state, _ = turn.staged[METADATA_LOG_ID]
            log.put_checkpoint(self.transaction(turn), METADATA_LOG_ID, state)

    def _apply(self, turn: Turn) -> None:
        if METADATA_LOG_ID not in turn.staged:
            return
        state, records = turn.staged[METADATA_LOG_ID]
        if self.controller_counts is not None:
            self.controller_counts.applying(self.image, records, turn)
        for record in records:
            self.image.apply(record)
        if __debug__ and len(self.image.topics) < 64:
            self.image._check()
        if self.on_records is not None and self.state is not state:
            tell, end = self.on_records, state.log_end_offset
            self._outbox.append(lambda: tell(records, end))
        if self.on_config is not None and any(isinstance(r, cluster_image.ConfigChanged) for r in records):
            self._outbox.append(self.on_config)
        self.state = state
        if state.log_end_offset - self._asked_offset >= CHECKPOINT_EVERY_RECORDS:
            self._asked_offset = state.log_end_offset
            self.on_checkpoint_due()

    def _count(self, turn: Turn) -> None:
        if self.controller_counts is not None:
            self.controller_counts.finished(turn)

    # -- the checkpoint ----------------------------------------------------------------------------------------------

    def copy_image(self) -> tuple[int, ClusterImage]:
        """The offset up to which the image goes, and the image as it is now, to be kept. Not inside a turn."""
        copied: tuple[int, ClusterImage] = self.call(CopyImage())
        return copied

    def save_overdue(self) -> int:
        """Save the image if it has grown enough; not inside a turn, one thread at a time. Returns how often."""
        if self._asked_offset <= self.saved_offset:
            return 0
        return int(save_image(self, METADATA_LOG_ID))

    def save_checkpoint(self) -> None:
        """Save the image, so that the next opening need not replay the log. Called by the last runner."""
        value = msgspec.msgpack.encode((self.state.log_end_offset, self.image.checkpoint()))
        transaction = self.environment.write()
        try:
            log.put_extra(transaction, METADATA_LOG_ID, IMAGE_KIND, value)
            transaction.commit()
        except BaseException:
            transaction.abort()
            raise
        self.saved_offset = self._asked_offset = self.state.log_end_offset

    def close(self) -> None:
        """Finish what is under way and refuse everything later. The environment is closed by the cluster."""

        def save() -> None:
            if self.state.log_end_offset - self.saved_offset > CHECKPOINT_EVERY_RECORDS // 8:
                try_to(self.save_checkpoint)

        self.stop(save)


def fold_image(
    snapshot: Snapshot, image: ClusterImage, offset: int, end_offset: int, *, use_checkpoint: bool = True
) -> int:
    """Fold the metadata log from `offset` to `end_offset` into `image`; from which offset on records were replayed.

    use_checkpoint:  begin at the image's checkpoint where that is ahead of `offset`.
    Raises           CorruptRecordError, CorruptStoreError, UnsupportedFormatError (a record of a newer version).
    """
    try:
        saved = load_image_checkpoint(snapshot) if use_checkpoint else None
    except CorruptStoreError:
        saved = None  # a cache: without it the log is replayed from its start
    if saved is not None and offset < saved[0] <= end_offset:
        offset, folded = saved
        image.apply(folded)
    begun = offset
    while offset < end_offset:
        found = log.read(snapshot, METADATA_LOG_ID, offset, end_offset, _READ_BYTES)
        if not found:
            raise CorruptStoreError(
                f"the metadata log ends at {end_offset}, but holds nothing from offset {offset} on; restore a backup",
                offset=offset,
            )
        for batch in found:
            for record in batch.records("", 0, offset):
                image.apply(_decoded(record))
            offset = batch.next_offset
    return begun


def load_image_checkpoint(snapshot: Snapshot) -> tuple[int, cluster_image.ImageCheckpoint] | None:
    """The offset up to which an image was saved, and the image; None if there is none. Raises CorruptStoreError."""
    saved = load_fold(snapshot, METADATA_LOG_ID)
    if saved is None:
        return None
    try:
        return msgspec.msgpack.decode(b"".join(saved), type=tuple[int, cluster_image.ImageCheckpoint])
    except msgspec.DecodeError as error:
        raise CorruptStoreError(f"the image's checkpoint cannot be decoded: {error}") from error


def _decoded(record: Record) -> MetadataRecord:
    try:
        decoded: MetadataRecord = _decode(record.value or b"")
        return decoded
    except msgspec.ValidationError as error:
        raise UnsupportedFormatError(
            f"the metadata log has a record at offset {record.offset} that this version does not know ({error}): it was "
            "written by a newer streamlog. Upgrade; the directory was not touched",
            offset=record.offset,
        ) from error
    except msgspec.DecodeError as error:
        raise CorruptStoreError(
            f"the record at offset {record.offset} of the metadata log cannot be decoded: {error}",
            offset=record.offset,
        ) from error
