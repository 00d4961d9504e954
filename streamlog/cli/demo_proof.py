"""The demo's proof: what went in, what the log holds and what was delivered, held against each other byte by
byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Final, Protocol

import msgspec

from streamlog.cli.demo_lines import Input, rebuild
from streamlog.cli.demo_process import GROUP, LINE_HEADER, TOPIC, Delivery
from streamlog.record import Record
from streamlog.wording import plural

CONTRADICTIONS_MAX: Final = 20


class Verdict(Protocol):
    """What the proofs of all demos have."""

    contradictions: list[str]

    @property
    def holds(self) -> bool: ...


class SourceProof(msgspec.Struct):
    """One source: its own checksum and that of what was delivered."""

    name: str
    lines: int
    sha256_read: str
    sha256_delivered: str

    @property
    def holds(self) -> bool:
        return self.sha256_read == self.sha256_delivered


class Proof(msgspec.Struct):
    """The counts that must agree, and a list of what does not."""

    lines: int
    stored: int
    """Lines the log holds; equal to `lines` if each is there exactly once."""
    delivered: int
    """Different records handed to the group."""
    redelivered: int
    """Records handed out a second time."""
    components: int
    in_order: int
    """Components whose lines came in the order they were read."""
    lag: int
    sources: list[SourceProof]
    contradictions: list[str]

    @property
    def holds(self) -> bool:
        return not self.contradictions


def prove(given: Input, stored: Iterable[Record], runs: list[list[Delivery]], lag: int) -> Proof:
    """Judge one demo.

    stored:  every record of the topic.
    runs:    what readers wrote down, one list for each process, in order of delivery.
    """
    wrong: list[str] = []
    places = _check_log(given, stored, wrong)
    firsts, redelivered = _first_deliveries(runs, wrong)
    for delivery in firsts:
        if places.get((delivery.partition, delivery.offset)) != delivery.line:
            wrong.append(
                f"line {delivery.line} was delivered from {TOPIC}-{delivery.partition}@{delivery.offset}, "
                "where it is not"
            )
    in_order, components = _check_order(given, firsts, wrong)
    sources = _compare_sources(given, firsts, wrong)
    missing = len(given.lines) - len({delivery.line for delivery in firsts})
    if missing:
        wrong.append(f"never delivered: {plural(missing, 'line')}")
    if lag:
        wrong.append(f"the group {GROUP} still lags {plural(lag, 'record')} behind")
    return Proof(
        len(given.lines),
        len(places),
        len(firsts),
        redelivered,
        components,
        in_order,
        lag,
        sources,
        wrong[:CONTRADICTIONS_MAX],
    )


def _check_log(given: Input, stored: Iterable[Record], wrong: list[str]) -> dict[tuple[int, int], int]:
    """(partition, offset) of every line; each must be in the log once, with its key and its very bytes."""
    places: dict[tuple[int, int], int] = {}
    seen: set[int] = set()
    for record in stored:
        number = int(dict(record.headers)[LINE_HEADER] or b"-1")
        places[record.partition, record.offset] = number
        if number in seen:
            wrong.append(f"line {number} is in the log twice")
        seen.add(number)
        line = given.lines[number] if 0 <= number < len(given.lines) else None
        if line is None or line.value != record.value or line.key != record.key:
            wrong.append(f"line {number} is not in the log as it was read")
    if len(seen) < len(given.lines):
        wrong.append(f"not in the log: {plural(len(given.lines) - len(seen), 'line')}")
    return places


def _first_deliveries(runs: list[list[Delivery]], wrong: list[str]) -> tuple[list[Delivery], int]:
    """Deliveries without repetitions, and how many repetitions there were. Within one process there must be
    none.
    """
    firsts: list[Delivery] = []
    seen: dict[tuple[int, int], int] = {}
    redelivered = 0
    for number, run in enumerate(runs):
        for delivery in run:
            place = (delivery.partition, delivery.offset)
            before = seen.get(place)
            if before is None:
                firsts.append(delivery)
                seen[place] = number
            elif before == number:
                wrong.append(
                    f"{TOPIC}-{delivery.partition}@{delivery.offset} was delivered twice by the same process"
                )
            else:
                redelivered += 1
    return firsts, redelivered


def _check_order(given: Input, firsts: list[Delivery], wrong: list[str]) -> tuple[int, int]:
    """How many components' lines were delivered in the order they were read, and how many components there
    are.
    """
    last: dict[bytes, int] = {line.key: -1 for line in given.lines}
    disordered: dict[bytes, None] = {}
    for delivery in firsts:
        if delivery.line <= last.get(delivery.key, -1):
            disordered[delivery.key] = None
        last[delivery.key] = delivery.line
    wrong += [f"lines of {key.decode(errors='replace')} were delivered out of order" for key in disordered]
    return len(last) - len(disordered), len(last)


def _compare_sources(given: Input, firsts: list[Delivery], wrong: list[str]) -> list[SourceProof]:
    delivered = {delivery.line: delivery.value for delivery in firsts}
    proofs: list[SourceProof] = []
    start = 0
    for name, count, ended in given.sources:
        numbers = range(start, start + count)
        read = rebuild([given.lines[number].value for number in numbers], ended)
        back = rebuild([delivered[number] for number in numbers if number in delivered], ended)
        proofs.append(SourceProof(name, count, sha256(read).hexdigest(), sha256(back).hexdigest()))
        if not proofs[-1].holds:
            wrong.append(f"{name} did not come out as it was read")
        start += count
    return proofs


def document(proof: Verdict) -> dict[str, Any]:
    """As JSON has it."""
    built: dict[str, Any] = msgspec.to_builtins(proof)
    return {"holds": proof.holds, **built}
