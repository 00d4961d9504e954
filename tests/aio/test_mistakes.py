"""aio/mistakes.py: an `async` or an `await` left out is named."""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamlog.aio
from streamlog.errors import UnknownNameError
from tests.aio.loops import in_loop

MAKERS: dict[str, Callable[[Any], Any]] = {
    "open": lambda cluster: streamlog.aio.open("data/"),
    "connect": lambda cluster: streamlog.aio.connect("data/"),
    "Cluster": lambda cluster: cluster,
    "Producer": lambda cluster: cluster.producer(),
    "Consumer": lambda cluster: cluster.consumer_group("g", ["orders"]).consumer(),
}


@pytest.mark.parametrize("name", MAKERS)
def test_with_says_async_with(name: str) -> None:
    @in_loop
    async def test() -> None:
        async with streamlog.aio.open(":memory:") as cluster:
            made = MAKERS[name](cluster)
            with pytest.raises(TypeError, match="use `async with`, not `with`, for <aio "), made:
                raise AssertionError("entered")

    test()


def test_all_that_is_entered_in_the_loop_is_tried_here() -> None:
    entered = {name for name in streamlog.aio.__all__ if hasattr(getattr(streamlog.aio, name), "__aenter__")}
    assert entered == set(MAKERS) - {"open", "connect"}
    iterated = {name for name in streamlog.aio.__all__ if hasattr(getattr(streamlog.aio, name), "__aiter__")}
    assert iterated == {"Consumer"}


@in_loop
async def test_for_says_async_for() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        consumer: Any = cluster.consumer()
        with pytest.raises(TypeError, match="use `async for`, not `for`, for <aio Consumer"):
            for _ in consumer:
                raise AssertionError("iterated")
        with pytest.raises(TypeError, match="use `async for`"):
            list(consumer)


@in_loop
async def test_an_open_that_nobody_awaited_says_await(tmp_path: Path) -> None:
    cluster: Any = streamlog.aio.open(tmp_path / "data")
    for use in (
        lambda: cluster.create_topic("orders"),
        lambda: cluster.topics,
        lambda: cluster.producer(),
    ):
        with pytest.raises(UnknownNameError, match=r"await it first: .*await streamlog.aio.open"):
            use()
    assert "not opened" in repr(cluster) and not (tmp_path / "data").exists()
    assert not hasattr(cluster, "topics") and copy.copy(cluster)._path == tmp_path / "data"
    assert not inspect.iscoroutine(cluster) and inspect.isawaitable(cluster)
    async with cluster as opened:
        assert opened.topics == []


@in_loop
async def test_a_send_many_that_nobody_awaited_says_await() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await cluster.create_topic("orders")
        async with cluster.producer() as producer:
            sent: Any = producer.send_many("orders", [(None, b"x")])
            with pytest.raises(UnknownNameError, match="await it first: `sent = await"):
                sent.result()
            with pytest.raises(TypeError, match="await it first"):
                list(sent)
            assert [future.result().offset for future in await sent] == [0]


@in_loop
async def test_coroutines_that_nobody_awaited_get_pythons_warning() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        for call in (cluster.groups, lambda: cluster.create_topic("orders"), cluster.producer().flush):
            with pytest.warns(RuntimeWarning, match="never awaited"):
                call()


TYPED = """
import streamlog.aio

async def main() -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        with cluster.producer() as producer:
            pass
        for record in cluster.consumer():
            pass
    streamlog.aio.open(":memory:").topics
"""


@pytest.mark.long  # mypy without a cache
def test_type_checkers_still_see_the_mistakes(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "typed.py").write_text(TYPED)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(tmp_path / "typed.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    told = [line for line in checked.stdout.splitlines() if " error: " in line]
    for expected in ("__enter__", "__iter__", '"topics"'):
        assert any(expected in line for line in told), checked.stdout + checked.stderr
