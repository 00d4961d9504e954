"""All benches, in the order of the report."""

from __future__ import annotations

from benchmarks import disk, durability, latency, replication, scale, startup, throughput, transactions
from benchmarks.harness import Bench

THEMES = (throughput, durability, latency, scale, startup, disk, replication, transactions)
BENCHES: list[Bench] = [bench for theme in THEMES for bench in theme.BENCHES]
GROUPS: list[str] = list(dict.fromkeys(bench.group for bench in BENCHES))


def find_bench(name: str) -> Bench:
    for bench in BENCHES:
        if bench.name == name:
            return bench
    raise LookupError(f"no bench {name!r}; there are: {', '.join(bench.name for bench in BENCHES)}")


def select(words: list[str]) -> list[Bench]:
    """Benches whose group is one of the words, or whose name contains one; "all" is all."""
    if not words or "all" in words:
        return list(BENCHES)
    chosen = [bench for bench in BENCHES if any(word == bench.group or word in bench.name for word in words)]
    for word in words:
        if not any(word == bench.group or word in bench.name for bench in BENCHES):
            raise LookupError(f"{word!r} is no group ({', '.join(GROUPS)}) and in no bench's name")
    return chosen
