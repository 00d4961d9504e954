"""Every codec round-trips, is bounded, and answers garbage with an error of ours."""

from __future__ import annotations

import builtins
import gzip
import random
import sys
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlog.compression import Codec, _compressors, compress, decompress
from streamlog.errors import InvalidRecordError, UnsupportedCompressionTypeError

CODECS = [Codec.NONE, Codec.GZIP, Codec.ZSTD, Codec.SNAPPY, Codec.LZ4]
DATA = [b"", b"x", b"hello " * 20_000, random.Random(1).randbytes(100_000)]


def _needs(codec: Codec) -> None:
    if codec in (Codec.SNAPPY, Codec.LZ4):
        pytest.importorskip("cramjam")


def test_numbers_are_kafkas() -> None:
    assert {codec.name: codec.value for codec in Codec} == {
        "NONE": 0,
        "GZIP": 1,
        "SNAPPY": 2,
        "LZ4": 3,
        "ZSTD": 4,
    }


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("data", DATA, ids=["empty", "one", "repeating", "random"])
def test_round_trip(codec: Codec, data: bytes) -> None:
    _needs(codec)
    compressed = compress(codec, data)
    assert decompress(codec, compressed) == data
    assert decompress(codec, memoryview(compressed)) == data


@pytest.mark.parametrize(
    ("codec", "low", "high"), [(Codec.ZSTD, 1, 19), (Codec.GZIP, 1, 9), (Codec.LZ4, 1, 9)]
)
def test_level_is_used(codec: Codec, low: int, high: int) -> None:
    _needs(codec)
    data = " ".join(str(number * number) for number in range(20_000)).encode()
    fast, small = compress(codec, data, low), compress(codec, data, high)
    assert len(small) < len(fast) < len(data)
    assert decompress(codec, small) == decompress(codec, fast) == data


@pytest.mark.parametrize("codec", [Codec.GZIP, Codec.ZSTD, Codec.SNAPPY, Codec.LZ4])
def test_a_bomb_is_refused(codec: Codec) -> None:
    _needs(codec)
    bomb = compress(codec, bytes(4_000_000))
    with pytest.raises(InvalidRecordError) as caught:
        decompress(codec, bomb, bytes_max=1_000_000)
    assert caught.value.bytes_max == 1_000_000
    assert caught.value.codec == codec.name.lower()
    assert len(decompress(codec, bomb, bytes_max=4_000_000)) == 4_000_000


def test_a_zstd_bomb_that_states_no_size_is_refused() -> None:
    import zstandard

    writer = zstandard.ZstdCompressor().compressobj()
    bomb = writer.compress(bytes(4_000_000)) + writer.flush()
    assert zstandard.frame_content_size(bomb) == -1
    with pytest.raises(InvalidRecordError):
        decompress(Codec.ZSTD, bomb, bytes_max=1_000_000)
    assert decompress(Codec.ZSTD, bomb) == bytes(4_000_000)


def test_a_zstd_frame_that_lies_about_its_size_is_refused() -> None:
    compressed = bytearray(compress(Codec.ZSTD, b"a" * 200))
    position = compressed.index(200 - 0, 4)  # one byte of content size: 200
    compressed[position] = 255
    with pytest.raises(InvalidRecordError):
        decompress(Codec.ZSTD, bytes(compressed))


def test_gzip_members_are_joined() -> None:
    assert decompress(Codec.GZIP, gzip.compress(b"ab") + gzip.compress(b"cd")) == b"abcd"
    assert gzip.decompress(compress(Codec.GZIP, b"abcd")) == b"abcd"


def test_gzip_truncated() -> None:
    with pytest.raises(InvalidRecordError):
        decompress(Codec.GZIP, gzip.compress(b"abcd" * 1000)[:-9])


def test_zlib_without_gzip_header_is_not_gzip() -> None:
    with pytest.raises(InvalidRecordError):
        decompress(Codec.GZIP, zlib.compress(b"abcd"))


def test_snappy_both_framings() -> None:
    cramjam = pytest.importorskip("cramjam")
    data = b"abcd" * 50_000
    framed = compress(Codec.SNAPPY, data)
    assert framed.startswith(b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01")
    assert decompress(Codec.SNAPPY, framed) == data
    assert decompress(Codec.SNAPPY, bytes(cramjam.snappy.compress_raw(data))) == data


@pytest.mark.parametrize("codec", [Codec.GZIP, Codec.ZSTD, Codec.SNAPPY, Codec.LZ4])
@given(data=st.binary(max_size=200))
def test_garbage(codec: Codec, data: bytes) -> None:
    _needs(codec)
    try:
        assert len(decompress(codec, data, bytes_max=100_000)) <= 100_000
    except InvalidRecordError as error:
        assert error.codec == codec.name.lower()


@pytest.mark.parametrize("codec", [Codec.GZIP, Codec.ZSTD, Codec.SNAPPY, Codec.LZ4])
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7), cut=st.integers(0, 40))
def test_flipped_bits_and_truncation(codec: Codec, position: int, bit: int, cut: int) -> None:
    _needs(codec)
    compressed = bytearray(compress(codec, b"some text that repeats, that repeats and ends" * 10))
    compressed[position % len(compressed)] ^= 1 << bit
    try:
        decompress(codec, bytes(compressed[: len(compressed) - cut]), bytes_max=100_000)
    except InvalidRecordError:
        pass


@pytest.mark.parametrize("codec", [Codec.SNAPPY, Codec.LZ4])
def test_missing_library_names_the_extra(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def no_cramjam(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cramjam":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "cramjam", raising=False)
    monkeypatch.setattr(builtins, "__import__", no_cramjam)
    for call in (compress, decompress):
        with pytest.raises(UnsupportedCompressionTypeError, match=r"streamlog-embedded\[kafka\]") as caught:
            call(codec, b"abc")
        assert caught.value.extra == "kafka"


def test_contexts_are_pooled() -> None:
    compress(Codec.ZSTD, b"abc", 7)
    assert len(_compressors[7]) == 1
    first = _compressors[7][0]
    compress(Codec.ZSTD, b"abc", 7)
    assert _compressors[7] == [first]
