"""Waiters, services, tasks: the only threads there are."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from streamlog.broker import runner
from streamlog.broker.runner import Service, ThreadedRuntime, ThreadTask, ThreadWaiter, new_lock, thread_pool
from tests.broker.builders import in_thread


def test_a_set_waiter_lets_one_wait_through() -> None:
    waiter = ThreadWaiter()
    assert not waiter.wait(0)
    waiter.set(), waiter.set()
    assert waiter.wait(0) and not waiter.wait(0)


def test_a_waiter_wakes_whoever_waits_without_a_limit() -> None:
    waiter = ThreadWaiter()
    waiting = in_thread(lambda: waiter.wait(None))
    waiter.set()
    assert waiting.result() is True


def test_a_wait_longer_than_threading_allows_is_possible() -> None:
    waiter = ThreadWaiter()
    waiting = in_thread(lambda: waiter.wait(2**62))
    waiter.set()
    assert waiting.result() is True


def test_setting_from_many_threads_at_once_is_setting_once() -> None:
    waiter = ThreadWaiter()
    for thread in [in_thread(lambda: [waiter.set() for _ in range(300)]) for _ in range(4)]:
        thread.result()
    assert waiter.wait(0) and not waiter.wait(0)


def test_a_turn_lock_knows_its_owner() -> None:
    lock = ThreadedRuntime().turn_lock()
    with lock:
        assert lock._is_owned() and not in_thread(lock._is_owned).result()
        assert not in_thread(lambda: lock.acquire(False)).result()
    assert not lock._is_owned()


def test_a_seeded_runtime_draws_the_same() -> None:
    assert ThreadedRuntime(seed=7).random.getrandbits(64) == ThreadedRuntime(seed=7).random.getrandbits(64)
    assert ThreadedRuntime().random.getrandbits(64) != ThreadedRuntime().random.getrandbits(64)


@pytest.mark.parametrize("bits", [1, 7, 8, 9, 128])
def test_the_systems_chance_keeps_within_its_bounds(bits: int) -> None:
    chance = ThreadedRuntime().random
    assert max(chance.getrandbits(bits).bit_length() for _ in range(200)) == bits
    assert {chance.randrange(3) for _ in range(200)} == {0, 1, 2}


def test_tasks_are_joined_also_from_inside() -> None:
    inside: list[bool] = []
    tasks: list[ThreadTask] = []
    ready = threading.Event()
    tasks.append(ThreadTask("t", lambda: (ready.wait(10), inside.append(tasks[0].join()))[1]))
    assert not tasks[0].join(1)
    ready.set()
    assert tasks[0].join(10_000) and inside == [False]


def test_new_lock_is_a_plain_lock() -> None:
    assert new_lock().acquire(False)


def test_a_thread_pool_is_bounded() -> None:
    with thread_pool("p", 1) as pool:
        assert pool.submit(threading.current_thread).result().name.startswith("p")


# -- services ------------------------------------------------------------------------------------------------------------


class Stepping:
    def __init__(self, deadlines: list[int | None]) -> None:
        self.deadlines = deadlines
        self.stepped = threading.Semaphore(0)
        self.steps = 0

    def __call__(self, now_ms: int) -> int | None:
        self.steps += 1
        self.stepped.release()
        return self.deadlines.pop(0) if self.deadlines else None


def test_a_service_starts_with_its_first_wake() -> None:
    step = Stepping([])
    service = Service(ThreadedRuntime(), "s", step)
    assert "idle" in repr(service)
    service.wake()
    assert step.stepped.acquire(timeout=10)
    assert service.stop(10_000) and "stopped" in repr(service)


def test_a_service_never_woken_stops_at_once() -> None:
    service = Service(ThreadedRuntime(), "s", Stepping([]))
    assert service.stop()
    service.wake()
    assert service._task is None, "woken after its end"


class InterruptedOnce(ThreadedRuntime):
    """The first thread has begun when a Ctrl-C strikes who starts it."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[ThreadTask] = []

    def spawn(self, name: str, run: Callable[[], None]) -> ThreadTask:
        self.begun.append(ThreadTask(name, run))
        if len(self.begun) == 1:
            raise KeyboardInterrupt
        return self.begun[-1]


@pytest.mark.parametrize("wakes", [1, 2])
def test_a_service_whose_start_was_interrupted_has_one_thread_and_ends_with_it(wakes: int) -> None:
    runtime = InterruptedOnce()
    entered, leave = threading.Semaphore(0), threading.Event()

    def step(now_ms: int) -> None:
        entered.release()
        leave.wait(10)

    service = Service(runtime, "s", step)
    with pytest.raises(KeyboardInterrupt):
        service.wake()
    assert entered.acquire(timeout=10)
    for _ in range(wakes - 1):
        service.wake()
    assert not service.stop(1), "the step is still under way"
    assert all(task.join(10_000) for task in runtime.begun[1:]) and not entered.acquire(blocking=False)
    leave.set()
    assert service.stop(10_000) and runtime.begun[0].join(10_000)


def test_a_service_steps_again_at_its_deadline() -> None:
    runtime = ThreadedRuntime()
    step = Stepping([runtime.clock.monotonic_ms() + 1, None])
    service = Service(runtime, "s", step)
    service.wake()
    assert step.stepped.acquire(timeout=10) and step.stepped.acquire(timeout=10)
    service.stop()


def test_a_wake_during_a_step_is_not_lost() -> None:
    service: Service
    steps: list[int] = []
    second = threading.Event()

    def step(now_ms: int) -> None:
        steps.append(now_ms)
        if len(steps) == 1:
            service.wake()
        else:
            second.set()

    service = Service(ThreadedRuntime(), "s", step)
    service.wake()
    assert second.wait(10)
    service.stop()


def test_a_step_that_fails_does_not_end_the_thread(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "FAILED_STEP_PAUSE_MS", 1)
    good = threading.Event()
    fails = [ZeroDivisionError("a bug"), OSError("a full disk")]

    def step(now_ms: int) -> None:
        if fails:
            raise fails.pop()
        good.set()

    service = Service(ThreadedRuntime(), "the service", step)
    with caplog.at_level(logging.ERROR, "streamlog"):
        service.wake()
        assert good.wait(10)
    service.stop()
    assert "the service" in caplog.text and "a bug" in caplog.text
