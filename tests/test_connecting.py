"""`streamlog.connect`: one URL."""

from __future__ import annotations

from pathlib import Path

import pytest

import streamlog
from streamlog.errors import ConfigError, UnsupportedOperationError


def test_memory() -> None:
    with streamlog.connect(":memory:") as cluster:
        assert cluster.topics == []


@pytest.mark.parametrize("form", ["{}", "streamlog://{}"])
def test_a_directory(tmp_path: Path, form: str) -> None:
    with streamlog.connect(form.format(tmp_path / "data"), sync="off") as cluster:
        assert cluster.path == tmp_path / "data"
        with streamlog.open(tmp_path / "data", sync="off") as same:
            cluster.create_topic("t")
            assert same.topics == ["t"]


def test_kafka_is_named_and_refused() -> None:
    with pytest.raises(UnsupportedOperationError, match="kafka://host:9092"):
        streamlog.connect("kafka://host:9092")


@pytest.mark.parametrize("wrong", ["redis://host", "http://host/data"])
def test_other_schemes_are_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="kafka://host:port") as caught:
        streamlog.connect(wrong)
    assert caught.value.value == wrong
    assert not Path(wrong.split(":")[0] + ":").exists()


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigError):
        streamlog.connect(7)  # type: ignore[arg-type]
