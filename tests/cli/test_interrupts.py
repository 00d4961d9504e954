"""Signals as wishes."""

from __future__ import annotations

import os
import signal

import pytest

from streamlog.cli.failures import Terminated
from streamlog.cli.interrupts import Interrupts


@pytest.mark.parametrize(
    ("number", "code", "second"), [(signal.SIGINT, 130, KeyboardInterrupt), (signal.SIGTERM, 143, Terminated)]
)
def test_the_first_is_a_wish_the_second_an_order(number: int, code: int, second: type[BaseException]) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with Interrupts() as interrupts:
        assert (interrupts.requested, interrupts.exit_code) == (None, 0)
        os.kill(os.getpid(), number)
        assert (interrupts.requested, interrupts.exit_code) == (number, code)
        with pytest.raises(second):
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 1)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_signals_are_somebody_elses() -> None:
    import threading

    seen: list[object] = []

    def run() -> None:
        with Interrupts() as interrupts:
            seen.append(interrupts.requested)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [None]


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupts.requested is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
