"""streamlog/storage/log.py: append, read, cut, look up. Over both batch layouts."""

from __future__ import annotations

import pytest

from streamlog.batch import MAGIC_COLUMNAR, seal_columnar
from streamlog.batch_sealed import assemble
from streamlog.errors import CorruptRecordError, CorruptStoreError
from streamlog.storage import cleaner, log
from streamlog.storage.env import Environment
from streamlog.storage.keys import BATCH_START, CHECKPOINT_BASE, pack_key
from streamlog.storage.records import read_records
from tests.storage.builders import OwnedLog, seal


def fill(owned: OwnedLog, batches: int, records: int = 3, start_timestamp: int = 0) -> None:
    for number in range(batches):
        owned.append(*[(b"k", b"v%d" % number, start_timestamp + number) for _ in range(records)])


def test_what_was_appended_is_read_bit_for_bit(owned: OwnedLog) -> None:
    first = seal(owned.layout, [(b"a", b"1", 5), (None, None, 6)])
    owned.append(first)
    owned.append((b"b", b"2", 7))
    batches = owned.batches()
    assert [(batch.base_offset, batch.next_offset, batch.leader_epoch) for batch in batches] == [
        (0, 2, 3),
        (2, 3, 3),
    ]
    assert batches[0].encode() == first.with_offsets(0, 3).encode()
    assert owned.records() == [(0, b"a", b"1"), (1, None, None), (2, b"b", b"2")]


def test_append_returns_the_bytes_that_the_checkpoint_counts(owned: OwnedLog) -> None:
    fill(owned, 3)
    assert owned.checkpoint.size_bytes == sum(batch.size_bytes for batch in owned.batches())


def test_append_is_one_put_and_lies_beside_its_checkpoint(environment: Environment) -> None:
    owned = OwnedLog(environment)
    before = environment.stats().entries
    owned.append((b"k", b"v", 1))
    assert environment.stats().entries == before + 2
    with environment.snapshot() as snapshot:
        cursor = snapshot.cursor()
        assert cursor.set_range(pack_key(7, 0))
        assert cursor.next()
        assert bytes(cursor.key()) == pack_key(7, CHECKPOINT_BASE)


@pytest.mark.parametrize(
    ("start", "end", "bytes_max", "bases"),
    [
        (0, 12, 1 << 20, [0, 3, 6, 9]),
        (4, 12, 1 << 20, [3, 6, 9]),  # the batch that holds offset 4 comes whole
        (5, 12, 1 << 20, [3, 6, 9]),
        (6, 12, 1 << 20, [6, 9]),
        (0, 6, 1 << 20, [0, 3]),  # the end is exclusive
        (0, 5, 1 << 20, [0]),  # a batch that reaches beyond the end stays away
        (0, 2, 1 << 20, []),
        (12, 12, 1 << 20, []),
        (99, 120, 1 << 20, []),
        (0, 12, 1, [0]),  # KIP-74: the first batch whatever its size
        (0, 12, 0, [0]),
        (5, 12, 1, [3]),
    ],
)
def test_read_takes_whole_batches_of_a_range(
    owned: OwnedLog, start: int, end: int, bytes_max: int, bases: list[int]
) -> None:
    fill(owned, 4)
    assert [batch.base_offset for batch in owned.batches(start, end, bytes_max)] == bases


def test_read_stops_at_the_byte_bound_and_not_before(owned: OwnedLog) -> None:
    fill(owned, 4)
    size = owned.batches()[0].size_bytes
    assert len(owned.batches(bytes_max=2 * size)) == 2
    assert len(owned.batches(bytes_max=3 * size - 1)) == 2
    assert len(owned.batches(bytes_max=3 * size)) == 3


def test_neighbouring_logs_do_not_see_each_other(environment: Environment) -> None:
    logs = [OwnedLog(environment, log_id) for log_id in (1, 2, 3, (1 << 32) - 1)]
    for number, owned in enumerate(logs):
        for _ in range(number):
            owned.append((b"%d" % number, b"v", number))
    for number, owned in enumerate(logs):
        assert {key for _, key, _ in owned.records()} == ({b"%d" % number} if number else set())
        assert owned.batches(0, 1 << 62) == owned.batches()
        assert len(owned.headers()) == number
    logs[2].truncate(0)
    logs[1].delete_head(1 << 40)
    assert [len(owned.headers()) for owned in logs] == [0, 0, 0, 3]
    with environment.snapshot() as snapshot:
        assert log.log_ids(snapshot) == [2, 3, (1 << 32) - 1]
        assert log.newest_place(snapshot, 1) is None
        assert log.newest_place(snapshot, 3) is None
        assert log.newest_place(snapshot, 99) is None


def test_the_newest_batch_is_found_by_its_key(owned: OwnedLog) -> None:
    fill(owned, 3)
    with owned.environment.snapshot() as snapshot:
        assert log.newest_place(snapshot, 7) == (8, 2)
        assert log.newest_place(snapshot, 7, 8) == (5, 1)
        assert log.newest_place(snapshot, 7, 2) is None


def test_the_running_maximum_is_stored_with_each_batch(owned: OwnedLog) -> None:
    for timestamp in (10, 30, 20, 40):
        owned.append((b"k", b"v", timestamp))
    assert [stored.running_max_timestamp for stored in owned.headers()] == [10, 30, 30, 40]
    assert [stored.header.max_timestamp for stored in owned.headers()] == [10, 30, 20, 40]


def test_a_write_transaction_reads_its_own_writes(environment: Environment) -> None:
    transaction = environment.write()
    log.append(transaction, 7, seal_columnar([b"k"], [b"v"], timestamps=1), 0, 1, 1)
    assert [batch.base_offset for batch in log.read(transaction, 7, 0, 9, 100)] == [0]
    transaction.abort()
    assert OwnedLog(environment).headers() == []


def test_a_snapshot_does_not_see_later_commits(owned: OwnedLog) -> None:
    fill(owned, 1)
    with owned.environment.snapshot() as snapshot:
        fill(owned, 1)
        assert len(log.read(snapshot, 7, 0, 99, 1 << 20)) == 1
    assert len(owned.batches()) == 2


def test_what_read_returns_outlives_the_snapshot(owned: OwnedLog) -> None:
    owned.append((b"k" * 3000, b"v" * 100_000, 1))
    batch = owned.batches()[0]
    owned.truncate(0)
    fill(owned, 50)
    assert batch.records("t", 0)[0].value == b"v" * 100_000


# -- deleting


def test_delete_head_removes_whole_batches_below_an_offset(owned: OwnedLog) -> None:
    fill(owned, 4)
    size = owned.batches()[0].size_bytes
    assert owned.delete_head(5) == log.DeletedSlice(size, 1, True)
    assert [stored.header.base_offset for stored in owned.headers()] == [3, 6, 9]
    assert owned.offsets()[0] == 5  # 3 and 4 are on disk and out of sight
    assert owned.delete_head(6) == log.DeletedSlice(size, 1, True)
    assert owned.delete_head(6) == log.DeletedSlice(0, 0, True)
    assert owned.checkpoint.size_bytes == sum(batch.size_bytes for batch in owned.batches())


def test_delete_head_works_in_slices_of_at_least_one_batch(owned: OwnedLog) -> None:
    fill(owned, 5)
    size = owned.batches()[0].size_bytes
    assert owned.delete_head(12, bytes_max=1) == log.DeletedSlice(size, 1, False)
    assert owned.delete_head(12, bytes_max=2 * size) == log.DeletedSlice(2 * size, 2, False)
    assert owned.delete_head(12, bytes_max=2 * size) == log.DeletedSlice(size, 1, True)
    transaction = owned.environment.write()
    fill(owned, 5)
    transaction = owned.environment.write()
    assert log.delete_head(transaction, 7, 99, 1 << 20, batches_max=2) == log.DeletedSlice(2 * size, 2, False)
    transaction.abort()


def test_delete_all_takes_the_checkpoints_too(owned: OwnedLog) -> None:
    fill(owned, 3)
    other = OwnedLog(owned.environment, 8)
    other.append((b"k", b"v", 1))
    rounds = 0
    while True:
        transaction = owned.environment.write()
        done = log.delete_all_slice(transaction, 7, 1)
        transaction.commit()
        rounds += 1
        if done:
            break
    assert rounds == 4  # three batches and the checkpoint
    with owned.environment.snapshot() as snapshot:
        assert log.log_ids(snapshot) == [8]
    assert len(other.batches()) == 1
    transaction = owned.environment.write()
    assert log.delete_all_slice(transaction, 7, 1)
    transaction.abort()


@pytest.mark.parametrize(
    ("from_offset", "end", "batches", "max_timestamp"),
    [(12, 12, 0, 3), (9, 9, 1, 2), (10, 9, 1, 2), (7, 6, 2, 1), (0, 0, 4, -1), (50, 50, 0, 3)],
)
def test_truncate_tail_removes_every_batch_that_reaches_the_offset(
    owned: OwnedLog, from_offset: int, end: int, batches: int, max_timestamp: int
) -> None:
    fill(owned, 4)
    size = owned.batches()[0].size_bytes
    cut = owned.truncate(from_offset)
    assert cut == log.TruncatedTail(batches * size, batches, end, max_timestamp, True)
    assert [stored.header.base_offset for stored in owned.headers()] == [0, 3, 6, 9][: 4 - batches]


def test_truncating_in_a_hole_ends_the_log_where_it_was_asked(owned: OwnedLog) -> None:
    fill(owned, 4)
    transaction = owned.environment.write()
    transaction.delete(pack_key(7, 8))  # compaction took the batch of 6..8
    transaction.commit()
    assert owned.truncate(8).log_end_offset == 8


def test_truncate_tail_in_slices_is_a_log_in_between(owned: OwnedLog) -> None:
    fill(owned, 4)
    cut = owned.truncate(0, bytes_max=1)
    assert (cut.batches, cut.done, cut.log_end_offset, cut.max_timestamp) == (1, False, 9, 2)
    assert owned.append((b"k", b"v", 9)) == 9
    owned.truncate(9)
    while not owned.truncate(0, bytes_max=1).done:
        pass
    assert owned.headers() == []


@pytest.mark.parametrize(("from_offset", "first_dirty"), [(12, 9), (9, 9), (8, 6), (0, 0)])
def test_truncating_makes_what_comes_anew_dirty(owned: OwnedLog, from_offset: int, first_dirty: int) -> None:
    fill(owned, 4)
    transaction = owned.environment.write()
    cleaner.save_cleaner_checkpoint(transaction, 7, cleaner.CleanerCheckpoint(9, 77))
    transaction.commit()
    owned.truncate(from_offset)
    with owned.environment.snapshot() as snapshot:
        assert cleaner.load_cleaner_checkpoint(snapshot, 7) == cleaner.CleanerCheckpoint(first_dirty, 77)


# -- checkpoints


def test_checkpoints_survive_and_are_found_by_kind(environment: Environment) -> None:
    checkpoint = log.LogCheckpoint(1, (1 << 63) - 1, 3, 4, -1, 6)
    transaction = environment.write()
    log.put_checkpoint(transaction, 7, checkpoint)
    log.put_extra(transaction, 7, 4, b"four")
    log.put_extra(transaction, 7, 200, b"")
    transaction.commit()
    with environment.snapshot() as snapshot:
        assert log.load_checkpoint(snapshot, 7) == checkpoint
        assert log.load_checkpoint(snapshot, 8) is None
        assert log.get_extra(snapshot, 7, 4) == b"four"
        assert log.get_extra(snapshot, 7, 200) == b""
        assert log.get_extra(snapshot, 7, 5) is None


@pytest.mark.parametrize("value", [b"", b"\1", b"\2" + b"\0" * 44, b"\1" + b"\0" * 45])
def test_a_damaged_checkpoint_is_named(environment: Environment, value: bytes) -> None:
    transaction = environment.write()
    log.put_extra(transaction, 7, 0, value)
    with pytest.raises(CorruptStoreError, match="log 7"):
        log.load_checkpoint(transaction, 7)
    transaction.abort()


# -- damage


def damage(owned: OwnedLog, last_offset: int, change: int) -> None:
    """Flip a byte of a stored batch at `change`."""
    transaction = owned.environment.write()
    value = bytearray(transaction.get(pack_key(7, last_offset)) or b"")
    value[change] ^= 0x40
    transaction.put(pack_key(7, last_offset), bytes(value))
    transaction.commit()


def test_a_flipped_bit_in_a_body_is_found_unless_crcs_are_waived(owned: OwnedLog) -> None:
    fill(owned, 3, records=1)
    damage(owned, 1, -3)
    with pytest.raises(CorruptRecordError, match=r"log 7.*offset 1") as caught:
        owned.batches(1)
    assert (caught.value.log_id, caught.value.last_offset) == (7, 1)
    assert [batch.base_offset for batch in owned.batches(0)] == [0]  # what is whole before it is served
    assert [batch.base_offset for batch in owned.batches(2)] == [2]
    with owned.environment.snapshot() as snapshot:
        assert len(log.read(snapshot, 7, 0, 3, 1 << 20, False)) == 3


def test_a_flipped_base_offset_is_found_though_no_crc_covers_it(owned: OwnedLog) -> None:
    fill(owned, 3, records=1)
    damage(owned, 1, BATCH_START + 7)
    with pytest.raises(CorruptRecordError, match=r"offset 1"):
        owned.batches(1)


@pytest.mark.parametrize("size", [0, 7, 8, 30, BATCH_START + 61])
def test_a_short_value_is_a_corrupt_record(owned: OwnedLog, size: int) -> None:
    fill(owned, 2, records=1)
    transaction = owned.environment.write()
    value = transaction.get(pack_key(7, 1)) or b""
    transaction.put(pack_key(7, 1), value[:size])
    transaction.commit()
    with pytest.raises(CorruptRecordError):
        owned.batches(1)


def test_a_body_that_is_nonsense_under_a_right_crc_is_named_with_its_place(owned: OwnedLog) -> None:
    owned.append((b"k", b"v", 5))
    owned.append(assemble(b"\xc1", MAGIC_COLUMNAR, 0, 1, 10, 10, -1, -1, -1))
    with owned.environment.snapshot() as snapshot:
        assert log.offset_for_timestamp(snapshot, 7, 0, 2, 5) is not None
        with pytest.raises(CorruptRecordError) as caught:
            log.offset_for_timestamp(snapshot, 7, 0, 2, 7)
    assert (caught.value.facts["log_id"], caught.value.facts["last_offset"]) == (7, 1)


def test_a_key_of_a_wrong_length_is_named(owned: OwnedLog) -> None:
    """A damaged page may give a key any length."""
    owned.append((b"k", b"v", 5))
    transaction = owned.environment.write()
    transaction.put(pack_key(7, 5 << 8)[:-1], b"?")
    transaction.commit()
    for look in (
        lambda snapshot: log.read(snapshot, 7, 0, 1 << 40, 1 << 20),
        lambda snapshot: read_records(snapshot, 7, "t", 0, 0, 1 << 40, 1 << 20),
        lambda snapshot: list(log.iterate_headers(snapshot, 7)),
        lambda snapshot: log.newest_place(snapshot, 7),
        lambda snapshot: log.offset_for_timestamp(snapshot, 7, 0, 1 << 40, 9),
    ):
        with owned.environment.snapshot() as snapshot, pytest.raises(CorruptStoreError, match="length"):
            look(snapshot)
