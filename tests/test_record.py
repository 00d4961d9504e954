"""record.py: frozen, picklable, short when printed, cheap to build."""

from __future__ import annotations

import pickle

import msgspec
import pytest

from streamlog.record import OffsetAndMetadata, OffsetAndTimestamp, Record, RecordMetadata, TopicPartition

VALUES = [
    Record("orders", 2, 42, 1_700_000_000_000, b"k", b"v", (("trace", b"1"), ("trace", None))),
    Record(value=b"x"),
    RecordMetadata("orders", 2, 42, 5),
    OffsetAndMetadata(42, "note", 3),
    OffsetAndTimestamp(42, 5),
    TopicPartition("orders", 2),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_pickle_compare_and_hash(value: object) -> None:
    again = pickle.loads(pickle.dumps(value))
    assert again == value and type(again) is type(value) and hash(again) == hash(value)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_frozen(value: object) -> None:
    with pytest.raises(AttributeError):
        value.offset = 7
    with pytest.raises(AttributeError):
        value.partition = 7


def test_a_record_to_send_needs_only_what_it_carries() -> None:
    record = Record(value=b"x")
    assert (record.topic, record.partition, record.offset, record.timestamp) == ("", -1, -1, -1)
    assert record.key is None and record.headers == ()


def test_field_order_is_the_contract() -> None:
    assert Record.__struct_fields__ == (
        "topic",
        "partition",
        "offset",
        "timestamp",
        "key",
        "value",
        "headers",
    )
    assert RecordMetadata.__struct_fields__ == ("topic", "partition", "offset", "timestamp")


def test_construction_runs_no_python() -> None:
    assert not hasattr(Record, "__post_init__")
    assert "__init__" not in vars(Record) and "__new__" not in vars(Record)


def test_records_compare_by_every_field() -> None:
    record = VALUES[0]
    for field, other in [("topic", "x"), ("partition", 0), ("offset", 0), ("timestamp", 0), ("key", None)]:
        assert msgspec.structs.replace(record, **{field: other}) != record


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (Record("orders", 0, 42, key=b"alice", value=b"v"), "<Record orders-0@42 key=b'alice' value=b'v'>"),
        (Record("o", 1, 2, 3, value=None), "<Record o-1@2 key=None value=None timestamp=3>"),
        (Record("o", 1, 2, headers=(("h", b""),)), "<Record o-1@2 key=None value=None headers=1>"),
        (
            Record("o", 1, 2, value=b"x" * 1_000),
            f"<Record o-1@2 key=None value={b'x' * 24!r}...(1000 bytes)>",
        ),
    ],
)
def test_repr(record: Record, text: str) -> None:
    assert repr(record) == text


def test_repr_stays_short_for_deserialized_values() -> None:
    assert len(repr(Record("o", 1, 2, value={"text": "x" * 10_000}))) < 120


def test_topic_partitions_sort_and_print() -> None:
    partitions = [TopicPartition("b", 0), TopicPartition("a", 10), TopicPartition("a", 9)]
    assert [str(partition) for partition in sorted(partitions)] == ["a-9", "a-10", "b-0"]
    assert TopicPartition("a", 9) == ("a", 9)
