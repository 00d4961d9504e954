"""Interrupts where they hurt: at a chosen bytecode of the library, or at random from another thread.

`interrupted_at(n, act)` runs `act` and raises KeyboardInterrupt before the n-th bytecode executed inside `streamlog/`, as a
signal handler could. Sweeping n over all bytecodes of an operation tries every place an interrupt can strike, the moment
between the engine's commit and the next bytecode included.
"""

from __future__ import annotations

import ctypes
import random
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

HERE = "/streamlog/"


class Interrupt(KeyboardInterrupt):
    """Ours, so that a real Ctrl-C of the person running the tests is told apart."""


class _Tracer:
    def __init__(self, strike_at: int) -> None:
        self.seen = 0
        self.strike_at = strike_at
        self.struck: str | None = None

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if HERE not in frame.f_code.co_filename or "/tests/" in frame.f_code.co_filename:
            return None
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return self.trace

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode" and self.struck is None:
            self.seen += 1
            if self.seen == self.strike_at:
                self.struck = f"{frame.f_code.co_filename.rsplit('/', 1)[1]}:{frame.f_lineno} {frame.f_code.co_name}"
                sys.settrace(None)
                raise Interrupt(self.struck)
        return self.trace


def interrupted_at(strike_at: int, act: Callable[[], object]) -> str | None:
    """Run `act`; the place where the interrupt struck, None if `act` ended before. Other errors pass."""
    tracer = _Tracer(strike_at)
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        act()
    except Interrupt:
        pass
    finally:
        sys.settrace(before)
    return tracer.struck


def count_bytecodes(act: Callable[[], object]) -> int:
    tracer = _Tracer(0)
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        act()
    finally:
        sys.settrace(before)
    return tracer.seen


def places(total: int, count: int, seed: int) -> Iterator[int]:
    """`count` of the bytecodes 1..total, spread evenly with a random jitter; all of them if there are no more."""
    if count >= total:
        yield from range(1, total + 1)
        return
    chance = random.Random(seed)
    step = total / count
    for index in range(count):
        yield 1 + int(index * step + chance.random() * step) % total


def raise_in(thread: threading.Thread) -> bool:
    """An asynchronous Interrupt for another thread, as `PyThreadState_SetAsyncExc` delivers it."""
    ident = thread.ident
    if ident is None or not thread.is_alive():
        return False
    return ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(Interrupt)) == 1
