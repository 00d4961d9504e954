"""What `verify` says of a log's producers: checkpoints against headers, aborted transactions against markers.

PRODUCER_STATE + the headers behind it  ==  all headers there are?          aborted at 17  ==  a marker at 17?
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

import msgspec

from streamlog.broker import producer_states
from streamlog.core.producer_state import ProducerState
from streamlog.errors import CorruptRecordError, CorruptStoreError
from streamlog.storage import log
from streamlog.storage.aborted import aborted_between
from streamlog.storage.env import Environment
from streamlog.storage.keys import CheckpointKind

HEADERS_MAX: Final = 4096
"""So many are read in one snapshot."""

Wrong = tuple[str, object, object]
"""What is wrong, what was expected, what there is."""


def check_producers(environment: Environment, log_id: int) -> Iterator[Wrong]:
    """Everything wrong with what a log knows of its producers. Damaged batches are others' to name."""
    with environment.snapshot() as snapshot:
        if log.get_extra(snapshot, log_id, CheckpointKind.PRODUCER_STATE) is None:
            return
        checkpoint = log.load_checkpoint(snapshot, log_id)
        end_offset = 0 if checkpoint is None else checkpoint.log_end_offset
        wrong = list(_checkpoints(snapshot, log_id, end_offset))
        yield from wrong
        try:
            table = producer_states.load(snapshot, log_id, 0, end_offset)
            aborted = aborted_between(snapshot, log_id, 0)
        except (CorruptRecordError, CorruptStoreError) as error:
            yield "the producers cannot be told", "", error
            return
    if wrong or table is None:
        return
    states: dict[int, ProducerState] = {}
    markers = {each.last_offset: each.producer_id for each in aborted}
    try:
        for producer_id, last_offset, is_control in _fold(environment, log_id, end_offset, states):
            if last_offset in markers and not (is_control and markers[last_offset] == producer_id):
                yield (
                    f"a transaction is noted as aborted at offset {last_offset}, where its producer has no marker",
                    f"producer {markers[last_offset]}",
                    f"producer {producer_id}",
                )
    except CorruptRecordError:
        return  # said already
    for producer_id, known in sorted(table.states.items()):
        found = states.get(producer_id)
        # Of who has no batch left only the checkpoint knows.
        if found is not None and _facts(found) != _facts(known):
            yield (
                f"producer {producer_id} is another in the producers' checkpoint",
                _facts(found),
                _facts(known),
            )


def _checkpoints(snapshot: log.Reader, log_id: int, end_offset: int) -> Iterator[Wrong]:
    for kind in (CheckpointKind.PRODUCER_STATE, CheckpointKind.PRODUCER_STATE_BEFORE):
        value = log.get_extra(snapshot, log_id, kind)
        if value is None:
            continue
        try:
            covered = producer_states.decode(value).end_offset
        except msgspec.MsgspecError as error:
            yield f"the producers' checkpoint {kind.name} cannot be decoded", "", error
            continue
        if covered > end_offset:
            yield f"the producers' checkpoint {kind.name} covers more than the log", end_offset, covered


def _fold(
    environment: Environment, log_id: int, end_offset: int, states: dict[int, ProducerState]
) -> Iterator[tuple[int, int, bool]]:
    """Fold all headers into `states`; of each batch its producer, last offset, and whether it is a control batch."""
    offset = 0
    while True:
        with environment.snapshot() as snapshot:
            headers = [
                each.header for each in islice(log.iterate_headers(snapshot, log_id, offset), HEADERS_MAX)
            ]
            for header in headers:
                if header.base_offset < end_offset:
                    producer_states.fold(snapshot, log_id, states, header)
        for header in headers:
            if header.base_offset >= end_offset:
                return
            yield header.producer_id, header.last_offset, header.is_control
        if not headers:
            return
        offset = headers[-1].next_offset


def _facts(state: ProducerState) -> tuple[int, int, bool]:
    """What headers tell, also where those of the beginning are deleted."""
    return state.producer_epoch, state.last_sequence, state.open_offset >= 0
