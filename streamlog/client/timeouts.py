"""Seconds at the surface, milliseconds inside.

Plain `timeout` arguments are seconds, as in the standard library; options that carry a unit carry it in their name.
A timeout above 300 seconds warns: somebody meant milliseconds, a habit from other clients.
"""

from __future__ import annotations

from typing import Final

from streamlog.errors import ConfigError

SECONDS_SUSPICIOUS: Final = 300

SETTLING_MS: Final = 1000
"""Who waits for a delivery and names no timeout waits so much longer than `delivery_timeout_ms`: the delivery's own end
tells why, and must come first."""


def milliseconds(call: str, timeout: float | None, default_ms: int) -> int:
    """Turn a `timeout` in seconds into ms; None is `default_ms`. Raises ConfigError for what is no duration."""
    if timeout is None:
        return default_ms
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, (int, float))
        or timeout != timeout
        or timeout < 0
    ):
        raise ConfigError(
            f"{call}(timeout={timeout!r}): allowed: seconds, a number >= 0",
            option="timeout",
            value=timeout,
            allowed="seconds, a number >= 0",
        )
    if timeout > SECONDS_SUSPICIOUS:
        import warnings

        warnings.warn(
            f"{call}(timeout={timeout:g}) means {timeout:g} seconds; did you mean {timeout / 1000:g} ({timeout:g} ms)?",
            stacklevel=3,
        )
    return int(min(timeout, 10_000_000) * 1000)
