"""streamlog/storage/verification.py: each kind of damage is found, named and located; what is sound stays
silent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest

from streamlog.batch import CRC_START, HEADER_BYTES
from streamlog.storage import log, verification
from streamlog.storage.env import Environment
from streamlog.storage.keys import (
    BATCH_START,
    BATCH_VALUE_PREFIX,
    CHECKPOINT_BASE,
    CheckpointKind,
    checkpoint_key,
    pack_key,
)
from streamlog.storage.log import LogCheckpoint
from streamlog.storage.verification import (
    Problem,
    check_structure,
    dump,
    rebuild_checkpoint,
    verify_environment,
    verify_log,
)
from tests.storage.builders import OwnedLog, seal

LOG = 7
BASE_OFFSET, EPOCH = slice(0, 8), slice(12, 16)


def three_batches(owned: OwnedLog) -> None:
    """Offsets 0-1, 2-4, 5; timestamps 10..20, 5..7, 30."""
    owned.append((b"a", b"1", 10), (b"b", b"2", 20))
    owned.append((b"a", b"3", 5), (b"b", b"4", 6), (b"c", b"5", 7))
    owned.append((b"d", b"6", 30))


def put(environment: Environment, key: bytes, value: bytes | None) -> None:
    transaction = environment.write()
    if value is None:
        assert transaction.delete(key)
    else:
        transaction.put(key, value)
    transaction.commit()


def change_batch(environment: Environment, last_offset: int, change: Callable[[bytearray], None]) -> None:
    """Overwrite a stored value (running maximum, then the batch)."""
    key = pack_key(LOG, last_offset)
    with environment.snapshot() as snapshot:
        value = bytearray(snapshot.get(key) or b"")
    change(value)
    put(environment, key, bytes(value))


def change_checkpoint(owned: OwnedLog, **changes: int) -> None:
    transaction = owned.environment.write()
    log.put_checkpoint(transaction, LOG, msgspec.structs.replace(owned.checkpoint, **changes))
    transaction.commit()


def found(problems: Sequence[Problem]) -> list[tuple[int, str]]:
    return [(problem.offset, problem.what) for problem in problems]


# -- what is sound -------------------------------------------------------------------------------------------


def test_a_sound_log_has_no_problems(owned: OwnedLog) -> None:
    three_batches(owned)
    report = verify_environment(owned.environment, "broker-0")
    assert report.problems == []
    assert list(report.logs) == [LOG]
    walked = report.logs[LOG]
    assert (walked.batches, walked.records, walked.first_offset, walked.end_offset) == (3, 6, 0, 6)
    assert walked.size_bytes == owned.checkpoint.size_bytes == report.bytes_checked
    assert (walked.running_max, walked.leader_epoch, report.batches_checked) == (30, 3, 3)


def test_logs_stay_sound_through_everything_an_owner_does(owned: OwnedLog) -> None:
    for turn in range(12):
        owned.append(*((f"k{n % 3}".encode(), b"v" * n, 100 * turn + n) for n in range(5)))
        if turn == 4:
            owned.delete_head(7)
        if turn == 6:
            owned.truncate(31)
        if turn == 9:
            assert owned.compact(now_ms=10**6).checkpoint
        assert verify_log(owned.environment, LOG) == []


def test_an_emptied_log_is_sound(owned: OwnedLog) -> None:
    three_batches(owned)
    owned.delete_head(6)
    assert verify_log(owned.environment, LOG) == []
    assert verify_log(owned.environment, 99) == []


def test_a_long_log_is_walked_in_slices(owned: OwnedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "SLICE_BYTES", 300)
    for _ in range(10):
        three_batches(owned)
    told: list[int] = []
    report = verify_environment(owned.environment, on_bytes=lambda name, done_bytes: told.append(done_bytes))
    assert report.problems == []
    assert report.batches_checked == 30
    assert sum(told) == owned.checkpoint.size_bytes
    assert len(told) > 5


# -- damaged batches -----------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_batch_is_found(owned: OwnedLog) -> None:
    """The leader's epoch lies outside the CRC: there only an epoch that falls shows."""
    three_batches(owned)
    key = pack_key(LOG, 4)
    with owned.environment.snapshot() as snapshot:
        whole = snapshot.get(key) or b""
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        put(owned.environment, key, bytes(damaged))
        problems = verify_log(owned.environment, LOG)
        is_epoch = BATCH_START + EPOCH.start <= position < BATCH_START + EPOCH.stop
        if not is_epoch:
            assert problems, f"byte {position - BATCH_START} of the batch"
            assert any(problem.offset in (4, 5) for problem in problems), problems
        put(owned.environment, key, whole)
    assert verify_log(owned.environment, LOG) == []


def test_a_flipped_bit_in_the_body_is_a_corrupt_batch(owned: OwnedLog) -> None:
    three_batches(owned)
    change_batch(owned.environment, 4, lambda value: value.__setitem__(-1, value[-1] ^ 1))
    [problem] = verify_log(owned.environment, LOG)
    assert (problem.log_id, problem.offset, problem.what) == (LOG, 4, "the batch is corrupt")
    assert "CRC" in problem.actual
    assert "log 7, batch ending at 4" in str(problem)


def test_a_body_that_does_not_decode_is_found(owned: OwnedLog) -> None:
    """The CRC is right, the body is nonsense: what a wrong writer would leave."""
    from google_crc32c import value as crc32c

    three_batches(owned)

    def forge(value: bytearray) -> None:
        start = BATCH_START + HEADER_BYTES
        value[start:] = b"\xc1" * (len(value) - start)
        value[BATCH_START + 17 : BATCH_START + 21] = crc32c(bytes(value[BATCH_START + CRC_START :])).to_bytes(
            4, "big"
        )

    change_batch(owned.environment, 1, forge)
    assert found(verify_log(owned.environment, LOG)) == [(1, "the records cannot be decoded")]


def test_a_cut_value_is_found(owned: OwnedLog) -> None:
    three_batches(owned)
    change_batch(owned.environment, 5, lambda value: value.__delitem__(slice(20, None)))
    problems = verify_log(owned.environment, LOG)
    assert (5, "the header is no batch's") in found(problems)
    assert (-1, "the checkpoint's size is not that of the batches") in found(problems)
    assert found(problems).count((5, "the batch is corrupt")) == 0, "said once"


# -- order ---------------------------------------------------------------------------------------------------


def test_a_batch_under_another_offset_is_found(owned: OwnedLog) -> None:
    three_batches(owned)
    change_batch(
        owned.environment,
        4,
        lambda v: v.__setitem__(slice(BATCH_START, BATCH_START + 8), (1).to_bytes(8, "big")),
    )
    assert (4, "the batch ends elsewhere than its key says") in found(verify_log(owned.environment, LOG))


def store(
    environment: Environment, base_offset: int, items: Sequence[tuple[bytes, bytes, int]], running_max: int
) -> None:
    transaction = environment.write()
    log.append(transaction, LOG, seal("columnar", items), base_offset, 3, running_max)
    transaction.commit()


def test_overlapping_batches_are_found(owned: OwnedLog) -> None:
    three_batches(owned)
    store(owned.environment, 5, [(b"x", b"", 30), (b"y", b"", 30)], 30)
    problems = verify_log(owned.environment, LOG)
    assert (6, "the batch overlaps the one before") in found(problems)
    [overlap] = [problem for problem in problems if problem.offset == 6]
    assert (overlap.expected, overlap.actual) == ("a base offset >= 6", "5")


def test_a_missing_batch_is_found_unless_the_log_is_compacted(owned: OwnedLog) -> None:
    three_batches(owned)
    put(owned.environment, pack_key(LOG, 4), None)
    assert (5, "offsets before the batch are missing") in found(verify_log(owned.environment, LOG))
    compacted = verify_log(owned.environment, LOG, compacted=True)
    assert found(compacted) == [(-1, "the checkpoint's size is not that of the batches")]


def test_missing_ends_are_found(owned: OwnedLog) -> None:
    three_batches(owned)
    put(owned.environment, pack_key(LOG, 5), None)
    assert (-1, "the checkpoint's log end offset is not behind the newest batch") in found(
        verify_log(owned.environment, LOG)
    )
    put(owned.environment, pack_key(LOG, 1), None)
    assert (-1, "offsets at the start are missing") in found(verify_log(owned.environment, LOG))
    put(owned.environment, pack_key(LOG, 4), None)
    assert (-1, "there are no batches") in found(verify_log(owned.environment, LOG))


@pytest.mark.parametrize(
    ("running_max", "what"),
    [
        (19, "the running maximum timestamp is too low"),
        (6, "the running maximum timestamp is too low"),
        (21, "the running maximum timestamp is too high"),
    ],
)
def test_a_wrong_running_maximum_is_found(owned: OwnedLog, running_max: int, what: str) -> None:
    three_batches(owned)
    change_batch(
        owned.environment,
        4,
        lambda value: value.__setitem__(slice(0, 8), BATCH_VALUE_PREFIX.pack(running_max)),
    )
    assert (4, what) in found(verify_log(owned.environment, LOG))


def test_a_falling_epoch_is_found(owned: OwnedLog) -> None:
    three_batches(owned)
    place = slice(BATCH_START + EPOCH.start, BATCH_START + EPOCH.stop)
    change_batch(owned.environment, 4, lambda value: value.__setitem__(place, (2).to_bytes(4, "big")))
    assert found(verify_log(owned.environment, LOG)) == [(4, "the leader epoch falls")]


# -- checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "what", "expected", "actual"),
    [
        ({"size_bytes": 1}, "the checkpoint's size is not that of the batches", None, "1"),
        (
            {"log_end_offset": 5, "high_watermark": 5},
            "the checkpoint's log end offset is not behind the newest batch",
            "6",
            "5",
        ),
        ({"log_end_offset": 9}, "the checkpoint's log end offset is not behind the newest batch", "6", "9"),
        (
            {"high_watermark": 7},
            "the checkpoint's offsets are out of order",
            "start <= high watermark <= end",
            "0, 7, 6",
        ),
        ({"log_start_offset": -1}, "the checkpoint's offsets are out of order", None, "-1, 6, 6"),
        ({"max_timestamp": 29}, "the checkpoint's maximum timestamp is not the newest batch's", "30", "29"),
        ({"leader_epoch": 2}, "the checkpoint's leader epoch is behind the batches'", ">= 3", "2"),
    ],
)
def test_a_checkpoint_that_disagrees_is_found(
    owned: OwnedLog, changes: dict[str, int], what: str, expected: str | None, actual: str
) -> None:
    three_batches(owned)
    change_checkpoint(owned, **changes)
    problems = [problem for problem in verify_log(owned.environment, LOG) if problem.what == what]
    assert [(problem.offset, problem.actual) for problem in problems] == [(-1, actual)]
    if expected is not None:
        assert problems[0].expected == expected


def test_missing_and_foreign_checkpoints_are_found(owned: OwnedLog) -> None:
    three_batches(owned)
    put(owned.environment, checkpoint_key(LOG, CheckpointKind.LOG), None)
    assert found(verify_log(owned.environment, LOG)) == [(-1, "the checkpoint is missing")]
    put(owned.environment, checkpoint_key(LOG, CheckpointKind.LOG), b"\x09nonsense")
    assert found(verify_log(owned.environment, LOG)) == [(-1, "a checkpoint cannot be read")]


def test_a_cleaner_beyond_the_end_is_found(owned: OwnedLog) -> None:
    from streamlog.storage.cleaner import CleanerCheckpoint, save_cleaner_checkpoint

    three_batches(owned)
    transaction = owned.environment.write()
    save_cleaner_checkpoint(transaction, LOG, CleanerCheckpoint(7, -1))
    transaction.commit()
    assert found(verify_log(owned.environment, LOG)) == [(-1, "the cleaner was beyond the end")]


def test_unknown_keys_are_found(owned: OwnedLog) -> None:
    three_batches(owned)
    put(owned.environment, b"short", b"")
    put(owned.environment, pack_key(0, 3), b"")
    put(owned.environment, pack_key(LOG, CHECKPOINT_BASE + 77), b"")
    problems = check_structure(owned.environment).problems
    assert [(problem.log_id, problem.what) for problem in problems] == [
        (0, "unknown key"),
        (LOG, "unknown kind of checkpoint"),
        (0, "unknown key"),
    ]


def test_batches_waiting_to_be_deleted_are_no_problem(owned: OwnedLog) -> None:
    """A trim that a crash interrupted: the start has moved, the batches are still there."""
    three_batches(owned)
    change_checkpoint(owned, log_start_offset=5)
    report = verify_environment(owned.environment)
    assert report.problems == []
    assert report.logs[LOG].hidden_batches == 2


# -- dump and rebuild ----------------------------------------------------------------------------------------


def test_dump_shows_every_batch_also_a_damaged_one(owned: OwnedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "SLICE_BYTES", 1)
    three_batches(owned)
    change_batch(owned.environment, 4, lambda value: value.__setitem__(-1, value[-1] ^ 1))
    first, second, third = dump(owned.environment, LOG)
    assert [first.last_offset, second.last_offset, third.last_offset] == [1, 4, 5]
    assert first.batch is not None and [record.value for record in first.batch.records("t", 0)] == [
        b"1",
        b"2",
    ]
    assert second.batch is None and "CRC" in second.error
    assert second.header is not None and second.header.record_count == 3
    assert (third.running_max_timestamp, third.error) == (30, "")
    assert [dumped.last_offset for dumped in dump(owned.environment, LOG, 2, 5)] == [4]


def test_a_checkpoint_can_be_rebuilt(owned: OwnedLog) -> None:
    three_batches(owned)
    with owned.environment.snapshot() as snapshot:
        assert rebuild_checkpoint(snapshot, LOG) == owned.checkpoint
        assert rebuild_checkpoint(snapshot, 99) is None
    owned.delete_head(2)
    with owned.environment.snapshot() as snapshot:
        assert (
            rebuild_checkpoint(snapshot, LOG)
            == owned.checkpoint
            == LogCheckpoint(2, 6, 6, owned.checkpoint.size_bytes, 30, 3)
        )
