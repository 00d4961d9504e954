"""What the spec tests of replication share: a real cluster under a simulation, and requests a client sends by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import streamlog
from streamlog.batch import seal_columnar
from streamlog.broker import api
from streamlog.broker.pending import Pending
from streamlog.storage import log
from streamlog.testing import Simulation


class Replicas:
    """A cluster with topic `t` of one partition, and what its replicas hold. Brokers are 0, 1, 2 as told here."""

    def __init__(self, cluster: Any, simulation: Simulation) -> None:
        self.cluster = cluster
        self.simulation = simulation

    # -- faults and time -----------------------------------------------------------------------------------------------

    def sleep(self, seconds: float) -> None:
        self.simulation.sleep(seconds)

    def crash(self, *broker_ids: int, lose_unsynced: bool = False) -> None:
        for broker_id in broker_ids:
            self.cluster.brokers[broker_id].crash(lose_unsynced=lose_unsynced)

    def start(self, *broker_ids: int) -> None:
        for broker_id in broker_ids:
            self.cluster.brokers[broker_id].start()

    def cut(self, broker_id: int) -> None:
        """Cut a broker off from the others and from the metadata log."""
        others = {broker.id for broker in self.cluster.brokers} - {broker_id}
        self.cluster.network.partition({broker_id}, {*others, "metadata"})

    # -- requests ------------------------------------------------------------------------------------------------------

    def post(
        self, *values: bytes, acks: int = -1, to: int | None = None, timeout_ms: int = 30_000
    ) -> Pending:
        """A Produce to the leader, or to whom an old client takes for it; no retries."""
        leader = self.partition.leader if to is None else to
        assert leader is not None
        batch = seal_columnar([None] * len(values), list(values), timestamps=self.simulation.clock.wall_ms())
        pending: Pending = self.broker(leader).post(api.Produce([("t", 0, batch)], acks, timeout_ms))
        return pending

    def outcome(self, pending: Pending, seconds: float = 0.0) -> api.Produced:
        """What became of it, after at most so long. Its error is in it."""
        for _ in range(round(seconds * 100)):
            if pending.done:
                break
            self.sleep(0.01)
        assert pending.done, "no answer"
        [produced] = pending.result()
        assert isinstance(produced, api.Produced)
        return produced

    def append(self, *values: bytes, acks: int = -1, to: int | None = None) -> int:
        """One batch, acknowledged: its first offset."""
        produced = self.outcome(self.post(*values, acks=acks, to=to), 10)
        if produced.error is not None:
            raise produced.error
        return produced.base_offset

    # -- what there is -------------------------------------------------------------------------------------------------

    @property
    def partition(self) -> Any:
        return self.cluster.topic("t")[0]

    @property
    def isr(self) -> set[int]:
        return set(self.partition.isr)

    def broker(self, broker_id: int) -> Any:
        broker = self.cluster._backend.peers.running(broker_id)
        assert broker is not None, f"broker {broker_id} is down"
        return broker

    def replica(self, broker_id: int) -> Any:
        return self.broker(broker_id).partition("t", 0)

    def high_watermark(self, broker_id: int) -> int:
        mark: int = self.replica(broker_id).state.high_watermark
        return mark

    def end(self, broker_id: int) -> int:
        end: int = self.replica(broker_id).state.log_end_offset
        return end

    def epochs(self, broker_id: int) -> list[tuple[int, int]]:
        return [tuple(entry) for entry in self.replica(broker_id).epochs.entries]

    def stored(self, broker_id: int) -> list[tuple[int, bytes]]:
        """The replica's batches, byte for byte, with their offsets."""
        broker, partition = self.broker(broker_id), self.replica(broker_id)
        state, found = partition.state, []
        offset = state.log_start_offset
        with broker.environment.snapshot() as snapshot:
            while offset < state.log_end_offset:
                for batch in log.read(snapshot, partition.log_id, offset, state.log_end_offset, 1 << 20):
                    found.append((batch.base_offset, batch.encode()))
                    offset = batch.next_offset
        return found

    def values(self, broker_id: int | None = None) -> list[bytes]:
        """What consumers read; with a broker: everything its replica holds."""
        if broker_id is None:
            return [record.value for record in self.partition.read(0, 10_000)]
        broker, partition = self.broker(broker_id), self.replica(broker_id)
        state = partition.state
        found: list[bytes] = []
        offset = state.log_start_offset
        with broker.environment.snapshot() as snapshot:
            while offset < state.log_end_offset:
                for batch in log.read(snapshot, partition.log_id, offset, state.log_end_offset, 1 << 20):
                    found += [record.value for record in batch.records("t", 0, offset)]
                    offset = batch.next_offset
        return found

    def assert_alike(self) -> None:
        """Every running replica holds the same bytes under the same offsets."""
        ids = [broker.id for broker in self.cluster._backend.brokers]
        assert len(ids) > 1, "nothing to compare"
        first = self.stored(ids[0])
        for broker_id in ids[1:]:
            assert self.stored(broker_id) == first, f"brokers {ids[0]} and {broker_id} differ"


@contextmanager
def replicated(
    seed: int = 1, brokers: int = 3, config: dict[str, object] | None = None, **options: Any
) -> Iterator[Replicas]:
    simulation = Simulation(seed)
    with streamlog.open(":memory:", brokers=brokers, sync="off", runtime=simulation, **options) as cluster:
        cluster.create_topic("t", replication_factor=brokers, config=config)
        for broker in cluster._backend.brokers:
            broker.partition("t", 0)
        yield Replicas(cluster, simulation)
