"""The simulated runtime: one baton, virtual time, one seed one trace; and the production code under it."""

from __future__ import annotations

import threading
import time

import pytest

import streamlog
from streamlog.errors import (
    ClosedError,
    ConfigError,
    ForeignThreadError,
    IllegalStateError,
    SimulationStalledError,
)
from streamlog.testing import Simulation
from tests.processes import said_by


def test_time_passes_only_when_nobody_is_ready() -> None:
    simulation = Simulation(seed=1)
    seen: list[tuple[str, int]] = []

    def actor(name: str, seconds: float) -> None:
        for _ in range(3):
            simulation.sleep(seconds)
            seen.append((name, simulation.now_ms))

    tasks = [simulation.spawn(lambda: actor("a", 1.0)), simulation.spawn(lambda: actor("b", 1.5))]
    for task in tasks:
        task.result()
    assert sorted(seen) == [("a", 1000), ("a", 2000), ("a", 3000), ("b", 1500), ("b", 3000), ("b", 4500)]
    assert simulation.clock.wall_ms() == simulation.now_ms + 1_700_000_000_000


@pytest.mark.parametrize("wrong", ["x", "7", None, 1.5, True])
def test_a_seed_is_an_int(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"seed=.*allowed: an int") as caught:
        Simulation(wrong)  # type: ignore[arg-type]
    assert (caught.value.option, caught.value.value) == ("seed", wrong)
    with pytest.raises(ConfigError, match="stall_max_ms="):
        Simulation(1, stall_max_ms=wrong)  # type: ignore[arg-type]


def test_a_latch_set_before_the_wait_lets_it_through() -> None:
    simulation = Simulation()
    waiter = simulation.waiter()
    waiter.set()
    waiter.set()
    assert waiter.wait(10) and not waiter.wait(10)
    assert simulation.now_ms == 10


def test_a_set_wakes_and_the_clock_stands() -> None:
    simulation = Simulation()
    waiter = simulation.waiter()
    simulation.spawn(waiter.set)
    assert waiter.wait(None)
    assert simulation.now_ms == 0


def test_what_an_actor_raises_comes_out_of_result() -> None:
    simulation = Simulation()

    def fails() -> None:
        raise ValueError("no")

    task = simulation.spawn(fails)
    with pytest.raises(ValueError, match="no"):
        task.result()
    assert task.join()


def refuses() -> None:
    raise AssertionError("no")


def test_what_nobody_asked_for_comes_out_of_closing() -> None:
    simulation = Simulation(1)
    with pytest.raises(AssertionError, match="no"), streamlog.open(":memory:", runtime=simulation) as cluster:
        simulation.spawn(refuses)
        simulation.sleep(1)
    cluster.close()  # once
    with streamlog.open(":memory:", runtime=simulation):
        task = simulation.spawn(refuses)
        with pytest.raises(AssertionError):
            task.result()


def test_the_error_of_the_main_actor_comes_first() -> None:
    simulation = Simulation(1)
    with pytest.raises(LookupError) as caught, streamlog.open(":memory:", runtime=simulation):
        simulation.spawn(refuses)
        simulation.sleep(1)
        raise LookupError
    assert isinstance(caught.value.__context__, AssertionError)


@pytest.mark.parametrize("brokers", [1, 3])
def test_ending_because_the_cluster_was_closed_is_no_failure(brokers: int) -> None:
    simulation = Simulation(1)
    with streamlog.open(":memory:", brokers=brokers, runtime=simulation) as cluster:
        cluster.create_topic("orders")

        def sends_for_ever() -> None:
            producer = cluster.producer()
            while True:
                producer.send("orders", b"x").result()
                simulation.sleep(0.1)

        def reads_for_ever() -> None:
            for _ in cluster.consumer_group("g", ["orders"]).consumer():
                pass

        tasks = [simulation.spawn(sends_for_ever), simulation.spawn(reads_for_ever)]
        simulation.sleep(1)
    for task in tasks:
        task.join()
        with pytest.raises(ClosedError):
            task.result()


def test_a_join_with_a_timeout() -> None:
    simulation = Simulation()
    task = simulation.spawn(lambda: simulation.sleep(5))
    assert not task.join(100)
    assert task.join(10_000) and simulation.now_ms == 5000


def test_a_lock_of_another_actor_is_waited_for() -> None:
    simulation = Simulation()
    lock = simulation.turn_lock()
    order: list[str] = []

    def holds() -> None:
        with lock:
            simulation.sleep(0.05)
            order.append("held")

    task = simulation.spawn(holds)
    simulation.sleep(0.01)
    assert not lock._is_owned() and not lock.acquire(False)
    with lock:
        order.append("taken")
        assert lock._is_owned() and lock.acquire()
        lock.release()
    task.join()
    assert order == ["held", "taken"]


def test_a_loop_that_never_waits_for_anything_lets_time_pass() -> None:
    simulation = Simulation()
    waiter = simulation.waiter()
    while simulation.now_ms < 3:
        waiter.wait(0)
    assert simulation.switches > 3000


def test_a_foreign_thread_gets_a_named_error() -> None:
    simulation = Simulation()
    found: list[Exception] = []

    def foreign() -> None:
        try:
            simulation.waiter().wait(1)
        except ForeignThreadError as error:
            found.append(error)

    thread = threading.Thread(target=foreign, name="mine")
    thread.start()
    thread.join()
    assert "'mine'" in str(found[0]) and "simulation.spawn" in str(found[0])


def test_sleeping_really_is_refused_while_a_cluster_is_open() -> None:
    with streamlog.open(":memory:", runtime=Simulation()):
        with pytest.raises(IllegalStateError, match=r"simulation\.sleep"):
            time.sleep(0.001)
        slept = threading.Thread(target=time.sleep, args=(0.001,))  # somebody else's thread may
        slept.start()
        slept.join()
    time.sleep(0)


def test_nobody_can_go_on() -> None:
    simulation = Simulation(seed=9)
    with pytest.raises(SimulationStalledError, match=r"seed 9 at 0 ms: nobody can go on\. main: a waiter"):
        simulation.waiter().wait(None)


def test_an_endless_iterator_ends_with_who_waits_for_what() -> None:
    with streamlog.open(":memory:", runtime=Simulation(stall_max_ms=5_000)) as cluster:
        cluster.create_topic("t")
        with pytest.raises(SimulationStalledError, match="nothing but timers") as caught:
            for _ in cluster.consumer_group("g", ["t"]).consumer():
                pass
        assert "main" in caught.value.waiting


def test_sleeping_long_is_no_stall() -> None:
    simulation = Simulation(stall_max_ms=5_000)
    with streamlog.open(":memory:", runtime=simulation):
        simulation.sleep(3600)
        assert simulation.now_ms == 3_600_000


def test_a_check_that_fails_ends_the_run_where_it_failed() -> None:
    simulation = Simulation()
    count = [0]

    def bump() -> None:
        for _ in range(10):
            simulation.sleep(0.001)
            count[0] += 1

    def check() -> None:
        assert count[0] < 5, "five"

    simulation.checks.append(check)
    simulation.spawn(bump)
    with pytest.raises(AssertionError, match="five"):
        simulation.sleep(1)
    assert count[0] == 5 and simulation.now_ms == 5
    simulation.sleep(1)  # what is left can be closed


def pipeline(seed: int) -> tuple[Simulation, list[bytes]]:
    """Two producers, a group of three members, one of which dies; everything ends."""
    simulation = Simulation(seed)
    seen: list[bytes] = []
    with streamlog.open(":memory:", runtime=simulation) as cluster:
        cluster.create_topic("t", partitions=4)
        group = cluster.consumer_group("g", ["t"], session_timeout_ms=6_000, max_poll_interval_ms=10_000)

        def produce(name: bytes) -> None:
            with cluster.producer(linger_ms=20) as producer:
                for number in range(50):
                    producer.send("t", b"%s-%d" % (name, number), key=b"%d" % (number % 7))
                    if not number % 10:
                        simulation.sleep(0.05)

        def consume(records_max: int) -> None:
            consumer = group.consumer()
            while len(seen) < 100 and records_max:
                for record in consumer.poll(0.5, max_records=min(records_max, 10)):
                    seen.append(record.value)
                    records_max -= 1
                consumer.commit()
            if records_max:
                consumer.close()

        tasks = [simulation.spawn(lambda name=name: produce(name)) for name in (b"a", b"b")]
        tasks += [simulation.spawn(lambda most=most: consume(most)) for most in (1000, 1000, 10)]
        for task in tasks:
            task.result()
    return simulation, seen


@pytest.mark.parametrize("seed", range(5))
def test_production_code_under_virtual_time(seed: int) -> None:
    _, seen = pipeline(seed)
    expected = {b"%s-%d" % (name, number) for name in (b"a", b"b") for number in range(50)}
    assert set(seen) == expected and len(seen) == 100


def test_one_seed_one_trace_another_seed_another() -> None:
    first, again, other = pipeline(7)[0], pipeline(7)[0], pipeline(8)[0]
    assert list(first.trace) == list(again.trace) and first.digest == again.digest
    assert first.digest != other.digest


def test_the_trace_does_not_depend_on_the_process() -> None:
    program = (
        "from tests.testing.test_simulation import pipeline\n"
        "simulation, seen = pipeline(7)\n"
        "print(simulation.digest, simulation.switches, seen)"
    )
    assert len(said_by(program, "0", "1", "4242")) == 1
