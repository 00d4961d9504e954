"""Delivery callbacks: one thread, in order per partition, outside of every lock. The user's side is in
test_delivery.
"""

from __future__ import annotations

import threading

from streamlog import Cluster, Topic
from streamlog.broker.runner import Service, ThreadedRuntime
from streamlog.client.callbacks import DeliveryCallbacks
from streamlog.client.delivery import OpenBatch


def settled_batch(callbacks: DeliveryCallbacks, partition: int, settled: bool = True) -> OpenBatch:
    batch = OpenBatch(None, "t", partition, 0, 0)  # type: ignore[arg-type]
    batch.put(None, b"x", (), 0)
    if settled:
        batch.fail(KeyError())
    return batch


def new_callbacks() -> DeliveryCallbacks:
    runtime = ThreadedRuntime()
    return DeliveryCallbacks(runtime.turn_lock(), Service(runtime, "test", lambda now_ms: None))


def test_a_batch_waits_for_the_ones_before_it_in_its_partition_only() -> None:
    callbacks, called = new_callbacks(), []
    unsettled = settled_batch(callbacks, 0, settled=False)
    for name, batch in (
        ("0 first", unsettled),
        ("0 second", settled_batch(callbacks, 0)),
        ("1", settled_batch(callbacks, 1)),
    ):
        callbacks.add(batch, lambda _, name=name: called.append(name))  # type: ignore[misc]
    callbacks.run()
    assert called == ["1"] and callbacks.waiting
    unsettled.fail(KeyError())
    callbacks.run()
    assert called == ["1", "0 first", "0 second"] and not callbacks.waiting


def test_the_callback_gets_the_very_future_it_was_added_to(cluster: Cluster, single: Topic) -> None:
    with cluster.producer() as producer:
        futures = {producer.send("single", b"%d" % number) for number in range(10)}
        for future in list(futures):
            future.add_done_callback(futures.remove)
    assert not futures


def test_no_lock_is_held_while_a_callback_runs(cluster: Cluster, single: Topic) -> None:
    free: list[bool] = []

    def look(_: object) -> None:
        def try_locks() -> None:
            for lock in (producer._lock, cluster._backend.broker._lock):
                free.append(lock.acquire(timeout=5))
                lock.release()

        thread = threading.Thread(target=try_locks)
        thread.start()
        thread.join()

    with cluster.producer() as producer:
        producer.send("single", b"x").add_done_callback(look)
    assert free == [True, True]


def test_callbacks_added_while_callbacks_run_are_run(cluster: Cluster, single: Topic) -> None:
    called: list[int] = []
    with cluster.producer(linger_ms=1) as producer:
        future = producer.send("single", b"x")

        def again(_: object) -> None:
            called.append(1)
            if len(called) < 5:
                future.add_done_callback(again)

        future.add_done_callback(again)
    assert len(called) == 5
