"""Progress bars: rich's if it is installed, else one line that rewrites itself; nothing at all where nobody
looks.
"""

from __future__ import annotations

from typing import IO, Any, Final

from streamlog.clock import SystemClock

REDRAW_MS: Final = 100
BAR_WIDTH: Final = 28


class Progress:
    """Counts, and shows nothing: what a command holds when nobody looks."""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close()

    def advance(self, count: int) -> None:
        """So much more is done."""

    def close(self) -> None:
        """Take the bar off the screen."""


class PlainProgress(Progress):
    """One line on a terminal without rich."""

    def __init__(self, stream: IO[str], title: str, total: int | None, unit: str) -> None:
        self._stream = stream
        self._title = title
        self._total = total
        self._unit = unit
        self._clock = SystemClock()
        self._done = 0
        self._started_ms = self._drawn_ms = self._clock.monotonic_ms()
        self._width = 0

    def advance(self, count: int) -> None:
        self._done += count
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._drawn_ms >= REDRAW_MS:
            self._drawn_ms = now_ms
            self._draw(self.text(now_ms - self._started_ms))

    def text(self, elapsed_ms: int) -> str:
        """What the line says."""
        rate = self._done * 1000 / max(elapsed_ms, 1)
        counted = f"{self._done:,} {self._unit} ({rate:,.0f}/s)"
        if not self._total:
            return f"{self._title} {counted}"
        share = min(1.0, self._done / self._total)
        filled = int(share * BAR_WIDTH)
        return f"{self._title} [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {share:4.0%} {counted}"

    def _draw(self, text: str) -> None:
        padding = " " * max(0, self._width - len(text))
        self._width = len(text)
        self._stream.write(f"\r{text}{padding}")
        self._stream.flush()

    def close(self) -> None:
        if self._width:
            self._draw("")
            self._stream.write("\r")
            self._stream.flush()
            self._width = 0


class RichProgress(Progress):
    """A bar with rate and remaining time."""

    def __init__(self, progress: Any, title: str, total: int | None) -> None:
        self._progress = progress
        self._clock = SystemClock()
        self._pending = 0
        self._drawn_ms = self._clock.monotonic_ms()
        self._task = progress.add_task(title, total=total)
        progress.start()

    def advance(self, count: int) -> None:
        self._pending += count
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._drawn_ms >= REDRAW_MS:
            self._drawn_ms = now_ms
            self._progress.advance(self._task, self._pending)
            self._pending = 0

    def close(self) -> None:
        self._progress.stop()


def make_progress(stream: IO[str], shown: bool, title: str, total: int | None, unit: str) -> Progress:
    """The bar that fits: none, plain or rich."""
    if not shown:
        return Progress()
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bars
    except ImportError:
        return PlainProgress(stream, title, total, unit)
    counts = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        *counts,
        TimeRemainingColumn(),
        console=Console(file=stream),
        transient=True,
    )
    return RichProgress(bars, title, total)
