"""`streamlog demo cluster`: three brokers in this process, the faults of real clusters, and a proof at the end.

    3 producers, acks=all --> orders (6 partitions, on 3 brokers each, min.insync.replicas=2) --> a group of 2
    meanwhile: a leader crashes | the network is cut and healed | the controller falls silent | a broker is added
    then: every acknowledged record is where it was acknowledged, in order, delivered, and all replicas are alike

Traffic runs in threads of its own (`demo_cluster_traffic`); this one makes the faults, looks, and waits for what the
cluster has to do by itself. Ctrl-C ends it between two steps: faults are taken back, the threads end, it is closed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any, Final

import streamlog
from streamlog.broker.replica_logs import checksums, replica_logs
from streamlog.broker.runner import Runtime, ThreadedRuntime
from streamlog.cli.arguments import DIRECTORY_DEFAULT, Commands, add_command
from streamlog.cli.demo_cluster_proof import ClusterProof, prove_cluster
from streamlog.cli.demo_cluster_traffic import GROUP, TOPIC, Traffic
from streamlog.cli.demo_cluster_view import LiveClusterView, PlainClusterView
from streamlog.cli.demo_proof import document
from streamlog.cli.demo_view import View, make_view, tell_verdict
from streamlog.cli.failures import DAMAGED, OK, TERMINATED, CommandError, Terminated
from streamlog.cli.interrupts import Interrupts
from streamlog.cli.opening import require_new
from streamlog.cli.terminal import Terminal
from streamlog.errors import PreferredLeaderNotAvailableError, StreamlogError
from streamlog.record import TopicPartition
from streamlog.wording import plural

DESCRIPTION: Final = """\
Three brokers in this process, a topic with three replicas, producers that wait for all replicas in sync
(acks=all) and a group that reads. A leader crashes, the network is cut and healed, the controller falls
silent, a broker is added and a partition moved to it. At the end every acknowledged record is accounted for:
it is where it was acknowledged, in order per key, delivered, and all replicas are alike byte for byte.

  streamlog demo cluster
  streamlog demo cluster --dir demo-cluster     in a directory, which is kept to look at

Takes about fifteen seconds; --fast takes five. Sessions are 1 s here, where Kafka and streamlog have 9 s."""

BROKERS: Final = 3
PARTITIONS: Final = 6
MIN_IN_SYNC: Final = 2
SESSION_MS: Final = 1_000
CLUSTER: Final = {
    "broker_session_timeout_ms": SESSION_MS,
    "broker_heartbeat_interval_ms": 250,
    "replica_lag_time_max_ms": 1_500,
    "offsets_topic_num_partitions": 3,
}
LOOK_MS: Final = 60
RATE_MS: Final = 1_000
WAIT_MS: Final = 20_000
"""What the cluster does by itself must be done by then; elections take a session, the rest milliseconds."""
HOLD_MS: Final = 1_500
HOLD_FAST_MS: Final = 150


def add_parser(commands: Commands) -> None:
    """Add `demo cluster`."""
    parser = add_command(
        commands,
        "demo cluster",
        run,
        "see several brokers survive: crash, cut, silence, move, prove",
        DESCRIPTION,
    )
    parser.add_argument("--fast", action="store_true", help="no slower than it must be")


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    kept = None if arguments.dir is DIRECTORY_DEFAULT else str(arguments.dir)
    if kept is not None:
        require_new(kept, "memory")
    runtime = ThreadedRuntime()
    started_ms = runtime.clock.monotonic_ms()
    with (
        Interrupts() as interrupts,
        make_view(terminal, PlainClusterView, LiveClusterView) as view,
        streamlog.open(
            ":memory:" if kept is None else kept,
            brokers=BROKERS,
            sync="off" if kept is None else "full",
            config=CLUSTER,
        ) as cluster,
    ):
        stage = Stage(cluster, view, interrupts, runtime, HOLD_FAST_MS if arguments.fast else HOLD_MS)
        try:
            proof = stage.perform()
        except KeyboardInterrupt:
            if interrupts.exit_code == TERMINATED:
                raise Terminated from None
            raise
    _show(proof, stage, terminal, runtime.clock.monotonic_ms() - started_ms, kept)
    return OK if proof.holds else DAMAGED


class Stage:
    """One performance."""

    def __init__(
        self, cluster: Any, view: View, interrupts: Interrupts, runtime: Runtime, hold_ms: int
    ) -> None:
        self._cluster = cluster
        self._view = view
        self._interrupts = interrupts
        self._clock = runtime.clock
        self._waiter = runtime.waiter()
        self._hold_ms = hold_ms
        self._topic = cluster.create_topic(
            TOPIC,
            partitions=PARTITIONS,
            replication_factor=BROKERS,
            config={"min.insync.replicas": MIN_IN_SYNC},
        )
        self._traffic = Traffic(cluster, runtime)
        self._marks: list[tuple[int, int]] = []
        self.events: list[dict[str, Any]] = []
        self._started_ms = self._clock.monotonic_ms()

    def perform(self) -> ClusterProof:
        """Perform, and judge. Raises KeyboardInterrupt where somebody asked us to end."""
        self._say(
            f"{BROKERS} brokers in this process. Topic {TOPIC!r}: {PARTITIONS} partitions, each on {BROKERS} brokers; "
            f"acks=all, min.insync.replicas={MIN_IN_SYNC}. Three producers write, two members of {GROUP!r} read."
        )
        try:
            self._traffic.start()
            self._until(lambda: self._traffic.acked > 0, "the first acknowledgement")
            self._hold()
            for act in (self._crash, self._cut, self._pause, self._move):
                self._traffic.take_longest_gap_ms()
                act()
                self._end_act()
            return self._end()
        finally:
            self._heal()
            self._traffic.finish()

    # -- the acts ------------------------------------------------------------------------------------

    def _crash(self) -> None:
        broker = self._leader_of(0)
        led = self._led_by(broker)
        self._say(
            f"CRASH. Broker {broker}, leader of {plural(len(led), 'partition')}, is broken off in mid-work."
        )
        self._cluster.brokers[broker].crash()
        self._until(lambda: not self._led_by(broker), f"new leaders for what broker {broker} led")
        self._say(f"  {self._told_leaders(led)}; producers were told to look again, and send again.")
        self._hold()
        self._cluster.brokers[broker].start()
        self._until(self._all_in_sync, "all replicas in sync")
        self._say(f"  Broker {broker} is back: it has copied what it missed and is in sync again.")
        self._until(self._preferred_lead, "the preferred leaders")
        self._say("  Preferred leaders are elected: everybody leads what it led at first.")

    def _cut(self) -> None:
        broker = self._leader_of(1)
        led = self._led_by(broker)
        others = {handle.id for handle in self._cluster.brokers} - {broker}
        self._say(
            f"CUT. The network parts broker {broker} from {_listed(others)}. It still believes that it leads "
            f"{plural(len(led), 'partition')}; alone it cannot replicate, so nothing it takes is acknowledged."
        )
        self._cluster.network.partition({broker}, others)
        self._until(lambda: not self._led_by(broker), f"new leaders for what broker {broker} led")
        self._say(f"  After a session of {SESSION_MS} ms it is fenced: {self._told_leaders(led)}.")
        self._hold()
        self._cluster.network.heal()
        self._until(self._all_in_sync, "all replicas in sync")
        self._say(
            f"  Healed: broker {broker} learns that it leads no longer, cuts off what its successors do not have, and "
            "follows."
        )

    def _pause(self) -> None:
        broker = next(handle for handle in self._cluster.brokers if handle.is_controller)
        self._say(f"PAUSE. Broker {broker.id}, the controller, falls silent, as with SIGSTOP.")
        broker.pause()
        self._until(
            lambda: not broker.is_controller and not self._led_by(broker.id),
            "another controller, and its elections",
        )
        controller = next(handle.id for handle in self._cluster.brokers if handle.is_controller)
        self._say(f"  Its lease is over: broker {controller} is the controller now, and has elected leaders.")
        self._hold()
        broker.resume()
        self._until(self._all_in_sync, "all replicas in sync")
        self._say(f"  Broker {broker.id} goes on where it stood, finds itself deposed, and follows.")

    def _move(self) -> None:
        new = self._cluster.add_broker().id
        target = (new, *self._topic[0].replicas[1:])
        self._say(f"A fourth broker joins, with id {new}. {TOPIC}-0 moves to brokers {_listed(target)}.")
        self._cluster.reassign(TOPIC, {0: target})
        self._until(
            lambda: self._topic[0].replicas == target and self._all_in_sync(), f"{TOPIC}-0 at its new brokers"
        )
        self._until(self._preferred_lead, f"broker {new} to lead {TOPIC}-0")
        self._say(f"  Broker {new} has copied the whole log, is in sync and leads; the old copy is deleted.")
        self._hold()

    def _end(self) -> ClusterProof:
        self._traffic.stop_producing()
        self._until(lambda: self._traffic.lag == 0, "the group to read the rest")
        self._until(self._are_replicas_level, "all replicas at the same end")
        self._say(
            "Nobody writes any more. Now the proof: acknowledgements, log, deliveries, and each broker's store."
        )
        self._traffic.finish()
        self._raise_error()
        backend = self._cluster._backend
        consumer = self._cluster.consumer(stop_at_end=True)
        consumer.assign([TopicPartition(TOPIC, number) for number in range(PARTITIONS)])
        with consumer:
            stored = list(consumer)
        return prove_cluster(
            self._traffic.acks,
            stored,
            self._traffic.deliveries,
            self._traffic.lag,
            {number: checksums(backend, TOPIC, number) for number in range(PARTITIONS)},
            dict.fromkeys(range(PARTITIONS), BROKERS),
        )

    def _heal(self) -> None:
        """Take back every fault, so that everybody can end."""
        self._cluster.network.heal()
        for handle in self._cluster.brokers:
            if handle.state == "paused":
                handle.resume()
            elif handle.state == "down":
                handle.start()

    # -- telling -------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self.events.append({"ms": self._clock.monotonic_ms() - self._started_ms, "text": text.strip()})
        self._view.say(text)

    def _end_act(self) -> None:
        now = self.look()
        gap_ms = self._traffic.take_longest_gap_ms()
        self.events[-1]["longest_gap_ms"] = gap_ms
        self._view.show({**now, "event": "act"})
        self._view.say(f"  Longest time a producer was without an acknowledgement: {gap_ms:,} ms")

    def look(self) -> dict[str, Any]:
        """The cluster at this moment."""
        now_ms, acked = self._clock.monotonic_ms(), self._traffic.acked
        self._marks = [mark for mark in self._marks if now_ms - mark[0] <= RATE_MS] + [(now_ms, acked)]
        since_ms, before = self._marks[0]
        return {
            "event": "moment",
            "brokers": [
                {"id": handle.id, "state": handle.state, "is_controller": handle.is_controller}
                for handle in self._cluster.brokers
            ],
            "partitions": [self._partition(partition) for partition in self._topic],
            "acked": acked,
            "acks_per_second": (acked - before) * 1000 / max(now_ms - since_ms, 1),
            "delivered": len(self._traffic.deliveries),
            "network": repr(self._cluster.network),
        }

    def _partition(self, partition: Any) -> dict[str, Any]:
        logs = replica_logs(self._cluster._backend, TOPIC, partition.number)
        return {
            "leader": partition.leader,
            "isr": list(partition.isr),
            "replicas": list(partition.replicas),
            "high_watermark": max((log.high_watermark for log in logs), default=0),
            "ends": {log.broker_id: log.log_end_offset for log in logs},
        }

    def _told_leaders(self, numbers: list[int]) -> str:
        led: dict[int, list[int]] = {}
        for number in numbers:
            led.setdefault(self._topic[number].leader, []).append(number)
        return ", ".join(
            f"broker {leader} leads {_listed(f'{TOPIC}-{number}' for number in some)}"
            for leader, some in sorted(led.items())
        )

    # -- asking --------------------------------------------------------------------------------------

    def _leader_of(self, number: int) -> int:
        self._until(lambda: all(p.leader is not None for p in self._topic), "a leader for every partition")
        leader: int = self._topic[number].leader
        return leader

    def _led_by(self, broker_id: int) -> list[int]:
        leaders = [partition.leader for partition in self._topic]
        if None in leaders:
            return [-1]  # an election is under way: nobody can say yet
        return [number for number, leader in enumerate(leaders) if leader == broker_id]

    def _preferred_lead(self) -> bool:
        """Elect the preferred leaders; whether they lead. One that is not in sync at the moment is asked for again."""
        try:
            self._cluster.elect_leaders()
        except PreferredLeaderNotAvailableError:
            return False
        return all(partition.leader == partition.replicas[0] for partition in self._topic)

    def _all_in_sync(self) -> bool:
        return all(set(partition.isr) == set(partition.replicas) for partition in self._topic)

    def _are_replicas_level(self) -> bool:
        """Whether every replica ends, and knows the high watermark, where its leader does."""
        for partition in self._topic:
            logs = replica_logs(self._cluster._backend, TOPIC, partition.number)
            marks = {mark for log in logs for mark in (log.log_end_offset, log.high_watermark)}
            if len(marks) != 1 or {log.broker_id for log in logs} != set(partition.replicas):
                return False
        return self._all_in_sync()

    # -- waiting -------------------------------------------------------------------------------------

    def _hold(self) -> None:
        """Let everybody see it for a while."""
        end_ms = self._clock.monotonic_ms() + self._hold_ms
        self._until(lambda: self._clock.monotonic_ms() >= end_ms, "nothing")

    def _until(self, done: Callable[[], bool], what: str) -> None:
        """Wait for what the cluster does by itself, and show it meanwhile."""
        deadline_ms = self._clock.monotonic_ms() + WAIT_MS
        while True:
            try:
                if done():
                    return
            except StreamlogError as error:
                if not error.retriable:
                    raise
            if self._interrupts.requested is not None:
                raise KeyboardInterrupt
            self._raise_error()
            if self._clock.monotonic_ms() > deadline_ms:
                raise CommandError(
                    f"{what} did not come within {WAIT_MS // 1000} s: {self.look()}", exit_code=DAMAGED
                )
            self._view.show(self.look())
            self._waiter.wait(LOOK_MS)

    def _raise_error(self) -> None:
        if self._traffic.error is not None:
            raise self._traffic.error


def _listed(things: Iterable[object]) -> str:
    words = [str(thing) for thing in things]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _show(proof: ClusterProof, stage: Stage, terminal: Terminal, elapsed_ms: int, kept: str | None) -> None:
    if terminal.json:
        facts = {"elapsed_ms": elapsed_ms, "directory": kept, "events": stage.events}
        terminal.document(document(proof) | facts)
        return
    rows = [
        ("records acknowledged", proof.acked, ""),
        ("where they were acknowledged", proof.found, "nothing lost, through all of it"),
        ("written a second time", proof.written_again, "sent again, because the first answer got lost"),
        ("delivered to the group", proof.delivered, "at least once"),
        ("keys in order", proof.in_order, f"of {proof.keys}, in the log and as delivered"),
        ("replicas alike", proof.alike, f"of {proof.replicas}, byte for byte"),
        ("lag of the group", proof.lag, "everything is committed"),
    ]
    proved = (
        f"PROVED in {elapsed_ms / 1000:.1f} s: no acknowledged record was lost, order held per key, all replicas "
        "are alike."
    )
    tell_verdict(terminal, rows, proof, proved)
    if kept is not None:
        terminal.line(f"Look at it: streamlog topics describe --dir {kept}; streamlog verify --dir {kept}")
