"""The command line `streamlog` (also `python -m streamlog`).

    streamlog COMMAND [SUBCOMMAND] ... [--dir DIR] [--json] [--debug]

The directory is always the option `--dir`, by default `./streamlog-data`; topics, groups and files are
positional. One module per command family; each adds its parser to the table in `arguments` and answers with
an exit code.

Exit codes: 0 done; 1 failed; 2 the command line is wrong; 3 another process owns the directory; 4 damage or
a contradiction was found (`verify`, `demo`); 130 Ctrl-C; 141 the reader of our output went away; 143 SIGTERM.

Invariants:
 1. Results go to stdout, everything else (progress, notes, warnings, errors) to stderr.
 2. An error is one paragraph, `streamlog: what happened; what to do`. A traceback is shown only with
    `--debug`.
 3. Nothing here is needed by the library, and nothing heavy is imported before a command needs it.

Not implemented yet: serve, mirror, sql.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. `argv` is without the program's name; None = the process's
    own.
    """
    try:
        from streamlog.cli.running import run
    except KeyboardInterrupt:  # Ctrl-C while modules load
        return 130
    return run(argv)
