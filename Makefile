# `make check` is what must be green before a commit. Tools: pip install -e '.[dev]'

.PHONY: check test long sim mutations bench format ci

check:
	ruff format --check streamlog tests examples benchmarks docs
	ruff check streamlog tests examples docs
	mypy --strict streamlog
	pytest -q

test:
	pytest -q

long:
	pytest -q -m "long or not long"

sim:
	python -m streamlog.testing.hunt --seeds 0-99

mutations:
	python -m tests.sim.mutations

bench:
	pytest -q benchmarks -m "benchmark or not benchmark" --benchmark-only

format:
	ruff check --fix streamlog tests examples docs
	ruff format streamlog tests examples benchmarks docs

ci:
	.ci/run
