"""For tests, yours and ours: a cluster, its clients and its faults under virtual time and one seed.

    simulation = streamlog.testing.Simulation(seed=7)
    with streamlog.open(":memory:", runtime=simulation) as cluster: ...

Nothing in the library imports this package.
"""

from __future__ import annotations

from streamlog.testing.simulation import Simulation as Simulation

__all__ = ["Simulation"]
