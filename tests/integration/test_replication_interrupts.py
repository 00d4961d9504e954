"""Ctrl-C in a caller that sends to several brokers: nothing is written twice, nobody waits for ever."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import streamlog
from streamlog.errors import IllegalStateError
from tests.broker.interrupting import count_places, interrupted_at, places
from tests.waiting import until

PLACES = 150
PATIENCE_S = 5.0
"""Far below every timeout that would end a wait by itself (30 s), far above what a loaded machine needs."""


@contextmanager
def three_brokers() -> Iterator[Any]:
    with streamlog.open(":memory:", brokers=3, sync="off") as opened:
        opened.create_topic("t", partitions=2, replication_factor=3)
        with opened.producer() as producer:
            producer.send("t", b"first", partition=0).result(10)
        yield opened


@pytest.fixture
def cluster() -> Iterator[Any]:
    with three_brokers() as opened:
        yield opened


def ends(cluster: Any, number: int) -> set[int]:
    found = set()
    for broker in cluster._backend.brokers:
        partition = broker.partitions.get(("t", number))
        found.add(0 if partition is None else partition.state.log_end_offset)
    return found


def test_an_interrupted_send_is_written_once_and_copied(cluster: Any) -> None:
    peers = cluster._backend.peers
    with cluster.producer() as producer:

        def send() -> None:
            producer.send("t", b"x", partition=0).result(PATIENCE_S)

        total = count_places(send)
        for strike_at in places(total, PLACES, seed=1):
            before = cluster.topic("t")[0].log_end_offset
            place = interrupted_at(strike_at, send)
            producer.flush(PATIENCE_S)
            until(lambda: len(ends(cluster, 0)) == 1, f"{place}: a follower was not told")
            after = cluster.topic("t")[0].log_end_offset
            assert after - before <= 1, f"{place}: written twice"
            assert not peers.helping._helpers, place
            assert not [f for f in peers.fetchers() if f._lock._is_owned()], place


def test_an_interrupted_flush_delivers_all_of_it(cluster: Any) -> None:
    with cluster.producer() as producer:
        told: list[object] = []
        asked: list[None] = []

        def send() -> None:
            nonlocal told, asked
            told, asked = [], []
            for number in range(4):
                producer.send("t", b"x", partition=number % 2).add_done_callback(told.append)
                asked.append(None)
            producer.flush(PATIENCE_S)

        total = count_places(send)
        for strike_at in places(total, PLACES, seed=2):
            before = [cluster.topic("t")[number].log_end_offset for number in (0, 1)]
            place = interrupted_at(strike_at, send)
            producer.flush(PATIENCE_S)
            after = [cluster.topic("t")[number].log_end_offset for number in (0, 1)]
            written = sum(after) - sum(before)
            assert written <= 4, f"{place}: written twice"
            until(lambda: len(told) >= len(asked), f"{place}: {len(told)} of {len(asked)} callbacks")
            assert len(asked) <= written, place


@pytest.mark.parametrize("act", ["stop", "crash"])
def test_an_interrupted_stop_can_be_done_again(cluster: Any, act: str) -> None:
    handle = cluster.brokers[2]

    def leave() -> None:
        getattr(handle, act)()

    total = count_places(leave)
    handle.start()
    with cluster.producer() as producer:
        for strike_at in places(total, PLACES // 3, seed=3):
            place = interrupted_at(strike_at, leave)
            if place is not None and handle.state != "down":
                leave()
            handle.start()
            assert handle.state == "running", place
            producer.send("t", b"x", partition=0).result(PATIENCE_S)
            until(lambda: len(ends(cluster, 0)) == 1, f"{place}: it does not catch up")


def test_an_interrupted_start_can_be_done_again(cluster: Any) -> None:
    handle = cluster.brokers[2]
    handle.stop()
    total = count_places(handle.start)
    with cluster.producer() as producer:
        for strike_at in places(total, PLACES // 3, seed=4):
            handle.stop()
            place = interrupted_at(strike_at, handle.start)
            if place is not None:
                try:
                    handle.start()
                except IllegalStateError:
                    pass  # it was struck on the very way out
            producer.send("t", b"x", partition=0).result(PATIENCE_S)
            until(lambda: len(ends(cluster, 0)) == 1, f"{place}: it does not catch up")
            until(lambda: set(cluster.topic("t")[0].isr) == {0, 1, 2}, f"{place}: it does not join again")


@pytest.mark.parametrize("act", ["pause", "resume"])
def test_an_interrupted_pause_or_resume_can_be_done_again(cluster: Any, act: str) -> None:
    handle = cluster.brokers[2]
    before, after = ("running", "paused") if act == "pause" else ("paused", "running")

    def come_back(state: str) -> None:
        if handle.state != state:
            (handle.pause if state == "paused" else handle.resume)()

    come_back(before)
    total = count_places(getattr(handle, act))
    with cluster.producer(acks=1) as producer:
        for strike_at in places(total, PLACES // 3, seed=5):
            come_back(before)
            place = interrupted_at(strike_at, getattr(handle, act))
            come_back(after)
            come_back("running")
            producer.send("t", b"x", partition=0).result(PATIENCE_S)
            until(lambda: len(ends(cluster, 0)) == 1, f"{place}: it does not catch up")


def test_an_interrupted_add_broker_leaves_none_or_one_that_starts() -> None:
    with three_brokers() as cluster:
        total = count_places(cluster.add_broker)
    for strike_at in places(total, PLACES // 5, seed=6):
        with three_brokers() as cluster:
            place = interrupted_at(strike_at, cluster.add_broker)
            if len(cluster.brokers) == 3:
                cluster.add_broker()
            added = cluster.brokers[3]
            if added.state != "running":
                added.start()
            cluster.reassign("t", {0: [3, 0, 1]})
            until(lambda: set(cluster.topic("t")[0].isr) == {0, 1, 3}, f"{place}: it does not join")
