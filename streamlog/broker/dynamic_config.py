"""Options that may change while the cluster is open: Kafka's dynamic broker configs (KIP-226).

    alter_config --checked here--> metadata log (ConfigChanged) --> image.broker_configs --> `effective`, at each broker

What holds for a broker: its own dynamic option, else the one for all brokers, else what the cluster was opened with, else
the default. The dynamic ones are stored in the metadata log, so they are in force after reopening, too.

Sources: KIP-226, Kafka DynamicBrokerConfig, DynamicConfigManager.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from streamlog.broker.api import AlterBrokerConfig
from streamlog.broker.pending import wait_until_told
from streamlog.broker.upkeep import TakeConfig
from streamlog.cluster_config import TOPIC_DEFAULTS, ClusterConfig
from streamlog.core.cluster_image import CLUSTER_DEFAULT
from streamlog.errors import ConfigError, StreamlogError

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster

CONTROLLER_OPTIONS: Final = frozenset(
    {
        "min_insync_replicas",
        "unclean_leader_election_enable",
        "auto_leader_rebalance_enable",
        "leader_imbalance_check_interval_seconds",
        "leader_imbalance_per_broker_percentage",
    }
)
"""Of these there is one value for all brokers: a partition must not change its rules with its leader."""

DYNAMIC_OPTIONS: Final = frozenset(
    {
        *TOPIC_DEFAULTS.values(),
        *CONTROLLER_OPTIONS,
        "broker_rack",
        "replica_lag_time_max_ms",
        "replica_lag_max_messages",
        "replica_fetch_wait_max_ms",
        "replica_fetch_min_bytes",
        "replica_fetch_max_bytes",
        "replica_fetch_response_max_bytes",
        "replica_fetch_backoff_ms",
        "replica_high_watermark_checkpoint_interval_ms",
    }
)


def checked_changes(
    changes: Mapping[str, Any],
    broker_id: int | None,
    given: ClusterConfig,
    stored: Mapping[str, Mapping[str, str]],
) -> dict[str, str | None]:
    """Changes as the metadata log keeps them: text, by Kafka's dotted names; None resets.

    Raises   ConfigError for an unknown option, an impossible value, one that contradicts others, or one that needs the
             cluster to be opened anew. Nothing was changed.
    """
    if not isinstance(changes, Mapping):
        raise ClusterConfig.no_mapping(changes)
    texts: dict[str, str | None] = {}
    texts.update(
        ClusterConfig.overrides({name: value for name, value in changes.items() if value is not None})
    )
    texts.update(
        dict.fromkeys(ClusterConfig.dotted_names([name for name, value in changes.items() if value is None]))
    )
    names = {option.dotted: option.name for option in ClusterConfig.options()}
    for dotted in texts:
        if names[dotted] not in DYNAMIC_OPTIONS:
            raise ConfigError(
                f"{dotted} cannot be changed while the cluster is open, it needs reopening: "
                f"streamlog.open(..., config={{{dotted!r}: ...}})",
                option=names[dotted],
                value=texts[dotted],
                allowed=", ".join(sorted(d for d, name in names.items() if name in DYNAMIC_OPTIONS)),
            )
        if broker_id is not None and names[dotted] in CONTROLLER_OPTIONS:
            raise ConfigError(
                f"{dotted} has one value for all brokers; leave out broker={broker_id}",
                option=names[dotted],
                value=texts[dotted],
                allowed="broker=None",
            )
    key = resource(broker_id)
    after = {name: value for name, value in {**stored.get(key, {}), **texts}.items() if value is not None}
    effective(given, {**stored, key: after}, broker_id)
    return texts


def effective(
    given: ClusterConfig, stored: Mapping[str, Mapping[str, str]], broker_id: int | None = None
) -> ClusterConfig:
    """What holds for one broker (None: for all that have nothing of their own).

    Raises ConfigError where what the cluster was opened with contradicts what is stored.
    """
    overrides = dict(stored.get(CLUSTER_DEFAULT, {}))
    if broker_id is not None:
        overrides.update(stored.get(resource(broker_id), {}))
    return given.replaced({}, overrides) if overrides else given


def resource(broker_id: int | None) -> str:
    """How the metadata log names a broker, or all of them."""
    return CLUSTER_DEFAULT if broker_id is None else str(broker_id)


def alter_config(cluster: BrokerCluster, changes: Mapping[str, Any], broker_id: int | None) -> None:
    """Set or reset dynamic options. Raises ConfigError, BrokerIdNotRegisteredError; then nothing was changed."""
    checked = checked_changes(changes, broker_id, cluster.given_config, cluster.metadata.image.broker_configs)
    cluster.ask_controller(AlterBrokerConfig(resource(broker_id), checked))
    take_config(cluster, wait=True)
    cluster.move_high_watermarks()


def take_config(cluster: BrokerCluster, wait: bool = False) -> None:
    """Options have changed: everybody takes them over. Called outside of turns; again changes nothing.

    wait:  until the brokers have them; one that is paused takes them when it goes on.
    """
    cluster.config = cluster.config_of(None)
    cluster.metadata.configure(cluster.config)
    for broker in cluster.brokers:
        try:
            pending = broker.post(TakeConfig(cluster.config_of(broker.id)))
            if wait:
                wait_until_told(broker, [pending])
        except StreamlogError:
            continue  # it has just stopped: at its next start it finds them
