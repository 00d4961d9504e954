"""For all tests: on how many processors they run, and what the processes they start inherit.

The default suite as a whole runs on up to `WORKERS_MAX` processors; what somebody names (a file, `-k`, `-m`) runs in
one process, where a debugger reaches it. `-n 0` or `-n 3` says otherwise.

Where PYTHONDONTWRITEBYTECODE is set, every one of some two hundred processes would compile the library again, a
quarter to half a second each. They get a cache that lives as long as the run instead; the checkout stays clean.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile

import pytest
from hypothesis import settings

# How long an example takes says what else the machine does.
settings.register_profile("streamlog", deadline=None)
settings.load_profile("streamlog")

WORKERS_MAX = 4
"""Some tests measure their own process's time: more would only disturb each other."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    is_named = config.args_source is config.ArgsSource.ARGS or config.option.keyword
    if is_named or config.option.markexpr != "not long":
        return 0
    workers = min(WORKERS_MAX, os.cpu_count() or 1)
    return workers if workers > 1 else 0


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background of a shell; the processes that tests interrupt would inherit it and go on for ever.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not sys.dont_write_bytecode or "PYTHONPYCACHEPREFIX" in os.environ:
        return
    cache = tempfile.TemporaryDirectory(prefix="streamlog-tests-bytecode-", ignore_cleanup_errors=True)
    config.add_cleanup(cache.cleanup)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = cache.name
