"""Codecs of record batches: one call to compress, one bounded call to decompress.

The codec is the low three bits of a batch's attributes; compressed is everything behind the batch header.

    codec   | number | library                    | frame
    none    |      0 | -                          | -
    gzip    |      1 | zlib (standard library)    | RFC 1952, several members allowed
    snappy  |      2 | cramjam (extra `kafka`)    | xerial blocks (Java), or one raw block (librdkafka)
    lz4     |      3 | cramjam (extra `kafka`)    | LZ4 frame
    zstd    |      4 | zstandard (core)           | one zstd frame

Invariants:
 1. `decompress` never makes more than `bytes_max` bytes, whatever the input claims (zip bombs).
 2. Bytes that are not what the codec says raise InvalidRecordError, never the library's own error.
 3. A zstd context is used by one thread at a time: popped from a pool and put back (list.pop and append are
    atomic). A pool never holds more contexts than threads have compressed at once.

Libraries are imported at first use: zstandard alone costs 10 to 20 ms.
Sources: KIP-110 (zstd), KIP-390 (levels); Kafka CompressionType; xerial SnappyOutputStream.
Not implemented: zstd dictionaries; the broken lz4 header checksums of message formats 0 and 1 (KIP-57).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NoReturn

from .errors import InvalidRecordError, UnsupportedCompressionTypeError

if TYPE_CHECKING:
    import zstandard

DECOMPRESSED_BYTES_MAX = 128 * 1024 * 1024
ZSTD_LEVEL_DEFAULT = 3

_XERIAL_MAGIC = b"\x82SNAPPY\x00"
_XERIAL_HEADER = (
    _XERIAL_MAGIC + (1).to_bytes(4, "big") + (1).to_bytes(4, "big")
)  # version, lowest compatible version
_XERIAL_BLOCK_BYTES = 32 * 1024
_CHUNK_BYTES = 256 * 1024
_LZ4_RATIO_MAX = 255  # an LZ4 length byte adds at most 255 bytes


class Codec(IntEnum):
    """Kafka's compression types; the number is what the attributes of a batch hold."""

    NONE = 0
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4


CODECS: Final[Mapping[str, Codec | None]] = {
    "none": Codec.NONE, "uncompressed": Codec.NONE, "gzip": Codec.GZIP, "snappy": Codec.SNAPPY,
    "lz4": Codec.LZ4, "zstd": Codec.ZSTD, "producer": None,
}  # fmt: skip
"""What the options `compression` and `compression.type` name; None: as the producer chose."""

_compressors: dict[int, list[zstandard.ZstdCompressor]] = {}
_decompressors: list[zstandard.ZstdDecompressor] = []


def compress(codec: Codec, data: bytes, level: int | None = None) -> bytes:
    """Return `data` compressed; `level` None is the codec's default (snappy has no levels)."""
    if codec == Codec.ZSTD:
        return _compress_zstd(data, ZSTD_LEVEL_DEFAULT if level is None else level)
    if codec == Codec.NONE:
        return data
    if codec == Codec.GZIP:
        import zlib

        gzip = zlib.compressobj(-1 if level is None else level, zlib.DEFLATED, 31)  # 31 = a gzip frame
        return gzip.compress(data) + gzip.flush()
    cramjam = _cramjam(codec)
    if codec == Codec.LZ4:
        return bytes(cramjam.lz4.compress(data) if level is None else cramjam.lz4.compress(data, level=level))
    parts = [_XERIAL_HEADER]
    for start in range(0, len(data), _XERIAL_BLOCK_BYTES):
        block = bytes(cramjam.snappy.compress_raw(data[start : start + _XERIAL_BLOCK_BYTES]))
        parts += (len(block).to_bytes(4, "big"), block)
    return b"".join(parts)


def decompress(codec: Codec, data: bytes | memoryview, bytes_max: int = DECOMPRESSED_BYTES_MAX) -> bytes:
    """Return the original bytes.

    bytes_max: refuse to make more than this many bytes.
    Raises     InvalidRecordError (not this codec's bytes, or too many of them),
               UnsupportedCompressionTypeError (the library of an extra is not installed).
    """
    if codec == Codec.ZSTD:
        return _decompress_zstd(data, bytes_max)
    if codec == Codec.NONE:
        return bytes(data)
    if codec == Codec.GZIP:
        return _decompress_gzip(data, bytes_max)
    if codec == Codec.LZ4:
        return _decompress_lz4(bytes(data), bytes_max)
    return _decompress_snappy(bytes(data), bytes_max)


def _compress_zstd(data: bytes, level: int) -> bytes:
    try:
        pool = _compressors[level]
    except KeyError:
        pool = _compressors.setdefault(level, [])
    try:
        compressor = pool.pop()
    except IndexError:
        import zstandard

        compressor = zstandard.ZstdCompressor(level=level)
    compressed = compressor.compress(data)
    pool.append(compressor)
    return compressed


def _decompress_zstd(data: bytes | memoryview, bytes_max: int) -> bytes:
    import zstandard

    try:
        size_bytes = zstandard.frame_content_size(data)
        if size_bytes > bytes_max:
            _too_large(Codec.ZSTD, bytes_max)
        try:
            decompressor = _decompressors.pop()
        except IndexError:
            decompressor = zstandard.ZstdDecompressor()
        if size_bytes >= 0:
            original = decompressor.decompress(data, allow_extra_data=False)
        else:  # a streaming writer (librdkafka, Java) does not state the size: decompress piece by piece
            original = _read_bounded(decompressor.stream_reader(data, read_across_frames=True), bytes_max)
    except zstandard.ZstdError as error:
        raise _not_codec(Codec.ZSTD, error) from error
    _decompressors.append(decompressor)
    return original


def _read_bounded(reader: zstandard.ZstdDecompressionReader, bytes_max: int) -> bytes:
    pieces: list[bytes] = []
    size_bytes = 0
    while piece := reader.read(_CHUNK_BYTES):
        size_bytes += len(piece)
        if size_bytes > bytes_max:
            _too_large(Codec.ZSTD, bytes_max)
        pieces.append(piece)
    return b"".join(pieces)


def _decompress_gzip(data: bytes | memoryview, bytes_max: int) -> bytes:
    import zlib

    pieces: list[bytes] = []
    room_bytes = bytes_max
    rest: bytes | memoryview = data
    try:
        while True:
            member = zlib.decompressobj(31)
            piece = member.decompress(rest, room_bytes + 1)
            room_bytes -= len(piece)
            if room_bytes < 0:
                _too_large(Codec.GZIP, bytes_max)
            if not member.eof:
                raise _not_codec(Codec.GZIP, "the stream is truncated")
            pieces.append(piece)
            rest = member.unused_data
            if not rest:
                return b"".join(pieces)
    except zlib.error as error:
        raise _not_codec(Codec.GZIP, error) from error


def _decompress_lz4(data: bytes, bytes_max: int) -> bytes:
    """cramjam has no limit of its own, so it writes into a buffer of ours that grows until all fits."""
    cramjam = _cramjam(Codec.LZ4)
    limit_bytes = min(bytes_max, _LZ4_RATIO_MAX * len(data))
    room_bytes = min(limit_bytes, max(4 * len(data), 64 * 1024))
    while True:
        buffer = bytearray(room_bytes)
        try:
            return bytes(memoryview(buffer)[: cramjam.lz4.decompress_into(data, buffer)])
        except cramjam.DecompressionError as error:
            if "whole buffer" not in str(error):
                raise _not_codec(Codec.LZ4, error) from error
            if room_bytes >= limit_bytes:
                _too_large(Codec.LZ4, bytes_max)
        room_bytes = min(limit_bytes, 4 * room_bytes)


def _decompress_snappy(data: bytes, bytes_max: int) -> bytes:
    cramjam = _cramjam(Codec.SNAPPY)
    blocks: list[bytes] = []
    if data.startswith(_XERIAL_MAGIC):
        position = len(_XERIAL_HEADER)
        while position < len(data):
            end = position + 4 + int.from_bytes(data[position : position + 4], "big")
            if end > len(data):
                raise _not_codec(Codec.SNAPPY, "a block is truncated")
            blocks.append(data[position + 4 : end])
            position = end
    else:
        blocks.append(data)
    pieces: list[bytes] = []
    room_bytes = bytes_max
    try:
        for block in blocks:
            room_bytes -= cramjam.snappy.decompress_raw_len(block)
            if room_bytes < 0:
                _too_large(Codec.SNAPPY, bytes_max)
            pieces.append(bytes(cramjam.snappy.decompress_raw(block)))
    except cramjam.DecompressionError as error:
        raise _not_codec(Codec.SNAPPY, error) from error
    return b"".join(pieces)


def _cramjam(codec: Codec) -> Any:
    try:
        import cramjam  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise UnsupportedCompressionTypeError(
            f"{codec.name.lower()} needs the package cramjam: install the extra `kafka`, "
            "pip install 'streamlog-embedded[kafka]'",
            codec=codec.name.lower(),
            extra="kafka",
        ) from error
    return cramjam


def _not_codec(codec: Codec, reason: object) -> InvalidRecordError:
    name = codec.name.lower()
    return InvalidRecordError(f"the body of a batch is not {name}: {reason}", codec=name)


def _too_large(codec: Codec, bytes_max: int) -> NoReturn:
    name = codec.name.lower()
    raise InvalidRecordError(
        f"the {name} body of a batch decompresses to more than {bytes_max} bytes",
        codec=name,
        bytes_max=bytes_max,
    )
