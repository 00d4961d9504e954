"""Leases: which brokers have been heard of lately, and who may be the controller (sans-I/O).

    heartbeat    renew(broker 1)  |------------- session timeout -------------|
    judge        look    look     look     look     look     look     look    |look: expired -> [1]

The table is volatile: it stands beside the metadata log and is filled anew at each opening (`renew` for every broker
that the image has as unfenced). It says who is silent; what follows from that is in `broker_states.fence`.

 1. A lease is over when the judge has *watched* a whole session timeout of silence. Time in which nobody looked (a
    debugger, a suspended laptop, a starved thread) is not held against anybody: between two looks at most
    `look_interval_ms` counts. So a judge that was itself late extends its sessions instead of fencing everybody.
 2. A broken connection (`drop`) ends a lease at once. What is over stays over until it is renewed: `expired` is a
    level, not an edge, so a new controller learns what the one before it did not live to fence.
 3. The controller keeps its role while its lease lasts; then the live broker that asks first may take it.

Sources: Kafka `BrokerHeartbeatManager`, `BrokerHeartbeatTracker`; `broker.session.timeout.ms`,
`broker.heartbeat.interval.ms`. Rule 1 is streamlog's: in Kafka the judge is another machine.
"""

from __future__ import annotations

_BROKEN_MS = -1


class LeaseTable:
    """When the lease of each broker ends, by the judge's own clock."""

    __slots__ = ("_ends_ms", "_looked_ms", "look_interval_ms", "session_timeout_ms")

    def __init__(self, session_timeout_ms: int, look_interval_ms: int) -> None:
        """look_interval_ms: how often the judge means to look; the brokers' heartbeat interval is a good choice."""
        assert 0 < look_interval_ms <= session_timeout_ms, (look_interval_ms, session_timeout_ms)
        self.session_timeout_ms = session_timeout_ms
        self.look_interval_ms = look_interval_ms
        self._ends_ms: dict[int, int] = {}
        self._looked_ms: int | None = None

    def __repr__(self) -> str:
        return f"LeaseTable({self._ends_ms}, looked_ms={self._looked_ms})"

    # -- the brokers' side -------------------------------------------------------------------------------------------

    def renew(self, broker_id: int, now_ms: int) -> None:
        """The broker was heard of. The first one begins the watch."""
        if self._looked_ms is None:
            self._looked_ms = now_ms
        self._ends_ms[broker_id] = now_ms + self.session_timeout_ms

    def drop(self, broker_id: int) -> None:
        """The broker's connection broke: everybody knows at once."""
        self._ends_ms[broker_id] = _BROKEN_MS

    # -- the judge's side --------------------------------------------------------------------------------------------

    def expired(self, now_ms: int) -> list[int]:
        """Look: the brokers whose leases are over, until they renew them."""
        self._look(now_ms)
        return sorted(broker_id for broker_id, end_ms in self._ends_ms.items() if end_ms <= now_ms)

    def live(self, now_ms: int) -> list[int]:
        """Look: the brokers whose leases last."""
        self._look(now_ms)
        return sorted(broker_id for broker_id, end_ms in self._ends_ms.items() if end_ms > now_ms)

    def next_deadline_ms(self) -> int | None:
        """When to look again at the latest; None while no lease can end.

        The end of the next lease, unless that is further away than the judge may stay absent.
        """
        looked_ms = self._looked_ms
        if looked_ms is None:
            return None
        ends_ms = [end_ms for end_ms in self._ends_ms.values() if end_ms > looked_ms]
        return min(*ends_ms, looked_ms + self.look_interval_ms) if ends_ms else None

    def may_take_control(self, broker_id: int, controller_id: int, now_ms: int) -> bool:
        """Whether a broker that asks becomes (or stays) the controller: it is live and the present one is not."""
        live = self.live(now_ms)
        return broker_id in live and (controller_id == broker_id or controller_id not in live)

    def _look(self, now_ms: int) -> None:
        looked_ms = self._looked_ms
        if looked_ms is None or now_ms <= looked_ms:
            return
        self._looked_ms = now_ms
        late_ms = now_ms - looked_ms - self.look_interval_ms
        if late_ms <= 0:
            return
        for broker_id, end_ms in self._ends_ms.items():
            # What was over stays over: it gains less than has passed.
            self._ends_ms[broker_id] = min(end_ms + late_ms, now_ms + self.session_timeout_ms)
