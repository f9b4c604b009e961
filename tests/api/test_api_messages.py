"""The decoded size of a message is bounded before it is decoded."""

import pytest
from extent import extent
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api import messages
from staddle_server.api.messages import FIELDS_MAX, backup_parts, decoder, put_chunks
from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import ITEMS_PER_MESSAGE_MAX, PARTS_PER_MESSAGE_MAX

PART = b"\x0a\x00"
ENTRY = pb.Entry(path="a", content=pb.Content(chunks=[pb.ChunkRef(digest=bytes(32), length_bytes=5)]))


def test_as_many_parts_as_a_message_may_have_are_decoded_and_more_are_refused():
    read = decoder(sv.BackupRequest)
    assert len(read(PART * PARTS_PER_MESSAGE_MAX).parts) == PARTS_PER_MESSAGE_MAX
    with pytest.raises(BadRequest, match="limit is 65536") as refused:
        read(PART * (FIELDS_MAX + 1))
    assert refused.value.reason == "BAD_FIELD"


@pytest.mark.parametrize("field", extent(["holes"], ["xattrs", "holes", "chunks"]))
@pytest.mark.parametrize("message", ["BackupRequest", "PutEntriesRequest"])
def test_items_are_counted_over_all_entries_of_a_message(field, message):
    half = ITEMS_PER_MESSAGE_MAX // 2

    def entry(count):
        made = pb.Entry(path="a")
        if field == "chunks":
            made.content.MergeFromString(PART * count)
        else:
            made.MergeFromString(_repeat(pb.Entry.DESCRIPTOR.fields_by_name[field].number, count))
        return made

    def request(*counts):
        if message == "BackupRequest":
            return sv.BackupRequest(parts=[sv.BackupPart(entry=entry(count)) for count in counts])
        return sv.PutEntriesRequest(changes=[sv.EntryChange(entry=entry(count)) for count in counts])

    read = decoder(getattr(sv, message))
    within = request(half, half)
    assert read(within.SerializeToString()) == within
    with pytest.raises(BadRequest, match="limit is 262144") as refused:
        read(request(half, half, 2).SerializeToString())
    assert refused.value.reason == "BAD_FIELD"


def _repeat(number, count):
    """An empty field with this number, repeated."""
    key = number << 3 | 2
    head = bytes([key]) if key < 0x80 else bytes([key & 0x7F | 0x80, key >> 7])
    return (head + b"\0") * count


@pytest.mark.parametrize(
    "data",
    [b"\x0b" + PART * FIELDS_MAX + b"\x0c", b"\xff" * 200_000, PART * 66_000 + b"\x0a", b"\x0a\xff\xff\xff\xff\x0f" * 40_000],
    ids=["group", "no number", "cut off", "longer than it is"],
)  # fmt: skip
def test_bytes_that_are_not_a_message_are_refused(data):
    with pytest.raises(BadRequest) as refused:
        decoder(sv.BackupRequest)(data)
    assert refused.value.reason == "BAD_FIELD"
    with pytest.raises(BadRequest, match="not a valid"):
        decoder(sv.BackupRequest)(b"\xff" * 10)
    for cut_off in (bytes.fromhex("0a0522030aa984"), b"\x0a", b"\x0a\x02\x22\x80"):
        with pytest.raises(BadRequest, match="not a valid"):
            list(backup_parts(cut_off))
    with pytest.raises(BadRequest, match="not a valid"):
        put_chunks(b"\x22\x80")


@given(
    st.lists(
        st.sampled_from([sv.BackupPart(entry=ENTRY), sv.BackupPart(), sv.BackupPart(data=sv.Data(data=bytes(200)))]), max_size=30
    ),
    st.binary(max_size=20),
)  # fmt: skip
def test_counting_does_not_change_the_decoded_message(parts, behind):
    data = sv.BackupRequest(parts=parts).SerializeToString() + behind
    try:
        expected = sv.BackupRequest.FromString(data)
    except DecodeError:
        expected = None
    try:
        messages._check_fields(data)
        found = decoder(sv.BackupRequest)(data)
    except BadRequest:
        # Protobuf skips groups; this service, which never had any, does not.
        assert expected is None or any(byte & 7 in (3, 4) for byte in behind)
        return
    assert found == expected


def test_numbers_in_a_longer_encoding_are_counted_too():
    number = pb.Entry.DESCRIPTOR.fields_by_name["xattrs"].number
    head = number << 3 | 2
    overlong = bytes([head & 0x7F | 0x80, head >> 7 | 0x80, 0, 0])
    assert len(pb.Entry.FromString(overlong * 3).xattrs) == 3
    inside = overlong * (ITEMS_PER_MESSAGE_MAX + 1)
    assert (
        sv.BackupRequest(parts=[sv.BackupPart(entry=pb.Entry())]).SerializeToString() == b"\x0a\x02\x1a\x00"
    )

    def sized(tag, body):
        length, size = len(body), bytearray()
        while length >= 0x80:
            size.append(length & 0x7F | 0x80)
            length >>= 7
        return tag + bytes([*size, length]) + body

    with pytest.raises(BadRequest, match="limit is 262144"):
        decoder(sv.BackupRequest)(sized(b"\x0a", sized(b"\x1a", inside)))


def test_data_that_looks_like_items_is_data():
    tag = bytes([pb.Content.DESCRIPTOR.fields_by_name["chunks"].number << 3 | 2])
    part = sv.BackupPart(entry=pb.Entry(path="a", data=tag * (ITEMS_PER_MESSAGE_MAX + 10)))
    request = sv.BackupRequest(parts=[part])
    assert decoder(sv.BackupRequest)(request.SerializeToString()) == request


def _as_sent(parts):
    """The output of backup_parts, as BackupParts again."""
    return [
        part if isinstance(part, sv.BackupPart) else sv.BackupPart(data=sv.Data(data=bytes(part)))
        for part in parts
    ]


sent_parts = st.one_of(
    st.sampled_from([
        sv.BackupPart(entry=ENTRY), sv.BackupPart(), sv.BackupPart(data=sv.Data()), sv.BackupPart(finish=sv.Finish(entry_count=3)),
        sv.BackupPart(data=sv.Data(zero_bytes=9)), sv.BackupPart(data=sv.Data(data=b"both", zero_bytes=9, chunk_lengths=[4])),
    ]),
    st.binary(max_size=400).map(lambda data: sv.BackupPart(data=sv.Data(data=data))),
)  # fmt: skip


@given(st.lists(sent_parts, max_size=20), st.binary(max_size=12), st.integers(0, 3))
def test_the_parts_of_a_backup_equal_those_of_the_library(parts, behind, cut):
    data = sv.BackupRequest(parts=parts).SerializeToString()
    data = data[: len(data) - cut] + behind
    try:
        expected = list(sv.BackupRequest.FromString(data).parts)
    except DecodeError:
        expected = None
    try:
        found = _as_sent(backup_parts(data))
    except BadRequest:
        assert expected is None or any(byte & 7 in (3, 4) for byte in behind)
        return
    assert found == expected


def test_much_data_is_a_view_of_the_message_and_little_data_a_copy():
    parts = [
        sv.BackupPart(data=sv.Data(data=bytes([n]) * size)) for n, size in enumerate((700_000, 10, 300_000))
    ]
    message = sv.BackupRequest(parts=parts).SerializeToString()
    much, little, enough = backup_parts(message)
    assert much.obj is message
    assert enough.obj is message
    assert isinstance(little, bytes)
    assert (much, little, enough) == tuple(part.data.data for part in parts)


def test_the_number_of_parts_of_a_backup_is_limited():
    message = PART * (PARTS_PER_MESSAGE_MAX + 1)
    parts = backup_parts(message)
    for _ in range(PARTS_PER_MESSAGE_MAX):
        next(parts)
    with pytest.raises(BadRequest, match="limit is 65536"):
        next(parts)
    half = pb.Entry(path="a")
    half.content.MergeFromString(PART * (ITEMS_PER_MESSAGE_MAX // 2))
    several = sv.BackupRequest(
        parts=[sv.BackupPart(entry=half)] * 2 + [sv.BackupPart(entry=ENTRY)]
    ).SerializeToString()
    parts = backup_parts(several)
    next(parts)
    next(parts)
    with pytest.raises(BadRequest, match="limit is 262144"):
        next(parts)
    alone = pb.Entry(path="a")
    alone.content.MergeFromString(PART * (ITEMS_PER_MESSAGE_MAX + 1))
    with pytest.raises(BadRequest, match="limit is 262144"):
        next(backup_parts(sv.BackupRequest(parts=[sv.BackupPart(entry=alone)]).SerializeToString()))


@given(
    st.builds(
        sv.PutChunksRequest,
        upload_id=st.text(max_size=10),
        epoch=st.integers(0, 2**64 - 1),
        chunks=st.lists(st.builds(pb.ChunkRef, digest=st.binary(max_size=40), length_bytes=st.integers(0, 2**32 - 1)), max_size=5),
        data=st.binary(max_size=300),
        raw=st.booleans(),
    ),
    st.binary(max_size=12),
    st.booleans(),
)  # fmt: skip
def test_a_frame_equals_that_of_the_library_and_its_data_is_not_copied(request, behind, twice):
    message = request.SerializeToString() + behind
    if twice:  # the last one counts
        message = sv.PutChunksRequest(upload_id="x", data=b"before").SerializeToString() + message
    try:
        expected = sv.PutChunksRequest.FromString(message)
    except DecodeError:
        expected = None
    try:
        sent = put_chunks(message)
    except BadRequest:
        assert expected is None or any(byte & 7 in (3, 4) for byte in behind)
        return
    assert sent.data.obj is message
    assert sent.data == expected.data
    expected.ClearField("data")
    assert sent.request == expected
