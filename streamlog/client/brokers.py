"""The brokers as users hold them. Replication and faults come with a later capability; until then they refuse by name."""

from __future__ import annotations

from typing import NoReturn

from streamlog.errors import UnsupportedOperationError


def refuse(operation: str) -> NoReturn:
    """Raises UnsupportedOperationError for what needs more than one broker."""
    raise UnsupportedOperationError(
        f"{operation}: this version of streamlog runs one broker; replication and fault injection are being built",
        operation=operation,
    )


class BrokerHandle:
    """One broker of a cluster, by its id."""

    __slots__ = ("id",)

    def __init__(self, broker_id: int) -> None:
        self.id = broker_id

    def __repr__(self) -> str:
        return f"<Broker {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BrokerHandle) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def stop(self) -> None:
        refuse("brokers[i].stop()")

    def start(self) -> None:
        refuse("brokers[i].start()")

    def crash(self, lose_unsynced: bool = False) -> None:
        refuse("brokers[i].crash()")

    def pause(self) -> None:
        refuse("brokers[i].pause()")

    def resume(self) -> None:
        refuse("brokers[i].resume()")
