"""streamlog: ordered, durable, replicated event logs in your own process, the way SQLite is a database.

import streamlog

with streamlog.open("data/") as cluster:
    cluster.create_topic("orders", partitions=4, exist_ok=True)
    with cluster.producer() as producer:
        producer.send("orders", b"value", key=b"alice")
    with cluster.consumer_group("billing", ["orders"]).consumer(stop_at_end=True) as consumer:
        for record in consumer:
            print(record)
"""

import atexit as _atexit
import gc as _gc
from typing import TYPE_CHECKING as _TYPE_CHECKING

_collects = _gc.isenabled()
# Importing makes no garbage; looking for it twelve times takes a tenth of the time. What was imported stays, so it
# counts as old at the end: freezing and thawing moves it there without looking at it.
_gc.disable()
try:
    from streamlog import errors
    from streamlog.client.cluster import Cluster, close_all
    from streamlog.client.consumer import Consumer
    from streamlog.client.opening import open_cluster as open
    from streamlog.errors import StreamlogError
    from streamlog.record import OffsetAndMetadata, OffsetAndTimestamp, Record, RecordMetadata, TopicPartition
    from streamlog.version import VERSION as __version__
finally:
    if _collects:
        if not _gc.get_freeze_count():
            _gc.freeze()
            _gc.unfreeze()
        _gc.enable()

if _TYPE_CHECKING:
    from streamlog.client import serde
    from streamlog.client.connecting import connect
    from streamlog.client.consumer_group import ConsumerGroup
    from streamlog.client.producer import Producer
    from streamlog.client.topic import Partition, Topic

__all__ = [
    "Cluster",
    "Consumer",
    "ConsumerGroup",
    "OffsetAndMetadata",
    "OffsetAndTimestamp",
    "Partition",
    "Producer",
    "Record",
    "RecordMetadata",
    "StreamlogError",
    "Topic",
    "TopicPartition",
    "__version__",
    "connect",
    "errors",
    "open",
    "serde",
]

_atexit.register(close_all)


# Imported at their first use: who only reads starts faster.
_LATER = {
    "ConsumerGroup": "streamlog.client.consumer_group",
    "Partition": "streamlog.client.topic",
    "Producer": "streamlog.client.producer",
    "Topic": "streamlog.client.topic",
    "connect": "streamlog.client.connecting",
    "serde": "streamlog.client",
}

# What other clients of Kafka call it.
_ELSEWHERE = {
    "AdminClient": "cluster.create_topic(...) and its neighbours",
    "AIOKafkaConsumer": "streamlog.aio.open(path), then cluster.consumer_group(name, topics).consumer()",
    "AIOKafkaProducer": "streamlog.aio.open(path), then cluster.producer()",
    "KafkaAdminClient": "cluster.create_topic(...) and its neighbours",
    "KafkaConsumer": "cluster.consumer_group(name, topics).consumer()",
    "KafkaProducer": "cluster.producer()",
    "NewTopic": "cluster.create_topic(name, partitions=...)",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        here = _ELSEWHERE.get(name)
        hint = f"; here it is `{here}`" if here else ""
        raise AttributeError(f"module 'streamlog' has no attribute {name!r}{hint}", name=name)
    module = __import__(_LATER[name], fromlist=[name])  # "serde" is a module itself: fromlist imports it
    found = globals()[name] = getattr(module, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
