"""Interrupts where they hurt: at a chosen bytecode of the library, or at random from another thread.

`interrupted_at(n, act)` runs `act` and raises KeyboardInterrupt at the n-th place inside `streamlog/` where
CPython looks for
signals and asynchronous exceptions. Sweeping n over all places of an operation tries every interrupt it can meet, the one
between the engine's commit and the next step included.
"""

from __future__ import annotations

import ctypes
import dis
import functools
import random
import sys
import threading
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

HERE = "/streamlog/"


class Interrupt(KeyboardInterrupt):
    """Ours, so that a real Ctrl-C of the person running the tests is told apart."""


def _is_struck(name: str) -> bool:
    """Whether CPython looks for interrupts right behind this bytecode: behind calls, loops and at the
    start of a function.
    """
    return name.startswith("CALL") or name == "RESUME" or "JUMP_BACKWARD" in name or name == "JUMP_ABSOLUTE"


_STRUCK = frozenset(code for name, code in dis.opmap.items() if _is_struck(name))


@functools.cache
def _handlers(code: CodeType) -> list[tuple[int, int, int]]:
    parse: Any = getattr(dis, "_parse_exception_table", None)  # 3.10 keeps blocks on a stack instead
    return [] if parse is None else [(entry.start, entry.end, entry.target) for entry in parse(code)]


def _handler(code: CodeType, offset: int) -> int:
    """Where an exception raised at this bytecode goes; -1: to the caller."""
    return next((target for start, end, target in _handlers(code) if start <= offset < end), -1)


class _Tracer:
    def __init__(self, strike_at: int) -> None:
        self.seen = 0
        self.strike_at = strike_at
        self.struck: str | None = None
        self._bytecode: dict[CodeType, bytes] = {}
        self._previous: dict[int, int] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if HERE not in frame.f_code.co_filename or "/tests/" in frame.f_code.co_filename:
            return None
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        self._previous.pop(id(frame), None)
        if frame.f_code not in self._bytecode:
            self._bytecode[frame.f_code] = frame.f_code.co_code
        return self.trace

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode" and self.struck is None:
            last = self._previous.get(id(frame), -1)
            self._previous[id(frame)] = frame.f_lasti
            code = frame.f_code
            # The tracer raises at the bytecode to come, CPython at the one before: only where that is the same.
            if (
                last >= 0
                and self._bytecode[code][last] in _STRUCK
                and _handler(code, last) == _handler(code, frame.f_lasti)
            ):
                self.seen += 1
                if self.seen == self.strike_at:
                    place = f"{frame.f_code.co_filename.rsplit('/', 1)[1]}:{frame.f_lineno} {frame.f_code.co_name}"
                    self.struck = place
                    sys.settrace(None)
                    raise Interrupt(place)
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


def count_places(act: Callable[[], object]) -> int:
    tracer = _Tracer(0)
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        act()
    finally:
        sys.settrace(before)
    return tracer.seen


def places(total: int, count: int, seed: int) -> Iterator[int]:
    """`count` of the places 1..total, spread evenly with a random jitter; all of them if there are no more."""
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
