"""From the command line to an exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from streamlog.cli import arguments, main
from streamlog.version import VERSION


def test_help_and_version(cli: Any) -> None:
    assert cli("--version", bare=True).text == f"streamlog {VERSION}\n"
    helped = cli("--help", bare=True)
    assert helped.code == 0
    for word in (*arguments.COMMANDS, "streamlog demo", "Exit codes"):
        assert word in helped.text


def test_no_command_shows_help_on_stderr(cli: Any) -> None:
    done = cli(bare=True)
    assert (done.code, done.out) == (2, b"") and "usage: streamlog" in done.err
    done = cli("topics", bare=True)
    assert (done.code, done.out) == (2, b"") and "usage: streamlog topics" in done.err


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "streamlog: interrupted\n"),
        (BrokenPipeError(), 141, ""),
        (RuntimeError("oops"), 1, "streamlog: unexpected RuntimeError: oops."),
        (OSError(28, "No space left on device"), 1, "streamlog: No space left on device\n"),
    ],
)
def test_whatever_goes_wrong(
    cli: Any, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, told: str
) -> None:
    from streamlog.cli import verify

    def run(*_: object) -> int:
        raise raised

    monkeypatch.setattr(verify, "run", run)
    done = cli("verify")
    assert done.code == code
    assert done.err.startswith(told) and "Traceback" not in done.err
    assert ("Traceback" in cli("verify", "--debug").err) == (code == 1)


def test_sigterm_is_like_ctrl_c(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from streamlog.cli import verify

    closed = []

    def run(*_: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 5)
        finally:
            closed.append(True)
        return 0

    monkeypatch.setattr(verify, "run", run)
    before = signal.getsignal(signal.SIGTERM)
    done = cli("verify")
    assert (done.code, done.err, closed) == (143, "streamlog: terminated\n", [True])
    assert signal.getsignal(signal.SIGTERM) == before


def test_main_works_in_a_thread(store: str) -> None:
    import threading

    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(main(["topics", "create", "a", "--quiet", "--dir", store]))
    )
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.integration
def test_as_a_module_and_as_a_program(run_process: Any) -> None:
    assert run_process("--version").text == f"streamlog {VERSION}\n"
    code = (
        "import sys; from streamlog.cli import main; sys.exit(main(['topics', 'list', '--dir', '/nowhere']))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (1, "") and ran.stderr.startswith(
        "streamlog: there is no directory"
    )


@pytest.mark.integration
def test_a_small_result_into_a_closed_pipe(process: Callable[..., subprocess.Popen[bytes]], cli: Any) -> None:
    """The very last flush counts too."""
    cli("topics", "create", "a")
    started = process("topics", "list")
    assert started.stdout is not None and started.stderr is not None
    started.stdout.close()
    assert started.stderr.read() == b""
    assert started.wait(30) == 141
    started.stderr.close()


def test_nothing_heavy_is_imported_for_the_library() -> None:
    code = (
        "import streamlog, sys; print(sorted({'argparse', 'rich', 'streamlog.cli', 'json'} & "
        "set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
