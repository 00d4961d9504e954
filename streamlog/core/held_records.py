"""Records of open transactions in a log that is folded: held until their marker says whether they count (sans-I/O).

    record of a transaction --hold--> held --its marker: commit--> counts now, unless the key was written since
                                           --its marker: abort---> never did
    any other record -----------------written--> counts at once, and whatever is held for its key does not any more

So what counts for a key is what was written last, in the order of the log, of all that was not aborted.

Invariant: what is held is of transactions that are open.

Source: Kafka OffsetMetadataManager (openTransactions, replayEndTransactionMarker), KIP-447.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from streamlog.batch import ControlType

if TYPE_CHECKING:
    from streamlog.batch import Batch

Entry = tuple[bytes, "bytes | None"]


class HeldRecords:
    """The newest held value of each key, for each producer that has a transaction open."""

    __slots__ = ("_held", "_written")

    def __init__(self) -> None:
        self._held: dict[int, dict[bytes, tuple[int, bytes | None]]] = {}
        self._written = 0

    def __repr__(self) -> str:
        return f"HeldRecords({sum(map(len, self._held.values()))} of {len(self._held)} transactions)"

    def __contains__(self, key: bytes) -> bool:
        return any(key in held for held in list(self._held.values()))

    def __bool__(self) -> bool:
        return bool(self._held)

    def keys(self) -> set[bytes]:
        """Of everything that is held."""
        return {key for held in self._held.values() for key in held}

    def copy(self) -> HeldRecords:
        other = HeldRecords()
        other._held = {producer_id: dict(held) for producer_id, held in self._held.items()}
        other._written = self._written
        return other

    def hold(self, producer_id: int, key: bytes, value: bytes | None) -> None:
        """A record of an open transaction."""
        self._written += 1
        self._held.setdefault(producer_id, {})[key] = (self._written, value)

    def written(self, key: bytes) -> None:
        """A record outside of any transaction: older ones of its key do not count any more, whatever becomes of them."""
        for held in self._held.values():
            held.pop(key, None)

    def end(self, producer_id: int, is_commit: bool) -> list[Entry]:
        """A transaction has its marker: the records that count from now on. Again there are none."""
        ended = self._held.pop(producer_id, {})
        if not is_commit:
            return []
        for held in self._held.values():
            for key, (order, _) in ended.items():
                if key in held and held[key][0] < order:
                    del held[key]
        return [(key, value) for key, (_, value) in ended.items()]

    def remaining(self) -> Iterator[tuple[int, bytes, bytes | None]]:
        """(producer id, key, value) of what is held, oldest first."""
        every = [
            (order, producer_id, key, value)
            for producer_id, held in self._held.items()
            for key, (order, value) in held.items()
        ]
        for _, producer_id, key, value in sorted(every, key=lambda one: one[0]):
            yield producer_id, key, value


def settled_records(held: HeldRecords, batch: Batch, topic: str, number: int, offset: int) -> Iterator[Entry]:
    """What counts from this batch of a log on: its own records, or those of the transaction that it ends."""
    if batch.is_control:
        kind = batch.control_record().kind
        if kind in (ControlType.COMMIT, ControlType.ABORT):
            yield from held.end(batch.producer_id, kind is ControlType.COMMIT)
        return
    for record in batch.records(topic, number, offset):
        key: bytes = record.key or b""
        if batch.is_transactional:
            held.hold(batch.producer_id, key, record.value)
        else:
            if held:
                held.written(key)
            yield key, record.value
