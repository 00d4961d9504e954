"""Topic options on their way from the user into the metadata log: checked, as text, by Kafka's dotted names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, overload

from streamlog.config import TopicConfig


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
