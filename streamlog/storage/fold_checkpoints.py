"""The checkpoint of a fold, in pieces where it is large: no transaction has to take more than one of them.

    value <= 1 piece    FOLD -> the value
    larger              FOLD -> head(set 0)    set 0: piece | piece | piece
                                               set 1: what the next one is written to, piece by piece, head last

What the pieces hold is said by the floor above. A checkpoint is a cache: where a piece is missing, there is none.

Invariants:
 1. The head is written last: a crash between two pieces leaves the old checkpoint.
 2. The set the head names is never written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from streamlog.storage.checkpoints import Reader, get_extra
from streamlog.storage.env import EngineError
from streamlog.storage.keys import (
    CHECKPOINT_BASE,
    FOLD_HEAD,
    FOLD_HEAD_MARK,
    FOLD_PIECES,
    FOLD_PIECES_MAX,
    CheckpointKind,
    pack_key,
    unpack_key,
)

PIECE_BYTES_MAX: Final = 512 * 1024
"""About a millisecond of writing."""

Entry: TypeAlias = tuple[int, bytes | None]
"""A kind of checkpoint and its value; None: it is deleted."""


def load_fold(reader: Reader, log_id: int) -> list[bytes] | None:
    """The pieces of a fold's checkpoint; None if there is none. One that is incomplete has a piece that is empty."""
    head = get_extra(reader, log_id, CheckpointKind.FOLD)
    if head is None:
        return None
    named = _named_by(head)
    if named is None:
        return [head]
    piece_set, count = named
    kinds = range(_first_kind(piece_set), _first_kind(piece_set) + count)
    return [get_extra(reader, log_id, kind) or b"" for kind in kinds]


def plan_fold(reader: Reader, log_id: int, pieces: Sequence[bytes]) -> list[Entry]:
    """What to write, in this order, to make `pieces` the checkpoint; each may be a transaction of its own."""
    if len(pieces) == 1:
        return [(CheckpointKind.FOLD, pieces[0])]
    head = get_extra(reader, log_id, CheckpointKind.FOLD)
    named = None if head is None else _named_by(head)
    piece_set = 0 if named is None else 1 - named[0]
    first = _first_kind(piece_set)
    entries: list[Entry] = [(first + number, piece) for number, piece in enumerate(pieces)]
    return [*entries, (CheckpointKind.FOLD, FOLD_HEAD.pack(FOLD_HEAD_MARK, piece_set, len(pieces)))]


def stale_pieces(reader: Reader, log_id: int) -> list[Entry]:
    """Pieces that the head does not name: of older checkpoints, and of one whose writing was cut short."""
    head = get_extra(reader, log_id, CheckpointKind.FOLD)
    named = None if head is None else _named_by(head)
    live = range(0)
    if named is not None:
        live = range(_first_kind(named[0]), _first_kind(named[0]) + named[1])
    stale: list[Entry] = []
    try:
        cursor = reader.cursor()
        found = cursor.set_range(pack_key(log_id, CHECKPOINT_BASE + FOLD_PIECES))
        while found:
            found_log_id, number = unpack_key(cursor.key())
            if found_log_id != log_id:
                break
            if number - CHECKPOINT_BASE not in live:
                stale.append((number - CHECKPOINT_BASE, None))
            found = cursor.next()
    except EngineError as error:
        raise reader.environment.named(error) from error
    return stale


def split(value: bytes) -> list[bytes]:
    """The value in pieces, for who joins them again."""
    return [value[start : start + PIECE_BYTES_MAX] for start in range(0, len(value), PIECE_BYTES_MAX)] or [
        b""
    ]


def is_piece(kind: int) -> bool:
    """Whether a kind of checkpoint is a piece."""
    return FOLD_PIECES <= kind < FOLD_PIECES + 2 * FOLD_PIECES_MAX


def _first_kind(piece_set: int) -> int:
    return FOLD_PIECES + piece_set * FOLD_PIECES_MAX


def _named_by(head: bytes) -> tuple[int, int] | None:
    """The set and the count in a head; None if the value is the checkpoint itself."""
    if len(head) != FOLD_HEAD.size or head[0] != FOLD_HEAD_MARK:
        return None
    _, piece_set, count = FOLD_HEAD.unpack(head)
    if piece_set > 1 or count > FOLD_PIECES_MAX:
        return None
    return piece_set, count
