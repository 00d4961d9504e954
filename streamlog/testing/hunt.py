"""The hunt: many seeds of the workload, and what they did.

    python -m streamlog.testing.hunt --seeds 0-99
    python -m streamlog.testing.hunt --seeds 17            one seed, with its last events if it fails
    python -m streamlog.testing.hunt --seeds 17 --without producer-1,fault-3      the same without some of it
    python -m streamlog.testing.hunt --jobs 1              in one process; as many as there are processors otherwise

Prints how far it is, counts of everything that is meant to happen and seeds per second; ends non-zero if a seed fails, or
if something never happened: a hunt without truncations has not hunted. A seed that fails is made smaller first: the trace
is of the fewest clients and faults with which it fails in the same way.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, Final

import msgspec

from streamlog.testing.faults import KINDS
from streamlog.testing.shrinking import kind_of, shrink
from streamlog.testing.workload import Outcome, run

EXPECTED: Final = (
    "elections",
    "truncations",
    "ISR shrinks",
    "ISR expands",
    "acked records",
    "records read",
    "committed transactions",
    "aborted transactions",
    "fenced transactions",
    "timed out transactions",
    "workers that died",
    *KINDS,
)
SEEDS_AT_ONCE: Final = 5
"""A process takes so many at a time."""
PROGRESS_SECONDS: Final = 15.0
SHRINK_SECONDS_MAX: Final = 60.0
"""So long a failed seed is made smaller."""
SEED_SECONDS_MAX: Final = 120
"""Of processor time: a seed that takes longer runs in circles; which one, and all stacks, are printed. (The wall clock
would blame it for a machine that was suspended.)"""
LOOK_SECONDS: Final = 1.0
STUCK_SECONDS_MAX: Final = 3_600
"""Of the wall clock: a seed that takes longer holds the interpreter's lock for good."""


def parse_seeds(text: str) -> list[int]:
    """ "3", "0-99", "1,5,7-9". Raises ValueError."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


class Run(msgspec.Struct):
    """What became of one seed."""

    seed: int
    counts: dict[str, int] = {}
    digest: int = 0
    failure: str = ""
    trace: str = ""


def hunt(
    seeds: list[int],
    *,
    required: tuple[str, ...] = EXPECTED,
    verbose: bool = False,
    jobs: int = 1,
    without: frozenset[str] = frozenset(),
) -> int:
    """Run them, in `jobs` processes, without some clients and faults; how many things are wrong."""
    counts: Counter[str] = Counter()
    failed: list[int] = []
    begun = time.perf_counter()
    said_seconds = 0.0
    for done, each in enumerate(_runs(seeds, jobs, without), 1):
        now_seconds = time.perf_counter() - begun
        if now_seconds - said_seconds >= PROGRESS_SECONDS:
            said_seconds = now_seconds
            left_seconds = now_seconds / done * (len(seeds) - done)
            _say(f"{done} of {len(seeds)} seeds, {len(failed)} failed, about {left_seconds:.0f} s to go")
        counts.update(each.counts)
        if each.failure:
            failed.append(each.seed)
            _say(f"seed {each.seed}: {each.failure}")
        if verbose or each.trace:
            _say(each.trace or f"seed {each.seed}: digest {each.digest:08x}")
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


def _runs(seeds: list[int], jobs: int, without: frozenset[str]) -> Iterator[Run]:
    one = partial(run_one, without=without)
    if jobs <= 1:
        yield from map(one, seeds)
        return
    spawning = multiprocessing.get_context("spawn")  # not forked: a simulation is made of threads
    settled = spawning.Value("i", 0)
    with ProcessPoolExecutor(jobs, spawning, initializer=_settle, initargs=(settled,)) as pool:
        yield from pool.map(one, seeds, chunksize=SEEDS_AT_ONCE)


def _settle(settled: Any) -> None:
    """Keep this process on one processor: its threads take turns, and a baton that stays there is handed over sooner."""
    if not hasattr(os, "sched_setaffinity"):  # only Linux has it
        return
    processors = sorted(os.sched_getaffinity(0))
    with settled.get_lock():
        number, settled.value = settled.value, settled.value + 1
    os.sched_setaffinity(0, {processors[number % len(processors)]})


def run_one(seed: int, without: frozenset[str] = frozenset()) -> Run:
    """One seed, in whatever process this is; made smaller if it fails."""
    try:
        outcome = _watched(seed, without)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
        return Run(seed, failure=failure, trace=_smallest(seed, without, error))
    counts = {
        **outcome.counts,
        "operations": outcome.operations,
        "virtual seconds": round(outcome.virtual_seconds),
    }
    return Run(seed, counts, outcome.digest)


def _smallest(seed: int, without: frozenset[str], error: Exception) -> str:
    """The trace of a failed seed with the fewest clients and faults that fail in the same way."""
    begun, kind, traces = time.perf_counter(), kind_of(error), {without: getattr(error, "trace", "")}

    def still_fails(tried: frozenset[str]) -> bool:
        try:
            _watched(seed, without | tried)
        except Exception as again:
            traces[without | tried] = getattr(again, "trace", "")
            return kind_of(again) == kind
        return False

    parts = [part for part in getattr(error, "parts", ()) if part not in without]
    spared = shrink(parts, still_fails, lambda: time.perf_counter() - begun < SHRINK_SECONDS_MAX)
    return traces[without | spared]


def _watched(seed: int, without: frozenset[str]) -> Outcome:
    """Run a seed, and end the process if that runs in circles."""
    is_over = threading.Event()
    watching = threading.Thread(target=_end_circles, args=(seed, is_over), daemon=True)
    watching.start()
    # By C's own clock: it ends also what never lets go of the interpreter's lock.
    faulthandler.dump_traceback_later(STUCK_SECONDS_MAX, exit=True, file=2)
    try:
        with faults_unlogged():
            return run(seed, without=without)
    finally:
        faulthandler.cancel_dump_traceback_later()
        is_over.set()
        watching.join()


def _end_circles(seed: int, is_over: threading.Event) -> None:
    begun_seconds = time.process_time()
    while not is_over.wait(LOOK_SECONDS):
        if time.process_time() - begun_seconds > SEED_SECONDS_MAX:
            _say(f"seed {seed}: not done in {SEED_SECONDS_MAX} s of processor time")
            faulthandler.dump_traceback(file=2)
            os._exit(1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m streamlog.testing.hunt", description="Hunt a simulated cluster."
    )
    parser.add_argument("--seeds", type=parse_seeds, default=parse_seeds("0-99"), help="3, 0-99, or 1,5,7-9")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (the processors)")
    parser.add_argument(
        "--without",
        type=lambda text: frozenset(text.split(",")),
        default=frozenset(),
        help="clients and faults to leave out, as a failed seed names them",
    )
    given = parser.parse_args(arguments)
    is_one = len(given.seeds) == 1
    jobs = min(given.jobs, len(given.seeds))
    required = () if is_one else EXPECTED
    return 1 if hunt(given.seeds, required=required, verbose=is_one, jobs=jobs, without=given.without) else 0


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
