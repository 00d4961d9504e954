"""One broker's messages to another, or to the controller, over the link between the two.

    send --link is prompt, nothing under way--> delivered at once
         --link delays or drops--------------> under way, in order --due--> delivered, or lost

What is under way when the sender learns better, stops or dies arrives nevertheless, as on a real network: that a
message may be older than what its receiver knows is what epochs are for.

Invariants:
 1. Messages arrive in the order they were sent (a TCP connection), each at most once.
 2. Nothing is under way while the network is perfect for longer than it takes to deliver it.

Not implemented: the controller's way back takes no time; news of the metadata log reaches brokers at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from streamlog.broker.network import Network, Node
from streamlog.broker.runner import Runtime, Service


class MessageLink:
    """The way from one broker to another node."""

    def __init__(self, runtime: Runtime, network: Network, source: int, target: Node) -> None:
        self._clock = runtime.clock
        self._network = network
        self._link = (source, target)
        self._under_way: deque[tuple[int, Callable[[], object]]] = deque()
        """(when it arrives, what it does there), the earliest first."""
        self._service = Service(runtime, f"streamlog-link-{source}-{target}", self._serve)

    def __repr__(self) -> str:
        return f"<MessageLink {self._link[0]} to {self._link[1]}, {len(self._under_way)} messages under way>"

    def send(self, deliver: Callable[[], object]) -> None:
        """Have `deliver` called where the message arrives; not at all if it gets lost."""
        network = self._network
        if not self._under_way and network.is_prompt(*self._link):
            deliver()
            return
        due_ms = self._clock.monotonic_ms() + network.delay_ms(*self._link)
        if self._under_way:
            due_ms = max(due_ms, self._under_way[-1][0])
        self._under_way.append((due_ms, deliver))
        self._service.wake()

    def close(self) -> None:
        """What is under way is lost."""
        self._service.stop()
        self._under_way.clear()

    def _serve(self, now_ms: int) -> int | None:
        while self._under_way:
            due_ms, deliver = self._under_way[0]
            if due_ms > now_ms:
                return due_ms
            if not self._network.loses(*self._link):
                deliver()
            self._under_way.popleft()  # last: what is sent meanwhile must not overtake it
        return None
