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


@pytest.mark.parametrize("address", ["localhost:9092", "broker-1.example.com:9092"])
def test_a_host_and_port_are_no_directory(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"did you mean 'kafka://{address}'") as caught:
        streamlog.connect(address)
    assert caught.value.suggestion == f"kafka://{address}" and not list(tmp_path.iterdir())
    with streamlog.connect(f"./{address}") as cluster, streamlog.connect(":memory:7") as named:
        assert cluster.path.name == address and named.topics == []
