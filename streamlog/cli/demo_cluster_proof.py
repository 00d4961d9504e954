"""The proof of `streamlog demo cluster`: what was acknowledged, what the log holds, what the group got and what is
in the store of each broker, held against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from streamlog.cli.demo_cluster_traffic import GROUP, TOPIC, Placed
from streamlog.cli.demo_proof import CONTRADICTIONS_MAX
from streamlog.record import Record
from streamlog.wording import plural


class ClusterProof(msgspec.Struct):
    """The counts that must agree, and a list of what does not."""

    acked: int
    found: int
    """Acknowledged records that stand where they were acknowledged."""
    stored: int
    written_again: int
    """Records in the log a second time: sent again because the first answer got lost."""
    delivered: int
    """Acknowledged records that the group got."""
    keys: int
    in_order: int
    """Keys whose records are in the order they were sent, in the log and as the group got them."""
    replicas: int
    alike: int
    """Replicas that are what their leader is, byte for byte."""
    lag: int
    contradictions: list[str]

    @property
    def holds(self) -> bool:
        return not self.contradictions


def prove_cluster(
    acks: list[Placed],
    stored: Iterable[Record],
    deliveries: list[Placed],
    lag: int,
    checksums: Mapping[int, Mapping[int, str]],
    factors: Mapping[int, int],
) -> ClusterProof:
    """Judge one demo.

    stored:     every record of the topic, in the order of offsets within a partition.
    checksums:  partition -> broker -> checksum of what is in its store; factors: how many replicas there are to be.
    """
    wrong: list[str] = []
    log = {(record.partition, record.offset): record for record in stored}
    found = _check_acks(acks, log, wrong)
    places = {(delivery.partition, delivery.offset) for delivery in deliveries}
    missed = sum((ack.partition, ack.offset) not in places for ack in acks)
    if missed:
        wrong.append(f"never delivered to {GROUP!r}: {plural(missed, 'acknowledged record')}")
    in_log = [(record.key or b"", int(record.value or b"-1")) for record in log.values()]
    disordered = out_of_order(in_log, "in the log", wrong)
    disordered |= out_of_order([(d.key, d.number) for d in deliveries], "as they were delivered", wrong)
    replicas, alike = _compare_replicas(checksums, factors, wrong)
    if lag:
        wrong.append(f"the group {GROUP!r} still lags {plural(lag, 'record')} behind")
    keys = {ack.key for ack in acks}
    return ClusterProof(
        len(acks),
        found,
        len(log),
        len(log) - len(set(in_log)),
        len(acks) - missed,
        len(keys),
        len(keys - disordered),
        replicas,
        alike,
        lag,
        wrong[:CONTRADICTIONS_MAX],
    )


def _check_acks(acks: list[Placed], log: Mapping[tuple[int, int], Record], wrong: list[str]) -> int:
    found = 0
    for ack in acks:
        record = log.get((ack.partition, ack.offset))
        if record is not None and record.key == ack.key and record.value == b"%d" % ack.number:
            found += 1
        else:
            wrong.append(
                f"record {ack.number} of {ack.key.decode()} was acknowledged at "
                f"{TOPIC}-{ack.partition}@{ack.offset} and is not there"
            )
    return found


def out_of_order(records: Iterable[tuple[bytes, int]], where: str, wrong: list[str]) -> set[bytes]:
    """The keys whose records do not come in the order of their numbers. What comes again does not count: its first
    coming does.
    """
    newest: dict[bytes, int] = {}
    seen: set[tuple[bytes, int]] = set()
    disordered: dict[bytes, None] = {}
    for key, number in records:
        if (key, number) in seen:
            continue
        seen.add((key, number))
        if number <= newest.get(key, -1):
            disordered[key] = None
        newest[key] = number
    wrong += [f"records of {key.decode()} are out of order {where}" for key in disordered]
    return set(disordered)


def _compare_replicas(
    checksums: Mapping[int, Mapping[int, str]], factors: Mapping[int, int], wrong: list[str]
) -> tuple[int, int]:
    """How many replicas there are, and how many of them are what the first one is."""
    alike = 0
    for number, of_brokers in sorted(checksums.items()):
        first = next(iter(of_brokers.values()), None)
        same = sum(checksum == first for checksum in of_brokers.values())
        alike += same
        if same < len(of_brokers):
            told = ", ".join(f"broker {broker} {checksum[:12]}" for broker, checksum in of_brokers.items())
            wrong.append(f"the replicas of {TOPIC}-{number} differ: {told}")
        if len(of_brokers) != factors[number]:
            wrong.append(f"{TOPIC}-{number} has {plural(len(of_brokers), 'replica')}, not {factors[number]}")
    return sum(map(len, checksums.values())), alike
