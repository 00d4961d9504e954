"""streamlog.client.serde: one row per accepted spec, one per mistake."""

from __future__ import annotations

import dataclasses
import pickle
import re
import uuid
from typing import Any, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.client import serde
from streamlog.client.serde import Serde, only_bytes, resolve_deserializer, resolve_serializer, to_bytes
from streamlog.errors import ConfigError, DeserializationError, SerializationError


@dataclasses.dataclass
class Order:
    number: int
    item: str


class Trade(msgspec.Struct):
    symbol: str
    price: float


class Reading(TypedDict):
    sensor: str
    value: float


def both(spec: object, option: str = "value") -> tuple[Any, Any]:
    return resolve_serializer(spec, f"{option}_serializer"), resolve_deserializer(
        spec, f"{option}_deserializer"
    )


ROUND_TRIPS = [
    # spec                      value                              bytes, where they are a contract
    ("str", "", b""),
    ("str", "Zürich", "Zürich".encode()),
    ("int64", 0, bytes(8)),
    ("int64", 1, b"\0\0\0\0\0\0\0\1"),
    ("int64", -1, b"\xff" * 8),
    ("int64", 2**63 - 1, b"\x7f" + b"\xff" * 7),
    ("int64", -(2**63), b"\x80" + bytes(7)),
    ("json", {"b": 1, "a": [True, None]}, b'{"b":1,"a":[true,null]}'),
    ("json", "é", '"é"'.encode()),
    ("json", False, b"false"),
    ("msgpack", {"a": 1}, b"\x81\xa1a\x01"),
    ("msgpack", b"raw", b"\xc4\x03raw"),
    (serde.STR, "x", b"x"),
    (serde.INT64, 258, b"\0\0\0\0\0\0\1\2"),
    (serde.json(), [1], b"[1]"),
    (serde.json(Order), Order(7, "tea"), b'{"number":7,"item":"tea"}'),
    (serde.json(Trade), Trade("IBM", 1.5), b'{"symbol":"IBM","price":1.5}'),
    (serde.json(Reading), {"sensor": "a", "value": 2.0}, b'{"sensor":"a","value":2.0}'),
    (serde.json(list[int]), [1, 2], b"[1,2]"),
    (serde.msgpack(Order), Order(7, "tea"), None),
    (serde.msgpack(Trade), Trade("IBM", 1.5), None),
    (serde.msgpack(Reading), {"sensor": "a", "value": 2.0}, None),
    (Serde(lambda n: b"x" * n, len), 5, b"xxxxx"),
]


def named(item: object) -> str:
    """The same in every process: an address in a name is another each time."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(item))[:30]


@pytest.mark.parametrize(("spec", "value", "data"), ROUND_TRIPS, ids=named)
def test_round_trip(spec: object, value: object, data: bytes | None) -> None:
    serialize, deserialize = both(spec)
    encoded = serialize(value)
    assert type(encoded) is bytes
    if data is not None:
        assert encoded == data
    decoded = deserialize(encoded)
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize("spec", [*{id(row[0]): row[0] for row in ROUND_TRIPS}.values(), len, serde.BYTES])
def test_none_is_a_tombstone_in_both_directions(spec: object) -> None:
    serialize, deserialize = both(spec)
    assert serialize is None or serialize(None) is None
    assert deserialize is None or deserialize(None) is None


@pytest.mark.parametrize("spec", [None, "bytes", serde.BYTES])
def test_bytes_cost_no_call(spec: object) -> None:
    assert both(spec) == (None, None)


def test_without_serializer_only_bytes_are_taken() -> None:
    assert only_bytes([b"a", None, b""])
    assert only_bytes([])
    assert not only_bytes([b"a", "b"])
    assert not only_bytes([b"a", bytearray(b"b")])  # to_bytes copies those one by one
    assert to_bytes(None, "value_serializer") is None
    for buffer in (b"abc", bytearray(b"abc"), memoryview(b"abc")):
        taken = to_bytes(buffer, "value_serializer")
        assert type(taken) is bytes
        assert taken == b"abc"


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("text", "'str'"),
        ({"a": 1}, "'json'"),
        ([1], "'json'"),
        (5, "'int64'"),
        (1.5, "'json'"),
        (object(), "'json'"),
    ],
)
def test_a_value_that_is_no_bytes_names_the_serde_it_needs(value: object, named: str) -> None:
    with pytest.raises(SerializationError, match=f"value_serializer={named}") as caught:
        to_bytes(value, "value_serializer")
    assert caught.value.facts["given_type"] == type(value).__name__
    assert caught.value.facts["option"] == "value_serializer"
    assert isinstance(caught.value, ValueError)


CANNOT_SERIALIZE = [
    ("str", b"bytes", "expected str, got bytes"),
    ("str", 5, "expected str, got int"),
    ("str", "\ud800", "surrogates not allowed"),
    ("int64", "5", "expected int, got str"),
    ("int64", True, "expected int, got bool"),
    ("int64", 1.0, "expected int, got float"),
    ("int64", 2**63, "does not fit in 64 bits"),
    ("json", {1, 2} and object(), "object"),
    ("msgpack", object(), "object"),
    (serde.json(Order), {"number": 7, "item": "tea"}, "expected Order, got dict"),
    (serde.msgpack(Trade), Order(1, "x"), "expected Trade, got Order"),
    (lambda value: value + 1, "x", "str"),
    (lambda value: "text", 5, "must return bytes or None, returned str"),
]


@pytest.mark.parametrize(("spec", "value", "text"), CANNOT_SERIALIZE, ids=named)
def test_serialization_error_carries_what_was_given(spec: object, value: object, text: str) -> None:
    serialize, _ = both(spec)
    with pytest.raises(SerializationError, match=text) as caught:
        serialize(value)
    assert caught.value.facts["given_type"] == type(value).__name__
    assert "value_serializer" in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy), copy.facts) == (SerializationError, str(caught.value), caught.value.facts)


CANNOT_DESERIALIZE = [
    ("str", b"\xff", "utf-8"),
    ("int64", b"1234567", "expected 8 bytes, got 7"),
    ("int64", b"", "expected 8 bytes, got 0"),
    ("json", b"{", "truncated"),
    ("json", b"", "truncated"),
    ("msgpack", b"\x81", "truncated"),
    (serde.json(Order), b'{"number":"7","item":"tea"}', r"Expected `int`, got `str` - at `\$.number`"),
    (serde.json(Order), b'{"number":7}', "missing required field `item`"),
    (serde.msgpack(Trade), b"\x80", "missing required field `symbol`"),
    (serde.json(Reading), b'{"sensor":"a"}', "missing required field `value`"),
    (lambda data: 1 // 0, b"x", "division"),
]


@pytest.mark.parametrize(("spec", "data", "text"), CANNOT_DESERIALIZE, ids=named)
def test_deserialization_error_carries_what_was_read(spec: object, data: bytes, text: str) -> None:
    _, deserialize = both(spec)
    with pytest.raises(DeserializationError, match=text) as caught:
        deserialize(data)
    assert caught.value.facts["option"] == "value_deserializer"
    assert caught.value.facts["given"] == repr(data)
    assert caught.value.__cause__ is not None
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)


def test_errors_of_huge_or_unprintable_values_stay_short() -> None:
    class Unprintable:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    serialize, _ = both("json")
    with pytest.raises(SerializationError, match="<Unprintable>"):
        serialize(Unprintable())
    with pytest.raises(SerializationError) as caught:
        to_bytes("x" * 10_000_000, "value_serializer")
    assert len(str(caught.value)) < 300


CALLABLES = [
    (str.encode, "abc", b"abc"),
    (lambda value: bytearray(b"ab"), 1, b"ab"),
    (lambda value: None, 1, None),
]


@pytest.mark.parametrize(("spec", "value", "data"), CALLABLES)
def test_any_callable_serializes(spec: object, value: object, data: bytes | None) -> None:
    serialize = resolve_serializer(spec, "value_serializer")
    assert serialize is not None
    result = serialize(value)
    assert result == data
    assert type(result) is type(data)


def test_any_callable_deserializes_a_class_too() -> None:
    deserialize = resolve_deserializer(lambda data: uuid.UUID(bytes=data), "key_deserializer")
    assert deserialize is not None
    assert deserialize(bytes(16)) == uuid.UUID(int=0)
    as_decimal = resolve_deserializer(memoryview, "key_deserializer")
    assert as_decimal is not None
    assert as_decimal(b"x") == b"x"


@pytest.mark.parametrize(
    "spec", ["json", "msgpack", serde.json(dict[str, int]), serde.msgpack(dict[str, int])]
)
def test_equal_dicts_are_equal_keys(spec: object) -> None:
    """Else two spellings of one key would land in two partitions."""
    forward, backward = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    key = resolve_serializer(spec, "key_serializer")
    value = resolve_serializer(spec, "value_serializer")
    assert key is not None
    assert value is not None
    assert key(forward) == key(backward)
    assert value(forward) != value(backward)  # values keep the order they were given


NOT_A_SPEC = [
    # spec          suggestion
    ("string", "str"),
    ("STR", "str"),
    ("utf-8", "str"),
    ("jsn", "json"),
    ("long", "int64"),
    ("msgpck", "msgpack"),
    ("pickle", "msgpack"),
    ("zzzzzz", None),
    (str, '"str"'),
    (int, '"int64"'),
    (bytes, '"bytes"'),
    (dict, '"json"'),
    (Order, "serde.json(Order)"),
    (Trade, "serde.json(Trade)"),
    (Reading, "serde.json(Reading)"),
    (5, None),
    (b"json", None),
]


@pytest.mark.parametrize(("spec", "suggestion"), NOT_A_SPEC, ids=named)
@pytest.mark.parametrize("resolve", [resolve_serializer, resolve_deserializer])
def test_a_wrong_spec_is_a_config_error_with_a_hint(
    resolve: Any, spec: object, suggestion: str | None
) -> None:
    with pytest.raises(ConfigError, match="some_option=") as caught:
        resolve(spec, "some_option")
    assert caught.value.suggestion == suggestion
    assert caught.value.option == "some_option"
    assert '"int64"' in str(caught.value.allowed)
    assert ("did you mean" in str(caught.value)) == (suggestion is not None)


def test_a_type_that_cannot_be_checked_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="cannot be checked"):
        serde.json(int | list[int] | tuple[int, int])  # type: ignore[arg-type]


def test_serdes_show_their_name() -> None:
    assert repr(serde.json(Order)) == "<Serde json(Order)>"
    assert repr(serde.msgpack()) == "<Serde msgpack>"
    assert repr(Serde(bytes, bytes)) == "<Serde custom>"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, st.sampled_from(["json", "msgpack"]), st.sampled_from(["key", "value"]))
def test_every_json_value_comes_back(value: object, name: str, option: str) -> None:
    serialize, deserialize = both(name, option)
    data = serialize(value)
    assert (data is None) == (value is None)
    assert deserialize(data) == value


@given(st.text())
def test_str_agrees_with_utf8(text: str) -> None:
    serialize, deserialize = both("str")
    assert serialize(text) == text.encode()
    assert deserialize(text.encode()) == text


@given(st.integers(-(2**63), 2**63 - 1))
def test_int64_agrees_with_int_to_bytes(number: int) -> None:
    serialize, deserialize = both("int64")
    assert serialize(number) == number.to_bytes(8, "big", signed=True)
    assert deserialize(serialize(number)) == number
