"""Running coroutines as tests, and watching what runs in the loop's thread."""

from __future__ import annotations

import asyncio
import functools
import threading
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from streamlog.broker import runner, turn
from streamlog.storage import env

SECONDS_MAX = 30


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that is a coroutine function."""

    @functools.wraps(test)
    def run(*arguments: Any, **options: Any) -> None:
        async def bounded() -> None:
            await asyncio.wait_for(test(*arguments, **options), SECONDS_MAX)

        asyncio.run(bounded())

    return run


@contextmanager
def watched(monkeypatch: Any) -> Iterator[list[str]]:
    """What this thread does that it must not: turns, transactions, waits. Fails unless that is nothing."""
    here, seen = threading.get_ident(), []

    def watch(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def noting(*arguments: Any, **options: Any) -> Any:
            if threading.get_ident() == here:
                seen.append(f"{owner.__name__}.{name}")
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, noting)

    watch(turn.TurnOwner, "_run_turn")
    watch(turn.TurnOwner, "wait")
    watch(runner.ThreadWaiter, "wait")
    watch(env.Environment, "write")
    watch(env.Environment, "snapshot")
    yield seen
    assert seen == []


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something holds."""
    while not condition():
        await asyncio.sleep(0.001)


async def cancelled_at(work: Coroutine[Any, Any, object], *awaits: int) -> bool:
    """Do the work, and cancel the running task at these of its awaits (1 is the first that has to wait).

    Returns whether it was cancelled so. False: it has come to its end before.
    """
    task = asyncio.current_task()
    assert task is not None

    @types.coroutine
    def drive() -> Generator[Any, None, None]:
        step, count = partial(work.send, None), 0
        while True:
            try:
                waited_for = step()
            except StopIteration:
                return
            count += 1
            if count in awaits:
                task.cancel()  # type: ignore[union-attr]
            try:
                yield waited_for
                step = partial(work.send, None)
            except BaseException as error:
                step = partial(work.throw, error)

    try:
        await drive()
    except asyncio.CancelledError:
        return True
    return False
