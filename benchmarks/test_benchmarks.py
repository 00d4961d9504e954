"""pytest-benchmark's way in: `pytest benchmarks/test_benchmarks.py -m benchmark`.

Good for comparing two commits of streamlog (`--benchmark-autosave`, `--benchmark-compare`); for comparing
streamlog with others use `python -m benchmarks`, which interleaves. Every cell runs in its quick form in this
process, three rounds; what the cell itself measured (without its preparation) is in `extra_info`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import Bench, Cell, Contestant, Metrics, UnavailableError, fresh_directory
from benchmarks.suite import BENCHES

ROUNDS = 3
GROUPS = ("produce", "consume", "durability", "disk")
"""Those whose cells are short and need no bare interpreter."""

CELLS = [(bench, one) for bench in BENCHES if bench.group in GROUPS for one in bench.contestants]


@pytest.mark.benchmark
@pytest.mark.parametrize(("bench", "contestant"), CELLS, ids=lambda item: item.name)
def test_cell(bench: Bench, contestant: Contestant, benchmark: Any, tmp_path: Path) -> None:
    benchmark.group = bench.name

    def run() -> Metrics:
        with fresh_directory(tmp_path) as directory:
            return contestant.run(Cell(directory, True, bench.params, tmp_path))

    try:
        metrics = benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=0)
    except UnavailableError as error:
        pytest.skip(str(error))
    benchmark.extra_info.update(metrics)
    assert metrics
    assert all(value >= 0 for name, value in metrics.items() if not name.startswith("overhead"))
