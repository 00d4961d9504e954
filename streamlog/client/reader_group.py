"""A group of a cluster opened with `mode="r"`: it can be looked at, also what a reset would do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, cast

from streamlog.client.consumer_group import ConsumerGroup

if TYPE_CHECKING:
    from streamlog.broker.reading_beside import ClusterBeside
    from streamlog.record import TopicPartition


class ReaderGroup(ConsumerGroup):
    """What `consumer_group` of a ReaderCluster returns."""

    def reset_offsets(
        self,
        to: str | int | Mapping[TopicPartition, int] = "earliest",
        *,
        topics: Iterable[str] | None = None,
        dry_run: bool = False,
    ) -> dict[TopicPartition, int]:
        """As the owner's with `dry_run=True`. Raises ReadOnlyError without: before it looks at members or offsets."""
        if not dry_run:
            cast("ClusterBeside", self._backend).refuse_write("moving the offsets of a group")
        return super().reset_offsets(to, topics=topics, dry_run=True)
