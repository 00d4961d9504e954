"""The environments of a directory, for those who only read.

They are opened here, or are the owner's own where that is this process.

The engine allows one environment per file in a process, hence the borrowing (ECOSYSTEM 3.2 row 4). Also here:
folding the metadata log of a snapshot, which a reader does again whenever it grew.
"""

from __future__ import annotations

from streamlog.broker.metadata import METADATA_LOG_ID, fold_image
from streamlog.config import ClusterConfig
from streamlog.core.cluster_image import ClusterImage
from streamlog.errors import ClosedError
from streamlog.storage import log
from streamlog.storage.directory import ClusterDirectory
from streamlog.storage.env import Environment, Snapshot


class Stores:
    """The environments of a directory: opened here for reading, or the owner's own."""

    __slots__ = ("borrowed", "brokers", "incarnation", "metadata")

    def __init__(
        self, metadata: Environment, brokers: dict[int, Environment], incarnation: str | None
    ) -> None:
        self.metadata = metadata
        self.brokers = brokers
        self.borrowed = incarnation is not None
        self.incarnation = incarnation  # the owner's, where that is this process

    def broker(self, broker_id: int) -> Environment:
        environment = self.brokers.get(broker_id)
        if environment is None:
            # The owner made it after we looked, or it lies elsewhere: looking again decides.
            raise ClosedError(f"broker {broker_id} has no store here")
        return environment

    def marks(self) -> tuple[int, ...]:
        """Changes with every commit of the owner."""
        return visible_commit(self.metadata), *(visible_commit(e) for e in self.brokers.values())

    def close(self) -> list[Environment]:
        """Close what was opened here; those that a snapshot still keeps open."""
        if self.borrowed:
            return []
        return [e for e in (*self.brokers.values(), self.metadata) if not e.close()]


def visible_commit(environment: Environment) -> int:
    """The number of the newest commit that a snapshot shows.

    Not `last_transaction_id()`: that is the newest meta page, which the engine writes (and syncs: a
    millisecond) before it lets readers in other processes see the commit. Who took it for a mark would miss
    that commit's news for ever.
    """
    with environment.snapshot() as snapshot:
        number: int = snapshot.transaction.id()
        return number


def open_stores(directory: ClusterDirectory, config: ClusterConfig) -> Stores:
    opened: list[Environment] = []

    def open_one(path: str) -> Environment:
        opened.append(
            Environment.open(
                path, read_only=True, max_readers=config.max_readers, allow_network_fs=config.allow_network_fs
            )
        )
        return opened[-1]

    try:
        metadata = open_one(directory.metadata_path)
        return Stores(
            metadata,
            {number: open_one(directory.broker_path(number)) for number in directory.brokers()},
            None,
        )
    except BaseException:
        for environment in opened:
            environment.close()
        raise


def load_image(snapshot: Snapshot, image: ClusterImage, offset: int, *, use_checkpoint: bool = True) -> int:
    """Fold the metadata log from `offset` on into `image`; the offset up to which it is folded now.

    use_checkpoint:  begin at the image's checkpoint where that is ahead of `offset`.
    Raises           what `fold_image` raises.
    """
    checkpoint = log.load_checkpoint(snapshot, METADATA_LOG_ID)
    if checkpoint is None:
        return offset
    offset = max(offset, checkpoint.log_start_offset)
    fold_image(snapshot, image, offset, checkpoint.log_end_offset, use_checkpoint=use_checkpoint)
    return max(offset, checkpoint.log_end_offset)
