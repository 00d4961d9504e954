"""What a broker asks of its own turn: requests of upkeep, beside those of clients in `broker.api`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from streamlog.broker.partition import Partition
from streamlog.core.cluster_image import TopicImage
from streamlog.storage import log
from streamlog.storage.keys import checkpoint_key

if TYPE_CHECKING:
    from streamlog.config import ClusterConfig
    from streamlog.storage import cleaner
    from streamlog.storage.env import WriteTransaction
    from streamlog.storage.fold_checkpoints import Entry


class DropTopic(msgspec.Struct, frozen=True):
    """The topic left the cluster image: stop serving it and delete its logs, slice by slice."""

    topic: TopicImage


class RefreshTopic(msgspec.Struct, frozen=True):
    """The topic's options changed: take them over."""

    name: str


class TakeConfig(msgspec.Struct, frozen=True):
    """The broker's options changed: take them over, and what topics have from them."""

    config: ClusterConfig


class MoveHighWatermarks(msgspec.Struct, frozen=True):
    """Options that high watermarks depend on have changed (min.insync.replicas): look where they stand now."""


class RaiseLogStart(msgspec.Struct, frozen=True):
    """Retention decided a new log start offset; ignored where the log was cut since `truncation_count`."""

    partition: Partition
    log_start_offset: int
    truncation_count: int


class TrimHead(msgspec.Struct, frozen=True):
    """There are batches below the log start offset, left by a crash: delete them."""

    partition: Partition


class DropLogs(msgspec.Struct, frozen=True):
    """Logs of topics that were deleted, but a crash or an interrupt came before DropTopic: delete them."""

    log_ids: list[int]


class SwapCompacted(msgspec.Struct, frozen=True):
    """Put recoded batches in the place of the old ones. Answers the change in bytes; None: the log moved on."""

    partition: Partition
    generation: int
    plan: cleaner.CompactionPlan


class PutCheckpoints(msgspec.Struct, frozen=True):
    """Store what was encoded outside of the turn: (kind, value or None to delete) of one log. Answers whether it did.

    is_current:  asked in the turn: whether the log is still the one it was encoded from.
    """

    log_id: int
    entries: tuple[Entry, ...]
    is_current: Callable[[], bool]

    def put_into(self, transaction: WriteTransaction) -> None:
        for kind, value in self.entries:
            if value is None:
                transaction.delete(checkpoint_key(self.log_id, kind))
            else:
                log.put_extra(transaction, self.log_id, kind, value)


class SaveCleanerCheckpoint(msgspec.Struct, frozen=True):
    """A compaction pass is complete: the next begins there."""

    partition: Partition
    generation: int
    checkpoint: cleaner.CleanerCheckpoint
