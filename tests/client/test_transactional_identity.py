"""One identity a transaction, whatever cuts its beginning or its end short."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import pytest

from streamlog.client.transactional_identity import TransactionalIdentity
from tests.broker.interrupting import Interrupt, interrupted_at
from tests.client.test_transactions import cluster as cluster
from tests.client.test_transactions import fill, read


def test_each_transaction_begins_with_nothing_of_the_one_before() -> None:
    identity = TransactionalIdentity("t", 7, 0)
    assert [identity.guess(("out", 0), 3), identity.guess(("out", 0), 1)] == [0, 3] and identity.has_sent
    identity.joined.add(("out", 0))
    identity.renew(7, 1)
    assert identity.stamp == (7, 1) and not identity.has_sent and not identity.joined
    assert identity.guess(("out", 0), 1) == 0


@pytest.mark.parametrize("act", ["commit", "with", "enter"])
def test_an_interrupt_anywhere_leaves_producer_and_consumer_whole(cluster: Any, act: str) -> None:
    """Ctrl-C on the way in, at the end, or once that is answered: the same producer and consumer go on, exactly once."""
    group = cluster.consumer_group("g", ["in"], enable_auto_commit=False)
    sent: list[bytes] = []

    def work(wait_s: float = 5) -> int:
        with producer.transaction(consumer):
            return forward(wait_s)

    def forward(wait_s: float) -> int:
        records = consumer.poll(wait_s, max_records=3)
        for record in records:
            producer.send("out", record.value)
        return len(records)

    def cut_short(place: int) -> str | None:
        fill(cluster, 3)
        sent.extend([b"000", b"001", b"002"])
        transaction = producer.transaction(consumer)
        if act == "enter":
            with contextlib.suppress(Interrupt):
                return interrupted_at(place, transaction.__enter__)
        transaction.__enter__()
        forward(5)
        if act == "with":
            return interrupted_at(place, partial(transaction.__exit__, None, None, None))
        struck = interrupted_at(place, transaction.commit)
        if not transaction._has_ended:
            transaction.abort()
        return struck

    with group.consumer() as consumer, cluster.producer(transactional_id="t") as producer:
        fill(cluster, 1)
        sent.append(b"000")
        assert work() == 1  # what is done the first time only is done
        place, first = (
            0,
            2 if act == "with" else 1,
        )  # nothing of ours can catch what strikes as `__exit__` is entered
        while place < 2000:
            struck = cut_short(first + place)
            if struck is None:
                if producer._transaction is not None:
                    producer._transaction.abort()
                break
            while sum(group.lag().values()):
                work()
            assert read(cluster) == sorted(sent), struck
            place += 7 if place > 20 else 1
    assert place > 5
