"""Where `consume` writes: stdout, or one file per key in a directory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Final

from streamlog.cli.failures import CommandError
from streamlog.cli.formats import Format, readable
from streamlog.cli.terminal import Terminal
from streamlog.record import Record
from streamlog.wording import plural

OPEN_FILES_MAX: Final = 64
WITHOUT_KEY: Final = "no-key"


class Output:
    """Takes records; `flush` returns when they have left this process."""

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close()

    def write(self, records: list[Record]) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing more comes."""

    def report(self, terminal: Terminal, count: int) -> None:
        """Say what was written, on stderr."""
        if terminal.shows_progress:
            terminal.note(f"{plural(count, 'record')}")


class StdoutOutput(Output):
    """Everything in the order it is read."""

    def __init__(self, terminal: Terminal, write: Format) -> None:
        self._terminal = terminal
        self._format = write

    def write(self, records: list[Record]) -> None:
        self._terminal.out.write(self._format(records))

    def flush(self) -> None:
        self._terminal.flush()


class OutputDirectory(Output):
    """A file per key, named by the key.

    A key is taken as a relative path; "..", "." and leading slashes are dropped, so nothing is written
    outside.
    append: go on with files that exist (a group that continues); otherwise they are refused.
    """

    def __init__(self, path: str, write: Format, *, append: bool) -> None:
        self._root = Path(path)
        self._format = write
        self._append = append
        self._open: dict[bytes | None, IO[bytes]] = {}
        self._paths: dict[Path, bytes | None] = {}

    def write(self, records: list[Record]) -> None:
        by_key: dict[bytes | None, list[Record]] = {}
        for record in records:
            by_key.setdefault(record.key, []).append(record)
        for key, some in by_key.items():
            self._file(key).write(self._format(some))

    def _file(self, key: bytes | None) -> IO[bytes]:
        file = self._open.pop(key, None)
        if file is None:
            if len(self._open) >= OPEN_FILES_MAX:
                self._open.pop(next(iter(self._open))).close()
            file = self._opened(key)
        self._open[key] = file  # the most recently used one last
        return file

    def _opened(self, key: bytes | None) -> IO[bytes]:
        path = self._root / file_name(key)
        known = path in self._paths
        if known and self._paths[path] != key:
            raise CommandError(
                f"the keys {_shown(self._paths[path])} and {_shown(key)} would both be the file {path}; use "
                "--format json"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (known or self._append) and path.is_file():
                raise CommandError(
                    f"{path} exists; choose another --output-dir (only a --group goes on with existing files)"
                )
            file = open(path, "ab")  # noqa: SIM115
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror}") from error
        self._paths[path] = key
        return file

    def flush(self) -> None:
        for file in self._open.values():
            file.flush()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def report(self, terminal: Terminal, count: int) -> None:
        files: Iterable[Path] = self._paths
        if terminal.json:
            terminal.document({"records": count, "files": sorted(map(str, files))})
        elif not terminal.quiet:
            terminal.line(
                f"{plural(count, 'record')} written to {plural(len(self._paths), 'file')} in {self._root}"
            )


def file_name(key: bytes | None) -> str:
    """The relative path a key stands for."""
    if key is None:
        return WITHOUT_KEY
    parts = [part for part in os.fsdecode(key.replace(b"\0", b"_")).split("/") if part not in ("", ".", "..")]
    return os.path.join(*parts) if parts else WITHOUT_KEY + "-empty"


def _shown(key: bytes | None) -> str:
    return "(none)" if key is None else readable(key)
