"""Topic options on their way from the user into the metadata log: checked, as text, by Kafka's dotted names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

from streamlog.config import TopicConfig
from streamlog.errors import ConfigError, InvalidReplicationFactorError

if TYPE_CHECKING:
    from streamlog.broker.cluster import BrokerCluster


@overload
def topic_overrides(
    config: Mapping[str, Any] | None, *, resets: Literal[False] = False
) -> dict[str, str]: ...
@overload
def topic_overrides(config: Mapping[str, Any] | None, *, resets: Literal[True]) -> dict[str, str | None]: ...
def topic_overrides(
    config: Mapping[str, Any] | None, *, resets: bool = False
) -> dict[str, str] | dict[str, str | None]:
    """Overrides as the metadata log keeps them. Raises ConfigError for an unknown option or an impossible value.

    resets: None as a value is allowed and means "back to the default".
    """
    if not isinstance(config, Mapping):
        if config is None:
            return {}
        raise TopicConfig.no_mapping(config)
    given = {name: value for name, value in config.items() if not (resets and value is None)}
    parsed = TopicConfig.overrides(given)
    if not resets:
        return parsed
    dropped = TopicConfig.dotted_names([name for name, value in config.items() if value is None])
    return {**parsed, **dict.fromkeys(dropped)}


def different_options(
    backend: BrokerCluster, topic: str, overrides: Mapping[str, str]
) -> list[tuple[str, object, object]]:
    """(option, wanted, in force) of those options of a topic that are not in force as `overrides` has them."""
    there = backend.topic_config(topic)
    wanted = TopicConfig.with_overrides({**backend.topic(topic).config, **overrides}, backend.config)
    fields = [(option, option.replace(".", "_")) for option in overrides]
    pairs = [(option, getattr(wanted, field), getattr(there, field)) for option, field in fields]
    return [(option, new, old) for option, new, old in pairs if new != old]


def checked_factor(topic: str, factor: object) -> int:
    """Raises InvalidReplicationFactorError."""
    if isinstance(factor, bool) or not isinstance(factor, int):
        raise InvalidReplicationFactorError(
            f"replication_factor={factor!r} of topic {topic!r}: allowed: an int >= 1",
            topic=topic,
            value=factor,
        )
    return factor


def checked_assignment(assignment: Any) -> dict[int, list[int] | None]:
    """What `reassign` was given. Raises ConfigError."""
    allowed = "partition -> broker ids, such as {0: [3, 1]}; None cancels"
    if isinstance(assignment, Mapping) and all(
        ids is None or (isinstance(ids, Iterable) and not isinstance(ids, (str, bytes)))
        for ids in assignment.values()
    ):
        return {number: None if ids is None else list(ids) for number, ids in assignment.items()}
    raise ConfigError(
        f"reassign({assignment!r}): allowed: {allowed}",
        option="assignment",
        value=assignment,
        allowed=allowed,
    )


def not_default(count: int) -> int:
    """-1 asks the controller for its default; a user who passes it gets the range error like for any other number."""
    return -2 if count == -1 else count
