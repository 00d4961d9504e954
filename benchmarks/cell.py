"""The child process of one cell: `python -m benchmarks.cell '{"bench": ..., "contestant": ...}'`."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from benchmarks.harness import RESULT_MARK, Cell, UnavailableError
from benchmarks.suite import find_bench


def main(argument: str) -> None:
    """Run the ordered cell and write its metrics as the last line."""
    order = json.loads(argument)
    bench = find_bench(order["bench"])
    cell = Cell(Path(order["directory"]), order["quick"], bench.params, Path(order["shared_directory"]))
    answer: dict[str, object]
    try:
        answer = {"metrics": bench.contestant(order["contestant"]).run(cell)}
    except UnavailableError as error:
        answer = {"unavailable": str(error)}
    except Exception as error:
        traceback.print_exc()
        frame = traceback.extract_tb(error.__traceback__)[-1]
        answer = {"failed": f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"}
    sys.stdout.write(f"\n{RESULT_MARK}{json.dumps(answer)}\n")
    sys.stdout.flush()
    # A contestant's stuck background thread must not hold the run up.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
