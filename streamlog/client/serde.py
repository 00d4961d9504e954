"""Serdes: what `key_serializer=`, `value_serializer=` and the two `*_deserializer=` options accept.

    spec                      meaning of one side
    None, "bytes", BYTES      bytes in, bytes out, no call at all
    "str" | "int64" |         the serde of that name: UTF-8 text; 8 bytes big-endian (Kafka's LongSerializer);
    "json" | "msgpack"        any value JSON or MessagePack can hold
    serde.json(Order),        the same for one type (dataclass, msgspec Struct, TypedDict, list[...], ...);
    serde.msgpack(Order)      bytes are validated against the type when they are decoded
    Serde(encode, decode)     a pair of your own; the option takes its side
    any other callable        value -> bytes | None, or bytes -> value

Invariants:
 1. None never reaches a serde: a None value is a tombstone, a None key is no key, in both directions.
 2. What leaves a resolved serializer is `bytes` or None, whatever the user's function returned.
 3. Every failure is SerializationError or DeserializationError with the option, what was given and the
    original exception as cause; the client adds topic, partition and offset.
 4. A dict as a *key* has one encoding, whatever the order of its entries: equal keys meet in one partition.

Sources: Kafka StringSerializer, LongSerializer; msgspec. Not implemented: Avro, Protobuf and JSON Schema
registries (pass a callable); pickle, on purpose: stored pickles run code when they are read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

import msgspec

from streamlog.errors import ConfigError, DeserializationError, SerializationError

T = TypeVar("T")

Serializer = Callable[[object], "bytes | None"]
Deserializer = Callable[["bytes | None"], object]

SHOWN_CHARS_MAX = 80
_BYTES_TYPES = frozenset({bytes, type(None)})


class Serde(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """A pair of functions, value -> bytes and bytes -> value; neither is ever called with None."""

    serialize: Callable[[T], bytes | None]
    deserialize: Callable[[bytes], T]
    name: str = "custom"
    serialize_key: Callable[[T], bytes | None] | None = None
    """Used for keys instead of `serialize` where only that gives equal keys equal bytes."""

    def __repr__(self) -> str:
        return f"<Serde {self.name}>"


# ---------------------------------------------------------------- the named serdes


def _same(value: bytes) -> bytes:
    return value


def _encode_str(value: str) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"expected str, got {type(value).__name__}")
    return value.encode()


_int64 = struct.Struct(">q")


def _encode_int64(value: int) -> bytes:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected int, got {type(value).__name__}")
    try:
        return _int64.pack(value)
    except struct.error:
        raise ValueError(f"{value} does not fit in 64 bits (-2**63 to 2**63 - 1)") from None


def _decode_int64(data: bytes) -> int:
    if len(data) != 8:
        raise ValueError(f"expected 8 bytes, got {len(data)}")
    value: int = _int64.unpack(data)[0]
    return value


@overload
def json(of_type: None = None) -> Serde[Any]: ...
@overload
def json(of_type: type[T]) -> Serde[T]: ...
def json(of_type: Any = None) -> Serde[Any]:
    """JSON in UTF-8, of any value or of one type that is checked when it is decoded."""
    return _msgspec_serde("json", of_type, msgspec.json.Encoder, msgspec.json.Decoder)


@overload
def msgpack(of_type: None = None) -> Serde[Any]: ...
@overload
def msgpack(of_type: type[T]) -> Serde[T]: ...
def msgpack(of_type: Any = None) -> Serde[Any]:
    """MessagePack, of any value or of one type that is checked when it is decoded."""
    return _msgspec_serde("msgpack", of_type, msgspec.msgpack.Encoder, msgspec.msgpack.Decoder)


def _msgspec_serde(codec: str, of_type: Any, encoder: Any, decoder: Any) -> Serde[Any]:
    """One constructor for both codecs: msgspec gives their encoders and decoders the same shape."""
    name = codec if of_type is None else f"{codec}({getattr(of_type, '__name__', None) or of_type})"
    encode = encoder().encode
    encode_key = encoder(order="deterministic").encode
    if of_type is None:
        return Serde(encode, decoder().decode, name, encode_key)
    try:
        decode = decoder(of_type).decode
    except TypeError as error:
        raise ConfigError(
            f"{name}: this type cannot be checked: {error}",
            option=codec,
            value=_shown(of_type),
            allowed="a dataclass, msgspec.Struct, TypedDict, NamedTuple or a type built of them",
        ) from error
    if not _is_record_class(of_type):
        return Serde(encode, decode, name, encode_key)

    # A dict where an Order belongs would only be found out by the reader, so it is refused here.
    def checked(encode_one: Callable[[object], bytes]) -> Callable[[object], bytes]:
        def serialize(value: object) -> bytes:
            if not isinstance(value, of_type):
                raise TypeError(f"expected {of_type.__name__}, got {type(value).__name__}")
            return encode_one(value)

        return serialize

    return Serde(checked(encode), decode, name, checked(encode_key))


def _is_record_class(of_type: object) -> bool:
    return isinstance(of_type, type) and (
        issubclass(of_type, msgspec.Struct) or hasattr(of_type, "__dataclass_fields__")
    )


BYTES: Serde[bytes] = Serde(_same, _same, "bytes")
STR: Serde[str] = Serde(_encode_str, bytes.decode, "str")
INT64: Serde[int] = Serde(_encode_int64, _decode_int64, "int64")
_BY_NAME: Mapping[str, Serde[Any]] = {
    "bytes": BYTES,
    "str": STR,
    "int64": INT64,
    "json": json(),
    "msgpack": msgpack(),
}
_ALLOWED = 'None, "bytes", "str", "int64", "json", "msgpack", a Serde or a callable'


# ---------------------------------------------------------------- options -> functions


def resolve_serializer(spec: object, option: str) -> Serializer | None:
    """Return the function a producer calls for each key or value; None means "takes bytes already".

    option:  the option's name; it stands in every error, and a name beginning with "key" asks for key
            encoding.
    Where this returns None the producer checks with `only_bytes` (a whole column) or `to_bytes` (one).
    Raises   ConfigError for anything that is no spec.
    """
    serde = _named(spec, option)
    if serde is BYTES:
        return None
    if serde is not None:
        key_function = serde.serialize_key if option.startswith("key") else None
        return _serializer(key_function or serde.serialize, serde.name, option)
    return _serializer(_callable(spec, option), _name_of(spec), option)


def resolve_deserializer(spec: object, option: str) -> Deserializer | None:
    """Return the function a consumer calls for each key or value; None means "stays bytes"."""
    serde = _named(spec, option)
    if serde is BYTES:
        return None
    if serde is not None:
        return _deserializer(serde.deserialize, serde.name, option)
    return _deserializer(_callable(spec, option), _name_of(spec), option)


def only_bytes(values: Sequence[object]) -> bool:
    """Whether every item is bytes or None, without a Python step per item."""
    return set(map(type, values)) <= _BYTES_TYPES


def to_bytes(value: object, option: str) -> bytes | None:
    """Return bytes and None as they are, other buffers copied; anything else is a SerializationError."""
    if value is None or type(value) is bytes:
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    given = type(value).__name__
    hint = _SERDE_FOR_TYPE.get(type(value), "json")
    raise SerializationError(
        f"without {option} it must be bytes or None, got {given} {_shown(value)}: pass {option}={hint!r}",
        option=option,
        serde="bytes",
        given=_shown(value),
        given_type=given,
    )


_SERDE_FOR_TYPE: Mapping[type, str] = {str: "str", int: "int64", dict: "json", list: "json"}


def _serializer(function: Callable[[Any], object], name: str, option: str) -> Serializer:
    def serialize(value: object) -> bytes | None:
        if value is None:
            return None
        try:
            data = function(value)
        except Exception as error:
            raise SerializationError(
                f"{option} {name} cannot serialize {type(value).__name__} {_shown(value)}: {error}",
                option=option,
                serde=name,
                given=_shown(value),
                given_type=type(value).__name__,
            ) from error
        if type(data) is bytes or data is None:
            return data
        if isinstance(data, (bytes, bytearray, memoryview)):
            return bytes(data)
        raise SerializationError(
            f"{option} {name} must return bytes or None, returned {type(data).__name__}",
            option=option,
            serde=name,
            given=_shown(value),
            given_type=type(value).__name__,
        )

    return serialize


def _deserializer(function: Callable[[Any], object], name: str, option: str) -> Deserializer:
    def deserialize(data: bytes | None) -> object:
        if data is None:
            return None
        try:
            return function(data)
        except Exception as error:
            raise DeserializationError(
                f"{option} {name} cannot read {len(data)} bytes {_shown(data)}: {error}",
                option=option,
                serde=name,
                given=_shown(data),
            ) from error

    return deserialize


def _named(spec: object, option: str) -> Serde[Any] | None:
    """The serde a spec stands for, or None where it must be a callable."""
    if spec is None:
        return BYTES
    if isinstance(spec, Serde):
        return spec
    if not isinstance(spec, str):
        return None
    serde = _BY_NAME.get(spec)
    if serde is None:
        suggestion = _suggest(spec)
        raise ConfigError(
            f"{option}={spec!r} is no serde; allowed: {_ALLOWED}"
            + (f"; did you mean {suggestion!r}?" if suggestion else ""),
            option=option,
            value=spec,
            allowed=_ALLOWED,
            suggestion=suggestion,
        )
    return serde


_HABITS: Mapping[str, str] = {
    "string": "str", "text": "str", "utf8": "str", "utf-8": "str", "unicode": "str",
    "long": "int64", "int": "int64", "integer": "int64", "i64": "int64",
    "bytearray": "bytes", "binary": "bytes", "raw": "bytes", "none": "bytes",
    "messagepack": "msgpack", "pickle": "msgpack", "dict": "json", "object": "json",
}  # fmt: skip


def _suggest(name: str) -> str | None:
    import difflib

    lower = name.lower()
    if lower in _BY_NAME:
        return lower
    close = difflib.get_close_matches(lower, list(_BY_NAME) + list(_HABITS), n=1)
    return _HABITS.get(lower) or (_HABITS.get(close[0], close[0]) if close else None)


def _callable(spec: object, option: str) -> Callable[[Any], object]:
    """A type is callable too, but `str(b"x")` is "b'x'": types that would only do harm are refused."""
    suggestion = None
    if isinstance(spec, type):
        suggestion = _suggestion_for_type(spec)
    elif callable(spec):
        return spec
    if suggestion is None and callable(spec):
        return spec
    raise ConfigError(
        f"{option}={_shown(spec)} is no serde; allowed: {_ALLOWED}"
        + (f"; did you mean {suggestion}?" if suggestion else ""),
        option=option,
        value=_shown(spec),
        allowed=_ALLOWED,
        suggestion=suggestion,
    )


def _suggestion_for_type(given: type) -> str | None:
    if given in (str, int, bytes):
        return {str: '"str"', int: '"int64"', bytes: '"bytes"'}[given]
    if given in (dict, list, tuple, float, bool, object):
        return '"json"'
    is_typed_dict = hasattr(given, "__total__") and hasattr(given, "__required_keys__")
    if _is_record_class(given) or is_typed_dict:
        return f"serde.json({given.__name__})"
    return None


def _name_of(spec: object) -> str:
    return getattr(spec, "__qualname__", None) or type(spec).__name__


def _shown(value: object) -> str:
    """A short text of any value, for messages: errors must pickle, so they never carry the value itself."""
    if isinstance(value, (str, bytes, bytearray)):
        value = value[:SHOWN_CHARS_MAX]
    try:
        text = repr(value)
    except Exception:  # a user's __repr__ may raise anything
        return f"<{type(value).__name__}>"
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 3] + "..."
