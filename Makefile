# `make check` is what must be green before a commit. Tools: pip install -e '.[dev]'

.PHONY: check test long bench format ci

check:
	ruff format --check streamlog tests
	ruff check streamlog tests
	mypy --strict streamlog
	pytest -q

test:
	pytest -q

long:
	pytest -q -m "long or not long"

bench:
	pytest -q benchmarks -m "benchmark or not benchmark" --benchmark-only

format:
	ruff check --fix streamlog tests
	ruff format streamlog tests

ci:
	.ci/run
