"""streamlog/storage/env.py: transactions, closing, forking, and the LMDB pitfalls of ECOSYSTEM 3.2 (rows in
the names).
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import lmdb
import pytest

from streamlog.errors import (
    ClosedError,
    ConfigError,
    CorruptStoreError,
    DiskFullError,
    IllegalStateError,
    NetworkFileSystemError,
    NotAStreamlogDirectoryError,
    ReadersFullError,
    ReadOnlyError,
    StorageError,
    StoreForkedError,
    StoreFullError,
    UnsupportedFormatError,
)
from streamlog.storage import filesystem
from streamlog.storage.env import MAP_BYTES, Environment, verify_file
from tests.storage.builders import environment_in

ROOT = Path(__file__).resolve().parents[2]


def put(environment: Environment, key: bytes = b"k", value: bytes = b"v") -> int:
    transaction = environment.write()
    transaction.put(key, value)
    transaction.commit()
    return transaction.id


def get(environment: Environment, key: bytes = b"k") -> bytes | None:
    with environment.snapshot() as snapshot:
        return snapshot.get(key)


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in another interpreter, which says OK when it is content."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.endswith("OK\n"), done.stdout + done.stderr
    return done


# -- transactions


def test_a_commit_is_seen_and_an_abort_is_not(environment: Environment) -> None:
    put(environment, b"a", b"1")
    transaction = environment.write()
    transaction.put(b"a", b"2")
    assert transaction.get(b"a") == b"2"
    assert transaction.get(b"b") is None
    transaction.abort()
    assert get(environment, b"a") == b"1"


def test_transaction_ids_tell_whether_a_commit_happened(environment: Environment) -> None:
    before = environment.last_transaction_id()
    transaction = environment.write()
    assert transaction.id == before + 1
    transaction.put(b"k", b"v")
    assert environment.last_transaction_id() == before
    transaction.commit()
    assert environment.last_transaction_id() == transaction.id
    aborted = environment.write()
    aborted.put(b"k", b"w")
    aborted.abort()
    assert environment.last_transaction_id() == transaction.id


def test_abort_is_harmless_after_commit_and_twice(environment: Environment) -> None:
    transaction = environment.write()
    transaction.put(b"k", b"v")
    transaction.commit()
    transaction.abort()
    transaction.abort()
    assert get(environment) == b"v"


def test_a_finished_transaction_refuses_work(environment: Environment) -> None:
    transaction = environment.write()
    transaction.commit()
    for use in (lambda: transaction.put(b"k", b"v"), lambda: transaction.get(b"k"), transaction.commit):
        with pytest.raises((ClosedError, IllegalStateError)):
            use()


def test_row_11_a_transaction_left_open_by_an_interrupt_does_not_block_the_next(
    environment: Environment,
) -> None:
    left_open = environment.write()
    left_open.put(b"k", b"lost")
    put(environment, b"k", b"kept")
    assert get(environment) == b"kept"


def test_row_11_also_if_another_thread_left_it_and_died(environment: Environment) -> None:
    thread = threading.Thread(target=lambda: environment.write().put(b"k", b"lost"))
    thread.start()
    thread.join()
    put(environment, b"k", b"kept")
    assert get(environment) == b"kept"


def test_row_25_a_transaction_lost_inside_write_is_given_back(environment: Environment) -> None:
    """An interrupt after the engine's begin: the exception's traceback keeps frames, not the transaction."""
    begin = environment._begin_write

    def interrupted(*arguments: object) -> object:
        begin(*arguments)
        raise KeyboardInterrupt

    environment._begin_write = interrupted
    with pytest.raises(KeyboardInterrupt) as kept:
        environment.write()
    environment._begin_write = begin
    put(environment)
    assert kept.value is not None


def test_delete_says_whether_there_was_something(environment: Environment) -> None:
    put(environment)
    transaction = environment.write()
    assert transaction.delete(b"k")
    assert not transaction.delete(b"k")
    transaction.commit()


def test_row_12_a_key_that_is_too_long_is_a_named_error(environment: Environment) -> None:
    transaction = environment.write()
    with pytest.raises(StorageError):
        transaction.put(b"k" * 600, b"v")
    transaction.abort()


def test_a_snapshot_stands_still_and_ends_twice_without_harm(environment: Environment) -> None:
    put(environment, b"k", b"1")
    snapshot = environment.snapshot()
    put(environment, b"k", b"2")
    assert snapshot.get(b"k") == b"1"
    snapshot.close()
    snapshot.close()
    assert environment.stats().snapshots == 0


def test_engine_errors_inside_a_snapshot_get_a_name(environment: Environment) -> None:
    with pytest.raises(StorageError) as caught, environment.snapshot():
        raise lmdb.Error("mdb_something", 12345)
    assert isinstance(caught.value.__cause__, lmdb.Error)
    assert pickle.loads(pickle.dumps(caught.value)).path == str(environment.path)
    with pytest.raises(ZeroDivisionError), environment.snapshot():
        raise ZeroDivisionError


def test_row_16_get_returns_bytes_that_outlive_the_transaction(environment: Environment) -> None:
    put(environment, b"k", b"v" * 10_000)
    with environment.snapshot() as snapshot:
        value = snapshot.get(b"k")
    for number in range(20):
        put(environment, b"k", b"%d" % number * 10_000)
    assert value == b"v" * 10_000


# -- opening


@pytest.mark.parametrize("sync", ["full", "normal", "off"])
def test_sync_words_are_sqlites(tmp_path: Path, sync: str) -> None:
    environment = environment_in(tmp_path, sync=sync)
    flags = environment._engine.flags()
    assert (flags["sync"], flags["metasync"]) == (sync != "off", sync == "full")
    assert not flags["writemap"] and not flags["map_async"]  # row 17
    put(environment)
    environment.sync()
    environment.close()
    with environment_in(tmp_path).snapshot() as snapshot:
        assert snapshot.get(b"k") == b"v"


def test_wrong_options_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='"full"'):
        environment_in(tmp_path, sync="fast")
    with pytest.raises(ConfigError, match="too small"):
        environment_in(tmp_path, disk_bytes_max=1000)


def test_row_1_the_map_is_a_tebibyte_and_the_file_small(environment: Environment) -> None:
    put(environment)
    stats = environment.stats()
    assert stats.map_bytes == 1 << 40
    assert stats.file_bytes < 1 << 17
    assert (environment.path / "data.mdb").stat().st_blocks * 512 < 1 << 17
    assert stats.live_bytes == 4096 and stats.entries == 1


def test_row_1_a_smaller_map_is_taken_where_memory_is_limited(tmp_path: Path) -> None:
    run(
        """if True:
        import resource, sys
        from pathlib import Path
        resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))
        from streamlog.storage.env import Environment
        environment = Environment.open(Path(sys.argv[1]), sync="off")
        assert environment.stats().map_bytes == 1 << 34, environment.stats()
        environment.write().commit()
        print("OK")
        """,
        tmp_path / "env",
    )


def test_row_4_the_same_path_twice_is_refused_also_by_another_name(environment: Environment) -> None:
    link = environment.path.with_name("link")
    link.symlink_to(environment.path)
    for path in (environment.path, link):
        with pytest.raises(IllegalStateError, match="open in this process"):
            Environment.open(path)


def test_row_18_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "file_system_type", lambda path: "nfs4")
    with pytest.raises(NetworkFileSystemError, match="nfs4"):
        environment_in(tmp_path)
    environment_in(tmp_path, allow_network_fs=True).close()


def test_row_22_the_file_format_is_pinned(tmp_path: Path) -> None:
    run(
        """if True:
        import os, sys
        os.environ["LMDB_DEFAULT_LIB_VERSION"] = "1"
        from pathlib import Path
        from streamlog.storage.env import Environment
        environment = Environment.open(Path(sys.argv[1]), sync="off")
        assert environment._engine.lib_version()[0] == 0
        print("OK")
        """,
        tmp_path / "env",
    )
    newer = tmp_path / "newer"
    lmdb.open(str(newer), lib_version=1).close()
    with pytest.raises(UnsupportedFormatError):
        Environment.open(newer)


def test_row_26_only_the_owner_may_look(tmp_path: Path) -> None:
    environment = environment_in(tmp_path)
    put(environment)
    assert stat.S_IMODE(environment.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in environment.path.iterdir()} == {0o600}
    environment.backup(tmp_path / "copy")
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "copy" / "data.mdb").stat().st_mode) == 0o600
    environment.close()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("")
    with pytest.raises(NotAStreamlogDirectoryError, match="is a file"):
        environment_in(tmp_path)


# -- damage


def test_row_21_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "data.mdb").write_bytes(b"not lmdb at all" * 1000)
    with pytest.raises((UnsupportedFormatError, CorruptStoreError)):
        environment_in(tmp_path)
    assert verify_file(tmp_path / "env")


def test_row_21_a_torn_file_is_an_error_and_not_a_dead_process(tmp_path: Path) -> None:
    environment = environment_in(tmp_path)
    for number in range(50):
        put(environment, b"k%d" % number, b"v" * 8000)
    environment.close()
    assert verify_file(environment.path) == []
    file = environment.path / "data.mdb"
    os.truncate(file, file.stat().st_size // 2 & ~4095)
    for read_only in (False, True):
        with pytest.raises(CorruptStoreError, match="torn"):
            environment_in(tmp_path, read_only=read_only)
    assert verify_file(environment.path)


# -- limits


def test_row_1_a_full_store_is_named_and_deleting_makes_room(tmp_path: Path) -> None:
    environment = environment_in(tmp_path, disk_bytes_max=1 << 21)
    stored = 0
    with pytest.raises(StoreFullError, match="disk_bytes_max"):
        while True:
            put(environment, b"%06d" % stored, b"v" * 3000)
            stored += 1
    assert stored > 300
    assert (environment.path / "data.mdb").stat().st_size <= 1 << 21
    assert get(environment, b"%06d" % (stored - 1)) == b"v" * 3000  # nothing before it is lost
    with pytest.raises(StoreFullError):
        environment.write()
    transaction = environment.write(reclaiming=True)
    for number in range(stored // 2):
        transaction.delete(b"%06d" % number)
    transaction.commit()
    put(environment, b"more")
    environment.close()


def test_row_1_a_full_map_drops_the_whole_transaction(tmp_path: Path) -> None:
    environment = environment_in(tmp_path, map_bytes=1 << 20)
    transaction = environment.write()
    transaction.put(b"a", b"first")
    with pytest.raises(StoreFullError):
        for number in range(1000):
            transaction.put(b"%d" % number, b"v" * 8000)
    with pytest.raises((IllegalStateError, ClosedError)):
        transaction.commit()
    transaction.abort()
    assert get(environment, b"a") is None
    put(environment)
    environment.close()


DISK_FULL = """if True:
    import sys
    from pathlib import Path
    from streamlog.errors import DiskFullError
    from streamlog.storage.env import Environment
    LIMIT
    environment = Environment.open(Path(sys.argv[1]), sync=sys.argv[2])
    stored = 0
    try:
        while stored < 10_000:
            transaction = environment.write()
            transaction.put(b"%06d" % stored, b"v" * 50_000)
            transaction.commit()
            stored += 1
    except DiskFullError as error:
        assert error.errno, error
        transaction.abort()
    else:
        raise SystemExit("the disk was never full")
    assert stored > 10, stored
    with environment.snapshot() as snapshot:  # readers are not concerned
        assert snapshot.get(b"%06d" % (stored - 1)) == b"v" * 50_000
        assert snapshot.get(b"%06d" % stored) is None
    transaction = environment.write()
    for number in range(stored // 2):
        transaction.delete(b"%06d" % number)
    transaction.commit()
    for number in range(3):
        transaction = environment.write()
        transaction.put(b"small%d" % number, b"v" * 1000)
        transaction.commit()
    environment.close()
    environment = Environment.open(Path(sys.argv[1]))
    with environment.snapshot() as snapshot:
        assert snapshot.get(b"small2") == b"v" * 1000
    print("OK")
    """


@pytest.mark.parametrize("sync", ["full", "off"])
def test_row_17_a_file_size_limit_is_a_full_disk(tmp_path: Path, sync: str) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit("
    limit += "resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))"
    run(DISK_FULL.replace("LIMIT", limit), tmp_path / "env", sync)


@pytest.mark.parametrize("sync", ["full", "off"])
def test_row_17_a_full_disk_is_named_and_nothing_is_lost(tmp_path: Path, sync: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    mount = tmp_path / "small"
    mount.mkdir()
    if libc.mount(b"tmpfs", str(mount).encode(), b"tmpfs", 0, b"size=4m") != 0:
        pytest.skip(f"cannot mount a small tmpfs: {os.strerror(ctypes.get_errno())}")
    try:
        run(DISK_FULL.replace("LIMIT", "pass"), mount / "env", sync)
    finally:
        libc.umount2(str(mount).encode(), 2)


def test_row_6_too_many_readers(tmp_path: Path) -> None:
    environment = environment_in(tmp_path, max_readers=3)
    snapshots = [environment.snapshot() for _ in range(3)]
    with pytest.raises(ReadersFullError, match="max_readers") as caught:
        environment.snapshot()
    assert caught.value.retriable
    snapshots.pop().close()
    snapshots.append(environment.snapshot())
    for snapshot in snapshots:
        snapshot.close()
    assert environment.close()


def test_rows_6_and_7_slots_of_killed_readers_are_taken_back(tmp_path: Path) -> None:
    environment = environment_in(tmp_path, max_readers=2)
    put(environment)
    for _ in range(2):
        with subprocess.Popen(
            [
                sys.executable,
                "-c",
                """if True:
                import os, sys
                from pathlib import Path
                from streamlog.storage.env import Environment
                snapshot = Environment.open(Path(sys.argv[1]), read_only=True).snapshot()
                print("READING", flush=True)
                sys.stdin.read()
                """,
                str(environment.path),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"READING\n"
            assert environment.stats().reader_slots == 1
            put(environment)
            assert environment.stats().oldest_reader_transactions >= 1  # row 8
            reader.kill()
            reader.wait()
        assert environment.stats().reader_slots == 1
        snapshots = [
            environment.snapshot(),
            environment.snapshot(),
        ]  # the second one needs the dead one's slot
        assert environment.stats().reader_slots == 2
        for snapshot in snapshots:
            snapshot.close()
    assert environment.release_stale_readers() == 0
    environment.close()


def test_row_1_a_map_that_is_refused_gives_way_to_smaller_ones_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never to a larger one than disk_bytes_max, which the map's size enforces."""
    asked: list[int] = []

    def refuse(path: str, map_size: int, **_: object) -> None:
        asked.append(map_size)
        raise lmdb.MemoryError("no room")

    monkeypatch.setattr(lmdb, "Environment", refuse)
    for disk_bytes_max, sizes in ((8 << 30, [8 << 30, 1 << 30]), (None, list(MAP_BYTES))):
        with pytest.raises(StorageError):
            environment_in(tmp_path, disk_bytes_max=disk_bytes_max)
        assert asked == sizes
        asked.clear()


# -- reading only


def test_read_only_refuses_to_write_and_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(NotAStreamlogDirectoryError, match="no store"):
        environment_in(tmp_path, read_only=True)
    assert not (tmp_path / "env").exists()
    environment = environment_in(tmp_path)
    put(environment)
    environment.close()
    reader = environment_in(tmp_path, read_only=True)
    assert get(reader) == b"v"
    with pytest.raises(ReadOnlyError, match="reading only"):
        reader.write()
    assert reader.close()


WRITER = """if True:
    import sys
    from pathlib import Path
    from streamlog.storage.env import Environment
    environment = Environment.open(Path(sys.argv[1]), sync="off")
    number = 0
    while True:
        transaction = environment.write()
        transaction.put(b"a", b"%d" % number)
        transaction.put(b"b", b"%d" % number * 2000)
        transaction.commit()
        number += 1
        if number % 100 == 0:
            print(number, flush=True)
    """


def test_row_28_a_killed_writer_leaves_whole_commits_and_readers_go_on(tmp_path: Path) -> None:
    path = tmp_path / "env"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        reader = Environment.open(path, read_only=True)
        seen = {get(reader, b"a")}
        while len(seen) < 4:  # it reads beside a live writer
            assert writer.stdout.readline()
            seen.add(get(reader, b"a"))
        acknowledged = int(writer.stdout.readline())
        held = reader.snapshot()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    for _ in range(2):
        with reader.snapshot() as snapshot:
            newest = int(snapshot.get(b"a") or b"-1")
            assert newest >= acknowledged - 1
            assert snapshot.get(b"b") == b"%d" % newest * 2000
    held.close()
    reader.close()
    environment = Environment.open(path)  # the next writer recovers at once
    put(environment, b"a", b"next")
    assert get(environment, b"a") == b"next"
    environment.close()
    assert verify_file(path) == []


# -- closing


def test_everything_is_refused_after_close(tmp_path: Path) -> None:
    environment = environment_in(tmp_path)
    assert environment.close() and environment.close()
    for use in (
        environment.write,
        environment.snapshot,
        environment.sync,
        environment.stats,
        environment.last_transaction_id,
        environment.release_stale_readers,
        lambda: environment.backup(tmp_path / "b"),
    ):
        with pytest.raises(ClosedError):
            use()
    environment_in(tmp_path).close()


def test_row_24_close_waits_for_the_last_reader_without_blocking(tmp_path: Path) -> None:
    environment = environment_in(tmp_path)
    put(environment, b"k", b"v" * 100_000)
    first, second = environment.snapshot(), environment.snapshot()
    cursor = first.cursor()
    assert cursor.first()
    value = cursor.value()
    assert environment.close() is False
    with pytest.raises(ClosedError):
        environment.snapshot()
    assert bytes(value) == b"v" * 100_000  # memory of the engine is still there
    value.release()
    second.close()
    assert not environment.closed
    first.close()
    assert environment.closed and environment.close()
    environment_in(tmp_path).close()


def test_row_24_a_snapshot_that_lost_its_close_to_an_interrupt_does_not_keep_the_file_open(
    tmp_path: Path,
) -> None:
    environment = environment_in(tmp_path)
    environment._readers.append(None)  # announced, and interrupted before or after its transaction
    assert environment.close()
    environment = environment_in(tmp_path)
    with environment.snapshot():
        environment._readers.append(None)
        assert not environment.close()
    assert environment.close()


def test_row_24_force_closes_in_spite_of_a_leaked_snapshot(tmp_path: Path) -> None:
    environment = environment_in(tmp_path)
    snapshot = environment.snapshot()
    assert environment.close(force=True)
    snapshot.close()
    environment_in(tmp_path).close()


def test_row_24_readers_in_threads_survive_a_close(tmp_path: Path) -> None:
    for _ in range(5):
        environment = environment_in(tmp_path)
        put(environment, b"k", b"v" * 50_000)
        outcomes: list[object] = []
        started = threading.Barrier(5)

        def read(
            environment: Environment = environment,
            outcomes: list[object] = outcomes,
            started: threading.Barrier = started,
        ) -> None:
            started.wait()
            try:
                while True:
                    with environment.snapshot() as snapshot:
                        cursor = snapshot.cursor()
                        cursor.first()
                        assert bytes(cursor.value()) == b"v" * 50_000
            except ClosedError:
                outcomes.append("closed")
            except BaseException as error:
                outcomes.append(error)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        started.wait()
        put(environment, b"other")
        environment.close()
        for thread in threads:
            thread.join()
        assert outcomes == ["closed"] * 4
        assert environment.closed


def test_an_open_write_transaction_does_not_survive_close(tmp_path: Path) -> None:
    environment = environment_in(tmp_path)
    transaction = environment.write()
    transaction.put(b"k", b"v")
    assert environment.close()
    with pytest.raises((ClosedError, IllegalStateError)):
        transaction.commit()
    environment = environment_in(tmp_path)
    assert get(environment) is None
    environment.close()


# -- backup, space


def test_row_23_backup_while_a_write_is_under_way(environment: Environment, tmp_path: Path) -> None:
    put(environment, b"k", b"v" * 100_000)
    transaction = environment.write()
    transaction.put(b"k", b"not yet")
    environment.backup(tmp_path / "copies" / "one")
    transaction.commit()
    copy = Environment.open(tmp_path / "copies" / "one")
    assert get(copy) == b"v" * 100_000
    copy.close()
    with pytest.raises(StorageError, match="not empty"):
        environment.backup(tmp_path / "copies" / "one")


def test_row_9_deleted_pages_are_reused_and_a_compact_copy_is_small(
    environment: Environment, tmp_path: Path
) -> None:
    for round_number in range(4):
        for number in range(20):
            put(environment, b"%d" % number, b"v" * 50_000)
        if round_number == 0:
            first = environment.stats().file_bytes
        transaction = environment.write()
        for number in range(20):
            transaction.delete(b"%d" % number)
        transaction.commit()
    stats = environment.stats()
    assert stats.file_bytes < 1.5 * first
    assert stats.live_bytes == 0
    environment.backup(tmp_path / "copy")
    assert (tmp_path / "copy" / "data.mdb").stat().st_size < 20_000


# -- fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_row_5_a_forked_child_is_refused_and_the_parent_keeps_its_readers(environment: Environment) -> None:
    put(environment)
    snapshot = environment.snapshot()
    child = os.fork()
    if child == 0:
        failures = 0
        for use in (environment.write, environment.snapshot, environment.stats, environment.sync):
            try:
                use()
                failures += 1
            except StoreForkedError as error:
                failures += "fork" not in str(error)
            except BaseException:
                failures += 10
        failures += not environment.close()  # does nothing, and says it is done
        del environment, snapshot
        gc.collect()
        os._exit(failures)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert environment.stats().reader_slots == 1
    assert snapshot.get(b"k") == b"v"
    snapshot.close()
    put(environment, b"k", b"after")
    assert get(environment) == b"after"


def test_disk_full_is_also_a_plain_oserror() -> None:
    error = DiskFullError("full", errno=errno.ENOSPC)
    assert isinstance(error, OSError) and error.errno == errno.ENOSPC


GROWING_WRITER = """if True:
    import sys
    from pathlib import Path
    from streamlog.storage.env import Environment
    environment = Environment.open(Path(sys.argv[1]), sync="off", map_bytes=1 << 26)
    transaction = environment.write()
    for number in range(4):
        transaction.put(b"%d" % number, bytes(1 << 20))
    transaction.commit()
    environment.close()
"""


def test_row_3_a_reader_adopts_the_map_that_another_process_grew(tmp_path: Path) -> None:
    environment_in(tmp_path, map_bytes=1 << 20).close()
    reader = environment_in(tmp_path, read_only=True, map_bytes=1 << 20)
    subprocess.run([sys.executable, "-c", GROWING_WRITER, str(tmp_path / "env")], check=True)
    with reader.snapshot() as snapshot:
        assert snapshot.get(b"3") == bytes(1 << 20)
    assert reader.stats().map_bytes > 4 << 20
    assert reader.close()
