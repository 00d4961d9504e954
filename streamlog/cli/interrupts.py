"""Ctrl-C and SIGTERM as a wish, so that a command ends between two records and not inside one.

The first signal only sets `requested`; loops wait in slices of SLICE_SECONDS and look at it. The second ends
everything at once.
"""

from __future__ import annotations

import signal
from typing import Any, Final

from streamlog.cli.failures import INTERRUPTED, TERMINATED, Terminated

SLICE_SECONDS: Final = 0.1
"""How long a loop may wait before it looks at `requested` again."""


class Interrupts:
    """Use as a context manager around a loop that looks at `requested`."""

    def __init__(self) -> None:
        self.requested: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is signal.SIG_IGN:
                continue  # a shell's background job, or nohup: stay deaf
            try:
                self._before[number] = signal.signal(number, self._on_signal)
            except ValueError:
                break  # not the main thread: somebody else handles signals
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.requested is not None:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.requested = number

    @property
    def exit_code(self) -> int:
        """What the command returns: 0 if nobody asked it to end."""
        if self.requested is None:
            return 0
        return TERMINATED if self.requested == signal.SIGTERM else INTERRUPTED
