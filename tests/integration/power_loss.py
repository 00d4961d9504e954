"""A data file as it may look after a power loss: recorded writes and syncs, cut anywhere.

    strace of a writer --> Recording: writes, syncs and acknowledgements in order --> cut(k) --> a directory to open

What a completed sync covered is there. Every page written since the last one that covered it is there or not, each on its
own: the disk may keep them in any order. A write through a descriptor opened with O_DSYNC is there once it returned.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

PAGE_BYTES = 4096
CALLS = "openat,lseek,write,pwrite64,writev,pwritev,pwritev2,fdatasync,fsync,msync,sync_file_range,ftruncate"
_LINE = re.compile(r"(\d+)\s+(.*)")
_CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)(.*)", re.DOTALL)
_DESCRIPTOR = re.compile(r"(\d+)<([^>]*)>")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


class Write(NamedTuple):
    file: str
    offset: int
    data: bytes
    is_durable: bool


class Sync(NamedTuple):
    file: str
    began: int
    """Index of the event before which it began: it covers the writes before that."""


class Ack(NamedTuple):
    text: str


Event = Write | Sync | Ack


def strace_works() -> str:
    """Why not; empty if it does."""
    if shutil.which("strace") is None:
        return "strace is not installed (apt install strace)"
    tried = subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()[:100]}"


def record(command: list[str], trace: Path, acks: Path, **options: object) -> None:
    """Run a command under strace, its standard output in the file `acks`."""
    tracing = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-y",
        "-xx",
        "-s",
        "100000000",
        "-e",
        f"trace={CALLS}",
        "-o",
        str(trace),
    ]
    with open(acks, "wb") as out:
        done = subprocess.run(
            [*tracing, *command], stdout=out, stderr=subprocess.PIPE, timeout=120, **options
        )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr.decode()[-2000:]


class Recording:
    """What happened to the files below a directory, in order."""

    def __init__(self, trace: Path, directory: Path, acks: Path) -> None:
        self.directory = str(directory)
        self.acks = str(acks)
        self.events: list[Event] = []
        self._durable: dict[int, bool] = {}
        self._positions: dict[int, int] = {}
        unfinished: dict[str, tuple[str, int]] = {}
        for line in trace.read_text(errors="surrogateescape").splitlines():
            match = _LINE.match(line)
            if match is None or match[2].startswith(("+++", "---")):
                continue
            thread, text = match[1], match[2]
            began = len(self.events)
            if text.endswith(" <unfinished ...>"):
                begun = text[: -len(" <unfinished ...>")]
                if begun.startswith("write("):
                    self._note_ack(begun)  # said when the call begins
                unfinished[thread] = (begun, began)
                continue
            if text.startswith("<..."):
                begun, began = unfinished.pop(thread)
                text = begun + text.partition("resumed>")[2]
                if begun.startswith("write("):
                    continue
            self._note(text, began)
        self.files = sorted({event.file for event in self.events if isinstance(event, Write)})

    def _note_ack(self, text: str) -> None:
        descriptor = _DESCRIPTOR.search(text)
        if descriptor is not None and _unescape(descriptor[2]) == self.acks:
            self.events.append(Ack(b"".join(_strings(text)).decode()))

    def _note(self, text: str, began: int) -> None:
        call = _CALL.match(text)
        if call is None or int(call[3]) < 0:
            return
        name, arguments, result, rest = call[1], call[2], int(call[3]), call[4]
        if name == "openat":
            self._durable[result] = "O_DSYNC" in arguments or "O_SYNC" in arguments
            return
        descriptor = _DESCRIPTOR.match(arguments)
        if descriptor is None:
            return
        number, path = int(descriptor[1]), _unescape(descriptor[2])
        if path == self.acks:
            return self._note_ack(text) if name == "write" else None
        if not path.startswith(self.directory) or not path.endswith("data.mdb"):
            return None
        if name in ("fdatasync", "fsync"):
            self.events.append(Sync(path, began))
        elif name == "lseek":
            self._positions[number] = result
        elif name in ("pwrite64", "pwritev", "pwritev2", "write", "writev"):
            data = b"".join(_strings(arguments))
            assert len(data) == result, (name, len(data), result, "a write was cut short, or strace cut it")
            if name.startswith("p"):
                offset = (
                    int(re.sub(r", (RWF_\w+|0)$", "", arguments).rsplit(", ", 1)[1])
                    if name == "pwritev2"
                    else int(arguments.rsplit(", ", 1)[1])
                )
            else:
                offset = self._positions.get(number, 0)
                self._positions[number] = offset + result
            self.events.append(Write(path, offset, data, self._durable.get(number, False)))
        else:
            raise AssertionError(f"the engine does something this model does not know: {name} {rest}")
        return None

    def cut(self, index: int, chance: random.Random, target: Path, template: Path) -> None:
        """The directory after a power loss before event `index`. template: where the other files are taken from."""
        if target.exists():
            shutil.rmtree(target)
        shutil.copytree(template, target, ignore=shutil.ignore_patterns("data.mdb", "lock.mdb"))
        for file in self.files:
            pages = self._pages_after(file, index, chance)
            relative = Path(file).relative_to(self.directory)
            size = max(pages) + PAGE_BYTES if pages else 0
            content = bytearray(size)
            for offset, page in pages.items():
                content[offset : offset + len(page)] = page
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            (target / relative).write_bytes(content)
            (target / relative).chmod(0o600)

    def _pages_after(self, file: str, index: int, chance: random.Random) -> dict[int, bytes]:
        synced = max(
            (event.began for event in self.events[:index] if isinstance(event, Sync) and event.file == file),
            default=0,
        )
        # How much of the unsynced is there differs from cut to cut: all, nothing, any part.
        share = chance.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        pages: dict[int, bytes] = {}
        for place, event in enumerate(self.events[:index]):
            if not isinstance(event, Write) or event.file != file:
                continue
            for start in range(0, len(event.data), PAGE_BYTES):
                if place < synced or event.is_durable or chance.random() < share:
                    offset = event.offset + start
                    base = offset - offset % PAGE_BYTES
                    page = bytearray(pages.get(base, bytes(PAGE_BYTES)))
                    piece = event.data[start : start + PAGE_BYTES]
                    assert offset - base + len(piece) <= PAGE_BYTES
                    page[offset - base : offset - base + len(piece)] = piece
                    pages[base] = bytes(page)
        return pages

    def said_before(self, index: int) -> str:
        return "".join(event.text for event in self.events[:index] if isinstance(event, Ack))

    def last_sync_began(self, index: int, name: str) -> int:
        """Before which event the last completed sync of a file began."""
        return max(
            (event.began for event in self.events[:index] if isinstance(event, Sync) and name in event.file),
            default=0,
        )

    def first_open_index(self) -> int:
        """The first event at which a reader could know of the cluster."""
        return next(i for i, event in enumerate(self.events) if isinstance(event, Ack))


def _unescape(text: str) -> str:
    return re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), text)


def _strings(text: str) -> list[bytes]:
    found = []
    for match in _STRING.finditer(text):
        assert match[2] is None, "strace cut a string"
        found.append(bytes.fromhex(match[1].replace("\\x", "")))
    return found


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]
