"""Interrupts where they hurt: at a chosen bytecode of the library, or at random from another thread.

`interrupted_at(n, act)` runs `act` and raises KeyboardInterrupt at the n-th place inside `streamlog/` where CPython looks
for signals and asynchronous exceptions. Sweeping n over all places of an operation tries every interrupt it can meet, the
one between the engine's commit and the next step included.

`watching` is what sees the bytecodes: `sys.settrace` up to 3.11, `sys.monitoring` from 3.12, where tracing of opcodes no
longer reaches every frame.
"""

from __future__ import annotations

import contextlib
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
_MONITORING: Any = getattr(sys, "monitoring", None)
_TOOL = 4  # none of the numbers that debuggers, coverage and profilers take
_BEGIN = -1  # what ran before the first bytecode of a frame

Step = Callable[[FrameType, int], object]


class Interrupt(KeyboardInterrupt):
    """Ours, so that a real Ctrl-C of the person running the tests is told apart."""


# -- every bytecode ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watching(ours: Callable[[str], bool], step: Step) -> Iterator[None]:
    """Before each bytecode that this thread runs in files that are `ours`: `step(frame, offset of the one before)`.

    What `step` raises is raised there, and ends the watching. What it calls is not watched.
    """
    watch = _Tracing(ours, step) if _MONITORING is None else _Monitoring(ours, step)
    watch.begin()
    try:
        yield
    finally:
        watch.end()


class _Tracing:
    def __init__(self, ours: Callable[[str], bool], step: Step) -> None:
        self.ours, self.step = ours, step
        self.previous: dict[int, int] = {}
        self.before: Any = None

    def begin(self) -> None:
        self.before = sys.gettrace()
        sys.settrace(self.enter)

    def end(self) -> None:
        sys.settrace(self.before)

    def enter(self, frame: FrameType, event: str, _: Any) -> Any:
        if not self.ours(frame.f_code.co_filename):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        self.previous[id(frame)] = _BEGIN if _RESUME is None else frame.f_lasti
        return self.trace

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode":
            last, self.previous[id(frame)] = self.previous.get(id(frame), _BEGIN), frame.f_lasti
            self.step(frame, last)
        return self.trace


class _Monitoring:
    """Sees all threads, and passes over what is not ours or not this thread's."""

    def __init__(self, ours: Callable[[str], bool], step: Step) -> None:
        self.ours, self.step = ours, step
        self.previous: dict[int, int] = {}
        self.thread = threading.get_ident()
        self.codes: set[CodeType] = set()
        self.ended = False

    def begin(self) -> None:
        events = _MONITORING.events
        _MONITORING.use_tool_id(_TOOL, "streamlog's interrupts")
        _MONITORING.register_callback(_TOOL, events.PY_START, self.enter)
        _MONITORING.register_callback(_TOOL, events.PY_RESUME, self.enter)
        _MONITORING.register_callback(_TOOL, events.INSTRUCTION, self.instruction)
        _MONITORING.restart_events()
        _MONITORING.set_events(_TOOL, events.PY_START | events.PY_RESUME)

    def end(self) -> None:
        self.ended = True
        events = _MONITORING.events
        _MONITORING.set_events(_TOOL, 0)
        for code in tuple(self.codes):
            _MONITORING.set_local_events(_TOOL, code, 0)
        for event in (events.PY_START, events.PY_RESUME, events.INSTRUCTION):
            _MONITORING.register_callback(_TOOL, event, None)
        _MONITORING.free_tool_id(_TOOL)

    def enter(self, code: CodeType, offset: int) -> Any:
        if self.ended or not self.ours(code.co_filename):
            return _MONITORING.DISABLE
        if threading.get_ident() != self.thread:
            return None
        if code not in self.codes:
            self.codes.add(code)
            _MONITORING.set_local_events(_TOOL, code, _MONITORING.events.INSTRUCTION)
        self.previous[id(sys._getframe(1))] = offset
        return None

    def instruction(self, code: CodeType, offset: int) -> Any:
        if self.ended:
            return _MONITORING.DISABLE
        if threading.get_ident() != self.thread:
            return None
        frame = sys._getframe(1)
        last, self.previous[id(frame)] = self.previous.get(id(frame), _BEGIN), offset
        try:
            self.step(frame, last if offset else _BEGIN)
        except BaseException:
            self.ended = True
            raise
        return None


# -- where CPython looks for interrupts ----------------------------------------------------------------------------------


def _is_struck(name: str) -> bool:
    """Whether CPython looks for interrupts right behind this bytecode: behind calls, loops and at the
    start of a function.
    """
    if "INTRINSIC" in name or "NO_INTERRUPT" in name:
        return False
    return name.startswith("CALL") or name == "RESUME" or "JUMP_BACKWARD" in name or name == "JUMP_ABSOLUTE"


_STRUCK = frozenset(code for name, code in dis.opmap.items() if _is_struck(name))
_JUMPS_BACK = frozenset(code for name, code in dis.opmap.items() if "JUMP_BACKWARD" in name)
_LOOKS_BEFORE_JUMPING = sys.version_info >= (3, 13)
_RESUME = dis.opmap.get("RESUME")
_RESUMES_STRUCK = (0, 1)  # at the start and behind `yield`, not behind `yield from` and `await`
# 3.10 has no RESUME, looks also behind jumps on a condition, and never where a `try` or `with` is about to begin.
_CONDITIONS = frozenset(
    code for name, code in dis.opmap.items() if name.startswith("POP_JUMP_IF") and _RESUME is None
)
_SPARED = frozenset(
    dis.opmap[name]
    for name in ("SETUP_FINALLY", "SETUP_WITH", "BEFORE_ASYNC_WITH", "YIELD_FROM")
    if _RESUME is None and name in dis.opmap
)

_bytecode = functools.cache(lambda code: code.co_code)


@functools.cache
def _handlers(code: CodeType) -> list[tuple[int, int, int]]:
    parse: Any = getattr(dis, "_parse_exception_table", None)  # 3.10 keeps blocks on a stack instead
    return [] if parse is None else [(entry.start, entry.end, entry.target) for entry in parse(code)]


def _handler(code: CodeType, offset: int) -> int:
    """Where an exception raised at this bytecode goes; -1: to the caller."""
    return next((target for start, end, target in _handlers(code) if start <= offset < end), -1)


@functools.cache
def _is_place(code: CodeType, last: int, offset: int) -> bool:
    """Whether an interrupt may strike between these two bytecodes of a frame."""
    bytecode = _bytecode(code)
    if bytecode[offset] in _SPARED:
        return False
    if _LOOKS_BEFORE_JUMPING and bytecode[offset] in _JUMPS_BACK:
        return True
    if last == _BEGIN:
        return _RESUME is None
    while bytecode[last] == dis.EXTENDED_ARG:  # it and what it belongs to are one step
        last += 2
    opcode = bytecode[last]
    if last == offset or opcode not in _STRUCK:
        return opcode in _CONDITIONS and offset != last + 2
    if opcode == _RESUME:
        return bytecode[last + 1] & 3 in _RESUMES_STRUCK
    if opcode in _JUMPS_BACK:
        if _LOOKS_BEFORE_JUMPING:
            return False
        last = offset - 2  # CPython takes it for raised by whatever stands before the loop
    # The tool raises at the bytecode to come, CPython at the one before: only where that is the same.
    return _handler(code, last) == _handler(code, offset)


class _Strikes:
    def __init__(self, strike_at: int) -> None:
        self.seen = 0
        self.strike_at = strike_at
        self.struck: str | None = None

    def __call__(self, frame: FrameType, last: int) -> None:
        if self.struck is None and _is_place(frame.f_code, last, frame.f_lasti):
            self.seen += 1
            if self.seen == self.strike_at:
                place = (
                    f"{frame.f_code.co_filename.rsplit('/', 1)[1]}:{frame.f_lineno} {frame.f_code.co_name}"
                )
                self.struck = place
                raise Interrupt(place)


def _is_librarys(path: str) -> bool:
    return HERE in path and "/tests/" not in path


def interrupted_at(strike_at: int, act: Callable[[], object]) -> str | None:
    """Run `act`; the place where the interrupt struck, None if `act` ended before. Other errors pass."""
    strikes = _Strikes(strike_at)
    with watching(_is_librarys, strikes), contextlib.suppress(Interrupt):
        act()
    return strikes.struck


def count_places(act: Callable[[], object]) -> int:
    strikes = _Strikes(0)
    with watching(_is_librarys, strikes):
        act()
    return strikes.seen


def places(total: int, count: int, seed: int) -> Iterator[int]:
    """`count` of the places 1..total, spread evenly with a random jitter; all of them if there are no more.

    None comes twice.
    """
    assert total > 0, "there is nowhere to strike"
    if count >= total:
        yield from range(1, total + 1)
        return
    chance = random.Random(seed)
    step = total / count
    for index in range(count):
        low, high = int(index * step), int((index + 1) * step)
        yield 1 + low + int(chance.random() * (high - low))


def raise_in(thread: threading.Thread) -> bool:
    """An asynchronous Interrupt for another thread, as `PyThreadState_SetAsyncExc` delivers it."""
    ident = thread.ident
    if ident is None or not thread.is_alive():
        return False
    return ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(Interrupt)) == 1
