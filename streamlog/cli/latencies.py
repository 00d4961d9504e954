"""Latencies of a measurement: average, maximum, percentiles."""

from __future__ import annotations

from typing import ClassVar

Percentiles = tuple[tuple[str, float], ...]


class Latencies:
    """Milliseconds, kept one by one: percentiles are exact."""

    PRODUCER: ClassVar[Percentiles] = (("50th", 0.5), ("95th", 0.95), ("99th", 0.99), ("99.9th", 0.999))
    END_TO_END: ClassVar[Percentiles] = (("50th", 0.5), ("99th", 0.99), ("99.9th", 0.999))

    def __init__(self) -> None:
        self._all: list[float] = []
        self._sorted = False

    def __len__(self) -> int:
        return len(self._all)

    def add(self, milliseconds: float) -> None:
        """One more."""
        self._all.append(milliseconds)
        self._sorted = False

    @property
    def average(self) -> float:
        return sum(self._all) / len(self._all) if self._all else 0.0

    @property
    def maximum(self) -> float:
        return max(self._all, default=0.0)

    def percentile(self, share: float) -> float:
        """The smallest latency that `share` of all do not exceed (nearest rank, as Kafka's tool); 0 without
        any.
        """
        if not self._all:
            return 0.0
        if not self._sorted:
            self._all.sort()
            self._sorted = True
        return self._all[min(int(share * len(self._all)), len(self._all) - 1)]

    def document(self) -> dict[str, float]:
        """As JSON has it."""
        named = {name: self.percentile(share) for name, share in self.PRODUCER}
        return {"average": self.average, "maximum": self.maximum, **named, "samples": len(self)}
