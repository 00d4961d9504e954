"""Saving folds: built and encoded outside of any turn, put into the store piece by piece, each in a turn of its own.

    a fold has grown enough --> due --housekeeping's thread--> fold what is stored --encode in pieces--> PutCheckpoints
                                                                                                    one turn a piece

So a turn writes at most one piece, however many keys there are (law 8). The last turn names the new pieces; before it the
old checkpoint is in force. What was encoded is only believed if the log has not been compacted or cut meanwhile: the
checkpoint would bring back what has been deleted.

Invariants:
 1. One fold is saved by one thread at a time (`Housekeeping` sees to it).
 2. A checkpoint at offset n is the fold of exactly the records below n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from streamlog.broker.pending import TOLD_WAIT_MS
from streamlog.broker.upkeep import PutCheckpoints
from streamlog.core.cluster_image import CONSUMER_OFFSETS_TOPIC, ClusterImage
from streamlog.core.held_records import HeldRecords, settled_records
from streamlog.errors import StreamlogError, UnknownTopicOrPartitionError
from streamlog.storage import log
from streamlog.storage.fold_checkpoints import PIECE_BYTES_MAX, load_fold, plan_fold, split, stale_pieces

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.metadata import MetadataLog
    from streamlog.broker.turn import TurnOwner
    from streamlog.storage.env import Environment

PIECE_KEYS_MAX: Final = 2048
SLICE_BYTES: Final = 32 * 1024
PAUSE_MS: Final = 1
"""After each slice, about a millisecond of work: a thread that computes on end makes every call into the engine, which
lets go of the interpreter, wait a switch interval of 5 ms to get it back, and a turn has several.
"""
_STALE_PIECES_MAX: Final = 8
"""Deleted in one turn."""

Latest: TypeAlias = dict[bytes, bytes]


def _no_pause() -> None:
    """For who is waited for."""


def decode_offsets(pieces: Sequence[bytes], pause: Callable[[], object] = _no_pause) -> tuple[int, Latest]:
    """The checkpoint of a partition of `__consumer_offsets`: its offset, and the newest value of each live key.

    pause:   called between pieces.
    Raises   msgspec.DecodeError.
    """
    offsets: set[int] = set()
    latest: Latest = {}
    for piece in pieces:
        offset, some = msgspec.msgpack.decode(piece, type=tuple[int, Latest])
        offsets.add(offset)
        latest.update(some)
        pause()
    if len(offsets) != 1:
        raise msgspec.DecodeError(f"pieces of different checkpoints, at {sorted(offsets)}")
    return offsets.pop(), latest


def encode_offsets(offset: int, latest: Latest, pause: Callable[[], object] = _no_pause) -> list[bytes]:
    """The checkpoint in pieces: no call into the encoder or decoder is long, and nobody waits for the interpreter."""
    pieces: list[bytes] = []
    some: Latest = {}
    size_bytes = 0
    for key, value in latest.items():
        size_bytes += len(key) + len(value) + 10
        if some and (len(some) >= PIECE_KEYS_MAX or size_bytes > PIECE_BYTES_MAX):
            pieces.append(msgspec.msgpack.encode((offset, some)))
            some, size_bytes = {}, len(key) + len(value) + 10
            pause()
        some[key] = value
    pieces.append(msgspec.msgpack.encode((offset, some)))
    return pieces


def save_offsets(broker: Broker, number: int) -> int | None:
    """Save the fold of one partition of `__consumer_offsets`. Returns its keys; None if it was not saved."""
    try:
        partition = broker.partition(CONSUMER_OFFSETS_TOPIC, number)
    except UnknownTopicOrPartitionError:
        return None
    seen = (partition.generation, partition.compactions)
    view = partition.view
    if view is None:
        return None
    end_offset = view.last_stable_offset  # behind it are records of which nobody knows whether they count
    waiter = broker.runtime.waiter()

    def pause() -> None:
        waiter.wait(PAUSE_MS)

    latest = _fold_offsets(broker.environment, partition.log_id, view.log_start_offset, end_offset, pause)

    def is_current() -> bool:
        return partition.view is not None and (partition.generation, partition.compactions) == seen

    pieces = encode_offsets(end_offset, latest, pause)
    return len(latest) if _put(broker, partition.log_id, pieces, is_current) else None


def save_image(metadata: MetadataLog, log_id: int) -> bool:
    """Save the cluster's image as it is now. Returns whether it was."""
    offset, image = metadata.copy_image()
    pieces = split(msgspec.msgpack.encode((offset, image.checkpoint())))
    if not _put(metadata, log_id, pieces, lambda: True):
        return False
    metadata.saved_offset = offset
    return True


def copy_of(image: ClusterImage) -> ClusterImage:
    """An image that stays as it is: what it holds is immutable, so copying the tables is enough."""
    copied = ClusterImage()
    for name, value in vars(image).items():
        setattr(copied, name, value.copy() if hasattr(value, "copy") else value)
    return copied


def _fold_offsets(
    environment: Environment, log_id: int, start_offset: int, end_offset: int, pause: Callable[[], object]
) -> Latest:
    with environment.snapshot() as snapshot:
        pieces = load_fold(snapshot, log_id)
    offset, latest = _saved_offsets(pieces, end_offset, pause)
    offset = max(offset, start_offset)
    held = HeldRecords()
    while offset < end_offset:
        with environment.snapshot() as snapshot:
            found = log.read(snapshot, log_id, offset, end_offset, SLICE_BYTES)
        if not found:
            break
        for batch in found:
            for key, value in settled_records(held, batch, CONSUMER_OFFSETS_TOPIC, 0, offset):
                if value is None:
                    latest.pop(key, None)
                else:
                    latest[key] = value
            offset = batch.next_offset
        pause()
    return latest


def _saved_offsets(
    pieces: Sequence[bytes] | None, end_offset: int, pause: Callable[[], object]
) -> tuple[int, Latest]:
    if pieces is not None:
        try:
            offset, latest = decode_offsets(pieces, pause)
        except msgspec.DecodeError:
            pass  # a cache: without it all of the log is folded
        else:
            if offset <= end_offset:
                return offset, latest
    return 0, {}


def _put(owner: TurnOwner, log_id: int, pieces: Sequence[bytes], is_current: Callable[[], bool]) -> bool:
    with owner.environment.snapshot() as snapshot:
        plan = plan_fold(snapshot, log_id, pieces)
    for entry in plan:
        if not owner.call(PutCheckpoints(log_id, (entry,), is_current), TOLD_WAIT_MS):
            return False
    with owner.environment.snapshot() as snapshot:
        stale = stale_pieces(snapshot, log_id)
    for start in range(0, len(stale), _STALE_PIECES_MAX):
        owner.call(
            PutCheckpoints(log_id, tuple(stale[start : start + _STALE_PIECES_MAX]), is_current), TOLD_WAIT_MS
        )
    return True


def try_to(save: Callable[[], object]) -> None:
    """A checkpoint only saves time, so a store that is full or closing may refuse it; the next one covers more."""
    try:
        save()
    except StreamlogError:
        pass
