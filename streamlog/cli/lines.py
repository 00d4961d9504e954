"""Lines of files and of stdin as records, every byte kept.

A line is what stands between two newline bytes; `\\r`, NUL and invalid UTF-8 are part of it. A last line
without a newline is told apart by the header LINE_END, so that writing values out again gives the very same
bytes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from streamlog.cli.failures import CommandError
from streamlog.cli.interrupts import SLICE_SECONDS, Interrupts
from streamlog.record import Record

LINE_END: Final = "streamlog.line-end"
"""The header of a value that no newline followed; its value is what did follow: nothing."""

UNTERMINATED: Final = ((LINE_END, b""),)
STDIN: Final = "-"
_CHUNK_BYTES: Final = 1 << 18


class Source:
    """One input: a file, or stdin."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_stdin = name == STDIN

    @property
    def title(self) -> str:
        """Its name for people."""
        return "stdin" if self.is_stdin else self.name

    def size_bytes(self) -> int | None:
        """How large it is; None if nobody can tell."""
        if self.is_stdin:
            return None
        try:
            found = os.stat(self.name)
        except OSError as error:
            raise unreadable(self.name, error) from error
        return found.st_size or None

    def chunks(self, interrupts: Interrupts) -> Iterator[bytes]:
        """Its bytes as they come, until the end or until somebody wants us to end."""
        try:
            if self.is_stdin:
                yield from _chunks(sys.stdin.buffer, interrupts)
            else:
                with open(self.name, "rb", buffering=0) as file:
                    yield from _chunks(file, interrupts)
        except OSError as error:
            raise unreadable(self.title, error) from error


def unreadable(name: str, error: OSError) -> CommandError:
    """What to say of an input that cannot be read."""
    return CommandError(f"cannot read {name}: {error.strerror or error}")


def _chunks(file: BinaryIO, interrupts: Interrupts) -> Iterator[bytes]:
    read = _reader(file)
    while interrupts.requested is None:
        chunk = read()
        if chunk is None:
            continue
        if not chunk:
            return
        yield chunk


def _reader(file: BinaryIO) -> Callable[[], bytes | None]:
    """A function that returns the next bytes, b"" at the end, None if there were none for a while."""
    try:
        descriptor = file.fileno()
    except (OSError, ValueError):
        return lambda: file.read(_CHUNK_BYTES)
    import select

    def read() -> bytes | None:
        ready, _, _ = select.select([descriptor], [], [], SLICE_SECONDS)
        return os.read(descriptor, _CHUNK_BYTES) if ready else None

    return read


def split_lines(chunks: Iterator[bytes], interrupts: Interrupts) -> Iterator[tuple[list[bytes], bool]]:
    """Lists of whole lines without their newline, as they come; the last list may hold one line nothing
    followed (True).

    After an interrupt the unfinished rest is not a line and is left out.
    """
    rest = b""
    for chunk in chunks:
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        if lines:
            yield lines, False
    if rest and interrupts.requested is None:
        yield [rest], True


def terminator(record: Record) -> bytes:
    """What to write behind a value: a newline, unless none followed it when it was read."""
    for name, value in record.headers:
        if name == LINE_END:
            return value or b""
    return b"\n"
