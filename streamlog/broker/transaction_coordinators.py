"""The transaction coordinators of a cluster as one: each transactional id at the broker that leads its partition.

    transactional id --hash--> partition of __transaction_state --leader--> that broker's TransactionCoordinator

Source: Kafka FindCoordinator, TransactionManager (what it tries again).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from streamlog.broker.api import CreateTopic, InitProducerId, TransactionRequest
from streamlog.core.cluster_image import TRANSACTION_STATE_TOPIC
from streamlog.core.group import group_partition
from streamlog.errors import (
    ClosedError,
    CoordinatorNotAvailableError,
    LeaderNotAvailableError,
    NetworkError,
    StreamlogError,
    TopicAlreadyExistsError,
)

if TYPE_CHECKING:
    from streamlog.broker.broker import Broker
    from streamlog.broker.cluster import BrokerCluster

TOPIC_CONFIG: Final = {"cleanup.policy": "compact", "retention.ms": "-1"}
AGAIN_MS: Final = 10
"""A coordinator that moves, or is busy with the transaction before, is asked again after this."""


def coordinator_of(cluster: BrokerCluster, transactional_id: str) -> Broker:
    """Raises CoordinatorNotAvailableError, which is retriable."""
    number = group_partition(transactional_id, len(cluster.topic(TRANSACTION_STATE_TOPIC).partitions))
    try:
        broker = cluster.leader(TRANSACTION_STATE_TOPIC, number)
        broker.partition(TRANSACTION_STATE_TOPIC, number)  # takes its role
        return broker
    except (LeaderNotAvailableError, NetworkError, ClosedError) as error:
        cluster.check_usable()
        raise CoordinatorNotAvailableError(
            f"transactional_id {transactional_id!r} has no coordinator at the moment: {error}",
            transactional_id=transactional_id,
        ) from error


def call(
    cluster: BrokerCluster, transactional_id: str, event: Any, timeout_ms: int = 60_000
) -> tuple[int, int]:
    """Ask the coordinator until it answers: the producer id and epoch from now on.

    Raises   what is not retriable; what was said last, when the time is over.
    """
    if TRANSACTION_STATE_TOPIC not in cluster.topics:
        _make_topic(cluster)
    if type(event) is InitProducerId:
        cluster.metadata.transactional_ids[transactional_id] = None
    clock = cluster.runtime.clock
    deadline_ms = clock.monotonic_ms() + timeout_ms
    waiter = None
    while True:
        left_ms = max(0, deadline_ms - clock.monotonic_ms())
        try:
            answer: tuple[int, int] = _call_once(cluster, transactional_id, event, left_ms)
            return answer
        except StreamlogError as error:
            if not error.retriable or clock.monotonic_ms() >= deadline_ms:
                raise
        cluster.check_usable()
        waiter = waiter or cluster.runtime.waiter()
        waiter.wait(AGAIN_MS)


def _call_once(cluster: BrokerCluster, transactional_id: str, event: Any, left_ms: int) -> Any:
    request = TransactionRequest(transactional_id, event)
    if not cluster.is_replicated:
        return cluster.broker.call(request, left_ms)
    broker = coordinator_of(cluster, transactional_id)
    left_ms = min(left_ms, cluster.config_of(broker.id).broker_session_timeout_ms)  # a silent one is replaced
    if not cluster.runtime.may_help():
        return broker.call(request, left_ms)
    return cluster.peers.helping.call(broker, request, left_ms)


def _make_topic(cluster: BrokerCluster) -> None:
    cluster.check_usable()
    partitions = cluster.config.transaction_state_log_num_partitions
    factor = min(3, len(cluster.metadata.image.active_brokers()) or 1)
    try:
        cluster.ask_controller(CreateTopic(TRANSACTION_STATE_TOPIC, partitions, factor, dict(TOPIC_CONFIG)))
    except TopicAlreadyExistsError:
        pass
