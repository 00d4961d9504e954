"""How a producer tells of failures: of one record, of those nobody asked about, and of what went wrong while cleaning up.

    batch refused --fate_of--> the record at fault: why; its neighbours: whose fault
    batch failed, futures unread --flush, close--> DeliveryError

Source: KIP-467 (which records of a refused batch were at fault).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlog.errors import DeliveryError, InvalidRecordError, InvalidTimestampError
from streamlog.wording import plural

if TYPE_CHECKING:
    from streamlog.client.delivery import OpenBatch
    from streamlog.record import Record


def attach(exception: BaseException, error: BaseException) -> None:
    """Hang `error`, raised while cleaning up after `exception`, at the end of what `exception` tells of its past."""
    if error is exception:
        return
    seen = {id(error)}
    link: BaseException | None = error
    while link is not None:  # python has made `exception` the context of `error`, or of its causes
        if link.__context__ is exception:
            link.__context__ = None
        seen.add(id(link))
        link = link.__cause__ or link.__context__
        if link is not None and id(link) in seen:
            break
    last = exception
    while (past := last.__cause__ or last.__context__) is not None and id(past) not in seen:
        seen.add(id(past))
        last = past
    last.__context__ = error
    if hasattr(exception, "add_note"):
        exception.add_note(f"and {type(error).__name__}: {error}")


def fate_of(batch: OpenBatch, index: int) -> BaseException:
    """What record `index` of a failed batch is told."""
    error = batch.error
    assert error is not None, batch
    at_fault = error.record_indexes if isinstance(error, (InvalidRecordError, InvalidTimestampError)) else ()
    if not at_fault or index in at_fault or batch.starts is not None:
        return error
    neighbour = InvalidRecordError(
        f"nothing is wrong with this record for {batch.topic}-{batch.partition}, but with another of its batch, so "
        f"none was written; send it again. The other: {error}",
        topic=batch.topic,
        partition=batch.partition,
        record_indexes=at_fault,
    )
    neighbour.__cause__ = error
    return neighbour


def raise_unknown(failed: list[OpenBatch]) -> None:
    """Raise a DeliveryError if there are failed records nobody has been told about."""
    unread = [(batch, batch.unknown_failures()) for batch in failed]
    records: list[Record] = [record for _, some in unread for record in some]
    if not records:
        return
    first = next(batch for batch, some in unread if some)
    raise DeliveryError(
        f"{plural(len(records), 'record')} could not be written; the first, for {first.topic}-{first.partition}: "
        f"{first.error}",
        count=len(records),
        failed=records,
    ) from first.error
