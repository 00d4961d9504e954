"""A transactional producer that is made in a loop takes its id over later, in a thread."""

from __future__ import annotations

import pytest

import streamlog.aio
from streamlog.errors import ProducerFencedError
from tests.aio.loops import in_loop, watched


@in_loop
async def test_making_it_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with streamlog.aio.open(":memory:") as cluster:
        await cluster.create_topic("out")
        async with cluster.producer(transactional_id="t") as first:
            with watched(monkeypatch):
                second = cluster.producer(transactional_id="t")
            monkeypatch.undo()
            async with first.transaction():
                first.send("out", b"not fenced yet")
            async with second.transaction():
                second.send("out", b"its first transaction takes the id over")
            with pytest.raises(ProducerFencedError):
                async with first.transaction():
                    first.send("out", b"fenced")
            await second.close()
