"""Topic options from the user into the metadata log."""

from __future__ import annotations

import pytest

from streamlog.client.options import topic_overrides
from streamlog.errors import ConfigError


def test_nothing_given_is_nothing_set() -> None:
    assert topic_overrides(None) == {} == topic_overrides({})


def test_values_become_text_under_dotted_names() -> None:
    given = {"retention.ms": 3_600_000, "cleanup_policy": "compact"}
    assert topic_overrides(given) == {"retention.ms": "3600000", "cleanup.policy": "compact"}


def test_none_resets_where_resets_are_allowed() -> None:
    assert topic_overrides({"retention.ms": None, "retention.bytes": 7}, resets=True) == {
        "retention.ms": None,
        "retention.bytes": "7",
    }
    with pytest.raises(ConfigError):
        topic_overrides({"retention.ms": None})


@pytest.mark.parametrize(
    "wrong", [{"retention.mss": 1}, {"retention.ms": "soon"}, {"cleanup.policy": "shred"}]
)
def test_the_wrong_option_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        topic_overrides(wrong)
    assert next(iter(wrong)).replace("mss", "ms").split(".")[0] in str(caught.value)
