"""The network between the brokers, and between them and the metadata log: perfect until a fault is asked for.

    partition({0}, {1, 2})   the links between the groups are cut; `metadata` stays with the group that holds most
                             brokers (of equal ones with the lowest id); who is named in no group keeps all its links
    delay(0, 1, ms=50)       each message between the two takes so long
    drop(0, 1, 0.5)          half of them get lost
    heal()                   all of it is over

A message that a link swallows is silence: nobody is told, who waits for the answer times out. Clients are not part of
this network: they reach every broker that runs.

Invariants:
 1. Faults are symmetric: what holds from a to b holds from b to a.
 2. A change is seen by the next message; whoever waits for a link is woken by `on_change`.

Not implemented: bandwidth, reordering within a link (a link is a TCP connection), faults between clients and brokers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Union

from streamlog.errors import ConfigError, NetworkError

if TYPE_CHECKING:
    from streamlog.broker.runner import Chance, Waiter

METADATA: Final = "metadata"
DELAY_MS_MAX: Final = 3_600_000

Node = Union[int, str]  # noqa: UP007
"""A broker's id, or METADATA."""


class Network:
    """Which messages arrive, and when. Read by any thread, changed by the fault API."""

    def __init__(self, nodes: Callable[[], list[int]], chance: Chance) -> None:
        """nodes: the ids of all brokers there are."""
        self._nodes = nodes
        self._chance = chance
        self._groups: tuple[frozenset[Node], ...] = ()
        self._delays: dict[frozenset[Node], int] = {}
        self._drops: dict[frozenset[Node], float] = {}
        self.is_perfect = True
        """No fault is in force: the one thing the hot path asks."""
        self.on_change: list[Callable[[], object]] = []
        self.messages_lost = 0

    def __repr__(self) -> str:
        if self.is_perfect:
            return "<Network perfect>"
        faults = ["/".join(sorted(map(str, group))) for group in self._groups]
        faults += [f"{_name(link)} {ms} ms" for link, ms in self._delays.items()]
        faults += [f"{_name(link)} drops {share:g}" for link, share in self._drops.items()]
        return f"<Network {', '.join(faults)}>"

    # -- faults ------------------------------------------------------------------------------------------------------

    def partition(self, *groups: Iterable[Node]) -> None:
        """Cut all links between these groups of brokers. A second partition takes the place of the first.

        Raises   ConfigError for fewer than two groups, unknown brokers, or one that is named twice.
        """
        named = [
            frozenset(map(self._checked, group)) if _is_group(group) else frozenset() for group in groups
        ]
        if len(named) < 2 or not all(named):
            raise ConfigError(
                f"partition({', '.join(map(repr, groups))}): allowed: two or more groups of brokers, such as "
                "partition({0}, {1, 2})",
                option="groups",
                value=groups,
                allowed="two or more groups",
            )
        everybody = [node for group in named for node in group]
        for node in everybody:
            if everybody.count(node) > 1:
                raise ConfigError(
                    f"partition{tuple(map(set, named))}: {node!r} is in two groups",
                    option="groups",
                    value=node,
                    allowed="each broker in one group",
                )
        if METADATA not in everybody:
            largest = max(named, key=lambda group: (len(group), -min(int(node) for node in group)))
            named = [group | {METADATA} if group is largest else group for group in named]
        self._groups = tuple(named)
        self._changed()

    def delay(self, a: Node, b: Node, ms: int) -> None:
        """Let each message between the two take `ms` milliseconds; 0 takes that back. Raises ConfigError."""
        if isinstance(ms, bool) or not isinstance(ms, int) or not 0 <= ms <= DELAY_MS_MAX:
            raise ConfigError(
                f"delay(ms={ms!r}): allowed: 0 to {DELAY_MS_MAX}",
                option="ms",
                value=ms,
                allowed=f"0 to {DELAY_MS_MAX}",
            )
        link = self._link(a, b)
        self._delays = {**self._delays, link: ms}
        if not ms:
            del self._delays[link]
        self._changed()

    def drop(self, a: Node, b: Node, probability: float = 1.0) -> None:
        """Lose this share of the messages between the two; 0 takes that back. Raises ConfigError."""
        if (
            isinstance(probability, bool)
            or not isinstance(probability, (int, float))
            or not 0 <= probability <= 1
        ):
            raise ConfigError(
                f"drop(probability={probability!r}): allowed: 0 to 1",
                option="probability",
                value=probability,
                allowed="0 to 1",
            )
        link = self._link(a, b)
        self._drops = {**self._drops, link: float(probability)}
        if not probability:
            del self._drops[link]
        self._changed()

    def heal(self) -> None:
        """End all faults of the network."""
        self._groups, self._delays, self._drops = (), {}, {}
        self._changed()

    # -- messages ----------------------------------------------------------------------------------------------------

    def is_cut(self, a: Node, b: Node) -> bool:
        """Whether no message between the two arrives."""
        if self.is_perfect:
            return False
        of_a = of_b = None
        for group in self._groups:
            if a in group:
                of_a = group
            if b in group:
                of_b = group
        if of_a is not None and of_b is not None and of_a is not of_b:
            return True
        return self._drops.get(frozenset((a, b)), 0.0) >= 1.0

    def is_prompt(self, a: Node, b: Node) -> bool:
        """Whether every message between the two arrives at once."""
        if self.is_perfect:
            return True
        link = frozenset((a, b))
        return not self.is_cut(a, b) and link not in self._delays and link not in self._drops

    def carry(self, source: Node, target: Node, waiter: Waiter) -> bool:
        """Let one message travel: waits as long as it takes; False if it gets lost on the way."""
        if self.is_perfect:
            return True
        delay_ms = self.delay_ms(source, target)
        if delay_ms:
            waiter.wait(delay_ms)
        return not self.loses(source, target)

    def delay_ms(self, source: Node, target: Node) -> int:
        """How long a message takes that is sent now."""
        return self._delays.get(frozenset((source, target)), 0)

    def loses(self, source: Node, target: Node) -> bool:
        """Whether a message that would arrive now gets lost: chance decides where some do."""
        if self.is_perfect:
            return False
        share = self._drops.get(frozenset((source, target)), 0.0)
        if self.is_cut(source, target) or (share and self._chance.getrandbits(32) < share * 2**32):
            self.messages_lost += 1
            return True
        return False

    def _link(self, a: Node, b: Node) -> frozenset[Node]:
        link = frozenset((self._checked(a), self._checked(b)))
        if len(link) != 2:
            raise ConfigError(
                f"a link has two ends, not {a!r} twice", option="link", value=a, allowed="two brokers"
            )
        return link

    def _checked(self, node: Node) -> Node:
        known = self._nodes()
        if node != METADATA and (isinstance(node, bool) or node not in known):
            raise ConfigError(
                f"there is no broker {node!r}; there are {', '.join(map(str, known))} and {METADATA!r}",
                option="broker",
                value=node,
                allowed=f"{', '.join(map(str, known))} or {METADATA!r}",
            )
        return node

    def _changed(self) -> None:
        self.is_perfect = not (self._groups or self._delays or self._drops)
        for tell in list(self.on_change):
            tell()


def down(broker_id: int) -> NetworkError:
    """What a caller of a broker that does not run gets: retriable, and the request may have been served."""
    return NetworkError(
        f"broker {broker_id} is down; start it with cluster.brokers[{broker_id}].start()", broker_id=broker_id
    )


def _name(link: frozenset[Node]) -> str:
    return "-".join(sorted(map(str, link)))


def _is_group(group: object) -> bool:
    return isinstance(group, Iterable) and not isinstance(group, str)  # a name's letters are no brokers
