"""DESIGN, "Turns, not locks": one test per law, and per sentence of the read protocol."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streamlog
from streamlog.broker import api, deletion
from streamlog.broker import turn as turns
from streamlog.broker.cluster import BrokerCluster
from streamlog.broker.runner import ThreadedRuntime
from streamlog.broker.turn import Pending
from streamlog.broker.upkeep import SwapCompacted
from streamlog.clock import ManualClock
from streamlog.errors import NotLeaderOrFollowerError, ReentrantCallError
from streamlog.storage import cleaner
from tests.broker.builders import Add, Do, Ledger, batch_of, in_thread, opened, produce, values_of
from tests.broker.interrupting import Interrupt


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path)
    yield ledger
    ledger.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[BrokerCluster]:
    cluster = opened(tmp_path / "cluster")
    cluster.create_topic("t", 2, 1, {})
    yield cluster
    cluster.close()


# -- "whoever gets the turn lock runs the turn" --------------------------------------------------------------------------


def test_an_uncontended_caller_runs_its_own_turn(ledger: Ledger) -> None:
    ran_in: list[int] = []
    ledger.on_apply = lambda turn: ran_in.append(threading.get_ident())
    ledger.call(Add(1))
    assert ran_in == [threading.get_ident()]


def test_contended_callers_ride_along_in_one_commit(ledger: Ledger) -> None:
    entered, go = threading.Event(), threading.Event()

    def slow(owner: Ledger, turn: turns.Turn, pending: Pending) -> None:
        entered.set()
        assert go.wait(10)
        turn.reply(pending, None)

    runner = in_thread(lambda: ledger.call(Do(slow)))
    assert entered.wait(10)
    riders = [in_thread(lambda value=value: ledger.call(Add(value))) for value in range(8)]
    while len(ledger._inbox) < 9:
        pass
    before = ledger.environment.last_transaction_id()
    go.set()
    runner.result()
    assert sorted(rider.result() for rider in riders) == list(range(8))
    assert ledger.environment.last_transaction_id() == before + 1


# -- law 1 ---------------------------------------------------------------------------------------------------------------


def test_law_1_a_thread_holds_at_most_one_turn_lock(cluster: BrokerCluster) -> None:
    posted: list[Pending] = []
    decide = cluster.broker._decide

    def nested(turn: turns.Turn, pending: Pending) -> object:
        if not posted:
            posted.append(cluster.metadata.post(api.CreateTopic("nested", 1, 1)))
            assert not cluster.metadata.turn_lock._is_owned() and not posted[0].done
        return decide(turn, pending)

    cluster.broker._decide = nested  # type: ignore[method-assign]
    produce(cluster, "t", 0, b"x")
    cluster.metadata.wait(posted[0])
    assert "nested" in cluster.topics


def test_law_1_the_runner_itself_only_enqueues_and_a_blocking_call_raises() -> None:
    """A logging handler, as the runner meets it: here inside the decision of a turn."""
    with streamlog.open(":memory:") as cluster:
        cluster.create_topic("logs")
        broker = cluster._backend.broker
        decide, nested = broker._decide, []

        def decides_and_logs(turn: turns.Turn, pending: Pending) -> object:
            if not nested:
                nested.append(producer.send("logs", b"from the handler", partition=0))
                with pytest.raises(ReentrantCallError):
                    nested[0].result()
            return decide(turn, pending)

        with cluster.producer(linger_ms=0) as producer, cluster.producer(linger_ms=0) as other:
            broker._decide = decides_and_logs
            other.send("logs", b"outer").result()
            assert nested[0].result(timeout=5).offset == 1
        assert [record.value for record in cluster.topic("logs")[0].read()] == [b"outer", b"from the handler"]


# -- law 2 ---------------------------------------------------------------------------------------------------------------


def test_law_2_nothing_of_the_users_runs_inside(caplog: pytest.LogCaptureFixture) -> None:
    """Callbacks, their exceptions' log lines, serializers, partitioners and listeners: none holds the turn."""
    held: dict[str, list[bool]] = {}

    with streamlog.open(":memory:") as cluster:
        lock = cluster._backend.broker.turn_lock
        note = lambda name: held.setdefault(name, []).append(lock._is_owned())  # noqa: E731

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                note("log line")

        handler = Handler()
        logging.getLogger("streamlog").addHandler(handler)
        try:
            cluster.create_topic("t", partitions=1)
            called = threading.Event()

            def callback(future: Any) -> None:
                note("callback")
                called.set()
                raise RuntimeError("logged")

            def serializer(value: Any) -> bytes:
                note("serializer")
                return str(value).encode()

            with cluster.producer(value_serializer=serializer) as producer:
                producer.send("t", 1).add_done_callback(callback)
                producer.flush()
                assert called.wait(10)
            group = cluster.consumer_group("g", ["t"])
            with group.consumer(
                on_assigned=lambda _: note("listener"), on_revoked=lambda _: note("listener")
            ) as consumer:
                assert consumer.poll(5)
        finally:
            logging.getLogger("streamlog").removeHandler(handler)
    assert set(held) == {"callback", "serializer", "listener", "log line"}
    assert not any(any(owned) for owned in held.values()), held


def test_law_2_replies_and_callbacks_leave_through_the_outbox(ledger: Ledger) -> None:
    owned: list[bool] = []
    ledger.post(Add(1), on_done=lambda _: owned.append(ledger.turn_lock._is_owned()))
    assert owned == [False]


# -- law 3 ---------------------------------------------------------------------------------------------------------------


def test_law_3_commit_apply_publish_reply(cluster: BrokerCluster) -> None:
    """At the moment of each step, what the earlier ones promise already holds."""
    order: list[str] = []
    broker, partition = cluster.broker, cluster.partition("t", 0)
    publish, answer = type(partition).publish, broker._answer
    committed_before = broker.environment.last_transaction_id()

    class Watched(type(partition)):  # type: ignore[misc]
        __slots__ = ()

        def publish(self, state: Any) -> None:
            assert broker.environment.last_transaction_id() == committed_before + 1
            order.append("publish")
            publish(self, state)

    partition.__class__ = Watched

    def watched_answer(pending: Pending, value: object, error: BaseException | None) -> None:
        assert partition.view is not None and partition.view.high_watermark == 1
        order.append("reply")
        answer(pending, value, error)

    broker._answer = watched_answer  # type: ignore[method-assign]
    produce(cluster, "t", 0, b"x")
    assert order == ["publish", "reply"]


def test_law_3_whoever_has_an_ack_can_read_the_record(cluster: BrokerCluster) -> None:
    def work(number: int) -> None:
        for index in range(50):
            value = b"%d-%d" % (number, index)
            produced = produce(cluster, "t", 0, value)
            assert values_of(cluster, "t", 0, produced.base_offset)[0] == (produced.base_offset, value)

    for thread in [in_thread(lambda number=number: work(number)) for number in range(4)]:
        thread.result()


# -- law 4 ---------------------------------------------------------------------------------------------------------------


def test_law_4_after_letting_go_the_runner_looks_again(ledger: Ledger) -> None:
    """A request that comes while its caller cannot get the lock is served by the runner."""
    late: list[Pending] = []

    def meanwhile(owner: Ledger, turn: turns.Turn, pending: Pending) -> None:
        late.append(in_thread(lambda: owner.post(Add("late"))).result())
        assert not late[0].done
        turn.reply(pending, None)

    ledger.call(Do(meanwhile))
    assert late[0].result() == 0


def test_law_4_a_turn_drains_only_what_was_there_at_its_start(ledger: Ledger) -> None:
    def feed(owner: Ledger, turn: turns.Turn, pending: Pending) -> None:
        owner.post(Add("next turn"))
        turn.reply(pending, None)

    ledger.call(Do(feed))
    ledger.advance()
    assert [len(requests) for requests in ledger.turns] == [1, 1]


def test_law_4_within_a_byte_and_a_time_budget(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    pendings = [ledger.enqueue(Add(value), cost_bytes=turns.TURN_BYTES_MAX) for value in range(3)]
    ledger.advance()
    assert [len(requests) for requests in ledger.turns] == [1, 1, 1]
    monkeypatch.setattr(turns, "TURN_MS_MAX", 0)
    pendings = [ledger.enqueue(Add(value)) for value in range(64)]
    ledger.advance()
    assert [len(requests) for requests in ledger.turns[3:]] == [32, 32]
    assert all(pending.done for pending in pendings)


# -- law 5 ---------------------------------------------------------------------------------------------------------------


def test_law_5_posts_between_brokers_never_block_a_full_inbox_drops(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, requests_max=2)
    entered, go = threading.Event(), threading.Event()

    def slow(owner: Ledger, turn: turns.Turn, pending: Pending) -> None:
        entered.set()
        assert go.wait(10)
        turn.reply(pending, None)

    runner = in_thread(lambda: ledger.call(Do(slow)))
    assert entered.wait(10)
    assert ledger.offer(Add("fits")) is not None
    assert in_thread(lambda: ledger.offer(Add("dropped"))).result(1) is None
    go.set()
    runner.result()
    assert ledger.offer(Add("sent again")) is not None
    assert ledger.values == ("fits", "sent again")
    ledger.close()


# -- law 6 ---------------------------------------------------------------------------------------------------------------


def test_law_6_decisions_see_an_overlay_that_is_dropped_on_abort(cluster: BrokerCluster) -> None:
    broker, partition = cluster.broker, cluster.partition("t", 0)
    seen: list[int] = []

    def fails(turn: turns.Turn) -> None:
        seen.append(turn.staged[partition].log_end_offset)
        assert (
            partition.state.log_end_offset == 0
            and partition.view is not None
            and partition.view.log_end_offset == 0
        )
        del broker._before_commit
        raise streamlog.errors.StorageError("EIO")

    broker._before_commit = fails  # type: ignore[method-assign]
    requests = [broker.enqueue(api.Produce([("t", 0, batch_of(b"a"))])) for _ in range(3)]
    broker.advance()
    assert seen == [3], "the second and third decision saw the first"
    assert all(isinstance(request.error, streamlog.errors.StorageError) for request in requests)
    assert partition.state.log_end_offset == 0
    assert produce(cluster, "t", 0, b"b").base_offset == 0


def test_law_6_a_dropped_turn_forgets_no_deadline_and_parks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamlog.broker.runner.Service.wake", lambda self: None)  # only the test ticks
    from streamlog.broker.turn import Tick
    from streamlog.core import group_events as events

    clock = ManualClock(1_000_000)
    cluster = opened(tmp_path / "c", ThreadedRuntime(clock))
    join = events.JoinGroup(
        token=0,
        client_id="c",
        session_timeout_ms=60_000,
        rebalance_timeout_ms=30_000,
        protocols=(("range", b""),),
    )
    cluster.call_group("g", join)
    coordinator, broker = cluster.coordinator, cluster.broker
    before = sorted(coordinator.deadlines._heap)
    assert before == [(1_030_000, "g")], "its sync is awaited"

    def fails(turn: turns.Turn) -> None:
        del broker._before_commit
        raise streamlog.errors.StorageError("EIO")

    clock.advance(30_000)
    broker._before_commit = fails  # type: ignore[method-assign]
    with pytest.raises(streamlog.errors.StorageError):
        broker.call(Tick())
    assert sorted(coordinator.deadlines._heap) == before
    hosted = coordinator.group("g")
    assert len(hosted.view.members) == 1
    broker.call(Tick())
    assert hosted.view.members == () and coordinator._parked == {}
    cluster.close()


# -- law 7 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reached", [False, True], ids=["not committed: run again", "committed: applied from its own list"]
)
def test_law_7_a_turn_cut_short_in_the_commit(cluster: BrokerCluster, reached: bool) -> None:
    strikes = [1]
    environment = cluster.broker.environment
    write = type(environment).write

    def interrupting(self: Any, *, reclaiming: bool = False) -> Any:
        transaction = write(self, reclaiming=reclaiming)
        if self is not environment or not strikes:
            return transaction

        class Cut:
            id = transaction.id

            def __getattr__(self, name: str) -> Any:
                return getattr(transaction, name)

            def commit(self) -> None:
                strikes.clear()
                if reached:
                    transaction.commit()
                raise Interrupt

        return Cut()

    produce(cluster, "t", 0, b"first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(environment), "write", interrupting)
        with pytest.raises(Interrupt):
            produce(cluster, "t", 0, b"struck")
    assert not strikes
    produce(cluster, "t", 0, b"last")
    assert values_of(cluster, "t", 0) == [(0, b"first"), (1, b"struck"), (2, b"last")]


# -- law 8 ---------------------------------------------------------------------------------------------------------------


def test_law_8_the_cleaner_recodes_outside_and_swaps_in_a_turn(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    cluster.create_topic("k", 1, 1, {"cleanup.policy": "compact"})
    for value in (b"1", b"2", b"3"):
        produce(cluster, "k", 0, value, keys=[b"key"])
    turns_seen: list[str] = []
    decide, clean = cluster.broker._decide, cleaner.Compaction._clean
    owned: list[bool] = []

    def watched(turn: turns.Turn, pending: Pending) -> object:
        turns_seen.append(type(pending.request).__name__)
        return decide(turn, pending)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.broker, "_decide", watched)
        patch.setattr(
            cleaner.Compaction,
            "_clean",
            lambda self, *args: (owned.append(cluster.broker.turn_lock._is_owned()), clean(self, *args))[1],
        )
        assert cluster.housekeeping.run_now().compacted == 1
    assert owned and not any(owned), "recoded inside a turn"
    assert "SwapCompacted" in turns_seen
    cluster.close()


def test_law_8_a_swap_whose_partition_moved_on_is_void(cluster: BrokerCluster) -> None:
    produce(cluster, "t", 0, b"a", b"b")
    produce(cluster, "t", 0, b"c")
    partition = cluster.partition("t", 0)
    swap = SwapCompacted(partition, partition.generation, cleaner.CompactionPlan(()))
    assert cluster.broker.call(swap) == 0
    cut, late = cluster.broker.enqueue(api.TruncateTail("t", 0, 2)), cluster.broker.enqueue(swap)
    cluster.broker.advance()
    cluster.broker.wait(late)
    assert cut.error is None and late.result() is None
    assert values_of(cluster, "t", 0) == [(0, b"a"), (1, b"b")]


def test_law_8_deleting_is_sliced(cluster: BrokerCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletion, "SLICE_BATCHES", 2)
    for value in range(11):
        produce(cluster, "t", 0, b"%d" % value)
    turns_before = cluster.broker.turns_total
    assert cluster.delete_records("t", 0, 11) == 11
    assert values_of(cluster, "t", 0) == []
    partition = cluster.partition("t", 0)
    while cluster.broker.deletions.trimming:
        pass  # the broker's own thread works it off
    assert cluster.broker.turns_total - turns_before >= 6
    assert partition.state.size_bytes == 0
    assert deletion.SLICE_BYTES <= 8 * 1024 * 1024


# -- the read protocol ---------------------------------------------------------------------------------------------------


def test_readers_never_take_the_turn_lock(cluster: BrokerCluster) -> None:
    produce(cluster, "t", 0, b"a")
    cluster.partition("t", 0)
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with cluster.broker.turn_lock:
            held.set()
            go.wait(10)

    holder = in_thread(hold)
    assert held.wait(10)
    assert in_thread(lambda: values_of(cluster, "t", 0)).result(5) == [(0, b"a")]
    go.set()
    holder.result()


def test_a_turn_ends_by_publishing_an_immutable_view(cluster: BrokerCluster) -> None:
    partition = cluster.partition("t", 0)
    before = partition.view
    produce(cluster, "t", 0, b"a")
    after = partition.view
    assert before is not None and after is not None and before is not after
    assert (before.log_end_offset, after.log_end_offset, after.high_watermark) == (0, 1, 1)
    with pytest.raises(AttributeError):
        after.log_end_offset = 7  # type: ignore[misc]


@pytest.mark.parametrize("change", ["epoch", "start", "truncation"])
def test_if_the_view_differs_after_opening_the_snapshot_the_reader_tries_again(
    cluster: BrokerCluster, change: str
) -> None:
    for value in (b"a", b"b", b"c"):
        produce(cluster, "t", 0, value)
    partition, reader = cluster.partition("t", 0), cluster.broker.reader
    snapshots: list[Any] = []
    environment = cluster.broker.environment

    class Moving:
        def snapshot(self) -> Any:
            if not snapshots:
                if change == "start":
                    cluster.delete_records("t", 0, 1)
                elif change == "truncation":
                    cluster.broker.call(api.TruncateTail("t", 0, 2))
                else:
                    import msgspec

                    partition.publish(msgspec.structs.replace(partition.state, leader_epoch=1))
            snapshots.append(environment.snapshot())
            return snapshots[-1]

    moving = type(reader)(Moving(), cluster.runtime.waiter)  # type: ignore[arg-type]
    view, snapshot = moving.open(partition)
    with snapshot:
        assert len(snapshots) == 2 and snapshots[0].readers is None, "the first snapshot was used, or kept"
        assert view is partition.view


def test_an_append_in_between_does_not_make_the_reader_try_again(cluster: BrokerCluster) -> None:
    produce(cluster, "t", 0, b"a")
    partition = cluster.partition("t", 0)
    environment, opened_ = cluster.broker.environment, []

    class Appending:
        def snapshot(self) -> Any:
            produce(cluster, "t", 0, b"b")
            opened_.append(1)
            return environment.snapshot()

    reader = type(cluster.broker.reader)(Appending(), cluster.runtime.waiter)  # type: ignore[arg-type]
    view, batches = reader.read(partition, 0, 1 << 20)
    assert opened_ == [1]
    assert view.log_end_offset == 1 and [batch.last_offset for batch in batches] == [0], (
        "nothing beyond the view"
    )


def test_a_partition_that_is_not_served_has_no_view(cluster: BrokerCluster) -> None:
    produce(cluster, "t", 0, b"a")
    partition = cluster.partition("t", 0)
    cluster.delete_topic("t")
    assert partition.view is None
    with pytest.raises(NotLeaderOrFollowerError):
        cluster.broker.reader.read(partition, 0, 100)


def test_parking_registers_looks_again_and_then_waits(cluster: BrokerCluster) -> None:
    """News between the look and the wait are not lost: the wait returns at once."""
    partition = cluster.partition("t", 0)
    listener = cluster.listener()
    listener.subscribe(partition, "subject")
    assert listener.take() is not None, "what a source has already counts as news"
    assert cluster.broker.reader.read(partition, 0, 100)[1] == []
    produce(cluster, "t", 0, b"a")
    assert listener.wait(10_000)
    subscription = listener.take()
    assert subscription is not None and subscription.source is partition
    assert listener.take() is None


def test_no_read_transaction_is_held_across_user_code() -> None:
    with streamlog.open(":memory:") as cluster:
        cluster.create_topic("t", partitions=1)
        with cluster.producer() as producer:
            producer.send_many("t", [(None, b"%d" % n) for n in range(100)])
        readers = cluster._backend.broker.environment._readers
        with cluster.consumer(stop_at_end=True) as consumer:
            consumer.assign([("t", 0)])
            for _ in consumer:
                assert len(readers) == 0
            consumer.seek(("t", 0), 0)
            assert consumer.poll(1) and len(readers) == 0


def test_log_ids_are_never_used_twice(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "c")
    seen: list[int] = []
    for _ in range(3):
        image = cluster.create_topic("again", 2, 1, {})
        seen += [partition.log_id for partition in image.partitions]
        cluster.delete_topic("again")
    cluster.close()
    cluster = opened(tmp_path / "c")
    seen += [partition.log_id for partition in cluster.create_topic("again", 2, 1, {}).partitions]
    cluster.close()
    assert len(set(seen)) == len(seen)


def test_a_truncation_is_not_read_between_its_commit_and_its_publishing(cluster: BrokerCluster) -> None:
    """The bytes are gone already, and the old view still promises them: the reader must not take that for a hole."""
    for value in (b"a", b"b", b"c"):
        produce(cluster, "t", 0, value)
    partition = cluster.partition("t", 0)
    reading: list[Any] = []
    publish = type(partition).publish

    class Slow(type(partition)):  # type: ignore[misc]
        __slots__ = ()

        def publish(self, state: Any) -> None:
            reading.append(in_thread(lambda: cluster.broker.reader.read(partition, 0, 1 << 20)))
            reading[0].thread.join(0.05)
            assert reading[0].thread.is_alive(), "it did not wait for the publishing"
            publish(self, state)

    partition.__class__ = Slow
    cluster.broker.call(api.TruncateTail("t", 0, 1))
    view, batches = reading[0].result()
    assert view.log_end_offset == 1 and [batch.last_offset for batch in batches] == [0]


def test_a_truncation_that_is_not_committed_leaves_the_partition_readable(cluster: BrokerCluster) -> None:
    for value in (b"a", b"b"):
        produce(cluster, "t", 0, value)

    def fails(turn: turns.Turn) -> None:
        del cluster.broker._before_commit
        raise streamlog.errors.StorageError("EIO")

    cluster.broker._before_commit = fails  # type: ignore[method-assign]
    with pytest.raises(streamlog.errors.StorageError):
        cluster.broker.call(api.TruncateTail("t", 0, 1))
    assert in_thread(lambda: values_of(cluster, "t", 0)).result(5) == [(0, b"a"), (1, b"b")]


def test_bytes_at_the_head_go_in_a_later_turn_than_the_start_above_them(tmp_path: Path) -> None:
    cluster = opened(tmp_path / "r")
    cluster.create_topic("small", 1, 1, {"retention.bytes": "500"})
    partition = cluster.partition("small", 0)
    for _ in range(12):
        start = partition.state.log_start_offset
        produce(cluster, "small", 0, b"x" * 100)
        from streamlog.storage import log

        with cluster.broker.environment.snapshot() as snapshot:
            first = next(log.iterate_headers(snapshot, partition.log_id), None)
        assert first is not None and first.header.base_offset <= start, (
            "a reader of the former view misses records"
        )
    assert partition.state.log_start_offset > 4
    cluster.close()
