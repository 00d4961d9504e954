"""The brokers as users hold them: who runs, and the faults a test wants of them.

    running --stop, crash--> down --start--> running        running --pause--> silent --resume--> running

What each fault means is `broker.lifecycle`'s; the faults of the network are `cluster.network` (`broker.network`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamlog.errors import BrokerIdNotRegisteredError, ConfigError, UnsupportedOperationError

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster


class Brokers(list["BrokerHandle"]):
    """The brokers by id: a list that says which there are."""

    def __getitem__(self, key: Any) -> Any:
        try:
            return super().__getitem__(key)
        except IndexError:
            raise BrokerIdNotRegisteredError(
                f"there is no broker {key}; allowed: 0 to {len(self) - 1} (`cluster.add_broker()` adds one)",
                broker_id=key,
            ) from None


class BrokerHandle:
    """One broker of a cluster, by its id: `cluster.brokers[1]`."""

    __slots__ = ("_backend", "id")

    def __init__(self, broker_id: int, backend: BrokerCluster | None = None) -> None:
        """backend: None where the cluster is another process's."""
        self._backend = backend
        self.id = broker_id

    def __repr__(self) -> str:
        if self._backend is None:
            return f"<Broker {self.id}>"
        return f"<Broker {self.id} {self.state}{' controller' if self.is_controller else ''}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BrokerHandle) or other.id != self.id:
            return False
        return other._backend is self._backend or other._backend is None or self._backend is None

    def __hash__(self) -> int:
        return self.id

    @property
    def state(self) -> str:
        """ "running", "paused" or "down"; "elsewhere" beside its owner."""
        if self._backend is None:
            return "elsewhere"
        broker = next((broker for broker in self._backend.brokers if broker.id == self.id), None)
        return "down" if broker is None else "paused" if broker.paused else "running"

    @property
    def is_controller(self) -> bool:
        """Whether it is the active controller."""
        return self._backend is not None and self._backend.metadata.image.controller_id == self.id

    @property
    def rack(self) -> str | None:
        """Where it stands (None: not said). Consumers with this `client_rack` read from its replicas (KIP-392).

        Setting it is kept for later openings.
        """
        return None if self._backend is None else self._backend.config_of(self.id).broker_rack

    @rack.setter
    def rack(self, rack: str | None) -> None:
        from streamlog.broker.dynamic_config import alter_config

        alter_config(self._owner(), {"broker.rack": rack}, self.id)

    def stop(self) -> None:
        """Controlled shutdown: its leaderships move to others in sync, what it has taken is finished, then it stops.

        Partitions it alone is in sync for are without a leader until it is back.
        Raises   IllegalStateError if it does not run.
        """
        from streamlog.broker import lifecycle

        lifecycle.stop(self._owner(), self.id)

    def start(self) -> None:
        """Begin anew over its directory: it catches up as a follower and joins the in-sync sets again.

        Raises   IllegalStateError if it runs.
        """
        from streamlog.broker import lifecycle

        lifecycle.start(self._owner(), self.id)

    def crash(self, lose_unsynced: bool = False) -> None:
        """Break it off, as `kill -9` does: requests it had taken get no good answer, and the controller knows at once.

        lose_unsynced: and lose what was not synced to its disk, as a loss of power does (with sync="off").
        Raises   IllegalStateError if it does not run.
        """
        from streamlog.broker import lifecycle

        lifecycle.crash(self._owner(), self.id, lose_unsynced)

    def pause(self) -> None:
        """Let it fall silent, as SIGSTOP does: after `broker_session_timeout_ms` the controller fences it.

        Raises   IllegalStateError if it does not run, or is paused.
        """
        from streamlog.broker import lifecycle

        lifecycle.pause(self._owner(), self.id)

    def resume(self) -> None:
        """Let it go on where it stood. Raises IllegalStateError if it is not paused."""
        from streamlog.broker import lifecycle

        lifecycle.resume(self._owner(), self.id)

    def fill_disk(self, full: bool = True) -> None:
        """Have each write of this broker fail as on a full disk (`fill_disk(False)`: no longer); reads go on.

        Raises   IllegalStateError if it does not run.
        """
        from streamlog.broker import lifecycle

        lifecycle.running(self._owner(), self.id).disk_is_full = full

    def slow_disk(self, ms: int) -> None:
        """Let each commit of this broker take `ms` milliseconds more; 0: no longer.

        Raises   ConfigError, IllegalStateError if it does not run.
        """
        from streamlog.broker import lifecycle

        if isinstance(ms, bool) or not isinstance(ms, int) or not 0 <= ms <= 60_000:
            raise ConfigError(
                f"slow_disk({ms!r}): allowed: 0 to 60000 ms", option="ms", value=ms, allowed="0 to 60000"
            )
        lifecycle.running(self._owner(), self.id).commit_delay_ms = ms

    def _owner(self) -> BrokerCluster:
        if self._backend is None:
            raise UnsupportedOperationError(
                f"broker {self.id} is run by the process that owns the directory; faults are its to make"
            )
        self._backend.check_usable()
        return self._backend
