"""One broker's messages to the controller, over the link between it and the metadata log.

    send --link is prompt, nothing under way--> delivered at once
         --link delays or drops--------------> under way, in order --due--> delivered, or lost

What is under way when the sender learns better, stops or dies arrives nevertheless, as on a real network: that a
message may be older than what its receiver knows is what epochs are for.

Invariants:
 1. Messages arrive in the order they were sent (a TCP connection), each at most once.
 2. Nothing is under way while the network is perfect for longer than it takes to deliver it.

Not implemented: the way back takes no time; news of the metadata log reaches brokers at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from streamlog.broker.network import METADATA, Network
from streamlog.broker.runner import Runtime, Service


class ControllerLink:
    """The way from one broker to the controller."""

    def __init__(self, runtime: Runtime, network: Network, broker_id: int) -> None:
        self._clock = runtime.clock
        self._network = network
        self._broker_id = broker_id
        self._under_way: deque[tuple[int, Callable[[], object]]] = deque()
        """(when it arrives, what it does there), the earliest first."""
        self._service = Service(runtime, f"streamlog-controller-link-{broker_id}", self._serve)

    def __repr__(self) -> str:
        return f"<ControllerLink of broker {self._broker_id}, {len(self._under_way)} messages under way>"

    def send(self, deliver: Callable[[], object]) -> None:
        """Have `deliver` called where the message arrives; not at all if it gets lost."""
        network = self._network
        if not self._under_way and network.is_prompt(self._broker_id, METADATA):
            deliver()
            return
        due_ms = self._clock.monotonic_ms() + network.delay_ms(self._broker_id, METADATA)
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
            if not self._network.loses(self._broker_id, METADATA):
                deliver()
            self._under_way.popleft()  # last: what is sent meanwhile must not overtake it
        return None
