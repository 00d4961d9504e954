"""`python -m benchmarks [group or part of a name ...]`: measure, print Markdown, keep JSON."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from shutil import rmtree

from benchmarks import report
from benchmarks.harness import BenchResult, Options, run_bench
from benchmarks.suite import BENCHES, GROUPS, select


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="streamlog beside its rivals")
    parser.add_argument(
        "what", nargs="*", help=f"groups ({', '.join(GROUPS)}), parts of a bench's name, or all"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the work: does it run, roughly how fast"
    )
    parser.add_argument("--repeats", type=int, default=None, help="interleaved repeats (5, quick: 2)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="CONTESTANT", help="only these contestants"
    )
    parser.add_argument(
        "--scratch", type=Path, default=None, help="where stores are written (default: temporary directory)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order of contestants")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write everything measured")
    parser.add_argument(
        "--markdown", type=Path, default=None, metavar="FILE", help="write the tables (else they are printed)"
    )
    parser.add_argument("--list", action="store_true", help="list benches and contestants")
    options = parser.parse_args(arguments)
    try:
        benches = select(options.what)
    except LookupError as error:
        parser.error(str(error))
    if options.list or not options.what:
        for bench in benches:
            print(f"{bench.group:11} {bench.name}: {'; '.join(one.name for one in bench.contestants)}")
        return 0
    known = {one.name for bench in BENCHES for one in bench.contestants}
    for name in options.only:
        if name not in known:
            parser.error(f"no contestant {name!r}; there are: {', '.join(sorted(known))}")

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    run = Options(
        repeats=options.repeats or (2 if options.quick else 5),
        quick=options.quick,
        only=options.only,
        seed=options.seed,
        say=say,
    )
    scratch = Path(tempfile.mkdtemp(prefix="streamlog-bench-", dir=options.scratch))
    about = report.machine(scratch)
    if about["filesystem"] == "tmpfs":
        say(f"warning: {scratch} is a tmpfs: nothing is flushed there; pass --scratch with one on disk")
    results: list[BenchResult] = []
    is_interrupted = False
    try:
        for bench in benches:
            results.append(run_bench(bench, run, scratch))
    except KeyboardInterrupt:
        is_interrupted = True
        say("interrupted: reporting what was measured")
    finally:
        rmtree(scratch, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(report.as_json(results, about), indent=1) + "\n")
    text = report.markdown(results, about)
    if options.markdown:
        options.markdown.write_text(text)
    else:
        print(text)
    return 130 if is_interrupted else 1 if any(result.failures for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
