"""How brokers of a cluster come and go while it is open: opening, stop, start, crash, pause, resume, one more.

    stop    controlled: leaderships move first, what was taken is finished, then it is gone
    crash   its connection breaks: requests in the inbox are refused, peers know at once, nothing is synced
    pause   silence: no turn runs, nothing is told; after the session timeout the controller fences it. resume ends it
    start   a new life over the same directory: registered, unfenced with its first lease, catching up as a follower

Interrupted (Ctrl-C), each of them is finished by the next call about the same broker: the same one again, or another.

Source: Kafka's controlled shutdown, broker registration (KIP-631); DESIGN "The metadata log".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from streamlog.broker.controlling import BrokerLost, RegisterBroker, RenewLease, ShutDownBroker
from streamlog.broker.metadata import AppendMetadata
from streamlog.broker.network import down
from streamlog.broker.replication import Replication
from streamlog.core import broker_states
from streamlog.core.cluster_image import TRANSACTION_STATE_TOPIC
from streamlog.errors import IllegalStateError, NotControllerError

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.cluster import BrokerCluster
    from streamlog.broker.peers import Peers

CONTROL_WAIT_MS: Final = 30_000


def open_peers(cluster: BrokerCluster, peers: Peers) -> None:
    """Let the brokers of a cluster know each other: once, before any of them serves."""
    metadata = cluster.metadata
    now_ms = cluster.runtime.clock.monotonic_ms()
    controlling = metadata.controlling
    for broker_id in metadata.image.brokers:
        controlling.leases.renew(broker_id, now_ms)
    new_terms = broker_states.new_terms(metadata.image)
    if new_terms:
        metadata.call(AppendMetadata(new_terms, metadata.image.controller_epoch), CONTROL_WAIT_MS)
    metadata.on_records = peers.on_image
    controlling.hears = peers.hears_metadata
    for broker_id, known in sorted(metadata.image.brokers.items()):
        if not known.is_active:  # it was down when the directory was closed
            metadata.call(RegisterBroker(broker_id, cluster.incarnation), CONTROL_WAIT_MS)
            metadata.call(RenewLease(broker_id), CONTROL_WAIT_MS)
    for broker in cluster.brokers:
        _equip(broker, peers)
    for broker in cluster.brokers:
        peers.joined(broker)
    for topic, number, partition in metadata.image.partitions():
        if len(partition.isr) < len(partition.replicas):
            for follower in partition.replicas:
                peers.news_for(follower, partition.leader, (topic.name, number))


def running(cluster: BrokerCluster, broker_id: int) -> Broker:
    """The broker. Raises IllegalStateError if it does not run."""
    cluster.peers.open()
    broker = cluster.peers.running(broker_id)
    if broker is None:
        raise IllegalStateError(
            f"broker {broker_id} does not run; start it with cluster.brokers[{broker_id}].start()",
            broker_id=broker_id,
        )
    return broker


def stop(cluster: BrokerCluster, broker_id: int) -> None:
    """Controlled shutdown. Raises IllegalStateError if it does not run."""
    if _finish_leaving(cluster, broker_id):
        return
    broker = running(cluster, broker_id)
    broker.paused = False
    try:
        cluster.metadata.call(ShutDownBroker(broker_id), CONTROL_WAIT_MS)
    except NotControllerError:
        pass  # nobody to move them: the others find it lost
    _leave(cluster, broker, abruptly=False)


def crash(cluster: BrokerCluster, broker_id: int, lose_unsynced: bool = False) -> None:
    """Break it off. lose_unsynced: and lose what was not synced to the disk, as with power.

    Raises IllegalStateError if it does not run.
    """
    if _finish_leaving(cluster, broker_id):
        return
    broker = running(cluster, broker_id)
    broker.paused = False
    if lose_unsynced:
        cluster.peers.lost_tails[broker_id] = _unsynced(broker)
    _leave(cluster, broker, abruptly=True)


def _leave(cluster: BrokerCluster, broker: Broker, *, abruptly: bool) -> None:
    cluster.peers.trace(f"broker {broker.id} {'crashes' if abruptly else 'stops'}")
    cluster.peers.leaving[broker.id] = broker, abruptly
    _finish_leaving(cluster, broker.id)


def _finish_leaving(cluster: BrokerCluster, broker_id: int) -> bool:
    """Let a broker that stops be gone; False if it does not stop. Cut short, it is done by doing it again."""
    peers = cluster.peers
    if broker_id not in peers.leaving:
        return False
    broker, abruptly = peers.leaving[broker_id]
    ends = peers.left(broker)
    broker.close(down(broker.id), abruptly=abruptly)
    cluster.know_brokers(peers.brokers())
    for end in ends:
        end()
    peers.ended(broker_id)
    cluster.close_environment(broker.environment)
    cluster.metadata.call(BrokerLost(broker_id), CONTROL_WAIT_MS)
    peers.starting.pop(broker_id, None)
    peers.leaving.pop(broker_id, None)
    return True


def _unsynced(broker: Broker) -> dict[int, int]:
    """Log id -> where it ended at the last sync, of the logs that have grown since."""
    if not broker.flushing.is_needed:
        return {}
    synced = broker.flushing.synced_ends
    return {
        log_id: synced.get(log_id, 0)
        for log_id, end in broker.log_ends().items()
        if end > synced.get(log_id, 0)
    }


def start(cluster: BrokerCluster, broker_id: int) -> None:
    """Begin a new life. Raises IllegalStateError if it runs."""
    peers, metadata = cluster.peers, cluster.metadata
    peers.open()
    _finish_leaving(cluster, broker_id)
    half_started = peers.running(broker_id)
    if half_started is not None:
        if broker_id not in peers.starting:
            raise IllegalStateError(f"broker {broker_id} runs already", broker_id=broker_id)
        _leave(cluster, half_started, abruptly=True)
    _close_left_open(cluster, cluster.directory.broker_path(broker_id))
    peers.starting[broker_id] = None
    broker = cluster.open_broker(broker_id)
    tails = peers.lost_tails.get(broker_id)
    if tails:
        _cut_tails(broker, tails)
        peers.lost_tails.pop(broker_id, None)
    # First: from its first message on it speaks for its new life.
    metadata.call(RegisterBroker(broker_id, cluster.incarnation), CONTROL_WAIT_MS)
    _join(cluster, broker)
    metadata.call(RenewLease(broker_id), CONTROL_WAIT_MS)
    peers.keep_lease(broker, cluster.runtime.clock.monotonic_ms())
    peers.trace(f"broker {broker_id} starts")
    _catch_up(cluster, broker)
    if TRANSACTION_STATE_TOPIC in cluster.topics:
        broker.coordinator.transactions.load_all()  # what it has left undone when it went
    peers.starting.pop(broker_id, None)


def _close_left_open(cluster: BrokerCluster, path: str) -> None:
    """Close the store that a start or a stop, interrupted, has left open."""
    for environment in [opened for opened in cluster.environments if opened.location == path]:
        cluster.close_environment(environment)


def add(cluster: BrokerCluster) -> int:
    """One broker more, under the next free id. Interrupted, it is one that is down, and can be started."""
    cluster.peers.open()
    broker_id: int = cluster.metadata.call(RegisterBroker(-1, cluster.incarnation), CONTROL_WAIT_MS)
    start(cluster, broker_id)
    return broker_id


def pause(cluster: BrokerCluster, broker_id: int) -> None:
    """Let a broker fall silent. Raises IllegalStateError if it does not run, or is paused."""
    broker = running(cluster, broker_id)
    if broker.paused:
        raise IllegalStateError(f"broker {broker_id} is paused already", broker_id=broker_id)
    broker.paused = True  # first: no turn begins after the one under way, which ends before we return
    with broker.turn_lock:
        pass
    cluster.peers.trace(f"broker {broker_id} pauses")


def resume(cluster: BrokerCluster, broker_id: int) -> None:
    """Let it go on where it stood. Raises IllegalStateError if it is not paused."""
    broker = running(cluster, broker_id)
    if not broker.paused:
        raise IllegalStateError(f"broker {broker_id} is not paused", broker_id=broker_id)
    cluster.peers.trace(f"broker {broker_id} resumes")
    # Its roles first: what waits in its inbox must not be written by a leader of yesterday that could know better.
    broker.paused = False
    cluster.peers.catch_up(broker)
    broker.advance()
    broker.plan_service()


def _join(cluster: BrokerCluster, broker: Broker) -> None:
    peers = cluster.peers
    _equip(broker, peers)
    cluster.measure_broker(broker)
    broker.on_checkpoint_due = cluster.housekeeping.wake
    peers.joined(broker)
    cluster.know_brokers(peers.brokers())


def _equip(broker: Broker, peers: Peers) -> None:
    broker.epoch = peers.image.brokers[broker.id].broker_epoch
    broker.replication = Replication(broker, peers)
    broker.flushing.ends = broker.log_ends
    broker.flushing.synced_ends.update(broker.log_ends())


def _catch_up(cluster: BrokerCluster, broker: Broker) -> None:
    """Have it fetch what it missed, and those fetch that it leads."""
    for topic, number, partition in cluster.metadata.image.partitions():
        if broker.id in partition.replicas:
            for follower in partition.replicas:
                if follower == broker.id or partition.leader == broker.id:
                    cluster.peers.news_for(follower, partition.leader, (topic.name, number))


def _cut_tails(broker: Broker, tails: dict[int, int]) -> None:
    """Take off what a loss of power would have taken: everything behind the last sync."""
    from streamlog.broker.partition import load_epochs, load_state, save_epochs
    from streamlog.broker.producer_states import cut as cut_producers
    from streamlog.core.replica import truncated
    from streamlog.storage import log
    from streamlog.storage.keys import CheckpointKind, checkpoint_key

    for log_id, end_offset in sorted(tails.items()):
        state, _ = load_state(broker.environment, log_id, 0)
        with broker.environment.snapshot() as snapshot:
            epochs = load_epochs(snapshot, log_id, state)
        transaction = broker.environment.write()
        try:
            cut = log.truncate_tail(transaction, log_id, end_offset)
            if cut.batches:
                state = truncated(state, cut.log_end_offset, cut.bytes, cut.max_timestamp)
                log.put_checkpoint(transaction, log_id, state)
                transaction.delete(checkpoint_key(log_id, CheckpointKind.FOLD))
                cut_producers(transaction, log_id, state.log_start_offset, state.log_end_offset)
                save_epochs(transaction, log_id, epochs.truncated(state.log_end_offset))
            transaction.commit()
        except BaseException:
            transaction.abort()
            raise
