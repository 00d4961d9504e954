"""How fast streamlog is, beside what people would use instead: `python -m benchmarks all`."""
