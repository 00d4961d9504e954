"""Records as text and back: the formats of `produce` and `consume`.

    value       the value, then a newline (byte for byte what `produce` read)      raw    the value and
    nothing else
    key         the key, then a newline                                            full   everything, for
    people
    key-value   key, separator, value, then a newline
    json        one object a line: topic, partition, offset, timestamp, key, value, headers

In JSON a key or value that is not UTF-8 text is {"base64": "..."}; null is null. A missing key or value in
the other formats is the word null, as Kafka's console consumer prints it.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from streamlog.cli.lines import terminator
from streamlog.cli.terminal import when
from streamlog.record import Record

NULL: Final = b"null"
CONSUME_FORMATS: Final = ("value", "json", "key-value", "key", "raw", "full")
PRODUCE_FORMATS: Final = ("value", "json", "key-value")

_encode_json = msgspec.json.Encoder().encode

Format = Callable[[Iterable[Record]], bytes]


def make_format(name: str, separator: bytes) -> Format:
    """The function that writes a list of records as bytes."""
    match name:
        case "value":
            return lambda records: b"".join(
                [_or_null(r.value) + (terminator(r) if r.headers else b"\n") for r in records]
            )
        case "raw":
            return lambda records: b"".join([r.value or b"" for r in records])
        case "key":
            return lambda records: b"".join([_or_null(r.key) + b"\n" for r in records])
        case "key-value":
            return lambda records: b"".join(
                [
                    _or_null(r.key) + separator + _or_null(r.value) + (terminator(r) if r.headers else b"\n")
                    for r in records
                ]
            )
        case "json":
            return lambda records: b"".join([_encode_json(record_document(r)) + b"\n" for r in records])
        case _:
            return lambda records: b"".join([full(r) + b"\n" for r in records])


def _or_null(data: bytes | None) -> bytes:
    return NULL if data is None else data


def record_document(record: Record) -> dict[str, Any]:
    """A record as JSON has it."""
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "key": text_or_base64(record.key),
        "value": text_or_base64(record.value),
        "headers": [[name, text_or_base64(value)] for name, value in record.headers],
    }


def text_or_base64(data: bytes | None) -> str | dict[str, str] | None:
    """Bytes as JSON can carry them, without loss."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(data).decode()}


def full(record: Record) -> bytes:
    """A record on one line, for people."""
    parts = [f"{record.topic}-{record.partition}@{record.offset}", when(record.timestamp)]
    if record.key is not None:
        parts.append(f"key={readable(record.key)}")
    parts += [f"{name}={'null' if value is None else readable(value)}" for name, value in record.headers]
    parts.append("null" if record.value is None else readable(record.value))
    return "  ".join(parts).encode("utf-8", "backslashreplace")


def readable(data: bytes) -> str:
    """Bytes as text that cannot upset a terminal: control characters and what is not UTF-8 are escaped."""
    text = data.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


class BadLine(ValueError):
    """A line of input that is not in the format asked for."""


def parse_json_line(line: bytes) -> Record:
    """One line of `consume --format json`, or any object with `value` (and `key`, `headers`, `timestamp`).
    Raises BadLine.
    """
    try:
        document = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise BadLine(f"not JSON: {error}") from None
    if not isinstance(document, dict) or "value" not in document:
        raise BadLine('not an object with a field "value" (and, if you like, "key", "headers", "timestamp")')
    timestamp = document.get("timestamp")
    if timestamp is None or timestamp == -1:
        timestamp = -1
    elif isinstance(timestamp, bool) or not isinstance(timestamp, int) or timestamp < 0:
        raise BadLine(f'"timestamp" is {timestamp!r}, not ms since the epoch')
    return Record(
        key=_data("key", document.get("key")),
        value=_data("value", document["value"]),
        timestamp=timestamp,
        headers=_headers(document.get("headers")),
    )


def _data(field: str, given: Any) -> bytes | None:
    if given is None:
        return None
    if isinstance(given, str):
        return given.encode()
    if isinstance(given, dict) and list(given) == ["base64"]:
        try:
            return b64decode(given["base64"], validate=True)
        except (ValueError, TypeError):
            raise BadLine(f'"{field}" has no valid base64') from None
    return _encode_json(given)


def _headers(given: Any) -> tuple[tuple[str, bytes | None], ...]:
    if given is None:
        return ()
    pairs = list(given.items()) if isinstance(given, dict) else given
    if not isinstance(pairs, list):
        raise BadLine('"headers" is neither an object nor a list of [name, value] pairs')
    headers = []
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[0], str):
            raise BadLine('"headers" is neither an object nor a list of [name, value] pairs')
        headers.append((pair[0], _data("headers", pair[1])))
    return tuple(headers)
