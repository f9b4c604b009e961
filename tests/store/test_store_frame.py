"""Payloads: what the store compresses, and which frames from elsewhere it accepts."""

import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import MIB, SEGMENT_RAW_BYTES_MAX
from staddle_server.store.frame import (
    WINDOW_BYTES_MAX,
    Codec,
    FrameError,
    _Contexts,
    compress,
    inflate,
    inflate_start,
)
from store_data import Seeded

TEXT = b"what is written twice is stored once. " * 2000


@given(st.binary(min_size=1, max_size=5000), st.integers(1, 200))
def test_compressed_data_inflates_to_the_same_bytes(piece: bytes, times: int) -> None:
    raw = (piece * times)[:SEGMENT_RAW_BYTES_MAX]
    codec, payload = compress(raw)
    assert inflate(codec, payload, len(raw)) == raw
    assert len(payload) <= len(raw)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_can_be_compressed_and_inflated(kind: type) -> None:
    codec, payload = compress(kind(TEXT))
    assert codec == Codec.ZSTD
    assert inflate(codec, kind(bytes(payload)), len(TEXT)) == TEXT
    assert inflate(Codec.RAW, kind(TEXT), len(TEXT)) == TEXT


def test_data_that_hardly_compresses_stays_raw_and_is_not_copied() -> None:
    noise = Seeded("noise")(100_000)
    codec, payload = compress(noise)
    assert codec == Codec.RAW
    assert payload is noise
    assert compress(noise + bytes(2_000))[0] == Codec.RAW
    assert compress(noise + bytes(5_000))[0] == Codec.ZSTD


def test_our_frames_state_their_size_and_stay_within_the_window() -> None:
    raw = TEXT * 40
    _, payload = compress(raw[:SEGMENT_RAW_BYTES_MAX])
    parameters = zstandard.get_frame_parameters(payload)
    assert parameters.content_size == min(len(raw), SEGMENT_RAW_BYTES_MAX)
    assert parameters.window_size <= WINDOW_BYTES_MAX
    assert parameters.dict_id == 0


def test_compression_contexts_are_reused_even_after_an_error() -> None:
    contexts = _Contexts(object)
    with contexts.one() as first, contexts.one() as second:
        assert first is not second
    with contexts.one() as again, suppress(ValueError), contexts.one() as other:
        assert {again, other} == {first, second}
        raise ValueError
    assert set(contexts._idle) == {first, second}


def test_threads_compress_in_parallel() -> None:
    payloads = [Seeded(f"thread {i}")(1000) * 200 for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        frames = list(pool.map(compress, payloads))
        inflated = list(
            pool.map(
                lambda pair: inflate(pair[0][0], pair[0][1], len(pair[1])), zip(frames, payloads, strict=True)
            )
        )
    assert inflated == payloads


def unsized() -> bytes:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    return compressor.compress(TEXT)


def windowed() -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=23, write_content_size=1)
    raw = TEXT * 40
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=len(raw))
    return compressor.compress(raw) + compressor.flush()


def with_dictionary() -> bytes:
    samples = [Seeded(f"sample {i % 7}")(200) + TEXT[i : i + 300] for i in range(500)]
    return zstandard.ZstdCompressor(dict_data=zstandard.train_dictionary(4096, samples)).compress(TEXT)


def lying(stated: int) -> bytes:
    """A frame whose content size was changed to `stated`: TEXT's own is in four bytes (RFC 8878, 3.1.1.1)."""
    frame = bytearray(zstandard.ZstdCompressor(level=1).compress(TEXT))
    assert frame[4] == 0xA0
    frame[5:9] = struct.pack("<I", stated)
    return bytes(frame)


FRAME = zstandard.ZstdCompressor(level=1).compress(TEXT)
SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"skip"


@pytest.mark.parametrize(
    ("payload", "raw_length", "why"),
    [
        (unsized(), len(TEXT), "does not state"),
        (with_dictionary(), len(TEXT), "dictionary"),
        (lying(10), 10, "broken"),
        (lying(len(TEXT) + 1), len(TEXT) + 1, "broken"),
        (lying(2**31), len(TEXT), "states 2147483648"),
        (lying(2**31), 2**31, "inflates to 1 to"),
        (FRAME, len(TEXT) + 1, "were stated"),
        (FRAME, len(TEXT) - 1, "were stated"),
        (FRAME, 0, "inflates to 1 to"),
        (FRAME, -1, "inflates to 1 to"),
        (FRAME + b"\0", len(TEXT), "broken"),
        (FRAME + FRAME, len(TEXT), "broken"),
        (FRAME + FRAME, 2 * len(TEXT), "were stated"),
        (FRAME + SKIPPABLE, len(TEXT), "broken"),
        (SKIPPABLE + FRAME, len(TEXT), "not a zstd frame"),
        (SKIPPABLE, 4, "not a zstd frame"),
        (FRAME[:-1], len(TEXT), "broken"),
        (FRAME[:6], len(TEXT), "broken"),
        (FRAME[:4], len(TEXT), "broken"),
        (b"", 1, "not a zstd frame"),
        (zstandard.ZstdCompressor().compress(b""), 1, "were stated"),
        (b"\x1f\x8b" + FRAME, len(TEXT), "not a zstd frame"),
    ],
)
def test_a_frame_that_contradicts_its_stated_size_is_refused(
    payload: bytes, raw_length: int, why: str
) -> None:
    with pytest.raises(FrameError, match=why) as caught:
        inflate(Codec.ZSTD, payload, raw_length)
    assert isinstance(caught.value, BadRequest)
    assert caught.value.reason == "BAD_FRAME"


def test_a_window_over_two_mebibytes_is_refused() -> None:
    frame = windowed()
    parameters = zstandard.get_frame_parameters(frame)
    assert parameters.window_size > WINDOW_BYTES_MAX
    with pytest.raises(FrameError, match="window"):
        inflate(Codec.ZSTD, frame, parameters.content_size)


def test_a_frame_in_the_largest_window_that_is_allowed_inflates() -> None:
    raw = Seeded("window")(2 * MIB)
    frame = zstandard.ZstdCompressor(level=19).compress(raw)
    assert zstandard.get_frame_parameters(frame).window_size == WINDOW_BYTES_MAX
    assert inflate(Codec.ZSTD, frame, len(raw)) == raw


@pytest.mark.parametrize("codec", [-1, 2, 255])
def test_an_unknown_codec_is_refused(codec: int) -> None:
    with pytest.raises(FrameError, match="unknown codec"):
        inflate(codec, TEXT, len(TEXT))


def test_a_raw_payload_of_another_length_is_refused() -> None:
    with pytest.raises(FrameError, match="raw payload"):
        inflate(Codec.RAW, TEXT, len(TEXT) - 1)


def bomb(inflated_bytes: int) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(bytes(inflated_bytes))


@pytest.mark.parametrize("stated", [1, 1000, SEGMENT_RAW_BYTES_MAX])
def test_a_bomb_is_refused_before_it_takes_memory(stated: int) -> None:
    frame = bomb(256 * MIB)
    dishonest = bytearray(frame)
    assert dishonest[4] == 0xA0 or dishonest[4] & 0xC0 == 0x80
    at = 5 if dishonest[4] & 0x20 else 6
    dishonest[at : at + 4] = struct.pack("<I", stated)
    tracemalloc.start()
    try:
        for payload in (frame, bytes(dishonest)):
            with pytest.raises(FrameError):
                inflate(Codec.ZSTD, payload, stated)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < stated + 1 * MIB


@given(st.binary(max_size=200), st.integers(-1, 300), st.sampled_from([0, 1, 2]))
def test_hostile_bytes_inflate_to_what_was_stated_or_not_at_all(
    payload: bytes, raw_length: int, codec: int
) -> None:
    for frame in (payload, zstandard.FRAME_HEADER + payload):
        try:
            raw = inflate(codec, frame, raw_length)
        except FrameError:
            continue
        assert len(raw) == raw_length


@given(st.integers(0, len(FRAME) * 8 - 1))
def test_a_flipped_bit_in_a_frame_never_changes_how_much_comes_out(bit: int) -> None:
    damaged = bytearray(FRAME)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        raw = inflate(Codec.ZSTD, bytes(damaged), len(TEXT))
    except FrameError:
        return
    assert len(raw) == len(TEXT)


@given(st.binary(min_size=1, max_size=5000), st.integers(1, 6000), st.booleans())
def test_the_start_of_a_payload_equals_the_start_of_all_of_it_inflated(
    data: bytes, length: int, raw: bool
) -> None:
    payload = data if raw else zstandard.ZstdCompressor().compress(data)
    start = inflate_start(Codec.RAW if raw else Codec.ZSTD, payload, len(data), length)
    assert bytes(start) == (data if raw else data[: max(length, 0)])


def test_the_start_of_a_frame_with_a_wrong_size_is_refused() -> None:
    data = bytes(range(256)) * 40
    frame = zstandard.ZstdCompressor().compress(data)
    for payload, raw_length in (
        (frame, len(data) - 1),
        (frame[: len(frame) // 2], len(data)),
        (b"no frame", len(data)),
        (zstandard.ZstdCompressor(write_content_size=False).compress(data), len(data)),
    ):
        with pytest.raises(FrameError):
            inflate_start(Codec.ZSTD, payload, raw_length, len(data) - 2)
