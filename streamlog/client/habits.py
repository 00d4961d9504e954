"""Names people bring along from other clients of Kafka, and what they are called here.

    producer.produce(...)   UnknownNameError: a Producer has no 'produce'; did you mean `send(topic, value, key)`?

Each such name is a class attribute that raises when it is read. No `__getattr__`: a class that has one reads *every*
attribute four times slower, the hot path's too.

Arguments are told likewise, by methods that take `**others`. `send` does not: collecting them would cost it 5%.

Sources: confluent-kafka-python (Producer, Consumer, AdminClient), kafka-python, aiokafka, Kafka's Java clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

from streamlog.config import TopicConfig
from streamlog.errors import ConfigError, UnknownNameError
from streamlog.option_rules import closest

if TYPE_CHECKING:
    from typing import TypedDict

    class NoOthers(TypedDict):
        """Of `**others`: nothing, says the type checker; what comes all the same is for `unknown_argument`."""


HABITS: Final[Mapping[str, Mapping[str, str]]] = {
    "Producer": {
        "produce": "send(topic, value, key)",
        "produce_batch": "send_many(topic, [(key, value), ...])",
        "send_batch": "send_many(topic, [(key, value), ...])",
        "poll": "future.add_done_callback(...): callbacks run by themselves; flush() waits for all",
        "list_topics": "cluster.topics",
        "metrics": "cluster.metrics()",
        "send_and_wait": "send(topic, value, key).result()",
        "purge": "close()",
        "stop": "close()",
        "partitions_for_topic": "partitions_for(topic)",
        "partitionsFor": "partitions_for(topic)",
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
        "get_message": "poll()",
        "get_messages": "poll()",
        "metrics": "cluster.metrics()",
        "getmany": "poll(timeout, max_records)",
        "getone": "poll(timeout, max_records=1)",
        "stop": "close()",
        "commitSync": "commit()",
        "commitAsync": "commit()",
        "seekToBeginning": "seek_to_beginning(partitions)",
        "seekToEnd": "seek_to_end(partitions)",
        "offsetsForTimes": "offsets_for_times({partition: ms})",
        "beginningOffsets": "beginning_offsets([...])",
        "endOffsets": "end_offsets([...])",
        "partitionsFor": "cluster.topic(name).partitions",
    },
    "Cluster": {
        "create_topics": "create_topic(name, partitions=...)",
        "delete_topics": "delete_topic(name)",
        "createTopics": "create_topic(name, partitions=...)",
        "deleteTopics": "delete_topic(name)",
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

_TRANSACTIONS: Final = (
    'write `with cluster.producer(transactional_id="t-1") as p, p.transaction(consumer): p.send(...)`'
)
NOT_YET: Final[Mapping[str, Mapping[str, str]]] = {
    "Producer": dict.fromkeys(
        (
            *(
                "transaction",
                "init_transactions",
                "begin_transaction",
                "commit_transaction",
                "abort_transaction",
            ),
            *("initTransactions", "beginTransaction", "commitTransaction", "abortTransaction"),
            *("send_offsets_to_transaction", "sendOffsetsToTransaction"),
        ),
        _TRANSACTIONS,
    ),
    "Consumer": {"consumer_group_metadata": _TRANSACTIONS, "groupMetadata": _TRANSACTIONS},
    "Cluster": {
        "listen": "the listener for Kafka clients is not part of this version yet",
    },
}

_SECONDS: Final = {"timeout_ms": "timeout, in seconds"}
ARGUMENTS: Final[Mapping[str, Mapping[str, str]]] = {
    "flush": _SECONDS,
    "close": _SECONDS,
    "poll": {**_SECONDS, "num_messages": "max_records"},
    "commit": {
        **_SECONDS,
        "asynchronous": "commit(): it waits until the offsets are stored",
        "message": "offsets={TopicPartition(record.topic, record.partition): record.offset + 1}",
    },
    "subscribe": {
        "on_assign": "on_assigned",
        "on_revoke": "on_revoked",
        "listener": "on_assigned, on_revoked and on_lost",
        "pattern": "topics=re.compile(...)",
    },
    "create_topic": {
        "num_partitions": "partitions",
        "topic_configs": "config",
        "if_not_exists": "exist_ok",
    },
}
"""By method: an argument elsewhere, and what it is here."""


class Elsewhere:
    """A name other clients have: reading it says what it is called here."""

    __slots__ = ("name", "suggestion", "remark")

    def __init__(self, name: str, suggestion: str | None, remark: str) -> None:
        self.name = name
        self.suggestion = suggestion
        self.remark = remark

    def __repr__(self) -> str:
        return f"<not here: {self.remark}>"

    def __get__(self, instance: object, kind: type) -> NoReturn:
        raise UnknownNameError(
            f"a {kind.__name__} has no {self.name!r}; {self.remark}",
            name=self.name,
            suggestion=self.suggestion,
            allowed=tuple(name for name in dir(kind) if not name.startswith("_")),
        )


class Habitual(type):
    """Metaclass of what users hold: gives a class the names people look for in vain, and keeps them out of `dir`."""

    def __init__(cls, name: str, bases: tuple[type, ...], names: dict[str, Any], **options: Any) -> None:
        super().__init__(name, bases, names, **options)
        for habit, here in HABITS.get(name, {}).items():
            setattr(cls, habit, Elsewhere(habit, here, f"did you mean `{here}`?"))
        for habit, why in NOT_YET.get(name, {}).items():
            if habit in names:
                continue  # in streamlog.aio one class is both
            setattr(cls, habit, Elsewhere(habit, None, why))

    def __dir__(cls) -> list[str]:
        return _named_here(super().__dir__(), cls)

    if not TYPE_CHECKING:

        def __call__(cls, *given, **options):
            # As other clients are made: Producer({"bootstrap.servers": ...}), KafkaConsumer("topic").
            if not given or isinstance(given[0], (str, bytes, dict)):
                raise _made_elsewhere(cls, given[0] if given else options)
            return super().__call__(*given, **options)


class KnowsHabits(metaclass=Habitual):
    """Base of what users hold."""

    __slots__ = ()

    def __dir__(self) -> list[str]:
        return _named_here(super().__dir__(), type(self))


_MADE: Final[Mapping[str, str]] = {
    "Producer": "cluster.producer(...)",
    "Consumer": "cluster.consumer_group(name, topics).consumer()",
    "Cluster": "streamlog.open(path)",
}


def _made_elsewhere(cls: type, given: object) -> ConfigError:
    here = next(_MADE[base.__name__] for base in cls.__mro__ if base.__name__ in _MADE)
    return ConfigError(
        f"a {cls.__name__} is not made by its class; did you mean `{here}`?",
        option=cls.__name__,
        value=given,
        allowed=here,
        suggestion=here,
    )


def unknown_argument(method: Callable[..., Any], others: Mapping[str, object]) -> ConfigError:
    """The error for keywords that a method does not take: what they are called here, or what is closest."""
    name, value = next(iter(others.items()))
    code = method.__code__
    taken = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    suggestion = ARGUMENTS[method.__name__].get(name)
    if suggestion is None:
        options = _topic_options(name) if "config" in taken else {}
        suggestion = name if name in options else closest(name, (*taken, *options))
        if suggestion in options:
            suggestion = f'config={{"{options[suggestion]}": {value!r:.80}}}'
    hint = f"did you mean `{suggestion}`?" if suggestion else f"it takes {', '.join(taken)}"
    return ConfigError(
        f"{method.__name__}() has no argument {name!r} (given {value!r:.80}); {hint}",
        option=name,
        value=value,
        allowed=taken,
        suggestion=suggestion,
    )


def _topic_options(name: str) -> dict[str, str]:
    """Kafka's names of topic options by ours; with this one, if it is accepted at all."""
    options = {option.name: option.dotted for option in TopicConfig.options()}
    try:
        TopicConfig.dotted_names([name])
    except ConfigError:
        return options
    return {name: name.replace("_", "."), **options}


def _named_here(names: Iterable[str], kind: type) -> list[str]:
    absent = {name for base in kind.__mro__ for name, value in vars(base).items() if type(value) is Elsewhere}
    return [name for name in names if name not in absent]
