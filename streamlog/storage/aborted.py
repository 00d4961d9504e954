"""The aborted transactions of a log, each under the offset of its marker: Kafka's transaction index.

    log 7:  [ batches ... ][ checkpoints ][ 2**63 + 2**62 + marker offset: producer id, first offset ] ...

A reader of committed records asks for those that reach into the range it reads: one look, and one step more for each.

Invariants:
 1. An entry is written in the transaction that appends its marker, and goes with it: deleted at the head, cut at the
    tail. Compaction leaves entries alone; one whose records are gone does no harm.
 2. No two entries of one producer overlap.

Source: Kafka TransactionIndex, AbortedTxn, LogSegment.collectAbortedTxns.
"""

from __future__ import annotations

from collections.abc import Iterator

from streamlog.errors import CorruptStoreError
from streamlog.storage.checkpoints import Reader
from streamlog.storage.cleaned_transactions import AbortedTransaction
from streamlog.storage.env import EngineError, WriteTransaction
from streamlog.storage.keys import ABORTED_BASE, ABORTED_TRANSACTION, OFFSET_BITS_MAX, pack_key, unpack_key


def put_aborted(transaction: WriteTransaction, log_id: int, aborted: AbortedTransaction) -> None:
    """Note an aborted transaction whose marker is being appended at `last_offset`."""
    transaction.put(
        pack_key(log_id, ABORTED_BASE + aborted.last_offset),
        ABORTED_TRANSACTION.pack(aborted.producer_id, aborted.first_offset),
    )


def aborted_between(
    reader: Reader, log_id: int, start_offset: int, end_offset: int = OFFSET_BITS_MAX
) -> list[AbortedTransaction]:
    """Those with an offset in [start_offset, end_offset), by the offset of their marker."""
    found: list[AbortedTransaction] = []
    for last_offset, value in _entries(reader, log_id, start_offset):
        if len(value) != ABORTED_TRANSACTION.size:
            raise CorruptStoreError(
                f"the aborted transaction of log {log_id} with its marker at {last_offset} has {len(value)} bytes, "
                f"expected {ABORTED_TRANSACTION.size}",
                log_id=log_id,
            )
        producer_id, first_offset = ABORTED_TRANSACTION.unpack(value)
        if first_offset < end_offset:
            found.append(AbortedTransaction(producer_id, first_offset, last_offset))
    return found


def delete_aborted(
    transaction: WriteTransaction, log_id: int, start_offset: int, end_offset: int = OFFSET_BITS_MAX
) -> None:
    """Forget those whose marker is in [start_offset, end_offset)."""
    doomed = [
        last_offset
        for last_offset, _ in _entries(transaction, log_id, start_offset)
        if last_offset < end_offset
    ]
    for last_offset in doomed:
        transaction.delete(pack_key(log_id, ABORTED_BASE + last_offset))


def _entries(reader: Reader, log_id: int, start_offset: int) -> Iterator[tuple[int, bytes]]:
    try:
        cursor = reader.cursor()
        found = cursor.set_range(pack_key(log_id, ABORTED_BASE + start_offset))
        while found:
            key, value = cursor.item()
            found_log_id, number = unpack_key(key)
            if found_log_id != log_id:
                return
            yield number - ABORTED_BASE, bytes(value)
            found = cursor.next()
    except EngineError as error:
        raise reader.environment.named(error) from error
