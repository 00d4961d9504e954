"""Topic options from the user into the metadata log."""

from __future__ import annotations

import pytest

from streamlog import Cluster
from streamlog.client.options import topic_overrides
from streamlog.errors import ConfigError, TopicAlreadyExistsError


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


@pytest.mark.parametrize("wrong", ["retention.ms", ["retention.ms"], 5])
def test_what_is_no_mapping_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"topic options .* a mapping of option names to values"):
        topic_overrides(wrong)  # type: ignore[call-overload]


def test_a_mapping_may_stand_first_as_in_other_clients(cluster: Cluster) -> None:
    assert cluster.producer({"linger.ms": 7}).config.linger_ms == 7
    assert cluster.consumer({"group.id": "g"}).config.group_id == "g"
    with pytest.raises(ConfigError, match="no server to bootstrap from"):
        cluster.producer({"bootstrap.servers": "localhost:9092"})
    with pytest.raises(ConfigError, match=r"cluster\.consumer_group\(name, topics\)"):
        cluster.consumer("orders")  # type: ignore[arg-type]


def test_exist_ok_accepts_a_topic_whose_options_are_as_they_were_asked_for(cluster: Cluster) -> None:
    cluster.create_topic("t", config={"retention.ms": 1000, "cleanup.policy": "compact"})
    for config in (
        None,
        {},
        {"retention.ms": 1000},
        {"retention_ms": "1000"},
        {"max.message.bytes": 1_048_588},
    ):
        assert cluster.create_topic("t", exist_ok=True, config=config).name == "t"


def test_and_names_the_one_that_is_not(cluster: Cluster) -> None:
    cluster.create_topic("t", config={"retention.ms": 1000})
    for config, wanted, there in (
        ({"retention.ms": 5}, 5, 1000),
        ({"retention.ms": 1000, "max.message.bytes": 7}, 7, 1_048_588),
    ):
        with pytest.raises(TopicAlreadyExistsError, match="exists with") as told:
            cluster.create_topic("t", exist_ok=True, config=config)
        assert (told.value.value, told.value.existing) == (wanted, there)
    assert cluster.topic("t").config["retention.ms"] == "1000"
