"""A group machine and what its host keeps beside it.

The `view` is what members of this process look at, without a turn: published after each change, told to who listens.
"""

from __future__ import annotations

from streamlog.broker.partition import Partition
from streamlog.broker.purgatory import Source
from streamlog.core.group import GroupMachine


class HostedGroup(Source):
    """A machine and what its host keeps beside it. `view` is published after each change."""

    __slots__ = (
        "group_id",
        "machine",
        "view",
        "partition",
        "scheduled_ms",
        "is_idle",
        "is_gone",
        "_is_news",
        "stable_generation",
    )

    def __init__(self, group_id: str, machine: GroupMachine, partition: Partition) -> None:
        super().__init__()
        self.group_id = group_id
        self.machine = machine
        self.view = machine.view()
        self.partition = partition
        # The group's entry in the host's heap; its machine may want later, which is seen when the entry comes up.
        self.scheduled_ms: int | None = None
        self._is_news = False
        self.stable_generation = self.view.generation  # of the last rebalance that was counted
        self.is_idle = False  # nobody has asked for it since offsets were last expired
        self.is_gone = False  # the coordinator moved: another broker hosts the group now

    def publish(self) -> None:
        view = self.machine.view()
        if (view.state, view.generation) != (self.view.state, self.view.generation):
            self._is_news = True  # until told: an interrupt may come between publishing and telling
        self.view = view
        if self._is_news:
            self.notify()
            self._is_news = False


class LoadedFold:
    """One partition of `__consumer_offsets`, loaded: how far its checkpoint is behind, and how large that is."""

    __slots__ = ("keys_saved", "records_since_checkpoint")

    def __init__(self) -> None:
        self.keys_saved = 0
        self.records_since_checkpoint = 0
