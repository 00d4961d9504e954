"""Exactly once: what transactions, idempotence and committing offsets cost.

Back of the envelope, one broker: a transaction of 100 records is two commits (its records, its end) where the same
records without one are one commit; the end writes a marker into each partition it touched and a record of its own.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from benchmarks import ours
from benchmarks.harness import Bench, Cell, Contestant, Goal, Metrics
from benchmarks.payload import chunks, pairs

BATCH_RECORDS = 100
GROUP = "bench-group"


def lists_of_100(cell: Cell, is_transactional: bool, brokers: int = 1) -> Metrics:
    """Lists of 100 records, each written before the next begins: as a transaction, or by themselves."""
    items = pairs(cell.scaled(200_000 if brokers == 1 else 50_000), 100)
    lists = list(chunks(items, BATCH_RECORDS))
    options: dict[str, Any] = {"transactional_id": "bench"} if is_transactional else {}
    with ours.opened(cell.directory, brokers=brokers) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1, replication_factor=brokers)
        with cluster.producer(**options) as producer:
            for some in lists[:20]:  # the topic of transactions is made at the first use, modules are loaded
                _write(producer, some, is_transactional)
            started = time.perf_counter()
            for some in lists:
                _write(producer, some, is_transactional)
            return {"records_per_s": len(items) / (time.perf_counter() - started)}


def _write(producer: Any, items: list[Any], is_transactional: bool) -> None:
    if is_transactional:
        with producer.transaction():
            producer.send_many(ours.TOPIC, items)
    else:
        producer.send_many(ours.TOPIC, items).result()


def idempotent(cell: Cell, is_idempotent: bool) -> Metrics:
    """Lists of 1,000 to three replicas, acks=all, until everything is acknowledged."""
    items = pairs(cell.scaled(500_000), 100)
    with ours.opened(cell.directory, brokers=3) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=4, replication_factor=3)
        with cluster.producer(acks="all", enable_idempotence=is_idempotent) as producer:
            started = time.perf_counter()
            for chunk in chunks(items, ours.CALL_RECORDS):
                producer.send_many(ours.TOPIC, chunk)
            producer.flush()
            return {"records_per_s": len(items) / (time.perf_counter() - started)}


def commits(cell: Cell) -> Metrics:
    """A member of a group commits one partition's offset, again and again, each time until it is stored."""
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        with cluster.producer() as producer:
            producer.send(ours.TOPIC, b"x").result()
        group = cluster.consumer_group(GROUP, [ours.TOPIC], enable_auto_commit=False)
        with group.consumer() as consumer:
            while not consumer.poll(1):
                pass
            place = ours.topic_partition()
            count = cell.scaled(30_000, 5_000)
            for offset in range(1_000):
                consumer.commit({place: offset})
            started = time.perf_counter()
            for offset in range(count):
                consumer.commit({place: offset})
            return {"commits_per_s": count / (time.perf_counter() - started)}


def commit_floor(cell: Cell) -> Metrics:
    """The same 120 bytes as one put and one commit of raw LMDB: what no commit of offsets can be faster than."""
    import lmdb

    count = cell.scaled(30_000, 5_000)
    environment = lmdb.open(str(cell.directory / "floor"), map_size=1 << 28, sync=False, metasync=False)
    value = b"v" * 120
    started = time.perf_counter()
    for offset in range(count):
        with environment.begin(write=True) as transaction:
            transaction.put(offset.to_bytes(8, "big"), value)
    rate = count / (time.perf_counter() - started)
    environment.close()
    return {"commits_per_s": rate}


MEMBERS, GROUP_PARTITIONS = 100, 1_000


def rebalances(cell: Cell) -> Metrics:
    """100 members of one group, polled in turn by one thread, share 1,000 partitions; then one leaves, then one joins."""
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=GROUP_PARTITIONS)
        group = cluster.consumer_group(
            GROUP, [ours.TOPIC], partition_assignment_strategy="cooperative-sticky"
        )
        members = [group.consumer() for _ in range(MEMBERS)]
        joined_s = _settle(members)
        owned = {member: set(member.assignment) for member in members}
        members.pop().close()
        left_s = _settle(members)
        moved = sum(len(owned[member] - set(member.assignment)) for member in members)
        members.append(group.consumer())
        back_s = _settle(members)
        for member in members:
            member.close()
    return {"join_ms": joined_s * 1e3, "leave_ms": left_s * 1e3, "moved": moved, "come_back_ms": back_s * 1e3}


def _settle(members: list[Any]) -> float:
    """Seconds until every partition has an owner and nothing is on its way."""
    started = time.perf_counter()
    while True:
        for member in members:
            member.poll(0)
        owned = [partition for member in members for partition in member.assignment]
        if len(owned) == len(set(owned)) == GROUP_PARTITIONS and all(
            m._membership.is_settled for m in members
        ):
            return time.perf_counter() - started


def processing(cell: Cell, exactly_once: bool) -> Metrics:
    """`cluster.process`: one worker copies 100,000 records, 500 a poll."""
    items = pairs(cell.scaled(100_000), 100)
    with ours.opened(cell.directory) as cluster:
        cluster.create_topic(ours.TOPIC, partitions=1)
        cluster.create_topic("copies", partitions=1)
        ours.fill(cluster, items)
        group = cluster.consumer_group(GROUP, [ours.TOPIC])
        started = time.perf_counter()
        cluster.process(
            group,
            lambda record: record.value,
            "copies",
            exactly_once=exactly_once,
            stop_at_end=True,
            max_poll_records=500,
        )
        return {"records_per_s": len(items) / (time.perf_counter() - started)}


BENCHES = [
    Bench(
        "transactions of 100",
        "transactions",
        [
            Contestant("streamlog, transactions", partial(lists_of_100, is_transactional=True)),
            Contestant("streamlog, no transactions", partial(lists_of_100, is_transactional=False)),
        ],
        [Goal("records_per_s", "streamlog, transactions", of="streamlog, no transactions", at_least=0.5)],
        note="Lists of 100 records, one partition, one broker, sync=off; the next begins when one is written, or complete.",
    ),
    Bench(
        "transactions of 100, three brokers",
        "transactions",
        [
            Contestant("streamlog, transactions", partial(lists_of_100, is_transactional=True, brokers=3)),
            Contestant(
                "streamlog, no transactions", partial(lists_of_100, is_transactional=False, brokers=3)
            ),
        ],
        note="The same with three replicas: the decision, its marker and its completion are replicated, one after the other.",
    ),
    Bench(
        "idempotence",
        "transactions",
        [
            Contestant("streamlog, idempotent", partial(idempotent, is_idempotent=True)),
            Contestant("streamlog, not idempotent", partial(idempotent, is_idempotent=False)),
        ],
        [Goal("records_per_s", "streamlog, idempotent", of="streamlog, not idempotent", at_least=0.9)],
        note="send_many of 1,000, three replicas, acks=all, sync=off.",
    ),
    Bench(
        "commits of offsets",
        "transactions",
        [Contestant("streamlog", commits), Contestant("raw LMDB", commit_floor)],
        [Goal("commits_per_s", "streamlog", at_least=10_000)],
        note="One thread, one partition a commit, each waited for, sync=off.",
    ),
    Bench(
        "process",
        "transactions",
        [
            Contestant("streamlog, exactly once", partial(processing, exactly_once=True)),
            Contestant("streamlog, at least once", partial(processing, exactly_once=False)),
        ],
        [Goal("records_per_s", "streamlog, exactly once", of="streamlog, at least once", at_least=0.4)],
        note="One worker, one partition, 500 records a poll (Kafka's default), sync=off.",
    ),
    Bench(
        "rebalances of 100 members",
        "groups",
        [Contestant("streamlog", rebalances)],
        [
            Goal("join_ms", "streamlog", at_most=1_000),
            Goal("leave_ms", "streamlog", at_most=1_000),
            Goal("moved", "streamlog", at_most=0),
        ],
        note="1,000 partitions, cooperative-sticky, in process. Moved: partitions that others lost when one member left.",
    ),
]
