"""From the command line to an exit code: parse, run, and turn whatever goes wrong into words."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from streamlog.cli import failures
from streamlog.cli.arguments import build_parser, with_joined_names
from streamlog.cli.terminal import Terminal


def run(argv: Sequence[str] | None) -> int:
    """Run one command line. Never raises, except `SystemExit`'s cousins from outside."""
    arguments = None
    try:
        try:
            parser = build_parser()
            arguments = parser.parse_args(with_joined_names(sys.argv[1:] if argv is None else argv))
        except SystemExit as ended:  # --help and --version
            sys.stdout.flush()
            return int(ended.code or 0)
        if not hasattr(arguments, "run"):
            getattr(arguments, "family", parser).print_help(sys.stderr)
            return failures.USAGE
        terminal = Terminal(json=arguments.json, quiet=arguments.quiet)
        with _Termination():
            code: int = arguments.run(arguments, terminal)
            terminal.flush()
        return code
    except BrokenPipeError:
        _silence_stdout()
        return failures.BROKEN_PIPE
    except KeyboardInterrupt:
        return _ended("interrupted", failures.INTERRUPTED)
    except failures.Terminated:
        return _ended("terminated", failures.TERMINATED)
    except Exception as error:
        if arguments is not None and arguments.debug:
            import traceback

            traceback.print_exc()
        code, text = failures.explain(error)
        _say(f"streamlog: {text}")
        _silence_stdout_if_broken()
        return code


class _Termination:
    """While a command runs, SIGTERM ends it as Ctrl-C does: cleanly. Only the main thread can ask for
    that.
    """

    def __enter__(self) -> None:
        self._before = None
        try:
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                self._before = signal.signal(signal.SIGTERM, _terminate)
        except ValueError:
            pass  # not the main thread

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


def _terminate(number: int, frame: object) -> None:
    raise failures.Terminated


def _ended(how: str, code: int) -> int:
    _say(f"streamlog: {how}")
    _silence_stdout_if_broken()
    return code


def _say(text: str) -> None:
    try:
        sys.stderr.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def _silence_stdout_if_broken() -> None:
    """What is still in the buffer goes out now, or never: the interpreter must not complain at its exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _silence_stdout()


def _silence_stdout() -> None:
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return  # not a real stream: a test's
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
