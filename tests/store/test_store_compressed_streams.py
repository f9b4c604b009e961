"""Compressed streams: complete or refused, and never more at once than was asked for."""

from __future__ import annotations

import gzip
import tracemalloc

import pytest
import zstandard
from staddle_server.base.errors import BadRequest
from staddle_server.store.compressed_streams import Pieces, compressed, inflated
from thin import noise

MIB = 1 << 20
DATA = noise(300_000) + bytes(300_000)
PACKED = {"": DATA, "gzip": gzip.compress(DATA, 1), "zstd": b"".join(compressed([DATA[:7], DATA[7:]]))}


def read(form: str, data: bytes, step: int = 1_000, size: int = 10_000) -> bytes:
    source = inflated(form, Pieces(data[at : at + step] for at in range(0, len(data), step)))
    found = bytearray()
    while piece := source.read(size):
        assert len(piece) <= size
        found += piece
    assert source.read(size) == b""
    return bytes(found)


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize(("step", "size"), [(1 << 20, 1 << 20), (1_000, 50_000), (7, 70_000), (70_000, 33)])
def test_a_stream_comes_out_whatever_the_pieces(form: str, step: int, size: int) -> None:
    assert read(form, PACKED[form], step, size) == DATA


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_several_in_succession_are_one_and_each_must_be_whole(form: str) -> None:
    pack = gzip.compress if form == "gzip" else zstandard.compress
    twice = pack(b"one") + pack(b"") + pack(b"two")
    assert read(form, twice) == b"onetwo"
    for length in range(1, len(twice)):
        if twice[:length] in {pack(b"one"), pack(b"one") + pack(b"")}:
            continue
        with pytest.raises(BadRequest) as caught:
            read(form, twice[:length])
        assert caught.value.reason == "BAD_FRAME"


def test_zeros_behind_gzip_are_padding_and_nothing_else_is() -> None:
    assert read("gzip", PACKED["gzip"] + bytes(5_000)) == DATA
    with pytest.raises(BadRequest):
        read("gzip", PACKED["gzip"] + b"more")


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_what_grows_a_thousandfold_comes_out_bit_by_bit(form: str) -> None:
    zeros = bytes(256 * MIB)
    data = gzip.compress(zeros, 1) if form == "gzip" else zstandard.compress(zeros)
    del zeros
    source = inflated(form, Pieces(iter([data])))
    tracemalloc.start()
    try:
        total = 0
        while piece := source.read(100_000):
            total += len(piece)
        assert total == 256 * MIB
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()
