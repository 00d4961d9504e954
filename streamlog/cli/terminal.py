"""Where output goes: results on stdout, news on stderr; pretty for people, plain for pipes, JSON for
programs.

`rich` (the extra `cli`) is used when it is installed and the stream is a terminal; without it tables and
bars are plain text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import IO, Any, BinaryIO

import msgspec

from streamlog.cli.progress import Progress, make_progress

_RIGHT = frozenset("0123456789")


class Terminal:
    """The two streams of one command."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self._stdout: IO[str] = sys.stdout
        self._stderr: IO[str] = sys.stderr
        self.out: BinaryIO = sys.stdout.buffer
        self.is_terminal = self._stdout.isatty()
        self.shows_progress = not quiet and not json and self._stderr.isatty()

    # -- results -----------------------------------------------------------------------------------

    def line(self, text: str = "") -> None:
        """One line of result."""
        self.out.write(text.encode("utf-8", "backslashreplace") + b"\n")

    def document(self, document: Any) -> None:
        """One JSON document: indented for people, on one line for programs."""
        encoded = msgspec.json.encode(document)
        self.out.write((msgspec.json.format(encoded, indent=2) if self.is_terminal else encoded) + b"\n")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
        """A table. Columns that hold only numbers are right-aligned."""
        cells = [[show(cell) for cell in row] for row in rows]
        right = [bool(cells) and all(is_number(row[i]) for row in cells) for i in range(len(columns))]
        if self.is_terminal and self._rich_table(columns, cells, right, title):
            return
        if title:
            self.line(title)
        widths = [max(len(column), *(len(row[i]) for row in cells), 0) for i, column in enumerate(columns)]
        for row in [list(columns), *cells]:
            padded = [
                cell.rjust(width) if to_right else cell.ljust(width)
                for cell, width, to_right in zip(row, widths, right, strict=True)
            ]
            self.line("  ".join(padded).rstrip())

    def _rich_table(
        self, columns: Sequence[str], cells: list[list[str]], right: list[bool], title: str
    ) -> bool:
        try:
            from rich import box
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            return False
        table = Table(
            box=box.SIMPLE_HEAD,
            title=Text(title) if title else None,
            title_justify="left",
            title_style="bold",
        )
        for column, to_right in zip(columns, right, strict=True):
            table.add_column(column, justify="right" if to_right else "left", overflow="fold")
        for row in cells:
            table.add_row(*[Text(cell) for cell in row])
        self.flush()
        Console(file=self._stdout).print(table)
        return True

    def flush(self) -> None:
        """Everything written so far has left this process. Raises BrokenPipeError if nobody reads it."""
        self.out.flush()

    # -- news --------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Something worth knowing that is not the result."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Something the user must see."""
        try:
            self._stderr.write(printable(text, self._stderr) + "\n")
            self._stderr.flush()
        except (OSError, ValueError):
            pass  # nobody listens

    def progress(self, title: str, total: int | None, unit: str) -> Progress:
        """A progress bar (on stderr, only on a terminal). Use it as a context manager; `advance(n)` moves
        it.
        """
        return make_progress(self._stderr, self.shows_progress, title, total, unit)


def printable(text: str, stream: IO[str]) -> str:
    """The text with what the stream cannot encode written as escapes."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding, "replace")


def show(cell: object) -> str:
    """A table cell: numbers with separators, nothing as a dash, lists with commas."""
    match cell:
        case None:
            return "-"
        case bool():
            return "yes" if cell else "no"
        case int():
            return f"{cell:,}"
        case float():
            return f"{cell:,.2f}"
        case list() | tuple():
            return ",".join(str(item) for item in cell) or "-"
        case _:
            return str(cell)


def is_number(cell: str) -> bool:
    """Whether a cell belongs to the right: a number with or without a unit, or a dash."""
    return cell == "-" or (
        cell.lstrip("-")[:1] in _RIGHT and len(cell.split()) <= 2 and not any(c in cell for c in ":T/")
    )


def size(count: float) -> str:
    """A number of bytes for people: 171.2 kB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(milliseconds: float) -> str:
    """4 ms, 1.25 s, 3:05 min."""
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    return f"{seconds:.2f} s" if seconds < 100 else f"{int(seconds // 60)}:{int(seconds % 60):02d} min"


def when(timestamp_ms: int) -> str:
    """A record's time for people, in local time; a dash if it has none."""
    if timestamp_ms < 0:
        return "-"
    from datetime import datetime, timezone

    try:
        moment = datetime.fromtimestamp(timestamp_ms / 1000, timezone.utc).astimezone()
    except (OverflowError, OSError, ValueError):
        return f"{timestamp_ms} ms"
    return moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{timestamp_ms % 1000:03d}"
