"""The messages that Restore encodes by hand equal those of the library."""

from hypothesis import given
from hypothesis import strategies as st
from staddle._protocol.encoding import varint
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api import encoding

chunks = st.lists(st.binary(min_size=1, max_size=300).map(memoryview), min_size=1, max_size=5)
entries = st.tuples(
    st.builds(
        lambda path, mode: pb.Entry(path=path, mode=mode), st.text(max_size=20), st.integers(0, 0o7777)
    ),
    st.binary(max_size=300),
)
parts = st.one_of(
    chunks,
    entries,
    st.builds(lambda n: sv.RestorePart(data=sv.Data(zero_bytes=n, chunk_lengths=[n])), st.integers(1, 2**20)),
    st.builds(lambda n: sv.RestorePart(end=sv.End(entry_count=n)), st.integers(0, 2**63)),
    st.just(sv.RestorePart()),
)
bare = st.builds(lambda path, mode: pb.Entry(path=path, mode=mode), st.text(max_size=20), st.integers(0, 9))
pieces = st.builds(
    lambda segment, offset, length: sv.Piece(segment=segment, offset_bytes=offset, length_bytes=length),
    *[st.integers(0, 2**32 - 1)] * 3,
)
segments = st.builds(
    lambda raw, size, data: sv.Segment(raw=raw, raw_bytes=size, data=data),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=1, max_size=300),
)


@given(st.lists(parts, max_size=6))
def test_parts_in_any_order_are_read_as_the_same_message(said):
    meant, pieces = sv.RestoreResponse(), []
    for each in said:
        if isinstance(each, list):
            meant.parts.add().data.MergeFrom(
                sv.Data(data=b"".join(each), chunk_lengths=[len(chunk) for chunk in each])
            )
            pieces += encoding.data_part(each)
        elif isinstance(each, tuple):
            entry, data = each
            added = meant.parts.add().entry
            added.MergeFrom(entry)
            added.data = data
            pieces += encoding.inline_part(entry, memoryview(data))
        else:
            meant.parts.append(each)
            pieces += encoding.part(each)
    assert sv.RestoreResponse.FromString(encoding.response(pieces)) == meant
    assert pieces == []


@given(st.integers(0, 2**64 - 1))
def test_numbers_are_written_as_the_library_writes_them(number):
    written = sv.Data(zero_bytes=number).SerializeToString()
    assert varint(number) == (written[1:] or b"\0")


def test_a_mebibyte_is_written_with_little_overhead():
    pieces = encoding.data_part([memoryview(bytes(65_536))] * 16)
    message = encoding.response(pieces)
    assert len(message) < 2**20 + 80
    assert sv.RestoreResponse.FromString(message).parts[0].data.data == bytes(2**20)


@given(bare, pieces)
def test_an_entry_and_its_piece_are_one_part(entry, piece):
    meant = sv.RestoreResponse(parts=[sv.RestorePart(entry=entry, piece=piece)])
    assert sv.RestoreResponse.FromString(encoding.response(encoding.entry_and_piece(entry, piece))) == meant
    meant.parts[0].ClearField("piece")
    assert sv.RestoreResponse.FromString(encoding.response(encoding.entry_part(entry))) == meant


@given(segments)
def test_a_segment_is_written_around_its_bytes(segment):
    head = sv.Segment(raw=segment.raw, raw_bytes=segment.raw_bytes)
    written = encoding.response(encoding.segment_part(head, memoryview(segment.data)))
    assert sv.RestoreResponse.FromString(written) == sv.RestoreResponse(
        parts=[sv.RestorePart(segment=segment)]
    )
