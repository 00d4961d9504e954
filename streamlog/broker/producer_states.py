"""The producers a partition knows, and their checkpoints: `core.producer_state` where it meets bytes.

    headers of the log --observed, one by one--> ProducerTable         in the turn that appends them
    PRODUCER_STATE (covers the log up to an offset) + the headers behind it --load--> ProducerTable

Writing every state with every batch would cost each acknowledged record a third put. So a checkpoint is written only now
and then, and loading replays the headers behind it.

Invariants:
 1. A log without any of these checkpoints never held a batch with a producer id: the first one brings a checkpoint along.
 2. A checkpoint never covers more than the log has: who cuts the log removes those that do (`cut`). The one before the
    newest is kept, unless the high watermark had not reached it when the newest was written: a cut above the high
    watermark finds one of them.
 3. A checkpoint covers at least everything below the log's start: what is deleted cannot be replayed.
 4. What a turn staged is in `turn.producers`, by partition and producer id; None: not known any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from streamlog.batch import ControlRecord, ControlType
from streamlog.core.producer_state import ProducerState, ended, observed
from streamlog.storage import log
from streamlog.storage.aborted import delete_aborted, put_aborted
from streamlog.storage.checkpoints import Reader
from streamlog.storage.cleaned_transactions import AbortedTransaction
from streamlog.storage.env import WriteTransaction
from streamlog.storage.keys import CheckpointKind, checkpoint_key

if TYPE_CHECKING:
    from streamlog.batch import Batch, BatchHeader
    from streamlog.broker.partition import Partition
    from streamlog.broker.pending import Turn
    from streamlog.core.replica import ReplicaState

SAVE_BATCHES: Final = 256
"""Batches behind the checkpoint after which another is due; one more for every fourth producer, whose state it holds."""

_NONE: Final[dict[int, ProducerState | None]] = {}
_KINDS: Final = (CheckpointKind.PRODUCER_STATE, CheckpointKind.PRODUCER_STATE_BEFORE)


class ProducerCheckpoint(msgspec.Struct, frozen=True, array_like=True):
    """The producers of a log as it was up to an offset."""

    end_offset: int
    states: dict[int, ProducerState]
    written_ms: dict[int, int]
    """When each wrote last, as `ProducerTable.written_ms`."""
    decided: list[tuple[int, int]] = []
    """As `ProducerTable.decided`: transactions whose markers were not replicated then."""


_encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(ProducerCheckpoint).decode


class ProducerTable:
    """The producers of one partition. Changes only as a turn is applied."""

    __slots__ = ("decided", "open_offsets", "saved_offset", "states", "unsaved_batches", "written_ms")

    def __init__(
        self,
        states: dict[int, ProducerState],
        saved_offset: int,
        written_ms: dict[int, int] | None = None,
        unsaved_batches: int = 0,
        decided: Iterable[tuple[int, int]] = (),
    ) -> None:
        self.states = states
        self.written_ms = {} if written_ms is None else written_ms
        """When each wrote last, by our clock: records may carry any timestamp. Who is missing has just been read from the
        log."""
        self.saved_offset = saved_offset
        """Up to here the newest checkpoint goes."""
        self.unsaved_batches = unsaved_batches
        """About so many batches are behind it."""
        self.open_offsets = {
            producer_id: state.open_offset for producer_id, state in states.items() if state.open_offset >= 0
        }
        """Where each open transaction begins, by producer id."""
        self.decided = list(decided)
        """Transactions whose markers may be above the high watermark: first offset, and the one behind the marker."""

    def __repr__(self) -> str:
        return f"ProducerTable({len(self.states)} producers, saved up to {self.saved_offset})"

    @property
    def is_due(self) -> bool:
        """Whether enough batches came since the checkpoint to write another."""
        return self.unsaved_batches >= SAVE_BATCHES + len(self.states) // 4

    def stabilized(self, state: ReplicaState) -> ReplicaState:
        """A state that is about to be published, with its first unstable offset."""
        mark = state.high_watermark
        if self.decided:
            self.decided = [(first, end) for first, end in self.decided if end > mark]
        first = min(self.open_offsets.values(), default=-1)
        for decided, _ in self.decided:
            first = decided if first < 0 else min(first, decided)
        if first == state.first_unstable_offset:
            return state
        return msgspec.structs.replace(state, first_unstable_offset=first)

    def take(
        self, staged: dict[int, ProducerState | None], wall_ms: int, decided: Iterable[tuple[int, int]]
    ) -> None:
        """Take over what a turn staged. Again changes nothing."""
        self.decided += [one for one in decided if one not in self.decided]
        for producer_id, state in staged.items():
            if state is not None and state.open_offset >= 0:
                self.open_offsets[producer_id] = state.open_offset
            else:
                self.open_offsets.pop(producer_id, None)
            if state is None:
                self.states.pop(producer_id, None)
                self.written_ms.pop(producer_id, None)
            else:
                self.states[producer_id] = state
                self.written_ms[producer_id] = wall_ms


def state_of(turn: Turn, partition: Partition, producer_id: int) -> ProducerState | None:
    """What is known of a producer, with what this turn has staged."""
    staged: dict[int, ProducerState | None] = turn.producers.get(partition, _NONE)
    if producer_id in staged:
        return staged[producer_id]
    table = partition.producers
    return None if table is None else table.states.get(producer_id)


def observe(
    transaction: WriteTransaction,
    turn: Turn,
    partition: Partition,
    batch: Batch,
    base_offset: int,
    control: ControlRecord | None = None,
) -> None:
    """Stage that a batch with a producer id, data or a marker, is appended at `base_offset`.

    control:  what the marker says, if that is known already.
    """
    producer_id = batch.producer_id
    before = state_of(turn, partition, producer_id)
    if batch.is_control:
        control = control or batch.control_record()
        state = ended(before, batch, control.coordinator_epoch)
        if before is not None and before.open_offset >= 0:
            turn.decided.setdefault(partition, []).append((before.open_offset, base_offset + 1))
            if control.kind is ControlType.ABORT:
                aborted = AbortedTransaction(producer_id, before.open_offset, base_offset)
                put_aborted(transaction, partition.log_id, aborted)
    else:
        state = observed(before, batch, base_offset)
    if partition.producers is not None:
        partition.producers.unsaved_batches += 1  # a rough count: also of a turn that is dropped
    turn.producers.setdefault(partition, {})[producer_id] = state


def load(reader: Reader, log_id: int, start_offset: int, end_offset: int) -> ProducerTable | None:
    """The producers of a log that ends at `end_offset`; None if it never had one.

    Raises   CorruptRecordError where a header cannot be read.
    """
    found = [_checkpoint(reader, log_id, kind, end_offset) for kind in _KINDS]
    if all(checkpoint is None and not exists for checkpoint, exists in found):
        return None
    saved = next((checkpoint for checkpoint, _ in found if checkpoint is not None), None)
    if saved is None:
        saved = ProducerCheckpoint(start_offset, {}, {})
    states, written_ms, decided = dict(saved.states), dict(saved.written_ms), list(saved.decided)
    batches = 0
    for stored in log.iterate_headers(reader, log_id, saved.end_offset):
        header = stored.header
        if header.base_offset >= end_offset:
            break
        batches += 1
        if header.producer_id >= 0:
            known = states.get(header.producer_id)
            if header.is_control and known is not None and known.open_offset >= 0:
                decided.append((known.open_offset, header.next_offset))
            fold(reader, log_id, states, header)
            written_ms.pop(header.producer_id, None)
    return ProducerTable(states, saved.end_offset, written_ms, batches, decided)


def fold(reader: Reader, log_id: int, states: dict[int, ProducerState], header: BatchHeader) -> None:
    """Take one batch of the log into the producers' states."""
    if header.producer_id < 0:
        return
    known = states.get(header.producer_id)
    if header.is_control:
        [marker] = log.read(reader, log_id, header.last_offset, header.next_offset, 1)
        states[header.producer_id] = ended(known, header, marker.control_record().coordinator_epoch)
    else:
        states[header.producer_id] = observed(known, header, header.base_offset)


def _checkpoint(
    reader: Reader, log_id: int, kind: CheckpointKind, end_offset: int
) -> tuple[ProducerCheckpoint | None, bool]:
    """A checkpoint, None if it cannot be used; and whether there is one."""
    value = log.get_extra(reader, log_id, kind)
    if value is None:
        return None, False
    try:
        checkpoint = decode(value)
    except msgspec.MsgspecError:
        return None, True  # a cache: the log is read from its start instead
    return (checkpoint if checkpoint.end_offset <= end_offset else None), True


def save_if_due(
    transaction: WriteTransaction, turn: Turn, partition: Partition, state: ReplicaState, expiration_ms: int
) -> None:
    """Write a checkpoint of the producers as they are once this turn is committed, if it is time. Who expired goes.

    state:  of the partition after the turn.
    """
    table = partition.producers
    if table is not None and not table.is_due and state.log_start_offset <= table.saved_offset:
        return
    staged = turn.producers.setdefault(partition, {})
    written_ms: dict[int, int] = {}
    if table is not None:
        written_ms = {
            producer_id: table.written_ms.get(producer_id, turn.wall_ms) for producer_id in table.states
        }
        for producer_id, last_ms in written_ms.items():
            is_open = producer_id in table.open_offsets
            if producer_id not in staged and not is_open and turn.wall_ms - last_ms >= expiration_ms:
                staged[producer_id] = None
    states: dict[int, ProducerState | None] = {**(table.states if table is not None else {}), **staged}
    kept = {producer_id: known for producer_id, known in states.items() if known is not None}
    written_ms = {
        producer_id: turn.wall_ms if producer_id in staged else written_ms[producer_id]
        for producer_id in kept
    }
    log_id, end_offset = partition.log_id, state.log_end_offset
    if table is not None and table.saved_offset <= state.high_watermark:
        newest = log.get_extra(transaction, log_id, CheckpointKind.PRODUCER_STATE)
        if newest is not None:
            log.put_extra(transaction, log_id, CheckpointKind.PRODUCER_STATE_BEFORE, newest)
    decided = [*(table.decided if table is not None else ()), *turn.decided.get(partition, ())]
    decided = [(first, end) for first, end in decided if end > state.high_watermark]
    _put(transaction, log_id, ProducerCheckpoint(end_offset, kept, written_ms, decided))

    def note() -> None:
        if partition.producers is None:
            partition.producers = ProducerTable({}, end_offset)
        partition.producers.saved_offset = end_offset
        partition.producers.unsaved_batches = 0
        for producer_id, last_ms in written_ms.items():
            partition.producers.written_ms.setdefault(producer_id, last_ms)

    turn.effects.append(note)


def _put(transaction: WriteTransaction, log_id: int, checkpoint: ProducerCheckpoint) -> None:
    log.put_extra(transaction, log_id, CheckpointKind.PRODUCER_STATE, _encode(checkpoint))


def stage_cut(transaction: WriteTransaction, turn: Turn, partition: Partition, state: ReplicaState) -> None:
    """The tail of a partition was cut in this turn; `state` is what is left. Who is known then is told by the log.

    Where nothing is left of it nobody is known. Source: Kafka ProducerStateManager.truncateFullyAndStartAt.
    """
    table = cut(transaction, partition.log_id, state.log_start_offset, state.log_end_offset)
    if table is not None and state.log_start_offset == state.log_end_offset:
        table = ProducerTable({}, state.log_end_offset)
        _put(transaction, partition.log_id, ProducerCheckpoint(state.log_end_offset, {}, {}))
    if table is None:
        return
    known: dict[int, ProducerState | None] = dict(table.states)
    before = partition.producers.states if partition.producers is not None else {}
    for producer_id in (*before, *turn.producers.get(partition, ())):
        known.setdefault(producer_id, None)
    turn.producers[partition] = known
    turn.effects.append(lambda: setattr(partition, "producers", table))


def cut(
    transaction: WriteTransaction, log_id: int, start_offset: int, end_offset: int
) -> ProducerTable | None:
    """The log ends at `end_offset` now: remove what covers more. Who is known still; None: no producer ever was."""
    table = load(transaction, log_id, start_offset, end_offset)
    if table is None:
        return None
    delete_aborted(transaction, log_id, end_offset)
    usable = [_checkpoint(transaction, log_id, kind, end_offset)[0] for kind in _KINDS]
    newest = next((checkpoint for checkpoint in usable if checkpoint is not None), None)
    if newest is None:
        newest = ProducerCheckpoint(start_offset, {}, {})
    _put(transaction, log_id, newest)
    if usable[0] is None or usable[1] is None:
        transaction.delete(checkpoint_key(log_id, CheckpointKind.PRODUCER_STATE_BEFORE))
    return table
