"""The command line as tests use it: in this process through `main`, or as a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from streamlog.cli import main

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


class Result(NamedTuple):
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    def failed(self, code: int, *words: str) -> None:
        """One paragraph on stderr that holds the words, and no traceback."""
        assert self.code == code, self
        assert self.err.startswith("streamlog: "), self.err
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err, self.err


Cli = Callable[..., Result]


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A directory that is not there yet."""
    return str(tmp_path / "store")


@pytest.fixture
def cli(store: str, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command in this process. `--dir` is the test's own unless it is given."""

    def run(*arguments: str, stdin: bytes = b"", bare: bool = False) -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsysbinary.readouterr()
        given = [*arguments] if bare or "--dir" in arguments else [*arguments, "--dir", store]
        code = main(given)
        out, err = capsysbinary.readouterr()
        return Result(code, out, err.decode())

    return run


@pytest.fixture
def process(store: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a command as a process, its three streams piped. What still runs at the test's end is killed."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, module: str = "streamlog", **options: Any) -> subprocess.Popen[bytes]:
        given = [*arguments] if "--dir" in arguments else [*arguments, "--dir", store]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        made = subprocess.Popen(
            [sys.executable, "-m", module, *given], env=ENVIRONMENT, **{**pipes, **options}
        )
        begun.append(made)
        return made

    yield start
    for made in begun:
        if made.poll() is None:
            made.kill()
            made.wait()


@pytest.fixture
def run_process(process: Callable[..., subprocess.Popen[bytes]]) -> Cli:
    """Run a command as a process to its end."""

    def run(*arguments: str, stdin: bytes = b"", timeout: float = 60, **options: Any) -> Result:
        started = process(*arguments, **options)
        out, err = started.communicate(stdin, timeout)
        return Result(started.returncode, out, err.decode())

    return run


NASTY = [
    b"plain line\n",
    b"carriage return\r\n",
    b"\r\r\n",
    b"\n",
    b"\n",
    b"nul \x00 inside\n",
    b"not utf-8 \xff\xfe\x80\n",
    "umlauts äöü, 漢字, \N{GRINNING FACE}\n".encode(),
    b"\ttabs\tand trailing spaces  \n",
    b"\x1b[31mescape\x1b[0m \x07\x08\n",
    b"form feed \x0c vertical tab \x0b unit \x1f next line \xc2\x85 separator \xe2\x80\xa8\n",
    b"long " + b"x" * 70_000 + b"\n",
    b"last, without a newline",
]


@pytest.fixture(scope="session")
def nasty() -> list[bytes]:
    """Lines with every byte that likes to get lost."""
    return [*NASTY]
