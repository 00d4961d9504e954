"""Names people bring along from other clients of Kafka, and what they are called here.

    producer.produce(...)   UnknownNameError: a Producer has no 'produce'; did you mean `send(topic, value,
    key)`?

Asked only when an attribute was not found, so it costs nothing otherwise.

Sources: confluent-kafka-python (Producer, Consumer, AdminClient), kafka-python, Kafka's Java clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from streamlog.errors import UnknownNameError

HABITS: Final[Mapping[str, Mapping[str, str]]] = {
    "Producer": {
        "produce": "send(topic, value, key)",
        "produce_batch": "send_many(topic, [(key, value), ...])",
        "send_batch": "send_many(topic, [(key, value), ...])",
        "poll": "future.add_done_callback(...): callbacks run by themselves; flush() waits for all",
        "list_topics": "cluster.topics",
        "init_transactions": "producer.transaction()",
        "begin_transaction": "producer.transaction()",
        "commit_transaction": "leaving producer.transaction()",
        "abort_transaction": "raising inside producer.transaction()",
        "send_offsets_to_transaction": "tx.commit_offsets(consumer)",
        "metrics": "cluster.metrics()",
    },
    "Consumer": {
        "consume": "poll(timeout, max_records)",
        "commit_sync": "commit()",
        "commit_async": "commit()",
        "store_offsets": "commit({partition: next_offset})",
        "get_watermark_offsets": "beginning_offsets([...]) and end_offsets([...])",
        "highwater": "end_offsets([...])",
        "list_topics": "cluster.topics",
        "topics": "cluster.topics",
        "partitions_for_topic": "cluster.topic(name).partitions",
        "partitions_for": "cluster.topic(name).partitions",
        "incremental_assign": "assign([...]) with all partitions",
        "incremental_unassign": "assign([...]) with those that remain",
        "memberid": "group.members()",
        "consumer_group_metadata": "tx.commit_offsets(consumer)",
        "get_message": "poll()",
        "get_messages": "poll()",
        "metrics": "cluster.metrics()",
    },
    "Cluster": {
        "create_topics": "create_topic(name, partitions=...)",
        "delete_topics": "delete_topic(name)",
        "list_topics": "topics",
        "describe_topics": "topic(name)",
        "describe_cluster": "brokers",
        "create_partitions": "topic(name).add_partitions(total)",
        "alter_configs": "topic(name).alter_config({...})",
        "incremental_alter_configs": "topic(name).alter_config({...})",
        "describe_configs": "topic(name).config",
        "delete_records": "topic(name)[number].delete_records(before_offset)",
        "list_offsets": "topic(name)[number].high_watermark",
        "list_groups": "groups",
        "list_consumer_groups": "groups",
        "describe_consumer_groups": "consumer_group(name).members()",
        "list_consumer_group_offsets": "consumer_group(name).offsets()",
        "alter_consumer_group_offsets": "consumer_group(name).reset_offsets({partition: offset})",
        "delete_consumer_groups": "consumer_group(name).delete()",
        "produce": "producer().send(topic, value, key)",
        "send": "producer().send(topic, value, key)",
        "subscribe": "consumer_group(name, topics).consumer()",
    },
}


def unknown_name(owner: object, name: str) -> AttributeError:
    """The error for an attribute that is not there, with what was probably meant."""
    kind = type(owner).__name__
    if name.startswith("_"):
        return AttributeError(f"{kind!r} object has no attribute {name!r}", name=name, obj=owner)
    snake = "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)
    public = [known for known in dir(type(owner)) if not known.startswith("_")]
    suggestion = HABITS.get(kind, {}).get(snake)
    if suggestion is None and snake in public:
        suggestion = snake
    if suggestion is None:
        from difflib import get_close_matches

        suggestion = next(iter(get_close_matches(snake, public, 1)), None)
    hint = f"; did you mean `{suggestion}`?" if suggestion else f"; it has: {', '.join(public)}"
    return UnknownNameError(
        f"a {kind} has no {name!r}{hint}", name=name, suggestion=suggestion, allowed=tuple(public)
    )
