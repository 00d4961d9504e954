"""Which timestamps a topic with CreateTime takes: not too far behind its broker's clock, and not too far ahead of it.

Source: Kafka `LogValidator`; KIP-937 (`message.timestamp.before.max.ms`, `message.timestamp.after.max.ms`).
"""

from __future__ import annotations

from streamlog.config import TopicConfig


def timestamp_refusal(timestamp: int, now_ms: int, config: TopicConfig) -> str | None:
    """Why a topic does not take a record of that time; None if it does.

    timestamp, now_ms: ms since the epoch.
    """
    ahead_ms = timestamp - now_ms
    if ahead_ms > config.message_timestamp_after_max_ms:
        option, most_ms, where = "after", config.message_timestamp_after_max_ms, f"{ahead_ms} ms ahead of now"
    elif -ahead_ms > config.message_timestamp_before_max_ms:
        option, most_ms, where = (
            "before",
            config.message_timestamp_before_max_ms,
            f"{-ahead_ms} ms before now",
        )
    else:
        return None
    return f"timestamp {timestamp} is {where}; allowed: at most {most_ms} (message.timestamp.{option}.max.ms)"
