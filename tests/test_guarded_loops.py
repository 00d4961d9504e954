"""No loop of the library loses an interrupt's handlers: the compiler leaves some jumps back out of `try` and `with`.

An interrupt that strikes where a loop jumps back to its head runs the handlers of *the place CPython takes it to be
raised at*, and that is not always inside the `try` or `with` around the loop: then no `finally` runs, no lock is let go.

    3.11, 3.12    the bytecode before the loop's head: a `while True` that a `try` begins with   (python/cpython#108214)
    3.13          the jump itself: one on a condition has no entry in the table of handlers      (python/cpython#130279):
                  `while condition`, a `for` whose body ends with an `if`, a comprehension with an `if`

What helps: the loop in a function of its own (an interrupt comes out of the call, which is inside), `while True` with
`if ...: break`, `if not ...: continue`.
"""

from __future__ import annotations

import dis
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import pytest

from tests.broker.interrupting import Interrupt

LIBRARY = Path(__file__).resolve().parents[1] / "streamlog"
EXEMPT = {
    "cli/": "its process ends with the interrupt: the system lets go of what it held",
    "testing/workload.py": "an interrupt ends the whole simulation",
}
_OUTSIDE_EXCEPTION = {"BaseException", "KeyboardInterrupt", "Interrupt", "CancelledError"}

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="3.10 has no table of handlers: blocks are on a stack, and that is exact",
)


class Handler(NamedTuple):
    """What an interrupt runs on its way out."""

    kind: str
    offset: int


class Handlers:
    """The table of handlers of one code object, and what stands in them."""

    def __init__(self, code: CodeType) -> None:
        parse: Any = dis._parse_exception_table  # type: ignore[attr-defined]
        self.entries = parse(code)
        self.steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
        self.index = {step.offset: index for index, step in enumerate(self.steps)}

    def met_at(self, offset: int, among: frozenset[int] = frozenset()) -> list[Handler]:
        """The handlers that an interrupt raised at this bytecode meets, inner ones first."""
        target = next((entry.target for entry in self.entries if entry.start <= offset < entry.end), None)
        if target is None or target in among:
            return []
        among |= {target}
        index = self.index[target]
        if self.steps[index].opname != "PUSH_EXC_INFO":  # only puts things in order
            return self._behind(index, among)
        index += 1
        if self.steps[index].opname == "WITH_EXCEPT_START":
            return [Handler("with", target), *self._behind(index, among)]
        while True:
            names, at = set(), index
            while self.steps[at].opname.startswith(
                ("LOAD_", "BUILD_TUPLE", "NOP", "PUSH_NULL", "CALL", "PRECALL")
            ):
                names.add(str(self.steps[at].argval))
                at += 1
            if self.steps[at].opname == "RERAISE":
                return self.met_at(self.steps[at].offset, among)
            if self.steps[at].opname != "CHECK_EXC_MATCH":
                return [Handler("finally", target), *self._behind(index, among)]
            if names & _OUTSIDE_EXCEPTION:
                return [Handler("except", target)]
            while not self.steps[at].opname.startswith("POP_JUMP"):
                at += 1
            index = self.index[self.steps[at].argval]  # the next clause

    def _behind(self, index: int, among: frozenset[int]) -> list[Handler]:
        while self.steps[index].opname != "RERAISE":
            index += 1
        return self.met_at(self.steps[index].offset, among)


def codes_in(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


def unguarded(source: str, path: str) -> list[str]:
    """The loops at whose jump back an interrupt meets fewer handlers than at their head."""
    found = []
    for code in codes_in(compile(source, path, "exec")):
        handlers, line = Handlers(code), code.co_firstlineno
        for step in handlers.steps if handlers.entries else ():
            line = (step.positions.lineno if step.positions else None) or line
            if "JUMP_BACKWARD" not in step.opname or "NO_INTERRUPT" in step.opname:
                continue
            raised_at = step.offset if sys.version_info >= (3, 13) else step.argval - 2
            met = handlers.met_at(raised_at)
            missing = [handler.kind for handler in handlers.met_at(step.argval) if handler not in met]
            if missing:
                found.append(f"{path}:{line} {code.co_name}: a jump back is outside of its {missing[0]}")
    return sorted(set(found))


def test_no_loop_of_the_library_is_outside_of_its_handlers() -> None:
    complaints = []
    for file in sorted(LIBRARY.rglob("*.py")):
        path = file.relative_to(LIBRARY).as_posix()
        if not path.startswith(tuple(EXEMPT)):
            complaints += unguarded(file.read_text(encoding="utf-8"), path)
    assert not complaints, "\n".join(complaints)


FRAME = """
def loop(events, endless, never):
    try:
        {}
    finally:
        events.append("out")
"""
SHAPES = {
    "while condition": "while endless: pass",
    "while two conditions": "while endless and not never: never = False",
    "while True first": "while True: pass",
    "while True with continue": "while True:\n            if endless: continue\n            events.append(1)",
    "while True with break": "events.clear()\n        while True:\n            if never: break",
    "for": "for each in iter(int, 1): never = each",
    "for with if": "for each in iter(int, 1):\n            if each: events.append(1)",
    "for with continue": "for each in iter(int, 1):\n            if not each: continue\n            events.append(1)",
    "comprehension": "[each for each in iter(int, 1) if each]",
    "in a function": "all(each == 0 for each in iter(int, 1))",
}


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals need the main thread"
)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_said_of_a_loop_is_what_an_interrupt_does(shape: str) -> None:
    """Struck by a real signal: the `finally` runs if and only if nothing was found."""
    source = FRAME.format(SHAPES[shape])
    names: dict[str, Any] = {}
    exec(compile(source, "shape.py", "exec"), names)

    def strike(_: int, frame: FrameType | None) -> None:
        while frame is not None:
            if (
                frame.f_code.co_filename == "shape.py"
                and frame.f_code.co_name == "loop"
                and (frame.f_lineno or 4) > 3
            ):
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise Interrupt
            frame = frame.f_back  # not in the loop yet: the next signal will find it there

    skipped = set()
    before = signal.signal(signal.SIGALRM, strike)
    try:
        for _ in range(3):
            events: list[object] = []
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            with pytest.raises(Interrupt):
                names["loop"](events, True, False)
            skipped.add(events != ["out"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (True in skipped) == bool(unguarded(source, "shape.py"))
