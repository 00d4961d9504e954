"""aio/waiting.py: wake-ups into the loop, calls out of it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from streamlog.aio.waiting import THREADS_MAX, LoopWaiter, Parked, Workers, serving
from streamlog.errors import ClosedError
from tests.aio.loops import in_loop


@in_loop
async def test_a_latch_that_was_set_lets_one_wait_through() -> None:
    waiter = Workers().waiter()
    waiter.set()
    assert waiter.wait(None) is True
    with pytest.raises(Parked) as parked:
        waiter.wait(250)
    assert parked.value.timeout_ms == 250


@in_loop
async def test_a_park_ends_when_another_thread_sets_the_latch() -> None:
    waiter = Workers().waiter()
    parked = asyncio.ensure_future(waiter.park(None))
    await asyncio.sleep(0)
    threading.Thread(target=waiter.set).start()
    await parked
    with pytest.raises(Parked):
        waiter.wait(0)  # shut again


@in_loop
async def test_what_was_set_before_a_park_ends_it_at_once() -> None:
    waiter = Workers().waiter()
    waiter.set()
    await waiter.park(None)


@in_loop
async def test_a_park_ends_with_its_time() -> None:
    waiter = Workers().waiter()
    await waiter.park(0.001)
    await waiter.park(0)


@in_loop
async def test_a_cancelled_park_leaves_a_latch_that_works() -> None:
    waiter = Workers().waiter()
    parked = asyncio.ensure_future(waiter.park(None))
    await asyncio.sleep(0)
    parked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await parked
    waiter.set()
    await waiter.park(None)


@in_loop
async def test_many_wake_ups_are_one_call_into_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers()
    waiters = [workers.waiter() for _ in range(1000)]
    parked = [asyncio.ensure_future(waiter.park(None)) for waiter in waiters]
    await asyncio.sleep(0)
    calls: list[object] = []
    original = workers.loop.call_soon_threadsafe
    monkeypatch.setattr(
        workers.loop, "call_soon_threadsafe", lambda call: (calls.append(call), original(call))[1]
    )
    for waiter in waiters:
        waiter.set()
    await asyncio.gather(*parked)
    assert len(calls) == 1


@in_loop
async def test_no_wake_up_is_lost_between_looking_and_parking() -> None:
    waiter: LoopWaiter = Workers().waiter()
    posted = taken = 0

    def post() -> None:
        nonlocal posted
        for _ in range(20_000):
            posted += 1
            waiter.set()

    thread = threading.Thread(target=post)
    thread.start()
    while taken < 20_000:
        if taken < posted:
            taken = posted
        else:
            await waiter.park(None)
    thread.join()


def test_setting_a_latch_of_a_closed_loop_is_harmless() -> None:
    async def make() -> LoopWaiter:
        return Workers().waiter()

    asyncio.run(make()).set()


@in_loop
async def test_calls_run_in_a_few_threads_whatever_their_number() -> None:
    workers = Workers()
    names = await asyncio.gather(*[workers.call(lambda: threading.current_thread().name) for _ in range(200)])
    assert len(set(names)) <= THREADS_MAX and all(name.startswith("streamlog-aio") for name in names)


@in_loop
async def test_a_call_after_close_is_refused() -> None:
    workers = Workers()
    workers.close()
    with pytest.raises(ClosedError):
        await workers.call(int)


@in_loop
async def test_a_listener_may_await_calls_though_all_threads_wait_for_listeners() -> None:
    """As many listeners as threads, each asking for calls: their own threads must serve them."""
    workers = Workers()
    started: list[int] = []

    async def listen(number: int) -> None:
        started.append(number)
        while len(started) < THREADS_MAX:
            await asyncio.sleep(0)
        assert await workers.call(lambda: number + 1) == number + 1
        assert serving() is not None

    listener = workers.listener(listen)
    assert listener is not None
    await asyncio.gather(*[workers.call(listener, number) for number in range(THREADS_MAX)])
    assert serving() is None


@in_loop
async def test_what_a_listener_raises_reaches_the_thread_that_called_it() -> None:
    workers = Workers()

    def listen() -> None:
        raise LookupError("listener")

    with pytest.raises(LookupError, match="listener"):
        await workers.call(workers.listener(listen))  # type: ignore[arg-type]


@in_loop
async def test_a_task_a_listener_left_behind_uses_the_pool() -> None:
    workers = Workers()
    left: list[asyncio.Task[str]] = []
    go = asyncio.Event()

    async def later() -> str:
        await go.wait()
        return await workers.call(lambda: threading.current_thread().name)

    def listen() -> None:
        left.append(asyncio.ensure_future(later()))

    await workers.call(workers.listener(listen))  # type: ignore[arg-type]
    go.set()
    assert (await left[0]).startswith("streamlog-aio")
