"""Segments are verified like everything else in a Restore stream."""

import random
import tracemalloc

import pytest
import zstandard
from blake3 import blake3
from staddle import ProtocolError
from staddle._protocol.restore_reader import DataEvent, EndEvent, EntryEvent, read_restore
from staddle._protocol.segments import RAW_BYTES_MAX, Segments
from staddle.chunking import content_id
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

SMALL = b"small file " * 20
CHUNKS = [random.Random(n).randbytes(70_000) for n in range(3)]
LARGE = b"".join(CHUNKS)
RAW = SMALL + LARGE


def frame(raw=RAW, **options):
    return zstandard.ZstdCompressor(**options).compress(raw)


def entry(path, size, identity):
    made = pb.Entry(path=path, type=pb.ENTRY_TYPE_FILE)
    made.content.size_bytes, made.content.content_id = size, identity
    return made


LARGE_ID = content_id((len(chunk), blake3(chunk).digest()) for chunk in CHUNKS)


def piece(number, offset, length):
    return sv.Piece(segment=number, offset_bytes=offset, length_bytes=length)


def parts(segment=None, number=0):
    """A stream with a small file and a large one, both in one segment."""
    at, places = len(SMALL), []
    for chunk in CHUNKS:
        places.append(piece(number, at, len(chunk)))
        at += len(chunk)
    segment = segment or sv.Segment(data=frame(), raw_bytes=len(RAW))
    return [
        sv.RestorePart(
            header=sv.RestoreHeader(backup=pb.Backup(id="b" * 32, entry_count=10**6, data_bytes=2**40))
        ),
        sv.RestorePart(segment=segment),
        sv.RestorePart(entry=entry("a", len(LARGE), LARGE_ID)),
        sv.RestorePart(pieces=sv.Pieces(pieces=places)),
        sv.RestorePart(entry_end=sv.EntryEnd(size_bytes=len(LARGE), content_id=LARGE_ID)),
        sv.RestorePart(
            entry=entry("b", len(SMALL), blake3(SMALL).digest()), piece=piece(number, 0, len(SMALL))
        ),
        sv.RestorePart(end=sv.End(entry_count=2, data_bytes=len(RAW))),
    ]


def read(parts, together=1):
    """The events of these parts, so many in a message."""
    messages = [sv.RestoreResponse(parts=parts[at : at + together]) for at in range(0, len(parts), together)]
    segments = Segments()
    try:
        return list(read_restore(messages, segments=segments))
    finally:
        segments.close()


def refused(parts, match):
    for together in (1, 3, 99):
        with pytest.raises(ProtocolError, match=match):
            read(parts, together)


@pytest.mark.parametrize("together", [1, 2, 3, 99])
@pytest.mark.parametrize("before", [0, 1, 30])
def test_pieces_are_the_bytes_of_their_segment_for_any_message_boundaries(together, before):
    others = [
        sv.RestorePart(segment=sv.Segment(data=bytes([n] * 9), raw=True, raw_bytes=9)) for n in range(before)
    ]
    made = parts(number=before)
    seen = read([made[0], *others, *made[1:]], together)
    assert seen[-1] == EndEvent(2, len(RAW), 0)
    assert b"".join(event.data for event in seen if isinstance(event, DataEvent)) == LARGE
    assert [bytes(event.data) for event in seen if isinstance(event, EntryEvent)] == [b"", SMALL]


def test_a_reference_to_a_dropped_or_future_segment_is_refused():
    made = parts()
    others = [sv.RestorePart(segment=sv.Segment(data=b"x", raw=True, raw_bytes=1))] * 8
    refused([*made[:2], *others, *made[2:]], "refers to segment 0, and 9 have come")
    refused([made[0], *made[2:]], "refers to segment 0, and 0 have come")
    refused(parts(number=1), "refers to segment 1, and 1 have come")


@pytest.mark.parametrize(
    ("place", "match"),
    [
        (piece(0, len(RAW) - 5, 6), "6 bytes at"),
        (piece(0, 2**32 - 1, 1), "1 bytes at"),
        (piece(0, 0, 0), "0 bytes at"),
        (piece(0, 1, len(SMALL)), "not what its content id says"),
        (piece(0, 0, len(SMALL) - 1), "bytes came of"),
    ],
)
def test_a_wrong_piece_is_refused(place, match):
    made = parts()
    made[5].piece.CopyFrom(place)
    refused(made, match)


def test_a_swapped_piece_of_a_large_file_is_noticed():
    made = parts()
    made[3].pieces.pieces[1].offset_bytes += 1
    refused(made, "not what its content id says")


@pytest.mark.parametrize(
    ("segment", "match"),
    [
        (sv.Segment(data=frame(), raw_bytes=len(RAW) - 1), "not the zstd frame"),
        (sv.Segment(data=frame()[:-1], raw_bytes=len(RAW)), "cannot be inflated"),
        (sv.Segment(data=frame() + b"x", raw_bytes=len(RAW)), "cannot be inflated"),
        (sv.Segment(data=b"no frame at all", raw_bytes=15), "cannot be inflated"),
        (sv.Segment(data=b"", raw_bytes=0), "cannot be inflated"),
        (sv.Segment(data=b"\x50\x2a\x4d\x18" + bytes(4), raw_bytes=0), "not the zstd frame"),
        (sv.Segment(data=RAW, raw=True, raw_bytes=len(RAW) + 1), "that says"),
        (
            sv.Segment(data=frame(write_content_size=False), raw_bytes=len(RAW)),
            "not the zstd frame",
        ),
        (sv.Segment(data=frame(bytes(3 * 2**20 + 1)), raw_bytes=3 * 2**20 + 1), "over 3145728"),
        (
            sv.Segment(data=frame(bytes(3 * 2**20), level=19), raw_bytes=3 * 2**20),
            "not the zstd frame",
        ),
    ],
    ids=range(10),
)
def test_a_segment_that_contradicts_its_header_is_refused(segment, match):
    refused(parts(segment), match)


def test_a_frame_is_inflated_to_its_stated_size_at_most():
    bomb = sv.Segment(data=frame(bytes(500 * 2**20)), raw_bytes=1024)
    refused(parts(bomb), "not the zstd frame")


def test_segments_and_pieces_that_were_not_requested_are_refused():
    for at in (1, 3, 5):
        made = parts()
        chosen = [made[0], *([made[2]] if at == 3 else []), made[at]]
        with pytest.raises(ProtocolError, match="not requested"):
            list(read_restore([sv.RestoreResponse(parts=[part]) for part in chosen]))
    made = parts()
    refused([*made[:2], made[3]], "piece outside a file")


def test_a_message_of_highly_compressed_frames_is_opened_piece_by_piece():
    packed = frame(bytes(RAW_BYTES_MAX))
    message = sv.RestoreResponse()
    for _ in range(200):
        message.parts.add(segment=sv.Segment(data=packed, raw_bytes=RAW_BYTES_MAX))
    segments = Segments()
    tracemalloc.start()
    try:
        slices = 0
        for some in segments.ahead([message]):
            slices += 1
            for _ in some.parts:
                segments.next_segment()
        assert slices == 100
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()
        segments.close()
