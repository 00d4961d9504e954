"""`process` in an event loop: the blocking loop in threads of its own, the handler in the loop.

    worker's thread --record--> handler in the loop --output--> worker's thread --> transaction

Invariants:
 1. A handler runs in the loop, one record at a time for each worker; no turn of a broker ever does.
 2. Cancelling stops the workers: the record in hand is finished, what is finished is committed, and only then it is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


async def in_thread(
    spawn: Callable[[str, Callable[[], None]], object], run: Callable[[], None], stop: Callable[[], None]
) -> None:
    """Wait for what blocks, in a thread of its own; cancelled, `stop` it and wait for its end.

    spawn:  begins a thread: name, and what it does.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if not ended.done():
            if error is None:
                ended.set_result(None)
            else:
                ended.set_exception(error)

    def work() -> None:
        error: BaseException | None = None
        try:
            run()
        except BaseException as failure:
            error = failure
        loop.call_soon_threadsafe(tell, error)

    spawn("streamlog-aio-process", work)
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        stop()
        await asyncio.wait([ended])
        if not ended.cancelled():
            ended.exception()  # what stopping brought: the cancellation is the news
        raise


def in_loop(function: Any) -> Any:
    """A function, or coroutine function, of the loop as one that a thread may call. What is no function stays."""
    if not callable(function):
        return function
    loop = asyncio.get_running_loop()

    async def called(arguments: tuple[Any, ...]) -> Any:
        result = function(*arguments)
        return await result if isinstance(result, Awaitable) else result

    def call(*arguments: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(called(arguments), loop).result()

    return call
