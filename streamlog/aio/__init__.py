"""streamlog for asyncio: the same names, thin over the same core.

    import streamlog.aio

    async with streamlog.aio.open("data/") as cluster:
        await cluster.create_topic("orders", partitions=4, exist_ok=True)
        async with cluster.producer() as producer:
            metadata = await producer.send("orders", b"value", key=b"alice")
        async with cluster.consumer_group("billing", ["orders"]).consumer() as consumer:
            async for record in consumer:
                ...

The law of this package (DESIGN, "Turns, not locks", 2): no turn of a broker, no commit, no wait ever runs in
the event loop's thread. What might do so goes to a few threads of the package's own; who waits for records
or for acks holds no thread at all, who flushes or ends a transaction one of some others.

    waiting    what carries a wake-up into the loop; the threads
    producer   send without a turn; awaiting room in the buffer
    late       records that wait for that room
    consumer   a poll that parks in the loop, not in a thread
    group      members, offsets, `run` with coroutines
    transactions, transactional_producer    begun and ended in threads
    processing `process` with coroutine handlers
    cluster    open, topics, partitions
    mistakes   what is said to who leaves an `async` or `await` out
"""

from streamlog.aio.cluster import Cluster, Partition, Topic, connect, open
from streamlog.aio.consumer import Consumer
from streamlog.aio.group import ConsumerGroup
from streamlog.aio.producer import Producer

__all__ = ["Cluster", "Consumer", "ConsumerGroup", "Partition", "Producer", "Topic", "connect", "open"]
