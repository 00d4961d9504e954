"""The hunt: many seeds of the workload, and what they did.

    python -m streamlog.testing.hunt --seeds 0-99
    python -m streamlog.testing.hunt --seeds 17            one seed, with its last events if it fails

Prints counts of everything that is meant to happen and seeds per second; ends non-zero if a seed fails, or if something
never happened: a hunt without truncations has not hunted.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

from streamlog.testing.faults import KINDS
from streamlog.testing.workload import run

EXPECTED: Final = (
    "elections",
    "truncations",
    "ISR shrinks",
    "ISR expands",
    "acked records",
    "records read",
    *KINDS,
)
SEED_SECONDS_MAX: Final = 120
"""Of the wall clock: a seed that takes longer runs in circles; all stacks are printed."""


def parse_seeds(text: str) -> list[int]:
    """ "3", "0-99", "1,5,7-9". Raises ValueError."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def hunt(seeds: list[int], *, required: tuple[str, ...] = EXPECTED, verbose: bool = False) -> int:
    """Run them; how many things are wrong."""
    counts: Counter[str] = Counter()
    failed: list[int] = []
    begun = time.perf_counter()
    for seed in seeds:
        _say(f"seed {seed}") if verbose else None
        faulthandler.dump_traceback_later(SEED_SECONDS_MAX, exit=True, file=2)
        try:
            outcome = run(seed)
        except Exception as error:
            failed.append(seed)
            _say(f"seed {seed}: {type(error).__name__}: {error}")
            if verbose:
                _say(getattr(error, "trace", ""))
        else:
            counts.update(outcome.counts)
            counts["operations"] += outcome.operations
            counts["virtual seconds"] += round(outcome.virtual_seconds)
            if verbose:
                _say(f"seed {seed}: digest {outcome.digest:08x}")
        finally:
            faulthandler.cancel_dump_traceback_later()
    took_seconds = time.perf_counter() - begun
    for name in sorted({*counts, *required}):
        _say(f"{counts[name]:>12,} {name}")
    missing = [name for name in required if not counts[name]] if len(failed) < len(seeds) else []
    if missing:
        _say(f"never happened: {', '.join(missing)}")
    if failed:
        _say(f"failed seeds: {','.join(map(str, failed))}")
    _say(
        f"{len(seeds)} seeds in {took_seconds:.1f} s, {len(seeds) / took_seconds:.2f} a second, {len(failed)} failed"
    )
    return len(failed) + len(missing)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m streamlog.testing.hunt", description="Hunt a simulated cluster."
    )
    parser.add_argument("--seeds", type=parse_seeds, default=parse_seeds("0-99"), help="3, 0-99, or 1,5,7-9")
    given = parser.parse_args(arguments)
    is_one = len(given.seeds) == 1
    with faults_unlogged():
        return 1 if hunt(given.seeds, required=() if is_one else EXPECTED, verbose=is_one) else 0


@contextlib.contextmanager
def faults_unlogged() -> Iterator[None]:
    """Log nothing of what a hunt provokes; the caller's level comes back at the end."""
    logger = logging.getLogger("streamlog")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
