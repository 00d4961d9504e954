"""How a producer sorts records into the batches of a topic's partitions.

    items --split--> keys, values --partitioner--> one list of keys, values and sizes per partition --> open batches

Everything here works on whole columns: the cost of a Python call is paid per call of `send_many`, not per record.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from streamlog.broker.runner import Chance
from streamlog.client.delivery import OpenBatch
from streamlog.client.partitioner import Crc32Partitioner, create_partitioner
from streamlog.client.serde import only_bytes, to_bytes
from streamlog.config import ProducerConfig, TopicConfig
from streamlog.core.cluster_image import TopicImage
from streamlog.core.timestamps import timestamp_refusal
from streamlog.errors import (
    ConfigError,
    InvalidTimestampError,
    RecordTooLargeError,
    SerializationError,
    UnknownTopicOrPartitionError,
)
from streamlog.record import Headers

RECORD_OVERHEAD_BYTES: Final = 8
"""What a record costs in a columnar batch beside its key and value, as the size of a batch is estimated."""


class Gathered(NamedTuple):
    """Records sorted by partition. `order` maps the gathered order to the given one; None if they are the same."""

    parts: list[tuple[int, list[bytes | None], list[bytes | None]]]
    order: list[int] | None


class Gate:
    """Which records of a producer take the slow way (`Accumulator._admit`) before they are gathered."""

    __slots__ = ("record_bytes_max",)

    def __init__(self, record_bytes_max: int) -> None:
        # Larger ones do: too large, or large for their topic. -1: all do.
        self.record_bytes_max = record_bytes_max


class TopicBuffer:
    """The open batches of one topic, one per partition, and its partitioner. Belongs to one image of the topic.

    `send` finds all it needs here, in slots.
    """

    __slots__ = (
        "image", "images", "count", "batches", "partitioner", "place", "hashes", "batch_bytes", "large_bytes",
        "message_bytes_max", "gate", "wall_ns", "serializes", "topic_config",
    )  # fmt: skip

    def __init__(
        self,
        image: TopicImage,
        images: Mapping[str, TopicImage],
        config: ProducerConfig,
        topic_config: TopicConfig,
        chance: Chance,
        gate: Gate,
        wall_ns: Callable[[], int],
    ) -> None:
        """topic_config: sizes here are estimates, so batches stay well below its max.message.bytes.
        images: of all topics, as they are now. gate: the producer's."""
        self.image = image
        self.images = images
        self.gate = gate
        self.wall_ns = wall_ns
        self.serializes = config.key_serializer is not None or config.value_serializer is not None
        self.message_bytes_max = message_bytes_max = topic_config.max_message_bytes
        self.topic_config = topic_config
        self.batch_bytes = min(config.batch_size, message_bytes_max // 2)
        # A larger record than this could lift an open batch over the topic's limit: it begins a new one.
        self.large_bytes = message_bytes_max // 6
        self.count = len(image.partitions)
        self.batches: list[OpenBatch | None] = [None] * self.count
        spec = "sticky" if config.partitioner_ignore_keys else config.partitioner
        self.partitioner = create_partitioner(spec, image.name, chance)
        one, count = self.partitioner.one, self.count
        self.hashes = isinstance(self.partitioner, Crc32Partitioner)
        self.place: Callable[[bytes | None, bytes | None], int] = lambda key, value: one(key, count, value)
        if count == 1 and isinstance(spec, str):
            self.place = lambda key, value: 0

    def open_batches(self) -> list[OpenBatch]:
        return [batch for batch in self.batches if batch is not None]

    def retire(self) -> None:
        """Another buffer takes over: who still holds this one must look again (an IndexError tells)."""
        self.batches = []

    def checked_timestamp(self, timestamp: object) -> int:
        """A time the caller chose, ms. Raises InvalidTimestampError here and not for a whole batch later."""
        if isinstance(timestamp, bool) or not isinstance(timestamp, int) or not 0 <= timestamp < 2**63:
            raise InvalidTimestampError(
                f"timestamp={timestamp!r}: allowed: ms since the epoch, an int from 0 to 2**63-1, or None for now",
                timestamp=timestamp,
            )
        config = self.topic_config
        if config.message_timestamp_type == "CreateTime":
            refusal = timestamp_refusal(timestamp, self.wall_ns() // 1_000_000, config)
            if refusal is not None:
                raise InvalidTimestampError(
                    f"topic {self.image.name!r}: {refusal}", topic=self.image.name, timestamp=timestamp
                )
        return timestamp

    def checked_partition(self, partition: object) -> int:
        """A partition the caller chose. Raises UnknownTopicOrPartitionError, ConfigError."""
        if type(partition) is not int:
            raise ConfigError(
                f"partition={partition!r:.80}: allowed: an int from 0 to {self.count - 1}, or "
                "None for the partitioner's choice",
                option="partition",
                value=partition,
                allowed=f"0 to {self.count - 1}, or None",
            )
        if 0 <= partition < self.count:
            return partition
        raise UnknownTopicOrPartitionError(
            f"topic {self.image.name!r} has no partition {partition!r}; allowed: 0 to {self.count - 1}, or None",
            topic=self.image.name,
            partition=partition,
        )


def split_items(items: list[Any]) -> tuple[list[Any], list[Any]] | None:
    """The columns of (key, value) pairs; None if there is anything else among the items."""
    if not items:
        return [], []
    if set(map(type, items)) == {tuple}:
        try:
            return [key for key, _ in items], [value for _, value in items]
        except ValueError:
            pass  # told below, with the item at fault
    for item in items:
        if isinstance(item, tuple):
            if len(item) != 2:
                raise SerializationError(
                    f"send_many takes (key, value) pairs, not a tuple of {len(item)}: {item!r:.80}",
                    given=item,
                )
        elif not (hasattr(item, "key") and hasattr(item, "value")):
            raise SerializationError(
                f"send_many takes (key, value) pairs or Records, not {type(item).__name__} {item!r:.80}",
                given=item,
            )
    return None


def checked_columns(keys: list[Any], values: list[Any]) -> tuple[list[bytes | None], list[bytes | None]]:
    """The columns as bytes and None only. Raises SerializationError."""
    if not only_bytes(keys):
        keys = [to_bytes(key, "key_serializer") for key in keys]
    if not only_bytes(values):
        values = [to_bytes(value, "value_serializer") for value in values]
    return keys, values


def gather(buffer: TopicBuffer, keys: list[bytes | None], values: list[bytes | None]) -> Gathered:
    """Sort whole columns by partition."""
    count = buffer.count
    placed = buffer.partitioner.assign(keys, count, values)
    first = placed[0] if placed else 0
    if not placed or placed.count(first) == len(placed):
        return Gathered([(first, keys, values)] if placed else [], None)
    if count <= 4 * len(placed):
        by_partition: list[list[int]] = [[] for _ in range(count)]
        for index, partition in enumerate(placed):
            by_partition[partition].append(index)
        numbered = [(partition, indexes) for partition, indexes in enumerate(by_partition) if indexes]
    else:
        sparse: dict[int, list[int]] = {}
        for index, partition in enumerate(placed):
            sparse.setdefault(partition, []).append(index)
        numbered = sorted(sparse.items())
    parts = [
        (partition, [keys[i] for i in indexes], [values[i] for i in indexes])
        for partition, indexes in numbered
    ]
    return Gathered(parts, [index for _, indexes in numbered for index in indexes])


def column_bytes(column: list[bytes | None]) -> int:
    """How many bytes a column of keys or values holds."""
    try:
        return sum(map(len, column))  # type: ignore[arg-type]
    except TypeError:  # some are None: found out by failing, since looking first costs as much as the sum
        return sum([len(item) for item in column if item is not None])


def record_sizes(keys: list[bytes | None], values: list[bytes | None]) -> list[int]:
    """What each record takes of a batch, as its size is estimated."""
    try:
        return [
            len(key) + len(value) + RECORD_OVERHEAD_BYTES  # type: ignore[arg-type]
            for key, value in zip(keys, values, strict=True)
        ]
    except TypeError:  # some are None: see `column_bytes`
        return [
            RECORD_OVERHEAD_BYTES + len(key or b"") + len(value or b"")
            for key, value in zip(keys, values, strict=True)
        ]


def cut(ends: list[int], start: int, room_bytes: int) -> int:
    """How far from record `start` records fit into `room_bytes`; at least one does.

    ends:    the running sums of `record_sizes`.
    """
    before = ends[start - 1] if start else 0
    return max(bisect_right(ends, before + room_bytes, start, len(ends)), start + 1)


def check_size(size: int, allowed: int, topic: str) -> None:
    if size <= allowed:
        return
    raise RecordTooLargeError(
        f"a record of {size} bytes for topic {topic!r} is larger than max_request_size={allowed}",
        topic=topic,
        size_bytes=size,
        allowed_bytes=allowed,
    )


def check_headers(headers: Iterable[tuple[str, bytes | None]]) -> Headers:
    """Headers as a tuple of pairs. Raises SerializationError naming the wrong one."""
    given: object = headers
    if isinstance(given, dict):
        headers = given.items()
    elif isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
        raise SerializationError(f"headers are pairs (str, bytes or None), not {given!r:.80}", given=given)
    checked: list[tuple[str, bytes | None]] = []
    for header in headers:
        if not isinstance(header, (tuple, list)) or len(header) != 2:
            raise SerializationError(
                f"a header is a pair (str, bytes or None), not {header!r:.80}", given=header
            )
        name, data = header
        if not isinstance(name, str) or not (
            data is None or isinstance(data, (bytes, bytearray, memoryview))
        ):
            raise SerializationError(
                f"a header is a pair (str, bytes or None), not ({type(name).__name__}, "
                f"{type(data).__name__}): {header!r:.80}",
                given=header,
            )
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise SerializationError(
                f"header name {name!r:.80} is no UTF-8 text: {error}", given=header
            ) from error
        checked.append((name, None if data is None else bytes(data)))
    return tuple(checked)


def headers_bytes(headers: Headers) -> int:
    """About what headers add to a batch."""
    return sum(len(name) + (0 if data is None else len(data)) + 4 for name, data in headers)
