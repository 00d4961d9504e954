"""aio/late.py: records that wait outside of the batches; most of it is judged by what `test_producer` sends."""

from __future__ import annotations

import asyncio

import pytest

import streamlog
import streamlog.aio
from streamlog.aio.late import PORTION_BYTES_MAX, PORTION_RECORDS_MAX, portion_of
from streamlog.errors import InvalidTopicError
from tests.aio.loops import in_loop


def test_a_portion_is_bounded_by_count_and_bytes() -> None:
    assert len(portion_of([(None, b"")] * 5_000)) == PORTION_RECORDS_MAX
    assert len(portion_of([(None, b"")] * 5_000, 4_990)) == 10
    large = [(None, b"x" * (PORTION_BYTES_MAX // 4))] * 10
    assert len(portion_of(large)) == 4
    assert len(portion_of([streamlog.Record("t", value=value) for _, value in large])) == 4
    assert len(portion_of([(None, b"x" * 2 * PORTION_BYTES_MAX)] * 2)) == 1


@in_loop
async def test_they_are_sent_though_all_tasks_are_cancelled_as_at_the_end_of_a_run() -> None:
    async with streamlog.aio.open(":memory:", auto_create_topics=True) as cluster:
        async with cluster.producer() as producer:
            late = [producer.send("new", b"%d" % number) for number in range(3)]
            await asyncio.sleep(0)
            assert producer._placing is not None
            producer._placing.cancel()
        assert [record.value for record in await cluster.topic("new")[0].read()] == [b"0", b"1", b"2"]
        assert [(await future).offset for future in late] == [0, 1, 2]


@in_loop
async def test_what_cannot_be_gathered_is_told_once() -> None:
    async with (
        streamlog.aio.open(":memory:", auto_create_topics=True) as cluster,
        cluster.producer() as producer,
    ):
        with pytest.raises(InvalidTopicError):
            await producer.send("not/a name", b"x")
        assert producer._unknown_late() == []
        late = producer.send("not/a name", b"x")
        await producer.drain()
        assert producer._unknown_late() == [late] and producer._unknown_late() == []
